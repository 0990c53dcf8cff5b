"""The report's part on latent worlds: how the parts of the loss went while the model was learned."""

import numpy as np

from mbrl_jax.report import markup, measures
from mbrl_jax.report.entries import Entry, left_out
from mbrl_jax.report.figures import draw_band
from mbrl_jax.report.markup import Figures, new_axes

PARTS = {
    "reconstruction": ("decoded observation, squared error", "#0b6e4f"),
    "reward": ("reward, squared error", "#e08e45"),
    "termination": ("termination, cross-entropy", "#b0413e"),
}
SURPRISE = "#5b5f97"


def fits(entry: Entry, figures: Figures) -> list[str]:
    """The first fit of a latent world and what it learned from then on, step by step."""
    told, config = entry.run.result.metrics.world, entry.run.config
    kept = measures.finite_seeds(*told)
    if not kept.any():
        return [markup.paragraph(f"No seed of {entry.label} has a finite loss of its model, so there is nothing to draw.")]
    curves = {name: np.asarray(leaf, np.float64)[kept].reshape(kept.sum(), -1) for name, leaf in told._asdict().items()}
    x = config.random_transitions + (np.arange(curves["loss"].shape[1]) + 1) * config.metric_steps
    about = f"IQM over seeds with its 95 % bootstrap interval, {kept.sum()} seeds.{left_out(kept)}"

    figure, (ax,) = new_axes()
    for name, (label, colour) in PARTS.items():
        draw_band(ax, x, curves[name], label, colour)
    markup.readable_log(ax)
    ax.set_xlabel("real transitions")
    ax.set_ylabel("error in the minibatches")
    markup.legend(figure, columns=1)
    errors = figures.add(
        figure,
        f"What the latent world of {entry.label} tells of its minibatches",
        "Errors of what is decoded from filtered beliefs: the observation on the task's scale, summed over its axes, the reward, "
        f"and the termination; {about}",
    )
    figure, (ax,) = new_axes()
    draw_band(ax, x, curves["divergence"], "surprise", SURPRISE)
    ax.set_xlabel("real transitions")
    ax.set_ylabel("nats")
    surprise = figures.add(
        figure,
        f"Surprise of the filter of {entry.label}",
        f"Divergence of the belief after an observation from the belief that expected it, a mean over the minibatches; {about}",
    )
    return [errors, surprise]
