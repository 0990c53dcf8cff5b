"""What is held against what, and how closely it agrees: the parity suite's own figures, as the table of the README.

    python benchmarks/parity.py [--seed N]

Runs tests/parity, gathers what every comparison found, writes benchmarks/results/parity/table.json, and prints the table: for
each subject the largest relative error of any number in any comparison (the largest difference over the largest size in its
array), beside the tolerance that the suite demands; "equal" where it demands equality. The planted faults run with it and are
counted.
"""

import argparse
import json
import os
import secrets
from pathlib import Path
from typing import Any

import pytest

from mbrl_jax.runs import results

ROOT = Path(__file__).parent.parent
PACKAGES = ("jax", "jaxlib", "flax", "optax", "gymnax", "gymnasium", "torch", "scipy", "numpy")


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
            self.entries += [tuple(value) for name, value in report.user_properties if name == "agreement"]


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
    lines = ["| room | what | against | comparisons | largest error | tolerance |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        error = "equal" if row["largest_error"] == 0 else f"{row['largest_error']:.0e}"
        tolerance = "equal" if row["tolerance"] == 0 else f"{row['tolerance']:.0e}"
        lines.append(f"| {row['room']} | {row['what']} | {row['against']} | {row['comparisons']} | {error} | {tolerance} |")
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
        "versions": results.versions(PACKAGES),
        "precision": "float64, matrix products highest, unless a row names float32",
        "git": results.git_revision(),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "table.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(as_markdown(rows))
    print(f"\n{len(gatherer.entries)} comparisons; {gatherer.caught} of {gatherer.planted} planted faults caught; seed {seed}")


if __name__ == "__main__":
    main()
