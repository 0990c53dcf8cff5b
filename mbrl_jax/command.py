"""The entry point ``mbrl-jax``, which a signal can stop while the libraries are still being imported, as that takes seconds."""

from mbrl_jax.runs import interruption


def main() -> None:
    """Run the command. Ctrl-C and SIGTERM end it in one line at any time."""
    with interruption.at_once():
        from mbrl_jax.runs import command_line

        command_line.main()


if __name__ == "__main__":
    main()
