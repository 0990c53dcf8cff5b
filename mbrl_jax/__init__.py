"""Model-based reinforcement learning for many seeds at once, in JAX.

>>> import jax, mbrl_jax
>>> config = mbrl_jax.load("configs/cartpole_batch.yaml")
>>> train = mbrl_jax.dyna_q.make_train(config).train
>>> result = jax.jit(jax.vmap(train))(mbrl_jax.seed_keys(0, seeds=64))

Importing the package imports nothing else: each public name is imported at its first use.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mbrl_jax.algorithms import dmo, dreamer, dyna_q, imagined_pg, model_free_pg, model_free_q, mpc, recurrent_sac
    from mbrl_jax.algorithms.training import Outcome, Result, Train, seed_keys
    from mbrl_jax.config import (
        ConfigError,
        DMOConfig,
        DreamerConfig,
        DynaQConfig,
        ImaginedPGConfig,
        ModelFreePGConfig,
        ModelFreeQConfig,
        MPCConfig,
        RecurrentSACConfig,
        load,
        save,
    )
    from mbrl_jax.environments import Environment, make_environment
    from mbrl_jax.imagination.horizon import Decision, HorizonController, View
    from mbrl_jax.runs.results import read as load_run
    from mbrl_jax.runs.runner import Run, run
    from mbrl_jax.serving.playing import Policy, load_policy

__all__ = [
    "ConfigError",
    "DMOConfig",
    "Decision",
    "DreamerConfig",
    "DynaQConfig",
    "Environment",
    "HorizonController",
    "ImaginedPGConfig",
    "MPCConfig",
    "ModelFreePGConfig",
    "ModelFreeQConfig",
    "Outcome",
    "Policy",
    "RecurrentSACConfig",
    "Result",
    "Run",
    "Train",
    "View",
    "dmo",
    "dreamer",
    "dyna_q",
    "imagined_pg",
    "load",
    "load_policy",
    "load_run",
    "make_environment",
    "model_free_pg",
    "model_free_q",
    "mpc",
    "recurrent_sac",
    "run",
    "save",
    "seed_keys",
]

_MODULES = {
    "algorithms.dmo": "dmo",
    "algorithms.dreamer": "dreamer",
    "algorithms.dyna_q": "dyna_q",
    "algorithms.imagined_pg": "imagined_pg",
    "algorithms.model_free_pg": "model_free_pg",
    "algorithms.model_free_q": "model_free_q",
    "algorithms.mpc": "mpc",
    "algorithms.recurrent_sac": "recurrent_sac",
    "algorithms.training": "Outcome Result Train seed_keys",
    "config": "ConfigError DMOConfig DreamerConfig DynaQConfig ImaginedPGConfig MPCConfig ModelFreePGConfig ModelFreeQConfig "
    "RecurrentSACConfig load save",
    "environments": "Environment make_environment",
    "imagination.horizon": "Decision HorizonController View",
    "serving.playing": "Policy load_policy",
    "runs.results": "load_run",
    "runs.runner": "Run run",
}
"""Modules by path, each with the public names it defines; an algorithm's module is itself the name."""
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}
_DEFINED_AS = {"load_run": "read"}  # where a public name differs from the one in its module


def __getattr__(name: str) -> Any:
    """Import a public name, or a module of the package, at its first use.

    Raises:
      AttributeError: there is no such name.

    """
    if name not in _MODULE_OF:
        if importlib.util.find_spec(f"{__name__}.{name}") is not None:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    path = f"{__name__}.{_MODULE_OF[name]}"
    module = importlib.import_module(path)
    value = module if path.endswith(f".{name}") else getattr(module, _DEFINED_AS.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """All names, those that have not been imported yet too."""
    return sorted({*globals(), *__all__})
