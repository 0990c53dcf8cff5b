"""What is held against what, and how closely it agrees: the parity suite's own figures, as the table of docs/results/parity.md.

    python benchmarks/parity.py [--seed N]

Runs tests/parity, gathers what every comparison found, writes benchmarks/results/parity/table.json with a row for each subject,
and prints them by room: the largest relative error of any number in any comparison (the largest difference over the largest size
in its array), beside the tolerance that the suite demands. The planted faults run with it and are counted.
"""

import argparse
import os
import secrets
from pathlib import Path
from typing import Any

import pytest

from mbrl_jax import packages, strict_json

ROOT = Path(__file__).parent.parent
PACKAGES = ("jax", "jaxlib", "flax", "optax", "gymnax", "gymnasium", "torch", "scipy", "numpy")


LOOSEST = 1e-6
"""No float64 comparison is allowed more."""


class Gatherer:
    """A pytest plugin that keeps what tests report of their agreement, and counts the planted faults."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, str, float, float]] = []
        self.caught = self.planted = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a finished test reported."""
        if report.when == "call" and "planted_fault" in report.nodeid:
            self.planted += 1
            self.caught += report.passed
        if report.when == "teardown":
            told: list[tuple[str, Any]] = report.user_properties  # type: ignore[assignment] # it may hold anything
            self.entries += [tuple(value) for name, value in told if name == "agreement"]


def rows_of(entries: list[Any]) -> list[dict[str, Any]]:
    """One row for each room, subject (what stands before a colon or a comma), other side and tolerance."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for room, what, against, error, tolerance in entries:
        subject = what.partition(":")[0]
        key = (room, subject, against, tolerance)
        row = rows.setdefault(
            key,
            {"room": room, "what": subject, "against": against, "tolerance": tolerance, "largest_error": 0.0, "comparisons": 0},
        )
        row["largest_error"] = max(row["largest_error"], error)
        row["comparisons"] += 1
    return [rows[key] for key in sorted(rows, key=lambda key: (key[0], key[2], key[1], key[3]))]


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """A line for each room and other side; what is not compared in float64 has lines of its own."""
    lines = ["| room | against | comparisons | asked to be equal | largest error of the others | tolerance |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    exact = [row for row in rows if row["tolerance"] <= LOOSEST and "float32" not in row["what"]]
    for room, against in sorted({(row["room"], row["against"]) for row in exact}):
        mine = [row for row in exact if (row["room"], row["against"]) == (room, against)]
        total, equal = (sum(row["comparisons"] for row in which) for which in (mine, [r for r in mine if r["tolerance"] == 0]))
        others = [row for row in mine if row["tolerance"] > 0]
        error = f"{max(row['largest_error'] for row in others):.0e}" if others else ""
        tolerances = sorted({row["tolerance"] for row in others})
        tolerance = " to ".join(f"{x:.0e}" for x in dict.fromkeys([*tolerances[:1], *tolerances[-1:]]))
        lines.append(f"| {room} | {against} | {total} | {equal} | {error} | {tolerance} |")
    for row in rows:
        if row not in exact:
            what = f"{row['room']}: {row['what']}"
            lines.append(
                f"| {what} | {row['against']} | {row['comparisons']} | 0 | {row['largest_error']:.0e} | {row['tolerance']:.0e} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="of the suite's random inputs; none draws one")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "parity")
    arguments = parser.parse_args()
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    os.environ["PARITY_SEED"] = str(seed)
    gatherer = Gatherer()
    status = pytest.main([str(ROOT / "tests" / "parity"), "-q", "--dist", "load", "--rootdir", str(ROOT)], plugins=[gatherer])
    if status != pytest.ExitCode.OK:
        raise SystemExit(f"the parity suite did not pass (exit status {int(status)}); nothing is written")
    rows = rows_of(gatherer.entries)
    content = {
        "seed": seed,
        "faults": {"planted": gatherer.planted, "caught": gatherer.caught},
        "comparisons": len(gatherer.entries),
        "rows": rows,
        "versions": packages.versions(PACKAGES),
        "precision": "float64, matrix products highest, unless a row names float32",
        "git": packages.git_revision(),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    strict_json.write(arguments.out / "table.json", content)
    print(as_markdown(rows))
    print(f"\n{len(gatherer.entries)} comparisons; {gatherer.caught} of {gatherer.planted} planted faults caught; seed {seed}")


if __name__ == "__main__":
    main()
