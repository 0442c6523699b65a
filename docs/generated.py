"""What the scripts that generate pages share."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from esper_recorder.contract.tables import TABLES, Column


def write_or_check(pages: Mapping[str, str], source: str) -> None:
    """Write pages of docs/ by file name; with the argument --check, exit with a message if one is out of date."""
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit(f"{Path(sys.argv[0]).name} takes no argument but --check.")
    for name, text in pages.items():
        path = Path(__file__).with_name(name)
        if sys.argv[1:] == []:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"docs/{name} does not match {source}. Regenerate it: make docs")


def cell(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return text.replace("|", r"\|").replace("<", "&lt;")


def table_page(table: str) -> str:
    """Return the page that describes a table of the contract."""
    return f"tables_{TABLES[table].__module__.rpartition('.')[2]}.md"


def column_row(column: Column, *, merged_by: bool = False) -> str:
    """Write a column as a row of a Markdown table."""
    name = f"**{column.name}**" if column.reducer == "key" else column.name
    merged = [str(column.reducer)] if merged_by else []
    return f"| {' | '.join([name, cell(column.type), column.unit, cell(column.meaning), *merged, cell(column.null)])} |"
