# SPDX-License-Identifier: GPL-3.0-or-later
"""What options, environment and files add up to: every option, every order of precedence, every conflict."""

from __future__ import annotations

import json
import ssl
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tunnelproxy.cli.invocation import Invocation, read_invocation
from tunnelproxy.cli.options import Options, read_options
from tunnelproxy.cli.proxy_settings import ProxySettings
from tunnelproxy.errors import ConfigurationError
from tunnelproxy.protocol.session import SUBPROTOCOLS, Mode, Version
from tunnelproxy.proxy.addresses import TcpAddress, UnixAddress

ENVIRONMENT = {"AWSIOT_TUNNEL_ACCESS_TOKEN": "token", "AWSIOT_TUNNEL_REGION": "us-east-1"}
CLIENT_TOKENS = {name: f"{name}-".ljust(32, "x") for name in ("argument", "file", "variable", "other")}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def options(arguments: Sequence[str], hidden: Mapping[str, str] | None = None, config: str | None = None) -> Options:
    if config is None:
        return read_options(arguments, hidden or {})
    Path("proxy.ini").write_text(config)
    return read_options([*arguments, "--config", "proxy.ini"], hidden or {})


def invocation(
    arguments: Sequence[str] = ("-m", "src"),
    environment: Mapping[str, str] = ENVIRONMENT,
    *,
    hidden: Mapping[str, str] | None = None,
    config: str | None = None,
) -> Invocation:
    return read_invocation(options(arguments, hidden, config), environment)


def complaint(
    arguments: Sequence[str] = ("-m", "src"),
    environment: Mapping[str, str] = ENVIRONMENT,
    *,
    hidden: Mapping[str, str] | None = None,
    config: str | None = None,
) -> str:
    with pytest.raises(ConfigurationError) as caught:
        invocation(arguments, environment, hidden=hidden, config=config)
    return str(caught.value)


def exit_message(capsys: pytest.CaptureFixture[str], arguments: Sequence[str], config: str | None = None) -> str:
    with pytest.raises(SystemExit) as ended:
        options(arguments, config=config)
    assert ended.value.code == 1
    return capsys.readouterr().err


class TestEachOption:
    """On the command line with its short and its long name, and in the file of --config."""

    @pytest.mark.parametrize("how", ["short", "long", "with =", "file"])
    @pytest.mark.parametrize(
        ("short", "long", "value", "expected"),
        [
            ("-m", "mode", "src", Mode.SOURCE),
            ("-m", "mode", "source", Mode.SOURCE),
            ("-s", "source-listen-port", "5555", {"": TcpAddress(None, 5555)}),
            (
                "-s",
                "source-listen-port",
                "SSH1=3333,HTTP1=localhost:5555",
                {"SSH1": TcpAddress(None, 3333), "HTTP1": TcpAddress("localhost", 5555)},
            ),
            ("-d", "destination-app", "22", {"": TcpAddress(None, 22)}),
            ("-d", "destination-app", "SSH1=10.0.0.1:22", {"SSH1": TcpAddress("10.0.0.1", 22)}),
            ("-d", "destination-app", "SSH1=[fd00::1]:22", {"SSH1": TcpAddress("fd00::1", 22)}),
            ("-d", "destination-app", "SSH1=/run/ssh.sock", {"SSH1": UnixAddress("/run/ssh.sock")}),
            ("-d", "destination-app", "./ssh.sock", {"": UnixAddress("./ssh.sock")}),
            ("-b", "local-bind-address", "127.0.0.1", "127.0.0.1"),
            ("-r", "region", "eu-central-1", "data.tunneling.iot.eu-central-1.amazonaws.com:443"),
            ("-r", "region", "cn-north-1", "data.tunneling.iot.cn-north-1.amazonaws.com.cn:443"),
            ("-e", "proxy-endpoint", "host", "host:443"),
            ("-e", "proxy-endpoint", "host:8444", "host:8444"),
            ("-y", "destination-client-type", "V1", Version.V1),
            ("-y", "destination-client-type", "V2", Version.V2),
            ("-y", "destination-client-type", "auto", None),
            (None, "protocol-version", "V2", (Version.V2,)),
            (None, "stall-seconds", "2.5", 2.5),
            ("-t", "access-token", "abc", "abc"),
            ("-i", "client-token", CLIENT_TOKENS["argument"], CLIENT_TOKENS["argument"]),
        ],
    )
    def test_values(self, how: str, short: str | None, long: str, value: str, expected: object) -> None:
        given = {
            "short": [short or f"--{long}", value],
            "long": [f"--{long}", value],
            "with =": [f"--{long}={value}"],
            "file": [],
        }[how]
        mode = [] if long in ("mode", "source-listen-port", "destination-app") else ["-m", "src"]
        found = invocation(
            [*mode, *given],
            {"AWSIOT_TUNNEL_ACCESS_TOKEN": "token"} if long in ("region", "proxy-endpoint") else ENVIRONMENT,
            config=f"{long} = {value}\n" if how == "file" else None,
        )
        seen = {
            "mode": found.access.mode,
            "source-listen-port": found.addresses.configured,
            "destination-app": found.addresses.configured,
            "local-bind-address": found.bind_address,
            "region": str(found.route.endpoint),
            "proxy-endpoint": str(found.route.endpoint),
            "destination-client-type": found.destination_version,
            "protocol-version": found.access.versions,
            "stall-seconds": found.stall_seconds,
            "access-token": found.access.token,
            "client-token": found.access.client_token,
        }
        assert seen[long] == expected

    @pytest.mark.parametrize("mode", ["dst", "destination"])
    def test_destination_mode_with_files(self, mode: str) -> None:
        folder = Path("mappings")
        folder.mkdir()
        (folder / "any.ini").write_text("SSH1 = 22\n")
        for arguments, config in ((["--config-dir", "mappings"], None), ([], "config-dir = mappings\n")):
            found = invocation(["-m", mode, *arguments], config=config)
            assert found.access.mode is Mode.DESTINATION
            assert found.addresses.configured == {"SSH1": TcpAddress(None, 22)}

    def test_the_folder_config_is_the_default(self) -> None:
        Path("config").mkdir()
        Path("config/any.ini").write_text("SSH1 = 3333\n")
        assert invocation().addresses.configured == {"SSH1": TcpAddress(None, 3333)}
        assert invocation(["-s", "4444"]).addresses.configured == {"": TcpAddress(None, 4444)}

    @pytest.mark.parametrize(
        ("arguments", "config", "checked"),
        [
            ([], None, True),
            (["-k"], None, False),
            (["--no-ssl-host-verify"], None, False),
            ([], "no-ssl-host-verify = true", False),
            ([], "no-ssl-host-verify =", False),
            ([], "no-ssl-host-verify = no", True),
            (["-k"], "no-ssl-host-verify = false", False),
        ],
    )
    def test_whether_certificates_are_checked(self, arguments: list[str], config: str | None, checked: bool) -> None:
        environment = {**ENVIRONMENT, "https_proxy": "https://proxy"}
        route = invocation(["-m", "src", *arguments], environment, config=config).route
        assert route.http_proxy_tls is not None
        for tls in (route.tls, route.http_proxy_tls):
            assert tls.check_hostname is checked
            assert tls.verify_mode is (ssl.CERT_REQUIRED if checked else ssl.CERT_NONE)

    @pytest.mark.parametrize(("text", "verbosity"), [("0", 0), ("6", 6), ("255", 255)])
    def test_verbosity(self, text: str, verbosity: int) -> None:
        assert options(["-v", text]).get("verbose") == verbosity
        assert options(["--verbose", text]).get("verbose") == verbosity
        assert options([], config=f"verbose = {text}").get("verbose") == verbosity

    def test_log_format(self) -> None:
        assert options(["--log-format", "json"]).get("log-format") == "json"
        assert options([], config="log-format = json").get("log-format") == "json"

    def test_settings(self) -> None:
        Path("settings.json").write_text(json.dumps({"tunneling": {"proxy": {"tcp": {"max_active_connections": 7}}}}))
        assert invocation(["-m", "src", "--settings-json", "settings.json"]).settings.max_connections == 7
        assert invocation(config="settings-json = settings.json").settings.max_connections == 7
        assert invocation().settings == ProxySettings()

    def test_a_client_token_is_made_where_none_is_given(self) -> None:
        first, second = invocation().access.client_token, invocation().access.client_token
        assert str(uuid.UUID(first)) == first != second

    def test_defaults(self) -> None:
        found = invocation()
        assert found.access.versions == tuple(SUBPROTOCOLS)
        assert found.destination_version is None
        assert found.bind_address is None
        assert found.route.http_proxy is None
        assert found.route.ping_seconds == 20
        assert found.addresses.configured == {}

    def test_the_web_proxy_is_the_environments(self) -> None:
        found = invocation(environment={**ENVIRONMENT, "HTTPS_PROXY": "http://proxy:8080"}).route.http_proxy
        assert str(found) == "proxy:8080"
        assert "https_proxy does not name an HTTP proxy" in complaint(
            environment={**ENVIRONMENT, "https_proxy": "http://"}
        )


class TestPrecedence:
    """The command line, then --config, then the environment."""

    def test_access_tokens(self) -> None:
        config = "access-token = file\n"
        assert invocation(hidden={"access-token": "argument"}, config=config).access.token == "argument"
        assert invocation(config=config).access.token == "file"
        assert (
            invocation(environment={**ENVIRONMENT, "AWSIOT_TUNNEL_ACCESS_TOKEN": "variable"}).access.token == "variable"
        )
        assert invocation(hidden={"access-token": "-begins-with-a-dash"}).access.token == "-begins-with-a-dash"

    def test_client_tokens(self) -> None:
        config = f"client-token = {CLIENT_TOKENS['file']}\n"
        variables = {
            "AWSIOT_TUNNEL_CLIENT_TOKEN": CLIENT_TOKENS["variable"],
            "AWSIOT_CLIENT_TOKEN": CLIENT_TOKENS["other"],
        }
        environment = {**ENVIRONMENT, **variables}
        hidden = {"client-token": CLIENT_TOKENS["argument"]}
        for found, expected in (
            (invocation(environment=environment, hidden=hidden, config=config), "argument"),
            (invocation(environment=environment, config=config), "file"),
            (invocation(environment=environment), "variable"),
            (invocation(environment={**ENVIRONMENT, "AWSIOT_CLIENT_TOKEN": CLIENT_TOKENS["other"]}), "other"),
        ):
            assert found.access.client_token == CLIENT_TOKENS[expected]

    @pytest.mark.parametrize(
        ("arguments", "config", "variables", "host"),
        [
            (["-e", "argument"], "proxy-endpoint = file", {"ENDPOINT": "variable"}, "argument"),
            ([], "proxy-endpoint = file", {"ENDPOINT": "variable", "REGION": "us-east-1"}, "file"),
            ([], "", {"ENDPOINT": "variable"}, "variable"),
            (["-r", "us-east-1"], "region = us-west-2", {"REGION": "eu-west-1"}, "us-east-1"),
            ([], "region = us-west-2", {"REGION": "eu-west-1"}, "us-west-2"),
            ([], "", {"REGION": "eu-west-1"}, "eu-west-1"),
            # A variable says where a region's data plane is; an option of the same kind would be a contradiction.
            (["-r", "us-east-1"], "", {"ENDPOINT": "variable"}, "variable"),
            ([], "region = us-east-1", {"ENDPOINT": "variable"}, "variable"),
            ([], "", {"ENDPOINT": "variable", "REGION": "us-east-1"}, "variable"),
            (["-e", "argument"], "", {"ENDPOINT": "variable", "REGION": "us-east-1"}, "argument"),
        ],
    )
    def test_endpoints(self, arguments: list[str], config: str, variables: dict[str, str], host: str) -> None:
        environment = {
            "AWSIOT_TUNNEL_ACCESS_TOKEN": "token",
            **{f"AWSIOT_TUNNEL_{name}": value for name, value in variables.items()},
        }
        found = invocation(["-m", "src", *arguments], environment, config=config).route.endpoint.host
        assert found in (host, f"data.tunneling.iot.{host}.amazonaws.com")

    def test_certificate_authorities(self) -> None:
        environment = {**ENVIRONMENT, "AWSIOT_TUNNEL_CAPATH": "from-the-variable"}
        config = "capath = from-the-file\n"
        for short in ("-c", "--capath"):
            found = invocation(["-m", "src", short, "from-the-argument"], environment, config=config)
            assert found.route.awaited_capath == "from-the-argument"
        assert invocation(environment=environment, config=config).route.awaited_capath == "from-the-file"
        assert invocation(environment=environment).route.awaited_capath == "from-the-variable"

    @pytest.mark.parametrize(
        ("arguments", "config", "name", "value"),
        [
            (["-v", "1"], "verbose = 2", "verbose", 1),
            (["-b", "127.0.0.1"], "local-bind-address = 127.0.0.2", "local-bind-address", "127.0.0.1"),
            (["-s", "1"], "source-listen-port = 2", "source-listen-port", "1"),
            (["-d", "1"], "destination-app = 2", "destination-app", "1"),
            (["-m", "src"], "mode = dst", "mode", "src"),
            (["-y", "V1"], "destination-client-type = V2", "destination-client-type", "V1"),
            (["--protocol-version", "V1"], "protocol-version = V2", "protocol-version", "V1"),
            (["--stall-seconds", "2"], "stall-seconds = 3", "stall-seconds", 2.0),
            (["--config-dir", "a"], "config-dir = b", "config-dir", "a"),
            (["--settings-json", "a"], "settings-json = b", "settings-json", "a"),
            (["--log-format", "text"], "log-format = json", "log-format", "text"),
        ],
    )
    def test_the_command_line_wins_over_the_file(
        self, arguments: list[str], config: str, name: str, value: object
    ) -> None:
        found = options(arguments, config=config)
        assert found.get(name) == value
        assert "proxy.ini" not in found.label(name)

    def test_the_bind_address_wins_over_the_settings(self) -> None:
        Path("settings.json").write_text('{"tunneling": {"proxy": {"default_bind_address": "127.0.0.3"}}}')
        found = invocation(["-m", "src", "-b", "127.0.0.1", "--settings-json", "settings.json"])
        assert (found.bind_address, found.settings.bind_address) == ("127.0.0.1", "127.0.0.3")


class TestConflicts:
    """Each names the options at fault, and the file where they stand."""

    @pytest.mark.parametrize(
        ("arguments", "config", "words"),
        [
            (["-e", "h", "-r", "us-east-1"], "", "-e/--proxy-endpoint and -r/--region exclude each other"),
            (["-e", "h"], "region = us-east-1", "-e/--proxy-endpoint and region in proxy.ini exclude each other"),
            (
                [],
                "region = us-east-1\nproxy-endpoint = h",
                "proxy-endpoint in proxy.ini and region in proxy.ini exclude",
            ),
            (["-s", "1", "-d", "2"], "", "-s/--source-listen-port and -d/--destination-app exclude each other"),
            (["-d", "2"], "source-listen-port = 1", "source-listen-port in proxy.ini and -d/--destination-app exclude"),
            (["-s", "1", "-m", "dst"], "", "-m/--mode dst contradicts -s/--source-listen-port"),
            (["-s", "1", "-m", "destination"], "", "-m/--mode destination contradicts -s/--source-listen-port"),
            (["-d", "1", "-m", "src"], "", "-m/--mode src contradicts -d/--destination-app"),
            (["-d", "1", "-m", "source"], "", "-m/--mode source contradicts -d/--destination-app"),
            (["-d", "1"], "mode = src", "mode in proxy.ini src contradicts -d/--destination-app"),
        ],
    )
    def test_options_that_exclude_each_other(self, arguments: list[str], config: str, words: str) -> None:
        mode = [] if {"-s", "-d", "-m"} & set(arguments) or "mode" in config else ["-m", "src"]
        assert words in complaint([*arguments, *mode], config=config)

    @pytest.mark.parametrize(
        ("arguments", "environment", "words"),
        [
            ([], ENVIRONMENT, "one of -s/--source-listen-port, -d/--destination-app and -m/--mode is required"),
            (
                ["-m", "src"],
                {"AWSIOT_TUNNEL_ACCESS_TOKEN": "x"},
                "one of -r/--region and -e/--proxy-endpoint is required",
            ),
            (["-m", "src"], {"AWSIOT_TUNNEL_REGION": "us-east-1"}, "no access token: give one in AWSIOT_TUNNEL_ACCESS"),
            (["-m", "dst"], ENVIRONMENT, "a destination needs addresses: give -d/--destination-app"),
        ],
    )
    def test_what_is_missing(self, arguments: list[str], environment: dict[str, str], words: str) -> None:
        assert words in complaint(arguments, environment)


class TestValues:
    """A value that does not do is refused, by the name of its option, file or variable."""

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["-s", "SSH1"], "-s/--source-listen-port: 'SSH1' is not an address"),
            (["-s", "/run/x"], "-s/--source-listen-port: '/run/x' is not an address"),
            (["-s", "70000"], "-s/--source-listen-port: '70000' is not an address"),
            (["-s", "A=1,A=2"], "-s/--source-listen-port: A is given twice"),
            (["-s", "1,2"], "-s/--source-listen-port: an address without a service ID is given twice"),
            (["-s", "1,A=2"], "-s/--source-listen-port: with several services, each needs its service ID"),
            (["-d", "a b=22"], "-d/--destination-app: 'a b' is not a service ID"),
            (["-d", "SSH1=host"], "-d/--destination-app: 'host' is not an address"),
            (["-d", "SSH1=0"], "-d/--destination-app: '0' is not an address"),
            (["-d", ""], "-d/--destination-app: '' is not an address"),
            (["-m", "src", "-b", "192.0.2.1"], "-b/--local-bind-address: cannot listen on '192.0.2.1'"),
            (["-m", "src", "-b", "a..b"], "-b/--local-bind-address: cannot listen on 'a..b'"),
            (["-m", "src", "secret"], "there is an extra word that does not belong to any option"),
            (["-m", "src", "-y", "V4"], "-y/--destination-client-type: 'V4' is none of auto, V1, V2, V3"),
            (["-m", "src", "-r", "mars"], "-r/--region: 'mars' is not an AWS region"),
            (["-m", "src", "-e", "a b"], "-e/--proxy-endpoint: 'a b' is not an endpoint"),
            (["-m", "src", "-e", "host:port"], "-e/--proxy-endpoint: 'host:port' is not an endpoint"),
            (["-m", "src", "-c", "nowhere"], "cannot read certificate authorities from 'nowhere'"),
            (["-m", "src", "--config-dir", "nowhere"], "--config-dir: there is no directory nowhere"),
            (["-m", "src", "--settings-json", "nowhere"], "--settings-json: cannot read nowhere: No such file"),
        ],
    )
    def test_arguments(self, arguments: list[str], words: str) -> None:
        environment = {"AWSIOT_TUNNEL_ACCESS_TOKEN": "x"} if {"-r", "-e"} & set(arguments) else ENVIRONMENT
        assert words in complaint([*arguments, "--strict"], environment)

    @pytest.mark.parametrize(
        ("config", "words"),
        [
            ("source-listen-port = x", "source-listen-port in proxy.ini: 'x' is not an address"),
            ("destination-app = x", "destination-app in proxy.ini: 'x' is not an address"),
            ("mode = src\nlocal-bind-address = 192.0.2.1", "local-bind-address in proxy.ini: cannot listen on"),
            ("mode = src\nregion = mars", "region in proxy.ini: 'mars' is not an AWS region"),
            ("mode = src\nproxy-endpoint = a b", "proxy-endpoint in proxy.ini: 'a b' is not an endpoint"),
            ("mode = src\nconfig-dir = nowhere", "config-dir in proxy.ini: there is no directory nowhere"),
            ("mode = src\nclient-token = short", "client-token in proxy.ini: a client token has 32 to 128"),
            ("mode = src\naccess-token = a b", "access-token in proxy.ini: the access token has invalid characters"),
        ],
    )
    def test_in_the_file(self, config: str, words: str) -> None:
        environment = {"AWSIOT_TUNNEL_ACCESS_TOKEN": "x"} if "region" in config or "endpoint" in config else ENVIRONMENT
        assert words in complaint([], environment, config=f"strict = true\n{config}")

    @pytest.mark.parametrize(
        ("variable", "value", "words"),
        [
            (
                "AWSIOT_TUNNEL_ACCESS_TOKEN",
                "a b",
                "AWSIOT_TUNNEL_ACCESS_TOKEN: the access token has invalid characters",
            ),
            (
                "AWSIOT_TUNNEL_CLIENT_TOKEN",
                "secret",
                "AWSIOT_TUNNEL_CLIENT_TOKEN: a client token has 32 to 128 letters",
            ),
            ("AWSIOT_CLIENT_TOKEN", "secret", "AWSIOT_CLIENT_TOKEN: a client token has 32 to 128 letters"),
            ("AWSIOT_TUNNEL_REGION", "mars", "AWSIOT_TUNNEL_REGION: 'mars' is not an AWS region"),
            ("AWSIOT_TUNNEL_ENDPOINT", "a b", "AWSIOT_TUNNEL_ENDPOINT: 'a b' is not an endpoint"),
            ("AWSIOT_TUNNEL_CAPATH", "nowhere", "cannot read certificate authorities from 'nowhere'"),
        ],
    )
    def test_in_the_environment(self, variable: str, value: str, words: str) -> None:
        said = complaint(["-m", "src", "--strict"], {**ENVIRONMENT, variable: value})
        assert words in said
        assert "secret" not in said

    @pytest.mark.parametrize("token", ["x" * 31, "x" * 129, "x" * 31 + "_", "x" * 32 + "\n", "ä" * 32, ""])
    def test_client_tokens_that_do_not_conform(self, token: str) -> None:
        said = complaint(["-m", "src", "--strict"], hidden={"client-token": token})
        assert "-i/--client-token: a client token has 32 to 128 letters" in said
        assert "^[a-zA-Z0-9-]{32,128}$" in said
        assert "xxx" not in said

    @pytest.mark.parametrize("token", ["x" * 32, "x" * 128, "-" + "A0" * 16])
    def test_client_tokens_that_conform(self, token: str) -> None:
        assert invocation(hidden={"client-token": token}).access.client_token == token

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["-m", "both"], "argument -m/--mode: invalid choice: 'both'"),
            (["--stall-seconds", "0"], "argument --stall-seconds: '0' is not a number of seconds from 1 to 3600"),
            (["--protocol-version", "4"], "argument --protocol-version: invalid choice: '4'"),
            (["--log-format", "xml"], "argument --log-format: invalid choice: 'xml'"),
            (["-v", "much"], "argument -v/--verbose: 'much' is not a number"),
            (["-v", "-1"], "argument -v/--verbose: '-1' is not a number"),
            (["-s"], "argument -s/--source-listen-port: expected one argument"),
            (["--no-ssl-host-verify=yes"], "argument -k/--no-ssl-host-verify: ignored explicit argument"),
            (["--strict", "--reg", "us-east-1"], "unrecognized arguments: --reg"),
            (["--c", "x"], "unrecognized arguments: --c"),
            (["--acces-token", "secret"], "unrecognized arguments: --acces-token"),
            (["--acces-token=secret"], "unrecognized arguments: --acces-token"),
            (["secret", "--wrong"], "unrecognized arguments: --wrong"),
        ],
    )
    def test_what_the_parser_refuses(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
    ) -> None:
        said = exit_message(capsys, arguments)
        assert said.startswith(f"tunnelproxy: error: {words}")
        assert "secret" not in said

    @pytest.mark.parametrize(
        ("config", "words"),
        [
            ("mode = both", "proxy.ini: argument -m/--mode: invalid choice: 'both'"),
            ("verbose = much", "proxy.ini: argument -v/--verbose: 'much' is not a number"),
        ],
    )
    def test_what_the_parser_refuses_in_the_file(
        self, capsys: pytest.CaptureFixture[str], config: str, words: str
    ) -> None:
        assert exit_message(capsys, [], config).startswith(f"tunnelproxy: error: {words}")


class TestFile:
    """How --config is read: as Boost does."""

    def test_comments_blank_lines_and_spaces(self) -> None:
        found = options(
            [], config="# all\n\n  region=us-east-1  # here\n\tmode =\tdst\ndestination-app = SSH1=22,A=1\n"
        )
        assert found.given == {
            "region": "us-east-1",
            "mode": "dst",
            "destination-app": "SSH1=22,A=1",
            "config": "proxy.ini",
        }

    def test_a_token_may_begin_with_a_dash(self) -> None:
        assert options([], config="access-token = -abc").get("access-token") == "-abc"

    @pytest.mark.parametrize(
        ("config", "words"),
        [
            ("speed = 5", "proxy.ini: 'speed' is not an option that a file may contain"),
            ("r = us-east-1", "proxy.ini: 'r' is not an option that a file may contain"),
            ("SSH1 = 22", r"proxy.ini: 'SSH1' is not an option .* belong in files below config/, see --config-dir"),
            ("config = other.ini", "'config' is not an option that a file may contain"),
            ("help = true", "'help' is not an option that a file may contain"),
            ("version = true", "'version' is not an option that a file may contain"),
            ("export-default-settings = x", "'export-default-settings' is not an option that a file may contain"),
            (
                "[section]\nmode = src",
                r"proxy.ini: 'section\.mode' is not an option that a file may contain: .* no sections",
            ),
            ("strict = true\n[section]", "proxy.ini: line 2 is not like 'name = value'"),
            ("mode = src\n\nsecret", "proxy.ini: line 3 is not like 'name = value'"),
            ("mode = src\nmode = src", "proxy.ini: mode appears twice"),
            ("no-ssl-host-verify = perhaps", "no-ssl-host-verify must be true or false, not 'perhaps'"),
        ],
    )
    def test_what_is_wrong_in_it(self, config: str, words: str) -> None:
        with pytest.raises(ConfigurationError, match=words) as caught:
            options([], config=config)
        assert "secret" not in str(caught.value)

    def test_one_that_is_not_there(self) -> None:
        with pytest.raises(ConfigurationError, match="--config: cannot read nowhere: No such file"):
            options(["--config", "nowhere"])

    def test_one_that_is_no_text(self) -> None:
        Path("binary").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigurationError, match="--config: binary is not a text file"):
            options(["--config", "binary"])


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("--reg=us-east-1", {"region": "us-east-1"}),
        # Ours alone are less likely than the reference's.
        ("--l=127.0.0.1", {"local-bind-address": "127.0.0.1"}),
        ("--pro=host", {"proxy-endpoint": "host"}),
        ("--so=1", {"source-listen-port": "1"}),
        ("--config=x.ini", {"config": "x.ini"}),
        ("--log-f=json", {"log-format": "json"}),
        ("--no", {"no-ssl-host-verify": True}),
    ],
)
def test_abbreviations(argument: str, meant: Mapping[str, object]) -> None:
    Path("x.ini").write_text("")
    assert options([argument]).given == meant


@pytest.mark.parametrize(("arguments", "words"), [(["-h"], "--settings-json"), (["--help"], "NO_PROXY")])
def test_help(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        options(arguments)
    assert ended.value.code == 0
    assert words in capsys.readouterr().out
