"""Policy gradients: an actor that learns from segments of trajectories, imagined or real, beside a critic or without one."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
import optax
from jax import Array

from mbrl_jax.agents.policies import Distribution, policy_of
from mbrl_jax.agents.protocol import Agent, Model
from mbrl_jax.config import PolicyGradientConfig
from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.networks import MLP, Params, adam_step, all_finite, optimiser_of
from mbrl_jax.replay import Rows, weighted_mean

FRESH_OUTPUTS = 0.01  # of a fresh actor's last layer, so that its policy is nearly the same in all states


class ActorCritic(NamedTuple):
    """Parameters."""

    actor: Params
    critic: Params


class PGState(NamedTuple):
    """The learner. Once an update would make it non-finite it is frozen at its last finite parameters."""

    online: ActorCritic
    target: ActorCritic  # follows the online one; its critic values next states, its actor is the policy that is judged
    optimizer: Any  # of the actor and of the critic
    frozen: Array  # [] bool
    updates: Array  # [] int32, updates made before it was frozen


Made = TypeVar("Made")


class Segment(NamedTuple):
    """T successive steps of K trajectories side by side."""

    rows: Rows  # leaves [T, K, ...]
    ended: Array  # [T, K] bool, the trajectory ended with this step, for whatever reason: the next row is of another


class PolicyGradientLog(NamedTuple):
    """How an update went."""

    loss: Array  # [] the critic's weighted mean squared error, in units of the return; 0 without a critic
    scaled_loss: Array  # [] the same over the variance of its targets
    entropy: Array  # [] weighted mean entropy of the policy, nats


def segment_of(rows: Rows) -> Segment:
    """The segment that rows [T, K] of K lanes make, in the order of time.

    A lane that ended is told by the next row's depth of 0. Of the last rows it does not matter: what follows them is not here.
    """
    begins = jnp.concatenate([rows.depth[1:] == 0, jnp.ones((1, rows.depth.shape[1]), bool)])
    return Segment(rows, begins)


def lambda_returns(
    reward: Array, terminated: Array, ended: Array, next_value: Array, discount: Array | float, decay: Array | float
) -> Array:
    """[T, K] returns that mix all numbers of steps (Sutton 1988; as GAE, Schulman et al. 2016, arXiv:1506.02438, plus the value).

    ``R[t] = r[t] + discount * (1 - terminated[t]) * ((1 - decay) * v(s'[t]) + decay * R[t + 1])``, and where the trajectory ends
    or the segment does, ``v(s'[t])`` in place of the mixture: a truncation bootstraps, a termination does not.

    Args:
      reward: [T, K].
      terminated: [T, K] bool.
      ended: [T, K] bool.
      next_value: [T, K] of s'.
      discount: [] or a number.
      decay: [] or a number, lambda: 0 looks one step ahead, 1 as far as the segment goes.

    """
    chex.assert_equal_shape([reward, terminated, ended, next_value])

    def back(later: Array, step: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        reward, terminated, ended, value = step
        follows = jnp.where(ended, value, (1 - decay) * value + decay * later)
        now = reward + discount * (1 - terminated.astype(reward.dtype)) * follows
        return now, now

    _, returns = jax.lax.scan(back, next_value[-1], (reward, terminated, ended, next_value), reverse=True)
    return returns


class PolicyGradient(NamedTuple):
    """The learner's settings and the task's sizes, with the functions of an agent: ``init``, ``act`` and ``update``."""

    config: PolicyGradientConfig
    spec: EnvironmentSpec

    @property
    def actor(self) -> MLP:
        """Maps scaled observations [..., D] to what the policy's distribution needs [..., O]."""
        return MLP(
            hidden=self.config.hidden, outputs=self.policy.outputs, activation=self.config.activation, output_scale=FRESH_OUTPUTS
        )

    @property
    def policy(self) -> Distribution:
        """Categorical, or a squashed Gaussian, as the task's actions are."""
        return policy_of(self.spec)

    @property
    def critic(self) -> MLP:
        """Maps scaled observations [..., D] to a value [..., 1], in units of the reward."""
        return MLP(hidden=self.config.hidden, outputs=1, activation=self.config.activation)

    @property
    def optimiser(self) -> optax.GradientTransformation:
        """Of the actor, and of the critic by itself."""
        return optimiser_of(self.config.gradient_clip)

    @property
    def horizon(self) -> Array | float:
        """Steps that the discounted sum of rewards is about: what the critic's output is multiplied by."""
        return 1 / jnp.maximum(1 - jnp.asarray(self.config.discount), 1e-3)

    def init(self, key: Array) -> PGState:
        """A fresh learner, whose policy is nearly the same in all states: uniform, or a Gaussian about 0."""
        key_actor, key_critic = jax.random.split(key)
        blank = jnp.zeros((1, self.spec.observation_size))
        params = ActorCritic(self.actor.init(key_actor, blank), self.critic.init(key_critic, blank))
        optimizer = ActorCritic(*(self.optimiser.init(each) for each in params))
        return PGState(params, params, optimizer, jnp.zeros((), bool), jnp.zeros((), jnp.int32))

    def outputs(self, actor: Params, observation: Array) -> Array:
        """[..., O] the actor's outputs in observations [..., D]."""
        return jnp.asarray(self.actor.apply(actor, self._scaled(observation)))

    def values(self, critic: Params, observation: Array) -> Array:
        """[...] values of observations [..., D]."""
        return self.horizon * jnp.asarray(self.critic.apply(critic, self._scaled(observation)))[..., 0]

    def act(self, actor: Params, observation: Array, uniform: Array, random: Array) -> Array:
        """Actions [...] drawn from the policy, by uniform draws [...] or by those of the random policy [...]."""
        return self.policy.sample(self.outputs(actor, observation), uniform, random)

    def relaxed(self, actor: Params, observation: Array, uniform: Array, random: Array) -> Array:
        """The same actions as :meth:`act` gives, to be differentiated: discrete ones as weights [..., A]."""
        return self.policy.relaxed(self.outputs(actor, observation), uniform, random)

    def greedy(self, actor: Params, observation: Array) -> Array:
        """The most probable actions [...] in observations [..., D]."""
        return self.policy.mode(self.outputs(actor, observation))

    def returns(self, critic: Params, segment: Segment) -> Array:
        """[T, K] what the policy is to make larger: lambda-returns, or without a critic the rewards that the segment has."""
        rows = segment.rows
        if self.config.baseline == "none":
            nothing = jnp.zeros_like(rows.reward)
            return lambda_returns(rows.reward, rows.terminated, segment.ended, nothing, self.config.discount, 1.0)
        value = self.values(critic, rows.next_observation)
        return lambda_returns(rows.reward, rows.terminated, segment.ended, value, self.config.discount, self.config.decay)

    def advantages(self, params: ActorCritic, segment: Segment, returns: Array) -> Array:
        """[T, K] what the log-probabilities' gradients are weighted by."""
        advantage = returns
        if self.config.baseline == "value":
            advantage = advantage - self.values(params.critic, segment.rows.observation)
        if not self.config.normalise:
            return advantage
        weight = segment.rows.weight
        mean = weighted_mean(advantage, weight)
        return (advantage - mean) / jnp.sqrt(weighted_mean(jnp.square(advantage - mean), weight) + 1e-8)

    def score_loss(self, actor: Params, segment: Segment, advantages: Array) -> tuple[Array, Array]:
        """[] whose gradient is minus the score-function estimate (REINFORCE, Williams 1992), with an entropy bonus, and []
        the entropy.
        """
        rows, outputs = segment.rows, self.outputs(actor, segment.rows.observation)
        taken = self.policy.log_probability(outputs, rows.action)
        entropy = weighted_mean(self.policy.entropy(outputs), rows.weight)
        return -weighted_mean(taken * advantages, rows.weight) - self.config.entropy_weight * entropy, entropy

    def pathwise_loss(self, actor: Params, critic: Params, segment: Segment) -> tuple[Array, Array]:
        """[] whose gradient is minus the pathwise estimate, with an entropy bonus, and [] the entropy.

        What is made larger is the mean of the segment's returns, whose rewards and states depend on the actor by the model and
        the relaxed actions that made them (as in Dreamer, Hafner et al. 2020, arXiv:1912.01603). That a termination comes or does
        not is taken to be no matter of the actor's.

        Args:
          actor: that made the segment.
          critic: that values next states.
          segment: as a function of the actor.

        """
        rows = segment.rows
        entropy = weighted_mean(self.policy.entropy(self.outputs(actor, jax.lax.stop_gradient(rows.observation))), rows.weight)
        gain = weighted_mean(self.returns(critic, segment), jax.lax.stop_gradient(rows.weight))
        return -gain - self.config.entropy_weight * entropy, entropy

    def critic_loss(self, critic: Params, segment: Segment, returns: Array) -> Array:
        """[] the mean squared error of the values, in units of the return."""
        return weighted_mean(jnp.square(self.values(critic, segment.rows.observation) - returns), segment.rows.weight)

    def learn(
        self, state: PGState, imagine: Callable[[Callable[..., Array]], tuple[Segment, Made]], progress: Array | float
    ) -> tuple[PGState, Made, PolicyGradientLog]:
        """Imagine a segment by the online policy and learn from it, by the estimate that the settings name.

        Args:
          state: the learner.
          imagine: ``policy -> (segment, made)``, with whatever else the imagination leaves; the policy is
            ``(features [..., F], explore [...], random action [...]) -> actions [...]``. For the pathwise estimate it is
            differentiated.
          progress: share of the run that is done.

        Returns:
          The learner, what the imagination left, and how the update went.

        """
        gradient = None
        if self.config.estimator == "pathwise":

            def loss(actor: Params) -> tuple[Array, Any]:
                imagined = imagine(partial(self.relaxed, actor))
                loss, entropy = self.pathwise_loss(actor, state.target.critic, imagined[0])
                return loss, (entropy, imagined)

            descent, (entropy, imagined) = jax.grad(loss, has_aux=True)(state.online.actor)
            gradient = descent, entropy
        else:
            imagined = imagine(partial(self.act, state.online.actor))
        segment, made = imagined
        state, log = self.update(state, segment, progress, gradient)
        return state, made, log

    def update(
        self,
        state: PGState,
        segment: Segment,
        progress: Array | float = 0.0,
        pathwise: tuple[Params, Array] | None = None,
    ) -> tuple[PGState, PolicyGradientLog]:
        """One gradient step of the actor and of the critic, and one step of the target networks.

        Args:
          state: the learner.
          segment: that the online policy has made.
          progress: share of the run that is done, by which the learning rates decay.
          pathwise: the gradient of :meth:`pathwise_loss` and the entropy, in place of the score-function estimate, which needs no
            more than the segment.

        """
        config = self.config
        left = 1 - config.learning_rate_decay * progress
        returns = jax.lax.stop_gradient(self.returns(state.target.critic, segment))
        if pathwise is not None:
            gradient, entropy = pathwise
        else:
            advantages = jax.lax.stop_gradient(self.advantages(state.online, segment, returns))
            gradient, entropy = jax.grad(self.score_loss, has_aux=True)(state.online.actor, segment, advantages)
        rate, optimiser = config.learning_rate * left, self.optimiser
        actor, actor_optimizer = adam_step(state.online.actor, state.optimizer.actor, gradient, rate, optimiser)
        critic, critic_optimizer, loss = state.online.critic, state.optimizer.critic, jnp.zeros_like(entropy)
        if config.baseline == "value":
            scale = jnp.square(self.horizon)  # so that the step does not depend on the discount

            def scaled(critic: Params) -> tuple[Array, Array]:
                loss = self.critic_loss(critic, segment, returns)
                return loss / scale, loss

            gradient, loss = jax.grad(scaled, has_aux=True)(critic)
            rate = config.critic_learning_rate * left
            critic, critic_optimizer = adam_step(critic, critic_optimizer, gradient, rate, optimiser)
        online = ActorCritic(actor, critic)
        target = jax.tree.map(lambda t, p: t + config.target_rate * (p - t), state.target, online)
        after = PGState(online, target, ActorCritic(actor_optimizer, critic_optimizer), state.frozen, state.updates + 1)
        frozen = state.frozen | ~all_finite(online)
        after = jax.tree.map(lambda new, old: jnp.where(frozen, old, new), after, state)
        mean = weighted_mean(returns, segment.rows.weight)
        variance = weighted_mean(jnp.square(returns - mean), segment.rows.weight)
        return after._replace(frozen=frozen), PolicyGradientLog(loss, loss / jnp.maximum(variance, 1e-8), entropy)

    def _scaled(self, observation: Array) -> Array:
        """Observations [..., D] over the task's own scale."""
        scale = jnp.asarray(self.spec.observation_scale, observation.dtype)
        return observation / scale.reshape((1,) * (observation.ndim - 1) + (-1,))


def policy_gradient_agent(config: PolicyGradientConfig, spec: EnvironmentSpec) -> Agent:
    """The actor and critic as an agent that learns from segments by the score-function estimate."""
    learner = PolicyGradient(config, spec)

    def update(
        state: PGState, segment: Segment, draws: None, progress: Array | float, model: Model | None
    ) -> tuple[PGState, PolicyGradientLog]:
        return learner.update(state, segment, progress)

    return Agent(
        init=learner.init,
        acting=lambda state: state.online.actor,
        judged=lambda state: state.target.actor,
        act=lambda params, features, exploration, explore, random: learner.act(params, features, explore, random),
        mode=learner.greedy,
        update=update,
        draw=lambda key, shape: None,
        minibatches=None,
        valuing=(lambda state: state.target.critic) if config.baseline == "value" else None,
        value=learner.values if config.baseline == "value" else None,
    )
