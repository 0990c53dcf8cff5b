"""What the training loops share: their contract, their streams of random numbers, and how they act while they learn."""

import contextlib
import enum
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mbrl_jax import draws
from mbrl_jax.bulk import in_bulk
from mbrl_jax.config import ConfigError, ExplorationConfig, RunConfig, check_seeds
from mbrl_jax.engine import PLAIN, Engine
from mbrl_jax.environments import Environment, EnvironmentState, Transition, draw_actions, draw_pool
from mbrl_jax.networks import Params
from mbrl_jax.replay import Rows

P = ParamSpec("P")
T = TypeVar("T")


DRAW_BYTES = 16 * 2**20  # that the random numbers of one seed may take at a time
UNROLLED_UPDATES = 2  # of a step, up to which each is compiled by itself


class Outcome(NamedTuple):
    """What a finished run leaves."""

    last: Params  # the target network after the last update
    chosen: Params | None  # the snapshot that imagination scored best, none where no policy is chosen
    returns_last: Array  # [n] returns of greedy episodes in the real environment, or in the model if evaluation.where says so
    returns_chosen: Array | None  # [n]
    frozen: Array  # [] bool, the learner went non-finite and rested at its last finite parameters
    updates: Array  # [] int32, updates made
    model: Any  # the parameters that the world model imagined with at the end, none without a model
    held_out: Any = None  # its HeldOut errors on logged episodes that it was not fitted to, none without such


class Result(NamedTuple):
    """A whole run."""

    outcome: Outcome
    collected: Array  # [N] return of the random episode that ended at each real step, minus infinity where none did (a Run: NaN)
    fit: Any  # the FitLog of the model's first fit, or () without a model
    metrics: Any  # the algorithm's Metrics with a leading axis of rounds


class Train(NamedTuple):
    """An algorithm: pure functions over its state. ``hyper`` is a config of the same structure with other traced numbers.

    Attributes:
      init: ``(key, hyper=None) -> (state, collected)``: fresh networks and random transitions; ``collected`` as in ``Result``.
      fit: ``(state, hyper) -> (state, log)``: the model's first fit; nothing and () without a model.
      learn: ``(state, hyper, steps) -> (state, logs)``: successive steps of a round, whose logs have a leading axis of time.
      close: ``(state, hyper, logs) -> (state, metrics)``: the round's end, from the logs of all its steps.
      advance: ``(state, hyper) -> (state, metrics)``: one round, ``learn`` and ``close``.
      finish: ``(state, hyper) -> Outcome``.
      train: ``(key, hyper=None) -> Result``: all of it.
      rounds: rounds of a run.
      policies: ``state -> (last, chosen)``: the policies' parameters as they stand, none where none is chosen.
      axes: of the state for ``vmap``, as a prefix of its tree: 0 for what each seed has, None for counters that all share.
      diagnose: ``(state, hyper) -> Diagnosis``: how wrong the model is where it is used; none without one.
      engine: what computes.

    """

    init: Callable[..., tuple[Any, Array]]
    fit: Callable[[Any, Any], tuple[Any, Any]]
    learn: Callable[[Any, Any, int], tuple[Any, Any]]
    close: Callable[[Any, Any, Any], tuple[Any, Any]]
    advance: Callable[[Any, Any], tuple[Any, Any]]
    finish: Callable[[Any, Any], Outcome]
    train: Callable[..., Result]
    rounds: int
    policies: Callable[[Any], tuple[Params, Params | None]]
    axes: Any
    diagnose: Callable[[Any, Any], Any] | None = None
    engine: Engine = PLAIN


def successive(update: Callable[[Any, Any], tuple[Any, Any]], learner: Any, drawn: Any) -> tuple[Any, Any]:
    """A step's updates one after another, by draws with a leading axis of updates; the learner and the logs of all of them.

    A few are unrolled, which spares a loop within the loop; many would make the program as many times as large.
    """
    count = jax.tree.leaves(drawn)[0].shape[0]
    return jax.lax.scan(update, learner, drawn, unroll=count <= UNROLLED_UPDATES)


def assemble(
    config: RunConfig,
    init: Callable[..., tuple[Any, Array]],
    fit: Callable[[Any, Any], tuple[Any, Any]],
    learn: Callable[[Any, Any, int], tuple[Any, Any]],
    close: Callable[[Any, Any, Any], tuple[Any, Any]],
    finish: Callable[[Any, Any], Outcome],
    policies: Callable[[Any], tuple[Params, Params | None]],
    axes: Any,
    diagnose: Callable[[Any, Any], Any] | None = None,
    *,
    on_host: bool = False,
) -> Train:
    """Put an algorithm together: ``train`` composed of the other functions, all of them under the config's precision.

    Each computes its random numbers in bulk, the loops within it apart.

    Where the environment is ``on_host``, a round and a whole run are no functions of the devices alone, and are refused.
    """
    rounds = config.steps // config.round_steps

    def begin(key: Array, hyper: Any = None) -> tuple[Any, Array]:
        hyper = config if hyper is None else hyper
        _check_key(key)
        _check_hyper(hyper, config)
        return init(key, hyper)

    def advance(state: Any, hyper: Any) -> tuple[Any, Any]:
        if on_host:
            raise ConfigError(
                f"environment.name: {config.environment.name!r} does not fit; the host steps it, between calls of the devices: "
                "train by mbrl_jax.run(config, seeds) or the command line"
            )
        begun = state.time
        state, logs = learn(state, hyper, config.round_steps)
        state = state._replace(time=begun + config.round_steps)  # no count of the loop's, which draws would wait for
        return close(state, hyper, logs)

    def train(key: Array, hyper: Any = None) -> Result:
        hyper = config if hyper is None else hyper
        state, collected = functions.init(key, hyper)
        state, fit_log = functions.fit(state, hyper)
        state, metrics = jax.lax.scan(lambda state, _: functions.advance(state, hyper), state, None, length=rounds)
        return Result(functions.finish(state, hyper), collected, fit_log, metrics)

    def checked(function: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(function)
        def call(state: Any, hyper: Any, *more: Any) -> T:
            _check_hyper(hyper, config)
            return function(state, hyper, *more)

        return ready(call)

    def ready(function: Callable[P, T]) -> Callable[P, T]:
        return in_bulk(with_precision(config.precision, function))

    functions = Train(
        init=ready(begin),
        fit=checked(fit),
        learn=checked(learn),
        close=checked(close),
        advance=checked(advance),
        finish=checked(finish),
        train=with_precision(config.precision, train),
        rounds=rounds,
        policies=policies,
        axes=axes,
        diagnose=None if diagnose is None else checked(diagnose),
    )
    return functions


def _check_key(key: Any) -> None:
    """Refuse what is not one typed key."""
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()):
        found = f"{key.dtype}{list(key.shape)}" if hasattr(key, "dtype") else repr(key)
        raise ConfigError(
            f"key: {found} does not fit; it must be one typed key, as jax.random.key(0) is, or one of mbrl_jax.seed_keys(0, 64), "
            "which jax.vmap maps over"
        )


def _check_hyper(hyper: Any, config: RunConfig) -> None:
    """Refuse what is not the same config with other traced numbers."""
    if type(hyper) is not type(config):
        raise ConfigError(f"hyper: {hyper!r} does not fit; it must be a {type(config).__name__} with other traced numbers")
    if jax.tree.structure(hyper) != jax.tree.structure(config):  # type: ignore[operator]
        raise ConfigError("hyper: its static settings differ from the config's; only traced numbers may")


def with_precision(precision: str, function: Callable[P, T]) -> Callable[P, T]:
    """``function`` with matrix products of a precision, as ``precision`` of a config says it."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with contextlib.nullcontext() if precision == "default" else jax.default_matmul_precision(precision):
            return function(*args, **kwargs)

    return wrapped


def missing_as_nan(tree: Any) -> Any:
    """Numpy arrays with NaN for each number that is missing, which compiled code marks by minus infinity.

    Within compiled code NaN is left to faults, so that ``JAX_DEBUG_NANS`` finds them.
    """
    return jax.tree.map(lambda leaf: np.where(np.isneginf(leaf), np.asarray(np.nan, leaf.dtype), leaf), tree)


class Stream(enum.IntEnum):
    """Independent streams of a seed's random numbers. The same stream gives both arms of a comparison the same real data."""

    COLLECTION = 0
    AGENT = 1
    MODEL = 2
    FIT = 3
    FINAL_EVALUATION = 4
    ROUND = 5
    CURVE = 6
    SELECTION = 7
    REFIT = 8
    BEHAVIOUR = 9
    OBSERVATION_NOISE = 10
    DIAGNOSIS = 11
    PLANNING = 12


def stream(key: Array, which: Stream, time: Array | int = 0) -> Array:
    """The key of a stream at a point in time."""
    return jax.random.fold_in(jax.random.fold_in(key, which), time)


def seed_keys(base: int, seeds: int, first: int = 0) -> Array:
    """[seeds] typed threefry keys; seed i has the same one however many there are.

    Raises:
      ConfigError: there are no seeds, or a number is out of range.

    """
    check_seeds(seeds, base, first)
    return keys_of(base, jnp.arange(first, first + seeds))


def keys_of(base: int, numbers: Array) -> Array:
    """[n] the keys of the seeds with these numbers [n]."""
    root = jax.random.key(base, impl="threefry2x32")
    return jax.vmap(lambda number: jax.random.fold_in(root, number))(numbers)


# --------------------------------------------------------------------------------------------- acting in the real environment


class BehaviourDraws(NamedTuple):
    """The random numbers of T real steps."""

    explore: Array  # [T] uniform
    action: Array  # [T], of the uniform random policy
    reset: Array  # [T] int32, which reset of a pool an episode that ends goes on from


def draw_behaviour(environment: Environment, key: Array, steps: int) -> tuple[BehaviourDraws, EnvironmentState]:
    """Draw all that ``steps`` real steps consume, and the pool of resets [P]."""
    key_explore, key_action, key_reset = jax.random.split(key, 3)
    drawn = BehaviourDraws(
        explore=draws.uniform(key_explore, (steps,)),
        action=draw_actions(environment.spec, key_action, (steps,)),
        reset=jnp.arange(steps, dtype=jnp.int32),
    )
    return drawn, draw_pool(environment, key_reset, steps)


def progress(time: Array, steps: int) -> Array:
    """[] the share of the run that is done at step ``time`` of ``steps``: 0 at the first and 1 at the last."""
    return time.astype(jnp.zeros(()).dtype) / max(steps - 1, 1)


def exploration_rate(config: ExplorationConfig, progress: Array) -> Array:
    """[] epsilon, linear from start to end."""
    return config.start + progress * (config.end - config.start)


def real_rows(transitions: Transition) -> Rows:
    """Rows [...] of real transitions; that they were truncated is not part of them."""
    return Rows(
        observation=transitions.observation,
        next_observation=transitions.next_observation,
        action=transitions.action,
        reward=transitions.reward,
        terminated=transitions.terminated,
        weight=jnp.ones_like(transitions.reward),
        depth=transitions.elapsed,
    )


def noisy(transitions: Transition, noise: Array | float, scale: tuple[float, ...], before: Array, after: Array) -> Transition:
    """Successive transitions [N] as they are measured: every state once, so that where an episode goes on both rows agree on it.

    Args:
      transitions: true ones, in the order in which they happened.
      noise: [] standard deviation of a measurement, as a share of the scale.
      scale: D positive numbers.
      before: [N, D] standard normal, for the state that each transition begins in, if an episode begins there.
      after: [N, D] standard normal, for the state that each leads to.

    """
    dtype = transitions.observation.dtype
    deviation = (jnp.asarray(noise, dtype) * jnp.asarray(scale, dtype))[None]
    next_observation = transitions.next_observation + deviation * after
    begins = (transitions.elapsed == 0)[:, None]
    first = transitions.observation + deviation * before
    observation = jnp.where(begins, first, jnp.concatenate([first[:1], next_observation[:-1]]))
    return transitions._replace(observation=observation, next_observation=next_observation)


def scan_round(
    step: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    draw: Callable[[Array, int], Any],
    key: Array,
    steps: int,
    block: Callable[[Any, Any], tuple[Any, Any]] | None = None,
) -> tuple[Any, Any]:
    """Scan ``step`` over the random numbers of a round, drawn at once or, where that takes too many bytes, block by block.

    Args:
      step: ``(carry, draws) -> (carry, log)`` of one step.
      carry: what it begins with.
      draw: ``(key, T) -> draws``, a NamedTuple of leaves [T, ...] that may have a ``pool``, which all steps share.
      key: of the round.
      steps: T of the round.
      block: ``(carry, draws) -> (carry, logs)`` of all steps that the draws are for, in place of scanning ``step`` over them.

    Returns:
      The last carry, and the logs [T, ...].

    """

    def scan(carry: Any, key: Array, count: int) -> tuple[Any, Any]:
        draws = draw(key, count)
        if block is not None:
            return block(carry, draws)
        if "pool" not in draws._fields:
            return jax.lax.scan(step, carry, draws)
        pool = draws.pool
        return jax.lax.scan(lambda carry, now: step(carry, now._replace(pool=pool)), carry, draws._replace(pool=None))

    blocks = blocks_of(draw, key, steps)
    if blocks == 1:
        return scan(carry, key, steps)
    keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(blocks))
    carry, logs = jax.lax.scan(lambda carry, key: scan(carry, key, steps // blocks), carry, keys)
    return carry, jax.tree.map(lambda leaf: leaf.reshape(steps, *leaf.shape[2:]), logs)


def blocks_of(draw: Callable[[Array, int], Any], key: Array, steps: int) -> int:
    """The fewest equal blocks of a round whose random numbers take at most :data:`DRAW_BYTES` each."""
    shapes = jax.tree.leaves(jax.eval_shape(lambda key: draw(key, steps), key))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in shapes)
    return next(count for count in range(1, steps + 1) if steps % count == 0 and (size <= count * DRAW_BYTES or count == steps))


def average_blocks(log: Any, length: int) -> Any:
    """Leaves [T, ...] averaged over blocks of time, [T // length, ...]."""
    return jax.tree.map(lambda x: jnp.mean(x.reshape(-1, length, *x.shape[1:]), axis=1), log)
