"""Q-learning on minibatches of transitions, whether they are real or imagined."""

from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import Array

from mbrl_jax.agents.outcomes import MEMBER_TARGETS, Outcomes, expanded_targets, expected_outcomes
from mbrl_jax.agents.protocol import Agent, Minibatches, Model
from mbrl_jax.config import ConfigError, QLearningConfig
from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.networks import MLP, Params, adam_step, all_finite, largest, optimiser_of
from mbrl_jax.replay import Rows


class QState(NamedTuple):
    """The learner. Once an update would make it non-finite it is frozen at its last finite parameters.

    With more than one Q-network every leaf of the parameters has a leading axis of networks.
    """

    online: Params
    target: Params
    optimizer: Any
    frozen: Array  # [] bool
    updates: Array  # [] int32, updates made before it was frozen


class UpdateLog(NamedTuple):
    """How an update went."""

    loss: Array  # [] weighted mean loss
    scaled_loss: Array  # [] the same over the variance of the targets, which takes out their growth towards 1 / (1 - discount)


class QLearner(NamedTuple):
    """The learner's settings and the task's sizes, with the functions of an agent: ``init``, ``act`` and ``update``."""

    config: QLearningConfig
    spec: EnvironmentSpec

    @property
    def network(self) -> MLP:
        """Maps scaled observations [..., D] to action values [..., A]."""
        return MLP(hidden=self.config.hidden, outputs=self.spec.action_count, activation="relu")

    @property
    def optimiser(self) -> optax.GradientTransformation:
        """Of all Q-networks side by side."""
        return optimiser_of(self.config.gradient_clip, batched=self.config.members > 1)

    def values(self, params: Params, observation: Array) -> Array:
        """Action values [..., A] of observations [..., D], the mean over the Q-networks."""
        each = self.each_value(params, observation)
        return each[0] if self.config.members == 1 else jnp.mean(each, axis=0)

    def each_value(self, params: Params, observation: Array) -> Array:
        """Every Q-network's action values [Q, ..., A] of observations [..., D], which are divided by fixed scales, never by
        statistics of the data.
        """
        scale = self.spec.observation_scale if self.config.input_scale is None else self.config.input_scale
        divisor = jnp.asarray(scale, observation.dtype).reshape((1,) * (observation.ndim - 1) + (-1,))
        if self.config.members == 1:
            return jnp.asarray(self.network.apply(params, observation / divisor))[None]
        params = jax.tree.map(jnp.asarray, params)  # numpy's, as read from a file, cannot be differentiated under vmap
        return jax.vmap(self.network.apply, in_axes=(0, None))(params, observation / divisor)  # type: ignore[return-value]

    def init(self, key: Array) -> QState:
        """A fresh learner; the target network begins as a copy of the online one."""
        blank = jnp.zeros((1, self.spec.observation_size))
        if self.config.members == 1:
            params = self.network.init(key, blank)
        else:
            params = jax.vmap(self.network.init, in_axes=(0, None))(jax.random.split(key, self.config.members), blank)
        return QState(params, params, self.optimiser.init(params), jnp.zeros((), bool), jnp.zeros((), jnp.int32))

    def act(self, params: Params, observation: Array, epsilon: Array | float, explore: Array, random_action: Array) -> Array:
        """Epsilon-greedy actions [...] int32.

        Args:
          params: of the network that is greedy.
          observation: [..., D].
          epsilon: share of random actions.
          explore: [...] uniform draws; below epsilon the action is random.
          random_action: [...] int32.

        """
        greedy = largest(self.values(params, observation))
        return jnp.where(explore < epsilon, random_action, greedy)

    def greedy(self, params: Params, observation: Array) -> Array:
        """Greedy actions [...] int32 in observations [..., D]."""
        return largest(self.values(params, observation))

    def update(
        self, state: QState, batch: Rows, outcomes: Outcomes | None = None, progress: Array | float = 0.0
    ) -> tuple[QState, UpdateLog]:
        """One gradient step and one step of the target network.

        Args:
          state: the learner.
          batch: leaves [B, ...].
          outcomes: every member's, which the targets ``quantile``, ``mean_std`` and ``steve`` need.
          progress: share of the run that is done, by which the learning rate decays.

        """
        learning_rate = self.config.learning_rate * (1 - self.config.learning_rate_decay * progress)
        targets = jax.lax.stop_gradient(self.targets(state, batch, outcomes))

        def objective(params: Params) -> tuple[Array, UpdateLog]:
            log = UpdateLog(*self.loss(params, batch, targets))
            return self.config.members * log.loss, log  # the sum over networks: each learns as if it were alone

        gradients, log = jax.grad(objective, has_aux=True)(state.online)
        online, optimizer = adam_step(state.online, state.optimizer, gradients, learning_rate, self.optimiser)
        target = jax.tree.map(lambda t, p: t + self.config.target_rate * (p - t), state.target, online)
        after = QState(online, target, optimizer, state.frozen, state.updates + 1)
        frozen = state.frozen | ~all_finite(online)
        after = jax.tree.map(lambda new, old: jnp.where(frozen, old, new), after, state)
        return after._replace(frozen=frozen), log

    def targets(self, state: QState, batch: Rows, outcomes: Outcomes | None = None) -> Array:
        """[B] what the action values are pulled to: ``r + discount * (1 - terminated) * v(s')``.

        A termination ends the sum; a truncation, by a time limit or by a horizon controller, does not and is no part of a row.
        """
        kind, discount = self.config.target, self.config.discount
        if kind in MEMBER_TARGETS and outcomes is None:
            raise ValueError(f"the target {kind!r} needs the outcomes that every member predicts")
        if kind == "steve":
            assert outcomes is not None
            return expanded_targets(outcomes, batch, discount, partial(self._best_values, state.target))
        if kind in ("quantile", "mean_std"):
            assert outcomes is not None
            best = jnp.max(self.values(state.target, outcomes.next_observation), axis=-1)
            each = outcomes.reward + discount * (1 - outcomes.terminated.astype(best.dtype)) * best  # [M, B]
            if kind == "quantile":
                return jnp.quantile(each, self.config.target_quantile, axis=0)
            return jnp.mean(each, axis=0) - self.config.target_beta * jnp.std(each, axis=0)
        value = self.values(state.target, batch.next_observation)
        if kind == "double":  # van Hasselt et al. 2016, arXiv:1509.06461
            chosen = largest(self.values(state.online, batch.next_observation))
            best = _pick(value, chosen)
        else:
            best = jnp.max(value, axis=-1)
        return batch.reward + discount * (1 - batch.terminated.astype(best.dtype)) * best

    def _best_values(self, params: Params, observation: Array) -> Array:
        """Every Q-network's value [Q, ...] of observations [..., D]."""
        return jnp.max(self.each_value(params, observation), axis=-1)

    def loss(self, params: Params, batch: Rows, targets: Array) -> tuple[Array, Array]:
        """[] the mean of the rows' losses by their weights, 0 if none has any, and [] that over the variance of the targets.

        With several Q-networks it is the mean over them.
        """
        chex.assert_equal_shape([targets, batch.reward, batch.weight])
        error = _pick(self.each_value(params, batch.observation), batch.action[None]) - targets[None]  # [Q, B]
        if self.config.loss == "squared":
            each = jnp.square(error)
        else:  # quadratic up to delta with the squared loss's scale of one half, then linear (Huber 1964)
            delta = self.config.huber_delta
            size = jnp.abs(error)
            each = jnp.where(size <= delta, 0.5 * jnp.square(error), delta * (size - 0.5 * delta))
        tiny = jnp.finfo(each.dtype).tiny
        weight = batch.weight / jnp.maximum(jnp.sum(batch.weight), tiny)
        loss = jnp.sum(weight * jnp.mean(each, axis=0))
        variance = jnp.sum(weight * jnp.square(targets - jnp.sum(weight * targets)))
        return loss, loss / jnp.maximum(variance, 1e-8)


def make_q_learner(config: QLearningConfig, spec: EnvironmentSpec) -> QLearner:
    """A Q-learner for a task.

    Raises:
      ConfigError: the task's actions are continuous, or the input scale does not fit its observations.

    """
    if spec.continuous:
        raise ConfigError(f"environment.name: {spec.name!r} does not fit; Q-learning needs discrete actions")
    if config.input_scale is not None and len(config.input_scale) != spec.observation_size:
        raise ConfigError(
            f"agent.input_scale: {config.input_scale!r} does not fit; {spec.name} has {spec.observation_size} observation axes"
        )
    return QLearner(config, spec)


def _pick(values: Array, action: Array) -> Array:
    """values[..., action] [...], from values [..., A] and actions [...] int32."""
    chosen = jax.nn.one_hot(action, values.shape[-1], dtype=values.dtype)
    return jnp.sum(values * chosen, axis=-1)


def q_agent(config: QLearningConfig, spec: EnvironmentSpec) -> Agent:
    """The Q-learner as an agent that learns from transitions.

    Raises:
      ConfigError: as :func:`make_q_learner`.

    """
    learner = make_q_learner(config, spec)

    def update(state: QState, batch: Rows, draws: None, progress: Array | float, model: Model | None) -> tuple[QState, UpdateLog]:
        outcomes = None
        if model is not None:
            outcomes = expected_outcomes(
                config.target, config.target_steps, model, batch, lambda s: learner.greedy(state.online, s)
            )
        return learner.update(state, batch, outcomes, progress)

    return Agent(
        init=learner.init,
        acting=lambda state: state.online,
        judged=lambda state: state.target,
        act=learner.act,
        mode=learner.greedy,
        update=update,
        draw=lambda key, shape: None,
        minibatches=Minibatches(config.batch_size, round(config.real_ratio * config.batch_size), config.updates_per_step),
        valuing=lambda state: state.target,
        value=lambda params, features: jnp.max(learner.values(params, features), axis=-1),
    )
