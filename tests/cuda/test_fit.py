"""The kernel of a fit, run by the emulator, against the plain path; faults planted in its sources are found."""

from functools import cache
from typing import NamedTuple

import jax
import numpy as np
import pytest
from kernels import apart, run
from rounds import adam_schedule, flat, network

from mbrl_jax.config import EnvironmentConfig, ModelConfig
from mbrl_jax.cuda.sizes import FitSizes
from mbrl_jax.environments import make_environment
from mbrl_jax.model import fitting, losses
from mbrl_jax.model.ensemble import Ensemble
from mbrl_jax.replay import Rows

SEEDS, BATCHES, UPDATES = 1, 2, 50


class Sizes(NamedTuple):
    """What a case is made with."""

    name: str = "CartPole-v1"
    rows: int = 200
    data: int = 150  # of them that hold data
    stride: int = 10
    resting: tuple[bool, ...] = (False, False)
    terms: int = 2
    model: ModelConfig = ModelConfig(
        members=2, hidden=(32, 32), batch_size=40, laplacian="exact", laplacian_rows=16, laplacian_weight=0.02
    )


CASES = {
    "penalty": Sizes(),
    "default": Sizes(terms=1),
    "passes": Sizes(  # of the minibatch and of the penalty, several actions, a member that rests, weights that decay
        name="MountainCar-v0",
        resting=(False, True),
        model=ModelConfig(
            members=2,
            hidden=(64, 32),
            batch_size=140,
            laplacian="auto",
            laplacian_rows=20,
            laplacian_weight=0.02,
            weight_decay=0.01,
        ),
    ),
}
NEAR = {2: 2e-6, 1: 3e-3}  # largest relative distance, by terms


@cache
def given(name):
    """The ensemble, what it begins with, its table and its minibatches."""
    sizes, rng = CASES[name], np.random.default_rng(4)
    task = make_environment(EnvironmentConfig(name=sizes.name))
    ensemble, spec = Ensemble(sizes.model, task.spec, task.reward, task.terminated), task.spec
    shapes = jax.eval_shape(lambda key: fitting.init(ensemble, key), jax.random.key(0))
    params = network(rng, shapes.params)
    blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes.bounds)  # bounds that are not learned have no moments
    adam = shapes.optimizer._replace(
        count=np.int32(UPDATES),
        mu=(jax.tree.map(lambda leaf: 0.02 * rng.normal(size=leaf.shape), shapes.params), blank),
        nu=(jax.tree.map(lambda leaf: 0.001 + (0.05 * rng.normal(size=leaf.shape)) ** 2, shapes.params), blank),
    )
    bounds = shapes.bounds._replace(
        minimum=np.full(shapes.bounds.minimum.shape, -9.0), maximum=np.full(shapes.bounds.maximum.shape, 0.5)
    )
    scale, shape = np.asarray(spec.observation_scale), (sizes.rows, spec.observation_size)
    observation = 0.5 * scale * rng.normal(size=shape)
    rows = Rows(
        observation=observation,
        next_observation=observation + 0.3 * observation**2 + 0.1 * scale * rng.normal(size=shape),
        action=rng.integers(0, spec.action_count, sizes.rows),
        reward=np.ones(sizes.rows),
        terminated=np.zeros(sizes.rows, bool),
        weight=np.ones(sizes.rows),
        depth=np.zeros(sizes.rows, int),
    )
    start, rows = jax.tree.map(
        lambda leaf: np.asarray(leaf, {"f": np.float32, "i": np.int32}.get(np.asarray(leaf).dtype.kind)),
        ((params, bounds, adam), rows),
    )
    training = sizes.data - sizes.data // sizes.stride
    batches = rng.integers(0, training, (BATCHES, sizes.model.members, sizes.model.batch_size), np.int32)
    return ensemble, start, rows, batches


@cache
def expected(name):
    """The same by the plain path: what is learned, its log, and the table of rows that the kernel is given."""
    sizes, (ensemble, start, rows, batches) = CASES[name], given(name)
    directions = losses.laplacian_directions(ensemble, jax.random.key(0))

    def fit(start, rows, batches):
        _, data = fitting._prepare(ensemble, rows, np.int32(sizes.data), sizes.stride)
        return *fitting._pass_over(ensemble, start, data, batches, directions, np.asarray(sizes.resting)), data.table

    with jax.default_matmul_precision("highest"):
        return jax.jit(fit)(start, rows, batches)


def by_kernel(name, backwards=False, faults=()):
    """Parameters, both moments [1, E, P], and the log [1, E, 3]."""
    sizes, (ensemble, (params, bounds, adam), _, batches) = CASES[name], given(name)
    model, spec = sizes.model, ensemble.spec
    kernel = FitSizes(
        terms=sizes.terms,
        observation=spec.observation_size,
        actions=spec.action_count,
        m_width1=model.hidden[0],
        m_width2=model.hidden[1],
        members=model.members,
        batch=model.batch_size,
        rows=sizes.rows,
        stride=sizes.stride,
        laplacian=model.laplacian_rows,
    )
    counts = np.zeros(8, np.int32)
    counts[:2] = BATCHES, sizes.data
    learned = [flat(params), flat(adam.mu[0]), flat(adam.nu[0])]
    read = [
        np.stack([bounds.minimum, bounds.maximum], axis=1),
        np.asarray(expected(name)[2]),
        batches,
        adam_schedule(model.learning_rate, UPDATES + 1 + np.arange(BATCHES)),
        counts,
        np.asarray(sizes.resting, np.int32),
        np.asarray([model.weight_decay, model.laplacian_weight]),
    ]
    operands = [np.ascontiguousarray(x, np.float32 if x.dtype.kind == "f" else np.int32)[None] for x in (*learned, *read)]
    results = [*(x.copy() for x in operands[:3]), np.zeros((1, model.members, 3), np.float32)]
    return run("fit", kernel.macros, operands, results, blocks=model.members, backwards=backwards, faults=faults)


def distances(name, results):
    """By what, how far the kernel's results are from the plain path's."""
    (params, _, adam), log, _ = expected(name)
    (start, _, before), resting = given(name)[1], np.asarray(CASES[name].resting)
    moves = ~resting
    return {
        "change of the parameters": apart(results[0][0][moves], flat(params)[moves], flat(start)[moves])
        / 30,  # rounded to theirs
        "first moments": apart(results[1][0][moves], flat(adam.mu[0])[moves], 0.81 * flat(before.mu[0])[moves]),
        "second moments": apart(results[2][0][moves], flat(adam.nu[0])[moves], 0.998 * flat(before.nu[0])[moves]),
        "loss": apart(results[3][0, :, 0], log.loss),
        "holdout error": apart(results[3][0, :, 1], log.holdout_mse),
        "holdout likelihood": apart(results[3][0, :, 2], log.holdout_nll),
    }


@pytest.mark.parametrize("name", CASES)
def test_a_fit_is_that_of_the_plain_path(name):
    results = by_kernel(name)
    far = {what: distance for what, distance in distances(name, results).items() if not distance < NEAR[CASES[name].terms]}
    assert not far
    resting = np.asarray(CASES[name].resting)
    (params, _, adam) = given(name)[1]
    for result, before in zip(results, (params, adam.mu[0], adam.nu[0]), strict=False):
        np.testing.assert_array_equal(result[0][resting], np.float32(flat(before)[resting]))


def test_the_order_of_warps_changes_nothing():
    for one, other in zip(by_kernel("penalty"), by_kernel("penalty", backwards=True), strict=True):
        np.testing.assert_array_equal(one, other)


FAULTS = {
    "no barrier between the kinds": ("    sync_block();  // all kinds' sums\n", ""),
    "the penalty's slopes in the bias": ("16 * KINDS, 16, warp", "16 * KINDS, 16 * KINDS, warp"),
    "a lost third derivative": ("kind == SECOND ? f.third * s[h][i]", "kind == SECOND ? f.second * s[h][i]"),
    "a held-out row is trained on": ("number + number / (HELD_OUT_EVERY - 1)", "number + number / HELD_OUT_EVERY"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault):
    orders = [by_kernel("penalty", order, [FAULTS[fault]]) for order in (False, True)]
    assert any(not distance < NEAR[2] for results in orders for distance in distances("penalty", results).values())
