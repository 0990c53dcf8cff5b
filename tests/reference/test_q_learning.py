"""Several networks as one learner, and the target that mixes imagined horizons."""

import copy
import dataclasses

import pytest
import torch

from mbrl_jax.config import DynaQConfig, QLearningConfig
from mbrl_jax.reference.agents import q_learning
from mbrl_jax.reference.draws import Draws
from mbrl_jax.reference.environment import make_task
from mbrl_jax.reference.model.ensemble import predict, transition
from mbrl_jax.reference.networks import QEnsemble, make_q_network, networks_of
from mbrl_jax.reference.replay import Transition

from .test_horizon import M, make_rows, make_world

CONFIG = QLearningConfig(hidden=(8,), members=2, learning_rate=1e-2)
B = 21


def make_networks(config: DynaQConfig, seed: int = 0, members: int = 2) -> QEnsemble:
    agent = dataclasses.replace(CONFIG, members=members)
    network = make_q_network(agent, make_task("CartPole-v1"), dtype=torch.float64, device=torch.device("cpu"))
    Draws(config, seed, dtype=torch.float64).initialise_q(network)
    assert isinstance(network, QEnsemble)
    return network


def make_batch() -> Transition:
    rows = make_rows(B)
    return rows._replace(
        next_observation=0.2 * rows.observation, reward=rows.reward + 1, terminated=(torch.arange(B) % 5 == 0) * 1.0
    )


def test_the_value_of_several_networks_is_their_mean_and_they_differ(tiny: DynaQConfig) -> None:
    network, observation = make_networks(tiny), make_rows().observation
    first, second = (one(observation) for one in networks_of(network))
    assert (first != second).any()
    torch.testing.assert_close(network(observation), (first + second) / 2)


def test_each_of_several_networks_takes_the_step_that_it_would_take_alone(tiny: DynaQConfig) -> None:
    together = make_networks(tiny)
    alone = [copy.deepcopy(one) for one in networks_of(together)]
    learner, batch = q_learning.Learner(together, CONFIG), make_batch()
    y = q_learning.targets(learner.online, learner.target, batch, CONFIG)
    fixed = lambda online, _, batch, config, __: q_learning.loss(online, batch, y, config)  # noqa: E731
    told = [q_learning.update(q_learning.Learner(one, CONFIG), batch, CONFIG, 0.0, None, fixed) for one in alone]
    loss, scaled = q_learning.update(learner, batch, CONFIG, 0.0)
    assert float(loss) == pytest.approx(sum(float(entry[0]) for entry in told) / 2)
    assert float(scaled) == pytest.approx(sum(float(entry[1]) for entry in told) / 2)
    for mine, other in zip(networks_of(learner.online), alone, strict=True):
        for leaf, expected in zip(mine.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(leaf, expected)


def test_steve_is_the_sum_that_the_paper_writes(tiny: DynaQConfig) -> None:
    online, target, batch, world = make_networks(tiny), make_networks(tiny, 1, 3), make_batch(), make_world()
    world = world._replace(normaliser=world.normaliser._replace(target_std=0.05 * world.normaliser.target_std))
    config = dataclasses.replace(CONFIG, target="steve", target_steps=3, discount=0.9)
    with torch.no_grad():
        y = q_learning.targets(online, target, batch, config, world)
        assert batch.terminated.any()
        for row in range(B):
            candidates = [[] for _ in range(4)]
            for e in range(M):
                s, alive, earned = batch.next_observation[row], 1 - float(batch.terminated[row]), float(batch.reward[row])
                for h in range(4):
                    for network in networks_of(target):
                        candidates[h].append(earned + 0.9 ** (h + 1) * alive * float(network(s).max()))
                    action = online(s).argmax()
                    said = predict(world, s.expand(M, 1, -1), action.expand(M, 1))
                    one = type(said)(said.mean[e, 0], None, None)
                    moved = transition(world, one, s, action, None)
                    earned += 0.9 ** (h + 1) * alive * float(moved.reward)
                    alive, s = alive * (1 - float(moved.terminated)), moved.next_observation
            each = torch.tensor(candidates, dtype=torch.float64)
            weight = 1 / (each.var(1, correction=0) + 1e-8)
            torch.testing.assert_close(y[row], (weight * each.mean(1)).sum() / weight.sum())


def test_steve_needs_two_networks_and_a_model(tiny: DynaQConfig) -> None:
    config = dataclasses.replace(CONFIG, target="steve")
    two = make_networks(tiny)
    one = networks_of(two)[0]
    with pytest.raises(ValueError, match="agent.members: 1 does not fit"):
        q_learning.targets(one, one, make_batch(), config, make_world())
    with pytest.raises(ValueError, match="'steve' needs a model"):
        q_learning.targets(two, two, make_batch(), config)
