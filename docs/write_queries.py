"""Write docs/queries.md from the SQL files. `--check` writes nothing and fails where the page is out of date."""

from __future__ import annotations

from pathlib import Path

from generated import cell, write_or_check

from esper_analytics.catalog.summary import RUNS_ROW, RUNS_VIEW
from esper_analytics.sql.files import REQUIRED, Question, View, questions, views
from esper_analytics.sql.named_queries import example
from esper_recorder.contract.tables import TABLES, Column

PAGE = Path(__file__).with_name("queries.md")

HEAD = """\
# Views and questions

Generated from `queries/` by `make docs`; do not edit it here. `esper tables` and `esper query --list` print the same.

- [Questions](#questions): what is asked of the runs by name
- [Views](#views): what SQL over the runs can name
"""

VIEWS = """\
## Views

Every view exists on any RUNS, over as many runs as there are, and is empty where nothing was recorded. `esper sql RUNS
"SELECT * FROM run_confounders"` reads one, `esper tables VIEW` lists its columns. The tables of [tables.md](tables.md)
are views too, under their own names; so are `<table>_all`, with the rows that a resumed run recorded again. Those below
are made of them.
"""

QUESTIONS = """\
## Questions

`esper query RUNS NAME` answers one, `-p KEY=VALUE` sets a parameter, `--run ID` asks of one run; in Python it is
`runs.query("NAME", key=value)`. Values are bound as parameters of their type, never put into the text of the SQL.
`esper query --show NAME` prints the SQL, to begin with for a question of your own.
"""


def page() -> str:
    """The whole page as Markdown."""
    listing = "\n".join(
        [f"- `{RUNS_VIEW}`: {RUNS_ROW}"]
        + [f"- [`{name}`](tables.md#{name}): {table.row}" for name, table in TABLES.items()]
        + [f"- [`{view.name}`](#{view.name}): {view.row}" for view in sorted(views().values(), key=lambda v: v.name)]
    )
    parts = [HEAD, QUESTIONS, *(_question(question) for question in questions().values()), VIEWS, listing + "\n"]
    return "\n".join(parts + [_view(view) for view in sorted(views().values(), key=lambda view: view.name)])


def _view(view: View) -> str:
    rows = [f"### {view.name}", "", f"One row is {view.row}.", "", "| column | type | unit | meaning | NULL means |"]
    rows.append("|---|---|---|---|---|")
    return "\n".join(rows + [_column(column) for column in view.columns]) + "\n"


def _column(c: Column) -> str:
    return f"| {c.name} | {cell(c.type)} | {c.unit} | {cell(c.meaning)} | {cell(c.null)} |"


def _question(question: Question) -> str:
    given = [f" -p {p.name}={example(p)}" for p in question.parameters if p.default == REQUIRED]
    command = f"esper query runs/ {question.name}{''.join(given)}"
    lines = [f"### {question.name}", "", question.description, "", "```bash", command, "```", ""]
    if question.parameters:
        lines += ["| parameter | type | default | meaning |", "|---|---|---|---|"]
        lines += [f"| {p.name} | {p.type} | {p.default} | {cell(p.meaning)} |" for p in question.parameters]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    write_or_check(PAGE, page, "the SQL files")
