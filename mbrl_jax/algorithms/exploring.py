"""Random actions while a policy acts by a filter: anywhere, or where the filter is surprised."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import RandomActionsConfig

FOLLOWS = 0.05  # share of its own size that the mark moves by for every surprise above it
FIRST_MARK = 1.0  # nats, which a run begins with


class Explored(NamedTuple):
    """How often actions were random."""

    share: Array  # [] of the real steps
    mark: Array  # [] nats, what a surprise was compared with


def explore(config: RandomActionsConfig, mark: Array, surprise: Array, uniform: Array) -> tuple[Array, Array]:
    """Whether the next action is random, [] bool, and the mark after it.

    Where it goes by surprise, the mark follows the quantile that ``share`` of the surprises exceed (stochastic approximation,
    Robbins & Monro 1951): up where one exceeds it, down where none does. So both rules make the same share of actions random.

    Args:
      config: which rule.
      mark: [] nats.
      surprise: [] nats, of the filter by the present observation; 0 at an episode's first.
      uniform: [] from [0, 1).

    """
    if config.rule == "uniform":
        return uniform < config.share, mark
    now = surprise > mark
    return now, mark * jnp.exp(FOLLOWS * (now.astype(mark.dtype) - config.share))
