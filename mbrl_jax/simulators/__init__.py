"""Simulators of Gymnasium's interface, many copies side by side.

Nothing here imports JAX, so that a simulator's own process starts in the time that Gymnasium takes.
"""
