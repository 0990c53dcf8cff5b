"""Networks as the kernels hold them: one vector, layer by layer the kernel [inputs, outputs] row by row and then the bias."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.networks import Params


def flat(params: Params) -> Array:
    """[..., P] from a tree whose leaves may have leading axes ``...``, the same for all."""
    layers = params["params"]
    lead = layers["Dense_0"]["bias"].shape[:-1]
    leaves = [layers[f"Dense_{number}"][name] for number in range(len(layers)) for name in ("kernel", "bias")]
    return jnp.concatenate([jnp.asarray(leaf).reshape(*lead, -1) for leaf in leaves], axis=-1)


def tree(vector: Array, sizes: Sequence[int]) -> Params:
    """The tree of a vector [..., P]; ``sizes`` are the inputs, the hidden widths and the outputs."""
    lead, layers, start = vector.shape[:-1], dict[str, Any](), 0
    wanted = sum((inputs + 1) * outputs for inputs, outputs in pairwise(sizes))
    if wanted != vector.shape[-1]:
        raise ValueError(f"parameters: {vector.shape[-1]} do not fit; a network of sizes {tuple(sizes)} has {wanted}")
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        layer = {}
        for name, shape in (("kernel", (inputs, outputs)), ("bias", (outputs,))):
            count = inputs * outputs if name == "kernel" else outputs
            layer[name] = jax.lax.slice_in_dim(vector, start, start + count, axis=-1).reshape(*lead, *shape)
            start += count
        layers[f"Dense_{number}"] = layer
    return {"params": layers}
