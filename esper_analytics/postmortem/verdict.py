"""The verdict: what a report says of a run before anything else, in a few lines, a badge or two and a colour."""

from __future__ import annotations

from collections.abc import Sequence

from esper_analytics.formatting import format_count, format_list, format_percent
from esper_analytics.postmortem.caveats import caveat_text
from esper_analytics.postmortem.model import FirstFiring, RuleCoverage, RunFindings
from esper_recorder.contract.rules.model import Severity


def verdict(run: RunFindings) -> str:
    """Compose the verdict from everything else that was found."""
    how, last = run.ended, run.updates
    recorded = run.frames.frame.height
    if not recorded:
        ended = {"raised": f"The training ended with an error: {run.ending.clause} "}
        ended["interrupted"] = "It was interrupted (Ctrl-C). "
        return f"{ended.get(how, '')}No PPO update was recorded, so no rule could be evaluated."
    parts = _firings(run, recorded)
    if how == "raised":
        # Unless something critical fired, nothing says more than the error.
        error = f"The training ended with an error after update {last}: {run.ending.clause}"
        parts = [*parts, error] if run.severity == Severity.CRITICAL else [error, *parts]
    parts += [caveat_text(caveat) for caveat in run.caveats]
    if run.evaluated:
        without_data, not_applicable = _names(run.without_data), _names(run.not_applicable)
        not_applicable = [name for name in not_applicable if name not in without_data]
        for names, what in ((without_data, "had no data"), (not_applicable, "did not apply")):
            parts += [f"{len(names)} of {run.rules_count} rules {what}: {format_list(names, most=4)}."] if names else []
    ended = {
        "killed": f"The process was killed after update {last}.",
        "interrupted": f"The training was interrupted (Ctrl-C) after update {last}.",
        "live": f"The run is still live; this covers it up to update {last}.",
    }
    return " ".join([*parts, *([ended[how]] if how in ended else [])])


def badges(run: RunFindings) -> list[tuple[str, str]]:
    """List the (css class, text) of each badge of a run."""
    ended = {"raised": "ended with an error", "killed": "killed", "interrupted": "interrupted"}.get(run.ended)
    without_data = len(_names(run.without_data))
    marks = [("critical", "ended with an error")] if run.ended == "raised" else []
    if not run.evaluated:
        marks.append(("unknown", "not evaluated"))
    elif run.severity:
        marks.append((run.severity, run.severity))
    elif without_data:
        marks.append(("unknown", f"nothing fired, {without_data} of {run.rules_count} rules without data"))
    else:
        marks.append(("unknown" if ended else "", "nothing fired"))
    if run.caveats:
        marks.append(("unknown", "caveats"))
    if ended and run.ended != "raised":
        marks.append(("ended", ended))
    return marks


def tone(run: RunFindings) -> str:
    """Return the css class of a run's card."""
    if run.failed:
        return Severity.CRITICAL
    if run.evaluated and run.severity == Severity.WARNING:
        return Severity.WARNING
    if run.ended in ("killed", "interrupted"):
        return "ended"
    return "unknown" if not run.evaluated or (run.without_data and not run.severity) else run.severity or ""


def _firings(run: RunFindings, recorded: int) -> list[str]:
    first = run.first_failure
    if first is None and not run.evaluated:
        return [f"Nothing could be evaluated: none of the {run.rules_count} rules had data."]
    if first is None:
        return [f"Nothing fired in {format_count(recorded, 'update')}."]
    incidents = format_count(len(run.incidents), "incident").capitalize()
    if first.severity != Severity.CRITICAL:
        return [
            f"Nothing critical in {format_count(recorded, 'update')}.",
            f"{incidents}; the first was {first.rule} ({first.severity}) at {_when(first)}.",
        ]
    parts = [f"First failure: {first.rule} at {_when(first)}: {_what(first)}."]
    parts.append(f"{incidents}, {run.counts['critical']} critical.")
    earlier = [f"{f.rule} ({f.severity}) at update {f.update}" for f in run.first_firings if f.update < first.update]
    return [*parts, f"Earlier signs: {format_list(earlier, most=3)}."] if earlier else parts


def _names(rules: Sequence[RuleCoverage]) -> list[str]:
    return list(dict.fromkeys(rule.rule for rule in rules))


def _when(firing: FirstFiring) -> str:
    facts = [f"{format_percent(firing.progress)} of training"] if firing.progress is not None else []
    facts += [f"phase {firing.phase}"] if firing.phase else []
    return f"update {firing.update}" + (f" ({', '.join(facts)})" if facts else "")


def _what(firing: FirstFiring) -> str:
    keys = f" of {format_list(firing.keys, most=3)}" if firing.keys else ""
    comparison = firing.comparison
    for sign, words in ((" > ", ", above "), (" < ", ", below "), (" vs ", ", threshold ")):
        comparison = comparison.replace(sign, words)
    return f"{firing.reads}{keys} was {comparison}"
