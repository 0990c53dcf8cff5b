"""What the kernels are compiled for: their sizes, the shared memory that these take, and which sizes there are kernels for.

The layouts are those of the sources: each class's ``shared_bytes`` is the ``SHARED_BYTES`` of its file, and a test holds the two
together. It is written twice because what does not fit is refused before anything is compiled.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from mbrl_jax.config import ConfigError

WARPS = 8
TASKS = ("CartPole-v1", "MountainCar-v0", "Acrobot-v1")
"""Tasks whose rewards and terminations the kernels know; ``task`` is a place in it."""
LARGEST_WIDTH = 128


@dataclass(frozen=True)
class Network:
    """A network of two hidden layers as it lies in shared memory, bytes.

    Attributes:
      inputs: numbers that go in.
      width1: units of the first hidden layer.
      width2: units of the second one.
      rows: outputs of a group, at most 8.
      tiles: groups.
      terms: half-precision terms of a number.

    """

    inputs: int
    width1: int
    width2: int
    rows: int
    tiles: int
    terms: int

    @property
    def outputs(self) -> int:
        """Numbers that come out."""
        return self.rows * self.tiles

    @property
    def parameters(self) -> int:
        """Numbers of the flat parameters: kernels [in, out], each followed by its bias."""
        layers = ((self.inputs, self.width1), (self.width1, self.width2), (self.width2, self.outputs))
        return sum((before + 1) * after for before, after in layers)

    @property
    def chunks(self) -> int:
        """Groups of 8 inputs, a constant one counted."""
        return -(-(self.inputs + 1) // 8)

    @property
    def image(self) -> int:
        """Bytes of the weights for the forward pass."""
        halves = self.chunks * 8 * self.width1 + self.width1 * self.width2 + self.outputs * self.width2
        return 2 * self.terms * halves + 8 * self.width2 + 32 * self.tiles

    @property
    def back2(self) -> int:
        """Bytes of the second kernel for the way back."""
        return 2 * self.terms * self.width1 * self.width2

    @property
    def back3(self) -> int:
        """Bytes of the last kernel for the way back."""
        return self.terms * self.tiles * self.width2 * -(-self.rows // 2) * 4

    @property
    def slots(self) -> int:
        """Parameters that a thread of the block owns at the most."""
        across, down = self.width1 // 32, self.width2 // 16
        small = (self.inputs + 1) * self.width1 + (self.width2 + 1) * self.outputs
        return -(-across * down // WARPS) * (16 + (1 if across > 1 else 2)) - (-small // (32 * WARPS))

    @property
    def part(self) -> int:
        """Floats of a warp's partial sums."""
        return -(-((self.inputs + 1) * (self.width1 + 1) + (self.width2 + 1) * self.outputs + 4) // 4) * 4


def _aligned(x: int) -> int:
    return -(-x // 128) * 128


def _macros(sizes: Any) -> dict[str, int]:
    return {f"MBRL_{name.upper()}": int(value) for name, value in dataclasses.asdict(sizes).items()}


def _policy(sizes: Any) -> Network:
    return Network(sizes.observation, sizes.q_width1, sizes.q_width2, sizes.actions, 1, sizes.terms)


def _member(sizes: Any) -> Network:
    encoded = 1 if sizes.actions == 2 else sizes.actions
    return Network(sizes.observation + encoded, sizes.m_width1, sizes.m_width2, sizes.observation, 2, sizes.terms)


def _stride(sizes: Any) -> int:
    """Floats of an observation in shared memory."""
    return 4 if sizes.observation <= 4 else 8


@dataclass(frozen=True)
class RoundSizes:
    """Of ``round.cu``.

    Attributes:
      terms: 1 for precision ``default``, 2 for ``highest``.
      observation: D.
      actions: A.
      task: place in :data:`TASKS`.
      q_width1, q_width2: hidden units of the Q-network.
      m_width1, m_width2: hidden units of a member.
      members: E.
      lanes: K.
      horizon: H imagined steps of a lane per real step.
      batch: B rows of a minibatch.
      updates: U per real step.
      capacity: rows of the imagined replay.
      real_capacity: rows of the real replay.
      target: 0 max, 1 double.
      loss: 0 squared, 1 Huber.
      sampler: 0 ts1, 1 ts_infinity.
      restart: 0 streaming, 1 per_step.
      protocol: 0 batch, 1 interactive.
      time_limit: steps of a real episode (interactive).
      state: where parameters and moments are while it runs: 0 registers, 1 shared memory, 2 global memory.
      stream: 1 brings the members in anew at each step.
      alias: 1 puts partial sums where the rows of the minibatch were.

    """

    terms: int
    observation: int
    actions: int
    task: int
    q_width1: int
    q_width2: int
    m_width1: int
    m_width2: int
    members: int
    lanes: int
    horizon: int
    batch: int
    updates: int
    capacity: int
    real_capacity: int
    target: int
    loss: int
    sampler: int
    restart: int
    protocol: int
    time_limit: int
    state: int = 0
    stream: int = 0
    alias: int = 0

    @property
    def macros(self) -> dict[str, int]:
        """Of the compiler."""
        return _macros(self)

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * WARPS

    @property
    def parameters(self) -> int:
        """Numbers of a Q-network."""
        return _policy(self).parameters

    @property
    def member_parameters(self) -> int:
        """Numbers of a member."""
        return _member(self).parameters

    @property
    def _learners(self) -> int:
        """Warps that have rows of the minibatch."""
        return min(WARPS, -(-self.batch // 32))

    @property
    def _exchange(self) -> int:
        return 32 * self._learners * (self.q_width1 + self.q_width2) * 2 * self.terms

    @property
    def _images(self) -> int:
        return self.members * (_member(self).image + 64)

    @property
    def _parts(self) -> int:
        return self._learners * _policy(self).part * 4

    @property
    def scratch(self) -> int:
        """Floats of global memory that a seed needs beside its arrays."""
        return self._images // 4 if self.stream else 1

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        policy, given = _policy(self), self.horizon * self.lanes
        at = _aligned(_aligned(policy.image) + policy.image)  # both networks
        at = _aligned(_aligned(at + policy.back2) + policy.back3)
        at = _aligned(at + self._exchange)
        at = _aligned(at + given * (8 * _stride(self) + 12))  # roots, noise; explorations, actions, dealings
        at = _aligned(at + self.lanes * (8 * _stride(self) + 8)) + 128  # lanes; the normaliser
        at = _aligned(at + (0 if self.alias else self._parts))
        at = _aligned(at + (0 if self.stream else self._images))
        at += 4 * policy.slots * self.threads * 4 if self.state == 1 else 0
        return at + (48 if self.protocol else 0)

    @property
    def possible(self) -> bool:
        """Whether the variant of memory is there: what shares the exchange must fit into it."""
        if self.alias and (self.batch > 32 * WARPS or self._parts > self._exchange):
            return False
        if self.state == 0 and (self.terms > 1 or _policy(self).slots > REGISTER_SLOTS):
            return False
        return not self.stream or self._images <= self._exchange


REGISTER_SLOTS = 20
"""Parameters, with moments and target, that a thread can hold in registers beside its work, where numbers have one term."""
_VARIANTS = ((0, 0, 0), (2, 0, 0), (0, 1, 0), (2, 1, 0), (1, 1, 0), (2, 1, 1))  # state, stream, alias


def variants_of(sizes: RoundSizes) -> tuple[RoundSizes, ...]:
    """The variants of memory that there are for these sizes, the one to take where it fits first."""
    made = (dataclasses.replace(sizes, state=state, stream=stream, alias=alias) for state, stream, alias in _VARIANTS)
    return tuple(variant for variant in made if variant.possible)


@dataclass(frozen=True)
class ScoreSizes:
    """Of ``score.cu``; attributes as of :class:`RoundSizes`, and:

    Attributes:
      episodes: imagined ones, a multiple of the members, or 0.
      steps: after which an imagined episode is cut.
      played: real episodes, or 0.
      time_limit: of a real episode.

    """

    terms: int
    observation: int
    actions: int
    task: int
    q_width1: int
    q_width2: int
    m_width1: int
    m_width2: int
    members: int
    episodes: int
    steps: int
    played: int
    time_limit: int

    @property
    def macros(self) -> dict[str, int]:
        """Of the compiler."""
        return _macros(self)

    @property
    def threads(self) -> int:
        """Of a block."""
        imagining = self.members * -(-(self.episodes // self.members) // 16) if self.episodes else 0
        return 32 * min(WARPS, imagining + -(-self.played // 16))

    @property
    def parameters(self) -> int:
        """Numbers of a Q-network."""
        return _policy(self).parameters

    @property
    def member_parameters(self) -> int:
        """Numbers of a member."""
        return _member(self).parameters

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        members = self.members * (_member(self).image + 64) if self.episodes else 0
        return _aligned(_policy(self).image) + 128 + members + self.threads // 32 * 16 * _stride(self) * 4


LAPLACIAN_AXES = WARPS - 2
"""Observation axes up to which the fit's kernel has the penalty on the Laplacian."""


@dataclass(frozen=True)
class FitSizes:
    """Of ``fit.cu``; attributes as of :class:`RoundSizes`, and:

    Attributes:
      batch: rows of a minibatch.
      rows: of the table of real rows.
      stride: every how manieth of them is held out.
      laplacian: rows of the penalty on the exact Laplacian, 0 without it.

    """

    terms: int
    observation: int
    actions: int
    m_width1: int
    m_width2: int
    members: int
    batch: int
    rows: int
    stride: int
    laplacian: int

    @property
    def macros(self) -> dict[str, int]:
        """Of the compiler."""
        return _macros(self)

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * WARPS

    @property
    def member_parameters(self) -> int:
        """Numbers of a member."""
        return _member(self).parameters

    @property
    def table_width(self) -> int:
        """Numbers of a row: the network's inputs, the targets, and whether it terminated."""
        return _member(self).inputs + self.observation + 1

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        member, rows = _member(self), 16 * WARPS
        at = _aligned(_aligned(member.image + 64) + member.back2)
        at = _aligned(at + member.back3)
        at = _aligned(at + rows * (member.width1 + member.width2) * 2 * self.terms)
        coupling = (self.observation + 2) * member.width2 * 64 + 2 * self.terms * 128 if self.laplacian else 0
        return at + max(WARPS * member.part * 4, coupling)


def check_network(field: str, hidden: tuple[int, ...]) -> None:
    """Refuse hidden layers that there is no kernel for.

    Raises:
      ConfigError: naming the setting.

    """
    if len(hidden) != 2 or any(width % 32 or width > LARGEST_WIDTH for width in hidden):
        raise ConfigError(
            f"{field}: {hidden!r} does not fit the CUDA engine; it must be two layers, each a multiple of 32 up to "
            f"{LARGEST_WIDTH}"
        )


def check_round(sizes: RoundSizes) -> None:
    """Refuse sizes that there is no kernel of a round for.

    Raises:
      ConfigError: naming the setting, its value and what fits.

    """
    _check_task(sizes)
    _check_networks(sizes)
    if sizes.lanes % sizes.members:
        raise ConfigError(
            f"imagination.lanes: {sizes.lanes!r} does not fit the CUDA engine; it must be a multiple of the "
            f"{sizes.members} members"
        )
    if sizes.protocol and sizes.task != 0:
        raise ConfigError(
            f"environment.name: {TASKS[sizes.task]!r} does not fit the CUDA engine in the interactive protocol; it must be "
            f"{TASKS[0]!r}, whose simulator the kernel has"
        )


def check_score(sizes: ScoreSizes) -> None:
    """Refuse sizes that there is no kernel of scores for.

    Raises:
      ConfigError: naming the setting, its value and what fits.

    """
    _check_task(sizes)
    _check_networks(sizes)
    if sizes.episodes % sizes.members:
        raise ConfigError(
            f"selection.episodes: {sizes.episodes!r} does not fit the CUDA engine; it must be a multiple of the "
            f"{sizes.members} members"
        )
    if sizes.played and sizes.task != 0:
        raise ConfigError(
            f"environment.name: {TASKS[sizes.task]!r} does not fit the CUDA engine's real episodes; it must be {TASKS[0]!r}"
        )


def check_fit(sizes: FitSizes) -> None:
    """Refuse sizes that there is no kernel of a fit for.

    Raises:
      ConfigError: naming the setting, its value and what fits.

    """
    check_network("model.hidden", (sizes.m_width1, sizes.m_width2))
    if sizes.laplacian and sizes.observation > LAPLACIAN_AXES:
        raise ConfigError(
            f"model.laplacian: a penalty over {sizes.observation} observation axes does not fit the CUDA engine; they must be "
            f"{LAPLACIAN_AXES} at the most, or it must be 'none'"
        )


def _check_task(sizes: Any) -> None:
    if not 0 <= sizes.task < len(TASKS):
        raise ConfigError(f"environment.name: it does not fit the CUDA engine; it must be one of {', '.join(TASKS)}")


def _check_networks(sizes: Any) -> None:
    check_network("agent.hidden", (sizes.q_width1, sizes.q_width2))
    check_network("model.hidden", (sizes.m_width1, sizes.m_width2))
