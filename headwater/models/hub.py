"""Downloads from a model hub: quiet, with a time limit, and from the cache at once where there is no connection."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies

_NETWORK_TIMEOUT = 30.0  # seconds without an answer before a download is given up


@contextmanager
def hub() -> Iterator[None]:
    """The model hub's library, quiet; without a connection it looks into its cache at once."""
    from huggingface_hub import constants

    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "timm", "httpx")]
    levels, offline = [logger.level for logger in loggers], constants.HF_HUB_OFFLINE
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    constants.HF_HUB_OFFLINE = offline or not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _reachable(address: str) -> bool:
    """Whether a web address has a host that is known here, or a proxy that may know it."""
    if getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(address).hostname, 443)
    except OSError:
        return False
    return True


@contextmanager
def patience() -> Iterator[None]:
    """Give a silent network a limit; the hub's loader sets none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
