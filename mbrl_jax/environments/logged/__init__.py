"""Logged transitions: files, the episodes in them, and what can be said of them before anything is trained."""
