"""The random numbers of a JAX run, handed to the reference so that both take the same run."""

from collections.abc import Callable
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

    def __init__(self, config: ModelFreeQConfig, key: Any, programs: dict[tuple[Any, ...], Any] | None = None) -> None:
        """With ``programs``, which is extended, of other runs of the same config."""
        super().__init__(config, 0, dtype=torch.float64)
        self.settings, self.key = config, key
        self.environment = make_environment(config.environment)
        self.programs = {} if programs is None else programs
        self.rounds: dict[int, Any] = {}

    def _drawn(self, draw: Callable[..., Any], *times: int, sizes: tuple[int, ...] = ()) -> Any:
        """``draw(key, *times)`` in numpy: one program for the draws of a name and of these sizes, at any time of the run."""
        name = (draw.__qualname__, *sizes)
        arguments = (self.key, *(np.uint32(time) for time in times))
        if name not in self.programs:
            self.programs[name] = jax.jit(draw).lower(*arguments).compile()
        return jax.tree.map(np.asarray, self.programs[name](*arguments))

    @property
    def ensemble(self) -> Ensemble:
        assert isinstance(self.settings, DynaQConfig)
        return Ensemble(self.settings.model, self.environment.spec, self.environment.reward, self.environment.terminated)

    def initialise_q(self, network: Any) -> None:
        learner = make_q_learner(self.settings.agent, self.environment.spec)
        network.load_state_dict(weights.q_to_torch(self._drawn(lambda key: learner.init(stream(key, Stream.AGENT)).online)))

    def initialise_ensemble(self, ensemble: Any) -> None:
        fresh = self._drawn(lambda key: fitting.init(self.ensemble, stream(key, Stream.MODEL)))
        ensemble.load_state_dict(weights.ensemble_to_torch(fresh.params, fresh.bounds.minimum, fresh.bounds.maximum))

    def collection(self, n: int) -> Any:
        drawn = self._drawn(lambda key: env.draw_collection(self.environment, stream(key, Stream.COLLECTION), n), sizes=(n,))
        return simulator_states(drawn.first), np.asarray(drawn.actions, np.int64), simulator_states(drawn.resets)

    def observation_noise(self, n: int, size: int) -> Any:
        def draw(key: Any) -> Any:
            return tuple(draws_.normal(each, (n, size)) for each in jax.random.split(stream(key, Stream.OBSERVATION_NOISE)))

        return tuple(np.array(noise) for noise in self._drawn(draw, sizes=(n, size)))

    def bootstrap_rows(self, members: int, rows: int) -> torch.Tensor:
        def draw(key: Any) -> Any:
            return draws_.integers(jax.random.split(stream(key, Stream.FIT))[0], (members, rows), rows)

        return tensor(self._drawn(draw, sizes=(members, rows))).long()

    def _epoch(self, key: Any, epoch: Any) -> Any:
        assert isinstance(self.settings, DynaQConfig)
        return jax.random.split(jax.random.split(jax.random.split(stream(key, Stream.FIT))[1], self.settings.model.epochs)[epoch])

    def epoch_order(self, epoch: int, members: int, rows: int) -> torch.Tensor:
        def draw(key: Any, epoch: Any) -> Any:  # batches of one row show the whole order
            return epoch_minibatches(self._epoch(key, epoch)[0], members, rows, 1)

        return tensor(self._drawn(draw, epoch, sizes=(members, rows)))[:, :, 0].T.long()

    def laplacian_signs(self, time: int, epoch: int, probes: int, size: int) -> torch.Tensor:
        def at_fit(key: Any, epoch: Any) -> Any:
            return losses.laplacian_directions(self.ensemble, self._epoch(key, epoch)[1])

        def at_refit(key: Any, time: Any) -> Any:
            return losses.laplacian_directions(self.ensemble, jax.random.split(stream(key, Stream.REFIT, time))[1])

        directions = self._drawn(at_fit, epoch) if time == 0 else self._drawn(at_refit, time)
        return tensor(directions)[:, :size] * probes**0.5

    def refit_rows(self, time: int, batches: int, members: int, batch_size: int, rows: int) -> torch.Tensor:
        def draw(key: Any, time: Any) -> Any:
            return draws_.bits(jax.random.split(stream(key, Stream.REFIT, time))[0], (batches, members, batch_size))

        return indices(self._drawn(draw, time, sizes=(batches, members, batch_size)), rows)

    def _of_round(self, key: Any, time: Any) -> Any:
        key = stream(key, Stream.ROUND, time)
        agent = q_agent(self.settings.agent, self.environment.spec)
        if isinstance(self.settings, DynaQConfig):
            replay = make_replay(self.environment.spec, self.settings.real_transitions)
            world = phases.imagination_of(self.settings, self.environment, replay, None).world
            return dyna_q.draw(self.settings, self.environment, world, agent, key, self.settings.round_steps)
        return model_free_q.draw(self.settings, self.environment, agent, key, self.settings.round_steps)

    def _step(self, time: int) -> tuple[Any, int]:
        number, i = divmod(time, self.settings.round_steps)
        if number not in self.rounds:
            self.rounds = {number: self._drawn(self._of_round, number * self.settings.round_steps)}
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

    def scoring(self, time: int, episodes: int, firsts: int) -> torch.Tensor:
        def draw(key: Any, time: Any) -> Any:
            return draws_.bits(jax.random.split(stream(key, Stream.SELECTION, time))[0], (episodes,))

        return indices(self._drawn(draw, time, sizes=(episodes,)), firsts)

    def scoring_noise(self, time: int, steps: int, members: int, per_member: int, size: int) -> torch.Tensor:
        shape = (steps, members, per_member, size)

        def draw(key: Any, time: Any) -> Any:
            return draws_.normal(jax.random.split(stream(key, Stream.SELECTION, time))[1], shape)

        return tensor(self._drawn(draw, time, sizes=shape))

    def curve_starts(self, time: int, n: int) -> np.ndarray:
        def draw(key: Any, time: Any) -> Any:
            return self.environment.draw_resets(stream(key, Stream.CURVE, time), (n,))

        return simulator_states(self._drawn(draw, time, sizes=(n,)))

    def final_starts(self, n: int) -> np.ndarray:
        def draw(key: Any) -> Any:
            return self.environment.draw_resets(stream(key, Stream.FINAL_EVALUATION), (n,))

        return simulator_states(self._drawn(draw, sizes=(n,)))


def both(config: ModelFreeQConfig, key: Any, programs: dict[tuple[Any, ...], Any] | None = None) -> tuple[Any, Any]:
    """The JAX run and the reference's run with the same draws, these by ``programs`` as in :class:`PrescribedDraws`."""
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
    theirs = reference.train(config, PrescribedDraws(config, key, programs), dtype=torch.float64)
    return ours, theirs
