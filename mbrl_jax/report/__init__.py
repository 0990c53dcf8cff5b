"""The report on finished runs: one HTML page that needs nothing else, to be read on any screen, printed, or put in an appendix.

:func:`write` is all of it. ``page`` puts the sections together, of which each is a module: ``overview``, ``returns``, ``model``,
``imagination`` and ``animation``. They measure with ``measures`` and ``rollouts``, and write with ``markup``.
"""

from mbrl_jax.report.page import write

__all__ = ["write"]
