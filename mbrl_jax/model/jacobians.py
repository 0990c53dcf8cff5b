"""The Jacobians of a step, and how far a learned model's are from the true ones.

Model-based gradients go through ``J = ∂s'/∂(s, a)``. Two of them are compared in the task's own units, every axis over its scale
(:func:`in_task_units`), and along the directions that states can take: where two axes are the cosine and the sine of an angle, no
data tell how a step changes along their radius, and it is left out.

Three things stand for the truth: the Jacobian of known dynamics (:func:`jacobian`), central differences of a black box
(:func:`finite_differences`), or, where there is neither, the mean of an ensemble's members (:func:`spread`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.model.protocol import WorldModel, members_step

ASKS = "gradients through its steps"
Function = Callable[[Array], Array]  # rows [..., n] -> [..., m], each from its own, perhaps with further leading axes


def jacobian(function: Function, x: Array) -> Array:
    """[..., m, n] the Jacobians of a function of rows at x [..., n], by forward differentiation."""
    basis = jnp.eye(x.shape[-1], dtype=x.dtype)

    def along(direction: Array) -> Array:
        tangent = jnp.broadcast_to(direction.reshape((1,) * (x.ndim - 1) + (-1,)), x.shape)
        return jax.jvp(function, (x,), (tangent,))[1]

    return jnp.moveaxis(jax.vmap(along)(basis), 0, -1)


def finite_differences(function: Function, x: Array, step: float) -> Array:
    """[..., m, n] the Jacobians of a black box at x [..., n], by central differences of ``step`` to either side."""
    moves = step * jnp.eye(x.shape[-1], dtype=x.dtype)

    def along(move: Array) -> Array:
        move = move.reshape((1,) * (x.ndim - 1) + (-1,))
        return (function(x + move) - function(x - move)) / (2 * step)

    return jnp.moveaxis(jax.vmap(along)(moves), 0, -1)


def members_jacobians(world: WorldModel, params: Any, observation: Array, action: Array) -> Array:
    """[M, ..., D, D + A] of every member's mean step at observations [..., D] and continuous actions [..., A]."""
    size = observation.shape[-1]

    def function(x: Array) -> Array:
        return world.features(members_step(world, params, x[..., :size], x[..., size:], ASKS).belief)

    return jacobian(function, jnp.concatenate([observation, action], axis=-1))


def in_task_units(spec: EnvironmentSpec, jacobians: Array, observation: Array) -> Array:
    """Jacobians [..., D, D + A] at observations [..., D] with every axis over its scale, without what they say of radii."""
    scale = jnp.asarray(spec.observation_scale, jacobians.dtype)
    size, lead = scale.shape[0], (1,) * (jacobians.ndim - 2)
    allowed = tangent_projection(spec, observation)
    of_state = jnp.matmul(jacobians[..., :size], allowed, precision="highest")
    joined = jnp.concatenate([of_state * scale.reshape(*lead, 1, -1), jacobians[..., size:]], axis=-1)
    return joined / scale.reshape(*lead, -1, 1)


def tangent_projection(spec: EnvironmentSpec, observation: Array) -> Array:
    """[..., D, D] the projection onto what a state at observations [..., D] can do: turn an angle, not leave its circle."""
    size = observation.shape[-1]
    projection = jnp.broadcast_to(jnp.eye(size, dtype=observation.dtype), (*observation.shape, size))
    for cosine, sine in spec.angles:
        axes = jnp.zeros((2, size), observation.dtype).at[jnp.arange(2), jnp.array([cosine, sine])].set(1.0)
        radius = jnp.tensordot(observation[..., jnp.array([cosine, sine])], axes, 1)  # [..., D]
        radius = radius / jnp.maximum(jnp.linalg.norm(radius, axis=-1, keepdims=True), 1e-6)
        projection = projection - radius[..., :, None] * radius[..., None, :]
    return projection


def relative_error(found: Array, true: Array) -> Array:
    """[...] the Frobenius norm of the difference of Jacobians [..., m, n] over that of the true one."""
    return _norm(found - true) / jnp.maximum(_norm(true), jnp.finfo(true.dtype).tiny)


def cosine(found: Array, true: Array) -> Array:
    """[...] the cosine between Jacobians [..., m, n] as vectors, 0 where one of them is nothing."""
    size = _norm(found) * _norm(true)
    return jnp.sum(found * true, axis=(-2, -1)) / jnp.maximum(size, jnp.finfo(true.dtype).tiny)


def spread(jacobians: Array) -> tuple[Array, Array]:
    """How members' Jacobians [M, ..., m, n] differ: the root mean square of their :func:`relative_error` to their mean [...], and
    their mean :func:`cosine` to it [...].
    """
    mean = jnp.mean(jacobians, axis=0)
    of_all = jnp.broadcast_to(mean[None], jacobians.shape)
    error = jnp.sqrt(jnp.mean(jnp.square(relative_error(jacobians, of_all)), axis=0))
    return error, jnp.mean(cosine(jacobians, of_all), axis=0)


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1)))
