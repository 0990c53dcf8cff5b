"""A rival in a process of its own: it makes itself ready, then runs as often as it is told to, and says what that took.

Started by ``measure.py``. Line by line, as JSON: a job comes in and what making ready took goes out; then for every request
``{"go": n}`` the seconds of its phases go out, until the input ends. A rival's module has ``prepare(job) -> (told, run)``, and
``run(request)`` is a repetition. Nothing of the library is imported here, so that a rival may have an environment of its own.
"""

import importlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def versions(packages: Sequence[str]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in packages}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    job = json.loads(sys.stdin.readline())
    if job["core"] is not None:
        os.sched_setaffinity(0, {job["core"]})
    sys.path.insert(0, str(Path(__file__).parent))
    start = time.perf_counter()
    told, run = importlib.import_module(job["module"]).prepare(job)
    answer({"warm_up_seconds": time.perf_counter() - start, "versions": versions(job["packages"]), **told})
    for line in sys.stdin:
        answer(run(json.loads(line)))


if __name__ == "__main__":
    main()
