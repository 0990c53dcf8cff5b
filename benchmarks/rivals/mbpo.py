"""MBPO as it is usually written, eager in PyTorch one seed at a time, beside the library's preset swingup_mbpo.

    python benchmarks/rivals/mbpo.py                 # about five minutes on two quiet cores
    python benchmarks/rivals/mbpo.py --steps 100

Both sides do the same work at the same sizes on the same task: random steps, a first fit, and then rounds in which every step
acts, imagines one step of each of 20 lanes, and updates actor, critics and temperature ten times; a round ends with a refit of
500 minibatches. The evaluation at a round's end is left out of the rival and counted against the library. The rival has a process
of one thread for each core, which is how one would train several seeds. mbrl-lib's own MBPO does not install beside current
packages.

The library trains all seeds in one process that uses both cores, and again as shards, a process for each core. A repetition
times the rival and then a round of either way; compilation is apart. Writes benchmarks/results/speed/mbpo.json.
"""

import argparse
import dataclasses
import itertools
import os
import statistics as numbers
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent.parent
OUT = ROOT / "benchmarks" / "results" / "speed" / "mbpo.json"
SCALE = (1.8, 1.0, 1.0, 5.0, 10.0)  # of the observation's axes
MEMBERS, LANES, WIDTH, CAPACITY = 5, 20, 64, 20_000
BATCH, MODEL_BATCH, UPDATES, REAL_ROWS, RATE = 128, 256, 10, 64, 1e-3


# ------------------------------------------------------------------------------------------------------------- the rival


def rival(seed: int, random_steps: int, steps: int, epochs: int, refit: int) -> float:
    """Seconds of ``steps`` steps and a refit, by plain PyTorch on one thread, after the random steps and a first fit."""
    import torch
    from torch import nn
    from torch.nn import functional

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    scale = torch.tensor(SCALE)

    def perceptron(inputs: int, outputs: int, norm: bool) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Linear(inputs, WIDTH), *([nn.LayerNorm(WIDTH)] if norm else []), nn.ReLU()]
            inputs = WIDTH
        return nn.Sequential(*layers, nn.Linear(inputs, outputs))

    class Members(nn.Module):
        """All members side by side, [M, B, 6] to [M, B, 6]."""

        def __init__(self) -> None:
            super().__init__()
            sizes = (6, WIDTH, WIDTH, 6)
            shapes = list(itertools.pairwise(sizes))
            self.kernels = nn.ParameterList(nn.Parameter(torch.randn(MEMBERS, i, o) / i**0.5) for i, o in shapes)
            self.biases = nn.ParameterList(nn.Parameter(torch.zeros(MEMBERS, 1, o)) for _, o in shapes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for place, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
                x = torch.baddbmm(bias, x, kernel)
                x = functional.silu(x) if place < 2 else x
            return x

    actor = perceptron(5, 2, norm=False)
    critics, targets = ([perceptron(6, 1, norm=True) for _ in range(2)] for _ in range(2))
    for critic, target in zip(critics, targets, strict=True):
        target.load_state_dict(critic.state_dict())
    log_temperature = torch.tensor(np.log(0.1), dtype=torch.float32, requires_grad=True)
    members = Members()
    optimise = torch.optim.Adam(actor.parameters(), RATE)
    optimise_critics = torch.optim.Adam([p for critic in critics for p in critic.parameters()], RATE)
    optimise_temperature = torch.optim.Adam([log_temperature], RATE)
    optimise_members = torch.optim.Adam(members.parameters(), RATE)

    def sample(s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, free = actor(s / scale).chunk(2, -1)
        log_std = -5 + 7 * torch.sigmoid(free)
        normal = torch.randn_like(mean)
        raw = mean + log_std.exp() * normal
        density = -0.5 * normal**2 - log_std - 0.5 * np.log(2 * np.pi)
        return raw.tanh(), (density - 2 * (np.log(2.0) - raw - functional.softplus(-2 * raw))).sum(-1)

    def values(networks: list[nn.Sequential], s: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return torch.stack([network(torch.cat([s / scale, a], -1))[..., 0] for network in networks])

    # rows of (s, a, r, s')
    real, imagined = torch.zeros(random_steps + steps, 12), torch.zeros(CAPACITY, 12)
    simulator = Simulator(rng)
    size = written = 0

    def act(action: float) -> None:
        nonlocal size
        real[size] = torch.from_numpy(simulator.step(action))
        size += 1

    def fit(batches: int) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal optimise_members
        rows = real[:size]
        training, held = rows[np.arange(size) % 5 != 4], rows[np.arange(size) % 5 == 4]
        wanted = torch.cat([training[:, 7:] - training[:, :5], training[:, 6:7]], -1)
        mean, deviation = wanted.mean(0), wanted.std(0) + 1e-6
        for number in range(batches):
            chosen = torch.randint(len(training), (MEMBERS, MODEL_BATCH))
            batch = training[chosen]
            inputs = torch.cat([batch[..., :5] / scale, batch[..., 5:6]], -1)
            target = (torch.cat([batch[..., 7:] - batch[..., :5], batch[..., 6:7]], -1) - mean) / deviation
            loss = ((members(inputs) - target) ** 2).sum(-1).mean(-1).sum()
            optimise_members.zero_grad()
            loss.backward()
            optimise_members.step()
            if number % max(batches // 10, 1) == 0:  # early stopping looks at the held-out rows ten times
                with torch.no_grad():
                    inputs = torch.cat([held[:, :5] / scale, held[:, 5:6]], -1)[None].expand(MEMBERS, -1, -1)
                    members(inputs)
        return mean, deviation

    def imagine(mean: torch.Tensor, deviation: torch.Tensor) -> None:
        nonlocal written
        with torch.no_grad():
            s = real[torch.randint(size, (LANES,)), :5]
            a, _ = sample(s)
            inputs = torch.cat([s / scale, a], -1)[None].expand(MEMBERS, -1, -1)
            everyone = members(inputs)
            bonus = everyone.var(0, unbiased=False).mean(-1, keepdim=True).sqrt()
            told = everyone[torch.randint(MEMBERS, (LANES,)), torch.arange(LANES)] * deviation + mean
            place = (torch.arange(LANES) + written) % CAPACITY
            imagined[place] = torch.cat([s, a, told[:, 5:] + bonus, s + told[:, :5]], -1)
            written += LANES

    def update() -> None:
        mine = imagined[torch.randint(min(written, CAPACITY), (BATCH - REAL_ROWS,))]
        batch = torch.cat([mine, real[torch.randint(size, (REAL_ROWS,))]])
        s, a, r, following = batch[:, :5], batch[:, 5:6], batch[:, 6], batch[:, 7:]
        temperature = log_temperature.exp().detach()
        with torch.no_grad():
            after, log_probability = sample(following)
            goal = r + 0.99 * (values(targets, following, after).min(0).values - temperature * log_probability)
        loss = ((values(critics, s, a) - goal) ** 2).mean(-1).sum()
        optimise_critics.zero_grad()
        loss.backward()
        optimise_critics.step()
        action, log_probability = sample(s)
        loss = (temperature * log_probability - values(critics, s, action).min(0).values).mean()
        optimise.zero_grad()
        loss.backward()
        optimise.step()
        loss = -log_temperature * (log_probability.mean().detach() - 1)
        optimise_temperature.zero_grad()
        loss.backward()
        optimise_temperature.step()
        with torch.no_grad():
            for critic, target in zip(critics, targets, strict=True):
                for p, q in zip(critic.parameters(), target.parameters(), strict=True):
                    q.lerp_(p, 0.01)

    for _ in range(random_steps):
        act(rng.uniform(-1, 1))
    statistics = fit(epochs * (random_steps * 4 // 5 // MODEL_BATCH))
    start = time.perf_counter()
    for _ in range(steps):
        with torch.no_grad():
            action, _ = sample(torch.from_numpy(simulator.observation())[None])
        act(float(action))
        imagine(*statistics)
        for _ in range(UPDATES):
            update()
    fit(refit)
    return time.perf_counter() - start


class Simulator:
    """The suite's cart-pole in plain Python numbers, away from the ends of its track, four steps an action."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.time, self.state = rng, 0, np.zeros(4)
        self.reset()

    def reset(self) -> None:
        """Hang the pole down, at rest but for a little noise."""
        self.state, self.time = 0.01 * self.rng.normal(size=4) + np.array([0, np.pi, 0, 0]), 0

    def observation(self) -> Any:
        """[5] position, cosine, sine, velocities."""
        x, angle, speed, rate = self.state
        return np.array([x, np.cos(angle), np.sin(angle), speed, rate], np.float32)

    def step(self, action: float) -> Any:
        """(s, a, r, s') [12] of four steps of 0.01 s by the Runge-Kutta method."""
        before, reward = self.observation(), 0.0
        for _ in range(4):
            k1 = self._slope(self.state, action)
            k2 = self._slope(self.state + 0.005 * k1, action)
            k3 = self._slope(self.state + 0.005 * k2, action)
            k4 = self._slope(self.state + 0.01 * k3, action)
            self.state = self.state + 0.01 / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            self.state[0] = np.clip(self.state[0], -1.8, 1.8)
            upright, rate = (np.cos(self.state[1]) + 1) / 2, self.state[3]
            centred, slow = (
                (1 + np.exp(np.log(0.1) * (self.state[0] / 2) ** 2)) / 2,
                (1 + np.exp(np.log(0.1) * (rate / 5) ** 2)) / 2,
            )
            reward += upright * centred * slow * (4 + max(1 - action**2, 0)) / 5
        row = np.concatenate([before, [action], [reward], self.observation()]).astype(np.float32)
        self.time += 1
        if self.time == 250:
            self.reset()
        return row

    @staticmethod
    def _slope(state: Any, action: float) -> Any:
        _, angle, speed, rate = state
        inertia, coupling = 0.03442, 0.05 * np.cos(angle)
        force, torque = 10 * action + 0.05 * np.sin(angle) * rate**2, 0.05 * 9.81 * np.sin(angle)
        determinant = 1.1 * inertia - coupling**2
        return np.array(
            [speed, rate, (inertia * force - coupling * torque) / determinant, (1.1 * torque - coupling * force) / determinant]
        )


# -------------------------------------------------------------------------------------------------------------- both


def rival_rate(processes: int, sizes: list[str]) -> float:
    """Decisions a second of as many processes side by side."""
    words = [sys.executable, __file__, "--worker", *sizes]
    running = [subprocess.Popen([*words, str(seed)], stdout=subprocess.PIPE, text=True) for seed in range(processes)]
    seconds = []
    for each in running:
        printed, _ = each.communicate()
        if each.returncode:
            raise RuntimeError(f"the rival ended with exit status {each.returncode}")
        seconds.append(float(printed))
    return sum(int(sizes[1]) / each for each in seconds)


class Library:
    """A process of the library, compiled and fitted, that trains seeds for a round whenever it is asked to.

    Args:
      first: the first of its seeds.
      seeds: how many.
      steps: of a round.
      core: the one core that it may use; none leaves it all of them.

    """

    def __init__(self, first: int, seeds: int, steps: int, core: int | None) -> None:
        words = [sys.executable, __file__, "--library", *map(str, (first, seeds, steps, -1 if core is None else core))]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._decisions = seeds * steps
        self.compiled = 0.0  # seconds

    def wait(self) -> None:
        """Return when it has compiled and fitted."""
        self.compiled = self._read()

    def begin(self) -> None:
        """Begin a round."""
        assert self._process.stdin is not None
        self._process.stdin.write("round\n")
        self._process.stdin.flush()

    def rate(self) -> float:
        """Decisions a second of the round that was begun."""
        return self._decisions / self._read()

    def end(self) -> None:
        """Let it go."""
        self._process.communicate()

    def _read(self) -> float:
        assert self._process.stdout is not None
        told = self._process.stdout.readline()
        if not told:
            raise RuntimeError(f"the library ended with exit status {self._process.wait()}")
        return float(told)


def preset_of(steps: int) -> Any:
    """The preset with rounds of ``steps`` steps, and as many minibatches for each step as before."""
    from mbrl_jax.config import load

    preset: Any = load(ROOT / "configs" / "swingup_mbpo.yaml")
    refit = preset.model.refit_batches * steps // preset.round_steps
    model = dataclasses.replace(preset.model, refit_batches=refit - refit % preset.model.refit_passes)
    return dataclasses.replace(preset, steps=2 * steps, round_steps=steps, model=model)


def library(first: int, seeds: int, steps: int, core: int) -> None:
    """Compile and fit, print the seconds it took, and print the seconds of a round for every line that is read."""
    if core >= 0:
        os.sched_setaffinity(0, {core})  # before JAX counts the cores, and makes a thread for each

    import jax

    from mbrl_jax.algorithms.registry import algorithm_of
    from mbrl_jax.algorithms.training import seed_keys

    start, config = time.perf_counter(), preset_of(steps)
    algorithm = algorithm_of(config).make_train(config)
    axes = algorithm.axes
    keys = seed_keys(0, seeds, first)
    state, _ = jax.jit(jax.vmap(algorithm.init, out_axes=(axes, 0)))(keys)
    state, _ = jax.jit(jax.vmap(algorithm.fit, in_axes=(axes, None), out_axes=(axes, 0)))(state, config)
    one_round = jax.vmap(algorithm.advance, in_axes=(axes, None), out_axes=(axes, 0))
    advance = jax.jit(one_round).lower(state, config).compile()
    jax.block_until_ready(state)
    print(time.perf_counter() - start, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        jax.block_until_ready(advance(state, config))
        print(time.perf_counter() - start, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--worker", nargs=5, type=int, metavar=("RANDOM", "STEPS", "EPOCHS", "REFIT", "SEED"))
    parser.add_argument("--library", nargs=4, type=int, metavar=("FIRST", "SEEDS", "STEPS", "CORE"))
    given = parser.parse_args()
    if given.worker:
        *sizes, seed = given.worker
        print(rival(seed, *sizes))
        return
    if given.library:
        library(*given.library)
        return

    from mbrl_jax import packages, strict_json
    from mbrl_jax.runs import execution

    config, cores = preset_of(given.steps), len(os.sched_getaffinity(0))
    if given.seeds % cores:
        parser.error(f"--seeds: {given.seeds} does not fit; it must be a multiple of the {cores} cores")
    sizes = [str(number) for number in (config.random_transitions, given.steps, config.model.epochs, config.model.refit_batches)]
    share = given.seeds // cores
    ways = {  # of training all seeds
        "one process": [Library(0, given.seeds, given.steps, None)],
        "a process for each core": [
            Library(place * share, share, given.steps, core) for place, core in enumerate(sorted(os.sched_getaffinity(0)))
        ],
    }
    for processes in ways.values():
        for each in processes:
            each.wait()
    ours: dict[str, list[float]] = {way: [] for way in ways}
    theirs = []
    for _ in range(given.repetitions):
        theirs.append(rival_rate(cores, sizes))
        for way, processes in ways.items():
            for each in processes:
                each.begin()
            ours[way].append(sum(each.rate() for each in processes))
        rates_now = ", ".join(f"{rates[-1]:,.0f} by {way}" for way, rates in ours.items())
        print(f"decisions a second of {given.seeds} seeds: {rates_now}; {theirs[-1]:,.0f} of {cores} rivals", flush=True)
    everyone = [each for processes in ways.values() for each in processes]
    for each in everyone:
        each.end()
    ratios = {way: [one / other for one, other in zip(rates, theirs, strict=True)] for way, rates in ours.items()}
    strict_json.write(
        OUT,
        {
            "seeds": given.seeds,
            "decisions": given.steps,
            "updates_per_decision": UPDATES,
            "action_repeat": config.environment.action_repeat,
            "decisions_per_second": {"mbrl_jax": ours, "pytorch": theirs},
            "updates_per_second": {
                "mbrl_jax": {way: numbers.median(rates) * UPDATES for way, rates in ours.items()},
                "pytorch": numbers.median(theirs) * UPDATES,
            },
            "times_as_fast": ratios,
            "compile_seconds_side_by_side": max(each.compiled for each in everyone),
            "versions": packages.versions(("jax", "flax", "optax", "torch", "numpy")),
            "device": execution.device(),
            "precision": config.precision,
            "git": packages.git_revision(),
        },
    )
    for way, times in ratios.items():
        print(f"{way}: {numbers.median(times):.1f} times as fast [{min(times):.1f}, {max(times):.1f}]")


if __name__ == "__main__":
    main()
