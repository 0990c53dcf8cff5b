"""Encoders and decoders of images, whose convolutions are matrix products.

Kernel and stride of a layer are equal, so a convolution is one matrix product over patches that do not overlap, and a transposed
one its mirror. Mapped over seeds each stays a batched product, where a general convolution with a kernel for each seed becomes a
grouped one, which a CPU computes slowly. The pixels are brought into the order of nested patches once, before the first layer:
from then on every layer's patches are neighbouring rows, and to cut them is a reshape.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import ConfigError
from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.networks import ACTIVATIONS, Dense


class Patches(NamedTuple):
    """How an image is cut into patches of patches, L levels deep."""

    image: tuple[int, int, int]  # H, W, C
    side: int  # P pixels of a patch's side, at every level
    levels: int  # L

    @property
    def span(self) -> int:
        """Pixels of an outermost patch's side."""
        return int(self.side**self.levels)

    @property
    def grid(self) -> tuple[int, int]:
        """Outermost patches (h, w), which cover the image; below and on its right it is filled up with zeros."""
        height, width, _ = self.image
        return -(-height // self.span), -(-width // self.span)

    @property
    def places(self) -> int:
        """Outermost patches, N = h w."""
        return self.grid[0] * self.grid[1]

    def _axes(self) -> tuple[int, ...]:
        """Axes of [B, h, P, ..., w, P, ..., C] in the order [B, h, w, P, P, ..., C], where a level's two follow each other."""
        rows, columns = range(1, self.levels + 2), range(self.levels + 2, 2 * self.levels + 3)
        return (0, *(axis for pair in zip(rows, columns, strict=True) for axis in pair), 2 * self.levels + 3)

    def nested(self, flat: Array) -> Array:
        """[B, N P^2L C] images [B, H W C] in the order of nested patches."""
        (height, width, channels), (h, w) = self.image, self.grid
        image = flat.reshape(-1, height, width, channels)
        image = jnp.pad(image, ((0, 0), (0, h * self.span - height), (0, w * self.span - width), (0, 0)))
        cut = (self.side,) * self.levels
        return image.reshape(-1, h, *cut, w, *cut, channels).transpose(self._axes()).reshape(image.shape[0], -1)

    def flat(self, nested: Array) -> Array:
        """[B, H W C] images from the order that :meth:`nested` gives."""
        (height, width, channels), (h, w) = self.image, self.grid
        cut = (self.side, self.side) * self.levels
        axes = self._axes()
        back = tuple(axes.index(axis) for axis in range(len(axes)))
        image = nested.reshape(-1, h, w, *cut, channels).transpose(back)
        image = image.reshape(-1, h * self.span, w * self.span, channels)
        return image[:, :height, :width].reshape(image.shape[0], -1)


def patches_of(spec: EnvironmentSpec, channels: tuple[int, ...], side: int) -> Patches:
    """The patches of a task's images, for a convolution for each of ``channels`` with kernels of ``side`` pixels.

    Raises:
      ConfigError: observations are no images, or there are more convolutions than an image has room for.

    """
    shape, levels = spec.observation_shape, len(channels)
    if len(shape) != 3:
        found = f"are of the shape {list(shape)}" if shape else f"are vectors of {spec.observation_size} numbers"
        raise ConfigError(
            f"model.encoder: 'convolutional' does not fit; observations of {spec.name!r} {found}, and it needs images "
            "[height, width, channels]; it must be 'mlp'"
        )
    if side ** (levels - 1) >= max(shape[:2]):
        right = next(count for count in range(1, levels + 1) if side**count >= max(shape[:2]))
        raise ConfigError(
            f"model.channels: {list(channels)!r} does not fit; after {right} convolutions of patch {side} an image of "
            f"{shape[0]} x {shape[1]} pixels of {spec.name!r} is one place, so there must be at most {right}"
        )
    return Patches((shape[0], shape[1], shape[2]), side, levels)


class ConvolutionalEncoder(nn.Module):
    """Convolutions with layer norm over each place's channels, then a dense layer; maps [..., H W C] to [..., outputs]."""

    patches: Patches
    channels: tuple[int, ...]  # of each level, the innermost first
    outputs: int
    activation: str

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """[..., outputs] codes of images [..., H W C]."""
        lead = image.shape[:-1]
        x = self.patches.nested(image.reshape(-1, image.shape[-1]))
        size, patch = self.patches.image[-1], self.patches.side**2
        for channels in self.channels:
            x = Dense(channels)(x.reshape(-1, patch * size))
            x = ACTIVATIONS[self.activation](nn.LayerNorm()(x))
            size = channels
        x = Dense(self.outputs)(x.reshape(-1, self.patches.places * size))
        return x.reshape(*lead, self.outputs)


class ConvolutionalDecoder(nn.Module):
    """The encoder's mirror: one dense layer, then transposed convolutions; maps features [..., F] to images [..., H W C]."""

    patches: Patches
    channels: tuple[int, ...]  # of each level, the innermost first, as the encoder's
    activation: str

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """[..., H W C] images from features [..., F]."""
        lead, patch = features.shape[:-1], self.patches.side**2
        x = Dense(self.patches.places * self.channels[-1])(features.reshape(-1, features.shape[-1]))
        inner = (self.patches.image[-1], *self.channels[:-1])  # channels that each level's product leads to
        for size, channels in zip(reversed(inner), reversed(self.channels), strict=True):
            x = ACTIVATIONS[self.activation](nn.LayerNorm()(x.reshape(-1, channels)))
            x = _Transposed(patch, size)(x)
        x = self.patches.flat(x.reshape(-1, self.patches.places * self.patches.span**2 * self.patches.image[-1]))
        return x.reshape(*lead, x.shape[-1])


class _Transposed(nn.Module):
    """A transposed convolution whose kernel is its stride: rows [R, C] to the pixels of their patches [R, P P C']."""

    patch: int  # P P
    channels: int  # C'

    @nn.compact
    def __call__(self, x: Array) -> Array:
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), x.dtype)  # one for all pixels of a patch
        y = Dense(self.patch * self.channels, linear=True)(x)
        return y + jnp.tile(jnp.asarray(bias), self.patch)[None]
