"""The kernel of a round, run by the emulator, against the plain path; faults planted in its sources are found."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
import rounds
from kernels import apart
from rounds import by_kernel, config_of, flat, kept_of, operands_of

from mbrl_jax.imagination.horizon import controller_settings

TIME = 20
SCHEDULE = controller_settings("schedule", start=0.0, end=40.0, first=1.0, last=3.0)
CONFIGS = {
    "double": config_of(),
    "max": config_of(
        "MountainCar-v0",
        imagination={"restart": "per_step", "sampling": "ts_infinity", "cap": 2, "controller": SCHEDULE, "lanes": 18},
        agent={"target": "max", "loss": "huber", "huber_delta": 0.3, "updates_per_step": 2, "learning_rate_decay": 0.5},
    ),
    "wide": config_of(
        "Acrobot-v1", agent={"hidden": (96, 64), "batch_size": 260}, model={"hidden": (64, 32)}, imagination={"lanes": 36}
    ),
    "interactive": config_of(protocol="interactive", imagination={"cap": 500}),
    "preset": config_of(
        precision="default",
        model={"members": 5, "hidden": (64, 64)},
        imagination={"lanes": 25, "steps": 3, "capacity": 600},
        agent={"hidden": (64, 64), "batch_size": 256},
    ),
}
VARIANTS = {"max": {"state": 1}, "wide": {"state": 2}}
# largest relative distance from the plain path, of what a step changes: operands in two halves are nearly float32; in one they
# have 11 bits, as many as TF32
NEAR = {"highest": 1e-6, "default": 2e-3}


@cache
def case(name):
    return rounds.case_of(CONFIGS[name])


@cache
def expected(name):
    return rounds.plain(CONFIGS[name], case(name), jnp.int32(TIME))


def operands(name):
    return operands_of(CONFIGS[name], case(name), TIME)


@cache
def found(name):
    return by_kernel(CONFIGS[name], operands(name), **VARIANTS.get(name, {}))


def distances(name, results):
    """By what, how far the kernel's results are from the plain path's."""
    plain, given = expected(name), operands(name)
    adam = plain.learner.optimizer
    return {
        "change of the parameters": apart(results["online"], flat(plain.learner.online), given["online"])
        / 30,  # rounded to theirs
        "change of the target": apart(results["target"], flat(plain.learner.target), given["target"]) / 30,
        "first moments": apart(results["mu"], flat(adam.mu), 0.9 * given["mu"]),
        "second moments": apart(results["nu"], flat(adam.nu), 0.999 * given["nu"]),
        "rows": apart(results["ring"], plain.imagined.rows),
        "where lanes stand": apart(results["belief"], plain.lanes.belief),
        "where lanes began": apart(results["root"], plain.lanes.root),
        "losses": apart(results["losses"][..., 0], plain.losses.loss),
        "scaled losses": apart(results["losses"][..., 1], plain.losses.scaled_loss),
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_a_round_is_that_of_the_plain_path(name):
    results, limit = found(name), NEAR[CONFIGS[name].precision]
    far = {what: distance for what, distance in distances(name, results).items() if not distance < limit}
    assert not far
    plain = expected(name)
    np.testing.assert_array_equal(results["depth"], plain.lanes.depth)
    np.testing.assert_array_equal(results["idle"], plain.lanes.idle)
    np.testing.assert_array_equal(results["counters"][:, 1], plain.imagined.written)
    np.testing.assert_array_equal(results["counters"][:, 3], plain.learner.frozen)
    np.testing.assert_array_equal(results["counters"][:, 4], plain.learner.updates)


@pytest.mark.parametrize("name", ["double", "max"])
def test_codes_tell_the_log_of_the_lanes(name):
    codes, log = found(name)["codes"], expected(name).log
    kept = codes >> 3 & 1
    share = {bit: (codes >> bit & 1).mean(axis=(2, 3)) for bit in range(3)}
    np.testing.assert_allclose(share[0], log.stopped, atol=1e-6)
    np.testing.assert_allclose(share[1], log.terminated, atol=1e-6)
    np.testing.assert_allclose(share[2], log.ended, atol=1e-6)
    np.testing.assert_allclose(kept.mean(axis=(2, 3)), log.kept, atol=1e-6)
    np.testing.assert_allclose((kept * ((codes >> 4) + 1)).sum(axis=(2, 3)) / kept.sum(axis=(2, 3)), log.depth, rtol=1e-6)
    if name == "max":
        assert (kept == 0).any(), "some lanes must idle for this to say anything"


def test_the_real_step_is_that_of_the_plain_path():
    results, plain = found("interactive"), expected("interactive")
    np.testing.assert_allclose(results["real"], plain.real.rows, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(results["episode"], plain.episode.observation, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(results["counters"][:, 5], plain.episode.inner.time)
    np.testing.assert_array_equal(results["counters"][:, 2], plain.real.written)


@pytest.mark.parametrize("name", ["double", "preset"])
def test_the_order_of_warps_changes_nothing(name):
    other = by_kernel(CONFIGS[name], operands(name), backwards=True)
    for what, result in found(name).items():
        np.testing.assert_array_equal(result, other[what], err_msg=what)


def test_memory_variants_give_the_same_bits():
    other = by_kernel(CONFIGS["double"], operands("double"), state=2, stream=1, alias=1)
    for what, result in found("double").items():
        np.testing.assert_array_equal(result, other[what], err_msg=what)


def test_a_round_may_be_launched_in_parts():
    config, given, whole = CONFIGS["double"], operands("double"), found("double")
    first = by_kernel(config, rounds.first_steps(config, given, 0, 1))
    rest = rounds.first_steps(config, given, 1, 2)
    rest |= {name: first[name] for name in kept_of(config)}
    second = by_kernel(config, rest)
    for name in ("online", "target", "mu", "nu", "ring", "belief", "root", "depth"):
        np.testing.assert_array_equal(second[name], whole[name], err_msg=name)
    np.testing.assert_array_equal(second["counters"][:, 1:], whole["counters"][:, 1:])


def test_a_seed_that_goes_non_finite_is_frozen_and_its_neighbour_is_not():
    given = operands("preset")
    given["online"][0, 500] = 1e5  # beyond the range of half precision, though not of float32
    results = by_kernel(CONFIGS["preset"], given)
    np.testing.assert_array_equal(results["counters"][:, 3], [1, 0])
    np.testing.assert_array_equal(results["counters"][:, 4], [100, 102])
    for name in ("online", "target", "mu", "nu"):
        np.testing.assert_array_equal(results[name][0], given[name][0], err_msg=name)
        np.testing.assert_array_equal(results[name][1], found("preset")[name][1], err_msg=name)


FAULTS = {
    "a missing barrier": ("    sync_block();  // rows, lanes\n", ""),
    "a wrong permutation of a row": ("(((in >> 3) ^ swizzle<N::WIDTH1>(g)) << 4) + t * 4;", "((in >> 3) << 4) + t * 4;"),
    "a lost gradient of the first layer": (
        "        partial.add_first(J, o, XT[i]);\n",
        "        if (i == 0) partial.add_first(J, o, XT[i]);\n",
    ),
    "a forgotten weight": ("told[0] += w, ", "told[0] += here, "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault):
    orders = [
        by_kernel(CONFIGS["double"], operands("double"), backwards=order, faults=[FAULTS[fault]]) for order in (False, True)
    ]
    assert any(not distance < NEAR["highest"] for results in orders for distance in distances("double", results).values())
