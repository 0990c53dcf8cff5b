"""What computes the parts of a training loop, where that is not left to XLA.

An engine is made outside of the algorithms, for one configuration and one task, and handed to ``make_train``. An algorithm calls
the parts that an engine has in place of its own functions, and knows nothing of how or where they run.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from mbrl_jax.config import RunConfig
from mbrl_jax.environments import Environment, EnvironmentState
from mbrl_jax.model.protocol import FitLog
from mbrl_jax.networks import Params
from mbrl_jax.replay import ReplayState


class Loop(NamedTuple):
    """What the steps of a round carry from one to the next."""

    time: Array  # [] int32, steps so far, shared by all seeds
    episode: EnvironmentState | None  # the real episode in progress, none where all transitions are logged ones
    real: ReplayState
    imagined: ReplayState
    lanes: Any
    agent: Any


class Engine(NamedTuple):
    """The parts of a training loop that an engine computes. A part that is none is computed as the algorithm writes it down.

    Each part returns what the plain path returns for the same random numbers, but for rounding; all of them can be jitted,
    scanned, and mapped over seeds and over traced settings.

    Attributes:
      name: as a run's summary gives it.
      advance: ``(hyper, model, loop, draws) -> (loop, (update log, lane log))``: T successive steps of a round. ``hyper`` is the
        configuration with its traced numbers, ``model`` the parameters that the world model imagines with, and ``draws`` the
        loop's random numbers; these and the logs have leaves [T, ...].
      score: ``(model, policy, start [n, ...], draws [steps, n, ...]) -> returns [n]`` of greedy imagined episodes, as
        :func:`mbrl_jax.evaluation.play_imagined` gives them.
      play: ``(policy, starts [n]) -> returns [n]`` of greedy real episodes, as :func:`mbrl_jax.evaluation.play` gives them.
      fit: ``(hyper, state, real, key) -> (state, log)``: the model's first fit.
      refit: the same of a later one.
      notes: what a summary says besides: which parts are left to the plain path, or why it is that path, and not another.

    """

    name: str
    advance: Callable[[Any, Any, Loop, Any], tuple[Loop, tuple[Any, Any]]] | None = None
    score: Callable[[Any, Params, Any, Any], Array] | None = None
    play: Callable[[Params, EnvironmentState], Array] | None = None
    fit: Callable[[Any, Any, ReplayState, Array], tuple[Any, FitLog]] | None = None
    refit: Callable[[Any, Any, ReplayState, Array], tuple[Any, FitLog]] | None = None
    notes: tuple[str, ...] = ()


MakeEngine = Callable[[RunConfig, Environment], Engine]
"""``(config, task) -> engine``. Raises ConfigError, naming the setting, where the engine does not cover the configuration."""

PLAIN = Engine("xla")
"""All parts as the algorithms write them down, compiled by XLA."""
