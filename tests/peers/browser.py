# SPDX-License-Identifier: GPL-3.0-or-later
"""Headless Chromium, controlled by the DevTools protocol over a WebSocket."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from .process import Process, wait_for

__all__ = ["Tab", "measured_widths", "open_browser", "require_chromium", "screenshot"]

_WIDTHS = "JSON.stringify([window.innerWidth, document.documentElement.scrollWidth])"


def require_chromium() -> str:
    """The path of Chromium; without it, skip the test and say how to install it."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium, which is large: apt-get install --no-install-recommends chromium")
    return path


def measured_widths(page: Path, width: int) -> tuple[int, int]:
    """The inner width of the window, and the width that the page needs with everything unfolded."""
    with _tab(page, width) as tab:
        tab.call(
            "Runtime.evaluate", expression="document.querySelectorAll('details').forEach(each => each.open = true)"
        )
        inner, needed = json.loads(tab.call("Runtime.evaluate", expression=_WIDTHS)["result"]["value"])
    return inner, needed


def screenshot(page: Path, width: int, height: int, target: Path, *, dark: bool = False, script: str = "") -> None:
    """Write a screenshot of a page as PNG.

    Args:
        page: the HTML file.
        width: the window's width in CSS pixels. Below 500, a phone is emulated.
        height: the window's height.
        target: the file to write.
        dark: whether the user prefers dark colours.
        script: a script to run first.
    """
    with _tab(page, width, height, dark=dark) as tab:
        if script:
            tab.call("Runtime.evaluate", expression=script)
        target.write_bytes(base64.b64decode(tab.call("Page.captureScreenshot", format="png")["data"]))


class Tab:
    """An open page."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol, and return its result."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._connection.recv(timeout=30))
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def go(self, url: str) -> None:
        """Navigate to a URL, as if the user had typed it, and wait until the page has loaded."""
        self.call("Page.navigate", url=url)
        self.await_event("Page.loadEventFired")

    def run(self, script: str) -> Any:
        """Run a script in the page, and return its result, or that of its promise."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def await_event(self, method: str) -> None:
        while json.loads(self._connection.recv(timeout=30)).get("method") != method:
            pass


@contextmanager
def _tab(page: Path, width: int, height: int = 900, *, dark: bool = False) -> Iterator[Tab]:
    with open_browser() as tab:
        phone = width < 500
        tab.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.call("Emulation.setEmulatedMedia", features=[scheme])
        tab.go(page.as_uri())
        yield tab


@contextmanager
def open_browser(*arguments: str) -> Iterator[Tab]:
    """A browser with an empty page and its own profile.

    Args:
        arguments: further arguments of its command line.
    """
    home = Path(tempfile.mkdtemp(prefix="chromium-"))
    command = [
        require_chromium(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--no-first-run",
        "--remote-debugging-port=0",
        f"--user-data-dir={home / 'profile'}",
        *arguments,
        "about:blank",
    ]
    port_file = home / "profile" / "DevToolsActivePort"
    try:
        # It leaves files in the directory for temporary files.
        with Process(command, home / "log", {**os.environ, "TMPDIR": str(home)}) as browser:
            wait_for(port_file.exists, "Chromium listens", 60)
            port, path = wait_for(lambda: _two_lines(port_file), "Chromium prints its address")
            assert browser.popen.poll() is None, browser.output()
            with connect(f"ws://127.0.0.1:{port}{path}", max_size=None) as whole:
                target = Tab(whole).call("Target.createTarget", url="about:blank")["targetId"]
                with connect(f"ws://127.0.0.1:{port}/devtools/page/{target}", max_size=None) as connection:
                    tab = Tab(connection)
                    tab.call("Page.enable")
                    yield tab
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _two_lines(file: Path) -> list[str]:
    lines = file.read_text().splitlines()
    return lines if len(lines) == 2 else []
