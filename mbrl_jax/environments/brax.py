"""Environments of brax (Freeman et al. 2021), in its spring and its generalised physics; the extra ``brax``.

Only ``reset`` and ``step`` of the raw environments are used. Brax's wrappers go on from one stored first state and drop the
observation at an episode's end; here resets are drawn, the next observation is the true one, and the time limit truncates.
Matrix products within the physics have full precision, whatever the run has.

Names are ``brax/hopper``, of the spring backend, and ``brax/hopper-generalized``. The two are different physics: returns compare
within one only.

Bodies take the factors of ``environment.physics`` but ``length``, as their shapes are brax's own. ``mass`` scales the masses and
inertias that the physics computes with. The spring backend's are not the body's own, but ``mass ** (1 - spring_mass_scale)``,
which is 1 for every link of the hopper. ``damping`` scales what joints are damped by: in the spring backend the damping of
their angular springs, else that of their degrees of freedom.
"""

import contextlib
import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mbrl_jax.config import ConfigError, EnvironmentConfig, PhysicsConfig
from mbrl_jax.environments.protocol import Environment, EnvironmentSpec, EnvironmentState, Transition, restart
from mbrl_jax.environments.registry import register
from mbrl_jax.environments.simulators import lenient, like, strong

TIME_LIMIT = 1_000  # steps, as brax's own
BACKENDS = ("spring", "generalized")
FACTORS = ("mass", "damping", "gravity", "force")
PENDULUM_ANGLE = 0.2  # radians from upright, beyond which an inverted pendulum has fallen


class Running(NamedTuple):
    """A simulator's state and the steps since its reset."""

    simulator: Any  # of brax: envs.State
    time: Array  # [] int32


class _Task(NamedTuple):
    """What brax does not say about a task."""

    observation_scale: tuple[float, ...]
    reward: Callable[[Array, Array, Array], Array] | None = None  # none: the observation does not tell it
    terminated: Callable[[Array, Array, Array], Array] | None = None


def _never(s: Array, a: Array, s2: Array) -> Array:
    return jnp.zeros(s2.shape[:-1], bool)


def _one_per_step(s: Array, a: Array, s2: Array) -> Array:
    return jnp.ones_like(s2[..., 0])


def _pendulum_terminated(s: Array, a: Array, s2: Array) -> Array:
    return jnp.abs(s2[..., 1]) > PENDULUM_ANGLE


def _joints(positions: int, velocities: int) -> tuple[float, ...]:
    """The scale of joint positions [m, rad], and of joint velocities."""
    return (1.0,) * positions + (10.0,) * velocities


TASKS = {
    "hopper": _Task(_joints(5, 6)),
    "walker2d": _Task(_joints(8, 9)),
    "ant": _Task(_joints(13, 14)),
    "halfcheetah": _Task(_joints(8, 9), terminated=_never),
    "inverted_pendulum": _Task((1.0, 0.2, 2.0, 2.0), _one_per_step, _pendulum_terminated),
    "reacher": _Task((1.0,) * 4 + (0.2, 0.2, 10.0, 10.0, 0.4, 0.4, 0.4), terminated=_never),
}


def make(config: EnvironmentConfig) -> Environment:
    """The task of brax that ``config`` names. Raises ConfigError: brax is not installed."""
    task_name, _, other = config.name.removeprefix("brax/").partition("-")
    backend = other or BACKENDS[0]
    task = TASKS[task_name]
    simulator = _simulator(config.name, task_name, backend)
    if any(value != 1.0 for value in dataclasses.asdict(config.physics).values()):
        simulator.sys = _scaled(simulator.sys, config.physics, backend)
    limit = TIME_LIMIT if config.time_limit is None else config.time_limit
    spec = EnvironmentSpec(
        name=config.name,
        observation_size=len(task.observation_scale),
        action_count=0,
        time_limit=limit,
        observation_scale=task.observation_scale,
        action_size=int(simulator.action_size),
    )
    raw_reset, raw_step = jax.jit(simulator.reset), jax.jit(simulator.step)  # traced once, however often they are mapped

    def reset(key: Array) -> EnvironmentState:
        with _physics():
            state = strong(raw_reset(key))
        return EnvironmentState(Running(state, jnp.zeros((), jnp.int32)), state.obs)

    def draw_resets(key: Array, lead: tuple[int, ...]) -> EnvironmentState:
        states = jax.vmap(reset)(jax.random.split(key, int(np.prod(lead, dtype=int))))
        return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), states)

    def step(state: EnvironmentState, action: Array, fresh: EnvironmentState) -> tuple[EnvironmentState, Transition]:
        before, time = state.inner
        with _physics():
            following = like(raw_step(before, action), before)
        terminated, truncated = following.done > 0, time + 1 >= limit
        transition = Transition(
            observation=state.observation,
            action=action,
            reward=following.reward,
            next_observation=following.obs,
            terminated=terminated,
            truncated=truncated,
            elapsed=time,
        )
        after = EnvironmentState(Running(following, time + 1), following.obs)
        return restart(after, fresh, terminated | truncated), transition

    return Environment(spec, draw_resets, step, task.reward, task.terminated)


# ------------------------------------------------------------------------------------------------------------------ pieces


@contextlib.contextmanager
def _physics() -> Iterator[None]:
    """What brax's code runs under, without its warnings: that it is not maintained, and of what it asks MuJoCo."""
    with lenient(), jax.default_matmul_precision("highest"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _simulator(name: str, task: str, backend: str) -> Any:
    """The raw environment of brax."""
    with _physics():
        try:
            with contextlib.redirect_stdout(sys.stderr):  # MuJoCo prints which of its own extras are missing
                from brax import envs
        except ImportError as error:
            raise ConfigError(f"environment.name: {name!r} needs brax: {error}; install the extra `mbrl-jax[brax]`") from error
        with _quiet_mujoco():
            return envs.get_environment(task, backend=backend)


def _scaled(system: Any, physics: PhysicsConfig, backend: str) -> Any:
    """A system of brax with its numbers times the factors of ``physics``."""
    link, inertia = system.link, system.link.inertia
    mass, moments = inertia.mass, inertia.i  # [links] kg, [links, 3, 3] kg m²
    if backend == "spring":  # the masses that it computes with, as they are; it takes of the moments their diagonal alone
        mass = mass ** (1 - system.spring_mass_scale)
        diagonal = jnp.diagonal(moments, axis1=-2, axis2=-1) ** (1 - system.spring_inertia_scale)
        moments = jax.vmap(jnp.diag)(diagonal)
        system = system.replace(spring_mass_scale=0.0, spring_inertia_scale=0.0)
    return system.replace(
        link=link.replace(
            inertia=inertia.replace(mass=mass * physics.mass, i=moments * physics.mass),
            constraint_ang_damping=link.constraint_ang_damping * physics.damping,
        ),
        dof=system.dof.replace(damping=system.dof.damping * physics.damping),
        gravity=system.gravity * physics.gravity,
        actuator=system.actuator.replace(gear=system.actuator.gear * physics.force),
    )


@contextlib.contextmanager
def _quiet_mujoco() -> Iterator[None]:
    """Keep MuJoCo from writing its warnings about brax's models to a file in the working directory."""
    import mujoco

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda _: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


for _name in TASKS:
    for _backend in BACKENDS:
        register(f"brax/{_name}" + ("" if _backend == BACKENDS[0] else f"-{_backend}"), make, physics=FACTORS)
