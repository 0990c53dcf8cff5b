"""What every test shares: JAX made strict before anything uses it, a small configuration, and real CartPole rows."""

import ctypes
import gc
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# Tests compile much and run little: what compiles fastest is chosen, here and in the processes that tests start.
# XLA makes its passes again until none changes anything: without those that move loops' contents it is done sooner.
LEFT_OUT = "simplify-while-loops,while-loop-invariant-code-motion,while-loop-constant-sinking,simplify-conditional,reshape-mover"
flags = [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_parallel_codegen_split_count=1", f"--xla_disable_hlo_passes={LEFT_OUT}"]
if jax.__version_info__ < (0, 11):  # later ones know but one way to emit fusions, and end at a flag that they do not know
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(flags)
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_traceback_in_locations_limit", 0)
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
if jax.config.jax_compilation_cache_dir is None:  # one worker finds another's programs, and a second run compiles nothing
    jax.config.update("jax_compilation_cache_dir", str(Path(tempfile.gettempdir(), f"mbrl_jax_tests_{os.getuid()}")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

from mbrl_jax import environments as env  # noqa: E402
from mbrl_jax.algorithms import training  # noqa: E402
from mbrl_jax.config import (  # noqa: E402
    DynaQConfig,
    EnvironmentConfig,
    EvaluationConfig,
    ImaginationConfig,
    ModelConfig,
    QLearningConfig,
    SelectionConfig,
)
from mbrl_jax.environments import Environment, Transition  # noqa: E402
from mbrl_jax.model.ensemble import LOG_VARIANCE_BOUNDS, Bounds, Ensemble, init_params  # noqa: E402
from mbrl_jax.replay import Rows  # noqa: E402

# A file is one worker's. These take from half a minute to two, and those that take longest are begun first.
LONG_FILES = (
    "parity/test_faults.py",
    "algorithms/test_imagined_pg.py",
    "algorithms/test_dyna_q.py",
    "test_docs.py",
    "test_guests.py",
    "algorithms/test_mpc.py",
    "command_line/test_command_line.py",
    "runs/test_batches.py",
    "parity/test_algorithms.py",
    "runs/test_kills.py",
    "runs/test_launch.py",
    "imagination/test_controllers.py",
    "runs/test_folder.py",
    "test_notebooks.py",
    "test_examples.py",
    "report/test_report.py",
    "report/test_horizon_figures.py",
    "tuning/test_search.py",
    "runs/test_keeping.py",
    "command_line/test_sweep_command.py",
    "agents/test_sac.py",
    "algorithms/test_dmo.py",
    "algorithms/test_dreamer.py",
    "model/test_valuing.py",
    "imagination/test_mismatch.py",
    "algorithms/test_probes.py",
)
MEMORY = Path("/proc/self/statm")  # Linux
ENOUGH = 1.2 * 2**30  # bytes; what is imported takes half of it
MORE = 0.25 * 2**30  # bytes that a worker grows by until it is worth tracing anew what is dropped


def resident() -> int:
    """Bytes that this process holds in memory."""
    return int(MEMORY.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def pytest_configure(config: pytest.Config) -> None:
    """Let JAX compile afresh in silence what it cannot read back, as while another worker writes it."""
    config.addinivalue_line("filterwarnings", "ignore:Error (reading|writing) persistent compilation cache entry")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that no worker is left with it while the others have nothing to do."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave to garbage collection what tests make: to trace makes many objects, and few that are garbage."""
    gc.freeze()
    gc.set_threshold(200_000, 50, 50)


LIMIT = pytest.StashKey[float]()  # bytes that this worker may hold until it drops what can be made again


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Drop what JAX has traced and compiled where a worker has grown by it: no worker may grow to gigabytes.

    Some of what has grown is not JAX's, and stays. It must not let every test drop what the next one needs.
    """
    other_file = nextitem is None or nextitem.path != item.path
    if resident() > item.config.stash.get(LIMIT, ENOUGH) if MEMORY.exists() else other_file:
        jax.clear_caches()
        gc.collect()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc keeps for itself what was freed, unless told
            trim(0)
        if MEMORY.exists():
            item.config.stash[LIMIT] = max(ENOUGH, resident() + MORE)


@pytest.fixture(scope="session")
def tiny() -> DynaQConfig:
    """Every part of Dyna-Q on CartPole at a size that compiles and runs in seconds."""
    return DynaQConfig(
        random_transitions=100,
        steps=20,
        round_steps=10,
        metric_steps=5,
        environment=EnvironmentConfig(time_limit=30),
        model=ModelConfig(members=2, hidden=(8, 8), batch_size=16, epochs=2, refit_batches=2),
        imagination=ImaginationConfig(lanes=4, steps=2, capacity=80),
        agent=QLearningConfig(hidden=(8, 8), batch_size=16),
        selection=SelectionConfig(episodes=4, steps=20),
        evaluation=EvaluationConfig(episodes=3, curve_episodes=2),
    )


@pytest.fixture(scope="session")
def cartpole() -> Environment:
    """CartPole-v1 with its own time limit."""
    return env.make_environment(EnvironmentConfig())


@pytest.fixture(scope="session")
def random_transitions(cartpole: Environment) -> Transition:
    """[2000] transitions of the uniform random policy on CartPole."""
    draws = env.draw_collection(cartpole, jax.random.key(11), 2_000)
    return jax.jit(lambda draws: env.collect(cartpole, draws))(draws)[1]


@pytest.fixture(scope="session")
def real_rows(random_transitions: Transition) -> Rows:
    """[2000] the same as rows."""
    return training.real_rows(random_transitions)


@pytest.fixture(scope="session")
def make_ensemble(cartpole: Environment) -> Callable[..., Ensemble]:
    """``(**model settings) -> Ensemble`` on CartPole, small unless the settings say otherwise."""

    def make(**settings: Any) -> Ensemble:
        small = {"members": 2, "hidden": (8, 8), "batch_size": 16, "epochs": 2, "refit_batches": 2}
        return Ensemble(ModelConfig(**{**small, **settings}), cartpole.spec, cartpole.reward, cartpole.terminated)

    return make


@pytest.fixture(scope="session")
def make_params() -> Callable[..., Any]:
    """``(ensemble, seed=0) -> (params, bounds)`` of unlike members, biases included, at no cost of compiling an initialiser."""

    def make(ensemble: Ensemble, seed: int = 0) -> Any:
        generator = np.random.default_rng(seed)
        params, bounds = jax.eval_shape(lambda key: init_params(ensemble, key), jax.random.key(0))

        def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:  # a kernel [E, inputs, outputs] or a bias [E, outputs]
            scale = leaf.shape[1] ** -0.5 if len(leaf.shape) == 3 else 0.3
            return jnp.asarray(generator.normal(0, scale, leaf.shape).astype(np.float32))

        params = jax.tree.map(draw, params)
        low, high = LOG_VARIANCE_BOUNDS
        return params, Bounds(*(jnp.asarray(np.full(bounds[0].shape, x, np.float32)) for x in (low, high)))

    return make
