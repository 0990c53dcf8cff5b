import dataclasses

import numpy as np
import pytest
import torch

from mbrl_jax.config import DynaQConfig
from mbrl_jax.reference.draws import Draws


@pytest.fixture
def draws(tiny: DynaQConfig) -> Draws:
    return Draws(tiny, 3)


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(tiny: DynaQConfig, draws: Draws) -> None:
    again, other = Draws(tiny, 3), Draws(tiny, 4)
    first = draws.collection(50)
    np.testing.assert_array_equal(first[1], again.collection(50)[1])
    assert (first[1] != other.collection(50)[1]).any()


def test_resets_lie_within_the_tasks_initial_states(draws: Draws) -> None:
    starts = draws.final_starts(2_000)
    assert starts.shape == (2_000, 4)
    assert abs(starts).max() <= 0.05
    assert abs(starts).max() > 0.049


def test_an_epoch_is_a_permutation_for_each_member(draws: Draws) -> None:
    order = draws.epoch_order(0, 3, 40)
    assert order.shape == (3, 40)
    assert (order.sort(-1).values == torch.arange(40)).all()
    assert (order[0] != order[1]).any()


def test_lanes_are_dealt_by_permutations_and_roots_are_rows_that_exist(tiny: DynaQConfig, draws: Draws) -> None:
    seen = []
    for h in range(tiny.imagination.steps):
        lanes = draws.lane_step(0, h, 7)
        assert (lanes.deal.sort().values == torch.arange(tiny.imagination.lanes)).all()
        assert (lanes.root >= 0).all()
        assert (lanes.root < 7).all()
        seen.append(lanes.explore)
    assert (seen[0] != seen[1]).any()


def test_a_steps_numbers_do_not_depend_on_how_often_they_are_asked_for(draws: Draws) -> None:
    assert draws.real_step(3)[:2] == draws.real_step(3)[:2]
    assert draws.real_step(3)[0] != draws.real_step(4)[0]


def test_a_model_free_config_has_no_lanes(baseline: DynaQConfig) -> None:
    with pytest.raises(AssertionError, match="no lanes"):
        Draws(baseline, 0).lane_step(0, 0, 5)


def test_an_unknown_task_is_named(tiny: DynaQConfig) -> None:
    pong = dataclasses.replace(tiny, environment=dataclasses.replace(tiny.environment, name="Pong"))
    with pytest.raises(ValueError, match=r"environment\.name: 'Pong'"):
        Draws(pong, 0)


def test_kernels_have_variance_one_over_fan_in_and_are_cut_at_two_deviations(draws: Draws) -> None:
    from mbrl_jax.reference.networks import QNetwork

    network = QNetwork((400,), (1.0,) * 100, 400)
    draws.initialise_q(network)
    for layer in network.layers:
        weight = layer.weight.detach()
        assert float(weight.var()) == pytest.approx(1 / layer.in_features, rel=0.03)
        assert float(weight.abs().max()) <= 2 / layer.in_features**0.5 / 0.87962566 + 1e-6
        assert (layer.bias == 0).all()
