"""The report: a post-mortem a person can act on, as one HTML file, as Markdown with a folder of plots, or as JSON.

Covers: the HTML needs no network and no script, style and plots are in it; text from a run is never markup; nothing is
written into a recorded run.
Does not cover: what is said (`findings`, `verdict`), how a figure is drawn (`plots`).
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from esper_analytics.detection.replay import Result
from esper_analytics.errors import UsageError, writing
from esper_analytics.formatting import (
    escape_markdown,
    format_list,
    format_number,
    format_percent,
    format_time,
    json_text,
    printable,
    to_json,
)
from esper_analytics.plots import figures
from esper_analytics.plots.panels import PANELS, Panel
from esper_analytics.postmortem.findings import Against, findings
from esper_analytics.postmortem.model import Findings, RunFindings
from esper_analytics.postmortem.recording import interrupted_updates
from esper_analytics.postmortem.verdict import badges, tone
from esper_analytics.runs import open as open_runs
from esper_recorder.contract.rules.ruleset import profiles
from esper_recorder.storage.atomic import atomic_file, check_writable

MOST_RUNS: Final = 12
"""Runs with a section, the worst first; the others are in the overview only."""

MOST_INCIDENTS: Final = 40
"""Incidents listed in a section."""

ALWAYS_SHOWN: Final = ("return", "ratio", "kl", "explained_variance")
"""The curves shown of a run that did not fail; others only if something fired there."""


def report(
    result: Result, path: str | os.PathLike[str], *, against: Against | None = None, command: str | None = None
) -> Path:
    """Write the report of a replay and return its path.

    Args:
        result: the replay.
        path: FILE.html, FILE.md (its plots go to the folder `FILE-plots`) or FILE.json.
        against: another replay of the same runs, or `live`, to report what changes.
        command: the command line that reproduces the report. Default: composed from the replay.

    Raises:
        UsageError: an unknown suffix, a path that cannot be written or lies in a recorded run, nothing to compare with.
    """
    path = Path(path)
    write = _writer(path)
    command = compose_command(result, path, against) if command is None else command
    with writing(path):
        write(findings(result, against), path, command, datetime.now(UTC))
    return path


def plots_folder(path: Path) -> Path:
    """Return the folder of a Markdown report's plots."""
    return path.with_name(f"{path.stem}-plots")


def check_path(path: Path) -> None:
    """Raise UsageError if `report` could not write to the path; for checking before a long replay."""
    _writer(path)
    with writing(path):
        check_writable(path)


def compose_command(result: Result, path: Path, against: Against | None = None) -> str:
    """Compose the command line that reproduces the report; empty if the rules are neither shipped nor the runs' own."""
    arguments = ["esper", "report", str(result.runs.path)]
    if result.runs.ids != open_runs(result.runs.path).ids:
        arguments += [argument for run_id in result.runs.ids for argument in ("--run", run_id)]
    rules = _rules_arguments(result)
    other = ["", "live"] if against == "live" else [] if against is None else _rules_arguments(against)
    if rules is None or other is None or (against is not None and len(other) != 2):
        return ""
    arguments += [*rules, *(("--against", other[1]) if other else ())]
    return shlex.join([*arguments, "-o", str(path)])


def _rules_arguments(result: Result) -> list[str] | None:
    overrides = {json.dumps(dict(rules.overrides), sort_keys=True): rules for rules in result.rules_by_run.values()}
    if len(overrides) != 1:
        return None
    [changed] = overrides.values()
    values = [argument for k, v in changed.overrides.items() for argument in ("--set", f"{k}={to_json(v)}")]
    names = {rules.name for rules in result.rules_by_run.values()}
    if len(names) == 1 and names <= set(profiles()):
        return ["--rules", names.pop(), *values]
    recorded_with = {run_id: None if ran is None else ran[1] for run_id, ran in result.ran_with.items()}
    same = recorded_with == {run_id: rules.sha256 for run_id, rules in result.rules_by_run.items()}
    return [] if same and not values else None


# --- what a page shows of a run ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot in the page."""

    title: str
    caption: str
    marked: str
    """The incidents shaded in it."""
    image: Markup


class RunSection:
    """What the templates see of a run: its findings, and the plots."""

    def __init__(self, run: RunFindings, place: int, pictures: Any = None, timeline: Any = None) -> None:
        self.findings = run
        self.shown = place <= MOST_RUNS
        self.pictures = pictures
        self.timeline = timeline
        self.badges = badges(run)
        self.tone = tone(run)
        self.whole_error = run.ending.whole
        self.cut_short = bool(interrupted_updates(run.frames.updates))
        self.unmeasured = [panel.title for panel in run.frames.unmeasured] if run.updates else []
        chosen = {panel.name for panel in _chosen(run)}
        self.left_out = [panel.title for panel in run.frames.panels if panel.name not in chosen]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.findings, name)


def _chosen(run: RunFindings) -> list[Panel]:
    """The panels a run's section shows."""
    if run.failed or not run.evaluated:
        return list(run.frames.panels)
    return [panel for panel in run.frames.panels if panel.name in ALWAYS_SHOWN or run.frames.marks(panel)]


def _marked(run: RunFindings, panel: Panel) -> str:
    """The rules whose incidents a panel shades, the earliest first."""
    names: dict[str, str] = {}
    for row, _ in run.frames.marked(panel):
        names.setdefault(row["rule"], f"{row['rule']} ({row['severity']}) from {row['onset_update']}")
    return format_list(list(names.values()), most=4) if names else ""


def _pictures(run: RunFindings, place: int) -> list[Picture]:
    pictures = []
    for panel in _chosen(run):
        alt = f"{panel.title} of {run.name} over its updates"
        image = figures.as_svg(figures.single(run.frames, panel), f"r{place}-{panel.name}", alt)
        pictures.append(Picture(panel.title, panel.caption, _marked(run, panel), Markup(image)))
    return pictures


def _compared(runs: Sequence[RunFindings]) -> list[Picture]:
    frames = [run.frames for run in runs if run.updates][: len(figures.RUN_COLOURS)]
    pictures: list[Picture] = []
    if len(frames) < 2:
        return pictures
    for panel in PANELS:
        if panel.name in figures.COMPARED[:4] and any(panel in run.panels for run in frames):
            title = panel.title if len(panel.lines) == 1 else f"{panel.title}, {panel.lines[0].label}"
            alt = f"{title} of {format_list([run.name for run in frames])}"
            image = figures.as_svg(figures.compare_single(frames, panel), f"c-{panel.name}", alt)
            pictures.append(Picture(title, "", "", Markup(image)))
    return pictures


# --- formats ----------------------------------------------------------------------------------------------------------

Writer = Callable[[Findings, Path, str, datetime], None]


def _html(content: Findings, path: Path, command: str, now: datetime) -> None:
    sections = []
    for place, run in enumerate(content.runs, 1):
        pictures, timeline = None, None
        if place <= MOST_RUNS:
            pictures = _pictures(run, place)
            prefix, alt = f"r{place}-timeline", f"When which rule fired in {run.name}"
            timeline = Markup(figures.as_svg(figures.timeline(run.frames), prefix, alt)) if run.incidents else None
        sections.append(RunSection(run, place, pictures, timeline))
    context = _context(content, sections, path, command, now)
    colours = figures.run_colours([run.frames for run in content.runs if run.updates])
    context |= {"css": Markup(_resource("report.css")), "compared": _compared(content.runs), "colours": colours}
    _write(path, _environment(html=True).get_template("report.html.j2").render(context))


def _markdown(content: Findings, path: Path, command: str, now: datetime) -> None:
    folder = plots_folder(path)
    sections = []
    for place, run in enumerate(content.runs, 1):
        link = None
        if place <= MOST_RUNS and run.frames.panels:
            folder.mkdir(exist_ok=True)
            # The run_id comes from the run: a separator in it must not lead out of the folder.
            picture = folder / (re.sub(r"[^A-Za-z0-9_-]", "-", run.run_id) + ".png")
            figures.save(figures.postmortem(run.frames), picture)
            link = quote(os.fsencode(f"{folder.name}/{picture.name}"))
        sections.append(RunSection(run, place, link))
    context = _context(content, sections, path, command, now)
    _write(path, _environment(html=False).get_template("report.md.j2").render(context))


def _json(content: Findings, path: Path, command: str, now: datetime) -> None:
    names = [f.name for f in fields(RunFindings) if f.name not in ("frames", "ending", "grouped")]
    runs = []
    for run in content.runs:
        facts = {name: _as_data(getattr(run, name)) for name in names}
        runs.append(facts | {"counts": run.counts, "evaluated": run.evaluated, "failed": run.failed})
    whole = {
        "title": _title(content),
        "written": now.isoformat(timespec="seconds"),
        "esper_analytics": _version(),
        "command": command or None,
        "against": content.against,
        "settings": content.settings,
        "problems": content.problems,
        "runs": runs,
    }
    _write(path, json_text(whole, indent=1) + "\n")


def _as_data(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_data(item) for item in value]
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


_FORMATS: Final[Mapping[str, Writer]] = {".html": _html, ".md": _markdown, ".json": _json}


def _writer(path: Path) -> Writer:
    if path.suffix.lower() not in _FORMATS:
        ending = f"ends in {path.suffix}" if path.suffix else "has no ending"
        raise UsageError(f"{path} {ending}; a report is written to FILE{', FILE'.join(_FORMATS)}.")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; a report is a file.")
    if not path.resolve().parent.is_dir():
        raise UsageError(f"There is no folder {path.resolve().parent} to write {path.name} to.")
    return _FORMATS[path.suffix.lower()]


def _context(
    content: Findings, sections: Sequence[RunSection], path: Path, command: str, now: datetime
) -> dict[str, Any]:
    folder = path.resolve().parent
    evaluated_with: dict[str, list[str]] = {}
    for run in content.runs:
        evaluated_with.setdefault(run.evaluated_with, []).append(run.name)
    return {
        "title": _title(content),
        "runs": sections,
        "runs_shown": min(len(sections), MOST_RUNS),
        "not_shown": max(len(sections) - MOST_RUNS, 0),
        "most_incidents": MOST_INCIDENTS,
        "against": content.against,
        "settings": [*content.settings.items()],
        "rules": [(text, names if len(evaluated_with) > 1 else []) for text, names in evaluated_with.items()],
        "problems": content.problems,
        "command": command,
        "written": format_time(now),
        "version": _version(),
        # Relative, so that a report and its runs may be moved together.
        "link": lambda file: quote(os.fsencode(os.path.relpath(Path(file).resolve(), folder))),
    }


def _title(content: Findings) -> str:
    if len(content.runs) == 1:
        return f"Post-mortem of {content.runs[0].name}"
    others = [run for run in content.runs if not run.failed]
    counts = [(len(content.runs) - len(others), "failed"), (sum(not run.evaluated for run in others), "not evaluated")]
    parts = [f"{n} {what}" for n, what in counts if n] or ["none failed"]
    ended = [(sum(run.ended == how for run in others), how) for how in ("interrupted", "killed")]
    parts += [f"{n} {how}" for n, how in ended if n]
    return f"Post-mortem of {len(content.runs)} runs: {', '.join(parts)}"


def _version() -> str:
    return metadata.version("esper-analytics")


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())


# --- templates --------------------------------------------------------------------------------------------------------


def _environment(*, html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=html,
        finalize=_literal_html if html else _literal_markdown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": format_number,
        "percent": format_percent,
        "listed": _listed,
        "action": _action,
        "raw": Markup,
        "indented": _indented,
    }
    return environment


def _listed(items: Iterable[str], most: int = 6) -> str:
    return format_list(list(items), most=most)


def _action(action: Sequence[float] | None) -> str:
    return "not measured" if action is None else ", ".join(format_number(part, 3) for part in action)


def _indented(text: str) -> Markup:
    """Indent text to a code block of Markdown, where nothing is markup."""
    return Markup("\n".join(f"    {printable(line, keep=chr(9))}" for line in text.splitlines()))


def _resource(name: str) -> str:
    return (resources.files("esper_analytics.reports") / name).read_text(encoding="utf-8")


def _literal_html(value: Any) -> Any:
    return value if isinstance(value, Markup) or not isinstance(value, str) else printable(value, keep="\n\t")


def _literal_markdown(value: Any) -> Any:
    return value if isinstance(value, Markup) or not isinstance(value, str) else escape_markdown(value)
