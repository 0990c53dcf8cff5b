"""Forward passes, weights in both frameworks, derivatives and optimiser steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mbrl_jax import networks
from mbrl_jax.reference import weights
from mbrl_jax.reference.model import losses as reference_losses

from .agreement import Agreement, tensor
from .twins import LearnerTwins, ModelTwins, random_params


@pytest.mark.parametrize("task", ["CartPole-v1", "Acrobot-v1", "MountainCar-v0"])
@pytest.mark.parametrize("hidden", [(32, 32), (16,)])
def test_action_values_are_the_references(rng: np.random.Generator, agree: Agreement, task: str, hidden: tuple[int, ...]) -> None:
    twins = LearnerTwins(rng, task, hidden=hidden)
    observation = rng.normal(size=(64, twins.task.observation_size))
    values = jax.jit(twins.learner.values)(twins.state.online, jnp.asarray(observation))
    agree("action values", values, twins.reference.online(tensor(observation)), 1e-12)


def test_an_input_scale_of_ones_own_divides_the_observations(rng: np.random.Generator, agree: Agreement) -> None:
    twins = LearnerTwins(rng, input_scale=(1.0, 2.0, 3.0, 0.1))
    observation = rng.normal(size=(64, 4))
    values = jax.jit(twins.learner.values)(twins.state.online, jnp.asarray(observation))
    agree("action values", values, twins.reference.online(tensor(observation)), 1e-12)


def test_weights_survive_the_way_to_torch_and_back(rng: np.random.Generator, agree: Agreement) -> None:
    learner, model = LearnerTwins(rng), ModelTwins(rng, prediction="gaussian", reward="learned", termination="learned")
    there = weights.q_to_torch(learner.state.online)
    agree("weights there and back", learner.state.online, weights.q_to_flax(there), 0, "themselves")
    there = weights.ensemble_to_torch(model.params, *model.bounds)
    back = weights.ensemble_to_flax(there)
    agree("weights there and back", (model.params, *model.bounds), back, 0, "themselves")
    with jax.enable_x64(False):
        single = jax.tree.map(lambda x: np.asarray(x, np.float32), learner.state.online)
        again = weights.q_to_flax(weights.q_to_torch(single))
        assert {leaf.dtype for leaf in jax.tree.leaves(again)} == {np.dtype(np.float32)}
        agree("weights there and back", single, again, 0, "themselves")


@pytest.mark.parametrize("activation", ["silu", "tanh", "gelu"])
@pytest.mark.parametrize("hidden", [(16,), (16, 16), (8, 8, 8)])
def test_the_laplacian_is_the_trace_of_the_hessian(
    rng: np.random.Generator, agree: Agreement, activation: str, hidden: tuple[int, ...]
) -> None:
    twins = ModelTwins(rng, members=1, hidden=hidden, activation=activation, prediction="deterministic")
    inputs = rng.normal(size=(7, twins.ensemble.input_size))
    member = jax.tree.map(lambda leaf: leaf[0], twins.params)
    directions = rng.normal(size=(3, twins.ensemble.input_size))

    def trace(directions: np.ndarray) -> jax.Array:
        return jax.jit(lambda p, x, v: networks.laplacian(p, x, v, activation))(
            member, jnp.asarray(inputs), jnp.asarray(directions)
        )

    def member_means(row: torch.Tensor) -> torch.Tensor:
        return twins.reference.means(row[None, None])[0, 0]

    hessians = torch.stack([torch.func.jacrev(torch.func.jacrev(member_means))(row) for row in tensor(inputs)])
    quadratic = torch.einsum("ji,bdik,jk->bd", tensor(directions), hessians, tensor(directions))
    agree("second derivatives of the ensemble", trace(directions), quadratic.detach(), 1e-9, "torch autograd's Hessian")
    identity = np.eye(twins.task.observation_size, twins.ensemble.input_size)
    exact = torch.einsum("bdii->bd", hessians[:, :, : twins.task.observation_size, : twins.task.observation_size])
    agree("Laplacian of the ensemble", trace(identity), exact.detach(), 1e-9, "torch autograd's Hessian")
    theirs = reference_losses.second_derivatives(twins.reference, tensor(inputs)[None], torch.eye(4, dtype=torch.float64))
    agree("Laplacian of the ensemble", trace(identity), theirs.sum(0)[0].detach(), 1e-9)


def test_a_thousand_steps_of_adam_end_where_torchs_do(rng: np.random.Generator, agree: Agreement) -> None:
    start = random_params(rng, {"a": jax.ShapeDtypeStruct((6, 5), float), "b": jax.ShapeDtypeStruct((5,), float)})
    # from large gradients down to ones as small as Adam's eps, where it shows whether that is inside the root
    scale = 10.0 ** rng.uniform(-9, 1, 1_000)
    gradients = jax.tree.map(
        lambda leaf: jnp.asarray(scale.reshape(-1, *[1] * leaf.ndim) * rng.normal(size=(1_000, *leaf.shape))), start
    )

    def step(carry: Any, gradient: Any) -> tuple[Any, None]:
        return networks.adam_step(*carry, gradient, 1e-3), None

    (ours, _), _ = jax.jit(lambda: jax.lax.scan(step, (start, networks.ADAM.init(start)), gradients))()
    theirs = {name: tensor(leaf).requires_grad_() for name, leaf in start.items()}
    optimiser = torch.optim.Adam(theirs.values(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    for i in range(1_000):
        for name, leaf in theirs.items():
            leaf.grad = tensor(gradients[name][i])
        optimiser.step()
    agree("1,000 steps of Adam from given gradients", ours, theirs, 1e-8, "torch.optim.Adam")
    tiny = jax.tree.map(lambda leaf: 1e-8 * jnp.ones_like(leaf), start)
    moved = jax.tree.map(lambda a, b: a - b, networks.adam_step(start, networks.ADAM.init(start), tiny, 1.0)[0], start)
    agree(
        "Adam's eps, added to the root", moved, jax.tree.map(lambda leaf: np.full(leaf.shape, -0.5), start), 1e-6, "Kingma & Ba"
    )
