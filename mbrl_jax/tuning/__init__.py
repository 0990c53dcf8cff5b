"""Search for settings: a space, batches of trials in one program, and the study that asks for them (``mbrl-jax tune``)."""
