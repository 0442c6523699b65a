"""What happened around one update: minibatches, the worst transitions head by head, layers, and what is missing.

Nothing is guessed: what a table does not hold is said in a sentence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import polars as pl

from esper_analytics.detection.replay import replay
from esper_analytics.errors import UsageError
from esper_analytics.formatting import format_count, format_list, format_number, format_ranges
from esper_analytics.runs import Runs
from esper_recorder.contract.rules.model import Severity
from esper_recorder.contract.worst_transitions import JOINT, RatioDiagnostic, in_words, ratio_of_head

AROUND: Final = 2
"""Updates shown before and after."""

MINIBATCHES: Final = 24
"""Minibatches shown at most: those around the worst one."""

TRANSITIONS: Final = 8
"""Worst transitions shown of each ratio."""

LAYERS: Final = 8
"""Layers shown at most: those that are not finite, then the largest gradients."""

CLAMPS: Final = (20.0, 30.0)
"""|log ratio| that Esper's trainers clamp a head's and the joint one to: a value there may have been any larger."""

_UPDATE_COLUMNS: Final = (
    "update",
    "step",
    "progress",
    "epochs",
    "epochs_planned",
    "minibatch_count",
    "stepped_count",
    "stopped_early",
    "interrupted",
    "ratio_min",
    "ratio_max",
    "ratio_nonfinite",
    "approx_kl",
    "target_kl",
    "clip_fraction",
    "clip_range",
    "entropy",
    "entropy_normalized",
    "explained_variance",
    "policy_loss",
    "value_loss",
    "grad_norm",
    "max_grad_norm",
    "learning_rate",
    "nonfinite_count",
    "nonfinite_fields",
)
_AROUND_COLUMNS: Final = (
    "update",
    "ratio_min",
    "ratio_max",
    "approx_kl",
    "clip_fraction",
    "entropy",
    "explained_variance",
    "grad_norm",
    "nonfinite_count",
    "stopped_early",
)
_MINIBATCH_COLUMNS: Final = (
    "epoch",
    "minibatch",
    "ratio_min",
    "ratio_max",
    "approx_kl",
    "clip_fraction",
    "policy_loss",
    "grad_norm",
    "nonfinite_count",
    "stepped",
)
_LAYER_COLUMNS: Final = (
    "layer",
    "minibatch",
    "grad_norm",
    "weight_norm",
    "step_norm",
    "grad_nan",
    "grad_posinf",
    "grad_neginf",
)
_TRANSITION_COLUMNS: Final = (
    "head",
    "place",
    "ratio",
    "log_ratio",
    "old_log_prob",
    "new_log_prob",
    "advantage",
    "action",
    "env",
    "env_step",
    "epoch",
    "minibatch",
)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Forensics:
    """What is known of one update of one run.

    Attributes:
        why: why this update was looked at.
        story: what happened, in sentences.
        absent: what could not be looked at, in sentences.
        fired: rule, key, severity, value, threshold of what fired at the update.
        row: the update's own figures.
        around: a few figures of the updates before and after.
        minibatches: of the update, in their order; those around the worst one where there are many.
        ratios: the joint ratio and each head's: head, n, nonfinite, ratio_min, ratio_max, log_ratio_rms.
        transitions: the worst of each ratio, non-finite first.
        layers: those whose gradient is not finite, then those with the largest.
    """

    run_id: str
    update: int
    why: str
    story: tuple[str, ...]
    absent: tuple[str, ...]
    fired: tuple[Row, ...]
    row: Row
    around: tuple[Row, ...]
    minibatches: tuple[Row, ...]
    ratios: tuple[Row, ...]
    transitions: tuple[Row, ...]
    layers: tuple[Row, ...]


SECTIONS: Final = ("fired", "around", "minibatches", "ratios", "transitions", "layers")


def examine(runs: Runs, run_id: str, update: int | None = None) -> Forensics:
    """Look at one update of a run.

    Args:
        runs: the runs.
        run_id: which of them.
        update: the update; where left out, that at which the first critical incident about the policy's ratio began,
            else the first incident of the severest kind, by the rules the run itself ran with (else `default`).

    Raises:
        UsageError: the run has no such update, or nothing fired in it and no update is named.
    """
    run = runs[run_id]
    run_id = run.ids[0]
    recorded = run.table("ppo_updates").select("update").unique().collect().get_column("update").sort().to_list()
    if not recorded:
        raise UsageError(f"The run {run_id} has no recorded update to look at.")
    result = replay(run)
    why = "it was asked for"
    if update is None:
        update, why = _incident(result.incidents, run_id, recorded)
    elif update not in recorded:
        raise UsageError(f"The run {run_id} has no recorded update {update}; there is {format_ranges(recorded)}.")
    at = pl.col("update") == update
    row = run.table("ppo_updates").filter(at).collect().row(0, named=True)
    updates = run.table("ppo_updates").filter(pl.col("update").is_between(update - AROUND, update + AROUND))
    minibatches = run.table("minibatches").filter(at).sort("minibatch").collect().to_dicts()
    heads = run.table("heads").filter(at).sort("head").collect().to_dicts()
    exemplars = run.table("ratio_exemplars").filter(at & (pl.col("scope").fill_null("update") == "update")).collect()
    layers = run.table("gradient_layers").filter(at).collect()
    diagnostic = _diagnostic(row, heads, exemplars.to_dicts())
    fired = result.firings.filter(at).select("rule", "key", "severity", "value", "threshold").to_dicts()
    shown = _shown(minibatches)
    return Forensics(
        run_id=run_id,
        update=update,
        why=why,
        story=tuple(_story(run, row, minibatches, diagnostic, layers)),
        absent=tuple(_absent(run, run_id, row, minibatches, heads, exemplars.height, layers.height, len(shown))),
        fired=tuple(fired),
        row=_some(row, _UPDATE_COLUMNS),
        around=tuple([_some(one, _AROUND_COLUMNS) for one in updates.sort("update").collect().to_dicts()]),
        minibatches=tuple([_some(one, _MINIBATCH_COLUMNS) for one in shown]),
        ratios=tuple(
            [
                {k: v for k, v in asdict(one).items() if k != "worst"} | {"head": _head(one.head)}
                for one in diagnostic.ratios
            ]
        ),
        transitions=tuple(_transitions(diagnostic)),
        layers=tuple([_some(one, _LAYER_COLUMNS) for one in _layers(layers)]),
    )


def as_frame(found: Forensics) -> pl.DataFrame:
    """Everything as rows of (section, number, name, value), for formats that hold rows."""
    rows: list[tuple[str, int, str, str | None]] = [("why", 1, "", found.why)]
    rows += [("story", i, "", text) for i, text in enumerate(found.story, 1)]
    rows += [("absent", i, "", text) for i, text in enumerate(found.absent, 1)]
    rows += [("update", 1, name, _text(value)) for name, value in found.row.items()]
    for section in SECTIONS:
        for i, own in enumerate(getattr(found, section), 1):
            rows += [(section, i, name, _text(value)) for name, value in own.items()]
    schema = {"section": pl.String, "number": pl.Int64, "name": pl.String, "value": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def as_lines(found: Forensics, *, markdown: bool = False) -> Iterator[str]:
    """For the eye: sentences, then a table for each section that holds something."""
    yield f"# {found.run_id}, update {found.update}" if markdown else f"{found.run_id}, update {found.update}"
    yield ""
    yield f"Looked at because {found.why}."
    for title, sentences in (("What happened", found.story), ("What could not be looked at", found.absent)):
        if sentences:
            yield from ("", f"## {title}" if markdown else title, "")
            yield from (f"- {text}" if markdown else f"  {text}" for text in sentences)
    titles = {
        "fired": "What fired",
        "around": "The updates around it",
        "minibatches": "Its minibatches",
        "ratios": "Its ratios",
        "transitions": "The worst transitions",
        "layers": "Layers",
    }
    for section in SECTIONS:
        rows = getattr(found, section)
        if not rows:
            continue
        yield from ("", f"## {titles[section]}" if markdown else titles[section], "")
        columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
        cells = [[_cell(row[name]) for name in columns] for row in rows]
        if markdown:
            yield f"| {' | '.join(columns)} |"
            yield "|" + "---|" * len(columns)
            yield from (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in cells)
            continue
        widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(columns)]
        for line in (columns, *cells):
            yield ("  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))).rstrip()


# --- what is looked at ------------------------------------------------------------------------------------------------


def _incident(incidents: pl.DataFrame, run_id: str, recorded: Sequence[int]) -> tuple[int, str]:
    """The update at which the incident began that is to be looked at, and why that one."""
    rows = incidents.filter(pl.col("onset_update").is_in(list(recorded))).to_dicts()
    if not rows:
        raise UsageError(
            f"No rule fired in the run {run_id}, so no update stands out. Say which by --update N; "
            f"there is {format_ranges(recorded)}."
        )

    def order(row: Row) -> tuple[bool, bool, int, int]:
        about = any(word in row["rule"] for word in ("ratio", "kl"))
        critical = row["severity"] == Severity.CRITICAL
        return not (about and critical), not about, -Severity(row["severity"]).rank, row["onset_update"]

    first = min(rows, key=order)
    key = f" ({first['key']})" if first["key"] else ""
    return first["onset_update"], f"{first['rule']}{key} began there"


def _diagnostic(row: Row, heads: Sequence[Row], exemplars: Sequence[Row]) -> RatioDiagnostic:
    by_head: dict[str, list[Row]] = {}
    for one in exemplars:
        by_head.setdefault(one["head"] or JOINT, []).append(one)
    statistics = {JOINT: row} | {one["head"]: one for one in heads}
    names = [JOINT, *sorted((set(by_head) | set(statistics)) - {JOINT})]
    found = [ratio_of_head(name, statistics.get(name, {}), by_head.get(name, ())) for name in names]
    return RatioDiagnostic(tuple([one for one in found if one.worst or one.ratio_max is not None]))


def _transitions(diagnostic: RatioDiagnostic) -> Iterator[Row]:
    for one in diagnostic.ratios:
        for transition in one.worst[:TRANSITIONS]:
            told = asdict(transition) | {"head": _head(one.head), "ratio": transition.ratio}
            yield {name: told[name] for name in _TRANSITION_COLUMNS}


def _layers(frame: pl.DataFrame) -> list[Row]:
    broken = pl.sum_horizontal(pl.col("grad_nan", "grad_posinf", "grad_neginf").fill_null(0))
    last = frame.sort("minibatch", nulls_last=False).group_by("layer", maintain_order=True).last()
    of_any = frame.group_by("layer").agg(broken.max().alias("broken"))
    ordered = last.join(of_any, on="layer").sort(
        pl.col("broken") > 0,
        pl.col("grad_norm").fill_nan(math.inf).fill_null(-1.0),
        "layer",
        descending=[True, True, False],
    )
    return ordered.filter(pl.col("has_grad").fill_null(True)).head(LAYERS).to_dicts()


def _shown(minibatches: Sequence[Row]) -> Sequence[Row]:
    if len(minibatches) <= MINIBATCHES:
        return minibatches
    worst = max(range(len(minibatches)), key=lambda i: _badness(minibatches[i]))
    start = min(max(worst - MINIBATCHES // 2, 0), len(minibatches) - MINIBATCHES)
    return minibatches[start : start + MINIBATCHES]


def _badness(row: Mapping[str, Any]) -> tuple[bool, float]:
    """Greater is worse: not finite, then how far the ratio moved to either side."""
    moves = [abs(value) for name in ("log_ratio_min", "log_ratio_max") if (value := row[name]) is not None]
    return bool(row["nonfinite_count"]), max((move for move in moves if not math.isnan(move)), default=0.0)


# --- in sentences -----------------------------------------------------------------------------------------------------


def _story(
    run: Runs, row: Row, minibatches: Sequence[Row], diagnostic: RatioDiagnostic, layers: pl.DataFrame
) -> Iterator[str]:
    if row["stopped_early"]:
        epochs = "" if row["epochs"] is None else f" in epoch {row['epochs']}"
        planned = "" if row["epochs_planned"] is None else f" of {row['epochs_planned']} planned"
        yield f"The update stopped early{epochs}{planned}: what came after was not evaluated, and so is in no figure."
    if row["interrupted"]:
        yield "The training ended in the middle of it: the figures are of the minibatches it got to."
    moved = [one for one in minibatches if one["ratio_max"] is not None]
    if moved:
        worst = max(moved, key=_badness)
        yield (
            f"Its minibatch {worst['minibatch']} of {len(minibatches)} is the worst: ratio "
            f"{format_number(worst['ratio_min'])} to {format_number(worst['ratio_max'])}, "
            f"KL {format_number(worst['approx_kl'])}."
        )
    if row["nonfinite_fields"]:
        yield f"Not finite among the figures of the trainer: {format_list(row['nonfinite_fields'])}."
    if row["return_variance_low"]:
        yield "Its returns hardly vary, so its explained variance says nothing."
    broken = [one["minibatch"] for one in minibatches if one["nonfinite_count"]]
    if broken:
        yield f"The first minibatch of it with a number that is not finite is {broken[0]}."
    yield from in_words(diagnostic)
    yield from _censored(diagnostic)
    names = ("grad_nan", "grad_posinf", "grad_neginf")
    sick = layers.filter(pl.any_horizontal((pl.col(name) > 0).fill_null(False) for name in names))
    if sick.height:
        first = sick.sort("minibatch", nulls_last=False)
        at = first.get_column("minibatch")[0]
        own = first.filter(pl.col("minibatch").eq_missing(at)).get_column("layer").unique(maintain_order=True).to_list()
        yield f"Not finite: the gradient of {format_list(own)}" + ("." if at is None else f", at minibatch {at} first.")
    earlier = (
        run.table("ppo_updates").filter(pl.col("nonfinite_count") > 0).select(pl.col("update").min()).collect().item()
    )
    if earlier is not None:
        yield (
            "Nothing was non-finite in the run before it."
            if earlier == row["update"]
            else f"The first update of the run with a number that is not finite is {earlier}."
        )


def _censored(diagnostic: RatioDiagnostic) -> Iterator[str]:
    """Ratios that lie at a clamp of the trainer's."""
    for one in diagnostic.ratios:
        extremes = [math.log(r) for r in (one.ratio_min, one.ratio_max) if r is not None and 0 < r < math.inf]
        values = [t.log_ratio for t in one.worst] or extremes
        for clamp in CLAMPS:
            there = sum(math.isclose(abs(value), clamp, rel_tol=1e-6) for value in values)
            if there:
                name = "the joint ratio" if one.head == JOINT else f"the head {one.head!r}"
                yield (
                    f"Of {name}, {format_count(there, 'log ratio')} among the worst {'lies' if there == 1 else 'lie'} "
                    f"at ±{clamp:g}, where trainers clamp: the true value may be any larger."
                )


def _absent(
    run: Runs,
    run_id: str,
    row: Row,
    minibatches: Sequence[Row],
    heads: Sequence[Row],
    exemplars: int,
    layers: int,
    shown: int,
) -> Iterator[str]:
    update = row["update"]
    manifest = run.manifest(run_id)
    level = "" if manifest.level is None else f" (it was recorded at level {manifest.level})"
    gaps = run.table("gaps").filter((pl.col("first_update") <= update) & (pl.col("last_update") >= update)).collect()
    lost = {gap["table_name"]: gap for gap in gaps.to_dicts()}
    there = {
        "minibatches": bool(minibatches),
        "heads": bool(heads),
        "ratio_exemplars": bool(exemplars),
        "gradient_layers": bool(layers),
    }
    what = {
        "minibatches": "No row of its minibatches, so the one that did it cannot be told",
        "heads": "No row of its action heads, so none can be named",
        "ratio_exemplars": "None of its worst transitions",
        "gradient_layers": "No gradient of its layers",
    }
    for table, some in there.items():
        gap = lost.get(table) or lost.get("*")
        if gap is not None:
            yield f"Rows of {table} were lost around it: {str(gap['reason']).replace('_', ' ')}."
        elif not some:
            of_run = run.table(table).head(1).collect().height
            why = "other updates of the run have some" if of_run else f"the run has none{level}"
            yield f"{what[table]}: {why}."
    if heads and all(one["ratio_max"] is None for one in heads):
        yield "Its action heads have rows but no ratio, so none can be named."
    if shown < len(minibatches):
        yield f"Of its {len(minibatches)} minibatches, {shown} are shown: those around the worst."
    if row["stopped_early"] is None:
        yield "Whether it stopped early was not recorded."


def _some(row: Mapping[str, Any], names: Sequence[str]) -> Row:
    return {name: row[name] for name in names}


def _head(name: str) -> str:
    return name or "(joint)"


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return format_number(value)
    if isinstance(value, list | tuple):
        return ", ".join(_cell(one) for one in value)
    return str(value)
