"""The distributions of latent states against ``torch.distributions``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import distributions as td

from mbrl_jax.model import latents

ROWS, VARIABLES, CLASSES, UNIFORM = 40, 3, 4, 0.01
rng = np.random.default_rng(1)
P, Q, WEIGHT = (rng.normal(0, 2, (ROWS, VARIABLES * CLASSES)).astype(np.float32) for _ in range(3))
MEANS, OTHER = (rng.normal(0, 2, (ROWS, 2 * VARIABLES)).astype(np.float32) for _ in range(2))
DRAWN = rng.random((ROWS, VARIABLES), np.float32)
NORMAL = rng.normal(size=(ROWS, VARIABLES)).astype(np.float32)
ONE_HOT, NUMBERS = latents.categorical(VARIABLES, CLASSES, UNIFORM), latents.gaussian(VARIABLES)


def probabilities(parameters):
    table = torch.softmax(parameters.reshape(ROWS, VARIABLES, CLASSES), -1)
    return (1 - UNIFORM) * table + UNIFORM / CLASSES


def normals(parameters):
    mean, free = parameters.chunk(2, -1)
    return td.Normal(mean, torch.nn.functional.softplus(free) + latents.SMALLEST_DEVIATION)


def categoricals(parameters):
    return td.Categorical(probs=probabilities(parameters))


def gradients(function, *arrays):
    """The value of a function of torch tensors, summed, and its gradient with respect to each."""
    given = [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in arrays]
    value = function(*given)
    value.sum().backward()
    return [value.detach().numpy(), *(each.grad.numpy() for each in given)]


@pytest.fixture(scope="module")
def computed():
    """Everything that the library computes, in one program: divergences, entropies and samples with their gradients."""

    def both(family, p, q):
        return [family.divergence(p, q), *jax.grad(lambda p, q: jnp.sum(family.divergence(p, q)), argnums=(0, 1))(p, q)]

    def sampled(family, p, drawn, weight):
        return [family.sample(p, drawn), jax.grad(lambda p: jnp.sum(weight * family.sample(p, drawn)))(p)]

    def everything(p, q, mean, other, drawn, normal, weight):
        return {
            "categorical": both(ONE_HOT, p, q),
            "gaussian": both(NUMBERS, mean, other),
            "categorical entropy": ONE_HOT.entropy(p),
            "gaussian entropy": NUMBERS.entropy(mean),
            "one-hot": sampled(ONE_HOT, p, drawn, weight),
            "numbers": sampled(NUMBERS, mean, normal, weight[:, :VARIABLES]),
            "modes": (ONE_HOT.mode(p), NUMBERS.mode(mean)),
        }

    return jax.tree.map(np.asarray, jax.jit(everything)(P, Q, MEANS, OTHER, DRAWN, NORMAL, WEIGHT))


@pytest.mark.parametrize(("name", "make", "p", "q"), [("categorical", categoricals, P, Q), ("gaussian", normals, MEANS, OTHER)])
def test_divergences_and_their_gradients_are_those_of_torch(computed, name, make, p, q):
    expected = gradients(lambda p, q: td.kl_divergence(make(p), make(q)).sum(-1), p, q)
    for found, right in zip(computed[name], expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=2e-4, atol=2e-5)


def test_entropies_are_those_of_torch(computed):
    for name, make, p in (("categorical", categoricals, P), ("gaussian", normals, MEANS)):
        expected = make(torch.tensor(p, dtype=torch.float64)).entropy().sum(-1)
        np.testing.assert_allclose(computed[f"{name} entropy"], expected, rtol=1e-4)


def test_a_one_hot_sample_has_the_gradient_of_the_probabilities(computed):
    sample, found = computed["one-hot"]
    table = sample.reshape(ROWS, VARIABLES, CLASSES)
    np.testing.assert_allclose(np.sort(table, -1)[..., -1], 1, atol=1e-6)
    np.testing.assert_allclose(table.sum(-1), 1, atol=1e-6)
    torch.manual_seed(0)

    def straight_through(p):
        given = td.OneHotCategoricalStraightThrough(probs=probabilities(p))
        return (torch.tensor(WEIGHT, dtype=torch.float64).reshape(ROWS, VARIABLES, CLASSES) * given.rsample()).sum()

    np.testing.assert_allclose(found, gradients(straight_through, P)[1], rtol=1e-3, atol=1e-5)


def test_a_one_hot_sample_is_the_inverse_of_the_distribution_function(computed):
    chosen = computed["one-hot"][0].reshape(ROWS, VARIABLES, CLASSES).argmax(-1)
    below = np.concatenate([np.zeros((ROWS, VARIABLES, 1)), probabilities(torch.tensor(P)).numpy().cumsum(-1)], -1)
    low, high = (np.take_along_axis(below, chosen[..., None] + i, -1)[..., 0] for i in (0, 1))
    assert ((low <= DRAWN + 1e-6) & (high > DRAWN - 1e-6)).all()
    assert len(np.unique(chosen)) == CLASSES


def test_a_sample_of_numbers_is_reparameterised(computed):
    def drawn(p):
        given = normals(p)
        return (torch.tensor(WEIGHT[:, :VARIABLES]) * (given.loc + given.scale * torch.tensor(NORMAL))).sum()

    np.testing.assert_allclose(computed["numbers"][1], gradients(drawn, MEANS)[1], rtol=1e-3, atol=1e-5)
    scale = normals(torch.tensor(MEANS)).scale.numpy()
    np.testing.assert_allclose(computed["numbers"][0], MEANS[:, :VARIABLES] + scale * NORMAL, rtol=1e-5, atol=1e-6)


def test_modes_are_the_most_likely(computed):
    hot, mean = computed["modes"]
    np.testing.assert_array_equal(hot.reshape(ROWS, VARIABLES, CLASSES).argmax(-1), P.reshape(ROWS, VARIABLES, -1).argmax(-1))
    np.testing.assert_array_equal(mean, MEANS[:, :VARIABLES])


def test_no_class_is_impossible_where_the_uniform_distribution_is_mixed_in():
    certain = jnp.asarray([[100.0, 0.0, 0.0, 0.0]])
    one = latents.categorical(1, 4, 0.01)
    np.testing.assert_allclose(
        one.divergence(jnp.zeros((1, 4)), certain), -np.log(4) - 0.75 * np.log(0.0025) - 0.25 * np.log(0.9925), rtol=1e-5
    )


def test_the_symmetric_logarithm_and_its_inverse():
    x = np.array([-1e4, -3.0, -1e-4, 0.0, 0.5, 1e6], np.float32)
    np.testing.assert_allclose(latents.symlog(jnp.asarray(x)), np.sign(x) * np.log(np.abs(x.astype(np.float64)) + 1), rtol=1e-6)
    np.testing.assert_allclose(latents.symexp(latents.symlog(jnp.asarray(x))), x, rtol=1e-4)
