"""Write docs/queries.md from the SQL files; `--check` only compares."""

from __future__ import annotations

from generated import cell, column_row, table_page, write_or_check

from esper_analytics.catalog.summary import RUNS_ROW, RUNS_VIEW
from esper_analytics.sql.files import View, views
from esper_analytics.sql.named_queries import REQUIRED, NamedQuery, example, named_queries
from esper_recorder.contract.tables import TABLES

HEAD = """\
# Named queries and views

Generated from `queries/` by `make docs`; do not edit it here. `esper query --list` and `esper tables` print the same.

- [Named queries](#named-queries): what can be asked of the runs by name
- [Views](#views): what SQL over the runs can name

## Named queries

`esper query RUNS NAME` runs one, `-p KEY=VALUE` sets a parameter, `--run ID` selects one run; in Python it is
`runs.query("NAME", key=value)`. Values are bound as parameters of their type, never inserted into the text of the SQL.
`esper query --show NAME` prints the SQL, as a start for a query you write yourself.
"""

VIEWS = """\
## Views

Every view exists on any RUNS, spans all of its runs, and is empty if nothing was recorded. `esper sql RUNS
"SELECT * FROM run_confounders"` reads one, `esper tables VIEW` lists its columns. The [tables](tables.md) are views
too, under their own names; so are `<table>_all`, which keep the rows that a resumed run recorded again. The views below
are built from them.
"""


def page() -> str:
    """Write the page as Markdown."""
    by_name = sorted(views().values(), key=lambda view: view.name)
    listing = [f"- `{RUNS_VIEW}`: {RUNS_ROW}"]
    listing += [f"- [`{name}`]({table_page(name)}#{name}): {table.row}" for name, table in TABLES.items()]
    listing += [f"- [`{view.name}`](#{view.name}): {view.row}" for view in by_name]
    parts = [HEAD, *map(_query, named_queries().values()), VIEWS, "\n".join(listing) + "\n", *map(_view, by_name)]
    return "\n".join(parts)


def _view(view: View) -> str:
    rows = ["| column | type | unit | meaning | NULL means |", "|---|---|---|---|---|", *map(column_row, view.columns)]
    return "\n".join([f"### {view.name}", "", f"One row is {view.row}.", "", *rows]) + "\n"


def _query(query: NamedQuery) -> str:
    required = [f" -p {p.name}={example(p)}" for p in query.parameters if p.default == REQUIRED]
    command = f"esper query runs/ {query.name}{''.join(required)}"
    lines = [f"### {query.name}", "", query.description, "", "```bash", command, "```", ""]
    if query.parameters:
        lines += ["| parameter | type | default | meaning |", "|---|---|---|---|"]
        lines += [f"| {p.name} | {p.type} | {p.default} | {cell(p.meaning)} |" for p in query.parameters]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    write_or_check({"queries.md": page()}, "the SQL files")
