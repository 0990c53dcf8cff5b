"""The swing-up tasks of the DeepMind Control suite (Tassa et al. 2018) as pure functions.

The equations of motion and the integrators are MuJoCo's for these two models, so that a step agrees with the suite's.
Neither task terminates; both last 1,000 steps, with one simulator step for each action (no action repeat).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mbrl_jax.config import EnvironmentConfig
from mbrl_jax.environments.protocol import Environment, EnvironmentSpec, EnvironmentState, Transition, restart
from mbrl_jax.environments.registry import TaskView, axis_curve, register

GRAVITY = 9.81  # m/s^2
TIME_LIMIT = 1_000  # steps

CART_MASS = 1.0  # kg
CART_DAMPING = 5e-4  # N s/m
CART_FORCE = 10.0  # N, of an action of 1
TRACK = 1.8  # m, where the slider's limit begins on either side
POLE_MASS = 0.1  # kg
POLE_LENGTH = 1.0  # m, of the capsule's cylinder
POLE_RADIUS = 0.045  # m
HINGE_DAMPING = 2e-6  # N m s
CARTPOLE_STEP = 0.01  # s

BOB_MASS = 1.0  # kg
BOB_RADIUS = 0.05  # m
ROD_LENGTH = 0.5  # m
PENDULUM_DAMPING = 0.1  # N m s
PENDULUM_STEP = 0.02  # s
UPRIGHT = math.cos(math.radians(8))  # the cosine of the angle from which a pendulum counts as upright


class Motion(NamedTuple):
    """Where the simulator's state is: generalised positions and velocities, and the steps since the reset."""

    position: Array  # [J]: the cart [m] and the pole's angle from upright [rad], or the angle alone
    velocity: Array  # [J]
    time: Array  # [] int32


# ---------------------------------------------------------------------------------------------------------------- cartpole


def capsule_inertia(mass: float, length: float, radius: float) -> float:
    """Moment of inertia [kg m^2] of a uniform capsule about an axis through its centre and across it.

    Args:
      mass: [kg].
      length: [m] of the cylinder between the two half spheres.
      radius: [m].

    """
    cylinder, sphere = math.pi * radius**2 * length, 4 / 3 * math.pi * radius**3
    cylinder_mass = mass * cylinder / (cylinder + sphere)
    sphere_mass = mass - cylinder_mass
    of_cylinder = cylinder_mass * (3 * radius**2 + length**2) / 12
    # each half sphere's own inertia, moved to the capsule's centre: its centre of mass is 3/8 of the radius beyond the cylinder
    return of_cylinder + sphere_mass * (0.4 * radius**2 + length**2 / 4 + 3 / 8 * length * radius)


_ARM = POLE_LENGTH / 2  # from the hinge to the pole's centre of mass
_POLE_INERTIA = capsule_inertia(POLE_MASS, POLE_LENGTH, POLE_RADIUS) + POLE_MASS * _ARM**2  # about the hinge
_TOTAL_MASS = CART_MASS + POLE_MASS
_COUPLING = POLE_MASS * _ARM
# MuJoCo's soft limit: a spring and damper with time constant 0.08 s and damping ratio 1, and an impedance between 0.9 and 0.95
# that is reached 1 mm beyond the limit
_LIMIT_TIME, _LIMIT_RATIO = 0.08, 1.0
_IMPEDANCE_FIRST, _IMPEDANCE_LAST, _IMPEDANCE_WIDTH = 0.9, 0.95, 0.001
_STIFFNESS = 1 / (_IMPEDANCE_LAST * _LIMIT_TIME * _LIMIT_RATIO) ** 2
_DAMPING = 2 / (_IMPEDANCE_LAST * _LIMIT_TIME)
# the cart's inverse inertia with the pole upright, by which the regularisation of the limit is scaled
_INVERSE_INERTIA = _POLE_INERTIA / (_TOTAL_MASS * _POLE_INERTIA - _COUPLING**2)


def _impedance(depth: Array) -> Array:
    """MuJoCo's impedance at a limit that is exceeded by ``depth`` [m]: two parabolas that meet half-way."""
    share = jnp.clip(depth / _IMPEDANCE_WIDTH, 0, 1)
    rise = jnp.where(share < 0.5, 2 * share**2, 1 - 2 * (1 - share) ** 2)
    return _IMPEDANCE_FIRST + rise * (_IMPEDANCE_LAST - _IMPEDANCE_FIRST)


def cartpole_acceleration(position: Array, velocity: Array, action: Array) -> Array:
    """[..., 2] accelerations of the cart [m/s^2] and of the pole [rad/s^2].

    Args:
      position: [..., 2] of the cart [m], and the pole's angle from upright [rad].
      velocity: [..., 2].
      action: [...] from -1 to 1.

    """
    (x, angle), (speed, rate) = (tuple(jnp.moveaxis(each, -1, 0)) for each in (position, velocity))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    coupling = _COUPLING * cos
    force = CART_FORCE * action - CART_DAMPING * speed + _COUPLING * sin * rate**2
    torque = _COUPLING * GRAVITY * sin - HINGE_DAMPING * rate
    determinant = _TOTAL_MASS * _POLE_INERTIA - coupling**2
    free = (_POLE_INERTIA * force - coupling * torque) / determinant  # the cart's acceleration without the limit
    # the limit pushes with the force that makes the most of its spring, and never pulls
    side = jnp.where(x < 0, 1.0, -1.0).astype(x.dtype)  # where it pushes to
    depth = jnp.abs(x) - TRACK
    impedance = _impedance(depth)
    wanted = impedance * _STIFFNESS * depth - _DAMPING * side * speed
    mobility = _POLE_INERTIA / determinant
    softness = (1 - impedance) / impedance * _INVERSE_INERTIA
    push = jnp.where(depth > 0, jnp.maximum(wanted - side * free, 0) / (mobility + softness), 0)
    force = force + side * push
    cart = (_POLE_INERTIA * force - coupling * torque) / determinant
    pole = (_TOTAL_MASS * torque - coupling * force) / determinant
    return jnp.stack([cart, pole], -1)


def cartpole_step(position: Array, velocity: Array, action: Array) -> tuple[Array, Array]:
    """Move a cart-pole by one step of 0.01 s by the Runge-Kutta method of order 4; arguments as :func:`cartpole_acceleration`."""
    h = CARTPOLE_STEP
    accelerate = partial(cartpole_acceleration, action=action)
    v1, a1 = velocity, accelerate(position, velocity)
    v2 = velocity + h / 2 * a1
    a2 = accelerate(position + h / 2 * v1, v2)
    v3 = velocity + h / 2 * a2
    a3 = accelerate(position + h / 2 * v2, v3)
    v4 = velocity + h * a3
    a4 = accelerate(position + h * v3, v4)
    return position + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4), velocity + h / 6 * (a1 + 2 * a2 + 2 * a3 + a4)


def _tolerance(value: Array, margin: float) -> Array:
    """The suite's Gaussian tolerance of a target 0: 1 there, and 0.1 at ``margin`` from it."""
    return jnp.exp(math.log(0.1) * jnp.square(value / margin))


def _cartpole_reward(s: Array, a: Array, s2: Array) -> Array:
    upright = (s2[..., 1] + 1) / 2
    centred = (1 + _tolerance(s2[..., 0], 2.0)) / 2
    small_control = (4 + jnp.maximum(1 - jnp.square(a[..., 0]), 0)) / 5
    small_velocity = (1 + _tolerance(s2[..., 4], 5.0)) / 2
    return upright * centred * small_control * small_velocity


def _cartpole_observation(position: Array, velocity: Array) -> Array:
    angle = position[..., 1]
    return jnp.stack([position[..., 0], jnp.cos(angle), jnp.sin(angle), velocity[..., 0], velocity[..., 1]], -1)


def _cartpole_motion(s: Array) -> tuple[Array, Array]:
    return jnp.stack([s[..., 0], jnp.arctan2(s[..., 2], s[..., 1])], -1), s[..., 3:5]


def _cartpole_reset(key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    drawn = 0.01 * jax.random.normal(key, (*shape, 4))
    hanging = jnp.asarray(np.array([0, np.pi]), drawn.dtype).reshape((1,) * len(shape) + (2,))
    return drawn[..., :2] + hanging, drawn[..., 2:]


# ---------------------------------------------------------------------------------------------------------------- pendulum

_PENDULUM_INERTIA = BOB_MASS * (ROD_LENGTH**2 + 0.4 * BOB_RADIUS**2)


def pendulum_step(position: Array, velocity: Array, action: Array) -> tuple[Array, Array]:
    """Move a pendulum by one step of 0.02 s: semi-implicit Euler, with the joint's damping taken at the step's end.

    Args:
      position: [..., 1] angle from upright [rad].
      velocity: [..., 1], in rad/s.
      action: [...] torque [N m], from -1 to 1.

    """
    torque = action[..., None] + BOB_MASS * GRAVITY * ROD_LENGTH * jnp.sin(position) - PENDULUM_DAMPING * velocity
    velocity = velocity + PENDULUM_STEP * torque / (_PENDULUM_INERTIA + PENDULUM_STEP * PENDULUM_DAMPING)
    return position + PENDULUM_STEP * velocity, velocity


def _pendulum_reward(s: Array, a: Array, s2: Array) -> Array:
    return (s2[..., 0] >= UPRIGHT).astype(s2.dtype)


def _pendulum_observation(position: Array, velocity: Array) -> Array:
    return jnp.concatenate([jnp.cos(position), jnp.sin(position), velocity], -1)


def _pendulum_motion(s: Array) -> tuple[Array, Array]:
    return jnp.arctan2(s[..., 1:2], s[..., 0:1]), s[..., 2:3]


def _pendulum_reset(key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    angle = jax.random.uniform(key, (*shape, 1), minval=-np.pi, maxval=np.pi)
    return angle, jnp.zeros_like(angle)


# ------------------------------------------------------------------------------------------------------------------- tasks


class _Task(NamedTuple):
    observation_scale: tuple[float, ...]
    angles: tuple[tuple[int, int], ...]
    step: Callable[[Array, Array, Array], tuple[Array, Array]]
    observe: Callable[[Array, Array], Array]
    motion: Callable[[Array], tuple[Array, Array]]  # positions and velocities of observations
    reset: Callable[[Array, tuple[int, ...]], tuple[Array, Array]]
    reward: Callable[[Array, Array, Array], Array]


_TASKS = {
    "control/cartpole-swingup": _Task(
        observation_scale=(1.8, 1.0, 1.0, 5.0, 10.0),
        angles=((1, 2),),
        step=cartpole_step,
        observe=_cartpole_observation,
        motion=_cartpole_motion,
        reset=_cartpole_reset,
        reward=_cartpole_reward,
    ),
    "control/pendulum-swingup": _Task(
        observation_scale=(1.0, 1.0, 10.0),
        angles=((0, 1),),
        step=pendulum_step,
        observe=_pendulum_observation,
        motion=_pendulum_motion,
        reset=_pendulum_reset,
        reward=_pendulum_reward,
    ),
}


def _never(s: Array, a: Array, s2: Array) -> Array:
    return jnp.zeros(s2.shape[:-1], bool)


def _make(config: EnvironmentConfig) -> Environment:
    """The task that ``config`` names."""
    task = _TASKS[config.name]
    spec = EnvironmentSpec(
        name=config.name,
        observation_size=len(task.observation_scale),
        action_count=0,
        time_limit=TIME_LIMIT if config.time_limit is None else config.time_limit,
        observation_scale=task.observation_scale,
        action_size=1,
        angles=task.angles,
    )

    def draw_resets(key: Array, shape: tuple[int, ...]) -> EnvironmentState:
        position, velocity = task.reset(key, shape)
        return EnvironmentState(Motion(position, velocity, jnp.zeros(shape, jnp.int32)), task.observe(position, velocity))

    def step(state: EnvironmentState, action: Array, fresh: EnvironmentState) -> tuple[EnvironmentState, Transition]:
        inner: Motion = state.inner
        position, velocity = task.step(inner.position, inner.velocity, jnp.clip(action[..., 0], -1.0, 1.0))
        observation = task.observe(position, velocity)
        truncated = inner.time + 1 >= spec.time_limit
        transition = Transition(
            observation=state.observation,
            action=action,
            reward=task.reward(state.observation, action, observation),
            next_observation=observation,
            terminated=jnp.zeros_like(truncated),
            truncated=truncated,
            elapsed=inner.time,
        )
        after = EnvironmentState(Motion(position, velocity, inner.time + 1), observation)
        return restart(after, fresh, truncated), transition

    def dynamics(observation: Array, action: Array) -> Array:
        lead = jnp.broadcast_shapes(observation.shape[:-1], action.shape[:-1])
        position, velocity = task.motion(jnp.broadcast_to(observation, (*lead, observation.shape[-1])))
        force = jnp.clip(jnp.broadcast_to(action[..., 0], lead), -1.0, 1.0)
        return task.observe(*task.step(position, velocity, force))

    return Environment(spec, draw_resets, step, task.reward, _never, dynamics)


_VIEWS = {
    "control/cartpole-swingup": TaskView(
        "cartpole_swingup",
        50,
        ("position", "cos θ", "sin θ", "velocity", "angular velocity"),
        (0, 1, 2),
        {
            "angle from upright [degrees]": lambda states: np.degrees(np.arctan2(states[:, 2], states[:, 1])),
            "cart position [m]": axis_curve(0),
        },
    ),
    "control/pendulum-swingup": TaskView(
        "pendulum",
        50,
        ("cos θ", "sin θ", "angular velocity"),
        (0, 1),
        {
            "angle from upright [degrees]": lambda states: np.degrees(np.arctan2(states[:, 1], states[:, 0])),
            "velocity": axis_curve(2),
        },
    ),
}
_MARKS = {"control/cartpole-swingup": (800.0,), "control/pendulum-swingup": (700.0,)}  # about what model-free methods end at
for _name in _TASKS:
    register(_name, _make, marks=_MARKS[_name], view=_VIEWS[_name])
