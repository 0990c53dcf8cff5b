"""Takes transitions in: checks them in the order of their requests, and answers when they are on the disk."""

import asyncio
import logging
import time

from mbrl_jax.serving.server.journal import Journal
from mbrl_jax.serving.server.measures import Measures
from mbrl_jax.serving.server.reading import Transitions
from mbrl_jax.serving.server.refusal import Refused

SEAL_ROWS = 16_384  # of ended episodes, from which on they become a part
SEAL_SECONDS = 2.0  # without a request, after which they do too

log = logging.getLogger("mbrl_jax.serving")


class Intake:
    """Writes what requests bring; those that come while the disk is busy are written together."""

    def __init__(self, journal: Journal, measures: Measures):
        self._journal, self._measures = journal, measures
        self._waiting: list[tuple[Transitions, asyncio.Future[None]]] = []
        self._lock = asyncio.Lock()  # of the journal's file
        self._last = time.monotonic()
        measures.dropped.set(journal.dropped_bytes)

    async def take(self, rows: Transitions) -> None:
        """Take rows in, and return when they are on the disk.

        Raises:
          Refused: they do not follow those before, or they cannot be stored.

        """
        self._journal.check(rows)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((rows, done))
        await asyncio.shield(asyncio.ensure_future(self._commit(done)))  # a client that goes away leaves the others their answer
        await done
        self._measures.transitions.inc(len(rows.reward))

    async def _commit(self, done: asyncio.Future[None]) -> None:
        async with self._lock:
            if not done.done():  # else the request before has written these too
                await self._write()

    async def _write(self) -> None:
        batch, self._waiting = self._waiting, []
        self._last = time.monotonic()
        try:
            await asyncio.to_thread(self._journal.append, [rows for rows, _ in batch])
        except OSError as error:
            log.error("transitions cannot be stored: %s", error)
            batch, self._waiting = batch + self._waiting, []  # what waits may follow what is lost
            self._journal.forget([rows for rows, _ in batch])
            for _, done in batch:
                if not done.done():
                    done.set_exception(Refused(503, "body", "it cannot be stored: the disk does not take it"))
            return
        for _, done in batch:
            if not done.done():
                done.set_result(None)
        if self._journal.ended_rows >= SEAL_ROWS:
            await self._seal()

    async def seal(self) -> int:
        """Move the episodes that have ended to a part; return its rows."""
        async with self._lock:
            return await self._seal()

    async def _seal(self) -> int:
        try:
            return await asyncio.to_thread(self._journal.seal)
        except OSError as error:
            log.error("no part can be written: %s", error)
            raise Refused(503, "body", "no part can be written: the disk does not take it") from None

    async def seal_when_idle(self) -> None:
        """Seal what has ended if nobody has sent anything for a while."""
        if self._journal.ended_rows and time.monotonic() - self._last > SEAL_SECONDS:
            await self.seal()

    async def close(self) -> None:
        """Write what waits, seal what has ended, and close the folder."""
        async with self._lock:
            if self._waiting:
                await self._write()
            await asyncio.to_thread(self._journal.close)
