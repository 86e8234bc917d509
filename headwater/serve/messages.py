"""How page and server talk: JSON, with arrays behind it in the same frame."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from headwater.errors import InputError

_LONGEST = 4000  # letters of a request; the page sends a few hundred
_ALIGNED = 8  # arrays begin at multiples of it, as the page's typed arrays need


def frame(message: Mapping[str, Any], arrays: Mapping[str, np.ndarray | bytes]) -> bytes:
    """A message with arrays, as one binary frame.

    Four bytes with the length of the JSON (little-endian), the JSON, then the arrays one behind the other, each at a
    multiple of 8 bytes. The JSON's ``arrays`` has of each name its place, length in bytes, type and shape.
    """
    contents, places, end = [], {}, 0
    for name, array in arrays.items():
        values = np.frombuffer(array, np.uint8) if isinstance(array, bytes) else np.ascontiguousarray(array)
        places[name] = {"at": end, "bytes": values.nbytes, "type": values.dtype.name, "shape": values.shape}
        contents.append(values.tobytes().ljust(-(-values.nbytes // _ALIGNED) * _ALIGNED, b"\0"))
        end += len(contents[-1])
    head = json.dumps({**message, "arrays": places}).encode()
    head = head.ljust(-(-(len(head) + 4) // _ALIGNED) * _ALIGNED - 4)
    return b"".join((struct.pack("<I", len(head)), head, *contents))


def parse(text: str) -> dict[str, Any]:
    """A request of the page.

    Raises:
        InputError: it is too long, or not a JSON object with a text ``do``.
    """
    if len(text) > _LONGEST:
        raise InputError(f"a request has at most {_LONGEST:,} letters, this one {len(text):,}")
    try:
        request = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"a request must be JSON ({error})") from error
    if not isinstance(request, dict) or not isinstance(request.get("do"), str):
        raise InputError('a request must be a JSON object that says what to do, such as {"do": "cancel"}')
    return request
