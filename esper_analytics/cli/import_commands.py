"""The commands `esper import ...`: existing telemetry becomes runs like any other. To add a source, add a row."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esper_analytics.cli import options
from esper_analytics.cli.command_line import App
from esper_analytics.cli.console import emit, narrate, progress_bar
from esper_analytics.cli.output import OutputFormat
from esper_analytics.errors import NOT_UTF8, DataError, UsageError
from esper_analytics.formatting import is_unicode

if TYPE_CHECKING:
    from esper_analytics.importers.run_writer import ImportOutcome

_Progress = Callable[[int, int], None] | None
_Import = Callable[[Sequence[str], Path, _Progress], list["ImportOutcome"]]

SOURCES = {
    "esper-jsonl": (
        "Esper's events.jsonl (plain, .gz, .zst), of December 2025 to June 2026. Prints what was loaded.",
        ("esper import esper-jsonl telemetry/ --to runs", "esper import esper-jsonl events.jsonl.zst --to runs"),
    ),
    "tensorboard": (
        "TensorBoard event files of Stable-Baselines3, CleanRL, rsl_rl or TorchRL, one run per folder.",
        ("esper import tensorboard logs/ --to runs", "esper import tensorboard 'logs/PPO_*' --to runs"),
    ),
    "sb3-csv": (
        "The progress.csv of Stable-Baselines3, one run per file.",
        ("esper import sb3-csv logs/ --to runs",),
    ),
}
"""Name, also of the module in `importers` whose `import_files` reads it -> the help, examples."""

_OUTCOMES = {
    "unchanged": "{run_id}: is in {to} already, from the same content; left as it is",
    "shorter": "{run_id}: {source} has less of this run than {to} already; left as it is",
    "replaced": "{run_id}: imported again, since {source} has changed",
    "imported": "{run_id}: imported from {source}",
    "empty": "{source}: left out, since it has nothing to import",
}

SourcesArgument = Annotated[
    list[str], typer.Argument(metavar="SOURCE", help="Files, folders (searched with all below them) or patterns.")
]
ToOption = Annotated[Path, typer.Option("--to", metavar="RUNS", help="The folder of runs to import into.")]
StrictImportOption = Annotated[
    bool, typer.Option("--strict", help="End with exit code 3 if anything had no column, or was not readable.")
]

commands = App(
    no_args_is_help=True,
    help="Existing telemetry in: each source becomes a run in RUNS, with a report of what was loaded.",
)


def _command(name: str) -> Callable[..., None]:
    def import_source(
        sources: SourcesArgument,
        to: ToOption,
        form: options.Format = None,
        output: options.Output = None,
        strict: StrictImportOption = False,
    ) -> None:
        if not is_unicode(str(to.absolute())):
            raise UsageError(f"The path {to.absolute()} {NOT_UTF8}.")
        module = importlib.import_module(f"esper_analytics.importers.{name.replace('-', '_')}")
        import_files: _Import = module.import_files
        with _megabytes_bar() as progress:
            outcomes = import_files(sources, to, progress)
        _report(outcomes, to, form, output, strict)

    return import_source


for _name, (_help, _examples) in SOURCES.items():
    commands.command(_name, help=_help, examples=_examples)(_command(_name))


@contextmanager
def _megabytes_bar() -> Iterator[_Progress]:
    """Yield a function of (bytes done, bytes in all)."""
    with progress_bar("MB") as draw:
        yield None if draw is None else lambda done, total: draw(done // 1_000_000, max(total // 1_000_000, 1))


def _report(
    outcomes: Sequence[ImportOutcome], to: Path, form: OutputFormat | None, output: Path | None, strict: bool
) -> None:
    """Print the load reports, and say what became of each run.

    Raises DataError if there was nothing to import, or if `strict` and anything was left out.
    """
    from esper_analytics.importers.load_report import report_frame

    if all(outcome.status == "empty" for outcome in outcomes):
        first, more = outcomes[0].report, len(outcomes) - 1
        where = f"{first.source}, nor in {more} more" if more else first.source
        raise DataError(f"There is nothing to import in {where}: {first.damage or 'it is empty'}.")
    emit(report_frame({outcome.run_id: outcome.report for outcome in outcomes if outcome.run_id}), form, output)
    incomplete = False
    for outcome in outcomes:
        run_id, report = outcome.run_id, outcome.report
        narrate(_OUTCOMES[outcome.status].format(run_id=run_id, source=report.source, to=to))
        narrate(*(f"{run_id}: {note}" for note in report.notes))
        if problems := report.problems:
            incomplete = True
            hint = f'; `esper sql {to} "SELECT * FROM raw_events"` shows them' if report.reasons else ""
            narrate(f"{run_id or report.source}: {', '.join(problems)}{hint}")
    if incomplete and strict:
        raise DataError("Not everything found its column (--strict).")
