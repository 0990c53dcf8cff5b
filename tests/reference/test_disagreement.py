import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from mbrl_jax.reference.imagination import disagreement
from mbrl_jax.reference.model.ensemble import Prediction

M, K, D = 4, 6, 3


@pytest.fixture
def everyone() -> Prediction:
    generator = torch.Generator().manual_seed(5)
    draw = lambda: torch.randn(M, K, D, generator=generator, dtype=torch.float64)  # noqa: E731
    return Prediction(draw(), draw(), None)


def gaussian(mean: Tensor, variance: Tensor) -> Independent:
    return Independent(Normal(mean, variance.sqrt()), 1)


def test_the_distances_of_two_members_are_those_worked_out_by_hand() -> None:
    two = Prediction(torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]]]), torch.tensor([[[0.0, 0.0]], [[1.0, 1.0]]]).exp().log(), None)
    assert float(disagreement.max_pairwise(two)) == pytest.approx(5.0)
    assert float(disagreement.std(two)) == pytest.approx(math.sqrt((1.5**2 + 2.0**2) / 2))
    assert float(disagreement.max_aleatoric(two)) == pytest.approx(math.sqrt(2 * math.e))


def test_gjs_is_the_bhattacharyya_distance(everyone: Prediction) -> None:
    two = Prediction(everyone.mean[:2, 0, :1], everyone.log_variance[:2, 0, :1], None)
    x = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    first, second = (Normal(two.mean[e, 0], two.log_variance[e, 0].exp().sqrt()).log_prob(x) for e in range(2))
    coefficient = torch.trapezoid((0.5 * (first + second)).exp(), x)
    assert float(disagreement.gjs(two)) == pytest.approx(-math.log(coefficient), rel=1e-9)


def test_gjs_of_many_targets_and_members_is_the_sum_and_the_mean_over_pairs(everyone: Prediction) -> None:
    one = lambda e, f, d: disagreement.gjs(Prediction(*(x[[e, f]][..., [d]] for x in everyone[:2]), None))  # noqa: E731
    pairs = [(e, f) for e in range(M) for f in range(e + 1, M)]
    expected = sum(one(e, f, d) for e, f in pairs for d in range(D)) / len(pairs)
    torch.testing.assert_close(disagreement.gjs(everyone), expected)


def test_one_vs_rest_is_the_kl_against_the_mixtures_moments(everyone: Prediction) -> None:
    member = torch.tensor([0, 1, 2, 3, 0, 2])
    u, variance = disagreement.one_vs_rest(everyone, member), everyone.log_variance.exp()
    for k, m in enumerate(member.tolist()):
        others = [e for e in range(M) if e != m]
        mean = everyone.mean[others, k].mean(0)
        second_moment = (variance[others, k] + everyone.mean[others, k].square()).mean(0)
        rest = gaussian(mean, second_moment - mean.square())
        torch.testing.assert_close(u[k], kl_divergence(gaussian(everyone.mean[m, k], variance[m, k]), rest))


def test_members_that_agree_lose_nothing_and_are_fused_to_themselves(everyone: Prediction) -> None:
    same = Prediction(everyone.mean[:1].expand(M, -1, -1), everyone.log_variance[:1].expand(M, -1, -1), None)
    fused = disagreement.fuse(same)
    torch.testing.assert_close(fused.mean, same.mean[0])
    torch.testing.assert_close(fused.variance, same.log_variance[0].exp())
    torch.testing.assert_close(fused.gain, torch.ones(K, D, dtype=torch.float64))
    assert (disagreement.information_loss(same, 1e-3) == 0).all()


def test_the_information_loss_is_the_entropy_of_what_remains(everyone: Prediction) -> None:
    fused = disagreement.fuse(everyone)
    precision = torch.exp(-everyone.log_variance)
    torch.testing.assert_close(fused.variance, M / precision.sum(0))
    torch.testing.assert_close(fused.mean, (precision * everyone.mean).sum(0) / precision.sum(0))
    remainder = (1 - fused.gain) * fused.variance
    torch.testing.assert_close(fused.remainder, remainder)
    bits = Normal(0.0, remainder.sqrt()).entropy() / math.log(2) - math.log2(0.5)
    torch.testing.assert_close(disagreement.information_loss(everyone, 0.5), bits.clamp(min=0))


def test_what_a_measure_needs_and_does_not_get_is_named(everyone: Prediction) -> None:
    with pytest.raises(ValueError, match="model.prediction: 'deterministic'"):
        disagreement.gjs(everyone._replace(log_variance=None))
    with pytest.raises(ValueError, match="it must be at least 2"):
        disagreement.max_pairwise(Prediction(everyone.mean[:1], None, None))
    with pytest.raises(ValueError, match="imagination.measure: 'variance' is not among"):
        disagreement.make_measure("variance")
