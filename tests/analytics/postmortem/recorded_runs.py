"""Small runs with everything a report covers, and the rules they are evaluated with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from esper_recorder.contract.rules.ruleset import RuleSet
from tests.builders import write_run

RULES = RuleSet.parse(
    """
[phases]
early = 0.0
late = 0.5

[rules.ratio_explosion]
severity = "critical"
column = "ratio_max"
above = 5.0
evidence = "Five times as likely as when it was taken."

[rules.kl_spike]
severity = "warning"
column = "approx_kl"
above = 0.1

[rules.value_collapse]
severity = "warning"
column = "explained_variance"
below = { phase = { early = -0.5, late = 0.0 } }
unless = { column = "return_std", below = 0.1 }

[rules.layer_gradient]
severity = "info"
table = "gradient_layers"
column = "grad_norm"
key = "layer"
take = "max"
above = 10.0

[rules.policy_std_gone]
severity = "critical"
column = "policy_std"
below = 0.01
""",
    name="tests",
)

NAN = math.nan

WRECKED: list[dict[str, Any]] = [
    # update 1 ... 8 of 8; the ratio explodes at 3, is not finite at 5, and the KL was not measured at 6
    {"ratio_max": 1.2, "ratio_min": 0.9, "approx_kl": 0.01, "explained_variance": 0.1, "return_std": 4.0},
    {"ratio_max": 1.3, "ratio_min": 0.8, "approx_kl": 0.2, "explained_variance": 0.2, "return_std": 4.0},
    {"ratio_max": 9.5, "ratio_min": 0.1, "approx_kl": 0.4, "explained_variance": 0.3, "return_std": 4.0},
    {"ratio_max": 40.0, "ratio_min": 1e-9, "approx_kl": 3.0, "explained_variance": -7.0, "return_std": 0.05},
    {"ratio_max": math.inf, "ratio_min": 0.0, "approx_kl": NAN, "explained_variance": NAN, "return_std": 0.0},
    {"ratio_max": 2.0, "ratio_min": 0.5, "approx_kl": None, "explained_variance": -0.2, "return_std": 3.0},
    {"ratio_max": 1.5, "ratio_min": 0.6, "approx_kl": 0.02, "explained_variance": 0.4, "return_std": 3.0},
    {"ratio_max": 1.1, "ratio_min": 0.9, "approx_kl": 0.02, "explained_variance": 0.5, "return_std": 3.0},
]


def _settings(row: dict[str, Any], update: int) -> dict[str, Any]:
    return {"clip_range": 0.2, "max_grad_norm": 0.5, "grad_norm": 1.0, "grad_norm_max": 3.0, "step": 100 * update} | row


def wrecked(root: Path, **changes: Any) -> Path:
    """A run that fails at update 3, with episodes, exemplars, layers, and a gap."""
    defaults: dict[str, Any] = {
        "updates": [_settings(row, update) for update, row in enumerate(WRECKED, 1)],
        "total_updates": 8,
        "tables": {
            "episodes": [
                {"update": update, "episode": 2 * update + i, "env": 0, "episode_return": float(10 * update + i)}
                for update in range(1, 8)
                for i in range(2)
            ],
            "ratio_exemplars": [
                {
                    "update": 3,
                    "scope": "update",
                    "epoch": 2,
                    "minibatch": 7,
                    "head": "",
                    "place": place,
                    "env": 0,
                    "env_step": 10 + place,
                    "action": [1.0],
                    "old_log_prob": -3.0,
                    "new_log_prob": -3.0 + log_ratio,
                    "log_ratio": log_ratio,
                    "advantage": 0.5,
                    "value": None,
                    "value_target": 2.0,
                }
                for place, log_ratio in enumerate((math.log(9.5), 1.0, -0.5), 1)
            ],
            "gradient_layers": [
                {"update": 4, "minibatch": 1, "layer": "policy.0.weight", "has_grad": True, "grad_norm": 12.0},
                {"update": 4, "minibatch": 1, "layer": "value.0.weight", "has_grad": True, "grad_norm": 0.3},
            ],
            "gaps": [
                {
                    "update": 7,
                    "table_name": "minibatches",
                    "reason": "queue_full",
                    "first_update": 6,
                    "last_update": 7,
                    "rows": 20,
                }
            ],
        },
    }
    return write_run(root, **{"name": "wrecked", **defaults, **changes})


def healthy(root: Path, name: str = "healthy", **changes: Any) -> Path:
    """Three healthy updates."""
    row = {"ratio_max": 1.1, "ratio_min": 0.9, "approx_kl": 0.01, "explained_variance": 0.5, "return_std": 3.0}
    row |= {"policy_std": 0.5}
    layers = [{"update": u, "minibatch": 1, "layer": "w", "has_grad": True, "grad_norm": 1.0} for u in (1, 2, 3)]
    defaults: dict[str, Any] = {"updates": [row] * 3, "total_updates": 3, "tables": {"gradient_layers": layers}}
    return write_run(root, **{"name": name, **defaults, **changes})
