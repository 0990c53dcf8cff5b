from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.agents.protocol import Policy
from mbrl_jax.algorithms import hosted
from mbrl_jax.algorithms.hosted import AgentDraws, Behaviour, agent_behaviour
from mbrl_jax.config import ExplorationConfig, ImaginedPGConfig, ModelFreeQConfig, PolicyGradientConfig, QLearningConfig
from mbrl_jax.environments import EnvironmentSpec, Transition
from mbrl_jax.environments.host import blank, load, step, told_at

COUNTING = Behaviour(
    params=lambda state, hyper: state,
    draw=lambda hyper, key, time, steps: jnp.arange(steps) + time,
    begin=lambda params: params,
    act=lambda params, memory, observation, drawn: (memory + 1, drawn, observation),
)


def test_acting_takes_the_numbers_of_its_step_and_begins_afresh_where_an_episode_does():
    drawn = jnp.array([10, 11, 12])
    memory, action, told = hosted.act(COUNTING, 100, jnp.int32(7), jnp.ones(2), jnp.asarray(False), drawn, jnp.int32(1))
    assert (int(memory), int(action), told.tolist()) == (8, 11, [1.0, 1.0])
    memory, action, _ = hosted.act(COUNTING, 100, jnp.int32(7), jnp.ones(2), jnp.asarray(True), drawn, jnp.int32(2))
    assert (int(memory), int(action)) == (101, 12)


def test_a_policy_that_is_judged_begins_afresh_where_an_episode_does():
    policy = Policy(lambda params, key, episodes: jnp.zeros(episodes), lambda params, memory, s: (memory + 1, s[:, 0] + memory))
    seen, key = jnp.array([3.0, 0.0]), jax.random.key(0)
    memory, action = hosted.judge(policy, None, jnp.array([5.0]), seen, jnp.asarray(False), key)
    assert (memory.tolist(), float(action)) == ([6.0], 8.0)
    memory, action = hosted.judge(policy, None, jnp.array([5.0]), seen, jnp.asarray(True), key)
    assert (memory.tolist(), float(action)) == ([1.0], 3.0)


def rows(count):
    at = np.arange(count, dtype=np.float32)
    flag = np.arange(count) % 2 == 1
    return Transition(
        at[:, None], np.arange(count, dtype=np.int32), at, at[:, None] + 0.5, flag, ~flag, np.arange(count, dtype=np.int32)
    )


def test_a_tape_gives_what_was_recorded_in_order_whatever_the_action():
    state = load(jax.tree.map(jnp.asarray, rows(3)), told=jnp.array([7, 8, 9]))
    fresh = blank(EnvironmentSpec("tape", 1, 2, 5, (1.0,)), ())
    for number in range(3):
        assert state.observation.tolist() == [number]
        assert int(told_at(state)) == 7 + number
        state, transition = step(state, jnp.int32(1 - number), fresh)
        for found, recorded in zip(transition, rows(3), strict=True):
            assert found.tolist() == recorded[number].tolist()


class State(NamedTuple):
    time: Any
    real: Any
    agent: Any
    chosen: Any = None


def test_a_seed_that_rests_keeps_what_it_has_learned_while_replays_and_counters_go_on():
    before, after = State(jnp.int32(1), jnp.zeros(2), {"w": jnp.zeros(2)}), State(jnp.int32(2), jnp.ones(2), {"w": jnp.ones(2)})
    rested = hosted.rest(before, after, jnp.asarray(False))
    assert (int(rested.time), rested.real.tolist(), rested.agent["w"].tolist()) == (2, [1.0, 1.0], [0.0, 0.0])
    assert hosted.rest(before, after, jnp.asarray(True)).agent["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("config", "exploration"),
    [
        (ModelFreeQConfig(steps=11, agent=QLearningConfig(hidden=(4,)), exploration=ExplorationConfig(start=1.0, end=0.0)), True),
        (ImaginedPGConfig(steps=11, agent=PolicyGradientConfig(hidden=(4,))), False),
    ],
)
def test_an_agent_explores_on_the_host_as_it_does_on_the_devices(cartpole, config, exploration):
    behaviour = agent_behaviour(config, cartpole)
    drawn = behaviour.draw(config, jax.random.key(0), jnp.int32(5), 4)
    expected = [0.5, 0.4, 0.3, 0.2] if exploration else [0.0] * 4
    np.testing.assert_allclose(drawn.exploration, expected, atol=1e-6)
    assert drawn.action.shape == drawn.explore.shape == (4,)
    assert len(np.unique(drawn.explore)) == 4
    if exploration:
        agent = hosted.make_agent(config.agent, cartpole.spec)
        params = config.agent, agent.acting(agent.init(jax.random.key(1)))
        always = AgentDraws(jnp.asarray(1.0), jnp.asarray(0.5), jnp.int32(1))
        never = always._replace(exploration=jnp.asarray(0.0))
        greedy = int(agent.mode(params[1], jnp.ones(4)))
        assert int(behaviour.act(params, (), jnp.ones(4), always)[1]) == 1
        assert int(behaviour.act(params, (), jnp.ones(4), never._replace(action=jnp.int32(1 - greedy)))[1]) == greedy
