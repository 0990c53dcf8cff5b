"""Each controller on predictions that are set by hand."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mbrl_jax.config import ImaginationConfig, ModelConfig
from mbrl_jax.imagination.horizon import controller_settings
from mbrl_jax.reference.environment import make_task
from mbrl_jax.reference.imagination import disagreement
from mbrl_jax.reference.imagination.horizon import CONTROLLERS, Fixed, View, make_controller
from mbrl_jax.reference.imagination.penalties import controller_of, penalised
from mbrl_jax.reference.model.ensemble import Ensemble, Normaliser, Prediction, World
from mbrl_jax.reference.replay import Transition

M, K, D = 3, 4, 4


def make_world(members: int = M) -> World:
    torch.manual_seed(0)
    ensemble = Ensemble(ModelConfig(hidden=(8,)), make_task("CartPole-v1"), members).requires_grad_(False).double()
    for weight in ensemble.weights:
        weight.normal_()
    one = torch.ones(D, dtype=torch.float64)
    return World(ensemble, Normaliser(0 * one, one, 0 * one, 2 * one))


def make_rows(n: int = 21) -> Transition:
    observation = torch.randn(n, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    zero, action = torch.zeros(n, dtype=torch.float64), torch.arange(n) % 2
    return Transition(observation, action, zero, observation, zero, zero + 1, zero)


def view(spread: list[float], depth: list[int] | int = 0, time: int = 0, **fields: Any) -> View:
    """Members whose means are -1, 0 and 1 times ``spread`` [K] in every target, and whose variances are 1."""
    u = torch.tensor(spread, dtype=torch.float64)
    lanes = len(u)
    mean = torch.stack([-u, 0 * u, u])[..., None].expand(M, lanes, D)
    values: dict[str, Any] = {
        "time": torch.tensor(time),
        "depth": torch.tensor(depth).expand(lanes),
        "root": torch.zeros(lanes, D),
        "observation": torch.zeros(lanes, D),
        "action": torch.zeros(lanes, dtype=torch.int64),
        "next_observation": torch.zeros(lanes, D, dtype=torch.float64),
        "reward": torch.ones(lanes, dtype=torch.float64),
        "terminated": torch.zeros(lanes, dtype=torch.bool),
        "active": torch.ones(lanes, dtype=torch.bool),
        "member": torch.zeros(lanes, dtype=torch.int64),
        "everyone": Prediction(mean, torch.zeros_like(mean), None),
    }
    return View(**(values | fields))


def gjs(spread: float) -> float:
    """Of :func:`view`: pairs apart by spread, spread and twice that, variances 1."""
    return D * (1 + 1 + 4) * spread**2 / 8 / 3


def begun(controller: Any, lanes: int = K) -> Any:
    return controller.calibrate(controller.init(lanes), make_world(), make_rows())


def truths(x: Tensor) -> list[bool]:
    return [bool(value) for value in x]


def test_a_threshold_stops_above_its_mark_and_keeps_every_row() -> None:
    controller = make_controller("threshold", {"mark": 2.0}, "max_pairwise")
    _, decision = controller.step(begun(controller), view([0.1, 0.4, 0.6, 0.5]))  # twice that, times the root of D
    assert truths(decision.stop) == [False, False, True, False]
    assert decision.keep.all()
    assert (decision.penalty == 0).all()


@pytest.mark.parametrize("measure", disagreement.MEASURES)
def test_a_quantile_of_the_real_rows_is_the_mark(measure: str) -> None:
    controller, world, rows = make_controller("threshold_quantile", {"quantile": 0.3}, measure), make_world(), make_rows()
    everyone, member = disagreement.on_real_rows(world, rows)
    assert member[:4].tolist() == [0, 1, 2, 0]
    u = disagreement.MEASURES[measure](everyone, member)
    assert float(begun(controller)) == pytest.approx(np.quantile(u.numpy(), 0.3))


def test_a_budget_is_used_up_along_the_rollout_and_is_whole_again_at_a_root() -> None:
    controller = make_controller("accumulated", {"budget": 1.0}, "max_pairwise")
    state, stops = begun(controller, 2), []
    for depths in ([0, 0], [1, 0], [2, 1]):
        state, decision = controller.step(state, view([0.1, 0.15], depths))  # 0.4 and 0.6
        stops.append(truths(decision.stop))
        state = controller.calibrate(state, make_world(), make_rows())  # a refit gives nothing back
    assert stops == [[False, False], [False, False], [True, True]]


def test_macura_marks_by_the_divergence_at_the_latest_roots() -> None:
    controller = make_controller("macura", {"scale": 2.0, "percentile": 50.0, "memory": 2.0})
    state = begun(controller, 2)
    state, decision = controller.step(state, view([0.1, 0.3], 0))
    median = (gjs(0.1) + gjs(0.3)) / 2
    assert float(state.mark) == pytest.approx(2 * median)
    assert truths(decision.stop) == [False, False]
    state, decision = controller.step(state, view([0.1, 0.5], 1))  # no root, the mark stays
    assert float(state.mark) == pytest.approx(2 * median)
    assert truths(decision.stop) == [False, True]
    assert truths(decision.keep) == [True, False]
    idle = torch.tensor([True, False])
    state, _ = controller.step(state, view([0.2, 9.0], 0, active=idle))
    assert float(state.mark) == pytest.approx((2 * median + 2 * gjs(0.2)) / 2)
    for _ in range(2):
        state, _ = controller.step(state, view([0.4] * 2, 0))
    before = float(state.mark)
    state, _ = controller.step(state, view([0.4] * 2, 0))  # the buffer of 8 lost the oldest: 0.1, and holds 0.3, 0.2, 6 x 0.4
    assert len(state.roots) == 8
    assert float(state.mark) == pytest.approx((before + 2 * gjs(0.4)) / 2)


def test_macura_does_not_stop_where_members_agree() -> None:
    controller = make_controller("macura", {"scale": 1.0, "percentile": 95.0, "memory": 9.0})
    assert not controller.step(begun(controller), view([0.0] * K))[1].stop.any()


def test_m2ac_keeps_the_lowest_share_at_each_depth_and_stops_at_its_length() -> None:
    controller = make_controller("m2ac", {"length": 2, "penalty": 0.5})
    spread = [0.4, 0.1, 0.1, 0.3, 0.2, 0.2, 0.5]
    depth = [0, 0, 0, 0, 1, 1, 0]
    active = torch.tensor([True] * 6 + [False])
    seen = view(spread, depth, active=active)
    _, decision = controller.step(begun(controller), seen)
    # of four at depth 0 less than 4/3: the ranks 0 and 1; of two at depth 1 less than 2/6: rank 0, the lower lane of equal ones
    assert truths(decision.keep)[:6] == [False, True, True, False, True, False]
    assert truths(decision.stop) == [False] * 4 + [True] * 2 + [False]
    assert seen.everyone is not None
    torch.testing.assert_close(decision.penalty, 0.5 * disagreement.one_vs_rest(seen.everyone, seen.member))
    short = make_controller("m2ac", {"length": 1, "penalty": 0.0})
    assert truths(short.step(begun(short), view([0.4, 0.1, 0.2, 0.3]))[1].keep) == [False, True, True, False]


def test_infoprop_stops_by_the_loss_of_a_step_or_of_the_rollout() -> None:
    settings = {"high": 0.9, "low": 0.2, "length": 3, "resolution": 0.01}
    controller = make_controller("infoprop", settings)
    state = begun(controller)
    everyone, _ = disagreement.on_real_rows(make_world(), make_rows())
    loss = disagreement.information_loss(everyone, 0.01).numpy()
    np.testing.assert_allclose(state.per_step, np.quantile(loss, 0.9, axis=0))
    np.testing.assert_allclose(state.per_rollout, 3 * np.quantile(loss, 0.2, axis=0))
    seen = [view([0.1, 0.2, 0.3, 0.4], depth) for depth in ([0] * K, [1, 1, 0, 1])]
    h = disagreement.information_loss(seen[0].everyone, 0.01)
    assert h[:, 0].tolist() == pytest.approx([5.07, 6.06, 6.62, 7.01], abs=0.01)
    state = state._replace(per_step=torch.full((D,), 6.8), per_rollout=torch.full((D,), 11.0))
    state, decision = controller.step(state, seen[0])
    assert truths(decision.stop) == [False, False, False, True]
    state, decision = controller.step(state, seen[1])
    torch.testing.assert_close(state.lost, h * torch.tensor([2, 2, 1, 2])[:, None])
    assert truths(decision.stop) == [False, True, False, True]


def test_three_models_lengthen_and_shorten_all_lanes_a_real_step_later() -> None:
    controller = make_controller("three_model", {"low": 0.2, "high": 0.5, "first": 2, "limit": 3})
    std = (2 / 3) ** 0.5  # of -1, 0 and 1
    state, lengths = begun(controller), []
    for time, u in enumerate([0.1, 0.1, 0.3, 0.7, 0.7, 0.7, 0.7, 0.3]):
        for spread in ([0.5 * u / std, 1.5 * u / std], [u / std, u / std]):
            state, decision = controller.step(state, view(spread, [0, 1], time))
        lengths.append(int(state.length))
        assert truths(decision.stop) == [lengths[-1] <= 1, lengths[-1] <= 2]
    assert lengths == [2, 3, 3, 3, 2, 1, 1, 1]
    with pytest.raises(ValueError, match="'three_model' does not fit 2 imagining members"):
        controller.calibrate(state, make_world(2), make_rows())


def test_the_oracle_stops_by_the_true_error_in_units_of_the_changes_deviation() -> None:
    controller = make_controller("oracle", {"mark": 1.0})
    assert controller.needs_truth
    truth = torch.tensor([[1.9] * D, [2.1] * D, [0.0] * D, [0.0, 0.0, 0.0, 4.1]], dtype=torch.float64)
    _, decision = controller.step(begun(controller), view([0.0] * K, truth=truth))
    assert truths(decision.stop) == [False, True, False, True]


def test_penalties_come_on_top_of_what_a_controller_takes() -> None:
    seen = view([0.1, 0.2, 0.3, 0.4])
    plain = make_controller("m2ac", {"length": 2, "penalty": 1.0})
    taken = plain.step(begun(plain), seen)[1].penalty
    for kind, u in (("mopo", 2.0), ("disagreement", disagreement.std(seen.everyone))):
        controller = penalised(plain, kind, 0.3, "std")
        torch.testing.assert_close(controller.step(begun(controller), seen)[1].penalty, taken + 0.3 * u)
    assert penalised(plain, "none", 0.3, "std") is plain


def test_a_halt_is_a_terminal_whose_row_is_kept() -> None:
    controller = penalised(make_controller("macura", {"scale": 1.0, "percentile": 0.0, "memory": 1.0}), "halt", 7.0, "std")
    _, decision = controller.step(begun(controller), view([0.1, 0.2, 0.05, 0.0]))
    assert decision.halt is not None
    assert truths(decision.halt) == truths(decision.stop) == [True, True, True, False]
    assert decision.keep.all()
    assert decision.penalty.tolist() == [7.0, 7.0, 7.0, 0.0]
    with pytest.raises(ValueError, match="imagination.penalty: 'halt' does not fit"):
        penalised(Fixed(length=3), "halt", 7.0, "std")
    with pytest.raises(ValueError, match="imagination.penalty: 'pessimism' is not among"):
        penalised(Fixed(length=3), "pessimism", 7.0, "std")


@pytest.mark.parametrize("sampling", ["mean", "fused"])
def test_a_sampler_that_draws_no_member_is_refused_where_one_is_compared(sampling: str) -> None:
    config = ImaginationConfig(sampling=sampling, measure="one_vs_rest")
    assert isinstance(controller_of(config), Fixed)  # it compares nobody
    for settings in (
        {"controller": controller_settings("threshold", **{"mark": 1.0})},
        {"penalty": "disagreement"},
        {"controller": controller_settings("m2ac", **{"length": 3, "penalty": 0.0}), "measure": "std"},
    ):
        with pytest.raises(ValueError, match=f"imagination.sampling: '{sampling}' draws no member"):
            controller_of(dataclasses.replace(config, **settings))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("threshold_quantile", {"quantile": 1.2}, "imagination.controller.quantile: 1.2"),
        ("macura", {"scale": 1, "percentile": 101, "memory": 3}, "imagination.controller.percentile: 101"),
        ("macura", {"scale": 1, "percentile": 95, "memory": 0}, "imagination.controller.memory: 0"),
        ("m2ac", {"length": 0, "penalty": 0}, "imagination.controller.length: 0"),
        ("infoprop", {"high": 1, "low": 1, "length": 3, "resolution": 0}, "imagination.controller.resolution: 0"),
        ("three_model", {"low": 1, "high": 0, "first": 1, "limit": 3}, "imagination.controller.low: 1"),
        ("three_model", {"low": 0, "high": 1, "first": 4, "limit": 3}, "imagination.controller.first: 4"),
    ],
)
def test_a_controllers_number_that_cannot_work_is_named(name: str, settings: dict[str, float], message: str) -> None:
    assert name in CONTROLLERS
    with pytest.raises(ValueError, match=message):
        make_controller(name, settings)
