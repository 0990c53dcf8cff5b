"""The report's figures of where the value's error comes from, and of what a real share follows."""

import re
from types import SimpleNamespace

import numpy as np

from mbrl_jax.imagination.mismatch import Mismatch
from mbrl_jax.report import model
from mbrl_jax.report.markup import Figures


def entry_of(told, model_share=None, rule="adaptive"):
    config = SimpleNamespace(
        protocol="interactive",
        steps=40,
        round_steps=10,
        random_transitions=100,
        mixing=SimpleNamespace(rule=rule, least=0.2, most=0.9),
    )
    metrics = SimpleNamespace(mismatch=told, model_share=model_share)
    return SimpleNamespace(label="arm", run=SimpleNamespace(config=config, result=SimpleNamespace(metrics=metrics)))


def test_the_parts_of_the_values_error_are_drawn_round_by_round_without_the_seeds_that_are_lost():
    told = Mismatch(*np.random.default_rng(0).uniform(0.1, 0.9, (7, 5, 4)).astype(np.float32))
    told.total[3, 2] = np.nan
    figures = Figures()
    (page,) = model.mismatch(entry_of(told), figures)
    assert figures.count == page.count("<svg") == 2
    assert page.count("4 seeds. Left out: 1 seed with numbers that are not finite.") == 2
    for words in ("value function", "model, on held-out data", "shift", "total", "real transitions", "share"):
        assert re.search(words, page), words


def test_where_it_was_not_measured_or_nothing_is_finite_nothing_is_drawn():
    assert model.mismatch(entry_of(None), Figures()) == []
    figures = Figures()
    (page,) = model.mismatch(entry_of(Mismatch(*np.full((7, 2, 4), np.nan))), figures)
    assert figures.count == 0
    assert "No seed of arm has a finite error of its value" in page


def test_what_a_real_share_or_a_rule_has_followed_is_drawn():
    shares = np.random.default_rng(0).uniform(0.1, 0.9, (5, 4)).astype(np.float32)
    shares[1, 0] = np.nan
    figures = Figures()
    (page,) = model.mixing(entry_of(None, shares), figures)
    assert figures.count == page.count("<svg") == 1
    assert "real rows of a minibatch" in page
    assert "4 seeds. Left out: 1 seed with numbers that are not finite." in page
    (page,) = model.mixing(entry_of(None, shares, rule="fixed"), Figures())
    assert "real rows of a minibatch" not in page
    assert model.mixing(entry_of(None), Figures()) == []
    (page,) = model.mixing(entry_of(None, np.full((2, 4), np.nan)), Figures())
    assert "No seed of arm has a finite share of the model" in page
