"""The tasks' real dynamics once more, as functions of observations: what an imagined step is compared with.

Gymnasium's equations in torch; observations [..., D] and actions [...] to next observations [..., D], in the observation's dtype.
"""

import math

import torch
from torch import Tensor


def cart_pole(observation: Tensor, action: Tensor) -> Tensor:
    """Explicit Euler steps of 0.02 s, pushed by 10 N to the left (action 0) or to the right."""
    gravity, pole_mass, half_length, seconds = 9.8, 0.1, 0.5, 0.02
    mass, moment = 1.0 + pole_mass, pole_mass * half_length
    _, velocity, angle, turn = observation.unbind(-1)
    force = torch.where(action == 1, 10.0, -10.0).to(observation.dtype)
    sine, cosine = angle.sin(), angle.cos()
    push = (force + moment * turn.square() * sine) / mass
    turning = (gravity * sine - cosine * push) / (half_length * (4 / 3 - pole_mass * cosine.square() / mass))
    speeding = push - moment * turning * cosine / mass
    change = torch.stack([velocity, speeding, turn, turning], dim=-1)
    return observation + seconds * change


def mountain_car(observation: Tensor, action: Tensor) -> Tensor:
    """A push of 0.001 against a slope; the wall on the left takes the speed."""
    lowest, highest, fastest = -1.2, 0.6, 0.07
    position, velocity = observation.unbind(-1)
    velocity = velocity + 0.001 * (action - 1).to(velocity.dtype) - 0.0025 * torch.cos(3 * position)
    velocity = velocity.clamp(-fastest, fastest)
    position = (position + velocity).clamp(lowest, highest)
    velocity = torch.where((position == lowest) & (velocity < 0), 0.0, velocity)
    return torch.stack([position, velocity], dim=-1)


def _acrobot_change(state: Tensor, torque: Tensor) -> Tensor:
    """[..., 4] the derivative of (angle 1, angle 2, velocity 1, velocity 2) by the book's equations; lengths and masses are 1."""
    gravity, centre = 9.8, 0.5
    angle1, angle2, velocity1, velocity2 = state.unbind(-1)
    sine2, cosine2 = angle2.sin(), angle2.cos()
    d1 = centre**2 + (1 + centre**2 + 2 * centre * cosine2) + 2
    d2 = centre**2 + centre * cosine2 + 1
    phi2 = centre * gravity * torch.cos(angle1 + angle2 - math.pi / 2)
    phi1 = (
        -centre * velocity2.square() * sine2
        - 2 * centre * velocity2 * velocity1 * sine2
        + (centre + 1) * gravity * torch.cos(angle1 - math.pi / 2)
        + phi2
    )
    numerator = torque + d2 / d1 * phi1 - centre * velocity1.square() * sine2 - phi2
    speeding2 = numerator / (centre**2 + 1 - d2.square() / d1)
    speeding1 = -(d2 * speeding2 + phi1) / d1
    return torch.stack([velocity1, velocity2, speeding1, speeding2], dim=-1)


def _wrap(angle: Tensor) -> Tensor:
    """The angle within [-π, π] that it is the same as."""
    turns = torch.ceil((angle.abs() - math.pi) / (2 * math.pi)).clamp(min=0)
    return angle - 2 * math.pi * turns * angle.sign()


def acrobot(observation: Tensor, action: Tensor) -> Tensor:
    """One Runge-Kutta step of fourth order over 0.2 s, the torque on the joint between the links being -1, 0 or 1."""
    seconds = 0.2
    cosine1, sine1, cosine2, sine2, velocity1, velocity2 = observation.unbind(-1)
    state = torch.stack([torch.atan2(sine1, cosine1), torch.atan2(sine2, cosine2), velocity1, velocity2], dim=-1)
    torque = (action - 1).to(observation.dtype)
    k1 = _acrobot_change(state, torque)
    k2 = _acrobot_change(state + seconds / 2 * k1, torque)
    k3 = _acrobot_change(state + seconds / 2 * k2, torque)
    k4 = _acrobot_change(state + seconds * k3, torque)
    angle1, angle2, velocity1, velocity2 = (state + seconds / 6 * (k1 + 2 * k2 + 2 * k3 + k4)).unbind(-1)
    angle1, angle2 = _wrap(angle1), _wrap(angle2)
    velocity1, velocity2 = velocity1.clamp(-4 * math.pi, 4 * math.pi), velocity2.clamp(-9 * math.pi, 9 * math.pi)
    return torch.stack([angle1.cos(), angle1.sin(), angle2.cos(), angle2.sin(), velocity1, velocity2], dim=-1)
