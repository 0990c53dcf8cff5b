"""Environments: tasks as pure functions, by name or of one's own."""

from mbrl_jax.environments import brax, control, data, gymnax, gymnax_suites, pixels  # noqa: F401, they register their tasks
from mbrl_jax.environments.collection import (
    CollectionDraws,
    collect,
    draw_actions,
    draw_collection,
    draw_pool,
    from_pool,
)
from mbrl_jax.environments.host import host_environment
from mbrl_jax.environments.protocol import (
    Environment,
    EnvironmentSpec,
    EnvironmentState,
    Transition,
    check_environment,
    in_units,
    restart,
)
from mbrl_jax.environments.registry import (
    TaskView,
    environment_of,
    make_environment,
    register,
    registered,
    success_marks,
    view_of,
)

__all__ = [
    "CollectionDraws",
    "Environment",
    "EnvironmentSpec",
    "EnvironmentState",
    "TaskView",
    "Transition",
    "check_environment",
    "collect",
    "draw_actions",
    "draw_collection",
    "draw_pool",
    "environment_of",
    "from_pool",
    "host_environment",
    "in_units",
    "make_environment",
    "register",
    "registered",
    "restart",
    "success_marks",
    "view_of",
]
