"""Averages of whole series at once equal those of one value after the other, to the last bit."""

from __future__ import annotations

import math

import numpy as np
import pytest

from esper_analytics.detection.averages import averages_before
from esper_recorder.contract.rules.trend import Average, Drift

FORMS = [
    Drift(momentum=momentum, bias_correction=corrected, warmup=warmup)
    for momentum, warmup in ((0.99, 0), (0.9, 3), (0.0, 1), (0.9999, 0))
    for corrected in (False, True)
]


def drifts(form: Drift, values: np.ndarray, before: np.ndarray) -> list[float | None]:
    drift = np.abs(values - before) / (np.abs(before) + form.epsilon)
    return [None if math.isnan(average) else value for average, value in zip(before, drift.tolist(), strict=True)]


def series(kind: str, count: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    match kind:
        case "spread":
            return rng.lognormal(1, 0.4, count)
        case "signs":
            return rng.normal(0, 1, count) * 10.0 ** rng.integers(-12, 12, count)
        case "at rest":
            return np.where(rng.random(count) < 0.001, 0.3, 1.0)
        case "huge":
            return rng.choice([1e308, -1e308, 1.0], count)
    raise AssertionError(kind)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("kind", ["spread", "signs", "at rest", "huge"])
def test_a_long_series_cut_into_pieces_drifts_as_one_value_after_the_other(form: Drift, kind: str) -> None:
    values = series(kind, 20_000)
    expected = Average(form)
    wanted = [expected.push(value) for value in values.tolist()]
    average = Average(form)
    with np.errstate(all="ignore"):
        before = np.concatenate(
            [averages_before(form, [average], part, [0, len(part)]) for part in (values[:3], values[3:])]
        )
        assert drifts(form, values, before) == wanted
    assert (average.seen, average.total) == (expected.seen, expected.total)
    assert not form.bias_correction or average.weight == expected.weight


@pytest.mark.parametrize("lengths", [[5] * 9, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [1, 900, 2, 2, 2, 2, 2, 2, 2, 2]])
def test_many_series_side_by_side_drift_as_each_does_alone(lengths: list[int]) -> None:
    form = Drift(momentum=0.99, warmup=1)
    values = series("spread", sum(lengths))
    bounds = [0, *np.cumsum(lengths).tolist()]
    together = [Average(form) for _ in lengths]
    alone = [Average(form) for _ in lengths]
    for _ in range(2):  # the second time each continues where it ended
        before = averages_before(form, together, values, bounds)
        for average, start, end in zip(alone, bounds[:-1], bounds[1:], strict=True):
            one_series = values[start:end]
            assert drifts(form, one_series, before[start:end]) == [average.push(value) for value in one_series.tolist()]
    assert [(a.seen, a.total) for a in together] == [(a.seen, a.total) for a in alone]
