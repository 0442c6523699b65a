"""How runs ended and what their recordings lack, as text; and what the command says on stderr about an answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import polars as pl

from esper_analytics.formatting import format_count, format_list, format_percent, format_ranges, format_spans, shorten
from esper_analytics.runs import Runs
from esper_recorder.contract.spans import count, spans_of, without
from esper_recorder.storage.manifest import Manifest

if TYPE_CHECKING:
    from esper_analytics.detection.replay import Result

FIRST_LINE: Final = 160
"""Characters of an error within a line of text."""

WHOLE_ERROR: Final = 2_000
"""Characters of an error in a block."""

EndedAs = Literal["finished", "raised", "interrupted", "killed", "live", "unknown"]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended.

    Attributes:
        how: `raised` is an error of the training; `interrupted` is Ctrl-C, which says nothing about the training;
            `unknown` is an imported run whose source does not say.
        error: what was raised, shortened; None without an error.
    """

    how: EndedAs
    error: str | None = None

    @property
    def line(self) -> str:
        """The first line of the error, shortened, without a final full stop or colon."""
        first = next((line.strip() for line in (self.error or "").splitlines() if line.strip()), "")
        return shorten(first.rstrip(" :.;,"), FIRST_LINE) or "the error was not recorded"

    @property
    def clause(self) -> str:
        """The same with a full stop."""
        return self.line if self.line.endswith(("…", "!", "?")) else f"{self.line}."

    @property
    def whole(self) -> str | None:
        """The error if it says more than `line`."""
        return self.error if self.error is not None and self.error.strip().rstrip(" :.;,") != self.line else None


def ending_of(ended: str, manifest: Manifest) -> Ending:
    """Classify how a run ended; `ended` is its value in the table `runs`."""
    if ended != "raised":
        return Ending(cast(EndedAs, ended))
    errors = [attempt.error or "" for attempt in manifest.last_attempts if attempt.how == "raised"]
    # When one rank fails, the launcher ends the others by Ctrl-C: only that one's error says why.
    causes = [error for error in errors if not error.startswith("KeyboardInterrupt")]
    if errors and not causes:
        return Ending("interrupted")
    error = next((error for error in causes if error.strip()), None)
    if error is not None and len(error) > WHOLE_ERROR:
        error = f"{error[:WHOLE_ERROR]}\n… and {len(error) - WHOLE_ERROR:,} more characters"
    return Ending("raised", error)


def interrupted_updates(frame: pl.DataFrame) -> list[int]:
    """The updates that the training did not finish, from rows of `ppo_updates`."""
    return frame.filter(pl.col("interrupted").fill_null(False)).get_column("update").drop_nulls().to_list()


# --- what a recording lacks -------------------------------------------------------------------------------------------


def describe_recording(runs: Runs, row: Mapping[str, Any], frame: pl.DataFrame) -> list[str]:
    """Say how a run ended and what its recording lacks.

    Args:
        runs: that run.
        row: its row of the table `runs`.
        frame: its rows of `ppo_updates`, with `update` and `interrupted` at least.
    """
    manifest = runs.manifest(row["run_id"])
    lines = [_ending_line(ending_of(row["ended"], manifest), row)]
    if short := interrupted_updates(frame):
        updates, whose, it = ("Updates", "their", "they") if len(short) > 1 else ("Update", "its", "it")
        lines.append(
            f"{updates} {format_ranges(short)} cut short by the end of the training; {whose} metrics cover the "
            f"minibatches {it} got to."
        )
    attempts = manifest.attempts
    resumes = len({attempt.attempt for attempt in attempts}) - 1
    if resumes > 0:
        starts = sorted({(attempt.attempt, attempt.from_update) for attempt in attempts})[1:]
        resumed = format_list([f"update {start}" for _, start in starts])
        lines.append(f"Resumed {format_count(resumes, 'time')}, from {resumed}.")
    recorded, last = frame.get_column("update"), row["updates"]
    start = min((attempt.from_update for attempt in attempts), default=1)
    if missing := without([(start, last)], spans_of(recorded.drop_nulls())):
        lines.append(f"{format_count(count(missing), 'update')} of {last} not recorded: {format_spans(missing)}.")
    if unnumbered := recorded.null_count():
        rows, lack = ("row", "has") if unnumbered == 1 else ("rows", "have")
        lines.append(f"{unnumbered:,} {rows} of ppo_updates {lack} no update, and {lack} no place in what follows.")
    gaps = runs.table("gaps").sort("first_update", "table_name").collect()
    lines += [_gap_line(gap) for gap in gaps.iter_rows(named=True)]
    for dropped in (attempt.dropped for attempt in attempts if attempt.dropped):
        counts = [(dropped.updates, "update"), (dropped.rows, "row")]
        counts += [(dropped.calls, "failed call"), (dropped.writes, "failed write")]
        parts = format_list([format_count(n, what) for n, what in counts if n])
        lines.append(f"Dropped by the recorder: {parts}{f' (“{dropped.message}”)' if dropped.message else ''}.")
    return lines


def _ending_line(ending: Ending, row: Mapping[str, Any]) -> str:
    done = f" ({format_percent(row['progress'])} of training)" if row["progress"] is not None else ""
    last = f"update {row['updates']}{done}"
    match ending.how:
        case "finished":
            return f"Finished at {last}." if row["updates"] else "Finished without a recorded update."
        case "raised":
            return f"Ended with an error after {last}: {ending.clause}"
        case "interrupted":
            return f"Interrupted (Ctrl-C) after {last}."
        case "live":
            return f"Still running, or its process has not exited: recorded up to {last}."
        case "unknown":
            return f"Imported up to {last}; the source does not say how the run ended."
    return (
        f"Killed: the process recorded no end. Recorded up to {last}; anything later, at most the update in progress "
        "and what had not reached the disk, is missing."
    )


def _gap_line(gap: Mapping[str, Any]) -> str:
    first, last = gap["first_update"], gap["last_update"]
    span = (
        "unknown updates"
        if None in (first, last)
        else f"update {first}"
        if first == last
        else f"updates {first}–{last}"
    )
    table = "all tables" if gap["table_name"] == "*" else gap["table_name"]
    rows = f", {format_count(gap['rows'], 'row')}" if gap["rows"] is not None else ""
    detail = f" (“{gap['detail']}”)" if gap["detail"] else ""
    return f"Gap: {table}, {span}{rows}: {str(gap['reason']).replace('_', ' ')}{detail}."


# --- notices beside an answer -----------------------------------------------------------------------------------------


def resolve_names(runs: Runs, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Resolve each name to one run, the newest if several have it; return (names or run_ids, notices)."""
    resolved, notices = [], []
    for name in names:
        [run_id] = runs[name].ids
        namesakes = runs.of_name(name)
        ambiguous = len(namesakes) > 1 and namesakes[0] == run_id
        resolved.append(run_id if ambiguous else name)
        if ambiguous:
            notices.append(f"{len(namesakes)} runs are named {name}; using the newest, {run_id}")
    return resolved, notices


def describe_empty(result: Result, view: str) -> str:
    """Say that a view of a replay has no rows, and over what."""
    if view == "diff":
        return "no difference"
    run_ids = list(result.rules_by_run)
    updates = result.runs.table("ppo_updates").filter(pl.col("run_id").is_in(run_ids))
    evaluated = updates.select(pl.struct("run_id", "update").n_unique()).collect().item()
    names = {rules.name for rules in result.rules_by_run.values()}
    rules = f"the rules {names.pop()}" if len(names) == 1 else "the rules they ran with"
    return f"no {view} in {format_count(evaluated, 'update')} of {format_count(len(run_ids), 'run')} with {rules}"


def describe_endings(runs: Runs, width: int) -> Iterator[str]:
    """Yield a line, of at most `width` characters, for each run that did not end well."""
    manifests = runs.manifests()
    for run_id, ended in runs.list().select("run_id", "ended").iter_rows():
        if run_id not in manifests:
            continue  # it started after the manifests were listed
        ending = ending_of(ended, manifests[run_id])
        lines = {
            "raised": f"{run_id} ended with an error: {ending.line}",
            "interrupted": f"{run_id} was interrupted",
            "killed": f"{run_id} was killed; its last rows may be missing",
        }
        if ending.how in lines:
            yield shorten(lines[ending.how], width)


def describe_not_compared(runs: Runs) -> Iterator[str]:
    """Yield a line for each run whose live alarms cannot be compared: it had no rules, or lacks the updates."""
    from esper_analytics.detection.diff import alarms_without_update, runs_without_rules

    for run_id in runs_without_rules(runs):
        yield f"{run_id}: not compared: it ran without rules, so it has no alarms"

    for run_id, alarms in alarms_without_update(runs).group_by("run_id", maintain_order=True).agg("update").iter_rows():
        updates = set(alarms) - {None}
        which = f"update{'s' if len(updates) > 1 else ''} {format_ranges(updates)}" if updates else "unknown updates"
        yield f"{run_id}: not compared: {format_count(len(alarms), 'live alarm')} of {which}, not in the recording"


def describe_definitions(runs: Runs) -> str | None:
    """Warn if the runs follow several libraries' definitions of their metrics; None if they agree."""
    definitions = runs.table("runs").select("definition").collect()["definition"].drop_nulls()
    names = sorted(definitions.unique())
    if len(names) < 2:
        return None
    groups = format_list([f"{name} ({format_count(int((definitions == name).sum()), 'run')})" for name in names])
    return f"approx_kl, clip_fraction, entropy and losses follow different definitions here: {groups}"
