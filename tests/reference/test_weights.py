import numpy as np
import pytest

from mbrl_jax.reference import weights


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"Dense_0": {}}, "the one key 'params'"),
        ({"params": {}}, "there are no layers"),
        ({"params": {"Dense_1": {"kernel": np.zeros((2, 2)), "bias": np.zeros(2)}}}, "params/Dense_0 is missing"),
        ({"params": {"Dense_0": {"kernel": np.zeros((2, 2))}}}, "the keys 'kernel' and 'bias'"),
    ],
)
def test_a_flax_tree_that_is_no_network_is_refused(tree: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weights.q_to_torch(tree)


def test_a_state_dictionary_with_an_odd_or_missing_key_is_refused() -> None:
    state = weights.q_to_torch({"params": {"Dense_0": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}}})
    with pytest.raises(ValueError, match="extra is no parameter"):
        weights.q_to_flax({**state, "extra": state["layers.0.bias"]})
    del state["layers.0.bias"]
    with pytest.raises(ValueError, match=r"layers\.0\.bias is missing"):
        weights.q_to_flax(state)
    with pytest.raises(ValueError, match="maximum is missing"):
        weights.ensemble_to_flax({})


def test_several_networks_have_leaves_with_a_leading_axis_and_come_back_as_they_were() -> None:
    rng = np.random.default_rng(0)
    shapes = [((3, 4, 5), (3, 5)), ((3, 5, 2), (3, 2))]
    layers = {f"Dense_{i}": {"kernel": rng.normal(size=k), "bias": rng.normal(size=b)} for i, (k, b) in enumerate(shapes)}
    state = weights.q_to_torch({"params": layers})
    np.testing.assert_array_equal(state["networks.2.layers.0.weight"], layers["Dense_0"]["kernel"][2].T)
    back = weights.q_to_flax(state)["params"]
    for name, layer in layers.items():
        for leaf, values in layer.items():
            np.testing.assert_array_equal(back[name][leaf], values)
    with pytest.raises(ValueError, match="odd is no parameter of such networks"):
        weights.q_to_flax({**state, "odd": state["networks.0.layers.0.bias"]})
    with pytest.raises(ValueError, match=r"networks\.0 is missing"):
        weights.q_to_flax({key: leaf for key, leaf in state.items() if not key.startswith("networks.0")})
