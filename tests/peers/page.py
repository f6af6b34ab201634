# SPDX-License-Identifier: GPL-3.0-or-later
"""An HTML page as a parser sees it: its text, its tags, external references, and whether its tags match."""

from __future__ import annotations

from html.parser import HTMLParser

__all__ = ["Page"]

_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_LOADING = ("src", "href", "srcset", "action", "data", "poster", "background")


class Page(HTMLParser):
    """Parses a page when created.

    Attributes:
        text: all text between tags, unescaped, except style and script.
        tags: names of the elements.
        outside: references to outside of the page, and all attributes with code.
        errors: tags that do not match, and duplicate IDs.
        devices: name and state of each device of a report, in order.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: set[str] = set()
        self.outside: list[str] = []
        self.errors: list[str] = []
        self.devices: list[tuple[str, str]] = []
        self._open: list[str] = []
        self._ids: set[str] = set()
        self._field = ""
        self.feed(html)
        self.close()
        self.errors += [f"<{tag}> is never closed" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = {name: value or "" for name, value in attrs}
        for name, value in values.items():
            if (name in _LOADING and not value.startswith("#")) or name.startswith("on"):
                self.outside.append(f"{name}={value}")
        if "id" in values:
            if values["id"] in self._ids:
                self.errors.append(f"two elements have the id {values['id']}")
            self._ids.add(values["id"])
        self._field = tag if tag == "h3" or values.get("class") == "state" else ""
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._field = ""
        if not self._open or self._open.pop() != tag:
            self.errors.append(f"</{tag}> at {self.getpos()} closes nothing")

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in {"style", "script"}:
            return
        self.text += data
        if self._field == "h3":
            self.devices.append((data, ""))
        elif self._field == "span":
            self.devices[-1] = (self.devices[-1][0], data)
