"""Imagined rollouts: the lanes and their horizon controllers."""
