"""Versions of installed packages, and of the source."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path


def version_of(package: str) -> str:
    """The version of a package, ``unknown`` where its metadata are missing, as of a checkout that is merely on the path."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of what a figure depends on: Python, this library and ``packages``."""
    return {"python": platform.python_version(), **{name: version_of(name) for name in ("mbrl-jax", *packages)}}


def git_revision() -> str | None:
    """The revision of the source, with ``+changes`` if files other than results differ from it; none outside a checkout."""
    here = Path(__file__)

    def git(*words: str) -> str:
        command = ["git", "-C", str(here.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # a checkout of this source, not one that an installation lies in
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ":(top)", ":(top,exclude)benchmarks/results")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None
