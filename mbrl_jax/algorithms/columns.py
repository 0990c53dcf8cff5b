"""What a run measures: the columns of its table, with their units and meanings.

Columns that end in a number are of one ensemble member, one bin of a histogram, or one step of a window.
"""

from typing import NamedTuple

from mbrl_jax.imagination.lanes import DEPTH_EDGES


class Column(NamedTuple):
    """What a column means."""

    unit: str
    description: str


COLUMNS: dict[str, Column] = {
    "seed": Column("number", "which agent"),
    "phase": Column("name", "collect, fit or train"),
    "epoch": Column("number", "epoch of the model's first fit, from 0"),
    "round": Column("number", "round of the main loop, from 0"),
    "step": Column("real steps", "steps of the collection or of the main loop done by the end of the row"),
    "episode_return": Column("return", "return of the random episode that ended at this step"),
    "model.loss": Column("nats", "mean training loss of a member over the minibatches of an epoch or a refit"),
    "model.holdout_mse": Column("squared deviations", "a member's squared error on held-out rows, normalised, summed over axes"),
    "model.holdout_nll": Column("nats", "a member's negative log-likelihood of held-out rows, without the constant"),
    "update.loss": Column("squared return", "mean loss of the updates: the Q-networks' TD loss, or the critic's"),
    "update.scaled_loss": Column("1", "that loss over the variance of its targets"),
    "update.entropy": Column("nats", "mean entropy of the policy in the states of the updates"),
    "update.temperature": Column("return per nat", "soft actor-critic: what an action's log-probability weighs in its value"),
    "update.value": Column("return", "soft actor-critic: mean of the critics' values of the minibatches' actions"),
    "update.gradient_norm": Column("return", "decoupled backpropagation: norm of the actor's gradient before it is clipped"),
    "update.path_length": Column("steps", "decoupled backpropagation: mean steps that a gradient goes back along a path"),
    "surrogate.error": Column("1", "relative error of the model's Jacobian, by the step of the window"),
    "surrogate.cosine": Column("1", "cosine of the model's Jacobian to what it is held against, by the step of the window"),
    "lanes.depth": Column("imagined steps", "mean depth of the imagined rows that were kept, a root's first step counting 1"),
    "lanes.kept": Column("share", "imagined rows that were kept"),
    "lanes.stopped": Column("share", "imagined steps at which the horizon controller ended a lane"),
    "lanes.terminated": Column("share", "imagined steps at which the imagined episode terminated"),
    "lanes.ended": Column("share", "imagined steps at which a rollout ended for any reason; its inverse is the realised horizon"),
    "lanes.histogram": Column("share", f"rows kept, by depth: bins up to {', '.join(map(str, DEPTH_EDGES))}, and deeper"),
    "world.loss": Column("nats", "latent world: the loss of its minibatches of sequences"),
    "world.reconstruction": Column("squared scale", "its squared error of the decoded observation, summed over axes"),
    "world.reward": Column("squared reward", "its squared error of the reward, of symmetric logarithms where they are used"),
    "world.termination": Column("nats", "its cross-entropy of the termination"),
    "world.divergence": Column("nats", "its surprise: the divergence of the filter's belief from what it expected"),
    "random_actions.share": Column("share", "real steps whose action was random"),
    "random_actions.mark": Column("nats", "the filter's surprise above which an action is random"),
    "plan.value": Column("return", "what the planner expected its plan to earn within the horizon, and by the value after it"),
    "plan.spread": Column("return", "standard deviation over the sequences that the planner tried last"),
    "mismatch.total": Column("return", "mean one-step error of the agent's value where its policy goes: value + model + shift"),
    "mismatch.value": Column("return", "the part of it that the value function has not learned in the model"),
    "mismatch.model": Column("return", "the error that the model makes in it at held-out real states"),
    "mismatch.shift": Column("return", "how much larger that error is where the policy goes"),
    "mismatch.model_size": Column("return", "mean magnitude of the model's part at held-out real states"),
    "mismatch.visited_size": Column("return", "the same where the policy goes"),
    "mismatch.model_share": Column("share", "the model's magnitude over that and the value function's, where the policy goes"),
    "model_share": Column(
        "share", "of the model in the error of the agent's value at held-out real transitions, after the refit"
    ),
    "curve_return": Column("return", "mean over greedy real episodes of the target network, or over episodes by the planner"),
    "score": Column("return", "mean over imagined episodes of the target network"),
    "chosen_score": Column("return", "the same of the snapshot chosen so far"),
    "is_chosen": Column("flag", "this round's snapshot became the chosen one"),
    "frozen": Column("flag", "the learner has gone non-finite and rests at its last finite parameters"),
}
BLOCKS = (
    "update.",
    "surrogate.",
    "lanes.",
    "world.",
    "random_actions.",
    "plan.",
)  # measured in every block, the others once a round


def describe(column: str) -> Column:
    """The meaning of a column of the table, those of one member or bin included.

    What an agent of one's own logs is called by its name alone.
    """
    return COLUMNS.get(base_of(column), Column("", f"{base_of(column)}, as the agent logs it"))


def base_of(column: str) -> str:
    """A column's name without the number of a member or bin."""
    name, _, number = column.rpartition(".")
    return name if number.isdecimal() else column


def place_of(column: str) -> tuple[int, str]:
    """Where a column stands: in the order of COLUMNS, and what is not there after the others of its group."""
    known, base = list(COLUMNS), base_of(column)
    if base in COLUMNS:
        return known.index(base), ""
    group = base.partition(".")[0] + "."
    return max((i for i, name in enumerate(known) if name.startswith(group)), default=len(known)), base
