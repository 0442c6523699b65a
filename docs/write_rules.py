"""Write docs/rules.md from the shipped rules. `--check` writes nothing and fails where the page is out of date."""

from __future__ import annotations

from generated import cell, write_or_check

from esper_recorder.contract.rules.describe import fires_where
from esper_recorder.contract.rules.ruleset import RuleSet, load_profile, profiles

HEAD = """\
# Rules

Generated from `recorder/esper_recorder/contract/rules/*.toml` by `make docs`; do not edit it here.

## Writing one

A file of rules is TOML. Start from a shipped one, and check yours as you write it:

```console
esper rules show default > my.toml
esper rules check my.toml
esper replay RUNS --rules my.toml
```

```toml
[phases]                        # optional: shares of the training by name; a phase ends where the next begins
warmup = 0.0
late = 0.75

[rules.value_off]
severity = "warning"            # info, warning or critical
table = "ppo_updates"           # the default; `esper tables` lists tables and columns
column = "explained_variance"   # or expr = "residual_rms / return_std": + - * /, abs, min, max, a if b > c else d
below = { phase = { warmup = -0.5, late = 0.1 } }
for = 3                         # so many hits before it fires
reset = 0.2                     # and only a value beyond this ends the streak
unless = { column = "return_std", below = 0.1 }
evidence = "Where the number comes from, in a sentence."

[[tests]]                       # series in, the updates that must fire out
name = "the third bad value fires; NaN and what was not measured change nothing"
progress = "1.0x5"
series."ppo_updates.explained_variance" = "0.0 0.0 nan 0.0 0.3"
series."ppo_updates.return_std" = "1.0x5"
fires.value_off = [4]
abstains.value_off = 1
```

- **What is read.** One value per update: of a table with several rows per update `take` says which (`first`, `last`,
  `max`, `min`, `sum`, `mean`; `only`: there must be one). `key = "layer"` keeps a series for each layer or head.
  `where = { kind = "h" }` leaves out other rows, `min_n = 100` rows with fewer transitions. A list stands for the
  number of its entries.
- **When it is a hit.** `above`, `below` (strict: a value at the threshold is no hit) or `nonfinite = true`. A threshold
  is a number, or `{ phase = {...} }`, `{ key = {...}, otherwise = 0.1 }`, `{ column = "target_kl", times = 3.0 }`.
  `any_of = [{...}, {...}]` holds alternatives.
- **What it is taken against.** `drift = { momentum = 0.99, bias_correction = false, warmup = 0 }` replaces the value by
  |value - average| / |average| of the values before it (`signed = true`: negative below the average), `step = true` by
  its difference to the one before. `rolling = { window = 10, trend = "change" }` replaces it by how far it moved the
  mean of the last ten values, itself among them (`size`: that without its sign; `drop`: the share by which the value
  lies below that mean).
- **When it fires.** At a hit, from the `for`-th on; `keep = true` goes on until a value is beyond `reset`. A rule that
  `inhibited_by` another is silent where that one fires.
- **What an incident is.** Its firings of one key, up to three quiet looks between them. `recovered`: the rule looked
  again after the last and did not fire, and did not merely give way to the rule it yields to. `phase`, as `threshold`,
  is that of the peak, not of the onset.
- **When it could not look.** NULL, NaN, a closed `unless` and a recording gap are no "fine": the rule abstains, keeps
  its state, and `esper replay --show coverage` counts it with the reason. A rule that never once could look is told
  beside every answer; those on a table of which the run has no row and no gap (heads, where a policy has one) share a
  line. So a rule need not say where it applies. How a run ended is no rule, as none could fire at it live: `esper runs`
  and the lines beside each answer tell a killed run.

`--set value_off.for=5` changes a number for one replay, `esper sweep` tries many.
"""


def page() -> str:
    """The whole page as Markdown."""
    return "\n".join([HEAD, *(_profile(load_profile(name)) for name in profiles())])


def _profile(rules: RuleSet) -> str:
    lines = [f"## {rules.name}", "", " ".join(rules.description.split()), ""]
    if rules.phases:
        lines += ["Phases: " + ", ".join(f"{name} from {start:g}" for name, start in rules.phases) + ".", ""]
    lines += ["| rule | severity | fires where | evidence |", "|---|---|---|---|"]
    lines += [
        f"| `{rule.name}` | {rule.severity} | {cell(fires_where(rule))} | {cell(rule.evidence)} |"
        for rule in rules.rules
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_or_check({"rules.md": page()}, "the rules")
