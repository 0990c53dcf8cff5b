"""The ring and its rows, as they go in and come out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ensembles import stored

from mbrl_jax import environments as env
from mbrl_jax.config import EnvironmentConfig
from mbrl_jax.reference import replay as reference
from mbrl_jax.replay import Replay, make_replay

from .agreement import Agreement, tensor
from .twins import random_rows


def replay_of(task: str, capacity: int) -> Replay:
    """The functions of a task's replay."""
    return make_replay(env.make_environment(EnvironmentConfig(name=task)).spec, capacity)


@pytest.mark.parametrize(("task", "size", "actions"), [("CartPole-v1", 4, 2), ("Acrobot-v1", 6, 3), ("MountainCar-v0", 2, 3)])
def test_rows_come_out_of_a_replay_as_they_went_in(
    rng: np.random.Generator, agree: Agreement, task: str, size: int, actions: int
) -> None:
    mine, other = random_rows(rng, 50, size, actions)
    replay = replay_of(task, 50)
    expected = reference.unpack(reference.pack(other, torch.float64))
    rows, valid = jax.jit(lambda rows: replay.contents(stored(replay, rows)))(mine)
    assert np.asarray(valid).all()
    fields = {name: getattr(expected, name) for name in mine._fields}
    agree("written and read rows", rows._asdict(), fields, 0)
    agree("written and read rows", mine._asdict(), fields, 0)


def test_a_ring_that_is_written_round_holds_and_samples_the_same_rows(rng: np.random.Generator, agree: Agreement) -> None:
    capacity, block = 60, 10
    replay = replay_of("CartPole-v1", capacity)
    ours, theirs = replay.init(), reference.Replay(capacity, 4, dtype=torch.float64, device=torch.device("cpu"))
    write, sample = jax.jit(replay.write), jax.jit(replay.sample)
    for _ in range(9):
        mine, other = random_rows(rng, block)
        ours = write(ours, mine)
        theirs.write(other)
        assert int(replay.size(ours)) == theirs.size
        bits = rng.integers(2**32, size=20, dtype=np.uint32)
        drawn = sample(ours, jnp.asarray(bits))
        expected = theirs.take(tensor((bits % theirs.size).astype(np.int64)))
        agree("sampled rows of a ring", drawn._asdict(), {name: getattr(expected, name) for name in drawn._fields}, 0)
    rows, _ = replay.contents(ours)
    agree("a ring written one and a half times", rows._asdict(), {n: getattr(theirs.rows(), n) for n in rows._fields}, 0)
