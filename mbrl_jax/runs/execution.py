"""How seeds are spread over the machine.

On an accelerator seeds are one batch axis: ``vmap``. On a CPU one seed at a time keeps a core's cache warm and its matrix
products whole, so the seeds are shared out to the cores and mapped one after another. Either way the numbers of a seed are
its own, and counters that all seeds share stay unbatched.
"""

import hashlib
import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mbrl_jax.config import ConfigError, check_whole, expand

SEEDS = "seeds"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "gymnax", "numpy")  # whose versions a run's figures depend on
COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {"cpu": {"xla_cpu_prefer_vector_width": "512"}}
"""What a platform's compiler is told, as it measured best: benchmarks/NOTES.md."""


class Layout(NamedTuple):
    """Where seeds go."""

    mesh: Mesh  # one axis, of devices; each cares for an equal share of the seeds
    batch: int | None  # seeds that run together on a device, one such batch after another; none runs all together

    def padded(self, seeds: int) -> int:
        """``seeds`` rounded up to a multiple of the devices."""
        return -(-seeds // self.mesh.size) * self.mesh.size

    def place(self, keys: Any) -> Array:
        """What every seed has, [seeds, ...], distributed over the devices; seeds must be a multiple of the devices."""
        return jax.device_put(keys, NamedSharding(self.mesh, PartitionSpec(SEEDS)))

    def share(self, leaf: Any) -> Array:
        """What all seeds share, on every device."""
        return jax.device_put(leaf, NamedSharding(self.mesh, PartitionSpec()))

    def placed(self, tree: Any, axes: Any) -> Any:
        """Shapes and dtypes with the places where arrays of them will be; ``axes`` as in :func:`spread`."""
        specs = [PartitionSpec(SEEDS) if own else PartitionSpec() for own in is_own(axes, tree)]
        leaves, structure = jax.tree.flatten(tree)
        shardings = [NamedSharding(self.mesh, spec) for spec in specs]
        made = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at) for x, at in zip(leaves, shardings, strict=True)]
        return jax.tree.unflatten(structure, made)


def use_all_cores() -> None:
    """Make every CPU core a device of its own, unless JAX has been told how many there are.

    Only possible before JAX has been used.
    """
    if jax.config.jax_num_cpu_devices > 0:  # type: ignore[attr-defined]
        return
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


def check_jax() -> None:
    """Refuse an environment of JAX in which no run can be compiled.

    Raises:
      ConfigError: ``JAX_DISABLE_JIT`` is set, or as :func:`find_devices`.

    """
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        raise ConfigError(
            "JAX_DISABLE_JIT: 1 does not fit; a run is compiled ahead of time, as one program. Unset it; to go through a run "
            "step by step, call make_train(config).train(key) in Python, which obeys it"
        )
    find_devices()


def find_devices() -> list[jax.Device]:
    """The local devices.

    Raises:
      ConfigError: JAX has been told to use a platform that is not there.

    """
    try:
        return jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # it merely asserts that a platform which it knows has its plugin
        told = jax.config.jax_platforms  # type: ignore[attr-defined]
        raise ConfigError(
            f"JAX_PLATFORMS: {told!r} does not fit; JAX finds no such device here: install JAX for it (as jax[cuda12] for NVIDIA "
            "GPUs) and its driver, or unset the variable to use what there is"
        ) from error


def use_compilation_cache() -> None:
    """Keep compiled programs for the next start, in the user's cache folder, unless JAX has been told where or is told not to.

    JAX finds a program by its lowered text and checks what it reads. Programs for a CPU fit that CPU, so every kind of CPU has a
    folder of its own. ``JAX_ENABLE_COMPILATION_CACHE=false`` turns the cache off; the folder may be deleted at any time.

    Raises ConfigError: the user has no cache folder, as the home folder is not known.
    """
    told: Any = jax.config
    if told.jax_compilation_cache_dir is not None or not told.jax_enable_compilation_cache:
        return
    listed, features = Path("/proc/cpuinfo"), {platform.processor()}
    if listed.exists():
        features |= {line for line in listed.read_text().splitlines() if line.startswith(("flags", "Features", "model name"))}
    kind = hashlib.sha256("\n".join(sorted(features)).encode()).hexdigest()[:12]
    root = expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    folder = root / "mbrl_jax" / f"{platform.machine()}_{kind}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def choose_layout(seeds: int, most: int | None = None) -> Layout:
    """All local devices, or ``most`` of them, but no more than there are seeds; on a CPU one seed at a time on each.

    Raises ConfigError: there are fewer devices than ``most``.
    """
    there = len(jax.local_devices())
    if most is not None:
        check_whole(most, "devices")
    if most is not None and not 1 <= most <= there:
        raise ConfigError(f"devices: {most!r} is out of range; here it must be from 1 to {there}, or all")
    devices = jax.local_devices()[: min(seeds, most or there)]
    mesh = Mesh(np.array(devices), (SEEDS,), axis_types=(AxisType.Auto,))
    return Layout(mesh, 1 if devices[0].platform == "cpu" else None)


def spread(function: Callable[..., Any], in_axes: tuple[Any, ...], out_axes: Any, layout: Layout) -> Callable[..., Any]:
    """``function`` of one seed as a function of all seeds, to be compiled.

    Args:
      function: of one seed.
      in_axes: for each argument a prefix of its tree: 0 for what every seed has, None for what all share.
      out_axes: the same for the result; what all share must not depend on what each has.
      layout: where seeds go.

    """

    def share(*arguments: Any) -> Any:
        if layout.batch is None:
            return jax.vmap(function, in_axes=in_axes, out_axes=out_axes)(*arguments)
        leaves, tree = jax.tree.flatten(arguments)
        own_in = is_own(in_axes, arguments)
        own = [leaf for leaf, has in zip(leaves, own_in, strict=True) if has]

        def one(own: list[Array]) -> Any:
            remaining = iter(own)
            full = [next(remaining) if has else leaf for leaf, has in zip(leaves, own_in, strict=True)]
            return function(*jax.tree.unflatten(tree, full))

        stacked = jax.lax.map(one, own, batch_size=layout.batch if layout.batch > 1 else None)
        leaves_out, tree_out = jax.tree.flatten(stacked)
        own_out = is_own(out_axes, stacked)
        return jax.tree.unflatten(tree_out, [x if has else x[0] for x, has in zip(leaves_out, own_out, strict=True)])

    return jax.shard_map(share, mesh=layout.mesh, in_specs=_specs(in_axes), out_specs=_specs(out_axes), check_vma=False)


def device() -> str:
    """The devices that computed, in words."""
    devices = jax.local_devices()
    kind = devices[0].device_kind if devices[0].platform != "cpu" else f"cpu ({_processor()})"
    return f"{len(devices)} x {kind}"


def _processor() -> str:
    """The model of CPU where the system tells it, else its architecture."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


class Compiled(NamedTuple):
    """A compiled function and what compiling it took."""

    call: jax.stages.Compiled
    seconds: float  # tracing included
    temporary_bytes: int  # per device
    bytes: int  # per device: of arguments, results and what is in between, all that is there at once
    out: Any  # shapes and dtypes of what it returns


class Lowered(NamedTuple):
    """A function that has been traced and can be compiled."""

    stage: jax.stages.Lowered
    seconds: float

    @property
    def out(self) -> Any:
        """Shapes and dtypes of what it returns."""
        return self.stage.out_info

    def compile(self) -> Compiled:
        """The compiled function."""
        start = time.perf_counter()
        call = self.stage.compile(compiler_options=COMPILER_OPTIONS.get(jax.local_devices()[0].platform))
        seconds, analysis = self.seconds + time.perf_counter() - start, call.memory_analysis()
        if analysis is None:
            return Compiled(call, seconds, 0, 0, self.out)
        passed = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        temporary = analysis.temp_size_in_bytes
        return Compiled(call, seconds, temporary, temporary + passed, self.out)


def lower(function: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = ()) -> Lowered:
    """Trace for these arguments, or for others of their shapes; those numbered in ``donate`` give up their memory."""
    start = time.perf_counter()
    stage = jax.jit(function, donate_argnums=donate).lower(*arguments)
    return Lowered(stage, time.perf_counter() - start)


def compile_all(traced: Sequence[Lowered], layout: Layout) -> list[Compiled]:
    """Compile all of them: for a CPU at the same time, else one after another, as the compiler may try kernels on the device."""
    with ThreadPoolExecutor(len(traced) if layout.mesh.devices.flat[0].platform == "cpu" else 1) as pool:
        return list(pool.map(Lowered.compile, traced))


def memory(layout: Layout | None = None) -> int:
    """Bytes that all local devices together may use, or those of a layout."""
    devices = jax.local_devices() if layout is None else layout.mesh.devices.tolist()
    if devices[0].platform != "cpu":
        return sum(device.memory_stats()["bytes_limit"] for device in devices)
    return host_memory()


def host_memory() -> int:
    """Bytes that this process may use of the host's memory."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # of the container, if this is one
    allowed = limit.read_text().strip() if limit.exists() else "max"
    return physical if allowed == "max" else min(physical, int(allowed))


def bytes_per_seed(axes: Any, tree: Any, seeds: int) -> int:
    """Bytes of the leaves that every seed has, for one seed."""
    leaves = zip(jax.tree.leaves(tree), is_own(axes, tree), strict=True)
    return sum(_bytes(leaf) for leaf, has in leaves if has) // seeds


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed random keys."""
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _bytes(leaf: Any) -> int:
    data = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    return int(np.prod(data.shape)) * data.dtype.itemsize


def _is_none(x: Any) -> bool:
    return x is None


def is_own(axes: Any, tree: Any) -> list[bool]:
    """For each leaf of ``tree`` whether every seed has its own."""
    own = jax.tree.map(lambda axis: axis is not None, axes, is_leaf=_is_none)
    return jax.tree.leaves(jax.tree.broadcast(own, tree))


def _specs(axes: Any) -> Any:
    return jax.tree.map(lambda axis: PartitionSpec() if axis is None else PartitionSpec(SEEDS), axes, is_leaf=_is_none)
