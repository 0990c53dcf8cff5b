"""A program whose environments the host steps: between two calls of the devices it acts, records and judges."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from mbrl_jax.algorithms import hosted
from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.algorithms.training import Stream, with_precision
from mbrl_jax.config import ConfigError
from mbrl_jax.environments import Environment, Transition
from mbrl_jax.environments.episodes import Choose, Episodes, play, record
from mbrl_jax.environments.host import Host
from mbrl_jax.runs import execution
from mbrl_jax.runs.checkpoint import Checkpoint
from mbrl_jax.runs.program import Batch, Program
from mbrl_jax.simulators.copies import Copies

PARTS = {  # of the functions of an algorithm, what the devices compute
    "init": ("actions", "init"),
    "advance": ("prepare", "act", "learn", "close", "policies", "judge"),
    "finish": ("finish", "policies", "judge"),
}


class _Traced(NamedTuple):
    """A function of one seed, with shapes of what it is called with for all of them."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    in_axes: tuple[Any, ...]
    out_axes: Any
    donate: tuple[int, ...] = ()


class HostedProgram(Program):
    """The functions of an algorithm, with a host that acts, records and judges between them.

    Arguments as of :class:`Program`; ``task`` is the environment, and ``make`` makes the algorithm in another one. A seed whose
    simulator fails rests as it was, and is named in ``failures``, by its place among the agents. P is the number of agents padded
    to the layout.

    Attributes:
      journal: told of every block of transitions [n, T], and of which of them were made, as soon as they were; none is not.

    """

    def __init__(self, *arguments: Any, task: Environment, make: hosted.MakeTrain, **options: Any):
        self.task, self._make = task, make
        self._host: Host = cast(Any, task.host)
        self._acting: Episodes | None = None
        self._judging: Copies | None = None
        self.journal: Callable[[Transition, np.ndarray], None] | None = None
        super().__init__(*arguments, **options)
        config = self.configs[0]
        self._acts = config.protocol == "interactive"
        self._beside = hosted.beside(config)
        self._together = math.prod(self._beside)
        self.block = hosted.block_of(config) if self._acts else config.round_steps
        self._behaviour = algorithm_of(config).behaviour(config, task)

    def turn_to(self, batch: Batch) -> None:
        """Select the next agents, whose simulators are made when they are needed."""
        super().turn_to(batch)
        self.leave()
        self._first, self._memory = batch.first, None
        self.failures: dict[int, str] = {}

    def leave(self) -> None:
        """Let all simulators go."""
        if self._acting is not None:
            self._acting.copies.close()
        if self._judging is not None:
            self._judging.close()
        self._acting = self._judging = None

    # ---------------------------------------------------------------------------------------------------- what is compiled

    def compile(self, names: Sequence[str], chunk: int = 0) -> list[execution.Compiled]:
        """Compile functions of the algorithm, or parts of them, that have not been compiled yet."""
        left_out = () if self._acts else ("prepare", "act")
        if not self.configs[0].random_transitions:
            left_out = (*left_out, "actions")
        parts = [part for name in names for part in PARTS.get(name, (name,)) if part not in left_out]
        return super().compile(list(dict.fromkeys(parts)), 0)

    def out(self, name: str, chunk: int = 0) -> Any:
        """Shapes and dtypes of what a function returns."""
        if name != "advance":
            return super().out(name)
        state, metrics = super().out("close")
        grown = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((leaf.shape[0], chunk, *leaf.shape[1:]), leaf.dtype), metrics)
        return state, grown

    def _lower(self, name: str, chunk: int = 0) -> execution.Lowered:
        place = name, 0
        if name in ("fit", "finish", "diagnose"):
            return super()._lower(name)
        if place not in self._lowered:
            self.show.phase("compiling")
            traced = self._traced(name)
            function = with_precision(self.configs[0].precision, traced.function)
            spread = execution.spread(function, traced.in_axes, traced.out_axes, self.layout)
            lowered = execution.lower(spread, *traced.arguments, donate=traced.donate)
            self.compiling += lowered.seconds
            self._lowered[place] = lowered
        return self._lowered[place]

    def _traced(self, name: str) -> _Traced:
        """What is compiled under a name."""
        arguments: tuple[Any, ...]
        train, axes, hyper, own, task = self.algorithm, self.algorithm.axes, self.hyper_axes, self._own, self.task
        transitions = self.configs[0].random_transitions
        if name == "actions":
            return _Traced(partial(hosted.random_actions, task, transitions=transitions), (self.keys,), (0,), 0)
        if name == "init":
            arguments = (self.keys, self.hyper, self._recorded((transitions,)) if transitions else None)
            return _Traced(partial(hosted.init, self._make, task), arguments, (0, hyper, 0), (axes, 0))
        if name == "act":
            behaviour = self._behaviour
            params, draws = own(self.out("prepare"))
            memory = own(jax.eval_shape(jax.vmap(behaviour.begin), params))
            arguments = (params, memory, *self._seen(self._beside), draws, jax.ShapeDtypeStruct((), np.int32))
            return _Traced(partial(hosted.act, behaviour), arguments, (0, 0, 0, 0, 0, None), 0)
        if name == "judge":
            params, _ = own(self.out("policies"))
            policy_of = algorithm_of(self.configs[0]).policy
            policy = policy_of(self.configs[0], task)
            memory = own(jax.eval_shape(jax.vmap(lambda params, key: policy.begin(params, key, 1)), params, self.keys))

            def judge(hyper: Any, *arguments: Any) -> Any:
                return hosted.judge(policy_of(hyper, task), *arguments)

            return _Traced(judge, (self.hyper, params, memory, *self._seen(), self.keys), (hyper, 0, 0, 0, 0, 0), 0)
        state = self.layout.placed(self.out("init")[0], axes)
        if name == "prepare":
            return _Traced(partial(hosted.prepare, self._behaviour, self.block), (state, self.hyper), (axes, hyper), 0)
        if name == "policies":
            return _Traced(train.policies, (state,), (axes,), 0)
        alive = own(jax.ShapeDtypeStruct((len(self.number),), bool))
        if name == "learn":
            steps, recorded, told = self.block, None, None
            if self._acts:
                recorded = self._recorded((*self._beside, steps))
                one = self.out("act")[2]
                told = own(jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0], steps, *x.shape[1:]), x.dtype), one))
            arguments = (state, self.hyper, recorded, told, alive)
            learn = partial(hosted.learn, train, steps * self._together)
            return _Traced(learn, arguments, (axes, hyper, 0, 0, 0), (axes, 0), donate=(0,))
        assert name == "close", name
        blocks, one = self._blocks, self.out("learn")[1]
        logs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0], x.shape[1] * blocks, *x.shape[2:]), x.dtype), one)
        arguments = (state, self.hyper, own(logs), alive)
        return _Traced(partial(hosted.close, train), arguments, (axes, hyper, 0, 0), (axes, 0), donate=(0,))

    def _own(self, tree: Any) -> Any:
        """Shapes of what every seed has, where they will be."""
        return self.layout.placed(tree, 0)

    def _recorded(self, axes: tuple[int, ...]) -> Any:
        """Shapes of transitions [P, *axes]."""
        spec, lead, struct = self.task.spec, (len(self.number), *axes), cast(Any, jax.ShapeDtypeStruct)
        number, flag = struct(lead, np.float32), struct(lead, bool)
        observation = struct((*lead, spec.observation_size), np.float32)
        action = struct((*lead, *spec.action_shape), np.float32 if spec.continuous else np.int32)
        return self._own(Transition(observation, action, number, observation, flag, flag, struct(lead, np.int32)))

    def _seen(self, axes: tuple[int, ...] = ()) -> tuple[Any, Any]:
        """Shapes of observations [P, *axes, D], and whether episodes begin there [P, *axes]."""
        lead = (len(self.number), *axes)
        observation = jax.ShapeDtypeStruct((*lead, self.task.spec.observation_size), np.float32)
        return self._own(observation), self._own(jax.ShapeDtypeStruct(lead, bool))

    @property
    def _blocks(self) -> int:
        """Blocks of a round."""
        return int(self.configs[0].round_steps // (self.block * self._together))

    def _part(self, name: str) -> Callable[..., Any]:
        """A compiled part of a function."""
        (function,) = super().compile((name,))
        call: Callable[..., Any] = function.call
        return call

    def _zeros(self, tree: Any) -> Any:
        """Arrays of zeros of these shapes, where they will be; of keys too."""

        def zeros(leaf: Any) -> Any:
            if not execution.is_key(leaf):
                return np.zeros(leaf.shape, leaf.dtype)
            data = jax.eval_shape(jax.random.key_data, leaf)
            return jax.random.wrap_key_data(self.layout.place(np.zeros(data.shape, data.dtype)), impl="threefry2x32")

        return jax.tree.map(zeros, tree)

    # ------------------------------------------------------------------------------------------------------ what is called

    def call(self, name: str, chunk: int = 0) -> Any:
        """Compute a function of the algorithm; keep the state that it returns."""
        if name == "init":
            return self._collect()
        if name == "advance":
            rounds = [self._round() for _ in range(chunk)]
            return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *rounds)
        if name == "finish":
            return self._finish()
        return super().call(name)

    def restore(self, found: Checkpoint) -> None:
        """Take up the state of a checkpoint; every simulator begins a new episode, for nothing of it was saved."""
        super().restore(found)
        self.failures = {int(place): text for place, text in found.about.get("failures", {}).items()}
        if self._acts and found.round < self.algorithm.rounds:
            self.show.say("what goes on within a simulator is not saved: every seed begins a new episode")

    def _collect(self) -> Any:
        transitions, recorded = self.configs[0].random_transitions, None
        if transitions:
            actions = np.asarray(self._part("actions")(self.keys))[: self.agents]
            recorded, _ = self._record(lambda episodes, step: (actions[:, step], ()), transitions, ())
        self.state, collected = self._part("init")(self.keys, self.hyper, recorded)
        return collected

    def _round(self) -> Any:
        blocks = [self.learn(*self.act()) for _ in range(self._blocks)]
        logs = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *blocks)
        self.state, metrics = self._part("close")(self.state, self.hyper, logs, self._padded(self._alive))
        metrics = jax.tree.map(np.asarray, metrics)
        last, _ = self._part("policies")(self.state)
        episodes = self.configs[0].evaluation.curve_episodes
        returns = self._play(last, episodes, Stream.CURVE, int(self.state.time)).mean(axis=1)
        return metrics._replace(curve_return=self._padded(returns))

    def act(self) -> tuple[Any, Any]:
        """Act and record for a block of steps: the transitions [P, (N,) T], and what acting told; none where nothing acts."""
        if not self._acts:
            return None, None
        params, draws = self._part("prepare")(self.state, self.hyper)
        act = self._part("act")
        if self._memory is None:
            self._memory = self._zeros(self.out("act")[0])

        def choose(episodes: Episodes, step: int) -> tuple[np.ndarray, Any]:
            seen = self._padded(self._of_agents((episodes.observation, episodes.begins)))
            self._memory, action, told = act(params, self._memory, *seen, draws, np.int32(step))
            action = np.asarray(action)[: self.agents]
            return action.reshape(-1, *self.task.spec.action_shape), told

        return self._record(choose, self.block, self._beside)

    def learn(self, recorded: Any, told: Any) -> Any:
        """Learn from a block of steps: the logs, which have the block's on their second axis."""
        self.state, logs = self._part("learn")(self.state, self.hyper, recorded, told, self._padded(self._alive))
        return logs

    def _finish(self) -> Any:
        outcome = jax.tree.map(np.asarray, self._part("finish")(self.state, self.hyper))
        last, chosen = self._part("policies")(self.state)
        episodes, played = self.configs[0].evaluation.episodes, {}
        for name, params in (("returns_last", last), ("returns_chosen", chosen)):
            if params is not None:
                played[name] = self._padded(self._play(params, episodes, Stream.FINAL_EVALUATION, 0))
        self.leave()
        return outcome._replace(**played, frozen=outcome.frozen | ~self._padded(self._alive))

    # ------------------------------------------------------------------------------------------------------- the simulators

    @property
    def _alive(self) -> np.ndarray:
        """[n] whether an agent's simulators have not failed."""
        return np.array([place not in self.failures for place in range(self.agents)])

    def _of_agents(self, tree: Any) -> Any:
        """What an agent's simulators have [n N, ...] by agents [n, (N,) ...]."""
        return jax.tree.map(lambda leaf: leaf.reshape(self.agents, *self._beside, *leaf.shape[1:]), tree)

    def _padded(self, tree: Any) -> Any:
        """What the agents have [n, ...] at all places [P, ...]."""
        return jax.tree.map(lambda leaf: leaf[self.number], tree)

    def _seeds(self, purpose: Stream, number: int, beside: tuple[int, ...] = ()) -> list[int]:
        """What to seed each agent's simulators by, for a purpose at a point in time: it follows from the seed's number."""
        numbers = [self.seeds.start + (self._first + place) % len(self.seeds) for place in range(self.agents)]
        copies: list[tuple[int, ...]] = list(np.ndindex(*beside))
        words = ((self.base_seed, seed, int(purpose), number, *copy) for seed in numbers for copy in copies)
        return [int(np.random.SeedSequence(word).generate_state(1)[0] >> 1) for word in words]

    def _note(self, failures: Mapping[int, str]) -> None:
        """Take note of simulators that have failed."""
        for place, text in failures.items():
            if place not in self.failures:
                self.failures[place] = text
                seed, *_, last = self.seeds.start + (self._first + place) % len(self.seeds), *text.strip().splitlines()
                self.show.say(f"the simulator of seed {seed} failed ({last}); the seed rests, and the run goes on")
        if len(self.failures) == self.agents:
            first = next(iter(self.failures.values()))
            raise ConfigError(f"environment: the simulators of all seeds have failed, and the run stops. The first:\n{first}")

    def _record(self, choose: Choose, steps: int, beside: tuple[int, ...]) -> tuple[Any, Any]:
        """Act for ``steps`` steps: the transitions [P, *beside, steps], and what acting told [P, steps].

        Where more simulators are wanted than there were, all begin new episodes.
        """
        together = math.prod(beside)
        count = self.agents * together
        if self._acting is not None and self._acting.copies.num_envs != count:
            self._acting.copies.close()
            self._acting = None
        if self._acting is None:
            copies = self._host.copies(count)
            copies.leave_out([place for place in range(count) if place // together in self.failures])
            begun = 0 if self.state is None else int(self.state.time) + 1
            self._acting = Episodes(copies, self._seeds(Stream.COLLECTION, begun, beside))
        recorded, told, made = record(self._acting, choose, steps)
        if self.journal is not None:  # of a seed's simulators, one after another
            rows = (self.agents, together * steps)
            self.journal(jax.tree.map(lambda leaf: leaf.reshape(*rows, *leaf.shape[2:]), recorded), made.reshape(rows))
        self._note({place // together: text for place, text in self._acting.copies.failures.items()})
        by_agent = jax.tree.map(lambda leaf: leaf.reshape(self.agents, *beside, *leaf.shape[1:]), recorded)
        return self._padded(by_agent), told

    def _play(self, params: Any, count: int, purpose: Stream, number: int) -> np.ndarray:
        """[n, count] float32 returns of greedy episodes by policies [P], NaN where the simulator has failed."""
        if self._judging is None:
            self._judging = self._host.copies(self.agents)
        judge, memory = self._part("judge"), self._zeros(self.out("judge")[0])

        def choose(episodes: Episodes) -> np.ndarray:
            nonlocal memory
            seen = self._padded((episodes.observation, episodes.begins))
            memory, action = judge(self.hyper, params, memory, *seen, self.keys)
            return np.asarray(action)[: self.agents]

        returns = play(Episodes(self._judging, self._seeds(purpose, number)), choose, count)
        self._note(self._judging.failures)
        return returns
