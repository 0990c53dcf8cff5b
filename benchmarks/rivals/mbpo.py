"""MBPO as it is usually written, eager in PyTorch one seed at a time, beside the library's preset swingup_mbpo.

    python benchmarks/rivals/mbpo.py                 # about five minutes on two quiet cores
    python benchmarks/rivals/mbpo.py --steps 100

Both sides do the same work at the same sizes on the same task: random steps, a first fit, and then rounds in which every step
acts, imagines one step of each of 20 lanes, and updates actor, critics and temperature ten times; a round ends with a refit of
500 minibatches. The evaluation at a round's end is left out of the rival and counted against the library. The rival has a process
of one thread for each core, which is how one would train several seeds. mbrl-lib's own MBPO does not install beside current
packages.

A repetition times the rival and then a round of the library, whose compilation is apart. Writes
benchmarks/results/speed/mbpo.json.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--worker", nargs=5, type=int, metavar=("RANDOM", "STEPS", "EPOCHS", "REFIT", "SEED"))
    given = parser.parse_args()
    if given.worker:
        *sizes, seed = given.worker
        print(rival(seed, *sizes))
        return

    import jax

    from mbrl_jax import packages, strict_json
    from mbrl_jax.algorithms.registry import algorithm_of
    from mbrl_jax.algorithms.training import seed_keys
    from mbrl_jax.config import load
    from mbrl_jax.runs import execution

    preset: Any = load(ROOT / "configs" / "swingup_mbpo.yaml")
    refit = preset.model.refit_batches * given.steps // preset.round_steps
    model = dataclasses.replace(preset.model, refit_batches=refit - refit % preset.model.refit_passes)
    config = dataclasses.replace(preset, steps=2 * given.steps, round_steps=given.steps, model=model)
    algorithm = algorithm_of(config).make_train(config)
    start = time.perf_counter()
    axes = algorithm.axes
    state, _ = jax.jit(jax.vmap(algorithm.init, out_axes=(axes, 0)))(seed_keys(0, given.seeds))
    state, _ = jax.jit(jax.vmap(algorithm.fit, in_axes=(axes, None), out_axes=(axes, 0)))(state, config)
    one_round = jax.vmap(algorithm.advance, in_axes=(axes, None), out_axes=(axes, 0))
    advance = jax.jit(one_round).lower(state, config).compile()
    jax.block_until_ready(state)
    compiled = time.perf_counter() - start

    sizes = [str(number) for number in (config.random_transitions, given.steps, config.model.epochs, config.model.refit_batches)]
    cores = os.cpu_count() or 1
    ours, theirs = [], []
    for _ in range(given.repetitions):
        theirs.append(rival_rate(cores, sizes))
        start = time.perf_counter()
        jax.block_until_ready(advance(state, config))
        ours.append(given.seeds * given.steps / (time.perf_counter() - start))
        print(f"decisions a second: {ours[-1]:,.0f} of {given.seeds} seeds here, {theirs[-1]:,.0f} of {cores} processes there")
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    told = {
        "seeds": given.seeds,
        "decisions": given.steps,
        "updates_per_decision": UPDATES,
        "action_repeat": config.environment.action_repeat,
        "decisions_per_second": {"mbrl_jax": ours, "pytorch": theirs},
        "updates_per_second": {"mbrl_jax": numbers.median(ours) * UPDATES, "pytorch": numbers.median(theirs) * UPDATES},
        "times_as_fast": ratios,
        "compile_seconds": compiled,
        "versions": packages.versions(("jax", "flax", "optax", "torch", "numpy")),
        "device": execution.device(),
        "precision": config.precision,
        "git": packages.git_revision(),
    }
    strict_json.write(OUT, told)
    print(
        f"{numbers.median(ratios):.1f} times as fast [{min(ratios):.1f}, {max(ratios):.1f}], {compiled:.0f} s to compile and fit"
    )


if __name__ == "__main__":
    main()
