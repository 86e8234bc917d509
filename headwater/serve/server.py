"""Starts the page: the networks, a port that is free, and the server."""

from __future__ import annotations

import errno
import ipaddress
import signal
import socket
from collections.abc import Callable, Sequence

import uvicorn
from starlette.applications import Starlette
from torch import nn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from headwater.errors import HeadwaterError, InputError, OutputError
from headwater.methods import DEFAULT_METHOD
from headwater.serve.app import build
from headwater.serve.networks import Network, by_name
from headwater.serve.photo import MAX_BYTES, Photo, example, examples

_TRIED = 50  # ports, from the one that was asked for
_SHORTEST_PASSWORD = 8
_HOSTS = ("127.0.0.1", "localhost")


def serve(
    models: Sequence[nn.Module],
    port: int,
    host: str = "127.0.0.1",
    public: bool = False,
    password: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the page until it is interrupted.

    Args:
        models: on offer, the first is chosen at first.
        port: the first of those that are tried.
        host: address to listen at.
        public: must be true for any other address than this machine's own, which then needs a password.
        password: that visitors are asked for.
        say: prints a line.

    Raises:
        InputError: the address needs ``public`` or a longer password.
        OutputError: no port is free, or the address is not this machine's.
    """
    check_access(host, public, password)
    networks = by_name(models)
    for network in networks.values():
        _warm_up(network)
    listening = listen(host, port)
    taken = listening.getsockname()[1]
    if taken != port and port:
        say(f"port {port} is taken, so it is {taken}")
    if public:
        say(
            f"PUBLIC: whoever can reach {host} and knows the password can upload images and use this machine's "
            "processor. Images are kept in memory until the page is closed. The connection is not encrypted: on a "
            "network that you do not trust, put a server with HTTPS in front."
        )
    named = f"[{host}]" if ":" in host else host
    say(f"Headwater is at http://{named}:{taken} (Ctrl-C ends it)")
    hosts = ("*",) if public else (*_HOSTS, named)
    app = build(networks, password if public else None, hosts)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # the server handles both, and raises them again when it has ended
    uvicorn.Server(settings(app)).run(sockets=[listening])
    say("the page is closed")


def settings(app: Starlette) -> uvicorn.Config:
    """How the page is served, whatever the address."""
    return uvicorn.Config(
        app,
        log_level="warning",
        ws=WebSocketsSansIOProtocol,
        ws_max_size=MAX_BYTES + 1000,
        ws_max_queue=2,
        ws_per_message_deflate=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )


def check_access(host: str, public: bool, password: str | None) -> None:
    """Check that the page is not opened to others by accident.

    Raises:
        InputError: another address than this machine's own without ``public``, or without a password.
    """
    if _is_own(host) and not public:
        return
    if not public:
        raise InputError(
            f"at {host} others can reach the page: upload images and use this machine's processor. If that is meant, "
            "add --public and set a password in the environment variable HEADWATER_PASSWORD"
        )
    if password is None or len(password) < _SHORTEST_PASSWORD:
        raise InputError(
            f"a public page needs a password of at least {_SHORTEST_PASSWORD} letters in the environment variable "
            "HEADWATER_PASSWORD"
        )


def _is_own(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket at the first free port from ``port`` on; any free one for 0.

    Raises:
        OutputError: none is free, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, min(port + _TRIED, 65536)):
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, candidate))
            listening.listen()
        except OSError as error:
            listening.close()
            if error.errno == errno.EADDRINUSE:
                continue
            raise OutputError(f"cannot listen at {host}:{candidate}: {error.strerror or error}") from error
        return listening
    raise OutputError(f"ports {port} to {port + _TRIED - 1} are taken; choose another with --port")


def _warm_up(network: Network) -> None:
    """Trace the network before the first visitor comes, whose first map then takes less time."""
    for name in examples()[:1]:
        photo = Photo.read(example(name), name)
        try:
            network.explain(photo.decoded(), photo.shown, photo.path, DEFAULT_METHOD, None, None, lambda *_: None)
        except HeadwaterError:
            return  # what is wrong with the network is said in the page, where another method may do
