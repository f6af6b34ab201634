# SPDX-License-Identifier: Apache-2.0
"""Validates the input of an operation against its shape in botocore's service model, with AWS's messages.

botocore's own validator is meant for clients: it does not check maxima, patterns or enumerations.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

from botocore.model import ListShape, Shape, StringShape, StructureShape

from ..errors import validation_failed

__all__ = ["validate"]

_TYPES: dict[str, tuple[type, ...]] = {
    "structure": (dict,),
    "list": (list,),
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
}
_MAX_ECHO = 128


def validate(params: object, shape: Shape) -> dict[str, Any]:
    """Validate the input of an operation.

    Args:
        params: the decoded JSON body.
        shape: the operation's input shape.

    Returns:
        The input without members that are null or not in the model, which AWS also ignores.

    Raises:
        ApiError: a ``ValidationException`` that lists all errors.
    """
    faults = list(_faults(params, shape, ""))
    if faults:
        count = f"{len(faults)} validation error{'s' if len(faults) > 1 else ''} detected: "
        raise validation_failed(count + "; ".join(faults))
    known: dict[str, Any] = _known(params, shape)
    return known


def _faults(value: object, shape: Shape, path: str) -> Iterator[str]:
    if not _has_type(value, shape):
        yield _fault(value, shape, path, f"Member must be of type {shape.type_name}")
    elif isinstance(shape, StructureShape):
        yield from _structure_faults(value, shape, path)
    elif isinstance(shape, ListShape):
        yield from _list_faults(value, shape, path)
    elif isinstance(value, str):
        yield from _string_faults(value, shape, path)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield from _range_faults(value, value, shape, path, "value")


def _structure_faults(value: Any, shape: StructureShape, path: str) -> Iterator[str]:
    for name, member in shape.members.items():
        inner = f"{path}.{name}" if path else name
        given = value.get(name)
        if given is not None:
            yield from _faults(given, member, inner)
        elif name in shape.required_members:
            yield f"Value null at '{inner}' failed to satisfy constraint: Member must not be null"


def _list_faults(value: Any, shape: ListShape, path: str) -> Iterator[str]:
    yield from _range_faults(value, len(value), shape, path, "length")
    for position, item in enumerate(value, start=1):
        yield from _faults(item, shape.member, f"{path}.{position}.member")


def _string_faults(value: str, shape: Shape, path: str) -> Iterator[str]:
    yield from _range_faults(value, len(value), shape, path, "length")
    choices = shape.enum if isinstance(shape, StringShape) else []
    if choices and value not in choices:
        yield _fault(value, shape, path, f"Member must satisfy enum value set: [{', '.join(choices)}]")
    pattern = shape.metadata.get("pattern")
    if pattern and not _compiled(pattern).fullmatch(value):
        yield _fault(value, shape, path, f"Member must satisfy regular expression pattern: {pattern}")


def _range_faults(value: object, size: int, shape: Shape, path: str, measure: str) -> Iterator[str]:
    least, most = shape.metadata.get("min"), shape.metadata.get("max")
    if least is not None and size < least:
        yield _fault(value, shape, path, f"Member must have {measure} greater than or equal to {least}")
    if most is not None and size > most:
        yield _fault(value, shape, path, f"Member must have {measure} less than or equal to {most}")


def _fault(value: object, shape: Shape, path: str, constraint: str) -> str:
    shown = "***Sensitive Data Redacted***" if shape.metadata.get("sensitive") else str(value)
    if len(shown) > _MAX_ECHO:
        shown = shown[:_MAX_ECHO] + "…"
    return f"Value '{shown}' at '{path or 'input'}' failed to satisfy constraint: {constraint}"


def _has_type(value: object, shape: Shape) -> bool:
    # In Python, unlike JSON, true is an integer.
    if isinstance(value, bool) and shape.type_name != "boolean":
        return False
    return isinstance(value, _TYPES[shape.type_name])


def _known(value: Any, shape: Shape) -> Any:
    if isinstance(shape, StructureShape):
        return {
            name: _known(value[name], member) for name, member in shape.members.items() if value.get(name) is not None
        }
    if isinstance(shape, ListShape):
        return [_known(item, shape.member) for item in value]
    return value


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    r"""A pattern of the model for Python's ``re``, which does not support ``\p{L}``."""
    return re.compile(re.sub(r"\\p\{([A-Z])\}", lambda found: _categories()[found[1]], pattern))


@functools.cache
def _categories() -> dict[str, str]:
    """The content of a character class for each major Unicode category, such as ``L`` for letters."""
    ranges: dict[str, list[list[int]]] = {}
    for code in range(sys.maxunicode + 1):
        of_category = ranges.setdefault(unicodedata.category(chr(code))[0], [])
        if of_category and of_category[-1][1] == code - 1:
            of_category[-1][1] = code
        else:
            of_category.append([code, code])
    return {
        category: "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in found)
        for category, found in ranges.items()
    }
