"""Write docs/tables.md, tables_ppo.md and tables_esper.md from the contract; `--check` only compares."""

from __future__ import annotations

from generated import column_row, table_page, write_or_check

from esper_recorder.contract.tables import IDENTITY, SCHEMA_VERSION, TABLES, Column, columns

TITLES = {"tables_ppo.md": "Tables of any PPO training", "tables_esper.md": "Tables of Esper's trainer and of imports"}

INDEX = f"""\
# Tables of a recorded run

Generated from `recorder/esper_recorder/contract/tables/` (schema version {SCHEMA_VERSION}) by `make docs`; do not edit
it here. `esper tables` prints the same.

NULL means not measured or not applicable: the last column says which. NaN and infinities are stored unchanged and
counted; sums, moments and histograms cover the finite values. *Merged by* says how rows of minibatches, devices and
ranks become one: `key` identifies the row (in bold), `derived` is recomputed from the merged sums.
"""


def pages() -> dict[str, str]:
    """Write each page, by file name."""
    parts = {
        page: [f"# {title}\n\nSee [tables.md](tables.md) for what holds of every table.\n"]
        for page, title in TITLES.items()
    }
    index = [INDEX]
    for page, title in TITLES.items():
        names = [name for name in TABLES if table_page(name) == page]
        index.append(f"## {title}\n\n" + "\n".join(f"- [`{n}`]({page}#{n}): {TABLES[n].row}" for n in names) + "\n")
        for name in names:
            declared = [column for column in columns(name) if column.name not in IDENTITY]
            parts[page].append(f"## {name}\n\nOne row is {TABLES[name].row}.\n\n" + _listing(declared))
    common = [column for column in columns("ppo_updates") if column.name in IDENTITY]
    index.append("## Columns of every table\n\n" + _listing(common))
    return {"tables.md": "\n".join(index)} | {page: "\n".join(sections) for page, sections in parts.items()}


def _listing(listed: list[Column]) -> str:
    rows = ["| column | type | unit | meaning | merged by | NULL means |", "|---|---|---|---|---|---|"]
    return "\n".join(rows + [column_row(column, merged_by=True) for column in listed]) + "\n"


if __name__ == "__main__":
    write_or_check(pages(), "the tables of the contract")
