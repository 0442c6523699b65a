"""How much is collected, and how closely a model is examined: two configurations with two names."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from esper_recorder import Recorder
from esper_recorder.contract.histogram import gradient_bin_count, gradient_edges, gradient_quantile
from esper_recorder.contract.rules.evaluator import Firing
from esper_recorder.contract.rules.model import Severity
from esper_recorder.instruments import (
    CollectionConfig,
    DiagnosticConfig,
    GradientDiagnostics,
    ModelDiagnostics,
    TelemetryLevel,
)
from esper_recorder.instruments.collection import CATEGORIES
from esper_recorder.instruments.model_diagnostics import DIAGNOSTIC_PROFILES
from esper_recorder.levels import COLLECTED, Level


class TestCollection:
    def test_the_levels_are_ordered_from_off_to_debug(self):
        assert [level.name for level in TelemetryLevel] == ["OFF", "MINIMAL", "NORMAL", "DEBUG"]
        assert TelemetryLevel.OFF < TelemetryLevel.DEBUG and TelemetryLevel is Level

    @pytest.mark.parametrize("level", list(Level))
    def test_each_level_collects_what_it_stands_for(self, level: Level):
        config = CollectionConfig(level)
        for one in dataclasses.fields(COLLECTED[level]):
            assert config.should_collect(one.name) is getattr(COLLECTED[level], one.name)
        assert config.should_collect("updates") is (level > Level.OFF)
        assert config.should_collect("ops_normal") is (level >= Level.NORMAL)
        assert config.should_collect("debug") is (level >= Level.DEBUG)

    def test_an_unknown_category_is_an_error_that_suggests_the_closest(self):
        with pytest.raises(ValueError, match=r"there is no category 'ops_norml'\. Did you mean ops_normal"):
            CollectionConfig().should_collect("ops_norml")
        with pytest.raises(ValueError, match=f"The categories are: {', '.join(CATEGORIES)}"):
            CollectionConfig().should_collect("xyz")

    def test_it_cannot_be_changed(self):
        config = CollectionConfig("minimal", "warning", 3)  # type: ignore[arg-type]
        assert (config.level, config.escalate) == (Level.MINIMAL, Severity.WARNING)
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.level = Level.DEBUG  # type: ignore[misc]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ({"level": "loud"}, "level 'loud' is not known; there are: off, minimal, normal, debug"),
            ({"escalate": "bad"}, "escalate is 'bad'"),
            ({"escalate_updates": 0}, "escalate_updates is 0"),
            ({"escalate_updates": True}, "escalate_updates is True"),
        ],
    )
    def test_an_invalid_configuration_is_refused(self, words: dict[str, Any], message: str):
        with pytest.raises(ValueError, match=message):
            CollectionConfig(**words)

    def test_each_escalation_has_its_own_state(self):
        config = CollectionConfig(Level.NORMAL, Severity.CRITICAL, 2)
        one, other = config.escalation(), config.escalation()
        firing = Firing(1, "ratio_explosion", "", "critical", 9.0, 5.0, None, None)
        assert one.note_firings([firing])
        one.raise_level()
        levels = [one.next_level() for _ in range(3)]
        assert levels == [Level.DEBUG, Level.DEBUG, Level.NORMAL]
        assert other.next_level() is Level.NORMAL and config.level is Level.NORMAL
        assert config.should_collect("debug", level=levels[0]) and not config.should_collect("debug", level=levels[2])

    def test_a_recorder_accepts_a_collection_config(self, tmp_path: Path):
        with Recorder(tmp_path, **CollectionConfig("debug").recorder_arguments()) as recorder:  # type: ignore[arg-type]
            assert recorder.level is Level.DEBUG


class TestDiagnostics:
    def model(self) -> torch.nn.Module:
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        for p in model.parameters():
            torch.nn.init.constant_(p, 2.0)
        model[0].weight.grad = torch.tensor([[0.0, 1.0], [3.0, 1e4]])
        model[1].weight.grad = torch.zeros(1, 2)
        return model

    def test_each_of_the_four_profiles_looks_closer_than_the_one_before(self):
        assert list(DIAGNOSTIC_PROFILES) == ["minimal", "standard", "diagnostic", "research"]
        lengths = [one.history_length for one in DIAGNOSTIC_PROFILES.values()]
        assert lengths == sorted(lengths)
        with pytest.raises(ValueError, match=r"there is no diagnostic profile 'reserch'\. Did you mean research\?"):
            DiagnosticConfig.profile("reserch")
        assert DiagnosticConfig.profile("minimal", history_length=7).history_length == 7

    def test_norms_percentiles_and_weights_are_reported(self):
        found = {one.layer: one for one in ModelDiagnostics(DiagnosticConfig.profile("research")).look(self.model())}
        first = found["0.weight"]
        assert first.grad_norm == pytest.approx(math.sqrt(1 + 9 + 1e8)) and first.exploding and not first.vanishing
        assert first.weight_norm == pytest.approx(math.sqrt(4 * 4.0)) and first.histogram is not None
        # 0, 1, 3, 10,000: the median lies between the second and the third.
        assert first.percentiles[50.0] == (1.0, 4.0)
        assert first.percentiles[99.0] == (2.0, 16384.0)  # between the third and the fourth
        assert found["1.weight"].vanishing and found["1.weight"].percentiles[50.0] == (0.0, 0.0)
        assert not found["0.bias"].has_grad and found["0.bias"].grad_norm is None
        assert found["0.bias"].weight_norm == pytest.approx(math.sqrt(8.0))

    def test_only_the_configured_layers_are_examined(self):
        config = DiagnosticConfig(gradients=GradientDiagnostics(layers=("1.*",)))
        assert [one.layer for one in ModelDiagnostics(config).look(self.model())] == ["1.weight", "1.bias"]

    def test_the_minimal_profile_reports_weight_norms_alone(self):
        found = ModelDiagnostics(DiagnosticConfig.profile("minimal")).look(self.model())
        assert all(one.weight_norm is not None and one.grad_norm is None for one in found) and len(found) == 4

    def test_the_newest_examinations_are_kept(self):
        diagnostics = ModelDiagnostics(DiagnosticConfig(history_length=5))
        for _ in range(7):
            diagnostics.look(self.model())
        assert len(diagnostics.history) == 5

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: DiagnosticConfig(history_length=4), ValueError, r"must lie in \[5, 100\], and 4"),
            (lambda: DiagnosticConfig(history_length=5.0), TypeError, r"history_length is 5\.0; give a whole number"),  # type: ignore[arg-type]
            (lambda: GradientDiagnostics(percentiles=(101.0,)), ValueError, r"and 101\.0 does not"),
            (lambda: GradientDiagnostics(vanishing=2.0, exploding=1.0), ValueError, "must lie below"),
        ],
    )
    def test_an_invalid_configuration_is_refused(self, make: Any, error: type[Exception], message: str):
        with pytest.raises(error, match=message):
            make()

    def test_a_complex_weight_is_refused_by_name(self):
        model = torch.nn.Module()
        model.register_parameter("z", torch.nn.Parameter(torch.ones(2, dtype=torch.complex64)))
        with pytest.raises(TypeError, match=r"z is torch\.complex64: complex numbers have no order"):
            ModelDiagnostics(DiagnosticConfig.profile("minimal")).look(model)

    def test_a_sparse_gradient_is_refused_by_name(self):
        model = torch.nn.Embedding(3, 2, sparse=True)
        model(torch.tensor([1])).sum().backward()
        with pytest.raises(TypeError, match=r"the gradient of weight is torch\.sparse_coo; leave it out of `layers`"):
            ModelDiagnostics(DiagnosticConfig()).look(model)


class TestQuantiles:
    def counts(self, *values: float) -> list[int]:
        found = [0] * gradient_bin_count()
        for x in values:
            found[0 if x == 0 else 1 + sum(edge <= x for edge in gradient_edges())] += 1
        return found

    def test_a_quantile_lies_within_its_bounds(self):
        values = sorted([0.0, 0.0, 0.3, 0.7, 1.0, 5.0, 1e9])
        counts = self.counts(*values)
        for share in (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0):
            rank = share * 6
            low, high = values[math.floor(rank)], values[math.ceil(rank)]
            bounds = gradient_quantile(counts, share)
            assert bounds is not None and bounds[0] <= low and high <= bounds[1]

    def test_an_empty_histogram_has_no_quantile_and_an_invalid_one_is_refused(self):
        assert gradient_quantile(self.counts(), 0.5) is None
        with pytest.raises(ValueError, match="and 50 does not"):
            gradient_quantile(self.counts(1.0), 50)
        with pytest.raises(ValueError, match="bins, not 3"):
            gradient_quantile([1, 2, 3], 0.5)
