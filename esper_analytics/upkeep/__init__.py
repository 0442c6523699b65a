"""Care for recorded runs: finish what a crash left, merge small parts, say whether a recording is whole."""

from esper_analytics.upkeep.compaction import compact as compact
from esper_analytics.upkeep.recovery import recover as recover
from esper_analytics.upkeep.verification import verify as verify
