"""The rivals that the library is measured against."""

import argparse
import dataclasses
import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

torch = pytest.importorskip("torch", reason="most rivals are written in PyTorch: pip install 'mbrl-jax[torch]'")

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks" / "rivals"))

import batched  # noqa: E402
import measure  # noqa: E402

from mbrl_jax.config import (  # noqa: E402
    ConfigError,
    DynaQConfig,
    EnvironmentConfig,
    EvaluationConfig,
    ImaginationConfig,
    ModelConfig,
    QLearningConfig,
    SelectionConfig,
)
from mbrl_jax.reference.algorithms import dyna_q as reference  # noqa: E402
from mbrl_jax.reference.draws import Draws  # noqa: E402
from mbrl_jax.reference.model.ensemble import Ensemble  # noqa: E402
from mbrl_jax.reference.networks import make_q_network  # noqa: E402

# As the tutorial's preset in all but sizes. Real episodes are cut before rounding shows; the imagined ring is filled three times.
CONFIG = DynaQConfig(
    environment=EnvironmentConfig(time_limit=50),
    random_transitions=300,
    steps=60,
    round_steps=20,
    metric_steps=20,
    model=ModelConfig(
        members=5,
        hidden=(16, 16),
        input_scale="task",
        batch_size=32,
        epochs=3,
        laplacian="auto",
        laplacian_rows=8,
        laplacian_weight=0.01,
    ),
    imagination=ImaginationConfig(lanes=10, steps=3, capacity=610),
    agent=QLearningConfig(hidden=(16, 16), batch_size=32, learning_rate=1e-2, learning_rate_decay=0.9, target="double"),
    selection=SelectionConfig(episodes=10, steps=60),
    evaluation=EvaluationConfig(episodes=6, curve_episodes=4),
)


def flat(layers: Any) -> torch.Tensor:
    """[1, P] from kernels [in, out] and biases [out]."""
    return torch.cat([leaf.reshape(-1) for layer in layers for leaf in layer])[None].detach()


def flat_q(network: Any) -> torch.Tensor:
    return flat([(layer.weight.T, layer.bias) for layer in network.layers])


def flat_ensemble(ensemble: Any) -> torch.Tensor:
    """[E, P]"""
    layers = [(w.detach(), b.detach()) for w, b in zip(ensemble.weights, ensemble.biases, strict=True)]
    return torch.cat([flat([(w[e], b[e]) for w, b in layers]) for e in range(ensemble.members)])


class StackedDraws(batched.Draws):
    """The random numbers of several of the reference's runs, each asked for in the reference's order."""

    def __init__(self, config: DynaQConfig, seeds: int) -> None:
        super().__init__(config, seeds, 0, dtype=torch.float64, device=torch.device("cpu"))
        self.each = [KeptDraws(config, seed, dtype=torch.float64) for seed in range(seeds)]

    def stack(self, ask: Any) -> torch.Tensor:
        return torch.stack([torch.as_tensor(ask(one)) for one in self.each])

    def q_networks(self, sizes: Any) -> torch.Tensor:
        return torch.cat([one.q for one in self.each])

    def ensembles(self, sizes: Any, members: int) -> torch.Tensor:
        return torch.cat([one.ensemble for one in self.each])

    def collection(self, n: int) -> Any:
        parts = [[torch.from_numpy(x) for x in one.kept["collection", (n,)]] for one in self.each]
        first, actions, resets = (torch.stack(column) for column in zip(*parts, strict=True))
        return first, actions.T, resets.transpose(0, 1)

    def epoch_order(self, epoch: int, members: int, rows: int) -> torch.Tensor:
        return self.stack(lambda one: one.kept["epoch_order", (epoch, members, rows)])

    def round(self, number: int, real_size: int, sizes: torch.Tensor) -> batched.Numbers:
        settings, first = self.config.imagination, number * len(sizes)

        def of(one: Any) -> Any:
            lanes = [[one.kept["lane_step", (first + t, h, real_size)] for h in range(settings.steps)] for t in range(len(sizes))]
            fields = [torch.stack([torch.stack([step[i] for step in steps]) for steps in lanes]) for i in range(5)]
            batch = [
                one.kept["imagined_minibatch", (first + t, 0, self.config.agent.batch_size, int(n))] for t, n in enumerate(sizes)
            ]
            return *fields, torch.stack(batch)

        columns = list(zip(*(of(one) for one in self.each), strict=True))
        return batched.Numbers(*(torch.stack(column, dim=2) for column in columns[:5]), torch.stack(columns[5], dim=1))

    def scoring(self, number: int, episodes: int, firsts: torch.Tensor) -> torch.Tensor:
        time = (number + 1) * self.config.round_steps
        return torch.stack([one.kept["scoring", (time, episodes, int(n))] for one, n in zip(self.each, firsts, strict=True)])

    def scoring_noise(self, number: int, first: int, count: int, members: int, per_member: int) -> torch.Tensor:
        time, steps = (number + 1) * self.config.round_steps, self.config.selection.steps
        drawn = self.stack(lambda one: one.kept["scoring_noise", (time, steps, members, per_member, 4)]).transpose(0, 1)
        return torch.cat([drawn, torch.zeros(count, *drawn.shape[1:], dtype=drawn.dtype)])[first : first + count]

    def curve_starts(self, number: int, n: int) -> torch.Tensor:
        return self.stack(lambda one: one.kept["curve_starts", ((number + 1) * self.config.round_steps, n)])

    def final_starts(self, n: int) -> torch.Tensor:
        return self.stack(lambda one: one.kept["final_starts", (n,)])


class KeptDraws(Draws):
    """The reference's numbers, kept as they are given out."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.kept: dict[Any, Any] = {}

    def initialise_q(self, network: Any) -> None:
        super().initialise_q(network)
        self.q = flat_q(network)

    def initialise_ensemble(self, ensemble: Any) -> None:
        super().initialise_ensemble(ensemble)
        self.ensemble = flat_ensemble(ensemble)


def _keeping(name: str) -> Any:
    def ask(self: KeptDraws, *arguments: Any) -> Any:
        self.kept[name, arguments] = getattr(Draws, name)(self, *arguments)
        return self.kept[name, arguments]

    return ask


for _name in (
    "collection",
    "epoch_order",
    "lane_step",
    "imagined_minibatch",
    "scoring",
    "scoring_noise",
    "curve_starts",
    "final_starts",
):
    setattr(KeptDraws, _name, _keeping(_name))


def close(ours: Any, theirs: Any, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(torch.as_tensor(ours).numpy(), torch.as_tensor(theirs).numpy(), rtol=tolerance, atol=tolerance)


def test_two_seeds_of_the_batched_rival_are_two_runs_of_the_reference() -> None:
    draws = StackedDraws(CONFIG, 2)
    theirs = [reference.train(CONFIG, one, dtype=torch.float64) for one in draws.each]
    ours = batched.Batched(CONFIG, draws, dtype=torch.float64).train()
    state, metrics = ours["learning"], ours["metrics"]
    imagined = state.imagined.view(2, -1, 13)
    ensembles = ours["world"].flat.view(2, 5, -1)
    task = draws.task
    for seed, run in enumerate(theirs):
        assert 1 < np.isfinite(run.collected).sum() < 300
        np.testing.assert_array_equal(ours["collected"][seed].numpy(), run.collected)
        for name in ("loss", "holdout_mse", "holdout_nll"):
            close(ours["fit"][name][:, seed], run.fit[name])
        ensemble = Ensemble(CONFIG.model, task, 5).double()
        ensemble.load_state_dict(run.networks["ensemble"])
        close(ensembles[seed], flat_ensemble(ensemble))
        for field, column in {
            "observation": slice(0, 4),
            "reward": 5,
            "next_observation": slice(6, 10),
            "terminated": 10,
            "weight": 11,
        }.items():
            close(imagined[seed][:, column], run.imagined[field])
        np.testing.assert_array_equal(imagined[seed][:, 4].numpy(), run.imagined["action"])
        np.testing.assert_array_equal(imagined[seed][:, 12].numpy(), run.imagined["depth"])
        for name, ended in {"online": state.online, "target": state.target, "chosen": ours["chosen"]}.items():
            network = make_q_network(CONFIG.agent, task, dtype=torch.float64, device=torch.device("cpu"))
            network.load_state_dict(run.networks[name])
            close(ended[seed], flat_q(network)[0], 1e-8)
        losses = metrics["loss"][:, :, seed].mean(1), metrics["scaled_loss"][:, :, seed].mean(1)
        for mine, name in zip(losses, ("loss", "scaled_loss"), strict=True):
            close(mine, run.metrics[name].mean(1), 1e-8)
        close(metrics["score"][:, seed], run.metrics["score"])
        np.testing.assert_array_equal(metrics["is_chosen"][:, seed].numpy(), run.metrics["is_chosen"])
        close(metrics["curve_return"][:, seed], run.metrics["curve_return"])
        np.testing.assert_array_equal(ours["returns_last"][seed].numpy(), run.returns_last)
        np.testing.assert_array_equal(ours["returns_chosen"][seed].numpy(), run.returns_chosen)


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("model", "elites", 3),
        ("agent", "target", "max"),
        ("imagination", "restart", "per_step"),
        (None, "protocol", "interactive"),
    ],
)
def test_the_batched_rival_refuses_what_it_does_not_compute(group: str | None, name: str, value: Any) -> None:
    own = {name: value}
    config = dataclasses.replace(
        CONFIG, **(own if group is None else {group: dataclasses.replace(getattr(CONFIG, group), **own)})
    )
    with pytest.raises(ConfigError, match=f"{name}: {value!r} is not written .* must be"):
        batched.check(config)


def runs(*rates: float) -> list[dict[str, float]]:
    return [{"recipe_steps_per_second": rate} for rate in rates]


def test_a_ratio_is_to_the_library_in_the_same_repetition_and_its_interval_holds_the_median() -> None:
    drift = [1.0, 10.0, 0.1, 3.0, 7.0]  # of the machine, which both sides feel alike
    factor = [4.0, 5.0, 6.0, 5.0, 5.0]
    ours = runs(*(100 * a * b for a, b in zip(drift, factor, strict=True)))
    told = measure.ratios(ours, runs(*(100 * a for a in drift)), "recipe_steps_per_second")
    np.testing.assert_allclose(told["each"], factor)
    assert told["value"] == pytest.approx(5.0)
    low, high = told["ci95"]
    assert 4.0 <= low <= 5.0 <= high <= 6.0
    assert low < high


def test_a_rival_that_failed_later_is_compared_over_the_repetitions_that_it_ran() -> None:
    assert measure.ratios(runs(6, 8, 100), runs(3, 2), "recipe_steps_per_second")["each"] == [2, 4]


def given(tmp_path: Path, **own: Any) -> argparse.Namespace:
    told = {"device": "cpu", "python": [], "seeds": 2, "batches": None, "steps": 10, "epochs": 1}
    return argparse.Namespace(**{**told, **own})


def test_a_rival_that_is_not_installed_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')  # no packages
    bare.chmod(0o755)
    asked = given(tmp_path, python=[("rejax", str(bare))])
    work = measure.configs(asked)
    contestants = {name: measure.Contestant(name, asked, work["model_free"]) for name in ("rejax",)}
    contestants["rejax"].measure(0)
    contestants["mbrl_jax_model_free"] = FakeContestant(work["model_free"], runs_of=[])
    content = measure.as_content(contestants, asked)
    assert content["rivals"]["rejax"]["not_installed"] == measure.INSTALL["rejax"]
    assert "rejax==0.1.3" in content["rivals"]["rejax"]["not_installed"]
    console = Console(width=200, file=io.StringIO())
    console.print(measure.as_table(content))
    assert "rejax: not installed: pip install" in console.file.getvalue()  # type: ignore[attr-defined]


class FakeContestant(measure.Contestant):
    """The library, without a process."""

    def __init__(self, config: Any, runs_of: list[Any]) -> None:
        self.rival, self.config, self.runs = measure.RIVALS["mbrl_jax_model_free"], config, runs_of
        self.told = {"says": self.rival.says, "arm": self.rival.arm, "device": "none"}


def test_what_a_rival_failed_with_is_kept(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text('#!/bin/sh\ncase "$1" in -c) exit 0;; esac\necho out of order >&2\nexit 1\n')
    broken.chmod(0o755)
    asked = given(tmp_path, python=[("sbx", str(broken))])
    one = measure.Contestant("sbx", asked, measure.configs(asked)["model_free"])
    one.measure(0)
    assert one.told["failed"] == "out of order"
    assert not one.runs


def test_every_arm_that_is_asked_for_has_the_library_in_it() -> None:
    assert measure.chosen(["sbx", "reference"]) == ["mbrl_jax", "reference", "mbrl_jax_model_free", "sbx"]
    assert measure.chosen(None) == list(measure.RIVALS)
    with pytest.raises(ConfigError, match="only: 'torch' is no rival; it must be among mbrl_jax, "):
        measure.chosen(["torch"])


def test_both_sides_are_shortened_alike_and_multiply_in_full(tmp_path: Path) -> None:
    work = measure.configs(given(tmp_path, steps=700, epochs=4))
    based, free = work["model_based"], work["model_free"]
    assert isinstance(based, DynaQConfig)
    assert (based.steps, based.model.epochs, free.steps, free.round_steps) == (700, 4, 700, 700)
    assert {based.precision, free.precision} == {"highest"}
    batched.check(based)


def test_the_library_and_a_rival_are_measured_by_their_processes(tmp_path: Path) -> None:
    asked = given(tmp_path, steps=100, epochs=1)
    config = measure.configs(asked)["model_based"]
    config = dataclasses.replace(config, random_transitions=400)
    one = measure.Contestant("reference_per_core", asked, config)
    try:
        one.measure(0)
    finally:
        one.end()
    assert "failed" not in one.told, one.told["failed"]
    (run,) = one.runs
    cores = len(os.sched_getaffinity(0))
    assert one.seeds == one.told["processes"] == cores
    assert run["loop_steps_per_second"] == pytest.approx(cores * 100 / run["seconds"]["train"])
    assert 0 < run["recipe_steps_per_second"] < run["loop_steps_per_second"]


def test_the_eager_rival_steps_the_same_cart_pole(tmp_path):
    import jax.numpy as jnp
    import mbpo

    from mbrl_jax.environments import make_environment
    from mbrl_jax.environments.control import cartpole_step

    rng = np.random.default_rng(0)
    simulator = mbpo.Simulator(rng)
    task = make_environment(EnvironmentConfig(name="control/cartpole-swingup"))
    assert task.reward is not None
    for action in (-0.9, 0.3, 1.0):
        simulator.state = np.array([0.2, 1.0, -0.5, 2.0]) + 0.1 * rng.normal(size=4)
        position, velocity, reward = jnp.asarray(simulator.state[:2]), jnp.asarray(simulator.state[2:]), 0.0
        row = simulator.step(action)
        for _ in range(4):
            position, velocity = cartpole_step(position, velocity, jnp.asarray(action))
            seen = jnp.stack([position[0], jnp.cos(position[1]), jnp.sin(position[1]), *velocity])
            reward += float(task.reward(seen, jnp.asarray([action]), seen))
        np.testing.assert_allclose(row[7:], seen, rtol=2e-3, atol=2e-3)
        assert row[6] == pytest.approx(reward, rel=2e-3)
