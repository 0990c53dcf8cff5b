"""Model-based reinforcement learning for many seeds at once, in JAX.

>>> import jax, mbrl_jax
>>> config = mbrl_jax.load("configs/cartpole_batch.yaml")
>>> train = mbrl_jax.dyna_q.make_train(config).train
>>> result = jax.jit(jax.vmap(train))(mbrl_jax.seed_keys(0, seeds=64))
"""

from mbrl_jax.algorithms import dyna_q, imagined_pg, model_free_pg, model_free_q, mpc
from mbrl_jax.algorithms.training import Outcome, Result, Train, seed_keys
from mbrl_jax.config import ConfigError, DynaQConfig, ImaginedPGConfig, ModelFreePGConfig, ModelFreeQConfig, MPCConfig, load, save
from mbrl_jax.environment import Environment, make_environment
from mbrl_jax.imagination.horizon import Decision, HorizonController, View
from mbrl_jax.runs.playing import Policy, load_policy
from mbrl_jax.runs.results import read as load_run
from mbrl_jax.runs.runner import Run, run

__all__ = [
    "ConfigError",
    "Decision",
    "DynaQConfig",
    "Environment",
    "HorizonController",
    "ImaginedPGConfig",
    "MPCConfig",
    "ModelFreePGConfig",
    "ModelFreeQConfig",
    "Outcome",
    "Policy",
    "Result",
    "Run",
    "Train",
    "View",
    "dyna_q",
    "imagined_pg",
    "load",
    "load_policy",
    "load_run",
    "make_environment",
    "model_free_pg",
    "model_free_q",
    "mpc",
    "run",
    "save",
    "seed_keys",
]
