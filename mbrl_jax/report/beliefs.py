"""What the report asks of latent worlds: the last policies play, and their models follow with and without the observations.

The random numbers are fixed, so that the same runs give the same report.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.algorithms.training import real_rows, seed_keys
from mbrl_jax.config import RunConfig
from mbrl_jax.environments import EnvironmentSpec, make_environment
from mbrl_jax.imagination import drift
from mbrl_jax.model.rssm import RSSM
from mbrl_jax.networks import Params
from mbrl_jax.report.rollouts import BASE_SEED, play_beneath

SEEDS = 8  # that are asked, of those that there are
LANES = 4  # that each of them plays, half to measure the others by
WARM, DEPTH = 10, 30  # steps of an open loop that the filter sees, and steps without it
STEPS = 8 * (WARM + DEPTH)  # of a lane, one episode after another
RATE = 0.01  # of the steps of the lanes that a mark is set on, that exceed it
FRAMES = (1, 2, 5, 10, 20, 30)  # depths that are shown of a task in pictures


class Frames(NamedTuple):
    """Pictures of one open loop at FRAMES [n, H, W], the mean over channels."""

    truth: np.ndarray
    filtered: np.ndarray  # decoded from what the filter believes after seeing them
    dreamt: np.ndarray  # decoded from the open loop
    valid: np.ndarray  # [n] bool, the episode has gone on so far


class Places(NamedTuple):
    """Where open loops drift: two coordinates of the true state, also of what the task hides, and what was measured there."""

    names: tuple[str, str]
    states: np.ndarray  # [N, 2]
    novelty: np.ndarray  # [N]
    error: np.ndarray  # [N]


class Beliefs(NamedTuple):
    """How models follow the episodes of their own policies; means over open loops whose episode goes on, NaN where none does."""

    drift: dict[str, np.ndarray]  # [seeds, DEPTH] of every measure of :class:`mbrl_jax.imagination.drift.Drift`
    closed: np.ndarray  # [seeds, DEPTH] squared error of what the filter decodes after the same observations
    surprise: np.ndarray  # [STEPS] nats, of one lane of the first seed
    begins: np.ndarray  # [STEPS] bool, where an episode of that lane begins
    marks: np.ndarray  # [seeds] what the share RATE of the steps of the other lanes exceeds
    exceeded: np.ndarray  # [seeds] share of the steps of these lanes over the mark
    frames: Frames | None  # of the first seed, where observations are images
    places: Places | None  # of all seeds, where the true state has two coordinates


def ask(config: RunConfig, policies: Params, models: Any) -> Beliefs:
    """Play and measure.

    Args:
      config: of the run, whose model is a recurrent state-space model.
      policies: leaves [seeds, ...].
      models: its parameters, leaves [seeds, ...]; of more than SEEDS the first SEEDS are asked.

    """
    config_: Any = config
    task = make_environment(config.environment)
    rssm, policy = RSSM(config_.model, task.spec), algorithm_of(config).policy(config, task)

    def cut(leaf: Array) -> Array:
        """[WARM + DEPTH, n, ...] sequences of lanes [STEPS, lanes, ...]."""
        length = WARM + DEPTH
        pieces = leaf.reshape(STEPS // length, length, *leaf.shape[1:]).swapaxes(0, 1)
        return pieces.reshape(length, -1, *leaf.shape[2:])

    def one(params: Params, model: Any, key: Array) -> dict[str, Any]:
        lanes = jax.random.split(key, LANES)
        played, whole = jax.vmap(lambda key: play_beneath(task, policy, params, key, STEPS))(lanes)
        rows = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), real_rows(played))
        first = rows.depth == 0
        known, judged = (jax.tree.map(lambda leaf, half=half: leaf[:, half], (rows, first)) for half in _HALVES)
        surprises = drift.surprise(rssm, model, rows, first)
        mark = drift.alarm_mark(surprises[:, _HALVES[0]], known[1], 1, RATE)

        (known, its_first), (asked, begins) = (jax.tree.map(cut, each) for each in (known, judged))
        bank = drift.bank_of(*drift.real_features(rssm, model, known, its_first.at[0].set(True)))
        told = drift.along(rssm, model, bank, asked, begins, WARM)
        loop = drift.open_loop(rssm, model, asked, begins, WARM)
        filtered = jax.tree.map(lambda leaf: leaf[WARM:], loop.filtered.after)
        decoded = rssm.decode(model, rssm.features(filtered))
        closed = jnp.sum(jnp.square(decoded - rssm.seen(asked.next_observation[WARM:])), axis=-1)
        longest = jnp.argmax(jnp.sum(told.valid, axis=0))
        places = jnp.asarray(FRAMES) - 1
        frames = [
            asked.next_observation[WARM:][places, longest],
            *(
                rssm.observation(model, rssm.features(jax.tree.map(lambda leaf: leaf[places, longest], each)))
                for each in (filtered, loop.dreamt)
            ),
        ]
        return {
            "told": told._asdict(),
            "whole": cut(whole.swapaxes(0, 1)[:, _HALVES[1]])[WARM:],
            "closed": closed,
            "surprise": surprises[:, -1],
            "begins": first[:, -1],
            "mark": mark,
            "exceeded": jnp.mean((surprises[:, _HALVES[1]] > mark).astype(surprises.dtype)),
            "frames": frames,
            "reached": told.valid[places, longest],
        }

    few = jax.tree.map(lambda leaf: jnp.asarray(leaf[:SEEDS]), (policies, models))
    found = jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(*few, seed_keys(BASE_SEED, len(jax.tree.leaves(few)[0]))))
    valid = found["told"].pop("valid")
    names, states = coordinates(_whole_spec(config), found["whole"])
    there = Places(names, states[valid], *(found["told"][name][valid] for name in ("novelty", "error"))) if names else None
    shape, frames = task.spec.observation_shape, None
    if len(shape) == 3:
        truth, filtered, dreamt = (each[0].reshape(-1, *shape).mean(-1) for each in found["frames"])
        frames = Frames(truth, filtered, dreamt, found["reached"][0])
    return Beliefs(
        drift={name: _mean(leaf, valid) for name, leaf in found["told"].items()},
        closed=_mean(found["closed"], valid),
        surprise=found["surprise"][0],
        begins=found["begins"][0],
        marks=found["mark"],
        exceeded=found["exceeded"],
        frames=frames,
        places=there,
    )


def coordinates(spec: EnvironmentSpec, whole: np.ndarray) -> tuple[Any, np.ndarray]:
    """Names of the last two coordinates of states, and these [..., 2] of whole observations [..., D].

    A cosine and a sine count as the one angle that they are of. Names are () where there are fewer than two coordinates.
    """
    named: list[tuple[str, np.ndarray]] = []
    angles, sines = dict(spec.angles), {sine for _, sine in spec.angles}
    for place in range(whole.shape[-1]):
        if place in angles:
            named.append(("angle", np.arctan2(whole[..., angles[place]], whole[..., place])))
        elif place not in sines:
            named.append((spec.axes[place] if spec.axes else f"number {place + 1} of the state", whole[..., place]))
    if len(named) < 2:
        return (), whole
    (one, x), (two, y) = named[-2:]
    return (one, two), np.stack([x, y], axis=-1)


def _whole_spec(config: RunConfig) -> EnvironmentSpec:
    """Of the task beneath what hides its state."""
    shown = config.environment
    name = shown.name.removeprefix("pixels/")
    return make_environment(dataclasses.replace(shown, name=name, observed=None, delay=0, distractors=0)).spec


_HALVES = (slice(None, LANES // 2), slice(LANES // 2, None))


def _mean(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """[seeds, DEPTH] means of values [seeds, DEPTH, n] where they are valid, NaN where none is."""
    count = valid.sum(-1)
    total = np.where(valid, values, 0).sum(-1, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
