"""The commands `esper import ...`: existing telemetry in, as runs like any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esper_analytics.cli.command_io import FormatOption, OutputOption, emit, progress_bar, tell
from esper_analytics.cli.command_line import App
from esper_analytics.errors import DataError

if TYPE_CHECKING:
    from esper_analytics.importers.load_report import LoadReport
    from esper_analytics.importers.run_writer import Stored

SourcesArgument = Annotated[
    list[str], typer.Argument(metavar="SOURCE", help="Files, folders (all below is looked through) or patterns.")
]
ToOption = Annotated[Path, typer.Option("--to", metavar="RUNS", help="The folder of runs to import into.")]
StrictImport = Annotated[
    bool, typer.Option("--strict", help="End with exit code 3 where anything fitted no column, or was not readable.")
]
Imported = tuple["Stored", "LoadReport"]
"""What became of a run, and what its load report says."""

import_app = App(
    no_args_is_help=True,
    help="Existing telemetry in: each source becomes a run in RUNS, with a report of what was loaded.",
)


@import_app.command(
    "esper-jsonl",
    examples=["esper import esper-jsonl telemetry/ --to runs", "esper import esper-jsonl events.jsonl.zst --to runs"],
)
def import_esper_jsonl(
    sources: SourcesArgument,
    to: ToOption,
    form: FormatOption = None,
    output: OutputOption = None,
    strict: StrictImport = False,
) -> None:
    """Esper's events.jsonl (plain, .gz, .zst), of December 2025 to June 2026. Prints what was loaded."""
    from esper_analytics.importers import esper_jsonl

    with bytes_bar() as told:
        imported = esper_jsonl.import_files(sources, to, told)
    report_imported(imported, to, form, output, strict=strict)


@import_app.command(
    "tensorboard",
    examples=["esper import tensorboard logs/ --to runs", "esper import tensorboard 'logs/PPO_*' --to runs"],
)
def import_tensorboard(
    sources: SourcesArgument,
    to: ToOption,
    form: FormatOption = None,
    output: OutputOption = None,
    strict: StrictImport = False,
) -> None:
    """TensorBoard event files of Stable-Baselines3, CleanRL, rsl_rl or TorchRL, a run a folder."""
    from esper_analytics.importers import tensorboard

    with bytes_bar() as told:
        imported = tensorboard.import_files(sources, to, told)
    report_imported(imported, to, form, output, strict=strict)


@import_app.command("sb3-csv", examples=["esper import sb3-csv logs/ --to runs"])
def import_sb3_csv(
    sources: SourcesArgument,
    to: ToOption,
    form: FormatOption = None,
    output: OutputOption = None,
    strict: StrictImport = False,
) -> None:
    """The progress.csv of Stable-Baselines3, a run a file."""
    from esper_analytics.importers import sb3_csv

    with bytes_bar() as told:
        imported = sb3_csv.import_files(sources, to, told)
    report_imported(imported, to, form, output, strict=strict)


@contextmanager
def bytes_bar() -> Iterator[Callable[[int, int], None] | None]:
    """Called with bytes done and of how much: a bar that counts megabytes."""
    with progress_bar("MB") as told:
        yield None if told is None else lambda done, total: told(done // 1_000_000, max(total // 1_000_000, 1))


def report_imported(
    imported: Sequence[Imported], to: Path, form: FormatOption, output: OutputOption, *, strict: bool
) -> None:
    """Print the load reports of some imports and say what became of each run.

    Raises DataError where there was nothing to import, or where `strict` and anything was lost.
    """
    from esper_analytics.importers.load_report import report_frame

    if all(stored.what == "empty" for stored, _ in imported):
        raise DataError(_nothing([report for _, report in imported]))
    emit(report_frame({stored.run_id: report for stored, report in imported if stored.run_id}), form, output)
    lost = False
    for stored, report in imported:
        match stored.what:
            case "unchanged":
                tell(f"{stored.run_id}: is in {to} already, from the same content; left as it is")
            case "shorter":
                tell(f"{stored.run_id}: {report.source} holds less of this run than {to} does already; left as it is")
            case "replaced":
                tell(f"{stored.run_id}: imported anew, since {report.source} has changed")
            case "imported":
                tell(f"{stored.run_id}: imported from {report.source}")
            case "empty":
                tell(f"{report.source}: left out, for it holds nothing to import")
        for note in report.notes:
            tell(f"{stored.run_id}: {note}")
        if losses := report.losses:
            lost = True
            shown = f'; `esper sql {to} "SELECT * FROM raw_events"` shows them' if report.reasons else ""
            tell(f"{stored.run_id or report.source}: {', '.join(losses)}{shown}")
    if lost and strict:
        raise DataError("Not everything found its column (--strict).")


def _nothing(reports: Sequence[LoadReport]) -> str:
    """Why nothing was imported, by the first of the sources."""
    first = reports[0]
    more = f", nor in {len(reports) - 1} more" if len(reports) > 1 else ""
    return f"There is nothing to import in {first.source}{more}: {first.damage or 'it is empty'}."
