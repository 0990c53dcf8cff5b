"""Every setting there is, with its default and its limits."""

import dataclasses
from typing import Any, Literal

from mbrl_jax.config.fields import group, kinds, settings, static, traced
from mbrl_jax.config.kinds import AGENTS, CONTROLLERS, MODELS, Kind


@settings
class PhysicsConfig:
    """Factors of a simulator's own numbers: the same task with other bodies."""

    mass: float = static(1.0, above=0)
    """Of the masses of all bodies."""
    length: float = static(1.0, above=0)
    """Of the length of what swings: a pole, or a pendulum's rod."""
    damping: float = static(1.0, minimum=0)
    """Of the damping of all joints."""
    gravity: float = static(1.0, minimum=0)
    """Of gravity."""
    force: float = static(1.0, above=0)
    """Of the force, or the torque, of an action."""


@settings
class EnvironmentConfig:
    """Which task."""

    name: str = static("CartPole-v1")
    """The environment's registered name, or package.module:function."""
    time_limit: int | None = static(None, minimum=1)
    """Steps of the simulator until an episode is truncated; none takes the task's own."""
    action_repeat: int = static(1, minimum=1)
    """Steps of the simulator that each action is held for. Transitions, steps and discounts are then counted by decisions, and a
    transition's reward is the sum over those steps, which a world model learns."""
    distractors: int = static(0, minimum=0)
    """Random walks that are appended to the observation and have nothing to do with the task."""
    observed: Literal["positions"] | tuple[int, ...] | None = static(None, minimum=0)
    """Numbers of the observation's axes that are seen, or ``positions`` for those that say where things are and not how fast they
    move; none is all. What is left does not tell the state."""
    delay: int = static(0, minimum=0)
    """Decisions after which an observation is seen; until then the first one of the episode is."""
    physics: PhysicsConfig = group(PhysicsConfig)
    """Factors of the simulator's own numbers (control/...)."""
    observation_noise: float = traced(0.0, minimum=0)
    """Noise of the measurements in the random real transitions (batch protocol): its standard deviation as a share of the task's
    scale of each axis."""
    block_steps: int | None = static(None, minimum=1)
    """Real steps that the host makes in a row by one policy before the learner makes as many (environments on the host,
    interactive protocol); none takes the largest divisor of a round's steps up to 20, a whole round where the policy does not
    change in it, and a segment where one is learned from."""
    processes: bool | None = static(None)
    """Whether each simulator has a process of its own (environments on the host); none gives it one where a step takes over a
    millisecond."""
    timeout: float = static(60.0, above=0)
    """Seconds that a simulator in a process may take for a step (environments on the host); one that takes longer costs its
    seed."""
    observation_scale: tuple[float, ...] | None = static(None, above=0)
    """Of a task of which there are only logged transitions (name: none), numbers that bring each observation axis to about
    [-1, 1] wherever a policy goes; none takes the largest magnitudes in the data."""
    actions: int | None = static(None, minimum=2)
    """Discrete actions of such a task; none takes as many as the files say, or as the data show."""
    action_scale: tuple[float, ...] | None = static(None, above=0)
    """Largest magnitude of each number of a continuous action of such a task, in its own units; none takes it from the files or
    the data."""


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


@settings
class ControllerConfig(Kind):
    """What the settings of every horizon controller are: its numbers."""

    @property
    def numbers(self) -> dict[str, float]:
        """The controller's numbers by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def _fixed(length: float) -> Any:
    """Rollouts of a fixed length."""
    return lambda: CONTROLLERS.of("fixed")(length=length)  # type: ignore[call-arg]


@settings
class LanesConfig:
    """K lanes of imagined rollouts, H steps of each per real step."""

    lanes: int = static(25, minimum=1)
    """Parallel imagined rollouts, K."""
    steps: int = static(3, minimum=1)
    """Imagined steps of every lane per real step, H."""
    cap: int = traced(3, minimum=1)
    """Depth at which any lane re-roots, whatever its controller says."""
    restart: Literal["streaming", "per_step"] = static("streaming")
    """Whether a lane re-roots as soon as it ends, or all lanes re-root at every real step and ended ones idle."""
    sampling: Literal["ts1", "ts_infinity", "mean", "fused", "infoprop"] = static("ts1")
    """Who predicts: a freshly dealt member each step, a lane's own member, the mean of all members, their precision-weighted
    fusion, or a dealt member's sample pulled towards that fusion by what the members agree on (Infoprop)."""
    controller: Any = kinds(CONTROLLERS, _fixed(3.0))
    """The horizon controller: its kind and its numbers."""
    measure: Literal["std", "max_pairwise", "max_aleatoric", "gjs", "one_vs_rest"] = static("std")
    """The members' disagreement that the threshold controllers and the penalty on disagreement go by."""
    penalty: Literal["none", "mopo", "disagreement", "bonus", "halt"] = static("none")
    """What is taken from the reward of imagined rows: the largest predicted deviation (MOPO), the disagreement, or, where the
    controller stops, everything: the row becomes a terminal (MOReL). As a bonus the disagreement is added
    instead, for exploration."""
    penalty_weight: float = traced(0.0, minimum=0)
    """Weight of that penalty; for the halt, the terminal's reward is minus this."""


@settings
class ImaginationConfig(LanesConfig):
    """Lanes whose rows go to a replay."""

    epsilon: float = traced(0.1, minimum=0, maximum=1)
    """Share of random actions in imagination."""
    capacity: int = static(20_000, minimum=1)
    """Rows of the imagined replay."""


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
class ExplorationConfig:
    """Epsilon-greedy behaviour in the real environment (interactive protocol), annealed linearly."""

    start: float = traced(0.2, minimum=0, maximum=1)
    """Share of random actions at the first step."""
    end: float = traced(0.02, minimum=0, maximum=1)
    """Share of random actions at the last step."""


@settings
class SelectionConfig:
    """The choice of the policy in imagination, from snapshots taken at the end of every round."""

    choose: bool = static(True)
    """Whether a policy is chosen; without it the last one is all there is, and nothing is scored."""
    episodes: int = static(20, minimum=1)
    """Imagined episodes that score a snapshot."""
    steps: int = static(500, minimum=1)
    """Steps after which an imagined episode is cut."""


@settings
class PlanningConfig:
    """The planner: which sequences of actions it tries in the learned world, and what it makes of their returns."""

    method: Literal["random_shooting", "cem", "mppi", "enumeration"] = static("cem")
    """Whether the best of random sequences is followed; a distribution is fitted to the best ones and drawn from again (the
    cross-entropy method), or to all of them with weights exponential in their return (MPPI); or all sequences there are are tried
    (discrete actions)."""
    candidates: int = static(64, minimum=1)
    """Sequences that are tried at once, N."""
    horizon: int = static(20, minimum=1)
    """Actions of a sequence, H."""
    particles: int = static(5, minimum=1)
    """Imagined rollouts of each sequence, P, dealt evenly to the ensemble's members."""
    propagation: Literal["ts1", "ts_infinity"] = static("ts_infinity")
    """Whether a particle is dealt to another member at each step, or stays with one."""
    iterations: int = static(3, minimum=1)
    """How often the distribution is drawn from for one plan (cem, mppi)."""
    elites: int = static(8, minimum=1)
    """Best sequences that the distribution is fitted to (cem)."""
    momentum: float = traced(0.1, minimum=0, maximum=1)
    """Share of the distribution before that a fitted one keeps (cem, mppi)."""
    temperature: float = traced(1.0, above=0)
    """Difference of returns that makes a weight e times as large (mppi)."""
    deviation: float = traced(0.5, above=0)
    """Standard deviation of continuous actions, from -1 to 1, that a plan begins with."""
    least_deviation: float = traced(0.05, above=0)
    """What it is never fitted below (cem)."""
    correlation: float = static(0.0, minimum=0, maximum=1)
    """Of the random numbers of one step of a sequence with those of the next: above 0, sequences hold on to what they do."""
    warm_start: float = traced(0.8, minimum=0, maximum=1)
    """Share of the plan before, shifted by a step, that the next one begins with; 0 begins from nothing."""
    discount: float = traced(1.0, minimum=0, maximum=1)
    """Discount of the rewards within the horizon."""
    terminal: Literal["none", "value"] = static("none")
    """Whether what comes after the horizon counts for nothing, or for the value that the agent gives it."""
    proposals: int = static(0, minimum=0)
    """How many of the candidates are what the agent's policy does in the learned world, the same number in each member, one of
    them greedily and the others at random as it acts (with terminal: value; Hansen et al. 2022, arXiv:2203.04955)."""
    bonus: Literal["none", "disagreement"] = static("none")
    """What is added to a sequence's rewards while the run acts, so that it visits what the members do not agree on yet: nothing,
    or how far the particles are apart, the mean over the observation's axes of their standard deviation in units of the typical
    change in a step (Sekar et al. 2020, arXiv:2005.05960). Judged and saved policies plan without it."""
    bonus_weight: float = traced(1.0, minimum=0)
    """Weight of that bonus."""


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
    return make(lanes=50, steps=16, cap=100, controller=_fixed(100.0)())


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
    controller: Any = kinds(CONTROLLERS, _fixed(16.0))
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
    return make(lanes=64, steps=15, cap=15, controller=_fixed(15.0)(), restart="per_step")


@settings
class RandomActionsConfig:
    """Random actions among those of a policy that acts by a filter."""

    rule: Literal["none", "uniform", "surprise"] = static("none")
    """Which actions are random: none, some anywhere, or those where the filter's surprise, the divergence of the belief after the
    observation from the one that expected it, is above a mark that follows its largest values."""
    share: float = traced(0.1, minimum=0, maximum=1)
    """Share of the real steps whose action is random."""


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
