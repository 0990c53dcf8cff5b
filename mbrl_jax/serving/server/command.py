"""``mbrl-jax serve``: an export over HTTP."""

import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Literal

import tyro

from mbrl_jax.errors import ConfigError

KEY = "MBRL_JAX_API_KEY"


def main(words: list[str]) -> None:
    """Run ``serve`` until a signal ends it.

    Raises:
      ConfigError: there is nothing that can be served, or the address cannot be used.

    """

    def flags(
        directory: tyro.conf.Positional[Path],
        port: int = 8000,
        host: str = "127.0.0.1",
        data: Path | None = None,
        precision: Literal["float32", "int8-dynamic", "int8-static"] = "float32",
        watch: float = 1.0,
        rows: int = 4_096,
        body: int = 8 * 2**20,
        horizon: int = 1_000,
        seconds: float = 30.0,
    ) -> None:
        """Serve an export over HTTP: actions, imagined rollouts, and real transitions taken in.

        A key in the environment variable MBRL_JAX_API_KEY is asked of every request.

        Args:
            directory: an export, or a folder of exports, of which the last by name is served
            port: 0 takes a free one
            host: the address to listen at; any other than this machine's own needs a key
            data: a folder to keep real transitions in; none takes none in
            precision: of the files that are served
            watch: seconds between two looks for a new export
            rows: of a batch, at most
            body: bytes of a request, at most
            horizon: steps of an imagined rollout, at most
            seconds: that a request may take to arrive, and an answer to be made

        """
        from mbrl_jax.serving.server.reading import Limits

        for name, value in (("rows", rows), ("body", body), ("horizon", horizon), ("seconds", seconds), ("watch", watch)):
            if not value > 0:
                raise ConfigError(f"{name}: {value!r} is out of range; it must be positive")
        if not 0 <= port <= 65_535:
            raise ConfigError(f"port: {port!r} is out of range; it must be from 0 to 65535")
        key = os.environ.get(KEY) or None
        if key is None and not _is_own(host):
            raise ConfigError(f"host: {host!r} would serve everybody; set {KEY}, or keep to 127.0.0.1")
        serve(directory, host, port, data, precision, watch, Limits(rows, body, horizon, seconds), key)

    tyro.cli(flags, args=words, prog="mbrl-jax serve")


def serve(
    directory: Path,
    host: str,
    port: int,
    data: Path | None,
    precision: str,
    watch: float,
    limits: "Limits",  # type: ignore[name-defined] # noqa: F821
    key: str | None,
) -> None:
    """Serve until SIGINT or SIGTERM. Arguments as of the command.

    Raises:
      ConfigError: there is nothing that can be served, or the address cannot be used.

    """
    try:
        import uvicorn

        from mbrl_jax.serving.server.app import Settings, make_app
    except ImportError as error:
        raise ConfigError(f"serve: {error}; install the extra `mbrl-jax[serve]`") from error
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    listening = _listen(host, port)
    with listening:
        settings = Settings(directory.expanduser(), precision, None if data is None else data.expanduser(), key, limits, watch)
        guard, server = make_app(settings)
        config = uvicorn.Config(guard, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=10)
        for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn has its own while it runs, and raises them again after its end
            signal.signal(number, lambda *_: None)
        name, taken = listening.getsockname()[:2]
        served = server.exports.current
        print(f"serves {served.folder} ({served.task.name}) at http://{name}:{taken}/", flush=True)
        uvicorn.Server(config).run(sockets=[listening])
    with contextlib.suppress(BrokenPipeError):  # whoever began it may be gone
        print("has ended in order", flush=True)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ConfigError: the address is in use, or not this machine's."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise ConfigError(f"port: {host}:{port} cannot be used: {error}; name another by --port") from error


def _is_own(host: str) -> bool:
    """Whether an address is seen by this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
