"""What a run's environment is set by."""

from typing import Literal

from mbrl_jax.config.fields import group, settings, static, traced


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
    time_limit: int | None = static(None, minimum=1, maximum=2**31 - 1)
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
