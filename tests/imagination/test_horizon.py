import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.config import ConfigError
from mbrl_jax.imagination import horizon
from mbrl_jax.imagination.horizon import View


def view(depth, time=0):
    lanes = len(depth)
    zeros, flags = jnp.zeros((lanes, 4)), jnp.zeros(lanes, bool)
    return View(
        time=jnp.asarray(time, jnp.int32),
        depth=jnp.asarray(depth, jnp.int32),
        root=zeros,
        observation=zeros,
        action=jnp.zeros(lanes, jnp.int32),
        next_observation=zeros,
        reward=jnp.ones(lanes),
        terminated=flags,
        active=~flags,
        member=jnp.zeros(lanes, jnp.int32),
        everyone=None,
        truth=None,
    )


def stops(controller, depth, time=0):
    _, decision = controller.step(controller.init(len(depth), None), view(depth, time))
    return np.asarray(decision.stop)


def test_fixed_stops_every_lane_at_its_length():
    assert stops(horizon.fixed(length=3), [0, 1, 2, 3]).tolist() == [False, False, True, True]


def test_fixed_keeps_every_row_and_takes_nothing_from_the_reward():
    controller = horizon.fixed(length=2)
    _, decision = controller.step(controller.init(3, None), view([0, 1, 2]))
    assert bool(jnp.all(decision.keep))
    assert decision.penalty.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("time", "length"), [(0, 1), (20, 1), (59, 7), (60, 8), (99, 14), (100, 15), (1000, 15)])
def test_schedule_grows_linearly_between_its_marks_and_rounds_down(time, length):
    controller = horizon.schedule(start=20, end=100, first=1, last=15)
    expected = int(np.clip(1 + (time - 20) / 80 * 14, 1, 15))
    assert expected == length
    depth = list(range(20))
    assert stops(controller, depth, time).tolist() == [d + 1 >= length for d in depth]


@pytest.mark.parametrize(("time", "length"), [(0, 9), (20, 9), (40, 7), (60, 5), (90, 2), (100, 1), (1000, 1)])
def test_a_schedule_may_shrink(time, length):
    controller = horizon.schedule(start=20, end=100, first=9, last=1)
    assert stops(controller, list(range(12)), time).tolist() == [d + 1 >= length for d in range(12)]


def test_the_numbers_of_a_controller_may_be_vmapped():
    lengths = jnp.array([1.0, 2.0, 3.0])

    def stopped(length):
        controller = horizon.make_controller("fixed", {"length": length})
        return controller.step(controller.init(3, None), view([0, 1, 2]))[1].stop

    expected = [[True, True, True], [False, True, True], [False, False, True]]
    assert jax.vmap(stopped)(lengths).tolist() == expected


def test_an_unknown_controller_is_refused_with_the_names_of_those_there_are():
    with pytest.raises(ConfigError, match=r"imagination.controller.kind: 'fixd' is not known.*fixed, schedule"):
        horizon.make_controller("fixd", {})


@pytest.mark.parametrize("numbers", [{}, {"lenght": 3.0}, {"length": 3.0, "extra": 1.0}])
def test_numbers_that_a_controller_does_not_take_are_refused(numbers):
    with pytest.raises(ConfigError, match=r"imagination.controller: .*'fixed' takes exactly length"):
        horizon.make_controller("fixed", numbers)
