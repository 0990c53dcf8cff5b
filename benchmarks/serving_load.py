"""The load of `benchmarks/serving.py load`, as locust runs it: users that ask for actions, flat out or at a robot's pace."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from locust import FastHttpUser, constant_throughput, events, task
from locust.env import Environment

from mbrl_jax import strict_json

BATCH, PACE = (
    int(os.environ["SERVING_BATCH"]),
    float(os.environ["SERVING_PACE"]),
)  # rows a request; requests a second, 0 for flat out
WARM_UP = 1.0  # seconds that are not counted
SEEN = np.random.default_rng(0).normal(0, 0.3, (BATCH, int(os.environ["SERVING_SIZE"]))).round(4)
BODY = json.dumps({"observation": SEEN[0].tolist() if BATCH == 1 else SEEN.tolist()})

begun: list[float] = []  # when the first answer came
measured: list[float] = []
failed: list[str] = []


class Asking(FastHttpUser):
    """A client that waits for each answer before it asks again."""

    if PACE:
        wait_time = constant_throughput(PACE)

    @task
    def act(self) -> None:
        """Ask for the actions of one batch."""
        self.client.post("/act", data=BODY, headers={"content-type": "application/json"})


def note(response_time: float, exception: Exception | None, **more: Any) -> None:
    now = time.perf_counter()
    if not begun:
        begun.append(now)
    if exception is not None:
        failed.append(repr(exception))
    elif now - begun[0] > WARM_UP:
        measured.append(response_time)


def write(environment: Environment, **more: Any) -> None:
    seconds = time.perf_counter() - begun[0] - WARM_UP if begun else 0.0
    told = {"requests": len(measured), "failed": failed[:10], "seconds": seconds, "milliseconds": measured}
    strict_json.write(Path(os.environ["SERVING_OUT"]), told)


events.request.add_listener(note)
events.quitting.add_listener(write)
