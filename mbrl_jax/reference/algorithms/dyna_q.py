"""Dyna-Q top to bottom: a dynamics ensemble learned from real transitions, and a Q-learner that learns from what it imagines."""

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mbrl_jax.reference import evaluation
from mbrl_jax.reference.agents import q_learning
from mbrl_jax.reference.algorithms.model_free_q import act, exploration
from mbrl_jax.reference.algorithms.result import Clock, Log, Result, rows_of, share, state_of, to_numpy
from mbrl_jax.reference.draws import Draws
from mbrl_jax.reference.environment import Simulator, collect, make_task, real_row, seen_through_noise
from mbrl_jax.reference.imagination import lanes as imagination
from mbrl_jax.reference.imagination.penalties import controller_of
from mbrl_jax.reference.model import fitting
from mbrl_jax.reference.model.ensemble import Ensemble, World
from mbrl_jax.reference.model.losses import member_losses
from mbrl_jax.reference.networks import hot, make_q_network
from mbrl_jax.reference.replay import Replay, Transition

if TYPE_CHECKING:
    from mbrl_jax.config import DynaQConfig, QLearningConfig


def imagined_ensemble(ensemble: Ensemble, elites: Tensor | None) -> Ensemble:
    """The members that imagination uses: ``ensemble`` itself, or its ``elites`` [M], best first, in a network of their own."""
    if elites is None:
        return ensemble
    chosen = copy.deepcopy(ensemble).requires_grad_(False)
    for parameter in chosen.parameters():
        parameter.data = parameter.data[: len(elites)].clone()
    chosen.take_members(ensemble, elites)
    return chosen


def minibatch(draws: Draws, time: int, u: int, imagined: Replay, real: Replay, config: "QLearningConfig") -> Transition:
    """The rows of an update: imagined ones, then ``real_ratio`` of real ones."""
    from_real = round(config.real_ratio * config.batch_size)
    from_imagined = config.batch_size - from_real
    parts = []
    if from_imagined:
        parts.append(imagined.take(draws.imagined_minibatch(time, u, from_imagined, imagined.size)))
    if from_real:
        parts.append(real.take(draws.real_minibatch(time, u, from_real, real.size)))
    return parts[0] if len(parts) == 1 else Transition(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def train(
    config: "DynaQConfig",
    draws: Draws,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    compile_: bool = False,
) -> Result:
    """The whole run of ``config`` with the random numbers ``draws``, which are of the same dtype and device."""
    device = torch.device(device)
    task = make_task(config.environment.name, config.environment.time_limit)
    agent, settings, interactive = config.agent, config.imagination, config.protocol == "interactive"
    loss_function = hot(q_learning.target_loss, compile_, device)
    # torch cannot compile the gradient of nested forward-mode derivatives
    model_loss = hot(member_losses, compile_ and config.model.laplacian == "none", device)
    imagine = hot(imagination.step, compile_, device)
    imagine_greedily = hot(evaluation.imagine_greedily, compile_, device)
    clock, losses, rounds = Clock(device), Log(), Log()
    times = torch.arange(config.steps, device=device)

    # real data from the uniform random policy
    with clock.phase("collect"):
        simulator = Simulator(task)
        rows, collected = collect(simulator, *draws.collection(config.random_transitions))
        if config.environment.observation_noise > 0:
            rows = seen_through_noise(config, task, rows, *draws.observation_noise(len(rows.reward), task.observation_size))
        real = Replay(config.real_transitions, task.observation_size, dtype=dtype, device=device)
        real.write(rows)
    imagined = Replay(settings.capacity, task.observation_size, dtype=dtype, device=device)

    online = make_q_network(agent, task, dtype=dtype, device=device)
    draws.initialise_q(online)
    learner = q_learning.Learner(online, agent)
    chosen, chosen_score = copy.deepcopy(learner.target), -torch.inf

    # the world model
    with clock.phase("fit"):
        ensemble = Ensemble(config.model, task, config.model.members).to(dtype=dtype, device=device)
        draws.initialise_ensemble(ensemble)
        optimiser = fitting.make_optimiser(ensemble, config.model)
        stride = fitting.holdout_stride(config.real_transitions)
        fit = fitting.fit(ensemble, optimiser, real.rows(), stride, config.model, draws, model_loss)
        elites = None if config.model.elites is None else fitting.elites(fit.error, config.model.elites)
        world = World(imagined_ensemble(ensemble, elites), fit.normaliser)
    controller = controller_of(settings)
    controller_state = controller.calibrate(controller.init(settings.lanes), world, real.rows())
    lanes = imagination.start(settings.lanes, task.observation_size, controller_state, dtype=dtype, device=device)

    for first in range(0, config.steps, config.round_steps):
        with clock.phase("train"):
            for t in range(first, first + config.round_steps):
                progress = share(t, config.steps)
                if interactive:
                    explore, random_action, reset = draws.real_step(t)
                    epsilon = exploration(config.exploration, progress)
                    real.write(real_row(simulator, act(online, simulator, explore, random_action, epsilon), reset))

                # every lane one imagined step, H times
                lanes, steps = imagination.at_real_step(lanes, settings.restart), []
                for h in range(settings.steps):
                    numbers = draws.lane_step(t, h, real.size)
                    roots = real.observations(numbers.root)
                    lanes, step = imagine(lanes, world, online, controller, settings, roots, numbers, times[t])
                    imagined.write(step.rows)
                    steps.append(step)

                step_losses = []
                for u in range(agent.updates_per_step):
                    batch = minibatch(draws, t, u, imagined, real, agent)
                    step_losses.append(q_learning.update(learner, batch, agent, progress, world, loss_function))
                plain, scaled = (torch.stack(column).mean() for column in zip(*step_losses, strict=True))
                losses.add(loss=plain, scaled_loss=scaled)
                losses.add(**{f"lane_{name}": value for name, value in imagination.log(steps)._asdict().items()})

        time = first + config.round_steps
        if interactive:
            with clock.phase("refit"):
                again = fitting.refit(ensemble, optimiser, real.rows(), stride, config.model, draws, time, model_loss)
                if config.model.elites is not None:
                    world.ensemble.take_members(ensemble, fitting.elites(again.error, config.model.elites))
                world = world._replace(normaliser=again.normaliser)
                rounds.add(**{f"refit_{name}": values[0] for name, values in again.log._asdict().items()})
            lanes = lanes._replace(controller=controller.calibrate(lanes.controller, world, real.rows()))

        # the policy is chosen in imagination: no real transition is spent
        with clock.phase("select"):
            selection, members = config.selection, world.ensemble.members
            firsts = evaluation.first_observations(real.rows().observation, real.rows().depth)
            starts = firsts[draws.scoring(time, selection.episodes, len(firsts))].view(members, -1, task.observation_size)
            noise = None
            if ensemble.gaussian:
                noise = draws.scoring_noise(time, selection.steps, members, starts.shape[1], task.observation_size)
            to_beat = chosen_score
            if interactive and chosen_score > -torch.inf:
                # the model has changed since, so the old score no longer compares
                to_beat = float(evaluation.score(chosen, world, starts, noise, selection.steps, imagine_greedily))
                if to_beat > -torch.inf:  # else this world is not finite, and the next one scores it again
                    chosen_score = to_beat
            score = float(evaluation.score(learner.target, world, starts, noise, selection.steps, imagine_greedily))
            is_chosen = score > to_beat
            if is_chosen:
                chosen, chosen_score = copy.deepcopy(learner.target), score
            scores = torch.tensor([score, chosen_score], dtype=dtype)
            rounds.add(score=scores[0], chosen_score=scores[1], is_chosen=torch.tensor(is_chosen))

        with clock.phase("curve"):
            starts_real = draws.curve_starts(time, config.evaluation.curve_episodes)
            rounds.add(curve_return=evaluation.play(learner.target, task, starts_real).mean(), frozen=learner.frozen)

    with clock.phase("evaluate"):
        final = draws.final_starts(config.evaluation.episodes)
        returns_last = evaluation.play(learner.target, task, final)
        returns_chosen = evaluation.play(chosen, task, final)

    networks = {"online": online, "target": learner.target, "chosen": chosen, "ensemble": ensemble, "imagining": world.ensemble}
    return Result(
        returns_last=returns_last,
        returns_chosen=returns_chosen,
        collected=collected,
        fit={name: to_numpy(values) for name, values in fit.log._asdict().items()},
        metrics=losses.blocks(config.steps // config.round_steps, config.metric_steps) | rounds.arrays(),
        networks={name: state_of(network) for name, network in networks.items()},
        normaliser={name: to_numpy(values) for name, values in world.normaliser._asdict().items()},
        real=rows_of(real),
        imagined=rows_of(imagined),
        frozen=learner.frozen,
        updates=learner.updates,
        seconds=clock.seconds,
    )
