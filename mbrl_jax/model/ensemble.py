"""The dynamics ensemble: E networks as one batched network, from normalised state and action to normalised state change.

A member's outputs are, in order, the mean of the normalised state change and of the normalised reward (if learned), the
termination logit (if learned), and for Gaussian members the log-variances of state change and reward.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import ModelConfig
from mbrl_jax.environments import EnvironmentSpec
from mbrl_jax.model.protocol import Prediction
from mbrl_jax.networks import MLP, Params

LOG_VARIANCE_BOUNDS = (-10.0, 0.5)
SMALLEST_STD = 1e-6  # an axis that varies less is left unscaled, a target that varies less counts as constant
SILENT_LOG_VARIANCE = -60.0  # of a target that does not vary: e^-60 is lost in any sum, and still a float32 to divide by


class Normaliser(NamedTuple):
    """Means and standard deviations (ddof 0) of the real data that the model is fitted on.

    The std of an observation axis counts as 1 if it is below 1e-6. The std of a target is 0 if the target does not vary, that is
    by less than 1e-6 of its mean, or of 1 if its mean is smaller.
    """

    state_mean: Array  # [D], or 0 (input_scale: task)
    state_std: Array  # [D], or the task's own scale
    target_mean: Array  # [D'] of the state change, then of the reward where it is learned
    target_std: Array  # [D'], 0 where a target does not vary

    @property
    def target_scale(self) -> Array:
        """[D'] what to divide a target by: its std, or 1 where it does not vary."""
        return jnp.where(self.target_std == 0, 1.0, self.target_std)


class Bounds(NamedTuple):
    """Soft bounds of the log-variance."""

    minimum: Array  # [E, D']
    maximum: Array  # [E, D']


class Members(NamedTuple):
    """What a prediction needs: M members, all of the ensemble or its elites."""

    params: Params  # leaves [M, ...]
    bounds: Bounds  # leaves [M, D']
    normaliser: Normaliser


class Decoded(NamedTuple):
    """What a prediction says in real units."""

    next_observation: Array  # [..., D]
    reward: Array  # [...]
    terminated: Array  # [...] bool


class Ensemble(NamedTuple):
    """The shape of the ensemble and what it needs to know of the task.

    Attributes:
      config: the model's settings.
      spec: the task's sizes.
      reward: the task's known reward function, used unless the reward is learned; none where there is no such function.
      terminated: the task's known termination function, used unless termination is learned; none where there is none.

    """

    config: ModelConfig
    spec: EnvironmentSpec
    reward: Callable[[Array, Array, Array], Array] | None
    terminated: Callable[[Array, Array, Array], Array] | None

    @property
    def learns_reward(self) -> bool:
        """Whether the reward is a head of the members."""
        return self.config.reward == "learned" or (self.config.reward == "auto" and self.reward is None)

    @property
    def learns_termination(self) -> bool:
        """Whether termination is a head of the members."""
        return self.config.termination == "learned" or (self.config.termination == "auto" and self.terminated is None)

    @property
    def targets(self) -> int:
        """D', the regression targets: every axis of the state change, and the reward if it is learned."""
        return self.spec.observation_size + self.learns_reward

    @property
    def network(self) -> MLP:
        """One member."""
        outputs = self.targets * (2 if self.config.prediction == "gaussian" else 1) + self.learns_termination
        return MLP(hidden=self.config.hidden, outputs=outputs, activation=self.config.activation)

    @property
    def input_size(self) -> int:
        """D and the encoded action: the numbers of a continuous one, one number where there are two actions, else one-hot."""
        if self.spec.continuous:
            return self.spec.observation_size + self.spec.action_size
        return self.spec.observation_size + (1 if self.spec.action_count == 2 else self.spec.action_count)

    @property
    def sampling_members(self) -> int:
        """M, the members that imagination uses."""
        return self.config.members if self.config.elites is None else self.config.elites


def init_params(ensemble: Ensemble, key: Array) -> tuple[Params, Bounds]:
    """Fresh parameters of every member [E, ...] and the log-variance bounds [E, D']."""
    keys = jax.random.split(key, ensemble.config.members)
    params = jax.vmap(ensemble.network.init, in_axes=(0, None))(keys, jnp.zeros((1, ensemble.input_size)))
    shape = (ensemble.config.members, ensemble.targets)
    return params, Bounds(*(jnp.full(shape, bound) for bound in LOG_VARIANCE_BOUNDS))


def init_normaliser(ensemble: Ensemble) -> Normaliser:
    """The identity, before any data are seen."""
    size, targets = ensemble.spec.observation_size, ensemble.targets
    return Normaliser(jnp.zeros(size), jnp.ones(size), jnp.zeros(targets), jnp.ones(targets))


def measure(observations: Array, targets: Array, counted: Array) -> Normaliser:
    """Statistics over the rows for which ``counted`` holds.

    Args:
      observations: [N, D].
      targets: [N, D'].
      counted: [N] bool, at least one true.

    """
    weight = counted.astype(observations.dtype)[:, None]
    total = jnp.sum(weight)

    def mean_and_std(x: Array) -> tuple[Array, Array]:
        mean = jnp.sum(weight * x, axis=0) / total
        return mean, jnp.sqrt(jnp.sum(weight * jnp.square(x - mean[None]), axis=0) / total)

    state_mean, state_std = mean_and_std(observations)
    target_mean, target_std = mean_and_std(targets)

    # A sum over many equal numbers is rounded, so that its mean is none of them. Their range tells that they are equal.
    low = jnp.min(jnp.where(counted[:, None], targets, jnp.inf), axis=0)
    high = jnp.max(jnp.where(counted[:, None], targets, -jnp.inf), axis=0)
    smallest = SMALLEST_STD * jnp.maximum(1.0, jnp.abs(target_mean))
    equal = high - low < smallest
    return Normaliser(
        state_mean,
        jnp.where(state_std < SMALLEST_STD, 1.0, state_std),
        jnp.where(equal, low + (high - low) / 2, target_mean),
        jnp.where(equal | (target_std < smallest), 0.0, target_std),
    )


def unscaled(normaliser: Normaliser) -> Normaliser:
    """The same, with targets that do not vary left out as before, and all others in their own units."""
    still = normaliser.target_std == 0
    return normaliser._replace(
        target_mean=jnp.where(still, normaliser.target_mean, 0.0),
        target_std=jnp.where(still, 0.0, jnp.ones_like(normaliser.target_std)),
    )


def silence(ensemble: Ensemble, members: Members) -> Members:
    """Members that say nothing of targets that do not vary, whatever they have learned of them.

    Of such a target each of them predicts a normalised mean of 0 and the same variance, which is next to none. Their disagreement
    about it, which would be in units of nothing, is therefore 0 by every measure. What is changed are parameters of the last
    layer, so that a prediction costs what it did; of targets that vary, every prediction stays as it is.
    """
    still = members.normaliser.target_std == 0
    termination = [jnp.zeros(1, bool)] if ensemble.learns_termination else []
    variance = [still] if ensemble.config.prediction == "gaussian" else []
    outputs = jnp.concatenate([still, *termination, *variance])
    name, layers = f"Dense_{len(ensemble.config.hidden)}", members.params["params"]
    last = jax.tree.map(lambda leaf: jnp.where(outputs.reshape((1,) * (leaf.ndim - 1) + (-1,)), 0.0, leaf), layers[name])
    bounds = Bounds(*(jnp.where(still[None], SILENT_LOG_VARIANCE, bound) for bound in members.bounds))
    return Members({**members.params, "params": {**layers, name: last}}, bounds, members.normaliser)


def encode(ensemble: Ensemble, normaliser: Normaliser, observation: Array, action: Array) -> Array:
    """Network inputs [..., D + action] from observations [..., D] and actions [...], or weights [..., A] of discrete ones."""
    last = (1,) * (observation.ndim - 1) + (-1,)
    state = (observation - normaliser.state_mean.reshape(last)) / normaliser.state_std.reshape(last)
    if ensemble.spec.continuous:
        encoded = action.astype(state.dtype)
    elif jnp.issubdtype(action.dtype, jnp.floating):
        encoded = action[..., 1:] - action[..., :1] if ensemble.spec.action_count == 2 else action
    elif ensemble.spec.action_count == 2:
        encoded = (2 * action - 1).astype(state.dtype)[..., None]
    else:
        encoded = jax.nn.one_hot(action, ensemble.spec.action_count, dtype=state.dtype)
    return jnp.concatenate([state, encoded], axis=-1)


def bound_log_variance(log_variance: Array, bounds: Bounds) -> Array:
    """Log-variances [..., D'] bent softly into their bounds [..., D'] (Chua et al. 2018, arXiv:1805.12114)."""
    log_variance = bounds.maximum - _softplus(bounds.maximum - log_variance)
    return bounds.minimum + _softplus(log_variance - bounds.minimum)


def _softplus(x: Array) -> Array:
    """``log(1 + e^x)`` without the digits that only tiny values have: with ``log1p`` a CPU takes twice as long."""
    return jnp.maximum(x, 0.0) + jnp.log(1 + jnp.exp(-jnp.abs(x)))


def split_outputs(ensemble: Ensemble, outputs: Array, bounds: Bounds) -> Prediction:
    """Raw outputs [B, outputs] as mean, bounded log-variance and termination logit, without a member axis.

    ``bounds`` are those of one member [D'], or of every row's [B, D'].
    """
    targets, learned = ensemble.targets, ensemble.learns_termination
    log_variance = None
    if ensemble.config.prediction == "gaussian":
        by_row = Bounds(*(bound.reshape(-1, targets) for bound in bounds))
        log_variance = bound_log_variance(outputs[:, targets + learned :], by_row)
    return Prediction(outputs[:, :targets], log_variance, outputs[:, targets] if learned else None)


def predict(ensemble: Ensemble, members: Members, observation: Array, action: Array) -> Prediction:
    """Every member's prediction of its own rows.

    Args:
      ensemble: the shape.
      members: M of them.
      observation: [M, B, D]; to ask all members the same, broadcast it.
      action: [M, B].

    """
    asked = observation.shape[:-1]
    inputs = encode(ensemble, members.normaliser, observation, action)
    members = jax.tree.map(jnp.asarray, members)  # numpy's, as read from a file, cannot be differentiated under vmap
    outputs: Any = jax.vmap(ensemble.network.copy(output_bias=False).apply)(members.params, inputs)  # type: ignore[arg-type]
    # From here on all members' rows are one axis, each with its member's numbers gathered, not broadcast: a CPU does not
    # vectorise elementwise loops over two axes of rows, and takes six times as long for them.
    member = jnp.arange(asked[0] * asked[1], dtype=jnp.int32) // asked[1]
    last = members.params["params"][f"Dense_{len(ensemble.config.hidden)}"]
    bias, *bounds = (leaf.at[member].get(mode="promise_in_bounds") for leaf in (last["bias"], *members.bounds))
    prediction = split_outputs(ensemble, outputs.reshape(asked[0] * asked[1], -1) + bias, Bounds(*bounds))
    return jax.tree.map(lambda leaf: leaf.reshape(*asked, *leaf.shape[1:]), prediction)


def predict_all(ensemble: Ensemble, members: Members, observation: Array, action: Array) -> Prediction:
    """Every member's prediction of the same rows.

    Args:
      ensemble: the shape.
      members: M of them.
      observation: [..., D].
      action: [...].

    Returns:
      leaves [M, ..., D'], [M, ..., D'] and [M, ...].

    """
    count, before, own = ensemble.sampling_members, observation.shape[:-1], action.shape[observation.ndim - 1 :]
    flat = (count, math.prod(before))
    prediction = predict(
        ensemble,
        members,
        jnp.broadcast_to(observation.reshape(1, -1, observation.shape[-1]), (*flat, observation.shape[-1])),
        jnp.broadcast_to(action.reshape(1, -1, *own), (*flat, *own)),
    )
    return jax.tree.map(lambda leaf: leaf.reshape(count, *before, *leaf.shape[2:]), prediction)


def mixture_mean(prediction: Prediction) -> Prediction:
    """The members' mean, as a prediction without the member axis: mean of means, mean of variances, mean of logits."""

    def over_members(x: Array | None) -> Any:
        return None if x is None else jnp.mean(x, axis=0)

    variance = None if prediction.log_variance is None else jnp.exp(prediction.log_variance)
    log_variance = None if variance is None else jnp.log(jnp.mean(variance, axis=0))
    return Prediction(over_members(prediction.mean), log_variance, over_members(prediction.termination_logit))


def decode(
    ensemble: Ensemble, normaliser: Normaliser, prediction: Prediction, observation: Array, action: Array, noise: Array | None
) -> Decoded:
    """Real units from predictions: ``s' = s + target_mean + target_std * (mean + exp(log_variance / 2) * noise)``.

    A target that does not vary in the data changes by its mean exactly, without noise. Where the task has limits that no state
    exceeds, ``s'`` is clipped to them. The noise moves the state only: a learned reward
    is its mean, and a learned termination happens where its probability is above one half. Both of these are judged, or known
    functions are evaluated, on the ``s'`` that was drawn.

    Args:
      ensemble: the shape.
      normaliser: of the data the members were fitted on.
      prediction: leaves [..., D'], [..., D'] and [...].
      observation: [..., D].
      action: [...].
      noise: [..., D] standard normal; none takes the mean, as deterministic members always do.

    """
    size = ensemble.spec.observation_size
    last = (1,) * (observation.ndim - 1) + (-1,)
    change = prediction.mean[..., :size]
    if noise is not None and prediction.log_variance is not None:
        change = change + jnp.exp(0.5 * prediction.log_variance[..., :size]) * noise
    shift, scale = normaliser.target_mean[:size].reshape(last), normaliser.target_std[:size].reshape(last)
    begin = observation + shift if ensemble.config.target == "change" else shift
    next_observation = begin + scale * change
    if ensemble.spec.observation_limits is not None:
        limits = jnp.asarray(ensemble.spec.observation_limits, next_observation.dtype).reshape(last)
        next_observation = jnp.clip(next_observation, -limits, limits)
    if ensemble.learns_reward:
        reward = normaliser.target_mean[size] + normaliser.target_std[size] * prediction.mean[..., size]
    else:
        assert ensemble.reward is not None, "make_world refuses a known reward that there is not"
        reward = ensemble.reward(observation, action, next_observation)
    if prediction.termination_logit is not None:
        terminated = prediction.termination_logit > 0
    else:
        assert ensemble.terminated is not None, "make_world refuses a known termination that there is not"
        terminated = ensemble.terminated(observation, action, next_observation)
    return Decoded(next_observation, reward, terminated)
