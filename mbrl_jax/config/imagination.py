"""What imagined rollouts are set by, what plans are, and the choice of a policy in imagination."""

import dataclasses
from typing import Any, Literal

from mbrl_jax.config.fields import kinds, settings, static, traced
from mbrl_jax.config.kinds import CONTROLLERS, Kind


@settings
class ControllerConfig(Kind):
    """What the settings of every horizon controller are: its numbers."""

    @property
    def numbers(self) -> dict[str, float]:
        """The controller's numbers by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def fixed(length: float) -> Any:
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
    controller: Any = kinds(CONTROLLERS, fixed(3.0))
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
