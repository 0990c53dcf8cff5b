"""The dynamics ensemble: statistics, encoding, predictions and imagined steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mbrl_jax.model import ensemble as ens
from mbrl_jax.model import fitting
from mbrl_jax.reference.imagination import lanes as reference_lanes
from mbrl_jax.reference.model import ensemble as reference
from mbrl_jax.reference.model import fitting as reference_fitting

from .agreement import Agreement, tensor
from .twins import ModelTwins, random_rows

VARIETIES = [
    {"prediction": "gaussian"},
    {"prediction": "deterministic"},
    {"prediction": "gaussian", "learn_bounds": True, "reward": "learned", "termination": "learned"},
    {"prediction": "deterministic", "reward": "learned", "termination": "learned"},
]


def ask(rng: np.random.Generator, twins: ModelTwins, rows: int = 100) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(observations [M, B, D] on both sides of where episodes end, actions [M, B], noise [M, B, D]) for every member its own."""
    shape = (twins.config.members, rows)
    size = twins.task.observation_size
    action = rng.integers(0, twins.task.actions, shape).astype(np.int32)
    observation = np.array(twins.task.input_scale) * rng.normal(size=(*shape, size))
    return observation, action, rng.normal(size=(*shape, size))


def test_statistics_are_those_of_the_rows_that_count(rng: np.random.Generator, agree: Agreement) -> None:
    observation, target = rng.normal(3, 2, (40, 4)), rng.normal(-1, 0.1, (40, 5))
    observation[:, 1] = 0.7  # an axis that does not vary is left unscaled
    target[:, 0] = 1e-7 * rng.normal(size=40)
    target[:, 1], target[:, 2] = 0.3, 100 + 1e-6 * rng.normal(size=40)
    counted = rng.random(40) < 0.7
    ours = jax.jit(ens.measure)(jnp.asarray(observation), jnp.asarray(target), jnp.asarray(counted))
    theirs = reference.measure(tensor(observation[counted]), tensor(target[counted]))
    assert float(ours.state_std[1]) == 1.0
    assert ours.target_std[:3].tolist() == [0.0, 0.0, 0.0]
    assert float(ours.target_mean[1]) == 0.3
    agree("statistics of real data", tuple(ours), tuple(theirs), 1e-12)
    agree("what targets are divided by", ours.target_scale, theirs.target_scale, 1e-12)
    np.testing.assert_allclose(ours.state_std[0], observation[counted, 0].std(ddof=0), rtol=1e-12)


@pytest.mark.parametrize("task", ["CartPole-v1", "Acrobot-v1"])
def test_states_are_normalised_and_actions_encoded_alike(rng: np.random.Generator, agree: Agreement, task: str) -> None:
    twins = ModelTwins(rng, task)
    observation, action, _ = ask(rng, twins)
    ours = ens.encode(twins.ensemble, twins.normaliser, jnp.asarray(observation), jnp.asarray(action))
    theirs = reference.encode(tensor(observation), tensor(action).long(), twins.world.normaliser, twins.task.actions)
    agree("network inputs", ours, theirs, 1e-12)


@pytest.mark.parametrize("learned", [False, True])
def test_rows_are_prepared_for_fitting_alike(rng: np.random.Generator, agree: Agreement, learned: bool) -> None:
    twins = ModelTwins(rng, reward="learned" if learned else "known", termination="learned" if learned else "known")
    mine, other = random_rows(rng, 60)
    size, stride = 43, 5
    normaliser, data = fitting._prepare(twins.ensemble, mine, jnp.asarray(size, jnp.int32), stride)
    expected = reference_fitting.prepare(twins.reference, type(other)(*(field[:size] for field in other)), stride)
    agree("statistics of the training rows", tuple(normaliser), tuple(expected[0]), 1e-12)
    assert int(data.training_rows) == len(expected[1].inputs)
    order = np.arange(int(data.training_rows))
    training = data.table[order + order // (stride - 1)]
    columns = fitting._columns(twins.ensemble, training)
    agree("training rows, normalised", columns, tuple(expected[1]), 1e-12)
    held_out = data.table[data.holdout[np.asarray(data.holdout_weight) > 0]]
    agree("held-out rows, normalised", fitting._columns(twins.ensemble, held_out), tuple(expected[2]), 1e-12)


@pytest.mark.parametrize("settings", VARIETIES)
@pytest.mark.parametrize("activation", ["silu", "tanh", "gelu", "relu"])
def test_predictions_are_the_references(
    rng: np.random.Generator, agree: Agreement, settings: dict[str, Any], activation: str
) -> None:
    twins = ModelTwins(rng, activation=activation, **settings)
    observation, action, _ = ask(rng, twins)
    predict = jax.jit(lambda *args: ens.predict(twins.ensemble, twins.members, *args))
    ours = predict(jnp.asarray(observation), jnp.asarray(action))
    theirs = reference.predict(twins.world, tensor(observation), tensor(action).long())
    agree(f"ensemble forward, {settings['prediction']}", tuple(ours), tuple(theirs), 1e-12)


def test_log_variances_are_bounded_alike_far_beyond_their_bounds(rng: np.random.Generator, agree: Agreement) -> None:
    raw, low, high = rng.normal(0, 30, (50, 4)), np.full((1, 4), -10.0), np.full((1, 4), 0.5)
    ours = ens.bound_log_variance(jnp.asarray(raw), ens.Bounds(jnp.asarray(low), jnp.asarray(high)))
    theirs = reference.bound_log_variance(tensor(raw), tensor(low), tensor(high))
    agree("bounded log-variances", ours, theirs, 1e-12)


@pytest.mark.parametrize("task", ["CartPole-v1", "Acrobot-v1", "MountainCar-v0"])
@pytest.mark.parametrize("settings", VARIETIES)
def test_imagined_steps_are_the_references(
    rng: np.random.Generator, agree: Agreement, settings: dict[str, Any], task: str
) -> None:
    twins = ModelTwins(rng, task, **settings)
    observation, action, noise = ask(rng, twins)

    def ours(observation: Any, action: Any, noise: Any) -> Any:
        prediction = ens.predict(twins.ensemble, twins.members, observation, action)
        each = ens.decode(twins.ensemble, twins.normaliser, prediction, observation, action, noise)
        mixed = ens.mixture_mean(prediction)
        return each, ens.decode(twins.ensemble, twins.normaliser, mixed, observation[0], action[0], noise[0])

    def theirs(observation: Any, action: Any, noise: Any) -> Any:
        prediction = reference.predict(twins.world, observation, action)
        each = reference.transition(twins.world, prediction, observation, action, noise)
        mixed = reference_lanes._mix(prediction)
        return each, reference.transition(twins.world, mixed, observation[0], action[0], noise[0])

    mine = jax.jit(ours)(jnp.asarray(observation), jnp.asarray(action), jnp.asarray(noise))
    with torch.no_grad():
        other = theirs(tensor(observation), tensor(action).long(), tensor(noise))
    for what, a, b in zip(("imagined steps", "imagined steps by the ensemble's mean"), mine, other, strict=True):
        agree(what, tuple(a), tuple(b), 1e-12)


@pytest.mark.parametrize("settings", VARIETIES)
def test_members_say_the_same_of_a_target_that_does_not_vary_on_both_sides(
    rng: np.random.Generator, agree: Agreement, settings: dict[str, Any]
) -> None:
    twins = ModelTwins(rng, **settings)
    observation, action, noise = ask(rng, twins)
    still = twins.normaliser._replace(target_std=twins.normaliser.target_std.at[jnp.array([1, -1])].set(0.0))
    elites = jnp.arange(twins.config.members, dtype=jnp.int32)
    state = fitting.ModelState(twins.params, twins.bounds, None, still, elites)
    world = twins.world._replace(normaliser=reference.Normaliser(*(tensor(x) for x in still)))

    def ours(observation: Any, action: Any, noise: Any) -> Any:
        members = fitting.members(twins.ensemble, state)
        prediction = ens.predict(twins.ensemble, members, observation, action)
        return prediction, ens.decode(twins.ensemble, members.normaliser, prediction, observation, action, noise)

    prediction, imagined = jax.jit(ours)(jnp.asarray(observation), jnp.asarray(action), jnp.asarray(noise))
    with torch.no_grad():
        expected = reference.predict(world, tensor(observation), tensor(action).long())
        moved = reference.transition(world, expected, tensor(observation), tensor(action).long(), tensor(noise))
    agree("predictions of targets of which one does not vary", tuple(prediction), tuple(expected), 1e-12)
    agree("imagined steps along an axis that does not vary", tuple(imagined), tuple(moved), 1e-12)
    np.testing.assert_array_equal(imagined.next_observation[..., 1], observation[..., 1] + np.asarray(still.target_mean)[1])
    assert not prediction.mean[..., 1].any()
