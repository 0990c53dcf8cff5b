"""How far the StableHLO file of a planner does what the planner does: step by step, and in real episodes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from mbrl_jax.serving.export.agreement import compare_returns
from mbrl_jax.serving.export.sources import EPISODES, Rows, Source, can_play, returns_of
from mbrl_jax.serving.export.stablehlo import Planner

STEPS = 1_000  # real observations that both plan in, one after another


def compare(planner: Planner, begin: bytes, step: bytes, source: Source, rows: Rows) -> dict[str, Any]:
    """Set the files of a planner beside the planner itself.

    Args:
      planner: its functions.
      begin: the file that begins an episode.
      step: the file that steps.
      source: what is exported.
      rows: real observations.

    """
    first, again = (jax.jit(export.deserialize(bytearray(content)).call) for content in (begin, step))
    with jax.default_matmul_precision("highest"):
        ours, theirs = (planner.begin(jnp.uint32(0)), first(jnp.uint32(0)))
        one = jax.jit(planner.step)
        equal, difference, count = 0, 0.0, min(STEPS, len(rows.observation))
        for place in range(count):
            seen = rows.observation[place : place + 1]
            (expected, *ours), (found, *theirs) = one(seen, *ours), again(seen, *theirs)
            difference = max(difference, float(np.max(np.abs(np.asarray(found, np.float64) - np.asarray(expected)))))
            equal += int(np.allclose(found, expected, atol=1e-5))
        told: dict[str, Any] = {
            "rows": count,
            "observations": rows.about,
            "largest_difference": {} if np.asarray(expected).dtype.kind == "i" else {"action": difference},
            "equal": {"action": equal / count},
        }
        if can_play(source.task):
            told["returns"] = compare_returns(
                returns_of(source.task, _together(planner)), returns_of(source.task, _one_by_one(first, again))
            )
    return told


def _together(planner: Planner) -> Callable[[np.ndarray], np.ndarray]:
    """The planner in all episodes side by side; episode i begins with the seed i."""
    memory = jax.jit(jax.vmap(planner.begin))(jnp.arange(EPISODES, dtype=jnp.uint32))
    step = jax.jit(jax.vmap(planner.step))

    def act(observation: np.ndarray) -> np.ndarray:
        nonlocal memory
        action, *memory = step(observation[:, None], *memory)
        return np.asarray(action)[:, 0]

    return act


def _one_by_one(begin: Any, step: Any) -> Callable[[np.ndarray], np.ndarray]:
    """The files of a planner in the same episodes."""
    memories = [begin(jnp.uint32(number)) for number in range(EPISODES)]

    def act(observation: np.ndarray) -> np.ndarray:
        found = []
        for place, memory in enumerate(memories):
            action, *memories[place] = step(observation[place : place + 1], *memory)
            found.append(np.asarray(action)[0])
        return np.stack(found)

    return act
