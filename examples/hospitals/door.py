"""The coordinator's door: passes on what SuperNodes say to the SuperLink, and nothing else.

A SuperLink offers three interfaces on one port. SuperNodes need ``/v1/fleet``. Through
``/v1/control`` runs are started and nodes are registered, and Flower asks nobody who does it: who
reaches it can run code at every hospital. So the SuperLink listens on the coordinator's loopback
interface only, and this is what hospitals connect to. A reverse proxy that your institution
already runs does the same; docs/deployment.md shows one.

    python door.py --host 0.0.0.0 --port 443 --superlink 127.0.0.1:9092
        --certificate server.pem --key server.key --ca ca.pem
"""

from __future__ import annotations

import argparse
import ssl
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import httpx
import uvicorn

OPEN = "/v1/fleet/"
_TIMEOUT_SECONDS = 120.0
_MOST_BYTES = 1 << 30
# Each side speaks for its own connection; httpx unpacks what comes back.
_ASKED = {b"host", b"connection", b"keep-alive", b"transfer-encoding", b"content-length"}
_ANSWERED = {*_ASKED, b"content-encoding"}

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Door:
    """An ASGI application in front of the SuperLink at ``address`` (host:port)."""

    def __init__(self, address: str, ca: str) -> None:
        self._address = address
        context = ssl.create_default_context(cafile=ca)
        self._client = httpx.AsyncClient(verify=context, timeout=_TIMEOUT_SECONDS, trust_env=False)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        if not path.startswith(OPEN) or ".." in path or scope["method"] != "POST":
            await _answer(send, 404, b"not here")
            return
        body = await _body(receive)
        if body is None:
            await _answer(send, 413, b"too large")
            return
        url = httpx.URL(f"https://{self._address}{path}", query=scope["query_string"])
        headers = [pair for pair in scope["headers"] if pair[0] not in _ASKED]
        try:
            reply = await self._client.post(url, content=body, headers=headers)
        except httpx.TransportError:
            await _answer(send, 502, b"the SuperLink does not answer")  # SuperNodes ask again
            return
        kept = [pair for pair in reply.headers.raw if pair[0].lower() not in _ANSWERED]
        await _answer(send, reply.status_code, reply.content, kept)


async def _body(receive: Receive) -> bytes | None:
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if size > _MOST_BYTES:
            return None
        parts.append(part)
        more = message.get("more_body", False)
    return b"".join(parts)


async def _answer(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send(
        {"type": "http.response.start", "status": status, "headers": [*(headers or ()), length]}
    )
    await send({"type": "http.response.body", "body": body})


def main() -> int:
    """Run the door until it is stopped."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option in ("--superlink", "--certificate", "--key", "--ca"):
        parser.add_argument(option, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    chosen = parser.parse_args()
    uvicorn.run(
        Door(chosen.superlink, chosen.ca),
        host=chosen.host,
        port=chosen.port,
        ssl_certfile=chosen.certificate,
        ssl_keyfile=chosen.key,
        log_level="warning",
        lifespan="off",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
