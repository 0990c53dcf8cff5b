"""Soft actor-critic on minibatches of transitions, whether they are real or imagined (Haarnoja et al. 2018, arXiv:1812.05905).

A squashed Gaussian actor, several critics side by side, and a temperature that keeps the policy's entropy at its target.
A target may take the least of a random few of many critics (REDQ, Chen et al. 2021, arXiv:2101.05982).
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mbrl_jax import draws as draws_
from mbrl_jax.agents import running
from mbrl_jax.agents.outcomes import MEMBER_TARGETS, Outcomes, expanded_targets, expected_outcomes
from mbrl_jax.agents.policies import sample_with_log_probability, squashed_mean
from mbrl_jax.agents.protocol import Agent, Minibatches, Model
from mbrl_jax.agents.running import Statistics
from mbrl_jax.config import AgentConfig, ConfigError, settings, static, traced
from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.networks import MLP, Params, adam_step, all_finite, optimiser_of
from mbrl_jax.replay import Rows, weighted_mean

LOG_STD_BOUNDS = (-5.0, 2.0)  # of the Gaussian before it is squashed


@settings
class SACConfig(AgentConfig):
    """Soft actor-critic (kind: sac)."""

    hidden: tuple[int, ...] = static((256, 256), minimum=1)
    """Widths of the hidden layers, of the actor and of every critic."""
    activation: Literal["relu", "silu", "tanh", "gelu"] = static("relu")
    """Nonlinearity between layers."""
    learning_rate: float = traced(3e-4, above=0)
    """Adam's step size for the actor, at the first update."""
    critic_learning_rate: float = traced(3e-4, above=0)
    """The same for the critics."""
    temperature_learning_rate: float = traced(3e-4, above=0)
    """The same for the logarithm of the temperature."""
    learning_rate_decay: float = traced(0.0, minimum=0, maximum=1)
    """Share of these step sizes which is gone, linearly, by the run's last update."""
    discount: float = traced(0.99, minimum=0, maximum=1)
    """Discount factor, gamma."""
    target_rate: float = traced(0.005, above=0, maximum=1)
    """Share of the critics that the target critics take over at each update, tau."""
    batch_size: int = static(256, minimum=1)
    """Rows of an update's minibatch."""
    updates_per_step: int = static(1, minimum=1)
    """Updates per real step, G."""
    real_ratio: float = static(0.05, minimum=0, maximum=1)
    """Share of each minibatch that comes from the real replay, where there is an imagined one."""
    critics: int = static(2, minimum=1)
    """Critics that learn side by side from their own initialisation."""
    critics_asked: int | None = static(None, minimum=1)
    """How many of the critics, drawn at random for each update, a target takes the least of; none takes all of them."""
    layer_norm: bool = static(False)
    """Whether each hidden layer of the critics is normalised before its nonlinearity."""
    observations: Literal["task", "running"] = static("task")
    """Whether observations are divided by the task's own scale, or standardised by statistics of all minibatches so far."""
    temperature: float = traced(0.1, above=0)
    """What an action's log-probability weighs in its value; where the temperature is tuned, what it begins with."""
    tune_temperature: bool = static(True)
    """Whether the temperature follows the entropy: up below its target, down above it."""
    target_entropy: float | None = static(None)
    """The entropy, nats, that the temperature is tuned for; none takes minus the numbers of an action."""
    gradient_clip: float | None = static(None, above=0)
    """Largest Euclidean norm of the actor's gradient, and of each critic's; none leaves them as they are."""
    target: Literal["standard", "quantile", "mean_std", "steve"] = static("standard")
    """How the next state's value is formed; all but the first ask every member of the dynamics ensemble."""
    target_quantile: float = traced(0.25, minimum=0, maximum=1)
    """The quantile over members (target: quantile)."""
    target_beta: float = traced(1.0, minimum=0)
    """Standard deviations over members subtracted from their mean (target: mean_std)."""
    target_steps: int = static(3, minimum=1)
    """Imagined steps that the value is expanded by at the most (target: steve)."""


class Acting(NamedTuple):
    """What a policy needs to act."""

    actor: Params
    statistics: Statistics | None  # none where observations are divided by the task's scale


class Valuing(NamedTuple):
    """What a value needs: the policy, and the critics that its actions are valued by."""

    acting: Acting
    critics: Params  # leaves [C, ...], the target critics where there are such


class SACState(NamedTuple):
    """The learner. Once an update would make it non-finite it is frozen at its last finite parameters."""

    actor: Params
    critics: Params  # leaves [C, ...]
    targets: Params | None  # leaves [C, ...], none where critics do without
    log_temperature: Array  # []
    actor_optimizer: Any
    critic_optimizer: Any
    temperature_optimizer: Any
    statistics: Statistics | None
    frozen: Array  # [] bool
    updates: Array  # [] int32, updates made before it was frozen


class SACDraws(NamedTuple):
    """The random numbers of an update."""

    following: Array  # [B, A] standard normal, of the next actions
    actor: Array  # [B, A] standard normal, of the actions that the actor is improved by
    asked: Array | None  # [C] a permutation, whose first entries are the critics that are asked; none where all are


class SACLog(NamedTuple):
    """How an update went."""

    loss: Array  # [] the critics' mean squared error, mean over critics
    scaled_loss: Array  # [] the same over the variance of the targets
    entropy: Array  # [] nats, minus the mean log-probability of the actor's actions
    temperature: Array  # []
    value: Array  # [] mean of the critics' values of the minibatch's actions


class CriticLog(NamedTuple):
    """How a step of the critics went."""

    loss: Array  # [] mean squared error, mean over critics
    value: Array  # [] mean of the minibatch's actions' values
    targets: Array  # [B] what they were pulled to


class SAC(NamedTuple):
    """The learner's settings and the task's sizes, with its losses and its update."""

    config: SACConfig
    spec: EnvironmentSpec

    @property
    def actor(self) -> MLP:
        """Maps scaled observations [..., D] to means and free log-deviations [..., 2 A]."""
        return MLP(self.config.hidden, 2 * self.spec.action_size, self.config.activation, output_scale=0.01)

    @property
    def critic(self) -> MLP:
        """Maps scaled observations and actions [..., D + A] to a value [..., 1]."""
        return MLP(self.config.hidden, 1, self.config.activation, layer_norm=self.config.layer_norm)

    @property
    def optimiser(self) -> optax.GradientTransformation:
        """Of the actor."""
        return optimiser_of(self.config.gradient_clip)

    @property
    def critic_optimiser(self) -> optax.GradientTransformation:
        """Of all critics side by side."""
        return optimiser_of(self.config.gradient_clip, batched=True)

    @property
    def target_entropy(self) -> float:
        """Nats."""
        return float(-self.spec.action_size) if self.config.target_entropy is None else self.config.target_entropy

    # ------------------------------------------------------------------------------------------------------------ functions

    def init(self, key: Array) -> SACState:
        """A fresh learner; the target critics begin as copies of the critics."""
        key_actor, key_critics = jax.random.split(key)
        size, actions = self.spec.observation_size, self.spec.action_size
        actor = self.actor.init(key_actor, jnp.zeros((1, size)))
        keys = jax.random.split(key_critics, self.config.critics)
        critics = dict(jax.vmap(self.critic.init, in_axes=(0, None))(keys, jnp.zeros((1, size + actions))))
        log_temperature = jnp.log(jnp.asarray(self.config.temperature, jnp.zeros(()).dtype))
        return SACState(
            actor=actor,
            critics=critics,
            targets=critics,
            log_temperature=log_temperature,
            actor_optimizer=self.optimiser.init(actor),
            critic_optimizer=self.critic_optimiser.init({"params": critics["params"]}),
            temperature_optimizer=optimiser_of(None).init(log_temperature),
            statistics=running.init(size) if self.config.observations == "running" else None,
            frozen=jnp.zeros((), bool),
            updates=jnp.zeros((), jnp.int32),
        )

    def draw(self, key: Array, shape: tuple[int, ...]) -> SACDraws:
        """Draw what updates ``shape`` consume, leaves [*shape, ...]."""
        config, key = self.config, jax.random.split(key, 3)
        normal = (*shape, config.batch_size, self.spec.action_size)
        asked = None if config.critics_asked is None else draws_.permutations(key[2], (*shape, config.critics))
        return SACDraws(draws_.normal(key[0], normal), draws_.normal(key[1], normal), asked)

    def scaled(self, statistics: Statistics | None, observation: Array) -> Array:
        """Observations [..., D] as the networks see them."""
        if statistics is None:
            scale = jnp.asarray(self.spec.observation_scale, observation.dtype)
            return observation / scale.reshape((1,) * (observation.ndim - 1) + (-1,))
        return running.standardise(statistics, observation)

    def outputs(self, acting: Acting, observation: Array) -> Array:
        """[..., 2 A] the actor's outputs in observations [..., D]."""
        return jnp.asarray(self.actor.apply(acting.actor, self.scaled(acting.statistics, observation)))

    def sample(self, acting: Acting, observation: Array, normal: Array) -> tuple[Array, Array]:
        """Actions [..., A] and their log-probabilities [...], nats, from standard normal numbers [..., A]."""
        return sample_with_log_probability(self.outputs(acting, observation), normal, LOG_STD_BOUNDS)

    def greedy(self, acting: Acting, observation: Array) -> Array:
        """The squashed means [..., A] in observations [..., D]."""
        return squashed_mean(self.outputs(acting, observation))

    def act(self, acting: Acting, observation: Array, exploration: Any, explore: Array, random: Array) -> Array:
        """Actions [..., A] drawn from the policy by actions [..., A] of the uniform random one, whose numbers it makes normal."""
        return self.sample(acting, observation, 2**0.5 * jax.lax.erf_inv(random))[0]

    def values(self, critics: Params, statistics: Statistics | None, observation: Array, action: Array) -> Array:
        """Every critic's value [C, ...] of actions [..., A] in observations [..., D]."""
        seen = jnp.concatenate([self.scaled(statistics, observation), action], axis=-1)
        return jnp.asarray(jax.vmap(self.critic.apply, in_axes=(0, None))(critics, seen))[..., 0]  # type: ignore[arg-type]

    def value(self, valuing: Valuing, observation: Array) -> Array:
        """[...] the least of the critics' values of the greedy actions in observations [..., D]."""
        acting, critics = valuing
        return jnp.min(self.values(critics, acting.statistics, observation, self.greedy(acting, observation)), axis=0)

    def following(self, state: SACState, observation: Array, draws: SACDraws) -> Array:
        """Soft values [C', ..., B] of observations [..., B, D] by the target critics that are asked: the value of an action drawn
        from the policy, less the temperature times its log-probability.
        """
        normal = jnp.broadcast_to(draws.following, (*observation.shape[:-1], self.spec.action_size))
        action, log_probability = self.sample(Acting(state.actor, state.statistics), observation, normal)
        each = self.values(state.targets, state.statistics, observation, action)
        if draws.asked is not None:
            each = each[draws.asked[: self.config.critics_asked]]
        return each - jnp.exp(state.log_temperature) * log_probability[None]

    # --------------------------------------------------------------------------------------------------------------- losses

    def targets(self, state: SACState, batch: Rows, draws: SACDraws, outcomes: Outcomes | None) -> Array:
        """[B] what the critics' values are pulled to: ``r + discount * (1 - terminated) * v(s')``."""
        config, kind = self.config, self.config.target
        if kind == "standard":
            value = jnp.min(self.following(state, batch.next_observation, draws), axis=0)
            return batch.reward + config.discount * (1 - batch.terminated.astype(value.dtype)) * value
        assert outcomes is not None
        if kind == "steve":
            return expanded_targets(outcomes, batch, config.discount, lambda seen: self.following(state, seen, draws))
        value = jnp.min(self.following(state, outcomes.next_observation, draws), axis=0)  # [M, B]
        each = outcomes.reward + config.discount * (1 - outcomes.terminated.astype(value.dtype)) * value
        if kind == "quantile":
            return jnp.quantile(each, config.target_quantile, axis=0)
        return jnp.mean(each, axis=0) - config.target_beta * jnp.std(each, axis=0)

    def critic_loss(
        self, critics: Params, statistics: Statistics | None, batch: Rows, targets: Array
    ) -> tuple[Array, tuple[Array, Array]]:
        """[] the sum over critics of the mean squared error, so that each learns as if alone; [] their mean, [] mean value."""
        return self.critic_errors(self.values(critics, statistics, batch.observation, batch.action), batch, targets)

    def critic_errors(self, each: Array, batch: Rows, targets: Array) -> tuple[Array, tuple[Array, Array]]:
        """As :meth:`critic_loss`, from every critic's values [C, B] of the minibatch's actions."""
        errors = jax.vmap(lambda value: weighted_mean(jnp.square(value - targets), batch.weight))(each)
        return jnp.sum(errors), (jnp.mean(errors), weighted_mean(jnp.mean(each, axis=0), batch.weight))

    def actor_loss(self, actor: Params, state: SACState, batch: Rows, normal: Array) -> tuple[Array, Array]:
        """[] the mean of ``temperature * log pi(a|s) - Q(s, a)`` over actions drawn from the policy, and [] the mean of log pi.

        Q is the least of the critics; where a target asks a few of many, it is their mean.
        """
        action, log_probability = self.sample(Acting(actor, state.statistics), batch.observation, normal)
        each = self.values(state.critics, state.statistics, batch.observation, action)
        value = jnp.min(each, axis=0) if self.config.critics_asked is None else jnp.mean(each, axis=0)
        temperature = jnp.exp(state.log_temperature)
        loss = weighted_mean(temperature * log_probability - value, batch.weight)
        return loss, weighted_mean(log_probability, batch.weight)

    def temperature_loss(self, log_temperature: Array, log_probability: Array) -> Array:
        """[] whose descent raises the temperature where the entropy, minus ``log_probability`` [], is below its target."""
        return -log_temperature * jax.lax.stop_gradient(log_probability + self.target_entropy)

    # --------------------------------------------------------------------------------------------------------------- update

    def learn_critics(
        self, state: SACState, batch: Rows, draws: SACDraws, rate: Array | float, outcomes: Outcomes | None
    ) -> tuple[SACState, CriticLog]:
        """One gradient step of the critics, and one step of the target critics after them."""
        targets = jax.lax.stop_gradient(self.targets(state, batch, draws, outcomes))
        gradient, (loss, value) = jax.grad(self.critic_loss, has_aux=True)(state.critics, state.statistics, batch, targets)
        critics, optimizer = adam_step(state.critics, state.critic_optimizer, gradient, rate, self.critic_optimiser)
        follow = self.config.target_rate
        slow = jax.tree.map(lambda old, new: old + follow * (new - old), state.targets, critics)
        return state._replace(critics=critics, critic_optimizer=optimizer, targets=slow), CriticLog(loss, value, targets)

    def update(
        self, state: SACState, batch: Rows, draws: SACDraws, progress: Array | float = 0.0, outcomes: Outcomes | None = None
    ) -> tuple[SACState, SACLog]:
        """One gradient step of the critics, which the target critics follow, of the actor and of the temperature, in this order.

        Args:
          state: the learner.
          batch: leaves [B, ...].
          draws: of one update.
          progress: share of the run that is done, by which the learning rates decay.
          outcomes: every member's, which the targets ``quantile``, ``mean_std`` and ``steve`` need.

        """
        config, left = self.config, 1 - self.config.learning_rate_decay * progress
        before, statistics = state, state.statistics
        if statistics is not None:
            statistics = running.take_in(statistics, batch.observation, batch.weight)
            state = state._replace(statistics=statistics)

        state, critic_log = self.learn_critics(state, batch, draws, config.critic_learning_rate * left, outcomes)

        gradient, log_probability = jax.grad(self.actor_loss, has_aux=True)(state.actor, state, batch, draws.actor)
        rate = config.learning_rate * left
        actor, actor_optimizer = adam_step(state.actor, state.actor_optimizer, gradient, rate, self.optimiser)

        log_temperature, temperature_optimizer = state.log_temperature, state.temperature_optimizer
        if config.tune_temperature:
            slope = jax.grad(self.temperature_loss)(log_temperature, log_probability)
            rate = config.temperature_learning_rate * left
            log_temperature, temperature_optimizer = adam_step(log_temperature, temperature_optimizer, slope, rate)

        after = state._replace(
            actor=actor,
            actor_optimizer=actor_optimizer,
            log_temperature=log_temperature,
            temperature_optimizer=temperature_optimizer,
            updates=state.updates + 1,
        )
        frozen = before.frozen | ~all_finite((actor, state.critics, log_temperature))
        after = jax.tree.map(lambda new, old: jnp.where(frozen, old, new), after, before)
        loss, value, targets = critic_log
        spread = weighted_mean(jnp.square(targets - weighted_mean(targets, batch.weight)), batch.weight)
        log = SACLog(loss, loss / jnp.maximum(spread, 1e-8), -log_probability, jnp.exp(log_temperature), value)
        return after._replace(frozen=frozen), log


def sac_agent(config: SACConfig, spec: EnvironmentSpec) -> Agent:
    """Soft actor-critic as an agent that learns from transitions.

    Raises:
      ConfigError: the task's actions are discrete, or more critics are asked than there are.

    """
    return agent_of(SAC(config, spec))


def agent_of(learner: SAC) -> Agent:
    """A learner as an agent; raises as :func:`sac_agent`."""
    config, spec = learner.config, learner.spec
    if not spec.continuous:
        raise ConfigError(f"environment.name: {spec.name!r} does not fit; soft actor-critic needs continuous actions")
    if config.critics_asked is not None and config.critics_asked > config.critics:
        raise ConfigError(
            f"agent.critics_asked: {config.critics_asked!r} does not fit; it must be at most agent.critics ({config.critics})"
        )

    def update(
        state: SACState, batch: Rows, draws: SACDraws, progress: Array | float, model: Model | None
    ) -> tuple[SACState, SACLog]:
        outcomes = None
        if config.target in MEMBER_TARGETS:
            if model is None:
                raise ConfigError(f"agent.target: {config.target!r} does not fit; without a model it must be 'standard'")
            acting = Acting(state.actor, state.statistics)
            outcomes = expected_outcomes(config.target, config.target_steps, model, batch, lambda s: learner.greedy(acting, s))
        return learner.update(state, batch, draws, progress, outcomes)

    return Agent(
        init=learner.init,
        acting=lambda state: Acting(state.actor, state.statistics),
        judged=lambda state: Acting(state.actor, state.statistics),
        act=learner.act,
        mode=learner.greedy,
        update=update,
        draw=learner.draw,
        minibatches=Minibatches(config.batch_size, round(config.real_ratio * config.batch_size), config.updates_per_step),
        valuing=lambda state: Valuing(
            Acting(state.actor, state.statistics), state.critics if state.targets is None else state.targets
        ),
        value=learner.value,
    )
