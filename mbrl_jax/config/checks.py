"""Refuses settings that cannot work, alone or together."""

import dataclasses
import operator
import typing
from typing import Any

from mbrl_jax.config.fields import ConfigError, Limits, convert
from mbrl_jax.config.kinds import Kind, Kinds
from mbrl_jax.config.schema import (
    DMOConfig,
    DreamerConfig,
    DynaQConfig,
    ImaginedPGConfig,
    ImaginingConfig,
    ModelBasedConfig,
    ModelConfig,
    ModelFreePGConfig,
    ModelFreeQConfig,
    MPCConfig,
    PolicyGradientConfig,
    QLearningConfig,
    RecurrentSACConfig,
    RunConfig,
    SequencesConfig,
)

WINDOWED = ("fixed", "schedule", "gradient_error")
"""The horizon controllers that end paths within a window of simulated steps: they do not ask what members predict of a state."""

LATENT = ("fixed", "schedule", "drift")
"""The horizon controllers that end rollouts of a latent world."""

STOPS_BY_DEPTH = ("fixed", "schedule", "m2ac", "three_model", "gradient_error")
"""The horizon controllers that end a rollout at a depth, whatever the model says of the state there."""


def check_kind(config: Any, kind: type[RunConfig]) -> None:
    """Refuse what is no configuration of a kind.

    Raises:
      ConfigError: saying what it is and what would be right.

    """
    if not isinstance(config, kind):
        right = "one of mbrl_jax's, which mbrl_jax.load reads from a YAML file" if kind is RunConfig else f"a {kind.__name__}"
        raise ConfigError(f"config: {type(config).__name__} does not fit; it must be {right}")


def check_whole(value: Any, name: str) -> None:
    """Refuse a number that is not whole.

    Raises:
      ConfigError: naming it.

    """
    try:
        fits = not isinstance(value, bool) and operator.index(value) == value
    except TypeError:
        fits = False
    if not fits:
        raise ConfigError(f"{name}: {value!r} does not fit; it must be a whole number")


def check(config: RunConfig, kind: type[RunConfig] = RunConfig) -> None:
    """Refuse a configuration that cannot work, or is of another kind.

    Raises:
      ConfigError: naming every field that is wrong, its value and what would be right.

    """
    check_kind(config, kind)
    problems = list(_field_problems(config, ""))
    if not problems:
        problems += _joint_problems(config)
    if problems:
        raise ConfigError("\n".join(problems))


def check_seeds(seeds: int, base_seed: int, first: int = 0) -> None:
    """Refuse seeds that cannot be.

    Args:
      seeds: how many there are.
      base_seed: from which and from its number the numbers of each follow.
      first: number of the first one.

    Raises:
      ConfigError: there are none, one of the arguments is no whole number, or it is out of range.

    """
    for name, value in (("seeds", seeds), ("seed", base_seed), ("first", first)):
        check_whole(value, name)
    seeds, base_seed, first = int(seeds), int(base_seed), int(first)  # of numpy's types a sum may overflow
    if seeds < 1:
        raise ConfigError(f"seeds: {seeds!r} is out of range; it must be at least 1")
    if not 0 <= base_seed < 2**32:
        raise ConfigError(f"seed: {base_seed!r} is out of range; it must be from 0 to 2^32 - 1")
    if not 0 <= first <= 2**31 - seeds:
        raise ConfigError(f"first: {first!r} is out of range; for {seeds} seeds it must be from 0 to {2**31 - seeds}")


def _field_problems(config: Any, prefix: str) -> typing.Iterator[str]:
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), prefix + field.name
        kinds: Kinds | None = field.metadata.get("kinds")
        if kinds is not None and not (isinstance(value, Kind) and kinds.classes().get(value.kind) is type(value)):
            yield f"{path}: {value!r} is of no kind that is registered; it must be one of {', '.join(kinds.classes())}"
            continue
        if dataclasses.is_dataclass(value):
            yield from _field_problems(value, path + ".")
            continue
        try:
            convert(value, hints[field.name], path)
        except ConfigError as error:
            yield str(error)
            continue
        limits: Limits = field.metadata["limits"]
        named = {"": value}
        if isinstance(value, tuple):
            named = {f"[{i}]": entry for i, entry in enumerate(value)}
        for name, number in named.items():
            if isinstance(number, int | float) and not isinstance(number, bool) and not limits.admit(number):
                yield f"{path}{name}: {number!r} is out of range; it must be {limits}"


class _Problems(list[str]):
    """What is wrong with settings that do not fit together."""

    def require(self, holds: bool, path: str, value: Any, right: str) -> None:
        """Note that ``value`` does not fit unless it holds that it does."""
        if not holds:
            self.append(f"{path}: {value!r} does not fit; {right}")


def _joint_problems(config: RunConfig) -> list[str]:
    problems = _Problems()
    require = problems.require
    require(
        config.steps % config.round_steps == 0,
        "round_steps",
        config.round_steps,
        f"it must divide steps ({config.steps})",
    )
    require(
        config.round_steps % config.metric_steps == 0,
        "metric_steps",
        config.metric_steps,
        f"it must divide round_steps ({config.round_steps})",
    )
    noise = config.environment.observation_noise
    require(
        noise == 0 or config.protocol == "batch",
        "environment.observation_noise",
        noise,
        f"in the {config.protocol!r} protocol it must be 0",
    )
    block = config.environment.block_steps
    require(
        block is None or config.round_steps % block == 0,
        "environment.block_steps",
        block,
        f"it must divide round_steps ({config.round_steps})",
    )
    _check_data(config, problems)
    if isinstance(config, ModelFreeQConfig):
        _check_transitions(config, problems)
    if isinstance(config, ImaginedPGConfig | ModelFreePGConfig | DMOConfig | DreamerConfig):
        _check_agent_kind(config, PolicyGradientConfig, "policy_gradient", problems)
    if problems:
        return problems
    if isinstance(config, ModelFreePGConfig):
        _check_model_free_pg(config, problems)
    if isinstance(config, ModelBasedConfig) and isinstance(config.model, ModelConfig):
        _check_ensemble(config, config.model, problems)
    if isinstance(config, ImaginingConfig):
        _check_imagining(config, problems)
    if isinstance(config, DynaQConfig):
        _check_mixing(config, problems)
    if isinstance(config, MPCConfig):
        _check_planning(config, problems)
    if isinstance(config, DMOConfig):
        _check_dmo(config, problems)
    if isinstance(config, DreamerConfig):
        _check_dreamer(config, problems)
    if isinstance(config, RecurrentSACConfig):
        _check_sequences(config, problems)
    return problems


def _check_data(config: RunConfig, problems: _Problems) -> None:
    """Check logged transitions, and evaluation without an environment."""
    require, environment, data = problems.require, config.environment, config.data
    require(
        data is None or config.protocol == "batch",
        "data",
        data,
        "it takes the place of random transitions, so protocol must be 'batch'",
    )
    noise = environment.observation_noise
    right = "with data it must be 0: they are measured already"
    require(data is None or noise == 0, "environment.observation_noise", noise, right)
    if data is None:
        require(
            config.data_transitions is None,
            "data_transitions",
            config.data_transitions,
            "there are no files: data must name them",
        )
    if environment.name != "none":
        for name in ("observation_scale", "actions", "action_scale"):
            value = getattr(environment, name)
            require(value is None, f"environment.{name}", value, f"{environment.name!r} says it; it is for environment.name none")
    elif data is None:
        problems.append(
            "environment.name: 'none' does not fit; name an environment, or data must name files of logged transitions"
        )
    if config.evaluation.where == "model":
        right = "there is no model in which a policy could be judged; name the environment, or take 'dyna_q' or 'imagined_pg'"
        require(isinstance(config, ImaginingConfig), "evaluation.where", "model", right)
        batch = "where the agent acts it is judged there, so it must be 'environment'"
        require(config.protocol == "batch", "evaluation.where", "model", batch)
    if isinstance(config, ImaginingConfig) and config.evaluation.where == "model":
        members, episodes = _members(config), config.evaluation.episodes
        right = f"episodes are dealt evenly to members, so it must be a multiple of {members}"
        require(episodes % members == 0, "evaluation.episodes", episodes, right)


def _check_agent_kind(config: Any, cls: type, kind: str, problems: _Problems) -> None:
    right = f"this algorithm learns with agents of kind {kind!r}"
    problems.require(isinstance(config.agent, cls), "agent.kind", config.agent.kind, right)


def _check_transitions(config: ModelFreeQConfig, problems: _Problems) -> None:
    """Check agents that learn from transitions; what a registered kind needs it checks itself when it is made."""
    agent = config.agent
    right = "it learns from segments, and this algorithm from transitions; 'imagined_pg' and 'model_free_pg' serve it"
    problems.require(not isinstance(agent, PolicyGradientConfig), "agent.kind", agent.kind, right)
    if not isinstance(agent, QLearningConfig):
        return
    problems.require(
        agent.target != "steve" or agent.members > 1,
        "agent.members",
        agent.members,
        "the target 'steve' weighs horizons by how much the Q-networks differ, so it needs at least 2",
    )
    problems.require(
        isinstance(config, DynaQConfig) or agent.target in ("max", "double"),
        "agent.target",
        agent.target,
        "without a model it must be 'max' or 'double'",
    )


def _check_model_free_pg(config: ModelFreePGConfig, problems: _Problems) -> None:
    require = problems.require
    require(config.protocol == "interactive", "protocol", config.protocol, "a policy that learns from its own steps acts")
    require(config.random_transitions == 0, "random_transitions", config.random_transitions, "here it must be 0")
    require(
        config.metric_steps % config.segment_steps == 0,
        "segment_steps",
        config.segment_steps,
        f"it must divide metric_steps ({config.metric_steps})",
    )
    block = config.environment.block_steps
    right = f"a segment must be of one policy, so it must be segment_steps ({config.segment_steps})"
    require(block in (None, config.segment_steps), "environment.block_steps", block, right)
    estimator = config.agent.estimator if isinstance(config.agent, PolicyGradientConfig) else None
    require(estimator == "score", "agent.estimator", estimator, "there is no model to differentiate, so it must be 'score'")


def _members(config: ModelBasedConfig) -> int:
    """Members that imagine: of an ensemble; another kind of model says so when it is made."""
    model = config.model
    if not isinstance(model, ModelConfig):
        return 1
    return model.members if model.elites is None else model.elites


def _check_ensemble(config: ModelBasedConfig, model: ModelConfig, problems: _Problems) -> None:
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
    elites = _members(config)
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


def _check_imagining(config: ImaginingConfig, problems: _Problems) -> None:
    require, imagination, elites = problems.require, config.imagination, _members(config)
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


def _check_mixing(config: DynaQConfig, problems: _Problems) -> None:
    mixing, right = config.mixing, f"it must be at least mixing.least ({config.mixing.least})"
    problems.require(mixing.most >= mixing.least, "mixing.most", mixing.most, right)
    right = "it compares members, of which several must imagine"
    problems.require(mixing.measure == "held_out" or _members(config) > 1, "mixing.measure", mixing.measure, right)


def _check_planning(config: MPCConfig, problems: _Problems) -> None:
    require, planning, members = problems.require, config.planning, _members(config)
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


def _check_dmo(config: DMOConfig, problems: _Problems) -> None:
    require, size = problems.require, config.window_transitions
    require(
        config.protocol == "interactive", "protocol", config.protocol, "it acts in its simulators, so it must be 'interactive'"
    )
    right = f"it must be a multiple of a window's {config.copies} x {config.window_steps} steps ({size})"
    require(config.metric_steps % size == 0, "metric_steps", config.metric_steps, right)
    block = config.environment.block_steps
    right = f"a window is of one policy, so it must be window_steps ({config.window_steps})"
    require(block in (None, config.window_steps), "environment.block_steps", block, right)
    right = f"there are {config.copies} copies, and it must be at most that"
    require(config.probes <= config.copies, "probes", config.probes, right)
    kind = config.controller.kind
    require(kind in WINDOWED, "controller.kind", kind, f"it must be one of {', '.join(WINDOWED)}")
    members = _members(config)
    if isinstance(config.model, ModelConfig):
        right = f"{members} imagine, and it is how members differ, so it must be 'finite' or 'true'"
        require(config.surrogate_error != "spread" or members > 1, "surrogate_error", config.surrogate_error, right)
    agent = config.agent
    if isinstance(agent, PolicyGradientConfig):
        right = "the gradient goes along the paths, so it must be 'pathwise'"
        require(agent.estimator == "pathwise", "agent.estimator", agent.estimator, right)
        right = "a critic's value follows a window, so it must be 'value'"
        require(agent.baseline == "value", "agent.baseline", agent.baseline, right)


def _check_dreamer(config: DreamerConfig, problems: _Problems) -> None:
    require, imagination = problems.require, config.imagination
    _check_acting(config, problems)
    require(config.model.kind != "ensemble", "model.kind", "ensemble", "a latent world is filtered, as 'rssm' is")
    kind = imagination.controller.kind
    right = f"a latent world has one member, so its rollouts end by depth or by drift: {', '.join(LATENT)}"
    require(kind in LATENT, "imagination.controller.kind", kind, right)
    right = "a latent world has no members that could differ, so it must be 'none'"
    require(imagination.penalty == "none", "imagination.penalty", imagination.penalty, right)
    right = "a latent world has no members to choose among, so it must be 'ts1'"
    require(imagination.sampling == "ts1", "imagination.sampling", imagination.sampling, right)


def _check_acting(config: SequencesConfig, problems: _Problems) -> None:
    """Check the real steps between updates."""
    require = problems.require
    require(config.protocol == "interactive", "protocol", config.protocol, "it acts, so it must be 'interactive'")
    right = f"it must be a multiple of update_steps ({config.update_steps})"
    require(config.metric_steps % config.update_steps == 0, "metric_steps", config.metric_steps, right)


def _check_sequences(config: RecurrentSACConfig, problems: _Problems) -> None:
    _check_acting(config, problems)
    length, rows = config.agent.sequence, config.random_transitions
    right = f"the first update draws from random_transitions ({rows}) and the steps after them, so it must be at most {rows}"
    problems.require(length <= rows, "agent.sequence", length, right)


def holdout_stride(config: RunConfig) -> int:
    """Every how manieth real row is held out: min(20 %, 5,000) of all rows that the run will ever see."""
    return max(5, -(-config.real_transitions // 5_000))
