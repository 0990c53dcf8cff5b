"""JSON as its standard has it: a number that is not finite is written as ``null``, as JSON has no word for it.

Every JSON file of the library and of its benchmarks is written by this module. Python's own ``json`` writes a bare ``NaN`` or
``Infinity``, which most other readers refuse, the whole file with it.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def dumps(content: Any, **options: Any) -> str:
    """``content`` as JSON text; ``options`` as of ``json.dumps``."""
    return json.dumps(_finite(content), allow_nan=False, **options)


def loads(text: str | bytes) -> Any:
    """The content of JSON text, with None also for the bare ``NaN`` and ``Infinity`` that earlier versions wrote.

    Raises ValueError: it is no JSON.
    """
    return json.loads(text, parse_constant=lambda _: None)


def write(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write ``content`` as a JSON file; with ``indent`` for people, without one in a single line.

    Raises OSError: it cannot be written.
    """
    path.write_text(dumps(content, indent=indent) + "\n", encoding="utf-8")


def _finite(content: Any) -> Any:
    """``content`` with None in place of every number that is not finite."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
