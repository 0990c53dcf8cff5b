"""Train many seeds in one compiled program and plot what they reach.

Run it from the checkout: ``python examples/many_seeds.py --seeds 16``.
"""

import argparse

import jax
import numpy as np
from matplotlib.figure import Figure

import mbrl_jax
from mbrl_jax import statistics

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--config", default="configs/cartpole_batch.yaml")
parser.add_argument("--seeds", type=int, default=16)
parser.add_argument("--out", default="many_seeds.png")
options = parser.parse_args()

config = mbrl_jax.load(options.config)
train = mbrl_jax.dyna_q.make_train(config).train
result = jax.jit(jax.vmap(train))(mbrl_jax.seed_keys(0, seeds=options.seeds))

curves = np.asarray(result.metrics.curve_return)  # [seeds, rounds] returns of real episodes
final = np.asarray(result.outcome.returns_chosen).mean(axis=1)  # [seeds] from [seeds, episodes]
print(f"IQM of {options.seeds} seeds: {statistics.bootstrap(final)}")

updates = config.round_steps * np.arange(1, curves.shape[1] + 1)
middle, low, high = statistics.running_interval(curves)
figure = Figure(figsize=(9, 3.5), layout="constrained")
over_training, over_seeds = figure.subplots(1, 2)
over_training.plot(updates, curves.T, color="0.85", linewidth=0.7)
over_training.fill_between(updates, low, high, alpha=0.3, linewidth=0)
over_training.plot(updates, middle)
over_training.set(xlabel="updates", ylabel="return", title="the present policy: seeds, IQM, 95 % interval", ylim=(0, None))
over_seeds.plot(np.arange(1, options.seeds + 1), np.sort(final), marker="o", markersize=3)
over_seeds.set(xlabel="seed, by return", ylabel="final return", title="the policy chosen in imagination", ylim=(0, None))
figure.savefig(options.out, dpi=150)
