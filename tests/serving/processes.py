"""A server in a process of its own, and clients that load it."""

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import threading
import time

import numpy as np

from . import exports

JSON = {"content-type": "application/json"}


class Process:
    """``mbrl-jax serve`` at a free port, once it answers."""

    def __init__(self, folder, *words):
        command = [sys.executable, "-m", "mbrl_jax.command", "serve", str(folder), "--port", "0", *map(str, words)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        first = self.process.stdout.readline()
        if "http://" not in first:
            raise RuntimeError(first + self.process.communicate()[1])
        self.port = int(first.rstrip("/\n").rpartition(":")[2])

    def connect(self):
        return contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20))

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def stop(self):
        """End it by SIGTERM; return its exit status and what it printed."""
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


def ask(connection, path, content):
    """The status and the content of an answer."""
    connection.request("POST", path, json.dumps(content), JSON)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


class Senders:
    """Clients that send episodes without a pause, and note what was acknowledged."""

    def __init__(self, process, count, mark):
        self._process, self._mark, self._stop = process, mark, threading.Event()
        self.acknowledged, self.errors = [], []
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _send(self, number):
        generator, sent = np.random.default_rng([self._mark, number]), 0
        with self._process.connect() as connection:
            while not self._stop.is_set():
                episode, place = f"{self._mark}-{number}-{sent}", float(self._mark * 1000 + number * 100) + sent / 1000
                content, _ = exports.transitions(episode, np.array([place, 0, 0, 0]), 2, end="truncated", generator=generator)
                try:
                    status, told = ask(connection, "/transitions", content)
                except (OSError, http.client.HTTPException):
                    return  # the server was killed, or has ended
                if status != 200:
                    self.errors.append(told)
                    return
                self.acknowledged.extend(np.float32(content["observation"]).tolist())
                sent += 1

    def join(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def wait_for(condition, seconds=20):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("it never came to that")
        time.sleep(0.005)
