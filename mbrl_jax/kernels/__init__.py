"""Fused GPU kernels: a round's real steps of one seed as one program, where XLA launches hundreds of kernels for every step.

``kernels: pallas`` switches them on; the plain path is their oracle.
"""

from mbrl_jax.kernels.limits import check_kernels

__all__ = ["check_kernels"]
