"""What an agent is: how it acts and how it learns; and what a policy is, which is all that others need to know of one."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from mbrl_jax.model.protocol import WorldModel


class Model(NamedTuple):
    """A world model with the parameters that it imagines with, for agents whose targets ask it."""

    world: WorldModel
    params: Any


class Minibatches(NamedTuple):
    """What an agent that learns from transitions wants for a step of the main loop."""

    rows: int  # B of a minibatch
    real_rows: int  # those of them that come from the real replay where there is an imagined one
    updates: int  # minibatches


class Agent(NamedTuple):
    """An agent as pure functions over its state, a NamedTuple that has ``frozen`` [] bool and ``updates`` [] int32.

    An agent that would go non-finite freezes: it rests at its last finite parameters. All agents act by the same random numbers:
    a uniform one, ``explore`` [...], and an action ``random`` [...] of the uniform random policy.

    Attributes:
      init: ``key -> state``.
      acting: ``state -> params`` of the policy that acts while it learns.
      judged: ``state -> params`` of the policy that is evaluated, chosen and saved.
      act: ``(params, features [..., F], exploration, explore [...], random [...]) -> actions [...]``; ``exploration`` [] is the
        share of random actions, which stochastic policies ignore.
      mode: ``(params, features [..., F]) -> actions [...]``, greedy.
      update: ``(state, batch, draws, progress, model) -> (state, log)``: learn from one minibatch of rows [B], or from one
        segment; ``progress`` [] is the share of the run that is done, ``model`` a :class:`Model` or none.
      draw: ``(key, shape) -> draws``, the random numbers of updates ``shape``; none where there are none.
      minibatches: what it wants of transitions, none for an agent that learns from segments.
      valuing: ``state -> params`` of ``value``.
      value: ``(params, features [..., F]) -> [...]``, what the agent's policy earns from there on, by which a planner judges
        where its plans end; none for an agent that cannot tell.

    """

    init: Callable[[Array], Any]
    acting: Callable[[Any], Any]
    judged: Callable[[Any], Any]
    act: Callable[[Any, Array, Any, Array, Array], Array]
    mode: Callable[[Any, Array], Array]
    update: Callable[[Any, Any, Any, Any, Model | None], tuple[Any, Any]]
    draw: Callable[[Array, tuple[int, ...]], Any]
    minibatches: Minibatches | None
    valuing: Callable[[Any], Any] | None = None
    value: Callable[[Any, Array], Array] | None = None


class Policy(NamedTuple):
    """What plays: n episodes side by side, with a memory.

    Attributes:
      begin: ``(params, key, n) -> memory``, where n episodes begin.
      act: ``(params, memory, observations [n, D]) -> (memory, actions [n, ...])``.

    """

    begin: Callable[[Any, Array, int], Any]
    act: Callable[[Any, Any, Array], tuple[Any, Array]]


def without_memory(mode: Callable[[Any, Array], Array]) -> Policy:
    """The policy that remembers nothing, from ``(params, observations [n, D]) -> actions [n, ...]``."""
    return Policy(lambda params, key, episodes: (), lambda params, memory, observation: (memory, mode(params, observation)))
