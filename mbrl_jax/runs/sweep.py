"""Combinations of values of some settings, times seeds: ``mbrl-jax sweep``, and :func:`sweep` from Python.

What differs in traced settings alone runs together in one compiled program; every combination of static ones is compiled once.
All combinations have the same seeds, so they are paired. The command leaves a numbered folder for each combination, as
:mod:`mbrl_jax.runs.results` writes them, ``sweep.png``, and ``sweep.json``: for each folder its ``name``, its ``settings``, its
``state`` (``waiting``, ``finished``, or ``failed`` with an ``error``), what was asked for, and once it is finished its summary.
A combination is written as soon as it is trained, and one that fails does not end the others.
"""

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import jax
import yaml

from mbrl_jax import strict_json
from mbrl_jax.config import ConfigError, RunConfig, flat_settings, setting, to_dict, traced_settings, with_settings
from mbrl_jax.config.files import RepeatedKeyError
from mbrl_jax.config.files import parse as parse_yaml
from mbrl_jax.runs import interruption, results, runner
from mbrl_jax.runs.results import SHARDS
from mbrl_jax.runs.run import Run
from mbrl_jax.runs.runner import Options

TABLE = "sweep.json"

# ------------------------------------------------------------------------------------------------- values that vary together


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


def vary(config: RunConfig, settings: Mapping[str, Sequence[float]]) -> list[RunConfig]:
    """``config`` with the first values of all ``settings`` put in, with the second ones, and so on.

    Raises ConfigError: as :func:`sweep`, unless it is about the seeds.
    """
    if not settings:
        raise ConfigError("settings: there are none; name at least one traced setting with its values")
    known = traced_settings(config)
    for path, values in settings.items():
        if path not in known:
            listed = f"the traced settings are {', '.join(known)}"
            static = setting(to_dict(config), path, listed)
            raise ConfigError(f"{path}: {static!r} is static, so it compiles anew and must be run apart; {listed}")
        if not len(values):
            raise ConfigError(f"{path}: [] has no values; give at least one")
    if len({len(values) for values in settings.values()}) > 1:
        counted = ", ".join(f"{path} has {len(values)}" for path, values in settings.items())
        raise ConfigError(f"settings: {counted} values; those that vary together must have equally many")
    together = zip(*settings.values(), strict=True)
    return [with_settings(config, dict(zip(settings, values, strict=True))) for values in together]


# ------------------------------------------------------------------------------------------------------------ combinations


class Cell(NamedTuple):
    """A combination."""

    settings: dict[str, Any]  # by dotted path, in the order in which they were given
    config: RunConfig

    @property
    def label(self) -> str:
        """Its settings in one line."""
        return ",".join(f"{path}={text_of(value)}" for path, value in self.settings.items())


def cells(config: RunConfig, grid: Mapping[str, Sequence[Any]]) -> list[Cell]:
    """Every combination of the values of some settings, put into ``config``.

    Raises ConfigError: there is no such setting, it has no values or one of them twice, or a combination cannot work.
    """
    if not grid:
        raise ConfigError("grid: it is empty; name at least one setting with its values, as in agent.learning_rate=1e-4,1e-3")
    for path, given in grid.items():
        if not given:
            raise ConfigError(f"{path}: [] has no values; give at least one")
    made = []
    for values in itertools.product(*grid.values()):
        one = with_settings(config, dict(zip(grid, values, strict=True)))
        flat = flat_settings(one)
        made.append(Cell({path: flat[path] for path in grid}, one))
    labels = [cell.label for cell in made]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"grid: {label} is given twice; each value must be given once")
    return made


def parse(words: Sequence[str]) -> dict[str, list[Any]]:
    """The grid that words like ``agent.learning_rate=1e-4,1e-3`` or ``agent.hidden=[64,64],[32]`` say.

    Raises ConfigError: a word says none, or a setting is given twice.
    """
    grid: dict[str, list[Any]] = {}
    for word in words:
        path, equals, values = word.partition("=")
        path = path.strip().replace("-", "_")  # as flags may be written
        try:
            read = parse_yaml(f"[{values}]") if equals else None
        except RepeatedKeyError as error:
            raise ConfigError(f"grid: {word!r}: {error}") from error
        except yaml.YAMLError:
            read = None
        if not path or not isinstance(read, list):
            raise ConfigError(f"grid: {word!r} must be a setting with its values, as in agent.learning_rate=1e-4,1e-3")
        if path in grid:
            raise ConfigError(f"grid: {path} is given twice; put all its values into one list")
        grid[path] = read
    return grid


def names(count: int) -> list[str]:
    """The folder of each combination: its number, as short as the longest one."""
    return [f"{place:0{len(str(count - 1))}d}" for place in range(count)]


def groups(made: Sequence[Cell]) -> list[list[int]]:
    """The places of the combinations that compile to one program."""
    found: dict[Any, list[int]] = {}
    for place, cell in enumerate(made):
        found.setdefault(jax.tree.structure(cell.config), []).append(place)  # type: ignore[operator]
    return list(found.values())


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
        shared = {
            "combinations": len(made),
            "seeds": len(seeds),
            "base_seed": seed,
            **({"first_seed": seeds.start} if seeds.start else {}),
        }
        self._names = names(len(made))
        self._asked = [
            {"name": name, "settings": cell.settings, "config": to_dict(cell.config), **shared}
            for name, cell in zip(self._names, made, strict=True)
        ]
        self._entries: dict[int, dict[str, Any]] = {place: {**self._asked[place], "state": "waiting"} for place in self.places}

    @contextlib.contextmanager
    def opened(self, resume: bool) -> Iterator[list[int]]:
        """The combinations that are still to be trained. Where nothing is trained, nothing is left of a new folder.

        Raises ConfigError: the folder exists, holds another sweep, or something cannot be written there.
        """
        if resume and not results.is_untouched(self.folder):
            self._take_up()
        else:
            with results.new_folder(self.folder), interruption.on_leaving(self._withdraw):
                self._begin()
                try:
                    yield list(self.places)
                finally:
                    self._withdraw()
            return
        yield [place for place in self.places if self._entries[place]["state"] != "finished"]

    def finish(self, place: int, run: Run) -> None:
        """Write a run into its folder."""
        summary = results.write(run, self.folder / self._names[place])
        self._entries[place] = {**self._asked[place], "state": "finished", **summary}
        self._write()

    def fail(self, places: Sequence[int], error: Exception) -> None:
        """Note what an error has cost."""
        for place in places:
            self._entries[place] |= {"state": "failed", "error": f"{type(error).__name__}: {error}"}
        self._write()

    def finished(self) -> dict[int, Run]:
        """The runs that are finished, by the number of the combination."""
        return {
            place: results.read(self.folder / self._names[place])
            for place in self.places
            if self._entries[place]["state"] == "finished"
        }

    def failures(self) -> list[str]:
        """What failed, in words."""
        return [
            f"failed: {entry['name']}, {self.made[place].label}: {entry['error']}"
            for place, entry in self._entries.items()
            if entry["state"] == "failed"
        ]

    def join(self, shards: Sequence[Path]) -> None:
        """Copy the combinations of shards into the folder. Raises as :func:`gathered`."""
        found = gathered(shards)
        for place, (shard, entry) in found.items():
            shutil.copytree(shard / entry["name"], self.folder / entry["name"], dirs_exist_ok=True)
            self._entries[place] = entry
        self._write()

    def _begin(self) -> None:
        try:
            for place in self.places:
                (self.folder / self._names[place]).mkdir()
            self._write()
        except OSError as error:
            self._withdraw()
            raise ConfigError(f"out: nothing can be written to {str(self.folder)!r}: {error}") from error

    def _take_up(self) -> None:
        """Read what an earlier call has left."""
        there = read_table(self.folder)
        theirs = [{name: each.get(name) for name in self._asked[0]} for each in there.values()]
        if theirs != strict_json.loads(strict_json.dumps([self._asked[place] for place in self.places])):
            raise ConfigError(
                f"out: {str(self.folder)!r} does not fit; the sweep in it was asked for with another grid, preset, --seeds or "
                "--seed, and goes on only with the same"
            )
        self._entries |= {place: entry for place, entry in there.items() if entry["state"] == "finished"}
        for place in self.places:
            (self.folder / self._names[place]).mkdir(exist_ok=True)

    def _withdraw(self) -> None:
        """Remove the folder if nothing was trained."""
        if (self.folder / SHARDS).exists() or any(entry["state"] != "waiting" for entry in self._entries.values()):
            return
        (self.folder / TABLE).unlink(missing_ok=True)
        for folder in (self.folder / self._names[place] for place in self.places):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _write(self) -> None:
        with results.new_file(self.folder / TABLE) as path:
            strict_json.write(path, list(self._entries.values()))


def read_table(folder: Path) -> dict[int, dict[str, Any]]:
    """The entries of a folder's ``sweep.json`` by the number of the combination.

    Raises ConfigError: there is none, or it cannot be read.
    """
    try:
        return {int(entry["name"]): entry for entry in strict_json.loads((folder / TABLE).read_text(encoding="utf-8"))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"out: {str(folder)!r} holds no sweep that could go on: {error}") from error


def gathered(shards: Sequence[Path]) -> dict[int, tuple[Path, dict[str, Any]]]:
    """All combinations of a sweep by number, each with the shard that has it.

    Raises ConfigError: shards differ in what was asked for or are not finished, or a combination is in none of them or in two.
    """
    found: dict[int, tuple[Path, dict[str, Any]]] = {}
    shared = ("combinations", "seeds", "base_seed", "first_seed")
    for shard in shards:
        for place, entry in sorted(read_table(shard).items()):
            first = next(iter(found.values()))[1] if found else entry
            for name in shared:
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
    count = next(iter(found.values()))[1].get("combinations", len(found)) if found else 0
    if missing := [name for place, name in enumerate(names(count)) if place not in found]:
        raise ConfigError(f"shards: the combinations {', '.join(missing)} are missing")
    return dict(sorted(found.items()))


def join(out: Path, shards: Sequence[Path]) -> None:
    """Make one sweep of the shards of one in a new folder; they stay as they are.

    Raises ConfigError: as :func:`gathered`, or the folder cannot be used.
    """
    found = gathered(shards)
    with results.new_folder(out):
        for shard, entry in found.values():
            shutil.copytree(shard / entry["name"], out / entry["name"])
        with results.new_file(out / TABLE) as path:
            strict_json.write(path, [entry for _, entry in found.values()])


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


# ------------------------------------------------------------------------------------------------------------------ pieces


def text_of(value: Any) -> str:
    """A value as it is written in a name: a list without blanks, a number without more digits than it needs."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(text_of(each) for each in value) + "]"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
