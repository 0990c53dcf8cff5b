"""The application: what each address answers."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from mbrl_jax import packages
from mbrl_jax.errors import ConfigError
from mbrl_jax.serving.server import imagining, reading
from mbrl_jax.serving.server.described import OPERATIONS, TITLE
from mbrl_jax.serving.server.exports import Exports
from mbrl_jax.serving.server.guard import BODY, FAILED, MEDIA, Guard
from mbrl_jax.serving.server.intake import Intake
from mbrl_jax.serving.server.journal import Journal
from mbrl_jax.serving.server.measures import Measures
from mbrl_jax.serving.server.reading import ARROW, JSON, Limits
from mbrl_jax.serving.server.refusal import Refused, shown
from mbrl_jax.serving.server.served import Served

WATCH_SECONDS = 1.0
SAMPLE_SECONDS = 0.25
SAMPLE_ROWS = 16  # of the last observations served, about which the ensemble is asked
PAGE = {"index.html": "text/html", "docs.html": "text/html", "page.css": "text/css"}
PAGE |= dict.fromkeys(("page.js", "docs.js"), "text/javascript")
DUMP = orjson.OPT_SERIALIZE_NUMPY

log = logging.getLogger("mbrl_jax.serving")


class Settings(NamedTuple):
    """How a server is run."""

    folder: Path  # an export, or a folder of exports
    precision: str = "float32"
    data: Path | None = None  # where transitions are kept; none takes none in
    key: str | None = None
    limits: Limits = Limits()
    watch: float = WATCH_SECONDS  # seconds between two looks at the folder


class Server:
    """What requests share."""

    def __init__(self, settings: Settings):
        """Load what is served. Raises ConfigError: there is no export, or the data cannot be kept."""
        self.settings, self.measures = settings, Measures()
        self.exports = Exports(settings.folder, settings.precision)
        journal = None if settings.data is None else Journal(settings.data, self.exports.current.task)
        self.intake = None if journal is None else Intake(journal, self.measures)
        self.ready = False
        self._sample: tuple[Served, np.ndarray, np.ndarray] | None = None
        self._reloading = asyncio.Lock()

    # ---------------------------------------------------------------------------------------------------------- answers

    def act(self, body: bytes, media: str) -> Response:
        """Actions for the observations of a request."""
        served, limits = self.exports.current, self.settings.limits
        content = reading.json_object(body) if media == JSON else reading.arrow_columns(body)
        reading.known_fields(content, ("observation", "explain"))
        seen, one = reading.observations(content, served.task, limits)
        explain = content.get("explain", False)
        if not isinstance(explain, bool):
            raise Refused(422, "explain", "it does not fit; it must be true or false")
        found = served.explain(seen) if explain else {"action": served.act(seen)}
        self.measures.rows.inc(len(seen))
        outside = served.out_of_range(seen)
        if outside:
            self.measures.outside.inc(outside)
        self._sample = served, seen[-SAMPLE_ROWS:], found["action"][-SAMPLE_ROWS:]
        if media == ARROW:
            return Response(reading.arrow_stream(found), media_type=ARROW)
        return _json({name: array[0] for name, array in found.items()} if one else found)

    def imagine(self, body: bytes, media: str) -> Response:
        """Imagined rollouts as lines of JSON, one for each step."""
        served = self.exports.current
        content = reading.json_object(body) if media == JSON else reading.arrow_columns(body)
        asked = imagining.read(content, served, self.settings.limits)
        members = ["mean" if member is None else member for member in asked.members]
        head = {"rollouts": len(members), "members": members, "horizon": asked.horizon}
        return StreamingResponse(self._lines(head, imagining.imagine(served, asked)), media_type="application/x-ndjson")

    async def _lines(self, head: dict[str, Any], steps: Iterator[dict[str, Any]]) -> AsyncIterator[bytes]:
        yield orjson.dumps(head) + b"\n"
        try:
            async with asyncio.timeout(self.settings.limits.seconds):
                while (step := await asyncio.to_thread(next, steps, None)) is not None:
                    yield orjson.dumps(step, option=DUMP) + b"\n"
        except TimeoutError:
            told = f"it took more than {self.settings.limits.seconds:g} s; ask for fewer rollouts or steps"
            yield orjson.dumps({"field": "horizon", "detail": told}) + b"\n"

    async def take(self, body: bytes, media: str) -> Response:
        """Keep the transitions of a request."""
        intake, task = self._intake(), self.exports.current.task
        content = reading.json_object(body) if media == JSON else reading.one_episode(reading.arrow_columns(body))
        rows = reading.transitions(content, task, self.settings.limits)
        await intake.take(rows)
        return _json({"kept": len(rows.reward)})

    async def seal(self) -> Response:
        """Move ended episodes to a file that training reads."""
        return _json({"sealed": await self._intake().seal()})

    def _intake(self) -> Intake:
        if self.intake is None:
            raise Refused(404, "transitions", "this server takes none in; mbrl-jax serve --data names a folder for them")
        return self.intake

    async def reload(self) -> Response:
        """Serve the export that is in the folder now."""
        try:
            served = await self._reload()
        except ConfigError as error:
            raise Refused(409, "export", f"{error}; the old one is served on") from None
        return _json({"export": str(served.folder.name), "policy": served.digest})

    async def _reload(self) -> Served:
        async with self._reloading:
            try:
                served = await asyncio.to_thread(self.exports.reload)
            except (ConfigError, OSError) as error:
                self.measures.reloads.labels("refused").inc()
                raise error if isinstance(error, ConfigError) else ConfigError(str(error)) from error
            self.measures.reloads.labels("taken").inc()
            return served

    def state(self) -> Response:
        """Whether it is ready, and what is served."""
        served = self.exports.current
        content = {"ready": self.ready, "export": served.folder.name, "policy": served.digest, "task": served.task.name}
        content |= {"members": served.members, "transitions": self.intake is not None}
        return _json(content, 200 if self.ready else 503)

    # ------------------------------------------------------------------------------------------------------- background

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Watch the folder, sample the disagreement and seal parts while requests are answered; then end in order."""
        if self.intake is not None:
            await self.intake.seal()
        tasks = [
            asyncio.create_task(self._every(self.settings.watch, self._look)),
            asyncio.create_task(self._every(SAMPLE_SECONDS, self._ask_ensemble)),
        ]
        self.ready = True
        try:
            yield
        finally:
            self.ready = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self.intake is not None:
                await self.intake.close()

    async def _every(self, seconds: float, work: Callable[[], Any]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except Exception:
                log.exception("work in the background failed")

    async def _look(self) -> None:
        """Take up a new export, and seal parts where nobody sends anything."""
        if self.exports.changed():
            try:
                await self._reload()
            except ConfigError as error:
                log.warning("a new export is refused, the old one is served on: %s", error)
        if self.intake is not None:
            with contextlib.suppress(Refused):  # it is logged where it fails, and tried again
                await self.intake.seal_when_idle()

    async def _ask_ensemble(self) -> None:
        """Ask the ensemble about the last observations served, beside the requests."""
        sample, self._sample = self._sample, None
        if sample is None or not sample[0].members:
            return
        served, seen, action = sample
        for each in (await asyncio.to_thread(served.expect, seen, action))["disagreement"].tolist():
            self.measures.disagreement.observe(each)


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content, option=DUMP), status, media_type=JSON)


def make_app(settings: Settings) -> tuple[Guard, Server]:
    """The application with its guard, and what its requests share.

    Raises:
      ConfigError: there is no export that can be served, or the data cannot be kept.

    """
    server = Server(settings)
    version = packages.version_of("mbrl-jax")
    app = FastAPI(title=TITLE, version=version, docs_url=None, redoc_url=None, lifespan=server.lifespan)

    async def act(request: Request) -> Response:
        return server.act(request.scope[BODY], request.scope[MEDIA])

    async def imagine(request: Request) -> Response:
        return server.imagine(request.scope[BODY], request.scope[MEDIA])

    async def take(request: Request) -> Response:
        return await server.take(request.scope[BODY], request.scope[MEDIA])

    async def seal(request: Request) -> Response:
        return await server.seal()

    async def reload(request: Request) -> Response:
        return await server.reload()

    async def health(request: Request) -> Response:
        return _json({"alive": True})

    async def ready(request: Request) -> Response:
        return server.state()

    async def metrics(request: Request) -> Response:
        return Response(server.measures.text(), media_type="text/plain; version=0.0.4")

    async def contract(request: Request) -> Response:
        return _json(server.exports.current.content)

    async def index(request: Request) -> Response:
        return _page("index.html")

    async def docs(request: Request) -> Response:
        return _page("docs.html")

    async def page(name: str) -> Response:
        return _page(name)

    posts = {"/act": act, "/imagine": imagine, "/transitions": take, "/transitions/seal": seal, "/reload": reload}
    gets = {"/health": health, "/ready": ready, "/metrics": metrics, "/contract": contract}
    for path, answer in {**posts, **gets}.items():
        method = "POST" if path in posts else "GET"
        app.add_api_route(path, answer, methods=[method], response_class=Response, **OPERATIONS[path])
    for path, shown_page in {"/": index, "/docs": docs}.items():
        app.add_api_route(path, shown_page, methods=["GET"], include_in_schema=False)
    app.add_api_route("/page/{name}", page, methods=["GET"], include_in_schema=False)
    for kind in (Refused, HTTPException, Exception):
        app.add_exception_handler(kind, _told)
    paths = {*posts, *gets, "/", "/docs"}
    return Guard(app, paths, server.measures, settings.limits, settings.key), server


async def _told(request: Request, error: Exception) -> Response:
    """What went wrong, in one form."""
    if isinstance(error, Refused):
        return _json({"field": error.field, "detail": error.detail}, error.status)
    if isinstance(error, HTTPException):
        return _json(
            {"field": "path", "detail": f"{request.method} {shown(request.url.path)}: {error.detail}"}, error.status_code
        )
    return _json(dict(zip(("field", "detail"), FAILED, strict=True)), 500)


def _page(name: str) -> Response:
    if name not in PAGE:
        raise Refused(404, "path", "there is no such page")
    content = resources.files("mbrl_jax.serving.server").joinpath("page", name).read_bytes()
    safe = {"content-security-policy": "default-src 'self'; img-src 'self' data:", "x-content-type-options": "nosniff"}
    return Response(content, media_type=PAGE[name], headers=safe)
