"""How a run is marked at first sight: its badges, and the colour of its card."""

from __future__ import annotations

from esper_analytics.postmortem.model import RunFindings
from esper_recorder.contract.rules.model import Severity


def badges(run: RunFindings) -> list[tuple[str, str]]:
    """(class, words) of each badge of a run."""
    found = []
    ended = {"raised": "ended with an error", "killed": "killed", "interrupted": "interrupted"}.get(run.ended)
    if run.ended == "raised":
        found.append(("critical", str(ended)))
    blind = len({rule.rule for rule in run.blind})
    if not run.judged:
        found.append(("unknown", "not judged"))
    elif run.severity:
        found.append((run.severity, run.severity))
    elif blind:
        found.append(("unknown", f"nothing fired, {blind} of {run.rules_count} rules blind"))
    else:
        found.append(("unknown" if ended else "", "nothing fired"))
    if run.doubts:
        found.append(("unknown", "read with care"))
    if ended and run.ended != "raised":
        found.append(("ended", ended))
    return found


def tone(run: RunFindings) -> str:
    """The class of a run's card."""
    if run.broken:
        return Severity.CRITICAL
    if run.judged and run.severity == Severity.WARNING:
        return Severity.WARNING
    if run.ended in ("killed", "interrupted"):
        return "ended"
    return "unknown" if not run.judged or (run.blind and not run.severity) else run.severity or ""
