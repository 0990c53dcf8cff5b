"""The report: what it measures, what it refuses, what is on the page, and that a browser shows, plays and prints it."""

import html
import http.server
import importlib.resources
import json
import math
import queue
import re
import shutil
import subprocess
import threading
from dataclasses import fields, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mbrl_jax import report
from mbrl_jax.agents.protocol import without_memory
from mbrl_jax.agents.q_learning import make_q_learner
from mbrl_jax.algorithms.training import seed_keys
from mbrl_jax.config import ConfigError, EnvironmentConfig, ModelFreeQConfig, flat_settings, to_dict
from mbrl_jax.environments import make_environment, view_of
from mbrl_jax.model import ensemble as ens
from mbrl_jax.report import entries, measures, overview, rollouts, tasks
from mbrl_jax.report import returns as returns_section
from mbrl_jax.runs import results, runner
from mbrl_jax.runs.run import Backend

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LONG = "interactive_with_a_name_as_long_as_those_that_sweeps_give_to_folders"
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="there is no Chromium here; on Debian `apt-get install chromium` brings one"
)


@pytest.fixture(scope="module")
def runs(tiny, dyna):
    """A diagnosed batch run, one without a model, and an interactive one with deterministic members."""
    free = ModelFreeQConfig(**{field.name: getattr(tiny, field.name) for field in fields(ModelFreeQConfig)})
    blunt = replace(tiny, protocol="interactive", model=replace(tiny.model, prediction="deterministic"))
    return {
        "dyna": dyna,
        "free": runner.run(free, 3, base_seed=5),
        LONG: runner.run(blunt, 4),
    }


@pytest.fixture(scope="module")
def folders(runs, tmp_path_factory):
    return write_all(runs, tmp_path_factory.mktemp("runs"))


def write_all(runs, root):
    for name, run in runs.items():
        (root / name).mkdir()
        results.write(run, root / name)
    return [root / name for name in runs]


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    report.write(folders, out)
    assert [each.name for each in out.parent.iterdir()] == ["report.html"]
    return out


# ---------------------------------------------------------------------------------------------------------------- measures


def test_the_probability_of_improvement_counts_pairs_and_half_of_the_ties():
    generator = np.random.default_rng(0)
    for n, m in ((1, 1), (5, 7), (16, 16)):
        x, y = generator.integers(0, 6, n), generator.integers(0, 6, m)
        brute = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in x for b in y) / (n * m)
        forth, back = measures.probability_of_improvement(x, y), measures.probability_of_improvement(y, x)
        assert forth.value == pytest.approx(brute)
        assert forth.value + back.value == pytest.approx(1)
        assert forth.low <= forth.value <= forth.high
    certain = measures.probability_of_improvement([3.0, 4.0], [1.0, 2.0])
    assert certain == (1, 1, 1)


def test_its_interval_resamples_the_seeds_of_each_run_on_their_own():
    generator = np.random.default_rng(1)
    x, y = generator.normal(0.5, 1, 12), generator.normal(0, 1, 9)
    slow = []
    for _ in range(4_000):
        a, b = generator.choice(x, 12)[:, None], generator.choice(y, 9)[None]
        slow.append(np.mean(a > b) + np.mean(a == b) / 2)
    found = measures.probability_of_improvement(x, y, resamples=4_000)
    np.testing.assert_allclose([found.low, found.high], np.quantile(slow, [0.025, 0.975]), atol=0.02)
    assert found == measures.probability_of_improvement(x, y, resamples=4_000)


@pytest.mark.parametrize("bad", [[], [1.0, np.nan], [[1.0]]])
def test_scores_that_cannot_be_compared_are_refused(bad):
    with pytest.raises(ValueError, match="scores must be finite"):
        measures.probability_of_improvement([1.0], bad)


def test_the_profile_is_the_share_of_seeds_that_reach_each_mark_within_its_interval():
    returns, marks = np.array([10.0, 200.0, 200.0, 500.0]), np.array([0.0, 10.0, 10.1, 200.0, 500.0, 501.0])
    share, low, high = measures.performance_profile(returns, marks)
    np.testing.assert_allclose(share, [np.mean([r >= mark for r in returns]) for mark in marks])
    assert np.all(low <= share)
    assert np.all(share <= high)


@pytest.mark.parametrize(("returns", "seed"), [([5.0], 0), ([9.0, 1.0, 5.0], 2), ([4.0, 3.0, 2.0, 1.0], 2), ([7.0, 7.0, 7.0], 1)])
def test_the_median_seed_has_as_many_below_as_above_and_the_lower_of_two(returns, seed):
    assert measures.median_seed(returns) == seed


def test_the_place_of_the_truth_is_that_of_each_gaussian_and_of_their_mixture():
    generator = np.random.default_rng(2)
    truth, mean = generator.normal(size=(3, 5, 2)), generator.normal(size=(3, 4, 5, 2))
    deviation = generator.uniform(0.5, 2, mean.shape)
    each, mixture = measures.positions(truth, mean, deviation)
    z, whole = measures.member_scores(truth, mean, deviation), measures.mixture_scores(truth, mean, deviation)
    for s, t, d in np.ndindex(truth.shape):
        members = [stats.norm(mean[s, m, t, d], deviation[s, m, t, d]) for m in range(4)]
        np.testing.assert_allclose(each[s, :, t, d], [member.cdf(truth[s, t, d]) for member in members])
        assert mixture[s, t, d] == pytest.approx(np.mean([member.cdf(truth[s, t, d]) for member in members]))
        middle = np.mean([member.mean() for member in members])
        variance = np.mean([member.var() + member.mean() ** 2 for member in members]) - middle**2
        assert whole[s, t, d] == pytest.approx((truth[s, t, d] - middle) / math.sqrt(variance))
        assert z[s, 1, t, d] == pytest.approx((truth[s, t, d] - members[1].mean()) / members[1].std())


def test_coverage_is_the_share_of_truths_between_the_quantiles_of_each_level():
    z = np.random.default_rng(3).normal(0.3, 1.4, (2, 60))
    found = measures.coverage(stats.norm.cdf(z))
    for seed in range(2):
        for place, level in enumerate(measures.LEVELS):
            low, high = stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
            assert found[seed, place] == pytest.approx(np.mean([low <= value <= high for value in z[seed]]))


def test_a_truth_drawn_from_the_prediction_is_covered_as_promised_and_scores_one():
    generator = np.random.default_rng(4)
    mean, deviation = generator.normal(size=(1, 1, 20_000, 2)), generator.uniform(0.1, 3, (1, 1, 20_000, 2))
    truth = (mean + deviation * generator.normal(size=mean.shape))[:, 0]
    each, mixture = measures.positions(truth, mean, deviation)
    np.testing.assert_allclose(each[:, 0], mixture)
    np.testing.assert_allclose(measures.coverage(mixture)[0], measures.LEVELS, atol=0.01)
    score = measures.root_mean_square(measures.member_scores(truth, mean, deviation))
    np.testing.assert_allclose(score, np.ones((1, 2)), atol=0.02)
    np.testing.assert_allclose(measures.root_mean_square([[[3.0, 0.0], [4.0, 2.0]]]), [[math.sqrt(12.5), math.sqrt(2)]])


def test_a_member_leaves_where_an_axis_is_first_too_far_off_or_where_it_ends_too_early():
    real = np.zeros((5, 2))
    off = np.array([[0, 0], [0.1, 0], [0, -0.5], [9, 9], [0, 0]])
    assert measures.departure(real, off, (1.0, 2.0), 0.2) == 2
    assert measures.departure(real, off, (100.0, 100.0), 0.2) is None
    assert measures.departure(real, off[:2], (1.0, 2.0), 0.2) == 1
    np.testing.assert_allclose(measures.distances(real, off, (1.0, 2.0)), [0, 0.1, 0.25, 9, 0])


def test_seeds_with_a_number_that_is_not_finite_are_found_in_arrays_of_any_shape():
    a, b = np.ones((4, 2, 3)), np.ones(4)
    a[1, 0, 2], b[3] = np.nan, np.inf
    assert measures.finite_seeds(a, b).tolist() == [True, False, True, False]


# ---------------------------------------------------------------------------------------------------------------- rollouts


def test_the_episode_that_is_shown_follows_the_real_dynamics_and_each_member_its_own_mean(runs):
    run = runs["dyna"]
    config, outcome = run.config, run.result.outcome
    task = make_environment(config.environment)
    policy, members = jax.tree.map(lambda leaf: jnp.asarray(leaf[2]), (outcome.chosen, outcome.model))
    shown = rollouts.episode(config, policy, members)
    learner = make_q_learner(config.agent, task.spec)
    ensemble = ens.Ensemble(config.model, task.spec, task.reward, task.terminated)
    actions = learner.greedy(policy, jnp.asarray(shown.real))
    np.testing.assert_allclose(task.dynamics(jnp.asarray(shown.real[:-1]), actions[:-1]), shown.real[1:], atol=1e-5)
    over = np.asarray(task.terminated(None, None, jnp.asarray(shown.real[1:])))
    assert not over[:-1].any()
    assert over[-1] == shown.terminated
    assert len(shown.imagined) == config.model.members
    for number, states in enumerate(shown.imagined):
        at = jnp.asarray(states[:-1])
        action = learner.greedy(policy, at)
        said = jax.tree.map(lambda leaf, m=number: leaf[m], ens.predict_all(ensemble, members, at, action))
        told = ens.decode(ensemble, members.normaliser, said, at, action, None)
        np.testing.assert_array_equal(states[0], shown.real[0])
        np.testing.assert_allclose(told.next_observation, states[1:], atol=1e-4)
        assert not np.asarray(told.terminated)[:-1].any()


def test_what_is_calibrated_is_what_the_members_say_beside_what_followed(runs):
    run = runs["dyna"]
    config, outcome = run.config, run.result.outcome
    predicted = rollouts.calibration(config, outcome.chosen, outcome.model)
    task = make_environment(config.environment)
    assert list(predicted) == ["own policy", "random policy"]
    for each in predicted.values():
        assert each.truth.shape == (4, rollouts.CALIBRATION_STEPS, 4)
        assert each.mean.shape == each.deviation.shape == (4, config.model.members, rollouts.CALIBRATION_STEPS, 4)
    key = jax.random.split(seed_keys(rollouts.BASE_SEED, 4)[3])[0]
    learner, params = make_q_learner(config.agent, task.spec), jax.tree.map(lambda leaf: jnp.asarray(leaf[3]), outcome.chosen)
    policy = without_memory(learner.greedy)
    played = jax.jit(lambda: rollouts.play_on(task, policy, params, key, rollouts.CALIBRATION_STEPS))()
    members = jax.tree.map(lambda leaf: jnp.asarray(leaf[3]), outcome.model)
    shift, scale = np.asarray(members.normaliser.target_mean), np.asarray(members.normaliser.target_std)
    change = np.asarray(played.next_observation - played.observation) / scale
    np.testing.assert_allclose(predicted["own policy"].truth[3], change, atol=1e-3)
    ensemble = ens.Ensemble(config.model, task.spec, task.reward, task.terminated)
    said = ens.predict_all(ensemble, members, played.observation, played.action)
    np.testing.assert_allclose(predicted["own policy"].mean[3], np.asarray(said.mean) + shift / scale, atol=1e-3)
    np.testing.assert_allclose(predicted["own policy"].deviation[3], jnp.exp(0.5 * said.log_variance), rtol=1e-3)


@pytest.mark.parametrize("name", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0"])
def test_a_task_is_shown_by_axes_that_it_has(name):
    spec = make_environment(EnvironmentConfig(name=name)).spec
    view = view_of(name, spec.observation_size)
    assert len(view.axes) == spec.observation_size
    states = np.random.default_rng(0).normal(size=(7, spec.observation_size))
    assert all(curve(states).shape == (7,) for curve in view.curves.values())
    script = importlib.resources.files(report).joinpath("report.js").read_text(encoding="utf-8")
    assert re.search(rf"const drawings = .*\b{view.drawing}\b", script)


def test_a_task_without_a_drawing_is_shown_by_lines():
    view = view_of("Unheard-v0", 3)
    assert (view.drawing, view.axes) == ("lines", ("axis 0", "axis 1", "axis 2"))
    assert tasks.axis_names("Unheard-v0", 2) == ("axis 0", "axis 1")


# -------------------------------------------------------------------------------------------------------- runs and settings


def test_labels_are_the_folders_names_with_as_much_of_the_path_as_tells_them_apart(tmp_path):
    assert entries.labels([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert entries.labels([tmp_path / "x" / "a", tmp_path / "y" / "a", tmp_path / "y" / "b"]) == ["x/a", "y/a", "y/b"]


def test_the_command_is_the_one_that_was_given_or_one_that_reads_the_settings_of_the_folder(folders, runs, tmp_path):
    folder = folders[1]
    expected = f"mbrl-jax train {folder}/config.yaml --seeds 3 --seed 5 --out DIR"
    assert entries.command_of(folder, runs["free"]) == expected
    assert "--diagnose" in entries.command_of(folders[0], runs["dyna"])
    by_torch = runs["free"]._replace(backend=Backend("pytorch", "cpu", "float32", ("numpy",)))
    assert entries.command_of(folder, by_torch).startswith("mbrl-jax reference ")
    (tmp_path / "run.json").write_text(json.dumps({"format": results.FORMAT, "command": "mbrl-jax train it"}), encoding="utf-8")
    assert entries.command_of(tmp_path, runs["free"]) == "mbrl-jax train it"


def test_settings_that_differ_are_those_that_runs_have_and_disagree_about(runs):
    rows, partial = overview.differing([flat_settings(run.config) for run in runs.values()])
    assert ["protocol", "batch", "batch", "interactive"] in rows
    assert ["model.prediction", "gaussian", "-", "deterministic"] in rows
    assert not any(row[0] == "steps" for row in rows)
    assert "model.members" in partial


def test_runs_are_compared_with_those_of_the_same_task_and_time_limit(folders, runs, tmp_path):
    config = replace(runs["free"].config, environment=EnvironmentConfig())
    found = [*entries.read(folders), *entries.read(write_all({"longer": runs["free"]._replace(config=config)}, tmp_path))]
    labels = {task: [entry.label for entry in group] for task, group in entries.by_task(found).items()}
    assert labels == {"CartPole-v1 (at most 30 steps)": ["dyna", "free", LONG], "CartPole-v1": ["longer"]}


def test_cartpoles_marks_are_shown_where_an_episode_can_reach_them(runs):
    def marks(**environment):
        run = runs["free"]._replace(config=replace(runs["free"].config, environment=EnvironmentConfig(**environment)))
        return overview.marks_of(entries.Entry("", Path(), run, {}, "", ""))

    assert marks() == marks(time_limit=500) == (195, 475)
    assert marks(time_limit=200) == (195,)
    assert marks(time_limit=30) == ()


def test_each_task_has_its_own_marks(runs):
    run = runs["free"]._replace(config=replace(runs["free"].config, environment=EnvironmentConfig(name="Pendulum-v1")))
    saved_before = entries.Entry("", Path(), run, {"fraction_at_least": {"195": {"last": 0.0}}}, "", "")
    assert overview.marks_of(saved_before) == (-200,)
    assert overview._share(saved_before, -200, "last") == overview._share(saved_before, 195, "last") == overview.NOTHING


def test_every_pair_of_runs_is_compared_by_what_each_hands_over_and_by_the_last_policies(folders):
    found = returns_section.compare(entries.read(folders))
    names = [(each.ours.label, each.theirs.label, each.policies) for each in found]
    assert names == [
        ("dyna", "free", "chosen against last"),
        ("dyna", "free", "last"),
        ("dyna", LONG, "chosen"),
        ("dyna", LONG, "last"),
        ("free", LONG, "last against chosen"),
        ("free", LONG, "last"),
    ]
    ours, theirs = found[0].ours.returns["chosen"], found[0].theirs.returns["last"]
    assert found[0].probability == measures.probability_of_improvement(ours, theirs)


# ---------------------------------------------------------------------------------------------------------------- refusals


def test_no_runs_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"runs: \[\] is too few; name at least one folder"):
        report.write([], tmp_path / "report.html")


def test_a_folder_without_a_finished_run_is_refused_and_runs_below_it_are_named(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"runs: .*empty.*there is no finished run"):
        report.write([folders[0], tmp_path / "empty"], tmp_path / "report.html")
    with pytest.raises(ConfigError, match=r"there is no finished run.*below it there are .*/dyna', .*/free', "):
        report.write([folders[0].parent], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_is_named_twice_is_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match=r"runs: '.*dyna' is there twice"):
        report.write([folders[0], folders[0].parent / "free" / ".." / "dyna"], tmp_path / "report.html")


def test_a_page_that_exists_is_left_as_it_is(folders, tmp_path):
    out = tmp_path / "report.html"
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"out: '.*report.html' exists already and is left as it is"):
        report.write(folders, out)
    assert out.read_text(encoding="utf-8") == "mine"


def test_a_page_in_a_folder_that_is_not_there_is_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match=r"out: '.*' lies in a folder that does not exist; make '.*nowhere'"):
        report.write(folders, tmp_path / "nowhere" / "report.html")


def test_a_page_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    from mbrl_jax.report import page

    with pytest.raises(ConfigError, match=r"out: '.*report.html' cannot be written: no space left"):
        page._place("text", tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------------- the page


def test_the_page_is_one_file_that_asks_for_nothing_from_elsewhere(page):
    text = page.read_text(encoding="utf-8")
    assert len(text) < 1_500_000
    links = re.findall(r'(?:src|href|srcset|action|data)="([^"]*)"|url\(([^)]*)\)', text)
    assert all((link or target).startswith(("#", "data:image/png;base64,")) for link, target in links)
    assert not re.findall(r"<(?:link|iframe|object|embed|img)\b|@import|fetch\(|XMLHttpRequest|import\(", text)


def test_the_same_runs_give_the_same_bytes(page, folders, tmp_path):
    report.write(folders, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_every_figure_says_what_it_is_in_words_and_has_a_number_and_a_caption_of_its_own(page):
    text = page.read_text(encoding="utf-8")
    figures = re.findall(r"<figure.*?</figure>", text, flags=re.DOTALL)
    assert len(figures) > 20
    for number, figure in enumerate(figures, start=1):
        assert re.search(r'<svg role="img" aria-label="[^"]{15,}"', figure)
        caption = re.search(rf"<figcaption><b>Figure {number}\.</b> (.*)</figcaption>", figure)
        assert caption is not None
        assert len(caption[1]) > 60
    identifiers = re.findall(r'\bid="([^"]*)"', text)
    assert len(set(identifiers)) == len(identifiers)
    wanted = {name for pair in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', text) for name in pair if name}
    assert wanted <= set(identifiers)


def test_the_page_names_what_was_run_and_how_to_repeat_it(page, folders, runs):
    text = html.unescape(page.read_text(encoding="utf-8"))
    summary = results.read_summary(folders[0])
    for told in (
        f"CartPole-v1 (at most 30 steps): dyna, free, {LONG}",
        "return of the chosen policy, IQM",
        summary["device"],
        "4 (base seed 0)",
    ):
        assert told in text
    for folder, run in zip(folders, runs.values(), strict=True):
        assert entries.command_of(folder, run) in text
        assert f"hidden:\n  - {to_dict(run.config)['agent']['hidden'][0]}" in text


def test_what_a_run_does_not_have_is_said_in_a_sentence(page):
    text = html.unescape(page.read_text(encoding="utf-8"))
    for told in (
        "free learns without a model.",
        "free imagines nothing.",
        "free has no model that could imagine the same episode.",
        "The members are deterministic: they predict a mean and no variance",
        f"How wrong the model of {LONG} is by depth was not measured",
        "In the batch protocol the model is fitted once and never again.",
    ):
        assert told in text
    assert "never of the best one" in text
    assert "was computed by the PyTorch reference" not in text


def test_seeds_that_went_wrong_are_told_loudly_and_left_out_of_what_they_would_spoil(runs, tmp_path):
    spoilt, broken = runs["dyna"], runs["free"]
    result = spoilt.result
    bad = np.array([True, False, False, False])
    score = np.where(bad[:, None], np.nan, result.metrics.score)
    update = jax.tree.map(lambda leaf: np.where(bad[:, None, None], np.inf, leaf), result.metrics.update)
    fit = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), result.fit)
    lanes = result.metrics.lanes._replace(histogram=np.full_like(result.metrics.lanes.histogram, np.nan))
    outcome = result.outcome._replace(frozen=bad, model=None)
    spoiled = result.metrics._replace(score=score, update=update, lanes=lanes)
    result = result._replace(metrics=spoiled, outcome=outcome, fit=fit)
    torch = Backend("pytorch", "1 x x86_64 thread", "float32", ("numpy",))
    spoilt = spoilt._replace(result=result, backend=torch, state_bytes_per_seed=None, diagnosis=None)
    frozen = np.ones(3, bool)
    broken = broken._replace(result=broken.result._replace(outcome=broken.result.outcome._replace(frozen=frozen)))
    out = tmp_path / "report.html"
    report.write(write_all({"a $b_c$ <d>": spoilt, "broken": broken}, tmp_path), out)
    text = out.read_text(encoding="utf-8")
    assert text.count('class="warning"') == 2
    text = html.unescape(text)
    for told in (
        "a $b_c$ <d>: the learner went non-finite on 1 of 4 seeds: 0.",
        "broken: the learner of every seed went non-finite.",
        "a $b_c$ <d> was computed by the PyTorch reference",
        "not measured",
        "Left out: 1 seed with numbers that are not finite.",
        "No seed has finite numbers of the depth of imagined transitions",
        "No seed has a finite error over the epochs of the first fit",
        "The model of a $b_c$ <d> was not saved, so its predictions cannot be checked.",
        "was not saved, so nobody can imagine the same episode.",
    ):
        assert told in text
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL).lower()


def test_a_single_run_of_a_single_seed_has_nothing_to_be_compared_with(runs, tmp_path):
    one = jax.tree.map(lambda leaf: leaf[:1], runs["free"].result)
    out = tmp_path / "report.html"
    report.write(write_all({"one": runs["free"]._replace(result=one)}, tmp_path), out)
    text = out.read_text(encoding="utf-8")
    assert "There is one run of this task, so there is nothing to compare it with." in text
    assert "Settings that differ" not in text


# ---------------------------------------------------------------------------------------------------------------- a browser

LISTEN = """<script>
const problems = [];
addEventListener("error", (event) => problems.push(String(event.message)));
for (const kind of ["error", "warn"]) console[kind] = (...words) => problems.push(words.join(" "));
</script>"""

LOOK = """<script>
addEventListener("load", async () => {
  const wait = (time) => new Promise((done) => setTimeout(done, time));
  const size = (element) => { const box = element.getBoundingClientRect(); return [box.width, box.height]; };
  const films = [...document.querySelectorAll(".animation")].map((figure) => ({
    canvas: figure.querySelector("canvas"), button: figure.querySelector("button"),
    slider: figure.querySelector("input"), output: figure.querySelector("output"),
  }));
  const told = { width: innerWidth, page: document.documentElement.scrollWidth, films: [] };
  told.figures = [...document.querySelectorAll("figure > svg, figure .stage > svg, canvas")].map(size);
  told.words = [...document.querySelectorAll("figure > svg")].map((svg) => {
    const frame = svg.getBoundingClientRect();
    return [...svg.querySelectorAll("text")].every((text) => {
      const box = text.getBoundingClientRect();
      return box.left >= frame.left - 4 && box.right <= frame.right + 4;
    });
  });
  for (const { canvas, button, slider, output } of films) {
    canvas.scrollIntoView();
    await wait(50);
    const before = [output.textContent, canvas.toDataURL(), button.textContent];
    button.click();
    await wait(400);
    const during = [output.textContent, canvas.toDataURL(), button.textContent];
    if (button.textContent === "pause") button.click();
    slider.value = slider.max;
    slider.dispatchEvent(new Event("input"));
    told.films.push({ before, during, last: output.textContent, end: slider.max });
  }
  told.problems = problems;
  parent.fetch("/", { method: "POST", body: JSON.stringify(told) });
});
</script>"""

WIDTHS = (1280, 360)


def command(folder, *flags):
    """Chromium without a window, and with a profile of its own that it gets nothing for from the network."""
    words = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    words += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--force-prefers-reduced-motion"]
    return [*words, f"--user-data-dir={folder / 'profile'}", *flags]


@pytest.fixture(scope="module")
def looked_at(page, tmp_path_factory):
    """What a script within the page saw of it, in windows of both widths, by width."""
    text = page.read_text(encoding="utf-8").replace("<head>", f"<head>{LISTEN}").replace("</body>", f"{LOOK}</body>")
    frame = '<iframe style="border:0;width:{}px;height:900px" srcdoc="{}"></iframe>'
    frames = "".join(frame.format(width, html.escape(text)) for width in WIDTHS)
    both = f'<!doctype html><meta charset="utf-8"><div style="display:flex">{frames}</div>'.encode()
    seen = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/" else 404)
            self.end_headers()
            self.wfile.write(both if self.path == "/" else b"")

        def do_POST(self):
            seen.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        words = command(tmp_path_factory.mktemp("browser"), "--window-size=1700,1000", address)
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
            try:
                found = [seen.get(timeout=60) for _ in WIDTHS]
            finally:
                browser.terminate()
        server.shutdown()
    return {told["width"]: told for told in found}


@needs_browser
@pytest.mark.parametrize("width", WIDTHS)
def test_a_browser_shows_every_figure_within_the_width_of_the_window_without_a_complaint(looked_at, page, width):
    told = looked_at[width]
    figures = page.read_text(encoding="utf-8").count("<figure")
    assert len(told["figures"]) == figures + len(told["films"])  # an animation is a canvas beside its curves
    assert all(min(size) > 100 and size[0] <= width for size in told["figures"])
    assert told["page"] <= width
    assert told["problems"] == []
    assert all(told["words"]), f"words are cut off in figures {[i + 1 for i, inside in enumerate(told['words']) if not inside]}"


@needs_browser
@pytest.mark.parametrize("width", WIDTHS)
def test_an_animation_waits_until_play_is_pressed_then_moves_and_can_be_set_to_any_step(looked_at, width):
    films = looked_at[width]["films"]
    assert len(films) == 5  # of two runs with a model two, of the other one
    for film in films:
        (step, picture, label), (later, other, _) = film["before"], film["during"]
        assert step == f"step 0 of {film['end']}"
        assert label == "play"
        assert later != step
        assert other != picture
        assert film["last"] == f"step {film['end']} of {film['end']}"


@needs_browser
def test_the_page_prints(page, tmp_path):
    flags = ("--virtual-time-budget=2000", "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'report.pdf'}")
    subprocess.run(command(tmp_path, *flags, page.as_uri()), capture_output=True, check=True, timeout=60)
    printed = (tmp_path / "report.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    sizes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", printed)
    assert len(sizes) >= 5
    assert all(abs(float(width) - 595) < 2 and abs(float(height) - 842) < 2 for width, height in sizes)
