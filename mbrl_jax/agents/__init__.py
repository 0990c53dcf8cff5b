"""Agents: who learns from the transitions."""
