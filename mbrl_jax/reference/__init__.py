"""The method of this library once more, in plain PyTorch and gymnasium: the oracle that the JAX code is held against.

It is written from the specification, room beside room, and imports nothing of the JAX side. Every random number comes from one
object (:class:`mbrl_jax.reference.draws.Draws`), so the same numbers can be given to both and both must produce the same run.

>>> config = mbrl_jax.config.load("configs/cartpole_batch.yaml")
>>> result = dyna_q.train(config, Draws(config, seed=0))

Letters in shapes: E members, M members that imagination uses, K lanes, H imagined steps, B rows, D observation axes, D' regressed
axes (D, and one more for a learned reward), A actions, S axes of a simulator's state, J directions, n whatever the name says.
"""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError("mbrl_jax.reference needs PyTorch; install it by: pip install 'mbrl-jax[torch]'") from error
