"""An algorithm for many agents on this machine: its functions compiled, its state placed on the devices."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.algorithms.training import Train, keys_of
from mbrl_jax.config import ConfigError, RunConfig
from mbrl_jax.runs import execution
from mbrl_jax.runs.checkpoint import Checkpoint
from mbrl_jax.runs.display import Display

FUNCTIONS = ("init", "fit", "advance", "finish")  # of an algorithm, that every run needs


class Batch(NamedTuple):
    """Successive agents that are trained together."""

    first: int
    agents: int

    def __str__(self) -> str:
        return f"seeds {self.first} to {self.first + self.agents - 1}"


def split(agents: int, most: int) -> list[Batch]:
    """Split the agents into as few batches of at most ``most`` as possible, of one size but the last."""
    size = -(-agents // -(-agents // most))
    return [Batch(first, min(size, agents - first)) for first in range(0, agents, size)]


class Program:
    """The functions of an algorithm for a batch of agents, compiled as they are needed.

    Every config has the same seeds: agent n is seed ``n % len(seeds)`` of config ``n // len(seeds)``. State lives on the devices,
    padded to a multiple of them; on the host are the batch's agents alone. A program serves all batches of its size or less.
    """

    def __init__(
        self,
        algorithm: Train,
        configs: Sequence[RunConfig],
        seeds: range,
        base_seed: int,
        show: Display,
        devices: int | None = None,
        at_once: int | None = None,
    ):
        """For all agents at once, or for ``at_once`` of them."""
        self.algorithm, self.configs, self.seeds, self.base_seed, self.show = algorithm, list(configs), seeds, base_seed, show
        self.total = len(configs) * len(seeds)
        self.at_once = self.total if at_once is None else at_once
        self.layout = execution.choose_layout(self.at_once, devices)
        self.state_bytes = self.temporary_bytes = self.bytes = 0
        self.compiling = 0.0  # seconds, since somebody last took note of them
        self.failures: dict[int, str] = {}  # by an agent's place in its batch, how its simulator on the host failed
        self._lowered: dict[tuple[str, int], execution.Lowered] = {}
        self._compiled: dict[tuple[str, int], execution.Compiled] = {}
        self.turn_to(Batch(0, self.at_once))

    def turn_to(self, batch: Batch) -> None:
        """Select the next agents, at most as many as the program is for; the places that are left repeat them."""
        self.agents = batch.agents
        self.number = np.arange(self.layout.padded(self.at_once)) % batch.agents  # [padded], which agent is at each place
        numbers = batch.first + self.number
        seeds = jnp.asarray(self.seeds.start + numbers % len(self.seeds), jnp.int32)
        self.keys = self.layout.place(keys_of(self.base_seed, seeds))
        self.hyper, self.hyper_axes = _stacked(self.configs, numbers // len(self.seeds))
        self.state: Any = None

    def prepare(self, chunk: int) -> int:
        """Compile all functions of a run from its beginning, with ``chunk`` rounds of ``advance`` in a call.

        Returns:
          The bytes that the largest takes at once, on all devices together.

        Raises:
          ConfigError: the results of all agents do not fit into the host's memory.

        """
        self.state_bytes = execution.bytes_per_seed(self.algorithm.axes, self.out("init")[0], len(self.number))
        self._check_host_memory(chunk)
        self.bytes = max(each.bytes for each in self.compile(FUNCTIONS, chunk)) * self.layout.mesh.size
        return self.bytes

    def compile(self, names: Sequence[str], chunk: int = 0) -> list[execution.Compiled]:
        """Compile functions, those at the same time that have not been compiled yet; ``chunk`` is for ``advance`` alone."""
        places = [_place(name, chunk) for name in names]
        missing = [place for place in places if place not in self._compiled]
        if missing:
            traced = [self._lower(*place) for place in missing]
            self.show.phase("compiling")
            start = time.perf_counter()
            self._compiled.update(zip(missing, execution.compile_all(traced, self.layout), strict=True))
            self.compiling += time.perf_counter() - start
        found = [self._compiled[place] for place in places]
        temporary = max(each.temporary_bytes for each in found) * self.layout.mesh.size // len(self.number)
        self.temporary_bytes = max(self.temporary_bytes, temporary)
        return found

    def call(self, name: str, chunk: int = 0) -> Any:
        """Call a compiled function on the state, or ``init`` on the keys; keep the state that it returns."""
        (function,) = self.compile((name,), chunk)
        result = function.call(self.keys if name == "init" else self.state, self.hyper)
        if name in ("finish", "diagnose"):
            return result
        self.state, result = result
        return result

    def out(self, name: str, chunk: int = 0) -> Any:
        """Shapes and dtypes of what a function returns."""
        compiled = self._compiled.get(_place(name, chunk))
        return self._lower(name, chunk).out if compiled is None else compiled.out

    def to_host(self, tree: Any, axes: Any = 0) -> Any:
        """Copy what the agents have, and what all share, to the host; keys as their data."""

        def copy(leaf: Any, own: bool) -> np.ndarray:
            plain = jax.random.key_data(leaf) if execution.is_key(leaf) else leaf
            return np.array(np.asarray(plain)[: self.agents] if own else plain)

        leaves, structure = jax.tree.flatten(tree)
        return jax.tree.unflatten(structure, map(copy, leaves, execution.is_own(axes, tree)))

    def arrays(self) -> dict[str, Any]:
        """Copy the state and its policies to the host, for a checkpoint."""
        both = jax.vmap(self.algorithm.policies, in_axes=(self.algorithm.axes,))(self.state)
        policies = dict(zip(("last", "chosen"), both, strict=True))
        return {"state": self.to_host(self.state, self.algorithm.axes), "policies": self.to_host(policies)}

    def restore(self, found: Checkpoint) -> None:
        """Take up the state of a checkpoint. Raises ConfigError: as :meth:`refill`."""
        template, axes = self.out("init")[0], self.algorithm.axes

        def place(leaf: np.ndarray, like: Any, own: bool) -> Any:
            placed = self.layout.place(leaf[self.number]) if own else self.layout.share(leaf)
            return jax.random.wrap_key_data(placed, impl="threefry2x32") if execution.is_key(like) else placed

        leaves, structure = jax.tree.flatten(self.refill(template, found, "state", axes))
        likes, owned = jax.tree.leaves(template), execution.is_own(axes, template)
        self.state = jax.tree.unflatten(structure, map(place, leaves, likes, owned))

    def refill(self, template: Any, found: Checkpoint, name: str, axes: Any = 0) -> Any:
        """Read a tree like ``template`` from the arrays of a checkpoint below ``name``.

        Raises ConfigError: one is not there, or not as this version needs it.
        """
        leaves, structure = jax.tree_util.tree_flatten_with_path(template)
        filled = []
        for (path, like), own in zip(leaves, execution.is_own(axes, template), strict=True):
            place = "/".join(part for part in (name, jax.tree_util.keystr(path, simple=True, separator="/")) if part)
            array, key = found.arrays.get(place), execution.is_key(like)
            shape = (self.agents, *like.shape[1:]) if own else like.shape
            if name == "metrics":
                shape = (self.agents, found.round, *like.shape[2:])
            if array is None or (array.shape[:-1] != shape if key else (array.shape, array.dtype) != (shape, like.dtype)):
                there = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
                wanted = f"{like.dtype}{list(shape)}"
                raise ConfigError(f"checkpoint of round {found.round}: {place} must be {wanted}, there is {there}")
            filled.append(array)
        return jax.tree.unflatten(structure, filled)

    def _lower(self, name: str, chunk: int = 0) -> execution.Lowered:
        """Trace one of the algorithm's functions for all agents, unless that has been done."""
        place = _place(name, chunk)
        if place not in self._lowered:
            self.show.phase("compiling")
            algorithm, axes = self.algorithm, self.algorithm.axes

            def advance(state: Any, hyper: Any) -> Any:
                return jax.lax.scan(lambda state, _: algorithm.advance(state, hyper), state, None, length=chunk)

            functions: dict[str, tuple[Callable[..., Any] | None, Any, Any]] = {
                "init": (algorithm.init, 0, (axes, 0)),
                "fit": (algorithm.fit, axes, (axes, 0)),
                "advance": (advance, axes, (axes, 0)),
                "finish": (algorithm.finish, axes, 0),
                "diagnose": (algorithm.diagnose, axes, 0),
            }
            function, in_axes, out_axes = functions[name]
            assert function is not None
            first = self.keys if name == "init" else self.layout.placed(self.out("init")[0], axes)
            spread = execution.spread(function, (in_axes, self.hyper_axes), out_axes, self.layout)
            lowered = execution.lower(spread, first, self.hyper, donate=(0,) if name in ("fit", "advance") else ())
            self.compiling += lowered.seconds
            self._lowered[place] = lowered
        return self._lowered[place]

    def _check_host_memory(self, chunk: int) -> None:
        """Refuse more agents than the host can hold the results of: collected returns, metrics and networks of all."""
        once = (self.out("init")[1], self.out("fit")[1], self.out("finish"))
        held, each_chunk = (execution.bytes_per_seed(0, tree, len(self.number)) for tree in (once, self.out("advance", chunk)[1]))
        held, available = held + each_chunk * self.algorithm.rounds // chunk, execution.host_memory()
        if self.total * held > available:
            raise ConfigError(
                f"seeds: {self.total} do not fit into memory: the results of each take {held / 1e6:,.2f} MB, and the host has "
                f"{available / 1e9:,.1f} GB; it must be at most {available // held}. Train them in several runs, each with "
                "another --seed"
            )


def _place(name: str, chunk: int) -> tuple[str, int]:
    return name, chunk if name == "advance" else 0


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
