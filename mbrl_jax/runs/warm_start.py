"""A run whose world model begins where that of another run ended, in place of fresh parameters."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.config import ConfigError, ModelConfig, RunConfig
from mbrl_jax.environments import environment_of
from mbrl_jax.model.ensemble import LOG_VARIANCE_BOUNDS, Bounds, Members, Normaliser
from mbrl_jax.runs import results
from mbrl_jax.runs.program import Batch, Program

# Settings of a model by which its parameters mean something else.
SHAPING = ("members", "hidden", "activation", "input_scale", "prediction", "target", "normalise_targets", "reward", "termination")


class Start(NamedTuple):
    """Where the ensembles of a run begin; seed i has that of the other run's seed i, counted round where that has fewer."""

    params: Any  # leaves [seeds of the other run, E, ...]
    bounds: Bounds  # leaves [seeds of the other run, E, D']
    normaliser: Normaliser | None = None  # leaves [seeds of the other run, ...], where the run that begins keeps it


def check(config: RunConfig, warm: bool) -> None:
    """Refuse a model that keeps what it begins with where it begins untrained, without another run's.

    Raises:
      ConfigError: naming the setting.

    """
    model = getattr(config, "model", None)
    if isinstance(model, ModelConfig) and model.fits != "all" and not warm:
        right = "the model begins untrained; begin with that of another run (--from), or it must be 'all'"
        raise ConfigError(f"model.fits: {model.fits!r} does not fit; {right}")


def read(folder: Path, config: RunConfig) -> Start:
    """Read where a run of ``config`` is to begin.

    Args:
      folder: of the finished run whose model it is.
      config: of the run that begins.

    Raises:
      ConfigError: the folder holds no such run, or its model does not fit the config.

    """
    ours = getattr(config, "model", None)
    run = results.read(folder)
    other, model = run.config, run.result.outcome.model
    theirs = getattr(other, "model", None)
    if not isinstance(ours, ModelConfig) or not isinstance(theirs, ModelConfig):
        raise ConfigError(f"from: {str(folder)!r} does not fit; both runs must have a model of kind 'ensemble'")
    for name in SHAPING:
        ours_set, theirs_set = (getattr(each, name) for each in (ours, theirs))
        if ours_set != theirs_set:
            raise ConfigError(f"model.{name}: {ours_set!r} does not fit; the model of {str(folder)!r} has {theirs_set!r}")
    if theirs.elites is not None:
        raise ConfigError(f"from: {str(folder)!r} does not fit; of its model only {theirs.elites} elites are kept, all must be")
    specs = [environment_of(each.environment, None).spec for each in (config, other)]
    sizes = [(each.observation_size, each.action_count, each.action_size) for each in specs]
    if sizes[0] != sizes[1]:
        told = f"it is of {specs[1].name!r}, whose sizes are not those of {specs[0].name!r}"
        raise ConfigError(f"from: {str(folder)!r} does not fit; {told}")
    if not isinstance(model, Members):
        raise ConfigError(f"from: {str(folder)!r} does not fit; there is no model.npz in it, which has the models")
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model)):
        raise ConfigError(f"from: {str(folder)!r} does not fit; the model of a seed has numbers that are not finite")
    low, high = LOG_VARIANCE_BOUNDS
    silent = np.asarray(model.bounds.maximum) < low  # of a target that did not vary in the data there
    bounds = (np.where(silent, fresh, each).astype(np.float32) for fresh, each in zip((low, high), model.bounds, strict=True))
    normaliser = None if ours.fits == "all" else model.normaliser
    return Start(model.params, Bounds(*map(jnp.asarray, bounds)), normaliser)


def begin(program: Program, batch: Batch, start: Start) -> None:
    """Put the models of a program's agents, which have just been made, where they begin."""
    numbers = program.seeds.start + (batch.first + program.number) % len(program.seeds)

    def placed(leaf: Any) -> Any:
        return program.layout.place(np.asarray(leaf)[numbers % len(leaf)])

    model = program.state.model
    fresh = model._replace(params=jax.tree.map(placed, start.params), bounds=jax.tree.map(placed, start.bounds))
    if start.normaliser is not None:
        fresh = fresh._replace(normaliser=jax.tree.map(placed, start.normaliser))
    program.state = program.state._replace(model=fresh)
