"""An actor and critics that remember by recurrent networks and learn from sequences of real transitions, without a model (soft
actor-critic of Haarnoja et al. 2018, arXiv:1812.05905; discrete actions as of Christodoulou 2019, arXiv:1910.07207; recurrent
actor and critics apart, as of Ni et al. 2022, arXiv:2110.05038).

A memory h goes along an episode as ``h' = GRU(h, encoder(o'), a)``. So every transition has two: the one in which its action was
taken, and the one that it led to, also at an episode's end.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws as draws_
from mbrl_jax.agents.policies import policy_of, sample_with_log_probability
from mbrl_jax.config import RecurrentConfig
from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.networks import GRU, MLP, Params, adam_step, all_finite, optimiser_of
from mbrl_jax.replay import Rows

LOG_STD_BOUNDS = (-5.0, 2.0)  # of the Gaussian before it is squashed
FRESH_OUTPUTS = 0.01  # of the last layers, so that fresh values are near 0 and a fresh policy is nearly the same everywhere


class Trunk(NamedTuple):
    """Parameters of what remembers."""

    encoder: Params
    recurrence: Params


class Actor(NamedTuple):
    """Parameters of the policy."""

    trunk: Trunk
    head: Params


class Critics(NamedTuple):
    """Parameters of C critics on one memory."""

    trunk: Trunk
    heads: Params  # leaves [C, ...]


class RecurrentState(NamedTuple):
    """The learner. Once an update would make it non-finite it is frozen at its last finite parameters."""

    actor: Actor
    critics: Critics
    targets: Critics  # follow the critics
    actor_optimizer: Any
    critic_optimizer: Any
    frozen: Array  # [] bool
    updates: Array  # [] int32, updates made before it was frozen


class RecurrentDraws(NamedTuple):
    """The random numbers of an update by T x B transitions; discrete actions take none."""

    following: Array  # [T, B, A] standard normal, of the next actions
    actor: Array  # [T, B, A] standard normal, of the actions that the actor is improved by


class RecurrentLog(NamedTuple):
    """How an update went."""

    loss: Array  # [] the critics' mean squared error, mean over critics
    scaled_loss: Array  # [] the same over the variance of the targets
    entropy: Array  # [] mean entropy of the policy, nats
    value: Array  # [] mean of the critics' values of the sequences' actions


class Recurrent(NamedTuple):
    """The learner's settings and the task's sizes, with its losses and its update."""

    config: RecurrentConfig
    spec: EnvironmentSpec

    @property
    def _actions(self) -> int:
        """A numbers that tell an action: its own, or a weight for each discrete one."""
        return self.spec.action_size if self.spec.continuous else self.spec.action_count

    def _network(self, outputs: int, scale: float = 1.0) -> MLP:
        return MLP(self.config.hidden, outputs, self.config.activation, output_scale=scale, layer_norm=True)

    @property
    def _head(self) -> MLP:
        """Of a memory to what the policy's distribution needs."""
        return self._network(policy_of(self.spec).outputs, FRESH_OUTPUTS)

    @property
    def _critic(self) -> MLP:
        """Of a memory to the values of all discrete actions, or of a memory and a continuous action to its value."""
        return self._network(1 if self.spec.continuous else self._actions, FRESH_OUTPUTS)

    @property
    def horizon(self) -> Array | float:
        """Steps that the discounted sum of rewards is about: what a critic's output is multiplied by."""
        return 1 / jnp.maximum(1 - jnp.asarray(self.config.discount), 1e-3)

    def init(self, key: Array) -> RecurrentState:
        """A fresh learner; the target critics begin as copies of the critics."""
        keys, config = jax.random.split(key, 4), self.config
        units, spec = config.units, self.spec

        def trunk(key: Array) -> Trunk:
            one, two = jax.random.split(key)
            encoder = self._network(config.hidden[-1]).init(one, jnp.zeros((1, spec.observation_size)))
            inputs = jnp.zeros((1, config.hidden[-1] + self._actions))
            return Trunk(encoder, GRU(units).init(two, jnp.zeros((1, units)), inputs))

        seen = jnp.zeros((1, units + spec.action_size))  # of discrete actions a critic gives all values at once
        heads = dict(jax.vmap(self._critic.init, in_axes=(0, None))(jax.random.split(keys[3], config.critics), seen))
        actor = Actor(trunk(keys[0]), self._head.init(keys[1], jnp.zeros((1, units))))
        critics = Critics(trunk(keys[2]), heads)
        one, two = (optimiser_of(config.gradient_clip).init(each) for each in (actor, critics))
        return RecurrentState(actor, critics, critics, one, two, jnp.zeros((), bool), jnp.zeros((), jnp.int32))

    def draw(self, key: Array, shape: tuple[int, ...]) -> RecurrentDraws:
        """Draw what updates ``shape`` consume."""
        full = (*shape, self.config.sequence, self.config.batch_size, self.spec.action_size)
        return RecurrentDraws(*(draws_.normal(each, full) for each in jax.random.split(key)))

    # ------------------------------------------------------------------------------------------------------------- memories

    def code(self, trunk: Trunk, observation: Array) -> Array:
        """[..., E] encoded observations [..., D]."""
        scale = jnp.asarray(self.spec.observation_scale, observation.dtype).reshape((1,) * (observation.ndim - 1) + (-1,))
        return jnp.asarray(self._network(self.config.hidden[-1]).apply(trunk.encoder, observation / scale))

    def recall(self, trunk: Trunk, before: Array, action: Array, code: Array, first: Array) -> Array:
        """[N, U] memories after observations of codes [N, E]; where ``first`` [N] holds, nothing is left of the memories [N, U]
        and the actions [N] before.
        """
        if not self.spec.continuous:
            action = jax.nn.one_hot(action, self._actions, dtype=code.dtype)
        kept = 1 - first[:, None].astype(code.dtype)
        inputs = jnp.concatenate([code, kept * action], axis=-1)
        return jnp.asarray(GRU(self.config.units).apply(trunk.recurrence, kept * before, inputs))

    def unroll(self, trunk: Trunk, rows: Rows, first: Array) -> tuple[Array, Array]:
        """Memories [T, B, U] in which the actions of transitions [T, B] were taken, and those that they led to.

        Args:
          trunk: what remembers.
          rows: [T, B] successive ones.
          first: [T, B] where nothing is left of what was before.

        """
        seen, led_to = self.code(trunk, rows.observation), self.code(trunk, rows.next_observation)
        blank, nothing = jnp.zeros((first.shape[1], self.config.units), seen.dtype), jnp.zeros(first.shape[1], bool)

        def step(memory: Array, inputs: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
            seen, led_to, action, first = inputs
            begun = self.recall(trunk, blank, action, seen, ~nothing)
            before = jnp.where(first[:, None], begun, memory)
            after = self.recall(trunk, before, action, led_to, nothing)
            return after, (before, after)

        return jax.lax.scan(step, blank, (seen, led_to, rows.action, first))[1]

    # -------------------------------------------------------------------------------------------------- policies and values

    def outputs(self, actor: Actor, memory: Array) -> Array:
        """[..., O] what the policy's distribution needs, of memories [..., U]."""
        return jnp.asarray(self._head.apply(actor.head, memory))

    def act(self, actor: Actor, memory: Array, uniform: Array, random: Array) -> Array:
        """Actions [...] drawn from the policy in memories [..., U]."""
        outputs = self.outputs(actor, memory)
        if self.spec.continuous:
            return sample_with_log_probability(outputs, 2**0.5 * jax.lax.erf_inv(random), LOG_STD_BOUNDS)[0]
        return policy_of(self.spec).sample(outputs, uniform, random)

    def greedy(self, actor: Actor, memory: Array) -> Array:
        """The most probable actions [...] in memories [..., U]."""
        return policy_of(self.spec).mode(self.outputs(actor, memory))

    def values(self, heads: Params, memory: Array, action: Array) -> Array:
        """[C, ...] every critic's value of actions [...] in memories [..., U]."""
        if self.spec.continuous:
            return self._judged(heads, jnp.concatenate([memory, action], axis=-1))[..., 0]
        weights = jax.nn.one_hot(action, self._actions, dtype=memory.dtype)
        return jnp.sum(self._judged(heads, memory) * weights[None], axis=-1)

    def _judged(self, heads: Params, inputs: Array) -> Array:
        each = jax.vmap(self._critic.apply, in_axes=(0, None))(heads, inputs)  # type: ignore[arg-type]
        return self.horizon * jnp.asarray(each)

    def expected(self, outputs: Array, heads: Params, memory: Array, normal: Array) -> tuple[Array, Array]:
        """What the policy's actions are worth by the least of the critics, [...], and its entropy, [...] nats.

        Of discrete actions both are exact expectations; of continuous ones they are those of one action.

        Args:
          outputs: [..., O] the actor's.
          heads: the critics'.
          memory: [..., U] the critics'.
          normal: [..., A] standard normal numbers of a continuous action.

        """
        if self.spec.continuous:
            action, log_probability = sample_with_log_probability(outputs, normal, LOG_STD_BOUNDS)
            return jnp.min(self.values(heads, memory, action), axis=0), -log_probability
        logits = jax.nn.log_softmax(outputs, axis=-1)
        least = jnp.min(self._judged(heads, memory), axis=0)
        return jnp.sum(jnp.exp(logits) * least, axis=-1), -jnp.sum(jnp.exp(logits) * logits, axis=-1)

    # --------------------------------------------------------------------------------------------------------------- update

    def targets(self, state: RecurrentState, rows: Rows, first: Array, normal: Array) -> Array:
        """[T, B] what the critics' values are pulled to, ``r + discount * (1 - terminated) * (Q(h', a') + temperature * H)``."""
        outputs = self.outputs(state.actor, self.unroll(state.actor.trunk, rows, first)[1])
        memory = self.unroll(state.targets.trunk, rows, first)[1]
        value, entropy = self.expected(outputs, state.targets.heads, memory, normal)
        goes_on = 1 - rows.terminated.astype(value.dtype)
        return rows.reward + self.config.discount * goes_on * (value + self.config.temperature * entropy)

    def critic_loss(self, critics: Critics, rows: Rows, first: Array, targets: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        """[] the critics' squared error over the squared horizon; and the error in units of the return, the mean value and the
        memories [T, B, U].
        """
        memory = self.unroll(critics.trunk, rows, first)[0]
        each = self.values(critics.heads, memory, rows.action)
        error = jnp.mean(jnp.square(each - targets[None]))
        return error / jnp.square(self.horizon), (error, jnp.mean(each), memory)

    def actor_loss(
        self, actor: Actor, heads: Params, memory: Array, rows: Rows, first: Array, normal: Array
    ) -> tuple[Array, Array]:
        """[] minus the mean of ``Q + temperature * H``, over the horizon, by the critics' memories [T, B, U]; and [] mean H."""
        outputs = self.outputs(actor, self.unroll(actor.trunk, rows, first)[0])
        value, entropy = self.expected(outputs, heads, memory, normal)
        return -jnp.mean(value + self.config.temperature * entropy) / self.horizon, jnp.mean(entropy)

    def update(
        self, state: RecurrentState, rows: Rows, first: Array, draws: RecurrentDraws, progress: Array | float = 0.0
    ) -> tuple[RecurrentState, RecurrentLog]:
        """One gradient step of the critics, which the target critics follow, and one of the actor.

        Args:
          state: the learner.
          rows: [T, B] successive transitions.
          first: [T, B] bool, where an episode or a sequence begins.
          draws: of one update.
          progress: share of the run that is done, by which the learning rates decay.

        """
        config, left, optimiser = (
            self.config,
            1 - self.config.learning_rate_decay * progress,
            optimiser_of(self.config.gradient_clip),
        )
        targets = jax.lax.stop_gradient(self.targets(state, rows, first, draws.following))
        slope, (loss, value, memory) = jax.grad(self.critic_loss, has_aux=True)(state.critics, rows, first, targets)
        rate = config.critic_learning_rate * left
        critics, critic_optimizer = adam_step(state.critics, state.critic_optimizer, slope, rate, optimiser)
        slow = jax.tree.map(lambda old, new: old + config.target_rate * (new - old), state.targets, critics)

        judge = partial(self.actor_loss, heads=state.critics.heads, memory=memory, rows=rows, first=first, normal=draws.actor)
        slope, entropy = jax.grad(judge, has_aux=True)(state.actor)
        actor, actor_optimizer = adam_step(state.actor, state.actor_optimizer, slope, config.learning_rate * left, optimiser)

        after = RecurrentState(actor, critics, slow, actor_optimizer, critic_optimizer, state.frozen, state.updates + 1)
        frozen = state.frozen | ~all_finite((actor, critics))
        after = jax.tree.map(lambda new, old: jnp.where(frozen, old, new), after, state)
        log = RecurrentLog(loss, loss / jnp.maximum(jnp.var(targets), 1e-8), entropy, value)
        return after._replace(frozen=frozen), log
