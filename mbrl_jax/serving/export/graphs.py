"""What is exported: a policy, a vote of several, each member of a world model, and its ensemble, as functions of rows [B].

Every graph takes observations and actions in the task's own units and gives them so. Scales, normalisation and parameters are
within it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mbrl_jax.agents.policy_gradient import PolicyGradient
from mbrl_jax.agents.q_learning import make_q_learner
from mbrl_jax.agents.registry import make_agent
from mbrl_jax.config import ConfigError, ModelConfig, PolicyGradientConfig, QLearningConfig
from mbrl_jax.environments import Environment, EnvironmentSpec, in_units
from mbrl_jax.imagination import disagreement
from mbrl_jax.model import ensemble as ens
from mbrl_jax.model.ensemble import Ensemble, Members
from mbrl_jax.model.protocol import Prediction
from mbrl_jax.networks import largest
from mbrl_jax.serving.contract import Port
from mbrl_jax.serving.export.plain import plain


class Graph(NamedTuple):
    """A function of a batch of rows, with what its numbers mean."""

    name: str  # of its files
    role: str  # policy, vote, member or ensemble
    function: Callable[..., tuple[Array, ...]]  # (inputs [B, ...]) -> outputs [B, ...], in the order of the ports
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def observation_port(spec: EnvironmentSpec, axes: tuple[str, ...], name: str = "observation", meaning: str = "") -> Port:
    """The port of observations [B, D]."""
    told = ", ".join(axes)
    return Port(name, ("B", spec.observation_size), "float32", meaning or f"observation in the task's own units: {told}")


def action_port(spec: EnvironmentSpec) -> Port:
    """The port of actions [B] or [B, A]."""
    if not spec.continuous:
        return Port("action", ("B",), "int32", f"number of the discrete action, 0 to {spec.action_count - 1}")
    low, high = action_bounds(spec)
    return Port("action", ("B", spec.action_size), "float32", f"action in the task's own units, from {low} to {high}")


def action_bounds(spec: EnvironmentSpec) -> tuple[list[float], list[float]]:
    """Lowest and highest numbers [A] of a continuous action, in the task's own units."""
    one = np.ones(spec.action_shape, np.float32)
    return in_units(spec, -one).tolist(), in_units(spec, one).tolist()


# ------------------------------------------------------------------------------------------------------------- policies


Act = Callable[[Any, Array], tuple[Array, ...]]  # (params, observations [B, D]) -> outputs [B, ...]


def _act(config: Any, task: Environment) -> tuple[Act, tuple[Port, ...]]:
    """How the agent of a run acts, and the ports of what it gives."""
    spec, agent = task.spec, make_agent(config.agent, task.spec)
    if spec.continuous:

        def act(params: Any, observation: Array) -> tuple[Array, ...]:
            return (in_units(spec, jnp.clip(agent.mode(params, observation), -1.0, 1.0)),)

        return act, (action_port(spec),)
    told = "value of each action: the discounted return that is expected after it"
    if isinstance(config.agent, QLearningConfig):
        learner = make_q_learner(config.agent, spec)
        return _scored(learner.values), (action_port(spec), Port("values", ("B", spec.action_count), "float32", told))
    if isinstance(config.agent, PolicyGradientConfig):
        actor = PolicyGradient(config.agent, spec)
        told = "unnormalised log-probability of each action"
        return _scored(actor.outputs), (action_port(spec), Port("logits", ("B", spec.action_count), "float32", told))
    return lambda params, observation: (agent.mode(params, observation),), (action_port(spec),)


def _scored(scores: Callable[[Any, Array], Array]) -> Act:
    """The action of the highest score, and the scores."""

    def act(params: Any, observation: Array) -> tuple[Array, ...]:
        each = scores(params, observation)
        return largest(each), each

    return act


def policy_graph(config: Any, task: Environment, axes: tuple[str, ...], params: Any) -> Graph:
    """The greedy policy of one seed.

    Args:
      config: of the run.
      task: its environment.
      axes: D names of the observation's numbers.
      params: of one seed.

    """
    act, outputs = _act(config, task)
    inputs = (observation_port(task.spec, axes),)
    return Graph("policy", "policy", plain(lambda s: act(params, s)), inputs, outputs)


def vote_graph(config: Any, task: Environment, axes: tuple[str, ...], params: Any) -> Graph:
    """The vote of the greedy policies of all seeds: the most frequent discrete action, or the mean of continuous ones.

    Of discrete actions that are equally frequent the lowest is taken.

    Args:
      config: of the run.
      task: its environment.
      axes: D names of the observation's numbers.
      params: leaves [seeds, ...].

    """
    act, _ = _act(config, task)
    spec, seeds = task.spec, len(jax.tree.leaves(params)[0])
    each = [jax.tree.map(lambda leaf, seed=seed: leaf[seed], params) for seed in range(seeds)]

    def vote(observation: Array) -> tuple[Array, ...]:
        actions = jnp.stack([act(one, observation)[0] for one in each])
        if spec.continuous:
            return jnp.mean(actions, axis=0), jnp.std(actions, axis=0)
        counts = jnp.sum(jax.nn.one_hot(actions, spec.action_count, dtype=observation.dtype), axis=0)
        return largest(counts), jnp.max(counts, axis=-1) / seeds

    if spec.continuous:
        spread = Port("deviation", ("B", spec.action_size), "float32", f"standard deviation of the {seeds} policies' actions")
    else:
        spread = Port("agreement", ("B",), "float32", f"share of the {seeds} policies that choose this action")
    inputs = (observation_port(spec, axes),)
    return Graph("policy", "vote", plain(vote), inputs, (action_port(spec), spread))


# ---------------------------------------------------------------------------------------------------------------- models


def model_graphs(config: Any, task: Environment, axes: tuple[str, ...], members: Any) -> list[Graph]:
    """The ensemble as one graph, then each of the M members that imagine.

    Args:
      config: of the run.
      task: its environment.
      axes: D names of the observation's numbers.
      members: of one seed, as :class:`mbrl_jax.model.ensemble.Members`.

    Raises:
      ConfigError: the world model is of another kind.

    """
    if not isinstance(config.model, ModelConfig) or not isinstance(members, Members):
        raise ConfigError(f"model.kind: {config.model.kind!r} does not fit an export; it must be 'ensemble'")
    spec, shape = task.spec, Ensemble(config.model, task.spec, task.reward, task.terminated)
    gaussian, count = config.model.prediction == "gaussian", len(jax.tree.leaves(members.params)[0])
    inputs = (observation_port(spec, axes), action_port(spec))
    normaliser, size = members.normaliser, spec.observation_size
    each = [jax.tree.map(lambda leaf, m=m: jnp.asarray(leaf[m]), (members.params, members.bounds)) for m in range(count)]

    def predict(one: Any, observation: Array, action: Array) -> Prediction:
        """One member's prediction, leaves [B, ...]."""
        params, bounds = one
        outputs = jnp.asarray(shape.network.apply(params, ens.encode(shape, normaliser, observation, action)))
        return ens.split_outputs(shape, outputs, bounds)

    def decoded(prediction: Prediction, observation: Array, action: Array) -> tuple[Array, Array, Array]:
        told = ens.decode(shape, normaliser, prediction, observation, action, None)
        return told.next_observation, told.reward, told.terminated

    def member(one: Any) -> Callable[[Array, Array], tuple[Array, ...]]:
        def function(observation: Array, action: Array) -> tuple[Array, ...]:
            taken = learned_units(spec, action)
            said = predict(one, observation, taken)
            found = decoded(said, observation, taken)
            if said.log_variance is None:
                return found
            return *found, normaliser.target_std[None, :size] * jnp.exp(0.5 * said.log_variance[:, :size])

        return function

    def together(observation: Array, action: Array) -> tuple[Array, ...]:
        taken = learned_units(spec, action)
        everyone = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(predict(one, observation, taken) for one in each))
        found = decoded(ens.mixture_mean(everyone), observation, taken)
        variance = jnp.var(everyone.mean[..., :size], axis=0)
        if everyone.log_variance is not None:
            variance = variance + jnp.mean(jnp.exp(everyone.log_variance[..., :size]), axis=0)
        return *found, normaliser.target_std[None, :size] * jnp.sqrt(variance), disagreement.std(everyone)

    numbers = ("B", spec.observation_size)
    after = observation_port(spec, axes, "next_observation", "mean of the observation after the step, in the task's own units")
    reward = Port("reward", ("B",), "float32", "reward of the step")
    terminated = Port("terminated", ("B",), "bool", "whether the step ends the task itself, so that nothing follows")
    own = Port("deviation", numbers, "float32", "standard deviation of the next observation, in the task's own units")
    of_all = own._replace(meaning=f"{own.meaning}: of the equal mixture of all members")
    apart = Port("disagreement", ("B",), "float32", "root mean square over targets of the deviation of the members' means, in "
                 "standard deviations of a real step")  # fmt: skip
    outputs = (after, reward, terminated)
    graphs = [Graph("model", "ensemble", plain(together), inputs, (*outputs, of_all, apart))]
    return graphs + [
        Graph(f"member{m}", "member", plain(member(one)), inputs, (*outputs, own) if gaussian else outputs)
        for m, one in enumerate(each)
    ]


def learned_units(spec: EnvironmentSpec, action: Any) -> Any:
    """Actions as the library has them, from -1 to 1, of actions [...] in the task's own units; discrete ones as they are."""
    if not spec.continuous:
        return action
    centre = np.asarray(spec.action_centre or (0.0,) * spec.action_size, np.float32)
    scale = np.asarray(spec.action_scale or (1.0,) * spec.action_size, np.float32)
    shape = (1,) * (action.ndim - 1) + (-1,)
    return (action - centre.reshape(shape)) / scale.reshape(shape)
