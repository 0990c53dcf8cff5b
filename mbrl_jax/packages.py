"""Versions of installed packages."""

import importlib.metadata


def version_of(package: str) -> str:
    """The version of a package, ``unknown`` where its metadata are missing, as of a checkout that is merely on the path."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
