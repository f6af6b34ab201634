# SPDX-License-Identifier: Apache-2.0
"""A mapping in a configuration file, read key by key; errors name the key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigurationError

__all__ = ["Section"]


class Section:
    """One mapping.

    Args:
        content: the parsed YAML.
        name: the section's key; empty for the whole file.
        file: the file, for errors.
        folder: the directory that relative paths start from.
    """

    def __init__(self, content: object, name: str, file: str, folder: Path) -> None:
        self.file = file
        self._name = name
        self._folder = folder
        if content is None:
            content = {}
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            what = f"{file}: {name}" if name else file
            raise ConfigurationError(f"{what}: must be a mapping: lines like 'key: value'")
        self._content: dict[str, object] = content
        self._known: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        """The keys of the mapping."""
        return iter(self._content)

    def where(self, key: str) -> str:
        """The name of a key in errors."""
        return f"{self.file}: {self._name}.{key}" if self._name else f"{self.file}: {key}"

    def error(self, key: str, message: str) -> ConfigurationError:
        """The error to raise about a key."""
        return ConfigurationError(f"{self.where(key)}: {message}")

    def text(self, key: str, *, required: bool = False) -> str:
        """A string or a number, as a string; empty if it is missing."""
        value = self._get(key)
        if value is None:
            if required:
                raise self.error(key, "missing")
            return ""
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise self.error(key, "must be a single string or number; quote values that are special in YAML")
        return str(value)

    def texts(self, key: str) -> list[str] | None:
        """A list of strings or numbers; None if it is missing."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, list) or any(
            isinstance(item, bool) or not isinstance(item, (str, int)) for item in value
        ):
            raise self.error(key, "must be a list of strings")
        return [str(item) for item in value]

    def number(self, key: str, default: int, least: int, most: int) -> int:
        """An integer within limits."""
        value = self._get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(key, f"must be a number from {least} to {most}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "must be true or false")
        return value

    def path(self, key: str) -> str:
        """A path, made absolute; empty if it is missing."""
        text = self.text(key)
        return str(self._folder / Path(text).expanduser()) if text else ""

    def read(self, key: str) -> str:
        """The content of the file whose path is the value of a key."""
        path = self.path(key)
        try:
            return Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise self.error(key, f"cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError:
            raise self.error(key, f"{path} is not UTF-8 text") from None

    def section(self, key: str) -> Section:
        """A nested mapping."""
        return Section(self._get(key), f"{self._name}.{key}" if self._name else key, self.file, self._folder)

    def refuse_others(self) -> None:
        """Check that all keys of the mapping have been read.

        Raises:
            ConfigurationError: there is an unknown key, probably a misspelling.
        """
        for key in self._content:
            if key not in self._known:
                raise self.error(key, f"unknown key; valid keys: {', '.join(sorted(self._known))}")

    def _get(self, key: str) -> object:
        self._known.add(key)
        return self._content.get(key)
