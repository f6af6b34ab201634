# SPDX-License-Identifier: GPL-3.0-or-later
"""``scripts/architecture.py`` finds imports that the rooms do not allow."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import architecture
import pytest

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="scripts/ needs the Python of the tools")

PLUGIN_MODULES = {"hub/account.py": "", "hub/client.py": "import socket", "hub/tags.py": ""}
IN_COLLECTION = "from ansible_collections.iotops.tunnel.tunnelproxy"


def tree(folder: Path, modules: Mapping[str, str], plugin: str = "") -> Path:
    """A tree with these modules of tunnelproxy/, by path, and one plugin."""
    for name, content in {**PLUGIN_MODULES, **modules}.items():
        path = folder / "tunnelproxy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(content)
    (folder / "tunnelproxy" / "__init__.py").touch()
    (folder / "plugins").mkdir()
    (folder / "plugins" / "ssh.py").write_text(plugin)
    return folder


def found(folder: Path) -> list[str]:
    modules = architecture.read_modules(folder / "tunnelproxy")
    return [*architecture.violations(modules), *architecture.plugin_violations(folder / "plugins", modules)]


def test_imports_of_rooms_below_are_allowed(tmp_path: Path) -> None:
    modules = {
        "errors.py": "",
        "protocol/framing.py": "from .. import errors",
        "net/mqtt.py": "",
        "proxy/source.py": "from ..net.mqtt import connect\nfrom ..protocol import framing",
        "cli/main.py": "from ..service.server import run\nfrom ..proxy import source",
        "service/model.py": "from .. import __version__",
        "service/state/store.py": "from ..model import Tunnel",
        "service/api/tunnels.py": "from ..state.store import Store",
        "service/server.py": "from .api import tunnels",
    }
    assert found(tree(tmp_path, modules, f"{IN_COLLECTION}.hub import client")) == []


@pytest.mark.parametrize(
    "statement",
    [
        "from ..proxy.source import Source",
        "from ..proxy import source",
        "from tunnelproxy.proxy import source",
        "import tunnelproxy.proxy.source",
        "def late():\n    from ..proxy import source",
        "if TYPE_CHECKING:\n    from ..proxy import source",
    ],
)
def test_an_import_of_a_room_above_is_found(tmp_path: Path, statement: str) -> None:
    modules = {"proxy/source.py": "", "net/mqtt.py": statement}
    assert found(tree(tmp_path, modules)) == ["tunnelproxy.net.mqtt imports proxy.source: net must not import proxy"]


def test_rooms_side_by_side_do_not_import_each_other(tmp_path: Path) -> None:
    modules = {"agent/agent.py": "from ..hub import client"}
    assert found(tree(tmp_path, modules)) == ["tunnelproxy.agent.agent imports hub.client: agent must not import hub"]


def test_what_joins_the_service_s_rooms_is_above_them(tmp_path: Path) -> None:
    modules = {
        "service/metrics.py": "from .api import tunnels",
        "service/api/tunnels.py": "",
        "service/mqtt/notifier.py": "from ..metrics import Figure",
    }
    assert found(tree(tmp_path, modules)) == [
        "tunnelproxy.service.mqtt.notifier imports service.metrics: service/mqtt must not import service/server"
    ]


def test_a_folder_in_a_room_belongs_to_the_room(tmp_path: Path) -> None:
    modules = {"hub/aws_errors/codes.py": "", "hub/aws_api.py": "from .aws_errors import codes"}
    assert found(tree(tmp_path, modules)) == []


def test_a_circle_of_modules_is_found(tmp_path: Path) -> None:
    modules = {"net/route.py": "def late():\n    from . import mqtt", "net/mqtt.py": "from .route import find_route"}
    assert found(tree(tmp_path, modules)) == ["tunnelproxy: a circle of modules: net.mqtt, net.route"]


def test_a_room_that_nobody_has_placed_is_found(tmp_path: Path) -> None:
    (line,) = found(tree(tmp_path, {"console/page.py": ""}))
    assert line.startswith("tunnelproxy: the room console is not in STANDS_ON of scripts/architecture.py")


@pytest.mark.parametrize("how", [f"{IN_COLLECTION}.hub.hub import Hub", f"{IN_COLLECTION}.hub import hub"])
def test_a_plugin_imports_only_what_is_for_plugins(tmp_path: Path, how: str) -> None:
    (line,) = found(tree(tmp_path, {"hub/hub.py": ""}, how))
    assert line.startswith("plugins/ssh.py imports tunnelproxy.hub.hub: plugins may import hub.account,")


def test_what_is_for_plugins_needs_only_the_standard_library_to_be_imported(tmp_path: Path) -> None:
    modules = {
        "hub/client.py": "from . import wire\ndef late():\n    import h11",
        "hub/wire.py": "import json\nimport boto3",
    }
    assert found(tree(tmp_path, modules)) == [
        "tunnelproxy.hub.wire imports boto3: plugins import hub.client, so standard library only"
    ]


def test_the_drawing_shows_rooms_with_their_arrows_and_totals(tmp_path: Path) -> None:
    modules = {
        "net/route.py": "",
        "proxy/source.py": "from ..net import route",
        "proxy/link.py": "from ..net import route",
    }
    lines = list(architecture.drawing(architecture.read_modules(tree(tmp_path, modules) / "tunnelproxy")))
    assert "proxy    2 modules  -> net 2" in lines
    assert lines[-2:] == ["circles of rooms: none", "circles of modules: none"]
