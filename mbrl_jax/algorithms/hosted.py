"""Algorithms in environments that the host steps: what the devices compute between its steps.

An algorithm's own functions do all of it. The host records transitions, and to ``learn`` they are the environment: a tape whose
steps give them one after another. What is added is how an agent acts while it learns, a step at a time, and how one is judged.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws as draws_
from mbrl_jax.agents.protocol import Agent, Policy
from mbrl_jax.agents.registry import make_agent
from mbrl_jax.algorithms import training
from mbrl_jax.algorithms.training import Stream, Train, stream
from mbrl_jax.config import DMOConfig, ModelFreePGConfig, MPCConfig, RunConfig
from mbrl_jax.environments import Environment, EnvironmentState, Transition, draw_actions, draw_collection
from mbrl_jax.environments.host import blank, load

BLOCK_STEPS = 20  # real steps by one policy, unless something else is said: environment.block_steps
MakeTrain = Callable[[Environment], Train]


class Behaviour(NamedTuple):
    """How an algorithm acts while it learns.

    Attributes:
      params: ``(state, hyper) -> params`` of the policy as it stands.
      draw: ``(hyper, key, time [], T) -> draws [T, ...]``, the random numbers of the steps from ``time`` on.
      begin: ``params -> memory``, where an episode begins.
      act: ``(params, memory, observation [D], draws) -> (memory, action, told)``; ``told`` is what ``learn`` asks of it. Where a
        seed has several simulators, all of them act at once: observations [N, D].
      stream: what the draws' key is for; that of a round gives those that ``learn`` draws at the same time.

    """

    params: Callable[[Any, Any], Any]
    draw: Callable[[Any, Array, Array, int], Any]
    begin: Callable[[Any], Any]
    act: Callable[[Any, Any, Array, Any], tuple[Any, Array, Any]]
    stream: Stream = Stream.BEHAVIOUR


class AgentDraws(NamedTuple):
    """What an agent's steps [T] consume."""

    exploration: Array  # [T] share of random actions
    explore: Array  # [T] uniform
    action: Array  # [T, ...] of the uniform random policy


def agent_behaviour(config: Any, task: Environment) -> Behaviour:
    """An agent that acts by its own policy, with the exploration that the settings have, if they have one."""

    def agent_of(hyper: Any) -> Agent:
        return make_agent(hyper.agent, task.spec)

    def params(state: Any, hyper: Any) -> Any:
        return hyper.agent, agent_of(hyper).acting(state.agent)

    def draw(hyper: Any, key: Array, time: Array, steps: int) -> AgentDraws:
        key_explore, key_action = jax.random.split(key)
        share = training.progress(time + jnp.arange(steps, dtype=jnp.int32), config.steps)
        explores = hasattr(hyper, "exploration")
        return AgentDraws(
            exploration=training.exploration_rate(hyper.exploration, share) if explores else jnp.zeros_like(share),
            explore=draws_.uniform(key_explore, (steps,)),
            action=draw_actions(task.spec, key_action, (steps,)),
        )

    def act(params: Any, memory: tuple[()], observation: Array, drawn: AgentDraws) -> tuple[tuple[()], Array, tuple[()]]:
        numbers, policy = params
        agent = make_agent(numbers, task.spec)
        return memory, agent.act(policy, observation, drawn.exploration, drawn.explore, drawn.action), ()

    return Behaviour(params, draw, lambda params: (), act)


def beside(config: RunConfig) -> tuple[int, ...]:
    """The leading axes of what a seed's simulators do: () of one, or (N,)."""
    return (config.copies,) if isinstance(config, DMOConfig) else ()


def block_of(config: RunConfig) -> int:
    """Real steps that each simulator makes in a row by one policy, as ``environment.block_steps`` says."""
    if config.environment.block_steps is not None:
        return config.environment.block_steps
    if isinstance(config, DMOConfig):
        return config.window_steps
    if isinstance(config, ModelFreePGConfig):
        return config.segment_steps
    if isinstance(config, MPCConfig) and config.planning.terminal != "value":
        return config.round_steps
    return max(size for size in range(1, BLOCK_STEPS + 1) if config.round_steps % size == 0)


def random_actions(task: Environment, key: Array, *, transitions: int) -> Array:
    """[N, ...] the actions of the random transitions of a seed with this key."""
    return draw_collection(task, stream(key, Stream.COLLECTION), transitions).actions


def init(make: MakeTrain, task: Environment, key: Array, hyper: Any, collected: Transition | None) -> tuple[Any, Array]:
    """The state that ``init`` of an algorithm gives where its random transitions are ``collected`` [N]."""

    def draw_resets(key: Array, shape: tuple[int, ...]) -> EnvironmentState:
        return blank(task.spec, shape) if shape or collected is None else load(collected)

    state, returns = make(task._replace(draw_resets=draw_resets)).init(key, hyper)
    return state._replace(episode=blank(task.spec, beside(hyper))), returns


def prepare(behaviour: Behaviour, steps: int, state: Any, hyper: Any) -> tuple[Any, Any]:
    """The policy that acts in the next ``steps`` steps, and its random numbers."""
    key = stream(state.key, behaviour.stream, state.time)
    return behaviour.params(state, hyper), behaviour.draw(hyper, key, state.time, steps)


def act(
    behaviour: Behaviour, params: Any, memory: Any, observation: Array, begins: Array, drawn: Any, place: Array
) -> tuple[Any, Array, Any]:
    """The action of step ``place`` [] of those that ``drawn`` [T] is for; where ``begins`` [] holds an episode does.

    Of several simulators there are actions [N, ...] and flags [N]; what acts for them remembers nothing.
    """
    memory = jax.tree.map(lambda new, old: jnp.where(begins, new, old), behaviour.begin(params), memory)
    return behaviour.act(params, memory, observation, jax.tree.map(lambda leaf: leaf[place], drawn))


def learn(
    train: Train, steps: int, state: Any, hyper: Any, recorded: Transition | None, told: Any, alive: Array
) -> tuple[Any, Any]:
    """Learn for ``steps`` steps, as many as were recorded [T] or [N, T] where the agent acts; a seed whose simulator has failed
    rests.
    """
    episode = state.episode
    if recorded is None:
        begin = state
    else:
        loaded = load if recorded.reward.ndim == 1 else jax.vmap(load)
        begin = state._replace(episode=loaded(recorded, told))
    after, logs = train.learn(begin, hyper, steps)
    return rest(state, after._replace(episode=episode), alive), logs


def close(train: Train, state: Any, hyper: Any, logs: Any, alive: Array) -> tuple[Any, Any]:
    """End a round, except for the curve's return, which the host plays for."""
    after, metrics = train.close(state, hyper, logs)
    return rest(state, after, alive), metrics._replace(frozen=metrics.frozen | ~alive)


def rest(before: Any, after: Any, alive: Array) -> Any:
    """The state after a step where the seed's simulator is ``alive`` [], else what it learned before it failed.

    Replays and counters go on, for they share their cursor with the other seeds.
    """
    kept = {name: getattr(before, name) for name in after._fields if name in ("model", "lanes", "agent", "plan", "chosen")}
    chosen = {
        name: jax.tree.map(lambda new, old: jnp.where(alive, new, old), getattr(after, name), old) for name, old in kept.items()
    }
    return after._replace(**chosen)


def judge(policy: Policy, params: Any, memory: Any, observation: Array, begins: Array, key: Array) -> tuple[Any, Array]:
    """The action of the policy that is judged; where ``begins`` [] holds an episode does, with random numbers of this ``key``."""
    fresh = policy.begin(params, key, 1)
    memory = jax.tree.map(lambda new, old: jnp.where(begins, new, old), fresh, memory)
    memory, actions = policy.act(params, memory, observation[None])
    return memory, actions[0]
