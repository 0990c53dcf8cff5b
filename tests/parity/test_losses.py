"""Every term of the ensemble's loss, and every gradient leaf by leaf."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mbrl_jax import networks
from mbrl_jax.model import losses
from mbrl_jax.model.ensemble import Bounds
from mbrl_jax.reference import weights
from mbrl_jax.reference.model import losses as reference

from .agreement import FLOAT64, Agreement, tensor
from .twins import ModelTwins

TERMS: dict[str, dict[str, Any]] = {
    "squared error": {"prediction": "deterministic"},
    "likelihood, fixed bounds": {"prediction": "gaussian"},
    "likelihood, learned bounds": {"prediction": "gaussian", "learn_bounds": True},
    "reward head": {"prediction": "gaussian", "reward": "learned"},
    "termination head": {"prediction": "deterministic", "termination": "learned", "termination_weight": 0.3},
    "both heads, likelihood": {"prediction": "gaussian", "learn_bounds": True, "reward": "learned", "termination": "learned"},
    "weight decay": {"prediction": "gaussian", "weight_decay": 0.3},
    "Laplacian, exact": {"prediction": "gaussian", "laplacian": "exact", "laplacian_weight": 0.1, "laplacian_rows": 8},
    "Laplacian, Hutchinson": {
        "prediction": "deterministic",
        "laplacian": "hutchinson",
        "laplacian_probes": 3,
        "laplacian_weight": 0.1,
        "laplacian_rows": 32,
        "activation": "tanh",
    },
    "Laplacian, chosen by size": {"prediction": "gaussian", "laplacian": "auto", "laplacian_weight": 0.1, "laplacian_rows": 16},
}


def a_batch(rng: np.random.Generator, twins: ModelTwins, rows: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(inputs [E, B, in], targets [E, B, D'], terminated [E, B])."""
    shape = (twins.config.members, rows)
    inputs = rng.normal(size=(*shape, twins.ensemble.input_size))
    return inputs, rng.normal(size=(*shape, twins.ensemble.targets)), rng.random(shape) < 0.3


def directions_of(rng: np.random.Generator, twins: ModelTwins) -> tuple[jax.Array, torch.Tensor]:
    """The Laplacian's directions as each side wants them: scaled and padded, or as bare signs."""
    ours = losses.laplacian_directions(twins.ensemble, jax.random.key(int(rng.integers(2**31))))
    size = twins.task.observation_size
    if reference.is_exact(twins.config, size):
        return ours, torch.eye(size, dtype=torch.float64)
    # the signs alone are taken over, so that the division by the root of their number is held to account
    return ours, torch.sign(tensor(ours)[:, :size])


def losses_and_gradients(twins: ModelTwins, batch: Any, directions: jax.Array) -> tuple[jax.Array, Any]:
    """(losses [E], gradients of their sum in (params, bounds)) of the JAX side."""

    def each(learned: Any, batch: Any) -> Any:
        def one(params: Any, bounds: Bounds, *columns: Any) -> jax.Array:
            return losses.member_loss(twins.ensemble, params, bounds, *columns, directions)

        members = jax.vmap(one)(*learned, *batch)
        return jnp.sum(members), members

    (_, members), gradients = jax.jit(jax.value_and_grad(each, has_aux=True))((twins.params, twins.bounds), batch)
    return members, gradients


@pytest.mark.parametrize("task", ["CartPole-v1", "Acrobot-v1"])
@pytest.mark.parametrize("term", TERMS)
def test_the_loss_and_each_of_its_gradients_are_the_references(
    rng: np.random.Generator, agree: Agreement, term: str, task: str
) -> None:
    twins = ModelTwins(rng, task, **TERMS[term])
    batch = a_batch(rng, twins)
    ours, theirs = directions_of(rng, twins)
    value, (params, bounds) = losses_and_gradients(twins, tuple(jnp.asarray(x) for x in batch), ours)

    inputs, targets, terminated = (tensor(x) for x in batch)
    expected = reference.member_losses(
        twins.reference, reference.Batch(inputs, targets, terminated.double()), twins.config, theirs
    )
    expected.sum().backward()
    agree(f"model loss: {term}", value, expected, FLOAT64)
    zeros = {name: torch.zeros_like(p) for name, p in twins.reference.named_parameters()}
    gradients = {name: zeros[name] if p.grad is None else p.grad for name, p in twins.reference.named_parameters()}
    expected_params, low, high = weights.ensemble_to_flax(gradients)
    agree(f"model gradients: {term}", params, expected_params, FLOAT64)
    agree(f"model gradients: {term}", tuple(bounds), (low, high), FLOAT64)


@pytest.mark.parametrize("term", ["both heads, likelihood", "weight decay", "Laplacian, exact"])
def test_a_thousand_steps_on_the_same_batches_end_at_the_same_members(
    rng: np.random.Generator, agree: Agreement, term: str
) -> None:
    twins = ModelTwins(rng, **{**TERMS[term], "hidden": (16, 16), "learning_rate": 1e-3})
    batches = [a_batch(rng, twins, 16) for _ in range(20)]
    ours, theirs = directions_of(rng, twins)

    def run(dtype: Any) -> Any:
        cast = lambda x: jnp.asarray(x, dtype) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.asarray(x)  # noqa: E731
        stacked = jax.tree.map(cast, tuple(np.stack(column) for column in zip(*batches, strict=True)))
        start, along = jax.tree.map(cast, ((twins.params, twins.bounds), ours))

        def each(learned: Any, batch: Any) -> Any:
            def one(params: Any, bounds: Bounds, *columns: Any) -> jax.Array:
                return losses.member_loss(twins.ensemble, params, bounds, *columns, along)

            return jnp.sum(jax.vmap(one)(*learned, *batch))

        def step(carry: Any, i: Any) -> tuple[Any, None]:
            learned, optimizer = carry
            gradients = jax.grad(each)(learned, jax.tree.map(lambda x: x[i], stacked))
            return networks.adam_step(learned, optimizer, gradients, twins.config.learning_rate), None

        many = jnp.arange(1_000, dtype=jnp.int32) % 20
        return jax.jit(lambda start: jax.lax.scan(step, (start, networks.ADAM.init(start)), many)[0][0])(start)

    from mbrl_jax.reference.model.fitting import make_optimiser

    optimiser = make_optimiser(twins.reference, twins.config)
    tensors = [[tensor(x) for x in batch] for batch in batches]
    for i in range(1_000):
        optimiser.zero_grad()
        inputs, targets, terminated = tensors[i % 20]
        batch = reference.Batch(inputs, targets, terminated.double())
        reference.member_losses(twins.reference, batch, twins.config, theirs).sum().backward()
        optimiser.step()
    params, low, high = weights.ensemble_to_flax(twins.reference.state_dict())
    agree("1,000 steps of model fitting", run(jnp.float64), (params, Bounds(low, high)), 1e-8)
    with jax.enable_x64(False):
        drifted = run(jnp.float32)
    agree("1,000 steps of model fitting, float32 drift", drifted, (params, Bounds(low, high)), 1e-2)
