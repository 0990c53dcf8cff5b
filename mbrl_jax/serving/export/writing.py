"""Writes the files of an export and its contract, each file only once it has been held against the library."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from mbrl_jax import packages
from mbrl_jax.agents.protocol import Policy, without_memory
from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.config import ConfigError, DreamerConfig, algorithm_name, to_dict
from mbrl_jax.environments import Environment
from mbrl_jax.runs import results
from mbrl_jax.runs.callbacks import require
from mbrl_jax.serving.contract import FORMAT, NAME, File, Port, digest
from mbrl_jax.serving.export import agreement, onnx_files, planners, quantising, stablehlo
from mbrl_jax.serving.export.graphs import Graph, learned_units, model_graphs, policy_graph, vote_graph
from mbrl_jax.serving.export.sources import EPISODES, ROWS, Rows, Source, can_play, describe, open_source, returns_of, rows_of

Format = Literal["onnx", "stablehlo", "torchscript"]
What = Literal["policy", "model", "all"]
ENDINGS = {"onnx": ".onnx", "stablehlo": ".stablehlo", "torchscript": ".pt"}
PACKAGES = ("jax", "flax", "numpy", "jax2onnx", "onnx", "onnxruntime", "torch")


class Asked(NamedTuple):
    """What of a run is exported, and how."""

    seed: int | None = None
    best: bool = False
    ensemble: bool = False
    what: What = "all"
    formats: tuple[Format, ...] = ("onnx",)
    int8: Literal["dynamic", "static"] | None = None
    rows: int = ROWS  # real observations that every file is held against
    episodes: int = EPISODES  # real ones that every policy plays


class Made(NamedTuple):
    """A file that agrees, with its content, or one that does not, with the reasons."""

    file: File
    content: bytes
    failures: tuple[str, ...]


def export(
    folder: Path, out: Path, asked: Asked, environment: Environment | None = None, say: Callable[[str], None] = print
) -> tuple[dict[str, Any], list[Made]]:
    """Export a run into a new folder.

    Args:
      folder: the run's.
      out: the folder, which appears when it is whole.
      asked: what is exported, and how.
      environment: the one that the run was trained in, where its name is not known.
      say: tells how far it is.

    Returns:
      The contract, and what was made, the files that disagree and were not written among them.

    Raises:
      ConfigError: what was asked for does not fit the run, a package is missing, or the folder cannot be made.

    """
    _check(asked, out)
    source = open_source(folder, asked.seed, asked.best, asked.ensemble, environment)
    latent = isinstance(source.config, DreamerConfig)
    remembers = algorithm_of(source.config).remembers
    _check_memory(asked, remembers)
    if asked.what == "model" and source.model is None:
        raise ConfigError(f"what: 'model' does not fit; {algorithm_name(source.config)!r} has learned no model")
    if asked.what == "model" and latent:
        raise ConfigError("what: 'model' does not fit; a latent world's states are no observations; its policy can be exported")
    graphs = [] if remembers else [_policy(source)]
    wanted = [] if asked.what == "model" else list(graphs)
    if asked.what != "policy" and source.model is not None and not latent:
        wanted += model_graphs(source.config, source.task, source.axes, source.model)
    made = _Modules(source)
    for graph in wanted:
        if "torchscript" in asked.formats:
            made.module(graph)  # refuses what the reference does not have before anything is measured
    say(f"visits {asked.rows:,} real observations")
    rows = rows_of(source, _playing(source, graphs), asked.rows)
    found = [each for graph in wanted for each in _made(graph, source, rows, asked, made, say)]
    if remembers and asked.what != "model":
        found += _planner(source, rows, say)
    written = [each for each in found if not each.failures]
    contract = _contract(source, rows, found)
    if written:
        _write(out, contract, written)
    return contract, found


def _check(asked: Asked, out: Path) -> None:
    if not asked.formats:
        raise ConfigError("format: none is named; it must be onnx, stablehlo or torchscript")
    if out.exists():
        raise ConfigError(f"out: {str(out)!r} exists already and is left as it is; name a new folder")
    if asked.int8 is not None and not {"onnx", "torchscript"} & set(asked.formats):
        raise ConfigError(f"int8: {asked.int8!r} does not fit formats {', '.join(asked.formats)}; it needs onnx or torchscript")
    if asked.int8 == "static" and "torchscript" in asked.formats:
        raise ConfigError("int8: 'static' does not fit torchscript; it must be dynamic")
    if "onnx" in asked.formats:
        onnx_files.require()
    if "torchscript" in asked.formats:
        require("torch", "torch")


def _check_memory(asked: Asked, remembers: bool) -> None:
    if remembers and asked.what != "model" and set(asked.formats) - {"stablehlo"}:
        told = "as a planner or a filter has; it must be stablehlo"
        raise ConfigError(f"format: {', '.join(asked.formats)} does not fit a policy with a memory, {told}")
    if remembers and asked.ensemble:
        raise ConfigError("ensemble: it does not fit a policy with a memory; name a seed")


def _policy(source: Source) -> Graph:
    make = vote_graph if source.seed is None else policy_graph
    return make(source.config, source.task, source.axes, source.params)


def _playing(source: Source, graphs: Sequence[Graph]) -> Policy:
    """The policy that visits real observations, with actions as the library has them."""
    if not graphs:
        return algorithm_of(source.config).policy(source.config, source.task)
    (graph,) = graphs
    return without_memory(lambda params, observation: learned_units(source.task.spec, graph.function(observation)[0]))


class _Modules:
    """The modules in PyTorch, which is imported where one is asked for."""

    def __init__(self, source: Source):
        self.source = source

    def module(self, graph: Graph) -> Any:
        """The module of a graph. Raises ConfigError: the reference has none."""
        from mbrl_jax.serving.export import torchscript

        source = self.source
        if graph.role in agreement.POLICIES:
            return torchscript.policy_module(source.config, source.task, source.params, graph.role == "vote")
        members = len(jax.tree.leaves(source.model.params)[0])
        which = list(range(members)) if graph.role == "ensemble" else [int(graph.name.removeprefix("member"))]
        return torchscript.model_module(source.config, source.task, source.model, which, graph.role == "ensemble")


def _made(graph: Graph, source: Source, rows: Rows, asked: Asked, modules: _Modules, say: Callable[[str], None]) -> list[Made]:
    """The files of one graph."""
    inputs = agreement.inputs_of(graph, rows)
    with jax.default_matmul_precision("highest"):
        library = jax.jit(graph.function)
        expected = [np.asarray(each) for each in library(*inputs)]
        plays = graph.role in agreement.POLICIES and can_play(source.task)
        returns = returns_of(source.task, lambda seen: np.asarray(library(seen)[0]), asked.episodes) if plays else None
    made = []
    for format, precision, content, run in _files(graph, inputs, asked, modules):
        say(f"holds {graph.name} in {format}, {precision}, against the library")
        told = agreement.compare(graph, expected, agreement.outputs_of(run, inputs), rows)
        if returns is not None:
            theirs = returns_of(source.task, lambda seen, run=run: run(seen)[0], asked.episodes)  # type: ignore[misc]
            told["returns"] = agreement.compare_returns(returns, theirs)
        made.append(_judged(graph, format, precision, content, told))
    return made


def _files(graph: Graph, inputs: tuple[np.ndarray, ...], asked: Asked, modules: _Modules) -> Any:
    """Yield each file's format, precision, content, and what it gives for rows."""
    for format in asked.formats:
        if format == "onnx":
            content = onnx_files.write(graph)
            yield format, "float32", content, onnx_files.load(content, graph)
            if asked.int8 is not None:
                content = quantising.quantise(content, graph, asked.int8, inputs)
                yield format, f"int8-{asked.int8}", content, onnx_files.load(content, graph)
        elif format == "stablehlo":
            content = stablehlo.write(graph)
            yield format, "float32", content, stablehlo.load(content, graph)
        else:
            from mbrl_jax.serving.export import torchscript

            module = modules.module(graph)
            content = torchscript.write(module, graph, inputs)
            yield format, "float32", content, torchscript.load(content, graph)
            if asked.int8 is not None:
                content = torchscript.write(torchscript.quantise(module), graph, inputs)
                yield format, "int8-dynamic", content, torchscript.load(content, graph)


def _judged(graph: Graph, format: str, precision: str, content: bytes, told: dict[str, Any]) -> Made:
    tolerance = agreement.tolerance_of(precision)
    middle = "" if precision == "float32" else f".{precision}"
    opset = onnx_files.OPSET if format == "onnx" else None
    about = (f"{graph.name}{middle}{ENDINGS[format]}", graph.name, graph.role, format, precision, opset)
    file = File(*about, digest(content), len(content), graph.inputs, graph.outputs, told, tolerance.as_json())
    return Made(file, content, tuple(agreement.failures(told, tolerance)))


def _planner(source: Source, rows: Rows, say: Callable[[str], None]) -> list[Made]:
    """The two files of a policy with a memory."""
    policy = algorithm_of(source.config).policy(source.config, source.task)
    planner = stablehlo.planner_of(policy, source.task.spec, source.axes, source.params)
    begin, step = stablehlo.write_planner(planner)
    say("holds the policy with its memory in stablehlo, float32, against the library")
    told, tolerance = planners.compare(planner, begin, step, source, rows), agreement.FLOAT
    wrong = tuple(agreement.failures(told, tolerance))

    def made(name: str, content: bytes, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> Made:
        about = (f"{name}.stablehlo", name, "planner", "stablehlo", "float32", None)
        return Made(File(*about, digest(content), len(content), inputs, outputs, told, tolerance.as_json()), content, wrong)

    return [
        made("policy.begin", begin, planner.begin_inputs, planner.memory),
        made("policy", step, planner.step_inputs, planner.outputs),
    ]


def _contract(source: Source, rows: Rows, found: Sequence[Made]) -> dict[str, Any]:
    run, config = source.run, source.config
    place = None if source.seed is None else run.first_seed + source.seed
    return {
        "format": FORMAT,
        "run": {
            "algorithm": algorithm_name(config),
            "config": to_dict(config),
            "base_seed": run.base_seed,
            "seed": "vote of all" if place is None else place,
            "seeds": len(run.result.outcome.frozen),
            "policy": source.which,
            "imagined_score": source.score,
            "model_seed": None if source.model is None else run.first_seed + source.model_seed,
        },
        "versions": {name: version for name, version in packages.versions(PACKAGES).items() if version != "unknown"},
        "git": packages.git_revision(),
        "task": describe(source, rows),
        "files": [each.file.as_json() for each in found if not each.failures],
        "refused": [{**each.file.as_json(), "failures": list(each.failures)} for each in found if each.failures],
    }


def _write(out: Path, contract: dict[str, Any], written: Sequence[Made]) -> None:
    """Write the files into a folder that takes its name when all of them are on the disk."""
    temporary = out.with_name(f".{out.name}.new")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for each in written:
            with results.new_file(temporary / each.file.path) as path:
                path.write_bytes(each.content)
        results.write_json(temporary / NAME, contract)
        os.rename(temporary, out)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise ConfigError(f"out: {str(out)!r} cannot be written: {error}") from error
