"""A batch of trials, trained side by side and thinned out on the way: successive halving (Jamieson and Talwalkar 2016).

Trials that differ in traced settings alone are places of one compiled program. It serves any number of agents: those that train
wait on the host and take its places in turn, so that nothing compiles anew when trials are pruned. At a rung all trials of the
batch have done equally many rounds.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.algorithms.training import keys_of
from mbrl_jax.config import ConfigError, RunConfig
from mbrl_jax.runs import engines, execution, runner
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.program import FUNCTIONS, Batch, Program, split
from mbrl_jax.runs.results import per_seed

PLACES_PER_CORE = 2
"""Of a program on a CPU, which maps its agents one after another: more places save calls, fewer are seldom idle."""


def rungs(rounds: int, count: int, factor: float) -> tuple[int, ...]:
    """The rounds after which trials are compared: ``count`` of them, each ``factor`` times as late as the last, and the end.

    Raises:
      ConfigError: the run has too few rounds.

    """
    found = tuple(round(rounds / factor**place) for place in range(count, 0, -1))
    if len({0, rounds, *found}) < count + 2:
        raise ConfigError(f"rungs: {count!r} do not fit into {rounds} rounds, each {factor:g} times as late as the one before")
    return (*found, rounds)


def survivors(values: Mapping[int, float], others: Collection[float], factor: float) -> list[int]:
    """The trials of a batch that go on after a rung: those among the best 1/factor of all that have reached it.

    Args:
      values: of the batch's trials, by number; larger is better, and one that is not finite is the worst.
      others: of all other trials at this rung.
      factor: how many trials there are for each that goes on.

    Returns:
      The numbers, in order: at least the batch's best one. Of equal trials the one with the lower number goes on.

    """
    place = max(1, math.ceil((len(values) + len(others)) / factor))
    better = sorted((other for other in others if math.isfinite(other)), reverse=True)
    ranked = sorted(values, key=lambda number: (-values[number] if math.isfinite(values[number]) else math.inf, number))
    going = [
        number
        for rank, number in enumerate(ranked)
        if math.isfinite(values[number]) and rank + sum(other >= values[number] for other in better) < place
    ]
    return sorted(going or ranked[:1])


class Ended(NamedTuple):
    """What a trial came to."""

    curve: np.ndarray  # [seeds, rounds] mean return of the evaluation episodes after each round
    returns: np.ndarray  # [seeds] mean return of the final episodes of the policy that the run would keep
    frozen: int  # seeds whose learner went non-finite


class Places(Program):
    """A program whose places any agents can take: of any config that has the same static settings."""

    def __init__(
        self,
        config: RunConfig,
        varied: Collection[str],
        base_seed: int,
        show: Display,
        devices: int | None,
        size: int,
        engine: engines.Asked = "xla",
    ):
        """For ``size`` agents whose configs differ in the traced settings ``varied`` alone; nothing is compiled yet."""
        self._varied = frozenset(varied)
        algorithm = runner.make_train(config, engine=engine)
        if engine != "xla":
            show.say(engines.describe(algorithm.engine))
        super().__init__(algorithm, [config], range(1), base_seed, show, devices, size)

    def turn_to(self, batch: Batch) -> None:
        """Seat copies of the first agent, whose shapes are those of all."""
        self.seat(self.configs * batch.agents, [0] * batch.agents)

    def seat(self, configs: Sequence[RunConfig], seeds: Sequence[int]) -> None:
        """Give places to agents, at most as many as the program is for; the places that are left repeat them."""
        self.agents = len(configs)
        self.number = np.arange(self.layout.padded(self.at_once)) % self.agents
        self.keys = self.layout.place(keys_of(self.base_seed, jnp.asarray(np.asarray(seeds)[self.number], jnp.int32)))
        own = [[path, *numbers] for path, *numbers in zip(_paths(configs[0]), *map(jax.tree.leaves, configs), strict=True)]
        leaves = [self._stack(numbers) if path in self._varied else numbers[0] for path, *numbers in own]
        structure = jax.tree.structure(configs[0])
        self.hyper = jax.tree.unflatten(structure, leaves)
        self.hyper_axes = jax.tree.unflatten(structure, [0 if path in self._varied else None for path, *_ in own])
        self.state: Any = None

    def give(self) -> dict[str, np.ndarray]:
        """Copy the state to the host: ``own/…`` [agents, ...] of those that have places, ``shared/…`` what all share."""
        owned = execution.is_own(self.algorithm.axes, self.state)
        leaves = jax.tree.leaves(self.to_host(self.state, self.algorithm.axes))
        return {_name(place, own): leaf for place, (leaf, own) in enumerate(zip(leaves, owned, strict=True))}

    def take(self, state: Mapping[str, np.ndarray], agents: Sequence[int]) -> None:
        """Load the state of the agents that have places: numbers ``agents`` of what :meth:`give` gave, of any number of them.

        Raises ConfigError: it is another program's.
        """
        template, chosen = self.out("init")[0], np.asarray(agents)[self.number]
        leaves, structure = jax.tree.flatten(template)
        placed = []
        for place, (like, own) in enumerate(zip(leaves, execution.is_own(self.algorithm.axes, template), strict=True)):
            leaf = state.get(_name(place, own))
            if leaf is None or leaf.shape[: like.ndim][own:] != like.shape[own:]:
                there = "nothing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"
                raise ConfigError(
                    f"state: {there} at {_name(place, own)} does not fit; it must be {like.dtype}{list(like.shape)}"
                )
            moved = self.layout.place(leaf[chosen]) if own else self.layout.share(leaf)
            placed.append(jax.random.wrap_key_data(moved, impl="threefry2x32") if execution.is_key(like) else moved)
        self.state = jax.tree.unflatten(structure, placed)

    def _stack(self, numbers: Sequence[float]) -> Any:
        dtype = jnp.int32 if all(isinstance(number, int) for number in numbers) else jnp.zeros(()).dtype
        return self.layout.place(jnp.asarray(np.asarray(numbers)[self.number], dtype))


class Machine:
    """What trials are trained on, and the programs that are compiled so far."""

    def __init__(
        self,
        seeds: range,
        base_seed: int,
        varied: Collection[str],
        show: Display,
        devices: int | None = None,
        memory: int | None = None,
        engine: engines.Asked = "xla",
    ):
        """Train every trial with ``seeds``; trials of one program differ in the traced settings ``varied`` alone.

        Without ``devices`` all local ones are used, without ``memory`` (bytes) all that they have. ``engine`` trains them.

        Raises ConfigError: there are fewer devices.
        """
        self.seeds, self.base_seed, self.varied, self.show, self.devices = seeds, base_seed, varied, show, devices
        self.engine = engine
        layout = execution.choose_layout(2**31 - 1, devices)
        self.cores = layout.mesh.size if layout.mesh.devices.flat[0].platform == "cpu" else None
        self.available = execution.memory(layout) if memory is None else memory
        self._programs: dict[tuple[Any, int], Places] = {}
        self._most: dict[Any, int] = {}  # places that fit into memory, by the structure of the config

    def program(self, config: RunConfig, agents: int, chunk: int, names: Sequence[str] = FUNCTIONS) -> Places:
        """A program in which ``agents`` agents take places, by turns where it has fewer, with these functions compiled.

        On an accelerator a program with fewer places takes less time, so it has the next power of two: what is left of a batch
        compiles anew, once for all batches. On a CPU all have one.

        Raises:
          ConfigError: memory does not hold a single agent.

        """
        kind = jax.tree.structure(config)
        wanted = PLACES_PER_CORE * self.cores if self.cores else 1 << (agents - 1).bit_length()
        size = min(wanted, self._most.get(kind, wanted))
        while True:
            made = self._programs.get((kind, size))
            if made is None:
                made = Places(config, self.varied, self.base_seed, self.show, self.devices, size, self.engine)
            needed = max(each.bytes for each in made.compile(names, chunk)) * made.layout.mesh.size
            if needed <= self.available:
                self._programs[kind, size] = made
                return made
            if size == 1:
                raise ConfigError(f"memory: {self.available / 1e9:,.3f} GB do not hold one seed; it takes {needed / 1e9:,.3f} GB")
            size = self._most[kind] = size // 2


class Group:
    """The trials of a batch that have one program."""

    def __init__(self, machine: Machine, configs: Mapping[int, RunConfig], found: Mapping[str, np.ndarray] | None = None):
        """By the trials' numbers; ``found`` is what :meth:`arrays` gave, if they have begun."""
        self.machine, self.configs = machine, dict(configs)
        self._arrays = None if found is None else dict(found)

    @property
    def curve(self) -> dict[int, np.ndarray]:
        """[seeds, rounds] mean returns after each round, by trial."""
        return dict(zip(self.configs, self._by_trial(self.arrays()["own/curve"]), strict=True))

    def arrays(self) -> dict[str, np.ndarray]:
        """All that :meth:`advance` goes on from: ``own/…`` [agents, ...], ``shared/…``."""
        assert self._arrays is not None, "it has begun"
        return self._arrays

    def advance(self, rounds: int, chunk: int, stop: Callable[[], bool] = lambda: False) -> bool:
        """Train ``rounds`` rounds, from the beginning if nothing has begun; return False if ``stop`` asked for an end before.

        What is done of them then is lost.
        """
        before, names = self._arrays, FUNCTIONS if self._arrays is None else ("advance",)
        parts = []
        for program, agents in self._turns(chunk, names):
            program.show.phase("training")
            if before is None:
                program.call("init")
                program.call("fit")
            else:
                program.take(before, agents)
            measured = []
            for _ in range(0, rounds, chunk):
                measured.append(program.to_host(program.call("advance", chunk).curve_return))  # [agents, chunk]
                if stop():
                    return False
            past = [] if before is None else [before["own/curve"][agents]]
            parts.append({**program.give(), "own/curve": np.concatenate([*past, *measured], axis=1)})
            self._check_host_memory(parts[0])
        self._arrays = {
            name: np.concatenate([part[name] for part in parts]) if name.startswith("own/") else leaf
            for name, leaf in parts[0].items()
        }
        return True

    def keep(self, numbers: Collection[int]) -> None:
        """Drop all trials but these."""
        seeds = len(self.machine.seeds)
        agents = [i * seeds + seed for i, number in enumerate(self.configs) if number in numbers for seed in range(seeds)]
        self.configs = {number: config for number, config in self.configs.items() if number in numbers}
        self._arrays = {name: leaf[agents] if name.startswith("own/") else leaf for name, leaf in self.arrays().items()}

    def finish(self) -> dict[int, Ended]:
        """Evaluate the policy of every trial: the chosen one, or where none is chosen the last."""
        returns, frozen = [], []
        for program, agents in self._turns(0, ("finish",)):
            program.take(self.arrays(), agents)
            outcome = program.to_host(program.call("finish"))
            returns.append(per_seed(outcome.returns_last if outcome.returns_chosen is None else outcome.returns_chosen))
            frozen.append(outcome.frozen)
        pairs = zip(self._by_trial(np.concatenate(returns)), self._by_trial(np.concatenate(frozen)), strict=True)
        return {
            number: Ended(self.curve[number], own, int(rested.sum()))
            for number, (own, rested) in zip(self.configs, pairs, strict=True)
        }

    def _check_host_memory(self, part: Mapping[str, np.ndarray]) -> None:
        """Refuse more agents than the host can hold, from what the first of them take. Raises ConfigError: naming how many."""
        each = sum(leaf.nbytes for name, leaf in part.items() if name.startswith("own/")) / len(part["own/curve"])
        most = int(execution.host_memory() / (2 * each))  # joined they are there twice for a moment
        agents = len(self.configs) * len(self.machine.seeds)
        if agents > most:
            raise ConfigError(
                f"batch: {agents} agents of {each / 1e6:,.2f} MB each do not fit into the host's memory; at most {most} do"
            )

    def _turns(self, chunk: int, names: Sequence[str]) -> Iterator[tuple[Places, list[int]]]:
        """The agents that have places together, seated in their program."""
        configs, seeds = list(self.configs.values()), self.machine.seeds
        total = len(configs) * len(seeds)
        program = self.machine.program(configs[0], total, chunk, names)
        for batch in split(total, program.at_once):
            agents = list(range(batch.first, batch.first + batch.agents))
            program.seat([configs[agent // len(seeds)] for agent in agents], [seeds[agent % len(seeds)] for agent in agents])
            yield program, agents

    def _by_trial(self, leaf: np.ndarray) -> np.ndarray:
        """[agents, ...] as [trials, seeds, ...]."""
        return leaf.reshape(len(self.configs), len(self.machine.seeds), *leaf.shape[1:])


def groups(machine: Machine, configs: Mapping[int, RunConfig]) -> list[Group]:
    """The trials of a batch, those that compile to one program together."""
    found: dict[Any, dict[int, RunConfig]] = {}
    for number, config in configs.items():
        found.setdefault(jax.tree.structure(config), {})[number] = config
    return [Group(machine, each) for each in found.values()]


# ------------------------------------------------------------------------------------------------------------------ pieces


def _paths(config: RunConfig) -> list[str]:
    """The dotted paths of the traced settings, in the order of the leaves."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(config)
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]


def _name(place: int, own: bool) -> str:
    return f"{'own' if own else 'shared'}/{place:04d}"
