"""Planners: random shooting, the cross-entropy method, MPPI, and enumeration.

They differ in how candidates are weighed by their returns. Random shooting and enumeration give all weight to the best one, the
cross-entropy method the same weight to the k best and to whatever ties with them, MPPI a weight exponential in the return. What
is left is shared: a plan is a distribution over sequences of H actions, independent from step to step: probabilities of discrete
actions, a mean and a deviation of each number of a continuous one, cut to [-1, 1]. Candidates are drawn from it, tried, and
weighed; it is fitted to them, and so on; and the middle of what comes out is acted by. The next plan begins with this one,
shifted by a step. Some of the candidates may be what an agent's policy would do (TD-MPC, Hansen et al. 2022, arXiv:2203.04955).
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws
from mbrl_jax.config import PlanningConfig
from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.model.protocol import WorldModel
from mbrl_jax.planning.rollouts import (
    Act,
    ParticleDraws,
    ProposalDraws,
    Value,
    draw_particles,
    draw_proposals,
    proposed,
    returns_of,
)

ITERATED = ("cem", "mppi")  # methods that fit their distribution and draw again


class Plan(NamedTuple):
    """A distribution over sequences of H actions."""

    centre: Array  # [H, A] probabilities of discrete actions, or means of continuous ones
    spread: Array | None  # [H, A] standard deviations of continuous actions, none for discrete ones


class PlanDraws(NamedTuple):
    """The random numbers of one plan. Leading axes may come before these."""

    candidates: Array  # [iterations, N, H] uniform, [iterations, N, H, A] for continuous actions; empty if they are enumerated
    particles: ParticleDraws
    proposals: ProposalDraws | None  # none where no policy proposes sequences


class PlanLog(NamedTuple):
    """How planning went."""

    value: Array  # [] return of the candidates of the last iteration by their weights: what the plan is expected to earn
    spread: Array  # [] standard deviation of all their returns; 0 tells that no action made a difference


class Planner(NamedTuple):
    """The planner's settings and the world it plans in."""

    config: PlanningConfig
    spec: EnvironmentSpec
    world: WorldModel  # in which a rollout stays with its member

    @property
    def iterations(self) -> int:
        """How often candidates are drawn for one plan."""
        return self.config.iterations if self.config.method in ITERATED else 1

    def init(self) -> Plan:
        """Where there is no plan yet: all actions are equally likely, or Gaussian about 0."""
        dtype = jnp.zeros(()).dtype
        if not self.spec.continuous:
            count = self.spec.action_count
            return Plan(jnp.full((self.config.horizon, count), 1 / count, dtype), None)
        shape = (self.config.horizon, self.spec.action_size)
        return Plan(jnp.zeros(shape, dtype), jnp.full(shape, self.config.deviation, dtype))

    def draw(self, key: Array, shape: tuple[int, ...]) -> PlanDraws:
        """Draw all that plans ``shape`` consume."""
        key_candidates, key_particles = jax.random.split(key)
        count = 0 if self.config.method == "enumeration" else self.config.candidates
        full = (*shape, self.iterations, count, self.config.horizon, *self.spec.action_shape)
        uniform = draws.uniform(key_candidates, full)
        if self.config.correlation > 0:
            uniform = correlated(uniform, self.config.correlation, axis=len(shape) + 2)
        particles = draw_particles(self.config, self.world, key_particles, shape)
        proposals = None
        if self.config.proposals:
            proposals = draw_proposals(self.config, self.spec, self.world, jax.random.fold_in(key, 0), shape)
        return PlanDraws(uniform, particles, proposals)

    def plan(
        self,
        params: Any,
        plan: Plan,
        start: Any,
        drawn: PlanDraws,
        value: Value | None = None,
        act: Act | None = None,
        *,
        explore: bool = False,
    ) -> tuple[Plan, Array, PlanLog]:
        """Plan from one state.

        Args:
          params: of the world model.
          plan: to begin with.
          start: the belief where rollouts begin, without leading axes.
          drawn: without leading axes.
          value: of the states at the horizon, as for :func:`mbrl_jax.planning.rollouts.returns_of`.
          act: the policy that proposes sequences, where the settings ask for some.
          explore: whether sequences are also judged by the settings' bonus.

        Returns:
          The plan to begin with at the next step, the action to take now, and how planning went.

        """
        proposals = None
        if drawn.proposals is not None:
            assert act is not None, "planning.proposals needs a policy"
            proposals = proposed(self.world, params, start, act, drawn.proposals)

        def improve(plan: Plan, uniform: Array) -> tuple[Plan, PlanLog]:
            actions = self.candidates(plan, uniform)
            if proposals is not None:
                actions = actions.at[-len(proposals) :].set(proposals)
            returns = returns_of(self.config, self.world, params, start, actions, drawn.particles, value, explore=explore)
            weights = self.weights(returns)
            return self.fit(plan, actions, weights), _log(returns, weights)

        fitted, log = jax.lax.scan(improve, plan, drawn.candidates)
        return self.shifted(fitted), self.action(fitted), jax.tree.map(lambda leaf: leaf[-1], log)

    def candidates(self, plan: Plan, uniform: Array) -> Array:
        """Sequences [N, H, ...] drawn from a plan by uniform draws [N, H, ...], the first of them being the plan's middle.

        Enumeration has all sequences instead, and random shooting draws as if there were no plan.
        """
        if self.config.method == "enumeration":
            return jnp.asarray(list(itertools.product(range(self.spec.action_count), repeat=self.config.horizon)), jnp.int32)
        drawn = self.init() if self.config.method == "random_shooting" else plan
        sampled = _truncated_gaussian(drawn, uniform) if self.spec.continuous else draws.categorical(drawn.centre[None], uniform)
        return sampled.at[0].set(self.middle(plan))

    def weights(self, returns: Array) -> Array:
        """[N] weights, of sum 1, of candidates with returns [N]; those of minus infinity have none unless all are."""
        if self.config.method == "cem":
            level = jax.lax.top_k(returns, self.config.elites)[0][-1]  # all that reach it, so that no tie is broken by the order
            finite = jnp.isfinite(returns)
            elite = ((returns >= level) & (finite | ~jnp.any(finite))).astype(returns.dtype)
            return elite / jnp.sum(elite)
        if self.config.method == "mppi":  # Williams et al. 2017, arXiv:1707.02342
            known = jnp.any(jnp.isfinite(returns))
            return jax.nn.softmax(jnp.where(known, returns / self.config.temperature, 0.0))
        return jax.nn.one_hot(jnp.argmax(returns), returns.shape[0], dtype=returns.dtype)

    def fit(self, plan: Plan, actions: Array, weights: Array) -> Plan:
        """The plan fitted to weighed candidates [N, H, ...], with its momentum; never below the smallest deviation."""
        each = actions if self.spec.continuous else jax.nn.one_hot(actions, self.spec.action_count, dtype=weights.dtype)
        weight = weights[:, None, None]
        centre = jnp.sum(weight * each, axis=0)
        spread = plan.spread
        if spread is not None and self.config.method == "cem":
            found = jnp.sqrt(jnp.sum(weight * jnp.square(each - centre[None]), axis=0))
            spread = jnp.maximum(self._kept(spread, found), self.config.least_deviation)
        if self.config.method in ITERATED:
            centre = self._kept(plan.centre, centre)
        return Plan(centre, spread)

    def _kept(self, old: Array, new: Array) -> Array:
        return self.config.momentum * old + (1 - self.config.momentum) * new

    def middle(self, plan: Plan) -> Array:
        """The most probable sequence [H, ...], for continuous actions the mean."""
        return plan.centre if self.spec.continuous else jnp.argmax(plan.centre, axis=-1).astype(jnp.int32)

    def action(self, plan: Plan) -> Array:
        """The first action of the middle."""
        return self.middle(plan)[0]

    def shifted(self, plan: Plan) -> Plan:
        """What the next plan begins with: this one without its first step, as far as it is kept, and widened again."""
        blank = self.init()
        centre = jnp.concatenate([plan.centre[1:], blank.centre[-1:]])
        return Plan(self.config.warm_start * centre + (1 - self.config.warm_start) * blank.centre, blank.spread)

    def begin(self, key: Array, episodes: int) -> Any:
        """The memory of :meth:`act` where n episodes begin."""
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (episodes, *leaf.shape)), self.init()), key

    def act(
        self, params: Any, memory: Any, observation: Array, value: Value | None = None, act: Act | None = None
    ) -> tuple[Any, Array]:
        """Plan for n episodes side by side, each from the plan that its last step has left.

        Returns:
          The memory and actions [n, ...] in observations [n, D].

        """
        at = self.world.belief
        assert at is not None, "planning from observations needs a world in which they tell where a rollout stands"
        plans, key = memory
        key, key_now = jax.random.split(key)
        drawn = self.draw(key_now, (len(observation),))

        def one(plan: Plan, observation: Array, drawn: PlanDraws) -> tuple[Plan, Array]:
            after, action, _ = self.plan(params, plan, at(observation), drawn, value, act)
            return after, action

        plans, actions = jax.vmap(one)(plans, observation, drawn)
        return (plans, key), actions


def sequences(spec: EnvironmentSpec, horizon: int) -> int:
    """How many sequences of discrete actions there are."""
    return int(spec.action_count**horizon)


def correlated(uniform: Array, correlation: float, axis: int) -> Array:
    """Uniform draws whose normal quantiles are an autoregressive process along an axis, and which stay uniform each by itself.

    White noise moves what has inertia too little to find out what steady actions do (Pinneri et al. 2020, arXiv:2008.06389).

    Args:
      uniform: [...] independent draws from [0, 1).
      correlation: of neighbours' normal quantiles, from 0 to 1, which gives all steps the same draw.
      axis: of time.

    """
    steps = jnp.arange(uniform.shape[axis], dtype=jnp.int32)
    lag = steps[:, None] - steps[None, :]
    innovation = jnp.where(steps == 0, 1.0, (1 - correlation**2) ** 0.5)[None]
    mixing = jnp.where(lag >= 0, correlation ** jnp.abs(lag).astype(uniform.dtype), 0.0) * innovation  # [t, s]
    normal = jax.scipy.special.ndtri(jnp.clip(jnp.moveaxis(uniform, axis, -1), 1e-6, 1 - 1e-6))
    mixed = jnp.einsum("...s,ts->...t", normal, mixing.astype(uniform.dtype), precision="highest")
    return jnp.moveaxis(jnp.minimum(jax.scipy.stats.norm.cdf(mixed), jnp.nextafter(1.0, 0.0)), -1, axis)


def _truncated_gaussian(plan: Plan, uniform: Array) -> Array:
    """By the inverse of the distribution function of a Gaussian that is cut to [-1, 1]."""
    assert plan.spread is not None
    mean, spread = plan.centre[None], plan.spread[None]
    low, high = (jax.scipy.stats.norm.cdf((edge - mean) / spread) for edge in (-1.0, 1.0))
    inner = jnp.clip(low + uniform * (high - low), 1e-6, 1 - 1e-6)
    return jnp.clip(mean + spread * jax.scipy.special.ndtri(inner), -1.0, 1.0)


def _log(returns: Array, weights: Array) -> PlanLog:
    finite = jnp.isfinite(returns)
    count = jnp.maximum(jnp.sum(finite), 1).astype(returns.dtype)
    known = jnp.where(finite, returns, 0.0)
    mean = jnp.sum(known) / count
    spread = jnp.sqrt(jnp.sum(jnp.where(finite, jnp.square(known - mean), 0.0)) / count)
    return PlanLog(jnp.sum(weights * known), spread)
