"""``python -m mbrl_jax.command_line``."""

from mbrl_jax.command_line import main

main()
