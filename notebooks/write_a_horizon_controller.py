# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Write a horizon controller
#
# How long may an imagined rollout be? This page answers with a rule of its own, in one cell, without touching the package, and sets it
# against rollouts of three steps on 64 seeds. It takes about two minutes on two cores.
#
# The idea to try: a rollout begins at a real state, where the model is as good as it gets. It should end when the ensemble's members
# disagree some *factor* more than they did at that root. No threshold in units of anything, nothing to calibrate.

# %%
import dataclasses

import jax.numpy as jnp

import mbrl_jax
from mbrl_jax import statistics
from mbrl_jax.config import read_preset
from mbrl_jax.imagination import disagreement
from mbrl_jax.report import figures
from mbrl_jax.runs import execution, results, runner

SEEDS = 64
PRESET = "horizon_study"
execution.use_all_cores()

# %% [markdown]
# ## The rule
#
# A controller is three pure functions.
#
# * `init(lanes, spec)` makes its state, any pytree of arrays. Ours remembers one number for each lane: the disagreement at its root.
# * `calibrate(state, world, params, rows, valid)` is called after every fit of the model, with all real transitions. Ours does not need it.
# * `step(state, view)` is called at every imagined step of all K lanes. `view` holds depth, root, state, action, next state, and, as we ask
#   for it with `needs_members`, every member's prediction. It answers which rows to keep, which lanes to stop, and what to take from
#   the reward.
#
# A stopped lane takes a new real root at once, so that every rule costs the same number of model steps. The stop is a truncation: the
# target of the last row bootstraps through it.
#
# `factor` may be a tracer: a grid of factors times seeds is one compiled program.


# %%
def relative(*, factor):
    """Stop where the members disagree more than ``factor`` times what they did at the root."""

    def init(lanes, spec):
        return jnp.zeros(lanes)  # disagreement at each lane's root

    def calibrate(at_root, world, params, rows, valid):
        return at_root

    def step(at_root, view):
        now = disagreement.std(view.everyone)  # [K] from predictions [M, K, D]
        at_root = jnp.where(view.depth == 0, now, at_root)
        stop = now > factor * at_root
        decision = mbrl_jax.Decision(keep=jnp.ones_like(stop), stop=stop, penalty=jnp.zeros_like(now))
        return at_root, decision

    return mbrl_jax.HorizonController(init, calibrate, step, needs_members=True)


# %% [markdown]
# ## Try it
#
# Both arms have the same seeds, the same real transitions, model steps and updates. With a controller of its own a run is one line. The cap
# is the longest rollout that any rule may have: 3 for the fixed one, 50 for ours.

# %%
fixed_config = read_preset(PRESET)
our_config = dataclasses.replace(fixed_config, imagination=dataclasses.replace(fixed_config.imagination, cap=50))

fixed = runner.run(fixed_config, SEEDS, diagnose=True)
ours = runner.run(our_config, SEEDS, controller=relative(factor=3.0), diagnose=True)

# %%
arms = {"fixed(3)": fixed, "relative(3)": ours}
for name, run in arms.items():
    horizon = 1 / run.result.metrics.lanes.ended.mean()
    for policy in ("chosen", "last"):
        returns = results.per_seed(getattr(run.result.outcome, f"returns_{policy}"))
        print(f"{name:12} {policy:7} IQM {statistics.bootstrap(returns)}   mean horizon {horizon:.1f}")
for policy in ("chosen", "last"):
    a, b = (results.per_seed(getattr(run.result.outcome, f"returns_{policy}")) for run in (ours, fixed))
    difference, p = statistics.paired_difference(a, b), statistics.paired_p_value(a, b)
    print(f"relative - fixed, {policy}: {difference}, p = {p:.3f}")

# %% [markdown]
# ## Look at it
#
# Left: returns of the present policy over training. Middle: the share of seeds whose final policy returns at least so much. Right: how far
# imagination is from what the real dynamics would have made of the same actions, by depth. The real dynamics are known here, and used for
# looking only.

# %%
figure, axes = figures.new_figure(3)
colours = {"fixed(3)": figures.COLOURS["baseline"], "relative(3)": figures.COLOURS["chosen"]}
for name, run in arms.items():
    rounds = run.result.metrics.curve_return.shape[1]
    steps = (jnp.arange(rounds) + 1) * run.config.round_steps
    figures.draw_band(axes[0], steps, run.result.metrics.curve_return, name, colours[name])
    error = run.diagnosis.by_depth.compounded_error
    reached = jnp.isfinite(error).mean(axis=0) > 0.5  # depths that at least half of the seeds reach
    middle = jnp.nanmedian(error, axis=0)[reached]
    axes[2].plot(jnp.arange(1, len(middle) + 1), middle, color=colours[name], label=name, marker="o", markersize=3)
figures.draw_profile(
    axes[1],
    {name: (results.per_seed(run.result.outcome.returns_last), colours[name]) for name, run in arms.items()},
    fixed_config.environment.name,
)
axes[0].set_xlabel("updates")
axes[0].set_ylabel("return, IQM over seeds")
axes[2].set_xlabel("depth")
axes[2].set_ylabel("compounded error, median over seeds")
axes[2].set_xscale("log")
axes[2].set_yscale("log")
for ax in axes:
    ax.legend(frameon=False, fontsize=7)
figure.savefig("write_a_horizon_controller.png")
figure  # noqa: B018

# %% [markdown]
# On 64 seeds the chosen policy returns 491.3 [463.3, 497.9] with rollouts of 26 steps on average, and 496.0 [485.4, 499.7] with those of
# three; the mean difference over seeds is −16.9 [−45.6, 11.1]. The rule does what it says, and on this task, with this model, it does not
# matter.
#
# ![Returns and errors of both arms](write_a_horizon_controller.png)

# %% [markdown]
# ## Keep it
#
# To give presets and the command line the rule, register it: `mbrl_jax.imagination.horizon.register("relative", relative)`. Its keyword
# arguments become the settings of a kind of `imagination.controller`. A name lasts as long as the process, so let a file of your own register
# it and then call `mbrl_jax.command.main()`, as [this guide](../docs/guests.md#train-with-them) does. A preset beside the study's is two lines:
#
# ```yaml
# base: horizon_study.yaml
# imagination: {cap: 50, controller: {kind: relative, factor: 3}}
# ```
#
# Saved as `configs/horizons/horizon_relative.yaml` it trains with any number of factors in one compiled program, on the same seeds, by
# `relative.py`, which has the rule:
#
# ```sh
# python relative.py sweep horizon_relative --grid imagination.controller.factor=1.5,3,6 --seeds 64 --out runs/relative
# ```
