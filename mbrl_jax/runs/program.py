"""An algorithm for many agents on this machine: compiled, driven round by round, saved and taken up again."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.algorithms.training import Train, keys_of, missing_as_nan
from mbrl_jax.config import ConfigError, ModelBasedConfig, RunConfig
from mbrl_jax.runs import execution, metrics
from mbrl_jax.runs.checkpoint import Checkpoint
from mbrl_jax.runs.display import Display
from mbrl_jax.runs.interruption import Interrupted, Interruption, at_once
from mbrl_jax.runs.metrics import Entry

FUNCTIONS = ("init", "fit", "advance", "finish")  # of an algorithm, that every run needs
CHUNKS = 10  # that a run has at least
CHUNK_UPDATES = 10_000  # that a device makes in a chunk, about: a second or two on a CPU


def chunk_of(rounds: int, most: int, done: int) -> int:
    """The largest number of rounds, ``most`` at the most, that divides a run evenly.

    A run that goes on has the chunks that it began with, so that it is the same program; where it began with others, as on a
    different number of devices, it has such as divide what is left.
    """
    whole = max((size for size in range(1, most + 1) if rounds % size == 0), default=1)
    return math.gcd(whole, rounds - done)


class Seconds(NamedTuple):
    """Wall-clock time of a run."""

    compile: float
    collect: float
    fit: float
    train: float
    evaluate: float

    @property
    def run(self) -> float:
        """All but compilation."""
        return self.collect + self.fit + self.train + self.evaluate


class Keeper(Protocol):
    """Keeps what a run has come to, as :class:`mbrl_jax.runs.run_folder.RunFolder` does."""

    found: Checkpoint | None  # where the run goes on from

    def note(self, entry: Entry) -> None:
        """A round is done."""

    def due(self) -> bool:
        """Whether the run should be saved now."""

    def save(self, number: int, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
        """Save the run as it is after ``number`` rounds, while it goes on."""

    def wait(self) -> int:
        """Wait until what was given to :meth:`save` is safe; the last round that is."""


@dataclasses.dataclass
class SoFar:
    """What a run has come to, on the host."""

    collected: Any  # [agents, N], NaN where no episode ended
    fit: Any  # leaves [agents, ...]
    rounds: list[Any]  # metrics, leaves [agents, n, ...] of n successive rounds
    done: int  # rounds
    seconds: dict[str, float]

    def metrics(self) -> Any:
        """Leaves [agents, rounds, ...]."""
        return jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *self.rounds)


class Program:
    """An algorithm for many agents on this machine, its functions compiled as they are needed.

    Every config has the same seeds; agent n is seed ``n % seeds`` of config ``n // seeds``. Successive agents are trained at
    once, all or some. State lives on the devices, padded to a multiple of them; whatever is told or kept is on the host and of
    those agents alone.
    """

    def __init__(
        self,
        algorithm: Train,
        configs: Sequence[RunConfig],
        seeds: int,
        base_seed: int,
        show: Display,
        devices: int | None = None,
        at_once: int | None = None,
    ):
        """For all agents at once, or for ``at_once`` of them."""
        self.algorithm, self.config, self.show, self.seeds, self.base_seed = algorithm, configs[0], show, seeds, base_seed
        self.configs, self.at_once = list(configs), len(configs) * seeds if at_once is None else at_once
        self.layout = execution.choose_layout(self.at_once, devices)
        self.state_bytes = self.temporary_bytes = 0
        self.compiling = 0.0  # seconds, since they were last told
        self._lowered: dict[str, execution.Lowered] = {}
        self._compiled: dict[str, execution.Compiled] = {}
        self.turn_to(0, self.at_once)

    def turn_to(self, first: int, agents: int) -> None:
        """Make the agents from number ``first`` on, as many as the program is for or fewer, those that are trained next.

        Nothing is compiled anew.
        """
        self.agents = agents
        self.number = np.arange(self.layout.padded(self.at_once)) % agents  # the first ones again fill up the devices
        numbers = first + self.number
        self.keys = self.layout.place(keys_of(self.base_seed, jnp.asarray(numbers % self.seeds, jnp.int32)))
        self.hyper, self.hyper_axes = _stacked(self.configs, numbers // self.seeds)
        self.state: Any = None

    def prepare(self) -> int:
        """Compile what a run needs from its beginning; the bytes that it takes at once, on all devices together.

        Raises:
          ConfigError: the results of all agents are more than the host has memory for.

        """
        chunk = self._rounds_of_a_chunk(0)
        self._check_memory()
        self._check_host_memory(chunk)
        made = self._compile(FUNCTIONS, chunk)
        return max(each.bytes for each in made) * self.layout.mesh.size

    def train(self, keeper: Keeper | None, interruption: Interruption | None) -> SoFar:
        """Go through all phases up to the last round, or through what an earlier process left of them."""
        if keeper is None or keeper.found is None:
            so_far, found = self._begin(), None
        else:
            with at_once():  # all that there is has been saved
                so_far, found = self._restore(keeper.found), keeper.found
                if so_far.done < self.algorithm.rounds:
                    self._compile(("advance",), self._rounds_of_a_chunk(so_far.done))
        chunk = self._rounds_of_a_chunk(so_far.done)
        if so_far.done < self.algorithm.rounds:
            self._compile(("advance",), chunk)
        if found is not None and found.round:
            so_far.rounds = [self._refill(self._out("advance", chunk)[1], found, "metrics", 0)]
        so_far.seconds["compile"] += self.compiling
        self.show.phase("training", total=self.algorithm.rounds, done=so_far.done, note=f"compiled in {self.compiling:.1f} s")
        self.compiling = 0.0
        self._advance(chunk, so_far, keeper, interruption)
        return so_far

    def finish(self, so_far: SoFar, diagnose: bool) -> tuple[Any, Any]:
        """The outcome and, if it is wanted, the diagnosis."""
        (finish,) = self._compile(("finish",))
        outcome, diagnosis = self._timed("evaluating", so_far, "evaluate", finish.call, self.state), None
        if diagnose:
            (look,) = self._compile(("diagnose",))
            diagnosis = self._timed("diagnosing", so_far, None, look.call, self.state)
        so_far.seconds["compile"] += self.compiling
        self.compiling = 0.0
        return self._to_host(outcome, 0), missing_as_nan(self._to_host(diagnosis, 0))

    def _begin(self) -> SoFar:
        so_far = SoFar(None, None, [], 0, dict.fromkeys(Seconds._fields, 0.0))
        with at_once():
            init, fit = self._compile(("init", "fit"))
        self.state, collected = self._timed("collecting", so_far, "collect", init.call, self.keys)
        phase = "fitting" if isinstance(self.config, ModelBasedConfig) else "starting"
        self.state, log = self._timed(phase, so_far, "fit", fit.call, self.state)
        so_far.collected, so_far.fit = missing_as_nan(self._to_host(collected, 0)), self._to_host(log, 0)
        return so_far

    def _restore(self, found: Checkpoint) -> SoFar:
        """Take up what :meth:`_arrays` gave."""
        axes = self.algorithm.axes
        (state, collected), (_, log) = self._out("init"), self._out("fit")
        self.state = self._to_devices(self._refill(state, found, "state", axes), state)
        return SoFar(
            collected=self._refill(collected, found, "collected", 0),
            fit=self._refill(log, found, "fit", 0),
            rounds=[],
            done=found.round,
            seconds=dict(found.about["seconds"]),
        )

    def _rounds_of_a_chunk(self, done: int) -> int:
        """How many rounds one call of the devices runs.

        Between two calls all devices wait for the slowest, so a call should take a second or more; but a run has at least
        ``CHUNKS`` of them, and a person who asks it to stop waits for the end of one.
        """
        updates = len(self.number) * self.config.updates / self.algorithm.rounds / self.layout.mesh.size
        return chunk_of(self.algorithm.rounds, min(self.algorithm.rounds // CHUNKS, int(CHUNK_UPDATES / max(updates, 1))), done)

    def _advance(self, chunk: int, so_far: SoFar, keeper: Keeper | None, interruption: Interruption | None) -> None:
        """Train all rounds that are left, and save the last one before anything is made of it.

        While the devices compute a chunk, the host works on the metrics of the one before.
        """
        start, first, before = time.perf_counter(), so_far.done, so_far.seconds["train"]
        waiting: Any = None

        def settle() -> None:
            nonlocal waiting
            if waiting is None:
                return
            measured, waiting = self._to_host(waiting, 0), None
            so_far.rounds.append(measured)
            elapsed, spent = time.perf_counter() - start, so_far.seconds["train"]
            so_far.seconds["train"] = before + elapsed
            for number in range(chunk):
                so_far.done += 1
                seconds = spent + (so_far.seconds["train"] - spent) * (number + 1) / chunk
                one = jax.tree.map(lambda leaf, number=number: leaf[:, number], measured)
                entry = metrics.entry(self.config, so_far.done, one, seconds)
                if keeper is not None:
                    keeper.note(entry)
                self.show.round(self._note(entry, (so_far.done - first) / elapsed))

        for begin in range(first, self.algorithm.rounds, chunk):
            self.state, measured = self._compiled[_place("advance", chunk)].call(self.state, self.hyper)
            settle()
            waiting = measured
            last = begin + chunk >= self.algorithm.rounds
            stop = interruption is not None and interruption.requested and not last
            if keeper is not None and (stop or last or keeper.due()):
                settle()
                keeper.save(so_far.done, self._arrays(so_far), self._about(so_far))
            if stop:
                settle()
                raise Interrupted(so_far.done)
        settle()

    def _note(self, entry: Entry, rounds_per_second: float) -> str:
        """What a person wants to see of a round."""
        steps = rounds_per_second * self.config.round_steps * self.agents
        parts = [f"IQM {entry.values['curve_return']:.0f}", f"{steps:,.0f} steps/s"]
        if self.config.imagined_per_step:
            parts.append(f"{steps * self.config.imagined_per_step:,.0f} imagined/s")
        if entry.frozen:
            parts.append(f"{entry.frozen} of {self.agents} seeds frozen")
        return ", ".join(parts)

    def _arrays(self, so_far: SoFar) -> dict[str, np.ndarray]:
        """Everything that the run needs to go on, by path; a copy, for the state's own memory is given away."""
        told = {"collected": so_far.collected, "fit": so_far.fit, "metrics": so_far.metrics() if so_far.rounds else ()}
        policies = dict(zip(("last", "chosen"), self.algorithm.policies(self.state), strict=True))
        kept = {"state": self._to_host(self.state, self.algorithm.axes), "policies": self._to_host(policies, 0), **told}
        leaves, _ = jax.tree_util.tree_flatten_with_path(kept)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}

    def _about(self, so_far: SoFar) -> dict[str, Any]:
        return {"seconds": so_far.seconds, "keys": "threefry2x32", "device": execution.device()}

    def _lower(self, name: str, chunk: int = 0) -> execution.Lowered:
        """One of the algorithm's functions for all agents, traced, unless that has been done; ``chunk`` rounds of ``advance``."""
        place = _place(name, chunk)
        if place not in self._lowered:
            self.show.phase("compiling")
            algorithm, axes = self.algorithm, self.algorithm.axes

            def advance(state: Any, hyper: Any) -> Any:
                return jax.lax.scan(lambda state, _: algorithm.advance(state, hyper), state, None, length=chunk)

            functions: dict[str, Any] = {
                "init": (algorithm.init, 0, (axes, 0)),
                "fit": (algorithm.fit, axes, (axes, 0)),
                "advance": (advance, axes, (axes, 0)),
                "finish": (algorithm.finish, axes, 0),
                "diagnose": (algorithm.diagnose, axes, 0),
            }
            function, in_axes, out_axes = functions[name]
            first = self.keys if name == "init" else self.layout.placed(self._out("init")[0], axes)
            spread = execution.spread(function, (in_axes, self.hyper_axes), out_axes, self.layout)
            made = execution.lower(spread, first, self.hyper, donate=(0,) if name in ("fit", "advance") else ())
            self.compiling += made.seconds
            self._lowered[place] = made
        return self._lowered[place]

    def _out(self, name: str, chunk: int = 0) -> Any:
        """Shapes and dtypes of what a function returns."""
        compiled = self._compiled.get(_place(name, chunk))
        return self._lower(name, chunk).out if compiled is None else compiled.out

    def _compile(self, names: Sequence[str], chunk: int = 0) -> list[execution.Compiled]:
        """Functions as of :meth:`_lower`, compiled, those at the same time that have not been yet."""
        missing = [name for name in names if _place(name, chunk) not in self._compiled]
        if missing:
            traced = [self._lower(name, chunk) for name in missing]
            self.show.phase("compiling")
            start = time.perf_counter()
            made = execution.compile_all(traced, self.layout)
            self.compiling += time.perf_counter() - start
            self._compiled.update((_place(name, chunk), each) for name, each in zip(missing, made, strict=True))
        found = [self._compiled[_place(name, chunk)] for name in names]
        temporary = max(each.temporary_bytes for each in found) * self.layout.mesh.size // len(self.number)
        self.temporary_bytes = max(self.temporary_bytes, temporary)
        return found

    def _timed(self, phase: str, so_far: SoFar, name: str | None, call: Callable[..., Any], first: Any) -> Any:
        self.show.phase(phase)
        start = time.perf_counter()
        result = jax.block_until_ready(call(first, self.hyper))
        if name is not None:
            so_far.seconds[name] += time.perf_counter() - start
        return result

    def _check_memory(self) -> None:
        self.state_bytes = execution.bytes_per_seed(self.algorithm.axes, self._out("init")[0], len(self.number))
        execution.check_memory(self.state_bytes, self.agents)

    def _check_host_memory(self, chunk: int) -> None:
        """Refuse more agents than the host can hold the results of: collected returns, metrics and networks of all."""
        (_, collected), (_, log), outcome = self._out("init"), self._out("fit"), self._out("finish")
        measured = self._out("advance", chunk)[1]
        once, each_chunk = (execution.bytes_per_seed(0, tree, len(self.number)) for tree in ((collected, log, outcome), measured))
        held, available = once + each_chunk * self.algorithm.rounds // chunk, execution.host_memory()
        agents = len(self.configs) * self.seeds
        if agents * held > available:
            raise ConfigError(
                f"seeds: {agents} do not fit into memory: the results of each take {held / 1e6:,.2f} MB, and the host has "
                f"{available / 1e9:,.1f} GB; it must be at most {available // held}. Train them in several runs, each with "
                "another --seed"
            )

    def _to_host(self, tree: Any, axes: Any) -> Any:
        """A copy on the host of what the agents have, and of what all share; keys as their data."""

        def copy(leaf: Any, own: bool) -> np.ndarray:
            plain = jax.random.key_data(leaf) if execution.is_key(leaf) else leaf
            return np.array(np.asarray(plain)[: self.agents] if own else plain)

        leaves, structure = jax.tree.flatten(tree)
        owned = execution.is_own(axes, tree)
        return jax.tree.unflatten(structure, [copy(leaf, own) for leaf, own in zip(leaves, owned, strict=True)])

    def _to_devices(self, tree: Any, template: Any) -> Any:
        """The inverse of :meth:`_to_host` for the state, ``template`` saying which leaves are keys."""

        def place(leaf: np.ndarray, like: Any, own: bool) -> Any:
            placed = self.layout.place(leaf[self.number]) if own else self.layout.share(leaf)
            return jax.random.wrap_key_data(placed, impl="threefry2x32") if execution.is_key(like) else placed

        leaves, structure = jax.tree.flatten(tree)
        likes, owned = jax.tree.leaves(template), execution.is_own(self.algorithm.axes, template)
        return jax.tree.unflatten(structure, [place(*each) for each in zip(leaves, likes, owned, strict=True)])

    def _refill(self, template: Any, found: Checkpoint, name: str, axes: Any) -> Any:
        """A tree like ``template`` of the arrays of a checkpoint below ``name``.

        Raises:
          ConfigError: one is not there, or not as this version needs it.

        """
        leaves, structure = jax.tree_util.tree_flatten_with_path(template)
        filled = []
        for (path, like), own in zip(leaves, execution.is_own(axes, template), strict=True):
            place = "/".join(part for part in (name, jax.tree_util.keystr(path, simple=True, separator="/")) if part)
            array = found.arrays.get(place)
            key = execution.is_key(like)
            shape = (self.agents, *like.shape[1:]) if own else like.shape
            if name == "metrics":
                shape = (self.agents, found.round, *like.shape[2:])
            if array is None or (array.shape[:-1] != shape if key else (array.shape, array.dtype) != (shape, like.dtype)):
                there = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
                wanted = f"{like.dtype}{list(shape)}"
                raise ConfigError(f"checkpoint of round {found.round}: {place} must be {wanted}, there is {there}")
            filled.append(array)
        return jax.tree.unflatten(structure, filled)


def _place(name: str, chunk: int) -> str:
    return f"{name} {chunk}" if name == "advance" else name


def _stacked(configs: Sequence[RunConfig], which: np.ndarray) -> tuple[Any, Any]:
    """One config for all agents, agent i having the numbers of ``configs[which[i]]``, and its axes.

    Where all configs agree the number is shared, with None for its axis.
    """

    def stack(*numbers: float) -> Any:
        if len(set(numbers)) == 1:
            return numbers[0]
        dtype = jnp.int32 if all(isinstance(number, int) for number in numbers) else jnp.zeros(()).dtype
        return jnp.asarray(np.array(numbers)[which], dtype)

    axes = jax.tree.map(lambda *numbers: None if len(set(numbers)) == 1 else 0, *configs)
    return jax.tree.map(stack, *configs), axes
