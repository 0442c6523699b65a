"""The commands `esper sql` and `query`: SQL over the recorded runs, free or named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esper_analytics.cli import options
from esper_analytics.cli.command_line import App
from esper_analytics.cli.console import emit, finish, narrate, print_json, print_lines
from esper_analytics.cli.output import JSON, OutputFormat
from esper_analytics.cli.process_limits import continue_in_child, limited
from esper_analytics.cli.run_selection import open_runs
from esper_analytics.errors import UsageError

if TYPE_CHECKING:
    import polars as pl

    from esper_analytics.runs import Runs

commands = App()


@commands.command(
    "sql",
    examples=[
        'esper sql runs/ "SELECT update, approx_kl FROM ppo_updates ORDER BY 2 DESC"',
        'esper sql runs/ "SELECT * FROM ppo_updates" -o updates.parquet',
    ],
)
def run_sql(
    path: options.Runs,
    query: Annotated[
        str, typer.Argument(metavar="SELECT", help="One SELECT over the views; `esper tables` lists them.")
    ],
    form: options.Format = None,
    output: options.Output = None,
    strict: options.Strict = False,
    timeout: options.Timeout = 60,
    memory: options.Memory = "4GB",
) -> None:
    """SQL over the recorded runs: read-only, and confined to RUNS."""
    continue_in_child(timeout, output)
    runs = open_runs(path)
    with limited(timeout, memory):
        answer = runs.sql(query, timeout_s=timeout, memory=memory)
    _emit_answer(runs, answer, form, output, strict)


@commands.command(
    "query",
    examples=[
        "esper query --list",
        "esper query runs/ ratio_exceeded -p above=2",
        "esper query --show ratio_exceeded",
    ],
)
def run_query(
    path: Annotated[Path | None, typer.Argument(metavar="RUNS", help="A folder of runs, or one run's folder.")] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The query.")] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("-p", "--param", metavar="KEY=VALUE", help="One of its parameters; repeatable."),
    ] = None,
    run: options.SomeRuns = None,
    listing: Annotated[bool, typer.Option("--list", help="List the named queries.")] = False,
    show: Annotated[str | None, typer.Option("--show", metavar="NAME", help="Print a query's SQL, to adapt.")] = None,
    form: options.Format = None,
    output: options.Output = None,
    strict: options.Strict = False,
    timeout: options.Timeout = 60,
    memory: options.Memory = "4GB",
) -> None:
    """A named query, for what people ask after a bad run; confined like `esper sql`."""
    if path is not None and name is not None and show is None and not listing:
        continue_in_child(timeout, output)
    from esper_analytics.sql.named_queries import describe_queries, find_query, parse_parameters, queries_frame

    if show is not None:
        print_lines(find_query(show).sql.splitlines())
    elif listing and form is JSON and output is None:
        print_json(describe_queries())
    elif listing:
        emit(queries_frame(), form, output, whole=("answers", "parameters"))
    elif path is None or name is None:
        raise UsageError("Give RUNS and the NAME of a query; `esper query --list` has them all.")
    else:
        find_query(name)
        values = parse_parameters(parameters or ())
        runs = open_runs(path, run)
        with limited(timeout, memory):
            answer = runs.run_query(name, values, timeout_s=timeout, memory=memory)
        _emit_answer(runs, answer, form, output, strict)


def _emit_answer(
    runs: Runs, answer: pl.DataFrame, form: OutputFormat | None, output: Path | None, strict: bool
) -> None:
    emit(answer, form, output)
    if answer.is_empty():
        narrate("no rows")
    finish(runs, strict)
