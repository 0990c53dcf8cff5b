"""Settings that do not fit together."""

from typing import Any

from mbrl_jax.config.agents import PolicyGradientConfig, QLearningConfig
from mbrl_jax.config.algorithms import (
    DMOConfig,
    DreamerConfig,
    DynaQConfig,
    ImaginedPGConfig,
    ModelFreePGConfig,
    ModelFreeQConfig,
    MPCConfig,
    RecurrentSACConfig,
)
from mbrl_jax.config.fields import Problems
from mbrl_jax.config.model import ModelConfig
from mbrl_jax.config.modelled import check_ensemble, check_imagining, check_mixing, check_planning, imagining_members
from mbrl_jax.config.run import ImaginingConfig, ModelBasedConfig, RunConfig, SequencesConfig

WINDOWED = ("fixed", "schedule", "gradient_error")
"""The horizon controllers that end paths within a window of simulated steps: they do not ask what members predict of a state."""

LATENT = ("fixed", "schedule", "drift")
"""The horizon controllers that end rollouts of a latent world."""


def joint_problems(config: RunConfig) -> list[str]:
    """What does not fit together: in any run, and where all of that fits, in runs of this algorithm."""
    problems = Problems()
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
        check_ensemble(config, config.model, problems)
    if isinstance(config, ImaginingConfig):
        check_imagining(config, problems)
    if isinstance(config, DynaQConfig):
        check_mixing(config, problems)
    if isinstance(config, MPCConfig):
        check_planning(config, problems)
    if isinstance(config, DMOConfig):
        _check_dmo(config, problems)
    if isinstance(config, DreamerConfig):
        _check_dreamer(config, problems)
    if isinstance(config, RecurrentSACConfig):
        _check_sequences(config, problems)
    return problems


def _check_data(config: RunConfig, problems: Problems) -> None:
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
    right = "it is told of a value that learns in imagined rollouts, as that of 'dyna_q' and 'imagined_pg' does"
    asks = config.evaluation.mismatch and not isinstance(config, DynaQConfig | ImaginedPGConfig)
    require(not asks, "evaluation.mismatch", config.evaluation.mismatch, right)
    if config.evaluation.where == "model":
        right = "there is no model in which a policy could be judged; name the environment, or take 'dyna_q' or 'imagined_pg'"
        require(isinstance(config, ImaginingConfig), "evaluation.where", "model", right)
        batch = "where the agent acts it is judged there, so it must be 'environment'"
        require(config.protocol == "batch", "evaluation.where", "model", batch)
    if isinstance(config, ImaginingConfig) and config.evaluation.where == "model":
        members, episodes = imagining_members(config), config.evaluation.episodes
        right = f"episodes are dealt evenly to members, so it must be a multiple of {members}"
        require(episodes % members == 0, "evaluation.episodes", episodes, right)


def _check_agent_kind(config: Any, cls: type, kind: str, problems: Problems) -> None:
    right = f"this algorithm learns with agents of kind {kind!r}"
    problems.require(isinstance(config.agent, cls), "agent.kind", config.agent.kind, right)


def _check_transitions(config: ModelFreeQConfig, problems: Problems) -> None:
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


def _check_model_free_pg(config: ModelFreePGConfig, problems: Problems) -> None:
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


def _check_dmo(config: DMOConfig, problems: Problems) -> None:
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
    members = imagining_members(config)
    if isinstance(config.model, ModelConfig):
        right = f"{members} imagine, and it is how members differ, so it must be 'finite' or 'true'"
        require(config.surrogate_error != "spread" or members > 1, "surrogate_error", config.surrogate_error, right)
    agent = config.agent
    if isinstance(agent, PolicyGradientConfig):
        right = "the gradient goes along the paths, so it must be 'pathwise'"
        require(agent.estimator == "pathwise", "agent.estimator", agent.estimator, right)
        right = "a critic's value follows a window, so it must be 'value'"
        require(agent.baseline == "value", "agent.baseline", agent.baseline, right)


def _check_acting(config: SequencesConfig, problems: Problems) -> None:
    """Check the real steps between updates."""
    require = problems.require
    require(config.protocol == "interactive", "protocol", config.protocol, "it acts, so it must be 'interactive'")
    right = f"it must be a multiple of update_steps ({config.update_steps})"
    require(config.metric_steps % config.update_steps == 0, "metric_steps", config.metric_steps, right)


def _check_dreamer(config: DreamerConfig, problems: Problems) -> None:
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


def _check_sequences(config: RecurrentSACConfig, problems: Problems) -> None:
    _check_acting(config, problems)
    length, rows = config.agent.sequence, config.random_transitions
    right = f"the first update draws from random_transitions ({rows}) and the steps after them, so it must be at most {rows}"
    problems.require(length <= rows, "agent.sequence", length, right)
