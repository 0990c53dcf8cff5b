"""A run that is stopped goes on as if nothing had been."""

import errno
import json
import multiprocessing
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import numpy as np
import pytest

from mbrl_jax import trees
from mbrl_jax.config import ConfigError, ModelFreeQConfig, to_dict
from mbrl_jax.runs import checkpoint, claims, execution, results, runner
from mbrl_jax.runs import folder as run_folder
from mbrl_jax.runs.claims import InUseError
from mbrl_jax.runs.folder import Asked
from mbrl_jax.runs.interruption import Interrupted, Interruption
from mbrl_jax.runs.program import Batch
from mbrl_jax.runs.training import train
from mbrl_jax.serving import playing


class After:
    """An interruption that is requested once ``rounds`` rounds have been noted."""

    def __init__(self, folder, rounds):
        self.folder, self.rounds = folder, rounds

    @property
    def requested(self):
        path = self.folder / "metrics.jsonl"
        return len(path.read_text().splitlines()) >= self.rounds


def longer(tiny, protocol):
    return replace(tiny, protocol=protocol, steps=60)


def free(tiny):
    return ModelFreeQConfig(**{name: getattr(tiny, name) for name in ModelFreeQConfig.__dataclass_fields__})


def create(path, asked, every=0.0, said=None, keep=2):
    say = (said if said is not None else []).append
    return run_folder.opened(path, asked, "the command", every=every, keep=keep, say=say)


def take_up(path, asked, every=0.0, said=None, number=None):
    say = (said if said is not None else []).append
    return run_folder.opened(path, asked, "the command", resume=True, number=number, every=every, say=say)


def enter(opened):
    with opened:
        pass


PROGRAMS = {}  # compiled ones, by what was asked for and by how seeds are laid out


def prepared(asked):
    """The program of a run, compiled once for all that go on with it here; processes of their own are killed in test_kills."""
    key = repr((asked, execution.choose_layout))
    if key not in PROGRAMS:
        PROGRAMS[key] = runner.prepare([asked.config], asked.numbers, base_seed=asked.base_seed, diagnose=asked.diagnose)
    return PROGRAMS[key]


@pytest.fixture(autouse=True, scope="module")
def _programs_end_with_this_file():
    yield
    PROGRAMS.clear()


def go(opened, asked, interruption=None):
    with opened as there:
        return train(
            prepared(asked),
            Batch(0, asked.seeds),
            callbacks=[there.lines, there.checkpoints],
            found=there.found,
            interruption=interruption,
            diagnose=asked.diagnose,
        )


def unbroken(asked):
    """The same run from its beginning to its end, without a folder."""
    return train(prepared(asked), Batch(0, asked.seeds), diagnose=asked.diagnose)


def stop_after(path, asked, rounds, every=1e9):
    with pytest.raises(Interrupted) as stopped:
        go(create(path, asked, every), asked, After(path, rounds))
    return stopped.value.round


@pytest.mark.parametrize("protocol", ["batch", "interactive", "model_free"])
def test_a_run_that_was_stopped_and_goes_on_is_bit_for_bit_the_unbroken_one(tiny, tmp_path, protocol):
    config = longer(free(tiny), "interactive") if protocol == "model_free" else longer(tiny, protocol)
    asked = Asked(config, 3, 4, diagnose=protocol == "batch")
    whole = runner.run(config, 3, base_seed=4, diagnose=asked.diagnose)
    done = stop_after(tmp_path / "run", asked, 2)
    assert 2 <= done < 6
    said = []
    finished = go(take_up(tmp_path / "run", asked, said=said), asked)
    assert said == [f"goes on after round {done}"]
    assert jax.tree.structure(finished.result) == jax.tree.structure(whole.result)
    jax.tree.map(np.testing.assert_array_equal, (finished.result, finished.diagnosis), (whole.result, whole.diagnosis))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert (np.diff([line["seconds"] for line in lines]) > 0).all()


def test_it_goes_on_with_another_number_of_devices(tiny, tmp_path, monkeypatch):
    asked = Asked(longer(tiny, "interactive"), 3, 0, False)
    whole = unbroken(asked)
    stop_after(tmp_path / "run", asked, 2)  # on two devices, four places for three seeds
    everywhere = execution.choose_layout
    monkeypatch.setattr(execution, "choose_layout", lambda seeds, most=None: everywhere(1))
    finished = go(take_up(tmp_path / "run", asked), asked)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), finished.result, whole.result)


def test_a_checkpoint_holds_the_policies_as_they_stand(tiny, tmp_path):
    asked = Asked(longer(tiny, "batch"), 2, 0, False)
    stop_after(tmp_path / "run", asked, 2)
    config, policies = playing.load_policies(tmp_path / "run")
    assert config == asked.config
    found = checkpoint.read(tmp_path / "run" / "checkpoints", checkpoint.rounds(tmp_path / "run" / "checkpoints")[-1])
    for name, where in (("last", "agent/target"), ("chosen", "chosen/params")):
        for path, array in trees.flatten(policies[name]).items():
            np.testing.assert_array_equal(array, found.arrays[f"state/{where}/{path}"])


@pytest.fixture(scope="module")
def stopped(tiny, tmp_path_factory):
    """A run with checkpoints of the rounds 2 and 3."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    asked = Asked(longer(free(tiny), "batch"), 2, 0, False)
    with pytest.raises(Interrupted):
        go(create(folder, asked), asked, After(folder, 2))
    assert checkpoint.rounds(folder / "checkpoints") == [2, 3]
    return folder, asked


@pytest.fixture
def copied(stopped, tmp_path):
    shutil.copytree(stopped[0], tmp_path / "copy")
    return tmp_path / "copy", stopped[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a._replace(seeds=3), "seeds: 3 does not fit; the run in .* has 2"),
        (lambda a: a._replace(base_seed=1), "base_seed: 1 does not fit; .* has 0"),
        (
            lambda a: a._replace(config=replace(a.config, agent=replace(a.config.agent, hidden=(16,)))),
            r"agent.hidden: \[16\] .* \[8, 8\]",
        ),
        (
            lambda a: a._replace(config=replace(a.config, agent=replace(a.config.agent, learning_rate=0.5))),
            "agent.learning_rate: 0.5 ",
        ),
    ],
)
def test_to_go_on_with_something_else_is_refused_and_what_differs_is_named(stopped, change, message):
    folder, asked = stopped
    with pytest.raises(ConfigError, match=message):
        enter(take_up(folder, change(asked)))


def test_to_go_on_with_another_algorithm_is_refused(stopped, tiny):
    folder, asked = stopped
    with pytest.raises(ConfigError, match="algorithm: 'dyna_q' does not fit; .* is of 'model_free_q'"):
        enter(take_up(folder, asked._replace(config=longer(tiny, "batch"))))


def test_of_a_damaged_checkpoint_the_one_before_is_offered_and_goes_on(copied, tiny):
    folder, asked = copied
    victim = max((folder / "checkpoints" / "00000003").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 4
    victim.write_bytes(content)
    with pytest.raises(ConfigError, match="SHA-256.*the one of round 2 is whole: --resume-from 2"):
        enter(take_up(folder, asked))
    assert checkpoint.rounds(folder / "checkpoints") == [2, 3]  # refused, and left as it was
    finished = go(take_up(folder, asked, number=2), asked)
    jax.tree.map(np.testing.assert_array_equal, finished.result, unbroken(asked).result)


def test_the_manifest_says_what_the_checkpoint_is_of_and_with_what_it_was_made(stopped):
    folder, asked = stopped
    manifest = checkpoint.verify(folder / "checkpoints" / "00000003")
    assert manifest["round"] == 3
    about = manifest["about"]
    assert about["keys"] == "threefry2x32"
    assert about["run"] == json.loads((folder / "run.json").read_text())
    assert about["run"]["config"] == to_dict(asked.config)
    assert {"python", "mbrl-jax", "jax"} <= set(about["run"]["versions"])
    assert "git" in about["run"]
    assert manifest["arrays"]["state/key"] == {"shape": [2, 2], "dtype": "uint32"}


def test_a_whole_checkpoint_of_another_run_is_refused(copied, tmp_path):
    folder, asked = copied
    other = asked._replace(base_seed=1)
    stop_after(tmp_path / "other", other, 2)
    shutil.rmtree(folder / "checkpoints" / "00000003")
    (theirs,) = (tmp_path / "other" / "checkpoints").iterdir()
    shutil.copytree(theirs, folder / "checkpoints" / "00000003")
    with pytest.raises(ConfigError, match="it is of another run; that differs in base_seed; the one of round 2 is whole"):
        enter(take_up(folder, asked))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("state/time"), r"state/time must be int32\[\], there is nothing"),
        (
            lambda arrays: arrays.update({"state/time": np.zeros(2, np.int32)}),
            r"state/time must be int32\[\], there is int32\[2\]",
        ),
        (
            lambda arrays: arrays.update({"collected": arrays["collected"][:, :5]}),
            r"collected must be float32\[2, 100\], there is",
        ),
    ],
)
def test_a_whole_checkpoint_of_a_version_that_kept_other_arrays_is_refused(copied, change, message):
    folder, asked = copied
    found = checkpoint.read(folder / "checkpoints", 3)
    change(found.arrays)
    checkpoint.write(folder / "checkpoints", 3, found.arrays, found.about, keep=2)
    with pytest.raises(ConfigError, match=message):
        go(take_up(folder, asked), asked)


def test_where_no_checkpoint_is_whole_that_is_said(copied):
    folder, asked = copied
    for number in (2, 3):
        (folder / "checkpoints" / f"{number:08d}" / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="no other is whole"):
        enter(take_up(folder, asked))


def test_a_checkpoint_of_a_round_that_is_not_there_is_refused(copied):
    folder, asked = copied
    with pytest.raises(ConfigError, match=r"resume_from: 5 does not fit; there are checkpoints of the rounds \[2, 3\]"):
        enter(take_up(folder, asked, number=5))


def test_that_the_checkpoints_have_vanished_is_said(copied):
    folder, asked = copied
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ConfigError, match="have vanished; one of round . was written"):
        enter(take_up(folder, asked))


def test_results_without_a_summary_and_a_checkpoint_are_not_trained_over(copied):
    folder, asked = copied
    shutil.rmtree(folder / "checkpoints")
    (folder / "metrics.jsonl").unlink()
    (folder / "policies.npz").write_bytes(b"of a run that was finished")
    with pytest.raises(ConfigError, match=r"holds results \(policies.npz\) and neither summary.json nor a checkpoint"):
        enter(take_up(folder, asked))
    assert (folder / "policies.npz").read_bytes() == b"of a run that was finished"


def test_a_run_that_was_never_saved_begins_anew(tiny, tmp_path):
    asked = Asked(free(tiny), 2, 0, False)
    with create(tmp_path / "run", asked, every=1e9):
        pass
    said = []
    finished = go(take_up(tmp_path / "run", asked, said=said), asked)
    assert said == ["there is no checkpoint yet: the run begins anew"]
    jax.tree.map(np.testing.assert_array_equal, finished.result, unbroken(asked).result)


def _try(path, asked, answers):
    try:
        enter(take_up(path, asked))
        answers.put("taken up")
    except ConfigError as error:
        answers.put(str(error))


def test_two_processes_do_not_work_on_one_run(copied):
    folder, asked = copied
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with take_up(folder, asked):
        other = context.Process(target=_try, args=(folder, asked, answers))
        other.start()
        assert "another process works on the run" in answers.get(timeout=120)
        other.join()
        with pytest.raises(ConfigError, match="another process works on the run"):
            enter(take_up(folder, asked))
    enter(take_up(folder, asked))


def test_a_run_is_locked_before_others_see_it_and_the_lock_goes_with_the_process(tiny, tmp_path, monkeypatch):
    begin, refused = run_folder.begin, []

    def begin_and_try(*arguments):
        begin(*arguments)
        with pytest.raises(InUseError, match="another process works on the run") as error:
            enter(claims.hold(tmp_path))
        refused.append(error)

    monkeypatch.setattr(run_folder, "begin", begin_and_try)
    with create(tmp_path, Asked(tiny, 2, 0, False)):
        assert {path.name for path in tmp_path.iterdir()} == {"run.json", "metrics.jsonl", ".lock"}
    assert len(refused) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "metrics.jsonl"}
    enter(claims.hold(tmp_path))


def test_of_many_who_begin_a_run_at_once_one_begins_it_also_without_hard_links(tiny, tmp_path, monkeypatch):
    start, asked, begin = threading.Barrier(8), Asked(tiny, 2, 0, False), run_folder.begin

    def refuse(source, target):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(source))

    def slowly(*arguments):
        time.sleep(0.2)  # meanwhile all others have come as far
        begin(*arguments)

    def compete(number):
        start.wait()
        try:
            with run_folder.opened(tmp_path, asked, f"command {number}"):
                time.sleep(1)
        except InUseError as error:
            return str(error)
        except ConfigError as error:
            return str(error)
        return number

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(run_folder, "begin", slowly)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(compete, range(8)))
    (winner,) = (answer for answer in answers if isinstance(answer, int))
    assert results.read_run(tmp_path)["command"] == f"command {winner}"
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "metrics.jsonl"}


def test_where_the_file_system_has_no_locks_that_is_said(tiny, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(claims.fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match="cannot be locked: .*No locks available"):
        enter(create(tmp_path, Asked(tiny, 2, 0, False)))


def test_what_cannot_be_written_is_said(tiny, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(results.strict_json, "write", refuse)
    with pytest.raises(ConfigError, match="nothing can be written to .*Input/output error"):
        enter(create(tmp_path, Asked(tiny, 2, 0, False)))


def test_a_run_begins_where_another_process_was_killed_when_it_was_about_to(tiny, tmp_path):
    (tmp_path / ".run.json.1.new").write_text("{")
    asked = Asked(tiny, 2, 0, False)
    enter(create(tmp_path, asked))
    enter(take_up(tmp_path, asked))
    assert not (tmp_path / ".run.json.1.new").exists()


def test_two_runs_do_not_go_into_one_folder(copied):
    folder, asked = copied
    with pytest.raises(ConfigError, match="exists already and is left as it is"):
        enter(create(folder, asked))


@pytest.mark.parametrize(
    "content", ["not json", '{"format": 7}', '{"format": 1, "config": {"algorithm": "dyna_q", "agent": {"speed": 1}}}']
)
def test_a_run_of_a_version_that_is_not_understood_is_refused(copied, content):
    folder, asked = copied
    (folder / "run.json").write_text(content)
    with pytest.raises(
        ConfigError, match="cannot be read|format 7 is not known.*written by|agent.speed: there is no such setting.*written by"
    ):
        enter(take_up(folder, asked))


def test_a_folder_that_holds_no_run_is_refused(tmp_path, tiny):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds no run that could go on"):
        enter(take_up(tmp_path, Asked(tiny, 1, 0, False)))


def test_a_run_goes_on_where_a_checkpoint_cannot_be_written(tiny, tmp_path, monkeypatch):
    write, said = checkpoint.write, []

    def full_for_a_while(root, number, *others):
        if number in (2, 3):
            raise OSError(28, "No space left on device")
        write(root, number, *others)

    monkeypatch.setattr(checkpoint, "write", full_for_a_while)
    asked = Asked(longer(free(tiny), "batch"), 2, 0, False)
    finished = go(create(tmp_path / "run", asked, said=said), asked)
    assert [text for text in said if "No space left" in text] == said
    assert len(said) == 2
    assert "the one of round 1 is kept, and the run goes on" in said[0]
    jax.tree.map(np.testing.assert_array_equal, finished.result, unbroken(asked).result)
    assert checkpoint.rounds(tmp_path / "run" / "checkpoints") == [5, 6]


def test_a_finished_run_leaves_no_checkpoint(copied):
    folder, asked = copied
    go(take_up(folder, asked), asked)
    with take_up(folder, asked) as opened:
        opened.finished()
    assert {path.name for path in folder.iterdir()} == {"run.json", "metrics.jsonl"}


def test_an_interruption_at_the_last_round_lets_the_run_end(tiny, tmp_path):
    always = Interruption()
    always.requested = True
    asked = Asked(replace(free(tiny), steps=10), 2, 0, False)
    go(create(tmp_path / "run", asked), asked, always)
