# SPDX-License-Identifier: GPL-3.0-or-later
"""A socket in place of the hub's, with the answers of a test."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunnelproxy.hub.location import SOCKET_NAME

__all__ = ["hub"]


@contextmanager
def hub(folder: Path, *answers: Callable[[socket.socket], None]) -> Iterator[list[dict[str, Any]]]:
    """Run a hub that answers the first request with the first answer, and so on; yield the received requests."""
    asked: list[dict[str, Any]] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / SOCKET_NAME))
        listener.listen()

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    line = connection.makefile().readline()
                    asked.append(json.loads(line) if line else {})
                    answer(connection)

        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        yield asked
        serving.join(5)
        assert not serving.is_alive(), "the hub did not receive as many requests as expected"
