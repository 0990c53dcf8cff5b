# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Learn a world, then learn in it
#
# An agent that learns by trial needs many trials, and in the world they cost something. A model-based agent learns from a few of them how
# its world moves, and does its practice in what it has learned. This page builds one from 5,000 random pushes at a cart with a pole
# (CartPole-v1), looks at each of its parts, and asks at the end whether the model was worth having, against the same learner with the same
# 5,000 transitions and no model.
#
# It is Dyna-Q (Sutton 1991) with short rollouts of an ensemble, as in MBPO (Janner et al. 2019). Sections 1 to 4 look at one agent, seed 0.
# From section 5 on there are 32 of them, seed 0 included, because one seed proves nothing. The page takes about two minutes on two cores.
# All of it is seeded; on other hardware the numbers come out a little different, because rounding alone can send a learner another way.
#
# If mbrl_jax is not installed yet, on Google Colab for one, set `REPOSITORY` below; a runtime without an accelerator is enough.
# Should Colab then ask for a restart, restart and go on.

# %%
import importlib.util
import subprocess
import sys

REPOSITORY = ""  # where you got this from, as git knows it, such as "https://..."

if importlib.util.find_spec("mbrl_jax") is None:
    if not REPOSITORY:
        raise ModuleNotFoundError("mbrl_jax is not installed: set REPOSITORY to where you got this from and run this cell again")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", f"mbrl-jax @ git+{REPOSITORY}"], check=True)

# %%
import dataclasses
import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

import mbrl_jax
from mbrl_jax import environments, statistics
from mbrl_jax.agents.q_learning import make_q_learner
from mbrl_jax.algorithms import training
from mbrl_jax.algorithms.training import Stream, stream
from mbrl_jax.config import holdout_stride, read_preset
from mbrl_jax.imagination import diagnosis, lanes
from mbrl_jax.imagination.horizon import controller_of, controller_settings
from mbrl_jax.model.worlds import make_world
from mbrl_jax.replay import make_replay
from mbrl_jax.report import comparison, figures
from mbrl_jax.runs import execution, results, runner

SEEDS = 32
PRESET = "cartpole_batch"
BASELINE = "cartpole_batch_model_free"
LONG = 100  # steps of the rollouts that are made to see where they end
EPSILON = 0.1  # share of random pushes in them

execution.use_all_cores()  # before JAX is used
config, baseline = read_preset(PRESET), read_preset(BASELINE)
comparison.check_arms(config, baseline)  # the same task, real data and number of updates
task = mbrl_jax.make_environment(config.environment)
key = mbrl_jax.seed_keys(0, seeds=1)[0]  # whatever is random about seed 0 follows from it

DEGREES = 180 / np.pi
AXES = ("cart position", "cart velocity", "pole angle", "pole velocity")
UNITS = ("m", "m/s", "°", "°/s")
IN_UNITS = np.array([1, 1, DEGREES, DEGREES])
TRACK, LEAN = 2.4, 12  # m and °: beyond these an episode is over
COLOURS = figures.COLOURS


class Picture:
    """A figure as a notebook shows it: a small PNG."""

    def __init__(self, figure):
        full, small = io.BytesIO(), io.BytesIO()
        figure.savefig(full, dpi=90)
        PIL.Image.open(full).convert("RGB").quantize(256).save(small, "PNG", optimize=True)
        self.png = small.getvalue()

    def __repr__(self):
        return "a picture"

    def _repr_png_(self):
        return self.png


# %% [markdown]
# ## 1. Push at random
#
# The cart begins near the middle with its pole nearly upright. Every 0.02 s it is pushed to the left or to the right, and earns 1, until the
# pole leans by more than 12° or the cart is more than 2.4 m out. After 500 steps an episode is cut; an average of 475 counts as solved.
#
# A transition is a state, a push, a reward, the next state, and whether the task was over there. With the same reward everywhere, that last
# flag is all there is to learn from.


# %%
@jax.jit
def collect(key):
    draws = environments.draw_collection(task, stream(key, Stream.COLLECTION), config.random_transitions)
    return environments.collect(task, draws)


_, real, ended = collect(key)
lengths = np.asarray(ended)[np.isfinite(ended)]  # a reward of 1 a step: an episode's return is its length
visited = np.asarray(real.observation) * IN_UNITS
reaches = np.quantile(abs(visited), 0.99, axis=0)
reach = reaches[0]  # along the track
print(
    f"{len(visited):,} transitions; {len(lengths)} whole episodes of {lengths.mean():.1f} steps, the longest of {lengths.max():.0f}"
)
print(
    "99 % of the states: "
    + ", ".join(f"{name} ±{most:.2f} {unit}" for name, most, unit in zip(AXES, reaches, UNITS, strict=True))
)
print(f"the furthest from the middle: {abs(visited[:, 0]).max():.2f} m")

# %%
figure, axes = figures.new_figure(2)
axes[0].scatter(visited[:, 0], visited[:, 2], s=3, alpha=0.3, color=COLOURS["baseline"], linewidths=0)
axes[0].plot([-TRACK, TRACK, TRACK, -TRACK, -TRACK], [-LEAN, -LEAN, LEAN, LEAN, -LEAN], color="0.4", linewidth=0.8, linestyle=":")
axes[0].set_xlabel("cart position, m")
axes[0].set_ylabel("pole angle, °")
axes[1].hist(lengths, bins=np.arange(0, lengths.max() + 5, 5), color=COLOURS["baseline"])
axes[1].set_xlabel("length of an episode, steps of 0.02 s")
axes[1].set_ylabel("episodes")
Picture(figure)

# %% [markdown]
# *The states of the random data, with the limits of the task dotted, and the lengths of its episodes.* Random pushes drop the pole after 23
# steps on average and know only the middle of the track: whatever will be believed of its ends is extrapolated.

# %% [markdown]
# ## 2. Learn the world
#
# The model is an ensemble of five small networks. Each is told a state and a push, and says by how much the state will change: a mean and a
# variance on each axis, in units in which the typical change (its standard deviation over the data) is 1. All are fitted to the same data;
# they differ by their first weights and by the order of their minibatches. Every fifth transition is held out. Reward and
# termination are known functions here and are not learned.
#
# The *one-step error* is the root mean square of predicted mean less true change, over the transitions held out.

# %%
E = config.model.members
stride, sampling = holdout_stride(config), config.imagination.sampling
replay = make_replay(task.spec, config.random_transitions)
memory = replay.write(replay.init(), training.real_rows(real))
world = make_world(config.model, task, replay, first_rows=config.random_transitions, stride=stride, by=sampling)


@jax.jit
def fit(memory, key):
    fresh = world.init(stream(key, Stream.MODEL))
    return world.fit(fresh, memory, stream(key, Stream.FIT))


@jax.jit
def expect(members, observation, action):
    """The next state that each member expects, [E, ..., D] for [..., D]."""
    observation, action = (jnp.broadcast_to(asked[None], (E, *asked.shape)) for asked in (observation, action))
    return world.expect(members, observation, action).belief  # where a rollout of this model stands is the state


model, log = fit(memory, key)
members = world.acting(model)
held_out = slice(stride - 1, None, stride)
before, push = real.observation[held_out], real.action[held_out]
true_change = np.asarray(real.next_observation[held_out] - before) * IN_UNITS
told_change = np.asarray(expect(members, before, push) - before[None]) * IN_UNITS
for axis, (name, unit) in enumerate(zip(AXES, UNITS, strict=True)):
    typical = true_change[:, axis].std()
    wrong = np.sqrt(np.mean((told_change - true_change)[..., axis] ** 2))
    print(f"{name:13} typical change {typical:7.4f} {unit:3}  one-step error {wrong:.4f} {unit:3}  {wrong / typical:.1%}")

# %%
figure, axes = figures.new_figure(2)
epochs = np.arange(1, config.model.epochs + 1)
once = [None] * (E - 1)  # one entry in the legend for all members
axes[0].plot(epochs, log.loss, color=COLOURS["last"], linewidth=1, label=["training, each member", *once])
axes[0].plot(epochs, log.holdout_nll, color=COLOURS["chosen"], linewidth=1, label=["holdout", *once])
axes[0].set_ylabel("negative log-likelihood, nats")
error = np.sqrt(log.holdout_mse / task.spec.observation_size)
axes[1].plot(epochs, error, color=COLOURS["chosen"], linewidth=1, label=["holdout, each member", *once])
axes[1].set_yscale("log")
axes[1].set_ylabel("one-step error / typical change")
for ax in axes:
    ax.set_xlabel("epochs")
    ax.legend(frameon=False, fontsize=7)
Picture(figure)

# %% [markdown]
# *The fit (training also holds a small penalty on curvature).* The holdout goes down with the training loss, so what was learned is the rule
# and not the rows; the worst member ends several times as wrong as the best.

# %%
figure, axes = figures.new_figure(4)
figure.set_size_inches(11, 2.8)
for axis, ax in enumerate(axes):
    ends = true_change[:, axis].min(), true_change[:, axis].max()
    ax.plot(ends, ends, color="0.5", linewidth=0.8, linestyle=":")
    ax.scatter(np.tile(true_change[:, axis], E), told_change[..., axis], s=4, alpha=0.3, color=COLOURS["chosen"], linewidths=0)
    ax.set_title(AXES[axis], fontsize=9)
    ax.set_xlabel(f"true change in one step, {UNITS[axis]}")
axes[0].set_ylabel("predicted, same unit")
Picture(figure)

# %% [markdown]
# *Predicted against true change of the state, all members, held-out transitions.* One step ahead the model is right to two percent or better,
# and no plot of next states could tell it from the truth.

# %% [markdown]
# ## 3. Believe it for more than one step
#
# Now every member goes on from its own prediction. From the first state of each real episode the true cart is driven for 100 steps by a rule
# of thumb, *push towards the side to which the pole is falling*, with a tenth of its pushes random; the members get the same pushes.


# %%
def rule(observation, explore, random_action):
    falling_right = observation[..., 2] + 0.5 * observation[..., 3] > 0
    return jnp.where(explore < EPSILON, random_action, falling_right.astype(jnp.int32))


@jax.jit
def drive(members, first, explore, random_action):
    """True states [T, B, D], and [T, E, B, D] what each member makes of the same pushes, from first states [B, D]."""

    def step(states, draw):
        true, told = states
        action = rule(true, *draw)
        each = jnp.broadcast_to(action[None], told.shape[:-1])
        return (task.dynamics(true, action), world.expect(members, told, each).belief), states

    every = jnp.broadcast_to(first[None], (E, *first.shape))
    return jax.lax.scan(step, (first, every), (explore, random_action))[1]


first = real.observation[real.elapsed == 0]
random, shape = np.random.default_rng(0), (LONG + 1, len(first))
explore, random_action = jnp.asarray(random.random(shape)), jnp.asarray(random.integers(0, 2, shape), jnp.int32)
true, told = (np.asarray(states) * IN_UNITS for states in drive(members, first, explore, random_action))
wrong = np.median(abs(told - true[:, None])[..., 2], axis=(1, 2))
spread = np.median(told[..., 2].std(axis=1), axis=1)
standing = np.all((abs(true[..., 0]) <= TRACK) & (abs(true[..., 2]) <= LEAN), axis=0)
print(f"the true pole stands throughout in {standing.mean():.0%} of {len(first)} episodes")
for t in (1, 3, 10, 30, LONG):
    print(f"after {t:3} steps, medians: a member is wrong about the angle by {wrong[t]:.4f}°, members spread by {spread[t]:.4f}°")

# %%
figure, axes = figures.new_figure(3)
steps = np.arange(LONG + 1)
for ax, axis in zip(axes[:2], (0, 2), strict=True):
    ax.plot(steps, told[:, :, 0, axis], color=COLOURS["chosen"], linewidth=1, label=["each member", *once])
    ax.plot(steps, true[:, 0, axis], color="0.1", linewidth=1.4, linestyle="--", label="true")
    ax.set_ylabel(f"{AXES[axis]}, {UNITS[axis]}")
axes[1].set_ylim(-30, 30)
axes[2].plot(steps[1:], wrong[1:], color=COLOURS["score"], label="error of a member")
axes[2].plot(steps[1:], spread[1:], color=COLOURS["baseline"], label="spread of the members")
axes[2].set_yscale("log")
axes[2].set_ylabel("pole angle, °, median over starts")
for ax in axes:
    ax.set_xlabel("steps from the same start")
    ax.legend(frameon=False, fontsize=7)
Picture(figure)

# %% [markdown]
# *One start, and the median over all.* An upright pole multiplies any error by ten in about thirty steps: after three a member is
# wrong by thousandths of a degree, and after a hundred it has dropped a pole that stands. The members part from each other as fast as they
# part from the truth, so their spread, which needs no look at the truth, tells how wrong they are.
#
# Back to one step, but everywhere: over the whole track, with both velocities at 0.

# %%
over = jax.jit(lambda members: diagnosis.error_map(task, world, members))(members)
middle = diagnosis.MAP_POINTS // 2
for name, values in (("true error", over.one_step_error), ("disagreement", over.disagreement)):
    inside, outside = float(values[middle, middle]), float(values[middle, jnp.array([0, -1])].mean())
    print(
        f"{name:12}, typical change = 1: {inside:.3f} in the middle, {outside:.3f} at the ends of the track, {outside / inside:.0f} times that"
    )

figure, axes = figures.new_figure(2)
extent = (-TRACK, TRACK, -LEAN, LEAN)
for ax, values, title in zip(
    axes, (over.one_step_error, over.disagreement), ("true error", "disagreement of the members"), strict=True
):
    image = ax.imshow(values, origin="lower", extent=extent, aspect="auto", norm="log", clim=(2e-3, 0.3))
    ax.scatter(visited[:, 0], visited[:, 2], s=1, alpha=0.3, color="white", linewidths=0)
    ax.set_xlim(extent[:2])
    ax.set_ylim(extent[2:])
    ax.grid(False)
    ax.set_title(f"{title}, one step", fontsize=9)
    ax.set_xlabel("cart position, m")
axes[0].set_ylabel("pole angle, °")
figure.colorbar(image, ax=axes, label="typical change = 1")
Picture(figure)

# %% [markdown]
# *White: the data.* The model is best where the data are, and the members disagree where it is wrong; that is what ensembles are for.

# %% [markdown]
# ## 4. Imagine
#
# A *lane* takes a real state as its root and goes H imagined steps from it, each by the sampled prediction of a member that is drawn anew;
# then, or when the task is over, it takes a new root. K lanes run side by side, so that every step of training yields K × H = 75 imagined
# transitions. They follow the agent's own policy with a tenth of random pushes; as there is no agent yet, here they follow the rule of thumb.
# Dashed is where the true cart would have gone from the same root by the same pushes.


# %%
def imagine(settings, key):
    """What K lanes live through, [H, K]."""
    horizon = controller_of(settings)
    begin = lanes.init(settings, horizon, world, members, memory)
    now, draws = jnp.zeros((), jnp.int32), lanes.draw(settings, task.spec, world, key, ())
    return lanes.advance(settings, world, horizon, begin, members, rule, memory, now, draws)[1]


@jax.jit
def twins(lived):
    """Where the true dynamics lead from the same roots by the same pushes, [H, K, D]."""

    def step(after, row):
        after = task.dynamics(jnp.where((row.depth == 0)[:, None], row.observation, after), row.action)
        return after, after

    return jax.lax.scan(step, lived.observation[0], lived)[1]


figure, axes = figures.new_figure(2)
K, H = config.imagination.lanes, config.imagination.steps
far = dataclasses.replace(config.imagination, steps=LONG, cap=LONG, controller=controller_settings("fixed", **{"length": LONG}))
for ax, settings in zip(axes, (config.imagination, far), strict=True):
    lived = imagine(settings, stream(key, Stream.DIAGNOSIS))
    roots, imagined, true = (np.asarray(s)[..., 2] * DEGREES for s in (lived.observation, lived.next_observation, twins(lived)))
    apart = np.median(abs(imagined - true)[-1])
    fallen = np.mean((abs(true[-1]) > LEAN) & (abs(imagined[-1]) <= LEAN))
    print(
        f"H = {settings.steps:3}: {imagined.size:5,} transitions; at the end {apart:.4f}° from the truth (median), {fallen:.0%} standing for fallen"
    )
    for k in range(settings.lanes):
        begins = np.flatnonzero(lived.depth[:, k] == 0)
        for a, b in itertools.pairwise([*begins, settings.steps]):
            at, root, named = np.arange(a, b + 1), roots[a, k], a == k == 0
            ax.plot(
                at,
                [root, *imagined[a:b, k]],
                color=COLOURS["chosen"],
                linewidth=2.4,
                alpha=0.5,
                label="imagined" if named else None,
            )
            ax.plot(at, [root, *true[a:b, k]], color="0.1", linewidth=0.8, linestyle="--", label="true" if named else None)
            ax.plot(
                a, root, color=COLOURS["baseline"], marker="o", markersize=3, linewidth=0, label="real state" if named else None
            )
    for limit in (-LEAN, LEAN):
        ax.axhline(limit, color="0.5", linewidth=0.8, linestyle=":")
    ax.set_ylim(-18, 18)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("imagined steps")
    ax.set_ylabel("pole angle, °")
    ax.set_title(f"K = {settings.lanes} lanes, H = {settings.steps}", fontsize=9)
axes[0].legend(frameon=False, fontsize=7, ncols=3, loc="upper center")
Picture(figure)

# %% [markdown]
# *Imagined lanes over their true twins.* Three steps of imagination are as good as real. A hundred are wrong about where these pushes lead,
# and still right about what the rule is worth: it keeps a pole up, as it did in all true episodes of section 3. We come back to that in
# section 6.

# %% [markdown]
# ## 5. Learn in imagination
#
# From here on 32 agents train, one compiled program for all of them. Each has data, a model and lanes of its own and is a double
# Q-learner with a target network: at each of 5,000 steps its lanes add 75 imagined transitions to a memory of the last 20,000, and it makes
# one update on 256 of them. It touches the environment no more.
#
# The tutorial that this project grew from expects the loss of these updates, the squared temporal-difference error, to fall below 0.15 within
# 10,000 imagined transitions.

# %%
ours = runner.run(config, SEEDS)
print(f"{SEEDS} agents on {ours.backend.device}: compiled in {ours.seconds.compile:.0f} s, trained in {ours.seconds.run:.0f} s")

# %%
loss = ours.result.metrics.update.loss.reshape(SEEDS, -1)
so_far = (np.arange(loss.shape[1]) + 1) * config.metric_steps * K * H  # imagined transitions
middling = np.median(loss, axis=0)
within = (loss < figures.LOSS_MARK)[:, so_far <= figures.LOSS_MARK_TRANSITIONS].any(axis=1).mean()
when = f"first after {so_far[np.argmax(middling < figures.LOSS_MARK)]:,}" if middling.min() < figures.LOSS_MARK else "never"
print(
    f"below {figures.LOSS_MARK}: {within:.0%} of the seeds within {figures.LOSS_MARK_TRANSITIONS:,} imagined transitions; the median {when}"
)
print(f"the median at the end: {middling[-1]:.2f}")

figure, axes = figures.new_figure(2)
figures.draw_loss(axes[0], ours)
figures.draw_learning_curve(axes[1], ours, last="model-based, present policy", colour=COLOURS["last"])
for ax in axes:
    ax.legend(frameon=False, fontsize=7)
Picture(figure)

# %% [markdown]
# *Left: the loss, with the mark dotted. Right: real return of greedy episodes, for looking only; the green curve belongs to section 6.* Every
# seed passes the mark in time, and it means little: the loss rises again as values grow towards 1 / (1 − 0.99) = 100, while its share of
# the variance of its targets falls on. The return is what counts, and it shoots up within 800 updates, falls by half, and never settles.

# %% [markdown]
# ## 6. Choose in imagination
#
# If policies come and go, keep the good one; but trying them out would cost real episodes. The model does it for nothing. After every 100
# updates it plays 50 episodes of up to 500 steps with the present policy, from first states of the real data, each in one member from
# beginning to end. The policy that scored best is the *chosen* one.

# %%
score, found = (
    np.asarray(x, np.float64) for x in (ours.result.metrics.score, ours.result.metrics.curve_return)
)  # [seeds, rounds]
print(
    f"correlation of imagined and real return over {score.size:,} policies: {np.corrcoef(score.ravel(), found.ravel())[0, 1]:.2f}"
)
print(f"imagined less real return, mean: {statistics.bootstrap((score - found).mean(axis=1), statistics.mean)} steps")

figure, axes = figures.new_figure(2)
updates = (np.arange(score.shape[1]) + 1) * config.round_steps * config.agent.updates_per_step
best = score.argmax(axis=1)
axes[0].plot(updates, found[0], color=COLOURS["last"], label=f"real, {config.evaluation.curve_episodes} episodes")
axes[0].plot(updates, score[0], color=COLOURS["score"], label=f"imagined, {config.selection.episodes} episodes")
axes[0].plot(updates[best[0]], found[0, best[0]], color=COLOURS["chosen"], marker="o", linewidth=0, label="chosen")
axes[0].set_xlabel("updates, seed 0")
axes[0].set_ylabel("return, steps")
axes[1].plot([0, score.max()], [0, score.max()], color="0.5", linewidth=0.8, linestyle=":")
axes[1].scatter(score, found, s=5, alpha=0.3, color=COLOURS["last"], linewidths=0, label="a policy on the way")
mine = (np.arange(SEEDS), best)
axes[1].scatter(score[mine], found[mine], s=14, color=COLOURS["chosen"], linewidths=0, label="the one chosen, for each seed")
axes[1].set_xlabel("imagined return, steps")
axes[1].set_ylabel("real return, steps")
for ax in axes:
    ax.legend(frameon=False, fontsize=7, loc="lower right")
Picture(figure)

# %% [markdown]
# *One seed's policies over training, and those of all seeds.* No imagined episode of 500 steps follows a real one, and yet their mean
# ranks the policies nearly as real episodes do, and does not flatter them on average. Single models err: that of seed 0 overrates its policies
# by more than 100 steps for a while.

# %% [markdown]
# ## 7. Was it worth it?
#
# The other arm is the same learner without a model: the same networks, the same 5,000 real transitions for each seed, as many updates, every
# minibatch real, and a learning rate that was tuned for it on seeds of its own. It has no imagination to choose in, so what counts is its
# last policy. Each final policy plays 50 real episodes. IQM is the mean of the middle half of the seeds; brackets are 95 % bootstrap
# intervals.

# %%
free = runner.run(baseline, SEEDS)
print(f"{SEEDS} agents without a model: compiled in {free.seconds.compile:.0f} s, trained in {free.seconds.run:.0f} s")

# %%
chosen, last, without = (
    results.per_seed(returns)
    for returns in (ours.result.outcome.returns_chosen, ours.result.outcome.returns_last, free.result.outcome.returns_last)
)
arms = {
    "model-based, chosen": (chosen, COLOURS["chosen"]),
    "model-based, last": (last, COLOURS["last"]),
    "model-free, last": (without, COLOURS["baseline"]),
}
for name, (returns, _) in arms.items():
    shares = "".join(
        f"   >= {mark}: {np.mean(returns >= mark):4.0%}" for mark in environments.success_marks(ours.config.environment.name)
    )
    print(f"{name:20} IQM {statistics.bootstrap(returns)}{shares}")
for name, returns in (("chosen", chosen), ("last", last)):
    difference, p = statistics.paired_difference(returns, without), statistics.paired_p_value(returns, without)
    print(f"{name} - model-free: {difference}, p = {p:.4f}, better on {np.mean(returns > without):.0%} of the seeds")
peak = statistics.running_interval(free.result.metrics.curve_return)  # [3, rounds]
at = peak[0].argmax()
print(f"the best point of the model-free curve: {statistics.Estimate(*peak[:, at])} after {updates[at]:,} updates")

# %%
figure, axes = figures.new_figure(3)
figures.draw_learning_curve(axes[0], ours, last="model-based, present policy", colour=COLOURS["last"])
figures.draw_learning_curve(axes[0], free, last="model-free, present policy", colour=COLOURS["baseline"])
figures.draw_profile(axes[1], arms, ours.config.environment.name)
order = np.argsort(chosen - without)
axes[2].bar(np.arange(SEEDS), (chosen - without)[order], color=COLOURS["chosen"], label="chosen less model-free")
axes[2].scatter(np.arange(SEEDS), (last - without)[order], s=12, color=COLOURS["last"], zorder=3, label="last less model-free")
axes[2].axhline(0, color="0.1", linewidth=0.8)
axes[2].set_xlabel("seeds, in order of the difference")
axes[2].set_ylabel("difference of returns, steps")
for ax in axes:
    ax.legend(frameon=False, fontsize=7)
Picture(figure)

# %% [markdown]
# *Returns over training; the share of seeds whose final policy returns at least so much; differences seed by seed.* The chosen policy is
# better than the model-free one by 112 steps on average; the last policy is not better at all.

# %% [markdown]
# ## 8. What went right, and what wrong
#
# To see how episodes end, the final policies play ten more each.


# %%
@jax.jit
def play(policies, first):
    """The true states [seeds, T, n, D] under each greedy policy from first states [n, D], past the end of an episode."""
    learner = make_q_learner(config.agent, task.spec)

    def episodes(params):
        def step(state, _):
            return task.dynamics(state, learner.greedy(params, state)), state

        return jax.lax.scan(step, first, None, length=task.spec.time_limit + 1)[1]

    return jax.lax.map(episodes, policies)


starts = task.draw_resets(stream(key, Stream.CURVE), (10,)).observation
tracks = {}
for name, policies in zip(arms, (ours.result.outcome.chosen, ours.result.outcome.last, free.result.outcome.last), strict=True):
    states = np.asarray(play(policies, starts)) * IN_UNITS
    off, fallen = abs(states[..., 0]) > TRACK, abs(states[..., 2]) > LEAN
    done = np.logical_or.accumulate(off | fallen, axis=1)  # [seeds, T, n]
    end = done.argmax(axis=1)[:, None]
    ran_off = done[:, -1] & np.take_along_axis(off, end, axis=1)[:, 0]
    dropped = done[:, -1] & ~ran_off
    tracks[name] = np.where(done, np.nan, states[..., 0])
    lasts, beyond = np.mean(~done[:, -1]), np.mean(abs(states[..., 0][~done]) > reach)
    ends = f"lasts {lasts:4.0%}, off the track {ran_off.mean():4.0%}, drops the pole {dropped.mean():4.0%}"
    print(f"{name:20} {ends}; {beyond:.0%} of its steps beyond {reach:.2f} m")

# %%
figure, axes = figures.new_figure(3)
for ax, (name, track) in zip(axes, tracks.items(), strict=True):
    ax.plot(track[:, :, 0].T, color=arms[name][1], linewidth=0.8, alpha=0.7)
    ax.axhspan(-reach, reach, color="0.5", alpha=0.25, linewidth=0, label="99 % of the random data")
    for limit in (-TRACK, TRACK):
        ax.axhline(limit, color="0.4", linewidth=0.8, linestyle=":")
    ax.set_ylim(-3, 3)
    ax.set_xlabel("steps")
    ax.set_title(name, fontsize=9)
axes[0].set_ylabel("cart position, m")
axes[0].legend(frameon=False, fontsize=7, loc="lower left")
Picture(figure)

# %% [markdown]
# *One real episode of each seed's final policy.* Most failures are not a dropped pole but a slow drift off the
# track, where no data are.
#
# Right:
#
# * Random episodes of 23 steps are enough for policies that last 484 of 500 (IQM). Seed by seed that is 112 steps more, on average, than
#   model-free learning gets from the same data.
# * The model is good enough to be a judge. All of the gain is in the choice, which costs no real step.
#
# Wrong:
#
# * At these sizes imagined data as such gain nothing: the last policies of both arms are equal within wide intervals. Either arm swings
#   through better ones, the model-free curve through an IQM of 461 after 1,400 updates. Stopped there it would be close to the chosen
#   policies; but it cannot know that without real episodes.
# * A third of the chosen policies do not reach 475, mostly because they run off the track. A rollout of three steps from the middle never
#   gets to its ends, so nothing taught the Q-function to turn back in time.
# * The 0.15 was met and said nothing about the policy.
#
# Longer training in longer rollouts mends the first two: with the preset `cartpole_best` 63 of 64 chosen policies, and 62 of the last ones,
# reach 475 on such data.

# %% [markdown]
# ## Where to go next
#
# The whole method is one file, `mbrl_jax/algorithms/dyna_q.py`, and this comparison is one command; so are the better preset, a look at what
# its model gets wrong, and a grid of learning rates in one compiled program:
#
# ```sh
# mbrl-jax compare --protocol batch --seeds 64 --out runs/batch
# mbrl-jax train cartpole_best --seeds 16 --out runs/best --diagnose
# mbrl-jax sweep cartpole_batch --setting agent.learning_rate --values 3e-4 1e-3 3e-3 --seeds 16 --out runs/rates
# ```
#
# How long should a rollout be, and who should decide? `notebooks/write_a_horizon_controller.py` writes a rule of its own and tries it on 64
# seeds; the README says how the shipped ones fare.
