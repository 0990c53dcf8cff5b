"""Statistics of the columns of a table that need not fit into memory."""

import dataclasses

import numpy as np

from mbrl_jax.environments.logged.episodes import Logged

KEPT_HASHES = 1_000_000  # of rows, by which repetitions are found


@dataclasses.dataclass
class Column:
    """Statistics of a vector over all rows, axis by axis."""

    low: np.ndarray  # [D]
    high: np.ndarray  # [D]
    total: np.ndarray  # [D]
    squares: np.ndarray  # [D]
    count: int  # of finite rows
    missing: int  # rows with a number that is not finite
    first_missing: int | None  # the first of them

    @classmethod
    def of(cls, size: int) -> "Column":
        """Of no rows."""
        return cls(np.full(size, np.inf), np.full(size, -np.inf), np.zeros(size), np.zeros(size), 0, 0, None)

    def add(self, values: np.ndarray, first: int) -> None:
        """Add rows [n, D], of which the first has number ``first``."""
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            bad = np.flatnonzero(~finite)
            self.missing += len(bad)
            self.first_missing = first + int(bad[0]) if self.first_missing is None else self.first_missing
            values = values[finite]
        if len(values):
            wide = values.astype(np.float64)
            self.low, self.high = np.minimum(self.low, wide.min(axis=0)), np.maximum(self.high, wide.max(axis=0))
            self.total += wide.sum(axis=0)
            self.squares += np.square(wide).sum(axis=0)
            self.count += len(wide)

    @property
    def mean(self) -> np.ndarray:
        """[D]."""
        return self.total / max(self.count, 1)

    @property
    def std(self) -> np.ndarray:
        """[D]."""
        return np.sqrt(np.maximum(self.squares / max(self.count, 1) - np.square(self.mean), 0.0))

    @property
    def still(self) -> np.ndarray:
        """[D] bool, which never vary."""
        return self.low >= self.high

    @property
    def largest(self) -> np.ndarray:
        """[D] magnitudes."""
        return np.maximum(np.abs(self.low), np.abs(self.high)) if self.count else np.zeros_like(self.low)


class Hashes:
    """Hashes of rows, thinned by their own bits to what memory may hold, in which repetitions show."""

    def __init__(self) -> None:
        self._kept, self._waiting, self._held, self._mask = np.empty(0, np.uint64), list[np.ndarray](), 0, np.uint64(0)
        self._repeated = 0
        self._factors: np.ndarray | None = None

    def add(self, rows: Logged) -> None:
        """Add rows."""
        columns = [rows.observation, rows.next_observation, rows.reward[:, None], rows.action.reshape(len(rows.reward), -1)]
        words = np.concatenate([np.ascontiguousarray(each, np.float32) for each in columns], axis=1).view(np.uint32)
        if self._factors is None:
            self._factors = np.random.default_rng(0).integers(0, 2**63, words.shape[1], np.uint64) * np.uint64(2) + np.uint64(1)
        mixed = (words.astype(np.uint64) * self._factors).sum(axis=1, dtype=np.uint64)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(32)
        self._waiting.append(mixed[(mixed & self._mask) == 0])
        self._held += len(self._waiting[-1])
        if self._held > KEPT_HASHES // 4:
            self._settle()

    def _settle(self) -> None:
        fresh = np.concatenate([self._kept, *self._waiting])
        self._waiting, self._held = [], 0
        self._kept, counts = np.unique(fresh, return_counts=True)
        self._repeated += int((counts - 1).sum())
        while len(self._kept) > KEPT_HASHES:  # the repetitions that were counted thin out in the same way, on average
            self._mask = self._mask * np.uint64(2) + np.uint64(1)
            before = len(self._kept)
            self._kept = self._kept[(self._kept & self._mask) == 0]
            self._repeated = self._repeated * len(self._kept) // before

    def duplicates(self) -> float:
        """Share of the rows that repeat another one."""
        self._settle()
        total = len(self._kept) + self._repeated
        return self._repeated / total if total else 0.0
