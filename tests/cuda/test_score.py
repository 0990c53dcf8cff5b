"""The kernel of scores, run by the emulator, against episodes of the plain path."""

import dataclasses
from functools import cache, partial

import jax
import numpy as np
import rounds
from kernels import run
from rounds import config_of, flat, parts_of

from mbrl_jax.config import EnvironmentConfig
from mbrl_jax.cuda.sizes import ScoreSizes
from mbrl_jax.evaluation import play, play_imagined

SEEDS, EPISODES, STEPS, PLAYED, LIMIT = 2, 36, 12, 20, 10  # two tiles of a member and two of real episodes, half full
CONFIG = dataclasses.replace(config_of(), environment=EnvironmentConfig(time_limit=LIMIT))
SIZES = ScoreSizes(2, 4, 2, 0, 64, 32, 32, 64, 2, EPISODES, STEPS, PLAYED, LIMIT)


@cache
def given():
    """A policy, members, starts of both kinds of episodes, and the noise of the imagined ones."""
    case, parts, rng = rounds.case_of(CONFIG, seeds=SEEDS), parts_of(CONFIG, "ts_infinity"), np.random.default_rng(3)
    first = np.float32(0.3 * np.asarray(parts.task.spec.observation_scale) * rng.normal(size=(SEEDS, EPISODES, 4)))
    first[1, 4] = np.inf
    starts = jax.vmap(lambda key: parts.task.draw_resets(key, (PLAYED,)))(jax.random.split(jax.random.key(1), SEEDS))
    starts = starts._replace(
        inner=starts.inner.replace(x_dot=starts.inner.x_dot + np.linspace(-3, 3, PLAYED, dtype=np.float32)[None])
    )
    observation = starts.observation.at[..., 1].set(starts.inner.x_dot)
    return case, first, starts._replace(observation=observation), jax.random.split(jax.random.key(2), SEEDS)


@cache
def expected():
    """The returns of imagined and of real episodes."""
    case, first, starts, keys = given()
    parts = parts_of(CONFIG, "ts_infinity")

    def seed(policy, members, first, starts, key):
        greedy = partial(parts.learner.greedy, policy)
        return play_imagined(parts.world, members, greedy, first, key, STEPS), play(parts.task, greedy, starts)

    with jax.default_matmul_precision("highest"):
        return [np.asarray(x) for x in jax.jit(jax.vmap(seed))(case.learner.online, case.members, first, starts, keys)]


def by_kernel(sizes, backwards=False, **changes):
    """The same by the kernel, with other operands by name."""
    case, first, starts, keys = given()
    parts = parts_of(CONFIG, "ts_infinity")
    members, settings = case.members, np.zeros((SEEDS, 16))
    settings[:, 8:12] = parts.task.spec.observation_scale
    operands = {
        "policy": flat(case.learner.online),
        "members": flat(members.params, 2),
        "bounds": np.stack([members.bounds.minimum, members.bounds.maximum], axis=2),
        "normaliser": np.stack(members.normaliser, axis=1),
        "first": first,
        "noise": jax.vmap(lambda key: parts.world.draw(key, key, (STEPS, EPISODES)).noise)(keys),
        "starts": starts.observation,
        "settings": settings,
    } | changes
    results = [np.full((SEEDS, EPISODES), np.nan, np.float32), np.full((SEEDS, PLAYED), np.nan, np.float32)]
    arrays = [np.ascontiguousarray(x, np.float32) for x in operands.values()]
    return run("score", sizes.macros, arrays, results, blocks=SEEDS, backwards=backwards)


def test_returns_are_those_of_the_plain_path():
    imagined, played = by_kernel(SIZES)
    np.testing.assert_array_equal(imagined, expected()[0])
    np.testing.assert_array_equal(played, expected()[1])
    assert np.isneginf(imagined[1, 4]), "an episode that is not finite earns nothing"
    for returns, last in ((imagined, STEPS), (played, LIMIT)):
        assert len(np.unique(returns)) > 2, "all episodes alike would show nothing"
        assert returns.max() == last, "some episodes must run to their end"


def test_the_order_of_warps_changes_nothing():
    for one, other in zip(by_kernel(SIZES), by_kernel(SIZES, backwards=True), strict=True):
        np.testing.assert_array_equal(one, other)


def test_real_episodes_may_be_played_alone_and_at_the_default_precision():
    sizes = dataclasses.replace(SIZES, terms=1, episodes=0)
    blank = {name: np.zeros((SEEDS, 1)) for name in ("members", "bounds", "normaliser", "first", "noise")}
    played = by_kernel(sizes, **blank)[1]
    assert (played == expected()[1]).mean() > 0.9  # a near tie of two actions may be decided otherwise
