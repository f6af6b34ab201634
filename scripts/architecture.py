# SPDX-License-Identifier: GPL-3.0-or-later
"""Print the rooms of tunnelproxy/, the imports between them, and circles: python3 scripts/architecture.py [TREE]

A room is a folder of tunnelproxy/, with the folders in it. The modules directly in tunnelproxy/ are the room "base".
The folders of service/ are rooms of their own; a module directly in service/ belongs to "service/server" if it imports
one of those rooms, even indirectly, otherwise to "service". Every import counts, including those in functions and those
for types only.

With --check, print only violations, and fail if there are any: an import that STANDS_ON does not allow, a circle of
modules or rooms, a plugin that imports a module not in PLUGINS_MAY_IMPORT, or one of those that needs a third-party
library.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

STANDS_ON: Mapping[str, Collection[str]] = {
    "base": (),
    "protocol": ("base",),
    "net": ("protocol",),
    "proxy": ("net",),
    "hub": ("proxy",),
    "agent": ("proxy",),
    "service": ("net",),
    "service/logs": ("service",),
    "service/listening": ("service",),
    "service/state": ("service",),
    "service/api": ("service/state", "service/logs", "service/listening"),
    "service/data_plane": ("service/state", "service/logs", "service/listening"),
    "service/mqtt": ("service/state", "service/logs", "service/listening"),
    "service/server": ("service/api", "service/data_plane", "service/mqtt"),
    "cli": ("hub", "agent", "service/server"),
}
"""A room may import those that it stands on, and whatever these stand on."""

PLUGINS_MAY_IMPORT = ("hub.account", "hub.client", "hub.tags")
"""Each Ansible worker imports them: they must be quick, and work where only ansible-core is installed."""

PACKAGE = "tunnelproxy"
IN_COLLECTION = "ansible_collections.iotops.tunnel.tunnelproxy."

Graph = Mapping[str, Collection[str]]


@dataclass(frozen=True)
class Import:
    """One import statement's name.

    Attributes:
        name: in full, such as ``tunnelproxy.net.mqtt``, or ``socket``.
        deferred: whether it stands in a function, or counts for types only.
    """

    name: str
    deferred: bool


@dataclass(frozen=True)
class Module:
    """A file of the package, by its name within the package, such as ``net.mqtt``; "" is the package itself."""

    name: str
    is_package: bool
    imports: tuple[Import, ...]


def main() -> int:
    parser = argparse.ArgumentParser(description="Print the rooms of tunnelproxy/, and the imports between them.")
    parser.add_argument("--check", action="store_true", help="print only violations, and fail if there is one")
    parser.add_argument("tree", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent)
    options = parser.parse_args()
    modules = read_modules(options.tree / PACKAGE)
    if not options.check:
        print("\n".join(drawing(modules)))
        return 0
    found = [*violations(modules), *plugin_violations(options.tree / "plugins", modules)]
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


def read_modules(folder: Path) -> dict[str, Module]:
    """All modules of the package, by name."""
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        is_package = path.name == "__init__.py"
        relative = path.parent if is_package else path.with_suffix("")
        name = ".".join(relative.relative_to(folder).parts)
        modules[name] = Module(name, is_package, tuple(_imports(path, name, is_package)))
    return modules


def _imports(path: Path, name: str, is_package: bool) -> Iterator[Import]:
    parts = [PACKAGE, *filter(None, name.split("."))]
    package = parts if is_package else parts[:-1]
    for statement, deferred in _statements(ast.parse(path.read_text(encoding="utf-8"), path), deferred=False):
        if isinstance(statement, ast.Import):
            yield from (Import(alias.name, deferred) for alias in statement.names)
        else:
            above = package[: len(package) - statement.level + 1] if statement.level else []
            source = [*above, *([statement.module] if statement.module else [])]
            yield from (Import(".".join([*source, alias.name]), deferred) for alias in statement.names)


def _statements(node: ast.AST, *, deferred: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """The import statements below a node, and whether each is deferred."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, deferred
        else:
            for_types = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
            in_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            yield from _statements(child, deferred=deferred or in_function or for_types)


def module_of(name: str, modules: Collection[str]) -> str | None:
    """The module of the package that an imported name means: itself, or what has it as an attribute."""
    if name != PACKAGE and not name.startswith(f"{PACKAGE}."):
        return None
    inside = name[len(PACKAGE) + 1 :]
    if inside in modules:
        return inside
    # "from .. import files" means a module; "from .. import __version__" means the package itself.
    return inside.rpartition(".")[0]


def module_graph(modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """Which modules of the package each one imports."""
    graph = {}
    for module in modules.values():
        found = {module_of(imported.name, modules) for imported in module.imports}
        graph[module.name] = {name for name in found if name is not None and name != module.name}
    return graph


def rooms_of(modules: Iterable[str], graph: Graph) -> dict[str, str]:
    """The room of each module."""
    packages = {module.rpartition(".")[0] for module in graph} - {""}
    return {module: _room(module, graph, packages) for module in modules}


def _room(module: str, graph: Graph, packages: Collection[str]) -> str:
    if module == "__main__":
        return "cli"
    folder = module if module in packages else module.rpartition(".")[0]
    if module.startswith("service.") and folder == "service":
        reached = {other.rpartition(".")[0] for other in reachable(module, graph)}
        return "service/server" if any(other.startswith("service.") for other in reached) else "service"
    depth = 2 if folder.startswith("service.") else 1
    return "/".join(folder.split(".")[:depth]) or "base"


def reachable(start: str, graph: Graph) -> set[str]:
    """What can be reached from a node; the node itself only by a circle."""
    reached: set[str] = set()
    waiting = list(graph.get(start, ()))
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting.extend(graph.get(node, ()))
    return reached


def circles(graph: Graph) -> list[list[str]]:
    """Groups of nodes each of which reaches all others of its group."""
    reached = {node: reachable(node, graph) for node in graph}
    groups = {
        tuple(sorted(other for other in reached[node] if node in reached[other]))
        for node in graph
        if node in reached[node]
    }
    return [list(group) for group in sorted(groups)]


def room_arrows(graph: Graph, rooms: Mapping[str, str]) -> Counter[tuple[str, str]]:
    """How many imports lead from one room to another."""
    pairs = ((rooms[module], rooms[other]) for module, imported in graph.items() for other in imported)
    return Counter(pair for pair in pairs if pair[0] != pair[1])


def room_graph(graph: Graph, rooms: Mapping[str, str]) -> dict[str, set[str]]:
    """Which rooms each room imports."""
    arrows = room_arrows(graph, rooms)
    return {room: {to for start, to in arrows if start == room} for room in set(rooms.values())}


def drawing(modules: Mapping[str, Module]) -> Iterator[str]:
    """The rooms from the top down, each with what it imports, and the totals."""
    graph = module_graph(modules)
    rooms = rooms_of(modules, graph)
    arrows = room_arrows(graph, rooms)
    between = room_graph(graph, rooms)
    sizes = Counter(room for module, room in rooms.items() if not modules[module].is_package)
    width = max(map(len, between))
    for room in sorted(between, key=lambda room: (-len(reachable(room, between)), room)):
        imported = ", ".join(
            f"{to} {arrows[room, to]}" for to in sorted(between[room], key=lambda to: (-arrows[room, to], to))
        )
        yield f"{room:{width}}  {sizes[room]:3} modules  -> {imported or 'nothing'}"
    yield f"{len(between)} rooms, {len(arrows)} arrows between them ({arrows.total()} imports), {len(modules)} modules"
    for what, found in (("rooms", circles(between)), ("modules", circles(graph))):
        yield f"circles of {what}: {'; '.join(', '.join(circle) for circle in found) or 'none'}"


def violations(modules: Mapping[str, Module]) -> Iterator[str]:
    """What the package imports against the rules."""
    graph = module_graph(modules)
    rooms = rooms_of(modules, graph)
    for room in sorted(set(rooms.values()) - set(STANDS_ON)):
        yield f"{PACKAGE}: the room {room} is not in STANDS_ON of scripts/architecture.py: say what it stands on"
    for module, imported in sorted(graph.items()):
        room = rooms[module]
        allowed = {room, *reachable(room, STANDS_ON)}
        for other in sorted(imported):
            if room in STANDS_ON and rooms[other] not in allowed:
                yield f"{PACKAGE}.{module} imports {other}: {room} must not import {rooms[other]}"
    for what, found in (("rooms", circles(room_graph(graph, rooms))), ("modules", circles(graph))):
        for circle in found:
            yield f"{PACKAGE}: a circle of {what}: {', '.join(circle)}"


def plugin_violations(plugins: Path, modules: Mapping[str, Module]) -> Iterator[str]:
    """What the plugins import of the package against the rules."""
    graph = module_graph(modules)
    for path in sorted(plugins.rglob("*.py")):
        for name in sorted(_named_by_plugin(path, modules) - set(PLUGINS_MAY_IMPORT)):
            may = ", ".join(PLUGINS_MAY_IMPORT)
            yield f"{path.relative_to(plugins.parent)} imports {PACKAGE}.{name}: plugins may import {may}"
    for name in PLUGINS_MAY_IMPORT:
        for module in sorted({name, *_at_start(name, modules, graph)}):
            for foreign in _foreign(modules[module]):
                yield (f"{PACKAGE}.{module} imports {foreign}: plugins import {name}, so standard library only")


def _named_by_plugin(path: Path, modules: Collection[str]) -> set[str]:
    """The package's modules that a plugin imports, or names in a string for importlib."""
    tree = ast.parse(path.read_text(encoding="utf-8"), path)
    names = [imported.name for imported in _imports(path, "", is_package=False)]
    names += [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    inside = [name[len(IN_COLLECTION) - len(PACKAGE) - 1 :] for name in names if name.startswith(IN_COLLECTION)]
    return {module for name in inside if (module := module_of(name, modules)) is not None}


def _at_start(name: str, modules: Mapping[str, Module], graph: Graph) -> set[str]:
    """What importing a module imports at once, of the package."""
    direct = {
        module: {
            name
            for name in (module_of(each.name, modules) for each in modules[module].imports if not each.deferred)
            if name
        }
        for module in graph
    }
    return reachable(name, direct)


def _foreign(module: Module) -> list[str]:
    tops = {imported.name.split(".")[0] for imported in module.imports if not imported.deferred}
    return sorted(tops - {PACKAGE} - sys.stdlib_module_names)


if __name__ == "__main__":
    sys.exit(main())
