import copy
import dataclasses
import math
import os
import pwd
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import mbrl_jax
from mbrl_jax.config import (
    ALGORITHMS,
    ConfigError,
    DynaQConfig,
    EnvironmentConfig,
    ModelFreeQConfig,
    QLearningConfig,
    check,
    check_seeds,
    expand,
    from_dict,
    holdout_stride,
    load,
    save,
    to_dict,
)
from mbrl_jax.imagination.horizon import controller_settings

PRESETS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def written(content, folder):
    path = folder / "preset.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def changed(config, setting, value):
    content = copy.deepcopy(to_dict(config))
    *groups, name = setting.split(".")
    inner = content
    for group in groups:
        inner = inner[group]
    inner[name] = value
    return content


def test_a_saved_config_loads_back_equal(tiny, tmp_path):
    model = dataclasses.replace(tiny.model, elites=1, patience=3, laplacian="none", learning_rate=1e-7)
    agent = dataclasses.replace(tiny.agent, input_scale=(2.4, 2.0, 0.21, 2.0), hidden=(5,))
    imagination = dataclasses.replace(
        tiny.imagination, controller=controller_settings("macura", scale=2.0, percentile=1e-9, memory=3)
    )
    config = dataclasses.replace(tiny, model=model, agent=agent, imagination=imagination, protocol="interactive")
    save(config, tmp_path / "preset.yaml")
    assert load(tmp_path / "preset.yaml") == config
    assert load(tmp_path / "preset.yaml") != tiny


def test_a_config_is_saved_before_anything_else_of_the_library_was_imported(tmp_path):
    program = f"from mbrl_jax.config import DynaQConfig, save; save(DynaQConfig(), {str(tmp_path / 'preset.yaml')!r})"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert load(tmp_path / "preset.yaml") == DynaQConfig()


@pytest.mark.parametrize("cls", ALGORITHMS.values(), ids=ALGORITHMS)
def test_the_defaults_of_every_algorithm_are_valid_and_survive_yaml(cls, tmp_path):
    check(cls())
    save(cls(), tmp_path / "preset.yaml")
    loaded = load(tmp_path / "preset.yaml")
    assert type(loaded) is cls
    assert loaded == cls()


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_shipped_preset_loads(path):
    assert from_dict(to_dict(load(path))) == load(path)


def test_presets_are_shipped():
    assert "smoke" in [path.stem for path in PRESETS]


def test_a_preset_holds_only_what_differs_from_the_defaults(tmp_path):
    path = written({"algorithm": "dyna_q", "agent": {"discount": 0.9}}, tmp_path)
    assert load(path) == DynaQConfig(agent=QLearningConfig(discount=0.9))


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001"])
def test_a_number_that_yaml_reads_as_text_is_a_number(text, tmp_path):
    (tmp_path / "preset.yaml").write_text(f"algorithm: dyna_q\nmodel:\n  learning_rate: {text}\n")
    rate = load(tmp_path / "preset.yaml").model.learning_rate
    assert isinstance(rate, float)
    assert rate == 0.001


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            "algorithm: dyna_q\nagent: {discount: 0.9}\nsteps: 10\nagent: {batch_size: 8}\n",
            "agent: it is given twice, in lines 2 and 4; give it once",
            id="a group",
        ),
        pytest.param(
            "algorithm: dyna_q\nagent:\n  discount: 0.9\n  hidden: [8]\n  'discount': 0.8\n",
            "discount: it is given twice, in lines 3 and 5",
            id="a setting in a group, once quoted",
        ),
        pytest.param(
            "algorithm: dyna_q\nagent: {discount: 0.9, discount: 0.9}\n",
            "discount: it is given twice, in line 2;",
            id="in one line",
        ),
        pytest.param(
            "algorithm: dyna_q\nimagination:\n  controller:\n    length: 3\n    length: 4\n",
            "length: it is given twice, in lines 4 and 5",
            id="a controller's number",
        ),
        pytest.param(
            "steps: 10\nalgorithm: dyna_q\nsteps: 10\n", "steps: it is given twice, in lines 1 and 3", id="the same value"
        ),
        pytest.param("model: &m {members: 2}\nagent: {<<: *m, <<: *m}\n", "<<: it is given twice, in line 2", id="a merge key"),
    ],
)
def test_a_key_that_is_given_twice_is_refused_with_both_lines(text, message, tmp_path):
    path = tmp_path / "preset.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{path}: {message}')}"):
        load(path)
    (tmp_path / "upper.yaml").write_text("base: preset.yaml\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(f"{path}: {message}")):
        load(tmp_path / "upper.yaml")


def test_a_merge_key_still_takes_a_groups_settings_and_overrides_them(tmp_path):
    path = tmp_path / "preset.yaml"
    text = "algorithm: dyna_q\nagent: &sizes\n  hidden: [8]\n  batch_size: 16\nmodel:\n  <<: *sizes\n  batch_size: 32\n"
    path.write_text(text, encoding="utf-8")
    config = load(path)
    assert (config.agent.hidden, config.agent.batch_size) == ((8,), 16)
    assert (config.model.hidden, config.model.batch_size) == ((8,), 32)
    path.write_text(text.replace("<<: *sizes", "<<: [*sizes, {hidden: [4], epochs: 3}]"), encoding="utf-8")
    assert (load(path).model.hidden, load(path).model.epochs, load(path).model.batch_size) == ((8,), 3, 32)


def test_a_whole_number_where_a_float_belongs_becomes_one():
    config = from_dict({"algorithm": "dyna_q", "agent": {"discount": 1, "input_scale": [1, 2, 3, 4]}})
    assert isinstance(config.agent.discount, float)
    assert [type(scale) for scale in config.agent.input_scale] == [float] * 4


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        pytest.param("model.members", "three", id="text for a count"),
        pytest.param("model.members", 2.5, id="fraction for a count"),
        pytest.param("model.members", True, id="flag for a count"),
        pytest.param("model.members", None, id="nothing for a count"),
        pytest.param("model.learn_bounds", "yes", id="text for a flag"),
        pytest.param("model.learn_bounds", 1, id="number for a flag"),
        pytest.param("agent.learning_rate", "fast", id="text for a number"),
        pytest.param("agent.learning_rate", True, id="flag for a number"),
        pytest.param("agent.learning_rate", [1e-3], id="list for a number"),
        pytest.param("agent.hidden", 8, id="number for a list"),
        pytest.param("agent.hidden", [], id="empty list"),
        pytest.param("environment.name", 3, id="number for a name"),
        pytest.param("model", 3, id="number for a group"),
        pytest.param("imagination.controller", [3], id="list for a mapping"),
        pytest.param("model.members", 0, id="too few"),
        pytest.param("agent.discount", 1.5, id="above the maximum"),
        pytest.param("agent.discount", -0.5, id="below the minimum"),
        pytest.param("agent.learning_rate", 0.0, id="at an open end"),
        pytest.param("agent.target_rate", 0, id="whole number at an open end"),
        pytest.param("environment.time_limit", 0, id="optional and out of range"),
        pytest.param("agent.learning_rate", math.nan, id="NaN"),
        pytest.param("agent.learning_rate", math.inf, id="infinite"),
        pytest.param("agent.loss", "absolute", id="no choice"),
        pytest.param("protocol", False, id="flag for a choice"),
        pytest.param("round_steps", 7, id="rounds do not fill the steps"),
        pytest.param("metric_steps", 3, id="blocks do not fill a round"),
        pytest.param("steps", 300_000_000, id="more imagined rows than a counter counts"),
        pytest.param("model.batch_size", 81, id="batch larger than the data"),
        pytest.param("model.elites", 3, id="more elites than members"),
        pytest.param("model.laplacian_rows", 17, id="more penalised rows than a batch has"),
        pytest.param("model.jacobian_rows", 17, id="more rows with Jacobians than a batch has"),
        pytest.param("imagination.lanes", 5, id="lanes not divisible by members"),
        pytest.param("imagination.capacity", 82, id="capacity not a multiple of lanes"),
        pytest.param("imagination.capacity", 4, id="capacity below one step's rows"),
        pytest.param("selection.episodes", 3, id="episodes not divisible by members"),
    ],
)
def test_a_bad_value_is_refused_with_its_path_and_value(tiny, setting, value, tmp_path):
    path = written(changed(tiny, setting, value), tmp_path)
    with pytest.raises(ConfigError) as refusal:
        load(path)
    assert str(path) in str(refusal.value)
    assert f"{setting}: {value!r}" in str(refusal.value)


@pytest.mark.parametrize("text", [".nan", "nan", "'nan'"])
def test_nan_is_refused_however_it_is_written(text, tmp_path):
    (tmp_path / "preset.yaml").write_text(f"algorithm: dyna_q\nimagination:\n  epsilon: {text}\n")
    with pytest.raises(ConfigError, match=r"imagination\.epsilon: nan"):
        load(tmp_path / "preset.yaml")


@pytest.mark.parametrize(
    ("setting", "entry", "value"),
    [
        ("model.hidden", "model.hidden", [8, 0]),
        ("model.hidden", "model.hidden[1]", [8, 2.5]),
        ("agent.input_scale", "agent.input_scale", [1.0, 1.0, -1.0, 1.0]),
        ("imagination.controller", "imagination.controller.length", {"length": "long"}),
        ("imagination.controller", "imagination.controller.length", {"length": math.nan}),
    ],
)
def test_a_bad_entry_of_a_setting_is_refused_with_its_path(tiny, setting, entry, value, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(entry)):
        load(written(changed(tiny, setting, value), tmp_path))


@pytest.mark.parametrize(
    ("setting", "known"),
    [("model.membres", "members, elites"), ("rounds", "round_steps, metric_steps"), ("agent.gamma", "discount")],
)
def test_an_unknown_setting_is_refused_with_its_path_and_the_known_ones(tiny, setting, known, tmp_path):
    with pytest.raises(ConfigError, match=f"preset.yaml: {setting}: there is no such setting; there are .*{known}"):
        load(written(changed(tiny, setting, 3), tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"imagination": {"controller": "threshold", "controller_settings": {"mark": 0.2}}},
            r"imagination.controller_settings: it is written imagination.controller: {kind: threshold, mark: 0.2} now",
        ),
        (
            {"imagination": {"controller": "threshold"}},
            r"imagination.controller: 'threshold' must be a mapping with a kind; .*now",
        ),
        ({"model": {"kind": "gaussian"}}, r"model.kind: 'gaussian' is written model.prediction now"),
    ],
)
def test_a_preset_of_the_form_before_is_told_how_it_is_written_now(content, message):
    with pytest.raises(ConfigError, match=message):
        from_dict({"algorithm": "dyna_q", **content})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"imagination": {"controller": {"kind": "treshold"}}},
            r"imagination.controller.kind: 'treshold' is not known.*threshold",
        ),
        ({"imagination": {"controller": {"kind": 3}}}, r"imagination.controller.kind: 3 is not known"),
        ({"imagination": {"controller": {"kind": "threshold"}}}, r"imagination.controller.mark: it is missing"),
        ({"imagination": {"controller": {"kind": "fixed", "mark": 1}}}, r"imagination.controller.mark: there is no such setting"),
        ({"agent": {"kind": "ppo"}}, r"agent.kind: 'ppo' is not known; it must be one of q_learning, policy_gradient, sac"),
        ({"model": {"kind": "oracle"}}, r"model.kind: 'oracle' is not known; it must be one of ensemble, rssm"),
    ],
)
def test_a_kind_that_is_not_there_is_refused_with_those_that_are(content, message):
    with pytest.raises(ConfigError, match=message):
        from_dict({"algorithm": "dyna_q", **content})


@pytest.mark.parametrize(
    ("algorithm", "kind", "message"),
    [
        ("dyna_q", "policy_gradient", r"agent.kind: 'policy_gradient' does not fit; it learns from segments"),
        ("imagined_pg", "q_learning", r"agent.kind: 'q_learning' does not fit; this algorithm learns with agents of kind"),
        ("mpc", "policy_gradient", r"agent.kind: 'policy_gradient' does not fit"),
    ],
)
def test_an_agent_that_an_algorithm_cannot_teach_is_refused(algorithm, kind, message):
    with pytest.raises(ConfigError, match=message):
        check(from_dict({"algorithm": algorithm, "agent": {"kind": kind}}))


def test_a_base_s_group_that_names_no_kind_is_of_the_default_s(tmp_path):
    (tmp_path / "base.yaml").write_text("algorithm: dyna_q\nmodel: {members: 5}\nimagination: {controller: {length: 4}}\n")
    own = "base: base.yaml\nmodel: {kind: ensemble, epochs: 7}\nimagination: {controller: {kind: fixed}}\n"
    (tmp_path / "own.yaml").write_text(own)
    config = load(tmp_path / "own.yaml")
    assert (config.model.members, config.model.epochs) == (5, 7)
    assert config.imagination.controller.numbers == {"length": 4}


def test_a_group_of_another_kind_replaces_that_of_the_base_and_one_of_the_same_is_merged(tmp_path):
    (tmp_path / "base.yaml").write_text("algorithm: dyna_q\nimagination: {controller: {kind: oracle, mark: 2}}\n")
    (tmp_path / "same.yaml").write_text("base: base.yaml\nimagination: {controller: {mark: 3}}\n")
    assert load(tmp_path / "same.yaml").imagination.controller == controller_settings("oracle", mark=3)
    (tmp_path / "other.yaml").write_text("base: base.yaml\nimagination: {controller: {kind: threshold, mark: 4}}\n")
    assert load(tmp_path / "other.yaml").imagination.controller == controller_settings("threshold", mark=4)


def test_a_refusal_of_a_choice_names_the_choices(tiny):
    with pytest.raises(ConfigError, match=r"agent\.loss: 'absolute' is not a choice; it must be one of 'squared', 'huber'"):
        from_dict(changed(tiny, "agent.loss", "absolute"))


def test_lanes_must_be_divisible_by_the_elites_and_not_by_all_members(tiny):
    model = dataclasses.replace(tiny.model, members=5, elites=2)
    check(dataclasses.replace(tiny, model=model))
    with pytest.raises(ConfigError, match=r"imagination\.lanes: 4 .*multiple of 3"):
        check(dataclasses.replace(tiny, model=dataclasses.replace(model, elites=3)))


def test_the_ensemble_mean_takes_any_number_of_lanes(tiny):
    content = changed(tiny, "imagination.lanes", 5)
    content["imagination"]["sampling"] = "mean"
    check(from_dict(content))


def test_one_member_cannot_agree_with_others_about_jacobians(tiny):
    model = dataclasses.replace(tiny.model, members=1, jacobian="agreement")
    with pytest.raises(ConfigError, match=r"model.jacobian: 'agreement' does not fit; .* model.members must be at least 2"):
        check(dataclasses.replace(tiny, model=model))


@pytest.mark.parametrize("laplacian", ["auto", "exact", "hutchinson"])
def test_relu_is_refused_with_the_laplacian_penalty_only(tiny, laplacian):
    check(from_dict(changed(tiny, "model.activation", "relu")))
    content = changed(tiny, "model.activation", "relu")
    content["model"]["laplacian"] = laplacian
    with pytest.raises(ConfigError, match=r"model\.activation: 'relu'"):
        check(from_dict(content))


@pytest.mark.parametrize("target", ["quantile", "mean_std"])
def test_a_target_over_the_ensemble_is_refused_where_there_is_no_model(tiny, target):
    agent = dataclasses.replace(tiny.agent, target=target)
    check(dataclasses.replace(tiny, agent=agent))
    with pytest.raises(ConfigError, match=rf"agent\.target: '{target}'"):
        check(ModelFreeQConfig(agent=agent))


def test_too_few_rows_for_a_holdout_are_refused(tiny):
    content = changed(tiny, "random_transitions", 4)
    content["model"]["batch_size"] = 2
    with pytest.raises(ConfigError, match="random_transitions: 4"):
        check(from_dict(content))


def test_all_bad_values_are_named_at_once(tiny):
    agent = dataclasses.replace(tiny.agent, discount=2.0, batch_size=0)
    with pytest.raises(ConfigError) as refusal:
        check(dataclasses.replace(tiny, agent=agent, round_steps=-1))
    assert {line.split(":")[0] for line in str(refusal.value).splitlines()} == {
        "agent.discount",
        "agent.batch_size",
        "round_steps",
    }


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: there is no such file"):
        load(tmp_path / "absent.yaml")


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("algorithm: [dyna_q", "not valid YAML"),
        ("algorithm: dyna_q\n\tsteps: 3", "not valid YAML"),
        ("- algorithm\n- dyna_q", "mapping of settings, not list"),
        ("", "mapping of settings, not NoneType"),
        ("dyna_q", "mapping of settings, not str"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_refused(text, says, tmp_path):
    (tmp_path / "preset.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"preset\.yaml: .*{says}"):
        load(tmp_path / "preset.yaml")


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "preset.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "preset.yaml")


@pytest.mark.parametrize("name", ["dyna", None, 3, ["dyna_q"]])
def test_an_unknown_algorithm_is_refused_and_the_known_ones_are_named(name):
    with pytest.raises(ConfigError, match=r"algorithm: .*dyna_q, model_free_q"):
        from_dict({"algorithm": name})


def test_the_holdout_is_a_fifth_or_five_thousand_rows():
    for rows in (100, 5_000, 25_000, 30_000, 250_000):
        config = ModelFreeQConfig(random_transitions=rows)
        assert rows // holdout_stride(config) <= min(rows / 5, 5_000)
        assert rows // holdout_stride(config) >= 0.8 * min(rows / 5, 5_000)


def test_the_holdout_counts_the_rows_still_to_come():
    config = ModelFreeQConfig(protocol="interactive", random_transitions=20_000, steps=30_000)
    assert config.real_transitions == 50_000
    assert holdout_stride(config) == 10
    assert holdout_stride(dataclasses.replace(config, protocol="batch")) == 5


def test_a_config_cannot_be_changed_in_place(tiny):
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny.steps = 1


def test_the_leaves_of_a_config_are_its_traced_numbers(tiny):
    paths = {jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree.leaves_with_path(tiny)}
    assert paths == {
        "mixing.least",
        "mixing.most",
        "mixing.memory",
        "agent.learning_rate",
        "agent.learning_rate_decay",
        "agent.discount",
        "agent.target_rate",
        "agent.target_quantile",
        "agent.target_beta",
        "agent.huber_delta",
        "environment.observation_noise",
        "exploration.start",
        "exploration.end",
        "model.learning_rate",
        "model.weight_decay",
        "model.laplacian_weight",
        "model.jacobian_weight",
        "model.termination_weight",
        "model.value_share",
        "imagination.cap",
        "imagination.epsilon",
        "imagination.penalty_weight",
        "imagination.controller.length",
    }


def test_a_traced_setting_leaves_the_tree_structure_alone(tiny):
    other = dataclasses.replace(tiny, agent=dataclasses.replace(tiny.agent, learning_rate=0.5))
    assert jax.tree.structure(other) == jax.tree.structure(tiny)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("steps", 40), ("model.members", 4), ("agent.hidden", [9]), ("agent.loss", "huber"), ("environment.name", "Acrobot-v1")],
)
def test_a_static_setting_is_part_of_the_tree_structure(tiny, setting, value):
    other = from_dict(changed(tiny, setting, value))
    assert jax.tree.structure(other) != jax.tree.structure(tiny)


def test_a_learning_rate_can_be_mapped_over_while_the_rest_is_shared(tiny):
    rates = jnp.array([1e-4, 3e-4, 1e-3])

    def with_rate(config, rate):
        return dataclasses.replace(config, agent=dataclasses.replace(config.agent, learning_rate=rate))

    axes = with_rate(jax.tree.map(lambda _: None, tiny), 0)
    mapped = jax.vmap(lambda config: config.agent.learning_rate * config.agent.discount, in_axes=(axes,))
    assert mapped(with_rate(tiny, rates)).tolist() == (rates * tiny.agent.discount).tolist()


def test_a_new_traced_value_does_not_compile_again(tiny):
    traces = []

    @jax.jit
    def discount(config):
        traces.append(config)
        return config.agent.discount * 2

    discount(tiny)
    discount(dataclasses.replace(tiny, agent=dataclasses.replace(tiny.agent, discount=0.5)))
    assert len(traces) == 1
    discount(dataclasses.replace(tiny, environment=EnvironmentConfig(time_limit=31)))
    assert len(traces) == 2


def test_a_preset_with_a_base_holds_only_what_differs(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "algorithm: dyna_q\nsteps: 500\nmodel: {hidden: [8, 8], epochs: 7}\n"
        "imagination: {cap: 9, controller: {kind: schedule, start: 0, end: 5, first: 1, last: 2}}\n"
    )
    (tmp_path / "own").mkdir()
    own = tmp_path / "own" / "own.yaml"
    own.write_text("base: ../base.yaml\nmodel: {hidden: [16]}\nimagination: {controller: {kind: fixed, length: 4}}\n")
    config = load(own)
    assert (config.steps, config.model.epochs, config.imagination.cap) == (500, 7, 9)
    assert config.model.hidden == (16,)
    assert config.imagination.controller == controller_settings("fixed", length=4.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("base: absent.yaml", r"absent\.yaml: there is no such file"),
        ("base: 3", r"own\.yaml: base: 3 must be the path of another preset"),
        ("base: own.yaml", r"own\.yaml: base: 'own\.yaml' leads back to this file"),
    ],
)
def test_a_base_that_cannot_be_is_refused(tmp_path, content, message):
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "own.yaml")


@pytest.fixture
def home(monkeypatch, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def test_the_home_folder_is_put_in_for_a_tilde_at_the_beginning_alone(home):
    assert expand("~/runs/x") == home / "runs" / "x"
    assert expand(Path("~")) == home
    assert expand("runs/~") == Path("runs/~")
    assert expand(f"~{pwd.getpwuid(os.getuid()).pw_name}/x") == Path(pwd.getpwuid(os.getuid()).pw_dir, "x")
    with pytest.raises(ConfigError, match="~nobody_of_this_name/x: the home folder is not known"):
        expand("~nobody_of_this_name/x")
    with pytest.raises(ConfigError, match="out: '' does not fit; it must name a place"):
        expand("", "out")


def test_presets_are_saved_to_the_home_folder_and_loaded_from_there_as_bases_too(home, tiny):
    save(tiny, "~/tiny.yaml")
    assert [path.name for path in home.iterdir()] == ["tiny.yaml"]
    assert load("~/tiny.yaml") == mbrl_jax.load(Path("~/tiny.yaml")) == tiny
    Path("more.yaml").write_text("base: ~/tiny.yaml\nsteps: 40\n")
    assert load("more.yaml") == dataclasses.replace(tiny, steps=40)


def test_runs_policies_and_reports_are_looked_for_in_the_home_folder(home):
    from mbrl_jax import report
    from mbrl_jax.report import listing
    from mbrl_jax.runs.claims import claimed

    for look in (mbrl_jax.load_run, mbrl_jax.load_policy, listing.find, lambda path: report.write([path], "page.html")):
        with pytest.raises(ConfigError, match=re.escape(str(home / "run"))):
            look("~/run")
    (home / "page.html").touch()
    with pytest.raises(ConfigError, match=re.escape(f"{str(home / 'page.html')!r} exists already")):
        report.write([], "~/page.html")
    with claimed("~/new/folder"):
        assert (home / "new" / "folder").is_dir()
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ((0, 0), "seeds: 0 is out of range"),
        ((2.0, 0), "seeds: 2.0 does not fit; it must be a whole number"),
        ((True, 0), "seeds: True does not fit"),
        ((1, -1), "seed: -1 is out of range; it must be from 0 to 2\\^32 - 1"),
        ((1, 2**32), "seed: 4294967296 is out of range"),
        ((1, "3"), "seed: '3' does not fit"),
        ((1, 0, -1), "first: -1 is out of range"),
        ((8, 0, 2**31 - 7), "first: 2147483641 is out of range; for 8 seeds it must be from 0 to 2147483640"),
    ],
)
def test_seeds_that_cannot_be_are_refused(seeds, message):
    with pytest.raises(ConfigError, match=message):
        check_seeds(*seeds)
    count, base, *first = seeds
    with pytest.raises(ConfigError, match=message):
        mbrl_jax.seed_keys(base, count, *first)


def test_the_first_and_the_last_seeds_are_there():
    check_seeds(1, 2**32 - 1, 2**31 - 1)
    keys = [jax.random.key_data(mbrl_jax.seed_keys(base, 1))[0].tolist() for base in (0, 1, 2**31, 2**32 - 1)]
    assert len({tuple(key) for key in keys}) == 4
    assert mbrl_jax.seed_keys(np.int64(3), np.int32(2)).shape == (2,)
