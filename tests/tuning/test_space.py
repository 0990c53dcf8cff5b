import pytest

from mbrl_jax.config import ConfigError, DynaQConfig, check, flat_settings, with_settings
from mbrl_jax.tuning import space as spaces
from mbrl_jax.tuning.space import Choice, Range

CONTENT = {
    "agent.learning_rate": {"float": ["1e-4", 1e-2], "log": True},  # YAML 1.1 reads 1e-4 as text
    "imagination.cap": {"int": [1, 9], "step": 2},
    "imagination.epsilon": {"float": [0, 0.3], "step": 0.1},
    "agent.hidden": {"choice": [[64, 64], [32]]},
    "agent.target": {"choice": ["max", "double"]},
    "agent.gradient_clip": {"choice": [None, 10.0]},
}


def test_a_space_has_the_types_of_its_settings_and_is_written_as_it_was_read():
    read = spaces.parse(CONTENT, DynaQConfig())
    assert read == {
        "agent.learning_rate": Range("float", 1e-4, 1e-2, log=True),
        "imagination.cap": Range("int", 1, 9, step=2),
        "imagination.epsilon": Range("float", 0.0, 0.3, step=0.1),
        "agent.hidden": Choice(([64, 64], [32])),
        "agent.target": Choice(("max", "double")),
        "agent.gradient_clip": Choice((None, 10.0)),
    }
    assert type(read["imagination.epsilon"].low) is float
    assert spaces.parse(spaces.as_json(read), DynaQConfig()) == read
    assert spaces.traced(DynaQConfig(), read) == ["agent.learning_rate", "imagination.cap", "imagination.epsilon"]


def test_a_file_is_read_as_its_mapping_and_named_where_it_is_wrong(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("agent.learning_rate: {float: [1e-4, 1e-2], log: true}\n", encoding="utf-8")
    assert spaces.read(path, DynaQConfig()) == {"agent.learning_rate": Range("float", 1e-4, 1e-2, log=True)}
    for text, message in (
        ("agent.learning_rat: {float: [1e-4, 1e-2]}", "there is no such setting"),
        ("a: 1\na: 2", "it is given twice"),
        ("a: [", "is not valid YAML"),
        ("", "None does not fit"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=message) as refused:
            spaces.read(path, DynaQConfig())
        assert "space.yaml" in str(refused.value)
    with pytest.raises(ConfigError, match="is no file"):
        spaces.read(tmp_path / "none.yaml", DynaQConfig())


def test_values_of_a_trial_become_settings_by_way_of_what_a_study_stores():
    read = spaces.parse(CONTENT, DynaQConfig())
    stored = {path: domain.low if isinstance(domain, Range) else domain.names[-1] for path, domain in read.items()}
    assert stored["agent.hidden"] == "[32]"
    values = {path: spaces.value_of(domain, stored[path]) for path, domain in read.items()}
    config = with_settings(DynaQConfig(), values)
    flat = flat_settings(config)
    assert {path: flat[path] for path in read} == values
    assert config.agent.hidden == (32,)
    check(config)


def test_values_that_cannot_work_together_are_refused():
    with pytest.raises(ConfigError, match=r"agent.hidden"):
        with_settings(DynaQConfig(), {"agent.hidden": [0]})


@pytest.mark.parametrize(
    ("path", "given", "message"),
    [
        (1, {"int": [1, 2]}, "it must be the dotted path"),
        ("agent", {"choice": [1]}, "it is a group of settings; name one of agent.hidden"),
        ("agents.hidden", {"choice": [1]}, "there is no group of settings 'agents'"),
        ("agent.learning_rate.x", {"choice": [1]}, "there is no group of settings 'agent.learning_rate'"),
        ("agent.kind", {"choice": ["q_learning"]}, "search each kind by itself"),
        ("steps", {"int": [10, 20]}, "it says what is measured"),
        ("environment.name", {"choice": ["CartPole-v1"]}, "it says what is measured"),
        ("evaluation.episodes", {"int": [1, 2]}, "it says what is measured"),
        ("agent.discount", [0.9, 0.99], r"it must be \{float: \[low, high\]\}"),
        ("agent.discount", {"float": [0.9, 0.99], "int": [1, 2]}, r"it must be \{float"),
        ("agent.discount", {"float": [0.9, 0.99], "base": 2}, "'base' is not known beside float; there are float, log, step"),
        ("agent.discount", {"choice": [0.9], "log": True}, "'log' is not known beside choice"),
        ("agent.discount", {"int": [0, 1]}, r"int does not fit its type; it must be float: \[low, high\]"),
        ("imagination.cap", {"float": [1, 3]}, r"it must be int: \[low, high\]"),
        ("agent.target", {"float": [1, 3]}, r"it must be choice: \[…\]"),
        ("agent.discount", {"float": [0.9]}, "must be two numbers"),
        ("agent.discount", {"float": [0.9, 0.9]}, "low must be below high"),
        ("agent.discount", {"float": [0.9, 1.1]}, "1.1 is out of range; it must be at least 0 and at most 1"),
        ("imagination.cap", {"int": [0, 3]}, "0 is out of range; it must be at least 1"),
        ("imagination.cap", {"int": [1, 2.5]}, "2.5 must be of type int"),
        ("agent.discount", {"float": [0, 1], "log": True}, "true only where low is above 0"),
        ("agent.discount", {"float": [0.5, 1], "log": "yes"}, "it must be true or false"),
        ("agent.discount", {"float": [0, 1], "step": 0.3}, r"it must divide 1.0 - 0.0 evenly"),
        ("agent.discount", {"float": [0.1, 1], "step": 0.1, "log": True}, "there must be no log"),
        ("imagination.cap", {"int": [1, 3], "step": 0}, "step: 0 does not fit"),
        ("agent.target", {"choice": []}, "at least one value"),
        ("agent.target", {"choice": ["max", "most"]}, "'most' is not a choice"),
        ("agent.target", {"choice": ["max", "max"]}, "a value twice"),
        ("agent.hidden", {"choice": [[32], [0]]}, "0 is out of range"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_its_setting(path, given, message):
    with pytest.raises(ConfigError, match=message) as refused:
        spaces.parse({path: given}, DynaQConfig())
    assert str(refused.value).startswith(repr(path) if isinstance(path, int) else path)
