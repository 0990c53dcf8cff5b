"""The settings: frozen dataclasses, YAML on one side and a JAX pytree on the other.

Every setting is either *static* (it changes a shape or the graph, so a new value compiles anew) or *traced* (any other number).
A configuration is itself a pytree: its leaves are the traced settings and its structure holds the static ones. So the same
object is both what ``make_train`` closes over and the ``hyper`` argument of ``train``, and a grid of traced settings is

>>> hyper = dataclasses.replace(config, agent=dataclasses.replace(config.agent, learning_rate=jnp.array([1e-4, 3e-4])))

mapped by ``jax.vmap`` over that leaf. Bad values are refused by :func:`check`, with their path, before anything compiles.
"""

from mbrl_jax.config.agents import (
    AgentConfig,
    ExplorationConfig,
    PolicyGradientConfig,
    QLearningConfig,
    RandomActionsConfig,
    RecurrentConfig,
)
from mbrl_jax.config.algorithms import (
    ALGORITHMS,
    DMOConfig,
    DreamerConfig,
    DynaQConfig,
    ImaginedPGConfig,
    MixingConfig,
    ModelFreePGConfig,
    ModelFreeQConfig,
    MPCConfig,
    RecurrentSACConfig,
    algorithm_name,
)
from mbrl_jax.config.checks import check, check_kind, check_seeds, check_whole
from mbrl_jax.config.dotted import flat_settings, setting, traced_settings, with_settings
from mbrl_jax.config.environment import EnvironmentConfig, PhysicsConfig
from mbrl_jax.config.fields import ConfigError, Limits, settings, static, traced
from mbrl_jax.config.files import from_dict, load, save, to_dict
from mbrl_jax.config.imagination import ControllerConfig, ImaginationConfig, LanesConfig, PlanningConfig, SelectionConfig
from mbrl_jax.config.kinds import AGENTS, CONTROLLERS, MODELS, Kind, Kinds
from mbrl_jax.config.model import ModelConfig, WorldConfig
from mbrl_jax.config.paths import expand
from mbrl_jax.config.presets import presets, read_preset
from mbrl_jax.config.run import EvaluationConfig, ImaginingConfig, ModelBasedConfig, RunConfig, holdout_stride

__all__ = [
    "AGENTS",
    "ALGORITHMS",
    "CONTROLLERS",
    "MODELS",
    "AgentConfig",
    "ConfigError",
    "ControllerConfig",
    "DMOConfig",
    "DreamerConfig",
    "DynaQConfig",
    "EnvironmentConfig",
    "EvaluationConfig",
    "ExplorationConfig",
    "ImaginationConfig",
    "ImaginedPGConfig",
    "ImaginingConfig",
    "Kind",
    "Kinds",
    "LanesConfig",
    "Limits",
    "MPCConfig",
    "MixingConfig",
    "ModelBasedConfig",
    "ModelConfig",
    "ModelFreePGConfig",
    "ModelFreeQConfig",
    "PhysicsConfig",
    "PlanningConfig",
    "PolicyGradientConfig",
    "QLearningConfig",
    "RandomActionsConfig",
    "RecurrentConfig",
    "RecurrentSACConfig",
    "RunConfig",
    "SelectionConfig",
    "WorldConfig",
    "algorithm_name",
    "check",
    "check_kind",
    "check_seeds",
    "check_whole",
    "expand",
    "flat_settings",
    "from_dict",
    "holdout_stride",
    "load",
    "presets",
    "read_preset",
    "save",
    "setting",
    "settings",
    "static",
    "to_dict",
    "traced",
    "traced_settings",
    "with_settings",
]
