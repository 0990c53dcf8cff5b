"""Serves an export over HTTP: actions, imagined rollouts, and what comes back from reality. Nothing here imports JAX."""
