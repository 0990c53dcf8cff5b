"""What sequences of actions earn in the learned world, all of them in one batch of candidates times particles.

Every candidate is judged by the same P particles, which meet the same noise and the same members of the ensemble: what differs
between two candidates then differs by their actions alone (common random numbers), and costs no random numbers of its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws
from mbrl_jax.config import PlanningConfig
from mbrl_jax.environments import EnvironmentSpec, draw_actions
from mbrl_jax.model.protocol import WorldModel

Value = Callable[[Array], Array]  # features [n, F] -> what is to come after them [n]
Act = Callable[[Array, Array], Array]  # (features [n, F], actions [n, ...] of the random policy) -> a policy's actions [n, ...]


class ParticleDraws(NamedTuple):
    """The random numbers of P particles over H steps. Leading axes may come before these."""

    deal: Array | None  # [H, P] int32, the order in which particles are dealt to members at each step; none with ts_infinity
    model: Any  # the world model's own, leaves [H, P, ...]


class ProposalDraws(NamedTuple):
    """The random numbers of n sequences that a policy proposes. Leading axes may come before these."""

    action: Array  # [H, n, ...] actions of the uniform random policy, from which a policy makes its own
    model: Any  # the world model's own, leaves [H, n, ...]


def draw_particles(config: PlanningConfig, world: WorldModel, key: Array, shape: tuple[int, ...]) -> ParticleDraws:
    """Draw all that :func:`returns_of` consumes, with leading axes ``shape``."""
    key_deal, key_noise = jax.random.split(key)
    full = (*shape, config.horizon, config.particles)
    deal = draws.permutations(key_deal, full) if config.propagation == "ts1" else None
    return ParticleDraws(deal, world.draw(key_deal, key_noise, full))


def returns_of(
    config: PlanningConfig,
    world: WorldModel,
    params: Any,
    start: Any,
    actions: Array,
    drawn: ParticleDraws,
    value: Value | None = None,
    *,
    explore: bool = False,
) -> Array:
    """[N] discounted return of each candidate, the mean over particles; what is not finite counts as minus infinity.

    A particle earns nothing more once its episode has terminated. With ``ts_infinity`` it belongs to one member for good, with
    ``ts1`` particles are dealt to members anew at each step (Chua et al. 2018, arXiv:1805.12114); either way every member moves
    equally many of them.

    Args:
      config: the planner's settings.
      world: in which a rollout stays with its member (``ts_infinity``).
      params: its, of M members of which P is a multiple.
      start: the belief, without leading axes, where all candidates begin.
      actions: [N, H, ...].
      drawn: the particles' random numbers, without leading axes.
      value: of the states in which particles stand at the end, in units of the return; none ends the sum there.
      explore: whether the settings' bonus is added to the rewards.

    """
    bonus = explore and config.bonus == "disagreement"
    particles, candidates = config.particles, actions.shape[0]
    shape = (particles, candidates)
    rows = particles * candidates
    dtype = jnp.zeros(()).dtype

    def flat(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), tree)

    def of_all(tree: Any, axis: int) -> Any:
        """Leaves [P, ...] or [N, ...] as [P N, ...], the missing axis broadcast."""
        leaves = (jnp.expand_dims(x, axis) for x in jax.tree.leaves(tree))
        full = [jnp.broadcast_to(x, (*shape, *x.shape[2:])) for x in leaves]
        return flat(jax.tree.unflatten(jax.tree.structure(tree), full))

    def apart(belief: Any) -> Array:
        """[N] how far a candidate's particles are apart, leaves [P N, ...]."""
        features = world.features(belief).reshape(*shape, -1) / world.scale(params)[None, None]
        return jnp.mean(jnp.std(features, axis=0), axis=-1)

    def step(carry: Any, inputs: tuple[Array, ParticleDraws]) -> tuple[Any, None]:
        belief, running, earned, worth = carry  # [P, N, ...], and [] what a reward counts by now
        action, now = inputs
        if now.deal is not None:
            belief, running, earned = jax.tree.map(lambda x: x[now.deal], (belief, running, earned))
        told = world.step(params, flat(belief), of_all(action, 0), of_all(now.model, 1))
        reward = told.reward.reshape(shape)
        if bonus:
            reward = reward + config.bonus_weight * apart(told.belief)[None]
        earned = earned + jnp.where(running, worth * reward, 0.0)
        running = running & ~told.terminated.reshape(shape)
        belief = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), told.belief)
        return (belief, running, earned, discount * worth), None

    discount = jnp.asarray(config.discount, dtype)
    begin = jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *x.shape)), start)
    carry = (begin, jnp.ones(shape, bool), jnp.zeros(shape, dtype), jnp.ones((), dtype))
    (belief, running, earned, worth), _ = jax.lax.scan(step, carry, (actions.swapaxes(0, 1), drawn))
    if value is not None:
        earned = earned + jnp.where(running, worth * value(world.features(flat(belief))).reshape(shape), 0.0)
    mean = jnp.mean(earned, axis=0)
    return jnp.where(jnp.isfinite(mean), mean, -jnp.inf)


def draw_proposals(
    config: PlanningConfig, spec: EnvironmentSpec, world: WorldModel, key: Array, shape: tuple[int, ...]
) -> ProposalDraws:
    """Draw all that :func:`proposed` consumes, with leading axes ``shape``."""
    key_action, key_model = jax.random.split(key)
    full = (*shape, config.horizon, config.proposals)
    return ProposalDraws(draw_actions(spec, key_action, full), world.draw(key_action, key_model, full))


def proposed(world: WorldModel, params: Any, start: Any, act: Act, drawn: ProposalDraws) -> Array:
    """[n, H, ...] what a policy does for H steps in the learned world, whose members move equally many of n rollouts each.

    Args:
      world: in which a rollout stays with its member.
      params: its, of M members of which n is a multiple; the first n / M rollouts are those of the first member, and so on.
      start: the belief, without leading axes, where all of them begin.
      act: the policy.
      drawn: without leading axes.

    """

    def step(belief: Any, now: ProposalDraws) -> tuple[Any, Array]:
        action = act(world.features(belief), now.action)
        return world.step(params, belief, action, now.model).belief, action

    count = drawn.action.shape[1]
    begin = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), start)
    return jax.lax.scan(step, begin, drawn)[1].swapaxes(0, 1)
