"""The report: a post-mortem a person can act on, as one HTML file, as Markdown with its plots beside it, or as JSON.

The HTML needs no network and no script: style and plots are in it. All three say what `findings` found.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from esper_analytics.detection.replay import Result
from esper_analytics.errors import UsageError
from esper_analytics.formatting import format_list, format_number, format_percent, format_time, to_json
from esper_analytics.plots import figures
from esper_analytics.plots.panels import PANELS, Panel
from esper_analytics.postmortem.badges import badges, tone
from esper_analytics.postmortem.findings import Against, findings
from esper_analytics.postmortem.model import Findings, RunFindings
from esper_analytics.postmortem.recording import cut_short
from esper_analytics.runs import open as open_runs
from esper_recorder.contract.rules.ruleset import profiles
from esper_recorder.storage.atomic import atomic_file, check_writable

MOST_RUNS: Final = 12
"""Runs with a section of their own, the worst first; the others are in the overview."""

MOST_INCIDENTS: Final = 40
"""Incidents listed in a section."""

ALWAYS_SHOWN: Final = ("return", "ratio", "kl", "explained_variance")
"""The curves of a run that nothing critical happened to; others only where something fired."""


def report(
    result: Result, path: str | os.PathLike[str], *, against: Against | None = None, command: str | None = None
) -> Path:
    """Write the report of a replay.

    Args:
        result: what the rules found.
        path: FILE.html, FILE.md (its plots go into `FILE-plots/`) or FILE.json.
        against: another replay of the same runs, or `live`: what changes is told too.
        command: the command line that makes this report again; composed from the replay where it is not given.

    Returns:
        The path.

    Raises:
        UsageError: an unknown suffix, a path that cannot be written or lies in a recorded run, nothing to compare with.
    """
    path = Path(path)
    write = _writer(path)
    command = compose_command(result, path, against) if command is None else command
    try:
        write(findings(result, against), path, command, datetime.now(UTC))
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.") from error
    return path


def plots_folder(path: Path) -> Path:
    """Where the plots of a report in Markdown are put: beside it."""
    return path.with_name(f"{path.stem}-plots")


def check_path(path: Path) -> None:
    """Raises UsageError where `report` would not write to the path: told before the work, not after it."""
    _writer(path)
    try:
        check_writable(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.") from error


def compose_command(result: Result, path: Path, against: Against | None = None) -> str:
    """The command line that makes the report again; empty where the rules are neither shipped nor the runs' own."""
    words = ["esper", "report", str(result.runs.path)]
    if result.runs.ids != open_runs(result.runs.path).ids:
        words += [word for run_id in result.runs.ids for word in ("--run", run_id)]
    rules = _rule_words(result)
    if rules is None:
        return ""
    words += rules
    if against == "live":
        words += ["--against", "live"]
    elif against is not None:
        other = _rule_words(against)
        if other is None or len(other) != 2:
            return ""
        words += ["--against", other[1]]
    return shlex.join([*words, "-o", str(path)])


def _rule_words(result: Result) -> list[str] | None:
    own = {run_id: ran for run_id, ran in result.ran_with.items() if ran is not None}
    overrides = {json.dumps(dict(rules.overrides), sort_keys=True): rules for rules in result.rules_by_run.values()}
    if len(overrides) != 1:
        return None
    sets = [f"{key}={to_json(value)}" for key, value in next(iter(overrides.values())).overrides.items()]
    changes = [word for one in sets for word in ("--set", one)]
    names = {rules.name for rules in result.rules_by_run.values()}
    if len(names) == 1 and names <= set(profiles()):
        return ["--rules", names.pop(), *changes]
    if not changes and all(own.get(run_id, (None, None))[1] == r.sha256 for run_id, r in result.rules_by_run.items()):
        return []
    return None


# --- what a page shows of a run -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot in the page."""

    title: str
    caption: str
    marked: str
    """The incidents shaded in it."""
    image: Markup


class _Page:
    """What the templates see of a run: its findings, and the plots."""

    def __init__(self, run: RunFindings, *, shown: bool, pictures: Any, timeline: Any = None) -> None:
        self.findings = run
        self.shown = shown
        self.pictures = pictures
        self.timeline = timeline
        self.short = not run.broken
        self.badges = badges(run)
        self.tone = tone(run)
        self.whole_error = run.ending.more
        self.cut_short = bool(cut_short(run.frames.frame))
        self.unmeasured = [panel.title for panel in run.frames.unmeasured] if run.updates else []
        chosen = {panel.name for panel in _chosen(run)}
        self.left_out = [panel.title for panel in run.frames.panels if panel.name not in chosen]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.findings, name)


def _chosen(run: RunFindings) -> list[Panel]:
    """The panels a run's section shows."""
    if run.broken or not run.judged:
        return list(run.frames.panels)
    return [panel for panel in run.frames.panels if panel.name in ALWAYS_SHOWN or run.frames.marks(panel)]


def _marked(run: RunFindings, panel: Panel) -> str:
    """The rules whose incidents a panel shades, the earliest first."""
    names: dict[str, str] = {}
    for row, _ in run.frames.marked(panel):
        names.setdefault(row["rule"], f"{row['rule']} ({row['severity']}) from {row['onset_update']}")
    return format_list(list(names.values()), most=4) if names else ""


def _pictures(run: RunFindings, place: int) -> list[Picture]:
    found = []
    for panel in _chosen(run):
        alt = f"{panel.title} of {run.name} over its updates"
        image = figures.as_svg(figures.single(run.frames, panel), f"r{place}-{panel.name}", alt)
        found.append(Picture(panel.title, panel.caption, _marked(run, panel), Markup(image)))
    return found


def _compared(runs: Sequence[RunFindings]) -> list[Picture]:
    chosen = [run.frames for run in runs if run.updates][: len(figures.RUN_COLOURS)]
    if len(chosen) < 2:
        return []
    found = []
    for panel in PANELS:
        if panel.name in figures.COMPARED[:4] and any(panel in run.panels for run in chosen):
            title = panel.title if len(panel.lines) == 1 else f"{panel.title}, {panel.lines[0].label}"
            alt = f"{title} of {format_list([run.name for run in chosen])}"
            image = figures.as_svg(figures.compare_single(chosen, panel), f"c-{panel.name}", alt)
            found.append(Picture(title, "", "", Markup(image)))
    return found


# --- formats --------------------------------------------------------------------------------------------------------

Writer = Callable[[Findings, Path, str, datetime], None]


def _html(found: Findings, path: Path, command: str, now: datetime) -> None:
    pages = []
    for place, run in enumerate(found.runs, 1):
        if place > MOST_RUNS:
            pages.append(_Page(run, shown=False, pictures=[]))
            continue
        prefix, alt = f"r{place}-timeline", f"When which rule fired in {run.name}"
        timeline = Markup(figures.as_svg(figures.timeline(run.frames), prefix, alt)) if run.incidents else None
        pages.append(_Page(run, shown=True, pictures=_pictures(run, place), timeline=timeline))
    context = _context(found, pages, command, now) | {"link": _linker(path)}
    compared = [run.frames for run in found.runs if run.updates]
    context |= {"css": Markup(_resource("report.css")), "compared": _compared(found.runs)}
    context |= {"colours": figures.run_colours(compared)}
    _place(path, _environment(html=True).get_template("report.html.j2").render(context))


def _markdown(found: Findings, path: Path, command: str, now: datetime) -> None:
    folder = plots_folder(path)
    pages = []
    for place, run in enumerate(found.runs, 1):
        picture = None
        if place <= MOST_RUNS and run.frames.panels:
            folder.mkdir(exist_ok=True)
            # The name comes from the run: nothing in it may lead out of the folder.
            picture = folder / (re.sub(r"[^A-Za-z0-9_-]", "-", run.run_id) + ".png")
            figures.save(figures.postmortem(run.frames), picture)
        link = f"{folder.name}/{picture.name}".replace(" ", "%20") if picture else None
        pages.append(_Page(run, shown=place <= MOST_RUNS, pictures=link))
    context = _context(found, pages, command, now) | {"link": _linker(path)}
    _place(path, _environment(html=False).get_template("report.md.j2").render(context))


def _linker(path: Path) -> Callable[[str], str]:
    """From a file's path to a link in the report at `path`: relative, so that both may be moved together."""
    folder = path.resolve().parent
    return lambda file: quote(Path(os.path.relpath(Path(file).resolve(), folder)).as_posix())


def _json(found: Findings, path: Path, command: str, now: datetime) -> None:
    names = [f.name for f in fields(RunFindings) if f.name not in ("frames", "ending", "grouped")]
    runs = []
    for run in found.runs:
        facts = {name: getattr(run, name) for name in names}
        facts |= {
            name: [asdict(one) for one in facts[name]]
            for name in ("first", "incidents", "unread", "partly", "doubts", "differences")
        }
        facts["exemplars"] = None if run.exemplars is None else asdict(run.exemplars)
        runs.append(facts | {"counts": run.counts, "judged": run.judged, "broken": run.broken})
    whole = {
        "title": _title(found),
        "written": now.isoformat(timespec="seconds"),
        "esper_analytics": _version(),
        "command": command or None,
        "against": found.against,
        "differing": {one.key: dict(one.values) for one in found.differing},
        "problems": found.problems,
        "runs": runs,
    }
    _place(path, json.dumps(to_json(whole), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


_FORMATS: Final[Mapping[str, Writer]] = {".html": _html, ".md": _markdown, ".json": _json}


def _writer(path: Path) -> Writer:
    if path.suffix.lower() not in _FORMATS:
        ending = f"ends in {path.suffix}" if path.suffix else "has no ending"
        raise UsageError(f"{path} {ending}; a report is written to FILE{', FILE'.join(_FORMATS)}.")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; a report is a file.")
    if not path.resolve().parent.is_dir():
        raise UsageError(f"There is no folder {path.resolve().parent} to write {path.name} to.")
    within = next((folder for folder in path.resolve().parents if (folder / "run.json").is_file()), None)
    if within is not None:
        raise UsageError(f"{path} lies in the recorded run {within.name}, which is not written to. Save it elsewhere.")
    return _FORMATS[path.suffix.lower()]


def _context(found: Findings, pages: Sequence[_Page], command: str, now: datetime) -> dict[str, Any]:
    return {
        "title": _title(found),
        "runs": pages,
        "runs_shown": min(len(pages), MOST_RUNS),
        "not_shown": max(len(pages) - MOST_RUNS, 0),
        "most_incidents": MOST_INCIDENTS,
        "against": found.against,
        "differing": found.differing,
        "held_against": _held_against(found.runs),
        "problems": found.problems,
        "command": command,
        "written": format_time(now),
        "version": _version(),
    }


def _title(found: Findings) -> str:
    if len(found.runs) == 1:
        return f"Post-mortem of {found.runs[0].name}"
    broken = sum(run.broken for run in found.runs)
    unknown = sum(not run.judged and not run.broken for run in found.runs)
    parts = [f"{n} {what}" for n, what in ((broken, "broken"), (unknown, "not judged")) if n] or ["none broken"]
    for how in ("interrupted", "killed"):
        n = sum(run.ended == how and not run.broken for run in found.runs)
        parts += [f"{n} {how}"] if n else []
    return f"Post-mortem of {len(found.runs)} runs: {', '.join(parts)}"


def _held_against(runs: Sequence[RunFindings]) -> list[tuple[str, list[str]]]:
    """(rules in words, names of the runs they judged); no names where they judged all."""
    found: dict[str, list[str]] = {}
    for run in runs:
        found.setdefault(run.held_against, []).append(run.name)
    return [(words, names if len(found) > 1 else []) for words, names in found.items()]


def _version() -> str:
    return metadata.version("esper-analytics")


def _place(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())


# --- templates ------------------------------------------------------------------------------------------------------


def _environment(*, html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=html,
        finalize=None if html else _markdown_text,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": format_number,
        "percent": format_percent,
        "listed": lambda words, most=6: format_list(list(words), most=most),
        "action": _action,
        "raw": Markup,
        "indented": _indented,
    }
    return environment


def _resource(name: str) -> str:
    return (resources.files("esper_analytics.reports") / name).read_text(encoding="utf-8")


def _action(action: Sequence[float] | None) -> str:
    return "not measured" if action is None else ", ".join(format_number(part, 3) for part in action)


def _indented(text: str) -> Markup:
    """Text as a block of code in Markdown, where nothing in it is markup."""
    return Markup("\n".join(f"    {line}" for line in text.splitlines()))


def _markdown_text(value: Any) -> Any:
    """Text that Markdown and the HTML it becomes show as it is, on one line; `raw` text stays."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    text = re.sub(r"[\\`*\[\]|]", r"\\\g<0>", re.sub(r"[\r\n\t]+", " ", value))
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"&(?=#|\w+;)", "&amp;", text))
