"""A run's own transitions, in the form of every file of logged transitions: what ``--data`` reads again.

An environment in JAX leaves them in the replay of real transitions, from which they are written once, at the end. What the host
steps can often not be had again, so there they are appended to a journal as they are made: ``transitions/0001.after_12.arrows``
and so on in the run's folder. Each process that works on the run has a file of its own, named by its number and the round that it
goes on after, whose columns are those of the file in the end. A process that is killed leaves all blocks of steps but the one in
hand.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from mbrl_jax.algorithms import hosted
from mbrl_jax.algorithms.training import Train
from mbrl_jax.config import ConfigError, RunConfig, algorithm_name
from mbrl_jax.environments import EnvironmentSpec, Transition, in_units, make_environment
from mbrl_jax.environments.logged.episodes import Logged, concatenate
from mbrl_jax.environments.logged.writing import as_table, join_parquet, write_seeds
from mbrl_jax.replay import make_replay
from mbrl_jax.runs import results
from mbrl_jax.runs.hosted import HostedProgram
from mbrl_jax.runs.program import Program

FILE, JOURNAL = "transitions.parquet", "transitions"
LATER = "later.arrows"  # what a process wrote after a block that could not be written
Wish = Literal["auto", "on", "off"]
MOST_BYTES = 1e9  # of transitions, before compression, that are recorded without being asked for


def check(wish: Wish, config: RunConfig, algorithm: Train) -> None:
    """Refuse to record what there is not.

    Raises ConfigError: recording is asked for, and the algorithm does not keep its transitions, or they come from files.
    """
    if wish != "on":
        return
    if config.data is not None:
        raise ConfigError("record_transitions: on does not fit with data, whose files have the transitions; it must be off")
    if not hasattr(algorithm.axes, "real") and make_environment(config.environment).host is None:
        name = f"{algorithm_name(config)!r} keeps no transitions of {config.environment.name!r}"
        raise ConfigError(f"record_transitions: on does not fit; {name}, so it must be off")


def records(wish: Wish, program: Program, seeds: int, say: Callable[[str], None]) -> bool:
    """Whether a run records its transitions: where it is asked to and, by ``auto``, up to 1 GB of a host's simulators."""
    config = program.configs[0]
    if wish != "auto" or not isinstance(program, HostedProgram) or config.data is not None:
        return wish == "on"
    spec = program.task.spec
    size = seeds * config.real_transitions * 4 * (2 * spec.observation_size + spec.action_size + 4)
    if size > MOST_BYTES:
        say(f"transitions are not recorded: they would take {size / 1e9:,.1f} GB; --record-transitions on records them")
    return size <= MOST_BYTES


# ----------------------------------------------------------------------------------------------------- from a device's replay


def from_replay(program: Program, seeds: range) -> Iterator[tuple[int, Logged]]:
    """The real transitions of each seed of a finished run whose environment the devices step."""
    config = program.configs[0]
    spec = make_environment(config.environment).spec
    replay = make_replay(spec, config.real_transitions)
    stored = program.to_host(program.state.real, program.algorithm.axes.real)
    for place, seed in enumerate(seeds):
        found, valid = replay.contents(stored._replace(rows=stored.rows[place]))
        rows = jax.tree.map(lambda leaf, data=valid: np.asarray(leaf)[np.asarray(data)], found)
        flags = np.zeros(len(rows.reward), bool)
        action = in_units(spec, rows.action)
        columns = (rows.observation, action, rows.reward, rows.next_observation, rows.terminated, flags, rows.depth, flags)
        yield seed, cut(Logged(*columns), several=bool(hosted.beside(config)))


def cut(rows: Logged, *, several: bool = False) -> Logged:
    """Mark as truncated what does not lead to the next row, the last row too, unless it terminated.

    With the rows of ``several`` simulators, which take turns, a next row must also begin where its predecessor ended.
    """
    goes_on = np.append(rows.elapsed[1:] == rows.elapsed[:-1] + 1, False)
    if several:
        meets = rows.observation[1:] == rows.next_observation[:-1]
        goes_on[:-1] &= meets.reshape(len(meets), -1).all(axis=1)
    return rows._replace(truncated=(rows.truncated | ~goes_on) & ~rows.terminated)


# ------------------------------------------------------------------------------------------------ from a host's simulators


class Journal:
    """Appends the transitions of the seeds of a run as they are made.

    A block that cannot be written is reported and left out; the run goes on.
    """

    def __init__(self, folder: Path, spec: EnvironmentSpec, seeds: range, after: int, say: Callable[[str], None]):
        """Into a file in ``folder`` / :data:`JOURNAL`, made with the first block, of a process that goes on after a round."""
        self._root, self._spec, self._seeds, self._say = folder / JOURNAL, spec, seeds, say
        self._name = f"after_{after}.arrows"
        self._file: Any = None
        self._writer: Any = None

    def add(self, transitions: Transition, made: np.ndarray) -> None:
        """Append transitions [n, T] of all seeds, as far as they were ``made`` [n, T]."""
        import pyarrow as pa

        parts = []
        for place, seed in enumerate(self._seeds):
            columns = {name: np.asarray(leaf[place])[made[place]] for name, leaf in transitions._asdict().items()}
            columns["action"] = in_units(self._spec, columns["action"])
            rows = Logged(**columns, broken=np.zeros(int(made[place].sum()), bool))
            parts.append(as_table(rows, self._spec).add_column(0, "seed", pa.array(np.full(len(rows.reward), seed, np.int32))))
        try:
            self._write(pa.concat_tables(parts).combine_chunks())
        except OSError as error:
            self._say(f"{len(made[0])} steps could not be added to {str(self._root)!r} ({error}); the run goes on")
            self.close()  # what follows begins another file: this one may end in the middle of a block
            self._name = LATER

    def _write(self, table: Any) -> None:
        import pyarrow as pa

        if self._writer is None:
            self._root.mkdir(exist_ok=True)
            path = self._root / f"{len(list(self._root.iterdir())):04d}.{self._name}"
            self._file = path.open("xb", buffering=0)
            self._writer = pa.ipc.new_stream(self._file, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        """End the file."""
        with contextlib.suppress(OSError):  # a full disk has been reported
            if self._writer is not None:
                self._writer.close()
        if self._file is not None:
            self._file.close()
        self._file = self._writer = None


def from_journal(folder: Path, seeds: range, *, several: bool = False) -> Iterator[tuple[int, Logged]]:
    """The transitions of each seed in the journal of a run's folder, in the order in which processes worked on the run; whether
    each seed has ``several`` simulators is asked by :func:`cut`.
    """
    files = sorted((folder / JOURNAL).glob("*.arrows"))
    for seed in seeds:
        found: dict[Path, Logged] = {path: rows for path in files for rows in _of_seed(path, seed)}
        beginnings = {path.name.partition(".")[2] for path in files} - {LATER}
        for each in beginnings:
            alike = [path for path in found if path.name.endswith(f".{each}")]
            found.update(zip(alike, without_repeats([found[path] for path in alike]), strict=True))
        if found:
            yield seed, cut(concatenate(list(found.values())), several=several)


def _of_seed(path: Path, seed: int) -> list[Logged]:
    """What one process recorded of a seed, if it did."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = []
    with pa.OSFile(str(path)) as file, contextlib.suppress(pa.ArrowInvalid, OSError):  # a process that is killed ends in a block
        for batch in pa.ipc.open_stream(file):
            found.append(pa.Table.from_batches([batch]).filter(pc.equal(batch["seed"], seed)))
    table = pa.concat_tables(found) if found else None
    if table is None or not table.num_rows:
        return []

    def column(name: str) -> np.ndarray:
        values = table[name].combine_chunks()
        if isinstance(values, pa.FixedSizeListArray):
            return np.asarray(values.flatten()).reshape(len(values), -1)
        return np.asarray(values.to_numpy(zero_copy_only=False))

    columns = {name: column("step" if name == "elapsed" else name) for name in Logged._fields if name != "broken"}
    return [Logged(**columns, broken=np.zeros(table.num_rows, bool))]


def without_repeats(parts: Sequence[Logged]) -> list[Logged]:
    """What processes that went on after the same round recorded of a seed, as many parts, but each transition once.

    Such a process repeats what the one before did, as far as the simulator leaves nothing to chance. Whole episodes that are the
    same bit for bit are kept once.
    """
    kept: list[Logged] = []
    for rows in parts:
        rest = rows
        for place, before in enumerate(kept):
            same = _common(before, rest)
            if same == len(before.reward):
                kept[place] = before.part(slice(0, 0))
            else:
                begins = [0, *np.flatnonzero(rest.elapsed == 0), *([same] if same == len(rest.reward) else [])]
                rest = rest.part(slice(max(each for each in begins if each <= same), None))
        kept.append(rest)
    return kept


def _common(one: Logged, other: Logged) -> int:
    """How many rows two recordings have in common from their beginning on."""
    count = min(len(one.reward), len(other.reward))
    same = np.ones(count, bool)
    for ours, theirs in zip(one, other, strict=True):
        same &= (ours[:count] == theirs[:count]).all(axis=tuple(range(1, ours.ndim)))
    return count if same.all() else int(np.argmin(same))


# --------------------------------------------------------------------------------------------------------------- in the folder


def write(program: Program, folder: Path, seeds: range, on: bool) -> None:
    """Write the transitions of a run that has come to its end. Raises OSError: it cannot be done."""
    if isinstance(program, HostedProgram):
        if not (folder / JOURNAL).exists():
            return
        several = bool(hosted.beside(program.configs[0]))
        spec, blocks = program.task.spec, from_journal(folder, seeds, several=several)
    elif on:
        spec, blocks = make_environment(program.configs[0].environment).spec, from_replay(program, seeds)
    else:
        return
    with results.new_file(folder / FILE) as path:
        write_seeds(path, blocks, spec)


def join(folder: Path, shards: Sequence[Path], say: Callable[[str], None]) -> None:
    """Write the transitions of the shards of a run as one file, if they have recorded them. Raises OSError: it cannot be done."""
    there = [shard / FILE for shard in shards if (shard / FILE).exists()]
    if there and len(there) < len(shards):
        say(f"{len(shards) - len(there)} of {len(shards)} shards have not recorded their transitions; there are none of the run")
    elif there:
        with results.new_file(folder / FILE) as path:
            join_parquet(path, there)


def clear(folder: Path) -> None:
    """Remove the journal of a finished run."""
    if (folder / JOURNAL).exists():
        shutil.rmtree(folder / JOURNAL)
