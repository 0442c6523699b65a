"""Write docs/rules.md from the shipped rules. `--check` writes nothing, and fails if the page is out of date."""

from __future__ import annotations

from generated import cell, write_or_check

from esper_recorder.contract.rules.describe import describe_rule
from esper_recorder.contract.rules.ruleset import RuleSet, load_profile, profiles

HEAD = """\
# Rules

Generated from `recorder/esper_recorder/contract/rules/profiles/*.toml` by `make docs`; do not edit it here.

## Writing one

A rules file is TOML. Start from a shipped one, and check yours as you write it:

```console
esper rules show default > my.toml
esper rules check my.toml
esper replay RUNS --rules my.toml
```

```toml
[phases]                        # optional: where each phase begins, as a fraction of the training
warmup = 0.0                    # a phase ends where the next one begins
late = 0.75

[rules.value_off]
severity = "warning"            # info, warning or critical
table = "ppo_updates"           # the default; `esper tables` lists tables and columns
column = "explained_variance"   # or expr = "residual_rms / return_std": + - * /, abs, min, max, a if b > c else d
below = { phase = { warmup = -0.5, late = 0.1 } }
for = 3                         # breaches needed before it fires
reset = 0.2                     # only a value beyond this ends the streak
unless = { column = "return_std", below = 0.1 }
evidence = "Where the number comes from, with its source."

[[tests]]                       # series in, the updates that must fire out
name = "the third bad value fires; NaN and NULL change nothing"
progress = "1.0x5"
series."ppo_updates.explained_variance" = "0.0 0.0 nan 0.0 0.3"
series."ppo_updates.return_std" = "1.0x5"
fires.value_off = [4]
abstains.value_off = 1
```

- **What it reads.** One value per update. If the table has several rows per update, `take` selects one (`first`,
  `last`, `max`, `min`, `sum`, `mean`; `only`: there must be one). `key = "layer"` keeps a series for each layer or
  head. `where = { kind = "h" }` ignores other rows, `min_n = 100` rows with fewer transitions. A list counts as the
  number of its entries.
- **When it breaches.** `above` and `below` are strict: a value at the threshold does not breach. `nonfinite = true`
  breaches at NaN and infinities. A threshold is a number, or `{ phase = {...} }`, `{ key = {...}, otherwise = 0.1 }`,
  `{ column = "target_kl", times = 3.0 }`. `any_of = [{...}, {...}]` lists alternatives.
- **Trends.** `drift = { momentum = 0.99, bias_correction = false, warmup = 0 }` replaces the value by |value -
  average| / |average|, with the average of the values before it (`signed = true`: negative below the average); `step
  = true` by its difference to the value before; `rolling = { window = 10, trend = "change" }` by the change of the
  mean of the last ten values, itself included (`size`: the absolute value of that; `drop`: the fraction by which the
  value lies below that mean).
- **When it fires.** At a breach, from the `for`-th on. With `keep = true` it continues until a value is beyond
  `reset`. With `inhibited_by` it does not fire while the named rule fires for the same update and key.
- **What an incident is.** Its firings for one key, with up to three evaluations without a firing between them.
  `recovered`: the rule was evaluated after the last firing, did not fire, and was not merely inhibited. `phase` and
  `threshold` are those at the peak, not at the onset.
- **Without data it abstains.** NULL, NaN, a closed `unless` and a recording gap do not mean healthy: the rule keeps
  its state, and `esper replay --show coverage` counts the update with the reason. Rules that were never evaluated are
  listed beside every result; those on a table of which the run has no row and no gap (heads, if a policy has one)
  share a line. So a rule need not say when it applies. There is no rule on how a run ended, since none could fire
  live: `esper runs` and the lines beside each result report a killed run.

`--set value_off.for=5` changes a value for one replay, `esper sweep` tries many.
"""


def page() -> str:
    """Return the whole page as Markdown."""
    return "\n".join([HEAD, *(_profile(load_profile(name)) for name in profiles())])


def _profile(rules: RuleSet) -> str:
    lines = [f"## {rules.name}", "", " ".join(rules.description.split()), ""]
    if rules.phases:
        lines += ["Phases: " + ", ".join(f"{name} from {start:g}" for name, start in rules.phases) + ".", ""]
    lines += ["| rule | severity | fires when | evidence |", "|---|---|---|---|"]
    lines += [
        f"| `{rule.name}` | {rule.severity} | {cell(describe_rule(rule))} | {cell(rule.evidence)} |"
        for rule in rules.rules
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_or_check({"rules.md": page()}, "the rules")
