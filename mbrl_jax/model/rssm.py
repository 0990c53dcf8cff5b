"""The recurrent state-space model: a latent world for tasks whose observations do not tell the state (RSSM, Hafner et al. 2019,
arXiv:1811.04551; 2023, arXiv:2301.04104).

A belief is a deterministic state h and a stochastic one z. A step by action a goes

    h' = GRU(h, z, a)          z' ~ prior(h')                   imagined
                               z' ~ posterior(h', encoder(o'))  filtered, from the observation o' that the step led to

and heads decode from (h', z') the observation, the reward of the step, and whether the episode has terminated with it. Where an
episode begins, h is 0 and z is the posterior's.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws
from mbrl_jax.config import WorldConfig, settings, static, traced
from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.model import latents
from mbrl_jax.model.convolution import ConvolutionalDecoder, ConvolutionalEncoder, Patches, patches_of
from mbrl_jax.model.latents import Latents, symexp, symlog
from mbrl_jax.model.protocol import Imagined
from mbrl_jax.networks import GRU, MLP, Params


@settings
class RSSMConfig(WorldConfig):
    """The recurrent state-space model and how it is fitted (kind: rssm)."""

    deterministic: int = static(64, minimum=1)
    """Numbers of the deterministic state h."""
    latent: Literal["categorical", "gaussian"] = static("categorical")
    """Whether the stochastic state z is of categorical variables or of Gaussian numbers."""
    variables: int = static(8, minimum=1)
    """Categorical variables, or Gaussian numbers."""
    classes: int = static(8, minimum=2)
    """Classes of a categorical variable."""
    uniform: float = traced(0.01, minimum=0, maximum=1)
    """Share of the uniform distribution in every categorical one."""
    hidden: tuple[int, ...] = static((64,), minimum=1)
    """Widths of the hidden layers of the encoder, the prior, the posterior, the decoder and the heads."""
    encoder: Literal["mlp", "convolutional"] = static("mlp")
    """What encodes and decodes observations; convolutions need images."""
    channels: tuple[int, ...] = static((8, 16, 32), minimum=1)
    """Channels of each convolution (encoder: convolutional), the first first; the decoder has them the other way round."""
    patch: int = static(2, minimum=2)
    """Pixels of the side of every convolution's kernel, and of its stride."""
    activation: Literal["silu", "tanh", "gelu", "relu"] = static("silu")
    """Nonlinearity between layers."""
    symlog: bool = static(True)
    """Whether observations and rewards enter, and are predicted, as their symmetric logarithm."""
    decoder_deviation: float = traced(1.0, above=0)
    """Standard deviation of the decoder's Gaussian, on the task's scale. The smaller it is, the more a reconstruction weighs."""
    reward_weight: float = traced(1.0, minimum=0)
    """Weight of the reward's squared error in the loss."""
    continue_weight: float = traced(1.0, minimum=0)
    """Weight of the termination's cross-entropy."""
    dynamics_weight: float = traced(1.0, minimum=0)
    """Weight of the divergence that teaches the prior what the posterior knows."""
    representation_weight: float = traced(0.1, minimum=0)
    """Weight of the divergence that makes the posterior easier to predict."""
    free_nats: float = traced(1.0, minimum=0)
    """Nats of each divergence that cost nothing."""
    learning_rate: float = traced(1e-3, above=0)
    """Adam's step size."""
    gradient_clip: float | None = static(100.0, above=0)
    """Largest Euclidean norm of the gradient; none leaves it as it is."""
    batch_size: int = static(16, minimum=1)
    """Sequences of a minibatch, B."""
    sequence: int = static(16, minimum=2)
    """Successive real transitions of a sequence, T."""
    fit_batches: int = static(200, minimum=10)
    """Minibatches of the first fit."""
    refit_batches: int = static(100, minimum=1)
    """Minibatches of a refit; an algorithm that learns the model step by step makes none."""


class Belief(NamedTuple):
    """Where rollouts ``...`` stand."""

    deterministic: Array  # [..., H] h
    stochastic: Array  # [..., Z] z


class RSSMParams(NamedTuple):
    """Parameters."""

    encoder: Params
    recurrence: Params
    prior: Params
    posterior: Params
    decoder: Params
    reward: Params
    termination: Params


class StepDraws(NamedTuple):
    """The random numbers of one step of rollouts ``...``."""

    latent: Array  # [..., V]
    terminated: Array  # [...] uniform


class RSSM(NamedTuple):
    """The model's settings and the task's sizes, with the functions of a latent world."""

    config: RSSMConfig
    spec: EnvironmentSpec

    @property
    def latents(self) -> Latents:
        """The family of the stochastic state."""
        if self.config.latent == "gaussian":
            return latents.gaussian(self.config.variables)
        return latents.categorical(self.config.variables, self.config.classes, self.config.uniform)

    @property
    def feature_size(self) -> int:
        """F, numbers of h and z."""
        return self.config.deterministic + self.latents.size

    def network(self, outputs: int) -> MLP:
        """One of the dense networks, with as many outputs."""
        return MLP(self.config.hidden, outputs, self.config.activation, layer_norm=True)

    @property
    def encoder(self) -> MLP | ConvolutionalEncoder:
        """Maps observations [..., D] to codes [..., C]."""
        config = self.config
        if config.encoder == "convolutional":
            return ConvolutionalEncoder(self._patches(), config.channels, config.hidden[-1], config.activation)
        return self.network(config.hidden[-1])

    @property
    def decoder(self) -> MLP | ConvolutionalDecoder:
        """Maps features [..., F] to observations [..., D]."""
        if self.config.encoder == "convolutional":
            return ConvolutionalDecoder(self._patches(), self.config.channels, self.config.activation)
        return self.network(self.spec.observation_size)

    def _patches(self) -> Patches:
        return patches_of(self.spec, self.config.channels, self.config.patch)

    def check(self) -> None:
        """Refuse an encoder that does not fit the task.

        Raises:
          ConfigError: convolutions are asked for where observations are no images, or more of them than an image has room for.

        """
        _ = self.encoder

    def init(self, key: Array) -> RSSMParams:
        """Fresh parameters."""
        keys = jax.random.split(key, 7)
        size, state, spec = self.config.deterministic, self.feature_size, self.spec
        actions = spec.action_size if spec.continuous else spec.action_count
        code = self.config.hidden[-1]

        def fresh(place: int, inputs: int, outputs: int) -> Params:
            return self.network(outputs).init(keys[place], jnp.zeros((1, inputs)))

        return RSSMParams(
            encoder=self.encoder.init(keys[0], jnp.zeros((1, spec.observation_size))),
            recurrence=GRU(size).init(keys[1], jnp.zeros((1, size)), jnp.zeros((1, self.latents.size + actions))),
            prior=fresh(2, size, self.latents.parameters),
            posterior=fresh(3, size + code, self.latents.parameters),
            decoder=self.decoder.init(keys[4], jnp.zeros((1, state))),
            reward=fresh(5, state, 1),
            termination=fresh(6, state, 1),
        )

    # ----------------------------------------------------------------------------------------------------------- a step

    def draw(self, key: Array, shape: tuple[int, ...]) -> StepDraws:
        """The random numbers of steps ``shape``."""
        key_latent, key_end = jax.random.split(key)
        return StepDraws(self.latents.draw(key_latent, shape), draws.uniform(key_end, shape))

    def blank(self, shape: tuple[int, ...]) -> Belief:
        """Beliefs ``shape`` of zeros, before anything was seen."""
        return Belief(jnp.zeros((*shape, self.config.deterministic)), jnp.zeros((*shape, self.latents.size)))

    def features(self, belief: Belief) -> Array:
        """[..., F] what policies and critics see."""
        return jnp.concatenate([belief.deterministic, belief.stochastic], axis=-1)

    def recur(self, params: RSSMParams, belief: Belief, action: Array) -> Array:
        """[..., H] the next deterministic state, after actions [...] or, of discrete ones, weights [..., A]."""
        spec, lead = self.spec, belief.deterministic.shape[:-1]
        if not spec.continuous and action.ndim == len(lead):
            action = jax.nn.one_hot(action, spec.action_count, dtype=belief.deterministic.dtype)
        inputs = jnp.concatenate([belief.stochastic, action], axis=-1)
        flat = (each.reshape(-1, each.shape[-1]) for each in (belief.deterministic, inputs))
        return jnp.asarray(GRU(self.config.deterministic).apply(params.recurrence, *flat)).reshape(*lead, -1)

    def prior(self, params: RSSMParams, deterministic: Array) -> Array:
        """[..., P] parameters of the latents, before the observation."""
        return jnp.asarray(self.network(self.latents.parameters).apply(params.prior, deterministic))

    def posterior(self, params: RSSMParams, deterministic: Array, code: Array) -> Array:
        """[..., P] parameters of the latents, by the encoded observation [..., C] too."""
        inputs = jnp.concatenate([deterministic, code], axis=-1)
        return jnp.asarray(self.network(self.latents.parameters).apply(params.posterior, inputs))

    def encode(self, params: RSSMParams, observation: Array) -> Array:
        """[..., C] codes of observations [..., D]."""
        return jnp.asarray(self.encoder.apply(params.encoder, self.seen(observation)))

    def seen(self, observation: Array) -> Array:
        """Observations [..., D] as the encoder sees them and the decoder predicts them."""
        scale = jnp.asarray(self.spec.observation_scale, observation.dtype)
        scaled = observation / scale.reshape((1,) * (observation.ndim - 1) + (-1,))
        return symlog(scaled) if self.config.symlog else scaled

    def decode(self, params: RSSMParams, features: Array) -> Array:
        """[..., D] predicted observations, as :meth:`seen` has them."""
        return jnp.asarray(self.decoder.apply(params.decoder, features))

    def observation(self, params: RSSMParams, features: Array) -> Array:
        """[..., D] predicted observations in the task's own units."""
        decoded = self.decode(params, features)
        scaled = symexp(decoded) if self.config.symlog else decoded
        return scaled * jnp.asarray(self.spec.observation_scale, decoded.dtype).reshape((1,) * (decoded.ndim - 1) + (-1,))

    def reward(self, params: RSSMParams, features: Array) -> Array:
        """[...] the predicted reward of the step that led here, as its symmetric logarithm where the settings say so."""
        return jnp.asarray(self.network(1).apply(params.reward, features))[..., 0]

    def termination(self, params: RSSMParams, features: Array) -> Array:
        """[...] logits of whether the episode terminated with the step that led here."""
        return jnp.asarray(self.network(1).apply(params.termination, features))[..., 0]

    def begin(self, params: RSSMParams, code: Array, drawn: Array | None) -> Belief:
        """Beliefs [...] at the first observations of episodes, by their codes [..., C]; the most likely ones without draws."""
        blank = self.blank(code.shape[:-1]).deterministic
        parameters = self.posterior(params, blank, code)
        return Belief(blank, self.latents.mode(parameters) if drawn is None else self.latents.sample(parameters, drawn))

    def filter(self, params: RSSMParams, belief: Belief, action: Array, code: Array, drawn: Array | None) -> tuple[Belief, Array]:
        """One filter step of rollouts [...]: the belief after it, and the parameters [..., P] of its latents.

        Args:
          params: the parameters.
          belief: where they stood.
          action: [...] that was taken there.
          code: [..., C] of the observation that it led to.
          drawn: [..., V] random numbers; none takes the most likely latents.

        """
        deterministic = self.recur(params, belief, action)
        posterior = self.posterior(params, deterministic, code)
        latent = self.latents.mode(posterior) if drawn is None else self.latents.sample(posterior, drawn)
        return Belief(deterministic, latent), posterior

    def observe(
        self,
        params: RSSMParams,
        belief: Belief | None,
        action: Array | None,
        observation: Array,
        first: Array | None,
        drawn: Array | None,
    ) -> Belief:
        """The belief [...] after an observation [..., D]; where ``first`` [...] holds it is an episode's, and nothing is left of
        the belief and the action before. Without a belief all are first.
        """
        code = self.encode(params, observation)
        begun = self.begin(params, code, drawn)
        if belief is None or action is None or first is None:
            return begun
        after = self.filter(params, belief, action, code, drawn)[0]
        return jax.tree.map(partial(jnp.where, first[..., None]), begun, after)

    def surprise(self, params: RSSMParams, belief: Belief, observation: Array, first: Array) -> Array:
        """[...] nats, the divergence of beliefs [...] by the last observations [..., D] from what was expected before them; where
        ``first`` [...] holds nothing was, and it is 0.
        """
        posterior = self.posterior(params, belief.deterministic, self.encode(params, observation))
        divergence = self.latents.divergence(posterior, self.prior(params, belief.deterministic))
        return jnp.where(first, 0.0, divergence)

    def step(self, params: RSSMParams, belief: Belief, action: Array, drawn: StepDraws | None) -> Imagined:
        """One imagined step of rollouts [...], leaves [...]; without draws the most likely one."""
        deterministic = self.recur(params, belief, action)
        prior = self.prior(params, deterministic)
        latent = self.latents.mode(prior) if drawn is None else self.latents.sample(prior, drawn.latent)
        after = Belief(deterministic, latent)
        features = self.features(after)
        reward, logit = self.reward(params, features), self.termination(params, features)
        return Imagined(
            belief=after,
            reward=symexp(reward) if self.config.symlog else reward,
            terminated=(logit > 0) if drawn is None else drawn.terminated < jax.nn.sigmoid(logit),
            member=jnp.zeros(reward.shape, jnp.int32),
            everyone=None,
        )
