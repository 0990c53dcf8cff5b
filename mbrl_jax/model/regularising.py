"""Regularisation of the ensemble's Jacobians: members that agree about them, and layers of bounded gain.

A model's gradients go through ``∂f/∂(s, a)``, which a fit to next states says little about. Two settings of the ensemble restrain
it: ``jacobian``, a penalty on how far the members' Jacobians are apart, and ``spectral_bound``, the largest singular value that a
layer's kernel may have.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.model.ensemble import Ensemble
from mbrl_jax.model.jacobians import jacobian
from mbrl_jax.networks import Params

SQUARINGS = 6  # of a Gram matrix: as many steps of the power method as 2^6


def jacobian_penalty(ensemble: Ensemble, params: Params, inputs: Array) -> Array:
    """[E] mean over rows of ``|J_e - mean over members of J|^2``, the squared Frobenius norm, for each member e.

    J are the Jacobians of the normalised predicted means with respect to the network's inputs.

    Args:
      ensemble: the shape.
      params: of all members, leaves [E, ...].
      inputs: [B, inputs] encoded states and actions.

    """

    def one(params: Params) -> Array:
        def mean(x: Array) -> Array:
            outputs: Any = ensemble.network.apply(params, x)
            return outputs[:, : ensemble.targets]  # type: ignore[no-any-return]

        return jacobian(mean, inputs)

    each = jax.vmap(one)(params)  # [E, B, D', inputs]
    apart = jnp.square(each - jnp.mean(each, axis=0, keepdims=True))
    return jnp.mean(jnp.sum(apart, axis=(-2, -1)), axis=1)


def largest_singular_value(kernel: Array) -> Array:
    """[] of a matrix [m, n], from below and within one per cent for up to some hundred rows.

    The Gram matrix G of the shorter side, squared six times over, is G^64, whose eigenvectors are those of G. The mean of G's
    eigenvalues with those of G^64 as their weights is its largest one, but for others close to it.
    """
    rows = kernel if kernel.shape[0] <= kernel.shape[1] else kernel.T
    gram = jnp.matmul(rows, rows.T, precision="highest")
    tiny = jnp.finfo(kernel.dtype).tiny
    power = gram / jnp.maximum(jnp.trace(gram), tiny)
    for _ in range(SQUARINGS):
        power = jnp.matmul(power, power, precision="highest")
        power = power / jnp.maximum(jnp.trace(power), tiny)
    return jnp.sqrt(jnp.sum(power * gram))


def bounded(params: Params, bound: float) -> Params:
    """One network whose kernels have no singular value above ``bound``: the larger ones are scaled down to it, biases are free.

    This is the projection of Gouk et al. 2021 (arXiv:1804.04368). Spectral normalisation (Miyato et al. 2018, arXiv:1802.05957)
    scales the smaller ones up as well.
    """

    def layer(parameters: Params) -> Params:
        kernel = parameters["kernel"]
        return {**parameters, "kernel": kernel / jnp.maximum(largest_singular_value(kernel) / bound, 1.0)}

    return {**params, "params": {name: layer(each) for name, each in params["params"].items()}}
