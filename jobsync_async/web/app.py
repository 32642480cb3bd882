"""The page over HTTP: addresses, headers, forms."""

from __future__ import annotations

import datetime as dt
import gzip
import inspect
import logging
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from jobsync_async.config import CoordinationConfig
from jobsync_async.core.hashing import task_text
from jobsync_async.core.ids import require_storable
from jobsync_async.errors import ConfigError, StoreError
from jobsync_async.operations import batches
from jobsync_async.operations.explaining import explain
from jobsync_async.postgres.store import Store
from jobsync_async.web import details, parts
from jobsync_async.web.acts import ACTS, Act, require
from jobsync_async.web.document import banner_of, document, section, table
from jobsync_async.web.forgery import HEADERS, cookie, forged, form_token
from jobsync_async.web.hub import Hub
from jobsync_async.web.markup import Content, Html, el

logger = logging.getLogger(__name__)

Person = str | bool | None
Steer = Callable[[Request], Person | Awaitable[Person]]
"""Says who asks: a name, or None or False for nobody."""

_MOST_FORM = 65_536
_FILES = {"page.css": "text/css", "page.js": "text/javascript"}


class ClusterPage(Starlette):
    """The ASGI application that `cluster_page` makes. `aclose` ends its streams and connections at
    once; without it they end a quarter of a minute after the last viewer."""

    def __init__(self, config: CoordinationConfig, steer: Steer | None) -> None:
        self._config = config
        self._steer = steer
        self._rows = parts.Rows(steer is not None, self._beat)
        self.hub: Hub = Hub(config, renders(self._rows))
        self._files = {name: _file(name) for name in _FILES}
        self._version = f"{zlib.crc32(b''.join(plain for plain, _ in self._files.values())):x}"
        pages = {
            "/": self._overview,
            "/task": self._task,
            "/batches": self._batches,
            "/batch": self._batch,
            "/history": self._history,
            "/events": self._events,
            "/ask": self._ask,
            **{f"/{name}": self._static for name in _FILES},
        }
        super().__init__(
            routes=[
                Route(path, page, methods=["GET", "POST"] if path == "/ask" else ["GET"])
                for path, page in pages.items()
            ],
            lifespan=_closing,
            exception_handlers={
                HTTPException: self._no_page,
                ConfigError: self._refused,
                StoreError: self._unavailable,
            },
        )

    async def aclose(self) -> None:
        """End all streams, and every connection to PostgreSQL."""
        await self.hub.close()

    def _beat(self, number: int) -> float | None:
        return self.hub.beat(number)

    # -- pages -------------------------------------------------------------------------------------

    async def _overview(self, request: Request) -> Response:
        await self.hub.look()
        view, now = self.hub.overview, time.time()
        if view is None:
            return self._page(request, "", "Overview", channel="overview", status=503)
        frame = self.hub.channels["overview"].frame
        rows = [self._rows.worker(worker, now) for worker in view.workers.values()]
        render = renders(self._rows)["overview"]
        part = {
            name: el("div", render[name](value, now), id=name)
            for name, value in frame.parts.items()
            if name != "banner"
        }
        columns = [*parts.WORKER_COLUMNS, *(["act"] if self._steer else [])]
        return self._page(
            request,
            "",
            "Overview",
            el("h1", "Overview", class_="unseen"),
            section("What is wrong", part["problems"], about="problems", aria_live="polite"),
            section("The cluster", part["facts"], part["steering"], about="facts"),
            section(
                "Tokens",
                parts.picture_of(self.hub.picture),
                el("h3", "Moved last"),
                part["moves"],
                el("h3", "Being handed on"),
                part["handoffs"],
                about="tokens",
            ),
            section("Workers", table("Workers, the oldest first", columns, rows, "workers"),
                    about="workers"),
            channel="overview",
        )  # fmt: skip

    async def _task(self, request: Request) -> Response:
        asked = request.query_params.get("id")
        shown: list[Content] = [el("h1", "A task"), details.task_form(asked)]
        if asked:
            told = await explain(await self.hub.store(), task_text(asked), None, None)
            steer = self._steer is not None
            shown.append(el("article", details.task_of(told, time.time(), steer)))
        return self._page(request, "task", asked or "A task", *shown)

    async def _batches(self, request: Request) -> Response:
        await self.hub.look_at_runs(await self.hub.store())
        now, runs = time.time(), self.hub.channels["batches"].frame.lists["runs"]
        rows = [self._rows.run(run, now) for run in runs.values()]
        shown = table("Runs of batches, the open ones first", parts.RUN_COLUMNS, rows, "runs")
        none = None if rows else el("p", "No batch was run.", class_="quiet")
        return self._page(
            request, "batches", "Batches", el("h1", "Batches"), shown, none, channel="batches"
        )

    async def _batch(self, request: Request) -> Response:
        asked = request.query_params.get("batch")
        store = await self.hub.store()
        date = _date(request.query_params.get("date"))
        run = await batches.find_run(store, asked, date) if asked else None
        if run is None:
            raise HTTPException(404, f"there is no run of a batch {asked or ''!r:.200}")
        await self.hub.look_at_runs(store)
        now, view = time.time(), self.hub.runs.view(run)
        failed = await batches.failures(store, run)
        workers = [worker._asdict() for worker in await store.batch_runs.workers(run)]
        values = {"batch": asked, "date": run.date.isoformat()}
        retry = el("p", parts.offer(ACTS["retry"], values, "run"), class_="acts")
        return self._page(
            request,
            "batches",
            run.name or run.batch_key.hex()[:12],
            el("h1", "A batch"),
            details.run_title_of(failed),
            table("The run", parts.RUN_COLUMNS, self._rows.run(view, now), "run"),
            section(f"Failed: {failed['failed']:,}", details.failures_of(failed), about="failed"),
            retry if self._steer and failed["failed"] else None,
            section("Workers", details.run_workers_of(workers), about="run-workers-of"),
            channel="batches",
        )

    async def _history(self, request: Request) -> Response:
        await self.hub.look_at_history(await self.hub.store())
        now, events = time.time(), self.hub.channels["history"].frame.lists["events"]
        items = [self._rows.event(event, now) for event in events.values()]
        none = None if items else el("p", "Nothing has happened yet.", class_="quiet")
        shown = [el("h1", "History"), el("ol", items, id="events", class_="timeline"), none]
        return self._page(request, "history", "History", *shown, channel="history")

    # -- what follows the cluster ------------------------------------------------------------------

    async def _events(self, request: Request) -> Response:
        channel = request.query_params.get("channel", "")
        if channel not in self.hub.channels:
            raise HTTPException(404, "there is no such channel")
        since = request.headers.get("last-event-id") or request.query_params.get("since")
        # Proxies that buffer are told not to.
        headers = {**HEADERS, "X-Accel-Buffering": "no"}
        return StreamingResponse(
            self.hub.follow(channel, since), headers=headers, media_type="text/event-stream"
        )

    async def _static(self, request: Request) -> Response:
        name = request.url.path.rpartition("/")[2]
        plain, packed = self._files[name]
        headers = {**HEADERS, "Cache-Control": "max-age=31536000, immutable"}
        return _packed(request, plain, packed, headers, _FILES[name])

    # -- acts --------------------------------------------------------------------------------------

    async def _ask(self, request: Request) -> Response:
        """The question of an act, and on a POST the act itself."""
        posted = request.method == "POST"
        values = await _form(request) if posted else dict(request.query_params)
        act = ACTS.get(values.get("act", ""))
        if self._steer is None or act is None:
            raise HTTPException(404, "there is no such act, or this page only looks")
        if posted and (why := forged(request, values)) is not None:
            raise HTTPException(403, why)
        person = self._steer(request)
        if inspect.isawaitable(person):
            person = await person
        if not isinstance(person, str) or not person:
            raise HTTPException(403, "you may look, but not steer")
        wrong = None
        if posted:
            try:
                require(act, values)
                done = await self._do(act, values, person)
                return self._page(request, "ask", "Done", el("h1", act.verb), details.done_of(done))
            except ConfigError as error:
                wrong = str(error)
        token = form_token(request)
        asked = details.ask_of(act, values, token, person, wrong)
        response = self._page(
            request,
            "ask",
            act.verb,
            el("h1", act.verb),
            asked,
            status=422 if wrong else 200,
            secret=True,
        )
        response.headers.append("Set-Cookie", cookie(request, token))
        return response

    async def _do(self, act: Act, values: Mapping[str, str], person: str) -> str:
        # With connections of its own: what is done over them is done in this name.
        store = await Store.open(self._config, "page", observe=True)
        try:
            require_storable("your name", person, store.codec)
            store.context.by = person
            done = await act.do(store, values)
        finally:
            await store.close()
        logger.info(
            "%s: %s, by %s from the page",
            act.name,
            done,
            person,
            extra={"channel": store.context.channel, "act": act.name, "by": person},
        )
        return done

    # -- answers -----------------------------------------------------------------------------------

    def _page(
        self,
        request: Request,
        page: str,
        title: str,
        *content: Content,
        channel: str | None = None,
        status: int = 200,
        secret: bool = False,
    ) -> Response:
        number = f"{self.hub.boot}.{self.hub.channels[channel].number}" if channel else ""
        text = document(
            page,
            title,
            *content,
            cluster=self._config.appname,
            version=self._version,
            now=time.time(),
            live=(channel, number) if channel else None,
            banner=self.hub.away,
        ).encode()
        # Packed together with what a visitor chose, a secret could be guessed from the length.
        packed = None if secret else gzip.compress(text, 5)
        return _packed(request, text, packed, HEADERS, "text/html", status)

    def _wrong(self, request: Request, text: str, status: int) -> Response:
        shown = details.wrong_of("This cannot be shown", text)
        return self._page(request, "wrong", "Not so", el("h1", "Not so"), shown, status=status)

    async def _no_page(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return self._wrong(request, error.detail, error.status_code)

    async def _refused(self, request: Request, error: Exception) -> Response:
        return self._wrong(request, str(error), 422)

    async def _unavailable(self, request: Request, error: Exception) -> Response:
        return self._wrong(request, str(error), 503)


def renders(rows: parts.Rows) -> dict[str, dict[str, Callable[[Any, float], Html]]]:
    """How each channel's parts become HTML."""
    banner = {"banner": banner_of}
    return {
        "overview": {
            **banner,
            "problems": parts.problems_of,
            "facts": parts.facts_of,
            "moves": parts.moves_of,
            "handoffs": parts.handoffs_of,
            "steering": rows.steering,
            "workers": rows.worker,
        },
        "batches": {**banner, "runs": rows.run},
        "history": {**banner, "events": rows.event},
    }


@asynccontextmanager
async def _closing(page: ClusterPage) -> AsyncIterator[None]:
    yield
    await page.aclose()


def _file(name: str) -> tuple[bytes, bytes]:
    """One of our own files, plain and packed."""
    plain = resources.files(__package__).joinpath(name).read_bytes()
    return plain, gzip.compress(plain, 9)


def _packed(
    request: Request,
    plain: bytes,
    packed: bytes | None,
    headers: Mapping[str, str],
    kind: str,
    status: int = 200,
) -> Response:
    """A body, packed if the browser takes that."""
    takes = "gzip" in request.headers.get("accept-encoding", "")
    given = {**headers, "Vary": "Accept-Encoding"}
    if packed is None or not takes:
        return Response(plain, status, given, media_type=kind)
    return Response(packed, status, {**given, "Content-Encoding": "gzip"}, media_type=kind)


async def _form(request: Request) -> dict[str, str]:
    """The values of a form, which is small."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MOST_FORM:
            raise HTTPException(413, "this form is too large")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=50))
    except ValueError:
        raise HTTPException(400, "this is no form") from None


def _date(text: str | None) -> dt.date | None:
    try:
        return dt.date.fromisoformat(text) if text else None
    except ValueError:
        raise HTTPException(404, f"{text!r:.50} is no date") from None
