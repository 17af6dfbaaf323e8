"""An in-process grid on the real clock, for what must happen beside the loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import Message
from flwr.clientapp import ClientApp

from flwr_afuic.app.local import LocalGrid


class RealTimeGrid:
    """Replies as soon as a client's thread has one; it offers the engine no clock."""

    def __init__(self, app: ClientApp, nodes: int) -> None:
        self._grid = LocalGrid(app, nodes, threads=4)

    def get_nodes(self) -> Iterable[Any]:
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        flights = self._grid._flights
        done = [i for i in message_ids if i in flights and flights[i].future.done()]
        return [flights.pop(i).future.result() for i in done]

    def close(self) -> None:
        self._grid.close()
