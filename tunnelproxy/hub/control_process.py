# SPDX-License-Identifier: Apache-2.0
"""The control processes that the hub starts, one for each distinct environment of its callers.

So a control call sees exactly what ``aws`` would see in the caller's shell, nothing of an earlier caller remains, and
botocore, which takes 20 MB, is not loaded into the hub. A process is stopped after a minute without use, and together
with the hub.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from ..net.background_tasks import spawn
from .account import Account
from .call_rate import CallRate, rate_of
from .control_answers import EndStates, FoundTunnel, Identity
from .fingerprint import fingerprint
from .known_accounts import KnownAccounts
from .location import HubError
from .tunnel_record import DataPlaneSettings
from .wire import Caller

__all__ = ["CallerControl", "Callers"]

log = logging.getLogger(__name__)

MOST_PROCESSES = 10
"""Each takes 50 MB. Further callers wait until one has answered, and replace the least recently used one."""

IDLE_SECONDS = 60.0
ASK_SECONDS = 30.0
"""How long to wait for the state of a tunnel's ends; a program that provides credentials may need most of it."""

CALL_SECONDS = 120.0
"""AWS throttles calls, and the pauses before retries count."""

THROTTLED_SECONDS = 120.0
"""For how long a tunnel is tried to be opened while AWS throttles that, because others open tunnels, too."""

STALE_SECONDS = 1.0
"""How long credentials of a program, container or machine are assumed to belong to the same account."""

ENDING_SECONDS = 1.0

_ONLY_READS = ("identify", "end_states", "check_registered")
_LONGEST_ANSWER = 64 * 1024 * 1024
_LAST_LINES = 5
# Variables that differ between shells and runs, and do not affect a control call.
_IRRELEVANT_VARIABLES = ("_", "OLDPWD", "SHLVL")
# Of a caller that has made no call yet: nothing is known about its rate.
_NO_ACCOUNT = Account("", "", "", endpoint="unknown")
_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass
class _Known:
    """The account that a caller's calls go to.

    Attributes:
        at: when it was looked up, by the monotonic clock.
    """

    account: Account
    identity: Identity
    at: float

    def holds(self) -> bool:
        """Whether it need not be looked up again."""
        if not self.identity.lasts and time.monotonic() >= self.at + STALE_SECONDS:
            return False
        return all(fingerprint(path) == before for path, before in self.identity.watch.items())


class Callers:
    """The hub's callers, keyed by the environment of their control calls.

    Args:
        known: the accounts of access keys.
    """

    def __init__(self, known: KnownAccounts) -> None:
        self._known = known
        self._callers: dict[str, CallerControl] = {}
        self._slots = asyncio.Semaphore(MOST_PROCESSES)
        self._waiting = 0
        self._ending: set[asyncio.Task[None]] = set()
        self._rates: dict[tuple[str, Account], CallRate] = {}

    def rate(self, op: str, account: Account) -> CallRate:
        """The rate of calls that all callers of an account share."""
        return self._rates.setdefault((op, account), CallRate())

    def of(self, caller: Caller) -> CallerControl:
        """The control API as a caller sees it; the same object for the same environment."""
        kept = {name: value for name, value in caller.environment.items() if name not in _IRRELEVANT_VARIABLES}
        told = json.dumps(
            [sorted(kept.items()), caller.directory, _identity(caller.directory), caller.python, caller.verify]
        )
        digest = hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()
        if digest not in self._callers:
            self._callers[digest] = CallerControl(caller, self._known, self)
        return self._callers[digest]

    async def start(self, control: CallerControl) -> _Process:
        """Start a process, as soon as another one may run.

        Raises:
            OSError: it cannot be started.
            ValueError: a process cannot have this environment.
        """
        self._waiting += 1
        try:
            if self._slots.locked():
                unused = [each for each in self._callers.values() if each.running and each.idle_for(0.0)]
                if unused:
                    self.end(max(unused, key=lambda each: each.unused_seconds))
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            process = await _Process.start(control.caller)
        except BaseException:
            self._slots.release()
            raise
        process.when_gone(self._slots.release)
        return process

    def answered(self, caller: CallerControl) -> None:
        """A caller has its answer: pass its slot on if another caller waits for one."""
        if self._waiting and caller.running and caller.idle_for(0.0):
            self.end(caller)

    def end(self, caller: CallerControl) -> None:
        """Stop the process of a caller, if there is one."""
        process = caller.let_go()
        if process is not None:
            ending = spawn("stopping a control process", process.stop())
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    def tidy(self, in_use: Sequence[CallerControl]) -> None:
        """Stop the unused processes, and forget callers without a tunnel."""
        for digest, caller in list(self._callers.items()):
            if caller.idle_for(IDLE_SECONDS):
                self.end(caller)
                if caller not in in_use:
                    del self._callers[digest]

    async def stop(self) -> None:
        """Stop all processes."""
        for caller in self._callers.values():
            self.end(caller)
        self._callers.clear()
        await asyncio.gather(*self._ending, return_exceptions=True)


class CallerControl:
    """The control API as one caller sees it."""

    def __init__(self, caller: Caller, accounts: KnownAccounts, callers: Callers) -> None:
        self.caller = caller
        self._accounts = accounts
        self._callers = callers
        self._process: _Process | None = None
        self._starting = asyncio.Lock()
        self._identifying = asyncio.Lock()
        self._known: _Known | None = None
        self._last_used = time.monotonic()
        self._asking = 0

    @property
    def data_plane(self) -> DataPlaneSettings:
        """How the caller reaches the data plane."""
        return DataPlaneSettings.from_environment(self.caller.environment, self.caller.directory)

    async def account(self, thing: str) -> Account:
        """The account that calls go to. It is looked up again if files that it may depend on have changed.

        Raises:
            HubError: it is unknown, because credentials are missing or refused.
        """
        async with self._identifying:
            if self._known is None or not self._known.holds():
                answer = await self._ask("identify", CALL_SECONDS, thing=thing, known=dict(self._accounts))
                identity = Identity(**answer)
                account = Account.from_key(identity.key)
                if account.account_id:
                    self._accounts.learn(identity.known_by, account.key)
                self._known = _Known(account, identity, time.monotonic())
            return self._known.account

    def learn(self, account: Account) -> None:
        """Learn the account from an ARN, if the service did not reveal it before."""
        if self._known is not None:
            self._known.account = account

    async def end_states(self, tunnel_id: str) -> EndStates:
        """The state of a tunnel's ends; unknown if there is no answer in time."""
        try:
            await self._turn("end_states")
            return EndStates(**await self._ask("end_states", ASK_SECONDS, tunnel_id=tunnel_id))
        except HubError as error:
            log.warning("the state of tunnel %s is not known: %s", tunnel_id, error)
        return EndStates()

    async def take(
        self, thing: str, service: str, life: float, owner: str, *, take_over: bool, held: Sequence[str]
    ) -> FoundTunnel | None:
        """Find an open tunnel and rotate its source token; see :meth:`.aws_api.AwsApi.take`.

        Raises:
            HubError: the control API cannot do it.
        """
        await self._turn("take")
        found = await self._ask(
            "take",
            CALL_SECONDS,
            thing=thing,
            service=service,
            life=life,
            owner=owner,
            take_over=take_over,
            held=list(held),
        )
        return None if found is None else FoundTunnel.from_json(found)

    async def open(self, thing: str, services: Sequence[str], owner: str) -> FoundTunnel:
        """Open a tunnel to a thing (OpenTunnel; AWS charges for it), when it is its turn.

        Raises:
            HubError: the control API cannot do it.
        """
        return FoundTunnel.from_json(await self._ask_to_open("open", thing=thing, services=list(services), owner=owner))

    async def check_registered(self, thing: str) -> None:
        """Raise HubError if the registry has no such thing."""
        await self._ask("check_registered", CALL_SECONDS, thing=thing)

    async def call(self, api: str, operation: str, parameters: Mapping[str, Any], purpose: str) -> dict[str, Any]:
        """Make any call; see :meth:`.aws_api.AwsApi.call`."""
        arguments = {"api": api, "operation": operation, "parameters": dict(parameters), "purpose": purpose}
        if operation == "open_tunnel":
            opened: dict[str, Any] = await self._ask_to_open("call", **arguments)
            return opened
        answer: dict[str, Any] = await self._ask("call", CALL_SECONDS, **arguments)
        return answer

    @property
    def running(self) -> bool:
        """Whether it has a process."""
        return self._process is not None and self._process.alive

    @property
    def unused_seconds(self) -> float:
        """For how long it has not been used."""
        return time.monotonic() - self._last_used

    def idle_for(self, seconds: float) -> bool:
        """Whether it has been unused for that long, and no caller waits for an answer."""
        return self._asking == 0 and self.unused_seconds >= seconds

    def let_go(self) -> _Process | None:
        """Detach and return the process, which the caller must stop."""
        process, self._process = self._process, None
        return process

    async def _turn(self, op: str) -> tuple[CallRate, float]:
        """Wait until an operation may be asked for.

        Returns:
            what its calls wait for, and how many may be made a second, 0 for no limit.
        """
        account = self._known.account if self._known is not None else _NO_ACCOUNT
        shared, rate = self._callers.rate(op, account), rate_of(op, account, self.caller.environment)
        await shared.turn(rate)
        return shared, rate

    async def _ask_to_open(self, op: str, **arguments: Any) -> Any:
        """Ask for OpenTunnel, and again if it is throttled, because then it was not carried out."""
        until = None
        while True:
            shared, rate = await self._turn("open")
            until = until or time.monotonic() + THROTTLED_SECONDS
            try:
                return await self._ask(op, CALL_SECONDS, **arguments)
            except HubError as error:
                if error.code != "throttled" or time.monotonic() >= until:
                    raise
                log.info("OpenTunnel is throttled; retrying")
                shared.throttled(rate)

    async def _ask(self, op: str, seconds: float, **arguments: Any) -> Any:
        self._last_used = time.monotonic()
        self._asking += 1
        try:
            return await asyncio.wait_for(self._answer(op, arguments), seconds)
        except asyncio.TimeoutError:
            raise HubError(f"the control API did not answer within {seconds:.0f} s", code="control-api") from None
        except OSError as error:
            raise HubError(
                f"the control process cannot be started with {self.caller.python}: {error.strerror}", code="hub-failed"
            ) from None
        except ValueError as error:
            raise HubError(
                f"the environment of this task, or of Ansible, cannot be passed on ({error}): check its variables",
                code="bad-input",
            ) from None
        finally:
            self._asking -= 1
            self._last_used = time.monotonic()
            self._callers.answered(self)

    async def _answer(self, op: str, arguments: Mapping[str, Any]) -> Any:
        try:
            return await (await self._running_process()).ask(op, arguments)
        except _EndedError:
            if op not in _ONLY_READS:
                raise
        return await (await self._running_process()).ask(op, arguments)

    async def _running_process(self) -> _Process:
        async with self._starting:
            if self._process is None or not self._process.alive:
                self._process = await self._callers.start(self)
            return self._process


class _EndedError(HubError):
    """A control process exited before it answered."""


class _Process:
    """A running control process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        self._said: deque[str] = deque(maxlen=_LAST_LINES)
        # If it fails, the process counts as exited, and the next request starts another.
        self._reading = spawn("reading a control process's answers", self._read())
        self._listening = spawn("reading a control process's messages", self._listen())

    @classmethod
    async def start(cls, caller: Caller) -> _Process:
        command = [caller.python, str(_PACKAGE), "hub", "control", *([] if caller.verify else ["--no-verify"])]
        return cls(
            await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=dict(caller.environment),
                cwd=_existing(caller.directory),
                # Without a terminal to ask for a password, and without the hub's signals.
                start_new_session=True,
                limit=_LONGEST_ANSWER,
            )
        )

    @property
    def alive(self) -> bool:
        return not self._reading.done()

    async def ask(self, op: str, arguments: Mapping[str, Any]) -> Any:
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            assert self._process.stdin is not None  # noqa: S101  start() gave it one
            request = json.dumps({"id": number, "op": op, "arguments": arguments})
            self._process.stdin.write(request.encode() + b"\n")
            with contextlib.suppress(ConnectionError):  # _read() reports the reason
                await self._process.stdin.drain()
            if not self.alive:
                raise self._ended()
            return await future
        finally:
            del self._waiting[number]

    def when_gone(self, call: Callable[[], None]) -> None:
        """Call a function when the process has exited."""
        self._reading.add_done_callback(lambda _: call())

    async def stop(self) -> None:
        """Kill the process and its children: a program that provides credentials may hang."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        if not self._waiting:
            await asyncio.wait({self._reading}, timeout=ENDING_SECONDS)
        # It has its own session, and therefore its own process group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        # A program that it started in another session may keep its standard error open forever.
        await asyncio.wait({self._reading, self._listening}, timeout=ENDING_SECONDS)
        self._listening.cancel()

    async def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101  start() gave it one
        try:
            while line := await self._process.stdout.readline():
                self._hand_over(json.loads(line))
        except (ValueError, LookupError, TypeError, AttributeError):
            log.warning("a control process sent an invalid answer")
            self._process.kill()
        finally:
            # Up to Python 3.12, this waits for its standard error, too, which another program may keep open forever.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._process.wait(), ENDING_SECONDS)
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(self._ended())

    def _hand_over(self, reply: Mapping[str, Any]) -> None:
        future = self._waiting.get(reply["id"])
        if future is None or future.done():
            return
        if "error" in reply:
            future.set_exception(HubError(reply["error"], code=reply["code"]))
        else:
            future.set_result(reply["result"])

    async def _listen(self) -> None:
        assert self._process.stderr is not None  # noqa: S101  start() gave it one
        while line := await _line(self._process.stderr):
            self._said.append(line.decode("utf-8", "replace").strip())

    def _ended(self) -> _EndedError:
        said = f" ({self._said[-1]})" if self._said else ""
        return _EndedError(
            f"the control process exited before it answered{said}: run the task again, or see hub.log",
            code="control-api",
        )


async def _line(stream: asyncio.StreamReader) -> bytes:
    """The next line; a placeholder for a line that is too long, so that the process does not block on writing it."""
    try:
        return await stream.readline()
    except ValueError:
        return b"(a line that is too long)"


def _existing(directory: str) -> str:
    """The directory, or the root if it does not exist or may not be entered."""
    return directory if os.path.isdir(directory) and os.access(directory, os.X_OK) else "/"


def _identity(path: str) -> list[int]:
    """An identifier that distinguishes a directory from a later one with the same path."""
    try:
        found = os.stat(path)
    except OSError:
        return []
    return [found.st_dev, found.st_ino]
