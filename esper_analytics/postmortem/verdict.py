"""The verdict: what a person is told of a run before anything else, in a few sentences."""

from __future__ import annotations

from collections.abc import Sequence

from esper_analytics.formatting import format_count, format_list, format_percent
from esper_analytics.postmortem.caveats import sentence
from esper_analytics.postmortem.model import Doubt, FirstFiring, Incident, Unjudged
from esper_analytics.postmortem.recording import Ending
from esper_recorder.contract.rules.model import Severity


def verdict(
    updates: int,
    last: int,
    ending: Ending,
    first: Sequence[FirstFiring],
    incidents: Sequence[Incident],
    unread: Sequence[Unjudged],
    rules: int,
    doubts: Sequence[Doubt] = (),
) -> str:
    """What became of a run with so many recorded updates, the last of them `last`, held against so many rules."""
    if not updates:
        error = f"The training ended with an error: {ending.close} " if ending.how == "raised" else ""
        ctrl_c = "It was interrupted (Ctrl-C). " if ending.how == "interrupted" else ""
        return f"{error}{ctrl_c}No PPO update was recorded, so nothing could be judged."
    fired = _fired(updates, first, incidents, unread, rules)
    if ending.how == "raised":
        # Nothing that fired says more than the error does, where nothing critical did.
        error = f"The training ended with an error after update {last}: {ending.close}"
        broke = any(f.severity == Severity.CRITICAL for f in first)
        fired = [*fired, error] if broke else [error, *fired]
    sentences = [*fired, *(sentence(doubt) for doubt in doubts), *_silent(unread, rules)]
    match ending.how:
        case "killed":
            sentences.append(f"The process was killed after update {last}.")
        case "interrupted":
            sentences.append(f"The training was interrupted (Ctrl-C) after update {last}.")
        case "live":
            sentences.append(f"It is still running; this is how it stood at update {last}.")
    return " ".join(sentences)


def _fired(
    updates: int, first: Sequence[FirstFiring], incidents: Sequence[Incident], unread: Sequence[Unjudged], rules: int
) -> list[str]:
    critical = sum(incident.severity == Severity.CRITICAL for incident in incidents)
    serious = [f for f in first if f.severity == Severity.CRITICAL]
    if serious:
        one = serious[0]
        sentences = [f"The first thing that broke was {one.rule} at {_when(one)}: {_what(one)}."]
        sentences.append(f"{format_count(len(incidents), 'incident').capitalize()}, {critical} critical.")
        earlier = [f for f in first if f.update < one.update]
        if earlier:
            signs = format_list([f"{f.rule} ({f.severity}) at update {f.update}" for f in earlier], most=3)
            sentences.append(f"Signs before that: {signs}.")
        return sentences
    if first:
        one = first[0]
        began = f"the first was {one.rule} ({one.severity}) at {_when(one)}"
        nothing = f"Nothing critical in {format_count(updates, 'update')}."
        return [nothing, f"{format_count(len(incidents), 'incident').capitalize()}; {began}."]
    if len({one.rule for one in unread}) == rules:
        return [f"Nothing could be judged: not one of the {rules} rules found what it reads."]
    return [f"Nothing fired in {format_count(updates, 'update')}."]


def _silent(unread: Sequence[Unjudged], rules: int) -> list[str]:
    if len({one.rule for one in unread}) == rules:
        return []
    blind = list(dict.fromkeys(one.rule for one in unread if not one.calm))
    calm = list(dict.fromkeys(one.rule for one in unread if one.calm and one.rule not in blind))
    sentences = []
    if blind:
        sentences.append(f"{len(blind)} of {rules} rules could never look: {format_list(blind, most=4)}.")
    if calm:
        sentences.append(f"{len(calm)} of {rules} rules had nothing to look at: {format_list(calm, most=4)}.")
    return sentences


def _when(firing: FirstFiring) -> str:
    known = [
        *([f"{format_percent(firing.progress)} of training"] if firing.progress is not None else []),
        *([f"phase {firing.phase}"] if firing.phase else []),
    ]
    return f"update {firing.update}" + (f" ({', '.join(known)})" if known else "")


def _what(firing: FirstFiring) -> str:
    keys = f" of {format_list(firing.keys, most=3)}" if firing.keys else ""
    words = (
        firing.comparison.replace(" > ", ", above ").replace(" < ", ", below ").replace(" against ", ", held against ")
    )
    return f"{firing.reads}{keys} was {words}"
