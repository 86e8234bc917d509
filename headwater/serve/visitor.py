"""One visitor: one connection, whose photo and maps are gone when it closes."""

from __future__ import annotations

import asyncio
import contextlib
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
from headwater.serve.line import Line, Standing
from headwater.serve.messages import frame, parse
from headwater.serve.networks import Network, methods_on_offer
from headwater.serve.photo import ACCEPTED, MAX_BYTES, Photo, example, examples
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
        line: where work that takes long waits.
        aside: where short work is done meanwhile.
    """

    def __init__(self, socket: WebSocket, networks: Mapping[str, Network], line: Line, aside: Executor) -> None:
        self._socket, self._networks, self._line, self._aside = socket, networks, line, aside
        self._sending = asyncio.Lock()
        self._job: asyncio.Task[None] | None = None
        self._photo: Photo | None = None
        self._network = next(iter(networks.values()))
        self._maps: dict[str, hw.ImageExplanation] = {}

    async def attend(self) -> None:
        """Answer until the page is closed."""
        try:
            await self._tell(
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
            await self._told(None, lambda: self._take(content, "photo", None))
            return
        try:
            request = parse(message.get("text") or "")
        except InputError as error:
            await self._tell("error", message=str(error))
            return
        number = request.get("id")
        await self._told(number, lambda: self._do(request, number))

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
                    message, arrays = await self._beside(partial(painted, e, look))
                    await self._tell("paint", number, arrays, method=e.method, **message)
                await self._tell("painted", number)
            case "file":
                look, what, maps = Look.of(request), request.get("what"), tuple(self._maps.values())
                if what == "grid" and maps:
                    name, content, caption = await self._beside(partial(paper_figure, maps, look))
                else:
                    e, caption = self._map(request.get("method")), ""
                    name, content = await self._beside(partial(drawn_file, e, what, look))
                await self._tell("file", number, {"content": content}, name=name, caption=caption)
            case "cancel":
                self._stop()
                await self._tell("cancelled", number)
            case other:
                raise InputError(f"there is nothing called {other!r} to do")

    async def _take(self, content: bytes, name: str, number: object) -> None:
        """Take a photo instead of the one before, which stays if this one cannot be read."""
        self._stop()
        photo = await self._beside(lambda: Photo.read(content, name))
        self._photo, self._maps = photo, {}
        facts = {"width": photo.width, "height": photo.height, "animated": photo.animated, "name": name}
        await self._tell("photo", number, {"jpeg": await self._beside(photo.jpeg)}, **facts)

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
                e, message, arrays = await self._line.run(work, self._telling(number, method))
            except HeadwaterError as error:  # the other methods may do
                await self._tell("error", number, message=f"{method}: {error}", method=method)
                continue
            self._maps[method] = e
            await self._tell("map", number, arrays, **message)

    async def _measure(self, number: object) -> None:
        photo, network = self._chosen_photo(), self._network
        if not self._maps:
            raise InputError("there is no map yet; explain the photo first")
        for method, e in tuple(self._maps.items()):
            progress = self._telling(number, f"curves of {method}")
            message, arrays = await self._line.run(partial(curves, network, photo, e), progress)
            await self._tell("curves", number, arrays, **message)

    def _begin(self, job: Callable[[], Awaitable[None]], number: object) -> None:
        """Do a job that takes long, instead of the one before."""
        self._stop()

        async def guarded() -> None:
            with contextlib.suppress(_PageClosedError):
                await self._told(number, job)
                await self._tell("done", number)

        self._job = asyncio.create_task(guarded())

    def _stop(self) -> None:
        if self._job is not None:
            self._job.cancel()
            self._job = None

    async def _told(self, number: object, work: Callable[[], Awaitable[None]]) -> None:
        """Do something; if it fails, tell the page, which goes on."""
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
        await self._tell("error", number, message=message)

    def _telling(self, number: object, what: str) -> Callable[[Standing], Awaitable[None]]:
        """Tells the page how far a piece of work is, when that has changed."""
        last: Standing | None = None

        async def told(standing: Standing) -> None:
            nonlocal last
            if standing != last:
                last = standing
                await self._tell("standing", number, what=what, **vars(standing))

        return told

    async def _tell(self, kind: str, number: object = None, arrays: Arrays | None = None, /, **message: Any) -> None:
        answer = {"kind": kind, "id": number, **message}
        async with self._sending:
            try:
                if arrays is None:
                    await self._socket.send_json(answer)
                else:
                    await self._socket.send_bytes(frame(answer, arrays))
            except (WebSocketDisconnect, RuntimeError, OSError) as error:
                raise _PageClosedError from error

    async def _beside(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._aside, work)

    def _chosen_photo(self) -> Photo:
        if self._photo is None:
            raise InputError("there is no photo yet; drop one or pick an example")
        return self._photo

    def _map(self, method: object) -> hw.ImageExplanation:
        if method not in self._maps:
            raise InputError(f"there is no map of {method!r} yet")
        return self._maps[str(method)]


def _class(network: Network, given: object) -> int | None:
    if given is not None and (not isinstance(given, (int, str)) or isinstance(given, bool)):
        raise InputError(f"a class is a number or a name, got {given!r}")
    return None if given is None else network.card.class_index(given)
