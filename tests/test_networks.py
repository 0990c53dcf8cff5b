import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mbrl_jax import networks
from mbrl_jax.networks import ADAM, COLUMNS_FROM, MLP, adam_step, largest, optimiser_of

INPUTS, OUTPUTS = 5, 3
laplacian = jax.jit(networks.laplacian, static_argnums=3)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def network(activation, hidden=(7, 6)):
    """A network whose biases are not zero, and rows for it."""
    generator = np.random.default_rng(0)
    sizes = [INPUTS, *hidden, OUTPUTS]
    layers = {
        f"Dense_{i}": {
            "kernel": jnp.asarray(generator.normal(0, 1 / np.sqrt(sizes[i]), (sizes[i], sizes[i + 1]))),
            "bias": jnp.asarray(generator.normal(0, 0.5, sizes[i + 1])),
        }
        for i in range(len(sizes) - 1)
    }
    rows = jnp.asarray(generator.normal(size=(4, INPUTS)))
    return MLP(hidden=hidden, outputs=OUTPUTS, activation=activation), {"params": layers}, rows


@functools.cache
def hessians(activation, hidden=(7, 6)):
    """[B, outputs, inputs, inputs] by nested differentiation."""
    mlp, params, rows = network(activation, hidden)
    return np.asarray(jax.jit(jax.vmap(jax.hessian(lambda x: mlp.apply(params, x))))(rows))


@pytest.mark.parametrize("activation", ["silu", "tanh", "gelu"])
@pytest.mark.parametrize("axes", [3, INPUTS])
def test_the_laplacian_is_the_trace_of_the_hessian_over_the_inputs_asked_for(activation, axes):
    _, params, rows = network(activation)
    expected = np.trace(hessians(activation)[..., :axes, :axes], axis1=-2, axis2=-1)
    found = laplacian(params, rows, jnp.eye(axes, INPUTS), activation)
    assert np.abs(expected).min() > 1e-4
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("hidden", [(6,), (6, 5, 4)])
def test_the_laplacian_holds_for_any_number_of_layers(hidden):
    _, params, rows = network("silu", hidden)
    expected = np.trace(hessians("silu", hidden), axis1=-2, axis2=-1)
    np.testing.assert_allclose(laplacian(params, rows, jnp.eye(INPUTS), "silu"), expected, rtol=0, atol=1e-10)


def test_a_direction_gives_the_second_derivative_along_it():
    _, params, rows = network("tanh")
    direction = np.random.default_rng(0).normal(size=INPUTS)
    expected = np.einsum("boij,i,j->bo", hessians("tanh"), direction, direction)
    np.testing.assert_allclose(laplacian(params, rows, jnp.asarray(direction)[None], "tanh"), expected, rtol=0, atol=1e-10)


def test_hutchinsons_estimate_over_all_sign_vectors_is_the_exact_laplacian():
    _, params, rows = network("silu")
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=INPUTS)))
    exact = laplacian(params, rows, jnp.eye(INPUTS), "silu")
    estimate = laplacian(params, rows, jnp.asarray(signs / np.sqrt(len(signs))), "silu")
    np.testing.assert_allclose(estimate, exact, rtol=0, atol=1e-10)


def test_hutchinsons_estimate_from_random_signs_is_close_to_the_exact_laplacian():
    _, params, rows = network("silu")
    signs = np.random.default_rng(4).choice([-1.0, 1.0], (4_000, INPUTS)) / np.sqrt(4_000)
    exact = np.asarray(laplacian(params, rows, jnp.eye(INPUTS), "silu"))
    estimate = np.asarray(laplacian(params, rows, signs, "silu"))
    assert 0 < np.abs(estimate - exact).max() < 0.1 * np.abs(exact).max()


def test_an_mlp_takes_any_leading_axes_and_computes_in_the_type_of_its_input():
    mlp, params, rows = network("relu")
    stacked = np.broadcast_to(rows, (2, 3, *rows.shape))
    outputs = jax.jit(mlp.apply)(params, stacked)
    assert outputs.shape == (2, 3, 4, OUTPUTS)
    assert outputs.dtype == jnp.float64
    np.testing.assert_allclose(np.asarray(outputs)[1, 2], jax.jit(mlp.apply)(params, rows), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("activation", "formula"),
    [
        ("silu", lambda x: x / (1 + np.exp(-x))),
        ("tanh", np.tanh),
        ("gelu", lambda x: x * scipy.stats.norm.cdf(x)),
        ("relu", lambda x: np.maximum(x, 0)),
    ],
)
def test_an_mlp_is_dense_layers_with_the_activation_between_them(activation, formula):
    mlp, params, rows = network(activation)
    layers = [params["params"][f"Dense_{i}"] for i in range(3)]
    x = np.asarray(rows)
    for i, layer in enumerate(layers):
        x = x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        x = formula(x) if i < 2 else x
    np.testing.assert_allclose(jax.jit(mlp.apply)(params, rows), x, rtol=0, atol=1e-12)


def test_a_product_has_the_gradients_of_a_matrix_product():
    x, kernel, back = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(9, 5), (5, 3), (9, 3)]))
    found = jax.vjp(networks.product, x, kernel)[1](back)
    expected = jax.vjp(lambda x, kernel: x @ kernel, x, kernel)[1](back)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_a_product_of_columns_has_the_gradients_of_a_matrix_product():
    kernel, x, back = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(5, 3), (5, 9), (3, 9)]))
    value, gradients = jax.vjp(networks.product_of_columns, kernel, x)
    expected, its_gradients = jax.vjp(lambda kernel, x: kernel.T @ x, kernel, x)
    compared = ((value, gradients(back)), (expected, its_gradients(back)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *compared)


@pytest.mark.parametrize("rows", [networks.COLUMNS_FROM - 1, networks.COLUMNS_FROM])
@pytest.mark.parametrize("members", [None, 3])
def test_an_mlp_and_its_gradients_are_the_same_whether_its_rows_are_columns_within(rows, members, monkeypatch):
    mlp = networks.MLP((7, 6), 2, "silu")
    x = jax.random.normal(jax.random.key(1), (*(() if members is None else (members,)), rows, INPUTS))
    init, apply = mlp.init, mlp.apply
    keys = jax.random.key(0)
    if members is not None:
        keys = jax.random.split(keys, members)
        init, apply = jax.vmap(init), jax.vmap(apply)
    params = init(keys, x)

    def run():
        def loss(params, x):  # a new function each time, so that none is taken from a cache
            outputs = apply(params, x)
            return jnp.sum(jnp.sin(outputs)), outputs

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x)

    found = run()
    for other in (1, 10**9):  # always, never
        monkeypatch.setattr(networks, "COLUMNS_FROM", other)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, run())


def test_a_batch_goes_through_an_mlp_as_columns_from_the_given_number_of_rows_on():
    mlp = networks.MLP((7,), 2, "relu")
    params = jax.eval_shape(mlp.init, jax.random.key(0), jnp.zeros((1, INPUTS)))

    def shapes(rows):
        traced = jax.make_jaxpr(mlp.apply)(params, jnp.zeros((rows, INPUTS)))
        return {str(variable.aval.shape) for equation in traced.eqns for variable in equation.outvars}

    below, at = networks.COLUMNS_FROM - 1, networks.COLUMNS_FROM
    assert str((below, 7)) in shapes(below)
    assert str((7, at)) in shapes(at)
    assert str((at, 7)) not in shapes(at)


@pytest.mark.parametrize(
    "function",
    [lambda kernel, x: networks.product(x, kernel), lambda kernel, x: networks.product_of_columns(kernel, x.T)],
    ids=["rows", "columns"],
)
def test_only_on_a_cpu_is_transposed_before_it_is_multiplied(function):
    gradient = jax.jit(jax.grad(lambda kernel, x: jnp.sum(function(kernel, x))))
    traced = gradient.trace(jnp.ones((5, 3)), jnp.ones((9, 5)))
    texts = {platform: traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "cuda")}
    assert "optimization_barrier" in texts["cpu"]
    assert "optimization_barrier" not in texts["cuda"]


def plain_mlp(params, x):
    """The network by plain products."""
    layers = params["params"]
    for i in range(len(layers)):
        x = x @ layers[f"Dense_{i}"]["kernel"] + layers[f"Dense_{i}"]["bias"][None]
        x = jax.nn.silu(x) if i + 1 < len(layers) else x
    return x


DERIVATIVES = {
    "reverse": jax.grad,
    "forward": jax.jacfwd,
    "forward over reverse": lambda f: jax.jacfwd(jax.grad(f, argnums=1), argnums=1),
    "reverse over reverse": lambda f: jax.grad(lambda p, x: jnp.sum(jnp.square(jax.grad(f, argnums=1)(p, x)))),
    "jvp": lambda f: lambda p, x: jax.jvp(f, (p, x), (p, x)),
    "mapped over networks and rows": lambda f: (
        lambda p, x: jax.vmap(jax.grad(f))(jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), p), jnp.stack([x, -x]))
    ),
    "mapped over rows alone": lambda f: lambda p, x: jax.vmap(jax.grad(f), in_axes=(None, 0))(p, jnp.stack([x, -x])),
    "mapped over networks alone": lambda f: (
        lambda p, x: jax.vmap(jax.grad(f), in_axes=(0, None))(jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), p), x)
    ),
}


@pytest.mark.parametrize("rows", [3, COLUMNS_FROM], ids=["rows", "columns"])
@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_a_network_has_the_derivatives_of_its_plain_products_in_every_mode(rows, derivative):
    network = MLP((6, 5), 2, "silu")
    x = jax.random.normal(jax.random.key(1), (rows, 3))
    params = network.init(jax.random.key(0), x)
    found, expected = (
        jax.jit(DERIVATIVES[derivative](lambda p, x, f=f: jnp.sum(jnp.square(f(p, x)))))(params, x)
        for f in (network.apply, plain_mlp)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, expected)


@pytest.mark.parametrize("batched", [False, True])
def test_a_clipped_gradient_has_at_most_its_norm_and_each_network_its_own(batched):
    optimiser = optimiser_of(0.5, batched=batched)
    gradients = {"a": jnp.array([[3.0, 4.0], [0.03, 0.04]]), "b": jnp.zeros((2, 1))}
    _, state = adam_step(gradients, optimiser.init(gradients), gradients, 0.0, optimiser)
    first_moment = np.asarray(state[1].mu["a"]) / 0.1  # of Adam, after one step
    small = [0.03, 0.04] if batched else np.array([0.03, 0.04]) * 0.5 / np.hypot(5.0, 0.05)
    np.testing.assert_allclose(first_moment, [[0.3, 0.4], small], rtol=1e-3)


def test_without_a_clip_the_optimiser_is_adam_itself():
    assert optimiser_of(None) is ADAM
    assert optimiser_of(None, batched=True) is ADAM


@pytest.mark.parametrize("count", [1, 2, 8, 9], ids=["one", "two", "the most that are compared", "more"])
def test_the_largest_is_that_of_argmax_with_ties_infinities_and_nan(count):
    odd = np.array([0.0, -0.0, 1.0, -np.inf, np.inf, np.nan], np.float32)
    values = np.random.default_rng(0).choice(odd, size=(300, 2, count))
    found = largest(jnp.asarray(values))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, np.argmax(values, axis=-1))
