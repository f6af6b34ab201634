# SPDX-License-Identifier: GPL-3.0-or-later
"""The load: plays, terminals and page loads that run through the tunnels all the time and verify what they receive."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import itertools
import json
import os
import queue
import random
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from tunnelproxy.hub import client as hub

from .testbed import Testbed

__all__ = ["FORKS", "TERMINALS", "Pages", "Plays", "Terminal", "running"]

HERE = Path(__file__).resolve().parent
FORKS = 5
PAYLOAD_BYTES = 64 * 1024
PLAY_PAUSE = 5.0
PLAY_DEADLINE = 600.0
PAGE_SECONDS = 25.0
"""Longer than any fault that a page load must survive."""

PAGE_PAUSE = 1.0
TERMINALS = (0, 4, -6, -3)
"""The devices with a terminal, by index. They include the device of the page flood and one whose agent is killed."""

TYPE_PAUSE = 0.5
SILENCE_SECONDS = 60.0
"""A terminal without output for this long has failed."""

# Prints numbers, and echoes what is typed, so that loss or reordering shows in both directions.
_ON_DEVICE = (
    "stty -echo; echo begin; (i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.5; done) & "
    'trap "kill $!" EXIT HUP; while read -r line; do echo "echo $line"; done'
)
_LINE = re.compile(r"(tick|echo) (\d+)")


class Plays:
    """Real ansible-playbook runs on all devices, one after the other."""

    def __init__(self, testbed: Testbed, ending: threading.Event) -> None:
        self._testbed = testbed
        self._ending = ending
        self.runs = 0
        self.seconds: list[float] = []
        self._process: subprocess.Popen[bytes] | None = None
        self.log = testbed.folder / "plays.log"
        self._written: dict[str, set[str]] = {thing: set() for thing in testbed.things}
        self._tried: dict[str, set[str]] = {thing: set() for thing in testbed.things}

    def run(self) -> None:
        """Run until the soak ends."""
        while not self._ending.is_set():
            self._play()
            self._ending.wait(PLAY_PAUSE)

    def stop_now(self) -> None:
        """Stop without waiting for the current play."""
        self._ending.set()
        if self._process is not None:
            self._process.kill()

    def _play(self) -> None:
        testbed, run = self._testbed, f"run-{self.runs}"
        self.runs += 1
        payload = testbed.folder / "payload"
        payload.write_bytes(random.randbytes(PAYLOAD_BYTES))
        digest = _digest(payload)
        outcomes, fetched = testbed.folder / "outcomes", testbed.folder / "fetched"
        outcomes.write_text("")
        variables = {"run": run, "payload": str(payload), "digest": digest, "work": str(testbed.work)}
        command = ["ansible-playbook", HERE / "play.yml", "-f", FORKS, "-e", json.dumps(variables)]
        command += ["-e", json.dumps({"fetched": str(fetched)})]
        environment = {
            **testbed.controller.environment,
            "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback_plugins"),
            "ANSIBLE_CALLBACKS_ENABLED": "soak_outcomes",
            "ANSIBLE_PIPELINING": "1",
            "SOAK_OUTCOMES": str(outcomes),
        }
        began = time.time()
        with self.log.open("ab") as log:
            self._process = process = subprocess.Popen(
                [str(word) for word in command],
                cwd=testbed.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                process.wait(PLAY_DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                testbed.record.note(f"a play did not end within {PLAY_DEADLINE:.0f} s")
        self.seconds.append(time.time() - began)
        self._check_results(run, digest, fetched, [json.loads(line) for line in outcomes.read_text().splitlines()])

    def _check_results(self, run: str, digest: str, fetched: Path, lines: list[dict[str, Any]]) -> None:
        testbed, record = self._testbed, self._testbed.record
        seen = set()
        for line in lines:
            thing = line["host"]
            seen.add(thing)
            if line["task"] == "Write into the journal":
                (self._written if line["state"] == "ok" else self._tried)[thing].add(run)
            if line["state"] == "ok":
                record.completed("tasks")
                if line["task"] == "Fetch the file":
                    record.completed("hosts of plays")
                    if _digest(fetched / thing) != digest:
                        record.failed("play", thing, line["began"], "the fetched file differs", never_excused=True)
                continue
            message = f"{line['task']}: {line['state']}: {line['message']}"
            unclear = not line["message"].strip() or "Traceback" in line["message"]
            # If no connection was lost, a device that cannot be reached must be UNREACHABLE and nothing else.
            disconnected = line["state"] == "failed" or "broke off" in line["message"]
            record.failed("play", thing, line["began"], message, disconnected=disconnected, never_excused=unclear)
        if not self._ending.is_set():
            for thing in set(testbed.things) - seen:
                record.note(f"{run} has no result for {thing}; see {self.log}")

    def check_journals(self) -> None:
        """Verify that each device ran every command that a play reported as done, and no command twice."""
        for thing in self._testbed.things:
            path = self._testbed.work / f"{thing}-journal"
            found = path.read_text().split() if path.exists() else []
            missing = self._written[thing] - set(found)
            unexpected = set(found) - self._written[thing] - self._tried[thing]
            twice = len(found) - len(set(found))
            if missing or twice or unexpected:
                problem = f"lacks {sorted(missing)}, has {twice} lines twice, and unexpected lines {sorted(unexpected)}"
                self._testbed.record.note(f"the journal of {thing} {problem}")


class Terminal:
    """An interactive ssh session, started again whenever it ends."""

    def __init__(self, testbed: Testbed, thing: str, ending: threading.Event) -> None:
        self._testbed = testbed
        self._thing = thing
        self._ending = ending
        self.sessions = 0
        self._log = testbed.folder / f"terminal-{thing}.log"

    def run(self) -> None:
        """Run until the soak ends."""
        while not self._ending.is_set():
            began = time.time()
            try:
                row = self._testbed.ensure(self._thing, "SSH1")
                self._session([*self._testbed.ssh(self._thing, row["account"]), _ON_DEVICE])
            except hub.HubError as error:
                self._failed(began, str(error))
            self._ending.wait(1)

    def _session(self, command: list[str]) -> None:
        began = time.time()
        with self._log.open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, bufsize=0)
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        assert process.stdin is not None
        assert process.stdout is not None
        reader = threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True)
        try:
            reader.start()
            good = self._wait_for_begin(lines)
            if not good:
                self._failed(began, f"no login: {_last_line(self._log)}")
                return
            self.sessions += 1
            self._talk(process.stdin, lines)
        except OSError as error:
            self._failed(time.time(), f"broke off: {error}", disconnected=True)
        finally:
            process.kill()
            process.wait()
            reader.join(10)
            process.stdin.close()
            process.stdout.close()

    def _wait_for_begin(self, lines: queue.SimpleQueue[str | None]) -> bool:
        deadline = time.monotonic() + SILENCE_SECONDS
        with contextlib.suppress(queue.Empty):
            while (line := lines.get(timeout=max(0.1, deadline - time.monotonic()))) is not None:
                if line == "begin":
                    return True
        return False

    def _talk(self, stdin: IO[bytes], lines: queue.SimpleQueue[str | None]) -> None:
        """Type numbers, and verify that their echoes and the device's own numbers arrive in order."""
        expected = {"tick": 0, "echo": 0}
        typed, next_type, heard = 0, 0.0, time.time()
        while not self._ending.is_set():
            if time.time() >= next_type:
                stdin.write(f"{typed}\n".encode())
                typed, next_type = typed + 1, time.time() + TYPE_PAUSE
            try:
                line = lines.get(timeout=0.2)
            except queue.Empty:
                if time.time() - heard > SILENCE_SECONDS:
                    self._failed(heard, f"no output for {SILENCE_SECONDS:.0f} s", disconnected=True)
                    return
                continue
            if line is None:
                if not self._ending.is_set():
                    self._failed(heard, f"broke off: {_last_line(self._log)}", disconnected=True)
                return
            heard = time.time()
            match = _LINE.fullmatch(line)
            if match:
                kind, number = match[1], int(match[2])
                if number != expected[kind]:
                    message = f"{kind} {number} instead of {kind} {expected[kind]}"
                    self._testbed.record.failed("terminal", self._thing, heard, message, never_excused=True)
                expected[kind] = number + 1
                self._testbed.record.completed("terminal lines")

    def _failed(self, began: float, message: str, *, disconnected: bool = False) -> None:
        self._testbed.record.failed("terminal", self._thing, began, message, disconnected=disconnected)


class Pages:
    """One page load a second, from each device in turn, through the hub's port on the loopback address."""

    def __init__(self, testbed: Testbed, ending: threading.Event) -> None:
        self._testbed = testbed
        self._ending = ending
        self._loads = 0
        self.seconds: list[float] = []

    def run(self) -> None:
        """Run until the soak ends."""
        threads = []
        for thing in itertools.cycle(self._testbed.things):
            if self._ending.wait(PAGE_PAUSE):
                break
            # In threads, so that a slow page load does not delay the next.
            threads = [thread for thread in threads if thread.is_alive()]
            threads.append(threading.Thread(target=self._load, args=(thing,), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join(2 * PAGE_SECONDS)

    def _load(self, thing: str) -> None:
        began = time.time()
        try:
            row = self._testbed.ensure(thing, "HTTP1")
            content = load_page(thing, row["services"]["HTTP1"]["port"], PAGE_SECONDS)
        except (hub.HubError, OSError, http.client.HTTPException) as error:
            self._testbed.record.failed("page", thing, began, f"{type(error).__name__}: {error}")
            return
        if content != self._testbed.devices[thing].page:
            message = f"{len(content)} bytes, which are not the page"
            self._testbed.record.failed("page", thing, began, message, never_excused=True)
            return
        self._testbed.record.completed("pages")
        self.seconds.append(time.time() - began)


def load_page(thing: str, port: int, seconds: float) -> bytes:
    """Load a device's page through the hub's port, as a browser does.

    Raises:
        OSError, http.client.HTTPException: the page cannot be loaded.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request("GET", "/", headers={"Host": f"{thing}.localhost:{port}"})
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise http.client.HTTPException(f"{response.status}: {content[:200]!r}")
        return content
    finally:
        connection.close()


@contextmanager
def running(testbed: Testbed) -> Iterator[tuple[Plays, list[Terminal], Pages]]:
    """Run the load inside the context; on exit, stop it and check the devices' journals."""
    ending = threading.Event()
    plays, pages = Plays(testbed, ending), Pages(testbed, ending)
    things = dict.fromkeys(testbed.things[index % len(testbed.things)] for index in TERMINALS)
    terminals = [Terminal(testbed, thing, ending) for thing in things]
    runs = [each.run for each in (plays, pages, *terminals)]
    workers = [threading.Thread(target=_guard, args=(testbed, run), daemon=True) for run in runs]
    with ExitStack() as stack:
        for worker in workers:
            stack.callback(worker.join, PLAY_DEADLINE)
        stack.callback(ending.set)
        for worker in workers:
            worker.start()
        try:
            yield plays, terminals, pages
        except BaseException:
            plays.stop_now()
            raise
    plays.check_journals()


def _guard(testbed: Testbed, run: Any) -> None:
    try:
        run()
    except Exception as error:
        testbed.record.note(f"the load stopped: {type(error).__name__}: {error}")


def _read_lines(stdout: IO[bytes], lines: queue.SimpleQueue[str | None]) -> None:
    rest = b""
    with contextlib.suppress(OSError, ValueError):
        while data := os.read(stdout.fileno(), 65536):
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                lines.put(line.decode(errors="replace").strip("\r"))
    lines.put(None)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message from ssh"
