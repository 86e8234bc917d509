"""A served page, and a visitor who talks to it as a browser does."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn
from websockets.sync.client import ClientConnection, connect

from headwater.serve.app import build
from headwater.serve.networks import Network
from headwater.serve.photo import MAX_BYTES
from headwater.serve.server import listen, settings


@contextmanager
def served(networks: dict[str, Network], **options: Any) -> Iterator[str]:
    """The page at a free port, in a thread; yields ``HOST:PORT``."""
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(settings(build(networks, **options)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class Client:
    """One visitor."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection, self.number = connection, 0
        self.hello = self.read()

    def read(self) -> dict[str, Any]:
        """The next answer; its arrays in place of where they are."""
        answer = self.connection.recv(timeout=120)
        if isinstance(answer, str):
            return json.loads(answer)
        (length,) = struct.unpack("<I", answer[:4])
        message = json.loads(answer[4 : 4 + length])
        for name, at in message["arrays"].items():
            start = 4 + length + at["at"]
            assert start % 8 == 0
            values = np.frombuffer(answer[start : start + at["bytes"]], at["type"]).reshape(at["shape"])
            message["arrays"][name] = values
        return message

    def until(self, *kinds: str) -> dict[str, Any]:
        """The next answer of one of these kinds; those before it are left."""
        while (answer := self.read())["kind"] not in kinds:
            pass
        return answer

    def ask(self, do: str, /, **options: Any) -> int:
        self.number += 1
        self.connection.send(json.dumps({"do": do, "id": self.number, **options}))
        return self.number

    def upload(self, content: bytes) -> dict[str, Any]:
        self.connection.send(content)
        return self.until("photo", "error")

    def explain(self, *methods: str, target: int | str | None = None, **options: Any) -> list[dict[str, Any]]:
        """All maps, or errors, that one request gives."""
        network = self.hello["networks"][0]["name"]
        number = self.ask("explain", network=network, methods=methods, target=target, **options)
        answers = []
        while (answer := self.until("map", "error", "done"))["kind"] != "done":
            assert answer["id"] == number
            answers.append(answer)
        return answers


@contextmanager
def visiting(address: str, **headers: str) -> Iterator[Client]:
    """A visitor, until the block ends."""
    with connect(f"ws://{address}/visit", max_size=2 * MAX_BYTES, additional_headers=headers) as connection:
        yield Client(connection)
