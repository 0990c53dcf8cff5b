"""What agents are set by: what all kinds share, and those that other rooms ask about."""

from typing import Literal

from mbrl_jax.config.fields import settings, static, traced
from mbrl_jax.config.kinds import Kind


@settings
class AgentConfig(Kind):
    """What the settings of every kind of agent are."""


@settings
class QLearningConfig(AgentConfig):
    """The Q-learner (kind: q_learning)."""

    hidden: tuple[int, ...] = static((64, 64), minimum=1)
    """Widths of the hidden layers."""
    learning_rate: float = traced(3e-4, above=0)
    """Adam's step size at the first update."""
    learning_rate_decay: float = traced(0.0, minimum=0, maximum=1)
    """Share of that step size which is gone, linearly, by the run's last update."""
    discount: float = traced(0.99, minimum=0, maximum=1)
    """Discount factor, gamma."""
    target_rate: float = traced(0.01, above=0, maximum=1)
    """Share of the online network that the target network takes over at each update, tau."""
    batch_size: int = static(256, minimum=1)
    """Rows of an update's minibatch."""
    updates_per_step: int = static(1, minimum=1)
    """Updates per real step."""
    members: int = static(1, minimum=1)
    """Q-networks that learn side by side from their own initialisation; their mean acts."""
    real_ratio: float = static(0.0, minimum=0, maximum=1)
    """Share of each minibatch that comes from the real replay."""
    target: Literal["max", "double", "quantile", "mean_std", "steve"] = static("double")
    """How the next state's value is formed; the last three ask every member of the dynamics ensemble."""
    target_quantile: float = traced(0.25, minimum=0, maximum=1)
    """The quantile over members (target: quantile)."""
    target_beta: float = traced(1.0, minimum=0)
    """Standard deviations over members subtracted from their mean (target: mean_std)."""
    target_steps: int = static(3, minimum=1)
    """Imagined steps that the value is expanded by at the most (target: steve)."""
    gradient_clip: float | None = static(None, above=0)
    """Largest Euclidean norm of a Q-network's gradient; none leaves it as it is."""
    loss: Literal["squared", "huber"] = static("squared")
    """The error's loss."""
    huber_delta: float = traced(1.0, above=0)
    """Where the Huber loss turns linear."""
    input_scale: tuple[float, ...] | None = static(None, above=0)
    """What each observation axis is divided by; none takes the task's own scale."""


@settings
class PolicyGradientConfig(AgentConfig):
    """The actor, and the critic if it has one (kind: policy_gradient)."""

    hidden: tuple[int, ...] = static((64, 64), minimum=1)
    """Widths of the hidden layers, of the actor and of the critic."""
    activation: Literal["tanh", "silu", "gelu", "relu"] = static("tanh")
    """Nonlinearity between layers."""
    learning_rate: float = traced(1e-3, above=0)
    """Adam's step size for the actor, at the first update."""
    critic_learning_rate: float = traced(3e-3, above=0)
    """The same for the critic."""
    learning_rate_decay: float = traced(0.0, minimum=0, maximum=1)
    """Share of both step sizes which is gone, linearly, by the run's last update."""
    discount: float = traced(0.99, minimum=0, maximum=1)
    """Discount factor, gamma."""
    estimator: Literal["score", "pathwise"] = static("score")
    """How the actor's gradient is estimated: by the log-probabilities of what was done, weighted by what came of it (the
    score-function estimator); or by differentiating what came of it, through the model and the reward, with respect to what was
    done (the pathwise one; discrete actions straight through)."""
    baseline: Literal["value", "none"] = static("value")
    """Whether a critic's value is subtracted from the returns, and stands for what comes after a segment (actor-critic); or there
    is none, and a return is what the segment holds of it (REINFORCE)."""
    decay: float = traced(0.95, minimum=0, maximum=1)
    """Lambda of the lambda-returns (baseline: value): 0 looks one step ahead, 1 to the segment's end."""
    normalise: bool = static(True)
    """Whether advantages are brought to mean 0 and deviation 1 over a segment."""
    gradient_clip: float | None = static(None, above=0)
    """Largest Euclidean norm of the actor's gradient, and of the critic's; none leaves them as they are."""
    entropy_weight: float = traced(0.01, minimum=0)
    """Weight of the policy's entropy, nats, in what the actor makes larger."""
    target_rate: float = traced(0.05, above=0, maximum=1)
    """Share of the online networks that the target networks take over at each update, tau."""


@settings
class RecurrentConfig:
    """An actor and critics that remember by recurrent networks and learn from sequences of real transitions."""

    units: int = static(64, minimum=1)
    """Numbers of a memory; the actor has one, and the critics share another."""
    hidden: tuple[int, ...] = static((64,), minimum=1)
    """Widths of the hidden layers of the encoders and of the heads."""
    activation: Literal["silu", "tanh", "gelu", "relu"] = static("silu")
    """Nonlinearity between layers."""
    critics: int = static(2, minimum=1)
    """Critics on one memory, of which a value is the least."""
    learning_rate: float = traced(1e-3, above=0)
    """Adam's step size for the actor, at the first update."""
    critic_learning_rate: float = traced(1e-3, above=0)
    """The same for the critics."""
    learning_rate_decay: float = traced(0.5, minimum=0, maximum=1)
    """Share of these step sizes which is gone, linearly, by the run's last update."""
    gradient_clip: float | None = static(10.0, above=0)
    """Largest Euclidean norm of the actor's gradient, and of the critics'; none leaves them as they are."""
    discount: float = traced(0.99, minimum=0, maximum=1)
    """Discount factor, gamma."""
    target_rate: float = traced(0.02, above=0, maximum=1)
    """Share of the critics that the target critics take over at each update, tau."""
    temperature: float = traced(0.1, minimum=0)
    """What a nat of the policy's entropy is worth, in units of the reward."""
    batch_size: int = static(16, minimum=1)
    """Sequences of a minibatch, B."""
    sequence: int = static(16, minimum=2)
    """Successive real transitions of a sequence, T."""


@settings
class ExplorationConfig:
    """Epsilon-greedy behaviour in the real environment (interactive protocol), annealed linearly."""

    start: float = traced(0.2, minimum=0, maximum=1)
    """Share of random actions at the first step."""
    end: float = traced(0.02, minimum=0, maximum=1)
    """Share of random actions at the last step."""


@settings
class RandomActionsConfig:
    """Random actions among those of a policy that acts by a filter."""

    rule: Literal["none", "uniform", "surprise"] = static("none")
    """Which actions are random: none, some anywhere, or those where the filter's surprise, the divergence of the belief after the
    observation from the one that expected it, is above a mark that follows its largest values."""
    share: float = traced(0.1, minimum=0, maximum=1)
    """Share of the real steps whose action is random."""
