"""A linear system with a quadratic cost, whose window's gradient has a closed form."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.environments import Environment, EnvironmentSpec, EnvironmentState, Transition, restart
from mbrl_jax.model.protocol import Imagined, ModelSpec, WorldModel

A = np.array([[1.0, 0.1], [-0.2, 0.95]])
B = np.array([[0.0], [0.3]])
Q = np.array([[1.0, 0.2], [0.2, 0.5]])
R = np.array([[0.3]])


class Inner(NamedTuple):
    state: jax.Array
    time: jax.Array


def make(time_limit=20, *, bound=np.inf):
    """The task; an episode terminates where the first axis is beyond ``bound``."""
    spec = EnvironmentSpec("linear", 2, 0, time_limit, (1.0, 1.0), action_size=1)

    def dynamics(s, a):
        a_matrix, b_matrix = (jnp.asarray(each, s.dtype) for each in (A, B))
        return jnp.einsum("ij,...j->...i", a_matrix, s) + jnp.einsum("ij,...j->...i", b_matrix, a)

    def reward(s, a, s2):
        q, r = (jnp.asarray(each, s.dtype) for each in (Q, R))
        return -jnp.einsum("...i,ij,...j->...", s, q, s) - jnp.einsum("...i,ij,...j->...", a, r, a)

    def terminated(s, a, s2):
        return jnp.abs(s2[..., 0]) > bound

    def draw_resets(key, shape):
        state = jax.random.uniform(key, (*shape, 2), minval=-1.0, maxval=1.0)
        return EnvironmentState(Inner(state, jnp.zeros(shape, jnp.int32)), state)

    def step(state, action, fresh):
        s, time = state.inner
        after = dynamics(s, action)
        ends, cut = terminated(s, action, after), time + 1 >= time_limit
        told = Transition(s, action, reward(s, action, after), after, ends, cut, time)
        return restart(EnvironmentState(Inner(after, time + 1), after), fresh, ends | cut), told

    return Environment(spec, draw_resets, step, reward, terminated, dynamics)


def true_world(task, members=2):
    """A world model that is the task itself: every member's mean step is the real one."""
    size = task.spec.observation_size
    spec = ModelSpec(task.spec.name, size, members, size, has_variance=False, reward_known=True)

    def expect(params, belief, action):
        after = task.dynamics(belief, action)
        member = jnp.zeros(belief.shape[:-1], jnp.int32)
        return Imagined(after, task.reward(belief, action, after), task.terminated(belief, action, after), member, None)

    nothing = dict.fromkeys(WorldModel._fields)
    return WorldModel(**{**nothing, "spec": spec, "expect": expect, "features": lambda x: x, "belief": lambda x: x})


def closed_form(gain, starts, steps, discount, value):
    """[1, 2] gradient with respect to the gain K of ``a = K s`` of the mean over windows of H steps of
    ``sum of discount^t r[t] + discount^H s' value s`` over H, by the adjoint recursion.
    """
    total, closed = np.zeros_like(gain), A + B @ gain
    for start in starts:
        states = [start]
        for _ in range(steps):
            states.append(closed @ states[-1])
        adjoint = discount**steps * 2 * value @ states[-1]
        for t in reversed(range(steps)):
            total += np.outer(discount**t * -2 * R @ gain @ states[t] + B.T @ adjoint, states[t])
            adjoint = discount**t * -2 * (Q + gain.T @ R @ gain) @ states[t] + closed.T @ adjoint
    return total / (len(starts) * steps)
