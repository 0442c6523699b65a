"""The page on importing lists the mapping of every library as it is."""

from __future__ import annotations

import re

import pytest

from esper_analytics.importers.library_tags import LIBRARIES
from tests.support import ROOT

PAGE = ROOT / "docs" / "importing.md"


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.definition)
def test_the_table_of_a_library_is_its_mapping(library):
    sections = re.split(r"^### ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    [section] = [text for text in sections if text.startswith(f"{library.name}: `{library.definition}`\n")]
    prefix = "…/" if library.any_prefix else ""
    expected = [
        f"| `{prefix}{tag.tag}` | `{tag.column}`{' × −1' if tag.factor == -1 else ''} | {tag.meaning} |"
        for tag in library.tags
    ]
    assert [line for line in section.splitlines() if line.startswith("| `")] == expected
    for setting in library.settings:
        assert f"`{setting.column}`" in section and setting.name in section
