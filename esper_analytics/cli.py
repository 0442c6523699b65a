"""The command `esper`. Each command is a few lines that hand over to a room, which is imported when it runs.

Data goes to stdout, narration to stderr. A mistake ends with a sentence and the exit code of `errors.ExitCode`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from esper_analytics.errors import DataError, EsperError, ExitCode, UsageError
from esper_recorder.contract.rule import Severity

if TYPE_CHECKING:
    import polars as pl

    from esper_analytics.store import Runs

_own_process = False
"""True where the process is the command's: only then may limits be set on it."""


class _Group(TyperGroup):
    """Turns what a person can do something about into a sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except EsperError as error:
            tell(f"esper: {error}")
            ctx.exit(int(error.exit_code))
        except KeyboardInterrupt:
            tell("esper: interrupted")
            ctx.exit(int(ExitCode.INTERRUPTED))
        except BrokenPipeError:
            # Whoever read our output has seen enough. Nothing may be flushed to it at exit either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(int(ExitCode.DONE))


class Format(StrEnum):
    """The values of --format; `output` holds what they do."""

    table = "table"
    csv = "csv"
    json = "json"
    ndjson = "ndjson"
    markdown = "markdown"
    parquet = "parquet"


RunsPath = Annotated[Path, typer.Argument(metavar="RUNS", help="A folder of runs, or one run's folder.")]
FormatOption = Annotated[
    Format | None, typer.Option("--format", help="How the answer is written [default: table].", show_default=False)
]
OutputOption = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write it to FILE; its ending tells the format.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="End with exit code 3 where anything had to be left out.")]

app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="SQL, anomaly replay and post-mortems for recorded PPO training runs.",
)


@app.callback()
def _options() -> None:
    """SQL, anomaly replay and post-mortems for recorded PPO training runs."""


@app.command("runs")
def list_runs(
    path: RunsPath, form: FormatOption = None, output: OutputOption = None, strict: StrictOption = False
) -> None:
    """A row a run: trainer, start, updates, progress, how it ended, alarms, complete."""
    runs = open_runs(path)
    emit(runs.list(), form, output)
    finish(runs, strict)


@app.command("show")
def show_run(
    path: RunsPath,
    run: Annotated[str | None, typer.Option("--run", metavar="ID", help="The run; its beginning is enough.")] = None,
    form: FormatOption = None,
    output: OutputOption = None,
    strict: StrictOption = False,
) -> None:
    """One run's card: config, versions, tables with rows, gaps, the rules it ran with."""
    from esper_analytics.card import card_frame, card_lines, card_of

    runs = open_runs(path)
    card = card_of(runs, run or the_only_run(runs))
    if form in (None, Format.table) and output is None:
        print_lines(card_lines(card))
    elif form is Format.json and output is None:
        print_json(card)
    else:
        emit(card_frame(card), form, output)
    finish(runs, strict)


@app.command("sql")
def run_sql(
    path: RunsPath,
    query: Annotated[
        str, typer.Argument(metavar="SELECT", help="One SELECT over the views; `esper tables` lists them.")
    ],
    form: FormatOption = None,
    output: OutputOption = None,
    strict: StrictOption = False,
    timeout: Annotated[float, typer.Option(help="Seconds after which the query is stopped.", min=0.001)] = 60,
    memory: Annotated[str, typer.Option(help="Memory the query may use.")] = "4GB",
) -> None:
    """SQL over the recorded runs: read-only, and confined to RUNS."""
    runs = open_runs(path)
    bound_memory()
    emit(runs.sql(query, timeout_s=timeout, memory=memory), form, output)
    finish(runs, strict)


@app.command("tables")
def list_tables(
    table: Annotated[str | None, typer.Argument(metavar="TABLE", help="One table's columns; else all tables.")] = None,
    form: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Tables and columns: types, units, meanings. With --format json and no TABLE: all of them, for LLM agents."""
    from esper_analytics.describe import columns_frame, describe_tables, tables_frame

    if table is None and form is Format.json and output is None:
        print_json(describe_tables())
    else:
        emit(tables_frame() if table is None else columns_frame(table), form, output)


RulesOption = Annotated[
    str | None,
    typer.Option("--rules", metavar="RULES", help="A profile or a TOML file [default: what the run ran with]."),
]
RunOption = Annotated[list[str] | None, typer.Option("--run", metavar="ID", help="Only this run; repeatable.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="RULE.KEY=VALUE", help="Another number; may be repeated.")
]
AgainstOption = Annotated[
    str | None, typer.Option("--against", metavar="WHAT", help="Compare with `live`, a profile or a TOML file.")
]


@app.command("replay")
def replay_rules(
    path: RunsPath,
    run: RunOption = None,
    rules: RulesOption = None,
    values: SetOption = None,
    against: AgainstOption = None,
    what: Annotated[
        str | None, typer.Option(help="incidents, firings, coverage or diff [default: incidents; diff if --against].")
    ] = None,
    fail_on: Annotated[
        Severity | None, typer.Option(help="End with exit code 1 where an incident is at least this severe.")
    ] = None,
    form: FormatOption = None,
    output: OutputOption = None,
    strict: StrictOption = False,
) -> None:
    """Run detection again, with these rules or others."""
    from esper_analytics.replay.command import meets, narration, replay_for

    runs = open_runs(path)
    runs = runs.only(run) if run else runs
    frame, result = replay_for(runs, rules, values or (), against, what)
    emit(frame, form, output)
    for line in narration(result):
        tell(line)
    finish(runs, strict)
    if fail_on is not None and meets(result, fail_on):
        raise typer.Exit(int(ExitCode.FOUND))


rules_app = typer.Typer(no_args_is_help=True, help="Rule profiles: list them, read one, check a file of your own.")
app.add_typer(rules_app, name="rules")


@rules_app.command("list")
def list_profiles(form: FormatOption = None, output: OutputOption = None) -> None:
    """The shipped profiles."""
    from esper_analytics.replay.command import profiles_frame

    emit(profiles_frame(), form, output)


@rules_app.command("show")
def show_rules(rules: Annotated[str, typer.Argument(metavar="PROFILE", help="A profile's name, or a file.")]) -> None:
    """A profile's text: a start for rules of your own."""
    from esper_analytics.replay import load_rules

    sys.stdout.write(load_rules(rules).text)


@rules_app.command("check")
def check_rules(
    rules: Annotated[str, typer.Argument(metavar="FILE", help="A TOML file of rules, or a profile's name.")],
    form: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Check a file of rules and run its unit tests. Exit code 1 where one fails."""
    from esper_analytics.replay.command import check_frame

    tests = check_frame(rules)
    emit(tests, form, output)
    failed = int((~tests["passed"]).sum())
    tell(f"{rules} is well-formed; {tests.height - failed} of {tests.height} tests pass")
    if failed:
        raise typer.Exit(int(ExitCode.FOUND))


@app.command("report")
def write_report(
    path: RunsPath,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="FILE.html, FILE.md (plots beside it) or FILE.json.")
    ],
    run: RunOption = None,
    rules: RulesOption = None,
    values: SetOption = None,
    against: AgainstOption = None,
    strict: StrictOption = False,
) -> None:
    """A post-mortem: what broke first, incidents, curves, and what could not be judged."""
    from esper_analytics.replay.command import narration
    from esper_analytics.report_command import report_for

    runs = open_runs(path)
    runs = runs.only(run) if run else runs
    words = ["esper", "report", str(path), *(word for one in run or () for word in ("--run", one))]
    words += [] if rules is None else ["--rules", rules]
    words += [word for one in values or () for word in ("--set", one)]
    words += [] if against is None else ["--against", against]
    result = report_for(runs, rules, values or (), against, output, shlex.join([*words, "-o", str(output)]))
    for line in narration(result):
        tell(line)
    tell(f"report written to {output}")
    finish(runs, strict)


@app.command("plot")
def draw_plot(
    path: RunsPath,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="FILE.png, FILE.svg or FILE.pdf.")],
    run: RunOption = None,
    kind: Annotated[str, typer.Option(help="postmortem (of one run) or compare (of several).")] = "postmortem",
    rules: RulesOption = None,
    values: SetOption = None,
    strict: StrictOption = False,
) -> None:
    """One figure of a run, or of several."""
    from esper_analytics.report_command import plot_for

    runs = open_runs(path)
    plot_for(runs, run or (), kind, rules, values or (), output)
    tell(f"plot written to {output}")
    finish(runs, strict)


@app.command("demo")
def run_demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="For DIR/runs and DIR/report.html.")] = Path("demo"),
) -> None:
    """Record two real PPO runs, replay them with other thresholds, write a report. Takes about a minute."""
    from esper_analytics import demo
    from esper_analytics.output import show

    tell(
        f"Training PPO on CartPole twice and recording it into {out / 'runs'}: once as usual, once with a learning rate"
    )
    tell("that wrecks it. The runs of a demo before are replaced.")
    with progress_bars() as progress:
        run_ids = demo.record(out, progress)
    tell("Replaying the rules over both, with the shipped thresholds and with another:")
    shipped, changed = demo.evaluate(out, run_ids)
    show(demo.differences(shipped, changed))
    print_lines(["", f"The report: {out / 'report.html'}", "", "To try next:", ""])
    print_lines(f"    {line}" for line in demo.next_commands(out))


# --- what commands share ----------------------------------------------------------------------------------------------


def open_runs(path: Path) -> Runs:
    """Open RUNS for a command."""
    from esper_analytics.store import open as open_store

    return open_store(path)


def the_only_run(runs: Runs) -> str:
    """The run where there is one. Raises UsageError where --run must choose."""
    if len(ids := runs.ids) == 1:
        return ids[0]
    listed = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    raise UsageError(f"There are {len(ids)} runs: {listed}. Say which by --run ID.")


def emit(frame: pl.DataFrame, form: Format | None, output: Path | None) -> None:
    """Print an answer, or write it to a file and say so."""
    from esper_analytics.output import save, show

    name = None if form is None else form.value
    if output is None:
        show(frame, name)
    else:
        save(frame, output, name)
        tell(f"{frame.height} {'row' if frame.height == 1 else 'rows'} written to {output}")


def finish(runs: Runs, strict: bool) -> None:
    """Tell what had to be left out of the answer. Raises DataError for it where `strict`."""
    problems = runs.problems_met
    for problem in problems:
        tell(f"left out: {problem}")
    if problems and strict:
        raise DataError(f"{len(problems)} {'thing' if len(problems) == 1 else 'things'} had to be left out (--strict).")


def tell(text: str) -> None:
    """Say something beside the data."""
    typer.echo(text, err=True)


def print_lines(lines: Iterable[str]) -> None:
    """Print text lines as data."""
    for line in lines:
        sys.stdout.write(line + "\n")


def print_json(value: Any) -> None:
    """Print plain data as JSON."""
    import json

    from esper_analytics.output import to_json

    print_lines([json.dumps(to_json(value), indent=2, ensure_ascii=False, allow_nan=False)])


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Called with name, done and of how much: a bar for each name on stderr, or a line where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def progress(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done)
            if done >= total and not console.is_terminal:
                tell(f"  {name}: {done:,} of {total:,} steps")

        yield progress


def bound_memory(gigabytes: int = 8) -> None:
    """Bound the command's address space: one step of a scalar function may outgrow DuckDB's own limit.

    It is set on the command's own process only, and never raised.
    """
    if not _own_process:
        return
    try:
        import resource
    except ImportError:  # not on this platform
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = gigabytes * 2**30
    if hard == resource.RLIM_INFINITY or hard > wanted:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


def main() -> None:
    """The entry point of the command `esper`."""
    global _own_process
    _own_process = True
    app(prog_name="esper")


if __name__ == "__main__":
    main()
