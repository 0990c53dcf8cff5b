"""The samplers, and what is logged of a real step."""

from typing import Any

import pytest
import torch

from mbrl_jax.config import ImaginationConfig, QLearningConfig
from mbrl_jax.reference.draws import LaneDraws
from mbrl_jax.reference.imagination import disagreement, lanes
from mbrl_jax.reference.imagination.horizon import Decision, Stateless, View, make_controller
from mbrl_jax.reference.model.ensemble import predict
from mbrl_jax.reference.networks import make_q_network

from .test_horizon import M, make_rows, make_world

K, D = 6, 4


def imagine(sampling: str, noise: torch.Tensor, controller: Any) -> tuple[Any, lanes.Imagined]:
    """One imagined step of six lanes at their roots, action 0; lane k is dealt member 2 - k // 2."""
    config = ImaginationConfig(lanes=K, sampling=sampling, epsilon=1.0, cap=9)
    zero = torch.zeros(K, dtype=torch.int64)
    draws = LaneDraws(zero, torch.zeros(K), zero, torch.arange(K).flip(0), noise)
    world, roots = make_world(), 0.01 * make_rows().observation[:K]
    policy = make_q_network(QLearningConfig(), world.task, dtype=torch.float64, device=torch.device("cpu"))
    at = lanes.start(K, D, controller.calibrate(controller.init(K), world, make_rows()), dtype=torch.float64, device=roots.device)
    return lanes.step(at, world, policy, controller, config, roots, draws, torch.tensor(0))


def test_infoprop_pulls_a_members_word_towards_what_all_say() -> None:
    noise = torch.randn(K, 2 * D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    _, step = imagine("infoprop", noise, make_controller("fixed", {"length": 9}))
    world, rows = make_world(), step.rows
    everyone = predict(world, rows.observation.expand(M, -1, -1), rows.action.expand(M, -1))
    fused = disagreement.fuse(everyone)
    for k in range(K):
        m = 2 - k // 2
        said = everyone.mean[m, k] + everyone.log_variance[m, k].exp().sqrt() * noise[k, :D]
        gain = fused.variance[k] / (fused.variance[k] + fused.separation[k])
        change = fused.mean[k] + gain * (said - fused.mean[k]) + ((1 - gain) * fused.variance[k]).sqrt() * noise[k, D:]
        torch.testing.assert_close(rows.next_observation[k], rows.observation[k] + 2 * change)


def test_fused_lanes_are_moved_by_all_members_weighted_by_precision() -> None:
    noise = torch.randn(K, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    _, step = imagine("fused", noise, make_controller("fixed", {"length": 9}))
    rows = step.rows
    fused = disagreement.fuse(predict(make_world(), rows.observation.expand(M, -1, -1), rows.action.expand(M, -1)))
    expected = rows.observation + 2 * (fused.mean + fused.variance.sqrt() * noise)
    torch.testing.assert_close(rows.next_observation, expected)


class Scripted(Stateless):
    """Halts lane 0, stops lane 1, and keeps all but lane 2."""

    needs_truth = True

    def step(self, state: None, view: View) -> tuple[None, Decision]:
        """As it is written above."""
        assert view.truth is not None
        self.truth = view.truth
        lane = torch.arange(K)
        return state, Decision(lane != 2, lane <= 1, torch.full((K,), 0.1, dtype=torch.float64), halt=lane == 0)


def test_a_halt_ends_its_lane_as_a_terminal_and_counts_as_a_stop() -> None:
    controller = Scripted()
    at, step = imagine("mean", torch.zeros(K, D, dtype=torch.float64), controller)
    real = step.terminated
    assert step.rows.terminated.tolist() == (real | (torch.arange(K) == 0)).tolist()
    assert step.rows.reward[:3].tolist() == [-0.1, 0.9, 0.9]
    assert (at.depth[:2] == 0).all()
    torch.testing.assert_close(controller.truth, make_world().task.dynamics(step.rows.observation, step.rows.action))
    log = lanes.log([step])
    assert float(log.stopped) == pytest.approx(2 / K)
    assert float(log.terminated) == pytest.approx(int(real.sum()) / K)
    assert float(log.ended) == pytest.approx(int((real | (torch.arange(K) < 2)).sum()) / K)


def test_depths_are_counted_by_bins_of_the_kept_rows() -> None:
    _, step = imagine("mean", torch.zeros(K, D, dtype=torch.float64), Scripted())
    depth = torch.tensor([0, 4, 5, 9, 10, 100])  # before the step; lane 2 is not kept
    log = lanes.log([step._replace(rows=step.rows._replace(depth=depth))])
    assert (log.histogram * K).round().tolist() == [1, 0, 0, 0, 1, 1, 1, 0, 0, 1]
    assert float(log.histogram.sum()) == pytest.approx(float(log.kept))
