"""What the axes of a task are called in the report."""

from mbrl_jax.environments import view_of


def axis_names(name: str, size: int) -> tuple[str, ...]:
    """What the axes of a task's observations are called."""
    return view_of(name, size).axes


def side_name(name: str, size: int, axes: tuple[int, ...]) -> str:
    """What one side of a map is called, that is an axis, or an angle whose cosine and sine are two."""
    names = axis_names(name, size)
    return names[axes[0]] if len(axes) == 1 else f"{names[axes[0]].removeprefix('cos ')} [degrees]"
