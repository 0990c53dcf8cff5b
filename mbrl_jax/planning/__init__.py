"""Planning: sequences of actions are tried in the learned world, and the first action of what did best is taken."""
