"""Close the loop: serve a policy, let reality change under it, train on what comes back, and serve the next policy.

Run it from the checkout: ``python examples/continual.py --out continual``. A run is trained and exported, and a server started.
Real episodes are then played against the server on a cart whose motor has been connected the wrong way round. Their
transitions go to the server, which keeps them. The next run learns from them with the old model as its start; its export is taken
up by the same server, and the same episodes are played again.
"""

import argparse
import http.client
import json
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np

from mbrl_jax import command_line

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--config", default="configs/cartpole_best.yaml")
parser.add_argument("--seeds", type=int, default=8)
parser.add_argument("--force", type=float, default=-10.0, help="of the motor after the change, N; the policy knows one of 10 N")
parser.add_argument("--transitions", type=int, default=5_000, help="real ones, of the reversed motor")
parser.add_argument("--episodes", type=int, default=50, help="that judge a policy")
parser.add_argument("--random", type=float, default=0.5, help="share of random actions while transitions are collected")
parser.add_argument("--steps", type=int, default=500, help="of an episode at most")
parser.add_argument("--out", type=Path, default=Path("continual"))


def main(options: argparse.Namespace) -> None:
    """Train, serve, play, train again, and play again."""
    runs, exports, data = (options.out / name for name in ("runs", "exports", "data"))
    train(options, runs / "1")
    command_line.main(["export", str(runs / "1"), "--out", str(exports / "1"), "--best", "--what", "policy"])
    with Server(exports, data) as server:
        usual = play(server, options, force=10.0)
        before = play(server, options, force=options.force)
        collect(server, options)
        server.connection.close()  # training takes longer than a server waits; the next request opens it again
        parts = sorted(map(str, data.glob("*.parquet")))
        train(options, runs / "2", "--data", *parts, "--from", str(runs / "1"))
        command_line.main(["export", str(runs / "2"), "--out", str(exports / "2"), "--best", "--what", "policy"])
        print(f"serves {server.ask('/reload', {})['export']}")
        after = play(server, options, force=options.force)
    for name, returns in (
        ("the motor it knows", usual),
        ("the reversed motor", before),
        ("the reversed motor, trained again", after),
    ):
        print(f"{name:32} mean return {np.mean(returns):.1f}")


def train(options: argparse.Namespace, out: Path, *more: str) -> None:
    """Train a run into a new folder."""
    command_line.main(["train", options.config, "--seeds", str(options.seeds), "--out", str(out), *more])


class Server:
    """``mbrl-jax serve`` in a process of its own, and a connection to it."""

    def __init__(self, exports: Path, data: Path):
        words = [sys.executable, "-m", "mbrl_jax.command", "serve", str(exports), "--port", "0", "--data", str(data)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        address = self.process.stdout.readline().split("http://")[1].strip().strip("/")
        self.connection = http.client.HTTPConnection(address)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.communicate()

    def ask(self, path: str, content: dict) -> dict:
        """Post a request; return its answer."""
        self.connection.request("POST", path, json.dumps(content), {"content-type": "application/json"})
        answer = self.connection.getresponse()
        told = json.loads(answer.read())
        if answer.status != 200:
            raise RuntimeError(f"{path}: {told['field']}: {told['detail']}")
        return told


def cart(force: float) -> gymnasium.Env:
    """CartPole-v1 with a motor of another force, N."""
    env = gymnasium.make("CartPole-v1")
    env.unwrapped.force_mag = force
    return env


def play(server: Server, options: argparse.Namespace, force: float) -> list[float]:
    """Returns of episodes side by side by the served policy, from the same starts each time."""
    carts = [cart(force) for _ in range(options.episodes)]
    seen = [env.reset(seed=1_000 + number)[0].tolist() for number, env in enumerate(carts)]
    returns, running = [0.0] * len(carts), list(range(len(carts)))
    for _ in range(options.steps):
        going, actions = [], server.ask("/act", {"observation": [seen[number] for number in running]})["action"]
        for number, action in zip(running, actions, strict=True):
            observation, reward, terminated, truncated, _ = carts[number].step(action)
            seen[number], returns[number] = observation.tolist(), returns[number] + float(reward)
            if not (terminated or truncated):
                going.append(number)
        running = going
        if not running:
            break
    for env in carts:
        env.close()
    return returns


def collect(server: Server, options: argparse.Namespace) -> None:
    """Send real transitions of the reversed motor, one episode a request."""
    env, generator, sent, number = cart(options.force), np.random.default_rng(0), 0, 0
    while sent < options.transitions:
        observation, _ = env.reset(seed=number)
        rows, ended = [], False
        while not ended:
            action = server.ask("/act", {"observation": observation.tolist()})["action"]
            if generator.random() < options.random:
                action = int(generator.integers(2))
            after, reward, terminated, truncated, _ = env.step(action)
            truncated = not terminated and (truncated or len(rows) + 1 >= options.steps)
            rows.append((observation.tolist(), action, float(reward), after.tolist(), terminated, truncated))
            observation, ended = after, terminated or truncated
        names = ("observation", "action", "reward", "next_observation", "terminated", "truncated")
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        sent, number = sent + server.ask("/transitions", {"episode": f"reversed {number}", **columns})["kept"], number + 1
    server.ask("/transitions/seal", {})
    print(f"{sent} transitions of {number} episodes")
    env.close()


if __name__ == "__main__":
    main(parser.parse_args())
