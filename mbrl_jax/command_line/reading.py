"""The commands that read finished runs: ``runs``, ``report`` and ``evaluate``."""

from pathlib import Path
from typing import Literal

import tyro

from mbrl_jax.config import expand
from mbrl_jax.environments import success_marks
from mbrl_jax.runs import execution, terminal


def runs(words: list[str]) -> None:
    """``mbrl-jax runs``."""

    def flags(directory: tyro.conf.Positional[Path]) -> None:
        """List the runs below a folder.

        Args:
            directory: the folder

        """
        from mbrl_jax.report import listing

        terminal.show(listing.as_table(listing.find(directory)))

    tyro.cli(flags, args=words, prog="mbrl-jax runs")


def report(words: list[str]) -> None:
    """``mbrl-jax report``."""

    def flags(runs: tyro.conf.Positional[tuple[Path, ...]], out: Path) -> None:
        """Write one page about finished runs.

        Args:
            runs: their folders
            out: a new HTML file

        """
        from mbrl_jax.report import write

        execution.find_devices()
        out = expand(out)
        write(runs, out)
        terminal.show(f"written to {out}")

    tyro.cli(flags, args=words, prog="mbrl-jax report")


def evaluate(words: list[str]) -> None:
    """``mbrl-jax evaluate``."""

    def flags(
        directory: tyro.conf.Positional[Path],
        episodes: int = 50,
        env: Literal["gymnax", "gymnasium"] = "gymnax",
        seed: int = 0,
    ) -> None:
        """Play the policies that a run saved.

        Args:
            directory: the run's folder
            episodes: for each policy
            env: whose implementation of the task
            seed: of the initial states

        """
        from mbrl_jax.report import printed
        from mbrl_jax.serving import playing

        execution.find_devices()
        config, policies = playing.load_policies(directory)
        returns = {name: playing.play_policies(config, params, episodes, env, seed) for name, params in policies.items()}
        whose = " of gymnasium" if env == "gymnasium" else ""  # else the one that they were trained in
        title = f"{config.environment.name}{whose}, {episodes} episodes a policy"
        terminal.show(printed.of_episodes(returns, success_marks(config.environment.name), title))

    tyro.cli(flags, args=words, prog="mbrl-jax evaluate")
