"""Dyna-Q for S seeds at once in PyTorch, as fast as PyTorch does it: the strongest rival of the batch protocol's presets.

The whole recipe of ``mbrl_jax.reference.algorithms.dyna_q`` for what ``configs/cartpole_batch.yaml`` configures, with a leading
axis of seeds on every tensor: parameters lie in one flat tensor a network, layers are batched matrix products, random numbers are
drawn by the round, CartPole itself is stepped in PyTorch, and the Laplacian penalty is taken forward in one pass. Compiled,
everything between two looks at the data is one graph (gradients and Adam included); on a GPU a round's steps are besides recorded
as one CUDA graph. It logs less than the library does: the losses and scores, not the lanes' figures.
"""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mbrl_jax.config import ConfigError, DynaQConfig
from mbrl_jax.reference.draws import CUT_DEVIATION
from mbrl_jax.reference.environment import make_task
from mbrl_jax.reference.model.ensemble import MAXIMUM_LOG_VARIANCE, MINIMUM_LOG_VARIANCE, softplus
from mbrl_jax.reference.model.fitting import holdout_stride

BETAS, EPSILON = (0.9, 0.999), 1e-8
BLOCK = 25  # steps of episodes between two looks whether one still runs, as in the library
UNROLLED = 5  # of them in one compiled call

Layers = list[tuple[Tensor, Tensor]]
"""Kernels [n, in, out] and biases [n, 1, out]."""


def check(config: DynaQConfig) -> None:
    """Refuse what is not written here.

    Raises:
      ConfigError: a setting is another than this file computes.

    """

    def known(choice: str) -> str:
        """What ``auto`` stands for: CartPole has both functions."""
        return "known" if choice == "auto" else choice

    wanted = {
        "protocol": (config.protocol, "batch"),
        "environment.name": (config.environment.name, "CartPole-v1"),
        "environment.observation_noise": (config.environment.observation_noise, 0.0),
        "model.prediction": (config.model.prediction, "gaussian"),
        "model.elites": (config.model.elites, None),
        "model.activation": (config.model.activation, "silu"),
        "model.learn_bounds": (config.model.learn_bounds, False),
        "model.reward": (known(config.model.reward), "known"),
        "model.termination": (known(config.model.termination), "known"),
        "model.weight_decay": (config.model.weight_decay, 0.0),
        "model.bootstrap": (config.model.bootstrap, False),
        "model.patience": (config.model.patience, None),
        "model.laplacian": (config.model.laplacian, "auto"),
        "imagination.restart": (config.imagination.restart, "streaming"),
        "imagination.sampling": (config.imagination.sampling, "ts1"),
        "imagination.controller.kind": (config.imagination.controller.kind, "fixed"),
        "imagination.penalty": (config.imagination.penalty, "none"),
        "agent.target": (config.agent.target, "double"),
        "agent.loss": (config.agent.loss, "squared"),
        "agent.members": (config.agent.members, 1),
        "agent.real_ratio": (config.agent.real_ratio, 0.0),
        "agent.updates_per_step": (config.agent.updates_per_step, 1),
    }
    for name, (value, right) in wanted.items():
        if value != right:
            raise ConfigError(f"{name}: {value!r} is not written in the batched PyTorch rival; it must be {right!r}")


# -------------------------------------------------------------------------------------------------------------------- networks


def parameters(sizes: Sequence[int]) -> int:
    """Numbers of one perceptron's parameters."""
    return sum((before + 1) * after for before, after in itertools.pairwise(sizes))


def layers_of(flat: Tensor, sizes: Sequence[int]) -> Layers:
    """Views of flat parameters [n, P]: each layer's kernel, then its bias."""
    layers, at = [], 0
    for before, after in itertools.pairwise(sizes):
        kernel = flat[:, at : at + before * after].view(-1, before, after)
        at += before * after
        layers.append((kernel, flat[:, at : at + after].view(-1, 1, after)))
        at += after
    return layers


def flatten(layers: Layers) -> Tensor:
    """The inverse of :func:`layers_of`."""
    return torch.cat([leaf.flatten(1) for layer in layers for leaf in layer], dim=1)


def perceptron(layers: Layers, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """[n, B, out] from inputs [n, B, in]."""
    for kernel, bias in layers[:-1]:
        x = activation(torch.baddbmm(bias, x, kernel))
    kernel, bias = layers[-1]
    return torch.baddbmm(bias, x, kernel)


def adam(flat: Tensor, first: Tensor, second: Tensor, gradient: Tensor, rate: Tensor, corrections: Tensor) -> list[Tensor]:
    """[parameters, first moment, second moment] after a step; corrections [2] are 1 - beta^t."""
    first = torch.lerp(first, gradient, 1 - BETAS[0])
    second = BETAS[1] * second + (1 - BETAS[1]) * gradient.square()
    denominator = (second.sqrt() / corrections[1].sqrt()) + EPSILON
    return [flat - rate / corrections[0] * first / denominator, first, second]


# ----------------------------------------------------------------------------------------------------------------------- draws


class Numbers(NamedTuple):
    """The random numbers of a round of T steps, and what else differs from step to step."""

    roots: Tensor  # [T, H, S, K] rows of the real replay
    explore: Tensor  # [T, H, S, K] uniform
    action: Tensor  # [T, H, S, K] random actions
    deal: Tensor  # [T, H, S, K] a permutation of the lanes
    noise: Tensor  # [T, H, S, K, D] standard normal, by lane
    minibatch: Tensor  # [T, S, B] rows of the imagined replay


class Draws:
    """Random numbers of all seeds in bulk, from one generator."""

    def __init__(self, config: DynaQConfig, seeds: int, seed: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.seeds, self.dtype, self.device = config, seeds, dtype, device
        self.task = make_task(config.environment.name, config.environment.time_limit)
        self.generator = torch.Generator(device).manual_seed(seed)

    def networks(self, sizes: Sequence[int], copies: int) -> Tensor:
        """[S * copies, P] kernels of variance 1 / fan in, a normal cut at two deviations; zero biases."""
        flat = torch.zeros(self.seeds * copies, parameters(sizes), dtype=self.dtype, device=self.device)
        for kernel, _ in layers_of(flat, sizes):
            deviation = math.sqrt(1 / kernel.shape[1]) / CUT_DEVIATION
            fresh = torch.empty(kernel.shape, dtype=self.dtype, device=self.device)
            kernel.copy_(torch.nn.init.trunc_normal_(fresh, 0.0, deviation, -2 * deviation, 2 * deviation, self.generator))
        return flat

    def q_networks(self, sizes: Sequence[int]) -> Tensor:
        """[S, P]"""
        return self.networks(sizes, 1)

    def ensembles(self, sizes: Sequence[int], members: int) -> Tensor:
        """[S * E, P]"""
        return self.networks(sizes, members)

    def collection(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """(first states [S, D], actions [n, S], states [n, S, D] to begin at where an episode ends)."""
        return self.starts(1)[:, 0], self._integers(self.task.actions, n, self.seeds), self.starts(n).transpose(0, 1).contiguous()

    def epoch_order(self, epoch: int, members: int, rows: int) -> Tensor:
        """[S, E, n] each member's permutation of the training rows."""
        return self._uniform(self.seeds, members, rows).argsort(dim=-1)

    def round(self, number: int, real_size: int, sizes: Tensor) -> Numbers:
        """A round's numbers; ``sizes`` [T] are the imagined replay's after each of its steps' writes."""
        imagination = self.config.imagination
        shape = (len(sizes), imagination.steps, self.seeds, imagination.lanes)
        minibatch = self._uniform(len(sizes), self.seeds, self.config.agent.batch_size, dtype=torch.float64)
        return Numbers(
            roots=self._integers(real_size, *shape),
            explore=self._uniform(*shape),
            action=self._integers(self.task.actions, *shape),
            deal=self._uniform(*shape).argsort(dim=-1),
            noise=self._normal(*shape, self.task.observation_size),
            minibatch=(minibatch * sizes[:, None, None]).to(torch.int64),
        )

    def scoring(self, number: int, episodes: int, firsts: Tensor) -> Tensor:
        """[S, n] which of each seed's ``firsts`` [S] many first observations."""
        return (self._uniform(self.seeds, episodes, dtype=torch.float64) * firsts[:, None]).to(torch.int64)

    def scoring_noise(self, number: int, first: int, count: int, members: int, per_member: int) -> Tensor:
        """[count, S, E, n/E, D] standard normal, of the steps from ``first`` on."""
        return self._normal(count, self.seeds, members, per_member, self.task.observation_size)

    def curve_starts(self, number: int, n: int) -> Tensor:
        """[S, n, D] where the episodes of a point of the learning curve begin."""
        return self.starts(n)

    def final_starts(self, n: int) -> Tensor:
        """[S, n, D] where the episodes of the final evaluation begin."""
        return self.starts(n)

    def starts(self, n: int) -> Tensor:
        """[S, n, D]"""
        low, high = (
            torch.tensor(x, dtype=self.dtype, device=self.device) for x in (self.task.initial_low, self.task.initial_high)
        )
        return low + (high - low) * self._uniform(self.seeds, n, len(low))

    def _uniform(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=dtype or self.dtype, device=self.device)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=self.dtype, device=self.device)

    def _integers(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=self.generator, device=self.device)


# ------------------------------------------------------------------------------------------------------------------- the graphs


class Recorded:
    """A function ``(carried, *inputs)`` that changes what it carries in place, recorded once as a CUDA graph, then replayed.

    The graph has tensors of its own, into which and out of which a call copies.
    """

    def __init__(self, function: Callable[..., Any], carried: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        self.carried, self.inputs = [x.clone() for x in carried], [x.clone() for x in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles, and lets libraries allocate what they need
                function(self.carried, *self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = function(self.carried, *self.inputs)

    def __call__(self, carried: Sequence[Tensor], *inputs: Tensor) -> Any:
        """The function's result, which the next call overwrites."""
        for mine, given in zip((*self.carried, *self.inputs), (*carried, *inputs), strict=True):
            mine.copy_(given)
        self.graph.replay()
        for mine, given in zip(self.carried, carried, strict=True):
            given.copy_(mine)
        return self.result


class Learning(NamedTuple):
    """What a step of the main loop changes."""

    online: Tensor  # [S, P]
    target: Tensor  # [S, P]
    first: Tensor  # [S, P] Adam's moments
    second: Tensor  # [S, P]
    frozen: Tensor  # [S] boolean
    lanes: Tensor  # [S, K, D] where they are
    depth: Tensor  # [S, K] steps since the root
    imagined: Tensor  # [S * capacity, 2 D + 5] observation, action, reward, next observation, terminated, weight, depth


class World(NamedTuple):
    """The fitted ensembles; member m of seed s is number s * E + m."""

    flat: Tensor  # [S * E, P]
    mean: Tensor  # [S, 1, D] of the inputs
    std: Tensor  # [S, 1, D]
    target_mean: Tensor  # [S, 1, D] of the state's change
    target_std: Tensor  # [S, 1, D]


class StepNumbers(NamedTuple):
    """One step's share of :class:`Numbers`, prepared."""

    roots: Tensor  # [H, S, K, D] real observations
    explore: Tensor  # [H, S, K]
    action: Tensor  # [H, S, K]
    deal: Tensor  # [H, S, K] the lane at each place; place i is served by member i // (K / E)
    place: Tensor  # [H, S, K] the place of each lane
    noise: Tensor  # [H, S, K, D]
    written: Tensor  # [S, H * K] rows of the flat imagined replay that are written
    minibatch: Tensor  # [S * B] rows of it that are read
    rate: Tensor  # [] Adam's step size
    corrections: Tensor  # [2]


class Batched:
    """Trains S seeds."""

    def __init__(
        self,
        config: DynaQConfig,
        draws: Draws,
        *,
        compiled: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        check(config)
        self.config, self.draws, self.seeds = config, draws, draws.seeds
        self.dtype, self.device, self.compiled = dtype, torch.device(device), compiled
        self.task = make_task(config.environment.name, config.environment.time_limit)
        size = self.task.observation_size
        self.q_sizes = [size, *config.agent.hidden, self.task.actions]
        self.model_sizes = [size + 1, *config.model.hidden, 2 * size]
        scale = self.task.input_scale if config.agent.input_scale is None else config.agent.input_scale
        self.q_scale = torch.tensor(scale, dtype=torch.float64).to(device=self.device, dtype=dtype)
        self.seconds: dict[str, float] = {}
        self.batch_offset = self._offsets(config.imagination.capacity)
        hot = torch.compile if compiled else (lambda function, **_: function)
        self.step = hot(self._step, dynamic=False)
        self.fit_step = hot(self._fit_step, dynamic=False)
        self.imagine_on = hot(self._imagine_on, dynamic=False)
        self.play_on = hot(self._play_on, dynamic=False)
        self.collect_on = hot(self._collect_on, dynamic=False)
        self.graphs: dict[str, Recorded] = {}
        self.to_the_end = False

    # ----------------------------------------------------------------------------------------------------------- the whole run

    @torch.no_grad()
    def train(self) -> dict[str, Any]:
        """The whole recipe: collect, fit, the rounds, evaluate; afterwards ``seconds`` has the time of each."""
        config, selection = self.config, self.config.selection
        clock = self._now()
        real, depth, collected = self.collect()
        clock = self._lap("collect", clock)
        world, fit_log = self.fit(real)
        clock = self._lap("fit", clock)

        online = self.draws.q_networks(self.q_sizes)
        lanes = torch.zeros(
            self.seeds, config.imagination.lanes, self.task.observation_size, dtype=self.dtype, device=self.device
        )
        rows = self.seeds * config.imagination.capacity
        s = Learning(
            online=online,
            target=online.clone(),
            first=torch.zeros_like(online),
            second=torch.zeros_like(online),
            frozen=torch.zeros(self.seeds, dtype=torch.bool, device=self.device),
            lanes=lanes,
            depth=torch.zeros(lanes.shape[:2], dtype=torch.int64, device=self.device),
            imagined=torch.zeros(rows, 2 * self.task.observation_size + 5, dtype=self.dtype, device=self.device),
        )
        chosen, chosen_score = s.target.clone(), torch.full((self.seeds,), -torch.inf, dtype=self.dtype, device=self.device)
        firsts = (depth == 0).sum(1)  # [S]; the places of first observations come first in a stable sort
        observations = real[..., : self.task.observation_size]
        first_rows = (depth != 0).to(torch.int8).argsort(dim=1, stable=True)
        metrics: dict[str, list[Tensor]] = {name: [] for name in ("loss", "scaled_loss", "score", "is_chosen", "curve_return")}
        for number in range(config.steps // config.round_steps):
            losses = self.advance(s, world, observations, number)
            index = self.draws.scoring(number, selection.episodes, firsts)
            starts = _rows(observations, first_rows.gather(1, index))
            score = self.score(s.target, world, starts, number)
            better = score > chosen_score
            chosen = torch.where(better[:, None], s.target, chosen)
            chosen_score = torch.where(better, score, chosen_score)
            curve = self.play(s.target, self.draws.curve_starts(number, config.evaluation.curve_episodes)).mean(1)
            for name, value in zip(metrics, (*losses.unbind(1), score, better, curve), strict=True):
                metrics[name].append(value)
        clock = self._lap("train", clock)
        starts = self.draws.final_starts(config.evaluation.episodes)
        returns_last, returns_chosen = self.play(s.target, starts), self.play(chosen, starts)
        self._lap("evaluate", clock)
        return {
            "learning": s,
            "world": world,
            "chosen": chosen,
            "fit": fit_log,
            "collected": collected,
            "returns_last": returns_last,
            "returns_chosen": returns_chosen,
            "metrics": {name: torch.stack(values) for name, values in metrics.items()},
        }

    # ------------------------------------------------------------------------------------------------------------ real episodes

    def collect(self) -> tuple[Tensor, Tensor, Tensor]:
        """(rows [S, N, 2 D + 3] of random transitions: observation, action, reward, next observation, terminated; [S, N] depths;
        [S, N] the return of the episode that ended there, NaN where none did).
        """
        n = self.config.random_transitions
        first, actions, resets = self.draws.collection(n)
        carried = [first.clone(), torch.zeros(self.seeds, dtype=torch.int64, device=self.device)]
        unrolled = math.gcd(n, UNROLLED)

        def block(carried: Sequence[Tensor], actions: Tensor, resets: Tensor) -> list[Tensor]:
            pieces = zip(actions.split(unrolled), resets.split(unrolled), strict=True)
            return _joined([self.collect_on(carried[0], carried[1], *piece) for piece in pieces])

        size = math.gcd(n, 50 * UNROLLED)
        pieces = zip(actions.split(size), resets.split(size), strict=True)
        parts = [[x.clone() for x in self._run("collect", block, carried, *piece)] for piece in pieces]
        rows, depths, returns = (x.transpose(0, 1).contiguous() for x in _joined(parts))
        return rows, depths, returns

    def _collect_on(self, observation: Tensor, depth: Tensor, actions: Tensor, resets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, depths, returns = [], [], []
        s, d = observation, depth
        for action, reset in zip(actions.unbind(), resets.unbind(), strict=True):
            after = self.task.dynamics(s, action)
            reward, terminated = self.task.reward(s, action, after), self.task.terminated(s, action, after)
            columns = [s, action[:, None].to(s.dtype), reward[:, None], after, terminated[:, None].to(s.dtype)]
            rows.append(torch.cat(columns, dim=1))
            depths.append(d)
            ended = terminated | (d + 1 >= self.task.time_limit)
            returns.append(torch.where(ended, (d + 1).to(s.dtype), torch.nan))  # a reward of 1 a step
            s, d = torch.where(ended[:, None], reset, after), torch.where(ended, 0, d + 1)
        result = torch.stack(rows), torch.stack(depths), torch.stack(returns)
        observation.copy_(s)
        depth.copy_(d)
        return result

    @torch.no_grad()
    def longest_round_end(self, result: dict[str, Any]) -> float:
        """Seconds of a round's end when its episodes last as long as they may, with what :meth:`train` came to."""
        self.to_the_end = True
        starts = self.draws.starts(self.config.selection.episodes)
        since = self._now()
        self.score(result["learning"].target, result["world"], starts, 0)
        self.play(result["learning"].target, self.draws.starts(self.config.evaluation.curve_episodes))
        seconds = self._now() - since
        self.to_the_end = False
        return seconds

    def play(self, flat: Tensor, starts: Tensor) -> Tensor:
        """[S, n] returns of greedy real episodes from ``starts`` [S, n, D]."""
        running = torch.ones(starts.shape[:2], dtype=torch.bool, device=self.device)
        carried = [starts.clone(), running, torch.zeros(running.shape, dtype=self.dtype, device=self.device)]
        return self._episodes(f"play {starts.shape[1]}", self.play_on, carried, [flat], self.task.time_limit)

    def _play_on(self, observation: Tensor, running: Tensor, returns: Tensor, flat: Tensor, within: Tensor) -> None:
        self._go_on(observation, running, returns, flat, within, lambda t, s, action: self.task.dynamics(s, action))

    def _go_on(
        self,
        observation: Tensor,
        running: Tensor,
        returns: Tensor,
        flat: Tensor,
        within: Tensor,
        follow: Callable[[int, Tensor, Tensor], Tensor],
    ) -> None:
        """Greedy steps in place, each to what ``follow`` says of its number, the observations and the actions."""
        layers, s, alive, total = layers_of(flat, self.q_sizes), observation, running, returns
        for t, inside in enumerate(within.unbind()):
            action = self._greedy(layers, s)
            after = follow(t, s, action)
            alive = alive & inside
            total = total + torch.where(alive, self.task.reward(s, action, after), 0.0)
            alive = alive & ~self.task.terminated(s, action, after)
            s = after
        observation.copy_(s)
        running.copy_(alive)
        returns.copy_(total)

    def _episodes(
        self,
        name: str,
        on: Callable[..., None],
        carried: list[Tensor],
        fixed: Sequence[Tensor],
        steps: int,
        noise: Callable[[int, int], Tensor] | None = None,
    ) -> Tensor:
        """The returns of episodes, stepped block by block until none runs.

        Args:
          name: of what they are.
          on: steps them: (*carried, *fixed, [steps] whether each step counts, and noise).
          carried: observations, whether they run, their returns.
          fixed: what else steps them.
          steps: at which they are cut.
          noise: of a block, from its first step and its length.

        """

        def block(carried: Sequence[Tensor], *inputs: Tensor) -> None:
            fixed, varying = inputs[:count], inputs[count:]
            for piece in zip(*(x.split(UNROLLED) for x in varying), strict=True):
                on(*carried, *fixed, *piece)

        count = len(fixed)
        within = torch.arange(-(-steps // BLOCK) * BLOCK, device=self.device) < steps
        for first in range(0, steps, BLOCK):
            drawn = [] if noise is None else [noise(first, BLOCK)]
            self._run(name, block, carried, *fixed, within[first : first + BLOCK], *drawn)
            if not bool(carried[1].any()) and not self.to_the_end:
                break
        return carried[2]

    # --------------------------------------------------------------------------------------------------------------- the model

    def fit(self, real: Tensor) -> tuple[World, dict[str, Tensor]]:
        """Fit the ensembles to ``real`` [S, N, 2 D + 3]; the log has each epoch's figures [epochs, S, E]."""
        config, size = self.config.model, self.task.observation_size
        flat = self.draws.ensembles(self.model_sizes, config.members)
        first, second = torch.zeros_like(flat), torch.zeros_like(flat)
        observation, action, after = real[..., :size], real[..., size : size + 1], real[..., size + 2 : 2 * size + 2]
        stride = holdout_stride(self.config.real_transitions)
        held_out = torch.arange(real.shape[1], device=self.device) % stride == stride - 1
        change = after - observation
        mean, std = _statistics(observation[:, ~held_out])
        if config.input_scale == "task":
            std = torch.tensor(self.task.input_scale, dtype=self.dtype, device=self.device).expand_as(std).clone()
            mean = torch.zeros_like(std)
        world = World(flat, mean, std, *_statistics(change[:, ~held_out]))
        inputs = torch.cat([(observation - mean) / std, 2 * action - 1], dim=2)
        rows = torch.cat([inputs, (change - world.target_mean) / world.target_std], dim=2)
        training, held = rows[:, ~held_out].contiguous(), rows[:, held_out].contiguous()
        count, batches = training.shape[1], training.shape[1] // config.batch_size
        training = training.flatten(0, 1)
        offset = self._offsets(count)[:, None]
        bias = torch.arange(1, config.epochs * batches + 1, device=self.device, dtype=torch.float64)
        corrections = torch.stack([1 - beta**bias for beta in BETAS], dim=1).to(self.dtype)

        def epoch(carried: Sequence[Tensor], training: Tensor, index: Tensor, corrections: Tensor) -> Tensor:
            steps = zip(index.unbind(), corrections.unbind(), strict=True)
            losses = [self.fit_step(*carried, training, *each) for each in steps]  # type: ignore[call-arg]
            return torch.stack(losses).mean(0)

        log: dict[str, list[Tensor]] = {"loss": [], "holdout_mse": [], "holdout_nll": []}
        for number in range(config.epochs):
            order = self.draws.epoch_order(number, config.members, count)[..., : batches * config.batch_size] + offset
            # [batches, S * E * B]
            index = order.view(self.seeds * config.members, batches, -1).transpose(0, 1).reshape(batches, -1)
            now = corrections[number * batches : (number + 1) * batches]
            loss = self._run("fit", epoch, [flat, first, second], training, index, now)
            values = (loss.clone(), *self._holdout(flat, held))
            for name, value in zip(log, values, strict=True):
                log[name].append(value.view(self.seeds, -1))
        return world, {name: torch.stack(values) for name, values in log.items()}

    def _fit_step(self, flat: Tensor, first: Tensor, second: Tensor, rows: Tensor, index: Tensor, corrections: Tensor) -> Tensor:
        batch = rows.index_select(0, index).view(len(flat), self.config.model.batch_size, -1)
        inputs, targets = batch[..., : self.model_sizes[0]], batch[..., self.model_sizes[0] :]
        gradients, losses = torch.func.grad(self._member_losses, has_aux=True)(layers_of(flat, self.model_sizes), inputs, targets)
        rate = torch.full((), self.config.model.learning_rate, dtype=flat.dtype, device=flat.device)
        after = adam(flat, first, second, flatten(gradients), rate, corrections)
        for tensor, new in zip((flat, first, second), after, strict=True):
            tensor.copy_(new)
        return losses

    def _member_losses(self, layers: Layers, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """([] the sum, [S * E] each) of the members' losses."""
        _, likelihood = self._errors(layers, inputs, targets)
        few = inputs[:, : self.config.model.laplacian_rows]
        losses = likelihood + self.config.model.laplacian_weight * self._laplacian(layers, few).square().sum(-1).mean(-1)
        return losses.sum(), losses

    def _errors(self, layers: Layers, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """([S * E] squared error, [S * E] negative log-likelihood), means over rows."""
        mean, log_variance = self._outputs(layers, inputs)
        square = (mean - targets).square()
        likelihood = 0.5 * (square * torch.exp(-log_variance) + log_variance)
        return square.sum(-1).mean(-1), likelihood.sum(-1).mean(-1)

    def _holdout(self, flat: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        rows = held[:, None].expand(-1, self.config.model.members, -1, -1).flatten(0, 1)
        return self._errors(layers_of(flat, self.model_sizes), rows[..., : self.model_sizes[0]], rows[..., self.model_sizes[0] :])

    def _outputs(self, layers: Layers, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(means [S * E, B, D], bounded log-variances [S * E, B, D])."""
        outputs = perceptron(layers, inputs, torch.nn.functional.silu)
        mean, raw = outputs.chunk(2, dim=-1)
        below = MAXIMUM_LOG_VARIANCE - softplus(MAXIMUM_LOG_VARIANCE - raw)
        return mean, MINIMUM_LOG_VARIANCE + softplus(below - MINIMUM_LOG_VARIANCE)

    def _laplacian(self, layers: Layers, inputs: Tensor) -> Tensor:
        """[S * E, R, D] of the means over the state, in one forward pass: values, gradients and Laplacian go through together."""
        axes, rows = self.task.observation_size, inputs.shape[1]
        kernel, bias = layers[0]
        z = torch.baddbmm(bias, inputs, kernel)
        slope = kernel[:, :axes, None].expand(-1, -1, rows, -1)  # [S * E, axes, R, width]
        curve: Tensor | None = None
        for kernel, bias in layers[1:]:
            sigmoid = torch.sigmoid(z)
            once = sigmoid * (1 + z * (1 - sigmoid))
            twice = sigmoid * (1 - sigmoid) * (2 + z * (1 - 2 * sigmoid))
            bent = twice * slope.square().sum(1)
            curve = torch.bmm(bent if curve is None else bent + once * curve, kernel)
            slope = torch.bmm((once[:, None] * slope).flatten(1, 2), kernel).unflatten(1, (axes, rows))
            z = torch.baddbmm(bias, z * sigmoid, kernel)
        assert curve is not None
        return curve[..., :axes]

    # -------------------------------------------------------------------------------------------------------------- imagination

    def _greedy(self, layers: Layers, observation: Tensor) -> Tensor:
        """[S, n] from observations [S, n, D]."""
        return perceptron(layers, observation / self.q_scale, torch.relu).argmax(-1)

    def _imagine(self, world: World, members: Layers, observation: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """[S, E * n, D] where the members lead, each its own n of the observations [S, E * n, D]."""
        inputs = torch.cat([(observation - world.mean) / world.std, (2 * action - 1)[..., None].to(observation.dtype)], dim=2)
        inputs = inputs.view(self.seeds * self.config.model.members, -1, inputs.shape[-1])
        mean, log_variance = (x.view(observation.shape) for x in self._outputs(members, inputs))
        change = mean + torch.exp(0.5 * log_variance) * noise
        return observation + world.target_mean + world.target_std * change

    def score(self, flat: Tensor, world: World, starts: Tensor, number: int) -> Tensor:
        """[S] mean returns of greedy imagined episodes from ``starts`` [S, n, D]."""
        members = self.config.model.members
        running = torch.ones(starts.shape[:2], dtype=torch.bool, device=self.device)

        def noise(first: int, count: int) -> Tensor:
            drawn = self.draws.scoring_noise(number, first, count, members, starts.shape[1] // members)
            return drawn.view(count, *starts.shape)

        carried = [starts.clone(), running, torch.zeros(running.shape, dtype=self.dtype, device=self.device)]
        fixed = [flat, *world]
        return self._episodes("score", self.imagine_on, carried, fixed, self.config.selection.steps, noise).mean(1)

    def _imagine_on(self, *carried: Tensor) -> None:
        observation, running, returns, flat, *model, within, noise = carried
        world = World(*model)
        members, drawn = layers_of(world.flat, self.model_sizes), noise.unbind()

        def follow(t: int, s: Tensor, action: Tensor) -> Tensor:
            return self._imagine(world, members, s, action, drawn[t])

        self._go_on(observation, running, returns, flat, within, follow)

    # ------------------------------------------------------------------------------------------------------------ the main loop

    def prepare(self, numbers: Numbers, observations: Tensor, first: int) -> StepNumbers:
        """A round's numbers as its steps take them, leaves [T, ...]; ``first`` is the number of its first step."""
        config, imagination = self.config, self.config.imagination
        count = imagination.steps * imagination.lanes
        step = first + torch.arange(config.round_steps, device=self.device)
        ring = (step[:, None] * count + torch.arange(count, device=self.device)) % imagination.capacity
        progress = step.to(torch.float64) / max(config.steps - 1, 1)
        rate = config.agent.learning_rate * (1 - config.agent.learning_rate_decay * progress)
        offset = self._offsets(observations.shape[1])
        return StepNumbers(
            roots=observations.flatten(0, 1)[numbers.roots + offset],
            explore=numbers.explore,
            action=numbers.action,
            deal=numbers.deal,
            place=numbers.deal.argsort(dim=-1),
            noise=numbers.noise,
            written=ring[:, None] + self.batch_offset,
            minibatch=(numbers.minibatch + self.batch_offset).flatten(1),
            rate=rate.to(self.dtype),
            corrections=torch.stack([1 - beta ** (step + 1).to(torch.float64) for beta in BETAS], dim=1).to(self.dtype),
        )

    def advance(self, s: Learning, world: World, observations: Tensor, number: int) -> Tensor:
        """A round's steps; returns the losses, plain and scaled, [T, 2, S]."""
        config, imagination = self.config, self.config.imagination
        first = number * config.round_steps
        times = torch.arange(first, first + config.round_steps, device=self.device)
        sizes = ((times + 1) * imagination.steps * imagination.lanes).clamp(max=imagination.capacity)
        numbers = self.prepare(self.draws.round(number, observations.shape[1], sizes), observations, first)

        def steps(carried: Sequence[Tensor], *inputs: Tensor) -> Tensor:
            s, world, numbers = Learning(*carried), World(*inputs[:fixed]), inputs[fixed:]
            each = zip(*(field.unbind() for field in numbers), strict=True)
            return torch.stack([self.step(s, world, StepNumbers(*fields)) for fields in each])

        fixed = len(world)
        return self._run("steps", steps, list(s), *world, *numbers).clone()

    def _step(self, s: Learning, world: World, n: StepNumbers) -> Tensor:
        """K lanes of H imagined steps, one update; changes ``s``, returns the losses [2, S]."""
        config, size = self.config.imagination, self.task.observation_size
        online, members = layers_of(s.online, self.q_sizes), layers_of(world.flat, self.model_sizes)
        lanes, depth, written = s.lanes, s.depth, []
        stop_at = min(config.controller.length, config.cap)
        for h in range(config.steps):
            observation = torch.where((depth == 0)[..., None], n.roots[h], lanes)
            action = torch.where(n.explore[h] < config.epsilon, n.action[h], self._greedy(online, observation))
            deal, place = n.deal[h], n.place[h]
            dealt = _rows(observation, deal), action.gather(1, deal), _rows(n.noise[h], deal)
            after = _rows(self._imagine(world, members, *dealt), place)
            reward, terminated = self.task.reward(observation, action, after), self.task.terminated(observation, action, after)
            columns = (action, reward, after, terminated, torch.ones_like(reward), depth)
            fields = [x if x.dim() == 3 else x[..., None].to(observation.dtype) for x in (observation, *columns)]
            written.append(torch.cat(fields, dim=2))
            lanes, depth = after, torch.where(terminated | (depth + 1 >= stop_at), 0, depth + 1)
        s.imagined.index_copy_(0, n.written.flatten(), torch.cat(written, dim=1).flatten(0, 1))
        s.lanes.copy_(lanes)
        s.depth.copy_(depth)

        batch = s.imagined.index_select(0, n.minibatch).view(self.seeds, -1, s.imagined.shape[1])
        after = batch[..., size + 2 : 2 * size + 2]
        best = self._greedy(online, after)[..., None]
        value = perceptron(layers_of(s.target, self.q_sizes), after / self.q_scale, torch.relu).gather(2, best).squeeze(2)
        goal = batch[..., size + 1] + self.config.agent.discount * (1 - batch[..., 2 * size + 2]) * value
        gradients, losses = torch.func.grad(self._q_loss, has_aux=True)(online, batch, goal)
        changed = adam(s.online, s.first, s.second, flatten(gradients), n.rate, n.corrections)
        changed.append(s.target + self.config.agent.target_rate * (changed[0] - s.target))
        frozen = s.frozen | ~changed[0].isfinite().all(1)
        for tensor, new in zip((s.online, s.first, s.second, s.target), changed, strict=True):
            tensor.copy_(torch.where(frozen[:, None], tensor, new))
        s.frozen.copy_(frozen)
        return losses

    def _q_loss(self, layers: Layers, batch: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        """([] the sum over seeds, [2, S] each seed's loss, plain and over the variance of the targets)."""
        size = self.task.observation_size
        values = perceptron(layers, batch[..., :size] / self.q_scale, torch.relu)
        value = values.gather(2, batch[..., size : size + 1].to(torch.int64)).squeeze(2)
        weight = batch[..., 2 * size + 3]
        share = weight / weight.sum(1, keepdim=True).clamp(min=1e-30)
        losses = (share * (value - goal).square()).sum(1)
        variance = (share * (goal - (share * goal).sum(1, keepdim=True)).square()).sum(1)
        return losses.sum(), torch.stack([losses, losses / variance.clamp(min=1e-8)]).detach()

    # ------------------------------------------------------------------------------------------------------------------- around

    def _run(self, name: str, function: Callable[..., Any], carried: Sequence[Tensor], *inputs: Tensor) -> Any:
        """``function(carried, *inputs)`` or, compiled on a GPU, its recording."""
        if not (self.compiled and self.device.type == "cuda"):
            return function(carried, *inputs)
        if name not in self.graphs:
            self.graphs[name] = Recorded(function, carried, inputs)
        return self.graphs[name](carried, *inputs)

    def _offsets(self, rows: int) -> Tensor:
        """[S, 1] where each seed's rows begin in a flat table of ``rows`` a seed."""
        return torch.arange(self.seeds, device=self.device)[:, None] * rows

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _lap(self, name: str, since: float) -> float:
        now = self._now()
        self.seconds[name] = now - since
        return now


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """[S, n, D] rows ``index`` [S, n] of each seed's ``table`` [S, N, D]."""
    return table.gather(1, index[..., None].expand(-1, -1, table.shape[-1]))


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [S, 1, D] over rows [S, n, D], a deviation below 1e-6 counting as 1."""
    std = x.std(dim=1, correction=0, keepdim=True)
    return x.mean(dim=1, keepdim=True), torch.where(std < 1e-6, 1.0, std)


def _joined(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Pieces of several tensors, put together along the first axis."""
    return [torch.cat(list(pieces)) for pieces in zip(*parts, strict=True)]
