"""``mbrl-jax export``: a run's policy and model as files for other runtimes."""

from pathlib import Path
from typing import Literal

import tyro
from rich.table import Table

from mbrl_jax.config import expand
from mbrl_jax.runs import execution, terminal
from mbrl_jax.runs.display import Display
from mbrl_jax.serving.export.writing import Asked, Format, Made, What, export


def main(words: list[str]) -> None:
    """Run ``export``; exit with 1 where a file disagrees with the library and was not written.

    Raises:
      ConfigError: what was asked for does not fit the run, or the folder cannot be made.

    """

    def flags(
        run: tyro.conf.Positional[Path],
        out: Path,
        seed: int | None = None,
        best: bool = False,
        ensemble: bool = False,
        what: What = "all",
        format: tuple[Format, ...] = ("onnx",),
        int8: Literal["dynamic", "static"] | None = None,
    ) -> None:
        """Write a run's policy and world model as files for other runtimes, each held against the library on real observations.

        Args:
            run: the folder of a finished run
            out: a new folder
            seed: place of the seed whose policy and model it is; none takes the first
            best: the seed whose policy imagination scored best
            ensemble: the vote of all seeds' policies
            what: policy, model or all
            format: onnx, stablehlo, torchscript, or several of them
            int8: also with matrix products in INT8: dynamic, or static, calibrated on real observations

        """
        execution.find_devices()
        target, asked = expand(out, "out"), Asked(seed, best, ensemble, what, format, int8)
        with Display.standard("export") as display:
            contract, made = export(expand(run, "run"), target, asked, say=display.say)
        terminal.show(as_table(made))
        refused = [f"{each.file.path} is not written: {'; '.join(each.failures)}" for each in made if each.failures]
        told = f"written to {target}" if contract["files"] else "nothing is written"
        terminal.show(*refused, told)
        if refused:
            raise SystemExit(1)

    tyro.cli(flags, args=words, prog="mbrl-jax export")


def as_table(made: list[Made]) -> Table:
    """What was made and how far it agrees."""
    heads = ("file", "KB", "largest difference", "equal actions", "model's error", "return", "the library's")
    return terminal.table(heads, [_row(each) for each in made], title="against the library, on real observations")


def _row(made: Made) -> tuple[str, ...]:
    told = made.file.agreement
    differences = told["largest_difference"].values()
    returns, error = told.get("returns"), told.get("model_error")
    share = told["equal"].get("action")

    def estimate(name: str) -> str:
        return "-" if returns is None else f"{returns[name]['value']:.1f}"

    return (
        made.file.path,
        f"{made.file.bytes / 1000:.1f}",
        f"{max(differences):.1e}" if differences else "-",
        "-" if share is None else f"{share:.2%}",
        "-" if error is None else f"{error:.1e}",
        estimate("file"),
        estimate("library"),
    )
