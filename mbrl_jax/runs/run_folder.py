"""A run's folder while the run goes on: who works in it, what was asked for, how far it is, and how it is taken up again.

* ``run.json``: what was asked for, written once, before anything else; a process that works on the run holds a lock on it;
* ``metrics.jsonl``: a line for every round (:class:`mbrl_jax.runs.journals.JsonLines`);
* ``checkpoints/``: the last few (:mod:`mbrl_jax.runs.checkpoint`), gone when the run is finished;
* ``parts/0000`` and so on, where not all seeds fit into memory at once: such a folder for each part of them, in place of the
  lines and checkpoints, gone when the parts are one run;
* what :mod:`mbrl_jax.runs.results` writes, once it is.
"""

import errno
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from mbrl_jax.config import ConfigError, RunConfig, algorithm_name, from_dict, to_dict
from mbrl_jax.runs import checkpoint, locks, results, strict_json
from mbrl_jax.runs.checkpoint import Checkpoint, DamagedError
from mbrl_jax.runs.journals import Journal, JsonLines, read_lines
from mbrl_jax.runs.metrics import Entry
from mbrl_jax.runs.results import CHECKPOINTS, FORMAT, RUN

LINES = "metrics.jsonl"
NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}  # what a file system says


class InUseError(ConfigError):
    """Another process works on the run."""


class FinishedError(ConfigError):
    """Another process has just finished the run."""


class Asked(NamedTuple):
    """What a run is of. Two processes that ask for the same may take turns at it."""

    config: RunConfig
    seeds: int
    base_seed: int
    diagnose: bool
    first: int = 0  # number of the first seed, of a part of a run

    def settings(self) -> dict[str, Any]:
        """Every setting by its dotted path."""
        others = {name: getattr(self, name) for name in ("seeds", "base_seed", "diagnose", "first")}
        return {**results.flat_settings(self.config), **others}

    def as_json(self, command: str, versions: Mapping[str, str]) -> dict[str, Any]:
        """As ``run.json`` has it."""
        asked = {**self._asdict(), "config": to_dict(self.config)}
        return {"format": FORMAT, "command": command, **asked, "versions": dict(versions), "git": results.git_revision()}


class RunFolder:
    """The folder of a run that this process works on, and no other. Use as a context manager."""

    def __init__(
        self,
        path: Path,
        lock: int,
        asked: Mapping[str, Any],
        found: Checkpoint | None,
        every: float,
        keep: int,
        say: Callable[[str], None],
    ):
        """Made by :func:`create` and :func:`take_up`; not to be called otherwise. ``asked`` is what ``run.json`` has."""
        self.path = path
        self.found = found
        self._asked = asked
        self._lock = lock
        self._every, self._keep, self._say = every, keep, say
        self._last = time.monotonic()
        self._saved = found.round if found else 0
        self._writing: threading.Thread | None = None
        self._failed: list[Journal] = []  # those that could not be written to
        self._journals: list[Journal] = [JsonLines(path / LINES, self._saved)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.wait()
        for journal in self._journals:
            journal.close()
        os.close(self._lock)

    def add(self, journal: Journal) -> None:
        """Send the entries of rounds to another journal too."""
        self._journals.append(journal)

    def note(self, entry: Entry) -> None:
        """Write the entry of a round to all journals. Where one cannot be written, that is said once, and the run goes on."""
        for journal in self._journals:
            try:
                journal.write(entry, self._saved)
            except OSError as error:
                if journal not in self._failed:
                    self._failed.append(journal)
                    self._say(f"the figures of round {entry.round} could not be noted ({error}); the run goes on")

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self._last >= self._every

    def save(self, number: int, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
        """Write a checkpoint of round ``number`` while the caller goes on; ``arrays`` must not change any more.

        If it cannot be written, that is said, and the one before stays.
        """
        self.wait()

        def work() -> None:
            try:
                checkpoint.write(self.path / CHECKPOINTS, number, arrays, {**about, "run": self._asked}, self._keep)
                self._saved = number
            except OSError as error:
                kept = f"the one of round {self._saved} is kept" if self._saved else "there is none yet"
                self._say(f"the checkpoint of round {number} could not be written ({error}); {kept}, and the run goes on")

        self._writing = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._writing.start()
        self._last = time.monotonic()

    def wait(self) -> int:
        """Wait until a checkpoint that is being written is whole; the last round that is saved."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        return self._saved

    def finished(self) -> None:
        """Remove the checkpoints: the results are written."""
        self.wait()
        checkpoint.clear(self.path / CHECKPOINTS, after=-1)
        if (self.path / CHECKPOINTS).is_dir():
            (self.path / CHECKPOINTS).rmdir()


def create(
    path: Path, asked: Asked, command: str, packages: Sequence[str], every: float, keep: int, say: Callable[[str], None]
) -> RunFolder:
    """Begin a run in a new folder, or in one that is untouched.

    Args:
      path: the folder.
      asked: what the run is of.
      command: the words that began it.
      packages: whose versions the run depends on.
      every: seconds between checkpoints.
      keep: checkpoints that are kept.
      say: tells the person what goes wrong.

    Raises:
      ConfigError: the folder is in use, or cannot be made.

    """
    lock = begin(path, asked, command, packages, asked.seeds)
    return RunFolder(path, lock, results.read_run(path), None, every, keep, say)


def begin(path: Path, asked: Asked, command: str, packages: Sequence[str], at_once: int) -> int:
    """Write ``run.json`` into a new folder, or an untouched one; a descriptor of it that holds the lock until it is closed.

    The lock is there before others see the file: nobody can come between.

    Args:
      path: the folder.
      asked: what the run is of.
      command: the words that began it.
      packages: whose versions the run depends on.
      at_once: how many of the seeds are trained together.

    Raises:
      ConfigError: the folder is in use, or cannot be made.

    """
    try:
        results.make_folder(path)
    except ConfigError as error:
        if (path / RUN).exists():  # perhaps only since the caller looked
            raise InUseError(str(error)) from None
        raise
    content = {**asked.as_json(command, results.versions(packages)), "at_once": at_once}
    temporary = path / f".{RUN}.{secrets.token_hex(8)}.new"  # on several machines processes may have the same number
    try:
        strict_json.write(temporary, content)
        lock = os.open(temporary, os.O_RDWR)
        try:
            locks.lock(lock)
            _name_once(temporary, path / RUN)
        except BaseException as error:
            os.close(lock)
            if isinstance(error, FileExistsError | FileNotFoundError):  # another was first, and may have cleared the folder
                told = f"out: another process has just begun a run in {str(path)!r}; name a new folder"
                raise InUseError(told) from None
            raise
    except OSError as error:
        raise ConfigError(f"out: nothing can be written to {str(path)!r}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return lock


def hold(path: Path, *, shared: bool = False, wait: bool = False) -> int:
    """A descriptor of ``run.json`` that holds a lock until it is closed, by whatever end the process comes to.

    Args:
      path: the folder.
      shared: with others who share it, as they work on parts of the run; otherwise nobody else has it.
      wait: until those that have it give it up, instead of being refused.

    Raises:
      ConfigError: there is no run, or another process holds it.

    """
    try:
        descriptor = os.open(path / RUN, os.O_RDWR)
    except FileNotFoundError:
        raise ConfigError(f"out: {str(path)!r} holds no run that could go on; a folder of one has a {RUN}") from None
    except OSError as error:
        raise ConfigError(f"out: {str(path / RUN)!r} cannot be opened: {error}") from error
    try:
        locks.lock(descriptor, shared=shared, wait=wait)
    except BlockingIOError:
        os.close(descriptor)
        raise InUseError(f"out: another process works on the run in {str(path)!r}; wait for it or name a new folder") from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def take_up(
    path: Path, asked: Asked, every: float, keep: int, say: Callable[[str], None], number: int | None = None
) -> RunFolder:
    """Go on with the run in a folder, from its last checkpoint or that of round ``number``.

    Raises:
      ConfigError: there is no such run, it is of something else, another process works on it or has just finished it, or its
        checkpoint is damaged or gone.

    """
    lock = hold(path)
    try:
        check_same(path, asked)
        if is_finished(path):
            raise FinishedError(f"out: another process has just finished the run in {str(path)!r}; there is nothing left to do")
        clear(path)
        found = _find(path, number)
        if found is None:
            say("there is no checkpoint yet: the run begins anew")
        else:
            say(f"goes on after round {found.round}")
        checkpoint.clear(path / CHECKPOINTS, after=found.round if found else None)
    except BaseException:
        os.close(lock)
        raise
    return RunFolder(path, lock, results.read_run(path), found, every, keep, say)


def is_finished(path: Path) -> bool:
    """Whether the folder holds the results of a run that came to its end."""
    return (path / "summary.json").exists()


def asked_of(path: Path) -> Asked:
    """What the run in a folder is of.

    Raises:
      ConfigError: there is none, or it was written by a version that this one does not read.

    """
    content = results.read_run(path)
    try:
        config = from_dict(content["config"])
        return Asked(config, content["seeds"], content["base_seed"], content["diagnose"], content.get("first", 0))
    except (KeyError, ConfigError) as error:
        raise ConfigError(f"{path / RUN}: {error}; {results.written_by(content)}") from error


def at_once(path: Path) -> int:
    """How many of its seeds the run in a folder trains together.

    Raises:
      ConfigError: there is no run.

    """
    content = results.read_run(path)
    return int(content.get("at_once", content["seeds"]))


def check_same(path: Path, asked: Asked) -> None:
    """Refuse to go on with a run of something else.

    Raises:
      ConfigError: naming every setting that differs.

    """
    asked_before = asked_of(path)
    before, now = asked_before.settings(), asked.settings()
    named = [algorithm_name(each.config) for each in (asked_before, asked)]
    if named[0] != named[1]:
        raise ConfigError(f"algorithm: {named[1]!r} does not fit; the run in {str(path)!r} is of {named[0]!r}")
    problems = [
        f"{name}: {now.get(name)!r} does not fit; the run in {str(path)!r} has {before.get(name)!r}, and goes on only with that"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def clear(path: Path) -> None:
    """Remove what a killed process left half written, in a folder whose lock is held."""
    for each in path.iterdir():
        if each.name.startswith(".") and each.name.endswith(".new") and each.is_file():
            each.unlink(missing_ok=True)
    checkpoint.clear(path / CHECKPOINTS)


# ------------------------------------------------------------------------------------------------------------------ pieces


def _name_once(temporary: Path, final: Path) -> None:
    """Give a file its name, unless there is one of that name; a lock on the file is there before others see it.

    Hard links do this in one step. A file system that has none, as exFAT and some network drives, has a file whose lock keeps all
    who try apart. That file goes once there is one of the name, when a lock on it no longer matters.

    Raises:
      FileExistsError: another has that name.
      OSError: it cannot be given.

    """
    try:
        os.link(temporary, final)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
    else:
        return
    guard = final.with_name(f".{final.name}.beginning.new")
    descriptor = locks.open_locked(guard)
    try:
        if final.exists():
            guard.unlink(missing_ok=True)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))
        os.rename(temporary, final)
        guard.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _find(path: Path, number: int | None) -> Checkpoint | None:
    """The checkpoint to go on from, none if there never was one."""
    root = path / CHECKPOINTS
    there = checkpoint.rounds(root)
    if number is not None:
        if number not in there:
            raise ConfigError(f"resume_from: {number} does not fit; there are checkpoints of the rounds {there or 'none'}")
        return _read(path, number)
    if not there:
        saved = max((line["saved"] for line in read_lines(path / LINES)), default=0)
        if saved:
            raise ConfigError(
                f"out: the checkpoints of {str(path)!r} have vanished; one of round {saved} was written to {str(root)!r}; "
                f"bring them back, or delete {LINES} there to begin the run anew"
            )
        return None
    try:
        return _read(path, there[-1])
    except DamagedError as error:
        offered = "no other is whole; delete the folder of checkpoints and metrics.jsonl to begin the run anew"
        for earlier in reversed(there[:-1]):
            try:
                checkpoint.verify(root / f"{earlier:08d}")
            except DamagedError:
                continue
            offered = f"the one of round {earlier} is whole: --resume-from {earlier} goes on from there"
            break
        raise DamagedError(f"{error}; {offered}") from error


def _read(path: Path, number: int) -> Checkpoint:
    """A checkpoint of the run in this folder, not of one that was copied into it."""
    found = checkpoint.read(path / CHECKPOINTS, number)
    ours, theirs = (_identity(content) for content in (results.read_run(path), found.about.get("run", {})))
    if ours != theirs:
        differing = ", ".join(name for name in ours if ours[name] != theirs.get(name))
        raise DamagedError(f"{path / CHECKPOINTS / f'{number:08d}'}: it is of another run; that differs in {differing}")
    return found


def _identity(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: content.get(name) for name in ("config", "seeds", "base_seed", "diagnose", "first")}
