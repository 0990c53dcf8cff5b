import asyncio
import contextlib
import json
import shutil
import socket

import httpx
import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mbrl_jax import command as entry
from mbrl_jax.environments.data import settle
from mbrl_jax.errors import ConfigError
from mbrl_jax.serving import contract
from mbrl_jax.serving.server import app as application
from mbrl_jax.serving.server import command, reading
from mbrl_jax.serving.server.app import Settings, make_app
from mbrl_jax.serving.server.reading import ARROW, Limits

from . import exports

LIMITS = Limits(rows=64, body=100_000, horizon=50, seconds=5.0)


class Client:
    """Asks an application in this process, and runs everything on one loop."""

    def __init__(self, runner, **options):
        self.runner = runner
        self.guard, self.server = make_app(Settings(**{"limits": LIMITS, "watch": 0.05, **options}))
        transport = httpx.ASGITransport(self.guard, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://server")
        self.life = self.server.lifespan(None)
        runner.run(self.life.__aenter__())

    def close(self):
        self.runner.run(self.life.__aexit__(None, None, None))

    def post(self, path, content=None, **options):
        if not isinstance(content, bytes):
            content = json.dumps({} if content is None else content).encode()
        options = {"headers": {"content-type": "application/json"}, **options}
        return self.runner.run(self.client.post(path, content=content, **options))

    def get(self, path, **options):
        return self.runner.run(self.client.get(path, **options))


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return exports.write_export(tmp_path_factory.mktemp("served") / "export")


@pytest.fixture(scope="module")
def client(runner, folder, tmp_path_factory):
    with contextlib.closing(Client(runner, folder=folder, data=tmp_path_factory.mktemp("data"))) as client:
        yield client


@pytest.fixture
def new_client(runner):
    with contextlib.ExitStack() as leaving:
        yield lambda **options: leaving.enter_context(contextlib.closing(Client(runner, **options)))


def run(folder, name, **inputs):
    session = onnxruntime.InferenceSession((folder / name).read_bytes(), providers=["CPUExecutionProvider"])
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, inputs), strict=True))


@pytest.fixture(scope="module")
def observations():
    return np.random.default_rng(0).normal(0, 0.5, (20, 4)).astype(np.float32)


# -------------------------------------------------------------------------------------------------------------- actions


def test_actions_are_those_of_the_exported_policy_for_one_observation_and_for_many(client, folder, observations):
    expected = run(folder, "policy.onnx", observation=observations)
    assert len(set(expected["action"].tolist())) == 2
    assert client.post("/act", {"observation": observations.tolist()}).json() == {"action": expected["action"].tolist()}
    one = client.post("/act", {"observation": observations[3].tolist(), "explain": True}).json()
    assert one["action"] == expected["action"][3]
    np.testing.assert_allclose(one["values"], expected["values"][3], rtol=1e-5)


def test_arrow_streams_are_answered_by_arrow_streams(client, folder, observations):
    column = pa.FixedSizeListArray.from_arrays(pa.array(observations.ravel()), 4)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema([("observation", column.type)])) as writer:
        writer.write_batch(pa.record_batch([column], ["observation"]))
    answer = client.post("/act", sink.getvalue().to_pybytes(), headers={"content-type": ARROW})
    assert answer.headers["content-type"] == ARROW
    found = pa.ipc.open_stream(answer.content).read_all()
    np.testing.assert_array_equal(found["action"], run(folder, "policy.onnx", observation=observations)["action"])


def test_continuous_actions_are_served_in_the_tasks_own_units(new_client, tmp_path):
    folder = exports.write_export(tmp_path / "export", preset="pendulum_pg")
    seen = np.random.default_rng(1).normal(0, 2, (5, 3)).astype(np.float32)
    client = new_client(folder=folder)
    found = client.post("/act", {"observation": seen.tolist()}).json()["action"]
    np.testing.assert_allclose(found, run(folder, "policy.onnx", observation=seen)["action"], atol=1e-6)
    assert client.post("/transitions", {}).status_code == 404


# ---------------------------------------------------------------------------------------------------------- imagination


def lines(answer):
    assert answer.status_code == 200, answer.text
    head, *steps = map(json.loads, answer.text.splitlines())
    return head, steps


def test_an_imagined_rollout_is_the_model_moved_by_the_policy_step_by_step(client, folder, observations):
    starts = observations[:3] * 0.05
    head, steps = lines(client.post("/imagine", {"observation": starts.tolist(), "horizon": 4}))
    assert head == {"rollouts": 3, "members": ["mean"] * 3, "horizon": 4}
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    now = starts
    for step in steps:
        action = run(folder, "policy.onnx", observation=now)["action"]
        said = run(folder, "model.onnx", observation=now, action=action)
        np.testing.assert_array_equal(step["action"], action)
        np.testing.assert_allclose(step["observation"], said["next_observation"], atol=1e-5)
        np.testing.assert_allclose(step["disagreement"], said["disagreement"], rtol=1e-4)
        now = said["next_observation"]


def test_each_member_moves_its_own_rollouts(client, folder, observations):
    start = observations[0] * 0.05
    head, steps = lines(client.post("/imagine", {"observation": start.tolist(), "horizon": 3, "members": "all"}))
    assert head["members"] == [0, 1]
    for member in range(2):
        now = start[None]
        for step in steps:
            action = run(folder, "policy.onnx", observation=now)["action"]
            now = run(folder, f"member{member}.onnx", observation=now, action=action)["next_observation"]
            np.testing.assert_allclose(step["observation"][member], now[0], atol=1e-5)
    only = lines(client.post("/imagine", {"observation": start.tolist(), "horizon": 3, "members": [1]}))[1]
    np.testing.assert_allclose(only[-1]["observation"][0], steps[-1]["observation"][1], atol=1e-6)


def test_a_rollout_ends_where_the_model_or_the_rule_ends_it(client, observations):
    starts = [[2.39, 3.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    _, steps = lines(client.post("/imagine", {"observation": starts, "horizon": 50}))
    ended = next(place for place, step in enumerate(steps) if step["terminated"][0])
    assert steps[ended]["took"][0]
    assert not any(step["took"][0] for step in steps[ended + 1 :])
    position, _, angle, _ = steps[ended]["observation"][0]
    assert abs(position) > 2.4 or abs(angle) > 12 * np.pi / 180
    if len(steps) > ended + 1:
        assert steps[-1]["observation"][0] == steps[ended]["observation"][0]
    start = [0.0, 0.0, 0.0, 0.0]
    free = lines(client.post("/imagine", {"observation": start, "horizon": 10}))[1]
    each = [step["disagreement"][0] for step in free]
    for kind, values in (("threshold", each), ("accumulated", np.cumsum(each).tolist())):
        mark = sorted(values)[len(values) // 2]
        for above, wanted in ((1.0001, values), (0.9999, values)):
            rule = {"kind": kind, "mark": mark * above}
            found = lines(client.post("/imagine", {"observation": start, "horizon": 10, "rule": rule}))[1]
            first = next((place for place, value in enumerate(wanted) if value > mark * above), len(values))
            assert len(found) == first, (kind, above)


# ---------------------------------------------------------------------------------------------------------- transitions


def test_transitions_that_are_kept_are_what_training_reads(new_client, folder, tmp_path, tiny):
    client = new_client(folder=folder, data=tmp_path / "data")
    generator = np.random.default_rng(0)
    for episode in range(3):
        first, last = exports.transitions(f"episode {episode}", np.zeros(4), 20, generator=generator)
        assert client.post("/transitions", first).json() == {"kept": 20}
        rest, _ = exports.transitions(f"episode {episode}", last, 5, end="truncated", generator=generator)
        assert client.post("/transitions", rest).json() == {"kept": 5}
    assert client.post("/transitions/seal").json() == {"sealed": 75}
    (part,) = (tmp_path / "data").glob("*.parquet")
    config = settle(tiny.__class__(data=(str(part),), environment=tiny.environment))
    assert config.random_transitions == 75
    assert client.post("/transitions", first).status_code == 200  # another episode of the same name
    wrong = client.post("/transitions", first)
    assert (wrong.status_code, wrong.json()["field"]) == (409, "observation")


def test_requests_that_wait_together_are_all_on_the_disk_before_any_is_answered(new_client, runner, folder, tmp_path):
    client = new_client(folder=folder, data=tmp_path / "data")
    bodies = [json.dumps(exports.transitions(str(number), np.zeros(4), 2)[0]) for number in range(40)]
    sizes = []

    async def send(body):
        answer = await client.client.post("/transitions", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 200
        sizes.append((tmp_path / "data" / "journal-000001.bin").stat().st_size)

    async def all_of_them():
        await asyncio.gather(*map(send, bodies))

    runner.run(all_of_them())
    record = sizes[-1] / 40
    assert all(size >= (place + 1) * (record - 1) for place, size in enumerate(sizes))


# --------------------------------------------------------------------------------------------------------------- reload


def test_a_new_export_takes_the_old_ones_place_and_a_broken_one_does_not(new_client, tmp_path, observations):
    root = tmp_path / "exports"
    exports.write_export(root / "1")
    client = new_client(folder=root, watch=1000)
    first = client.get("/ready").json()
    assert (first["export"], first["members"]) == ("1", 2)
    exports.write_export(root / "2", seed=1)
    assert client.post("/reload").json()["export"] == "2"
    expected = run(root / "2", "policy.onnx", observation=observations)["action"].tolist()
    assert client.post("/act", {"observation": observations.tolist()}).json()["action"] == expected
    broken = shutil.copytree(root / "2", root / "3")
    (broken / "member0.onnx").write_bytes(b"nothing")
    refused = client.post("/reload")
    assert (refused.status_code, refused.json()["field"]) == (409, "export")
    assert "SHA-256" in refused.json()["detail"]
    exports.write_export(root / "4", preset="pendulum_pg")
    assert "serve it by another process" in client.post("/reload").json()["detail"]
    assert client.post("/act", {"observation": observations.tolist()}).json()["action"] == expected
    assert 'mbrl_reloads_total{result="refused"} 2.0' in client.get("/metrics").text


def test_a_watched_folder_is_taken_up_by_itself(new_client, runner, tmp_path):
    root = tmp_path / "exports"
    exports.write_export(root / "1")
    client = new_client(folder=root, watch=0.02)
    exports.write_export(root / "2", seed=1)

    async def until_taken():
        while client.server.exports.current.folder.name != "2":
            await asyncio.sleep(0.01)

    runner.run(asyncio.wait_for(until_taken(), 20))


def test_what_a_file_gives_must_be_what_the_contract_says(tmp_path):
    exports.write_export(tmp_path)
    told = json.loads((tmp_path / contract.NAME).read_text())

    def with_policy(**changes):
        files = [entry | changes if entry["graph"] == "policy" else entry for entry in told["files"]]
        (tmp_path / contract.NAME).write_text(json.dumps(told | {"files": files}))

    policy = next(entry for entry in told["files"] if entry["graph"] == "policy")
    with_policy(outputs=policy["outputs"][:1])
    with pytest.raises(ConfigError, match="its outputs are action, values, not those of the contract"):
        application.Exports(tmp_path)
    values = policy["outputs"][1] | {"shape": ["B", 3]}
    with_policy(outputs=[policy["outputs"][0], values])
    with pytest.raises(ConfigError, match=r"values is float32\[2, 2\]; it must be float32\[2, 3\]"):
        application.Exports(tmp_path)
    with_policy(precision="int8-static")
    with pytest.raises(ConfigError, match="there is no policy in onnx of precision 'float32'"):
        application.Exports(tmp_path)


# --------------------------------------------------------------------------------------------------- what is told and kept


def test_a_key_is_asked_of_all_but_the_page_and_the_state(new_client, folder):
    client = new_client(folder=folder, key="secret")
    body = {"observation": [0.0] * 4}
    assert client.post("/act", body).status_code == 401
    told = {"content-type": "application/json"}
    assert client.post("/act", body, headers=told | {"x-api-key": "secre"}).status_code == 401
    assert client.post("/act", body, headers=told | {"x-api-key": "secret"}).status_code == 200
    assert client.post("/act", body, headers=told | {"authorization": "Bearer secret"}).status_code == 200
    assert client.get("/metrics").status_code == client.get("/contract").status_code == 401
    for path in ("/", "/health", "/ready", "/docs", "/openapi.json", "/page/page.js"):
        assert client.get(path).status_code == 200, path


def test_counters_tell_requests_and_what_left_the_range_of_the_data(new_client, runner, folder):
    client = new_client(folder=folder)
    client.post("/act", {"observation": [[0.0] * 4, [0.0, 1.5, 0.0, 0.0], [1.0, -1.0, 0.0, 0.0]]})  # the range is -1 to 1
    client.post("/act", {})
    client.get("/nothing")
    runner.run(asyncio.sleep(application.SAMPLE_SECONDS * 2))
    text = client.get("/metrics").text
    for line in (
        "mbrl_served_observations_total 3.0",
        "mbrl_served_observations_out_of_range_total 1.0",
        'mbrl_requests_total{path="/act",status="200"} 1.0',
        'mbrl_requests_total{path="/act",status="422"} 1.0',
        'mbrl_requests_total{path="other",status="404"} 1.0',
        "mbrl_disagreement_count 3.0",
    ):
        assert line in text


def test_the_contract_and_the_description_are_served(client, folder):
    assert client.get("/contract").json() == json.loads((folder / contract.NAME).read_text())
    described = client.get("/openapi.json").json()["paths"]
    assert {"/act", "/imagine", "/transitions", "/reload", "/health", "/ready", "/metrics", "/contract"} <= set(described)
    assert client.get("/health").json() == {"alive": True}


def test_what_fails_within_is_told_without_a_trace(new_client, folder, monkeypatch):
    client = new_client(folder=folder)

    def fails(observation):
        raise RuntimeError("a secret of the house")

    monkeypatch.setattr(client.server.exports.current, "act", fails)
    answer = client.post("/act", {"observation": [0.0] * 4})
    assert (answer.status_code, answer.json()) == (500, {"field": "server", "detail": "it failed to answer; its log says why"})
    assert client.get("/health").status_code == 200


# ------------------------------------------------------------------------------------------------------------ bad input

CASES = {
    "no JSON": ("/act", b"{", 400, "body"),
    "no object": ("/act", b"[1]", 422, "body"),
    "NaN": ("/act", b'{"observation": [NaN, 0, 0, 0]}', 400, "body"),
    "too large for float32": ("/act", {"observation": [1e300, 0, 0, 0]}, 422, "observation"),
    "nothing": ("/act", {}, 422, "observation"),
    "too few numbers": ("/act", {"observation": [0, 0, 0]}, 422, "observation"),
    "text": ("/act", {"observation": ["a"] * 4}, 422, "observation"),
    "flags": ("/act", {"observation": [True] * 4}, 422, "observation"),
    "an empty batch": ("/act", {"observation": []}, 422, "observation"),
    "unequal rows": ("/act", {"observation": [[0] * 4, [0] * 3]}, 422, "observation"),
    "too many rows": ("/act", {"observation": [[0] * 4] * 65}, 422, "observation"),
    "a body that is too large": ("/act", b" " * 100_001, 413, "body"),
    "an unknown field": ("/act", {"observation": [0] * 4, "model": 1}, 422, "'model'"),
    "a horizon of a million": ("/imagine", {"observation": [0] * 4, "horizon": 10**6}, 422, "horizon"),
    "no horizon at all": ("/imagine", {"observation": [0] * 4, "horizon": 0}, 422, "horizon"),
    "a rule that there is not": ("/imagine", {"observation": [0] * 4, "rule": {"kind": "never"}}, 422, "rule"),
    "a mark below 0": ("/imagine", {"observation": [0] * 4, "rule": {"kind": "threshold", "mark": -1}}, 422, "rule"),
    "a member that there is not": ("/imagine", {"observation": [0] * 4, "members": [2]}, 422, "members"),
    "too many rollouts": ("/imagine", {"observation": [[0] * 4] * 40, "members": "all"}, 422, "observation"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_with_its_field(client, case):
    path, content, status, field = CASES[case]
    answer = client.post(path, content)
    assert (answer.status_code, answer.json()["field"]) == (status, field), answer.text


BROKEN = {
    "action": ([2, 0, 1], "whole numbers"),
    "reward": ([1.0, 2.0], "must have 3 rows"),
    "terminated": ([True, False, False], "ends before the last row"),
    "truncated": ([0, 0, 0], "true and false"),
    "next_observation": ([[9.0] * 4] * 3, "not the observation of the next row"),
    "observation": ([[0.0] * 3] * 3, r"\[n, 4\]"),
    "episode": ("", "1 to 200 bytes"),
}


@pytest.mark.parametrize("field", BROKEN)
def test_transitions_that_do_not_fit_are_refused_with_their_field(field):
    task = contract.Task("CartPole-v1", exports.AXES["CartPole-v1"], 2, (), (), 500, (), ())
    good, _ = exports.transitions("a", np.zeros(4), 3)
    assert len(reading.transitions(good, task, LIMITS).reward) == 3
    value, message = BROKEN[field]
    with pytest.raises(reading.Refused, match=message) as refused:
        reading.transitions(good | {field: value}, task, LIMITS)
    assert refused.value.field == field
    with pytest.raises(reading.Refused, match=f"{field}: it is missing"):
        reading.transitions({name: each for name, each in good.items() if name != field}, task, LIMITS)


def test_a_body_that_does_not_come_and_one_of_another_type_are_refused(new_client, runner, folder):
    client = new_client(folder=folder, limits=LIMITS._replace(seconds=0.05))
    assert client.post("/act", {}, headers={"content-type": "text/plain"}).status_code == 415
    assert client.post("/act", {}, headers={}).status_code == 415

    async def slowly():
        yield b"{"
        await asyncio.sleep(1)

    async def ask():
        return await client.client.post("/act", content=slowly(), headers={"content-type": "application/json"})

    assert runner.run(ask()).status_code == 408


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
FIELDS = st.sampled_from(["observation", "horizon", "rule", "members", "explain", "episode", *reading.COLUMNS])
REQUESTS = {"seen": 0, "bad": 0}


@settings(max_examples=700, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["/act", "/imagine", "/transitions"]),
    content=st.dictionaries(FIELDS, JUNK, max_size=4) | JUNK,
    raw=st.none() | st.binary(max_size=60),
    media=st.sampled_from(["application/json"] * 4 + [ARROW]),
)
def test_no_request_whatever_is_in_it_gets_more_than_a_refusal(client, path, content, raw, media):
    body = json.dumps(content).encode("utf-8", "surrogatepass") if raw is None else raw
    answer = client.post(path, body, headers={"content-type": media})
    REQUESTS["seen"] += 1
    if answer.status_code != 200:
        REQUESTS["bad"] += 1
        assert 400 <= answer.status_code < 500, (body, answer.text)
        assert set(answer.json()) == {"field", "detail"}
        assert "Traceback" not in answer.text


def test_at_least_500_of_those_requests_were_bad_and_the_server_still_acts(client):
    if not REQUESTS["seen"]:
        pytest.skip("the test before has not run")
    assert REQUESTS["bad"] >= 500
    assert client.post("/act", {"observation": [0.0] * 4}).status_code == 200


# --------------------------------------------------------------------------------------------------------------- at start


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "70000"], "port: 70000 is out of range"),
        (["--host", "0.0.0.0"], "host: '0.0.0.0' would serve everybody"),
        (["--rows", "0"], "rows: 0 is out of range"),
    ],
)
def test_a_start_that_cannot_be_is_refused(folder, words, message, monkeypatch):
    monkeypatch.delenv(command.KEY, raising=False)
    with pytest.raises(ConfigError, match=message):
        command.main([str(folder), *words])


def test_a_port_in_use_and_an_export_that_is_none_are_refused_in_one_line(folder, tmp_path, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = ["mbrl-jax", "serve", str(folder), "--port", str(taken.getsockname()[1])]
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as stopped:
            entry.main()
    assert stopped.value.code == 2
    assert "cannot be used" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["mbrl-jax", "serve", str(tmp_path), "--port", "0"])
    with pytest.raises(SystemExit):
        entry.main()
    assert capsys.readouterr().err.startswith(f"mbrl-jax: '{tmp_path}': there is no export")
