"""Model-predictive control, run."""

import functools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms import worlds
from ensembles import rows_of

from mbrl_jax import trees
from mbrl_jax.agents.cloning import CloningConfig
from mbrl_jax.agents.q_learning import make_q_learner
from mbrl_jax.agents.sac import LOG_STD_BOUNDS, SAC, Acting, SACConfig
from mbrl_jax.algorithms import mpc, phases
from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import (
    ConfigError,
    EnvironmentConfig,
    EvaluationConfig,
    ModelConfig,
    MPCConfig,
    PlanningConfig,
    QLearningConfig,
    check,
)
from mbrl_jax.environments import from_pool, make_environment
from mbrl_jax.evaluation import play_with_memory
from mbrl_jax.replay import make_replay
from mbrl_jax.runs import results, runner
from mbrl_jax.serving import playing

CONFIG = MPCConfig(
    environment=EnvironmentConfig(time_limit=30),
    random_transitions=60,
    steps=20,
    round_steps=10,
    metric_steps=5,
    model=ModelConfig(members=2, hidden=(8, 8), batch_size=16, epochs=2, refit_batches=2),
    planning=PlanningConfig(candidates=6, horizon=3, particles=2, iterations=2, elites=2),
    agent=QLearningConfig(hidden=(8,), batch_size=8),
    evaluation=EvaluationConfig(episodes=2, curve_episodes=2),
)
VALUED = replace(CONFIG, planning=replace(CONFIG.planning, terminal="value", method="mppi"))
SWINGUP = replace(
    VALUED,
    environment=EnvironmentConfig(name="control/pendulum-swingup", time_limit=30),
    agent=SACConfig(hidden=(8,), batch_size=8, updates_per_step=2, layer_norm=True),
)
PROPOSING = replace(SWINGUP, planning=replace(SWINGUP.planning, proposals=4))
EXPLORING = replace(CONFIG, planning=replace(CONFIG.planning, bonus="disagreement", bonus_weight=100.0))
PENDULUM = replace(CONFIG, environment=EnvironmentConfig(name="Pendulum-v1", time_limit=30))


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), **tolerance), a, b)


@functools.cache
def trained(config):
    """A run of two seeds, by the host in chunks."""
    return runner.run(config, 2)


def test_a_run_in_chunks_is_the_whole_run():
    whole, run = jax.jit(jax.vmap(mpc.make_train(VALUED).train))(seed_keys(0, 2)), trained(VALUED).result
    close(run.metrics, whole.metrics, rtol=1e-3, atol=1e-4)
    close(run.outcome.last, whole.outcome.last, rtol=1e-3, atol=1e-4)
    close(run.outcome.returns_last, whole.outcome.returns_last, rtol=1e-5)
    assert whole.outcome.returns_last.shape == (2, 2)
    assert whole.outcome.updates.tolist() == [VALUED.updates] * 2


def test_every_step_is_planned_in_the_model_and_is_one_more_real_transition():
    algorithm = mpc.make_train(CONFIG)
    key = seed_keys(0, 1)[0]
    state, _ = jax.jit(algorithm.init)(key)
    state, _ = jax.jit(algorithm.fit)(state, CONFIG)
    after, metrics = jax.jit(algorithm.advance)(state, CONFIG)
    task = make_environment(CONFIG.environment)
    planner = mpc.planner_of(CONFIG, task)
    members = planner.world.acting(state.model)
    draws = mpc.draw(CONFIG, task, planner, mpc.stream(key, mpc.Stream.ROUND, 0), CONFIG.round_steps)
    first = jax.tree.map(lambda leaf: leaf[0], draws.plan)
    _, action, log = jax.jit(planner.plan)(members, state.plan, state.episode.observation, first)
    rows = rows_of(make_replay(task.spec, CONFIG.real_transitions), after.real)
    row = jax.tree.map(lambda leaf: leaf[CONFIG.random_transitions], rows)
    assert int(row.action) == int(action)
    np.testing.assert_allclose(row.observation, state.episode.observation)
    assert metrics.plan.value.shape == (2,)
    assert np.isfinite(float(log.value))


@pytest.mark.parametrize("numbers", [2, 3, 6])
def test_a_run_with_several_continuous_actions_plans_each_of_them(numbers):
    task = worlds.points(numbers)
    algorithm = mpc.make_train(CONFIG, environment=task)

    def run(key):
        state, _ = algorithm.fit(algorithm.init(key)[0], CONFIG)
        state, metrics = algorithm.advance(state, CONFIG)
        return state, metrics, algorithm.finish(state, CONFIG)

    state, metrics, outcome = jax.jit(run)(seed_keys(0, 1)[0])
    rows = rows_of(make_replay(task.spec, CONFIG.real_transitions), state.real)
    rows = jax.tree.map(lambda leaf: leaf[CONFIG.random_transitions :], rows)
    assert rows.action.shape == (CONFIG.round_steps, numbers)
    assert (np.abs(np.asarray(rows.action)) <= 1).all()
    assert (np.asarray(rows.action).std(axis=0) > 0.01).all()
    np.testing.assert_allclose(rows.next_observation, task.dynamics(rows.observation, rows.action), rtol=1e-5, atol=1e-6)
    assert np.isfinite(np.asarray(metrics.plan.value)).all()
    assert (np.asarray(outcome.returns_last) < 0).all()


@pytest.mark.parametrize("config", [VALUED, EXPLORING], ids=["with a value", "with a bonus"])
def test_a_round_is_its_steps_one_after_another(config):
    config = replace(
        config,
        environment=EnvironmentConfig(time_limit=9),
        random_transitions=58,
        planning=replace(config.planning, warm_start=0.9),
    )
    algorithm, task = mpc.make_train(config), make_environment(config.environment)
    key = seed_keys(0, 1)[0]
    before, _ = jax.jit(algorithm.fit)(jax.jit(algorithm.init)(key)[0], config)
    after, metrics = jax.jit(algorithm.advance)(before, config)
    planner, learner = mpc.planner_of(config, task), make_q_learner(config.agent, task.spec)
    members = planner.world.acting(before.model)
    draws = mpc.draw(config, task, planner, mpc.stream(key, mpc.Stream.ROUND, 0), config.round_steps)

    def value_of(target):
        return None if config.planning.terminal == "none" else lambda s: jnp.max(learner.values(target, s), axis=-1)

    plan_once = jax.jit(lambda plan, s, drawn, target: planner.plan(members, plan, s, drawn, value_of(target), explore=True))
    step_once, update_once = (
        jax.jit(task.step),
        jax.jit(lambda agent, batch, progress: learner.update(agent, batch, progress=progress)[0]),
    )
    plan, episode, agent, ends, values = planner.init(), before.episode, before.agent, [], []
    rows, _ = make_replay(task.spec, config.real_transitions).contents(after.real)
    for t in range(config.round_steps):
        now = jax.tree.map(lambda leaf, t=t: leaf[t], draws._replace(pool=None))
        plan, action, log = plan_once(plan, episode.observation, now.plan, None if agent is None else agent.target)
        episode, transition = step_once(episode, action, from_pool(draws.pool, now.reset))
        place, values = config.random_transitions + t, [*values, float(log.value)]
        assert int(rows.action[place]) == int(action)
        np.testing.assert_allclose(rows.observation[place], transition.observation, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(rows.next_observation[place], transition.next_observation, rtol=1e-5, atol=1e-6)
        assert int(rows.depth[place]) == int(transition.elapsed)
        ends.append(bool(transition.terminated | transition.truncated))
        plan = planner.init() if ends[-1] else plan
        if agent is not None:
            for bits in now.real:
                batch = jax.tree.map(lambda leaf, at=bits % (place + 1): leaf[at], rows)
                agent = update_once(agent, batch, t / (config.steps - 1))
    assert 0 < sum(ends) < len(ends)
    close(metrics.plan.value, np.mean(np.reshape(values, (-1, config.metric_steps)), axis=1), rtol=1e-4, atol=1e-5)
    close(after.plan, plan, rtol=1e-4, atol=1e-5)
    close(after.agent, agent, rtol=1e-3, atol=1e-5)


def test_after_a_step_that_ends_an_episode_the_plan_is_the_planners_first():
    task, config = worlds.points(1), replace(CONFIG, round_steps=5)  # whose episodes have ten steps
    algorithm = mpc.make_train(config, environment=task)
    state, _ = jax.jit(lambda key: algorithm.fit(algorithm.init(key)[0], config))(seed_keys(0, 1)[0])
    first, advance = mpc.planner_of(config, task).init(), jax.jit(algorithm.advance)
    for steps in (5, 10):
        state, _ = advance(state, config)
        same = [np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state.plan), jax.tree.leaves(first), strict=True)]
        assert int(state.episode.inner.time) == steps % 10
        assert same == [steps == 10, True]  # the deviations are the planner's first ones at every step


def test_the_curve_is_of_the_planner_in_the_world_as_it_has_just_been_refitted():
    algorithm, task = mpc.make_train(PENDULUM), make_environment(PENDULUM.environment)
    key = seed_keys(0, 1)[0]
    before, _ = jax.jit(algorithm.fit)(jax.jit(algorithm.init)(key)[0], PENDULUM)
    after, metrics = jax.jit(algorithm.advance)(before, PENDULUM)
    starts = task.draw_resets(mpc.stream(key, mpc.Stream.CURVE, after.time), (PENDULUM.evaluation.curve_episodes,))
    planner = mpc.planner_of(PENDULUM, task)

    @jax.jit
    def played(model):
        memory = planner.begin(mpc.stream(key, mpc.Stream.PLANNING, after.time), PENDULUM.evaluation.curve_episodes)
        act = partial(planner.act, planner.world.acting(model))
        return jnp.mean(play_with_memory(task, act, memory, starts))

    assert float(metrics.curve_return) == pytest.approx(float(played(after.model)), rel=1e-4)
    assert float(metrics.curve_return) != pytest.approx(float(played(before.model)), rel=1e-3)


def value_by(config, task, learner):
    """What the agent says of states, computed from its networks."""
    if isinstance(config.agent, SACConfig):
        sac = SAC(config.agent, task.spec)
        acting = Acting(learner.actor, None)
        return lambda s: sac.values(learner.targets, None, s, jnp.tanh(sac.outputs(acting, s)[..., :1])).min(0)
    q_learner = make_q_learner(config.agent, task.spec)
    return None if learner is None else lambda s: jnp.max(q_learner.values(learner.target, s), axis=-1)


def proposals_by(config, task, learner):
    """What the agent does in the learned world, computed from its networks: greedily in a member's first rollout alone."""
    if not config.planning.proposals:
        return None
    sac = SAC(config.agent, task.spec)

    def act(s, random):
        mean, deviation = jnp.split(sac.outputs(Acting(learner.actor, None), s), 2, axis=-1)
        noise = jax.scipy.special.ndtri((random + 1) / 2) * jnp.array([0.0, 1.0, 0.0, 1.0])[:, None]
        low, high = LOG_STD_BOUNDS
        return jnp.tanh(mean + jnp.exp(low + (high - low) * jax.nn.sigmoid(deviation)) * noise)

    return act


@pytest.mark.parametrize(
    "config",
    [VALUED, CONFIG, SWINGUP, PROPOSING],
    ids=["with a value", "without one", "with soft values", "with an actor's proposals"],
)
def test_its_policy_is_the_planner_as_it_is_saved_and_goes_on_from_its_plan_within_an_episode(config):
    config = replace(config, planning=replace(config.planning, warm_start=0.9))
    algorithm, task, key = mpc.make_train(config), make_environment(config.environment), jax.random.key(4)
    state, _ = jax.jit(algorithm.init)(seed_keys(0, 1)[0])
    params, _ = algorithm.policies(state)
    policy, planner = algorithm_of(config).policy(config, task), mpc.planner_of(config, task)
    members = planner.world.acting(state.model)
    value, proposals = (by(config, task, state.agent) for by in (value_by, proposals_by))
    act, expected_act = jax.jit(policy.act), jax.jit(lambda *given: planner.act(members, *given, value, proposals))
    memory, expected = policy.begin(params, key, 3), planner.begin(key, 3)
    centre = np.asarray(memory[0].centre)
    for number in range(3):
        observation = task.draw_resets(jax.random.key(number), (3,)).observation
        memory, actions = act(params, memory, observation)
        expected, wanted = expected_act(expected, observation)
        close(actions, wanted, rtol=1e-4, atol=1e-5)
        close(memory[0], expected[0], rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(memory[0].centre) - centre).max() > 0.05
    close(policy.begin(params, key, 3)[0].centre, centre, rtol=0)  # the next episode begins afresh


def test_the_run_acts_by_the_bonus_and_its_policy_without():
    task = make_environment(CONFIG.environment)
    model = mpc.planner_of(CONFIG, task).world.acting(mpc.planner_of(CONFIG, task).world.init(jax.random.key(0)))
    observation, found = 0.1 * jnp.ones(4), []
    for config in (CONFIG, EXPLORING):
        planner, behaviour, policy = mpc.planner_of(config, task), mpc.behaviour_of(config, task), mpc.policy_of(config, task)
        drawn, memory = planner.draw(jax.random.key(1), ()), planner.begin(jax.random.key(2), 1)

        @jax.jit
        def both(config, model, behaviour=behaviour, policy=policy, drawn=drawn, memory=memory):
            log = behaviour.act((config, model, None), behaviour.begin((config, model, None)), observation, drawn)[2]
            return log.value, policy.act(mpc.policy_params(CONFIG, task, model, None), memory, observation[None])[0][0].centre

        found.append(both(config, model))
    (value, plan), (explored, judged) = found
    assert float(explored) > float(value) + 1
    np.testing.assert_array_equal(plan, judged)


def test_a_run_whose_actor_proposes_acts_by_its_proposals_and_saves_the_actor():
    task = make_environment(PROPOSING.environment)
    agent, planner = mpc.valuing_agent(PROPOSING, task), mpc.planner_of(PROPOSING, task)
    behaviour, observation = mpc.behaviour_of(PROPOSING, task), task.draw_resets(jax.random.key(0), ()).observation

    @jax.jit
    def both(key):
        state, _ = mpc.make_train(PROPOSING).init(key)
        params = behaviour.params(state, PROPOSING)
        drawn = planner.draw(key, ())
        by_run = behaviour.act(params, behaviour.begin(params), observation, drawn)[1]
        bold = state._replace(agent=state.agent._replace(actor=jax.tree.map(lambda leaf: leaf + 3, state.agent.actor)))
        params = behaviour.params(bold, PROPOSING)
        by_bold = behaviour.act(params, behaviour.begin(params), observation, drawn)[1]
        return by_run, by_bold, mpc.policy_params(PROPOSING, task, planner.world.acting(state.model), state.agent)["actor"]

    by_run, by_bold, saved = both(jax.random.key(3))
    assert float(by_bold[0]) > float(by_run[0]) + 0.01
    fresh = agent.acting(agent.init(mpc.stream(jax.random.key(3), mpc.Stream.AGENT)))
    close(jax.tree.leaves(saved), jax.tree.leaves(fresh), rtol=1e-5)
    assert PROPOSING.imagined_per_step == SWINGUP.imagined_per_step + 4 * PROPOSING.planning.horizon


def test_the_critics_that_value_a_plans_end_learn_at_every_real_step_and_are_saved_with_the_model():
    outcome, metrics, updates = trained(SWINGUP).result.outcome, trained(SWINGUP).result.metrics, 2 * SWINGUP.steps
    assert np.asarray(outcome.updates).tolist() == [updates, updates]
    assert np.isfinite(jax.tree.leaves(metrics.update._asdict())).all()
    assert (np.asarray(metrics.plan.spread) > 0).all()
    assert set(outcome.last["critic"]) == {"acting", "critics"}


@pytest.mark.parametrize("config", [VALUED, CONFIG], ids=["with a value", "without one"])
def test_it_is_trained_written_read_and_played_as_any_other_algorithm(config, tmp_path):
    run = trained(config)
    summary = results.write(run, tmp_path)
    assert summary["imagined_transitions"] == config.steps * 6 * 2 * 3 * 2
    assert summary["iqm"]["chosen"] is None
    again = results.read(tmp_path)
    close(again.result.metrics, run.result.metrics, rtol=1e-6)
    close(trees.flatten(again.result.outcome.last), trees.flatten(run.result.outcome.last), rtol=0)
    assert (again.result.metrics.update is None) == (config is CONFIG)
    policy = playing.load_policy(tmp_path)
    actions = policy(jnp.zeros((3, 4)), seed=1)
    assert actions.shape == (3,)
    assert set(np.asarray(actions).tolist()) <= {0, 1}
    assert playing.play_policies(config, policy.params, 2, "gymnax", 0).shape == (2, 2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(CONFIG, protocol="batch"), "protocol: 'batch' does not fit; a planner acts"),
        (replace(CONFIG, planning=replace(CONFIG.planning, particles=3)), "planning.particles: 3 does not fit; .* multiple of 2"),
        (
            replace(CONFIG, planning=replace(CONFIG.planning, elites=7)),
            r"elites: 7 .* at most planning.candidates \(6\)",
        ),
        (replace(CONFIG, planning=replace(CONFIG.planning, temperature=0.0)), "planning.temperature: 0.0 is out of range"),
        (
            replace(SWINGUP, agent=replace(SWINGUP.agent, target="steve")),
            "agent.target: 'steve' does not fit; the agent of a planner",
        ),
        (replace(CONFIG, agent=replace(CONFIG.agent, target="quantile")), "agent.target: 'quantile' does not fit"),
        (
            replace(CONFIG, planning=replace(CONFIG.planning, bonus="disagreement", propagation="ts1")),
            "planning.bonus: 'disagreement' does not fit; it compares members",
        ),
        (
            replace(CONFIG, planning=replace(CONFIG.planning, bonus="disagreement"), model=replace(CONFIG.model, members=1)),
            "planning.bonus: 'disagreement' does not fit; it compares members, of which there must be several",
        ),
        (
            replace(CONFIG, planning=replace(CONFIG.planning, proposals=2)),
            "planning.proposals: 2 .* planning.terminal must be 'value'",
        ),
        (replace(VALUED, planning=replace(VALUED.planning, proposals=3)), "planning.proposals: 3 .* multiple of the 2"),
        (replace(VALUED, planning=replace(VALUED.planning, proposals=6)), r"proposals: 6 .* less than planning.candidates \(6\)"),
        (
            replace(VALUED, planning=replace(VALUED.planning, proposals=2, method="enumeration")),
            "planning.proposals: 2 .* with method 'enumeration' all sequences are tried",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        check(config)
    with pytest.raises(ConfigError, match=message):
        mpc.make_train(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(PENDULUM, planning=replace(CONFIG.planning, method="enumeration")), "actions of Pendulum-v1 are continuous"),
        (replace(PENDULUM, planning=VALUED.planning), "environment.name: 'Pendulum-v1' does not fit; Q-learning needs"),
        (
            replace(CONFIG, planning=replace(CONFIG.planning, method="enumeration", horizon=13)),
            "planning.horizon: 13 does not fit; there are 8,192 sequences",
        ),
    ],
)
def test_planners_that_do_not_suit_the_task_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        mpc.make_train(config)


def test_a_world_whose_features_do_not_tell_where_a_rollout_stands_cannot_be_planned_in(monkeypatch):
    config = MPCConfig(protocol="interactive", random_transitions=60, steps=2, round_steps=2, metric_steps=2)
    real_world = phases.world_of
    monkeypatch.setattr(phases, "world_of", lambda *arguments: real_world(*arguments)._replace(belief=None))
    train = mpc.make_train(config)
    state, _ = jax.eval_shape(train.init, jax.random.key(0))
    with pytest.raises(ConfigError, match="does not fit a planner, which needs features that tell where a rollout stands"):
        jax.eval_shape(lambda state: train.advance(state, config), state)


def test_an_agent_that_cannot_value_a_state_is_refused_where_plans_end_with_a_value():
    with pytest.raises(ConfigError, match="agent.kind: 'cloning' does not fit; planning.terminal: value needs one that values"):
        mpc.make_train(replace(SWINGUP, agent=CloningConfig()))
