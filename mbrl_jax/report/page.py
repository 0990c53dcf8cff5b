"""Puts the report together and writes it, whole or not at all."""

import importlib.resources
import os
import string
from collections.abc import Sequence
from pathlib import Path

from mbrl_jax.config import ConfigError, expand
from mbrl_jax.packages import version_of
from mbrl_jax.report import animation, entries, imagination, markup, model, overview, returns
from mbrl_jax.report.entries import Entry
from mbrl_jax.report.markup import Figures
from mbrl_jax.runs import interruption


def write(folders: Sequence[Path], out: Path) -> None:
    """Write the report on the runs in ``folders`` to ``out``, one HTML file. The same runs give the same bytes.

    Raises:
      ConfigError: there are no folders, or one without a finished run, or ``out`` is there already or cannot be written.

    """
    folders, out = [expand(folder) for folder in folders], expand(out)
    _check_out(out)
    page = render(entries.read(folders))
    _place(page, out)


def render(runs: Sequence[Entry]) -> str:
    """The page."""
    figures = Figures()
    sections = [
        overview.section(runs),
        returns.section(runs, figures),
        model.section(runs, figures),
        imagination.section(runs, figures),
        animation.section(runs, figures),
    ]
    parts = importlib.resources.files(__package__)
    template, style, script = (parts.joinpath(f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    return string.Template(template).substitute(
        title=markup.escape(overview.title(runs)),
        runs="\n".join(f"<li><b>{markup.escape(run.label)}</b>: {markup.escape(overview.one_line(run))}</li>" for run in runs),
        sections="\n".join(sections),
        version=version_of("mbrl-jax"),
        style=style,
        script=script,
    )


def _check_out(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise ConfigError(f"out: {str(out)!r} exists already and is left as it is; name a new file")
    if not out.parent.is_dir():
        raise ConfigError(f"out: {str(out)!r} lies in a folder that does not exist; make {str(out.parent)!r}, or name another")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"out: nothing can be written to {str(out.parent)!r}; name a file in another folder")


def _place(page: str, out: Path) -> None:
    """Write the page beside ``out`` and give it that name once it is whole."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.new")
    try:
        with interruption.on_leaving(lambda: temporary.unlink(missing_ok=True)):
            with temporary.open("x", encoding="utf-8", newline="\n") as file:
                file.write(page)
                file.flush()
                os.fsync(file.fileno())
            _check_out(out)  # it took a while
            temporary.replace(out)
    except OSError as error:
        raise ConfigError(f"out: {str(out)!r} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
