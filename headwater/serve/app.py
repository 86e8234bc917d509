"""The page as an ASGI application: a few files, and one connection for each visitor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from headwater.errors import InputError
from headwater.serve.access import Guard
from headwater.serve.networks import Network
from headwater.serve.photo import example
from headwater.serve.queue import JobQueue
from headwater.serve.visitor import Visitor

MOST_VISITORS = 64
FULL = 4503
"""Code with which a connection is closed that would be one too many."""
_STATIC = Path(__file__).parent / "static"


def build(networks: Mapping[str, Network], password: str | None = None, hosts: tuple[str, ...] = ("*",)) -> Starlette:
    """The page for these networks.

    Args:
        networks: by name, the first is the one that is chosen at first.
        password: that visitors are asked for; ``None`` for none.
        hosts: names under which the page may be asked for; a website that lets its own name point here gets nothing.
    """
    queue, drawing, present = JobQueue(), ThreadPoolExecutor(1, "headwater-drawing"), set[Visitor]()

    async def attend(socket: WebSocket) -> None:
        await socket.accept()
        if len(present) >= MOST_VISITORS:
            await socket.close(FULL, f"{MOST_VISITORS} visitors are here already; come back later")
            return
        visitor = Visitor(socket, networks, queue, drawing)
        present.add(visitor)
        try:
            await visitor.attend()
        finally:
            present.remove(visitor)

    async def page(_: Request) -> Response:
        return FileResponse(_STATIC / "index.html")

    async def login(_: Request) -> Response:
        return FileResponse(_STATIC / "login.html")

    async def example_photo(request: Request) -> Response:
        try:
            return Response(example(request.path_params["name"]), media_type="image/jpeg")
        except InputError as error:
            raise HTTPException(404, str(error)) from error

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        queue.close()
        drawing.shutdown(wait=False, cancel_futures=True)

    routes = [
        Route("/", page),
        Route("/login", login),
        Route("/examples/{name}", example_photo),
        WebSocketRoute("/visit", attend),
        Mount("/static", StaticFiles(directory=_STATIC)),
    ]
    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
        Middleware(Guard, password=password),
    ]
    return Starlette(routes=routes, middleware=middleware, lifespan=lifespan)
