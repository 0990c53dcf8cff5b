"""The entry point ``mbrl-jax``, which a signal can stop while the libraries are still being imported, as that takes seconds."""

import sys

from mbrl_jax.errors import ConfigError
from mbrl_jax.runs import interruption


def main() -> None:
    """Run the command. Ctrl-C and SIGTERM end it in one line at any time, and ``serve`` once it has answered what it began."""
    if sys.argv[1:2] == ["serve"]:
        _serve(sys.argv[2:])
        return
    with interruption.at_once():
        from mbrl_jax import command_line

        command_line.main()


def _serve(words: list[str]) -> None:
    """Serve an export, without importing what trains. Exits with 2 after bad input, saying what was wrong."""
    from mbrl_jax.serving.server import command

    try:
        command.main(words)
    except ConfigError as error:
        print(f"mbrl-jax: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
