"""The random numbers of a JAX run, handed to the reference so that both take the same run."""

from typing import Any

import jax
import numpy as np
import torch

from mbrl_jax import draws as draws_
from mbrl_jax import environments as env
from mbrl_jax.agents.q_learning import make_q_learner, q_agent
from mbrl_jax.algorithms import dyna_q, model_free_q, phases
from mbrl_jax.algorithms.training import Stream, stream
from mbrl_jax.config import DynaQConfig, ModelFreeQConfig
from mbrl_jax.environments import EnvironmentState, make_environment
from mbrl_jax.imagination import lanes
from mbrl_jax.model import fitting, losses
from mbrl_jax.model.ensemble import Ensemble
from mbrl_jax.reference import weights
from mbrl_jax.reference.draws import Draws, LaneDraws
from mbrl_jax.replay import epoch_minibatches, make_replay


def simulator_states(states: EnvironmentState) -> np.ndarray:
    """[..., 4] CartPole's states, which are its observations."""
    return np.asarray(states.observation, np.float64)


def tensor(x: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(x))


def indices(bits: Any, size: int) -> torch.Tensor:
    return torch.from_numpy((np.asarray(bits) % np.uint32(size)).astype(np.int64))


def lane_draws(drawn: lanes.LaneDraws, real_size: int) -> LaneDraws:
    """The random numbers of one imagined step of K lanes, as the reference wants them; empty where nothing is drawn."""
    deal, noise = (torch.zeros(0) if x is None else tensor(x) for x in (drawn.model.deal, drawn.model.noise))
    return LaneDraws(indices(drawn.root, real_size), tensor(drawn.explore), tensor(drawn.action).long(), deal.long(), noise)


class PrescribedDraws(Draws):
    """What the JAX run of ``config`` with ``key`` draws, for CartPole."""

    def __init__(self, config: ModelFreeQConfig, key: Any) -> None:
        super().__init__(config, 0, dtype=torch.float64)
        self.settings, self.key = config, key
        self.environment = make_environment(config.environment)
        self.rounds: dict[int, Any] = {}
        self.fit_keys = jax.random.split(stream(key, Stream.FIT))

    @property
    def ensemble(self) -> Ensemble:
        assert isinstance(self.settings, DynaQConfig)
        return Ensemble(self.settings.model, self.environment.spec, self.environment.reward, self.environment.terminated)

    def initialise_q(self, network: Any) -> None:
        learner = make_q_learner(self.settings.agent, self.environment.spec)
        network.load_state_dict(weights.q_to_torch(learner.init(stream(self.key, Stream.AGENT)).online))

    def initialise_ensemble(self, ensemble: Any) -> None:
        fresh = fitting.init(self.ensemble, stream(self.key, Stream.MODEL))
        ensemble.load_state_dict(weights.ensemble_to_torch(fresh.params, fresh.bounds.minimum, fresh.bounds.maximum))

    def collection(self, n: int) -> Any:
        drawn = env.draw_collection(self.environment, stream(self.key, Stream.COLLECTION), n)
        return simulator_states(drawn.first), np.asarray(drawn.actions, np.int64), simulator_states(drawn.resets)

    def observation_noise(self, n: int, size: int) -> Any:
        keys = jax.random.split(stream(self.key, Stream.OBSERVATION_NOISE))
        return tuple(np.array(draws_.normal(key, (n, size))) for key in keys)

    def bootstrap_rows(self, members: int, rows: int) -> torch.Tensor:
        return tensor(draws_.integers(self.fit_keys[0], (members, rows), rows)).long()

    def _epoch(self, epoch: int) -> Any:
        assert isinstance(self.settings, DynaQConfig)
        return jax.random.split(jax.random.split(self.fit_keys[1], self.settings.model.epochs)[epoch])

    def epoch_order(self, epoch: int, members: int, rows: int) -> torch.Tensor:
        batches = epoch_minibatches(self._epoch(epoch)[0], members, rows, 1)  # batches of one row show the whole order
        return tensor(batches)[:, :, 0].T.long()

    def laplacian_signs(self, time: int, epoch: int, probes: int, size: int) -> torch.Tensor:
        key = self._epoch(epoch)[1] if time == 0 else jax.random.split(stream(self.key, Stream.REFIT, time))[1]
        return tensor(losses.laplacian_directions(self.ensemble, key))[:, :size] * probes**0.5

    def refit_rows(self, time: int, batches: int, members: int, batch_size: int, rows: int) -> torch.Tensor:
        key = jax.random.split(stream(self.key, Stream.REFIT, time))[0]
        return indices(draws_.bits(key, (batches, members, batch_size)), rows)

    def _step(self, time: int) -> tuple[Any, int]:
        number, i = divmod(time, self.settings.round_steps)
        if number not in self.rounds:
            key = stream(self.key, Stream.ROUND, number * self.settings.round_steps)
            agent = q_agent(self.settings.agent, self.environment.spec)
            if isinstance(self.settings, DynaQConfig):
                replay = make_replay(self.environment.spec, self.settings.real_transitions)
                world = phases.imagination_of(self.settings, self.environment, replay, None).world
                drawn: Any = dyna_q.draw(self.settings, self.environment, world, agent, key, self.settings.round_steps)
            else:
                drawn = model_free_q.draw(self.settings, self.environment, agent, key, self.settings.round_steps)
            self.rounds = {number: jax.tree.map(np.asarray, drawn)}
        return self.rounds[number], i

    def real_step(self, time: int) -> tuple[float, int, np.ndarray]:
        drawn, i = self._step(time)
        explore, action, reset = drawn.behaviour
        return float(explore[i]), int(action[i]), simulator_states(drawn.pool)[reset[i]]

    def lane_step(self, time: int, h: int, real_size: int) -> LaneDraws:
        drawn, i = self._step(time)
        return lane_draws(jax.tree.map(lambda x: x[i, h], drawn.lanes), real_size)

    def imagined_minibatch(self, time: int, update: int, count: int, size: int) -> torch.Tensor:
        drawn, i = self._step(time)
        return indices(drawn.imagined[i, update], size)

    def real_minibatch(self, time: int, update: int, count: int, size: int) -> torch.Tensor:
        drawn, i = self._step(time)
        return indices((drawn.real if isinstance(self.settings, DynaQConfig) else drawn.batch)[i, update], size)

    def _selection_keys(self, time: int) -> Any:
        return jax.random.split(stream(self.key, Stream.SELECTION, time))

    def scoring(self, time: int, episodes: int, firsts: int) -> torch.Tensor:
        return indices(draws_.bits(self._selection_keys(time)[0], (episodes,)), firsts)

    def scoring_noise(self, time: int, steps: int, members: int, per_member: int, size: int) -> torch.Tensor:
        return tensor(draws_.normal(self._selection_keys(time)[1], (steps, members, per_member, size)))

    def curve_starts(self, time: int, n: int) -> np.ndarray:
        return simulator_states(self.environment.draw_resets(stream(self.key, Stream.CURVE, time), (n,)))

    def final_starts(self, n: int) -> np.ndarray:
        return simulator_states(self.environment.draw_resets(stream(self.key, Stream.FINAL_EVALUATION), (n,)))


def both(config: ModelFreeQConfig, key: Any) -> tuple[Any, Any, Any]:
    """The JAX run and the reference's run with the same draws: (JAX Result, JAX State before the end, reference Result)."""
    from mbrl_jax.reference.algorithms import dyna_q as dyna_reference
    from mbrl_jax.reference.algorithms import model_free_q as free_reference

    model_based = isinstance(config, DynaQConfig)
    algorithm: Any = (dyna_q if model_based else model_free_q).make_train(config)  # type: ignore[operator]

    def whole(key: Any) -> Any:
        state, collected = algorithm.init(key)
        state, fit = algorithm.fit(state, config)
        state, metrics = jax.lax.scan(lambda state, _: algorithm.advance(state, config), state, None, length=algorithm.rounds)
        return state, collected, fit, metrics, algorithm.finish(state, config)

    ours = jax.jit(whole)(key)
    reference: Any = dyna_reference if model_based else free_reference
    theirs = reference.train(config, PrescribedDraws(config, key), dtype=torch.float64)
    return ours, theirs
