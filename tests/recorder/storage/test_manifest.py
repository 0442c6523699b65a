"""run.json is read by one typed reader: each value is of its type and within its bounds, or an error names it."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_recorder.storage.jsonable import to_jsonable
from esper_recorder.storage.manifest import (
    Attempt,
    DropCounts,
    Manifest,
    ManifestError,
    read_manifest,
    write_manifest,
)
from tests.crafted_manifests import crafted, whole_files


def assert_typed(manifest: Manifest) -> None:
    """Every field is what its type says, in bounds that every column, calendar and terminal has."""
    records: list[Any] = [manifest, *manifest.attempts, *(attempt.dropped for attempt in manifest.attempts)]
    for record in records:
        types = {field.name: str(field.type) for field in dataclasses.fields(record)}
        for name, type_ in types.items():
            value = getattr(record, name)
            if value is None:
                assert "None" in type_ or name == "config", name
            elif type_.startswith("int"):
                assert type(value) is int and 0 <= value < 2**63, name
            elif type_.startswith("str"):
                assert type(value) is str
                value.encode()
            elif type_.startswith("datetime"):
                assert value.tzinfo is UTC and 1900 <= value.year < 2200, name
    assert all(type(text) is str for text in manifest.versions.values())
    assert "/" not in manifest.run_id and manifest.run_id.isprintable() and manifest.run_id not in ("", ".", "..")
    json.dumps([manifest.config, manifest.trainer, manifest.source], allow_nan=False, ensure_ascii=False).encode()


def test_every_value_at_every_place_of_a_manifest_is_of_its_type_or_an_error_that_names_it(tmp_path: Path) -> None:
    read = refused = 0
    for name, text in crafted():
        (tmp_path / "run.json").write_text(text)
        try:
            assert_typed(read_manifest(tmp_path))
            read += 1
        except ManifestError as error:
            message = str(error)
            assert str(tmp_path / "run.json") in message and len(message) < 400 and "\n" not in message, name
            refused += 1
    assert read > 700 and refused > 1000, (read, refused)


@pytest.mark.parametrize(("reason", "content"), tuple(whole_files()), ids=lambda x: x if isinstance(x, str) else "")
def test_a_file_that_is_no_manifest_is_an_error_that_says_why(tmp_path: Path, reason: str, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ManifestError, match=reason):
        read_manifest(tmp_path)


def test_a_huge_file_is_refused_by_its_size_and_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    with (tmp_path / "run.json").open("wb") as file:
        file.truncate(10**12)  # takes no space
    with pytest.raises(ManifestError, match="1,000,000,000,000 bytes"):
        read_manifest(tmp_path)
    (tmp_path / "run.json").write_bytes(b'\xef\xbb\xbf{"run_id": "a"}')
    assert read_manifest(tmp_path).run_id == "a"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema_version", "x", "schema_version is 'x'; it must be a whole number from 1"),
        ("trainer", 1, "trainer is 1; it must be an object"),
        ("attempts", [{}, {"attempt": 2, "rank": "0"}], r"attempts\[1\].rank is '0'; it must be a whole number from 0"),
        ("attempts", [{"lost": {"rows": True}}], r"attempts\[0\].lost.rows is True"),
        ("attempts", [{"how": "gone"}], r"attempts\[0\].how is 'gone'; it must be finished, raised or unknown"),
        ("started", "9999-12-31T00:00:00Z", "started is '9999-12-31T00:00:00Z'; it must be a time from 1900 to 2199"),
        ("rules", {"sha256": "../x"}, r"rules_sha256 is '../x'; it must be 64 hexadecimal digits"),
        ("run_id", "a\x1b[31m", r"run_id is 'a\\x1b\[31m'; it must be a name for a folder"),
    ],
)
def test_the_error_names_the_place_the_value_and_what_it_must_be(
    tmp_path: Path, key: str, value: Any, message: str
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"run_id": "a", key: value}))
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path)


_ANY_TEXT = st.text(st.characters(codec=None))  # halves of surrogate pairs among them
_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(text=_ANY_TEXT, config=_ANY, number=st.integers(), moment=st.datetimes(timezones=st.just(UTC)))
def test_whatever_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, text: str, config: Any, number: int, moment: datetime
) -> None:
    folder = tmp_path_factory.mktemp("run")
    attempt = Attempt(started=moment, pid=number, error=text, dropped=DropCounts(rows=3, message=text))
    manifest = Manifest(
        "a", text, moment, {"name": text}, config=to_jsonable(config), total_steps=number, attempts=(attempt,)
    )
    write_manifest(folder, manifest)
    read = read_manifest(folder)
    assert_typed(read)
    assert read.attempts[0].dropped.rows == 3 and read.config == manifest.config
    kept = number if 0 <= number < 2**63 else None
    assert read.total_steps == read.attempts[0].pid == kept
    if 1900 <= moment.year < 2200:
        assert read.started == moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    assert read.name == (text.encode(errors="backslashreplace").decode() or "run")


def test_a_config_too_large_to_be_read_again_is_left_out_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_manifest(tmp_path, Manifest("a", config=[0] * 1_100_000))
    assert "config" in caplog.text
    assert str(read_manifest(tmp_path).config).startswith("too large to be kept")
    assert to_jsonable(10**5000)[:4] == hex(10**5000)[:4]
