"""What the three kernels take and give, as one element of the grid sees it. The sources have the same lists in the same order.

Everything traced comes in as numbers: a schedule has a row for each step, so that what a setting is computed from costs a kernel
nothing. The names of the flat parameters are those of :func:`mbrl_jax.cuda.parameters.flat`.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from mbrl_jax.cuda.compiling import shipped
from mbrl_jax.cuda.launching import Kernel, Operand
from mbrl_jax.cuda.sizes import FitSizes, RoundSizes, ScoreSizes

COUNTERS = 8  # integers that a round or a pass over minibatches is told
SETTINGS = 16  # numbers that hold for a whole round
SCALES_FROM = 8  # place among the settings of the divisors of the observation's axes
FLOAT, INT, BITS = jnp.float32, jnp.int32, jnp.uint32


def round_kernel(sizes: RoundSizes, steps: int) -> Kernel:
    """T ``steps`` of a round: K lanes of H imagined steps and the updates, for one seed a block."""
    observation, lanes, members = sizes.observation, sizes.lanes, sizes.members
    row, step = 2 * observation + 5, (steps, sizes.horizon, sizes.lanes)
    interactive = bool(sizes.protocol)
    dealt = (steps, sizes.horizon, sizes.lanes) if sizes.sampler == 0 else (1,)
    state = [
        Operand("online", (sizes.parameters,), FLOAT, 0),
        Operand("target", (sizes.parameters,), FLOAT, 1),
        Operand("first moments", (sizes.parameters,), FLOAT, 2),
        Operand("second moments", (sizes.parameters,), FLOAT, 3),
        Operand("imagined rows", (sizes.capacity, row), FLOAT, 4),
        Operand("where lanes stand", (lanes, observation), FLOAT, 5),
        Operand("where lanes began", (lanes, observation), FLOAT, 6),
        Operand("depth", (lanes,), INT, 7),
        Operand("idle", (lanes,), INT, 8),
        Operand("counters", (COUNTERS,), INT, 9),
    ]
    real = Operand("real rows", (sizes.real_capacity, row), FLOAT, 10 if interactive else None)
    read = [
        Operand("members", (members, sizes.member_parameters), FLOAT),
        Operand("bounds", (members, 2, observation), FLOAT),
        Operand("normaliser", (4, observation), FLOAT),
        Operand("root bits", step, BITS),
        Operand("explore", step, FLOAT),
        Operand("random action", step, INT),
        Operand("deal", dealt, INT),
        Operand("noise", (*step, observation), FLOAT),
        Operand("minibatch bits", (steps, sizes.updates, sizes.batch), BITS),
        Operand("step schedule", (steps, 4), FLOAT),
        Operand("update schedule", (steps, sizes.updates, 2), FLOAT),
        Operand("settings", (SETTINGS,), FLOAT),
    ]
    acting = [
        Operand("behaviour explore", (steps,), FLOAT),
        Operand("behaviour action", (steps,), INT),
        Operand("resets", (steps, observation), FLOAT),
        Operand("episode", (observation,), FLOAT, 11),
    ]
    operands = [*state, real, *read, *(acting if interactive else [])]
    told = [
        Operand("losses", (steps, 2), FLOAT),
        Operand("codes", step, INT),
        Operand("scratch", (sizes.scratch,), FLOAT),
    ]
    return _kernel("mbrl_round", "round.cu", sizes, operands, told)


def score_kernel(sizes: ScoreSizes) -> Kernel:
    """Greedy episodes of one policy, imagined ones and real ones, for one seed a block."""
    observation, imagines, plays = sizes.observation, sizes.episodes > 0, sizes.played > 0
    operands = [
        Operand("policy", (sizes.parameters,), FLOAT),
        Operand("members", (sizes.members, sizes.member_parameters) if imagines else (1,), FLOAT),
        Operand("bounds", (sizes.members, 2, observation) if imagines else (1,), FLOAT),
        Operand("normaliser", (4, observation) if imagines else (1,), FLOAT),
        Operand("first states", (sizes.episodes, observation) if imagines else (1,), FLOAT),
        Operand("noise", (sizes.steps, sizes.episodes, observation) if imagines else (1,), FLOAT),
        Operand("starts", (sizes.played, observation) if plays else (1,), FLOAT),
        Operand("settings", (SETTINGS,), FLOAT),
    ]
    told = [
        Operand("imagined returns", (max(sizes.episodes, 1),), FLOAT),
        Operand("real returns", (max(sizes.played, 1),), FLOAT),
    ]
    return _kernel("mbrl_score", "score.cu", sizes, operands, told)


def fit_kernel(sizes: FitSizes, minibatches: int) -> Kernel:
    """Adam steps over ``minibatches`` of one member a block, and its holdout errors after them."""
    members, parameters = sizes.members, (sizes.members, sizes.member_parameters)
    operands = [
        Operand("parameters", parameters, FLOAT, 0),
        Operand("first moments", parameters, FLOAT, 1),
        Operand("second moments", parameters, FLOAT, 2),
        Operand("bounds", (members, 2, sizes.observation), FLOAT),
        Operand("table", (sizes.rows, sizes.table_width), FLOAT),
        Operand("minibatches", (minibatches, members, sizes.batch), INT),
        Operand("schedule", (minibatches, 2), FLOAT),
        Operand("counts", (COUNTERS,), INT),
        Operand("resting", (members,), INT),
        Operand("weights", (2,), FLOAT),
    ]
    return _kernel("mbrl_fit", "fit.cu", sizes, operands, [Operand("losses", (members, 3), FLOAT)], blocks=members)


def _kernel(name: str, file: str, sizes: Any, operands: Sequence[Operand], told: Sequence[Operand], blocks: int = 1) -> Kernel:
    """A kernel whose first results take the place of operands, in the order in which these say so."""
    kept = sorted((operand for operand in operands if operand.becomes is not None), key=lambda operand: operand.becomes or 0)
    assert [operand.becomes for operand in kept] == list(range(len(kept))), "each result takes the place of one operand"
    results = (*(operand._replace(becomes=None) for operand in kept), *told)
    macros = tuple(sorted(sizes.macros.items()))
    return Kernel(name, shipped(file), macros, sizes.threads, sizes.shared_bytes, tuple(operands), results, blocks)
