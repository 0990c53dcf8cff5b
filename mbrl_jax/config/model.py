"""What a world model is set by: what all kinds share, and the ensemble."""

from typing import Literal

from mbrl_jax.config.fields import settings, static, traced
from mbrl_jax.config.kinds import Kind


@settings
class WorldConfig(Kind):
    """What the settings of every kind of world model are."""


@settings
class ModelConfig(WorldConfig):
    """The dynamics ensemble and how it is fitted (kind: ensemble)."""

    members: int = static(5, minimum=1)
    """Ensemble members, E."""
    elites: int | None = static(None, minimum=1)
    """Members that imagination uses, those with the lowest holdout error; none uses all."""
    hidden: tuple[int, ...] = static((64, 64), minimum=1)
    """Widths of the hidden layers."""
    activation: Literal["silu", "tanh", "gelu", "relu"] = static("silu")
    """Nonlinearity between layers; the Laplacian penalty refuses relu, which has no second derivative."""
    input_scale: Literal["data", "task"] = static("data")
    """Whether observations enter standardised by the data, or divided by the task's own scale. Where a policy goes further than
    the data did it is many of their deviations out, and predictions are wrong; on the task's scale it is still within one."""
    target: Literal["change", "state"] = static("change")
    """Whether a member predicts the change of the state, or the next state itself."""
    normalise_targets: bool = static(True)
    """Whether every number that a member predicts, a learned reward included, is standardised by the data. Without it the numbers
    with the largest variance decide the loss."""
    prediction: Literal["gaussian", "deterministic"] = static("gaussian")
    """Whether a member predicts mean and log-variance, or a mean only."""
    loss: str = static("likelihood")
    """A member's loss, by its registered name: the negative log-likelihood, for deterministic members the squared error;
    beta_likelihood learns more where errors are large. vagram and itervaml know the agent's value and are for refits, after a
    first fit by the likelihood (interactive protocol)."""
    value_share: float = traced(1.0, minimum=0, maximum=1)
    """Weight of a loss that knows the value (vagram, itervaml) in a member's loss; the likelihood has the rest."""
    value_samples: int = static(4, minimum=2)
    """Samples of a Gaussian member's prediction that its expected value is the mean of (loss: itervaml)."""
    value_correction: bool = static(True)
    """Whether the variance of that mean is taken off the loss (loss: itervaml), without which members learn to predict too small
    a variance."""
    learn_bounds: bool = static(False)
    """Whether the log-variance bounds (0.5 and -10) are learned."""
    reward: Literal["auto", "known", "learned"] = static("auto")
    """Whether imagination takes the reward from the task's known function or from a head of the model; auto takes the function
    where the task has one."""
    termination: Literal["auto", "known", "learned"] = static("auto")
    """The same of termination."""
    termination_weight: float = traced(100.0, minimum=0)
    """Weight of a learned termination's cross-entropy; beside the likelihood of precise Gaussian members 1 is lost, beside
    deterministic ones 1 will do."""
    learning_rate: float = traced(1e-3, above=0)
    """Adam's step size."""
    weight_decay: float = traced(0.0, minimum=0)
    """Weight of half the sum of the squared kernels in each member's loss. Inputs that explain nothing lose their influence by
    it, so that predictions hold further away from the data."""
    batch_size: int = static(256, minimum=1)
    """Rows of a minibatch, per member."""
    epochs: int = static(50, minimum=1)
    """Passes over the data in the first fit."""
    refit_batches: int = static(250, minimum=1)
    """Minibatches of each refit (interactive protocol)."""
    refit_passes: int = static(1, minimum=1)
    """Equal parts that a refit's minibatches come in. With patience the holdout error is measured after each of them, and a
    member ends at its best, which may be where it began; with 1 a refit goes to its end."""
    bootstrap: bool = static(False)
    """Whether each member is first fitted on a resample (with replacement) of the rows of its own instead of on all of them."""
    patience: int | None = static(None, minimum=1)
    """Epochs, and passes of a refit, without a better holdout error after which a member rests at its best; none trains to the
    end."""
    laplacian: Literal["none", "auto", "exact", "hutchinson"] = static("none")
    """Penalty on the Laplacian of the predicted mean; auto is exact up to 8 observation axes, estimated above."""
    laplacian_weight: float = traced(1e-4, minimum=0)
    """Weight of that penalty."""
    laplacian_rows: int | None = static(None, minimum=1)
    """Rows of each (shuffled) minibatch that the penalty's mean is taken over; none takes all."""
    laplacian_probes: int = static(4, minimum=1)
    """Random probes of the Hutchinson estimate."""
    jacobian: Literal["none", "agreement"] = static("none")
    """Penalty on the Jacobians of the predicted means: none, or their squared distance to the mean over members (agreement)."""
    jacobian_weight: float = traced(1e-2, minimum=0)
    """Weight of that penalty."""
    jacobian_rows: int | None = static(None, minimum=1)
    """Rows of the first member's minibatch that the penalty's mean is taken over; none takes all."""
    spectral_bound: float | None = static(None, above=0)
    """Largest singular value that the kernel of a layer may have after a step of Adam; none bounds none."""
    fits: Literal["all", "parameters", "none"] = static("all")
    """What fits and refits change: parameters and the data's statistics by which inputs and targets are normalised; parameters
    alone, in the units that they were learned in; or nothing, so that the model is frozen. The last two are for runs that begin
    with the model of another run (--from)."""
