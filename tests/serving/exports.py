"""Exports of random parameters, for tests of what is done with an export."""

import dataclasses
import functools

import jax
import numpy as np

from mbrl_jax import packages, strict_json
from mbrl_jax.algorithms.registry import algorithm_of
from mbrl_jax.config import read_preset
from mbrl_jax.environments import environment_of
from mbrl_jax.runs import results
from mbrl_jax.serving import contract
from mbrl_jax.serving.export import graphs, onnx_files, writing

AXES = {"CartPole-v1": ("position", "velocity", "angle", "turning"), "Pendulum-v1": ("cosine", "sine", "velocity")}


@functools.cache
def files_of(preset, seed):
    """The files of a small policy and a model of two members, and their contract."""
    config = read_preset(preset)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, hidden=(8,), members=2),
        agent=dataclasses.replace(config.agent, hidden=(8,)),
    )
    task = environment_of(config.environment, None)
    generator = np.random.default_rng(seed)

    def drawn(template):
        def draw(leaf):  # a kernel, or a bias that decides less
            return generator.normal(0, {2: 1.0, 3: 0.3}.get(len(leaf.shape), 0.1), leaf.shape).astype(leaf.dtype)

        return jax.tree.map(draw, template)

    axes = AXES[task.spec.name]
    members = drawn(results.model_template(config, task))
    spread = [np.abs(each) * 0.1 + 0.01 for each in members.normaliser]
    members = members._replace(normaliser=type(members.normaliser)(*spread))
    every = [graphs.policy_graph(config, task, axes, drawn(algorithm_of(config).params(config, task)))]
    every += graphs.model_graphs(config, task, axes, members)
    told = {"rows": 0, "observations": "none", "largest_difference": {}, "equal": {}}
    made = [writing._judged(graph, "onnx", "float32", onnx_files.write(graph), told) for graph in every]
    if task.spec.continuous:
        low, high = graphs.action_bounds(task.spec)
        action = {"kind": "continuous", "low": low, "high": high}
    else:
        action = {"kind": "discrete", "count": task.spec.action_count}
    numbers = [{"name": name, "low": -1.0, "high": 1.0} for name in axes]
    content = {
        "format": contract.FORMAT,
        "versions": packages.versions(()),
        "task": {
            "name": task.spec.name,
            "time_limit": task.spec.time_limit,
            "observation": {"axes": numbers},
            "action": action,
        },
        "files": [each.file.as_json() for each in made],
    }
    return content, {each.file.path: each.content for each in made}


def write_export(folder, seed=0, preset="cartpole_batch"):
    """Write an export whose numbers follow from a seed; its contract comes last, as that of every export."""
    content, files = files_of(preset, seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, each in files.items():
        (folder / name).write_bytes(each)
    with results.new_file(folder / contract.NAME) as path:
        strict_json.write(path, content)
    return folder


def transitions(episode, first, count, *, end=None, generator=None):
    """The body of a request: rows of a walk that begins at ``first`` [4]; and where the walk stands after them."""
    generator = generator or np.random.default_rng(0)
    walk = np.concatenate([[first], first + np.cumsum(generator.normal(0, 0.01, (count, 4)), axis=0)]).astype(np.float32)
    ends = [end == name and place == count - 1 for name in ("terminated", "truncated") for place in range(count)]
    content = {
        "episode": episode,
        "observation": walk[:-1].tolist(),
        "action": generator.integers(0, 2, count).tolist(),
        "reward": [1.0] * count,
        "next_observation": walk[1:].tolist(),
        "terminated": ends[:count],
        "truncated": ends[count:],
    }
    return content, walk[-1]
