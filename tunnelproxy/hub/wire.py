# SPDX-License-Identifier: Apache-2.0
"""The connection to the hub: one connection to its Unix socket per request, one line of JSON in each direction.

Standard library only, and quick to import: Ansible compiles this module in each of its workers. :mod:`.client` has the
calls that plugins make.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, TypeVar

from .location import PROTOCOL, SOCKET_NAME, HubError, directory, log_path

__all__ = [
    "OPENING_SECONDS",
    "OPEN_SECONDS",
    "START_SECONDS",
    "Caller",
    "HubEndedError",
    "NotRunningError",
    "ask",
    "ask_running",
    "check_reply",
    "check_responsive",
    "connect_to_running",
    "current_directory",
    "explain",
    "open_stream",
    "peer_pid",
    "receive_stream",
    "retry_if_ended",
    "send",
    "unresponsive",
]

START_SECONDS = 20.0
"""How long to wait for a place in the queue of the hub's socket, and for requests that the hub answers immediately."""

LISTEN_SECONDS = 5.0
"""How long a running hub may take to listen: it checks every second that its socket still exists."""

OPEN_SECONDS = 20.0
"""How long a device may take to answer on a new stream. Its proxy gives up after 10 s on a closed port, and after 15 s
on an address that does not answer; a proxy that may speak only V1 is asked again after 5 s."""

EXPLAIN_SECONDS = 20.0
"""How long the hub may take after that to find out why the device has not answered."""

OPENING_SECONDS = 900.0
"""How long calls that find or open a tunnel may take. AWS allows to open one a second, and the hub gives up earlier if
a call itself takes long."""

SILENT_SECONDS = 10.0
"""How long to wait for a reply before checking that the hub answers at all, and how long that check may take. The hub
answers quick requests immediately, even while it waits for a control API or a device."""

_MARGIN_SECONDS = 5.0
_RETRY_PAUSES_SECONDS = (0.1, 1.0)
_POLL_SECONDS = 0.1
_LONGEST_REPLY = 16 * 1024 * 1024
_READ_BYTES = 64 * 1024

T = TypeVar("T")


class NotRunningError(Exception):
    """No hub listens."""


class HubEndedError(HubError):
    """The hub exited, or was killed, before it replied."""


@dataclass(frozen=True)
class Caller:
    """The process that asks: everything that a control call may depend on.

    Attributes:
        environment: the whole environment, including the options for the control API.
        directory: the working directory.
        verify: whether to verify the certificate of the control API.
        python: the interpreter that has botocore.
    """

    environment: Mapping[str, str] = field(repr=False)
    directory: str
    verify: bool = True
    python: str = sys.executable

    @classmethod
    def here(cls) -> Caller:
        """This process."""
        return cls(dict(os.environ), current_directory())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Caller:
        """Parse what :meth:`to_json` returns.

        Raises:
            KeyError, TypeError: it is not a caller.
        """
        return cls(dict(data["environment"]), data["directory"], verify=data["verify"], python=data["python"])

    def to_json(self) -> dict[str, Any]:
        """The representation in requests."""
        return {
            "environment": dict(self.environment),
            "directory": self.directory,
            "verify": self.verify,
            "python": self.python,
        }


def current_directory() -> str:
    """The working directory, or the root if it no longer exists."""
    try:
        return os.getcwd()
    except OSError:
        return "/"


def ask(op: str, timeout: float, *, extra: float = 0.0, repeatable: bool = False, **fields: Any) -> dict[str, Any]:
    """Send a request to the hub, which is started if necessary, and return the reply.

    Args:
        op: the operation, one of :mod:`.requests`.
        timeout: seconds; part of the request.
        extra: additional seconds that the reply may take.
        repeatable: whether to send the request to the next hub if this one exits before it replies.
        fields: the operation's fields.

    Raises:
        HubError: the hub cannot be started, does not reply, or reports an error.
    """
    request = {"op": op, "timeout": timeout, **fields}
    longest = timeout + extra + _MARGIN_SECONDS

    def once() -> dict[str, Any]:
        return check_reply(_exchange(_connect_or_start(), request, longest))

    return retry_if_ended(once) if repeatable else once()


def ask_running(op: str, **fields: Any) -> dict[str, Any]:
    """Send a request to the running hub, and return the reply; an empty one if no hub is running.

    Raises:
        HubError: the hub does not reply, or reports an error.
    """
    request = {"op": op, **fields}
    try:
        return retry_if_ended(lambda: check_reply(_exchange(connect_to_running(), request, START_SECONDS)))
    except NotRunningError:
        return {}


def open_stream(
    thing: str,
    service: str,
    *,
    account: str = "",
    caller: Caller | None = None,
    speaks_first: bool = True,
    timeout: float = OPEN_SECONDS,
) -> int:
    """Open a stream to a service of a thing, and return its file descriptor.

    Args:
        account: the thing's, as in a row of ``hub status``; without it, the caller's environment determines it.
        speaks_first: whether to wait for data, because the device's server speaks first, as SSH servers do.
        timeout: seconds that the device may take.

    Raises:
        HubError: the text says which end is at fault.
    """
    target = _target(thing, service, account, caller)
    request = {"op": "open", "speaks_first": speaks_first, "timeout": timeout, **target}

    def once() -> int:
        with _connect_or_start() as hub:
            try:
                send(hub, request)
            except OSError as error:
                raise _no_reply("open", error) from None
            return receive_stream(hub, timeout)

    return retry_if_ended(once)


def explain(
    thing: str,
    service: str,
    *,
    refused: bool,
    account: str = "",
    caller: Caller | None = None,
    timeout: float = 10.0,
) -> HubError:
    """Find out why a stream to a service of a thing carried no data, from the current state of the tunnel's ends.

    Args:
        refused: whether the stream was closed, rather than left without an answer.
        account: the thing's, as in a row of ``hub status``; without it, the caller's environment determines it.
    """
    target = _target(thing, service, account, caller)
    try:
        reply = ask("explain", timeout, extra=OPENING_SECONDS, refused=refused, **target)
    except HubError as error:
        return error
    return HubError(reply["sentence"], code=reply["code"])


def _target(thing: str, service: str, account: str, caller: Caller | None) -> dict[str, Any]:
    """The fields that identify a service of a tunnel that the hub holds."""
    fields: dict[str, Any] = {"thing": thing, "service": service}
    if account:
        return {**fields, "account": account}
    return {**fields, "caller": (caller or Caller.here()).to_json()}


def receive_stream(hub: socket.socket, timeout: float) -> int:
    """Receive the stream that was requested on a connection to the hub.

    Args:
        timeout: seconds that the device may take.

    Raises:
        HubEndedError: the hub exited before it replied.
        HubError: it did not reply in time, or replied with an error.
    """
    try:
        _await_reply(hub, timeout + EXPLAIN_SECONDS)
        reply, descriptors, _, _ = socket.recv_fds(hub, _READ_BYTES, 1)
        if not reply:
            raise ConnectionResetError
    except OSError as error:
        raise _no_reply("open", error) from None
    try:
        check_reply(json.loads(reply))
    except HubError:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    if not descriptors:
        raise HubError("the stream cannot be received: raise the limit of open files (ulimit -n)")
    return descriptors[0]


def retry_if_ended(once: Callable[[], T]) -> T:
    """Send a request, and send it again to the next hub if this one exits before it replies."""
    for pause in _RETRY_PAUSES_SECONDS:
        try:
            return once()
        except HubEndedError:
            # A hub that is being killed may accept connections for a moment longer.
            time.sleep(pause)
    return once()


def check_reply(reply: dict[str, Any]) -> dict[str, Any]:
    """Return a reply, unless it is an error or of another protocol version.

    Raises:
        HubError: it is.
    """
    if reply.get("protocol") != PROTOCOL:
        raise HubError(
            "the running hub is of another release of iotops.tunnel: stop it with `tunnelproxy hub stop`; its "
            "connections close, and the next hub takes over its tunnels",
            code="other-release",
        )
    if "error" in reply:
        raise HubError(reply["error"], code=reply.get("code", "hub-failed"))
    return reply


def send(hub: socket.socket, request: Mapping[str, Any]) -> None:
    """Send a request.

    Raises:
        OSError: the hub does not accept it.
    """
    hub.sendall(json.dumps({"protocol": PROTOCOL, **request}).encode() + b"\n")


def _exchange(hub: socket.socket, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    with hub:
        try:
            send(hub, request)
            _await_reply(hub, timeout)
            line = _read_line(hub)
        except OSError as error:
            raise _no_reply(request["op"], error) from None
    reply: dict[str, Any] = json.loads(line)
    return reply


def _read_line(hub: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        data = hub.recv(_READ_BYTES)
        if not data or len(line) > _LONGEST_REPLY:
            raise ConnectionResetError
        line += data
    return line


def _await_reply(hub: socket.socket, timeout: float) -> None:
    """Wait until a reply can be read, as long as the hub answers other requests meanwhile.

    Raises:
        HubError: it does not answer them.
        TimeoutError: there is no reply in time.
    """
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        hub.settimeout(max(0.0, min(left, SILENT_SECONDS)))
        try:
            hub.recv(1, socket.MSG_PEEK)
        except (socket.timeout, BlockingIOError):
            if left <= SILENT_SECONDS:
                raise socket.timeout("timed out") from None
            check_responsive()
        else:
            hub.settimeout(SILENT_SECONDS)
            return


def check_responsive() -> None:
    """Raise HubError if the hub does not answer a request that it can answer immediately."""
    pid = 0
    try:
        with _connect() as hub:
            pid = peer_pid(hub)
            hub.settimeout(SILENT_SECONDS)
            send(hub, {"op": "holds", "tunnel_id": "", "account": ""})
            hub.recv(1)
    except socket.timeout:
        raise unresponsive(pid) from None
    except (OSError, NotRunningError):
        pass  # it has exited, which the caller notices on the original connection


def unresponsive(pid: int) -> HubError:
    """The error of a hub that runs but does not answer.

    Args:
        pid: its process ID; 0 if not known.
    """
    name = pid or "PID"
    return HubError(
        f"the hub (process {name}) runs but does not answer: it was stopped, or it hangs. Let it continue with `kill "
        f"-CONT {name}`, or end it with `kill -KILL {name}`: the next hub takes over its tunnels"
    )


def _no_reply(op: str, error: OSError) -> HubError:
    if isinstance(error, (BrokenPipeError, ConnectionResetError)):
        return HubEndedError(f"the hub exited before it answered '{op}'; see {log_path()}")
    return HubError(f"the hub did not answer '{op}': {error.strerror or error}; see {log_path()}")


def _connect() -> socket.socket:
    """Connect to the hub.

    Raises:
        NotRunningError: no hub listens.
        HubError: the hub cannot be reached.
    """
    path = os.path.join(directory(), SOCKET_NAME)
    deadline = time.monotonic() + START_SECONDS
    while True:
        hub = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            hub.settimeout(START_SECONDS)
            hub.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            hub.close()
            raise NotRunningError from None
        except BlockingIOError as error:
            # The queue is full. connect(2) does not wait for a place in the queue of a Unix socket.
            hub.close()
            if time.monotonic() > deadline:
                raise HubError(f"the hub does not accept the request ({error.strerror}); see {log_path()}") from None
            time.sleep(_POLL_SECONDS)
        except OSError as error:
            hub.close()
            raise HubError(f"cannot connect to the hub at {path}: {error.strerror or error}") from None
        else:
            return hub


def connect_to_running() -> socket.socket:
    """Connect to the running hub. A hub whose socket was removed soon listens again.

    Raises:
        NotRunningError: no hub runs.
        HubError: it does not listen.
    """
    deadline = time.monotonic() + LISTEN_SECONDS
    while True:
        try:
            return _connect()
        except NotRunningError:
            from .start import lock_holder

            holder = lock_holder()
            if holder is None:
                raise
            if time.monotonic() > deadline:
                raise HubError(
                    f"the hub in {directory()} does not listen: see {log_path()}, or stop it: kill {holder}"
                ) from None
        time.sleep(_POLL_SECONDS)


def _connect_or_start() -> socket.socket:
    try:
        return _connect()
    except NotRunningError:
        pass
    from .start import start, take_start_lock

    lock = take_start_lock()
    try:
        for _ in range(2):
            try:
                return _connect()
            except NotRunningError:
                # Twice: the first attempt may have found a hub that was about to exit.
                start()
        return _connect()
    except NotRunningError:
        raise HubError(f"the hub exited as soon as it was started; see {log_path()}") from None
    finally:
        os.close(lock)


def peer_pid(hub: socket.socket) -> int:
    """The process ID of the hub; 0 if the system does not reveal it (SO_PEERCRED exists only on Linux)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return 0
    return int.from_bytes(hub.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), sys.byteorder)
