"""What the command says beside the data: that nothing was found, how runs ended, which run a name was taken for, and
that runs mean different things by one name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import polars as pl

from esper_analytics.formatting import format_count, format_list, format_ranges, shorten
from esper_analytics.postmortem.recording import ending_of

if TYPE_CHECKING:
    from esper_analytics.detection.replay import Result
    from esper_analytics.runs import Runs


def settle(runs: Runs, asked: Iterable[str]) -> tuple[list[str], list[str]]:
    """(words that each mean one run, what to say about it): of several runs of one name the newest is taken."""
    words, told = [], []
    for word in asked:
        [run_id] = runs[word].ids
        namesakes = runs.of_name(word)
        if len(namesakes) > 1 and namesakes[0] == run_id:
            told.append(f"{len(namesakes)} runs are named {word}; the newest, {run_id}, is taken")
            words.append(run_id)
        else:
            words.append(word)
    return words, told


def nothing_found(result: Result, what: str) -> str:
    """The sentence for a replay whose table `what` is empty."""
    if what == "diff":
        return "no difference"
    run_ids = list(result.rules_by_run)
    updates = result.runs.table("ppo_updates").filter(pl.col("run_id").is_in(run_ids))
    seen = updates.select(pl.struct("run_id", "update").n_unique()).collect().item()
    names = list(dict.fromkeys(rules.name for rules in result.rules_by_run.values()))
    rules = f"the rules {names[0]}" if len(names) == 1 else "the rules they ran with"
    return f"no {what} in {format_count(seen, 'update')} of {format_count(len(run_ids), 'run')} under {rules}"


def endings(runs: Runs, width: int) -> Iterator[str]:
    """A line, of at most `width` characters, for each run that did not end well."""
    manifests = runs.manifests()
    for run_id, ended in runs.list().select("run_id", "ended").iter_rows():
        if run_id not in manifests:
            continue  # it came meanwhile
        ending = ending_of(ended, manifests[run_id])
        if ending.how == "raised":
            yield shorten(f"{run_id} ended with an error: {ending.line}", width)
        elif ending.how == "interrupted":
            yield shorten(f"{run_id} was interrupted", width)
        elif ending.how == "killed":
            yield shorten(f"{run_id} was killed; its last rows may be missing", width)


def not_compared(runs: Runs) -> Iterator[str]:
    """A line for each run whose live alarms cannot be compared: it had no rules, or its updates were not recorded."""
    from esper_analytics.detection.diff import alarms_without_update, runs_without_rules

    for run_id in runs_without_rules(runs):
        yield f"{run_id}: left out of the comparison: it ran with no rules, so it has no alarms of its own"

    for run_id, told in alarms_without_update(runs).group_by("run_id", maintain_order=True).agg("update").iter_rows():
        updates = sorted(set(told))
        which = f"update{'s' if len(updates) > 1 else ''} {format_ranges(updates)}"
        alarms = format_count(len(told), "live alarm")
        yield f"{run_id}: left out of the comparison: {alarms} of {which}, which the recording lacks"


def definitions(runs: Runs) -> str | None:
    """A sentence where the runs follow several libraries' definitions, so that their figures are not one thing."""
    told = runs.table("runs").select("definition").collect()["definition"].drop_nulls()
    names = sorted(told.unique())
    if len(names) < 2:
        return None
    groups = format_list([f"{name} ({format_count(int((told == name).sum()), 'run')})" for name in names])
    return f"approx_kl, clip_fraction, entropy and losses follow different definitions here: {groups}"
