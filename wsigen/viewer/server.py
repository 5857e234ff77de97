"""The web server of the viewer: small JSON answers, tiles, and one stream of events for each page.

It listens on 127.0.0.1 and answers only requests that name it so, and changes things only for its own page: a web site
open in another tab can neither read nor start anything. Every number of a request has bounds, names are looked up in
fixed tables, and errors are JSON of one line.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from importlib import resources
from typing import Any

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from wsigen.errors import SettingsError, WsigenError
from wsigen.viewer.live.slide import LiveSlide
from wsigen.viewer.scene import Scene
from wsigen.viewer.tiles import encode, tile_box

HOST = "127.0.0.1"
DEFAULT_PORT = 8642
AT_A_TIME = 8  # tiles being read or encoded
WAITING = 512  # tiles that wait for that; more are refused
LARGEST_BODY = 4096
EVENT_SECONDS = 0.25
SILENT_SECONDS = 10.0
FARTHEST = 1 << 31
KINDS = {"jpg": "image/jpeg", "png": "image/png"}
PAGE_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
SECURITY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def make_app(scene: Scene, closing: Callable[[], bool] = lambda: False) -> Starlette:
    """The application for a scene. ``closing`` says when event streams must end."""
    viewer = _Viewer(scene, closing)
    routes = [
        Route("/", viewer.page),
        Route("/page/{name:path}", viewer.page),
        Route("/api/scene", viewer.describe),
        Route("/tiles/{picture}/{level}/{column}_{row}.{kind}", viewer.tile),
        Route("/overlays/{overlay}/{level}/{column}_{row}.png", viewer.overlay_tile),
        Route("/api/nucleus/{overlay}", viewer.nucleus),
        Route("/api/events", viewer.events),
        Route("/api/look", viewer.look, methods=["POST"]),
        Route("/api/settings", viewer.choose, methods=["POST"]),
        Route("/api/save", viewer.save, methods=["POST"]),
        Route("/api/save/stop", viewer.stop_saving, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {HTTPException: _refused, WsigenError: _impossible, Exception: _defect}
    return Starlette(routes=routes, exception_handlers=handlers, middleware=[Middleware(_OwnPageOnly)])


def listen(port: int | None) -> socket.socket:
    """A socket on the port, by default on DEFAULT_PORT or any free one. Raises SettingsError if the port is taken."""
    # Named as TCP, or asyncio leaves Nagle's algorithm on and each tile waits 40 ms for an acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for candidate in [DEFAULT_PORT, 0] if port is None else [port]:
        try:
            listener.bind((HOST, candidate))
            listener.listen()  # from now on the browser may come
            return listener
        except OSError:
            continue
    listener.close()
    raise SettingsError(f"--port {port}: is taken or not allowed; choose another one, or leave it out")


def make_server(scene: Scene) -> uvicorn.Server:
    """The server of a scene; run it with ``run(sockets=[listen(port)])``, end it with ``should_exit``."""
    app = make_app(scene, lambda: server.should_exit)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=2))
    return server


class _Viewer:
    """The answers to requests."""

    def __init__(self, scene: Scene, closing: Callable[[], bool]) -> None:
        self.scene, self.closing = scene, closing
        self.page_files = _page_files()
        self._limiter: anyio.CapacityLimiter | None = None

    async def page(self, request: Request) -> Response:
        """A file of the page."""
        name = request.path_params.get("name", "index.html")
        if name not in self.page_files:
            raise HTTPException(404, "no such page")
        content, kind = self.page_files[name]
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache", **SECURITY})

    async def describe(self, request: Request) -> Response:
        """The scene."""
        return _fresh(self.scene.describe())

    async def tile(self, request: Request) -> Response:
        """A tile of a slide, or of the slide in the making."""
        names = request.path_params
        picture: Any = self.scene.slides.get(names["picture"])
        if names["picture"] == "live":
            picture = self.scene.live
        if picture is None or names["kind"] not in KINDS:
            raise HTTPException(404, "no such picture")
        at = _tile_of(names, picture.levels)

        def work() -> tuple[bytes, bool]:
            pixels, done = picture.tile(*at)
            return encode(pixels, names["kind"]), done

        content, done = await self._worked(work)
        headers = {"X-Painted": str(int(done)), "Cache-Control": "no-store"}
        if names["picture"] != "live":
            headers["Cache-Control"] = "private, max-age=86400"
        return Response(content, media_type=KINDS[names["kind"]], headers=headers)

    async def overlay_tile(self, request: Request) -> Response:
        """A tile of an overlay: ?mode=fill or outline, ?show=1,2,3."""
        overlay = self.scene.overlays.get(request.path_params["overlay"])
        if overlay is None:
            raise HTTPException(404, "no such overlay")
        at = _tile_of(request.path_params, overlay.levels)
        mode = request.query_params.get("mode", "fill")
        if mode not in ("fill", "outline"):
            raise HTTPException(400, "mode: must be fill or outline")
        show = request.query_params.get("show", "")
        if not re.fullmatch(r"(\d{1,3}(,\d{1,3}){0,255})?", show):
            raise HTTPException(400, "show: must be class numbers with commas")
        shown = {int(part) for part in show.split(",") if part}
        draw = partial(overlay.tile, *at, "outline" if mode == "outline" else "fill", shown)
        content = await self._worked(lambda: encode(draw(), "png"))
        return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=86400"})

    async def nucleus(self, request: Request) -> Response:
        """The nucleus at ?x, ?y in pixels of an overlay; {"found": null} where there is none."""
        overlay = self.scene.overlays.get(request.path_params["overlay"])
        if overlay is None:
            raise HTTPException(404, "no such overlay")
        x, y = (_number(request.query_params.get(axis, ""), axis) for axis in "xy")
        if not (x < overlay.width and y < overlay.height):
            raise HTTPException(404, "outside the overlay")
        found = await self._worked(partial(overlay.find, x, y))
        if found is None:
            return _fresh({"found": None})
        entry = overlay.classes[found.class_index - 1]
        area = None if overlay.mpp is None else round(found.area * overlay.mpp**2, 2)
        return _fresh(
            {
                "found": {
                    "class": entry.name, "colour": entry.colour, "id": found.number, "area_px": found.area,
                    "area_um2": area, "rings": found.rings, "whole": found.whole,
                }
            }
        )  # fmt: skip

    async def events(self, request: Request) -> Response:
        """What changes, as server-sent events; the session ends with the stream."""
        live = self._live()
        session = live.join()
        if session is None:
            raise HTTPException(503, "too many pages look at this slide; close one")
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._stream(live, session), media_type="text/event-stream", headers=headers)

    async def _stream(self, live: LiveSlide, session: str) -> AsyncIterator[str]:
        told: dict[str, Any] = {}
        silent, revision = 0.0, live.view.overlay.revision
        try:
            yield _event("hello", {"session": session})
            while not self.closing():
                if live.view.overlay.revision != revision:
                    revision = live.view.overlay.revision
                    yield _event("scene", self.scene.describe())
                status = live.status(session)
                status["save"] = self.scene.saving.status if self.scene.saving else None
                parts = live.changes(session)
                if parts:
                    yield _event("tiles", {"parts": parts})
                if status != told or silent >= SILENT_SECONDS:
                    told, silent = status, 0.0
                    yield _event("status", status)
                await asyncio.sleep(EVENT_SECONDS)
                silent += EVENT_SECONDS
        finally:
            live.leave(session)

    async def look(self, request: Request) -> Response:
        """Where a page looks: {session, x, y, width, height} in pixels of level 0."""
        body = await _body(request)
        part = [_whole(body, key, -FARTHEST, FARTHEST) for key in ("x", "y", "width", "height")]
        if not self._live().look(str(body.get("session", ""))[:64], *part):
            raise HTTPException(404, "no such session; open the page again")
        return _fresh({"ok": True})

    async def choose(self, request: Request) -> Response:
        """Other settings: some of {seed, steps, conditions}, as the form of the scene asks for them."""
        live, body = self._live(), await _body(request)
        try:
            answers = live.form.read(body)
        except SettingsError as error:
            raise HTTPException(400, str(error)) from error
        await self._worked(partial(live.choose, answers))
        return _fresh({"ok": True})

    async def save(self, request: Request) -> Response:
        """Render what is being looked at."""
        self._live()
        await _body(request)
        try:
            return _fresh((await self._worked(self.scene.save)).status)
        except SettingsError as error:
            raise HTTPException(409, str(error)) from error

    async def stop_saving(self, request: Request) -> Response:
        """Give up the render."""
        self._live()
        await _body(request)
        if self.scene.saving is None or not self.scene.saving.running:
            raise HTTPException(409, "nothing is being saved")
        self.scene.saving.stop()
        return _fresh({"ok": True})

    def _live(self) -> LiveSlide:
        if self.scene.live is None:
            raise HTTPException(404, "this slide is finished: nothing is painted")
        return self.scene.live

    async def _worked(self, work: Callable[[], Any]) -> Any:
        """Run a piece of work in a thread, a few at a time; refused where too many wait."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(AT_A_TIME)
        if self._limiter.statistics().tasks_waiting >= WAITING:
            raise HTTPException(503, "too many requests wait; try again")
        return await anyio.to_thread.run_sync(work, limiter=self._limiter)


def _page_files() -> dict[str, tuple[bytes, str]]:
    """The page's files by name, read once: no request names a path."""
    root = resources.files("wsigen.viewer").joinpath("page")
    files = {entry.name: entry for entry in root.iterdir() if entry.is_file()}
    files |= {f"openseadragon/{entry.name}": entry for entry in root.joinpath("openseadragon").iterdir()}
    return {
        name: (entry.read_bytes(), PAGE_TYPES.get("." + name.rpartition(".")[2], "text/plain; charset=utf-8"))
        for name, entry in files.items()
    }


def _number(text: str, name: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise HTTPException(400, f"{name}: must be a whole number")
    return int(text)


def _tile_of(names: dict[str, str], levels: list[tuple[int, int]]) -> tuple[int, int, int]:
    level, column, row = (_number(names[name], name) for name in ("level", "column", "row"))
    if tile_box(levels, level, column, row) is None:
        raise HTTPException(404, "no such tile")
    return level, column, row


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object that a page sent."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise HTTPException(400, "the body must be application/json")
    content = b""
    try:
        async for part in request.stream():
            content += part
            if len(content) > LARGEST_BODY:
                raise HTTPException(413, "the body is too large")
        body = json.loads(content)
    except (ClientDisconnect, ValueError, RecursionError):
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise HTTPException(400, "the body must be an object")
    return body


def _whole(body: dict[str, Any], name: str, least: int, most: int) -> int:
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise HTTPException(400, f"{name}: must be a whole number from {least} to {most}")
    return value


def _fresh(content: Any) -> Response:
    return JSONResponse(content, headers={"Cache-Control": "no-store"})


def _event(name: str, content: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"


async def _refused(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


async def _impossible(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 422)


async def _defect(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "internal error; the terminal says more"}, 500)


class _OwnPageOnly:
    """Refuses requests for another host (DNS rebinding) and changes asked for by another site's page."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        if host.partition(":")[0] not in (HOST, "localhost") or (origin is not None and origin != f"http://{host}"):
            await JSONResponse({"error": "not for this host"}, 403)(scope, receive, send)
            return
        await self.app(scope, receive, send)
