"""Settings around a learned model that do not fit together."""

from mbrl_jax.config.agents import PolicyGradientConfig
from mbrl_jax.config.algorithms import DynaQConfig, MPCConfig
from mbrl_jax.config.fields import Problems
from mbrl_jax.config.model import ModelConfig
from mbrl_jax.config.run import ImaginingConfig, ModelBasedConfig, holdout_stride

STOPS_BY_DEPTH = ("fixed", "schedule", "m2ac", "three_model", "gradient_error")
"""The horizon controllers that end a rollout at a depth, whatever the model says of the state there."""


def imagining_members(config: ModelBasedConfig) -> int:
    """Members that imagine: of an ensemble; another kind of model says so when it is made."""
    model = config.model
    if not isinstance(model, ModelConfig):
        return 1
    return model.members if model.elites is None else model.elites


def check_ensemble(config: ModelBasedConfig, model: ModelConfig, problems: Problems) -> None:
    """Note what does not fit of an ensemble: minibatches, the holdout, elites, penalties and when refits stop."""
    require = problems.require
    training_rows = config.random_transitions - config.random_transitions // holdout_stride(config)
    require(
        model.batch_size <= training_rows,
        "model.batch_size",
        model.batch_size,
        f"it must be at most {training_rows}, the training rows among {config.random_transitions} random transitions",
    )
    require(
        config.random_transitions >= holdout_stride(config),
        "random_transitions",
        config.random_transitions,
        f"it must be at least {holdout_stride(config)}, or no row is left for the holdout",
    )
    require(
        model.refit_batches % model.refit_passes == 0,
        "model.refit_passes",
        model.refit_passes,
        f"it must divide model.refit_batches ({model.refit_batches})",
    )
    require(
        model.refit_passes == 1 or model.patience is not None,
        "model.refit_passes",
        model.refit_passes,
        "a refit stops early by model.patience, which is none",
    )
    elites = imagining_members(config)
    require(elites <= model.members, "model.elites", model.elites, f"it must be at most model.members ({model.members})")
    require(
        model.laplacian == "none" or model.activation != "relu",
        "model.activation",
        model.activation,
        "the Laplacian penalty needs a twice differentiable one: 'silu', 'tanh' or 'gelu'",
    )
    require(
        model.laplacian_rows is None or model.laplacian_rows <= model.batch_size,
        "model.laplacian_rows",
        model.laplacian_rows,
        f"it must be at most model.batch_size ({model.batch_size})",
    )
    right = "it is how far members are from their mean, so model.members must be at least 2, or it 'none'"
    require(model.jacobian == "none" or model.members > 1, "model.jacobian", model.jacobian, right)
    right = f"it must be at most model.batch_size ({model.batch_size})"
    rows = model.jacobian_rows
    require(rows is None or rows <= model.batch_size, "model.jacobian_rows", rows, right)


def check_imagining(config: ImaginingConfig, problems: Problems) -> None:
    """Note what does not fit of imagined rollouts: lanes and episodes by member, the replay's size, sampling, penalties."""
    require, imagination, elites = problems.require, config.imagination, imagining_members(config)
    if imagination.sampling not in ("mean", "fused"):
        require(
            imagination.lanes % elites == 0,
            "imagination.lanes",
            imagination.lanes,
            f"lanes are dealt evenly to members, so it must be a multiple of {elites}",
        )
    require(
        config.selection.episodes % elites == 0,
        "selection.episodes",
        config.selection.episodes,
        f"episodes are dealt evenly to members, so it must be a multiple of {elites}",
    )
    per_step = config.imagined_per_step
    if isinstance(config, DynaQConfig):
        capacity = config.imagination.capacity
        require(
            capacity % imagination.lanes == 0,
            "imagination.capacity",
            capacity,
            f"the replay is written in blocks of lanes, so it must be a multiple of {imagination.lanes}",
        )
        require(
            capacity >= per_step,
            "imagination.capacity",
            capacity,
            f"it must hold one real step's {per_step} imagined rows",
        )
    require(
        config.steps * per_step < 2**31,
        "steps",
        config.steps,
        f"{config.steps} x {per_step} imagined rows overflow a 32-bit counter; fewer steps, lanes or imagined steps",
    )
    require(
        imagination.sampling not in ("fused", "infoprop")
        or (isinstance(config.model, ModelConfig) and config.model.prediction == "gaussian"),
        "imagination.sampling",
        imagination.sampling,
        "it weighs members by their predicted variance, so model.prediction must be 'gaussian'",
    )
    require(
        imagination.penalty != "halt" or imagination.controller.kind not in STOPS_BY_DEPTH,
        "imagination.penalty",
        imagination.penalty,
        f"it makes a terminal of every stop, and {imagination.controller.kind!r} stops by depth alone",
    )


def check_mixing(config: DynaQConfig, problems: Problems) -> None:
    """Note what does not fit of a real share that follows the model."""
    mixing, right = config.mixing, f"it must be at least mixing.least ({config.mixing.least})"
    problems.require(mixing.most >= mixing.least, "mixing.most", mixing.most, right)
    right = "it compares members, of which several must imagine"
    problems.require(mixing.measure == "held_out" or imagining_members(config) > 1, "mixing.measure", mixing.measure, right)


def check_planning(config: MPCConfig, problems: Problems) -> None:
    """Note what does not fit of a planner and of the agent that values what comes after its plans."""
    require, planning, members = problems.require, config.planning, imagining_members(config)
    right = "the agent of a planner learns from transitions and values states, as 'q_learning' and 'sac' do"
    require(not isinstance(config.agent, PolicyGradientConfig), "agent.kind", config.agent.kind, right)
    require(config.protocol == "interactive", "protocol", config.protocol, "a planner acts, so it must be 'interactive'")
    require(
        planning.particles % members == 0,
        "planning.particles",
        planning.particles,
        f"particles are dealt evenly to members, so it must be a multiple of {members}",
    )
    require(
        planning.method != "cem" or planning.elites <= planning.candidates,
        "planning.elites",
        planning.elites,
        f"it must be at most planning.candidates ({planning.candidates})",
    )
    proposals = planning.proposals
    if proposals:
        right = "only an agent proposes sequences, so that planning.terminal must be 'value'"
        require(planning.terminal == "value", "planning.proposals", proposals, right)
        right = "with method 'enumeration' all sequences are tried anyway; it must be 0"
        require(planning.method != "enumeration", "planning.proposals", proposals, right)
        right = f"members propose equally many; it must be a multiple of the {members} that imagine"
        require(proposals % members == 0, "planning.proposals", proposals, right)
        right = f"it must be less than planning.candidates ({planning.candidates})"
        require(proposals < planning.candidates, "planning.proposals", proposals, right)
    apart = planning.propagation == "ts_infinity" and members > 1
    right = (
        "it compares members, of which there must be several, each with particles of its own (planning.propagation: ts_infinity)"
    )
    require(planning.bonus == "none" or apart, "planning.bonus", planning.bonus, right)
    target, plain = getattr(config.agent, "target", None), ("max", "double", "standard")
    right = f"the agent of a planner learns from real transitions alone, so it must be one of {', '.join(plain)}"
    require(target is None or target in plain, "agent.target", target, right)
