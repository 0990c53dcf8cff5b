"""Ensembles as world models, with the replay of real rows that their rollouts begin in."""

import jax
import numpy as np

from mbrl_jax.model import worlds
from mbrl_jax.model.ensemble import Ensemble
from mbrl_jax.model.protocol import WorldModel
from mbrl_jax.replay import Replay, ReplayState, Rows, make_replay

STRIDE = 10  # every tenth row is held out, unless a test says otherwise


def world_of(
    ensemble: Ensemble, capacity: int, *, by: str = "ts1", first_rows: int | None = None, stride: int = STRIDE
) -> tuple[WorldModel, Replay]:
    """The world model that an ensemble is, and the functions of the replay that it learns from.

    Args:
      ensemble: the shape.
      capacity: of the replay.
      by: who moves a rollout.
      first_rows: transitions of the first fit, unless it is to all that the replay holds.
      stride: every ``stride``-th row is held out.

    """
    real = make_replay(ensemble.spec, capacity)
    return worlds.world_of(ensemble, real, first_rows=capacity if first_rows is None else first_rows, stride=stride, by=by), real


def stored(replay: Replay, rows: Rows) -> ReplayState:
    """A replay that holds these rows and no others."""
    return jax.jit(lambda rows: replay.write(replay.init(), rows))(rows)  # one program for its many operations


def rows_of(replay: Replay, state: ReplayState) -> Rows:
    """The rows that hold data, by place."""
    rows, valid = replay.contents(state)
    return jax.tree.map(lambda leaf: leaf[np.flatnonzero(valid)], rows)
