"""The documentation's examples run, its commands parse, its links lead somewhere, and what it names exists."""

import dataclasses
import importlib
import json
import re
import shlex
import string
import typing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml

import mbrl_jax
from mbrl_jax import command_line
from mbrl_jax import config as settings
from mbrl_jax.algorithms import columns
from mbrl_jax.config import presets
from mbrl_jax.config.fields import convert
from mbrl_jax.environments import make_environment
from mbrl_jax.environments import registry as environments
from mbrl_jax.environments.logged.episodes import Logged
from mbrl_jax.environments.logged.writing import write_parquet
from mbrl_jax.imagination.horizon import CONTROLLERS
from mbrl_jax.model import losses
from mbrl_jax.report import listing
from mbrl_jax.runs import runner
from mbrl_jax.serving import playing

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("docs/**/*.md"))),
)
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRESETS = presets()

# What a test makes smaller, and nothing else: the presets, all to these sizes, and on each page some numbers.
SIZES = {
    "environment": {"time_limit": 30},
    "random_transitions": 100,
    "steps": 20,
    "round_steps": 10,
    "metric_steps": 5,
    "segment_steps": 5,
    "copies": 1,
    "window_steps": 5,
    "critic_updates": 1,
    "critic_batch": 5,
    "probes": 1,
    "agent": {"hidden": [8], "batch_size": 16},
    "evaluation": {"episodes": 3, "curve_episodes": 2},
    "model": {"members": 3, "hidden": [8], "batch_size": 16, "epochs": 2, "refit_batches": 2, "laplacian": "none"},
    "imagination": {"lanes": 6, "steps": 1, "capacity": 600},
    "selection": {"episodes": 6, "steps": 20},
    "planning": {"candidates": 8, "horizon": 3, "particles": 3, "elites": 2},
}
NUMBERS = {
    "README.md": {"--seeds 24": "--seeds 4", "seeds=64": "seeds=4"},
    "docs/train.md": {"--seeds 64": "--seeds 4", "--episodes 50": "--episodes 2", "seeds=64": "seeds=4"},
    "docs/compare.md": {"--seeds 64": "--seeds 4"},
    "docs/sweep.md": {"--seeds 64": "--seeds 1", "cells, seeds=64": "cells, seeds=1", "seeds=64": "seeds=2"},
    "docs/tune.md": {"--trials 256": "--trials 4 --rungs 1 --factor 2", "--seeds 8": "--seeds 2"},
    "docs/data.md": {"--seeds 16": "--seeds 2", "--model.batch-size 64": "--model.batch-size 16"},
    "docs/controllers.md": {"seeds=64": "seeds=2"},
    "docs/environments.md": {"seeds=8": "seeds=2"},
    "docs/simulators.md": {"seeds=8": "seeds=2"},
    "docs/guests.md": {"seeds=8": "seeds=2"},
    "docs/policy_gradient.md": {"seeds=8": "seeds=2"},
    "docs/planning.md": {"seeds=8": "seeds=2"},
    "docs/dmo.md": {"seeds=4": "seeds=2"},
    "docs/engine.md": {"seeds=2": "seeds=4"},
    "docs/serving.md": {},
}
# The commands that are run where the page has them; all others are parsed only.
RUN = {
    "README.md": ["compare --protocol batch --seeds 24 --out runs/first"],
    "docs/train.md": ["train cartpole_batch --seeds 64 --out runs/first", "runs runs"],
    "docs/compare.md": ["compare --protocol batch --seeds 64 --out runs/both"],
    "docs/sweep.md": [
        "sweep cartpole_batch_model_free --grid agent.learning_rate=3e-4,1e-3 --grid 'agent.hidden=[64,64],[32]' --seeds 64 "
        "--out runs/grid --agent.target max"
    ],
    "docs/tune.md": ["tune cartpole_batch_model_free --space space.yaml --trials 256 --seeds 8 --out runs/search"],
}
DATA = "docs/data.md"
RUN[DATA] = [
    "data collect CartPole-v1 --transitions 1000 --out log.parquet",
    "data check log.parquet",
    "train cartpole_pg --data log.parquet --environment.name none --model.batch-size 64 --seeds 16 --out runs/from_log",
    "train cartpole_interactive_model_free --seeds 4 --record-transitions on --out runs/recorded",
    "data check runs/recorded/transitions.parquet",
]
# What stands for something in a command.
PLACEHOLDERS = {
    "compare … --resume": "compare --protocol batch --seeds 2 --out new --resume",
    "[--grid …]": "--grid agent.discount=0.9",
    "RUN [RUN …]": "one two",
    "OUT SHARD [SHARD …]": "new one two",
    "DIR/config.yaml": "smoke",
    "CONFIG": "smoke",
    "PATH=V1,V2": "agent.learning_rate=1e-3,1e-2",
    "PROJECT": "a-project",
    "FILE.html": "new.html",
    "check FILE [FILE …]": "check log.parquet",
    "check FILE": "check log.parquet",
    "collect ENV": "collect CartPole-v1",
    "FILE.parquet": "new.parquet",
    "--space FILE": "--space space.yaml",
    "BASE": "7",
    "DIR": "new",
    r"batch\|interactive": "interactive",
    " N ": " 2 ",
}


class Block(NamedTuple):
    kind: str  # the fence's language
    text: str


def blocks(page):
    return [Block(*found) for found in FENCE.findall(TEXTS[page])]


def inline(page):
    """What stands between single backticks."""
    return re.findall(r"`([^`]+)`", FENCE.sub("", TEXTS[page]))


def commands_of(shell):
    """The words after ``mbrl-jax`` in every command of a piece of shell."""
    found = []
    for line in shell.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(re.sub(r"\$\w+", "1", line), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        ends = [i for i, word in enumerate(words) if set(word) <= set(";&|")] + [len(words)]
        found += [words[i + 1 : next(end for end in ends if end > i)] for i, word in enumerate(words) if word == "mbrl-jax"]
    return found


def commands(page):
    shell = [words for block in blocks(page) if block.kind == "sh" for words in commands_of(block.text)]
    named = []
    for code in inline(page):
        if code.startswith("mbrl-jax "):
            for placeholder, meaning in PLACEHOLDERS.items():
                code = code.replace(placeholder, meaning)
            named += commands_of(code)
    return shell + named


def shrunk(preset):
    """The preset at the sizes of seconds; its algorithm, protocol, choices and traced numbers stay."""
    content = settings.to_dict(settings.load(PRESETS[preset]))
    for name, value in SIZES.items():
        if name in content and isinstance(value, dict):
            content[name] |= {inner: number for inner, number in value.items() if inner in content[name]}
        elif content.get(name):  # what there is none of stays so
            content[name] = value
    return settings.from_dict(content)


@pytest.fixture(scope="module")
def small_configs(tmp_path_factory):
    """``configs/`` with every preset under its own name, smaller."""
    folder = tmp_path_factory.mktemp("small") / "configs"
    for name, path in PRESETS.items():
        small = folder / path.relative_to(PRESETS["smoke"].parent)
        small.parent.mkdir(parents=True, exist_ok=True)
        settings.save(shrunk(name), small)
    return folder


def write_files(folder):
    """Write the YAML files that pages show with their name."""
    for page in PAGES:
        for block in blocks(page):
            if block.kind == "yaml" and (named := re.match(r"# (\S+\.yaml)\n", block.text)):
                (folder / named[1]).write_text(block.text, encoding="utf-8")


def write_log(path):
    """Write logged transitions of CartPole's shapes, for commands that are parsed only."""
    generator, ended = np.random.default_rng(0), np.arange(400) % 20 == 19
    walk = np.cumsum(generator.normal(0, 1e-3, (401, 4)), axis=0).astype(np.float32)
    after = np.where(ended[:, None], np.float32([3, 0, 0, 0]), walk[1:])  # off the track
    columns = (walk[:-1], generator.integers(0, 2, 400), np.ones(400), after, ended, ~ended & False)
    spec = make_environment(settings.EnvironmentConfig()).spec
    write_parquet(path, [Logged(*columns, np.arange(400) % 20, np.zeros(400, bool))], spec)


@pytest.fixture
def small(small_configs, tmp_path, monkeypatch):
    """A working directory where the presets are small, and a command line that knows those; what is registered is forgotten."""
    (tmp_path / "configs").symlink_to(small_configs)
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    known = importlib.import_module("mbrl_jax.config.presets")  # the package's own name is the function
    monkeypatch.setattr(known, "presets", lambda: {path.stem: path for path in small_configs.rglob("*.yaml")})
    assert settings.read_preset("cartpole_batch").steps == SIZES["steps"]
    kinds = (settings.AGENTS, settings.MODELS, settings.CONTROLLERS)
    registries = [CONTROLLERS, losses.LOSSES, environments._REGISTERED, *(each.classes() for each in kinds)]
    before = [dict(each) for each in registries]
    yield tmp_path
    for registry, names in zip(registries, before, strict=True):
        registry.clear()
        registry.update(names)


def with_smaller_numbers(page, text):
    for old, new in NUMBERS.get(page, {}).items():
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.kind == "python" for block in blocks(page))])
def test_the_examples_of_a_page_run_from_top_to_bottom(page, small, capsys):
    runnable = "\n".join(block.text for block in blocks(page) if block.kind in ("python", "sh"))
    assert all(old in runnable + " ".join(inline(page)) for old in NUMBERS[page]), "a number that the test makes smaller has gone"
    namespace, run = {"__name__": page}, []
    for block in blocks(page):
        if block.kind == "python":
            exec(compile(with_smaller_numbers(page, block.text), page, "exec"), namespace)
        for words in commands_of(block.text) if block.kind == "sh" else ():
            if shlex.join(words) in RUN.get(page, []):
                command_line.main(shlex.split(with_smaller_numbers(page, shlex.join(words))))
                run.append(shlex.join(words))
    assert run == RUN.get(page, [])
    if page == "docs/train.md":
        check_the_folder_is_what_the_page_says(small / "runs" / "first")
        command_line.main(["evaluate", "runs/first", "--episodes", "2", "--env", "gymnasium"])
        assert "of gymnasium, 2 episodes a policy" in capsys.readouterr().out
    if page == "docs/guests.md":
        blind = make_environment(settings.EnvironmentConfig())._replace(reward=None)
        with pytest.raises(settings.ConfigError, match="does not fit 'CartPole-v1'; it learns neither reward nor termination"):
            namespace["least_squares"](namespace["LeastSquaresConfig"](), blind, None, None)
    if page == "docs/sweep.md":
        assert len(list((small / "runs" / "grid").glob("[0-3]/policies.npz"))) == 4


def check_the_folder_is_what_the_page_says(folder):
    rows = re.findall(r"^\| (`[^|]*`) \|", section("docs/train.md", "The folder"), re.MULTILINE)
    named = {name for row in rows for name in re.findall("`([^`]+)`", row)}
    there = {path.name for path in folder.iterdir()}
    assert there == named - {"checkpoints/", "held_out.npz", "transitions.parquet", "diagnosis.npz", "imagination.png"}


class Reached(BaseException):
    """A command has understood its words and would begin to work."""


@pytest.fixture
def only_parsed(tmp_path, monkeypatch):
    """Where commands stop once they know what to do, with the presets as they are and the files that the pages write."""
    from mbrl_jax import reference_run, report
    from mbrl_jax.command_line import data as data_command
    from mbrl_jax.runs import launch, shards
    from mbrl_jax.serving.export import command as export_command
    from mbrl_jax.serving.server import command as serve_command
    from mbrl_jax.tuning import search

    def work(*_, **__):
        raise Reached

    (tmp_path / "configs").mkdir()
    for path in PRESETS.values():
        (tmp_path / "configs" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "runs" / "search").mkdir(parents=True)
    (tmp_path / "runs" / "search" / "best.yaml").write_bytes(PRESETS["smoke"].read_bytes())
    write_files(tmp_path)
    write_log(tmp_path / "log.parquet")
    monkeypatch.chdir(tmp_path)
    for module, name in (
        (runner, "prepare"),  # train, compare
        (runner, "run_all"),  # sweep
        (launch, "engine"),
        (shards, "command"),  # join
        (listing, "find"),
        (report, "write"),
        (playing, "load_policies"),  # evaluate
        (reference_run, "run"),
        (search, "search"),
        (data_command, "Audit"),
        (data_command, "check_whole"),  # collect
        (export_command, "export"),
        (serve_command, "serve"),
    ):
        monkeypatch.setattr(module, name, work)


def all_commands():
    found = dict.fromkeys(shlex.join(words) for page in PAGES for words in commands(page))
    return [pytest.param(each, id=each) for each in found]


@pytest.mark.parametrize("command", all_commands())
def test_a_command_of_the_documentation_is_one(command, only_parsed, capsys):
    words = shlex.split(command)
    for path in (Path(word) for word in words if word.endswith("/transitions.parquet")):  # of an earlier run
        path.parent.mkdir(parents=True)
        write_log(path)
    if len(words) == 1:
        assert f"\n  {words[0]} " in command_line.USAGE
    elif "--help" in words:
        with pytest.raises(SystemExit) as stopped:
            command_line.main(words)
        assert stopped.value.code == 0
    else:
        with pytest.raises(Reached):
            command_line.main(words)


def test_the_documentation_has_every_command():
    told = {words[0] for page in PAGES for words in commands(page)}
    assert told == set(re.findall(r"^  (\w+) ", command_line.USAGE, re.MULTILINE))


def test_a_command_with_a_flag_that_there_is_not_would_be_found(only_parsed):
    with pytest.raises(SystemExit):
        command_line.main(["train", "smoke", "--seeds", "1", "--out", "new", "--no-such-flag", "1"])


def test_every_flag_that_the_documentation_names_is_one(capsys):
    asked = [
        [*words.split(), "--help"]
        for words in ("train smoke", "train cartpole_pg", "sweep smoke", "tune smoke", "compare", "evaluate")
    ]
    asked += [["data", "check", "--help"], ["data", "collect", "--help"]]
    asked += [
        ["export", "--help"],
        ["serve", "--help"],
        ["report", "--help"],
        ["join", "--help"],
        ["reference", "smoke", "--help"],
    ]
    for words in asked:
        with pytest.raises(SystemExit):
            command_line.main(words)
    known = set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out))
    ours = [code for page in PAGES for code in inline(page) if not code.startswith(("mkdocs ", "python ", "ruff "))]
    named = {flag for code in ours for flag in re.findall(r"(?<!\S)--[a-z][\w.-]*", code)}
    numbers = "--imagination.controller."  # of the preset's own controller
    assert {flag for flag in named if not flag.startswith(numbers)} <= known
    assert {"--resume-from", "--diagnose", "--tensorboard"} <= named


# ------------------------------------------------------------------------------------------------------------------- links


def slugs(text):
    """The anchors of a page's headings."""
    kept = set(string.ascii_lowercase + string.digits + "-_ ")
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {"".join(letter for letter in heading.lower() if letter in kept).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", TEXTS[page]))
    assert links
    for link in links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.resolve().exists(), link
        if anchor:
            assert anchor in slugs(target.read_text(encoding="utf-8")), link


def test_the_index_leads_to_every_guide():
    for page in PAGES:
        if page.startswith("docs/") and page != "docs/README.md":
            assert f"]({page.removeprefix('docs/')})" in TEXTS["docs/README.md"], page


def test_the_figures_of_the_gpu_are_those_on_file():
    content = json.loads((ROOT / "benchmarks/results/speed/throughput_h100.json").read_text(encoding="utf-8"))
    points = {(p["preset"], p["precision"], p["seeds"]): p for p in content["points"]}
    batch = {seeds: p for (name, precision, seeds), p in points.items() if (name, precision) == ("cartpole_batch", "default")}
    told = re.findall(r"^\| ([\d,]+) \| ([\d.]+) \| ([\d,]+) \| ([\d.]+) million \|$", TEXTS["README.md"], re.MULTILINE)
    assert [int(seeds.replace(",", "")) for seeds, *_ in told] == [1, 64, 256, 1024]
    for seeds, seconds, steps, imagined in told:
        point = batch[int(seeds.replace(",", ""))]
        assert f"{point['recipe_seconds']:.1f}" == seconds
        assert f"{point['recipe_steps_per_second']:,.0f}" == steps
        assert float(imagined) == pytest.approx(point["imagined_transitions_per_second"] / 1e6, rel=0.02)
    cells = r"^\| ([\d,]+)(, `highest`[^|]*)? \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d,]+) \|"
    rows = re.findall(cells, TEXTS["docs/results/speed.md"], re.MULTILINE)
    assert len(rows) == len(batch) + 1
    for seeds, highest, seconds, fit, milliseconds, steps in rows:
        point = points["cartpole_batch", "highest" if highest else "default", int(seeds.replace(",", ""))]
        assert float(seconds) == pytest.approx(point["recipe_seconds"], rel=5e-3)
        assert float(fit) == pytest.approx(point["steady"]["fit"]["median"], abs=5e-3)
        assert float(milliseconds) == pytest.approx(1e3 * point["steady"]["round"]["median"], abs=0.06)
        assert f"{point['recipe_steps_per_second']:,.0f}" == steps


# ------------------------------------------------------------------------------------------------------- what pages name


def section(page, heading):
    return re.search(rf"^#+ {heading}\n(.*?)(?=^#+ |\Z)", TEXTS[page], re.MULTILINE | re.DOTALL)[1]


def test_the_same_numbers_are_promised_only_to_rounding():
    """Another number of seeds is another program: bits are promised of a run that is repeated or resumed, and of no other."""
    promises = [
        piece
        for text in TEXTS.values()
        for piece in re.split(r"\n\n|\n(?=[*|])", FENCE.sub("", text))
        if re.search(r"\bsame (random )?numbers\b|\bsame training\b", piece)
    ]
    assert promises
    for piece in promises:
        assert "rounding" in piece or "same random numbers" in piece, piece
    told = section("docs/train.md", "What is the same")
    assert re.search(r"\*\*the same bits\*\*.*\*\*the same to rounding\*\*", told, re.DOTALL)


def test_every_preset_that_the_documentation_names_is_shipped():
    named = {code for page in PAGES for code in inline(page) if re.fullmatch(r"(cartpole|horizon)_\w+", code)}
    assert {"cartpole_batch", "cartpole_interactive", "cartpole_best"} <= named <= set(PRESETS)
    in_files = {each for text in TEXTS.values() for each in re.findall(r"configs/(?:horizons/)?(\w+)\.yaml", text)} - {"mine"}
    assert in_files <= set(PRESETS)


def test_every_horizon_controller_is_in_the_documentation_and_the_other_way_round():
    table = re.search(r"^\| shipped \|.*?(?=^\n)", TEXTS["docs/controllers.md"], re.MULTILINE | re.DOTALL)[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall("`(.*?)`", row.split("|")[1])}
    assert named == {name for name, function in CONTROLLERS.items() if function.__module__.startswith("mbrl_jax.")}


def hint_of(path):
    """The type of the setting at a dotted path, in whichever kind of its group has it; raises KeyError where there is none."""
    classes, hint, kinds = [settings.DynaQConfig], None, None
    for name in path.split("."):
        if name == "kind" and kinds is not None:
            return str
        cls = next((each for each in classes if name in {field.name for field in dataclasses.fields(each)}), None)
        if cls is None:
            raise KeyError(path)
        hint = typing.get_type_hints(cls)[name]
        kinds = next(field for field in dataclasses.fields(cls) if field.name == name).metadata.get("kinds")
        classes = [hint] if kinds is None else list(kinds.classes().values())
    return hint


def test_every_setting_that_the_documentation_names_exists_and_may_have_the_value():
    groups = "environment|agent|exploration|evaluation|model|imagination|selection"
    found = [re.fullmatch(rf"((?:{groups})\.[a-z_.]+)(?:: (\S+))?", code) for page in PAGES for code in inline(page)]
    named = [each.groups() for each in found if each and each[1] not in columns.COLUMNS]
    named = [(path, value) for path, value in named if not path.endswith((".npz", ".png", ".py"))]
    assert len(named) > 15
    for path, value in named:
        hint = hint_of(path)
        if value is not None:
            convert(yaml.safe_load(value), hint, path)


def test_every_choice_that_a_table_names_exists():
    table = re.findall(r"^\| `needs_.*$", section("docs/controllers.md", "What it asks for"), re.MULTILINE)
    named = {code for row in table for code in re.findall(r"`(\w+)`", row) if not code.startswith("needs_")}
    assert named - {"dynamics"} == set(typing.get_args(hint_of("imagination.sampling")))


def test_the_columns_of_the_table_are_those_that_the_file_has_with_their_units_and_meanings():
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]*) \| ([^|]*) \|$", section("docs/train.md", "Read it back"), re.MULTILINE)
    assert {name: columns.Column(unit, told) for name, unit, told in rows} == columns.COLUMNS


def test_what_a_controller_answers_and_asks_for_is_told():
    rows = {
        heading: re.findall(r"^\| `(\w+)` \|", section("docs/controllers.md", heading), re.MULTILINE)
        for heading in ("The protocol", "What it asks for")
    }
    assert tuple(rows["The protocol"]) == mbrl_jax.Decision._fields
    assert rows["What it asks for"] == [name for name in mbrl_jax.HorizonController._fields if name.startswith("needs_")]


def test_the_parts_of_an_environment_are_told():
    told = section("docs/environments.md", "What each part must satisfy")
    for name in mbrl_jax.Environment._fields:
        assert re.search(rf"`{name}\b", told), name


def test_the_messages_that_the_documentation_explains_are_those_of_the_program():
    source = "".join(path.read_text(encoding="utf-8") for path in Path(mbrl_jax.__file__).parent.rglob("runs/*.py"))
    rows = re.findall(r"^\| (`.*?`) \| ", section("docs/resume.md", "What is refused"), re.MULTILINE)
    messages = [message for row in rows for message in re.findall("`([^`]+)`", row)]
    assert len(messages) >= 10
    for message in messages:
        fragments = (part.strip(" ;,:") for part in re.split(r"…|\d+|\[.*?\]", message))
        assert max(fragments, key=len) in source, message
