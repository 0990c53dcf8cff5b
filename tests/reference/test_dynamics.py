import warnings

import numpy as np
import pytest
import torch

from mbrl_jax.reference.environment import TASKS, Simulator, make_task

HIGH = {"CartPole-v1": (2.4, 3.0, 0.2, 3.0), "MountainCar-v0": (0.9, 0.07), "Acrobot-v1": (3.2, 3.2, 12.6, 28.0)}
CENTRE = {"MountainCar-v0": (-0.3, 0.0)}


@pytest.mark.parametrize("name", TASKS)
def test_the_dynamics_are_the_simulators(name: str) -> None:
    task, rng = make_task(name), np.random.default_rng(3)
    high = np.array(HIGH[name])
    states = np.array(CENTRE.get(name, 0.0)) + rng.uniform(-high, high, (500, len(high)))
    if name == "MountainCar-v0":
        states[:50, 0] = -1.2  # the wall
    actions = rng.integers(0, task.actions, len(states))
    simulator, expected = Simulator(task), []
    for state, action in zip(states, actions.tolist(), strict=True):
        simulator.reset(state)
        expected.append(simulator.step(action)[0])
    got = task.dynamics(torch.from_numpy(task.observe(states)), torch.from_numpy(actions))
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-12)


def test_the_dynamics_keep_the_observations_dtype() -> None:
    for task in TASKS.values():
        with warnings.catch_warnings(action="error"):
            assert task.dynamics(torch.zeros(7, task.observation_size), torch.zeros(7, dtype=torch.int64)).dtype == torch.float32
