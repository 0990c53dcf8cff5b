"""Faults planted in the package's code, to see that a test fails for them."""

import contextlib
import importlib
import inspect
import operator
import textwrap
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def planted(where: str, old: str, new: str) -> Iterator[None]:
    """Within, the function ``where`` has ``new`` in place of ``old`` in its source.

    Raises:
      ValueError: its source does not have ``old`` exactly once.

    """
    module, name = where.split(":")
    function = operator.attrgetter(name)(importlib.import_module(f"mbrl_jax.{module}"))
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(old) != 1:
        raise ValueError(f"{where} has {old!r} {source.count(old)} times")
    namespace = dict(function.__globals__)
    exec(compile(source.replace(old, new), f"<{where} with a fault>", "exec"), namespace)  # the source is ours
    sound = function.__code__
    function.__code__ = namespace[function.__name__].__code__
    jax.clear_caches()  # what was traced before does not have the fault, and what is traced now has
    try:
        yield
    finally:
        function.__code__ = sound
        jax.clear_caches()
