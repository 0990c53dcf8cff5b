"""Model-based reinforcement learning for many seeds at once, in JAX.

>>> import jax, mbrl_jax
>>> config = mbrl_jax.load("configs/cartpole_batch.yaml")
>>> train = mbrl_jax.dyna_q.make_train(config).train
>>> result = jax.jit(jax.vmap(train))(mbrl_jax.seed_keys(0, seeds=64))
"""

from mbrl_jax.algorithms import dyna_q, model_free_q
from mbrl_jax.algorithms.training import Outcome, Result, Train, seed_keys
from mbrl_jax.config import ConfigError, DynaQConfig, ModelFreeQConfig, load, save
from mbrl_jax.environment import Environment, make_environment
from mbrl_jax.imagination.horizon import Decision, HorizonController, View

__all__ = [
    "ConfigError",
    "Decision",
    "DynaQConfig",
    "Environment",
    "HorizonController",
    "ModelFreeQConfig",
    "Outcome",
    "Result",
    "Train",
    "View",
    "dyna_q",
    "load",
    "make_environment",
    "model_free_q",
    "save",
    "seed_keys",
]
