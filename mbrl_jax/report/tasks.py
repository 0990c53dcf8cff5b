"""What the report knows of the tasks by name: what their axes are called, and how a trajectory of theirs is shown."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Curve = Callable[[np.ndarray], np.ndarray]  # states [n, D] -> [n]


class TaskView(NamedTuple):
    """How a task is shown."""

    drawing: str  # the drawing of the page's script
    rate: float  # steps of an animation per second
    axes: tuple[str, ...]  # D names
    places: tuple[int, ...]  # axes that say where things are, not how fast they move
    curves: Mapping[str, Curve]  # that tell a trajectory best, the first of them before all others


def _axis(place: int, factor: float = 1.0) -> Curve:
    return lambda states: states[:, place] * factor


def _tip_height(states: np.ndarray) -> np.ndarray:
    cos1, sin1, cos2, sin2 = states[:, :4].T
    return -cos1 - (cos1 * cos2 - sin1 * sin2)


TASKS = {
    "CartPole-v1": TaskView(
        "cartpole",
        50,
        ("position", "velocity", "angle", "angular velocity"),
        (0, 2),
        {"pole angle [degrees]": _axis(2, 180 / np.pi), "cart position [m]": _axis(0)},
    ),
    "Acrobot-v1": TaskView(
        "acrobot",
        15,
        ("cos θ₁", "sin θ₁", "cos θ₂", "sin θ₂", "θ₁ velocity", "θ₂ velocity"),
        (0, 1, 2, 3),
        {"height of the tip": _tip_height, "velocity of the 1st joint": _axis(4)},
    ),
    "Pendulum-v1": TaskView(
        "pendulum",
        20,
        ("cos θ", "sin θ", "angular velocity"),
        (0, 1),
        {"angle from upright [degrees]": lambda states: np.degrees(np.arctan2(states[:, 1], states[:, 0])), "velocity": _axis(2)},
    ),
    "MountainCar-v0": TaskView("mountain_car", 30, ("position", "velocity"), (0,), {"position": _axis(0), "velocity": _axis(1)}),
}


def view_of(name: str, size: int) -> TaskView:
    """How a task with ``size`` observation axes is shown; one that has no drawing of its own is shown by its axes."""
    if name in TASKS:
        return TASKS[name]
    axes = tuple(f"axis {place}" for place in range(size))
    return TaskView("lines", 30, axes, tuple(range(size)), {axis: _axis(place) for place, axis in enumerate(axes[:4])})


def axis_names(name: str, size: int) -> tuple[str, ...]:
    """What the axes of a task's observations are called."""
    return view_of(name, size).axes


def side_name(name: str, size: int, axes: tuple[int, ...]) -> str:
    """What one side of a map is called, that is an axis, or an angle whose cosine and sine are two."""
    names = axis_names(name, size)
    return names[axes[0]] if len(axes) == 1 else f"{names[axes[0]].removeprefix('cos ')} [degrees]"
