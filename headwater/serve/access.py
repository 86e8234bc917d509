"""Who may see the page: this machine alone, or whoever knows the password."""

from __future__ import annotations

import asyncio
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

COOKIE = "headwater"
_OPEN = ("/login", "/static/page.css")
_LONGEST_FORM = 2000  # bytes
_PATIENCE = 1.0  # seconds that an answer to a wrong password takes
_MOST_WAITING = 8  # wrong passwords that are being answered; with it, passwords that can be tried in a second
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Lets through requests of the page itself, and of those who know the password.

    A connection that another website's script opens is refused by its origin. Every answer forbids the browser to load
    anything from elsewhere.

    Args:
        app: what is guarded.
        password: that visitors are asked for; ``None`` for none.
    """

    def __init__(self, app: ASGIApp, password: str | None = None) -> None:
        self.app, self._password = app, password
        self._token = secrets.token_urlsafe(32)
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI has it."""
        if scope["type"] == "websocket":
            allowed = same_origin(Headers(scope=scope)) and self._known(scope)
            await (self.app if allowed else WebSocketClose(4403, "not allowed"))(scope, receive, send)
            return
        if scope["type"] == "http":
            send = _with_headers(send)
            if self._password is not None and scope["path"] == "/login" and scope["method"] == "POST":
                await (await self._log_in(Request(scope, receive)))(scope, receive, send)
                return
            if not self._known(scope) and scope["path"] not in _OPEN:
                await RedirectResponse("/login", 303)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        if self._password is None:
            return True
        try:
            cookie = SimpleCookie(Headers(scope=scope).get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and secrets.compare_digest(cookie.value.encode(), self._token.encode())

    async def _log_in(self, request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _LONGEST_FORM:
                return Response("too long", 413)
        if self._waiting >= _MOST_WAITING:
            return Response("too many wrong passwords at once; try again in a second", 429)
        given = parse_qs(body.decode(errors="replace")).get("password", [""])[0]
        if not secrets.compare_digest(given.encode(), str(self._password).encode()):
            self._waiting += 1
            try:
                await asyncio.sleep(_PATIENCE)
            finally:
                self._waiting -= 1
            return RedirectResponse("/login?wrong", 303)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
        return answer


def same_origin(headers: Headers) -> bool:
    """Whether a request comes from the page itself, or from no browser."""
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host")


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message.setdefault("headers", [])
            MutableHeaders(scope=message).update(_HEADERS)
        await send(message)

    return sending
