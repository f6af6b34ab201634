# SPDX-License-Identifier: GPL-3.0-or-later
"""The loopback port of a device's web pages: which requests of real browsers and programs reach the device."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from peers.browser import Tab, open_browser
from peers.proxies import open_tunnel, start_proxy
from peers.service import TunnelingService
from peers.troubleshooting import assert_documented
from peers.web_app import WebApp
from tunnelproxy.hub import client

THINGS = ("pump", "valve")


@dataclass
class Scene:
    """A hub with tunnels to two devices that have web pages."""

    apps: dict[str, WebApp]

    def service(self, thing: str) -> dict[str, Any]:
        """The hub's status of a thing's web pages."""
        status = client.status()
        assert status is not None
        row: dict[str, Any] = next(each for each in status["tunnels"] if each["thing"] == thing)["services"]["HTTP1"]
        return row

    def port(self, thing: str = "pump") -> int:
        return int(self.service(thing)["port"])

    def url(self, thing: str = "pump") -> str:
        return str(self.service(thing)["url"])

    def seen(self, thing: str = "pump") -> list[str]:
        # For a page without an icon, such as a refusal, the browser requests one, by the device's own name.
        return [path for path in self.apps[thing].paths() if path != "/favicon.ico"]


@pytest.fixture(scope="module")
def scene(service: TunnelingService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("IOTOPS_TUNNEL_DIR", str(folder / "hub"))
        for name, value in service.environment.items():
            patch.setenv(name, value)
        stack.callback(client.stop)
        apps = {thing: stack.enter_context(WebApp(thing)) for thing in THINGS}
        for thing, app in apps.items():
            tunnel = open_tunnel(service, ["HTTP1"], thing)
            mapping = f"HTTP1=127.0.0.1:{app.port}"
            proxy = stack.enter_context(
                start_proxy(service, tunnel.destination_token, ["-d", mapping], folder / f"{thing}.log")
            )
            proxy.wait_for_output("connected to")
            client.adopt(
                thing,
                tunnel_id=tunnel.tunnel_id,
                tunnel_arn=tunnel.arn,
                source_token=tunnel.source_token,
                services=["HTTP1"],
            )
        yield Scene(apps)


@pytest.fixture(scope="module")
def browser() -> Iterator[Tab]:
    with open_browser("--host-resolver-rules=MAP evil.example 127.0.0.1") as tab:
        yield tab


@pytest.fixture(autouse=True)
def _forget(scene: Scene) -> None:
    for app in scene.apps.values():
        app.seen.clear()


def curl(*arguments: str) -> str:
    """The output of curl."""
    done = subprocess.run(["curl", "-sS", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown(tab: Tab) -> str:
    text: str = tab.run("document.body.innerText")
    return text


# Programs.


def test_the_hub_reports_the_host_name_of_a_device(scene: Scene) -> None:
    assert scene.url("pump") == f"http://pump.localhost:{scene.port('pump')}/"
    assert scene.service("pump")["any_host"] is False


def test_programs_reach_the_device_by_its_name_and_at_the_loopback(scene: Scene) -> None:
    port = scene.port()
    for url in (scene.url(), f"http://127.0.0.1:{port}/", f"http://localhost:{port}/"):
        assert "This is pump" in curl("-4", url)


def test_a_request_for_another_host_is_refused_with_the_remedy_and_not_forwarded(scene: Scene) -> None:
    port = scene.port()
    before = scene.service("pump")
    answer = curl("-i", "-H", "Host: evil.example", f"http://127.0.0.1:{port}/reboot")
    assert answer.startswith("HTTP/1.1 421 ")
    assert f"open http://pump.localhost:{port}/" in answer
    assert f"iotops_tunnel_ports=HTTP1={port},any-host" in answer
    assert scene.seen() == []
    assert scene.service("pump")["bytes_in"] == before["bytes_in"]


class Refused(NamedTuple):
    """A request and the row of the documentation with its response."""

    cause: str
    headers: list[str]


@pytest.mark.parametrize(
    ("cause", "headers"),
    [
        Refused("Request for another host", ["Host: evil.example"]),
        Refused("Browser at 127.0.0.1", ["Sec-Fetch-Mode: cors"]),
        Refused("Request of another page", ["Host: pump.localhost", "Origin: http://evil.example"]),
        Refused("Not HTTP", ["Content-Length: x"]),
    ],
)
def test_each_refusal_is_documented_and_logged(scene: Scene, cause: str, headers: list[str]) -> None:
    answer = curl(*(f"-H{header}" for header in headers), f"http://127.0.0.1:{scene.port()}/")
    sentence = answer.splitlines()[0]
    assert_documented(cause, sentence)
    why = sentence.partition("pump: ")[2].rstrip(".")
    assert f"HTTP1 of pump: refused a request: {why}" in Path(client.directory(), "hub.log").read_text()


def test_the_answer_to_a_large_upload_arrives(scene: Scene) -> None:
    command = [
        "curl",
        "-sS",
        "-H",
        "Host: evil.example",
        "-H",
        "Expect:",
        "-F",
        "file=@-",
        f"http://127.0.0.1:{scene.port()}/",
    ]
    done = subprocess.run(command, input=bytes(3_000_000), capture_output=True, timeout=60, check=False)
    assert b"was not forwarded to pump" in done.stdout, done.stderr


def test_a_refused_request_closes_a_connection_with_accepted_ones(scene: Scene) -> None:
    port = scene.port()
    good = f"GET /first HTTP/1.1\r\nHost: pump.localhost:{port}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(good)
        assert connection.recv(16) == b"HTTP/1.1 200 OK\r"
        connection.sendall(b"GET /second HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert b"421" not in received, "it could be part of the device's answer"
    assert scene.seen() == ["/first"]


def test_uploads_of_known_and_unknown_length_arrive_completely(scene: Scene) -> None:
    size = 5_000_000
    for how in (["--data-binary", "@-"], ["-T", "-", "-H", "Transfer-Encoding: chunked"]):
        command = ["curl", "-sS", "-X", "POST", *how, f"{scene.url()}upload"]
        done = subprocess.run(command, input=bytes(size), capture_output=True, timeout=60, check=False)
        assert int(done.stdout) == size, done.stderr


def test_any_host_accepts_all_requests_outlives_the_hub_and_can_be_reset(scene: Scene) -> None:
    port = scene.port()
    other = ("-H", "Host: evil.example", f"http://127.0.0.1:{port}/")
    client.ensure("pump", "HTTP1", ports={"HTTP1": port}, any_host=["HTTP1"])
    assert "This is pump" in curl(*other)
    client.stop()
    assert client.ensure("pump", "HTTP1")["services"]["HTTP1"]["port"] == port
    assert scene.service("pump")["any_host"] is True
    assert "This is pump" in curl(*other)
    client.ensure("pump", "HTTP1", ports={"HTTP1": 0})
    assert scene.service("pump")["any_host"] is False
    assert "was not forwarded" in curl(*other)
    assert scene.port() == port


def test_no_other_process_can_listen_where_browsers_connect(scene: Scene) -> None:
    port = scene.port()
    for host in ("::1", "::", "127.0.0.1"):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="Address already in use"):
                other.bind((host, port))


def test_a_port_that_is_taken_on_the_ipv6_loopback_is_not_used(scene: Scene) -> None:
    before = scene.port()
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(client.HubError, match="another program listens there"):
            client.ensure("pump", "HTTP1", ports={"HTTP1": port})
        assert scene.port() == before
    client.ensure("pump", "HTTP1", ports={"HTTP1": port})
    assert scene.port() == port


# A browser.


def test_the_login_cookie_of_one_device_is_not_sent_to_another(scene: Scene, browser: Tab) -> None:
    for thing in THINGS:
        browser.go(f"{scene.url(thing)}login")
    for thing in THINGS:
        browser.go(f"{scene.url(thing)}again")
        assert scene.apps[thing].seen[-1].path == "/again"
        assert scene.apps[thing].seen[-1].cookies == {"session": f"secret-of-{thing}"}


def test_no_device_can_set_a_cookie_for_all_devices(scene: Scene, browser: Tab) -> None:
    browser.go(scene.url("pump"))
    for domain in ("localhost", ".localhost", "valve.localhost"):
        browser.run(f"document.cookie = 'planted=by-pump; domain={domain}; path=/'")
    browser.go(scene.url("valve"))
    assert "planted" not in scene.apps["valve"].seen[-1].cookies


def test_with_a_shared_name_a_device_receives_the_cookie_of_another(scene: Scene, browser: Tab) -> None:
    """The reason for separate names: cookies depend only on the host."""
    for thing in THINGS:
        client.ensure(thing, "HTTP1", ports={"HTTP1": 0}, any_host=["HTTP1"])
    browser.go(f"http://127.0.0.1:{scene.port('pump')}/login")
    browser.go(f"http://127.0.0.1:{scene.port('valve')}/")
    assert scene.apps["valve"].seen[-1].cookies == {"session": "secret-of-pump"}

    for thing in THINGS:
        client.ensure(thing, "HTTP1", ports={"HTTP1": 0})
    scene.apps["valve"].seen.clear()
    browser.go(f"http://127.0.0.1:{scene.port('valve')}/settings?all")
    assert browser.run("location.href") == f"{scene.url('valve')}settings?all"
    assert "This is valve" in shown(browser)
    assert "secret-of-pump" not in str(scene.apps["valve"].seen)


def test_a_page_that_rebinds_its_name_cannot_reach_the_device(scene: Scene, browser: Tab) -> None:
    browser.go(f"http://evil.example:{scene.port()}/reboot")
    assert "was not forwarded to pump: its host is 'evil.example:" in shown(browser)
    assert browser.run("fetch('/reboot', {method: 'POST', body: 'now'}).then(answer => answer.status)") == 421
    assert scene.seen() == []


FORM = """
const form = document.createElement('form'); form.method = 'post'; form.action = '%sreboot';
document.body.append(form); form.submit()
"""


def test_another_page_cannot_reach_the_device_by_form_image_fetch_or_websocket(scene: Scene, browser: Tab) -> None:
    url = scene.url("pump")
    browser.go(scene.url("valve"))
    browser.run(f"fetch('{url}reboot', {{method: 'POST', mode: 'no-cors', body: 'now'}})")
    browser.run(f"new Promise(done => {{const i = new Image(); i.onerror = i.onload = done; i.src = '{url}reboot'}})")
    frame = "const f = document.createElement('iframe'); f.onload = done; f.src = '%s'; document.body.append(f)"
    browser.run(f"new Promise(done => {{{frame % url}}})")
    open_socket = (
        "const s = new WebSocket('ws://%ssocket'); s.onerror = () => done('refused'); s.onopen = () => done('open')"
    )
    assert browser.run(f"new Promise(done => {{{open_socket % url[7:]}}})") == "refused"
    browser.run(FORM % url)
    browser.await_event("Page.loadEventFired")
    assert browser.run("location.href") == f"{url}reboot"
    assert "it comes from another web page, 'http://valve.localhost:" in shown(browser)
    assert scene.seen() == []


def test_a_link_on_another_page_works(scene: Scene, browser: Tab) -> None:
    browser.go(scene.url("valve"))
    browser.run(f"location.href = '{scene.url('pump')}from-a-link'")
    browser.await_event("Page.loadEventFired")
    assert "This is pump" in shown(browser)
    assert scene.seen() == ["/from-a-link"]


def test_forms_requests_and_websockets_of_the_devices_own_page_work(scene: Scene, browser: Tab) -> None:
    browser.go(scene.url())
    assert browser.run("fetch('/settings', {method: 'POST', body: 'x'}).then(answer => answer.status)") == 200
    talk = "const s = new WebSocket(`ws://${location.host}/socket`); s.onmessage = m => done(m.data); s.onerror = done;"
    assert browser.run(f"new Promise(done => {{{talk} s.onopen = () => s.send('hello')}})") == "hello"
    browser.run(FORM % scene.url())
    browser.await_event("Page.loadEventFired")
    assert "This is pump" in shown(browser)
    assert scene.seen() == ["/", "/settings", "/socket", "/reboot"]
