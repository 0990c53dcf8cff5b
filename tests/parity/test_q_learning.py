"""The Q-learner: targets, losses, gradients and updates."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ensembles import world_of

from mbrl_jax.agents.outcomes import expected_outcomes
from mbrl_jax.agents.protocol import Model
from mbrl_jax.reference import weights
from mbrl_jax.reference.agents import q_learning as reference

from .agreement import FLOAT64, Agreement
from .twins import LearnerTwins, ModelTwins, random_rows

TARGETS: dict[str, dict[str, Any]] = {
    "max": {"target": "max"},
    "double": {"target": "double"},
    "quantile": {"target": "quantile", "target_quantile": 0.3},
    "mean - beta std": {"target": "mean_std", "target_beta": 0.7},
    "double, three networks": {"target": "double", "members": 3},
    "steve": {"target": "steve", "target_steps": 3, "members": 2},
    "steve, one step": {"target": "steve", "target_steps": 1, "members": 4},
}


@pytest.mark.parametrize("learned", ["known", "learned"])
@pytest.mark.parametrize("target", TARGETS)
def test_targets_are_the_references(rng: np.random.Generator, agree: Agreement, target: str, learned: str) -> None:
    learner, model = LearnerTwins(rng, **TARGETS[target]), ModelTwins(rng, reward=learned, termination=learned)
    ours, theirs = random_rows(rng, 64)
    config, (world, _) = learner.config, world_of(model.ensemble, 1)

    def targets(state: Any, batch: Any) -> jax.Array:
        greedy = lambda s: learner.learner.greedy(state.online, s)  # noqa: E731
        outcomes = expected_outcomes(config.target, config.target_steps, Model(world, model.members), batch, greedy)
        return learner.learner.targets(state, batch, outcomes)

    expected = reference.targets(learner.reference.online, learner.reference.target, theirs, learner.config, model.world)
    agree(f"Q-learning target: {target}", jax.jit(targets)(learner.state, ours), expected, FLOAT64)


def test_several_networks_are_each_updated_as_the_references(rng: np.random.Generator, agree: Agreement) -> None:
    twins = LearnerTwins(rng, hidden=(16, 16), learning_rate=1e-3, target_rate=0.02, members=3, loss="huber")
    state, update = twins.state, jax.jit(twins.learner.update)
    for _ in range(30):
        ours, theirs = random_rows(rng, 32)
        state, log = update(state, ours)
        expected = reference.update(twins.reference, theirs, twins.config, 0.0)
        agree("updates of three Q-networks, losses", tuple(log), expected, 1e-8)
    networks = tuple(weights.q_to_flax(n.state_dict()) for n in (twins.reference.online, twins.reference.target))
    agree("updates of three Q-networks", (state.online, state.target), networks, 1e-8)


@pytest.mark.parametrize("loss", ["squared", "huber"])
@pytest.mark.parametrize("task", ["CartPole-v1", "Acrobot-v1"])
def test_the_loss_and_each_of_its_gradients_are_the_references(
    rng: np.random.Generator, agree: Agreement, loss: str, task: str
) -> None:
    twins = LearnerTwins(rng, task, loss=loss, huber_delta=0.8)
    ours, theirs = random_rows(rng, 64, twins.task.observation_size, twins.task.actions)

    def value(params: Any) -> Any:
        return twins.learner.loss(params, ours, twins.learner.targets(twins.state, ours))

    (mean_loss, scaled), gradients = jax.jit(jax.value_and_grad(value, has_aux=True))(twins.state.online)
    expected = reference.target_loss(twins.reference.online, twins.reference.target, theirs, twins.config, None)
    expected[0].backward()
    agree(f"Q-learning loss: {loss}", (mean_loss, scaled), expected, FLOAT64)
    theirs_gradients = {name: p.grad for name, p in twins.reference.online.named_parameters()}
    agree(f"Q-learning gradients: {loss}", gradients, weights.q_to_flax(theirs_gradients), FLOAT64)


def test_a_minibatch_of_rows_that_were_not_kept_has_no_loss(rng: np.random.Generator, agree: Agreement) -> None:
    twins = LearnerTwins(rng)
    ours, theirs = random_rows(rng, 64)
    ours, theirs = ours._replace(weight=jnp.zeros(64)), theirs._replace(weight=0 * theirs.weight)
    targets = twins.learner.targets(twins.state, ours)
    expected = reference.target_loss(twins.reference.online, twins.reference.target, theirs, twins.config, None)
    agree("Q-learning loss of no row", twins.learner.loss(twins.state.online, ours, targets), expected, 0)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_thousand_updates_on_the_same_batches_end_at_the_same_networks(
    rng: np.random.Generator, agree: Agreement, decay: float
) -> None:
    twins = LearnerTwins(rng, hidden=(16, 16), learning_rate=1e-3, learning_rate_decay=decay, target_rate=0.02)
    batches = [random_rows(rng, 32) for _ in range(20)]
    progress = np.linspace(0, 1, 1_000)

    def run(dtype: Any) -> Any:
        cast = lambda x: jnp.asarray(x, dtype) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.asarray(x)  # noqa: E731
        ours = jax.tree.map(lambda *leaves: cast(np.stack(leaves)), *(batch[0] for batch in batches))
        start = jax.tree.map(cast, twins.state)
        inputs = (jnp.arange(1_000, dtype=jnp.int32) % 20, jnp.asarray(progress, dtype))

        def step(state: Any, x: Any) -> Any:
            return twins.learner.update(state, jax.tree.map(lambda leaf: leaf[x[0]], ours), progress=x[1])

        return jax.jit(lambda start: jax.lax.scan(step, start, inputs))(start)

    theirs = [reference.update(twins.reference, batches[i % 20][1], twins.config, float(progress[i])) for i in range(1_000)]
    networks = tuple(weights.q_to_flax(n.state_dict()) for n in (twins.reference.online, twins.reference.target))
    state, log = run(jnp.float64)
    assert int(state.updates) == twins.reference.updates == 1_000
    agree("1,000 updates of the Q-learner, both networks", (state.online, state.target), networks, 1e-8)
    losses = tuple(np.array([float(step[k]) for step in theirs]) for k in range(2))
    agree("1,000 updates of the Q-learner, losses", tuple(log), losses, 1e-8)
    with jax.enable_x64(False):
        drifted = run(jnp.float32)[0]
    agree("1,000 updates of the Q-learner, float32 drift", (drifted.online, drifted.target), networks, 1e-1)


def test_a_learner_that_meets_infinity_is_frozen_where_the_reference_is(rng: np.random.Generator, agree: Agreement) -> None:
    twins = LearnerTwins(rng)
    state, update = twins.state, jax.jit(twins.learner.update)
    for i in range(4):
        ours, theirs = random_rows(rng, 64)
        if i == 2:
            ours, theirs = ours._replace(reward=ours.reward * jnp.inf), theirs._replace(reward=theirs.reward * torch.inf)
        state, _ = update(state, ours)
        reference.update(twins.reference, theirs, twins.config, 0.0)
    assert bool(state.frozen) is twins.reference.frozen is True
    assert int(state.updates) == twins.reference.updates == 2
    expected = weights.q_to_flax(twins.reference.online.state_dict())
    agree("a learner frozen at its last finite parameters", state.online, expected, FLOAT64)
