"""The policy gradient: returns, losses, gradients and updates."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ensembles import stored, world_of

from mbrl_jax import environments as env
from mbrl_jax.agents.policy_gradient import ActorCritic, PGState, PolicyGradient, Segment, segment_of
from mbrl_jax.config import EnvironmentConfig, LanesConfig, PolicyGradientConfig
from mbrl_jax.imagination import lanes
from mbrl_jax.imagination.horizon import fixed
from mbrl_jax.networks import ADAM
from mbrl_jax.reference import weights
from mbrl_jax.reference.agents import policy_gradient as reference

from .agreement import FLOAT64, Agreement, tensor
from .twins import ModelTwins, random_params, random_rows

T, K = 12, 7
SETTINGS: dict[str, dict[str, Any]] = {
    "actor and critic": {},
    "unscaled advantages": {"normalise": False, "decay": 0.7},
    "REINFORCE": {"baseline": "none", "normalise": False, "entropy_weight": 0.0},
    "silu": {"activation": "silu", "discount": 0.9},
}


class Twins:
    """A learner in both implementations, whose online and slow networks differ."""

    def __init__(self, rng: np.random.Generator, task: str, **settings: Any) -> None:
        self.config = PolicyGradientConfig(**{"hidden": (32, 32), **settings})
        spec = env.make_environment(EnvironmentConfig(name=task)).spec
        self.learner, self.spec = PolicyGradient(self.config, spec), spec
        shapes = jax.eval_shape(lambda key: self.learner.init(key).online, jax.random.key(0))
        online, target = random_params(rng, shapes), random_params(rng, shapes)
        optimizer = ActorCritic(*(ADAM.init(each) for each in online))
        self.state = PGState(online, target, optimizer, jnp.zeros((), bool), jnp.zeros((), jnp.int32))
        self.reference = reference.Learner(*self.networks(online), self.config)
        for slow, params in zip((self.reference.target_actor, self.reference.target_critic), target, strict=True):
            slow.load_state_dict(weights.q_to_torch(params))

    def networks(self, params: ActorCritic) -> list[reference.Network]:
        made = []
        for each, outputs in zip(params, (self.learner.policy.outputs, 1), strict=True):
            network = reference.Network(self.config, self.spec.observation_scale, outputs).to(torch.float64)
            network.load_state_dict(weights.q_to_torch(each))
            made.append(network)
        return made

    def segments(self, rng: np.random.Generator) -> tuple[Segment, reference.Segment]:
        ours, theirs = random_rows(rng, T * K, self.spec.observation_size, max(self.spec.action_count, 1))
        if self.spec.continuous:
            action = np.tanh(rng.normal(size=(T * K, self.spec.action_size)))
            ours, theirs = ours._replace(action=jnp.asarray(action)), theirs._replace(action=tensor(action))
        ended = np.asarray(ours.terminated) | (rng.random(T * K) < 0.2)
        shaped = jax.tree.map(lambda leaf: leaf.reshape(T, K, *leaf.shape[1:]), ours)
        other = type(theirs)(*(leaf.reshape(T, K, *leaf.shape[1:]) for leaf in theirs))
        ended = ended.reshape(T, K)
        return Segment(shaped, jnp.asarray(ended)), reference.Segment(other, tensor(ended))


@pytest.mark.parametrize(
    ("name", "task"),
    [*((name, "CartPole-v1") for name in SETTINGS), *(("actor and critic", task) for task in ("Acrobot-v1", "Pendulum-v1"))],
)
def test_returns_losses_and_gradients_are_the_references(
    rng: np.random.Generator, agree: Agreement, name: str, task: str
) -> None:
    twins = Twins(rng, task, **SETTINGS[name])
    ours, theirs = twins.segments(rng)
    learner, state, config = twins.learner, twins.state, twins.config

    returns = jax.jit(learner.returns)(state.target.critic, ours)
    wanted = reference.returns(twins.reference.target_critic, theirs, config)
    agree(f"policy gradient returns: {name}", returns, wanted, FLOAT64)
    advantages = jax.jit(learner.advantages)(state.online, ours, returns)
    advantage = reference.advantages(twins.reference.critic, theirs, wanted, config)
    agree(f"policy gradient advantages: {name}", advantages, advantage, FLOAT64)

    score = jax.jit(jax.value_and_grad(learner.score_loss, has_aux=True))
    (loss, entropy), gradients = score(state.online.actor, ours, advantages)
    expected = reference.score_loss(twins.reference.actor, theirs, advantage, config)
    expected[0].backward()
    agree(f"policy gradient actor loss: {name}", (loss, entropy), expected, FLOAT64)
    found = {key: p.grad for key, p in twins.reference.actor.named_parameters()}
    agree(f"policy gradient actor gradients: {name}", gradients, weights.q_to_flax(found), FLOAT64)

    loss, gradients = jax.jit(jax.value_and_grad(learner.critic_loss))(state.online.critic, ours, returns)
    error = reference.critic_loss(twins.reference.critic, theirs, wanted, config)
    error.backward()
    agree(f"policy gradient critic loss: {name}", loss, error, FLOAT64)
    found = {key: p.grad for key, p in twins.reference.critic.named_parameters()}
    agree(f"policy gradient critic gradients: {name}", gradients, weights.q_to_flax(found), FLOAT64)


@pytest.mark.parametrize(("task", "kind"), [("CartPole-v1", "gaussian"), ("Acrobot-v1", "deterministic")])
def test_the_pathwise_loss_and_its_gradient_are_the_references(
    rng: np.random.Generator, agree: Agreement, task: str, kind: Any
) -> None:
    twins, model = Twins(rng, task, decay=0.8), ModelTwins(rng, task, prediction=kind, reward="learned")
    cap, horizon = 4, fixed(length=100)
    config = LanesConfig(lanes=10, steps=9, cap=cap, sampling="ts_infinity")
    size = model.environment.spec.observation_size
    world, replay = world_of(model.ensemble, 64, by="ts_infinity")
    drawn = lanes.draw(config, model.environment.spec, world, jax.random.key(0), ())
    pool, _ = random_rows(rng, 64, size, model.environment.spec.action_count)
    pool = pool._replace(observation=0.05 * pool.observation)
    real = stored(replay, pool)
    start = lanes.init(config, horizon, world, model.members, real)

    def ours(actor: Any) -> Any:
        act = partial(twins.learner.relaxed, actor)
        _, rows, _ = lanes.advance(config, world, horizon, start, model.members, act, real, jnp.int32(0), drawn)
        return twins.learner.pathwise_loss(actor, twins.state.target.critic, segment_of(rows))

    (loss, entropy), gradients = jax.jit(jax.value_and_grad(ours, has_aux=True))(twins.state.online.actor)
    roots = tensor(replay.sample(real, drawn.root).observation)
    noise = tensor(drawn.model.noise) if kind == "gaussian" else None
    expected = reference.pathwise_loss(
        twins.reference.actor, twins.reference.target_critic, model.world, roots, tensor(drawn.explore), noise, cap, twins.config
    )
    expected[0].backward()
    agree(f"pathwise loss: {task}", (loss, entropy), expected, FLOAT64)
    found = {key: p.grad for key, p in twins.reference.actor.named_parameters()}
    agree(f"pathwise gradients: {task}", gradients, weights.q_to_flax(found), FLOAT64)


@pytest.mark.parametrize("name", ["actor and critic", "REINFORCE"])
def test_many_updates_are_the_references(rng: np.random.Generator, agree: Agreement, name: str) -> None:
    twins = Twins(rng, "CartPole-v1", learning_rate_decay=0.5, **SETTINGS[name])
    state, update = twins.state, jax.jit(twins.learner.update)
    for i in range(10):
        ours, theirs = twins.segments(rng)
        state, log = update(state, ours, i / 9)
        expected = reference.update(twins.reference, theirs, twins.config, i / 9)
        agree(f"policy gradient updates, logs: {name}", tuple(log), expected, 1e-8)
    mine = twins.reference
    online, target = (
        tuple(weights.q_to_flax(network.state_dict()) for network in pair)
        for pair in ((mine.actor, mine.critic), (mine.target_actor, mine.target_critic))
    )
    agree(f"policy gradient updates: {name}", (tuple(state.online), tuple(state.target)), (online, target), 1e-8)
    assert int(state.updates) == mine.updates == 10
