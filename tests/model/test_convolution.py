"""Convolutions as matrix products: against torch's, by finite differences, and where an image does not divide into patches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mbrl_jax.config import ConfigError
from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.model.convolution import ConvolutionalDecoder, ConvolutionalEncoder, Patches
from mbrl_jax.model.rssm import RSSM, RSSMConfig

IMAGE, CHANNELS = (10, 7, 2), (3, 5)  # 10 x 7 pixels do not divide into patches of 4
PATCHES = Patches(IMAGE, 2, 2)
PADDED = (12, 8)


def images(count=3, seed=0):
    return np.random.default_rng(seed).normal(size=(count, np.prod(IMAGE))).astype(np.float32)


def fresh(module, size, seed=1):
    """Parameters with every number drawn, biases too."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, size)))
    return jax.device_put(jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes))


def tensor(array):
    return torch.from_numpy(np.array(array))


def padded(flat):
    """[B, C, 12, 8] as torch has images."""
    image = np.zeros((len(flat), *PADDED, IMAGE[2]), np.float32)
    image[:, : IMAGE[0], : IMAGE[1]] = flat.reshape(-1, *IMAGE)
    return tensor(image.transpose(0, 3, 1, 2))


def normalised(x, layer):
    """Layer norm over the channels of every place, then silu, of torch's [B, C, h, w]."""
    moved = torch.nn.functional.layer_norm(
        x.permute(0, 2, 3, 1), x.shape[1:2], tensor(layer["scale"]), tensor(layer["bias"]), 1e-6
    )
    return torch.nn.functional.silu(moved.permute(0, 3, 1, 2))


def of_patch(kernel, inputs):
    """[O, C, 2, 2] torch's kernel of one whose rows are the numbers of a patch in the order (row, column, channel)."""
    return tensor(np.asarray(kernel).reshape(2, 2, inputs, -1).transpose(3, 2, 0, 1))


def test_a_pixel_is_in_the_place_that_its_patches_say():
    flat = np.arange(2 * np.prod(IMAGE), dtype=np.float32).reshape(2, -1)
    nested = np.asarray(PATCHES.nested(jnp.asarray(flat))).reshape(2, 3, 2, 2, 2, 2, 2, 2)
    whole = np.zeros((2, *PADDED, 2), np.float32)
    whole[:, :10, :7] = flat.reshape(2, *IMAGE)
    for row, column in itertools.product(range(12), range(8)):
        place = (row // 4, column // 4, row // 2 % 2, column // 2 % 2, row % 2, column % 2)
        np.testing.assert_array_equal(nested[(slice(None), *place)], whole[:, row, column])
    np.testing.assert_array_equal(PATCHES.flat(jnp.asarray(nested)), flat)


def test_the_encoder_is_torchs_convolution_with_a_stride_of_its_kernel():
    encoder = ConvolutionalEncoder(PATCHES, CHANNELS, 4, "silu")
    params = fresh(encoder, np.prod(IMAGE))
    found = np.asarray(jax.jit(encoder.apply)(params, images()))
    layers, x = params["params"], padded(images())
    for level, inputs in enumerate((2, 3)):
        dense = layers[f"Dense_{level}"]
        x = torch.nn.functional.conv2d(x, of_patch(dense["kernel"], inputs), tensor(dense["bias"]), stride=2)
        x = normalised(x, layers[f"LayerNorm_{level}"])
    assert x.shape == (3, 5, 3, 2)
    last = layers["Dense_2"]
    expected = x.permute(0, 2, 3, 1).reshape(3, -1) @ tensor(last["kernel"]) + tensor(last["bias"])
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-4, atol=2e-4)


def test_the_decoder_is_torchs_transposed_convolution():
    decoder = ConvolutionalDecoder(PATCHES, CHANNELS, "silu")
    params, features = fresh(decoder, 6), np.random.default_rng(2).normal(size=(3, 6)).astype(np.float32)
    found = np.asarray(jax.jit(decoder.apply)(params, features))
    layers, first = params["params"], params["params"]["Dense_0"]
    x = tensor(features) @ tensor(first["kernel"]) + tensor(first["bias"])
    x = x.reshape(3, 3, 2, 5).permute(0, 3, 1, 2)
    for level, outputs in enumerate((3, 2)):
        x = normalised(x, layers[f"LayerNorm_{level}"])
        own = layers[f"_Transposed_{level}"]
        kernel = np.asarray(own["Dense_0"]["kernel"]).reshape(-1, 2, 2, outputs).transpose(0, 3, 1, 2)
        x = torch.nn.functional.conv_transpose2d(x, tensor(kernel), tensor(own["bias"]), stride=2)
    expected = x.permute(0, 2, 3, 1)[:, : IMAGE[0], : IMAGE[1]].reshape(3, -1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-4, atol=2e-4)


def test_gradients_are_those_of_finite_differences():
    encoder, decoder = ConvolutionalEncoder(PATCHES, CHANNELS, 4, "silu"), ConvolutionalDecoder(PATCHES, CHANNELS, "silu")
    params = fresh(encoder, np.prod(IMAGE)), fresh(decoder, 4)

    def loss(params, scale, direction):
        one, two = jax.tree.map(lambda p, d: p + scale * d, params, direction)
        decoded = decoder.apply(two, encoder.apply(one, images()))
        return jnp.mean(jnp.square(decoded - images()[:, ::-1]))

    rng = np.random.default_rng(3)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
    slope = jax.jit(jax.grad(loss, argnums=1))(params, np.float32(0), direction)
    value = jax.jit(lambda scales: jax.vmap(lambda scale: loss(params, scale, direction))(scales))
    low, high = np.asarray(value(np.array([-3e-3, 3e-3], np.float32)), np.float64)
    assert abs(slope) > 0.1
    assert (high - low) / 6e-3 == pytest.approx(float(slope), rel=1e-2)


def rssm(shape, **settings):
    size = int(np.prod(shape))
    spec = EnvironmentSpec("a task", size, 2, 20, (1.0,) * size, observation_shape=shape if len(shape) > 1 else ())
    return RSSM(RSSMConfig(encoder="convolutional", **settings), spec)


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((4,), {}, "model.encoder: 'convolutional' does not fit; observations of 'a task' are vectors of 4 numbers"),
        ((4, 4), {}, r"observations of 'a task' are of the shape \[4, 4\], and it needs images"),
        ((8, 8, 1), {"channels": (2,) * 4}, r"model.channels: \[2, 2, 2, 2\] does not fit; after 3 convolutions .* at most 3"),
        ((32, 32, 1), {"channels": (2,) * 3, "patch": 8}, "there must be at most 2"),
    ],
)
def test_an_encoder_that_does_not_fit_the_observations_is_refused(shape, settings, message):
    with pytest.raises(ConfigError, match=message):
        rssm(shape, **settings).check()


@pytest.mark.parametrize(("shape", "levels"), [((8, 8, 1), 3), ((10, 10, 4), 4), ((32, 32, 1), 5)])
def test_an_image_is_encoded_and_decoded_to_its_own_size(shape, levels):
    model = rssm(shape, channels=(2,) * levels, hidden=(4,), deterministic=4, variables=2, classes=2)
    model.check()
    size = int(np.prod(shape))

    def both(key):
        params = model.init(key)
        code = model.encode(params, jnp.zeros((5, 3, size)))
        return code, model.decode(params, jnp.zeros((5, 3, model.feature_size)))

    code, decoded = jax.eval_shape(both, jax.random.key(0))
    assert code.shape == (5, 3, 4)
    assert decoded.shape == (5, 3, size)
