"""The commands `esper runs`, `show` and `tables`: what was recorded, and what its columns mean."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from esper_analytics.cli import options
from esper_analytics.cli.command_line import App
from esper_analytics.cli.console import emit, finish, narrate, print_json, print_lines
from esper_analytics.cli.output import JSON, TABLE
from esper_analytics.cli.run_selection import open_one_run, open_runs

commands = App()

_PROSE = ("meaning", "null", "one row is")


@commands.command("runs", examples=["esper runs runs/", "esper runs runs/ --format csv"])
def list_runs(
    path: options.Runs, form: options.Format = None, output: options.Output = None, strict: options.Strict = False
) -> None:
    """One row per run: trainer, start, updates, progress, how it ended, alarms, complete."""
    runs = open_runs(path)
    emit(runs.list(), form, output, percent=("progress",))
    finish(runs, strict)


@commands.command("show", examples=["esper show runs/ --run hot", "esper show runs/ --run hot --format json"])
def show_run(
    path: options.Runs,
    run: options.OneRun = None,
    form: options.Format = None,
    output: options.Output = None,
    strict: options.Strict = False,
) -> None:
    """One run's card: config, versions, tables with rows, gaps, the rules it ran with."""
    from esper_analytics.cli.run_card import card_frame, card_lines, card_of
    from esper_analytics.formatting import LONGEST_TEXT

    runs, run_id = open_one_run(path, run)
    card = card_of(runs, run_id)
    if form in (None, TABLE) and output is None:
        print_lines(card_lines(card, LONGEST_TEXT if sys.stdout.isatty() else None))
    elif form is JSON and output is None:
        print_json(card)
    else:
        emit(card_frame(card), form, output)
    finish(runs, strict)


@commands.command("tables", examples=["esper tables ppo_updates --find kl", "esper tables --format json"])
def list_tables(
    table: Annotated[str | None, typer.Argument(metavar="TABLE", help="One table's columns; else all tables.")] = None,
    find: Annotated[
        str | None,
        typer.Option("--find", metavar="WORD", help="Columns with WORD in name or meaning, of TABLE or of all."),
    ] = None,
    form: options.Format = None,
    output: options.Output = None,
) -> None:
    """Tables and columns: types, units, meanings. With --format json and no TABLE: all of them, for LLM agents."""
    from esper_analytics.cli.table_reference import columns_frame, describe_tables, find_columns, tables_frame

    if find is not None:
        matches = find_columns(find, table)
        emit(matches, form, output, whole=_PROSE)
        if matches.is_empty():
            narrate(f"no column of {table or 'any table'} has {find!r} in its name or meaning")
    elif table is None and form is JSON and output is None:
        print_json(describe_tables())
    else:
        emit(tables_frame() if table is None else columns_frame(table), form, output, whole=_PROSE)
