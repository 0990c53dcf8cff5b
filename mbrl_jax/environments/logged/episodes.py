"""The episodes of logged transitions: where they begin and end, put together from the blocks of files."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mbrl_jax.config import ConfigError
from mbrl_jax.environments.logged.blocks import Block, LogFile

TOLERANCE = (1e-5, 1e-4)  # absolute and relative, within which s' is the s of the next row


class Logged(NamedTuple):
    """Logged transitions [n] in the order in which they happened, in the one form that everything works on."""

    observation: np.ndarray  # [n, D] float32
    action: np.ndarray  # [n] int64, or [n, A] float32 in the task's own units
    reward: np.ndarray  # [n] float32
    next_observation: np.ndarray  # [n, D] float32, the true one also at an episode's end
    terminated: np.ndarray  # [n] bool, nothing follows
    truncated: np.ndarray  # [n] bool, the episode was cut here: the target bootstraps through it
    elapsed: np.ndarray  # [n] int32, steps since the episode began, 0 on its first
    broken: np.ndarray  # [n] bool, the episode goes on, and s' is not the s of the row that follows

    def part(self, which: slice | np.ndarray) -> "Logged":
        """The rows of a slice, a mask or places."""
        return Logged(*(column[which] for column in self))


def concatenate(parts: Sequence[Logged]) -> Logged:
    """The rows of several, one after another."""
    return Logged(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


class Episodes:
    """The rows of files one after another, as an iterator over blocks.

    An episode ends where it terminated or was truncated, where the number of the episode changes, and with its file. Where it is
    cut without a mark, it is truncated there.

    Attributes:
      lost: rows that were left out so far, because nobody recorded their s'.
      lost_terminated: those of them that are terminations.

    """

    def __init__(self, files: Sequence[LogFile]):
        self.files, self.lost, self.lost_terminated = files, 0, 0

    def __iter__(self) -> Iterator[Logged]:
        """Read the files from their beginning.

        Raises:
          ConfigError: a row cannot be read, or is of another shape than those before.

        """
        self.lost = self.lost_terminated = 0
        first: Block | None = None
        for file in self.files:

            def alike(path: str = file.path, blocks: Iterable[Block] = file.blocks()) -> Iterator[Block]:
                nonlocal first
                for block in blocks:
                    first = block if first is None else first
                    _check_alike(path, block, first)
                    yield block

            yield from _numbered(self._known(_ended(alike())))

    def _known(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """Rows with their s': where none is recorded, that of the next row, and without the last row of each episode."""
        for rows, following in _peek(blocks):
            if rows.next_observation is not None:
                yield rows
                continue
            ended = _is_end(rows)
            after = np.ones(1, bool) if following is None else _is_end(following)
            next_observation = np.concatenate([rows.observation[1:], (rows if following is None else following).observation[:1]])
            self.lost += int(ended.sum())
            self.lost_terminated += int(rows.terminated.sum())
            cut = np.concatenate([ended[1:], after])  # the row before one that goes is its episode's last
            yield _part(rows._replace(next_observation=next_observation, truncated=cut), ~ended)


def _ended(blocks: Iterable[Block]) -> Iterator[Block]:
    """Blocks in which every episode's last row is terminated or truncated, and none is both."""
    for rows, following in _peek(blocks):
        truncated = np.zeros(len(rows.reward), bool) if rows.truncated is None else rows.truncated.copy()
        if rows.episode is not None:
            last = rows.episode[-1:] if following is None else following.episode
            assert last is not None
            truncated |= rows.episode != np.concatenate([rows.episode[1:], last])
        if following is None:
            truncated[-1] = True
        yield rows._replace(truncated=truncated & ~rows.terminated)


def _numbered(blocks: Iterable[Block]) -> Iterator[Logged]:
    """Rows with the steps since their episode began, and whether what follows fits."""
    so_far = 0  # steps of the episode that goes on
    for rows, following in _peek(blocks):
        ended, place = _is_end(rows), np.arange(len(rows.reward))
        begins = np.concatenate([[so_far == 0], ended[:-1]])
        since = np.maximum.accumulate(np.where(begins, place, -so_far))
        elapsed = (place - since).astype(np.int32)
        so_far = 0 if ended[-1] else int(elapsed[-1]) + 1
        after = np.concatenate([rows.observation[1:], (rows if following is None else following).observation[:1]])
        assert rows.next_observation is not None
        assert rows.truncated is not None
        with np.errstate(invalid="ignore"):
            distance = np.abs(rows.next_observation - after)
            far = distance > TOLERANCE[0] + TOLERANCE[1] * np.abs(after)
        broken = ~ended & far.any(axis=1)
        yield Logged(
            rows.observation, rows.action, rows.reward, rows.next_observation, rows.terminated, rows.truncated, elapsed, broken
        )


def _check_alike(path: str, block: Block, first: Block) -> None:
    """Refuse rows of other shapes than the first ones."""
    for name in ("observation", "action"):
        ours, theirs = getattr(block, name), getattr(first, name)
        if (ours.dtype, ours.shape[1:]) != (theirs.dtype, theirs.shape[1:]):
            there, right = (f"{each.dtype}{list(each.shape[1:])}" for each in (ours, theirs))
            raise ConfigError(f"data: {path!r}, column {name!r}: {there} does not fit; the rows before have {right}")
    following = block.next_observation
    if following is not None and following.shape != block.observation.shape:
        there, right = (f"{each.shape[1]} numbers" for each in (following, block.observation))
        raise ConfigError(f"data: {path!r}, column 'next_observation': {there} do not fit; 'observation' has {right}")


def _peek(blocks: Iterable[Block]) -> Iterator[tuple[Block, Block | None]]:
    """Each block that is not empty, with the row that comes after it, none after the last."""
    before: Block | None = None
    for block in blocks:
        if not len(block.reward):
            continue
        if before is not None:
            yield before, _part(block, slice(0, 1))
        before = block
    if before is not None:
        yield before, None


def _part(rows: Block, which: slice | np.ndarray) -> Block:
    return Block(*(None if column is None else column[which] for column in rows))  # type: ignore[arg-type]


def _is_end(rows: Block) -> np.ndarray:
    assert rows.truncated is not None
    return rows.terminated | rows.truncated
