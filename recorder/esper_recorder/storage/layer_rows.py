"""Rows of `gradient_layers` and `recurrent_state`."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

from esper_recorder.contract import metrics
from esper_recorder.storage.columns import NumberColumn, lists
from esper_recorder.storage.record_numbers import RecordNumbers
from esper_recorder.storage.table_rows import Found, TableRows, stack

_LAYER_METRICS: Final = metrics.FORMULAS["gradient_layers"]
_STATE_METRICS: Final = metrics.FORMULAS["recurrent_state"]


def layer_rows(numbers: RecordNumbers) -> TableRows | None:
    """Make the rows of `gradient_layers`: one per step and layer."""
    return stack([_block_rows(numbers, i) for i in range(len(numbers.layout.blocks))])


def _block_rows(numbers: RecordNumbers, place: int) -> TableRows:
    block, prefix = numbers.layout.blocks[place], f"layers.{place}."
    updates = numbers.updates(len(numbers.layout.batches) + place)
    steps, layers = len(updates), len(block.names)
    step, layer = np.repeat(np.arange(steps), layers), np.tile(np.arange(layers), steps)
    sizes = np.array(block.sizes, dtype=np.int64)[layer]
    names = block.parts[0].statistics if block.parts else ()
    statistics = np.zeros((steps, layers, len(names)))
    is_measured = np.zeros(layers, bool)
    for i, part in enumerate(block.parts):
        statistics[:, part.places] = numbers[f"{prefix}{i}.statistics"]
        is_measured[list(part.places)] = True
    measured = None if is_measured.all() else is_measured[layer]
    by_name = dict(zip(names, np.ascontiguousarray(statistics.reshape(steps * layers, len(names)).T), strict=True))

    def find(name: str) -> Found | None:
        if name in by_name:
            values, valid = by_name[name], measured
            if name in ("grad_min", "grad_max") and not sizes.all():
                valid = sizes > 0 if valid is None else valid & (sizes > 0)
            if name == "step_sum_sq" and not (values >= 0).all():
                valid = values >= 0 if valid is None else valid & (values >= 0)
            return NumberColumn(values, valid)
        if name in _LAYER_METRICS:
            return _LAYER_METRICS[name](terms)
        match name:
            case "layer":
                return pa.array(block.names, type=pa.string()).take(pa.array(layer))
            case "has_grad":
                return NumberColumn(np.array(block.has_grad, dtype=bool)[layer])
            case "n":
                return NumberColumn(sizes)
            case "grad_histogram" if block.parts:
                histograms = np.zeros((steps, layers, block.parts[0].bins), np.int64)
                for i, part in enumerate(block.parts):
                    histograms[:, part.places] = numbers[f"{prefix}{i}.histograms"]
                return lists(histograms.reshape(steps * layers, -1), "int64", measured)
        note = numbers.note(prefix, name)
        return None if note is None else note.take(step)

    noted = ("epoch", "minibatch", "after_clipping", "layer", "has_grad", "n")
    found = TableRows(updates[step], (*noted, *names, *_LAYER_METRICS, "grad_histogram"), find)
    terms = found.terms()
    return found


def state_rows(numbers: RecordNumbers) -> TableRows | None:
    """Make the rows of `recurrent_state`: one per layer and kind of state."""
    return stack([_of_state(numbers, i) for i in range(len(numbers.layout.states))])


def _of_state(numbers: RecordNumbers, place: int) -> TableRows:
    state = numbers.layout.states[place]
    by_name = dict(zip(state.statistics, numbers[f"states.{place}"].T, strict=True))

    def find(name: str) -> Found | None:
        if name in by_name:
            return NumberColumn(by_name[name])
        if name in _STATE_METRICS:
            return _STATE_METRICS[name](terms)
        if name in ("nan_found", "inf_found"):
            counted = terms.get(name.replace("_found", "_count"))
            return None if counted is None else NumberColumn(counted.values > 0)
        text = {"layer": state.layer, "kind": state.kind}.get(name)
        return None if text is None else pa.repeat(pa.scalar(text), numbers.height)

    names = ("layer", "kind", *state.statistics, *_STATE_METRICS, "nan_found", "inf_found")
    found = TableRows(np.arange(numbers.height), names, find)
    terms = found.terms()
    return found
