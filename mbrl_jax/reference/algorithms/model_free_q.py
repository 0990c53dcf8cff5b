"""Q-learning from real transitions alone: the baseline, top to bottom."""

from typing import TYPE_CHECKING

import torch

from mbrl_jax.reference import evaluation
from mbrl_jax.reference.agents import q_learning
from mbrl_jax.reference.algorithms.result import Clock, Log, Result, rows_of, share, state_of
from mbrl_jax.reference.draws import Draws
from mbrl_jax.reference.environment import Simulator, collect, make_task, real_row, seen_through_noise
from mbrl_jax.reference.networks import QFunction, greedy, hot, make_q_network
from mbrl_jax.reference.replay import Replay

if TYPE_CHECKING:
    from mbrl_jax.config import ExplorationConfig, ModelFreeQConfig


def act(network: QFunction, simulator: Simulator, explore: float, random_action: int, epsilon: float) -> int:
    """The ε-greedy action in the real environment."""
    if explore < epsilon:
        return random_action
    scale = network.input_scale
    return int(greedy(network, torch.as_tensor(simulator.observation, dtype=scale.dtype, device=scale.device)))


def exploration(config: "ExplorationConfig", progress: float) -> float:
    """Epsilon when the share ``progress`` of the run is over."""
    return config.start + progress * (config.end - config.start)


def train(
    config: "ModelFreeQConfig",
    draws: Draws,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    compile_: bool = False,
) -> Result:
    """The whole run of ``config`` with the random numbers ``draws``, which are of the same dtype and device."""
    device = torch.device(device)
    task = make_task(config.environment.name, config.environment.time_limit)
    agent, interactive = config.agent, config.protocol == "interactive"
    loss_function = hot(q_learning.target_loss, compile_, device)
    clock, losses, rounds = Clock(device), Log(), Log()

    with clock.phase("collect"):
        simulator = Simulator(task)
        rows, collected = collect(simulator, *draws.collection(config.random_transitions))
        if config.environment.observation_noise > 0:
            rows = seen_through_noise(config, task, rows, *draws.observation_noise(len(rows.reward), task.observation_size))
        real = Replay(config.real_transitions, task.observation_size, dtype=dtype, device=device)
        real.write(rows)

    online = make_q_network(agent, task, dtype=dtype, device=device)
    draws.initialise_q(online)
    learner = q_learning.Learner(online, agent)

    for first in range(0, config.steps, config.round_steps):
        with clock.phase("train"):
            for t in range(first, first + config.round_steps):
                progress = share(t, config.steps)
                if interactive:
                    explore, random_action, reset = draws.real_step(t)
                    epsilon = exploration(config.exploration, progress)
                    real.write(real_row(simulator, act(online, simulator, explore, random_action, epsilon), reset))
                step_losses = []
                for u in range(agent.updates_per_step):
                    batch = real.take(draws.real_minibatch(t, u, agent.batch_size, real.size))
                    step_losses.append(q_learning.update(learner, batch, agent, progress, None, loss_function))
                plain, scaled = (torch.stack(column).mean() for column in zip(*step_losses, strict=True))
                losses.add(loss=plain, scaled_loss=scaled)
        with clock.phase("curve"):
            starts = draws.curve_starts(first + config.round_steps, config.evaluation.curve_episodes)
            rounds.add(curve_return=evaluation.play(learner.target, task, starts).mean(), frozen=learner.frozen)

    with clock.phase("evaluate"):
        returns_last = evaluation.play(learner.target, task, draws.final_starts(config.evaluation.episodes))

    return Result(
        returns_last=returns_last,
        returns_chosen=None,
        collected=collected,
        fit={},
        metrics=losses.blocks(config.steps // config.round_steps, config.metric_steps) | rounds.arrays(),
        networks={"online": state_of(online), "target": state_of(learner.target)},
        normaliser={},
        real=rows_of(real),
        imagined={},
        frozen=learner.frozen,
        updates=learner.updates,
        seconds=clock.seconds,
    )
