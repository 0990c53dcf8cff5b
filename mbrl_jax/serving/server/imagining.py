"""Imagined rollouts of the served policy in the served model, step by step."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from mbrl_jax.serving.server.reading import Limits, known_fields, observations, whole
from mbrl_jax.serving.server.refusal import Refused, shown
from mbrl_jax.serving.server.served import Served

RULES = ("fixed", "threshold", "accumulated")


class Rule(NamedTuple):
    """When a rollout ends before its horizon.

    ``threshold`` ends it before a step about which the members disagree by more than the mark, ``accumulated`` before the one
    by which the sum of their disagreement exceeds it; ``fixed`` never does.
    """

    kind: str = "fixed"
    mark: float = float("inf")


class Asked(NamedTuple):
    """Rollouts that a client asks for."""

    observation: np.ndarray  # [R, D] where they begin: those of the request, once for each member that moves some
    members: tuple[int | None, ...]  # [R] who moves each, none for the mean of all
    horizon: int
    rule: Rule


FIELDS = ("observation", "horizon", "rule", "members")


def read(content: Mapping[str, Any], served: Served, limits: Limits) -> Asked:
    """The rollouts of a request.

    Raises:
      Refused: there is no model, or a field does not fit.

    """
    if not served.members:
        raise Refused(404, "members", "there is no model in this export; mbrl-jax export --what all writes one")
    known_fields(content, FIELDS)
    starts, _ = observations(content, served.task, limits)
    horizon = whole(content.get("horizon", 10), "horizon", 1, limits.horizon)
    movers = _movers(content.get("members", "mean"), served.members)
    rollouts = len(starts) * len(movers)
    if rollouts > limits.rows:
        told = f"{len(starts):,} states by {len(movers)} members are {rollouts:,} rollouts"
        raise Refused(422, "observation", f"{told}; it must be at most {limits.rows:,}")
    members = tuple(member for member in movers for _ in range(len(starts)))
    return Asked(np.tile(starts, (len(movers), 1)), members, horizon, _rule(content.get("rule", {"kind": "fixed"})))


def _movers(value: Any, count: int) -> tuple[int | None, ...]:
    if value == "mean":
        return (None,)
    if value == "all":
        return tuple(range(count))
    if not isinstance(value, list) or not value or len(value) > count:
        raise Refused(422, "members", f"{shown(value)} does not fit; it must be mean, all, or numbers from 0 to {count - 1}")
    return tuple(whole(each, "members", 0, count - 1) for each in value)


def _rule(value: Any) -> Rule:
    if not isinstance(value, dict) or value.get("kind") not in RULES:
        raise Refused(422, "rule", f"{shown(value)} does not fit; it must have a kind, one of {', '.join(RULES)}")
    kind, mark = value["kind"], value.get("mark", float("inf"))
    known_fields(value, ("kind",) if kind == "fixed" else ("kind", "mark"))
    if kind == "fixed":
        return Rule()
    if isinstance(mark, bool) or not isinstance(mark, int | float) or not 0 <= mark < float("inf"):
        raise Refused(422, "rule", f"mark {shown(mark)} does not fit; it must be a number of at least 0")
    return Rule(kind, float(mark))


def imagine(served: Served, asked: Asked) -> Iterator[dict[str, Any]]:
    """Yield each step of the rollouts, until their horizon or until none goes on.

    A step has ``observation`` [R, D], ``action`` [R, ...], ``reward`` [R], ``terminated`` [R], ``disagreement`` [R], and ``took``
    [R], which rollouts took it. Numbers of those that did not are those of their last step.
    """
    now, running, spent = asked.observation, np.ones(len(asked.members), bool), np.zeros(len(asked.members), np.float64)
    movers = np.array([-1 if member is None else member for member in asked.members])
    for step in range(asked.horizon):
        action = served.act(now)
        said = served.expect(now, action)
        spent += np.where(running, said["disagreement"], 0.0)
        judged = spent if asked.rule.kind == "accumulated" else said["disagreement"]
        running = running & ~(judged > asked.rule.mark)
        if not running.any():
            return
        after, reward, terminated = (said[name] for name in ("next_observation", "reward", "terminated"))
        for member in np.unique(movers[movers >= 0]):
            rows = np.flatnonzero(movers == member)
            own = served.expect_of(int(member), now[rows], action[rows])
            after[rows], reward[rows], terminated[rows] = own["next_observation"], own["reward"], own["terminated"]
        running = running & np.isfinite(after).all(axis=1)
        if not running.any():
            return
        now = np.where(running[:, None], after, now)
        yield {
            "step": step + 1,
            "took": running,
            "observation": now,
            "action": action,
            "reward": reward,
            "terminated": terminated & running,
            "disagreement": said["disagreement"],
        }
        running = running & ~terminated
        if not running.any():
            return
