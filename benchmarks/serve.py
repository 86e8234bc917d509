"""The page under load: time to the first map, twenty visitors at once, memory after many images.

    python -m benchmarks.serve [--model NAME] [--visitors 20] [--images 100]

Starts ``headwater serve`` in a process of its own at a free port of this machine. Every image is another; the maps of
the visitors are compared with those that the same network makes here.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from websockets.sync.client import ClientConnection, connect

import headwater as hw
from headwater.models import network_input

ROOT = Path(__file__).resolve().parents[1]


class Visitor:
    """One page."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.network = self.until("hello")["networks"][0]["name"]

    def until(self, *kinds: str) -> dict[str, Any]:
        """The next answer of these kinds; its values in place of where they are."""
        while True:
            answer = self.connection.recv(timeout=600)
            if isinstance(answer, str):
                message = json.loads(answer)
            else:
                (length,) = struct.unpack("<I", answer[:4])
                message, start = json.loads(answer[4 : 4 + length]), 4 + length
                for name, at in message["arrays"].items():
                    part = answer[start + at["at"] : start + at["at"] + at["bytes"]]
                    message["arrays"][name] = np.frombuffer(part, at["type"]).reshape(at["shape"])
            if message["kind"] == "error":
                raise RuntimeError(message["message"])
            if message["kind"] in kinds:
                return message

    def explain(self, photo: bytes) -> np.ndarray:
        """Upload and explain."""
        self.connection.send(photo)
        self.until("photo")
        self.connection.send(json.dumps({"do": "explain", "network": self.network, "methods": ["otsuki2024"]}))
        values = self.until("map")["arrays"]["map"]
        self.until("done")
        return values


@contextmanager
def served(model: str | None) -> Iterator[tuple[str, int]]:
    """The address and the process of a page."""
    command = [sys.executable, "-m", "headwater", "serve", "--port", "0", *(["--model", model] if model else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "http://" in line)
        yield re.search(r"http://([\d.:]+)", line)[1], process.pid  # type: ignore[index]
        process.terminate()


def resident(process: int) -> float:
    """Resident memory in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def photo(number: int) -> bytes:
    """A photo that no other number has: an example, shifted."""
    image = Image.open(ROOT / "examples" / ("tabby.jpg" if number % 2 else "espresso.jpg")).convert("RGB")
    shifted = np.roll(np.asarray(image), (7 * number, 3 * number), (0, 1))
    stream = io.BytesIO()
    Image.fromarray(shifted).save(stream, "png")
    return stream.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny20")
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--images", type=int, default=100)
    arguments = parser.parse_args()
    model = hw.load_model(arguments.model)
    explain = hw.load_method("otsuki2024", model)

    def is_own(values: np.ndarray, content: bytes) -> bool:
        with Image.open(io.BytesIO(content)) as image:
            expected = explain(network_input(model, [image.convert("RGB")])).heatmap[0].numpy()
        return bool(np.abs(values - expected).max() <= 1e-3 * np.abs(expected).max())

    with served(arguments.model) as (address, process):

        def visit(number: int) -> tuple[bytes, np.ndarray]:
            with connect(f"ws://{address}/visit", max_size=None) as connection:
                content = photo(number)
                return content, Visitor(connection).explain(content)

        with connect(f"ws://{address}/visit", max_size=None) as connection:
            visitor, content = Visitor(connection), (ROOT / "examples" / "tabby.jpg").read_bytes()
            began = time.perf_counter()
            visitor.explain(content)
            print(f"first map: {time.perf_counter() - began:.2f} s after the upload began ({arguments.model})")
            memory = dict[int, float]()
            for number in range(1, arguments.images + 1):
                visitor.explain(photo(number))
                if number in (10, arguments.images):
                    memory[number] = resident(process)
        told = ", ".join(f"{size:.0f} MB after {number} images" for number, size in memory.items())
        print(f"resident memory: {told} ({memory[arguments.images] / memory[10] - 1:+.1%})")
        began = time.perf_counter()
        with ThreadPoolExecutor(arguments.visitors) as crowd:
            results = list(crowd.map(visit, range(arguments.visitors)))
        seconds = time.perf_counter() - began
        own = sum(is_own(values, content) for content, values in results)
        print(f"{arguments.visitors} visitors at once: {own} got the map of their own image, all in {seconds:.1f} s")


if __name__ == "__main__":
    main()
