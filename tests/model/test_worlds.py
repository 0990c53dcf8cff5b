import dataclasses
import re

import jax
import pytest

from mbrl_jax.algorithms import dyna_q
from mbrl_jax.config import ConfigError


def with_model(config, **settings):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **settings))


def program(config, task):
    key = jax.eval_shape(lambda: jax.random.key(0))
    text = str(jax.make_jaxpr(dyna_q.make_train(config, environment=task).train)(key))
    return re.sub(r"0x[0-9a-f]+", "", text)


def test_a_task_without_known_functions_trains_by_the_program_that_learns_reward_and_termination(tiny, cartpole):
    unknown = cartpole._replace(reward=None, terminated=None)
    learned = program(with_model(tiny, reward="learned", termination="learned"), cartpole)
    assert program(tiny, unknown) == learned
    assert program(tiny, cartpole) == program(with_model(tiny, reward="known", termination="known"), cartpole) != learned
    assert program(tiny, cartpole._replace(reward=None)) == program(with_model(tiny, reward="learned"), cartpole)
    assert program(tiny, cartpole._replace(terminated=None)) == program(with_model(tiny, termination="learned"), cartpole)


@pytest.mark.parametrize(("setting", "function"), [("reward", "reward"), ("termination", "terminated")])
def test_a_known_function_that_the_task_does_not_have_is_refused(tiny, cartpole, setting, function):
    message = (
        f"model.{setting}: 'known' does not fit; CartPole-v1 has no known {setting} function, so it must be 'learned' or 'auto'"
    )
    with pytest.raises(ConfigError, match=message):
        dyna_q.make_train(with_model(tiny, **{setting: "known"}), environment=cartpole._replace(**{function: None}))


def test_a_diagnosis_refuses_a_task_whose_termination_is_not_known(tiny, cartpole):
    train = dyna_q.make_train(tiny, environment=cartpole._replace(terminated=None))
    state, _ = jax.eval_shape(train.init, jax.eval_shape(lambda: jax.random.key(0)))
    with pytest.raises(ConfigError, match="CartPole-v1' does not fit; a diagnosis needs a known termination function"):
        jax.eval_shape(lambda state: train.diagnose(state, tiny), state)
