"""World models by their kind: from settings and a task to a :class:`mbrl_jax.model.protocol.WorldModel`."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax import Array

from mbrl_jax.config import MODELS, ConfigError, ModelConfig, WorldConfig
from mbrl_jax.environments import Environment
from mbrl_jax.model import fitting, losses, rssm_fitting, sampling
from mbrl_jax.model.ensemble import Ensemble
from mbrl_jax.model.protocol import FitLog, ModelSpec, WorldModel
from mbrl_jax.model.rssm import RSSM, RSSMConfig
from mbrl_jax.model.valuing import Value
from mbrl_jax.replay import Replay, ReplayState


class Learns(NamedTuple):
    """What a world model must know of the data that it learns from."""

    real: Replay  # the functions of the replay
    first_rows: int  # transitions that the first fit is made to, the first ones of the replay
    stride: int  # every ``stride``-th row is held out for validation
    holdout: fitting.HoldOut | None = None  # ``() -> [h]`` numbers of the rows that are held out in their place, if it is there


Make = Callable[[Any, Environment, Learns, str], WorldModel]  # (settings, task, data, who moves a rollout) -> world model

_MAKE: dict[type[WorldConfig], Make] = {}


def register(kind: str, settings: type[WorldConfig], make: Make) -> None:
    """Let presets and commands name a kind of world model.

    Args:
      kind: as ``model.kind`` has it.
      settings: its own, made by :func:`mbrl_jax.config.settings`.
      make: ``(settings, task, data, by) -> WorldModel``; ``by`` says who moves a rollout, one of
        :mod:`mbrl_jax.model.sampling`, which only models of several members need to obey.

    Raises:
      ConfigError: the name is taken.

    """
    MODELS.register(kind, settings)
    _MAKE[settings] = make


def make_world(
    config: WorldConfig,
    task: Environment,
    real: Replay,
    *,
    first_rows: int,
    stride: int,
    by: str = "ts1",
    holdout: fitting.HoldOut | None = None,
    latent: bool = False,
) -> WorldModel:
    """Make the world model of a task that its settings configure.

    Args:
      config: its settings.
      task: whose dynamics it learns.
      real: the functions of the replay that it learns from.
      first_rows: transitions that the first fit is made to, the first ones of the replay.
      stride: every ``stride``-th row is held out for validation.
      by: who moves a rollout, one of :mod:`mbrl_jax.model.sampling`.
      holdout: ``() -> [h]`` numbers of the rows that are held out from the first fit instead, as those of whole episodes.
      latent: whether agents act in the features of a latent world, by a filter, and not in observations.

    Raises:
      ConfigError: it does not fit the task, or those who act.

    """
    world = _MAKE[type(config)](config, task, Learns(real, first_rows, stride, holdout), by)
    size, features = task.spec.observation_size, world.spec.feature_size
    if latent and world.observe is None:
        raise ConfigError(f"model.kind: {config.kind!r} does not fit; it has no filter, as the latent world 'rssm' has")
    if not latent and world.observe is not None:
        raise ConfigError(
            f"model.kind: {config.kind!r} does not fit; policies act in it by a filter, as those of 'dreamer' do and these do not"
        )
    if not latent and features != size:
        raise ConfigError(
            f"model.kind: {config.kind!r} does not fit; its features have {features} numbers, and agents act in observations of "
            f"{size}; it must be {size}"
        )
    return world


def _make_ensemble(config: ModelConfig, task: Environment, data: Learns, by: str) -> WorldModel:
    losses.check_loss(config)
    for name, function in (("reward", task.reward), ("termination", task.terminated)):
        if getattr(config, name) == "known" and function is None:
            raise ConfigError(
                f"model.{name}: 'known' does not fit; {task.spec.name} has no known {name} function, so it must be 'learned' or "
                "'auto'"
            )
    ensemble = Ensemble(config, task.spec, task.reward, task.terminated)
    return world_of(ensemble, data.real, first_rows=data.first_rows, stride=data.stride, by=by, holdout=data.holdout)


def world_of(
    ensemble: Ensemble,
    real: Replay,
    *,
    first_rows: int,
    stride: int,
    by: str = "ts1",
    holdout: fitting.HoldOut | None = None,
) -> WorldModel:
    """The world model that an ensemble is; arguments as of :func:`make_world`."""

    def fit(state: Any, data: ReplayState, key: Array) -> tuple[Any, FitLog]:
        rows, _ = real.contents(data)
        first = jax.tree.map(lambda leaf: leaf[:first_rows], rows)
        return fitting.fit(ensemble, state, first, key, stride, holdout=holdout)

    def refit(state: Any, data: ReplayState, key: Array, value: Value | None = None) -> tuple[Any, FitLog]:
        rows, _ = real.contents(data)
        return fitting.refit(ensemble, state, rows, real.size(data), key, stride, value=value)

    def start(params: Any, data: ReplayState, bits: Array) -> Array:
        return real.sample(data, bits).observation

    def first(params: Any, data: ReplayState, bits: Array) -> Array:
        return real.first_states(data, bits)

    def identity(features: Array) -> Array:
        return features

    return WorldModel(
        spec=ModelSpec(
            name=ensemble.spec.name,
            feature_size=ensemble.spec.observation_size,
            members=ensemble.sampling_members,
            targets=ensemble.targets,
            has_variance=ensemble.config.prediction == "gaussian",
            reward_known=not ensemble.learns_reward,
            one_mover=by not in sampling.UNDIVIDED,
            wants_value=ensemble.config.loss in losses.VALUE_LOSSES,
        ),
        init=partial(fitting.init, ensemble),
        fit=fit,
        refit=refit,
        acting=partial(fitting.members, ensemble),
        draw=partial(sampling.draw, ensemble, by),
        start=start,
        first=first,
        step=partial(sampling.step, ensemble, by),
        expect=partial(sampling.expect, ensemble),
        features=identity,
        belief=identity,
        scale=lambda params: params.normaliser.target_scale[: ensemble.spec.observation_size],
    )


def _make_rssm(config: RSSMConfig, task: Environment, data: Learns, by: str) -> WorldModel:
    return rssm_fitting.world_of(RSSM(config, task.spec), data.real, first_rows=data.first_rows)


register("ensemble", ModelConfig, _make_ensemble)
register("rssm", RSSMConfig, _make_rssm)
