"""Combinations of values of some settings, times seeds: ``mbrl-jax sweep``, and :func:`sweep` from Python.

What differs in traced settings alone runs together in one compiled program; every combination of static ones is compiled once.
All combinations have the same seeds, so they are paired. The command leaves a numbered folder for each combination, as
:mod:`mbrl_jax.runs.results` writes them, ``sweep.png``, and ``sweep.json``: for each folder its ``name``, its ``settings``, its
``state`` (``waiting``, ``finished``, or ``failed`` with an ``error``), what was asked for, and once it is finished its summary.
A combination is written as soon as it is trained, and one that fails does not end the others.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from mbrl_jax import strict_json
from mbrl_jax.config import ConfigError, RunConfig, to_dict
from mbrl_jax.config.grid import Cell, cells, groups, vary
from mbrl_jax.runs import results, runner
from mbrl_jax.runs.claims import claimed
from mbrl_jax.runs.run import Run
from mbrl_jax.runs.runner import Options

TABLE = "sweep.json"


def sweep(config: RunConfig, settings: Mapping[str, Sequence[float]], seeds: int, **options: Unpack[Options]) -> list[Run]:
    """Train ``seeds`` agents for each value of a setting, all in one compiled program.

    Seed i has the same random numbers at every value, so the runs are paired.

    Args:
      config: what all values share.
      settings: dotted paths of traced settings with their values; of several, as in ``{"imagination.cap": [1, 3],
        "agent.discount": [0.9, 0.99]}``, the first values go together, then the second ones, and so on.
      seeds: at least 1, for each value.
      options: as of :func:`mbrl_jax.run`.

    Returns:
      A run for each value, with the value in its config. Seconds are the whole program's, shared out equally over the values.

    Raises:
      ConfigError: a setting that is not known or is static; values that cannot work, none, or not as many for every setting;
        there are no seeds.

    """
    configs = vary(config, settings)
    for path, values in settings.items():
        if options.get("controller") is not None and path.startswith("imagination.controller."):
            raise ConfigError(f"{path}: {list(values)!r} do not fit; a controller is given, which has its own numbers")
    return list(runner.run_all(configs, seeds, **options))


def names(count: int) -> list[str]:
    """The folder of each combination: its number, as short as the longest one."""
    return [f"{place:0{len(str(count - 1))}d}" for place in range(count)]


def run(
    made: Sequence[Cell],
    seeds: int | range,
    *,
    failed: Callable[[Sequence[int], Exception], None] | None = None,
    **options: Unpack[Options],
) -> Iterator[tuple[int, Run]]:
    """Train ``seeds`` agents for every combination; yield its place and its run as soon as all of its seeds are trained.

    Args:
      made: the combinations.
      seeds: of each.
      failed: called with the places of the combinations that an error has cost and the error; the others go on. None raises it.
      options: as of :func:`mbrl_jax.run`.

    Raises:
      ConfigError: as :func:`mbrl_jax.run`.

    """
    for places in groups(made):
        left = list(places)
        try:
            for one in runner.run_all([made[place].config for place in places], seeds, **options):
                yield left[0], one
                left.pop(0)
        except Exception as error:
            if failed is None:
                raise
            failed(left, error)


# -------------------------------------------------------------------------------------------------------------- the command


class Table:
    """The folder of a sweep and its ``sweep.json``."""

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        grid: Mapping[str, Sequence[Any]],
        seeds: range,
        seed: int,
        only: Sequence[int] | None = None,
    ):
        """Of every combination in ``grid``, or of some by number; nothing is written yet.

        Raises ConfigError: as :func:`cells`, or there is no such number.
        """
        made = cells(config, grid)
        for places in groups(made):  # refuse what cannot work before anything is trained
            runner.check([made[place].config for place in places])
        self.folder, self.config, self.made, self.seeds, self.seed = folder, config, made, seeds, seed
        self.places = list(range(len(made))) if only is None else sorted(set(only))
        if not all(0 <= place < len(made) for place in self.places) or not self.places:
            raise ConfigError(f"combinations: {list(only or ())} does not fit; there are the numbers 0 to {len(made) - 1}")
        shared = {"combinations": len(made), "seeds": len(seeds), "base_seed": seed}
        if seeds.start:
            shared["first_seed"] = seeds.start
        self._asked = {
            place: {"name": name, "settings": cell.settings, "config": to_dict(cell.config), **shared}
            for place, (name, cell) in enumerate(zip(names(len(made)), made, strict=True))
            if place in self.places
        }
        self._entries: dict[int, dict[str, Any]] = {place: {**one, "state": "waiting"} for place, one in self._asked.items()}

    @contextlib.contextmanager
    def opened(self, resume: bool) -> Iterator[list[int]]:
        """Work in the folder alone; yield the combinations that are still to be trained.

        Raises ConfigError: the folder cannot be used, or holds another sweep.
        """
        with claimed(self.folder, resume) as begun:
            if begun:
                self._take_up()
            yield [place for place in self.places if self._entries[place]["state"] != "finished"]

    def finish(self, place: int, run: Run) -> None:
        """Write a run into its folder."""
        folder = self._folder(place)
        if not (self.folder / TABLE).exists():
            self.write()
        folder.mkdir(exist_ok=True)
        self._entries[place] = {**self._asked[place], "state": "finished", **results.write(run, folder)}
        self.write()

    def fail(self, places: Sequence[int], error: Exception) -> None:
        """Note what an error has cost."""
        for place in places:
            self._entries[place] |= {"state": "failed", "error": f"{type(error).__name__}: {error}"}
        self.write()

    def write(self) -> None:
        """Write ``sweep.json``, without which nobody goes on with the sweep. Raises OSError: it cannot be written."""
        results.write_json(self.folder / TABLE, list(self._entries.values()))

    def join(self, shards: Sequence[Path]) -> None:
        """Copy the combinations of shards into the folder. Raises as :func:`gathered`."""
        self._entries = _collect(self.folder, gathered(shards))

    def finished(self) -> dict[int, Run]:
        """The runs that are finished, by the number of the combination."""
        return {place: results.read(self._folder(place)) for place in self.places if self._entries[place]["state"] == "finished"}

    def failures(self) -> list[str]:
        """What failed, in words."""
        return [
            f"failed: {entry['name']}, {self.made[place].label}: {entry['error']}"
            for place, entry in self._entries.items()
            if entry["state"] == "failed"
        ]

    def _folder(self, place: int) -> Path:
        return self.folder / str(self._asked[place]["name"])

    def _take_up(self) -> None:
        """Read what an earlier call has left."""
        there = read_table(self.folder)
        theirs = [{name: entry.get(name) for name in self._asked[self.places[0]]} for entry in there.values()]
        if theirs != strict_json.loads(strict_json.dumps(list(self._asked.values()))):
            raise ConfigError(
                f"out: {str(self.folder)!r} does not fit; the sweep in it was asked for with another grid, preset, --seeds or "
                "--seed, and goes on only with the same"
            )
        self._entries |= {place: entry for place, entry in there.items() if entry["state"] == "finished"}


def read_table(folder: Path) -> dict[int, dict[str, Any]]:
    """The entries of a folder's ``sweep.json`` by the number of the combination.

    Raises ConfigError: there is none, or it cannot be read.
    """
    try:
        return {int(entry["name"]): entry for entry in strict_json.loads((folder / TABLE).read_text(encoding="utf-8"))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"out: {str(folder)!r} holds no sweep that could go on: {error}") from error


Found = dict[int, tuple[Path, dict[str, Any]]]  # by the number of the combination: the shard that has it, and its entry


def gathered(shards: Sequence[Path]) -> Found:
    """All combinations of a sweep.

    Raises ConfigError: shards differ in what was asked for or are not finished, or a combination is in none of them or in two.
    """
    found: Found = {}
    first: dict[str, Any] = {}
    for shard in shards:
        for place, entry in read_table(shard).items():
            first = first or entry
            for name in ("combinations", "seeds", "base_seed", "first_seed"):
                if entry.get(name) != first.get(name):
                    told = f"{name}: {entry.get(name)!r} in {str(shard)!r} does not fit; the first shard has {first.get(name)!r}"
                    raise ConfigError(told)
            if entry["state"] != "finished":
                raise ConfigError(
                    f"shards: combination {entry['name']} in {str(shard)!r} is not finished; go on with it by --resume"
                )
            if place in found:
                raise ConfigError(f"shards: combination {entry['name']} is in {str(found[place][0])!r} and in {str(shard)!r}")
            found[place] = shard, entry
    if missing := [name for place, name in enumerate(names(first.get("combinations", len(found)))) if place not in found]:
        raise ConfigError(f"shards: the combinations {', '.join(missing)} are missing")
    return dict(sorted(found.items()))


def join(out: Path, shards: Sequence[Path]) -> None:
    """Make one sweep of the shards of one in a new folder; they stay as they are.

    Raises ConfigError: as :func:`gathered`, or the folder cannot be used.
    """
    found = gathered(shards)
    with claimed(out):
        _collect(out, found)


def _collect(out: Path, found: Found) -> dict[int, dict[str, Any]]:
    """Copy combinations into a folder, and write their table; return its entries."""
    for shard, entry in found.values():
        shutil.copytree(shard / entry["name"], out / entry["name"], dirs_exist_ok=True)
    entries = {place: entry for place, (_, entry) in found.items()}
    results.write_json(out / TABLE, list(entries.values()))
    return entries


def train(table: Table, resume: bool, say: Callable[[str], None], **options: Unpack[Options]) -> None:
    """Train the combinations of a table that are left, each written as it ends.

    Raises ConfigError: the folder cannot be used, or the first combination of a new sweep cannot work.
    """
    with table.opened(resume) as left:
        done = len(table.places) - len(left)

        def failed(places: Sequence[int], error: Exception) -> None:
            if isinstance(error, ConfigError) and done == 0 and places[0] == 0:
                raise error  # nothing is lost, and most likely none of them can work
            table.fail([left[place] for place in places], error)
            say(f"{len(places)} of {len(table.places)} combinations failed: {error!r}; the others go on")

        chosen = [table.made[place] for place in left]
        options["base_seed"] = table.seed
        for place, one in run(chosen, table.seeds, failed=failed, **options):
            table.finish(left[place], one)
            done += 1
