"""Write docs/tables.md from the contract. `--check` writes nothing and fails where the page is out of date."""

from __future__ import annotations

from pathlib import Path

from generated import cell, write_or_check

from esper_recorder.contract.tables import SCHEMA_VERSION, TABLES, Column, Reducer, columns

PAGE = Path(__file__).with_name("tables.md")

HEAD = f"""\
# Tables of a recorded run

Generated from `recorder/esper_recorder/contract/tables.py` (schema version {SCHEMA_VERSION}) by `make docs`; do not
edit it here. `esper tables` prints the same.

NULL means not measured or not applicable: the last column says which. NaN and infinities are stored as they are and
counted; sums, moments and histograms are over the finite part. *Merged by* says how rows of minibatches, devices and
ranks become one: `key` identifies the row, `derived` is computed anew from the merged sums. Every table begins with
the columns of [every table](#every-table), which its own list leaves out.
"""


def page() -> str:
    """The whole page as Markdown."""
    common = [column for column in columns(next(iter(TABLES))) if _is_common(column)]
    sections = [HEAD, "\n".join(f"- [`{name}`](#{name}): {cls.row}" for name, cls in TABLES.items()) + "\n"]
    sections.append("## every table\n\n" + _listing(common))
    for name, cls in TABLES.items():
        own = [column for column in columns(name) if not _is_common(column)]
        sections.append(f"## {name}\n\nOne row is {cls.row}.\n\n" + _listing(own))
    return "\n".join(sections)


def _is_common(column: Column) -> bool:
    return all(column in columns(table) for table in TABLES)


def _listing(listed: list[Column]) -> str:
    rows = ["| column | type | unit | meaning | merged by | NULL means |", "|---|---|---|---|---|---|"]
    for c in listed:
        name = f"**{c.name}**" if c.reducer is Reducer.KEY else c.name
        rows.append(f"| {name} | {cell(c.type)} | {c.unit} | {cell(c.meaning)} | {c.reducer} | {cell(c.null)} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    write_or_check(PAGE, page, "the tables of the contract")
