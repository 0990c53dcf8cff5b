import numpy as np
import pytest
from gymnasium import spaces

from mbrl_jax.simulators.spaces import SimulatorError, interface_of

TWO = spaces.Discrete(2)
NESTED = spaces.Dict(
    {
        "arm": spaces.Dict({"place": spaces.Box(-1.0, 1.0, (2,)), "speed": spaces.Box(-np.inf, np.inf, (1,))}),
        "gear": spaces.Discrete(3, start=-1),
        "lamps": spaces.MultiBinary(2),
        "dials": spaces.MultiDiscrete([2, 3]),
    }
)
OBSERVED = {
    "arm": {"place": np.array([0.5, -0.5]), "speed": np.array([7.0])},
    "gear": np.int64(0),
    "lamps": np.array([0, 1], np.int8),
    "dials": np.array([1, 2]),
}


def test_a_dictionary_becomes_one_vector_whose_numbers_keep_their_names():
    interface = interface_of("robot", NESTED, TWO)
    flat = dict(zip(interface.axes, interface.read(OBSERVED).tolist(), strict=True))
    assert flat == {
        **{"arm/place[0]": 0.5, "arm/place[1]": -0.5, "arm/speed": 7.0},
        **{"dials[0]": 0.0, "dials[1]": 1.0, "dials[2]": 0.0, "dials[3]": 0.0, "dials[4]": 1.0},
        **{"gear=-1": 0.0, "gear=0": 1.0, "gear=1": 0.0},
        **{"lamps[0]": 0.0, "lamps[1]": 1.0},
    }
    assert interface.observation_size == 13
    assert interface.bounds()[:, 2].tolist() == [-np.inf, np.inf]
    assert interface.bounds()[:, 3].tolist() == [0, 1]


def test_random_members_of_a_space_are_read_as_gymnasium_flattens_them():
    space = spaces.Tuple([spaces.Box(0.0, 1.0, (2, 3)), spaces.Discrete(4), spaces.MultiDiscrete([2, 4])])
    space.seed(0)
    interface = interface_of("pair", space, TWO)
    for _ in range(20):
        member = space.sample()
        np.testing.assert_array_equal(interface.read(member), spaces.flatten(space, member).astype(np.float32))


def test_an_image_keeps_its_shape_and_a_vector_has_no_names():
    image = interface_of("camera", spaces.Box(0, 255, (2, 2, 1), np.uint8), TWO)
    assert image.observation_shape == (2, 2, 1)
    assert image.read(np.full((2, 2, 1), 255, np.uint8)).tolist() == [255.0] * 4
    vector = interface_of("vector", spaces.Box(-1.0, 1.0, (3,)), TWO)
    assert (vector.observation_shape, vector.axes) == ((), ())


@pytest.mark.parametrize(
    ("observed", "message"),
    [
        ({**OBSERVED, "arm": {"place": np.zeros(2)}}, "observation of robot: 'arm/speed' is missing"),
        ({**OBSERVED, "gear": 2}, "observation of robot, gear: 2 does not fit; it must be a whole number from -1 to 1"),
        ({**OBSERVED, "dials": np.array([1, 3])}, "dials: np.int64(3) does not fit; it must be a whole number from 0 to 2"),
        ({**OBSERVED, "lamps": np.zeros(3)}, "observation of robot, lamps: float64[3] does not fit; it must be int8[2]"),
        ({**OBSERVED, "arm": {"place": ["a", "b"], "speed": np.zeros(1)}}, "arm/place: <U1[2] does not fit"),
        ({**OBSERVED, "arm": {"place": [[1.0], [1.0, 2.0]], "speed": np.zeros(1)}}, "arm/place: it is no array"),
        ({**OBSERVED, "arm": {"place": np.array([0.0, np.nan]), "speed": np.zeros(1)}}, "arm/place[1] is nan; it must be finite"),
        ({**OBSERVED, "arm": {"place": np.zeros(2), "speed": np.array([1e300])}}, "arm/speed is inf; it must be finite"),
        (None, "is missing from None"),
    ],
)
def test_an_observation_that_is_not_of_its_space_is_refused(observed, message):
    with pytest.raises(SimulatorError) as raised:
        interface_of("robot", NESTED, TWO).read(observed)
    assert message in str(raised.value)


def test_actions_from_minus_1_to_1_reach_exactly_the_bounds_of_a_box():
    box = spaces.Box(np.array([[0.0, -2.0]], np.float32), np.array([[1.0, 6.0]], np.float32))
    interface = interface_of("valve", spaces.Box(-1.0, 1.0, (1,)), box)
    for action, units in (
        ([-1.0, -1.0], [0.0, -2.0]),
        ([1.0, 1.0], [1.0, 6.0]),
        ([0.0, 0.5], [0.5, 4.0]),
        ([9.0, -9.0], [1.0, -2.0]),
    ):
        written = interface.write(np.array(action, np.float32))
        assert box.contains(written)
        assert written.tolist() == [units]


def test_discrete_actions_begin_where_their_space_does():
    interface = interface_of("lever", spaces.Box(-1.0, 1.0, (1,)), spaces.Discrete(3, start=5))
    assert [interface.write(np.int32(action)) for action in range(3)] == [5, 6, 7]


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (spaces.Text(3), TWO, "observation space of task: Text"),
        (spaces.Dict({"words": spaces.Text(3)}), TWO, "Box, Discrete, MultiBinary and MultiDiscrete fit"),
        (spaces.Dict({}), TWO, "it must have a number at least"),
        (
            spaces.Box(-1, 1, (1,)),
            spaces.MultiDiscrete([2]),
            "action space of task: MultiDiscrete([2]) does not fit; it must be Discrete",
        ),
        (spaces.Box(-1, 1, (1,)), spaces.Box(0, 5, (1,), np.int32), "it must be Discrete or a Box of floats"),
        (spaces.Box(-1, 1, (1,)), spaces.Box(-np.inf, 1.0, (1,)), "every number must have finite bounds"),
        (spaces.Box(-1, 1, (1,)), spaces.Box(1.0, 1.0, (1,)), "low below high"),
    ],
)
def test_spaces_that_are_no_vectors_or_have_no_bounds_are_refused(observation, action, message):
    with pytest.raises(SimulatorError) as raised:
        interface_of("task", observation, action)
    assert message in str(raised.value)
