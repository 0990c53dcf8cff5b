"""The parity suite is tested too: it fails for every one of many plausible faults, planted one at a time in the JAX code.

A fault is a change of a function's source, as somebody might have mistyped or misunderstood it. The function object keeps its
identity and gets the changed code, so that whoever imported it has the fault.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from faults import planted

from mbrl_jax.config import ModelFreeQConfig
from mbrl_jax.imagination.horizon import controller_settings

from . import (
    test_algorithms,
    test_disagreement,
    test_ensemble,
    test_environment,
    test_evaluation,
    test_fitting,
    test_lanes,
    test_losses,
    test_networks,
    test_q_learning,
    test_replay,
    test_statistics,
)
from .agreement import Agreement

Test = Callable[..., None]  # (rng, agree, *arguments)
DRAWING: dict[tuple[str, bool], dict] = {}  # the random numbers of short runs: no fault that these must show is in them
INPUTS = 4  # random inputs that a fault is given to show on: no pole falls in some, no incumbent is judged anew in others


class Fault(NamedTuple):
    """What is changed where, and which test of the suite must notice."""

    where: str  # module:function, below mbrl_jax
    old: str  # once in its source
    new: str
    test: Test
    arguments: tuple[Any, ...] = ()


def short_run(rng: np.random.Generator, agree: Agreement, protocol: str, *, with_model: bool = True) -> None:
    """A whole run in lockstep, of few steps."""
    config = test_algorithms.change(
        test_algorithms.CONFIG,
        protocol=protocol,
        random_transitions=150,
        steps=90,
        round_steps=30,
        metric_steps=10,
        environment={"time_limit": 15},
        exploration={"start": 0.6, "end": 0.1},
        model={"hidden": (8, 8), "batch_size": 16, "epochs": 2, "refit_batches": 3},
        imagination={
            "capacity": 1_000,
            "cap": 6,
            "controller": controller_settings("schedule", **{"start": 0, "end": 80, "first": 1, "last": 6}),
        },
        agent={"hidden": (8, 8), "batch_size": 16, "real_ratio": 0.5, "learning_rate": 0.01, "learning_rate_decay": 0.5},
        selection={"episodes": 5, "steps": 60},
    )
    config = config if with_model else ModelFreeQConfig(**test_algorithms.fields(config))
    programs = DRAWING.setdefault((protocol, with_model), {})
    ours, theirs = test_algorithms.both(config, jax.random.key(int(rng.integers(2**31))), programs)
    test_algorithms.compare_runs(agree, f"short, {protocol}", config, ours, theirs)


statistics_of_rows = test_ensemble.test_statistics_are_those_of_the_rows_that_count
inputs = test_ensemble.test_states_are_normalised_and_actions_encoded_alike
predictions = test_ensemble.test_predictions_are_the_references
imagined_steps = test_ensemble.test_imagined_steps_are_the_references
bounded = test_ensemble.test_log_variances_are_bounded_alike_far_beyond_their_bounds
gymnasium_step = test_environment.test_one_step_is_gymnasiums
random_data = test_environment.test_random_data_and_their_rows_are_the_references
model_loss = test_losses.test_the_loss_and_each_of_its_gradients_are_the_references
fit = test_fitting.test_a_fit_and_the_refit_after_it_are_the_references
q_targets = test_q_learning.test_targets_are_the_references
q_loss = test_q_learning.test_the_loss_and_each_of_its_gradients_are_the_references
q_updates = test_q_learning.test_a_thousand_updates_on_the_same_batches_end_at_the_same_networks
ring = test_replay.test_a_ring_that_is_written_round_holds_and_samples_the_same_rows


def lanes(rng: np.random.Generator, agree: Agreement, sampling: str, restart: str, controller: str) -> None:
    """The lanes' test, over as many steps as the controller needs: a schedule rises over all of them."""
    steps = test_lanes.STEPS if controller == "schedule" else 60
    test_lanes.compare_lanes(rng, agree, sampling, restart, controller, steps)


GAUSSIAN = {"prediction": "gaussian"}
ALL_OF_THE_PROTOCOL = ("ts1", "streaming", "all of the protocol")


def short_run_without_a_model(rng: np.random.Generator, agree: Agreement) -> None:
    """What compiles to a third of the program."""
    short_run(rng, agree, "interactive", with_model=False)


def streaming(controller: str) -> tuple[str, str, str]:
    """The arguments of the lanes' test for one controller."""
    return "ts1", "streaming", controller


FAULTS = {
    # the environment and the data
    "termination judged on s": Fault(
        "environments.gymnax:_cartpole_terminated", "s2[..., 0]", "s[..., 0]", imagined_steps, (GAUSSIAN, "CartPole-v1")
    ),
    "only the angle ends an episode": Fault(
        "environments.gymnax:_cartpole_terminated",
        "(jnp.abs(s2[..., 0]) > CARTPOLE_X) |",
        "",
        gymnasium_step,
        ("CartPole-v1", 1_000, 1e-6),
    ),
    "a known reward of the wrong sign": Fault(
        "environments.gymnax:_minus_one_per_step",
        "-jnp.ones_like",
        "jnp.ones_like",
        gymnasium_step,
        ("MountainCar-v0", 100, 1e-6),
    ),
    "truncation treated as termination": Fault(
        "algorithms.training:real_rows", "=transitions.terminated", "=transitions.terminated | transitions.truncated", random_data
    ),
    "the final observation replaced by the reset one": Fault(
        "environments.gymnax:_make",
        "next_observation=observation",
        "next_observation=jnp.where(terminated | truncated, fresh.observation, observation)",
        random_data,
    ),
    "an episode that is never truncated": Fault(
        "environments.gymnax:_make", "terminated | truncated)", "terminated)", random_data
    ),
    "returns that run on over resets": Fault(
        "environments.collection:collect", "jnp.where(ended, 0.0, so_far))", "so_far)", random_data
    ),
    # the replay
    "a cursor one row ahead": Fault("replay:make_replay", "(state.written + start) %", "(state.written + start + 1) %", ring),
    "sampling of rows not yet written": Fault(
        "replay:make_replay", "size(state).astype(jnp.uint32)", "jnp.uint32(capacity)", ring
    ),
    "columns swapped in unpacking": Fault(
        "replay:_unpack",
        "reward, terminated, weight, depth =",
        "terminated, reward, weight, depth =",
        test_replay.test_rows_come_out_of_a_replay_as_they_went_in,
        ("CartPole-v1", 4, 2),
    ),
    # the model
    "ddof 1": Fault("model.ensemble:measure", "axis=0) / total)", "axis=0) / (total - 1))", statistics_of_rows),
    "no floor under a deviation": Fault(
        "model.ensemble:measure", "jnp.where(state_std < SMALLEST_STD, 1.0, state_std)", "state_std", statistics_of_rows
    ),
    "a target that does not vary taken for one that varies by 1": Fault(
        "model.ensemble:measure", "smallest), 0.0, target_std)", "smallest), 1.0, target_std)", statistics_of_rows
    ),
    "a constant judged without its size": Fault(
        "model.ensemble:measure", "jnp.maximum(1.0, jnp.abs(target_mean))", "1.0", statistics_of_rows
    ),
    "members who disagree about a target that does not vary": Fault(
        "model.ensemble:silence",
        "still = members.normaliser.target_std == 0",
        "still = members.normaliser.target_std < 0",
        test_ensemble.test_members_say_the_same_of_a_target_that_does_not_vary_on_both_sides,
        (GAUSSIAN,),
    ),
    "actions encoded as 0 and 1": Fault("model.ensemble:encode", "(2 * action - 1)", "action", inputs, ("CartPole-v1",)),
    "one-hot actions off by one": Fault(
        "model.ensemble:encode", "jax.nn.one_hot(action,", "jax.nn.one_hot(action - 1,", inputs, ("Acrobot-v1",)
    ),
    "log-variance bounds swapped": Fault(
        "model.ensemble:bound_log_variance",
        "bounds.maximum - _softplus(bounds.maximum - log_variance)",
        "bounds.minimum - _softplus(bounds.minimum - log_variance)",
        bounded,
    ),
    "the change left in normalised units": Fault(
        "model.ensemble:decode", "begin + scale * change", "begin - shift + change", imagined_steps, (GAUSSIAN, "CartPole-v1")
    ),
    "a variance taken for a deviation": Fault(
        "model.ensemble:decode", "jnp.exp(0.5 *", "jnp.exp(1.0 *", imagined_steps, (GAUSSIAN, "CartPole-v1")
    ),
    "mean of log-variances in the mixture": Fault(
        "model.ensemble:mixture_mean",
        "jnp.log(jnp.mean(variance, axis=0))",
        "jnp.mean(prediction.log_variance, axis=0)",
        imagined_steps,
        (GAUSSIAN, "CartPole-v1"),
    ),
    "a forgotten one half": Fault(
        "model.losses:gaussian_nll", "0.5 * (", "1.0 * (", model_loss, ("likelihood, fixed bounds", "CartPole-v1")
    ),
    "squared errors averaged over axes": Fault(
        "model.losses:squared_error",
        "jnp.sum(jnp.square(mean - target), axis=-1)",
        "jnp.mean(jnp.square(mean - target), axis=-1)",
        model_loss,
        ("squared error", "CartPole-v1"),
    ),
    "fixed bounds that learn": Fault(
        "model.losses:member_loss",
        "jax.lax.stop_gradient(bounds)",
        "bounds",
        model_loss,
        ("likelihood, fixed bounds", "CartPole-v1"),
    ),
    "a penalty that pushes bounds apart": Fault(
        "model.losses:bounds_penalty",
        "jnp.sum(bounds.maximum) - jnp.sum(bounds.minimum)",
        "jnp.sum(bounds.minimum) - jnp.sum(bounds.maximum)",
        model_loss,
        ("likelihood, learned bounds", "CartPole-v1"),
    ),
    "flags inverted in the cross-entropy": Fault(
        "model.losses:termination_cross_entropy",
        "terminated.astype",
        "(~terminated).astype",
        model_loss,
        ("termination head", "CartPole-v1"),
    ),
    "weight decay without its half": Fault(
        "model.losses:weight_penalty", "0.5 * ", "", model_loss, ("weight decay", "CartPole-v1")
    ),
    "a Laplacian that counts the action": Fault(
        "model.losses:laplacian_directions",
        "jnp.eye(size, ensemble.input_size)",
        "jnp.eye(ensemble.input_size)",
        model_loss,
        ("Laplacian, exact", "CartPole-v1"),
    ),
    "Hutchinson's estimate not averaged": Fault(
        "model.losses:laplacian_directions",
        " / jnp.sqrt(1.0 * probes)",
        "",
        model_loss,
        ("Laplacian, Hutchinson", "CartPole-v1"),
    ),
    "a Laplacian without the activation's curvature": Fault(
        "networks:laplacian",
        "second * jnp.sum(jnp.square(slope), axis=0) + first * total",
        "first * total + 0.0 * second",
        test_networks.test_the_laplacian_is_the_trace_of_the_hessian,
        ("silu", (16,)),
    ),
    "epsilon inside Adam's root": Fault(
        "networks:adam_step",
        "optimiser.update(gradients, optimizer)",
        "optax.scale_by_adam(b1=0.9, b2=0.999, eps=0.0, eps_root=1e-8).update(gradients, optimizer)",
        test_networks.test_a_thousand_steps_of_adam_end_where_torchs_do,
    ),
    "held-out rows trained on": Fault(
        "model.fitting:_descend", "batch + batch // (data.stride - 1)", "batch", fit, ("all members",)
    ),
    "elites by training loss": Fault(
        "model.fitting:fit", "log.holdout_mse[-1] if", "log.loss[-1] if", fit, ("elites without early stopping",)
    ),
    "the worst members for elites": Fault(
        "model.fitting:_elites", "jnp.argsort(holdout_mse)", "jnp.argsort(-holdout_mse)", fit, ("elites without early stopping",)
    ),
    "early stopping that keeps the last parameters": Fault(
        "model.fitting:fit", "= now if patience is None else best", "= now", fit, ("early stopping, elites, resamples",)
    ),
    "a refit that begins its optimiser anew": Fault(
        "model.fitting:refit",
        "start = (state.params, state.bounds, state.optimizer)",
        "start = (state.params, state.bounds, ADAM.init((state.params, state.bounds)))",
        fit,
        ("all members",),
    ),
    # imagination
    "noise shared by all lanes": Fault(
        "model.sampling:step",
        "else draw.noise[...,",
        "else (draw.noise[:1] + 0.0 * draw.noise)[...,",
        lanes,
        ALL_OF_THE_PROTOCOL,
    ),
    "the cap off by one": Fault(
        "imagination.lanes:advance",
        "(lanes.depth + 1 >= config.cap)",
        "(lanes.depth >= config.cap)",
        lanes,
        ("ts1", "streaming", "schedule"),
    ),
    "a horizon off by one": Fault(
        "imagination.horizon.protocol:rows_so_far", "(view.depth + 1)", "view.depth", lanes, ("ts1", "streaming", "fixed")
    ),
    "a schedule rounded to the nearest": Fault(
        "imagination.horizon.depth:schedule", "jnp.floor(depth)", "jnp.round(depth)", lanes, ("ts1", "streaming", "schedule")
    ),
    "a stop stored as a termination": Fault(
        "imagination.lanes:advance",
        "            terminated=terminal,\n            weight",
        "            terminated=terminal | decision.stop,\n            weight",
        lanes,
        ALL_OF_THE_PROTOCOL,
    ),
    "lanes that go on after a termination": Fault(
        "imagination.lanes:advance",
        "ended = terminal | decision.stop",
        "ended = decision.stop",
        lanes,
        ("ts1", "streaming", "schedule"),
    ),
    "a penalty that is added": Fault(
        "imagination.lanes:advance",
        "reward - decision.penalty",
        "reward + decision.penalty",
        lanes,
        ALL_OF_THE_PROTOCOL,
    ),
    "idle lanes whose rows are kept": Fault(
        "imagination.lanes:advance", "decision.keep & active", "decision.keep", lanes, ("ts1", "per_step", "all of the protocol")
    ),
    "roots taken from next observations": Fault(
        "model.worlds:world_of",
        "sample(data, bits).observation",
        "sample(data, bits).next_observation",
        lanes,
        ALL_OF_THE_PROTOCOL,
    ),
    "predictions handed to other lanes": Fault(
        "model.sampling:_predict", "leaf[place], prediction", "leaf[draw.deal], prediction", lanes, ("ts1", "streaming", "fixed")
    ),
    "a deviation for the mean of lane depths": Fault(
        "imagination.lanes:log_of", "(depth + 1).astype", "depth.astype", lanes, ALL_OF_THE_PROTOCOL
    ),
    "a halt that is only a stop": Fault(
        "imagination.lanes:advance",
        "terminal, reward = terminal | decision.halt,",
        "terminal, reward = terminal,",
        lanes,
        streaming("threshold, max_pairwise, halt"),
    ),
    "a histogram of depths off by one": Fault(
        "imagination.lanes:log_of", "depth[None] > edges", "depth[None] >= edges", lanes, ALL_OF_THE_PROTOCOL
    ),
    "a sample that is not corrected": Fault(
        "model.sampling:_fused",
        "fusion.gain[..., :size] * (sample",
        "1.0 * (sample",
        lanes,
        ("infoprop", "streaming", "infoprop"),
    ),
    "the fusion of means without their precision": Fault(
        "model.fusion:fuse",
        "together * jnp.mean(apart / each, axis=0)",
        "jnp.mean(apart, axis=0)",
        test_disagreement.test_what_members_know_together_and_lose_is_the_references,
    ),
    "a forgotten one quarter in the divergence": Fault(
        "imagination.disagreement:gjs",
        "(4 * (each[e] + each[f]))",
        "(each[e] + each[f])",
        test_disagreement.test_a_measure_is_the_references,
        ("gjs",),
    ),
    "the drawn member among the rest": Fault(
        "imagination.disagreement:one_vs_rest",
        "other = (1 - drawn) / (count - 1)",
        "other = jnp.ones_like(drawn) / count",
        test_disagreement.test_a_measure_is_the_references,
        ("one_vs_rest",),
    ),
    "deviations of ddof 1": Fault(
        "imagination.disagreement:std",
        "axis=0), axis",
        "axis=0, ddof=1), axis",
        test_disagreement.test_a_measure_is_the_references,
        ("std",),
    ),
    "a quantile of rows that hold no data": Fault(
        "imagination.disagreement:quantile_of_valid",
        "jnp.sum(valid, dtype=jnp.int32) - 1",
        "jnp.int32(values.shape[0] - 1)",
        lanes,
        streaming("threshold_quantile"),
    ),
    "a threshold passed at the other side": Fault(
        "imagination.horizon.threshold:threshold", "view.member) > mark", "view.member) < mark", lanes, streaming("threshold")
    ),
    "a budget that is never whole again": Fault(
        "imagination.horizon.protocol:since_root", "jnp.where(begins, 0.0, used)", "used", lanes, streaming("accumulated")
    ),
    "the row beyond MACURA's mark kept": Fault(
        "imagination.horizon.macura:macura", "keep=~beyond", "keep=beyond | ~beyond", lanes, streaming("macura")
    ),
    "MACURA's roots taken at any depth": Fault(
        "imagination.horizon.macura:macura", "view.active & (view.depth == 0)", "view.active", lanes, streaming("macura")
    ),
    "MACURA's mark without memory": Fault(
        "imagination.horizon.macura:macura", "/ jnp.minimum(updates, memory)", "/ 1.0", lanes, streaming("macura")
    ),
    "M2AC's lanes ranked across depths": Fault(
        "imagination.horizon.m2ac:m2ac",
        "view.active[None] & (view.depth[None] == view.depth[:, None])",
        "view.active[None] & view.active[:, None]",
        lanes,
        streaming("m2ac"),
    ),
    "M2AC's most uncertain rows kept": Fault(
        "imagination.horizon.m2ac:m2ac",
        "ahead = divergence[None] < divergence[:, None]",
        "ahead = divergence[None] > divergence[:, None]",
        lanes,
        streaming("m2ac"),
    ),
    "one horizon that moves at every imagined step": Fault(
        "imagination.horizon.three_model:three_model",
        "begins = view.time != state.time",
        "begins = view.time == view.time",
        lanes,
        streaming("three_model"),
    ),
    "Infoprop's losses that do not add up": Fault(
        "imagination.horizon.infoprop:infoprop",
        "lost = since_root(view, state.lost, loss)",
        "lost = loss",
        lanes,
        streaming("infoprop"),
    ),
    "the oracle in real units": Fault("imagination.horizon.oracle:oracle", "/ scale[None]", "", lanes, streaming("oracle")),
    "a penalty by the least deviation": Fault(
        "imagination.disagreement:max_aleatoric",
        "jnp.max(jnp.sum",
        "jnp.min(jnp.sum",
        lanes,
        streaming("threshold, max_pairwise, mopo"),
    ),
    # the learner
    "STEVE's horizons weighed by variance": Fault(
        "agents.outcomes:expanded_targets",
        "weight = 1 / (variance + STEVE_FLOOR)",
        "weight = variance + STEVE_FLOOR",
        q_targets,
        ("steve", "known"),
    ),
    "STEVE's rollouts discounted once": Fault(
        "agents.outcomes:expanded_targets",
        "factor = factor * discount",
        "factor = factor",
        q_targets,
        ("steve", "known"),
    ),
    "STEVE's rewards after a termination": Fault(
        "agents.outcomes:expanded_targets",
        "rewards + factor * alive * step.reward",
        "rewards + factor * step.reward",
        q_targets,
        ("steve", "learned"),
    ),
    "the target from the online network": Fault(
        "agents.q_learning:QLearner.targets",
        "value = self.values(state.target, batch",
        "value = self.values(state.online, batch",
        q_targets,
        ("max", "known"),
    ),
    "the best action by the target network": Fault(
        "agents.q_learning:QLearner.targets",
        "largest(self.values(state.online,",
        "largest(self.values(state.target,",
        q_targets,
        ("double", "known"),
    ),
    "a value that goes on after termination": Fault(
        "agents.q_learning:QLearner.targets",
        "discount * (1 - batch.terminated.astype(best.dtype)) * best",
        "discount * best",
        q_targets,
        ("max", "known"),
    ),
    "a deviation of ddof 1 in the conservative target": Fault(
        "agents.q_learning:QLearner.targets",
        "jnp.std(each, axis=0)",
        "jnp.std(each, axis=0, ddof=1)",
        q_targets,
        ("mean - beta std", "known"),
    ),
    "the other quantile": Fault(
        "agents.q_learning:QLearner.targets",
        "jnp.quantile(each, self.config.target_quantile,",
        "jnp.quantile(each, 1 - self.config.target_quantile,",
        q_targets,
        ("quantile", "known"),
    ),
    "a keep weight ignored": Fault(
        "agents.q_learning:QLearner.loss",
        "jnp.sum(weight * jnp.mean(each, axis=0))",
        "jnp.mean(each)",
        q_loss,
        ("squared", "CartPole-v1"),
    ),
    "a Huber loss without its half": Fault(
        "agents.q_learning:QLearner.loss",
        "delta * (size - 0.5 * delta)",
        "delta * (size - delta)",
        q_loss,
        ("huber", "CartPole-v1"),
    ),
    "tau and 1 - tau swapped": Fault(
        "agents.q_learning:QLearner.update",
        "t + self.config.target_rate * (p - t)",
        "p + self.config.target_rate * (t - p)",
        q_updates,
        (0.0,),
    ),
    "a learning rate that does not decay": Fault(
        "agents.q_learning:QLearner.update", " * (1 - self.config.learning_rate_decay * progress)", "", q_updates, (0.9,)
    ),
    "an update that freezes nothing": Fault(
        "agents.q_learning:QLearner.update",
        "jnp.where(frozen, old, new)",
        "new",
        test_q_learning.test_a_learner_that_meets_infinity_is_frozen_where_the_reference_is,
    ),
    # evaluation and whole runs
    "returns that count steps after the end": Fault(
        "evaluation:play_imagined",
        "jnp.where(running, jnp.where(sound, returns + imagined.reward, -jnp.inf), returns)",
        "returns + imagined.reward",
        test_evaluation.test_imagined_episodes_score_a_policy_alike,
        (GAUSSIAN,),
    ),
    "a world that is not finite in which every episode lasts": Fault(
        "evaluation:play_imagined",
        "jnp.where(sound, returns + imagined.reward, -jnp.inf)",
        "returns + imagined.reward",
        test_evaluation.test_a_world_that_is_not_finite_scores_minus_infinity_on_both_sides,
        (np.nan,),
    ),
    "imagined episodes that begin anywhere": Fault(
        "replay:make_replay",
        "(rows.depth == 0)",
        "(rows.depth >= 0)",
        test_evaluation.test_first_observations_are_drawn_from_the_same_episodes,
    ),
    "greedy actions that are the worst": Fault(
        "agents.q_learning:QLearner.greedy",
        "largest(self.values",
        "largest(-self.values",
        test_evaluation.test_greedy_real_episodes_earn_the_same_returns,
    ),
    "exploration that grows": Fault(
        "algorithms.training:exploration_rate", "config.start + progress", "config.end - progress", short_run_without_a_model
    ),
    "the worst snapshot chosen": Fault(
        "algorithms.selection:choose",
        "challenger.score > score",
        "challenger.score < score",
        short_run,
        ("batch",),
    ),
    "an incumbent judged by a world that is gone": Fault(
        "algorithms.selection:choose", "score_of(incumbent.params)", "incumbent.score", short_run, ("interactive",)
    ),
    "real rows in place of imagined ones": Fault(
        "algorithms.dyna_q:make_train",
        "imagined_replay.sample(imagined, drawn[0])",
        "real_replay.sample(real, drawn[0])",
        short_run,
        ("batch",),
    ),
    "a clock that stands still": Fault(
        "algorithms.dyna_q:make_train", "return Loop(time + 1, episode", "return Loop(time + 0, episode", short_run, ("batch",)
    ),
    # statistics
    "an interquartile mean that cuts a fifth": Fault(
        "statistics:interquartile_mean",
        "n // 4",
        "n // 5",
        test_statistics.test_the_interquartile_mean_is_scipys_trimmed_mean,
        (64,),
    ),
    "an interval of 90 %": Fault(
        "statistics:bootstrap",
        "[0.025, 0.975]",
        "[0.05, 0.95]",
        test_statistics.test_bootstrap_intervals_are_the_percentiles_of_resampled_figures,
        (64,),
    ),
    "shares strictly above the mark": Fault(
        "statistics:fraction_at_least",
        "scores >= mark",
        "scores > mark",
        test_statistics.test_shares_count_scores_at_the_mark_itself,
    ),
}


def tried(fault: Fault, rng: np.random.Generator) -> None:
    """The fault's test, on several inputs."""
    for _ in range(INPUTS):
        fault.test(rng, Agreement("fault"), *fault.arguments)


@pytest.mark.parametrize("name", FAULTS)
def test_the_suite_fails_for_every_planted_fault(rng: np.random.Generator, name: str) -> None:
    fault = FAULTS[name]
    with planted(fault.where, fault.old, fault.new), pytest.raises(AssertionError) as caught:
        tried(fault, rng)
    assert caught.traceback[-1].path.parent == Path(__file__).parent, "the code failed by itself, before it was compared"


@pytest.mark.parametrize("protocol", ["batch", "interactive"])
def test_short_runs_agree_while_no_fault_is_planted(rng: np.random.Generator, agree: Agreement, protocol: str) -> None:
    short_run(rng, agree, protocol)


def test_a_fault_that_changes_nothing_is_no_fault() -> None:
    with pytest.raises(ValueError, match="0 times"), planted("model.losses:gaussian_nll", "0.7 * (", "1.0 * ("):
        pass
