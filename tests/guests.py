"""Parts from outside the package: a world model, an agent, an environment, a loss and a horizon controller.

Each is what a user would write: one piece of code and one line that registers it. Nothing here uses a private name.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mbrl_jax.agents import registry as agents
from mbrl_jax.agents.protocol import Agent, Minibatches, Model
from mbrl_jax.config import AgentConfig, EnvironmentConfig, WorldConfig, settings, static, traced
from mbrl_jax.environments import (
    Environment,
    EnvironmentSpec,
    EnvironmentState,
    Transition,
    register,
    restart,
)
from mbrl_jax.imagination import horizon
from mbrl_jax.imagination.horizon import Decision, HorizonController, View
from mbrl_jax.imagination.horizon.protocol import nothing, uncalibrated
from mbrl_jax.model import losses, worlds
from mbrl_jax.model.protocol import FitLog, Imagined, ModelSpec, Prediction, WorldModel
from mbrl_jax.model.worlds import Learns

# ------------------------------------------------------------------------------------------------------------- environment

SIDE, STEP = 8, 0.5


class Dot(NamedTuple):
    """A dot on a plane."""

    place: Array  # [2] from 0 to 7
    time: Array  # [] int32


def picture(place: Array) -> Array:
    """[8, 8, 1] the dot, a little blurred so that its place can be read off."""
    at = jnp.arange(SIDE, dtype=place.dtype)
    row, column = (jnp.exp(-0.5 * jnp.square(at - place[i])) for i in (0, 1))
    image = row[:, None] * column[None]
    return (image / jnp.sum(image))[..., None]


def place_in(image: Array) -> Array:
    """[..., 2] the centre of the intensity of images [..., 8, 8, 1]."""
    at, weight = jnp.arange(SIDE, dtype=image.dtype), jnp.abs(image[..., 0]) + 1e-6
    total = jnp.sum(weight, axis=(-2, -1))
    shape = (1,) * (weight.ndim - 2)
    rows = jnp.sum(weight * at.reshape(*shape, SIDE, 1), axis=(-2, -1))
    columns = jnp.sum(weight * at.reshape(*shape, 1, SIDE), axis=(-2, -1))
    return jnp.stack([rows / total, columns / total], axis=-1)


def dots(config: EnvironmentConfig) -> Environment:
    """A picture of a dot that two of three numbers move; the third slows it down. The reward is how near it is to the middle."""
    limit = 12 if config.time_limit is None else config.time_limit
    spec = EnvironmentSpec(
        name="guests/dots",
        observation_size=SIDE * SIDE,
        action_count=0,
        time_limit=limit,
        observation_scale=(0.2,) * (SIDE * SIDE),
        action_size=3,
        action_scale=(STEP, STEP, 1.0),
        observation_shape=(SIDE, SIDE, 1),
    )

    def draw_resets(key: Array, shape: tuple[int, ...]) -> EnvironmentState:
        place = jax.random.uniform(key, (*shape, 2), minval=1.0, maxval=SIDE - 2.0)
        images = jnp.vectorize(picture, signature="(n)->(a,b,c)")(place)
        return EnvironmentState(Dot(place, jnp.zeros(shape, jnp.int32)), images)

    def reward(s: Array, a: Array, s2: Array) -> Array:
        return -jnp.sum(jnp.square(place_in(s2) - (SIDE - 1) / 2), axis=-1)

    def terminated(s: Array, a: Array, s2: Array) -> Array:
        return jnp.zeros(s2.shape[:-3], bool)

    def step(state: EnvironmentState, action: Array, fresh: EnvironmentState) -> tuple[EnvironmentState, Transition]:
        speed = STEP * (1.0 - 0.5 * jnp.abs(action[2]))
        place = jnp.clip(state.inner.place + speed * action[:2], 0.0, SIDE - 1.0)
        time = state.inner.time + 1
        image = picture(place)
        truncated = time >= limit
        transition = Transition(
            observation=state.observation,
            action=action,
            reward=reward(state.observation, action, image),
            next_observation=image,
            terminated=jnp.zeros((), bool),
            truncated=truncated,
            elapsed=state.inner.time,
        )
        return restart(EnvironmentState(Dot(place, time), image), fresh, truncated), transition

    return Environment(spec, draw_resets, step, reward, terminated)


# ------------------------------------------------------------------------------------------------------------- world model


@settings
class LinearConfig(WorldConfig):
    """A linear Gaussian model of the change of the state."""

    ridge: float = traced(1e-4, above=0)
    """Weight of the squared coefficients in the least squares."""


class Linear(NamedTuple):
    """What the linear model has learned."""

    coefficients: Array  # [1 + D + A, D]
    deviation: Array  # [D] of the residuals


def linear(config: LinearConfig, task: Environment, data: Learns, by: str) -> WorldModel:
    """``s' = s + [1, s, a] coefficients + deviation * noise``, by least squares."""
    spec = task.spec
    size = spec.observation_size
    numbers = spec.action_size if spec.continuous else spec.action_count

    def inputs(observation: Array, action: Array) -> Array:
        if spec.continuous or jnp.issubdtype(action.dtype, jnp.floating):
            encoded = action
        else:
            encoded = jax.nn.one_hot(action, spec.action_count, dtype=observation.dtype)
        return jnp.concatenate([jnp.ones_like(observation[..., :1]), observation, encoded], axis=-1)

    def init(key: Array) -> Linear:
        return Linear(jnp.zeros((1 + size + numbers, size)), jnp.ones(size))

    def solve(rows: Any, valid: Array) -> tuple[Linear, FitLog]:
        weight = valid.astype(rows.observation.dtype)[:, None]
        x, y = inputs(rows.observation, rows.action) * weight, (rows.next_observation - rows.observation) * weight
        gram = x.T @ x + config.ridge * jnp.eye(x.shape[1])
        coefficients = jnp.linalg.solve(gram, x.T @ y)
        residual = jnp.sum(jnp.square(y - x @ coefficients), axis=0) / jnp.sum(weight)
        error = jnp.sum(residual)[None]
        return Linear(coefficients, jnp.sqrt(residual)), FitLog(error, error, 0.5 * error)

    def fit(state: Linear, real: Any, key: Array) -> tuple[Linear, FitLog]:
        rows, _ = data.real.contents(real)
        first = jax.tree.map(lambda leaf: leaf[: data.first_rows], rows)
        solved, log = solve(first, jnp.ones(data.first_rows, bool))
        return solved, jax.tree.map(lambda leaf: leaf[None], log)  # one epoch

    def refit(state: Linear, real: Any, key: Array) -> tuple[Linear, FitLog]:
        return solve(*data.real.contents(real))

    def move(params: Linear, observation: Array, action: Array, noise: Array | None, everyone: bool) -> Imagined:
        change = inputs(observation, action) @ params.coefficients
        after = observation + change
        deviation = params.deviation.reshape((1,) * (observation.ndim - 1) + (-1,))
        if noise is not None:
            after = after + deviation * noise
        taken = action
        if not spec.continuous and jnp.issubdtype(action.dtype, jnp.floating):
            taken = jnp.argmax(action, axis=-1).astype(jnp.int32)
        said = None
        if everyone:
            spread = jnp.broadcast_to(2 * jnp.log(deviation + 1e-6), change.shape)
            said = Prediction(change[None], spread[None], None)
        lead = observation.shape[:-1]
        reward, over = task.reward(observation, taken, after), task.terminated(observation, taken, after)
        return Imagined(after, reward, over, jnp.zeros(lead, jnp.int32), said)

    def expect(params: Linear, belief: Array, action: Array) -> Imagined:
        told = move(params, belief[0], action[0], None, True)
        lead = jax.tree.map(lambda leaf: leaf[None], told._replace(everyone=None))
        return lead._replace(everyone=told.everyone)

    return WorldModel(
        spec=ModelSpec(spec.name, size, members=1, targets=size, has_variance=True, reward_known=True),
        init=init,
        fit=fit,
        refit=refit,
        acting=lambda state: state,
        draw=lambda key_choice, key_noise, shape: jax.random.normal(key_noise, (*shape, size)),
        start=lambda params, real, bits: data.real.sample(real, bits).observation,
        first=lambda params, real, bits: data.real.first_states(real, bits),
        step=lambda params, belief, action, draws, everyone=False: move(params, belief, action, draws, everyone),
        expect=expect,
        features=lambda belief: belief,
        belief=lambda features: features,
        scale=lambda params: jnp.maximum(params.deviation, 1e-3),
    )


# ------------------------------------------------------------------------------------------------------------------- agent


@settings
class CrossEntropyConfig(AgentConfig):
    """A linear policy by the cross-entropy method, scored in the world model."""

    candidates: int = static(16, minimum=2)
    """Policies that are tried in an update."""
    elites: int = static(4, minimum=1)
    """Best ones that the distribution is fitted to."""
    horizon: int = static(5, minimum=1)
    """Imagined steps that score a policy."""
    batch_size: int = static(8, minimum=1)
    """States that they begin in."""
    momentum: float = traced(0.5, minimum=0, maximum=1)
    """Share of the old distribution that is kept."""


class CrossEntropyState(NamedTuple):
    """A Gaussian over the coefficients of a linear policy."""

    mean: Array  # [1 + F, outputs]
    deviation: Array  # the same
    frozen: Array  # [] bool
    updates: Array  # [] int32


class CrossEntropyLog(NamedTuple):
    """How an update went; ``best`` is a metric that the package does not know."""

    loss: Array  # [] minus the mean imagined return of the elites
    best: Array  # []


def cross_entropy(config: CrossEntropyConfig, spec: EnvironmentSpec) -> Agent:
    """The agent."""
    outputs = spec.action_size if spec.continuous else spec.action_count
    shape = (1 + spec.observation_size, outputs)

    def init(key: Array) -> CrossEntropyState:
        return CrossEntropyState(jnp.zeros(shape), jnp.ones(shape), jnp.zeros((), bool), jnp.zeros((), jnp.int32))

    def mode(params: Array, features: Array) -> Array:
        scaled = features / jnp.asarray(spec.observation_scale, features.dtype).reshape((1,) * (features.ndim - 1) + (-1,))
        told = jnp.concatenate([jnp.ones_like(scaled[..., :1]), scaled], axis=-1) @ params
        return jnp.tanh(told) if spec.continuous else jnp.argmax(told, axis=-1).astype(jnp.int32)

    def act(params: Array, features: Array, exploration: Any, explore: Array, random: Array) -> Array:
        chosen = mode(params, features)
        explores = explore < exploration
        return jnp.where(explores[..., None] if spec.continuous else explores, random, chosen)

    def update(
        state: CrossEntropyState, batch: Any, draws: Any, progress: Any, model: Model | None
    ) -> tuple[CrossEntropyState, CrossEntropyLog]:
        assert model is not None, "it scores policies in a world model"
        tried = state.mean[None] + state.deviation[None] * draws["candidates"]
        assert model.world.belief is not None
        start = model.world.belief(batch.observation)

        def score(params: Array) -> Array:
            def step(carry: tuple[Any, Array], noise: Any) -> tuple[tuple[Any, Array], None]:
                belief, earned = carry
                told = model.world.step(model.params, belief, mode(params, model.world.features(belief)), noise)
                return (told.belief, earned + told.reward), None

            drawn = model.world.draw(draws["key"], draws["key"], (config.horizon, batch.reward.shape[0]))
            (_, earned), _ = jax.lax.scan(step, (start, jnp.zeros_like(batch.reward)), drawn)
            return jnp.mean(earned)

        scores = jax.vmap(score)(tried)
        best, places = jax.lax.top_k(scores, config.elites)
        elite = tried[places]
        mean = config.momentum * state.mean + (1 - config.momentum) * jnp.mean(elite, axis=0)
        deviation = config.momentum * state.deviation + (1 - config.momentum) * jnp.std(elite, axis=0)
        broken = state.frozen | ~(jnp.all(jnp.isfinite(mean)) & jnp.all(jnp.isfinite(deviation)))
        after = CrossEntropyState(mean, deviation, state.frozen, state.updates + 1)
        after = jax.tree.map(lambda new, old: jnp.where(broken, old, new), after, state)
        return after._replace(frozen=broken), CrossEntropyLog(-jnp.mean(best), best[0])

    def draw(key: Array, lead: tuple[int, ...]) -> Any:
        keys = jax.random.split(key, lead)
        return {"candidates": jax.random.normal(key, (*lead, config.candidates, *shape)), "key": keys}

    return Agent(
        init=init,
        acting=lambda state: state.mean,
        judged=lambda state: state.mean,
        act=act,
        mode=mode,
        update=update,
        draw=draw,
        minibatches=Minibatches(rows=config.batch_size, real_rows=0, updates=1),
    )


# ------------------------------------------------------------------------------------------------------- loss and controller


def pseudo_huber(mean: Array, log_variance: Array | None, target: Array) -> Array:
    """[] a loss that large errors dominate less."""
    return jnp.mean(jnp.sum(jnp.sqrt(1.0 + jnp.square(mean - target)) - 1.0, axis=-1))


def every_other(*, first: Array | float) -> HorizonController:
    """Stop at a depth, and keep the rows of every other one.

    Args:
      first: the depth.

    """

    def step(state: Any, view: View) -> tuple[Any, Decision]:
        deep = (view.depth + 1).astype(view.reward.dtype) >= first
        return state, Decision(keep=view.depth % 2 == 0, stop=deep, penalty=jnp.zeros_like(view.reward))

    return HorizonController(nothing, uncalibrated, step)


register("guests/dots", dots, marks=(-10,))
worlds.register("linear", LinearConfig, linear)
agents.register("cross_entropy", CrossEntropyConfig, cross_entropy)
losses.register("pseudo_huber", pseudo_huber)
horizon.register("every_other", every_other)
