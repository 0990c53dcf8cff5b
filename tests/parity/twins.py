"""The same thing on both sides: networks with the same random parameters, rows with the same random numbers."""

from typing import Any

import jax
import numpy as np
import torch

from mbrl_jax import environments as env
from mbrl_jax import replay
from mbrl_jax.agents.q_learning import QLearner, QState
from mbrl_jax.config import EnvironmentConfig, ModelConfig, QLearningConfig
from mbrl_jax.model.ensemble import Bounds, Ensemble, Members, Normaliser, init_params
from mbrl_jax.networks import ADAM
from mbrl_jax.reference import environment as reference_environment
from mbrl_jax.reference import replay as reference_replay
from mbrl_jax.reference import weights
from mbrl_jax.reference.agents import q_learning as reference_q
from mbrl_jax.reference.model import ensemble as reference_ensemble
from mbrl_jax.reference.networks import QFunction, make_q_network

from .agreement import tensor

SMALL = {"members": 5, "hidden": (32, 32), "batch_size": 32, "epochs": 3}


def random_params(rng: np.random.Generator, shapes: Any) -> Any:
    """Parameters of those shapes in float64, biases included."""

    def draw(leaf: Any) -> jax.Array:  # a kernel [..., inputs, outputs] or a bias [..., outputs]
        scale = leaf.shape[-2] ** -0.5 if len(leaf.shape) > 1 else 0.3
        return jax.device_put(rng.normal(0, scale, leaf.shape))

    return jax.tree.map(draw, shapes)


class ModelTwins:
    """An ensemble in both implementations, of the same random parameters, bounds and statistics."""

    def __init__(self, rng: np.random.Generator, task: str = "CartPole-v1", **settings: Any) -> None:
        self.config = ModelConfig(**{**SMALL, **settings})
        self.environment = env.make_environment(EnvironmentConfig(name=task))
        self.task = reference_environment.make_task(task)
        self.ensemble = Ensemble(self.config, self.environment.spec, self.environment.reward, self.environment.terminated)
        params, bounds = jax.eval_shape(lambda key: init_params(self.ensemble, key), jax.random.key(0))
        self.params = random_params(rng, params)
        size, targets = self.environment.spec.observation_size, self.ensemble.targets
        low, high = rng.uniform(-6, -4, bounds[0].shape), rng.uniform(-1, 1, bounds[0].shape)
        self.bounds = Bounds(*jax.device_put((low, high)))
        statistics = [
            rng.normal(size=size),
            rng.uniform(0.5, 2, size),
            0.1 * rng.normal(size=targets),
            rng.uniform(0.1, 1, targets),
        ]
        self.normaliser = Normaliser(*jax.device_put(statistics))
        self.members = Members(self.params, self.bounds, self.normaliser)
        self.reference = reference_ensemble.Ensemble(self.config, self.task, self.config.members).to(torch.float64)
        self.reference.load_state_dict(weights.ensemble_to_torch(self.params, *self.bounds))
        self.world = reference_ensemble.World(self.reference, reference_ensemble.Normaliser(*(tensor(x) for x in statistics)))


class LearnerTwins:
    """A Q-learner in both implementations, whose two networks differ and whose optimiser is fresh."""

    def __init__(self, rng: np.random.Generator, task: str = "CartPole-v1", **settings: Any) -> None:
        self.config = QLearningConfig(**{"hidden": (32, 32), "batch_size": 64, **settings})
        self.environment = env.make_environment(EnvironmentConfig(name=task))
        self.task = reference_environment.make_task(task)
        self.learner = QLearner(self.config, self.environment.spec)
        shapes = jax.eval_shape(lambda key: self.learner.init(key).online, jax.random.key(0))
        online, target = random_params(rng, shapes), random_params(rng, shapes)
        nothing, never = jax.device_put((np.zeros((), np.int32), np.zeros((), bool)))
        self.state = QState(online, target, jax.jit(ADAM.init)(online), never, nothing)
        self.reference = reference_q.Learner(self.network(online), self.config)
        self.reference.target.load_state_dict(weights.q_to_torch(target))

    def network(self, params: Any) -> QFunction:
        """A torch network, or several, with those Flax parameters."""
        network = make_q_network(self.config, self.task, dtype=torch.float64, device=torch.device("cpu"))
        network.load_state_dict(weights.q_to_torch(params))
        return network


def random_rows(
    rng: np.random.Generator, n: int, size: int = 4, actions: int = 2
) -> tuple[replay.Rows, reference_replay.Transition]:
    """[n] transitions with random contents, some terminated, some of weight 0, for both sides."""
    observation = rng.normal(size=(n, size))
    columns = {
        "observation": observation,
        "action": rng.integers(0, actions, n).astype(np.int32),
        "reward": rng.normal(size=n),
        "next_observation": observation + 0.1 * rng.normal(size=(n, size)),
        "terminated": rng.random(n) < 0.2,
        "weight": (rng.random(n) < 0.8).astype(np.float64),
        "depth": rng.integers(0, 9, n).astype(np.int32),
    }
    ours = replay.Rows(**jax.device_put(columns))
    theirs = reference_replay.Transition(**{name: tensor(x) for name, x in columns.items()})
    theirs = theirs._replace(action=theirs.action.long(), terminated=theirs.terminated.double())
    return ours, theirs
