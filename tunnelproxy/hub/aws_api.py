# SPDX-License-Identifier: Apache-2.0
"""The control API through botocore, boto3's core: the calls that control processes make for the hub.

A control process has the environment and the working directory of one caller, so botocore finds what ``aws`` would find
in the caller's shell: profiles, single sign-on, ``credential_process``, roles, proxies, and certificate authorities. It
resolves credentials for each request, as each run of ``aws`` does. Credentials that come only from files are resolved
again when one of the files has changed, because assuming a role costs a call.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import math
import os
import shlex
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, Callable, NamedTuple, TypeVar
from urllib.parse import urlsplit

from botocore.config import Config
from botocore.exceptions import ClientError, NoCredentialsError, NoRegionError, ProfileNotFound
from botocore.session import Session
from botocore.utils import JSONFileCache

from . import aws_errors
from .account import Account
from .control_answers import EndStates, FoundTunnel, Identity
from .fingerprint import fingerprint
from .location import HubError
from .tags import MANAGED_TAGS, OWNER_TAG

__all__ = ["AwsApi"]

log = logging.getLogger(__name__)

TUNNELING = "iotsecuretunneling"
REGISTRY = "iot"

CONNECT_SECONDS = 5.0
CALL_SECONDS = 20.0
OPEN_SECONDS = 60.0
ATTEMPTS = 6
DEFAULT_LIFETIME = timedelta(hours=12)

CLOCKS_DIFFER = timedelta(minutes=2)
"""How far the service's clock, which dates its tunnels, may be behind this machine's."""

STALE_SECONDS = 3.0
"""How long credentials of a program, container or machine are used without resolving them again."""

ACCOUNT_HEADER = "x-iotops-account"
"""The header with the tunneling service's account ID; AWS's is known from its Security Token Service."""

_FROM_FILES = (
    "env",
    "explicit",
    "config-file",
    "shared-credentials-file",
    "sso",
    "assume-role",
    "assume-role-with-web-identity",
)
"""botocore's names of credentials that change only if a file changes, or when they expire, which botocore handles."""

_GIVEN = ("env", "explicit", "config-file", "shared-credentials-file")
"""Static credentials; all others were issued, and may be revoked before they expire."""

_MOST_PAGES = 20
_NEAREST = 3


T = TypeVar("T")


class _Login(NamedTuple):
    """Credentials, region and configuration, with the state of the files that they were found in."""

    session: Session
    credentials: Any
    region: str
    fingerprints: dict[str, str]
    good_until: float

    @property
    def lasts(self) -> bool:
        """Whether they stay the same until the files change."""
        return self.credentials.method in _FROM_FILES

    def holds(self) -> bool:
        """Whether they need not be resolved again."""
        return (self.lasts or time.monotonic() < self.good_until) and self.fingerprints == _fingerprints(self.session)


class _RoleCache(JSONFileCache):
    """The cache of ``aws`` for credentials of roles: an MFA code that was entered there is not needed here again."""

    def __init__(self, folder: str, *, unread: bool) -> None:
        super().__init__(folder)
        self._unread = unread

    def __contains__(self, key: str) -> bool:
        return not self._unread and super().__contains__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        # Without a writable home folder, as in a container, each process assumes the role once.
        with suppress(OSError):
            super().__setitem__(key, value)


class AwsApi:
    """Makes calls with the credentials of one caller.

    Args:
        verify: whether to verify the certificate of the control API.
    """

    def __init__(self, *, verify: bool = True) -> None:
        self._verify = verify
        self._lock = threading.Lock()
        self._login: _Login | None = None
        self._issue_afresh = False
        self._clients: dict[tuple[object, ...], Any] = {}
        self._loader: Any = None

    def identify(self, thing: str, known: Mapping[str, str]) -> Identity:
        """The account that calls go to.

        Args:
            thing: one that may exist there; some services reveal their account only with a thing.
            known: the keys of accounts, by :attr:`.Identity.known_by`.
        """

        def identify() -> Identity:
            login = self._log_in()
            client = self._client(TUNNELING)
            endpoint = _endpoint_of(client)
            leads_there = (login.credentials.get_frozen_credentials().access_key, login.region, endpoint)
            known_by = hashlib.sha256(json.dumps(leads_there).encode()).hexdigest()
            key = known.get(known_by) or self._ask_for_account(client, endpoint, thing).key
            return Identity(key, known_by, watch=login.fingerprints, lasts=login.lasts)

        return self._made(f"find out which account {thing} is in", TUNNELING, identify)

    def end_states(self, tunnel_id: str) -> EndStates:
        """What DescribeTunnel says of a tunnel."""

        def describe() -> dict[str, Any] | None:
            client = self._client(TUNNELING)
            try:
                found: dict[str, Any] = client.describe_tunnel(tunnelId=tunnel_id)["tunnel"]
            except client.exceptions.ResourceNotFoundException:
                return None
            return found

        tunnel = self._made(f"describe tunnel {tunnel_id}", TUNNELING, describe)
        if tunnel is None:
            return EndStates(tunnel="GONE")
        return EndStates(
            tunnel=tunnel.get("status", ""),
            destination=_end_state(tunnel, "destination"),
            arn=tunnel.get("tunnelArn", ""),
            owner=_tags(tunnel).get(OWNER_TAG, ""),
        )

    def take(
        self, thing: str, service: str, life: float, owner: str, *, take_over: bool, held: Sequence[str]
    ) -> FoundTunnel | None:
        """Find an open tunnel of a thing that carries a service, and rotate its source token; None if there is none.

        Of several, it prefers one whose destination is connected, then one of the same owner, then the newest.

        Args:
            life: seconds before the tunnel may expire.
            owner: find only tunnels of this owner.
            take_over: find tunnels of any owner that the collection opened, and assign the one that is found to this
                owner.
            held: the IDs of tunnels that the hub holds, which are skipped.
        """

        def take() -> FoundTunnel | None:
            client = self._client(TUNNELING)
            found = [
                tunnel
                for tunnel in _open_tunnels(client, thing)
                if service in _services(tunnel)
                and tunnel["tunnelId"] not in held
                and (_expiry(tunnel) or math.inf) > time.time() + life
                and (take_over or _owner(tunnel) == owner)
            ]
            if not found:
                return None
            found.sort(key=lambda each: (_end_state(each, "destination") != "connected", _owner(each) != owner))
            return _taken(client, found[0], owner)

        return self._made(f"find the tunnels of {thing}", TUNNELING, take)

    def open(self, thing: str, services: Sequence[str], owner: str) -> FoundTunnel:
        """Open a tunnel to a thing (OpenTunnel; AWS charges for it)."""
        purpose, began = f"open a tunnel to {thing}", datetime.now().astimezone()
        tags = {**MANAGED_TAGS, OWNER_TAG: owner}
        request = {
            "destinationConfig": {"thingName": thing, "services": list(services)},
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }
        try:
            opened = self._made(purpose, TUNNELING, lambda: self._open_once(request))
        except HubError as error:
            if error.code != "control-api":
                raise
            # It may have been opened, and only the response lost.
            found = self._made(purpose, TUNNELING, lambda: self._opened_since(thing, owner, began))
            if found is None:
                raise
            return found
        # Without DescribeTunnel: if that were refused, a tunnel that has been paid for would be lost.
        tunnel = {
            "tunnelId": opened["tunnelId"],
            "tunnelArn": opened["tunnelArn"],
            "destinationConfig": {"services": list(services)},
            "createdAt": datetime.now().astimezone(),
            "timeoutConfig": {"maxLifetimeTimeoutMinutes": DEFAULT_LIFETIME.total_seconds() / 60},
        }
        return _found(self._client(TUNNELING), tunnel, opened["sourceAccessToken"])

    def _open_once(self, request: dict[str, Any]) -> dict[str, Any]:
        """Call OpenTunnel once: without a response, it may have been carried out."""
        return dict(self._client(TUNNELING, repeats=False).open_tunnel(**request))

    def _opened_since(self, thing: str, owner: str, began: datetime) -> FoundTunnel | None:
        """The tunnel that an owner opened after a given time, with a new token."""
        client = self._client(TUNNELING)
        for tunnel in _open_tunnels(client, thing):
            if _owner(tunnel) == owner and tunnel["createdAt"] >= began - CLOCKS_DIFFER:
                if _end_state(tunnel, "source") == "connected":
                    continue  # of another user with the same owner name
                return _taken(client, tunnel, owner)
        return None

    def check_registered(self, thing: str) -> None:
        """Raise HubError, with the most similar names, if the registry does not have a thing.

        Nothing is raised if the caller may not read the registry.
        """
        try:
            self._made(
                f"look {thing} up in the registry",
                REGISTRY,
                lambda: self._client(REGISTRY).describe_thing(thingName=thing),
            )
        except HubError as error:
            if error.code != "not-found":
                log.info("whether %s is registered is not known: %s", thing, error)
                return
        else:
            return
        nearest = difflib.get_close_matches(thing, self._registered(), _NEAREST)
        hint = f"did you mean {', '.join(nearest)}? " if nearest else ""
        raise HubError(
            f"the registry has no thing {thing}: {hint}Enrol it, correct the name (iotops_tunnel_thing, or the host's "
            "name), or set iotops_tunnel_unregistered=true to open tunnels to things that are not registered",
            code="unknown-thing",
        )

    def call(self, api: str, operation: str, parameters: dict[str, Any], purpose: str) -> dict[str, Any]:
        """Make any call.

        Args:
            api: botocore's name of it: ``iotsecuretunneling`` or ``iot``.
            operation: the method of botocore's client.
            purpose: what the call is for, in words that follow "Could not".
        """
        answer = self._made(purpose, api, lambda: self._answer(api, operation, parameters))
        answer.pop("ResponseMetadata", None)
        return answer

    def _answer(self, api: str, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        if operation == "open_tunnel":
            return self._open_once(parameters)
        answer: dict[str, Any] = getattr(self._client(api), operation)(**parameters)
        return answer

    def _registered(self) -> list[str]:
        """The names in the registry, up to a limit."""
        names: list[str] = []
        request: dict[str, Any] = {}
        try:
            with self._explained("list things", REGISTRY):
                for _ in range(_MOST_PAGES):
                    page = self._client(REGISTRY).list_things(**request)
                    names += [thing["thingName"] for thing in page["things"]]
                    if not page.get("nextToken"):
                        break
                    request["nextToken"] = page["nextToken"]
        except HubError:
            pass
        return names

    def _made(self, purpose: str, api: str, call: Callable[[], T]) -> T:
        """Make a call, and retry it once with new credentials if temporary ones are refused."""
        try:
            with self._explained(purpose, api):
                return call()
        except HubError as error:
            with self._lock:
                login, self._login = self._login, None
                self._issue_afresh = login is not None and login.credentials.method not in _GIVEN
                if error.code != "wrong-credentials" or not self._issue_afresh:
                    raise
        with self._explained(purpose, api):
            return call()

    @contextmanager
    def _explained(self, purpose: str, api: str) -> Iterator[None]:
        """Turn botocore's errors into sentences."""
        try:
            yield
        except HubError:
            raise
        except Exception as error:
            with self._lock:
                region = self._login.region if self._login else ""
            endpoint = getattr(error, "kwargs", {}).get("endpoint_url") or os.environ.get(_ENDPOINT_VARIABLES[api], "")
            failure = aws_errors.explain(error, api=api, endpoint=endpoint, region=region, environment=os.environ)
            if failure is None:
                raise
            log.info("could not %s: %s", purpose, failure.sentence)
            raise HubError(failure.sentence, code=failure.code) from None

    def _log_in(self) -> _Login:
        """The caller's credentials and configuration, as they are now."""
        with self._lock:
            login = self._login
            if login is None or not login.holds():
                login = self._login = self._find_login()
            return login

    def _find_login(self) -> _Login:
        session = Session()
        if self._loader is None:
            self._loader = session.get_component("data_loader")
        session.register_component("data_loader", self._loader)
        roles = session.get_component("credential_provider").get_provider("assume-role")
        roles.cache = _RoleCache(os.path.expanduser("~/.aws/cli/cache"), unread=self._issue_afresh)
        self._issue_afresh = False
        began, fingerprints = time.monotonic(), _fingerprints(session)
        credentials = session.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        credentials.get_frozen_credentials()
        now = time.monotonic()
        # botocore does not read AWS_REGION; the aws command line does.
        region = os.environ.get("AWS_REGION") or session.get_config_variable("region")
        if not region:
            raise NoRegionError
        # Credentials that take long to get are kept longer, so that not every request takes as long.
        return _Login(session, credentials, region, fingerprints, now + max(STALE_SECONDS, 3 * (now - began)))

    def _client(self, api: str, *, repeats: bool = True) -> Any:
        """A client with the current credentials. Clients are kept: creating one takes longer than a call.

        Args:
            repeats: whether it may retry a call that got no response.
        """
        login = self._log_in()
        frozen = login.credentials.get_frozen_credentials()
        key = (api, repeats, frozen, login.region, repr(login.session.full_config))
        with self._lock:
            if key not in self._clients:
                # Drop the clients of credentials that were replaced.
                self._clients = {known: client for known, client in self._clients.items() if known[2:] == key[2:]}
                self._clients[key] = self._make_client(api, login, repeats=repeats)
            return self._clients[key]

    def _make_client(self, api: str, login: _Login, *, repeats: bool) -> Any:
        retries: Any = {"mode": "adaptive"}
        if not repeats:
            retries = {"mode": "standard", "total_max_attempts": 1}
        elif not login.session.get_config_variable("max_attempts"):
            retries["total_max_attempts"] = ATTEMPTS  # botocore's own "max_attempts" does not count the first
        return login.session.create_client(
            api,
            region_name=login.region,
            endpoint_url=self._registry_endpoint(login) if api == REGISTRY else None,
            verify=None if self._verify else False,
            config=Config(
                connect_timeout=CONNECT_SECONDS,
                read_timeout=CALL_SECONDS if repeats else OPEN_SECONDS,
                retries=retries,
                max_pool_connections=10,
            ),
        )

    def _registry_endpoint(self, login: _Login) -> str | None:
        """The self-hosted service also has a registry: its keys are never sent to AWS's."""
        if os.environ.get(_ENDPOINT_VARIABLES[REGISTRY]) or os.environ.get("AWS_ENDPOINT_URL"):
            return None
        tunneling = login.session.create_client(TUNNELING, region_name=login.region)
        return _endpoint_of(tunneling) or None

    def _ask_for_account(self, client: Any, endpoint: str, thing: str) -> Account:
        if not endpoint:
            login = self._log_in()
            try:
                sts: Any = login.session.create_client(
                    "sts", region_name=login.region, config=Config(connect_timeout=CONNECT_SECONDS)
                )
                arn = sts.get_caller_identity()["Arn"]
                return Account(arn.split(":")[1], arn.split(":")[4], login.region)
            except ClientError:
                raise
            except Exception as error:  # a network that blocks everything except what tunnels need
                log.info("the Security Token Service does not say which account this is: %s", type(error).__name__)
        listed = client.list_tunnels(maxResults=1)
        headers = listed["ResponseMetadata"].get("HTTPHeaders", {})
        region = client.meta.region_name
        if headers.get(ACCOUNT_HEADER):
            return Account("aws", headers[ACCOUNT_HEADER], region, endpoint)
        if listed.get("tunnelSummaries"):
            return Account.from_arn(listed["tunnelSummaries"][0]["tunnelArn"], endpoint)
        try:
            known = self._client(REGISTRY).describe_thing(thingName=thing or "any")
        except ClientError:
            return Account("aws", "", region, endpoint)
        return Account.from_arn(known["thingArn"], endpoint)


_ENDPOINT_VARIABLES = {TUNNELING: "AWS_ENDPOINT_URL_IOTSECURETUNNELING", REGISTRY: "AWS_ENDPOINT_URL_IOT"}


def _endpoint_of(client: Any) -> str:
    """The URL that a client calls; empty for AWS's own endpoints."""
    found = urlsplit(client.meta.endpoint_url)
    host = found.hostname or ""
    if host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws")):
        return ""
    return f"{found.scheme}://{found.netloc}".lower()


def _fingerprints(session: Session) -> dict[str, str]:
    """The fingerprints of the files in which credentials are found."""
    paths = [
        session.get_config_variable("config_file"),
        session.get_config_variable("credentials_file"),
        os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"),
        "~/.aws/sso/cache",
        "~/.aws/cli/cache",
    ]
    scoped = _scoped_config(session)
    paths.append(scoped.get("web_identity_token_file"))
    # A script that prints credentials, and its arguments.
    paths += shlex.split(scoped.get("credential_process", ""))
    full = (os.path.abspath(os.path.expanduser(path)) for path in paths if path)
    return {path: fingerprint(path) for path in full}


def _scoped_config(session: Session) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = session.get_scoped_config()
    except ProfileNotFound:
        return {}
    return found


def _open_tunnels(client: Any, thing: str) -> Iterator[dict[str, Any]]:
    """The open tunnels of a thing that the collection opened, the newest first, as DescribeTunnel shows them."""
    request: dict[str, Any] = {"thingName": thing}
    while True:
        page = client.list_tunnels(**request)
        for summary in page.get("tunnelSummaries", ()):
            if summary.get("status") != "OPEN":
                continue
            tunnel = client.describe_tunnel(tunnelId=summary["tunnelId"])["tunnel"]
            if tunnel["status"] == "OPEN" and _tags(tunnel).items() >= MANAGED_TAGS.items():
                yield tunnel
        if not page.get("nextToken"):
            return
        request["nextToken"] = page["nextToken"]


def _found(client: Any, tunnel: Mapping[str, Any], source_token: str, *, taken_from: str = "") -> FoundTunnel:
    return FoundTunnel(
        tunnel_id=tunnel["tunnelId"],
        arn=tunnel["tunnelArn"],
        region=client.meta.region_name,
        services=tuple(_services(tunnel)),
        expires_at=_expiry(tunnel),
        source_token=source_token,
        taken_from=taken_from,
    )


def _taken(client: Any, tunnel: Mapping[str, Any], owner: str) -> FoundTunnel:
    """Rotate the source token of a tunnel, and make it the owner's."""
    before = _owner(tunnel)

    def tag(name: str) -> None:
        client.tag_resource(resourceArn=tunnel["tunnelArn"], tags=[{"key": OWNER_TAG, "value": name}])

    if before != owner:
        # First, so that the previous owner learns who took it over.
        tag(owner)
    try:
        rotated = client.rotate_tunnel_access_token(tunnelId=tunnel["tunnelId"], clientMode="SOURCE")
    except Exception:
        if before and before != owner:
            tag(before)
        raise
    taken_from = (before or "nobody") if before != owner else ""
    return _found(client, tunnel, rotated["sourceAccessToken"], taken_from=taken_from)


def _owner(tunnel: Mapping[str, Any]) -> str:
    return _tags(tunnel).get(OWNER_TAG, "")


def _services(tunnel: Mapping[str, Any]) -> list[str]:
    return list(tunnel.get("destinationConfig", {}).get("services", ()))


def _tags(tunnel: Mapping[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in tunnel.get("tags", ())}


def _end_state(tunnel: Mapping[str, Any], end: str) -> str:
    return str(tunnel.get(f"{end}ConnectionState", {}).get("status", "unknown")).lower()


def _expiry(tunnel: Mapping[str, Any]) -> float | None:
    created: datetime | None = tunnel.get("createdAt")
    minutes = tunnel.get("timeoutConfig", {}).get("maxLifetimeTimeoutMinutes")
    return None if created is None or minutes is None else (created + timedelta(minutes=minutes)).timestamp()
