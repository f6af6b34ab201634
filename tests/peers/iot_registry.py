# SPDX-License-Identifier: GPL-3.0-or-later
"""AWS IoT's registry and fleet index, as implemented by moto, in a separate process."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .process import REPOSITORY, Process

__all__ = ["REGION", "FixedRegistry", "IotRegistry"]

REGION = "eu-central-1"
ACCOUNT = "123456789012"


class IotRegistry:
    """A registry that contains things.

    Args:
        things: keyword arguments of moto's ``create_thing`` for each thing.
        groups: names of things by group.
    """

    def __init__(self, things: list[dict[str, Any]], groups: dict[str, list[str]] | None = None) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="iot-registry-")
        self._content = {"things": things, "groups": groups or {}}

    def __enter__(self) -> IotRegistry:
        folder = Path(self._home.name)
        content = folder / "content.json"
        content.write_text(json.dumps(self._content))
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests")}
        command = [sys.executable, "-m", "peers.iot_registry", content]
        self._process = Process(command, folder / "log", environment)
        try:
            self.url = self._process.wait_for_output(r"(?m)^ready (.*)$", 60)[1]
        except BaseException:
            self.__exit__()
            raise
        self.environment = {
            "AWS_ACCESS_KEY_ID": "AKIAANYBODY",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_ENDPOINT_URL_IOT": self.url,
            "AWS_REGION": REGION,
        }
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stop()
        self._home.cleanup()

    @contextmanager
    def checking_keys(self) -> Iterator[None]:
        """Refuse all calls: the account has no users.

        A user would not help: moto treats the query of a GET as its body, and so rejects every signature of ListThings.
        """
        self._post("/moto-api/reset-auth", b"0")
        try:
            yield
        finally:
            self._post("/moto-api/reset-auth", b"1e9")

    def _post(self, path: str, body: bytes) -> None:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "text/plain"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.read()

    def requests(self) -> list[str]:
        """The request lines in the server's log."""
        return [line.split('"')[1] for line in self._process.output().splitlines() if " HTTP/1.1" in line]


class FixedRegistry:
    """A registry with fixed answers for all clients, which AWS might never give.

    Args:
        things: what ListThings answers, all on one page; names alone become things of the account and region.
        index: what SearchIndex answers.
    """

    def __init__(
        self,
        things: list[str | dict[str, Any]],
        *,
        account: str = ACCOUNT,
        region: str = REGION,
        index: list[dict[str, Any]] | None = None,
    ) -> None:
        self.asked = 0
        registry = self

        def described(thing: str | dict[str, Any]) -> dict[str, Any]:
            fields = {"thingName": thing} if isinstance(thing, str) else thing
            arn = f"arn:aws:iot:{region}:{account}:thing/{fields['thingName']}"
            return {"thingArn": arn, "version": 1, "attributes": {}, **fields}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer({"things": list(map(described, things))})

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self._answer({"things": index or []})

            def _answer(self, answer: dict[str, Any]) -> None:
                registry.asked += 1
                body = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FixedRegistry:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def serve(content: dict[str, Any]) -> None:
    """Run the server until killed. moto's own code adds the things, because 2,500 calls would take long."""
    from moto.iot.models import iot_backends  # noqa: PLC0415  large
    from moto.server import ThreadedMotoServer  # noqa: PLC0415  large

    registry = iot_backends[ACCOUNT][REGION]
    for thing_type in sorted({thing["thing_type_name"] for thing in content["things"]} - {None}):
        registry.create_thing_type(thing_type, {})
    for thing in content["things"]:
        registry.create_thing(**thing)
    for group, members in content["groups"].items():
        registry.create_thing_group(group, None, {})
        for name in members:
            registry.add_thing_to_thing_group(group, None, name, None)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=True)
    server.start()
    host, port = server.get_host_and_port()
    print(f"ready http://{host}:{port}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    serve(json.loads(Path(sys.argv[1]).read_text()))
