"""Sizes of kernels: the memory that they say is the sources' own, and what there is no kernel for is refused by its setting."""

import dataclasses

import kernels
import pytest
import rounds

from mbrl_jax.config import ConfigError
from mbrl_jax.cuda.sizes import FitSizes, RoundSizes, ScoreSizes, check_fit, check_round, check_score, variants_of

BATCH = RoundSizes(1, 4, 2, 0, 64, 64, 64, 64, 5, 25, 3, 256, 1, 20_000, 5_000, 1, 0, 0, 0, 0, 500)
SCORE = ScoreSizes(1, 4, 2, 0, 64, 64, 64, 64, 5, 50, 500, 10, 500)
FIT = FitSizes(1, 4, 2, 64, 64, 5, 256, 5_000, 10, 16)
ODD = dataclasses.replace(
    BATCH, observation=6, actions=3, task=2, q_width1=32, q_width2=96, members=3, lanes=60, batch=100, terms=2
)


def shared_bytes(name, sizes):
    """As the source counts them."""
    return kernels.library_of(name, sizes.macros).shared_bytes()


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("round", BATCH),
        ("round", dataclasses.replace(ODD, state=1, protocol=0)),
        ("round", dataclasses.replace(BATCH, state=2, stream=1, alias=1, protocol=1)),
        ("score", SCORE),
        ("score", dataclasses.replace(SCORE, episodes=0, terms=2)),
        ("fit", FIT),
        ("fit", dataclasses.replace(FIT, laplacian=0, terms=2, observation=6, actions=3, m_width1=32)),
    ],
)
def test_shared_memory_is_what_the_source_counts(name, sizes):
    assert sizes.shared_bytes == shared_bytes(name, sizes)
    assert sizes.threads == kernels.library_of(name, sizes.macros).threads()


def test_parameters_are_counted_as_networks_have_them():
    case = rounds.case_of(rounds.config_of(), steps=1)
    assert rounds.sizes_of(rounds.config_of()).parameters == rounds.flat(case.learner.online).shape[-1]
    assert rounds.sizes_of(rounds.config_of()).member_parameters == rounds.flat(case.members.params, 2).shape[-1]


def test_the_preset_fits_each_kind_of_gpu_by_some_variant():
    sizes = [variant.shared_bytes for variant in variants_of(BATCH)]
    assert variants_of(BATCH)[0] == BATCH, "where there is room everything stays on chip"
    assert min(sizes) <= 99 * 1024 < max(sizes) <= 227 * 1024
    assert min(variant.shared_bytes for variant in variants_of(dataclasses.replace(BATCH, terms=2))) <= 227 * 1024


def test_registers_hold_the_parameters_of_small_networks_alone():
    wide = dataclasses.replace(BATCH, q_width1=128, q_width2=128)
    assert all(variant.state != 0 for variant in variants_of(wide))
    assert all(variant.state != 0 for variant in variants_of(dataclasses.replace(BATCH, terms=2)))


@pytest.mark.parametrize(
    ("check", "sizes", "setting"),
    [
        (check_round, dataclasses.replace(BATCH, q_width1=48), r"agent.hidden: \(48, 64\)"),
        (check_round, dataclasses.replace(BATCH, m_width2=160), r"model.hidden: \(64, 160\)"),
        (check_round, dataclasses.replace(BATCH, lanes=24), "imagination.lanes: 24"),
        (check_round, dataclasses.replace(BATCH, task=3), "environment.name"),
        (check_round, dataclasses.replace(BATCH, task=1, protocol=1), "environment.name: 'MountainCar-v0'"),
        (check_score, dataclasses.replace(SCORE, episodes=49), "selection.episodes: 49"),
        (check_score, dataclasses.replace(SCORE, task=1), "environment.name: 'MountainCar-v0'"),
        (check_fit, dataclasses.replace(FIT, m_width1=16), r"model.hidden: \(16, 64\)"),
        (check_fit, dataclasses.replace(FIT, observation=7), "model.laplacian: .* 7 observation axes"),
    ],
)
def test_what_there_is_no_kernel_for_is_refused_by_its_setting(check, sizes, setting):
    with pytest.raises(ConfigError, match=setting):
        check(sizes)


def test_the_presets_are_not_refused():
    check_round(BATCH), check_score(SCORE), check_fit(FIT)
