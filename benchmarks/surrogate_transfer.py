"""Does a surrogate transfer? Models learned on one cart-pole drive decoupled gradients on others.

    python benchmarks/surrogate_transfer.py train                  # every arm that is not on file yet, those that tell most first
    python benchmarks/surrogate_transfer.py train length_2_ensemble_frozen
    python benchmarks/surrogate_transfer.py errors                 # of every source's surrogate on every body, see below
    python benchmarks/surrogate_transfer.py rewards                # of every arm's surrogate where true gradients lead, see below
    python benchmarks/surrogate_transfer.py table                  # print what is on file, and draw it
    python benchmarks/surrogate_transfer.py gpu                    # the whole grid, 128 seeds each, for a GPU

The task is swingup_dmo. Its physics (`environment.physics`) are scaled: the masses of cart and pole, the pole's length, or the
damping of both joints, times 0.5, 0.75, 1, 1.25, 1.5 or 2. On each of these tasks the surrogate is

* frozen: that which the same seed learned on the task itself (times 1), never fitted again;
* tuned: that one, fitted on to the new task's data;
* new: learned from nothing.

It is regularised, there and here, by one of

* none: one member alone;
* ensemble: the mean of three members;
* jacobian: the same, with a penalty on how far the members' Jacobians are from their mean;
* spectral: one member, whose layers have no singular value above 2;
* loose: the same with 4, which was added when 2 kept a surrogate from learning the task itself.

Beside them, true: gradients through the simulator, which no surrogate has a part in. It was added, as TASK_FACTOR_none_true, when
the first arms were on file and the surrogate with the largest error had the highest return.

An arm TASK_FACTOR_REGULARISER_START is trained in a folder of its own under --work and goes on there after a kill; when it is
done it is written to benchmarks/results/transfer/ARM.json and not trained again. Seed i has the same random numbers in all arms,
and its surrogate is that of seed i. Steps are those of the simulators, of which an action takes four.

Beside returns, the error of the surrogate's gradient: of the Jacobian of one step, against that of the known dynamics, at the
states of training (`surrogate_error: true`), round by round; and accumulated, of the product of Jacobians along paths of the last
policy, relative to the true product, after 1 to 16 decisions.

An arm takes minutes, its gradient's error seconds. So `errors` takes the surrogates that were learned on the task itself, one of
each regulariser and seed, to all sixteen bodies, along paths of the same policy for all of them: that which the seed learned with
the ensemble on the task itself.

`rewards` was added when the first arms had been seen. The reward is learned, too, and it is the same on all bodies. At states
that the policies of `true` gradients visit on a body, it holds the gradient of each arm's learned reward, and the Jacobian of its
step, against the true ones.

Arms have eight seeds and all of the preset's steps: a first arm with half of them, of sixteen seeds, ended at 501 [374, 628], too
far apart to tell arms from each other. Written down before the runs, on 2026-11-28:

(a) A frozen surrogate ends lower than a new one where the pole's length or the masses are off by a factor of two, and not where
    the damping is, which hardly moves this cart-pole.
(b) A tuned surrogate ends where a new one does, and its curve is higher on the way there.
(c) Over all arms with a frozen surrogate, the larger the accumulated error after 16 decisions, the lower the return.
(d) What is wrong with a frozen surrogate on another task is the same for all members: averaging them and making their Jacobians
    agree lower the error on the task itself, and do not help at a factor of two. A spectral bound does not help either.
"""

import argparse
import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import arm_by_arm
import decoupled_gradients
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax import Array
from rich.console import Console
from rich.table import Table

from mbrl_jax import packages, statistics, strict_json
from mbrl_jax.agents.policy_gradient import PolicyGradient
from mbrl_jax.algorithms import windows
from mbrl_jax.algorithms.phases import world_of
from mbrl_jax.algorithms.training import keys_of
from mbrl_jax.config import DMOConfig, PhysicsConfig, load
from mbrl_jax.environments import draw_actions, make_environment
from mbrl_jax.model import jacobians
from mbrl_jax.report import figures
from mbrl_jax.runs import execution, results
from mbrl_jax.runs.folder import is_finished
from mbrl_jax.runs.run import Run

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "transfer"
PHYSICS = ("length", "mass", "damping")
FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
REGULARISERS: dict[str, dict[str, Any]] = {
    "none": {"members": 1},
    "ensemble": {"members": 3},
    "jacobian": {"members": 3, "jacobian": "agreement", "jacobian_weight": 0.01, "jacobian_rows": 32},
    "spectral": {"members": 1, "spectral_bound": 2.0},
    "loose": {"members": 1, "spectral_bound": 4.0},
}
STARTS = {"new": "all", "tuned": "parameters", "frozen": "none", "true": "all"}  # and what fits change
DEPTHS = (1, 2, 4, 8, 16)
ROWS = 1_024  # states at which gradients are compared
COLOURS = {"none": "#5b5f97", "ensemble": "#0b6e4f", "jacobian": "#e08e45", "spectral": "#b0413e", "loose": "#d98880"}
MARKERS = {"new": "o", "tuned": "s", "frozen": "x", "true": "^"}


class Arm(NamedTuple):
    """One run of the study."""

    physics: str  # what is scaled
    factor: float
    regulariser: str
    start: str  # new, tuned or frozen, or true

    @property
    def name(self) -> str:
        """As files have it."""
        return f"{self.physics}_{self.factor:g}_{self.regulariser}_{self.start}"

    @property
    def source(self) -> "Arm | None":
        """The arm whose surrogate this one begins with, on the task itself."""
        return None if self.start in ("new", "true") else self._replace(physics="task", factor=1.0, start="new")

    @property
    def paired(self) -> "Arm":
        """The arm on the same task, regularised alike, whose surrogate is new; for true gradients it is the ensemble's."""
        return self._replace(start="new", regulariser="ensemble" if self.start == "true" else self.regulariser)


def arm_of(name: str) -> Arm:
    """The arm of a name. Raises ValueError: there is none."""
    found = next((arm for arm in grid() if arm.name == name), None)
    if found is None:
        words = ["|".join(each) for each in (("task", *PHYSICS), REGULARISERS, STARTS)]
        factors = ", ".join(f"{factor:g}" for factor in FACTORS)
        right = f"{words[0]}_FACTOR_{words[1]}_{words[2]}, FACTOR being 1 for task and one of {factors} else"
        raise ValueError(f"{name!r} is no arm; one is {right}")
    return found


def grid() -> Iterator[Arm]:
    """Every arm; the task itself is the same whatever would be scaled, and a true gradient whatever the model is."""
    for physics, factor in (("task", 1.0), *((name, f) for name in PHYSICS for f in FACTORS if f != 1.0)):
        for regulariser in REGULARISERS:
            for start in STARTS:
                if start != "true" or regulariser == "none":
                    yield Arm(physics, factor, regulariser, start)


def order() -> list[Arm]:
    """The arms that a CPU is for, those that tell most first; the rest of the grid is for a GPU."""
    long, short, heavy = ("length", 2.0), ("length", 0.5), ("mass", 2.0)
    first = [("task", 1.0, "new"), *((*long, start) for start in ("frozen", "new", "tuned")), (*short, "frozen"), (*short, "new")]
    ensembles = [Arm(physics, factor, "ensemble", start) for physics, factor, start in (*first, ("task", 1.0, "frozen"))]
    others = ("none", "loose", "jacobian", "spectral")
    regularised = [each for name in others for each in (Arm("task", 1.0, name, "new"), Arm(*long, name, "frozen"))]
    more = ((*heavy, "frozen"), (*heavy, "new"), ("damping", 2.0, "frozen"), (*short, "tuned"), (*heavy, "tuned"))
    last = [Arm(physics, factor, "ensemble", start) for physics, factor, start in more]
    shorter = [Arm(*short, name, "frozen") for name in others]
    true = [Arm(*task, "none", "true") for task in (long, short)]
    return [*ensembles, *true, *regularised, *last, *shorter, Arm("damping", 2.0, "ensemble", "new")]


def config_of(arm: Arm) -> DMOConfig:
    """The settings of an arm."""
    base: Any = load(ROOT / "configs" / "swingup_dmo.yaml")
    physics: Any = PhysicsConfig
    scaled = {} if arm.physics == "task" else {"physics": physics(**{arm.physics: arm.factor})}
    return dataclasses.replace(  # type: ignore[no-any-return]
        base,
        environment=dataclasses.replace(base.environment, **scaled),
        model=dataclasses.replace(base.model, **REGULARISERS[arm.regulariser], fits=STARTS[arm.start]),
        gradient="true" if arm.start == "true" else "decoupled",
        surrogate_error="true",
    )


def accumulated(config: DMOConfig, bodies: Sequence[PhysicsConfig], actors: Any, models: Any, keys: Array) -> list[Any]:
    """[bodies, seeds, depths] relative error of the surrogate's products of Jacobians along paths of a policy.

    Args:
      config: of the surrogates.
      bodies: what moves.
      actors: policies, leaves [seeds, ...].
      models: surrogates, leaves [seeds, ...].
      keys: [seeds].

    """

    @jax.jit
    def one(factors: dict[str, Array], actor: Any, model: Any, key: Array) -> Array:
        physics: Any = PhysicsConfig
        environment = dataclasses.replace(config.environment, physics=physics(**factors))  # one program for all bodies
        task = make_environment(environment)
        key_visit, key_paths = jax.random.split(key)
        pool = decoupled_gradients.visited(config, task, actor, key_visit)
        subject = decoupled_gradients.Subject(actor, None, model, pool)
        return decoupled_gradients.growth(config, task, subject, key_paths)

    def told(body: PhysicsConfig, seed: int) -> list[float]:
        actor, model = jax.tree.map(lambda leaf: np.asarray(leaf)[seed], (actors, models))
        factors = {name: jnp.asarray(value, jnp.float32) for name, value in dataclasses.asdict(body).items()}
        errors = np.asarray(one(factors, actor, model, keys[seed]), np.float64)
        return [float(f"{errors[depth - 1]:.4g}") for depth in DEPTHS]

    return [[told(body, seed) for seed in range(len(keys))] for body in bodies]


def path_keys(run: Run, seeds: int) -> Array:
    """[seeds] for the paths along which errors accumulate."""
    return jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys_of(run.base_seed, run.first_seed + jnp.arange(seeds)))


def keep(seeds: int, run: Run) -> dict[str, Any]:
    """What is kept of an arm besides what every study keeps."""
    surrogate = run.result.metrics.surrogate  # leaves [seeds, rounds, blocks, H]
    one_step = {name: np.asarray(leaf, np.float64).mean(axis=(0, 2, 3)) for name, leaf in surrogate._asdict().items()}
    config: Any = run.config
    outcome, keys = run.result.outcome, path_keys(run, seeds)
    return {
        "one_step": {name: [float(f"{x:.4g}") for x in row] for name, row in one_step.items()},  # [rounds]
        "depths": list(DEPTHS),
        "accumulated": accumulated(config, [config.environment.physics], outcome.last, outcome.model, keys)[0],  # [seeds, depths]
    }


def stage_train(arms: Sequence[Arm], seeds: int, out: Path, work: Path) -> None:
    """Train the arms that are not on file, and before one that whose surrogate it begins with."""
    execution.use_compilation_cache()
    out.mkdir(parents=True, exist_ok=True)
    for arm in arms:
        source = arm.source
        if source is not None and not is_finished(work / source.name):
            _train(source, seeds, out, work)
        if not (out / f"{arm.name}.json").exists():
            _train(arm, seeds, out, work)


def _train(arm: Arm, seeds: int, out: Path, work: Path) -> None:
    began, start = time.perf_counter(), None if arm.source is None else work / arm.source.name
    run = arm_by_arm.kept_in(work / arm.name, config_of(arm), seeds, start, "surrogate_transfer.py")
    more = {**arm._asdict(), **keep(seeds, run)}
    strict_json.write(out / f"{arm.name}.json", arm_by_arm.kept_of(run, "swingup", arm.name, more), indent=None)
    told = statistics.estimate(results.per_seed(run.result.outcome.returns_last))
    print(f"{arm.name}: IQM {told}, {time.perf_counter() - began:.0f} s", flush=True)


def stage_errors(out: Path, work: Path) -> None:
    """Measure the surrogates of finished sources on every body."""
    execution.use_compilation_cache()
    sources = {name: work / Arm("task", 1.0, name, "new").name for name in REGULARISERS}
    if not is_finished(sources["ensemble"]):
        raise SystemExit(f"{sources['ensemble']}: there is no finished run; train task_1_ensemble_new first")
    policies = results.read(sources["ensemble"])
    places = list(dict.fromkeys((arm.physics, arm.factor) for arm in grid()))
    bodies = [config_of(Arm(*place, "ensemble", "new")).environment.physics for place in places]
    for name, folder in sources.items():
        if (out / f"errors_{name}.json").exists() or not is_finished(folder):
            continue
        run = results.read(folder)
        config: Any = run.config
        seeds = len(run.result.outcome.returns_last)
        errors = accumulated(config, bodies, policies.result.outcome.last, run.result.outcome.model, path_keys(run, seeds))
        told = {
            "regulariser": name,
            "bodies": [{"physics": physics, "factor": factor} for physics, factor in places],
            "depths": list(DEPTHS),
            "errors": errors,  # [bodies, seeds, depths]
            "versions": packages.versions(execution.PACKAGES),
            "device": execution.device(),
            "precision": config.precision,
            "git": packages.git_revision(),
        }
        strict_json.write(out / f"errors_{name}.json", told, indent=None)
        print(f"errors_{name}: {len(bodies)} bodies, {seeds} seeds", flush=True)


def gradient_errors(config: DMOConfig, actor: Any, model: Any, key: Array) -> tuple[Array, Array]:
    """How wrong a surrogate is at the states that a policy visits: its reward's gradient, and the Jacobian of its step.

    Both are over the root mean square of the true ones, in the task's units and along the directions that states can take.

    Args:
      config: of the surrogate.
      actor: the policy.
      model: the surrogate's parameters.
      key: consumed.

    """
    task = make_environment(config.environment)
    alone = make_environment(dataclasses.replace(config.environment, action_repeat=1))
    world, spec, size = world_of(config, task), task.spec, task.spec.observation_size
    assert alone.reward is not None, "the swing-up knows its reward"
    reward_of, dynamics = alone.reward, alone.dynamics
    assert dynamics is not None, "and its dynamics"
    key_visit, key_rows, key_act = jax.random.split(key, 3)
    visited = decoupled_gradients.visited(config, task, actor, key_visit).observation
    s = visited[jax.random.randint(key_rows, (ROWS,), 0, visited.shape[0])]
    draws = jax.random.uniform(key_act, (ROWS,)), draw_actions(spec, key_act, (ROWS,))
    x = jnp.concatenate([s, PolicyGradient(config.agent, spec).act(actor, s, *draws)], axis=-1)

    def true(x: Array) -> Array:
        now, action, total = x[..., :size], x[..., size:], jnp.zeros(x.shape[:-1])
        for _ in range(config.environment.action_repeat):
            after = dynamics(now, action)
            now, total = after, total + reward_of(now, action, after)
        return jnp.concatenate([now, total[..., None]], axis=-1)

    def learned(x: Array) -> Array:
        after, reward, _ = windows.members_mean(world, model, x[..., :size], x[..., size:])
        return jnp.concatenate([after, reward[..., None]], axis=-1)

    units = jnp.concatenate([jnp.asarray(spec.observation_scale), jnp.ones(1)])
    allowed, errors = jacobians.tangent_projection(spec, s), []
    found, right = (jacobians.jacobian(function, x) for function in (learned, true))
    found, right = (
        jnp.concatenate([each[..., :size] @ allowed * units[None, None, :size], each[..., size:]], axis=-1) / units[None, :, None]
        for each in (found, right)
    )
    for part in (slice(size, None), slice(size)):
        difference = (found - right)[:, part]
        errors.append(jnp.sqrt(jnp.sum(jnp.square(difference)) / jnp.sum(jnp.square(right[:, part]))))
    return errors[0], errors[1]


def stage_rewards(out: Path, work: Path) -> None:
    """Hold the surrogates of finished arms against the true gradients where the policies of those lead."""
    execution.use_compilation_cache()
    for physics, factor in dict.fromkeys((arm.physics, arm.factor) for arm in grid()):
        place, leader = out / f"rewards_{physics}_{factor:g}.json", work / Arm(physics, factor, "none", "true").name
        if place.exists() or not is_finished(leader):
            continue
        leading, told = results.read(leader), {}
        for arm in grid():
            if (arm.physics, arm.factor) == (physics, factor) and arm.start != "true" and is_finished(work / arm.name):
                run = results.read(work / arm.name)
                config: Any = run.config
                measure = jax.jit(partial(gradient_errors, config))
                keys, found = path_keys(run, len(run.result.outcome.returns_last)), []
                for seed, key in enumerate(keys):
                    pair = leading.result.outcome.last, run.result.outcome.model
                    actor, model = jax.tree.map(lambda leaf, seed=seed: np.asarray(leaf)[seed], pair)
                    found.append([float(f"{float(each):.4g}") for each in measure(actor, model, key)])
                told[arm.name] = found  # [seeds, (reward, step)]
                print(f"{arm.name}: reward and step {np.median(found, axis=0)}", flush=True)
        made = {"versions": packages.versions(execution.PACKAGES), "device": execution.device(), "precision": "default"}
        strict_json.write(place, {"errors": told, **made, "git": packages.git_revision()}, indent=None)


# ------------------------------------------------------------------------------------------------------------- what came of it


def read(out: Path) -> dict[Arm, dict[str, Any]]:
    """The arms on file, in the grid's order."""
    places = ((arm, out / f"{arm.name}.json") for arm in grid())
    return {arm: strict_json.loads(path.read_text(encoding="utf-8")) for arm, path in places if path.exists()}


def along(told: dict[str, Any]) -> np.ndarray:
    """[seeds] the mean of each learning curve."""
    mean: np.ndarray = np.asarray(told["curves"], np.float64).mean(axis=1)
    return mean


def correlation(found: dict[Arm, dict[str, Any]]) -> tuple[float, int]:
    """Spearman correlation, over arms with a frozen surrogate, of the accumulated error with the return; and how many arms."""
    frozen = [told for arm, told in found.items() if arm.start == "frozen"]
    errors = [statistics.interquartile_mean(np.asarray(told["accumulated"])[:, -1]) for told in frozen]
    returns = [statistics.interquartile_mean(np.asarray(told["returns"])) for told in frozen]
    return (float(scipy.stats.spearmanr(errors, returns).statistic) if len(frozen) > 2 else float("nan")), len(frozen)


def stage_table(out: Path) -> None:
    """Print what is on file, and draw it."""
    found = read(out)
    if not found:
        raise SystemExit(f"{out}: there is no arm on file; train some first")
    table = Table("task", "regulariser", "surrogate", "seeds", "IQM, 95 %", "less new", "curve less new", "1 step", "8", "16")
    for arm, told in found.items():
        returns, errors = np.asarray(told["returns"]), np.asarray(told["accumulated"])
        base = found.get(arm.paired)
        paired = ("", "")
        if arm.start != "new" and base is not None and len(base["returns"]) == len(returns):
            differences = returns - np.asarray(base["returns"]), along(told) - along(base)
            paired = tuple(str(statistics.estimate(each)) for each in differences)  # type: ignore[assignment]
        at = [f"{statistics.interquartile_mean(errors[:, told['depths'].index(depth)]):.2g}" for depth in (1, 8, 16)]
        row = (
            f"{arm.physics} x {arm.factor:g}",
            arm.regulariser,
            arm.start,
            str(len(returns)),
            str(statistics.estimate(returns)),
        )
        table.add_row(*row, *paired, *at)
    Console(width=170).print(table)
    rank, count = correlation(found)
    print(f"Spearman correlation of accumulated error and return over {count} arms with a frozen surrogate: {rank:.2f}")
    surrogates = read_errors(out)
    for depth in (1, 16) if surrogates else ():
        table = Table("body", *surrogates, title=f"frozen surrogates, error after {depth} decisions, %")
        for place, body in enumerate(next(iter(surrogates.values()))["bodies"]):
            cells = [str(statistics.estimate(error_at(told, place, depth))) for told in surrogates.values()]
            table.add_row(f"{body['physics']} x {body['factor']:g}", *cells)
        Console(width=140).print(table)
    for path in sorted(out.glob("rewards_*.json")):
        table = Table("surrogate of", "reward's gradient, error in %", "step's Jacobian, error in %", title=path.stem)
        for name, errors in strict_json.loads(path.read_text(encoding="utf-8"))["errors"].items():
            table.add_row(name, *(str(statistics.estimate(100 * each)) for each in np.asarray(errors, np.float64).T))
        Console(width=140).print(table)
    draw(found, surrogates, out / "transfer.png")


def read_errors(out: Path) -> dict[str, dict[str, Any]]:
    """The errors on file, by regulariser."""
    paths = {name: out / f"errors_{name}.json" for name in REGULARISERS}
    return {name: strict_json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def error_at(told: dict[str, Any], place: int, depth: int) -> np.ndarray:
    """[seeds] per cent, of the body at a place."""
    return 100 * np.asarray(told["errors"], np.float64)[place, :, told["depths"].index(depth)]


def draw(found: dict[Arm, dict[str, Any]], errors: dict[str, dict[str, Any]], path: Path) -> None:
    """Returns against the accumulated error and against the factor of the pole's length, and errors against that factor."""
    figure, axes = figures.new_figure(3)
    for arm, told in found.items():
        error = 100 * statistics.interquartile_mean(np.asarray(told["accumulated"])[:, -1])
        value = statistics.interquartile_mean(np.asarray(told["returns"]))
        axes[0].scatter(error, value, color=COLOURS[arm.regulariser], marker=MARKERS[arm.start], s=28)
    for name, colour in COLOURS.items():
        axes[0].scatter([], [], color=colour, marker="o", s=28, label=name)
    for name, marker in MARKERS.items():
        axes[0].scatter([], [], color="0.4", marker=marker, s=28, label=name)
    axes[0].set_xscale("log")
    axes[0].set_xticks((10, 20, 40, 80), ("10", "20", "40", "80"))
    axes[0].minorticks_off()
    axes[0].set_xlabel("accumulated error after 16 decisions, %")
    for start in STARTS:
        here = [(arm.factor, told) for arm, told in found.items() if arm.regulariser == "ensemble" and arm.start == start]
        here = [each for each in here if each[1]["physics"] in ("task", "length")]
        if here:
            here.sort(key=lambda each: each[0])
            value, low, high = np.array([statistics.estimate(np.asarray(each[1]["returns"])) for each in here]).T
            factors = [each[0] for each in here]
            axes[1].plot(factors, value, marker=MARKERS[start], markersize=5, label=start)
            axes[1].fill_between(factors, low, high, alpha=0.15, linewidth=0)
    axes[1].set_xlabel("factor of the pole's length (ensemble)")
    for name, told in errors.items():
        bodies = enumerate(told["bodies"])
        places = sorted((body["factor"], place) for place, body in bodies if body["physics"] in ("task", "length"))
        value, low, high = np.array([statistics.estimate(error_at(told, place, DEPTHS[-1])) for _, place in places]).T
        axes[2].plot([factor for factor, _ in places], value, color=COLOURS[name], marker="x", markersize=5, label=name)
        axes[2].fill_between([factor for factor, _ in places], low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
    axes[2].set_xlabel("factor of the pole's length (frozen)")
    axes[2].set_ylabel("accumulated error after 16 decisions, %")
    for ax in axes:
        ax.legend(frameon=False, fontsize=7)
    for ax in axes[:2]:
        ax.set_ylabel("return, IQM over seeds")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("train", "errors", "rewards", "table", "gpu"))
    parser.add_argument("arms", nargs="*", metavar="arm", help="such as length_2_ensemble_frozen; by default those for a CPU")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "surrogate_transfer", help="where runs are kept")
    given = parser.parse_intermixed_args()
    try:
        arms = [arm_of(name) for name in given.arms] or order()
    except ValueError as error:
        parser.error(str(error))
    if given.stage == "table":
        stage_table(given.out)
    elif given.stage == "train":
        stage_train(arms, given.seeds, given.out, given.work)
    elif given.stage in ("errors", "rewards"):
        {"errors": stage_errors, "rewards": stage_rewards}[given.stage](given.out, given.work)
    else:
        place = given.out / "gpu"
        stage_train([arm_of(name) for name in given.arms] or list(grid()), 128, place, given.work / "gpu")
        stage_errors(place, given.work / "gpu")
        stage_rewards(place, given.work / "gpu")
        stage_table(place)


if __name__ == "__main__":
    main()
