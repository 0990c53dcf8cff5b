"""Write a horizon controller in one file and compare it with rollouts of the configuration's own length.

Run it from the checkout: ``python examples/own_controller.py --seeds 16``.
"""

import argparse
import dataclasses

import jax.numpy as jnp
import numpy as np

import mbrl_jax
from mbrl_jax import statistics


def vote(*, share):
    """Stop where fewer than ``share`` of the ensemble's members agree on the direction in which some axis changes."""

    def init(lanes, spec):
        return ()  # a controller with memory returns arrays here, such as jnp.zeros(lanes)

    def calibrate(state, world, params, rows, valid):
        return state  # called after every fit, with all real transitions: the place to measure a threshold

    def step(state, view):
        up = (view.everyone.mean > 0).mean(axis=0)  # [K, D] from [M, K, D]: who expects more than the average change
        agreed = jnp.maximum(up, 1 - up).min(axis=-1)  # [K]
        stop = agreed < share
        return state, mbrl_jax.Decision(keep=~stop, stop=stop, penalty=jnp.zeros_like(view.reward))

    return mbrl_jax.HorizonController(init, calibrate, step, needs_members=True)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--config", default="configs/horizons/horizon_study.yaml")
parser.add_argument("--seeds", type=int, default=16)
parser.add_argument("--share", type=float, default=0.8)
options = parser.parse_args()

config = mbrl_jax.load(options.config)
longer = dataclasses.replace(config, imagination=dataclasses.replace(config.imagination, cap=50))  # no rollout is longer
runs = {
    "fixed": mbrl_jax.run(config, options.seeds),
    "vote": mbrl_jax.run(longer, options.seeds, controller=vote(share=options.share)),
}
returns = {name: np.asarray(run.result.outcome.returns_chosen).mean(axis=1) for name, run in runs.items()}  # [seeds]
for name, run in runs.items():
    horizon = 1 / run.result.metrics.lanes.ended.mean()
    print(f"{name:6} IQM {statistics.bootstrap(returns[name])}, mean horizon {horizon:.1f}")
# Both arms have the same seeds and the same real transitions, so each seed is compared with itself.
print(f"vote - fixed: {statistics.paired_difference(returns['vote'], returns['fixed'])}")
