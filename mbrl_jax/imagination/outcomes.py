"""What every member of the ensemble expects to follow a minibatch, where the learner's target asks for it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.agents.q_learning import Outcomes
from mbrl_jax.config import QLearningConfig
from mbrl_jax.model import ensemble as ens
from mbrl_jax.model.ensemble import Ensemble, Members
from mbrl_jax.replay import Rows

Greedy = Callable[[Array], Array]  # observations [..., D] -> actions [...] int32


def expected_outcomes(
    config: QLearningConfig, ensemble: Ensemble, members: Members, batch: Rows, greedy: Greedy
) -> Outcomes | None:
    """What the target that ``config`` names needs to know of a minibatch [B]; nothing for a target of the rows alone.

    Args:
      config: the learner's.
      ensemble: the shape of the world model.
      members: M of them.
      batch: leaves [B, ...].
      greedy: the policy, along which ``steve`` expands the value.

    """
    if config.target in ("quantile", "mean_std"):
        return _one_step(ensemble, members, batch)
    if config.target == "steve":
        return _expansion(ensemble, members, batch, greedy, config.target_steps)
    return None


def _one_step(ensemble: Ensemble, members: Members, batch: Rows) -> Outcomes:
    """Each member's outcome of the rows' own states and actions, leaves [M, B, ...].

    Penalties that a horizon controller took from a row's reward stay taken: the row's own reward is used where rewards are known.
    """
    ask = (ensemble.sampling_members, *batch.action.shape)
    prediction = ens.predict_all(ensemble, members, batch.observation, batch.action)
    observation = jnp.broadcast_to(batch.observation[None], (*ask, batch.observation.shape[-1]))
    action = jnp.broadcast_to(batch.action[None], ask)
    imagined = ens.decode(ensemble, members.normaliser, prediction, observation, action, None)
    reward = imagined.reward
    if ensemble.config.reward == "known":
        reward = jnp.broadcast_to(batch.reward[None], ask)
    return Outcomes(reward, imagined.next_observation, imagined.terminated)


def _expansion(ensemble: Ensemble, members: Members, batch: Rows, greedy: Greedy, steps: int) -> Outcomes:
    """Each member's own rollout, without noise, from the rows' next states under the greedy policy, leaves [H, M, B, ...]."""

    def step(observation: Array, _: None) -> tuple[Array, Outcomes]:
        action = greedy(observation)
        prediction = ens.predict(ensemble, members, observation, action)
        imagined = ens.decode(ensemble, members.normaliser, prediction, observation, action, None)
        return imagined.next_observation, Outcomes(imagined.reward, imagined.next_observation, imagined.terminated)

    start = (ensemble.sampling_members, *batch.next_observation.shape)
    return jax.lax.scan(step, jnp.broadcast_to(batch.next_observation[None], start), None, length=steps, unroll=True)[1]
