"""Imagination: lanes of imagined rollouts, and the controllers that decide how long they are."""
