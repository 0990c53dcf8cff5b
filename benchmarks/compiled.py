"""What a compiled program is made of, read from its text."""

import re

NO_KERNELS = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "iota")
"""Opcodes that launch nothing by themselves."""


def loop_body(program: str, times: int) -> str:
    """The text of the largest loop body that is known to run ``times`` times.

    Raises:
      ValueError: there is no such loop.

    """
    bodies = loop_bodies(program, times)
    if not bodies:
        raise ValueError(f"the program has no loop that runs {times} times")
    return max(bodies, key=len)


def loop_bodies(program: str, times: int) -> list[str]:
    """The texts of the loop bodies that are known to run ``times`` times."""
    names = set(re.findall(rf'body=%?([\w.\-]+).*"known_trip_count":\{{"n":"{times}"\}}', program))
    return [text for name, text in _computations(program).items() if name in names]


def kernels(computation: str) -> int:
    """How many instructions of a computation become kernels: fusions, matrix products, gathers and the like."""
    return sum(opcode not in NO_KERNELS for opcode in opcodes(computation))


def launches(program: str) -> int:
    """How many kernels there are in a program, each counted once however often it runs: those within a fusion are part of it."""
    within = set(re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", program))
    return sum(kernels(text) for name, text in _computations(program).items() if name not in within)


def opcodes(computation: str) -> list[str]:
    """The opcodes of a computation's instructions, in order."""
    return re.findall(r"^\s+(?:ROOT )?%?[\w.\-]+ = .*? ([a-z][\w\-]*)\(", computation, re.MULTILINE)


def opcodes_on(computation: str, shape: str) -> set[str]:
    """The opcodes of those instructions whose result is an array of ``shape``, as in ``f32[64,20000,13]``."""
    return set(re.findall(rf"= {re.escape(shape)}\S* ([a-z][\w\-]*)\(", computation))


def _computations(program: str) -> dict[str, str]:
    """The text of every computation by its name."""
    found: dict[str, str] = {}
    for each in re.split(r"^(?=(?:ENTRY )?%?[\w.\-]+ \(.*\) -> .* \{$)", program, flags=re.MULTILINE):
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(", each)
        if head:
            found[head.group(1)] = each
    return found
