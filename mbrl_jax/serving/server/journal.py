"""Real transitions that clients send, kept so that none that was acknowledged is ever lost.

They are appended to ``journal-000001.bin`` and are on the disk before a request is answered; requests that wait together share
one ``fsync``. Episodes that have ended are moved to ``part-000001.parquet``, which ``mbrl-jax train --data`` reads, and those
that go on to the next journal. The order of these steps is such that a process killed at any time leaves either both or neither:

1. the episodes that go on are written to journal n + 1, which takes its name when it is whole;
2. the episodes that have ended are written to part n, which takes its name when it is whole;
3. journal n is deleted.

Whoever opens the folder finds out how far that had come. Where part n is there, journal n is deleted; where it is not, journal
n + 1 is, and it is done again. What a killed process wrote of a record without its end is dropped and counted.
"""

import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mbrl_jax.errors import ConfigError
from mbrl_jax.serving.contract import Task
from mbrl_jax.serving.server.parquet import write_part
from mbrl_jax.serving.server.reading import Transitions, follow
from mbrl_jax.serving.server.refusal import Refused, shown

try:
    import fcntl
except ImportError:
    HAS_LOCKS = False  # Windows
else:
    HAS_LOCKS = True

HEAD = struct.Struct("<4sII")  # magic, bytes of the record, its CRC-32
MAGIC = b"MBTR"
COUNTS = struct.Struct("<HI")  # bytes of the episode's name, rows
MOST_EPISODES = 10_000  # that may go on at a time


class Journal:
    """The folder of a data set that grows, in which this process alone writes.

    ``check`` and ``forget`` belong to the thread that answers requests, ``append`` and ``seal`` to one that writes.

    Attributes:
      dropped_bytes: of a record without its end that was found at the start.
      rows: transitions that were taken in by this process.
      ended_rows: those of ended episodes that are not in a part yet.

    """

    def __init__(self, folder: Path, task: Task):
        """Open or make a folder, and finish what a killed process had begun.

        Raises:
          ConfigError: it cannot be made or locked, another process writes there, or what is there is of another task.

        """
        self.folder, self._task = folder, task
        self.dropped_bytes = self.rows = self.ended_rows = 0
        self._ends: dict[str, np.ndarray] = {}  # where each episode that goes on stands, as the requests checked so far say
        self._going: dict[str, list[Transitions]] = {}
        self._ended: list[list[Transitions]] = []
        self._lock = _lock(folder)
        try:
            self._number = self._recover()
            self._file = open(self._journal(self._number), "r+b", buffering=0)  # noqa: SIM115, it stays open
            self._good = self._file.seek(0, os.SEEK_END)
        except (OSError, ValueError) as error:
            self._release()
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"data: {str(folder)!r} cannot be used: {error}") from error
        self._ends = {name: parts[-1].next_observation[-1] for name, parts in self._going.items()}

    # ------------------------------------------------------------------------------------------------- taking rows in

    def check(self, rows: Transitions) -> None:
        """Note that rows come next in their episode. Raises Refused: they do not follow those before."""
        last = self._ends.get(rows.episode)
        if last is None and len(self._ends) >= MOST_EPISODES:
            raise Refused(429, "episode", f"{MOST_EPISODES:,} episodes go on at the same time; end some before beginning another")
        if last is not None and not follow(rows.observation[:1], last[None]):
            told = f"it is not where {shown(rows.episode)} stands, the next_observation of its last row"
            raise Refused(409, "observation", told)
        if rows.ended:
            self._ends.pop(rows.episode, None)
        else:
            self._ends[rows.episode] = rows.next_observation[-1]

    def append(self, several: Sequence[Transitions]) -> None:
        """Write rows, and return when they are on the disk.

        Raises:
          OSError: they could not be written; nothing of them is left.

        """
        content = b"".join(map(_record, several))
        try:
            self._write(content)
            _sync(self._file.fileno())
        except OSError:
            self._file.seek(self._good)
            self._file.truncate()
            raise
        self._good += len(content)
        for rows in several:
            self._take(rows)
            self.rows += len(rows.reward)

    def _write(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            view = view[self._file.write(view) :]

    def _take(self, rows: Transitions) -> None:
        parts = self._going.setdefault(rows.episode, [])
        parts.append(rows)
        if rows.ended:
            self._ended.append(self._going.pop(rows.episode))
            self.ended_rows += sum(len(each.reward) for each in parts)

    def forget(self, several: Iterable[Transitions]) -> None:
        """Let the episodes of rows that were checked and not written stand where they stood before."""
        for rows in several:
            parts = self._going.get(rows.episode)
            if parts:
                self._ends[rows.episode] = parts[-1].next_observation[-1]
            else:
                self._ends.pop(rows.episode, None)

    # ------------------------------------------------------------------------------------------------------- sealing

    def seal(self) -> int:
        """Move the episodes that have ended to a new part; return its rows, 0 where none had."""
        episodes, self._ended = self._ended, []
        if not episodes:
            return 0
        following = self._journal(self._number + 1)
        try:
            _write_whole(following, b"".join(_record(rows) for parts in self._going.values() for rows in parts))
            part = self._part(self._number)
            with _whole(part) as temporary:
                write_part(temporary, episodes, self._task)
        except OSError:
            self._ended = episodes + self._ended
            following.unlink(missing_ok=True)
            raise
        self._file.close()
        self._journal(self._number).unlink()
        self._number += 1
        self._file = open(following, "r+b", buffering=0)  # noqa: SIM115, it stays open
        self._good = self._file.seek(0, os.SEEK_END)
        count, self.ended_rows = self.ended_rows, 0
        return count

    def close(self) -> None:
        """Seal what has ended, and let other processes write."""
        try:
            self.seal()
        finally:
            self._file.close()
            self._release()

    # ----------------------------------------------------------------------------------------------------- the folder

    def _journal(self, number: int) -> Path:
        return self.folder / f"journal-{number:06d}.bin"

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"

    def _recover(self) -> int:
        """Finish what was begun; return the number of the journal to go on with."""
        for each in self.folder.glob(".*.new"):
            each.unlink()
        numbers = sorted(int(path.stem.removeprefix("journal-")) for path in self.folder.glob("journal-*.bin"))
        for number in numbers:
            if self._part(number).exists():  # step 3 was left
                self._journal(number).unlink()
        numbers = [number for number in numbers if self._journal(number).exists()]
        for number in numbers[1:]:  # step 2 was left: what is in it is in the first one too
            self._journal(number).unlink()
        if not numbers:
            parts = (int(path.stem.removeprefix("part-")) for path in self.folder.glob("part-*.parquet"))
            numbers = [1 + max(parts, default=0)]
            _write_whole(self._journal(numbers[0]), b"")
        path = self._journal(numbers[0])
        content, good = path.read_bytes(), 0
        for rows, end in _records(content, self._task, path):
            self._take(rows)
            good = end
        self.dropped_bytes = len(content) - good
        if self.dropped_bytes:
            with open(path, "r+b") as file:
                file.truncate(good)
                os.fsync(file.fileno())
        return numbers[0]

    def _release(self) -> None:
        os.close(self._lock)


def _lock(folder: Path) -> int:
    """The folder's lock, held until its descriptor is closed. Raises ConfigError."""
    if not HAS_LOCKS:
        raise ConfigError("data: this system has no file locks, without which two servers could write to one folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigError(f"data: {str(folder)!r} cannot be made: {error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ConfigError(f"data: another process writes to {str(folder)!r}; name another folder") from error
    return descriptor


class _whole:  # noqa: N801, it is used as a function
    """A path to write to, which becomes ``path`` when it is whole and on the disk."""

    def __init__(self, path: Path):
        self.path, self.temporary = path, path.with_name(f".{path.name}.new")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.temporary.unlink(missing_ok=True)
            return
        with open(self.temporary, "rb") as file:
            os.fsync(file.fileno())
        self.temporary.replace(self.path)
        descriptor = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_whole(path: Path, content: bytes) -> None:
    with _whole(path) as temporary:
        temporary.write_bytes(content)


def _sync(descriptor: int) -> None:
    """Wait until what was written is on the disk."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


# ------------------------------------------------------------------------------------------------------------ records


def _record(rows: Transitions) -> bytes:
    """The bytes of some rows: a head with their length and checksum, and the columns one after another."""
    name = rows.episode.encode("utf-8")
    columns = (np.ascontiguousarray(column).tobytes() for column in rows[1:])
    body = b"".join((COUNTS.pack(len(name), len(rows.reward)), name, *columns))
    return HEAD.pack(MAGIC, len(body), zlib.crc32(body)) + body


def _records(content: bytes, task: Task, path: Path) -> Iterator[tuple[Transitions, int]]:
    """Yield the whole records of a journal, each with the place of its end."""
    place = 0
    while len(content) >= place + HEAD.size:
        magic, size, checksum = HEAD.unpack_from(content, place)
        body = content[place + HEAD.size : place + HEAD.size + size]
        if magic != MAGIC or len(body) < size or zlib.crc32(body) != checksum:
            return
        place += HEAD.size + size
        yield _rows(body, task, path), place


def _rows(body: bytes, task: Task, path: Path) -> Transitions:
    length, count = COUNTS.unpack_from(body)
    place = COUNTS.size + length
    wide = (count, task.observation_size)
    action = ((count, len(task.action_low)), np.float32) if task.continuous else ((count,), np.int32)
    kinds = ((wide, np.float32), action, ((count,), np.float32), (wide, np.float32), ((count,), bool), ((count,), bool))
    sizes = [int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in kinds]
    if place + sum(sizes) != len(body):
        raise ConfigError(f"data: {path} has transitions of another task than {task.name}; name another folder")
    columns = []
    for (shape, kind), size in zip(kinds, sizes, strict=True):
        columns.append(np.frombuffer(body, kind, count=int(np.prod(shape)), offset=place).reshape(shape))
        place += size
    return Transitions(body[COUNTS.size : COUNTS.size + length].decode("utf-8"), *columns)
