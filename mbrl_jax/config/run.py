"""What runs of several algorithms are set by."""

from typing import Any, Literal

from mbrl_jax.config.environment import EnvironmentConfig
from mbrl_jax.config.fields import group, kinds, settings, static
from mbrl_jax.config.imagination import LanesConfig, SelectionConfig
from mbrl_jax.config.kinds import MODELS
from mbrl_jax.config.model import ModelConfig


@settings
class EvaluationConfig:
    """Greedy episodes; they teach the agent nothing."""

    episodes: int = static(50, minimum=1)
    """Episodes that judge a final policy."""
    curve_episodes: int = static(10, minimum=1)
    """Episodes of each point of the learning curve."""
    where: Literal["environment", "model"] = static("environment")
    """Whether policies are judged in the real environment or, where there is none that may be touched, in the learned model: then
    no real return is measured."""
    mismatch: bool = static(False)
    """Whether every round tells where the error of the agent's value comes from: the value function, the model, or the policy's
    shift away from the data. It asks the real dynamics, and teaches the agent nothing."""


@settings
class RunConfig:
    """What a run of any algorithm has."""

    protocol: Literal["batch", "interactive"] = static("batch")
    """Whether all real data are collected at random beforehand, or the agent goes on acting."""
    environment: EnvironmentConfig = group(EnvironmentConfig)
    data: tuple[str, ...] | None = static(None)
    """Files of logged transitions, which take the place of random ones (batch protocol); none collects."""
    data_transitions: int | None = static(None, minimum=2)
    """Transitions of those files that are used, whole episodes drawn at random; none uses all."""
    random_transitions: int = static(5_000, minimum=2)
    """Real transitions collected by the uniform random policy; with data as many as are used of them."""
    steps: int = static(5_000, minimum=1)
    """Steps of the main loop; in the interactive protocol each of them is one more real transition."""
    round_steps: int = static(250, minimum=1)
    """Steps of a round; a round ends with an evaluation."""
    metric_steps: int = static(10, minimum=1)
    """Steps over which the logged losses are averaged."""
    precision: Literal["default", "highest"] = static("default")
    """Precision of matrix products: the backend's default, or full float32."""
    evaluation: EvaluationConfig = group(EvaluationConfig)

    @property
    def real_transitions(self) -> int:
        """Real transitions that a run uses in all."""
        return self.random_transitions + (self.steps if self.protocol == "interactive" else 0)

    @property
    def updates(self) -> int:
        """The agent's updates in all."""
        return self.steps

    @property
    def imagined_per_step(self) -> int:
        """Imagined transitions for every step of the main loop."""
        return 0


@settings
class ModelBasedConfig(RunConfig):
    """What a run has that learns a model."""

    model: Any = kinds(MODELS, ModelConfig)


@settings
class ImaginingConfig(ModelBasedConfig):
    """What a run has whose policy is learned, and chosen, in imagination."""

    imagination: LanesConfig = group(LanesConfig)
    selection: SelectionConfig = group(SelectionConfig)

    @property
    def imagined_per_step(self) -> int:
        """Imagined transitions for every step of the main loop."""
        return self.imagination.lanes * self.imagination.steps


@settings
class SequencesConfig(RunConfig):
    """What a run has that acts by a memory and learns from sequences of real transitions."""

    protocol: Literal["batch", "interactive"] = static("interactive")
    """It acts, so it must be interactive."""
    random_transitions: int = static(1_000, minimum=2)
    """Real transitions collected by the uniform random policy; a model is first fitted to them."""
    steps: int = static(19_000, minimum=1)
    """Steps of the main loop; each of them is one more real transition."""
    round_steps: int = static(1_000, minimum=1)
    """Steps of a round; a round ends with an evaluation."""
    metric_steps: int = static(100, minimum=1)
    """Steps over which the logged losses are averaged."""
    update_steps: int = static(5, minimum=1)
    """Real steps between two updates; each is one of all that is learned."""

    @property
    def updates(self) -> int:
        """The agent's updates in all."""
        return self.steps // self.update_steps


def holdout_stride(config: RunConfig) -> int:
    """Every how manieth real row is held out: min(20 %, 5,000) of all rows that the run will ever see."""
    return max(5, -(-config.real_transitions // 5_000))
