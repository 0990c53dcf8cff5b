"""What a run of each algorithm is set by."""

from typing import Any, Literal

from mbrl_jax.config.agents import ExplorationConfig, PolicyGradientConfig, QLearningConfig, RandomActionsConfig, RecurrentConfig
from mbrl_jax.config.environment import EnvironmentConfig
from mbrl_jax.config.fields import group, kinds, settings, static, traced
from mbrl_jax.config.imagination import ImaginationConfig, LanesConfig, PlanningConfig, fixed
from mbrl_jax.config.kinds import AGENTS, CONTROLLERS, MODELS
from mbrl_jax.config.model import ModelConfig
from mbrl_jax.config.run import ImaginingConfig, ModelBasedConfig, RunConfig, SequencesConfig


@settings
class ModelFreeQConfig(RunConfig):
    """Q-learning from real transitions alone."""

    agent: Any = kinds(AGENTS, QLearningConfig)
    exploration: ExplorationConfig = group(ExplorationConfig)

    @property
    def updates(self) -> int:
        """The agent's updates in all."""
        return self.steps * int(getattr(self.agent, "updates_per_step", 1))


@settings
class MixingConfig:
    """How much of a minibatch comes from the real replay, and how much from the imagined one."""

    rule: Literal["fixed", "adaptive"] = static("fixed")
    """Whether the real share is ``agent.real_ratio`` throughout, or goes from ``least`` to ``most`` with the model's share in the
    error of the agent's value, measured at held-out real transitions after every fit of the model."""
    measure: Literal["held_out", "members"] = static("held_out")
    """The model's error, as the value sees it: against what came at held-out real transitions, or the members' deviation there,
    which noise does not enter. Also for a horizon rule that follows the model's share."""
    least: float = traced(0.25, minimum=0, maximum=1)
    """The real share where the error is all the value function's (rule: adaptive)."""
    most: float = traced(0.95, minimum=0, maximum=1)
    """The real share where the error is all the model's (rule: adaptive)."""
    memory: float = traced(0.5, minimum=0, maximum=1)
    """What the model's share keeps of itself when it is measured again, also for a horizon rule that follows it."""


@settings
class DynaQConfig(ImaginingConfig, ModelFreeQConfig):
    """Q-learning from rollouts imagined by a learned dynamics ensemble (Dyna, Sutton 1991; MBPO, Janner et al. 2019)."""

    imagination: ImaginationConfig = group(ImaginationConfig)
    mixing: MixingConfig = group(MixingConfig)


def _long_lanes() -> LanesConfig:
    make: Any = LanesConfig
    return make(lanes=50, steps=16, cap=100, controller=fixed(100.0)())


@settings
class ImaginedPGConfig(ImaginingConfig):
    """A policy gradient on segments of rollouts imagined by a learned dynamics ensemble."""

    agent: Any = kinds(AGENTS, PolicyGradientConfig)
    imagination: LanesConfig = group(_long_lanes)


@settings
class ModelFreePGConfig(RunConfig):
    """A policy gradient from real transitions alone."""

    protocol: Literal["batch", "interactive"] = static("interactive")
    """It learns from what it does itself, so it must be interactive."""
    random_transitions: int = static(0, minimum=0)
    """None: it could learn nothing from them."""
    metric_steps: int = static(50, minimum=1)
    """Steps over which the logged losses are averaged."""
    segment_steps: int = static(50, minimum=1)
    """Successive real steps that an update is made of."""
    agent: Any = kinds(AGENTS, PolicyGradientConfig)

    @property
    def updates(self) -> int:
        """The agent's updates in all."""
        return self.steps // self.segment_steps


def _small_batches() -> ModelConfig:
    make: Any = ModelConfig
    return make(batch_size=32)


@settings
class MPCConfig(ModelBasedConfig):
    """Model-predictive control: planning in a learned world at every real step."""

    protocol: Literal["batch", "interactive"] = static("interactive")
    """It acts, so it must be interactive."""
    random_transitions: int = static(200, minimum=2)
    """Real transitions collected by the uniform random policy."""
    steps: int = static(300, minimum=1)
    """Steps of the main loop; each of them is one more real transition."""
    round_steps: int = static(50, minimum=1)
    """Steps of a round; a round ends with a refit and an evaluation."""
    model: Any = kinds(MODELS, _small_batches)
    planning: PlanningConfig = group(PlanningConfig)
    agent: Any = kinds(AGENTS, QLearningConfig)
    """The agent that values what comes after the horizon (planning.terminal: value): a Q-learner, or for continuous actions
    soft actor-critic."""

    @property
    def updates(self) -> int:
        """The agent's updates in all."""
        return self.steps * int(getattr(self.agent, "updates_per_step", 1)) if self.planning.terminal == "value" else 0

    @property
    def imagined_per_step(self) -> int:
        """Imagined transitions for every step of the main loop; what is enumerated depends on the task and is not counted."""
        planning = self.planning
        iterations = planning.iterations if planning.method in ("cem", "mppi") else 1
        return (planning.candidates * planning.particles * iterations + planning.proposals) * planning.horizon


def _pendulum() -> EnvironmentConfig:
    make: Any = EnvironmentConfig
    return make(name="Pendulum-v1")


def _pathwise() -> PolicyGradientConfig:
    make: Any = PolicyGradientConfig
    return make(estimator="pathwise")


@settings
class DMOConfig(ModelBasedConfig):
    """A policy that learns by the gradients of windows of simulated steps, taken through a learned model (DMO)."""

    protocol: Literal["batch", "interactive"] = static("interactive")
    """It acts in its simulators, so it must be interactive."""
    environment: EnvironmentConfig = group(_pendulum)
    random_transitions: int = static(1_024, minimum=2)
    """Real transitions collected by the uniform random policy, to which the model is first fitted."""
    steps: int = static(102_400, minimum=1)
    """Steps of the simulators in all, each one more real transition; a window has copies x window_steps of them."""
    round_steps: int = static(5_120, minimum=1)
    """Steps of a round; a round ends with a refit and an evaluation."""
    metric_steps: int = static(1_024, minimum=1)
    """Steps over which the logged losses are averaged."""
    model: Any = kinds(MODELS, ModelConfig)
    agent: Any = kinds(AGENTS, _pathwise)
    gradient: Literal["decoupled", "imagined", "true"] = static("decoupled")
    """Where the window's gradient comes from: the learned model's Jacobians at the simulator's states, the learned model along
    states that it imagines itself, or the simulator, which must then be differentiable."""
    copies: int = static(64, minimum=1)
    """Simulators side by side, N."""
    window_steps: int = static(16, minimum=1)
    """Steps of each simulator in a window, H; an update is made of N x H steps."""
    controller: Any = kinds(CONTROLLERS, fixed(16.0))
    """What ends a path within a window, beside the window's end: the gradient stops there and the critic's value follows."""
    critic_updates: int = static(16, minimum=1)
    """Steps of Adam for the critic in each window."""
    critic_batch: int = static(256, minimum=1)
    """Rows of the window in the minibatch of each."""
    surrogate_error: Literal["spread", "finite", "true"] = static("spread")
    """What the model's Jacobian is held against: the members' mean, central differences of the simulator with respect to the
    action, or the Jacobian of the task's known dynamics, which measures and which no method may ask."""
    probes: int = static(4, minimum=1)
    """Simulators at whose states it is measured."""

    @property
    def window_transitions(self) -> int:
        """Real transitions of a window."""
        return self.copies * self.window_steps

    @property
    def updates(self) -> int:
        """The agent's updates in all."""
        return self.steps // self.window_transitions


def _rssm() -> Any:
    return MODELS.of("rssm")()


def _latent_lanes() -> LanesConfig:
    make: Any = LanesConfig
    return make(lanes=64, steps=15, cap=15, controller=fixed(15.0)(), restart="per_step")


@settings
class DreamerConfig(SequencesConfig, ModelBasedConfig):
    """An actor and a critic that learn in the latent world of a recurrent state-space model (Dreamer)."""

    random_actions: RandomActionsConfig = group(RandomActionsConfig)
    model: Any = kinds(MODELS, _rssm)
    imagination: LanesConfig = group(_latent_lanes)
    """Imagined rollouts of every update, which begin at the beliefs of its minibatch."""
    agent: Any = kinds(AGENTS, PolicyGradientConfig)

    @property
    def imagined_per_step(self) -> int:
        """Imagined transitions for every step of the main loop."""
        return self.imagination.lanes * self.imagination.steps // self.update_steps


@settings
class RecurrentSACConfig(SequencesConfig):
    """Soft actor-critic with a recurrent memory, from sequences of real transitions alone."""

    agent: RecurrentConfig = group(RecurrentConfig)


ALGORITHMS: dict[str, type[RunConfig]] = {
    "dyna_q": DynaQConfig,
    "model_free_q": ModelFreeQConfig,
    "imagined_pg": ImaginedPGConfig,
    "model_free_pg": ModelFreePGConfig,
    "mpc": MPCConfig,
    "dmo": DMOConfig,
    "dreamer": DreamerConfig,
    "recurrent_sac": RecurrentSACConfig,
}


def algorithm_name(config: RunConfig) -> str:
    """The name of the algorithm that ``config`` configures, as a preset's ``algorithm`` key has it."""
    return next(name for name, cls in ALGORITHMS.items() if type(config) is cls)
