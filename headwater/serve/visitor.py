"""One visitor: one connection, whose photo and maps are gone when it closes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

import headwater as hw
from headwater.errors import HeadwaterError, InputError
from headwater.methods.method import Progress
from headwater.serve.messages import frame, parse
from headwater.serve.networks import Network, methods_on_offer
from headwater.serve.photo import ACCEPTED, MAX_BYTES, Photo, example, examples
from headwater.serve.queue import JobQueue, JobState, Report
from headwater.serve.views import COLORMAPS, Arrays, Look, curves, drawn_file, map_view, painted, paper_figure

MOST_METHODS = 4


class _PageClosedError(Exception):
    """Nobody is there to be told anything."""


class Visitor:
    """Answers the requests of one page.

    A photo arrives as a binary message without a name. Every other request is JSON with ``do`` and a number ``id``,
    which each answer repeats. A request that takes long ends the one before.

    Args:
        socket: the connection, accepted.
        networks: on offer, by name.
        queue: where work that takes long waits.
        drawing: does short work meanwhile: decoding, colouring, figures.
    """

    def __init__(self, socket: WebSocket, networks: Mapping[str, Network], queue: JobQueue, drawing: Executor) -> None:
        self._socket, self._networks, self._queue, self._drawing = socket, networks, queue, drawing
        self._lock = asyncio.Lock()
        self._job: asyncio.Task[None] | None = None
        self._photo: Photo | None = None
        self._network = next(iter(networks.values()))
        self._maps: dict[str, hw.ImageExplanation] = {}

    async def attend(self) -> None:
        """Answer until the page is closed."""
        try:
            await self._send(
                "hello",
                networks=[network.describe() for network in self._networks.values()],
                methods=methods_on_offer(),
                colormaps=COLORMAPS,
                examples=examples(),
                most_bytes=MAX_BYTES,
                accepted=ACCEPTED,
            )
            while (message := await self._socket.receive())["type"] == "websocket.receive":
                await self._answer(message)
        except _PageClosedError:
            pass
        finally:
            self._stop()

    async def _answer(self, message: Mapping[str, Any]) -> None:
        content = message.get("bytes")
        if content is not None:
            await self._guarded(None, lambda: self._take(content, "photo", None))
            return
        try:
            request = parse(message.get("text") or "")
        except InputError as error:
            await self._send("error", message=str(error))
            return
        number = request.get("id")
        await self._guarded(number, lambda: self._do(request, number))

    async def _do(self, request: Mapping[str, Any], number: object) -> None:
        match request["do"]:
            case "example":
                await self._take(example(request.get("name")), str(request["name"]), number)
            case "explain":
                self._begin(lambda: self._explain(request, number), number)
            case "curves":
                self._begin(lambda: self._measure(number), number)
            case "paint":
                look = Look.of(request)
                for e in tuple(self._maps.values()):
                    message, arrays = await self._in_thread(partial(painted, e, look))
                    await self._send("paint", number, arrays, method=e.method, **message)
                await self._send("painted", number)
            case "file":
                look, what, maps = Look.of(request), request.get("what"), tuple(self._maps.values())
                if what == "grid" and maps:
                    name, content, caption = await self._in_thread(partial(paper_figure, maps, look))
                else:
                    e, caption = self._map(request.get("method")), ""
                    name, content = await self._in_thread(partial(drawn_file, e, what, look))
                await self._send("file", number, {"content": content}, name=name, caption=caption)
            case "cancel":
                self._stop()
                await self._send("cancelled", number)
            case other:
                raise InputError(f"there is nothing called {other!r} to do")

    async def _take(self, content: bytes, name: str, number: object) -> None:
        """Take a photo instead of the one before, which stays if this one cannot be read."""
        self._stop()
        photo = await self._in_thread(lambda: Photo.read(content, name))
        self._photo, self._maps = photo, {}
        facts = {"width": photo.width, "height": photo.height, "animated": photo.animated, "name": name}
        await self._send("photo", number, {"jpeg": await self._in_thread(photo.jpeg)}, **facts)

    async def _explain(self, request: Mapping[str, Any], number: object) -> None:
        photo, look = self._chosen_photo(), Look.of(request)
        methods = request.get("methods")
        if not isinstance(methods, list) or not 1 <= len(methods) <= MOST_METHODS:
            raise InputError(f"choose one to {MOST_METHODS} methods, got {methods!r}")
        network = self._networks.get(str(request.get("network")))
        if network is None:
            raise InputError(f"there is no network {request.get('network')!r}; there are {', '.join(self._networks)}")
        target, against = (_class(network, request.get(role)) for role in ("target", "against"))
        self._network, self._maps = network, {}
        for method in dict.fromkeys(map(str, methods)):

            def work(progress: Progress, method: str = method) -> tuple[hw.ImageExplanation, dict[str, Any], Arrays]:
                e = network.explain(photo.decoded(), photo.shown, photo.path, method, target, against, progress)
                return e, *map_view(e, look)

            try:
                e, message, arrays = await self._queue.run(work, self._reporting(number, method))
            except HeadwaterError as error:  # the other methods may do
                await self._send("error", number, message=f"{method}: {error}", method=method)
                continue
            self._maps[method] = e
            await self._send("map", number, arrays, **message)

    async def _measure(self, number: object) -> None:
        photo, network = self._chosen_photo(), self._network
        if not self._maps:
            raise InputError("there is no map yet; explain the photo first")
        for method, e in tuple(self._maps.items()):
            progress = self._reporting(number, f"curves of {method}")
            message, arrays = await self._queue.run(partial(curves, network, photo, e), progress)
            await self._send("curves", number, arrays, **message)

    def _begin(self, job: Callable[[], Awaitable[None]], number: object) -> None:
        """Do a job that takes long, instead of the one before."""
        self._stop()

        async def guarded_job() -> None:
            with contextlib.suppress(_PageClosedError):
                await self._guarded(number, job)
                await self._send("done", number)

        self._job = asyncio.create_task(guarded_job())

    def _stop(self) -> None:
        if self._job is not None:
            self._job.cancel()
            self._job = None

    async def _guarded(self, number: object, work: Callable[[], Awaitable[None]]) -> None:
        """Do something; if it fails, say so to the page, which goes on."""
        try:
            await work()
            return
        except HeadwaterError as error:
            message = str(error)
        except _PageClosedError:
            raise
        except Exception as error:  # a fault of the page's own, or of a library's
            traceback.print_exc(file=sys.stderr)
            message = f"this failed in the server: {type(error).__name__}: {error}"
        await self._send("error", number, message=message)

    def _reporting(self, number: object, what: str) -> Report:
        """Tells the page how far a job is, when that has changed."""
        last: JobState | None = None

        async def report(state: JobState) -> None:
            nonlocal last
            if state != last:
                last = state
                await self._send("state", number, what=what, **vars(state))

        return report

    async def _send(self, kind: str, number: object = None, arrays: Arrays | None = None, /, **message: Any) -> None:
        answer = {"kind": kind, "id": number, **message}
        async with self._lock:
            try:
                if arrays is None:
                    await self._socket.send_text(json.dumps(answer))
                else:
                    await self._socket.send_bytes(frame(answer, arrays))
            except (WebSocketDisconnect, RuntimeError, OSError) as error:
                raise _PageClosedError from error

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._drawing, work)

    def _chosen_photo(self) -> Photo:
        if self._photo is None:
            raise InputError("there is no photo yet; drop one or pick an example")
        return self._photo

    def _map(self, method: object) -> hw.ImageExplanation:
        found = self._maps.get(str(method))
        if found is None:
            raise InputError(f"there is no map of {method!r} yet")
        return found


def _class(network: Network, given: object) -> int | None:
    if given is not None and (not isinstance(given, (int, str)) or isinstance(given, bool)):
        raise InputError(f"a class is a number or a name, got {given!r}")
    return None if given is None else network.card.class_index(given)
