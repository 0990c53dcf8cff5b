"""Q-learning on minibatches of transitions, whether they are real or imagined."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import ConfigError, QLearningConfig
from mbrl_jax.environment import EnvironmentSpec
from mbrl_jax.networks import ADAM, MLP, Params, adam_step
from mbrl_jax.replay import Rows


class QState(NamedTuple):
    """The learner. Once an update would make it non-finite it is frozen at its last finite parameters."""

    online: Params
    target: Params
    optimizer: Any
    frozen: Array  # [] bool
    updates: Array  # [] int32, updates made before it was frozen


class Outcomes(NamedTuple):
    """What each of M ensemble members says follows the rows of a minibatch, for the conservative targets."""

    reward: Array  # [M, B]
    next_observation: Array  # [M, B, D]
    terminated: Array  # [M, B] bool


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

    def values(self, params: Params, observation: Array) -> Array:
        """Action values [..., A] of observations [..., D], which are divided by fixed scales, never by statistics of the data."""
        scale = self.spec.observation_scale if self.config.input_scale is None else self.config.input_scale
        divisor = jnp.asarray(scale, observation.dtype).reshape((1,) * (observation.ndim - 1) + (-1,))
        return self.network.apply(params, observation / divisor)  # type: ignore[return-value]

    def init(self, key: Array) -> QState:
        """A fresh learner; the target network begins as a copy of the online one."""
        params = self.network.init(key, jnp.zeros((1, self.spec.observation_size)))
        return QState(params, params, ADAM.init(params), jnp.zeros((), bool), jnp.zeros((), jnp.int32))

    def act(self, params: Params, observation: Array, epsilon: Array | float, explore: Array, random_action: Array) -> Array:
        """Epsilon-greedy actions [...] int32.

        Args:
          params: of the network that is greedy.
          observation: [..., D].
          epsilon: share of random actions.
          explore: [...] uniform draws; below epsilon the action is random.
          random_action: [...] int32.

        """
        greedy = jnp.argmax(self.values(params, observation), axis=-1).astype(jnp.int32)
        return jnp.where(explore < epsilon, random_action, greedy)

    def greedy(self, params: Params, observation: Array) -> Array:
        """Greedy actions [...] int32 in observations [..., D]."""
        return jnp.argmax(self.values(params, observation), axis=-1).astype(jnp.int32)

    def update(
        self, state: QState, batch: Rows, outcomes: Outcomes | None = None, progress: Array | float = 0.0
    ) -> tuple[QState, UpdateLog]:
        """One gradient step and one step of the target network.

        Args:
          state: the learner.
          batch: leaves [B, ...].
          outcomes: every member's, which the targets ``quantile`` and ``mean_std`` need.
          progress: share of the run that is done, by which the learning rate decays.

        """
        learning_rate = self.config.learning_rate * (1 - self.config.learning_rate_decay * progress)
        targets = jax.lax.stop_gradient(self.targets(state, batch, outcomes))
        (loss, scaled), gradients = jax.value_and_grad(self.loss, has_aux=True)(state.online, batch, targets)
        online, optimizer = adam_step(state.online, state.optimizer, gradients, learning_rate)
        target = jax.tree.map(lambda t, p: t + self.config.target_rate * (p - t), state.target, online)
        after = QState(online, target, optimizer, state.frozen, state.updates + 1)
        frozen = state.frozen | ~_all_finite(online)
        after = jax.tree.map(lambda new, old: jnp.where(frozen, old, new), after, state)
        return after._replace(frozen=frozen), UpdateLog(loss, scaled)

    def targets(self, state: QState, batch: Rows, outcomes: Outcomes | None = None) -> Array:
        """[B] what the action values are pulled to: ``r + discount * (1 - terminated) * v(s')``.

        A termination ends the sum; a truncation, by a time limit or by a horizon controller, does not and is no part of a row.
        """
        kind, discount = self.config.target, self.config.discount
        if kind in ("quantile", "mean_std"):
            if outcomes is None:
                raise ValueError(f"the target {kind!r} needs the outcomes that every member predicts")
            best = jnp.max(self.values(state.target, outcomes.next_observation), axis=-1)
            each = outcomes.reward + discount * (1 - outcomes.terminated.astype(best.dtype)) * best  # [M, B]
            if kind == "quantile":
                return jnp.quantile(each, self.config.target_quantile, axis=0)
            return jnp.mean(each, axis=0) - self.config.target_beta * jnp.std(each, axis=0)
        value = self.values(state.target, batch.next_observation)
        if kind == "double":  # van Hasselt et al. 2016, arXiv:1509.06461
            chosen = jnp.argmax(self.values(state.online, batch.next_observation), axis=-1)
            best = _pick(value, chosen)
        else:
            best = jnp.max(value, axis=-1)
        return batch.reward + discount * (1 - batch.terminated.astype(best.dtype)) * best

    def loss(self, params: Params, batch: Rows, targets: Array) -> tuple[Array, Array]:
        """[] the mean of the rows' losses by their weights, 0 if none has any, and [] that over the variance of the targets."""
        chex.assert_equal_shape([targets, batch.reward, batch.weight])
        error = _pick(self.values(params, batch.observation), batch.action) - targets
        if self.config.loss == "squared":
            each = jnp.square(error)
        else:  # quadratic up to delta with the squared loss's scale of one half, then linear (Huber 1964)
            delta = self.config.huber_delta
            size = jnp.abs(error)
            each = jnp.where(size <= delta, 0.5 * jnp.square(error), delta * (size - 0.5 * delta))
        tiny = jnp.finfo(each.dtype).tiny
        weight = batch.weight / jnp.maximum(jnp.sum(batch.weight), tiny)
        loss = jnp.sum(weight * each)
        variance = jnp.sum(weight * jnp.square(targets - jnp.sum(weight * targets)))
        return loss, loss / jnp.maximum(variance, 1e-8)


def make_q_learner(config: QLearningConfig, spec: EnvironmentSpec) -> QLearner:
    """A Q-learner for a task.

    Raises:
      ConfigError: the input scale does not fit the task's observations.

    """
    if config.input_scale is not None and len(config.input_scale) != spec.observation_size:
        raise ConfigError(
            f"agent.input_scale: {config.input_scale!r} does not fit; {spec.name} has {spec.observation_size} observation axes"
        )
    return QLearner(config, spec)


def _pick(values: Array, action: Array) -> Array:
    """values[..., action] [...], from values [..., A] and actions [...] int32."""
    chosen = jax.nn.one_hot(action, values.shape[-1], dtype=values.dtype)
    return jnp.sum(values * chosen, axis=-1)


def _all_finite(tree: Any) -> Array:
    """[] bool, whether every number of every leaf is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
