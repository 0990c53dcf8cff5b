"""What an algorithm asks of an engine, and what it makes of the answers: an engine of marked answers is put into Dyna-Q."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.agents.q_learning import UpdateLog
from mbrl_jax.algorithms import dyna_q
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import ConfigError
from mbrl_jax.engine import Engine, Loop
from mbrl_jax.imagination.horizon import controller_of
from mbrl_jax.imagination.lanes import DEPTH_EDGES, LaneLog
from mbrl_jax.model.protocol import FitLog

SEEDS = 2
RATE, EPOCHS, MEMBERS = 7.0, 2, 2


def marked(config, task, seen):
    """An engine whose answers tell what they were asked; ``seen`` gets the shapes."""

    def advance(hyper, model, loop, draws):
        seen["draws"] = jax.tree.map(jnp.shape, draws)
        steps = draws.imagined.shape[0]
        scale = hyper.agent.learning_rate
        params = jax.tree.map(lambda leaf: leaf + scale * steps, loop.agent.online)
        agent = loop.agent._replace(online=params, target=params, updates=loop.agent.updates + steps)
        imagined = loop.imagined._replace(written=loop.imagined.written + steps * 8)
        number = jnp.arange(steps, dtype=jnp.float32)
        lanes = LaneLog(number, *[number] * 4, jnp.zeros((steps, len(DEPTH_EDGES) + 1)))
        return loop._replace(time=loop.time + steps, imagined=imagined, agent=agent), (UpdateLog(number, number), lanes)

    def score(model, policy, start, draws):
        seen["score"] = (start.shape, draws.noise.shape)
        return jnp.arange(start.shape[0], dtype=jnp.float32) + policy["params"]["Dense_0"]["bias"][0]

    def play(policy, starts):
        return jnp.full(starts.observation.shape[0], 3.0) + policy["params"]["Dense_0"]["bias"][0]

    def fit(hyper, state, real, key):
        seen["fit"] = (real.rows.shape, key.shape)
        log = jnp.full((EPOCHS, MEMBERS), hyper.model.learning_rate)
        return state._replace(elites=state.elites[::-1]), FitLog(log, log, log)

    return Engine("marked", advance, score, play, fit)


@pytest.fixture(scope="module")
def asked(tiny):
    seen: dict = {}
    train = dyna_q.make_train(tiny, engine=lambda config, task: marked(config, task, seen)).train
    return jax.jit(jax.vmap(train))(seed_keys(0, SEEDS)), seen


def test_each_part_of_the_engine_stands_for_the_plain_one(tiny, asked):
    result, _ = asked
    steps, rate = tiny.round_steps, tiny.agent.learning_rate
    bias = np.asarray(result.outcome.last["params"]["Dense_0"]["bias"])[:, 0]
    np.testing.assert_allclose(bias, rate * tiny.steps, rtol=1e-5)  # fresh biases are 0, and advance adds the rate a step
    after = rate * steps * np.arange(1, 3)[None]
    np.testing.assert_allclose(result.metrics.curve_return, np.broadcast_to(3.0 + after, (SEEDS, 2)), rtol=1e-5)
    np.testing.assert_allclose(result.metrics.score, np.broadcast_to(1.5 + after, (SEEDS, 2)), rtol=1e-5)
    np.testing.assert_array_equal(result.outcome.updates, tiny.steps)
    np.testing.assert_allclose(result.outcome.returns_last, np.broadcast_to(3.0 + bias[:, None], (SEEDS, 3)), rtol=1e-6)
    np.testing.assert_allclose(result.fit.loss, np.full((SEEDS, EPOCHS, MEMBERS), tiny.model.learning_rate), rtol=1e-6)
    np.testing.assert_allclose(result.metrics.update.loss, np.broadcast_to([[2.0, 7.0]], (SEEDS, 2, 2)))  # means of five steps


def test_the_engine_is_given_the_numbers_that_the_plain_path_draws(tiny, asked):
    _, seen = asked
    steps, lanes = tiny.round_steps, (tiny.imagination.steps, tiny.imagination.lanes)
    assert seen["draws"].lanes.root == (steps, *lanes)
    assert seen["draws"].lanes.model.noise == (steps, *lanes, 4)
    assert seen["draws"].imagined == (steps, 1, tiny.agent.batch_size)
    assert seen["score"] == ((tiny.selection.episodes, 4), (tiny.selection.steps, tiny.selection.episodes, 4))
    assert seen["fit"] == ((tiny.random_transitions, 13), ())


def test_what_is_chosen_is_what_the_engine_scored_best(asked):
    result, _ = asked
    np.testing.assert_array_equal(result.metrics.is_chosen, np.ones((SEEDS, 2), bool))
    np.testing.assert_array_equal(result.metrics.chosen_score, result.metrics.score)


def test_an_engine_may_leave_parts_to_the_plain_path(tiny):
    def only_play(config, task):
        return Engine("only play", play=lambda policy, starts: jnp.full(starts.observation.shape[0], 5.0))

    algorithm = dyna_q.make_train(tiny, engine=only_play)
    state, _ = jax.eval_shape(algorithm.init, jax.random.key(0))
    plain = jax.make_jaxpr(dyna_q.make_train(tiny).advance)(state, tiny)
    ours = jax.make_jaxpr(algorithm.advance)(state, tiny)
    assert str(ours) != str(plain)
    assert ours.out_avals == plain.out_avals
    names = [equation.primitive.name for equation in ours.eqns]
    assert "scan" in names


def test_a_refusal_of_the_engine_is_made_before_anything_is_traced(tiny):
    def refuse(config, task):
        assert (config, task.spec.name) == (tiny, "CartPole-v1")
        raise ConfigError("agent.hidden: (8, 8) does not fit")

    with pytest.raises(ConfigError, match=r"agent\.hidden: \(8, 8\) does not fit"):
        dyna_q.make_train(tiny, engine=refuse)


def test_an_engine_and_a_controller_of_ones_own_are_refused(tiny):
    controller = controller_of(tiny.imagination, None)
    with pytest.raises(ConfigError, match="engine: one does not fit a controller of one's own"):
        dyna_q.make_train(tiny, controller=controller, engine=lambda config, task: Engine("none"))


def test_the_loop_has_the_fields_of_the_state():
    assert set(Loop._fields) < set(dyna_q.State._fields)
