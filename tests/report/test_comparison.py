import io

import pytest
from rich.console import Console

from mbrl_jax.report import comparison
from mbrl_jax.statistics import Estimate


def figures(scale):
    estimate = Estimate(-1.5 * scale, -1.75 * scale, -1.25 * scale)
    arm = {"mean": estimate, "median": estimate, "iqm": estimate, "seconds": 1234.0}
    arm |= {f"at_least_{mark}": Estimate(1.0, 0.9, 1.0) for mark in (195, 475)}
    names = ("model-based, chosen", "model-based, last", "model-free, last")
    difference = {"mean": estimate, "iqm": estimate}
    return {
        "arms": {name: {**arm, "paired_difference": difference if name != names[2] else None} for name in names},
        "marks": [195, 475],
        "seeds": 64,
    }


@pytest.mark.parametrize("scale", [1, 100, 1000])
def test_the_table_is_whole_in_a_terminal_of_80_columns(scale):
    file = io.StringIO()
    title = "CartPole-v1, interactive: 10,000 real transitions, 1000 seeds"
    Console(file=file, width=80).print(comparison.as_table(figures(scale), title))
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    words = [
        "mean",
        "median",
        "IQM",
        ">= 195",
        ">= 475",
        "difference",
        "seconds",
        "model-based,",
        "chosen",
        "model-free,",
        "last",
    ]
    for word in [*words, *title.split(), "bootstrap", "1234", "100%"]:
        assert word in text, word
    value, interval = f"{-1.5 * scale:.1f}", f"[{-1.75 * scale:.1f}, {-1.25 * scale:.1f}]"
    assert text.count(value) == 3 * 3 + 2  # mean, median and IQM of three arms, the difference of two
    assert text.count(interval) == 3 + 2
