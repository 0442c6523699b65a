"""The footer of a Parquet file as plain data, checked: pyarrow aborts the process on one that contradicts itself.

pyarrow's objects for the chunks of a column (`row_group(0).column(0)`) end the process, without an exception, if a
chunk's size statistics do not fit the schema, as one flipped bit can make them. So nothing of ours creates them: what
they would say of the statistics is read here. A footer is `FileMetaData` of parquet.thrift, in compact encoding.

Covers: any bytes, in time and memory of their number.
Does not cover: encrypted footers, and pages: their sizes are declared in their own headers.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper_recorder.storage.safe_files import open_regular

MOST_BYTES = 64 * 2**20
_TAIL = 8  # the length of the footer, and "PAR1"
_DEEPEST = 32
_BYTE_ARRAY = 6
_OPTIONAL, _REPEATED = 1, 2

_Struct = dict[int, Any]
"""Number of a field -> its value."""


class FooterError(ValueError):
    """A footer is not one of Parquet, or contradicts itself; the message is a clause that says how."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The values of one column in one row group, as the footer describes them."""

    column: str
    """The names on the way to it in the schema, joined by dots."""
    has_extremes: bool
    """It has min/max statistics, of all its values or of those of its pages."""
    extremes: tuple[bytes, ...]
    """The lowest and the highest value, if the footer has them whole."""


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A column of the schema."""

    path: tuple[bytes, ...]
    type: int
    repetition: int
    """The highest repetition level: 0 if every row has one value, or none."""
    definition: int
    """The highest definition level."""


def read_chunks(path: Path) -> list[Chunk]:
    """Read and check the footer of a Parquet file.

    Raises:
        FooterError: it is damaged.
        OSError: the file cannot be read, or is a link or a special file.
    """
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, _TAIL, max(size - _TAIL, 0))
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or not 0 < length <= min(size - 12, MOST_BYTES):
            raise FooterError("it does not end in a footer")
        footer = os.pread(descriptor, length, size - _TAIL - length)
    finally:
        os.close(descriptor)
    try:
        return list(_chunks(_parse(footer), size))
    except FooterError:
        raise
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise FooterError(f"its footer is damaged ({type(error).__name__})") from error


def _chunks(footer: _Struct, size: int) -> Iterator[Chunk]:
    leaves = list(_leaves(footer[2]))
    groups = footer.get(4, [])
    if sum(group[3] for group in groups) != footer[3]:
        raise FooterError("its footer is damaged: the rows of its groups do not add up")
    for group in groups:
        if len(group[1]) != len(leaves):
            raise FooterError("its footer is damaged: a group of rows lacks columns")
        for leaf, chunk in zip(leaves, group[1], strict=True):
            about, statistics = chunk[3], chunk[3].get(12, {})
            name = ".".join(part.decode(errors="backslashreplace") for part in leaf.path)
            if problem := _contradiction(leaf, about, group[3], size):
                raise FooterError(f"its footer is damaged: the {problem} of {name}")
            whole = statistics.get(7) is not False and statistics.get(8) is not False
            lowest, highest = statistics.get(6, statistics.get(2)), statistics.get(5, statistics.get(1))
            yield Chunk(
                name,
                6 in chunk or lowest is not None or highest is not None,
                tuple(value for value in (lowest, highest) if isinstance(value, bytes) and whole),
            )


def _contradiction(leaf: _Leaf, about: _Struct, rows: int, size: int) -> str | None:
    """Return what of a chunk does not fit the schema, its rows or the file's size; None if all does."""
    sizes: _Struct = about.get(16, {})
    levels = ((2, leaf.repetition), (3, leaf.definition))
    if any(sizes.get(field) and len(sizes[field]) != highest + 1 for field, highest in levels):
        return "levels"
    if about[1] != leaf.type or (1 in sizes and leaf.type != _BYTE_ARRAY):
        return "type"
    if tuple(about[3]) != leaf.path:
        return "name"
    if leaf.repetition == 0 and about[5] != rows:
        return "number of values"
    start = min(about[9], about.get(11) or about[9])
    placed = 0 < start <= start + about[7] <= size and about[6] >= 0
    return None if placed or about[5] == 0 else "place"


def _leaves(elements: list[_Struct]) -> Iterator[_Leaf]:
    """Yield the columns of a schema, which lists a tree depth first."""
    remaining = iter(elements)

    def below(element: _Struct, path: tuple[bytes, ...], repetition: int, definition: int) -> Iterator[_Leaf]:
        if len(path) > _DEEPEST:
            raise FooterError("its footer is damaged: its schema is nested too deep")
        for child in itertools.islice(remaining, element[5]):
            kind = child.get(3, 0)
            at = (
                (*path, child[4]),
                repetition + (kind == _REPEATED),
                definition + (kind in (_OPTIONAL, _REPEATED)),
            )
            if child.get(5):
                yield from below(child, *at)
            else:
                yield _Leaf(at[0], child[1], *at[1:])

    yield from below(next(remaining), (), 0, 0)
    if next(remaining, None) is not None:
        raise FooterError("its footer is damaged: its schema has columns outside of its tree")


def _parse(data: bytes) -> _Struct:
    """Decode a struct in Thrift's compact encoding."""
    position = 0
    end = len(data)

    def varint() -> int:
        nonlocal position
        byte = data[position]
        position += 1
        if byte < 128:
            return byte
        value, shift = byte & 127, 7
        while shift < 70:
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise FooterError("its footer is damaged: a number has no end")

    def value_of(kind: int, depth: int) -> Any:
        nonlocal position
        if 4 <= kind <= 6:
            number = varint()
            return (number >> 1) ^ -(number & 1)
        if kind == 8:
            length = varint()
            start = position
            position += length
            if position > end:
                raise FooterError("its footer is damaged: a text has no end")
            return data[start:position]
        if kind == 12:
            return struct(depth + 1)
        if kind in (9, 10):
            if depth > _DEEPEST:
                raise FooterError("its footer is damaged: it is nested too deep")
            header = data[position]
            position += 1
            count = header >> 4 if header >> 4 < 15 else varint()
            if count > end - position:  # every item takes a byte at least
                raise FooterError("its footer is damaged: a list has no end")
            item = header & 15
            return [value_of(item, depth + 1) for _ in range(count)]
        if kind in (1, 2, 3):  # a truth value, which is a byte only in lists, or a byte
            position += 1
            return data[position - 1]
        if kind == 7:
            position += 8
            return None
        raise FooterError("its footer is damaged: it holds an unknown type")

    def struct(depth: int) -> _Struct:
        nonlocal position
        if depth > _DEEPEST:
            raise FooterError("its footer is damaged: it is nested too deep")
        fields: _Struct = {}
        number = 0
        while header := data[position]:
            position += 1
            if header >> 4:
                number += header >> 4
            else:
                delta = varint()
                number = (delta >> 1) ^ -(delta & 1)
            kind = header & 15
            fields[number] = kind == 1 if kind < 3 else value_of(kind, depth)
        position += 1
        return fields

    return struct(0)
