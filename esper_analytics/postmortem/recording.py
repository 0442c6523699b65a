"""How a run ended and what its recording lacks, as sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import polars as pl

from esper_analytics.formatting import format_count, format_list, format_percent, format_ranges
from esper_analytics.runs import Runs
from esper_recorder.storage.manifest import Manifest

FIRST_LINE: Final = 160
"""Characters of an error in a sentence."""

WHOLE_ERROR: Final = 2_000
"""Characters of an error shown at most."""

How = Literal["finished", "raised", "interrupted", "killed", "live", "unknown"]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended, told apart further than `runs.ended` does.

    Attributes:
        how: `raised` is an error of the training; `interrupted` is Ctrl-C, which says nothing about the training;
            `unknown` is an imported run that did not tell.
        error: what was raised, shortened; None where nothing was, or only Ctrl-C.
    """

    how: How
    error: str | None = None

    @property
    def line(self) -> str:
        """The first line of the error, shortened, without a full stop or colon at its end."""
        first = next((line.strip() for line in (self.error or "").splitlines() if line.strip()), "")
        if len(first) > FIRST_LINE:
            cut = first[: FIRST_LINE - 2]
            return f"{(cut.rsplit(' ', 1)[0] if ' ' in cut[80:] else cut).rstrip(' :.;,')} …"
        return first.rstrip(" :.;,") or "the error was not told"

    @property
    def close(self) -> str:
        """The same as the end of a sentence."""
        return self.line if self.line.endswith(("…", "!", "?")) else f"{self.line}."

    @property
    def more(self) -> str | None:
        """The error where it says more than `line`."""
        return self.error if self.error is not None and self.error.strip().rstrip(" :.;,") != self.line else None


def ending_of(ended: str, manifest: Manifest) -> Ending:
    """How a run ended, of which the listing says `ended`."""
    if ended != "raised":
        return Ending(cast(How, ended))
    errors = [attempt.error or "" for attempt in manifest.last_attempts if attempt.how == "raised"]
    # One rank's own error says more than the Ctrl-C that then ended the others.
    own = [error for error in errors if not error.startswith("KeyboardInterrupt")]
    if errors and not own:
        return Ending("interrupted")
    error = next((error for error in own if error.strip()), None)
    if error is not None and len(error) > WHOLE_ERROR:
        left = len(error) - WHOLE_ERROR
        error = f"{error[:WHOLE_ERROR]}\n… and {left:,} more characters"
    return Ending("raised", error)


def recording_state(
    runs: Runs, manifest: Manifest, row: Mapping[str, Any], frame: pl.DataFrame, ending: Ending
) -> list[str]:
    """How the run ended, and what its recording lacks."""
    last = row["updates"]
    sentences = [_ending(ending, row)]
    short = cut_short(frame)
    if short:
        many = len(short) > 1
        which = f"Updates {format_ranges(short)} were" if many else f"Update {short[0]} was"
        whose, it = ("their", "they") if many else ("its", "it")
        sentences.append(
            f"{which} cut short when the training ended; {whose} figures are of the minibatches {it} got to."
        )
    attempts = len({attempt.attempt for attempt in manifest.attempts})
    if attempts > 1:
        begins = sorted({(a.attempt, a.from_update) for a in manifest.attempts})[1:]
        resumed = format_list([f"update {start}" for _, start in begins])
        sentences.append(f"It was resumed {format_count(attempts - 1, 'time')}, from {resumed}.")
    there = set(frame.get_column("update").to_list()) if frame.height else set()
    start = min((attempt.from_update for attempt in manifest.attempts), default=1)
    missing = [update for update in range(start, last + 1) if update not in there] if len(there) < last else []
    if missing:
        sentences.append(f"{format_count(len(missing), 'update')} of {last} not recorded: {format_ranges(missing)}.")
    for gap in runs.table("gaps").sort("first_update", "table_name").collect().iter_rows(named=True):
        sentences.append(_gap(gap))
    for attempt in manifest.attempts:
        lost = attempt.dropped
        if lost:
            own = f" (\u201c{lost.message}\u201d)" if lost.message else ""
            parts = [format_count(n, what) for n, what in ((lost.updates, "update"), (lost.rows, "row")) if n]
            failed = [format_count(n, what) for n, what in ((lost.calls, "call"), (lost.writes, "write")) if n]
            parts += [f"{format_list(failed)} failed"] if failed else []
            sentences.append(f"The recorder says it lost: {format_list(parts)}{own}.")
    return sentences


def cut_short(frame: pl.DataFrame) -> list[int]:
    """The updates that the training did not finish."""
    if "interrupted" not in frame.columns:
        return []
    return frame.filter(pl.col("interrupted").fill_null(False)).get_column("update").to_list()


def _ending(ending: Ending, row: Mapping[str, Any]) -> str:
    last = row["updates"]
    upto = f"update {last}" + (
        f" ({format_percent(row['progress'])} of training)" if row["progress"] is not None else ""
    )
    match ending.how:
        case "finished":
            return f"Finished at {upto}." if last else "Finished without a recorded update."
        case "raised":
            return f"Ended with an error after {upto}: {ending.close}"
        case "interrupted":
            return f"Was interrupted (Ctrl-C) after {upto}."
        case "live":
            return f"Still running, or its process has not ended: recorded up to {upto}."
        case "unknown":
            return f"Imported up to {upto}; what it was imported from does not tell how it ended."
    return (
        f"Killed: its process told no end. Recorded up to {upto}; what came after, at most the update in progress and "
        "what was not yet on disk, is not known."
    )


def _gap(gap: Mapping[str, Any]) -> str:
    first, last = gap["first_update"], gap["last_update"]
    span = f"update {first}" if first == last else f"updates {first}–{last}"
    what = "all tables" if gap["table_name"] == "*" else gap["table_name"]
    rows = f", {format_count(gap['rows'], 'row')}" if gap["rows"] is not None else ""
    own = f" (\u201c{gap['detail']}\u201d)" if gap["detail"] else ""
    return f"Not recorded: {what}, {span}{rows}: {str(gap['reason']).replace('_', ' ')}{own}."
