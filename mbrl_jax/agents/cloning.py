"""Behaviour cloning: a policy that makes the actions in the data likely (Pomerleau 1989), the baseline of offline learning."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.agents.policies import policy_of
from mbrl_jax.agents.protocol import Agent, Minibatches, Model
from mbrl_jax.config import AgentConfig, settings, static, traced
from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.networks import MLP, Params, adam_step, all_finite, optimiser_of
from mbrl_jax.replay import Rows, weighted_mean


@settings
class CloningConfig(AgentConfig):
    """Behaviour cloning (kind: cloning)."""

    hidden: tuple[int, ...] = static((64, 64), minimum=1)
    """Widths of the hidden layers."""
    activation: Literal["tanh", "silu", "gelu", "relu"] = static("tanh")
    """Nonlinearity between layers."""
    learning_rate: float = traced(1e-3, above=0)
    """Adam's step size at the first update."""
    learning_rate_decay: float = traced(0.0, minimum=0, maximum=1)
    """Share of that step size which is gone, linearly, by the run's last update."""
    weight_decay: float = traced(0.0, minimum=0)
    """Weight of half the sum of the squared kernels in the loss."""
    batch_size: int = static(256, minimum=1)
    """Rows of an update's minibatch."""
    updates_per_step: int = static(1, minimum=1)
    """Updates per step of the main loop."""
    gradient_clip: float | None = static(None, above=0)
    """Largest Euclidean norm of the gradient; none leaves it as it is."""


class CloningState(NamedTuple):
    """The learner. Once an update would make it non-finite it is frozen at its last finite parameters."""

    params: Params
    optimizer: Any
    frozen: Array  # [] bool
    updates: Array  # [] int32, updates made before it was frozen


class CloningLog(NamedTuple):
    """How an update went."""

    negative_log_likelihood: Array  # [] weighted mean over the minibatch, nats
    entropy: Array  # [] the same of the policy's entropy, nats


def cloning_agent(config: CloningConfig, spec: EnvironmentSpec) -> Agent:
    """Behaviour cloning as an agent that learns from transitions, of which it looks at states and actions alone.

    It acts by its most probable action. Rewards, terminations and models are nothing to it.
    """
    policy, optimiser = policy_of(spec), optimiser_of(config.gradient_clip)
    network = MLP(hidden=config.hidden, outputs=policy.outputs, activation=config.activation)

    def outputs(params: Params, observation: Array) -> Array:
        scale = jnp.asarray(spec.observation_scale, observation.dtype).reshape((1,) * (observation.ndim - 1) + (-1,))
        return jnp.asarray(network.apply(params, observation / scale))

    def init(key: Array) -> CloningState:
        params = network.init(key, jnp.zeros((1, spec.observation_size)))
        return CloningState(params, optimiser.init(params), jnp.zeros((), bool), jnp.zeros((), jnp.int32))

    def update(
        state: CloningState, batch: Rows, draws: None, progress: Array | float, model: Model | None
    ) -> tuple[CloningState, CloningLog]:
        def objective(params: Params) -> tuple[Array, CloningLog]:
            out = outputs(params, batch.observation)
            loss = -weighted_mean(policy.log_probability(out, batch.action), batch.weight)
            entropy = weighted_mean(policy.entropy(out), batch.weight)
            kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
            decay = 0.5 * config.weight_decay * sum(jnp.sum(jnp.square(kernel)) for kernel in kernels)
            return loss + decay, CloningLog(loss, entropy)

        gradients, log = jax.grad(objective, has_aux=True)(state.params)
        rate = config.learning_rate * (1 - config.learning_rate_decay * progress)
        params, optimizer = adam_step(state.params, state.optimizer, gradients, rate, optimiser)
        frozen = state.frozen | ~all_finite(params)
        after = CloningState(params, optimizer, state.frozen, state.updates + 1)
        after = jax.tree.map(lambda new, old: jnp.where(frozen, old, new), after, state)
        return after._replace(frozen=frozen), log

    def mode(params: Params, observation: Array) -> Array:
        return policy.mode(outputs(params, observation))

    def act(params: Params, observation: Array, exploration: Any, explore: Array, random: Array) -> Array:
        return policy.sample(outputs(params, observation), explore, random)

    return Agent(
        init=init,
        acting=lambda state: state.params,
        judged=lambda state: state.params,
        act=act,
        mode=mode,
        update=update,
        draw=lambda key, shape: None,
        minibatches=Minibatches(config.batch_size, 0, config.updates_per_step),
    )
