# SPDX-License-Identifier: Apache-2.0
"""How Ansible's workers talk to the hub, and start it when it is not there.

Standard library only, and quick to import: Ansible compiles it afresh in every worker, and each new ssh connection
starts a Python that opens a stream with it. That takes 15 ms of processor time. It took 35 with ``socket``, ``json``
and ``typing``: they are done without, or imported where they are needed. Each request is one connection to the hub's
Unix socket, with a line of JSON each way.

The hub's folder is the environment's ``IOTOPS_TUNNEL_DIR``; without it, ``iotops-tunnel`` in the user's runtime
directory (``XDG_RUNTIME_DIR``, or ``/run/user/UID``), or ``/tmp/iotops-tunnel-UID`` where there is none. It must be the
same for every run of one user, on one machine: of these, one that is there already is kept to.
"""

from __future__ import annotations

import _socket
import errno
import os
import stat
import sys
import time
from _json import encode_basestring_ascii

TYPE_CHECKING = False  # what typing's is, when a program runs
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Callable, TypeVar

    from .health import Answer

    T = TypeVar("T")

__all__ = [
    "Caller",
    "HealthCheck",
    "HubError",
    "adopt",
    "ask_health",
    "call",
    "cannot_write",
    "connector_command",
    "current_directory",
    "describe",
    "directory",
    "ensure",
    "explain",
    "explain_break",
    "holds",
    "in_words",
    "locate",
    "open_stream",
    "prepare",
    "release",
    "status",
    "stop",
]

DIRECTORY_VARIABLE = "IOTOPS_TUNNEL_DIR"
SOCKET_NAME = "hub.sock"
LOCK_NAME = "hub.lock"
"""Who holds its lock is the hub; its process ID is in the file."""

START_LOCK_NAME = "start.lock"

PROTOCOL = 2
"""That of requests and replies. A hub of another release may hold tunnels whose account it does not know."""

START_SECONDS = 20.0
LISTEN_SECONDS = 5.0
"""How long a hub may take to listen: it looks every second whether its socket is still there."""

OPEN_SECONDS = 20.0
"""How long a device may take to answer on a new stream: its proxy gives up on a closed port after 10 s and on a silent
address after 15 s, and one that may speak V1 only is asked a second time after 5 s."""

EXPLAIN_SECONDS = 20.0
"""How long after that the hub may take to find out why it did not."""

OPENING_SECONDS = 120.0
"""How long the calls that find or open a tunnel may take: AWS throttles them when many devices are opened at once."""

SILENT_SECONDS = 10.0
"""How long the hub may take for an answer before it is asked whether it answers at all, and then for that answer. It
answers what is quick at once, also while it waits for a control API, or for a device."""

DEFAULT_SERVICES = ("SSH1", "HTTP1")

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_MARGIN_SECONDS = 5.0
_PAUSES_SECONDS = (0.1, 1.0)
_OTHERS = ("/run/user/{user}", "/tmp/iotops-tunnel-{user}")  # noqa: S108  directory() checks it
"""The runtime directory of a process that is not told it, and the hub's folder where there is none."""

_POLL_SECONDS = 0.1
_LONGEST_REPLY = 16 * 1024 * 1024
_LONGEST_SOCKET_PATH = 103 if sys.platform == "darwin" else 107
"""Bytes; unix(7): the address has 108, with a zero at its end."""

_REMEDIES = {
    errno.ENOSPC: "free some space there, or set {variable} to another folder",
    errno.EDQUOT: "free some space there, or set {variable} to another folder",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
}
_OTHER_REMEDY = "make it writable for you, or set {variable} to another folder"

_HUB_VARIABLES = (
    DIRECTORY_VARIABLE,
    "HOME",
    "LANG",
    "LD_LIBRARY_PATH",
    "LOGNAME",
    "PATH",
    "TMPDIR",
    "TZ",
    "USER",
    "VIRTUAL_ENV",
)
_HUB_PREFIXES = ("LC_", "PYTHON", "XDG_")


class Caller:
    """Who asks: all that a control call is to see. No data class: what those need would be imported for every task.

    Attributes:
        environment: the whole of it, the options that say how to reach the control API merged in.
        directory: the working directory.
        verify: whether to verify the certificate of the control API.
    """

    def __init__(
        self, environment: Mapping[str, str], directory: str, *, verify: bool = True, python: str = sys.executable
    ) -> None:
        self.environment = environment
        self.directory = directory
        self.verify = verify
        self.python = python

    @classmethod
    def here(cls) -> Caller:
        """This process."""
        return cls(dict(os.environ), current_directory())

    def described(self) -> dict[str, Any]:
        """What a request says of it."""
        return {
            "environment": dict(self.environment),
            "directory": self.directory,
            "verify": self.verify,
            "python": self.python,
        }


class HubError(Exception):
    """Something could not be done; the text is a sentence for the operator.

    Attributes:
        code: one word for programs, such as ``no-tunnel``, ``device-not-connected`` or ``token-used``.
    """

    def __init__(self, message: str, *, code: str = "hub-failed") -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class HealthCheck:
    """What to ask a device before ssh goes in. No data class: what those need would be imported for every task.

    Attributes:
        service: the service ID that leads to its HTTP server.
        statuses: those of a device that is well.
    """

    def __init__(self, service: str, path: str, statuses: Sequence[int]) -> None:
        self.service = service
        self.path = path
        self.statuses = statuses


class _NotRunningError(Exception):
    """No hub listens."""


class _EndedError(HubError):
    """The hub ended, or was killed, while it was asked for something."""


class _Connection(_socket.socket):
    """A connection to the hub, which ends with the ``with`` that it is used in.

    Attributes:
        pid: the hub's process ID; 0 where the system does not tell it.
    """

    pid = 0

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ensure(
    thing: str,
    service: str = "SSH1",
    *,
    open_policy: str = "never",
    services: Sequence[str] = DEFAULT_SERVICES,
    ports: Mapping[str, int | None] | None = None,
    any_host: Sequence[str] = (),
    wait: float = 30.0,
    timeout: float = 10.0,
    owner: str | None = None,
    unregistered: bool = False,
    caller: Caller | None = None,
) -> dict[str, Any]:
    """Wait until the tunnel of a thing is linked, starting the hub if need be.

    Args:
        open_policy: what to do where the hub holds no tunnel that works: ``never`` fails; ``reuse`` takes up an open
            tunnel of the same owner, and opens one only where there is none; ``take_over`` takes anybody's that the
            collection opened, and opens one only where there is none; ``always`` opens one.
        services: the service IDs of a tunnel that is opened.
        ports: where to listen on the loopback, by service ID: 0 for any port, None for none. Services that are not
            named stay as they are.
        any_host: those of the services in ``ports`` whose port takes requests for any host, and so of any web page.
        wait: seconds that the device has to connect to a tunnel that the hub did not hold before.
        timeout: seconds to wait for the link.
        owner: whose a tunnel is that is opened or taken over; by default ``IOTOPS_TUNNEL_OWNER``, or the user and
            machine.
        unregistered: open a tunnel also to a thing that the registry does not know.
        caller: whose environment says which account is meant; by default this process's.

    Returns:
        the row of this tunnel in :func:`status`, with the hub's process ID as ``hub_pid``, in ``taken_from`` the owner
        that it was just taken from, and in ``not_saved`` why the next hub would not know it.

    Raises:
        HubError: there is no tunnel, it is not linked, or it does not carry the service; the text says why.
    """
    caller = caller or Caller.here()
    return _ask(
        "ensure",
        timeout,
        patience=wait + OPENING_SECONDS,
        # Whatever the hub that ended had opened, the next one finds: in the file, or by the tunnel's tags.
        repeatable=open_policy != "always",
        thing=thing,
        service=service,
        open=open_policy,
        services=list(services),
        ports=dict(ports or {}),
        any_host=list(any_host),
        wait=wait,
        owner=_owner(owner, caller),
        unregistered=unregistered,
        caller=caller.described(),
    )


def locate(thing: str | None, *, caller: Caller | None = None, timeout: float = OPENING_SECONDS) -> dict[str, Any]:
    """Find out which account a thing is in, as the caller's environment has it. Opens nothing.

    Args:
        thing: None to ask for the account alone.

    Returns:
        ``account``, by which requests name it, and ``account_name``, by which messages do; ``region``; and of a thing
        ``ssh_name``, ``host_key_name`` and ``qualified_name``, by which ssh knows it there.

    Raises:
        HubError: the control API does not say.
    """
    return _ask("locate", timeout, thing=thing, caller=(caller or Caller.here()).described())


def prepare(
    thing: str | None,
    services: Sequence[str],
    *,
    ports: Mapping[str, int | None] | None = None,
    unregistered: bool = False,
    caller: Caller | None = None,
    timeout: float = OPENING_SECONDS,
) -> dict[str, Any]:
    """See that a tunnel to a thing would be of use, before one is paid for.

    Args:
        thing: None for a tunnel whose token is copied to a device.
        services: those that it is to carry.
        ports: where they are to listen on the loopback, as for :func:`ensure`.
        unregistered: whether it is enough that the thing may exist.

    Raises:
        HubError: the registry does not know the thing, or there is no way to the data plane.
    """
    return _ask(
        "prepare",
        timeout,
        thing=thing,
        services=list(services),
        ports=dict(ports or {}),
        unregistered=unregistered,
        caller=(caller or Caller.here()).described(),
    )


def call(
    operation: str,
    parameters: Mapping[str, Any],
    *,
    purpose: str,
    api: str = "iotsecuretunneling",
    caller: Caller | None = None,
    timeout: float = OPENING_SECONDS,
) -> dict[str, Any]:
    """Make one call of a control API.

    Args:
        operation: the method of botocore's client.
        purpose: what for, in words that follow "Could not".
        api: botocore's name of the API.

    Returns:
        the answer; times are texts in ISO 8601 form.

    Raises:
        HubError: it is refused, or not answered; the text says why, ``code`` in one word.
    """
    return _ask(
        "call",
        timeout,
        operation=operation,
        parameters=dict(parameters),
        purpose=purpose,
        api=api,
        caller=(caller or Caller.here()).described(),
    )


def adopt(
    thing: str,
    *,
    tunnel_id: str,
    tunnel_arn: str,
    source_token: str,
    services: Sequence[str],
    owner: str = "",
    expires_at: float | None = None,
    ports: Mapping[str, int | None] | None = None,
    any_host: Sequence[str] = (),
    caller: Caller | None = None,
    timeout: float = 10.0,
) -> dict[str, Any]:
    """Hand the source's access token of an open tunnel to the hub, and wait until it is linked.

    Args:
        tunnel_arn: says which account and region it is in.
        services: the service IDs that the tunnel carries.
        owner: whose it is.
        expires_at: when the tunnel's life ends, in seconds since the epoch.
        ports: as for :func:`ensure`.
        any_host: as for :func:`ensure`.
        caller: whose environment says where the data plane is; by default this process's.
        timeout: seconds to wait for the link.

    Returns:
        the row of this tunnel in :func:`status`, and in ``not_saved`` why the next hub would not know it.

    Raises:
        HubError: the tunneling service cannot be reached or refuses the token.
    """
    return _ask(
        "adopt",
        timeout,
        patience=OPENING_SECONDS,
        thing=thing,
        tunnel_id=tunnel_id,
        tunnel_arn=tunnel_arn,
        source_token=source_token,
        services=list(services),
        owner=owner,
        expires_at=expires_at,
        ports=dict(ports or {}),
        any_host=list(any_host),
        caller=(caller or Caller.here()).described(),
    )


def describe(thing: str, *, caller: Caller | None = None, timeout: float = 10.0) -> dict[str, Any]:
    """The row of a thing's tunnel in :func:`status`, with the state of both ends.

    Returns:
        the row, with ``source`` (``connected`` or ``disconnected``) and ``destination`` (likewise, or ``unknown``).

    Raises:
        HubError: the hub holds no tunnel for the thing.
    """
    described = (caller or Caller.here()).described()
    return _ask("describe", timeout, patience=OPENING_SECONDS, thing=thing, caller=described)


def explain(
    thing: str,
    service: str,
    *,
    refused: bool,
    account: str = "",
    caller: Caller | None = None,
    timeout: float = 10.0,
) -> HubError:
    """Why a connection to a service of a thing gave nothing, with the state of the tunnel's ends as they are now.

    Args:
        refused: whether it was ended, rather than left without an answer.
        account: the thing's, as a row of :func:`status` has it; without it, the caller's environment says which.
    """
    try:
        found = _ask(
            "explain", timeout, patience=OPENING_SECONDS, refused=refused, **_which(thing, service, account, caller)
        )
    except HubError as error:
        return error
    return HubError(found["sentence"], code=found["code"])


def explain_break(thing: str, service: str, *, hub_pid: int | None, account: str) -> HubError:
    """Why a connection to a service of a thing broke off after it had been good.

    Args:
        account: the thing's, as a row of :func:`status` has it.
        hub_pid: the process ID of the hub that carried it.
    """
    try:
        running = status()
    except HubError as error:
        return error
    if hub_pid is not None and (running or {}).get("pid") != hub_pid:
        return HubError(f"the hub (process {hub_pid}) has ended; it starts again by itself", code="hub-ended")
    found = explain(thing, service, refused=True, account=account)
    if found.code == "refused":
        return HubError(
            f"the device's SSH server ended it, or the way to the device failed for a moment; see {_log_path()}",
            code="broken",
        )
    return found


def release(tunnel_id: str, account: str) -> bool:
    """Have the hub drop a tunnel of an account, without closing it for others. Returns whether it held that tunnel."""
    return bool(_ask_running("release", {}, tunnel_id=tunnel_id, account=account).get("released", False))


def holds(tunnel_id: str, account: str) -> bool:
    """Whether a hub runs that holds this tunnel of an account, with an access token that was not refused."""
    return bool(_ask_running("holds", {}, tunnel_id=tunnel_id, account=account).get("holds", False))


def status() -> dict[str, Any] | None:
    """What the hub holds, or None where no hub runs."""
    return _ask_running("status", {}) or None


def stop() -> bool:
    """End the hub, and wait until it is gone. Returns whether one was running."""
    try:
        with _connect_to_running() as connection:
            connection.settimeout(START_SECONDS)
            _send(connection, {"op": "stop"})
            while connection.recv(4096):
                pass
    except _NotRunningError:
        return False
    except _socket.timeout:
        raise _silent(connection) from None
    except OSError as error:
        raise HubError(f"the hub does not stop: {error.strerror or error}") from None
    return True


def open_stream(
    thing: str,
    service: str,
    *,
    account: str = "",
    caller: Caller | None = None,
    speaks_first: bool = True,
    timeout: float = OPEN_SECONDS,
) -> int:
    """Open a connection to a service of a thing, and return its file descriptor.

    Args:
        account: the thing's, as a row of :func:`status` has it; without it, the caller's environment says which.
        speaks_first: whether the device's server speaks first, as SSH servers do: return when it has.
        timeout: seconds that the device may take.

    Raises:
        HubError: the text says which end is at fault.
    """
    which = _which(thing, service, account, caller)
    request = {"op": "open", "speaks_first": speaks_first, "timeout": timeout, **which}
    return _insist(lambda: _ask_for_stream(request, timeout))


def ask_health(
    thing: str,
    service: str,
    path: str,
    *,
    account: str,
    headers: Mapping[str, str],
    content_limit: int,
    timeout: float,
) -> Answer:
    """Send one HTTP GET to a device through its tunnel. See :func:`.health.ask`."""
    from .health import ask

    return ask(thing, service, path, account=account, headers=headers, content_limit=content_limit, timeout=timeout)


def connector_command(
    thing: str,
    service: str,
    *,
    account: str,
    timeout: float = OPEN_SECONDS,
    health_check: HealthCheck | None = None,
) -> list[str]:
    """The command line of ssh's ``ProxyCommand``, for use with ``ProxyUseFdpass=yes``.

    Args:
        account: the thing's, as a row of :func:`status` has it.
        timeout: seconds that the device may take to answer.
        health_check: what to ask the device first.
    """
    connector = os.path.join(_PACKAGE, "hub", "connector.py")
    command = [sys.executable, "-I", "-S", connector, account, thing, service]
    if timeout != OPEN_SECONDS or health_check is not None:
        command.append(f"{timeout:g}")
    if health_check is not None:
        command += [health_check.service, health_check.path, ",".join(map(str, health_check.statuses))]
    return command


def current_directory() -> str:
    """The working directory, or the root where that is gone."""
    try:
        return os.getcwd()
    except OSError:
        return "/"


def directory() -> str:
    """The hub's folder, which only this user may enter; made if it is not there.

    Raises:
        HubError: it cannot be made, belongs to somebody else, or is open to others, or its path is too long.
    """
    path = _chosen_directory() or _default_directory()
    if not _fits(path):
        raise HubError(
            f"the path of the hub's folder is too long for a Unix socket in it: {path}: set {DIRECTORY_VARIABLE} to "
            f"one of {_LONGEST_SOCKET_PATH - len(SOCKET_NAME) - 1} bytes at most"
        )
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except FileExistsError:
        pass  # by something that is no folder: told below
    except OSError as error:
        raise HubError(f"cannot make the hub's folder {path}: {error.strerror}: {_remedy(error)}") from None
    if not _is_mine_alone(path):
        raise HubError(
            f"the hub's folder {path} must be a folder of yours that nobody else may enter (mode 0700): change that, "
            f"or set {DIRECTORY_VARIABLE} to another"
        )
    return path


def cannot_write(path: object, error: OSError) -> str:
    """What to tell the operator where a file of the hub's cannot be written, with what to do about it."""
    return f"cannot write {path}: {error.strerror or error}: {_remedy(error)}"


def in_words(error: OSError) -> str:
    """What the operating system said, with the file that it is about, or what to do about it."""
    if error.filename:
        return cannot_write(error.filename, error)
    remedy = f": {_remedy(error)}" if error.errno in _REMEDIES else ""
    return f"{error.strerror or error}{remedy}"


def _remedy(error: OSError) -> str:
    return _REMEDIES.get(error.errno or 0, _OTHER_REMEDY).format(variable=DIRECTORY_VARIABLE)


def _chosen_directory() -> str | None:
    """The folder that the environment names, if it does; the hub, whose working directory is another, is told this."""
    given = os.environ.get(DIRECTORY_VARIABLE)
    if not given:
        return None
    path = os.path.expanduser(given)
    try:
        if not path.startswith("~"):
            return os.path.abspath(path)
        why = "there is no such user"
    except OSError as error:
        why = f"the working directory is gone ({error.strerror})"
    raise HubError(f"{DIRECTORY_VARIABLE}={given} names no folder: {why}; give an absolute path")


def _default_directory() -> str:
    of_user, at_last = (path.format(user=os.getuid()) for path in _OTHERS)
    runtime = (os.environ.get("XDG_RUNTIME_DIR", ""), of_user)
    folders = [os.path.join(path, "iotops-tunnel") for path in runtime if os.path.isabs(path) and _is_runtime(path)]
    folders = [*filter(_fits, folders), at_last]
    # A hub may have been started without a session, from cron, or have outlived one: the next caller finds it there.
    return next(filter(_is_mine_alone, folders), folders[0])


def _is_runtime(path: str) -> bool:
    """Whether it is a runtime directory as the XDG Base Directory Specification wants it: this user's alone."""
    try:
        return _is_private(os.stat(path)) and os.access(path, os.W_OK | os.X_OK)
    except OSError:
        return False


def _is_mine_alone(path: str) -> bool:
    try:
        return _is_private(os.lstat(path))
    except OSError:
        return False


def _is_private(found: os.stat_result) -> bool:
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _fits(path: str) -> bool:
    return len(os.fsencode(os.path.join(path, SOCKET_NAME))) <= _LONGEST_SOCKET_PATH


def _which(thing: str, service: str, account: str, caller: Caller | None) -> dict[str, Any]:
    """What names a service of a tunnel that is held."""
    names: dict[str, Any] = {"thing": thing, "service": service}
    if account:
        return {**names, "account": account}
    return {**names, "caller": (caller or Caller.here()).described()}


def _ask(op: str, timeout: float, *, patience: float = 0.0, repeatable: bool = False, **fields: Any) -> dict[str, Any]:
    """Ask the hub, starting it if need be.

    Args:
        repeatable: whether to ask the next hub where this one ends before it has answered.
    """
    request = {"op": op, "timeout": timeout, **fields}
    longest = timeout + patience + _MARGIN_SECONDS

    def ask() -> dict[str, Any]:
        return _check(_exchange(_connect_or_start(), request, longest))

    return _insist(ask) if repeatable else ask()


def _insist(ask: Callable[[], T]) -> T:
    """Ask the hub, and the next one where it ends before it has answered."""
    for pause in _PAUSES_SECONDS:
        try:
            return ask()
        except _EndedError:
            # One that is being killed may still take connections, for a moment.
            time.sleep(pause)
    return ask()


def _ask_running(op: str, otherwise: dict[str, Any], **fields: Any) -> dict[str, Any]:
    try:
        return _insist(lambda: _check(_exchange(_connect_to_running(), {"op": op, **fields}, START_SECONDS)))
    except _NotRunningError:
        return otherwise


def _ask_for_stream(request: dict[str, Any], timeout: float) -> int:
    import array  # a module in C

    with _connect_or_start() as connection:
        descriptors = array.array("i")
        try:
            _send(connection, request)
            _await_answer(connection, timeout + EXPLAIN_SECONDS)
            reply, ancillary, _, _ = connection.recvmsg(65536, _socket.CMSG_LEN(descriptors.itemsize))
        except OSError as error:
            raise _no_answer(request, error) from None
        if not reply:
            raise _no_answer(request, ConnectionResetError())
        for level, kind, data in ancillary:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        if not descriptors:
            _check(_decode(reply))
        if f'"protocol": {PROTOCOL}'.encode() not in reply:
            os.close(descriptors[0])
            raise _other_release()
        return descriptors[0]


def _other_release() -> HubError:
    return HubError(
        "the hub that runs is of another release of iotops.tunnel: end it with `tunnelproxy hub stop`; its connections "
        "end, and the next one takes over its tunnels",
        code="other-release",
    )


def _check(reply: dict[str, Any]) -> dict[str, Any]:
    if reply.get("protocol") != PROTOCOL:
        raise _other_release()
    if "error" in reply:
        raise HubError(reply["error"], code=reply.get("code", "hub-failed"))
    return reply


def _exchange(connection: _Connection, request: dict[str, Any], timeout: float) -> dict[str, Any]:
    with connection:
        try:
            _send(connection, request)
            _await_answer(connection, timeout)
            line = b""
            while not line.endswith(b"\n") and len(line) < _LONGEST_REPLY:
                data = connection.recv(65536)
                if not data:
                    break
                line += data
        except OSError as error:
            raise _no_answer(request, error) from None
        if not line.endswith(b"\n"):
            raise _no_answer(request, ConnectionResetError())
        return _decode(line)


def _await_answer(connection: _Connection, timeout: float) -> None:
    """Wait until there is something to read, as long as the hub answers others meanwhile.

    Raises:
        HubError: it does not.
        TimeoutError: there is nothing to read in time.
    """
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        connection.settimeout(max(0.0, min(left, SILENT_SECONDS)))
        try:
            connection.recv(1, _socket.MSG_PEEK)
        except (_socket.timeout, BlockingIOError):
            if left <= SILENT_SECONDS:
                raise _socket.timeout("timed out") from None
            _check_that_it_answers()
        else:
            connection.settimeout(SILENT_SECONDS)
            return


def _check_that_it_answers() -> None:
    """Raise HubError where the hub does not answer what takes it no time."""
    try:
        with _connect() as connection:
            connection.settimeout(SILENT_SECONDS)
            _send(connection, {"op": "holds", "tunnel_id": "", "account": ""})
            connection.recv(1)
    except _socket.timeout:
        raise _silent(connection) from None
    except (OSError, _NotRunningError):
        # It has ended: whoever waits for it learns that from its own connection.
        pass


def _silent(connection: _Connection) -> HubError:
    pid = connection.pid or "PID"
    return HubError(
        f"the hub (process {pid}) runs but does not answer: it was stopped, or it hangs. Let it continue with `kill "
        f"-CONT {pid}`, or end it with `kill -KILL {pid}`: the next hub takes over its tunnels"
    )


def _no_answer(request: dict[str, Any], error: OSError) -> HubError:
    if isinstance(error, (BrokenPipeError, ConnectionResetError)):
        return _EndedError(f"the hub ended before it answered '{request['op']}'; see {_log_path()}")
    return HubError(f"the hub gave no answer to '{request['op']}': {error.strerror or error}; see {_log_path()}")


def _send(connection: _Connection, request: dict[str, Any]) -> None:
    connection.sendall(_encode({"protocol": PROTOCOL, **request}).encode() + b"\n")


def _encode(value: Any) -> str:
    """JSON of what requests are made of; what json.dumps writes."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return encode_basestring_ascii(value)
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_encode(key)}: {_encode(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(_encode, value)) + "]"


def _decode(line: bytes) -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads(line)
    return found


def _connect() -> _Connection:
    path = os.path.join(directory(), SOCKET_NAME)
    deadline = time.monotonic() + START_SECONDS
    while True:
        connection = _Connection(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            connection.settimeout(START_SECONDS)
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            raise _NotRunningError from None
        except BlockingIOError as error:
            # More callers than its queue holds: a Unix socket does not wait for that itself.
            connection.close()
            if time.monotonic() > deadline:
                raise HubError(f"the hub does not accept the request ({error.strerror}); see {_log_path()}") from None
            time.sleep(_POLL_SECONDS)
        except OSError as error:
            connection.close()
            raise HubError(f"cannot talk to the hub at {path}: {error.strerror or error}") from None
        else:
            connection.pid = _pid_of_peer(connection)
            return connection


def _connect_to_running() -> _Connection:
    """Connect to the hub that runs; one whose socket was removed listens again within a moment."""
    deadline = time.monotonic() + LISTEN_SECONDS
    while True:
        try:
            return _connect()
        except _NotRunningError:
            holder = _lock_holder()
            if holder is None:
                raise
            if time.monotonic() > deadline:
                raise HubError(
                    f"the hub in {directory()} does not listen: see {_log_path()}, or end it: kill {holder}"
                ) from None
        time.sleep(_POLL_SECONDS)


def _lock_holder() -> str | None:
    """The process ID of the hub, for a message; None where there is no hub."""
    import fcntl

    try:
        lock = os.open(os.path.join(directory(), LOCK_NAME), os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        # The disk may have been too full for it.
        return os.read(lock, 20).decode(errors="replace").strip() or "PROCESS"
    else:
        return None
    finally:
        os.close(lock)


def _pid_of_peer(connection: _Connection) -> int:
    if not hasattr(_socket, "SO_PEERCRED"):  # it is Linux's
        return 0
    return int.from_bytes(connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 4), sys.byteorder)


def _connect_or_start() -> _Connection:
    try:
        return _connect()
    except _NotRunningError:
        pass
    lock = _start_lock()
    try:
        for _ in range(2):
            try:
                return _connect()
            except _NotRunningError:
                # Twice: the first may have found one that was about to end.
                _start()
        return _connect()
    except _NotRunningError:
        raise HubError(f"the hub ended as soon as it was started; see {_log_path()}") from None
    finally:
        os.close(lock)


def _start_lock() -> int:
    """Take the lock of those who start a hub; closing it gives it back."""
    import fcntl

    path = os.path.join(directory(), START_LOCK_NAME)
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise HubError(cannot_write(path, error)) from None
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _start() -> None:
    import subprocess

    # The hub forks itself into a session of its own, so that no signal to Ansible's process groups reaches it, and
    # closes its standard output when it is ready, or has failed.
    command = [sys.executable, _PACKAGE, "hub", "run", "--background"]
    chosen = _chosen_directory()
    try:
        done = subprocess.run(  # noqa: S603  our own command
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=START_SECONDS,
            check=False,
            cwd="/",
            # What is of the caller alone comes with each request.
            env={
                **{
                    name: value
                    for name, value in os.environ.items()
                    if name in _HUB_VARIABLES or name.startswith(_HUB_PREFIXES)
                },
                # Its own working directory is another.
                **({DIRECTORY_VARIABLE: chosen} if chosen else {}),
            },
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HubError(f"cannot start the hub: {error}") from None
    said = done.stdout.decode(errors="replace").strip().splitlines()
    if said[-1:] != ["ready"]:
        last = said[-1].removeprefix("tunnelproxy: error: ") if said else "it said nothing"
        raise HubError(f"cannot start the hub: {last}; see {_log_path()}")


def _log_path() -> str:
    return os.path.join(directory(), "hub.log")


def _owner(owner: str | None, caller: Caller) -> str:
    from .tags import OWNER_VARIABLE, default_owner, valid_owner

    return valid_owner(owner or caller.environment.get(OWNER_VARIABLE) or "") or default_owner()
