"""Agents: what an agent is, the Q-learner, and actor and critic."""
