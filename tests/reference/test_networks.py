import shutil

import pytest
import torch

from mbrl_jax.config import DynaQConfig, QLearningConfig
from mbrl_jax.reference.agents import q_learning
from mbrl_jax.reference.draws import Draws
from mbrl_jax.reference.environment import make_task
from mbrl_jax.reference.networks import hot, make_q_network
from mbrl_jax.reference.replay import Replay, Transition

CPU = torch.device("cpu")


def rows(n: int) -> Transition:
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(n, 4, generator=generator)
    action = torch.randint(2, (n,), generator=generator)
    return Transition(observation, action, torch.ones(n), observation + 0.1, torch.zeros(n), torch.ones(n), torch.zeros(n))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is no g++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_loss_is_the_plain_one(tiny: DynaQConfig) -> None:
    config = QLearningConfig(hidden=(8, 8))
    networks = [make_q_network(config, make_task("CartPole-v1"), dtype=torch.float32, device=CPU) for _ in range(2)]
    for number, network in enumerate(networks):
        Draws(tiny, number).initialise_q(network)
    compiled = hot(q_learning.target_loss, True, CPU)
    plain = q_learning.target_loss(*networks, rows(32), config, None)
    torch.testing.assert_close(compiled(*networks, rows(32), config, None), plain)


def test_more_rows_than_a_replay_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="11 rows do not fit into a replay of 10"):
        Replay(10, 4, dtype=torch.float32, device=CPU).write(rows(11))


def test_a_conservative_target_needs_a_world(tiny: DynaQConfig) -> None:
    config = QLearningConfig(hidden=(8, 8), target="quantile")
    network = make_q_network(config, make_task("CartPole-v1"), dtype=torch.float32, device=CPU)
    with pytest.raises(ValueError, match="'quantile' needs a model"):
        q_learning.targets(network, network, rows(4), config)
