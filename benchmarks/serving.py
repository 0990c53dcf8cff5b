"""What an export costs to serve, and what it survives.

    python benchmarks/serving.py --export DIR act load reloads kills

act      microseconds of one call in this process: policy alone, and as a request through the application
load     p50, p99 and requests a second over HTTP on loopback, by locust: 1, 8 and 64 clients, batches of 1 and 64, float32; 8
         clients in INT8
reloads  100 new exports taken up under the load of 8 clients, and how many requests failed
kills    20 times SIGKILL while 8 clients send transitions, and how many that were acknowledged are lost

DIR is an export with float32 and INT8 files: `mbrl-jax export RUN --out DIR --int8 dynamic`. Each stage writes a JSON file into
benchmarks/results/serving/ and prints a table; load also draws load.png. Client and server share the cores.
"""

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from mbrl_jax import packages, strict_json
from mbrl_jax.serving.server.app import Settings, make_app
from mbrl_jax.serving.server.served import Served

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "serving"
PACKAGES = ("onnxruntime", "numpy", "fastapi", "uvicorn", "uvloop", "httptools", "orjson", "locust")
JSON = {"content-type": "application/json"}
ROBOT = 50.0  # requests a second of a client at a robot's pace


def write(stage: str, content: dict[str, Any]) -> None:
    """Write what a stage found, with what it depends on."""
    load = os.getloadavg()[0]
    about = {
        "versions": packages.versions(PACKAGES),
        "git": packages.git_revision(),
        "cores": os.cpu_count(),
        "load_average": load,
    }
    OUT.mkdir(parents=True, exist_ok=True)
    strict_json.write(OUT / f"{stage}.json", {"stage": stage, **about, **content})


@contextlib.contextmanager
def server(*words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server in a process of its own, and its port."""
    command = [sys.executable, "-m", "mbrl_jax.command", "serve", *words, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline().rstrip("/\n").rpartition(":")[2])
        finally:
            process.terminate()


def post(connection: http.client.HTTPConnection, path: str, content: dict[str, Any]) -> tuple[int, Any]:
    connection.request("POST", path, json.dumps(content), JSON)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    p50, p99 = np.quantile(np.array(seconds) * 1e3, [0.5, 0.99]) if seconds else (np.nan, np.nan)
    return {"p50": float(p50), "p99": float(p99)}


# -------------------------------------------------------------------------------------------------------------- stages


def act(export: Path, seconds: float) -> None:
    """In this process, without HTTP."""
    table, rows = Table("", "batch", "precision", "p50, µs", "p99, µs", title="in process"), []
    for precision in precisions(export):
        served = Served(export, precision)
        guard, made = make_app(Settings(export, precision))
        for batch in (1, 64):
            seen = np.random.default_rng(0).normal(0, 0.3, (batch, served.task.observation_size)).astype(np.float32)
            body = json.dumps({"observation": seen.tolist()}).encode()
            calls: dict[str, Callable[[], Any]] = {
                "policy": lambda served=served, seen=seen: served.act(seen),  # type: ignore[misc]
                "body to answer": lambda made=made, body=body: made.act(body, JSON["content-type"]),  # type: ignore[misc]
            }
            for name, call in calls.items():
                told = quantiles(timed(call, seconds))
                rows.append({"call": name, "batch": batch, "precision": precision, "ms": told})
                table.add_row(name, str(batch), precision, *(f"{1e3 * each:.1f}" for each in told.values()))
        del guard
    Console().print(table)
    write("act", {"rows": rows})


def timed(call: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of each call."""
    for _ in range(100):
        call()
    found, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return found


def precisions(export: Path) -> list[str]:
    """Of the policies in ONNX that an export has."""
    content = json.loads((export / "contract.json").read_text())
    return [file["precision"] for file in content["files"] if (file["graph"], file["format"]) == ("policy", "onnx")]


def load(export: Path, seconds: float) -> None:
    """Over HTTP, by locust in one process."""
    heads = ("clients", "batch", "precision", "pace", "p50, ms", "p99, ms", "requests/s", "failed")
    table, rows = Table(*heads, title="over HTTP on loopback"), []
    for precision in precisions(export):
        size = Served(export, precision).task.observation_size
        with server(str(export), "--precision", precision) as (_, port):
            for clients in (1, 8, 64) if precision == "float32" else (8,):
                for batch in (1, 64):
                    for pace in (0.0, ROBOT):
                        told = locust(port, clients, batch, pace, size, seconds)
                        row = {"clients": clients, "batch": batch, "precision": precision, "requests_per_client": pace, **told}
                        rows.append(row)
                        paced = f"{pace:g} Hz each" if pace else "flat out"
                        shown = (f"{told['ms']['p50']:.2f}", f"{told['ms']['p99']:.2f}", f"{told['requests_per_second']:,.0f}")
                        table.add_row(str(clients), str(batch), precision, paced, *shown, str(len(told["failed"])))
    Console().print(table)
    write("load", {"rows": rows})
    draw(rows)


def locust(port: int, clients: int, batch: int, pace: float, size: int, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "told.json")
        numbers = {"BATCH": batch, "PACE": pace, "SIZE": size, "OUT": out}
        told = {f"SERVING_{name}": str(value) for name, value in numbers.items()}
        command = [sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("serving_load.py")), "--headless"]
        command += ["--host", f"http://127.0.0.1:{port}", "-u", str(clients), "-r", str(clients), "-t", f"{seconds + 1:g}s"]
        command += ["--only-summary", "--loglevel", "ERROR"]
        subprocess.run(command, env=os.environ | told, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        found = json.loads(out.read_text())
    times = [each / 1e3 for each in found["milliseconds"]]
    if not times:
        raise RuntimeError(f"no request was answered in {seconds:g} s: {found['failed']}; the machine may be busy")
    return {"ms": quantiles(times), "requests_per_second": found["requests"] / found["seconds"], "failed": found["failed"]}


def draw(rows: list[dict[str, Any]]) -> None:
    """The latencies over the clients."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for ax, pace in zip(figure.subplots(1, 2, sharey=True), (0.0, ROBOT), strict=True):
        for batch, colour in ((1, "C0"), (64, "C1")):
            some = [
                row for row in rows if (row["batch"], row["requests_per_client"], row["precision"]) == (batch, pace, "float32")
            ]
            clients = [row["clients"] for row in some]
            ax.plot(clients, [row["ms"]["p50"] for row in some], "o-", color=colour, label=f"p50, batch {batch}")
            ax.plot(clients, [row["ms"]["p99"] for row in some], "o:", color=colour, label=f"p99, batch {batch}")
        ax.set(
            xscale="log", yscale="log", xlabel="clients", title=f"{pace:g} requests/s each" if pace else "as fast as answers come"
        )
        ax.set_xticks([1, 8, 64], ["1", "8", "64"])
        ax.grid(alpha=0.3)
    figure.axes[0].set_ylabel("milliseconds")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(OUT / "load.png", dpi=150)


def reloads(export: Path, seconds: float, count: int = 100) -> None:
    """New exports under load."""
    answered, failed, stop = [0], list[Any](), threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(export, root / "000")
        with server(str(root), "--watch", "1000") as (_, port):
            size = Served(export).task.observation_size

            def ask() -> None:
                with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
                    while not stop.is_set():
                        try:
                            status, told = post(connection, "/act", {"observation": [0.0] * size})
                        except (OSError, http.client.HTTPException) as error:
                            failed.append(repr(error))
                            return
                        if status == 200:
                            answered[0] += 1
                        else:
                            failed.append(told)

            threads = [threading.Thread(target=ask) for _ in range(8)]
            for thread in threads:
                thread.start()
            took = []
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
                for number in range(1, count + 1):
                    shutil.copytree(export, root / f".{number:03d}")
                    (root / f".{number:03d}").rename(root / f"{number:03d}")
                    begun = time.perf_counter()
                    status, told = post(connection, "/reload", {})
                    took.append(time.perf_counter() - begun)
                    if (status, told.get("export")) != (200, f"{number:03d}"):
                        failed.append(told)
                    shutil.rmtree(root / f"{number - 1:03d}")
            stop.set()
            for thread in threads:
                thread.join()
    print(
        f"{count} reloads, {answered[0]:,} requests answered meanwhile, {len(failed)} failed; a reload took {quantiles(took)} ms"
    )
    write("reloads", {"reloads": count, "clients": 8, "answered": answered[0], "failed": failed, "reload_ms": quantiles(took)})


def kills(export: Path, seconds: float, count: int = 20) -> None:
    """SIGKILL while transitions come in."""
    acknowledged: list[tuple[float, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        size = Served(export).task.observation_size

        def send(port: int, kill: int, number: int) -> None:
            generator, sent = np.random.default_rng([kill, number]), 0
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
                while True:
                    walk = generator.normal(0, 1, (5, size)).astype(np.float32)
                    content = {"observation": walk[:-1].tolist(), "next_observation": walk[1:].tolist(), "action": [0] * 4}
                    content |= {"reward": [1.0] * 4, "terminated": [False] * 4, "truncated": [False] * 3 + [True]}
                    try:
                        status, told = post(connection, "/transitions", {"episode": f"{kill} {number} {sent}", **content})
                    except (OSError, http.client.HTTPException):
                        return  # the server was killed
                    if status != 200:
                        raise RuntimeError(told)
                    acknowledged.extend(map(tuple, walk[:-1].tolist()))
                    sent += 1

        dropped = []
        for kill in range(count):
            with server(str(export), "--data", str(data)) as (process, port):
                dropped.append(dropped_bytes(port))
                threads = [threading.Thread(target=send, args=(port, kill, number)) for number in range(8)]
                for thread in threads:
                    thread.start()
                time.sleep(seconds * (0.5 + np.random.default_rng(kill).random()))
                process.send_signal(signal.SIGKILL)
                for thread in threads:
                    thread.join()
        with server(str(export), "--data", str(data)) as (process, port):
            dropped.append(dropped_bytes(port))
            process.terminate()
            process.wait()
        columns = [pq.read_table(part).column("observation") for part in sorted(data.glob("part-*.parquet"))]
        kept = [tuple(row) for column in columns for row in column.to_pylist()]
    lost, twice = len(set(acknowledged) - set(kept)), len(kept) - len(set(kept))
    print(f"{count} kills, {len(acknowledged):,} transitions acknowledged, {len(kept):,} kept, {lost} lost, {twice} there twice")
    numbers = {"acknowledged": len(acknowledged), "kept": len(kept), "lost": lost, "twice": twice, "dropped_bytes": sum(dropped)}
    write("kills", {"kills": count, "clients": 8, **numbers})


def dropped_bytes(port: int) -> float:
    """Bytes of a record without its end that a server found when it started."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("mbrl_dropped_bytes ")))


STAGES: dict[str, Callable[[Path, float], None]] = {"act": act, "load": load, "reloads": reloads, "kills": kills}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=STAGES)
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=None, help="of each measurement")
    given = parser.parse_args()
    for name in given.stages:
        STAGES[name](given.export, given.seconds or {"act": 2.0, "load": 6.0, "kills": 1.0}.get(name, 0.0))


if __name__ == "__main__":
    main()
