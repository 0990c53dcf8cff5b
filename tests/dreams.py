"""A world whose rollouts stand elsewhere than in an observation: on a place and at a time, which are two arrays.

A real observation is a place [2]. A rollout's belief is a dictionary of its place and of its clock, which begins at 0, and its
features are three numbers. Each of two members moves a rollout at its own speed, to either side.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.model.protocol import FitLog, Imagined, ModelSpec, Prediction, WorldModel
from mbrl_jax.replay import Replay

MEMBERS, LIMIT, NOISE = 2, 5, 0.1
SPEED = (0.5, 2.0)  # of each member before any fit


class Params(NamedTuple):
    """What imagination uses."""

    speed: jax.Array  # [M]


class State(NamedTuple):
    """Of the world: its parameters, and what fits were given."""

    params: Params
    fits: jax.Array  # [] int32
    seen: jax.Array  # [] int32 rows that the last fit was shown


def dream(replay: Replay) -> WorldModel:
    """The world over a replay of observations [2]; a fit doubles the members' speeds."""

    def init(key: jax.Array) -> State:
        return State(Params(jnp.asarray(SPEED)), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def fit(state: State, real: Any, key: jax.Array) -> tuple[State, FitLog]:
        after = State(Params(2 * state.params.speed), state.fits + 1, replay.size(real))
        return after, FitLog(*(jax.random.uniform(each, (MEMBERS,)) for each in jax.random.split(key, 3)))

    def at(place: jax.Array) -> dict[str, jax.Array]:
        return {"place": place, "clock": jnp.zeros(place.shape[:-1], jnp.int32)}

    def features(belief: dict[str, jax.Array]) -> jax.Array:
        return jnp.concatenate([belief["place"], belief["clock"].astype(belief["place"].dtype)[..., None]], axis=-1)

    def belief(features: jax.Array) -> dict[str, jax.Array]:
        return {"place": features[..., :2], "clock": features[..., 2].astype(jnp.int32)}

    def change(speed: jax.Array, action: jax.Array) -> jax.Array:
        return jnp.broadcast_to((speed * (2 * action - 1).astype(speed.dtype))[..., None], (*action.shape, 2))

    def moved(belief: Any, by: jax.Array, member: jax.Array, everyone: Prediction | None) -> Imagined:
        after = {"place": belief["place"] + by, "clock": belief["clock"] + 1}
        return Imagined(after, after["place"][..., 0], after["clock"] >= LIMIT, member, everyone)

    def step(params: Params, belief: Any, action: jax.Array, drawn: Any, *, everyone: bool = False) -> Imagined:
        rollouts = action.shape[0]
        member = jnp.arange(rollouts, dtype=jnp.int32) // (rollouts // MEMBERS)
        said = None
        if everyone:
            asked = jnp.broadcast_to(action[None], (MEMBERS, rollouts))
            said = Prediction(change(params.speed[:, None], asked), None, None)
        return moved(belief, change(params.speed[member], action) + NOISE * drawn["push"], member, said)

    def expect(params: Params, belief: Any, action: jax.Array) -> Imagined:
        lead = (MEMBERS,) + (1,) * (action.ndim - 1)
        by = change(params.speed.reshape(lead), action)
        member = jnp.broadcast_to(jnp.arange(MEMBERS, dtype=jnp.int32).reshape(lead), action.shape)
        return moved(belief, by, member, Prediction(by, None, None))

    return WorldModel(
        spec=ModelSpec("a dream", feature_size=3, members=MEMBERS, targets=2, has_variance=False, reward_known=False),
        init=init,
        fit=fit,
        refit=fit,
        acting=lambda state: state.params,
        draw=lambda key_choice, key_noise, shape: {"push": jax.random.normal(key_noise, (*shape, 2))},
        start=lambda params, real, bits: at(replay.sample(real, bits).observation),
        first=lambda params, real, bits: at(replay.first_states(real, bits)),
        step=step,
        expect=expect,
        features=features,
        belief=belief,
        scale=lambda params: jnp.ones(3),
    )
