"""Records of updates that tests make by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from esper_recorder.storage.record_layout import BatchLayout, Noted, RatioLayout, RecordLayout
from esper_recorder.storage.update_record import UpdateRecord, encode_notes

LAYOUT = RecordLayout(
    run_id="r",
    attempt=1,
    rank=0,
    definition="pooled",
    columns=("step",),
    batches=(
        BatchLayout(
            notes=(Noted.WHOLE, *[Noted.ABSENT] * 6),
            per_minibatch=False,
            ratios=(RatioLayout(names=("",), statistics=("n", "ratio_max")),),
        ),
    ),
)
"""The number and the largest ratio of each minibatch."""


def minibatch_record(update: int, ratios: Sequence[float]) -> UpdateRecord:
    """An update of minibatches of ten transitions with these largest ratios."""
    count = len(ratios)
    _, (numbers,) = encode_notes({"minibatch": list(range(1, count + 1))})
    norms, statistics = np.zeros(count), np.array([[10.0, ratio] for ratio in ratios]).reshape(-1)
    values = [1_700_000_000_000_000 + update, 0.5, 100 * update]
    everything = np.concatenate([[float(count)], numbers, norms, statistics])
    return UpdateRecord.pack(LAYOUT, update, 1 + count, values, everything)
