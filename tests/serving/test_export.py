import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import onnx
import onnxruntime
import pytest

import mbrl_jax
from mbrl_jax import command_line
from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.config import ConfigError, read_preset
from mbrl_jax.environments import environment_of, in_units
from mbrl_jax.model import ensemble as ens
from mbrl_jax.runs import results, runner
from mbrl_jax.serving import contract
from mbrl_jax.serving.export import agreement, command, graphs, onnx_files, quantising, rounding, stablehlo, writing
from mbrl_jax.serving.export.writing import Asked, export

ROWS, EPISODES = 300, 4
QUIET = {"rows": ROWS, "episodes": EPISODES}


def silent(text):
    """Say nothing."""


@pytest.fixture(scope="module")
def run(tiny):
    """A run of three seeds, whose networks are large enough to be quantised."""
    wide = dataclasses.replace(
        tiny,
        model=dataclasses.replace(tiny.model, hidden=(32, 32)),
        agent=dataclasses.replace(tiny.agent, hidden=(32, 32)),
    )
    return runner.run(wide, 3)


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    results.write(run, folder)
    return folder


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    """The export of seed 1 in every format, and in INT8."""
    out = tmp_path_factory.mktemp("exports") / "all"
    asked = Asked(seed=1, formats=("onnx", "stablehlo", "torchscript"), int8="dynamic", **QUIET)
    told, made = export(folder, out, asked, say=silent)
    return out, told, made


@pytest.fixture(scope="module")
def observations():
    return np.random.default_rng(0).normal(0, [1.0, 1.0, 0.1, 1.0], (200, 4)).astype(np.float32)


def answers(out, name, **inputs):
    session = onnxruntime.InferenceSession((out / name).read_bytes(), providers=["CPUExecutionProvider"])
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, inputs), strict=True))


def test_the_exported_policy_acts_as_the_loaded_one_does_for_any_number_of_rows(exported, folder, observations):
    policy = mbrl_jax.load_policy(folder)
    for count in (1, 3, 200):
        found = answers(exported[0], "policy.onnx", observation=observations[:count])
        np.testing.assert_array_equal(found["action"], policy(observations[:count], seed=1))
        assert found["values"].shape == (count, 2)


def test_each_exported_member_and_their_ensemble_are_those_of_the_run(exported, folder, run, observations, cartpole):
    members = jax.tree.map(lambda leaf: leaf[1], run.result.outcome.model)
    shape = ens.Ensemble(run.config.model, cartpole.spec, cartpole.reward, cartpole.terminated)
    action = np.arange(200, dtype=np.int32) % 2

    def everyone(observation, action):
        said = ens.predict_all(shape, members, observation, action)
        mixed = ens.decode(shape, members.normaliser, ens.mixture_mean(said), observation, action, None)
        return said, mixed

    said, mixed = jax.jit(everyone)(observations, action)
    scale, shift = np.asarray(members.normaliser.target_std), np.asarray(members.normaliser.target_mean)
    means, deviations = np.asarray(said.mean), np.exp(0.5 * np.asarray(said.log_variance))
    for member in range(2):
        found = answers(exported[0], f"member{member}.onnx", observation=observations, action=action)
        np.testing.assert_allclose(found["next_observation"], observations + shift + scale * means[member], atol=1e-5)
        np.testing.assert_allclose(found["deviation"], scale * deviations[member], atol=1e-5)
        far = (np.abs(found["next_observation"][:, 0]) > 2.4) | (np.abs(found["next_observation"][:, 2]) > 12 * np.pi / 180)
        np.testing.assert_array_equal(found["terminated"], far)
    found = answers(exported[0], "model.onnx", observation=observations, action=action)
    np.testing.assert_allclose(found["next_observation"], mixed.next_observation, atol=1e-5)
    np.testing.assert_array_equal(found["reward"], np.ones(200))
    variance = (deviations**2).mean(axis=0) + means.var(axis=0)
    np.testing.assert_allclose(found["deviation"], scale * np.sqrt(variance), atol=1e-5)
    np.testing.assert_allclose(found["disagreement"], np.sqrt(means.var(axis=0).mean(axis=-1)), atol=1e-5)


def test_every_file_of_an_export_has_its_checksum_and_its_agreement_in_the_contract(exported):
    out, told, made = exported
    read = contract.read(out)
    assert {file.path for file in read.files} | {contract.NAME} == {path.name for path in out.iterdir()}
    for file in read.files:
        assert len(contract.content_of(out, file)) == file.bytes
        assert file.agreement["rows"] == ROWS
        if file.precision == "float32":
            assert max(file.agreement["largest_difference"].values()) <= 1e-5
        if file.graph == "policy":
            assert file.agreement["returns"]["episodes"] == EPISODES
            assert file.agreement["equal"]["action"] >= 0.99
    kinds = {(each.file.graph, each.file.format, each.file.precision) for each in made}
    names = ("policy", "model", "member0", "member1")
    precisions = (("onnx", "float32"), ("onnx", "int8-dynamic"), ("stablehlo", "float32"), ("torchscript", "float32"))
    assert kinds == {(name, *each) for name in names for each in (*precisions, ("torchscript", "int8-dynamic"))}
    assert len(set(read.task.axes)) == 4
    assert told["run"]["seed"] == 1


def test_files_in_int8_multiply_integers_and_are_smaller(exported):
    for each in exported[2]:
        if (each.file.format, each.file.precision) == ("onnx", "int8-dynamic"):
            assert each.file.bytes < next(
                other.file.bytes
                for other in exported[2]
                if other.file[1:4] == each.file[1:4] and other.file.precision == "float32"
            )
            model = onnx.load_from_string(each.content)
            assert "MatMulInteger" in {node.op_type for node in model.graph.node}


def test_static_int8_is_calibrated_on_the_rows_given(run, cartpole, observations):
    params = jax.tree.map(lambda leaf: leaf[0], run.result.outcome.chosen)
    graph = graphs.policy_graph(run.config, cartpole, tuple("abcd"), params)
    content = onnx_files.write(graph)
    expected = onnx_files.load(content, graph)(observations)[1]
    found = [
        onnx_files.load(quantising.quantise(content, graph, "static", (rows,)), graph)(observations)[1]
        for rows in (observations, observations * 0.01)
    ]
    errors = [np.abs(each - expected).max() for each in found]
    assert 0 < errors[0] < 0.1 * np.abs(expected).max()
    assert errors[1] > errors[0]  # the range that it saw was too narrow


@pytest.fixture(scope="module")
def hidden_units():
    """[2000, 64] activations on a manifold of three dimensions, of unlike sizes; and weights [64, 32]."""
    generator = np.random.default_rng(0)
    few = generator.normal(0, 1, (2_000, 3))
    units = np.maximum(few @ generator.normal(0, 1, (3, 64)) + generator.normal(0, 0.5, 64), 0)
    return (units * np.geomspace(0.01, 1, 64)).astype(np.float32), generator.normal(0, 0.3, (64, 32)).astype(np.float32)


def on_levels(weights):
    """How far weights are from the 255 levels that a quantiser finds for each column."""
    scale = np.abs(weights).max(axis=0) / 127
    return np.abs(weights / scale - np.round(weights / scale)).max()


def test_rounded_weights_lie_on_the_levels_of_int8_and_compute_what_the_given_ones_do(hidden_units):
    units, weights = hidden_units
    rounded = rounding.round_weights(units, weights)
    scale = np.abs(weights).max(axis=0) / 127
    nearest = np.round(weights / scale) * scale
    assert on_levels(weights) > 0.4
    assert on_levels(rounded) < 1e-3
    errors = [np.square(units @ each - units @ weights).mean() for each in (rounded, nearest)]
    assert errors[0] < 0.1 * errors[1]
    assert on_levels(rounding.round_weights(np.zeros_like(units), weights)) < 1e-3  # where no row says anything


def test_balanced_inputs_are_alike_and_the_product_is_the_same(hidden_units):
    units, weights = hidden_units
    shift = rounding.balance(units, weights)
    np.testing.assert_allclose((units / shift) @ (weights * shift[:, None]), units @ weights, rtol=1e-3, atol=1e-5)
    spread = [np.ptp(np.log(np.abs(each).max(axis=0))) for each in (units, units / shift)]
    assert spread[1] < 0.5 * spread[0]
    units = units.copy()
    units[:, 3] = 0  # a unit that is never active
    assert np.isfinite(rounding.balance(units, weights)).all()
    np.testing.assert_array_equal(rounding.balance(units, weights, 0.0)[3], 1.0)


def test_the_vote_is_the_most_frequent_action_with_its_share(folder, tmp_path, observations):
    told, _ = export(folder, tmp_path / "vote", Asked(ensemble=True, what="policy", **QUIET), say=silent)
    each = np.stack([mbrl_jax.load_policy(folder)(observations, seed=seed) for seed in range(3)])
    found = answers(tmp_path / "vote", "policy.onnx", observation=observations)
    np.testing.assert_array_equal(found["action"], each.sum(axis=0) >= 2)
    np.testing.assert_allclose(found["agreement"], np.maximum(each.mean(axis=0), 1 - each.mean(axis=0)), atol=1e-6)
    assert told["run"]["seed"] == "vote of all"
    assert told["files"][0]["role"] == "vote"


def test_best_is_the_seed_that_imagination_scored_highest(folder, run, tmp_path):
    scores = np.array([3.0, 1.0, 2.0])
    high = run._replace(
        result=run.result._replace(
            metrics=run.result.metrics._replace(
                chosen_score=np.stack([np.zeros(3), scores], axis=1), score=np.stack([scores, scores[::-1]], axis=1)
            )
        )
    )
    (tmp_path / "run").mkdir()
    results.write(high, tmp_path / "run")
    asked = Asked(best=True, what="policy", formats=("stablehlo",), **QUIET)
    told, _ = export(tmp_path / "run", tmp_path / "out", asked, say=silent)
    assert (told["run"]["seed"], told["run"]["imagined_score"]) == (0, 3.0)


def test_a_file_that_disagrees_is_not_written_and_the_command_says_so(folder, tmp_path, monkeypatch, capsys):
    honest = onnx_files.write

    def broken(graph):
        model = onnx.load_from_string(honest(graph))
        if graph.name == "member1":
            weights = next(each for each in model.graph.initializer if len(each.dims) == 2 and min(each.dims) > 1)
            array = onnx.numpy_helper.to_array(weights).copy()
            array[0, 0] += 0.01
            weights.CopyFrom(onnx.numpy_helper.from_array(array, weights.name))
        return model.SerializeToString()

    monkeypatch.setattr(onnx_files, "write", broken)
    monkeypatch.setattr(command, "Asked", functools.partial(Asked, **QUIET))
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["export", str(folder), "--out", str(out), "--what", "model"])
    assert stopped.value.code == 1
    assert "member1.onnx is not written: next_observation differs by up to" in capsys.readouterr().out.replace("\n", " ")
    assert not (out / "member1.onnx").exists()
    assert (out / "member0.onnx").exists()
    (refused,) = json.loads((out / contract.NAME).read_text())["refused"]
    assert refused["graph"] == "member1"


def test_nothing_is_left_where_no_file_agrees(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "FLOAT", agreement.Tolerance(-1.0, 0.999, None))
    told, made = export(folder, tmp_path / "out", Asked(what="policy", **QUIET), say=silent)
    assert not told["files"]
    assert made[0].failures
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(seed=3), "seed: 3 is out of range; it must be from 0 to 2"),
        (Asked(seed=1, best=True), "do not go together"),
        (Asked(formats=()), "format: none is named"),
        (Asked(formats=("stablehlo",), int8="dynamic"), "int8: 'dynamic' does not fit formats stablehlo"),
        (Asked(formats=("onnx", "torchscript"), int8="static"), "int8: 'static' does not fit torchscript"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(folder, tmp_path, asked, message):
    with pytest.raises(ConfigError, match=message):
        export(folder, tmp_path / "out", asked, say=silent)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_a_run_that_does_not_and_weights_that_are_not_finite_are_refused(folder, run, tmp_path):
    with pytest.raises(ConfigError, match="exists already and is left as it is"):
        export(folder, tmp_path, Asked(), say=silent)
    with pytest.raises(ConfigError, match="there is no finished run"):
        export(tmp_path, tmp_path / "out", Asked(), say=silent)
    outcome = run.result.outcome
    lost = outcome._replace(chosen=jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), outcome.chosen))
    (tmp_path / "run").mkdir()
    results.write(run._replace(result=run.result._replace(outcome=lost)), tmp_path / "run")
    with pytest.raises(ConfigError, match="the policy of seed 0 has numbers that are not finite"):
        export(tmp_path / "run", tmp_path / "out", Asked(), say=silent)


def test_a_contract_of_another_format_or_a_file_that_has_changed_is_refused(exported, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(exported[0], copied)
    read = contract.read(copied)
    path = copied / read.files[0].path
    path.write_bytes(path.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(ConfigError, match="its SHA-256 is"):
        contract.content_of(copied, read.files[0])
    with pytest.raises(ConfigError, match="it must be a name in the folder"):
        contract.content_of(copied, read.files[0]._replace(path="../policy.onnx"))
    told = json.loads((copied / contract.NAME).read_text())
    (copied / contract.NAME).write_text(json.dumps({**told, "format": 99}))
    with pytest.raises(ConfigError, match="format 99 is not known; it must be 1; mbrl-jax 0.1.0 wrote it"):
        contract.read(copied)
    for text, message in (
        ("{", "it cannot be read"),
        ('{"format": 1}', "it is no contract: KeyError"),
        ("[]", "it holds a list"),
        ("{}", "format None"),
    ):
        (copied / contract.NAME).write_text(text)
        with pytest.raises(ConfigError, match=message):
            contract.read(copied)
    (copied / contract.NAME).unlink()
    with pytest.raises(ConfigError, match="there is no export"):
        contract.read(copied)


def parameters(template, seed=0):
    """Parameters of a template's shapes, and no two alike."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: generator.normal(0, 0.3, leaf.shape).astype(leaf.dtype), template)


def test_continuous_actions_leave_and_enter_in_the_tasks_own_units(observations):
    config = read_preset("pendulum_pg")
    config = dataclasses.replace(config, agent=dataclasses.replace(config.agent, hidden=(8,)))
    task = environment_of(config.environment, None)
    params = parameters(algorithm_of(config).params(config, task))
    graph = graphs.policy_graph(config, task, ("cos", "sin", "velocity"), params)
    run = onnx_files.load(onnx_files.write(graph), graph)
    rows = observations[:, :3]
    policy = algorithm_of(config).policy(config, task)
    expected = in_units(task.spec, np.asarray(policy.act(params, (), rows)[1]))
    np.testing.assert_allclose(run(rows)[0], expected, atol=1e-5)
    assert graphs.action_bounds(task.spec) == ([-2.0], [2.0])
    assert np.abs(expected).max() > 1.0  # beyond what learners have
    np.testing.assert_allclose(graphs.learned_units(task.spec, expected), expected / 2, atol=1e-6)


def test_a_planner_is_exported_as_one_step_with_its_memory_in_and_out():
    config = read_preset("cartpole_mpc")
    config = dataclasses.replace(
        config,
        random_transitions=100,
        model=dataclasses.replace(config.model, hidden=(8,), members=2),
        planning=dataclasses.replace(config.planning, horizon=3, candidates=8, elites=2, iterations=2, particles=2),
    )
    task = environment_of(config.environment, None)
    params = parameters(algorithm_of(config).params(config, task))
    policy = algorithm_of(config).policy(config, task)
    planner = stablehlo.planner_of(policy, task.spec, tuple("abcd"), params)
    begin, step = (jax.jit(jax.export.deserialize(bytearray(each)).call) for each in stablehlo.write_planner(planner))
    memory = policy.begin(params, jax.random.key(5, impl="threefry2x32"), 1)
    exported = begin(np.uint32(5))
    act = jax.jit(lambda memory, seen: policy.act(params, memory, seen))
    for place in range(4):
        seen = np.full((1, 4), 0.02 * place, np.float32)
        memory, action = act(memory, seen)
        found, *exported = step(seen, *exported)
        np.testing.assert_array_equal(found, action)
    np.testing.assert_allclose(exported[0], memory[0].centre, atol=1e-6)
    np.testing.assert_array_equal(exported[-1], jax.random.key_data(memory[1]))


def test_a_planner_in_onnx_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="format: onnx does not fit a policy with a memory"):
        writing._check_memory(Asked(), remembers=True)
    with pytest.raises(ConfigError, match="ensemble: it does not fit a policy with a memory"):
        writing._check_memory(Asked(formats=("stablehlo",), ensemble=True), remembers=True)
    writing._check_memory(Asked(what="model"), remembers=True)


def test_a_difference_is_relative_to_the_number_to_what_is_usual_or_to_one():
    ours = np.array([[100.0, 0.1], [-100.0, 0.2], [1.0, 50.0]], np.float32)
    theirs = ours + np.array([[1e-3, 1e-6], [1e-3, 1e-6], [1e-3, 1e-3]], np.float32)
    expected = [[1e-5, 1e-6], [1e-5, 1e-6], [1e-5, 2e-5]]  # the third is over 100, as most of its column, and the last over 50
    np.testing.assert_allclose(agreement.relative(ours, theirs), expected, rtol=0.05)
    assert agreement.relative(ours[:0], theirs[:0]).shape == (0, 2)


def test_shares_differences_and_returns_on_both_sides_of_their_tolerance():
    told = {"largest_difference": {"values": 1e-5}, "equal": {"action": 0.999}, "model_error": None}
    assert agreement.failures(told, agreement.FLOAT) == []
    assert "values differs" in agreement.failures(told | {"largest_difference": {"values": 1.1e-5}}, agreement.FLOAT)[0]
    assert "values differs" in agreement.failures(told | {"largest_difference": {"values": float("nan")}}, agreement.FLOAT)[0]
    assert "action is equal in 99.80%" in agreement.failures(told | {"equal": {"action": 0.998}}, agreement.FLOAT)[0]
    low = np.arange(10.0)
    assert agreement.failures(told | {"returns": agreement.compare_returns(low, low)}, agreement.FLOAT) == []
    assert agreement.failures(told | {"returns": agreement.compare_returns(low, low - 1e-5)}, agreement.FLOAT) == []
    assert agreement.failures(told | {"returns": agreement.compare_returns(low, low + 1)}, agreement.FLOAT) == []
    assert "lower" in agreement.failures(told | {"returns": agreement.compare_returns(low, low - 1)}, agreement.FLOAT)[0]
    assert "wrong by 0.3" in agreement.failures(told | {"largest_difference": {}, "model_error": 0.3}, agreement.INT8)[0]
