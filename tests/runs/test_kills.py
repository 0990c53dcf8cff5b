"""Processes that are killed, at moments drawn at random, or told to stop, or that run out of disk: nothing is lost."""

import contextlib
import importlib
import json
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
from processes import FORKS, compile_as_tests_do

from mbrl_jax import command_line
from mbrl_jax.config import save
from mbrl_jax.runs import checkpoint, execution

KILLS = 12
RESULTS = {"config.yaml", "metrics.parquet", "policies.npz", "outcome.npz", "curves.png"}
OTHERS = {"run.json", "metrics.jsonl", "summary.json"}


def work(words: list[str], output: Path, cache: str, largest_file: int) -> None:
    """``mbrl-jax`` in a process that begins here; it compiles but once for all of them.

    ``largest_file`` bytes are more than any file may have, as on a disk that is full; -1 is no limit.
    """
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    compile_as_tests_do(cache)
    with output.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        command_line.main(words)


def work_as_nobody(words: list[str], output: Path) -> None:
    """The same for somebody who may not write here."""
    with output.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        if os.getuid() == 0:
            execution.use_all_cores()
            importlib.import_module("gymnax")  # which may lie where others cannot read
            os.setuid(65534)
        command_line.main(words)


class Runs:
    """Starts ``mbrl-jax train`` on one configuration, again and again."""

    def __init__(self, folder: Path, config: Path, rounds: int):
        self.folder, self.config, self.rounds = folder, config, rounds
        self.cache = str(folder / "cache")
        self.output = folder / "output"

    def words(self, out: Path, *flags: str) -> list[str]:
        return ["train", str(self.config), "--seeds", "2", "--out", str(out), "--checkpoint-every", "0", *flags]

    def start(self, out: Path, *flags: str, largest_file: int = -1, output: Path | None = None):
        where = self.output if output is None else output
        process = FORKS.Process(target=work, args=(self.words(out, *flags), where, self.cache, largest_file))
        process.start()
        return process

    def done(self, out: Path) -> int:
        path = out / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def wait_for_round(self, out: Path, process, more_than: int) -> bool:
        """Wait until a round more has been noted; whether the process is still alive then."""
        while process.is_alive() and self.done(out) <= more_than:
            time.sleep(0.002)
        return process.is_alive()


def make_runs(config, folder):
    save(config, folder / "config.yaml")
    return Runs(folder, folder / "config.yaml", config.steps // config.round_steps)


def resulting(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in RESULTS | {"model.npz"}}


def check_like(folder: Path, unbroken: dict[str, bytes], rounds: int):
    """The results are the unbroken run's, byte for byte, every round was noted once, and nothing else is left."""
    assert resulting(folder) == unbroken
    assert {path.name for path in folder.iterdir()} == set(unbroken) | OTHERS
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(1, rounds + 1))


@pytest.fixture(scope="module")
def model_free(tiny, tmp_path_factory):
    from dataclasses import replace

    from mbrl_jax.config import ModelFreeQConfig

    free = ModelFreeQConfig(**{name: getattr(tiny, name) for name in ModelFreeQConfig.__dataclass_fields__})
    return make_runs(replace(free, protocol="interactive", steps=400), tmp_path_factory.mktemp("model_free"))


def test_a_run_that_is_killed_12_times_ends_as_the_unbroken_one(model_free):
    runs = model_free
    process = runs.start(runs.folder / "unbroken")
    process.join()
    assert process.exitcode == 0, runs.output.read_text()
    unbroken = resulting(runs.folder / "unbroken")
    assert set(unbroken) == RESULTS

    moments = random.Random(0)
    killed, finished, phases = 0, 0, set()
    while killed < KILLS or finished == 0:
        out = runs.folder / f"broken_{finished}"
        before = runs.done(out)
        process = runs.start(out, "--resume")
        if killed < KILLS and killed % 3 == 0:  # before, while or after it starts, restores and compiles
            time.sleep(moments.uniform(0, 2.5))
            phases.add("start")
        elif killed < KILLS:  # while it trains and saves
            runs.wait_for_round(out, process, before)
            time.sleep(moments.uniform(0, 0.25))
            phases.add("train")
        else:
            process.join()
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode == 0:
            check_like(out, unbroken, runs.rounds)
            finished += 1
        else:
            assert process.exitcode == -signal.SIGKILL, runs.output.read_text()
            killed += 1
    assert phases == {"start", "train"}


def test_the_model_based_run_too(tiny, tmp_path):
    from dataclasses import replace

    runs = make_runs(replace(tiny, protocol="interactive", steps=200), tmp_path)
    process = runs.start(tmp_path / "unbroken")
    process.join()
    assert process.exitcode == 0, runs.output.read_text()
    for _ in range(3):
        before = runs.done(tmp_path / "broken")
        process = runs.start(tmp_path / "broken", "--resume")
        assert runs.wait_for_round(tmp_path / "broken", process, before + 2)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    process = runs.start(tmp_path / "broken", "--resume")
    process.join()
    assert process.exitcode == 0, runs.output.read_text()
    check_like(tmp_path / "broken", resulting(tmp_path / "unbroken"), runs.rounds)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_finishes_the_round_saves_and_says_how_to_go_on(model_free, number):
    runs, out = model_free, model_free.folder / f"asked_{number}"
    process = runs.start(out)
    assert runs.wait_for_round(out, process, 1)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 130
    done = runs.done(out)
    assert 0 < done < runs.rounds
    said = runs.output.read_text()
    assert f"stopped after round {done}; round {done} is saved. To go on: mbrl-jax train" in said
    assert f"--out {out} --checkpoint-every 0 --resume" in said
    process = runs.start(out, "--resume")
    process.join()
    assert process.exitcode == 0
    assert f"goes on after round {done}" in runs.output.read_text()
    check_like(out, resulting(out), runs.rounds)


def test_a_run_that_goes_on_and_still_compiles_is_stopped_at_once_and_keeps_its_checkpoint(model_free, tmp_path):
    runs, out = model_free, model_free.folder / "compiling"
    process = runs.start(out)
    assert runs.wait_for_round(out, process, 1)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    before, text = checkpoint.rounds(out / "checkpoints"), len(runs.output.read_text())
    process = FORKS.Process(target=work, args=(runs.words(out, "--resume"), runs.output, str(tmp_path / "empty"), -1))
    process.start()
    while process.is_alive() and "compiling" not in runs.output.read_text()[text:]:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGTERM)
    process.join(timeout=5)
    assert process.exitcode == 128 + signal.SIGTERM
    assert runs.output.read_text().endswith("mbrl-jax: stopped by SIGTERM\n")
    assert "finishes the rounds" not in runs.output.read_text()[text:]
    assert checkpoint.rounds(out / "checkpoints") == before


def test_a_second_signal_stops_at_once_and_does_no_harm(model_free):
    runs, out = model_free, model_free.folder / "twice"
    process = runs.start(out)
    assert runs.wait_for_round(out, process, 1)
    os.kill(process.pid, signal.SIGINT)
    while "Ctrl-C again stops at once" not in runs.output.read_text() and process.is_alive():
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode in (128 + signal.SIGINT, 130)
    process = runs.start(out, "--resume")
    process.join()
    assert process.exitcode == 0
    check_like(out, resulting(out), runs.rounds)


def test_on_a_full_disk_the_run_goes_on_loses_nothing_that_was_saved_and_says_what_to_do(model_free):
    runs, out = model_free, model_free.folder / "full"
    process = runs.start(out)
    while process.is_alive() and not checkpoint.rounds(out / "checkpoints"):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    before = checkpoint.rounds(out / "checkpoints")[-1]
    pipe = runs.folder / "pipe"
    os.mkfifo(pipe)  # what the process says is not on that disk
    process = runs.start(out, "--resume", largest_file=20_000, output=pipe)
    said = pipe.read_text()
    process.join()
    assert process.exitcode == 2, said
    assert "could not be written" in said
    assert "is kept, and the run goes on" in said
    assert "the results cannot be written" in said
    assert "Then go on with: mbrl-jax train" in said
    kept = checkpoint.rounds(out / "checkpoints")
    assert kept[-1] >= before
    for number in kept:
        checkpoint.read(out / "checkpoints", number)

    process = runs.start(out, "--resume")
    process.join()
    assert process.exitcode == 0, runs.output.read_text()
    assert {path.name for path in out.iterdir()} == RESULTS | OTHERS


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(tmp_path):
    output = tmp_path / "output"
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours").chmod(0o555)
    words = ["train", "smoke", "--seeds", "1", "--out", str(tmp_path / "ours" / "run")]
    process = FORKS.Process(target=work_as_nobody, args=(words, output))
    process.start()
    process.join()
    assert process.exitcode == 2
    assert "cannot be made: [Errno 13] Permission denied" in output.read_text()
    assert "compiling" not in output.read_text()


def test_a_run_whose_seeds_all_diverge_says_so_and_keeps_what_it_has(model_free, tmp_path):
    runs = model_free
    before = len(runs.output.read_text())
    process = runs.start(tmp_path / "run", "--agent.learning-rate", "1e38")
    process.join()
    assert process.exitcode == 0
    said = runs.output.read_text()[before:]
    assert "2 of 2 seeds frozen" in said
    assert "every seed went non-finite" in said
    assert set(resulting(tmp_path / "run")) == RESULTS


def test_a_run_that_is_finished_is_not_begun_again(model_free):
    runs, out = model_free, model_free.folder / "once"
    runs.start(out).join()
    first, before = resulting(out), len(runs.output.read_text())
    for flags, status in (((), 2), (("--resume",), 0), (("--resume", "--seed", "1"), 2)):
        process = runs.start(out, *flags)
        process.join()
        assert process.exitcode == status
    said = runs.output.read_text()[before:]
    assert "exists already and is left as it is" in said
    assert "is finished already" in said
    assert "base_seed: 1 does not fit" in said
    assert resulting(out) == first
