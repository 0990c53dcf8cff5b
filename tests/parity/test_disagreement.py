"""Measures of the members' disagreement, and what Infoprop makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ensembles import world_of
from torch.distributions import Independent, Normal, kl_divergence

from mbrl_jax.imagination import diagnosis, disagreement
from mbrl_jax.model.fusion import fuse
from mbrl_jax.model.protocol import Prediction
from mbrl_jax.reference.imagination import disagreement as reference
from mbrl_jax.reference.model.ensemble import Prediction as ReferencePrediction

from .agreement import FLOAT64, Agreement, tensor
from .twins import ModelTwins

MEMBERS, LANES, TARGETS = 5, 40, 5


def predictions(rng: np.random.Generator) -> tuple[Prediction, ReferencePrediction]:
    """Members [M, K, D'] that agree by turns closely and not at all."""
    scale = 10.0 ** rng.uniform(-4, 1, (1, LANES, 1))
    mean = rng.normal(size=(1, LANES, TARGETS)) + scale * rng.normal(size=(MEMBERS, LANES, TARGETS))
    log_variance = rng.uniform(-10, 0.5, (MEMBERS, LANES, TARGETS))
    ours = Prediction(jnp.asarray(mean), jnp.asarray(log_variance), None)
    return ours, ReferencePrediction(tensor(mean), tensor(log_variance), None)


@pytest.mark.parametrize("name", disagreement.MEASURES)
def test_a_measure_is_the_references(rng: np.random.Generator, agree: Agreement, name: str) -> None:
    ours, theirs = predictions(rng)
    member = rng.integers(0, MEMBERS, LANES)
    got = jax.jit(disagreement.MEASURES[name])(ours, jnp.asarray(member, jnp.int32))
    for lane in range(LANES):  # lane by lane, as their sizes differ by orders of magnitude
        expected = reference.MEASURES[name](
            ReferencePrediction(*(None if leaf is None else leaf[:, lane : lane + 1] for leaf in theirs)),
            tensor(member[lane : lane + 1]),
        )
        agree(f"disagreement: {name}", got[lane : lane + 1], expected, FLOAT64)


def test_what_members_know_together_and_lose_is_the_references(rng: np.random.Generator, agree: Agreement) -> None:
    ours, theirs = predictions(rng)
    fusion, expected = jax.jit(fuse)(ours), reference.fuse(theirs)
    agree(
        "fusion of members",
        (fusion.mean, fusion.variance, fusion.gain),
        (expected.mean, expected.variance, expected.gain),
        FLOAT64,
    )
    agree("fusion of members, what remains", fusion.remaining, expected.remainder, FLOAT64)
    for resolution in (1e-4, 0.05, 3.0):
        lost = jax.jit(disagreement.information_loss)(ours, resolution)
        agree("information loss", lost, reference.information_loss(theirs, resolution), FLOAT64)


def test_one_member_against_the_rest_is_torchs_divergence(rng: np.random.Generator, agree: Agreement) -> None:
    ours, theirs = predictions(rng)
    assert theirs.log_variance is not None
    for m in range(MEMBERS):
        rest = [e for e in range(MEMBERS) if e != m]
        mean, variance = theirs.mean[rest], theirs.log_variance[rest].exp()
        matched = (variance + mean.square()).mean(0) - mean.mean(0).square()
        drawn = Independent(Normal(theirs.mean[m], theirs.log_variance[m].exp().sqrt()), 1)
        expected = kl_divergence(drawn, Independent(Normal(mean.mean(0), matched.sqrt()), 1))
        got = disagreement.one_vs_rest(ours, jnp.full(LANES, m, jnp.int32))
        agree("disagreement: one_vs_rest", got, expected, 1e-6, against="torch.distributions")  # moments cancel in `matched`


def test_the_real_dynamics_that_errors_are_held_against_are_the_references(rng: np.random.Generator, agree: Agreement) -> None:
    for task in ("CartPole-v1", "Acrobot-v1", "MountainCar-v0"):
        twins = ModelTwins(rng, task)
        scale = np.array(twins.environment.spec.observation_scale)
        observation = scale * rng.uniform(-0.6, 0.6, (500, len(scale)))
        if task == "Acrobot-v1":
            angles = rng.uniform(-3, 3, (500, 2))
            observation[:, :4] = np.stack([f(angles[:, i]) for i in range(2) for f in (np.cos, np.sin)], axis=1)
        action = rng.integers(0, twins.environment.spec.action_count, 500)
        assert twins.environment.dynamics is not None
        got = twins.environment.dynamics(jnp.asarray(observation), jnp.asarray(action, jnp.int32))
        agree(f"real dynamics: {task}", got, twins.task.dynamics(tensor(observation), tensor(action)), 1e-12)


def test_the_error_of_imagined_states_is_in_deviations_of_the_state_change(rng: np.random.Generator, agree: Agreement) -> None:
    twins = ModelTwins(rng, reward="learned")
    world, _ = world_of(twins.ensemble, 1)
    imagined, true = rng.normal(size=(7, 3, 4)), rng.normal(size=(7, 3, 4))
    got = diagnosis.error(jnp.asarray(imagined), jnp.asarray(true), world.scale(twins.members))
    scaled = torch.from_numpy(imagined - true) / twins.world.normaliser.target_std[:4]
    agree("error of imagined states", got, scaled.square().mean(-1).sqrt(), 1e-12)
