"""What happened around one update: minibatches, the worst transitions of each head, layers, and what is missing.

Covers: any update of any run; what a table does not hold is said, never guessed.
Does not cover: why it happened; the statements are observations, not causes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import polars as pl

from esper_analytics.detection.replay import Result, replay
from esper_analytics.errors import UsageError
from esper_analytics.formatting import (
    escape_markdown,
    format_count,
    format_list,
    format_number,
    format_ranges,
    format_value,
    markdown_table,
    text_table,
    to_text,
)
from esper_analytics.postmortem.exemplars import SHOWN, exemplars_by_head, reads_policy_change
from esper_analytics.runs import Runs
from esper_recorder.contract.rules.model import Severity
from esper_recorder.contract.worst_transitions import JOINT, RatioDiagnostic, describe, ratio_of_head

AROUND: Final = 2
"""Updates shown before and after."""

MINIBATCHES: Final = 24
"""Most minibatches shown: those around the worst one."""

LAYERS: Final = 8
"""Most layers shown: those that are not finite, then the largest gradients."""

CLAMPS: Final = (20.0, 30.0)
"""|log ratio| that Esper's trainers clamp a head's and the joint one to: the true value may be larger."""

_UPDATE_COLUMNS: Final = (
    *("update", "step", "progress", "epochs", "epochs_planned", "minibatch_count", "stepped_count", "stopped_early"),
    *("interrupted", "ratio_min", "ratio_max", "ratio_nonfinite", "approx_kl", "target_kl", "clip_fraction"),
    *("clip_range", "entropy", "entropy_normalized", "explained_variance", "policy_loss", "value_loss", "grad_norm"),
    *("max_grad_norm", "learning_rate", "nonfinite_count", "nonfinite_fields"),
)
_AROUND_COLUMNS: Final = (
    *("update", "ratio_min", "ratio_max", "approx_kl", "clip_fraction", "entropy", "explained_variance", "grad_norm"),
    *("nonfinite_count", "stopped_early"),
)
_MINIBATCH_COLUMNS: Final = (
    *("epoch", "minibatch", "ratio_min", "ratio_max", "approx_kl", "clip_fraction", "policy_loss", "grad_norm"),
    *("nonfinite_count", "stepped"),
)
_LAYER_COLUMNS: Final = (
    *("layer", "minibatch", "grad_norm", "weight_norm", "step_norm", "grad_nan", "grad_posinf", "grad_neginf"),
)
_TRANSITION_COLUMNS: Final = (
    *("head", "place", "ratio", "log_ratio", "old_log_prob", "new_log_prob", "advantage", "action", "env", "env_step"),
    *("epoch", "minibatch"),
)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Forensics:
    """One update of one run, closely.

    Attributes:
        why: why this update was chosen.
        story: what happened, as text.
        absent: what was not recorded, as text.
        fired: rule, key, severity, value, threshold of what fired at the update.
        row: the update's own metrics.
        around: a few metrics of the updates before and after.
        minibatches: of the update, in their order; if there are many, those around the worst one.
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


SECTIONS: Final = {
    "fired": "What fired",
    "around": "The updates around it",
    "minibatches": "Minibatches",
    "ratios": "Ratios",
    "transitions": "The worst transitions",
    "layers": "Layers",
}
"""Section and title of each table."""


def examine(runs: Runs, run_id: str, update: int | None = None) -> Forensics:
    """Examine one update of a run.

    Args:
        runs: the runs.
        run_id: which of them.
        update: the update. Default: the onset of the first critical incident about the policy's ratio, else of the
            first incident of the worst severity, by the rules the run ran with (else `default`).

    Raises:
        UsageError: the run has no such update, or nothing fired in it and no update is named.
    """
    run = runs[run_id]
    run_id = run.ids[0]
    recorded = run.table("ppo_updates").select("update").drop_nulls().unique().collect()["update"].sort().to_list()
    if not recorded:
        raise UsageError(f"The run {run_id} has no recorded update to examine.")
    result = replay(run)
    why = "requested"
    if update is None:
        update, why = _first_incident(result, run_id, recorded)
    elif update not in recorded:
        raise UsageError(f"The run {run_id} has no recorded update {update}; it has {format_ranges(recorded)}.")
    at = pl.col("update") == update
    row = run.table("ppo_updates").filter(at).collect().row(0, named=True)
    around = run.table("ppo_updates").filter(pl.col("update").is_between(update - AROUND, update + AROUND))
    minibatches = run.table("minibatches").filter(at).sort("minibatch").collect().to_dicts()
    heads = run.table("heads").filter(at).sort("head").collect().to_dicts()
    exemplars = exemplars_by_head(run, update)
    layers = run.table("gradient_layers").filter(at).collect()
    diagnostic = _diagnostic(row, heads, exemplars)
    fired = result.firings.filter(at).select("rule", "key", "severity", "value", "threshold").to_dicts()
    shown = _around_worst(minibatches)
    recorded_rows = {"minibatches": len(minibatches), "heads": len(heads)}
    recorded_rows |= {"ratio_exemplars": len(exemplars), "gradient_layers": layers.height}
    absent = [*_absent(run, update, recorded_rows)]
    if heads and all(head["ratio_max"] is None for head in heads):
        absent.append("The action heads have rows but no ratio, so no head can be blamed.")
    if len(shown) < len(minibatches):
        absent.append(f"{len(shown)} of {len(minibatches)} minibatches are shown: those around the worst.")
    if row["stopped_early"] is None:
        absent.append("Whether the update stopped early was not recorded.")
    return Forensics(
        run_id=run_id,
        update=update,
        why=why,
        story=tuple(_story(run, row, minibatches, diagnostic, layers)),
        absent=tuple(absent),
        fired=tuple(fired),
        row=_select(row, _UPDATE_COLUMNS),
        around=tuple([_select(other, _AROUND_COLUMNS) for other in around.sort("update").collect().to_dicts()]),
        minibatches=tuple([_select(minibatch, _MINIBATCH_COLUMNS) for minibatch in shown]),
        ratios=tuple(_ratios(diagnostic)),
        transitions=tuple(_transitions(diagnostic)),
        layers=tuple([_select(layer, _LAYER_COLUMNS) for layer in _worst_layers(layers)]),
    )


def as_frame(forensics: Forensics) -> pl.DataFrame:
    """Lay everything out as rows of (section, number, name, value), for formats that hold rows."""
    rows: list[tuple[str, int, str, str | None]] = [("why", 1, "", forensics.why)]
    rows += [("story", i, "", text) for i, text in enumerate(forensics.story, 1)]
    rows += [("absent", i, "", text) for i, text in enumerate(forensics.absent, 1)]
    for section, content in (("update", (forensics.row,)), *((name, getattr(forensics, name)) for name in SECTIONS)):
        for i, row in enumerate(content, 1):
            rows += [(section, i, name, None if value is None else to_text(value)) for name, value in row.items()]
    schema = {"section": pl.String, "number": pl.Int64, "name": pl.String, "value": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def as_lines(forensics: Forensics, *, markdown: bool = False) -> Iterator[str]:
    """Lay everything out for the eye: text, then a table for each section with rows."""
    heading, item, literal = ("## ", "- ", escape_markdown) if markdown else ("", "  ", str)
    yield f"{heading[1:]}{literal(forensics.run_id)}, update {forensics.update}"
    yield from ("", f"Chosen because: {literal(forensics.why)}.")
    for title, texts in (("What happened", forensics.story), ("What was not recorded", forensics.absent)):
        if texts:
            yield from ("", f"{heading}{title}", "", *(f"{item}{literal(text)}" for text in texts))
    for section, title in SECTIONS.items():
        rows: Sequence[Row] = getattr(forensics, section)
        if not rows:
            continue
        yield from ("", f"{heading}{title}", "")
        columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
        cells = [[format_value(row[name], "–") for name in columns] for row in rows]
        right = [all(isinstance(row[name], int | float | None) for row in rows) for name in columns]
        if markdown:
            yield from markdown_table(columns, cells, right)
        else:
            yield from (f"  {line}" for line in text_table(columns, cells.__iter__, right))


# --- choosing ---------------------------------------------------------------------------------------------------------


def _first_incident(result: Result, run_id: str, recorded: Sequence[int]) -> tuple[int, str]:
    """Choose the update at which the incident to examine began, and say why."""
    rows = result.incidents.filter(pl.col("onset_update").is_in(list(recorded))).to_dicts()
    if not rows:
        raise UsageError(
            f"No rule fired in the run {run_id}, so no update stands out. Say which by --update N; "
            f"it has {format_ranges(recorded)}."
        )
    policy_rules = {rule.name for rule in result.rules.rules if reads_policy_change(rule)}

    def order(row: Row) -> tuple[int, bool, int]:
        return -Severity(row["severity"]).rank, row["rule"] not in policy_rules, row["onset_update"]

    first = min(rows, key=order)
    key = f" ({first['key']})" if first["key"] else ""
    return first["onset_update"], f"onset of {first['rule']}{key}"


def _diagnostic(row: Row, heads: Sequence[Row], exemplars: Mapping[str, Sequence[Row]]) -> RatioDiagnostic:
    statistics = {JOINT: row} | {head["head"]: head for head in heads}
    names = [JOINT, *sorted((set(exemplars) | set(statistics)) - {JOINT})]
    ratios = [ratio_of_head(name, statistics.get(name, {}), exemplars.get(name, ())) for name in names]
    return RatioDiagnostic(tuple([ratio for ratio in ratios if ratio.worst or ratio.ratio_max is not None]))


def _ratios(diagnostic: RatioDiagnostic) -> Iterator[Row]:
    for ratio in diagnostic.ratios:
        row = asdict(ratio) | {"head": ratio.head or "(joint)"}
        del row["worst"]
        yield row


def _transitions(diagnostic: RatioDiagnostic) -> Iterator[Row]:
    for ratio in diagnostic.ratios:
        for transition in ratio.worst[:SHOWN]:
            row = asdict(transition) | {"head": ratio.head or "(joint)", "ratio": transition.ratio}
            yield _select(row, _TRANSITION_COLUMNS)


def _worst_layers(frame: pl.DataFrame) -> list[Row]:
    nonfinite = pl.sum_horizontal(pl.col("grad_nan", "grad_posinf", "grad_neginf").fill_null(0))
    last_step = frame.sort("minibatch", nulls_last=False).group_by("layer", maintain_order=True).last()
    ever = frame.group_by("layer").agg(nonfinite.max().alias("nonfinite"))
    ordered = last_step.join(ever, on="layer").sort(
        pl.col("nonfinite") > 0,
        pl.col("grad_norm").fill_nan(math.inf).fill_null(-1.0),
        "layer",
        descending=[True, True, False],
    )
    return ordered.filter(pl.col("has_grad").fill_null(True)).head(LAYERS).to_dicts()


def _around_worst(minibatches: Sequence[Row]) -> Sequence[Row]:
    if len(minibatches) <= MINIBATCHES:
        return minibatches
    worst = max(range(len(minibatches)), key=lambda i: _severity(minibatches[i]))
    start = min(max(worst - MINIBATCHES // 2, 0), len(minibatches) - MINIBATCHES)
    return minibatches[start : start + MINIBATCHES]


def _severity(minibatch: Row) -> tuple[bool, float]:
    """Greater is worse: not finite, then how far the ratio moved to either side."""
    moves = [abs(value) for name in ("log_ratio_min", "log_ratio_max") if (value := minibatch[name]) is not None]
    return bool(minibatch["nonfinite_count"]), max((move for move in moves if not math.isnan(move)), default=0.0)


def _select(row: Row, names: Sequence[str]) -> Row:
    return {name: row[name] for name in names}


# --- as text ----------------------------------------------------------------------------------------------------------


def _story(
    run: Runs, row: Row, minibatches: Sequence[Row], diagnostic: RatioDiagnostic, layers: pl.DataFrame
) -> Iterator[str]:
    if row["stopped_early"]:
        epochs = "" if row["epochs"] is None else f" in epoch {row['epochs']}"
        planned = "" if row["epochs_planned"] is None else f" of {row['epochs_planned']} planned"
        yield f"The update stopped early{epochs}{planned}: the minibatches after that were never evaluated."
    if row["interrupted"]:
        yield "The training ended in the middle of the update: the metrics cover the minibatches it got to."
    measured = [minibatch for minibatch in minibatches if minibatch["ratio_max"] is not None]
    if measured:
        worst = max(measured, key=_severity)
        low, high, kl = (format_number(worst[name]) for name in ("ratio_min", "ratio_max", "approx_kl"))
        yield f"Minibatch {worst['minibatch']} of {len(minibatches)} is the worst: ratio {low} to {high}, KL {kl}."
    if row["nonfinite_fields"]:
        yield f"Not finite among the trainer's metrics: {format_list(row['nonfinite_fields'])}."
    if row["return_variance_low"]:
        yield "The returns hardly vary, so the explained variance means nothing."
    nonfinite = [minibatch["minibatch"] for minibatch in minibatches if minibatch["nonfinite_count"]]
    if nonfinite:
        yield f"The first minibatch with a non-finite value is {nonfinite[0]}."
    yield from describe(diagnostic)
    yield from _clamped(diagnostic)
    names = ("grad_nan", "grad_posinf", "grad_neginf")
    broken = layers.filter(pl.any_horizontal((pl.col(name) > 0).fill_null(False) for name in names))
    if broken.height:
        broken = broken.sort("minibatch", nulls_last=False)
        at = broken.get_column("minibatch")[0]
        first = broken.filter(pl.col("minibatch").eq_missing(at)).get_column("layer").unique(maintain_order=True)
        since = "" if at is None else f", first at minibatch {at}"
        yield f"Not finite: the gradient of {format_list(first.to_list())}{since}."
    updates = run.table("ppo_updates").filter(pl.col("nonfinite_count") > 0)
    earliest = updates.select(pl.col("update").min()).collect().item()
    if earliest == row["update"]:
        yield "No earlier update of the run has a non-finite value."
    elif earliest is not None:
        yield f"The first update of the run with a non-finite value is {earliest}."


def _clamped(diagnostic: RatioDiagnostic) -> Iterator[str]:
    """Report log ratios at a clamp of the trainer's, where the true value is unknown."""
    for ratio in diagnostic.ratios:
        extremes = [math.log(r) for r in (ratio.ratio_min, ratio.ratio_max) if r is not None and 0 < r < math.inf]
        values = [transition.log_ratio for transition in ratio.worst] or extremes
        for clamp in CLAMPS:
            n = sum(math.isclose(abs(value), clamp, rel_tol=1e-6) for value in values)
            if n:
                name = "the joint ratio" if ratio.head == JOINT else f"the head {ratio.head!r}"
                lie = "lies" if n == 1 else "lie"
                yield (
                    f"Of {name}, {format_count(n, 'log ratio')} among the worst {lie} at ±{clamp:g}, where trainers "
                    "clamp: the true value may be larger."
                )


_ABSENT: Final = {
    "minibatches": "No minibatch rows, so none can be blamed",
    "heads": "No action head rows, so no head can be blamed",
    "ratio_exemplars": "No worst transitions",
    "gradient_layers": "No layer gradients",
}


def _absent(run: Runs, update: int, recorded_rows: Mapping[str, int]) -> Iterator[str]:
    level = run.manifest(run.ids[0]).level
    gaps = run.table("gaps").filter((pl.col("first_update") <= update) & (pl.col("last_update") >= update)).collect()
    gap_of = {gap["table_name"]: gap for gap in gaps.to_dicts()}
    for table, rows in recorded_rows.items():
        gap = gap_of.get(table) or gap_of.get("*")
        if gap is not None:
            yield f"Rows of {table} around the update were dropped: {str(gap['reason']).replace('_', ' ')}."
        elif not rows:
            elsewhere = run.table(table).head(1).collect().height
            at_level = "" if level is None else f" (recorded at level {level})"
            why = "other updates of the run have some" if elsewhere else f"the run has none{at_level}"
            yield f"{_ABSENT[table]}: {why}."
