"""Do imagined rollouts reduce the variance of policy gradients? One gradient, by several estimators, real and imagined.

    python benchmarks/gradient_variance.py cartpole pendulum

At policies saved along the training of configs/cartpole_pg.yaml and pendulum_pg.yaml, all estimators estimate the gradient of

    J(theta) = mean over s ~ D of V(s),   V the discounted return from s, D the states of the policy's own real episodes,

each from n = N / H rollouts of H steps that begin in D, by the surrogate

    J_H(theta) = mean over s ~ D of [ sum over t < H of discount^t r[t] + discount^H v(s[H]) ],   v the critic of the training,

and all are divided by the sum of the discounts, so that numbers of steps can be compared. J_H is where the bias of a short
horizon is: what the policy does after H steps counts by a value that does not know of theta. The estimators are

reinforce  score function without a critic, v = 0
critic     score function, the returns less v(s[t])
pathwise   J_H differentiated through actions, transitions and rewards, discrete actions straight through

and the rollouts are

real      in the real dynamics; they can be differentiated where actions are continuous (transition gradients)
imagined  in the learned ensemble, dealt to members at each step, from the same D
replay    imagined, and begun in the states of the 5,000 random real transitions, as the learner's lanes are

with N = 1,200 transitions an estimate (equal total transitions), and N = 30 real ones: about what each update has for itself
where 5,000 real transitions are spread over a training's updates (equal real transitions). The true gradient is the mean over
very many real rollouts to the end of the discount's reach: of the score function's estimates, and where the simulator can be
differentiated of the pathwise ones, which are much less noisy and whose agreement with the others is on file.

Estimates of the same number, real and imagined, have the same roots and the same random numbers for their actions, so that what
differs between them is the dynamics.

Of M estimates: the norm of their mean, their total variance, the signal-to-noise ratio (norm over root of variance), the cosine
of their mean to the true gradient and their own mean cosine to it, and the squared bias without what the variance adds to it.
Norms and biases are corrected for noise, and so can come out below 0 where there is nothing to see.

Writes benchmarks/results/gradient_variance/TASK.json and TASK.png and prints tables.
"""

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from matplotlib.ticker import NullFormatter
from rich.console import Console
from rich.table import Table

from mbrl_jax import draws, packages, statistics, strict_json
from mbrl_jax.agents.policy_gradient import PolicyGradient, lambda_returns
from mbrl_jax.algorithms import imagined_pg
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import ImaginedPGConfig, holdout_stride, load
from mbrl_jax.environments import Environment, draw_actions, make_environment
from mbrl_jax.model.protocol import WorldModel
from mbrl_jax.model.worlds import make_world
from mbrl_jax.networks import Params
from mbrl_jax.replay import AXES, Replay, make_replay
from mbrl_jax.report import figures
from mbrl_jax.runs import execution

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "gradient_variance"
PRESETS = {"cartpole": "cartpole_pg", "pendulum": "pendulum_pg"}
SHARES = {
    "cartpole": (0.01, 0.02, 0.03, 0.05),
    "pendulum": (0.1, 0.2, 0.3, 1.0),
}  # of training, after which policies are looked at
DRAWN = {"cartpole": 0.03, "pendulum": 0.1}
HORIZONS = (1, 3, 10, 30)
TOTAL, REAL = 1_200, 30  # transitions of an estimate
ESTIMATORS = ("reinforce", "critic", "pathwise")
WORLDS = ("real", "imagined", "replay")
LEAST_AGREEMENT = 0.9  # cosine between the two halves of a true gradient that is good enough to compare with
REACH = 0.02  # the discount of the last step of the true gradient's rollouts
BATCH = 1_024  # of those rollouts
EPISODES = 32  # real episodes of a policy that D is made of

World = Callable[[Array, Array, Any], tuple[Array, Array, Array]]  # (s, a, the model's draws) -> (s', r, terminated) of B rows


class Steps(NamedTuple):
    """Rollouts. Leaves [H, B, ...]."""

    observation: Array
    action: Array
    reward: Array
    terminated: Array
    running: Array  # bool, not terminated before this step
    next_observation: Array


class Subject(NamedTuple):
    """A policy at a point of its training, and what goes with it."""

    actor: Params
    critic: Params
    model: Any  # the world model's parameters
    visited: Array  # [states, D] of its real episodes
    replay: Array  # [N, D] of the random real transitions


class Laboratory(NamedTuple):
    """What all measurements on a task share."""

    config: ImaginedPGConfig
    task: Environment

    @property
    def learner(self) -> PolicyGradient:
        """The agent of the preset."""
        return PolicyGradient(self.config.agent, self.task.spec)

    @property
    def replay(self) -> Replay:
        """The functions of the replay that the model learns from."""
        return make_replay(self.task.spec, self.config.real_transitions)

    @property
    def model(self) -> WorldModel:
        """The model of the preset, rollouts dealt evenly to its members."""
        first, stride = self.config.random_transitions, holdout_stride(self.config)
        return make_world(self.config.model, self.task, self.replay, first_rows=first, stride=stride, by="ts1")

    @property
    def reach(self) -> int:
        """Steps of the true gradient's rollouts."""
        return int(np.ceil(np.log(REACH) / np.log(self.config.agent.discount)))

    def real(self, s: Array, a: Array, drawn: None) -> tuple[Array, Array, Array]:
        """A step of the real dynamics."""
        assert self.task.dynamics is not None
        assert self.task.reward is not None
        assert self.task.terminated is not None
        after = self.task.dynamics(s, a)
        return after, self.task.reward(s, a, after), self.task.terminated(s, a, after)

    def imagined(self, params: Any, s: Array, a: Array, drawn: Any) -> tuple[Array, Array, Array]:
        """A step of the model."""
        assert self.model.belief is not None, "rollouts begin in states of the task"
        told = self.model.step(params, self.model.belief(s), a, drawn)
        return self.model.features(told.belief), told.reward, told.terminated

    # ------------------------------------------------------------------------------------------------------------ rollouts

    def rollouts(self, world: World, act: Any, roots: Array, key: Array, horizon: int, *, dealt: bool) -> Steps:
        """H steps from roots [B, D]."""
        rows, spec = roots.shape[0], self.task.spec

        def step(carry: tuple[Array, Array], key: Array) -> tuple[Any, Steps]:
            s, running = carry
            keys = jax.random.split(key, 4)
            action = act(s, draws.uniform(keys[0], (rows,)), draw_actions(spec, keys[1], (rows,)))
            drawn = self.model.draw(keys[2], keys[3], (rows,)) if dealt else None
            after, reward, terminated = world(s, action, drawn)
            now = Steps(s, action, reward, terminated, running, after)
            return (after, running & ~terminated), now

        start = (roots, jnp.ones(rows, bool))
        return jax.lax.scan(step, start, jax.random.split(key, horizon))[1]

    def score_loss(self, actor: Params, critic: Params | None, steps: Steps) -> Array:
        """[] minus the score function's surrogate of J_H over the sum of the discounts."""
        learner, discount, horizon = self.learner, self.config.agent.discount, steps.reward.shape[0]
        steps = jax.lax.stop_gradient(steps)
        ended = jnp.zeros_like(steps.terminated).at[-1].set(True)
        nothing = jnp.zeros_like(steps.reward)
        follows = nothing if critic is None else learner.values(critic, steps.next_observation)
        baseline = nothing if critic is None else learner.values(critic, steps.observation)
        returns = lambda_returns(steps.reward, steps.terminated, ended, follows, discount, 1.0)
        weight = _discounts(discount, horizon)[:, None] * steps.running.astype(nothing.dtype)
        taken = learner.policy.log_probability(learner.outputs(actor, steps.observation), steps.action)
        gain = jnp.sum(weight * jax.lax.stop_gradient(returns - baseline) * taken, axis=0)
        return -jnp.mean(gain) / jnp.sum(_discounts(discount, horizon))

    def pathwise_loss(self, critic: Params | None, steps: Steps) -> Array:
        """[] minus J_H over the sum of the discounts, to be differentiated through the steps."""
        discount, horizon = self.config.agent.discount, steps.reward.shape[0]
        weight = _discounts(discount, horizon)[:, None] * steps.running.astype(steps.reward.dtype)
        gain = jnp.sum(weight * steps.reward, axis=0)
        if critic is not None:
            going_on = (steps.running[-1] & ~steps.terminated[-1]).astype(gain.dtype)
            gain = gain + discount**horizon * going_on * self.learner.values(critic, steps.next_observation[-1])
        return -jnp.mean(gain) / jnp.sum(_discounts(discount, horizon))

    def estimate(self, subject: Subject, estimator: str, where: str, horizon: int, rollouts: int, key: Array) -> Array:
        """[parameters] one estimate of the gradient of J, by ascent."""
        key_roots, key_steps = jax.random.split(key)
        pool = subject.replay if where == "replay" else subject.visited
        roots = pool[jax.random.randint(key_roots, (rollouts,), 0, pool.shape[0])]
        dealt = where != "real"
        world: World = functools.partial(self.imagined, subject.model) if dealt else self.real
        learner = self.learner
        if estimator == "pathwise":

            def loss(actor: Params) -> Array:
                act = functools.partial(learner.relaxed, actor)
                steps = self.rollouts(world, act, roots, key_steps, horizon, dealt=dealt)
                return self.pathwise_loss(subject.critic, steps)

            gradient = jax.grad(loss)(subject.actor)
        else:
            act = functools.partial(learner.act, subject.actor)
            steps = self.rollouts(world, act, roots, key_steps, horizon, dealt=dealt)
            critic = None if estimator == "reinforce" else subject.critic
            gradient = jax.grad(self.score_loss)(subject.actor, critic, steps)
        return -ravel_pytree(gradient)[0]

    # ---------------------------------------------------------------------------------------------------- the true gradient

    def truth(self, subject: Subject, key: Array, batches: int) -> dict[str, Array]:
        """Means of two halves [2, parameters] of the estimates from real rollouts to the end of the reach, by estimator."""

        def halves(estimator: str) -> Array:
            def one(key: Array) -> Array:
                return self.estimate(subject, estimator, "real", self.reach, BATCH, key)

            return jnp.mean(jax.lax.map(one, jax.random.split(key, batches)).reshape(2, batches // 2, -1), axis=1)

        found = {"critic": halves("critic")}
        return {**found, "pathwise": halves("pathwise")} if self.task.spec.continuous else found

    # ---------------------------------------------------------------------------------------------------- policies and states

    def visited(self, actor: Params, key: Array) -> tuple[Array, Array, Array]:
        """[episodes * limit, D] states of real episodes by the policy as it explores, [episodes * limit] whether they count, and
        [] the mean return of the episodes.
        """
        limit, spec = self.task.spec.time_limit, self.task.spec
        key_reset, key_steps = jax.random.split(key)
        states = self.task.draw_resets(key_reset, (EPISODES,))

        def step(carry: Any, key: Array) -> tuple[Any, tuple[Array, Array, Array]]:
            states, running = carry
            keys = jax.random.split(key)
            uniform, random = draws.uniform(keys[0], (EPISODES,)), draw_actions(spec, keys[1], (EPISODES,))
            action = self.learner.act(actor, states.observation, uniform, random)
            after, transition = jax.vmap(self.task.step)(states, action, states)
            told = (states.observation, running, jnp.where(running, transition.reward, 0.0))
            return (after, running & ~transition.terminated & ~transition.truncated), told

        _, (observations, counted, rewards) = jax.lax.scan(
            step, (states, jnp.ones(EPISODES, bool)), jax.random.split(key_steps, limit)
        )
        return observations.reshape(-1, spec.observation_size), counted.reshape(-1), jnp.sum(rewards) / EPISODES


def _discounts(discount: Any, horizon: int) -> Array:
    return jnp.asarray(discount) ** jnp.arange(horizon, dtype=jnp.zeros(()).dtype)


def subjects(lab: Laboratory, shares: tuple[float, ...], seeds: int) -> list[list[tuple[Subject, float]]]:
    """[shares][seeds] of the preset's training, with their returns."""
    train = imagined_pg.make_train(lab.config)
    keys = seed_keys(0, seeds)
    state, _ = jax.jit(jax.vmap(train.init, out_axes=(train.axes, 0)))(keys)
    state, _ = jax.jit(jax.vmap(train.fit, in_axes=(train.axes, None), out_axes=(train.axes, 0)))(state, lab.config)
    advance = jax.jit(jax.vmap(train.advance, in_axes=(train.axes, None), out_axes=(train.axes, 0)))
    wanted = [round(share * train.rounds) for share in shares]
    visit = jax.jit(lab.visited)
    found = []
    for done in range(1, wanted[-1] + 1):
        state, _ = advance(state, lab.config)
        if done not in wanted:
            continue
        at = []
        stored, _ = jax.vmap(lab.replay.contents, in_axes=(AXES,))(state.real)
        for seed in range(seeds):
            agent, model = jax.tree.map(lambda leaf, seed=seed: leaf[seed], (state.agent, state.model))
            observations, counted, earned = visit(agent.online.actor, jax.random.fold_in(keys[seed], done))
            pool = np.asarray(observations)[np.asarray(counted)]
            pool = np.random.default_rng(seed).choice(pool, 8_192)  # one shape for all, so that they share a program
            roots = stored.observation[seed]
            params = lab.model.acting(model)
            at.append((Subject(agent.online.actor, agent.target.critic, params, jnp.asarray(pool), roots), float(earned)))
        found.append(at)
    return found


def measures(estimates: np.ndarray, halves: np.ndarray) -> dict[str, float]:
    """What M estimates [M, parameters] are like, beside two independent halves [2, parameters] of the true gradient."""
    estimates, halves = estimates.astype(np.float64), halves.astype(np.float64)
    true, count = halves.mean(axis=0), len(estimates)
    mean = estimates.mean(axis=0)
    variance = float(np.square(estimates - mean).sum() / (count - 1))
    size = float(halves[0] @ halves[1])  # the squared norm of the true gradient, without what its own variance adds
    bias = float((mean - halves[0]) @ (mean - halves[1])) - variance / count  # likewise
    norm2 = max(float(mean @ mean) - variance / count, 0.0)
    told = {
        "norm": norm2**0.5,
        "variance": variance,
        "signal_to_noise": (norm2 / variance) ** 0.5 if variance > 0 else 0.0,
        "cosine_of_mean": _cosine(mean, true),
        "mean_cosine": float(np.mean([_cosine(each, true) for each in estimates])),
        "relative_bias2": bias / size,
        "relative_variance": variance / size,
    }
    return {name: float(f"{value:.6g}") for name, value in told.items()}


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 0 else 0.0


def measure(stage: str, seeds: int, count: int, batches: int) -> dict[str, Any]:
    """All estimators of a task, at all its policies."""
    config = load(ROOT / "configs" / f"{PRESETS[stage]}.yaml")
    assert isinstance(config, ImaginedPGConfig)
    config = dataclasses.replace(config, round_steps=config.steps // 100, metric_steps=config.steps // 100)
    lab = Laboratory(config, make_environment(config.environment))
    began = time.perf_counter()
    console = Console()

    def note(text: str) -> None:
        console.print(f"[dim]{time.perf_counter() - began:6.0f} s  {stage}: {text}")

    note("training")
    found = subjects(lab, SHARES[stage], seeds)

    @functools.partial(jax.jit, static_argnames=("estimator", "where", "horizon", "rollouts"))
    def many(subject: Subject, key: Array, estimator: str, where: str, horizon: int, rollouts: int) -> Array:
        one = functools.partial(lab.estimate, subject, estimator, where, horizon, rollouts)
        return jax.lax.map(one, jax.random.split(key, count), batch_size=8)

    truth = jax.jit(functools.partial(lab.truth, batches=batches))
    points, truths = [], []
    for share, at in zip(SHARES[stage], found, strict=True):
        for seed, (subject, earned) in enumerate(at):
            key = jax.random.fold_in(jax.random.key(seed), round(100 * share))
            by_estimator = {name: np.asarray(x) for name, x in truth(subject, jax.random.fold_in(key, 1)).items()}
            halves = by_estimator.get("pathwise", by_estimator["critic"])
            told = {"share": share, "seed": seed, "return": earned, "norm": float(np.linalg.norm(halves.mean(axis=0)))}
            told |= {f"cosine_of_halves_{name}": _cosine(*x) for name, x in by_estimator.items()}
            if "pathwise" in by_estimator:
                told["cosine_of_both"] = _cosine(*(x.mean(axis=0) for x in by_estimator.values()))
            truths.append(told)
            note(f"{share:.0%} of training, seed {seed}: {json.dumps(told)}")
            for where in WORLDS:
                for estimator in ESTIMATORS:
                    if where == "real" and estimator == "pathwise" and not lab.task.spec.continuous:
                        continue  # what is differentiated is not there
                    for horizon in HORIZONS:
                        for budget in (TOTAL, REAL) if where == "real" else (TOTAL,):
                            arguments: dict[str, Any] = {"estimator": estimator, "where": where, "horizon": horizon}
                            estimates = many(subject, jax.random.fold_in(key, 2), **arguments, rollouts=budget // horizon)
                            values = measures(np.asarray(estimates), halves)
                            points.append({"share": share, "seed": seed, "transitions": budget, **arguments, **values})
    return {
        "preset": PRESETS[stage],
        "seeds": seeds,
        "estimates": count,
        "true_rollouts": batches * BATCH,
        "true_steps": lab.reach,
        "truths": truths,
        "points": points,
        "versions": packages.versions(("jax", "gymnax")),
        "device": jax.devices()[0].device_kind,
        "precision": config.precision,
        "git": packages.git_revision(),
    }


def is_reliable(truth: dict[str, Any]) -> bool:
    """Whether the two halves of a true gradient agree."""
    name = "cosine_of_halves_pathwise" if "cosine_of_halves_pathwise" in truth else "cosine_of_halves_critic"
    return bool(truth[name] > LEAST_AGREEMENT)


def column(told: dict[str, Any], name: str, **which: Any) -> np.ndarray:
    """[policies] a measure at the points that fit, of the policies whose true gradient is known well enough."""
    known = {(truth["share"], truth["seed"]) for truth in told["truths"] if is_reliable(truth)}
    points = [p for p in told["points"] if all(p[key] == value for key, value in which.items())]
    return np.array([p[name] for p in points if (p["share"], p["seed"]) in known])


ARMS = (  # (where, transitions, name, colour, line)
    ("real", REAL, f"real, {REAL}", "#e08e45", "-"),
    ("real", TOTAL, f"real, {TOTAL:,}", "#5b5f97", "-"),
    ("imagined", TOTAL, f"imagined, {TOTAL:,}", "#0b6e4f", "--"),
    ("replay", TOTAL, f"from the replay, {TOTAL:,}", "#b0413e", "-"),
)
DRAWN_COLUMNS = ("relative_variance", "relative_bias2", "signal_to_noise", "cosine_of_mean")
COLUMNS = (
    ("norm", "norm of the mean"),
    ("relative_variance", "variance / |true|²"),
    ("relative_bias2", "bias² / |true|²"),
    ("signal_to_noise", "signal-to-noise"),
    ("cosine_of_mean", "cosine of the mean"),
    ("mean_cosine", "cosine of an estimate"),
)


def table_of(stage: str, told: dict[str, Any], share: float) -> Table:
    """All arms at one point of training, IQM over seeds."""
    known = sum(is_reliable(truth) for truth in told["truths"] if truth["share"] == share)
    title = f"{stage}, after {share:.0%} of training, {known} of {told['seeds']} seeds"
    table = Table("estimator", "rollouts", "H", *(label for _, label in COLUMNS), title=title)
    for estimator in ESTIMATORS:
        for where, transitions, name, _, _ in ARMS:
            for horizon in HORIZONS:
                which = {"estimator": estimator, "where": where, "transitions": transitions, "horizon": horizon, "share": share}
                found = [column(told, measure, **which) for measure, _ in COLUMNS]
                if len(found[0]):
                    cells = (f"{statistics.bootstrap(values).value:.3g}" for values in found)
                    table.add_row(estimator, name, str(horizon), *cells)
    return table


def answer_of(stage: str, told: dict[str, Any]) -> Table:
    """The hypothesis: how variances compare policy by policy, and what is paid for in bias."""
    known = sum(is_reliable(truth) for truth in told["truths"])
    table = Table(
        "estimator",
        "H",
        "variance of imagined / real, equal total",
        "the same, equal real",
        *(f"bias², {where}" for where in WORLDS),
        title=f"{stage}: IQM over {known} of {len(told['truths'])} policies; bias² over the squared norm of the true gradient",
    )
    for estimator in ESTIMATORS:
        for horizon in HORIZONS:
            which = {"estimator": estimator, "horizon": horizon}
            imagined = column(told, "variance", where="imagined", transitions=TOTAL, **which)
            cells = []
            for transitions in (TOTAL, REAL):
                real = column(told, "variance", where="real", transitions=transitions, **which)
                cells.append(f"{statistics.bootstrap(imagined / real).value:.3g}" if len(real) else "-")
            for where in WORLDS:
                bias = column(told, "relative_bias2", where=where, transitions=TOTAL, **which)
                cells.append(f"{statistics.bootstrap(bias).value:.3g}" if len(bias) else "-")
            table.add_row(estimator, str(horizon), *cells)
    return table


def draw(stage: str, told: dict[str, Any], share: float, path: Path) -> None:
    """Measures against H, a row for each estimator."""
    figure, axes = figures.new_figure(len(DRAWN_COLUMNS), len(ESTIMATORS))
    for row, estimator in enumerate(ESTIMATORS):
        for place, name in enumerate(DRAWN_COLUMNS):
            ax, label = axes[row * len(DRAWN_COLUMNS) + place], dict(COLUMNS)[name]
            for where, transitions, arm, colour, line in ARMS:
                which = {"estimator": estimator, "where": where, "transitions": transitions, "share": share}
                values = [column(told, name, horizon=horizon, **which) for horizon in HORIZONS]
                if not len(values[0]):
                    continue
                found = np.array([statistics.bootstrap(each) for each in values])
                ax.plot(HORIZONS, found[:, 0], color=colour, linestyle=line, marker="o", markersize=3, label=arm)
                ax.fill_between(HORIZONS, found[:, 1], found[:, 2], color=colour, alpha=0.15, linewidth=0)
            ax.set_xscale("log")
            ax.set_xticks(HORIZONS, [str(horizon) for horizon in HORIZONS])
            ax.minorticks_off()
            ax.set_xlabel("H")
            ax.set_ylabel(label)
            ax.set_title(estimator, fontsize=9)
            if "cosine" in name:
                ax.set_ylim(-1.02, 1.02)
            else:
                ax.set_yscale("log", nonpositive="clip")  # what is corrected for noise may be 0 or less, and leaves the figure
                ax.yaxis.set_minor_formatter(NullFormatter())
                if name != "relative_variance":
                    ax.set_ylim(bottom=0.005)
    axes[0].legend(frameon=False, fontsize=7)
    figure.suptitle(f"{stage}, after {share:.0%} of training, IQM of {told['seeds']} seeds with 95 % intervals", fontsize=10)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=PRESETS)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--estimates", type=int, default=256, help="M, of each kind")
    parser.add_argument("--batches", type=int, default=32, help=f"of {BATCH:,} rollouts each, for the true gradient; even")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    parser.add_argument("--draw-again", action="store_true", help="print and draw what is on file, and measure nothing")
    flags = parser.parse_args()
    execution.use_all_cores()
    flags.out.mkdir(parents=True, exist_ok=True)
    for stage in flags.stages:
        path = flags.out / f"{stage}.json"
        if not flags.draw_again:
            strict_json.write(path, measure(stage, flags.seeds, flags.estimates, flags.batches), indent=None)
        told = json.loads(path.read_text(encoding="utf-8"))
        for share in SHARES[stage]:
            Console(width=150).print(table_of(stage, told, share))
        Console(width=150).print(answer_of(stage, told))
        draw(stage, told, DRAWN[stage], path.with_suffix(".png"))


if __name__ == "__main__":
    main()
