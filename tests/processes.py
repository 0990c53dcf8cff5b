"""Processes that tests start: what they are told, and what they have imported already."""

import multiprocessing
import os

import jax

# Processes that begin where a command has been imported, and what training imports later. Of gymnax that is what it takes long
# to import: gymnax itself starts JAX's devices, whose threads a process that is forked would be without.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["mbrl_jax.command_line", "gymnasium", "matplotlib.figure", "seaborn"])


def environment(**more: str) -> dict[str, str]:
    """The variables of a process that compiles as tests do, and finds what they have compiled."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} | cache | more


def compile_as_tests_do(cache: str) -> None:
    """The same, in a process that has imported JAX already."""
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
