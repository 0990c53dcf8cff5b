"""What sequences of actions earn in the learned world, all of them in one batch of candidates times particles.

Every candidate is judged by the same P particles, which meet the same noise and the same members of the ensemble: what differs
between two candidates then differs by their actions alone (common random numbers), and costs no random numbers of its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax import draws
from mbrl_jax.config import PlanningConfig
from mbrl_jax.model import ensemble as ens
from mbrl_jax.model.ensemble import Ensemble, Members

Value = Callable[[Array], Array]  # observations [n, D] -> what is to come after them [n]


class ParticleDraws(NamedTuple):
    """The random numbers of P particles over H steps. Leading axes may come before these."""

    deal: Array  # [H, P] int32, the order in which particles are dealt to members at each step; with ts_infinity [H, 0]
    noise: Array  # [H, P, D] standard normal, of Gaussian members; else [H, P, 0]


def draw_particles(config: PlanningConfig, ensemble: Ensemble, key: Array, shape: tuple[int, ...]) -> ParticleDraws:
    """Draw all that :func:`returns_of` consumes, with leading axes ``shape``."""
    key_deal, key_noise = jax.random.split(key)
    full = (*shape, config.horizon, config.particles)
    dealt = full if config.propagation == "ts1" else (*full[:-1], 0)
    size = ensemble.spec.observation_size if ensemble.config.kind == "gaussian" else 0
    return ParticleDraws(draws.permutations(key_deal, dealt), draws.normal(key_noise, (*full, size)))


def returns_of(
    config: PlanningConfig,
    ensemble: Ensemble,
    members: Members,
    observation: Array,
    actions: Array,
    drawn: ParticleDraws,
    value: Value | None = None,
) -> Array:
    """[N] discounted return of each candidate, the mean over particles; what is not finite counts as minus infinity.

    A particle earns nothing more once its episode has terminated. With ``ts_infinity`` it belongs to one member for good, with
    ``ts1`` particles are dealt to members anew at each step (Chua et al. 2018, arXiv:1805.12114); either way every member moves
    equally many of them.

    Args:
      config: the planner's settings.
      ensemble: the shape of the world model.
      members: M of them, of which P is a multiple.
      observation: [D] where all candidates begin.
      actions: [N, H, ...].
      drawn: the particles' random numbers, without leading axes.
      value: of the states in which particles stand at the end, in units of the return; none ends the sum there.

    """
    particles, candidates, count = config.particles, actions.shape[0], ensemble.sampling_members
    shape = (particles, candidates)
    rows = particles * candidates
    discount = jnp.asarray(config.discount, observation.dtype)

    def flat(x: Array) -> Array:
        return x.reshape(rows, *x.shape[2:])

    def step(carry: Any, inputs: tuple[Array, ParticleDraws]) -> tuple[Any, None]:
        state, running, earned, worth = carry  # [P, N, ...], and [] what a reward counts by now
        action, now = inputs
        if config.propagation == "ts1":
            state, running, earned = (x[now.deal] for x in (state, running, earned))
        action = jnp.broadcast_to(action[None], (particles, *action.shape))
        dealt = (count, rows // count)
        prediction = ens.predict(
            ensemble, members, state.reshape(*dealt, -1), action.reshape(*dealt, *ensemble.spec.action_shape)
        )
        prediction = jax.tree.map(lambda leaf: leaf.reshape(rows, *leaf.shape[2:]), prediction)
        noise = None
        if ensemble.config.kind == "gaussian":
            noise = flat(jnp.broadcast_to(now.noise[:, None], state.shape))
        told = ens.decode(ensemble, members.normaliser, prediction, flat(state), flat(action), noise)
        earned = earned + jnp.where(running, worth * told.reward.reshape(shape), 0.0)
        running = running & ~told.terminated.reshape(shape)
        return (told.next_observation.reshape(state.shape), running, earned, discount * worth), None

    start = (
        jnp.broadcast_to(observation, (*shape, observation.shape[-1])),
        jnp.ones(shape, bool),
        jnp.zeros(shape, observation.dtype),
        jnp.ones((), observation.dtype),
    )
    (state, running, earned, worth), _ = jax.lax.scan(step, start, (actions.swapaxes(0, 1), drawn))
    if value is not None:
        earned = earned + jnp.where(running, worth * value(flat(state)).reshape(shape), 0.0)
    mean = jnp.mean(earned, axis=0)
    return jnp.where(jnp.isfinite(mean), mean, -jnp.inf)
