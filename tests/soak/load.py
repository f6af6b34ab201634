# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs through the tunnels all the time: plays, terminals and page loads. Each checks all that it gets."""

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

from .environment import Field

__all__ = ["FORKS", "TERMINALS", "Pages", "Plays", "Terminal", "running"]

HERE = Path(__file__).resolve().parent
FORKS = 5
PAYLOAD_BYTES = 64 * 1024
PLAY_PAUSE = 5.0
PLAY_DEADLINE = 600.0
PAGE_SECONDS = 25.0
"""Longer than any fault that a page must survive."""

PAGE_PAUSE = 1.0
TERMINALS = (0, 4, -6, -3)
"""The devices that have one, by index; of two of them, the pages are flooded, or the agent is killed."""

TYPE_PAUSE = 0.5
SILENCE_SECONDS = 60.0
"""After which a terminal is given up."""

# Ticks by itself, and repeats what is typed: so both ways are seen to lose nothing, and to keep its order.
_ON_DEVICE = (
    "stty -echo; echo begin; (i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.5; done) & "
    'trap "kill $!" EXIT HUP; while read -r line; do echo "echo $line"; done'
)
_LINE = re.compile(r"(tick|echo) (\d+)")


class Plays:
    """Real ansible-playbook runs on all devices, one after the other."""

    def __init__(self, field: Field, ending: threading.Event) -> None:
        self._field = field
        self._ending = ending
        self.runs = 0
        self.seconds: list[float] = []
        self._process: subprocess.Popen[bytes] | None = None
        self.log = field.folder / "plays.log"
        self._written: dict[str, set[str]] = {thing: set() for thing in field.things}
        self._tried: dict[str, set[str]] = {thing: set() for thing in field.things}

    def run(self) -> None:
        """Go on until the end."""
        while not self._ending.is_set():
            self._play()
            self._ending.wait(PLAY_PAUSE)

    def stop_now(self) -> None:
        """Do not wait for the play that runs."""
        self._ending.set()
        if self._process is not None:
            self._process.kill()

    def _play(self) -> None:
        field, run = self._field, f"run-{self.runs}"
        self.runs += 1
        payload = field.folder / "payload"
        payload.write_bytes(random.randbytes(PAYLOAD_BYTES))
        digest = _digest(payload)
        outcomes, fetched = field.folder / "outcomes", field.folder / "fetched"
        outcomes.write_text("")
        variables = {"run": run, "payload": str(payload), "digest": digest, "work": str(field.work)}
        command = ["ansible-playbook", HERE / "play.yml", "-f", FORKS, "-e", json.dumps(variables)]
        command += ["-e", json.dumps({"fetched": str(fetched)})]
        environment = {
            **field.controller.environment,
            "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback_plugins"),
            "ANSIBLE_CALLBACKS_ENABLED": "soak_outcomes",
            "ANSIBLE_PIPELINING": "1",
            "SOAK_OUTCOMES": str(outcomes),
        }
        began = time.time()
        with self.log.open("ab") as log:
            self._process = process = subprocess.Popen(
                [str(word) for word in command],
                cwd=field.folder,
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
                field.record.note(f"a play did not end within {PLAY_DEADLINE:.0f} s")
        self.seconds.append(time.time() - began)
        self._judge(run, digest, fetched, [json.loads(line) for line in outcomes.read_text().splitlines()])

    def _judge(self, run: str, digest: str, fetched: Path, lines: list[dict[str, Any]]) -> None:
        field, record = self._field, self._field.record
        seen = set()
        for line in lines:
            thing = line["host"]
            seen.add(thing)
            if line["task"] == "Write into the journal":
                (self._written if line["state"] == "ok" else self._tried)[thing].add(run)
            if line["state"] == "ok":
                record.good("tasks")
                if line["task"] == "Fetch the file":
                    record.good("hosts of plays")
                    if _digest(fetched / thing) != digest:
                        record.trouble("play", thing, line["began"], "the fetched file is another", never=True)
                continue
            words = f"{line['task']}: {line['state']}: {line['message']}"
            unclear = not line["message"].strip() or "Traceback" in line["message"]
            # Where nothing was cut, a device that cannot be reached is UNREACHABLE, and nothing else.
            cut = line["state"] == "failed" or "broke off" in line["message"]
            record.trouble("play", thing, line["began"], words, cut=cut, never=unclear)
        if not self._ending.is_set():
            for thing in set(field.things) - seen:
                record.note(f"{run} says nothing of {thing}; see {self.log}")

    def check_journals(self) -> None:
        """See that each device has carried out every command once that a play says so of, and no other twice."""
        for thing in self._field.things:
            path = self._field.work / f"{thing}-journal"
            found = path.read_text().split() if path.exists() else []
            lost = self._written[thing] - set(found)
            strange = set(found) - self._written[thing] - self._tried[thing]
            twice = len(found) - len(set(found))
            if lost or twice or strange:
                words = f"lacks {sorted(lost)}, has {twice} lines twice, and {sorted(strange)} too many"
                self._field.record.note(f"the journal of {thing} {words}")


class Terminal:
    """An interactive ssh session, and the next one where it ends."""

    def __init__(self, field: Field, thing: str, ending: threading.Event) -> None:
        self._field = field
        self._thing = thing
        self._ending = ending
        self.sessions = 0
        self._log = field.folder / f"terminal-{thing}.log"

    def run(self) -> None:
        """Go on until the end."""
        while not self._ending.is_set():
            began = time.time()
            try:
                row = self._field.ensure(self._thing, "SSH1")
                self._session([*self._field.ssh(self._thing, row["account"]), _ON_DEVICE])
            except hub.HubError as error:
                self._trouble(began, str(error))
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
                self._trouble(began, f"no login: {_last_line(self._log)}")
                return
            self.sessions += 1
            self._talk(process.stdin, lines)
        except OSError as error:
            self._trouble(time.time(), f"broke off: {error}", cut=True)
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
        """Type numbers, and see that they come back in their order, and the device's own ones, too."""
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
                    self._trouble(heard, f"nothing for {SILENCE_SECONDS:.0f} s", cut=True)
                    return
                continue
            if line is None:
                if not self._ending.is_set():
                    self._trouble(heard, f"broke off: {_last_line(self._log)}", cut=True)
                return
            heard = time.time()
            match = _LINE.fullmatch(line)
            if match:
                kind, number = match[1], int(match[2])
                if number != expected[kind]:
                    words = f"{kind} {number} where {kind} {expected[kind]} was due"
                    self._field.record.trouble("terminal", self._thing, heard, words, never=True)
                expected[kind] = number + 1
                self._field.record.good("terminal lines")

    def _trouble(self, began: float, words: str, *, cut: bool = False) -> None:
        self._field.record.trouble("terminal", self._thing, began, words, cut=cut)


class Pages:
    """One page load a second, from each device in turn, by the hub's port on the loopback."""

    def __init__(self, field: Field, ending: threading.Event) -> None:
        self._field = field
        self._ending = ending
        self._loads = 0
        self.seconds: list[float] = []

    def run(self) -> None:
        """Go on until the end."""
        threads = []
        for thing in itertools.cycle(self._field.things):
            if self._ending.wait(PAGE_PAUSE):
                break
            # One that takes long holds up no other.
            threads = [thread for thread in threads if thread.is_alive()]
            threads.append(threading.Thread(target=self._load, args=(thing,), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join(2 * PAGE_SECONDS)

    def _load(self, thing: str) -> None:
        began = time.time()
        try:
            row = self._field.ensure(thing, "HTTP1")
            content = load_page(thing, row["services"]["HTTP1"]["port"], PAGE_SECONDS)
        except (hub.HubError, OSError, http.client.HTTPException) as error:
            self._field.record.trouble("page", thing, began, f"{type(error).__name__}: {error}")
            return
        if content != self._field.devices[thing].page:
            words = f"{len(content)} bytes that are not the page"
            self._field.record.trouble("page", thing, began, words, never=True)
            return
        self._field.record.good("pages")
        self.seconds.append(time.time() - began)


def load_page(thing: str, port: int, seconds: float) -> bytes:
    """Load a device's page by the hub's port, as a browser does.

    Raises:
        OSError, http.client.HTTPException: it cannot be had.
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
def running(field: Field) -> Iterator[tuple[Plays, list[Terminal], Pages]]:
    """Inside, all of it runs; afterwards it has ended, and what it left has been checked."""
    ending = threading.Event()
    plays, pages = Plays(field, ending), Pages(field, ending)
    things = dict.fromkeys(field.things[index % len(field.things)] for index in TERMINALS)
    terminals = [Terminal(field, thing, ending) for thing in things]
    runs = [each.run for each in (plays, pages, *terminals)]
    workers = [threading.Thread(target=_guard, args=(field, run), daemon=True) for run in runs]
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


def _guard(field: Field, run: Any) -> None:
    try:
        run()
    except Exception as error:
        field.record.note(f"the load ended: {type(error).__name__}: {error}")


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
    return lines[-1] if lines else "ssh said nothing"
