"""The command `esper`. Each command is a few lines that hand over to a room, which is imported when it runs.

Data goes to stdout, narration to stderr. A mistake ends with a sentence and the exit code of `errors.ExitCode`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper_analytics.cli.command_io import (
    FormatOption,
    OutputOption,
    StrictOption,
    emit,
    print_json,
    print_lines,
    progress_bar,
    tell,
)
from esper_analytics.cli.command_line import App, Format, Group, Plot, What, listed_words, one_of
from esper_analytics.cli.import_commands import import_app
from esper_analytics.errors import DataError, ExitCode, UsageError
from esper_recorder.contract.rules.model import Severity
from esper_recorder.contract.rules.ruleset import profiles

if TYPE_CHECKING:
    import polars as pl

    from esper_analytics.maintenance.outcome import Outcome
    from esper_analytics.runs import Runs

_NAMING = "its name, or the beginning of its run_id, will do"
_AGAINST = "`live` (the run's own alarms), a profile or a TOML file"
_SENTENCES = ("meaning", "null", "one row is")

_own_process = False
"""True where the process is the command's: only then may limits be set on it."""

RunsPath = Annotated[Path, typer.Argument(metavar="RUNS", help="A folder of runs, or one run's folder.")]

app = App(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="SQL, anomaly replay and post-mortems for recorded PPO training runs.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print_lines(f"{name} {version(name)}" for name in ("esper-analytics", "esper-recorder"))
        raise typer.Exit(int(ExitCode.DONE))


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the versions and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """SQL, anomaly replay and post-mortems for recorded PPO training runs."""


@app.command("runs", examples=["esper runs runs/", "esper runs runs/ --format csv"])
def list_runs(
    path: RunsPath, form: FormatOption = None, output: OutputOption = None, strict: StrictOption = False
) -> None:
    """A row a run: trainer, start, updates, progress, how it ended, alarms, complete."""
    runs = open_runs(path)
    emit(runs.list(), form, output, percent=("progress",))
    finish(runs, strict)


@app.command("show", examples=["esper show runs/ --run hot", "esper show runs/ --run hot --format json"])
def show_run(
    path: RunsPath,
    run: Annotated[str | None, typer.Option("--run", metavar="ID", help=f"The run; {_NAMING}.")] = None,
    form: FormatOption = None,
    output: OutputOption = None,
    strict: StrictOption = False,
) -> None:
    """One run's card: config, versions, tables with rows, gaps, the rules it ran with."""
    from esper_analytics.cli.card import card_frame, card_lines, card_of
    from esper_analytics.formatting import LONGEST_TEXT

    runs = open_runs(path)
    [run] = settled(runs, [run]) if run else [the_only_run(runs)]
    card = card_of(runs, run)
    if form in (None, Format.table) and output is None:
        print_lines(card_lines(card, LONGEST_TEXT if sys.stdout.isatty() else None))
    elif form is Format.json and output is None:
        print_json(card)
    else:
        emit(card_frame(card), form, output)
    finish(runs, strict)


RunOption = Annotated[
    list[str] | None, typer.Option("--run", metavar="ID", help=f"Only this run; {_NAMING}; repeatable.")
]
TimeoutOption = Annotated[float, typer.Option(metavar="SECONDS", help="The query is stopped after so long.", min=0.001)]
MemoryOption = Annotated[str, typer.Option(metavar="SIZE", help="Memory the query may use.")]


@app.command(
    "sql",
    examples=[
        'esper sql runs/ "SELECT update, approx_kl FROM ppo_updates ORDER BY 2 DESC"',
        'esper sql runs/ "SELECT * FROM ppo_updates" -o updates.parquet',
    ],
)
def run_sql(
    path: RunsPath,
    query: Annotated[
        str, typer.Argument(metavar="SELECT", help="One SELECT over the views; `esper tables` lists them.")
    ],
    form: FormatOption = None,
    output: OutputOption = None,
    strict: StrictOption = False,
    timeout: TimeoutOption = 60,
    memory: MemoryOption = "4GB",
) -> None:
    """SQL over the recorded runs: read-only, and confined to RUNS."""
    runs = open_runs(path)
    bound_memory(memory)
    emit_answer(runs, runs.sql(query, timeout_s=timeout, memory=memory), form, output, strict)


@app.command(
    "query",
    examples=[
        "esper query --list",
        "esper query runs/ ratio_exceeded -p above=2",
        "esper query --show ratio_exceeded",
    ],
)
def run_query(
    path: Annotated[Path | None, typer.Argument(metavar="RUNS", help="A folder of runs, or one run's folder.")] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The question.")] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("-p", "--param", metavar="KEY=VALUE", help="One of its parameters; repeatable."),
    ] = None,
    run: RunOption = None,
    listing: Annotated[bool, typer.Option("--list", help="Which questions there are.")] = False,
    show: Annotated[str | None, typer.Option("--show", metavar="NAME", help="A question's SQL, to begin with.")] = None,
    form: FormatOption = None,
    output: OutputOption = None,
    strict: StrictOption = False,
    timeout: TimeoutOption = 60,
    memory: MemoryOption = "4GB",
) -> None:
    """A question that people have after a bad run, by its name: confined as `esper sql` is."""
    from esper_analytics.sql.named_queries import described, question_named, questions_frame, read_words

    if show is not None:
        print_lines([question_named(show).sql])
    elif listing and form is Format.json and output is None:
        print_json(described())
    elif listing:
        emit(questions_frame(), form, output, whole=("answers", "parameters"))
    elif path is None or name is None:
        raise UsageError("Say RUNS and the NAME of a question; `esper query --list` has them all.")
    else:
        question_named(name)
        values = read_words(parameters or ())
        runs = open_runs(path)
        runs = runs.only(settled(runs, run)) if run else runs
        bound_memory(memory)
        answer = runs.asked(name, values, timeout_s=timeout, memory=memory)
        emit_answer(runs, answer, form, output, strict)


@app.command("tables", examples=["esper tables ppo_updates --find kl", "esper tables --format json"])
def list_tables(
    table: Annotated[str | None, typer.Argument(metavar="TABLE", help="One table's columns; else all tables.")] = None,
    find: Annotated[
        str | None,
        typer.Option("--find", metavar="WORD", help="Columns with WORD in name or meaning, of TABLE or of all."),
    ] = None,
    form: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Tables and columns: types, units, meanings. With --format json and no TABLE: all of them, for LLM agents."""
    from esper_analytics.cli.table_descriptions import columns_frame, describe_tables, found_frame, tables_frame

    if find is not None:
        found = found_frame(find, table)
        emit(found, form, output, whole=_SENTENCES)
        if found.is_empty():
            tell(f"no column of {table or 'any table'} has {find!r} in its name or meaning")
    elif table is None and form is Format.json and output is None:
        print_json(describe_tables())
    else:
        emit(tables_frame() if table is None else columns_frame(table), form, output, whole=_SENTENCES)


RulesOption = Annotated[
    str | None,
    typer.Option(
        "--rules",
        metavar="RULES",
        help=f"A profile ({', '.join(profiles())}) or a TOML file. What each run ran with where nothing is said.",
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="RULE.KEY=VALUE", help="Another number; repeatable.")
]
AgainstOption = Annotated[str | None, typer.Option("--against", metavar="RULES", help=f"Compare with {_AGAINST}.")]


@app.command(
    "replay",
    examples=[
        "esper replay runs/ --run hot",
        "esper replay runs/ --rules seeds --set ratio_explosion.above=2 --against seeds",
    ],
)
def replay_rules(
    path: RunsPath,
    run: RunOption = None,
    rules: RulesOption = None,
    values: SetOption = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="RULES", help=f"Compare with {_AGAINST}: prints diff where --what says no other."
        ),
    ] = None,
    what: Annotated[
        What | None,
        typer.Option(
            metavar="WHAT",
            parser=one_of(What, "--what {} is not known.", "values"),
            help=f"What is printed: {listed_words(What)}. Incidents where nothing is said.",
        ),
    ] = None,
    fail_on: Annotated[
        Severity | None,
        typer.Option(
            metavar="SEVERITY",
            parser=one_of(Severity, "There is no severity {!r}.", "severities"),
            help=f"End with exit code 1 where an incident is at least this severe: {listed_words(Severity)}.",
        ),
    ] = None,
    form: FormatOption = None,
    output: OutputOption = None,
    strict: StrictOption = False,
) -> None:
    """Run detection again, with these rules or others."""
    from esper_analytics.cli.replay_arguments import LIVE, meets, narration, replay_for
    from esper_analytics.postmortem.notices import definitions, endings, not_compared, nothing_found

    runs = open_runs(path)
    runs = runs.only(settled(runs, run)) if run else runs
    what = what or (What.incidents if against is None else What.diff)
    with progress_bar("updates") as told:
        frame, result = replay_for(runs, rules, values or (), against, what, told)
    emit(frame, form, output)
    if frame.is_empty():
        tell(nothing_found(result, what))
    for line in narration(result):
        tell(line)
    for line in not_compared(runs) if against == LIVE and what is What.diff else ():
        tell(line)
    for line in endings(runs, terminal_width()):
        tell(line)
    if (mixed := definitions(runs)) is not None:
        tell(mixed)
    finish(runs, strict)
    if fail_on is not None and meets(result, fail_on):
        raise typer.Exit(int(ExitCode.FOUND))


@app.command("sweep", examples=["esper sweep runs/ --rule ratio_explosion --key above --values 1.5:10:0.5"])
def sweep_values(
    path: RunsPath,
    rule: Annotated[str, typer.Option("--rule", metavar="RULE", help="The rule.")],
    values: Annotated[str, typer.Option("--values", metavar="VALUES", help="START:STOP:STEP, or a,b,c.")],
    key: Annotated[str, typer.Option("--key", metavar="KEY", help="Which of its numbers, such as above.")] = "above",
    rules: Annotated[
        str | None,
        typer.Option(
            "--rules",
            metavar="RULES",
            help="A profile or a TOML file. Left out: the rules all runs ran with, else default.",
        ),
    ] = None,
    run: RunOption = None,
    form: FormatOption = None,
    output: OutputOption = None,
    strict: StrictOption = False,
) -> None:
    """One threshold at many values: a row each, with the runs and updates that fire."""
    from esper_analytics.detection.replay import load_rules, rules_of_all
    from esper_analytics.detection.sweep import read_values, sweep
    from esper_analytics.postmortem.caveats import warnings

    wanted = read_values(values)
    runs = open_runs(path)
    runs = runs.only(settled(runs, run)) if run else runs
    held = rules_of_all(runs) if rules is None else load_rules(rules)
    with progress_bar("values") as told:
        frame = sweep(runs, held, rule=rule, key=key, values=wanted, progress=told)
    emit(frame, form, output)
    for line in warnings(runs, next(one for one in held.rules if one.name == rule)):
        tell(line)
    tell(f"rules {held.name}")
    finish(runs, strict)


rules_app = App(no_args_is_help=True, help="Rule profiles: list them, read one, check a file of your own.")
app.add_typer(rules_app, name="rules")


@rules_app.command("list", examples=["esper rules list"])
def list_profiles(form: FormatOption = None, output: OutputOption = None) -> None:
    """The shipped profiles."""
    from esper_analytics.cli.replay_arguments import profiles_frame

    emit(profiles_frame(), form, output)


@rules_app.command("show", examples=["esper rules show default > my.toml"])
def show_rules(rules: Annotated[str, typer.Argument(metavar="PROFILE", help="A profile's name, or a file.")]) -> None:
    """A profile's text: a start for rules of your own."""
    from esper_analytics.detection.replay import load_rules

    sys.stdout.write(load_rules(rules).text)


@rules_app.command("check", examples=["esper rules check my.toml"])
def check_rules(
    rules: Annotated[str, typer.Argument(metavar="FILE", help="A TOML file of rules, or a profile's name.")],
    form: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Check a file of rules and run its unit tests. Exit code 1 where one fails."""
    from esper_analytics.cli.replay_arguments import check_frame

    tests = check_frame(rules)
    emit(tests, form, output)
    failed = int((~tests["passed"]).sum())
    tell(f"{rules} is well-formed; {tests.height - failed} of {tests.height} tests pass")
    if failed:
        raise typer.Exit(int(ExitCode.FOUND))


app.add_typer(import_app, name="import")


@app.command(
    "forensics",
    examples=[
        "esper forensics runs/ --run hot",
        "esper forensics runs/ --run hot --update 12 --format markdown -o hot-12.md",
    ],
)
def look_closely(
    path: RunsPath,
    run: Annotated[str | None, typer.Option("--run", metavar="ID", help=f"The run; {_NAMING}.")] = None,
    update: Annotated[
        int | None,
        typer.Option(metavar="N", help="The update; where a ratio explosion, else the worst incident, began."),
    ] = None,
    form: FormatOption = None,
    output: OutputOption = None,
    strict: StrictOption = False,
) -> None:
    """What happened around a ratio explosion, or any incident: minibatches, worst transitions by head, layers."""
    from dataclasses import asdict

    from esper_analytics.cli.output import save_lines
    from esper_analytics.postmortem.forensics import as_frame, as_lines, examine

    runs = open_runs(path)
    [run] = settled(runs, [run]) if run else [the_only_run(runs)]
    found = examine(runs, run, update)
    markdown = form is Format.markdown or (form is None and output is not None and output.suffix == ".md")
    if markdown and output is not None:
        save_lines(as_lines(found, markdown=True), output)
        tell(f"written to {output}")
    elif output is None and form in (None, Format.table, Format.markdown):
        print_lines(as_lines(found, markdown=markdown))
    elif output is None and form is Format.json:
        print_json(asdict(found))
    else:
        emit(as_frame(found), form, output)
    finish(runs, strict)


@app.command(
    "report",
    examples=["esper report runs/ -o report.html", "esper report runs/ --run hot --against seeds -o hot.md"],
)
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
    from esper_analytics.cli.replay_arguments import narration
    from esper_analytics.cli.report_arguments import report_for
    from esper_analytics.postmortem.render import plots_folder

    runs = open_runs(path)
    run = settled(runs, run or ())
    runs = runs.only(run) if run else runs
    words = ["esper", "report", str(path), *(word for one in run for word in ("--run", one))]
    words += [] if rules is None else ["--rules", rules]
    words += [word for one in values or () for word in ("--set", one)]
    words += [] if against is None else ["--against", against]
    result = report_for(runs, rules, values or (), against, output, shlex.join([*words, "-o", str(output)]))
    for line in narration(result):
        tell(line)
    folder = plots_folder(output)
    beside = f", its plots to {folder}" if output.suffix.lower() == ".md" and folder.is_dir() else ""
    tell(f"report written to {output}{beside}")
    finish(runs, strict)


@app.command(
    "plot",
    examples=[
        "esper plot runs/ --run hot -o hot.png",
        "esper plot runs/ --run hot --kind ratio -o ratio.png",
        "esper plot runs/ --kind compare -o compare.svg",
    ],
)
def draw_plot(
    path: RunsPath,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="FILE.png, FILE.svg or FILE.pdf.")],
    run: RunOption = None,
    kind: Annotated[
        Plot,
        typer.Option(
            metavar="KIND",
            parser=one_of(Plot, "There is no plot of kind {!r}.", "kinds"),
            help=f"{listed_words(Plot)} (this one of several runs, the others of one).",
        ),
    ] = Plot.postmortem,
    rules: RulesOption = None,
    values: SetOption = None,
    strict: StrictOption = False,
) -> None:
    """One figure of a run, or of several."""
    from esper_analytics.cli.report_arguments import plot_for
    from esper_analytics.postmortem.notices import definitions

    runs = open_runs(path)
    run = settled(runs, run or ())
    plot_for(runs, run, kind, rules, values or (), output)
    tell(f"plot written to {output}")
    if kind is Plot.compare and (mixed := definitions(runs.only(run) if run else runs)) is not None:
        tell(mixed)
    finish(runs, strict)


@app.command("verify", examples=["esper verify runs/", "esper verify runs/ --run hot --strict"])
def verify_runs(
    path: RunsPath,
    run: RunOption = None,
    form: FormatOption = None,
    output: OutputOption = None,
    strict: StrictOption = False,
) -> None:
    """Read every file of every run and say whether the recording is whole. Changes nothing.

    Problems are told on stderr, and the exit code is 0 with or without them, unless --strict.
    """
    from esper_analytics.maintenance.verification import verify

    only = None
    if run:
        runs = open_runs(path)
        only = runs.only(settled(runs, run)).manifests().keys()
    conclude(verify(path, only), form, output, strict)


@app.command("recover", examples=["esper recover runs/"])
def recover_runs(
    path: RunsPath, form: FormatOption = None, output: OutputOption = None, strict: StrictOption = False
) -> None:
    """Finish what a crash left: journals become parts, unfinished files go. Leaves live runs alone."""
    from esper_analytics.maintenance.recovery import recover

    conclude(recover(path), form, output, strict)


@app.command("compact", examples=["esper compact runs/"])
def compact_runs(
    path: RunsPath, form: FormatOption = None, output: OutputOption = None, strict: StrictOption = False
) -> None:
    """Merge many small parts into few, in the same order. Safe to interrupt, and while others read with esper."""
    from esper_analytics.maintenance.compaction import compact

    conclude(compact(path), form, output, strict)


@app.command("demo", examples=["esper demo --out demo"])
def run_demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="For DIR/runs and DIR/report.html.")] = Path("demo"),
) -> None:
    """Record two real PPO runs, replay them with other thresholds, write a report. Takes about a minute."""
    from esper_analytics.cli import demo
    from esper_analytics.cli.output import show

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
    from esper_analytics.runs import open as open_store

    return open_store(path)


def the_only_run(runs: Runs) -> str:
    """The run where there is one. Raises UsageError where --run must choose."""
    if len(ids := runs.ids) == 1:
        return ids[0]
    listed = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    raise UsageError(f"There are {len(ids)} runs: {listed}. Say which by --run ID.")


def settled(runs: Runs, asked: Iterable[str]) -> list[str]:
    """The words of --run, each meaning one run; says so where several have the name."""
    from esper_analytics.postmortem.notices import settle

    words, told = settle(runs, asked)
    for line in told:
        tell(line)
    return words


def emit_answer(runs: Runs, answer: pl.DataFrame, form: Format | None, output: Path | None, strict: bool) -> None:
    """Print the answer of a query over runs, and say what it lacks."""
    emit(answer, form, output)
    if answer.is_empty():
        tell("no rows")
    finish(runs, strict)


def finish(runs: Runs, strict: bool) -> None:
    """Tell what had to be left out of the answer. Raises DataError for it where `strict`."""
    problems = runs.problems_met
    for problem in problems:
        tell(problem.told)
    if problems and strict:
        raise DataError(f"{len(problems)} {'thing' if len(problems) == 1 else 'things'} had to be left out (--strict).")


def conclude(outcome: Outcome, form: Format | None, output: Path | None, strict: bool) -> None:
    """Print what was found or done and tell the problems. Raises DataError for them where `strict`."""
    emit(outcome.frame, form, output)
    problems = outcome.problems
    for problem in problems:
        tell(str(problem))
    if problems and strict:
        raise DataError(
            f"There {'is 1 problem' if len(problems) == 1 else f'are {len(problems)} problems'} (--strict)."
        )


def terminal_width() -> int:
    """How many characters a line of stderr has; many where it is no terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    return console.width if console.is_terminal else 1000


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


def bound_memory(memory: str) -> None:
    """Bound the command's address space: to print an answer takes more than to compute it.

    It is set on the command's own process only, and never raised.
    """
    from esper_analytics.sql.memory_limit import size_of

    if not _own_process:
        return
    try:
        import resource
    except ImportError:  # not on this platform
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = max(8 * 2**30, 2 * (size_of(memory) or 0))
    if hard == resource.RLIM_INFINITY or hard > wanted:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


def main() -> None:
    """The entry point of the command `esper`."""
    global _own_process
    _own_process = True
    try:
        app(prog_name="esper")
    except SystemExit as end:
        room = sys.modules.get("esper_analytics.sql.confined")
        if room is not None and room.left_behind():
            # A query that cannot be stopped ends with its process, which must not wait for it.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 0)
        raise


if __name__ == "__main__":
    main()
