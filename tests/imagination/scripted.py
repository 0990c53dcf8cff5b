"""Controllers without a world: lanes whose members say what a test makes up."""

import jax
import jax.numpy as jnp
import numpy as np
from ensembles import world_of

from mbrl_jax.config import EnvironmentConfig, ModelConfig
from mbrl_jax.environments import make_environment
from mbrl_jax.imagination.horizon import View, make_controller
from mbrl_jax.model.ensemble import Ensemble
from mbrl_jax.model.protocol import Prediction
from mbrl_jax.replay import Rows

MEMBERS, LANES, AXES, STEPS = 4, 6, 4, 8
TASK = make_environment(EnvironmentConfig())

# every controller that judges the model, with numbers at which made-up predictions of deviation 1 do stop some lanes
JUDGES = {
    "threshold": {"mark": 0.8},
    "threshold_quantile": {"quantile": 0.7},
    "accumulated": {"budget": 4.0},
    "macura": {"scale": 1.0, "percentile": 80.0, "memory": 20.0},
    "infoprop": {"high": 0.8, "low": 0.6, "length": 6.0, "resolution": 0.01},
    "three_model": {"low": 0.5, "high": 0.9, "first": 3.0, "limit": 6.0},
}
EVERY = {
    **JUDGES,
    "fixed": {"length": 3.0},
    "schedule": {"start": 0.0, "end": 6.0, "first": 1.0, "last": 5.0},
    "m2ac": {"length": 4.0, "penalty": 1e-3},
    "oracle": {"mark": 0.5},
    "drift": {"quantile": 0.5},
}


def ensemble_of(**changes):
    """An ensemble whose world never terminates; the settings are the model's."""
    config = ModelConfig(**{"members": MEMBERS, "hidden": (8, 8), **changes})
    return Ensemble(config, TASK.spec, TASK.reward, lambda s, a, s2: jnp.zeros(s2.shape[:-1], bool))


def learned_world(by="ts1", capacity=40, **changes):
    """That world, and the replay of its real rows."""
    return world_of(ensemble_of(**changes), capacity, by=by)


def spec_of(**changes):
    """What a controller may know of that world."""
    return learned_world(**changes)[0].spec


def unfitted(world):
    """Parameters that it imagines with before any fit."""
    return world.acting(world.init(jax.random.key(7)))


def real_rows(count, key=3):
    """[count] rows near the middle of the track."""
    observation = 0.05 * jax.random.normal(jax.random.key(key), (count, AXES))
    ones = jnp.ones(count)
    depth = jnp.zeros(count, jnp.int32)
    action = jnp.arange(count, dtype=jnp.int32) % 2
    return Rows(observation, TASK.dynamics(observation, action), action, ones, ones < 0, ones, depth)


def views(everyone, depth, time=None, active=None):
    """A view for each step: predictions [T, M, K, D], depth [T, K], time [T]."""
    steps, _, lanes, _ = everyone.mean.shape
    zeros, no = np.zeros((steps, lanes, AXES), np.float32), np.zeros((steps, lanes), bool)
    seen = View(
        time=np.zeros(steps, np.int32) if time is None else np.asarray(time, np.int32),
        depth=np.asarray(depth, np.int32),
        root=zeros,
        observation=zeros,
        action=np.zeros((steps, lanes), np.int32),
        next_observation=zeros,
        reward=np.ones((steps, lanes), np.float32),
        terminated=no,
        active=~no if active is None else np.asarray(active),
        member=np.broadcast_to(np.arange(lanes, dtype=np.int32)[None] % MEMBERS, (steps, lanes)),
        everyone=everyone,
        truth=zeros,
    )
    return jax.device_put(seen)


def calibrated(controller, world, lanes=LANES):
    """The controller's state after it has seen an unfitted model and forty real rows."""
    return controller.calibrate(controller.init(lanes, world.spec), world, unfitted(world), real_rows(40), jnp.arange(40) < 30)


def decide(controller, state, seen):
    """Decisions [T, K] on views that follow each other, whatever the decisions are, and the last state."""
    return jax.lax.scan(controller.step, state, seen)


def predictions(rng, spread=1.0, shape=(STEPS, MEMBERS, LANES, AXES)):
    """Made-up members [T, M, K, D] whose means differ by about ``spread``."""
    common = rng.normal(size=(shape[0], 1, *shape[2:]))
    mean = common + spread * rng.normal(size=shape)
    return Prediction(*jax.device_put((mean.astype(np.float32), rng.uniform(-4, 0, shape).astype(np.float32))), None)


def made(name, **numbers):
    return make_controller(name, {**EVERY[name], **numbers})


def first_stop(decision):
    """[K] the step at which each lane is stopped first, the number of steps if never."""
    stop = np.asarray(decision.stop)
    return np.where(stop.any(0), stop.argmax(0), len(stop))
