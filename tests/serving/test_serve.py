"""The server as a process: killed under load, given new exports under load, and ended."""

import threading

import numpy as np
import pytest

from mbrl_jax.environments.logged.episodes import Episodes
from mbrl_jax.environments.logged.files import open_log

from . import exports
from .processes import Process, Senders, ask, wait_for


def read_all(folder):
    """The observations of all transitions that training reads, as a set of rows."""
    blocks = [block for part in sorted(folder.glob("part-*.parquet")) for block in Episodes([open_log(str(part))])]
    rows = np.concatenate([block.observation for block in blocks])
    return [tuple(row) for row in rows.tolist()]


@pytest.mark.parametrize("kills", [2])
def test_no_acknowledged_transition_is_lost_to_a_kill_under_load_and_the_end_is_in_order(tmp_path, kills):
    folder, data, acknowledged = exports.write_export(tmp_path / "export"), tmp_path / "data", []
    for kill in range(kills):
        process = Process(folder, "--data", data)
        senders = Senders(process, 4, kill)
        wait_for(lambda senders=senders: len(senders.acknowledged) > 200)
        process.kill()
        senders.join()
        assert senders.errors == []
        acknowledged += senders.acknowledged
    process = Process(folder, "--data", data)
    with process.connect() as connection:
        content, _ = exports.transitions("last", np.full(4, -9.0), 2, end="terminated")
        assert ask(connection, "/transitions", content) == (200, {"kept": 2})
    status, out, err = process.stop()
    assert (status, out, err) == (0, "has ended in order\n", "")
    kept = read_all(data)
    assert set(map(tuple, acknowledged)) <= set(kept)
    assert len(kept) == len(set(kept))  # and none is there twice
    assert not list(data.glob(".*.new"))


def test_new_exports_are_taken_up_under_load_without_a_failed_request(tmp_path):
    root = tmp_path / "exports"
    exports.write_export(root / "000")
    process = Process(root, "--watch", "1000")
    seen = np.random.default_rng(0).normal(0, 0.5, (8, 4)).tolist()
    answers, failed, stop = [], [], threading.Event()

    def load():
        with process.connect() as connection:
            while not stop.is_set():
                status, told = ask(connection, "/act", {"observation": seen})
                (answers if status == 200 else failed).append(told)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with process.connect() as connection:
            for number in range(1, 11):
                exports.write_export(root / f"{number:03d}", seed=number % 2)
                status, told = ask(connection, "/reload", {})
                assert (status, told["export"]) == (200, f"{number:03d}")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        ended = process.stop()
    assert failed == []
    assert len({str(told["action"]) for told in answers}) == 2  # both exports have answered
    assert ended[0] == 0
