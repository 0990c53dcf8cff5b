"""The equations of motion of the swing-up tasks, and the numbers of their bodies.

The bodies are those of the DeepMind Control suite (Tassa et al. 2018); the equations and the integrators are MuJoCo's for these
two models. The factors of a task's physics (``environment.physics``) make other bodies of the same kind.
"""

import math
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from mbrl_jax.config import PhysicsConfig

GRAVITY = 9.81  # m/s^2
TRACK = 1.8  # m, where the slider's limit begins on either side
CARTPOLE_STEP, PENDULUM_STEP = 0.01, 0.02  # s


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


class CartPole(NamedTuple):
    """The bodies of a cart-pole."""

    cart_mass: float = 1.0  # kg
    cart_damping: float = 5e-4  # N s/m
    force: float = 10.0  # N, of an action of 1
    pole_mass: float = 0.1  # kg
    pole_length: float = 1.0  # m, of the capsule's cylinder
    pole_radius: float = 0.045  # m
    hinge_damping: float = 2e-6  # N m s
    gravity: float = GRAVITY  # m/s^2

    @property
    def coupling(self) -> float:
        """The pole's mass times the way from the hinge to its centre of mass [kg m]."""
        return self.pole_mass * (self.pole_length / 2)

    @property
    def pole_inertia(self) -> float:
        """Of the pole about the hinge [kg m^2]."""
        own = capsule_inertia(self.pole_mass, self.pole_length, self.pole_radius)
        return own + self.pole_mass * (self.pole_length / 2) ** 2

    @property
    def total_mass(self) -> float:
        """[kg]."""
        return self.cart_mass + self.pole_mass

    @property
    def inverse_inertia(self) -> float:
        """The cart's with the pole upright [1/kg], by which the regularisation of the slider's limit is scaled."""
        return self.pole_inertia / (self.total_mass * self.pole_inertia - self.coupling**2)


class Pendulum(NamedTuple):
    """The body of a pendulum."""

    mass: float = 1.0  # kg
    radius: float = 0.05  # m, of the bob
    length: float = 0.5  # m
    damping: float = 0.1  # N m s
    torque: float = 1.0  # N m, of an action of 1
    gravity: float = GRAVITY  # m/s^2

    @property
    def inertia(self) -> float:
        """About the hinge [kg m^2]."""
        return self.mass * (self.length**2 + 0.4 * self.radius**2)


CARTPOLE, PENDULUM = CartPole(), Pendulum()


def scaled_cartpole(physics: PhysicsConfig) -> CartPole:
    """The suite's cart-pole with its numbers times the factors of ``physics``."""
    own = CARTPOLE
    return own._replace(
        cart_mass=own.cart_mass * physics.mass,
        cart_damping=own.cart_damping * physics.damping,
        force=own.force * physics.force,
        pole_mass=own.pole_mass * physics.mass,
        pole_length=own.pole_length * physics.length,
        hinge_damping=own.hinge_damping * physics.damping,
        gravity=own.gravity * physics.gravity,
    )


def scaled_pendulum(physics: PhysicsConfig) -> Pendulum:
    """The suite's pendulum with its numbers times the factors of ``physics``."""
    own = PENDULUM
    return own._replace(
        mass=own.mass * physics.mass,
        length=own.length * physics.length,
        damping=own.damping * physics.damping,
        torque=own.torque * physics.force,
        gravity=own.gravity * physics.gravity,
    )


# MuJoCo's soft limit: a spring and damper with time constant 0.08 s and damping ratio 1, and an impedance between 0.9 and 0.95
# that is reached 1 mm beyond the limit
_LIMIT_TIME, _LIMIT_RATIO = 0.08, 1.0
_IMPEDANCE_FIRST, _IMPEDANCE_LAST, _IMPEDANCE_WIDTH = 0.9, 0.95, 0.001
_STIFFNESS = 1 / (_IMPEDANCE_LAST * _LIMIT_TIME * _LIMIT_RATIO) ** 2
_DAMPING = 2 / (_IMPEDANCE_LAST * _LIMIT_TIME)


def _impedance(depth: Array) -> Array:
    """MuJoCo's impedance at a limit that is exceeded by ``depth`` [m]: two parabolas that meet half-way."""
    share = jnp.clip(depth / _IMPEDANCE_WIDTH, 0, 1)
    rise = jnp.where(share < 0.5, 2 * share**2, 1 - 2 * (1 - share) ** 2)
    return _IMPEDANCE_FIRST + rise * (_IMPEDANCE_LAST - _IMPEDANCE_FIRST)


def cartpole_acceleration(position: Array, velocity: Array, action: Array, body: CartPole = CARTPOLE) -> Array:
    """[..., 2] accelerations of the cart [m/s^2] and of the pole [rad/s^2].

    Args:
      position: [..., 2] of the cart [m], and the pole's angle from upright [rad].
      velocity: [..., 2].
      action: [...] from -1 to 1.
      body: what moves.

    """
    (x, angle), (speed, rate) = (tuple(jnp.moveaxis(each, -1, 0)) for each in (position, velocity))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    inertia, total_mass = body.pole_inertia, body.total_mass
    coupling = body.coupling * cos
    force = body.force * action - body.cart_damping * speed + body.coupling * sin * rate**2
    torque = body.coupling * body.gravity * sin - body.hinge_damping * rate
    determinant = total_mass * inertia - coupling**2
    free = (inertia * force - coupling * torque) / determinant  # the cart's acceleration without the limit
    # the limit pushes with the force that makes the most of its spring, and never pulls
    side = jnp.where(x < 0, 1.0, -1.0).astype(x.dtype)  # where it pushes to
    depth = jnp.abs(x) - TRACK
    impedance = _impedance(depth)
    wanted = impedance * _STIFFNESS * depth - _DAMPING * side * speed
    mobility = inertia / determinant
    softness = (1 - impedance) / impedance * body.inverse_inertia
    push = jnp.where(depth > 0, jnp.maximum(wanted - side * free, 0) / (mobility + softness), 0)
    force = force + side * push
    cart = (inertia * force - coupling * torque) / determinant
    pole = (total_mass * torque - coupling * force) / determinant
    return jnp.stack([cart, pole], -1)


def cartpole_step(position: Array, velocity: Array, action: Array, body: CartPole = CARTPOLE) -> tuple[Array, Array]:
    """Move a cart-pole by one step of 0.01 s by the Runge-Kutta method of order 4; arguments as :func:`cartpole_acceleration`."""
    h = CARTPOLE_STEP
    accelerate = partial(cartpole_acceleration, action=action, body=body)
    v1, a1 = velocity, accelerate(position, velocity)
    v2 = velocity + h / 2 * a1
    a2 = accelerate(position + h / 2 * v1, v2)
    v3 = velocity + h / 2 * a2
    a3 = accelerate(position + h / 2 * v2, v3)
    v4 = velocity + h * a3
    a4 = accelerate(position + h * v3, v4)
    return position + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4), velocity + h / 6 * (a1 + 2 * a2 + 2 * a3 + a4)


def pendulum_step(position: Array, velocity: Array, action: Array, body: Pendulum = PENDULUM) -> tuple[Array, Array]:
    """Move a pendulum by one step of 0.02 s: semi-implicit Euler, with the joint's damping taken at the step's end.

    Args:
      position: [..., 1] angle from upright [rad].
      velocity: [..., 1], in rad/s.
      action: [...] from -1 to 1.
      body: what moves.

    """
    weight = body.mass * body.gravity * body.length * jnp.sin(position)
    torque = body.torque * action[..., None] + weight - body.damping * velocity
    velocity = velocity + PENDULUM_STEP * torque / (body.inertia + PENDULUM_STEP * body.damping)
    return position + PENDULUM_STEP * velocity, velocity
