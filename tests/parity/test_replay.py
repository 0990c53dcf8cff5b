"""Packing, the ring and its rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mbrl_jax import replay
from mbrl_jax.reference import replay as reference

from .agreement import Agreement, tensor
from .twins import random_rows


@pytest.mark.parametrize(("size", "actions"), [(4, 2), (6, 3), (2, 3)])
def test_rows_come_out_of_their_packing_as_they_went_in(
    rng: np.random.Generator, agree: Agreement, size: int, actions: int
) -> None:
    ours, theirs = random_rows(rng, 50, size, actions)
    packed = jax.jit(replay.pack)(ours)
    expected = reference.unpack(reference.pack(theirs, torch.float64))
    assert packed.shape == (50, replay.width(size))
    fields = {name: getattr(expected, name) for name in ours._fields}
    agree("packed and unpacked rows", jax.jit(replay.unpack)(packed)._asdict(), fields, 0)
    agree("packed and unpacked rows", ours._asdict(), fields, 0)


def test_a_ring_that_is_written_round_holds_and_samples_the_same_rows(rng: np.random.Generator, agree: Agreement) -> None:
    capacity, block = 60, 10
    ours, theirs = replay.create(capacity, 4), reference.Replay(capacity, 4, dtype=torch.float64, device=torch.device("cpu"))
    write, sample = jax.jit(replay.write), jax.jit(replay.sample)
    for _ in range(9):
        mine, other = random_rows(rng, block)
        ours = write(ours, replay.pack(mine))
        theirs.write(other)
        assert int(replay.size(ours)) == theirs.size
        bits = rng.integers(2**32, size=20, dtype=np.uint32)
        drawn = replay.unpack(sample(ours, jnp.asarray(bits)))
        expected = theirs.take(tensor((bits % theirs.size).astype(np.int64)))
        agree("sampled rows of a ring", drawn._asdict(), {name: getattr(expected, name) for name in drawn._fields}, 0)
    rows = replay.unpack(ours.rows)
    agree("a ring written one and a half times", rows._asdict(), {n: getattr(theirs.rows(), n) for n in rows._fields}, 0)
