"""Runs of some of the seeds of a run: trained one after another or on several machines, and joined to one run in the end.

A shard is a run like any other, whose first seed is not number 0. Its seeds have the random numbers that they have in the whole.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from mbrl_jax.config import ConfigError
from mbrl_jax.runs import folder, results, transitions
from mbrl_jax.runs.claims import claimed
from mbrl_jax.runs.folder import Asked
from mbrl_jax.runs.program import split
from mbrl_jax.runs.results import RUN, SHARDS, Draw
from mbrl_jax.runs.run import Run, joined


def parse_numbers(text: str, name: str = "combinations") -> range:
    """The numbers that ``64:128`` says, or ``7``. Raises ConfigError: it says none."""
    first, colon, end = text.rpartition(":")
    try:
        numbers = range(int(first), int(end)) if colon else range(int(end), int(end) + 1)
    except ValueError:
        raise ConfigError(f"{name}: {text!r} does not fit; it must be a number, or FIRST:END as in 64:128") from None
    if not 0 <= numbers.start < numbers.stop <= 2**31:
        right = "FIRST must be below END, and both be" if colon else "it must be"
        raise ConfigError(f"{name}: {text!r} is out of range; {right} from 0 to 2^31")
    return numbers


def parse_seeds(text: str) -> range:
    """The numbers of the seeds that ``64`` (from 0 on) or ``64:128`` says. Raises ConfigError: it says none."""
    numbers = parse_numbers(text, "seeds")
    return numbers if ":" in text else range(numbers.start)


def again(command: str, resume: bool) -> str:
    """The command that goes on with a run that ``command`` began or, by ``resume``, went on with."""
    return command if resume else f"{command} --resume"


def places(out: Path, asked: Asked) -> dict[Path, Asked]:
    """The folders of the shards of a run that has been begun, and what each is of."""
    shards = split(asked.seeds, folder.at_once(out))
    return {
        out / SHARDS / f"{i:04d}": asked._replace(seeds=shard.agents, first=asked.first + shard.first)
        for i, shard in enumerate(shards)
    }


def left(out: Path, asked: Asked) -> dict[Path, Asked]:
    """Those that are not finished."""
    return {place: shard for place, shard in places(out, asked).items() if not folder.is_finished(place)}


def finish(out: Path, asked: Asked, again: str, draw: Draw | None, say: Callable[[str], None]) -> Run:
    """Make one run of its shards, which are all finished, in a folder whose lock is held, and remove them.

    Raises ConfigError: as :func:`join`, or something cannot be written; then ``again`` goes on.
    """
    with folder.writing(out, again):
        run = join(out, list(places(out, asked)), draw, say)
    remove(out)
    return run


def join(out: Path, shards: Sequence[Path], draw: Draw | None, say: Callable[[str], None] = print) -> Run:
    """Write one run of several shards into a folder that holds its ``run.json``, and whose lock is held.

    Raises ConfigError: as :func:`whole`, or a shard cannot be read. OSError: something cannot be written.
    """
    ordered = _in_order(shards)
    asked_of_all = folder.asked_of(out)
    folder.check_same(out, whole(ordered))
    run = joined([results.read(shard) for shard in ordered])._replace(first_seed=asked_of_all.first)
    transitions.join(out, ordered, say)
    results.write(run, out, draw, say)
    return run


def whole(shards: Sequence[Path]) -> Asked:
    """What the run is of that has all the seeds of the shards.

    Raises ConfigError: a shard is not finished or no run at all, they differ in a setting, or their seeds overlap or leave a gap.
    """
    if not shards:
        raise ConfigError("shards: [] is too few; name at least one folder of a finished shard")
    ordered = _in_order(shards)
    asked = [folder.asked_of(shard) for shard in ordered]
    problems = []
    for shard in ordered:
        if not folder.is_finished(shard):
            problems.append(
                f"shards: {str(shard)!r} is not finished; go on with it: {results.read_run(shard)['command']} --resume"
            )
    for shard, one in zip(ordered[1:], asked[1:], strict=True):
        others = folder.differing(asked[0].settings(), one._replace(seeds=asked[0].seeds, first=asked[0].first).settings())
        for name, (ours, theirs) in others.items():
            problems.append(f"{name}: {theirs!r} in {str(shard)!r} does not fit; {str(ordered[0])!r} has {ours!r}")
    for (left, before), (right, after) in zip(
        zip(ordered, asked, strict=True), zip(ordered[1:], asked[1:], strict=True), strict=False
    ):
        end, first = before.numbers.stop, after.first
        if end < first:
            problems.append(f"shards: seeds {end}:{first} are missing, between {str(left)!r} and {str(right)!r}")
        elif end > first:
            problems.append(f"shards: seeds {first}:{min(end, after.numbers.stop)} are in {str(left)!r} and in {str(right)!r}")
    if problems:
        raise ConfigError("\n".join(problems))
    return asked[0]._replace(seeds=sum(one.seeds for one in asked))


def command(out: Path, shards: Sequence[Path], words: str, draw: Draw, say: Callable[[str], None]) -> Run:
    """Join finished shards to a run in a new folder, or in one where that was begun; the shards stay as they are.

    Raises ConfigError: as :func:`whole`, or the folder cannot be used.
    """
    asked = whole(shards)
    with claimed(out, resume=(out / RUN).exists() and not folder.is_finished(out)) as begun, folder.writing(out, words):
        if not begun:
            folder.begin(out, asked, words)
        return join(out, shards, draw, say)


def remove(out: Path) -> None:
    """Remove the shards of a finished run."""
    if (out / SHARDS).exists():
        shutil.rmtree(out / SHARDS)


def _in_order(shards: Sequence[Path]) -> list[Path]:
    return sorted(shards, key=lambda shard: folder.asked_of(shard).first)
