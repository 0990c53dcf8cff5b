import json
import struct
import sys
import time

import pytest

from mbrl_jax.config import ConfigError
from mbrl_jax.runs.callbacks import JsonLines, TensorBoard, WeightsAndBiases, read_lines
from mbrl_jax.runs.metrics import Entry


def entry(number):
    return Entry(number, 10 * number, 0.5 * number, 0, {"update.loss": 1 / number, "curve_return": 20.0 + number})


def test_every_round_is_a_line_that_can_be_read_at_once(tmp_path):
    saved = 0
    journal = JsonLines(tmp_path / "metrics.jsonl", 0, lambda: saved)
    for number in (1, 2):
        saved = number - 1
        journal.round(entry(number))
        lines = read_lines(tmp_path / "metrics.jsonl")
        assert lines[-1] == {**entry(number).as_json(), "saved": number - 1}
    journal.close()


def test_a_run_that_goes_on_drops_what_came_after_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path, 0)
    for number in (1, 2, 3):
        first.round(entry(number))
    first.close()
    with path.open("a") as file:
        file.write('{"round": 4, "st')  # killed while it wrote
    assert [line["round"] for line in read_lines(path)] == [1, 2, 3]
    second = JsonLines(path, 2)
    second.round(entry(3))
    second.close()
    assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == [1, 2, 3]


def events(path):
    """What a TensorBoard event file holds: length, checksum, event, checksum, again and again."""
    from tensorboardX.proto.event_pb2 import Event

    content, place = path.read_bytes(), 0
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        yield Event.FromString(content[place + 12 : place + 12 + length])
        place += 16 + length


def test_tensorboard_gets_a_point_of_every_curve(tmp_path):
    journal = TensorBoard(tmp_path, 0)
    journal.round(entry(1))
    journal.round(entry(2))
    journal.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    told = {(value.tag, event.step): value.simple_value for event in events(path) for value in event.summary.value}
    assert told == {
        ("update/loss", 10): 1.0,
        ("update/loss", 20): 0.5,
        ("curve_return", 10): 21.0,
        ("curve_return", 20): 22.0,
    }


@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_keeps_an_offline_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    journal = WeightsAndBiases("a_project", tmp_path, {"agent": {"learning_rate": 0.1}})
    journal.round(entry(1))
    journal.round(entry(2))
    journal.close()
    (record,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    words = (b"a_project", b"update/loss", b"curve_return", b"learning_rate")
    patience = time.monotonic() + 60  # a process of its own writes the file
    while not all(word in record.read_bytes() for word in words):
        assert time.monotonic() < patience
        time.sleep(0.1)


@pytest.mark.filterwarnings("ignore")
def test_that_weights_and_biases_lets_nobody_in_is_said_with_what_to_do(tmp_path, monkeypatch):
    import wandb

    def refuse(**_):
        raise wandb.errors.UsageError("api_key not configured")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConfigError, match="wandb: api_key not configured; log in with `wandb login`, or set WANDB_MODE=offline"):
        WeightsAndBiases("project", tmp_path, {})


@pytest.mark.parametrize(
    ("package", "make", "name"),
    [
        ("tensorboardX", lambda path: TensorBoard(path, 0), "tensorboard"),
        ("wandb", lambda path: WeightsAndBiases("project", path, {}), "wandb"),
    ],
)
def test_that_a_package_is_missing_is_said_with_what_to_install(tmp_path, monkeypatch, package, make, name):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{name}: .*install the extra `mbrl-jax\[{name}\]`"):
        make(tmp_path)
    assert not list(tmp_path.iterdir())
