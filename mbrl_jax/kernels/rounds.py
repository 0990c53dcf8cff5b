"""A round of an algorithm's real steps in one kernel, from the draws that its plain loop consumes."""

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import replay
from mbrl_jax.agents.q_learning import QLearner, QState, UpdateLog
from mbrl_jax.config import DynaQConfig
from mbrl_jax.imagination.lanes import LaneDraws, LaneLog, Lanes
from mbrl_jax.kernels.steps import Imagination, run
from mbrl_jax.model.ensemble import Ensemble, Members
from mbrl_jax.replay import Replay

INTERPRETED = "pallas_interpret"


def learn_from(
    config: str, learner: QLearner, agent: QState, rows: Replay, bits: Array, progress: Array
) -> tuple[QState, UpdateLog]:
    """Updates on rows that stay as they are.

    Args:
      config: the setting ``kernels``.
      learner: the settings.
      agent: the learner.
      rows: where minibatches come from.
      bits: [T, U, B] uint32, which rows, as :func:`mbrl_jax.replay.sample` takes them.
      progress: [T] share of the run that is done.

    Returns:
      The learner, and its log averaged over each step's updates [T].

    """
    index = (bits % replay.size(rows).astype(jnp.uint32)).astype(jnp.int32)
    rate = _learning_rate(learner, progress)
    agent, log, _, _, _ = run(learner, agent, rows.rows, index, rate, interpret=config == INTERPRETED)
    return agent, _per_step(log)


def imagine_and_learn(
    config: DynaQConfig,
    learner: QLearner,
    ensemble: Ensemble,
    members: Members,
    real: Replay,
    imagined: Replay,
    lanes: Lanes,
    agent: QState,
    draws: LaneDraws,
    bits: Array,
    progress: Array,
) -> tuple[Replay, Lanes, QState, tuple[UpdateLog, LaneLog]]:
    """Real steps of Dyna-Q in which the agent does not act.

    Args:
      config: the settings, traced numbers included.
      learner: the learner's.
      ensemble: the shape of the world model.
      members: those that imagine.
      real: where roots come from.
      imagined: where imagined rows go and minibatches come from.
      lanes: as the last step left them.
      agent: the learner.
      draws: [T, H, ...].
      bits: [T, U, B] uint32, which imagined rows make the minibatches.
      progress: [T] share of the run that is done.

    Returns:
      The imagined replay, the lanes, the learner, and both logs [T].

    """
    imagination, (steps, per_step) = config.imagination, (bits.shape[0], config.imagination.steps * config.imagination.lanes)
    written = imagined.written + per_step * (1 + jnp.arange(steps, dtype=imagined.written.dtype))
    full = jnp.minimum(written, imagined.rows.shape[0]).astype(jnp.uint32)
    forced = jnp.where(draws.explore < imagination.epsilon, draws.action, -1)
    dealt = imagination.lanes // ensemble.sampling_members
    if imagination.sampling == "ts1":
        place = draws.place
    else:
        place = jnp.broadcast_to(jnp.arange(imagination.lanes, dtype=jnp.int32), forced.shape)
    agent, update_log, rows, after, lane_log = run(
        learner,
        agent,
        imagined.rows,
        (bits % full[:, None, None]).astype(jnp.int32),
        _learning_rate(learner, progress),
        lanes,
        imagined.written,
        Imagination(
            ensemble=ensemble,
            members=members,
            length=imagination.controller_settings["length"],
            cap=imagination.cap,
            root=replay.sample(real, draws.root)[..., : ensemble.spec.observation_size],
            forced=forced,
            member=place // dealt,
            noise=draws.noise,
        ),
        interpret=config.kernels == INTERPRETED,
    )
    assert after is not None
    assert lane_log is not None
    return Replay(rows, imagined.written + steps * per_step), after, agent, (_per_step(update_log), lane_log)


def _learning_rate(learner: QLearner, progress: Array) -> Array:
    return learner.config.learning_rate * (1 - learner.config.learning_rate_decay * progress)


def _per_step(log: UpdateLog) -> UpdateLog:
    return jax.tree.map(lambda x: jnp.mean(x, axis=1), log)
