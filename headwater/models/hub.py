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
def hub(offline: bool = False) -> Iterator[None]:
    """Silence the model hub's library, and let it use its cache alone, without trying to connect.

    Args:
        offline: also where there is a connection.
    """
    from huggingface_hub import constants

    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "timm", "httpx")]
    levels, before = [logger.level for logger in loggers], constants.HF_HUB_OFFLINE
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    constants.HF_HUB_OFFLINE = before or offline or not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _reachable(address: str) -> bool:
    """Whether the host of a web address can be resolved, or a proxy is set that may resolve it."""
    if getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(address).hostname, 443)
    except OSError:
        return False
    return True


@contextmanager
def patience() -> Iterator[None]:
    """Limit the wait for a server that does not answer; torch's and the hub's loaders set no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
