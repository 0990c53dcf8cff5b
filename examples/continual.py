"""Close the loop: serve a policy, let reality change under it, train on what comes back, and serve the next policy.

Run it from the checkout: ``python examples/continual.py --out continual``. A run is trained and exported, and a server started.
Real episodes are then played against the server on a cart whose pole is much heavier than the one that the policy knows. Their
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

from mbrl_jax.runs import command_line

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--config", default="configs/cartpole_best.yaml")
parser.add_argument("--seeds", type=int, default=8)
parser.add_argument("--mass", type=float, default=14.0, help="of the heavier pole, kg; the policy knows one of 0.1 kg")
parser.add_argument("--transitions", type=int, default=5_000, help="real ones, of the heavier pole")
parser.add_argument("--episodes", type=int, default=50, help="that judge a policy")
parser.add_argument("--random", type=float, default=0.3, help="share of random actions while transitions are collected")
parser.add_argument("--steps", type=int, default=500, help="of an episode at most")
parser.add_argument("--out", type=Path, default=Path("continual"))


def main(options: argparse.Namespace) -> None:
    """Train, serve, play, train again, and play again."""
    runs, exports, data = (options.out / name for name in ("runs", "exports", "data"))
    train(options, runs / "1")
    command_line.main(["export", str(runs / "1"), "--out", str(exports / "1"), "--best", "--what", "policy"])
    with Server(exports, data) as server:
        usual = play(server, options, mass=0.1)
        before = play(server, options, mass=options.mass)
        collect(server, options)
        server.connection.close()  # training takes longer than a server waits; the next request opens it again
        parts = sorted(map(str, data.glob("*.parquet")))
        train(options, runs / "2", "--data", *parts, "--from", str(runs / "1"))
        command_line.main(["export", str(runs / "2"), "--out", str(exports / "2"), "--best", "--what", "policy"])
        print(f"serves {server.ask('/reload', {})['export']}")
        after = play(server, options, mass=options.mass)
    for name, returns in (("the pole it knows", usual), ("the heavier pole", before), ("the heavier pole, trained again", after)):
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


def cart(mass: float) -> gymnasium.Env:
    """CartPole-v1 with a pole of another mass, kg."""
    env = gymnasium.make("CartPole-v1")
    physics = env.unwrapped
    physics.masspole, physics.total_mass = mass, mass + physics.masscart
    physics.polemass_length = mass * physics.length
    return env


def play(server: Server, options: argparse.Namespace, mass: float) -> list[float]:
    """Returns of episodes by the served policy, from the same starts each time."""
    env, returns = cart(mass), []
    for number in range(options.episodes):
        observation, _ = env.reset(seed=1_000 + number)
        total, ended = 0.0, False
        while not ended and total < options.steps:
            action = server.ask("/act", {"observation": observation.tolist()})["action"]
            observation, reward, terminated, truncated, _ = env.step(action)
            total, ended = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return returns


def collect(server: Server, options: argparse.Namespace) -> None:
    """Send real transitions of the heavier pole, one episode a request."""
    env, generator, sent, number = cart(options.mass), np.random.default_rng(0), 0, 0
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
        sent, number = sent + server.ask("/transitions", {"episode": f"heavy {number}", **columns})["kept"], number + 1
    print(f"{server.ask('/transitions/seal', {})['sealed']} transitions of {number} episodes")
    env.close()


if __name__ == "__main__":
    main(parser.parse_args())
