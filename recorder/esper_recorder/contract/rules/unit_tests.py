"""Unit tests of rules, written in the rules file: series of values in, the updates that must fire out.

    [[tests]]
    name = "a ratio at the threshold does not fire"
    progress = "0.1 0.2 0.3"                          # optional; unknown if omitted
    series."ppo_updates.ratio_max" = "1.2 5.0 5.1"    # one word per update
    fires.ratio_explosion = [3]                       # updates, counted from 1; [] means never
    abstains.ratio_explosion = 0                      # optional: at how many updates it abstains

A word is a number, `nan`, `inf`, `-inf`, `null` (a row whose column is NULL) or `_` (no row); several rows of one
update are joined by commas, `1.0,1.2`; `1.0x5` is the word five times. In a column of lists a word is a list, `[]` or
`[value_loss;entropy]`. A key is written in braces: with its column in a series, `"gradient_layers.grad_norm{layer=a}"`
or `"recurrent_state.rms{layer=lstm,kind=h}"`, without it in `fires`, `"layer_gradient{policy.0}" = [2]`. Every column
that is in no series is NULL. Updates are numbered from 1, or by a series `ppo_updates.update`. Rules that are not named
may fire or not.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from esper_recorder.contract.rules.evaluator import RuleEvaluator
from esper_recorder.contract.rules.location import Location, as_toml
from esper_recorder.contract.rules.ruleset import RuleSet
from esper_recorder.contract.rules.signal import ORDER_COLUMNS, UPDATE_TABLE, own_keys
from esper_recorder.contract.suggest import suggest
from esper_recorder.contract.tables import TABLES, columns

Update = tuple[int, float | None, dict[str, list[dict[str, Any]]]]
"""Number, progress and rows by table: the arguments of `RuleEvaluator.update`."""

Cells = list[Any]
"""The values of one word, one per row."""

_KEYS: Final = ("name", "progress", "series", "fires", "abstains")
_TIMES: Final = re.compile("[0-9]{1,6}")
_MOST_UPDATES: Final = 100_000
_SERIES: Final = re.compile(r"(?P<table>\w+)\.(?P<column>\w+)(\{(?P<keys>\w+=[^}]*)\})?")
_FIRES: Final = re.compile(r"(?P<rule>[A-Za-z0-9_-]+)(\{(?P<key>[^}]*)\})?")


@dataclass(frozen=True, slots=True)
class RuleTest:
    """One unit test, parsed and checked.

    Attributes:
        name: what it shows.
        updates: the updates that the rules evaluate.
        fires: (rule, key) -> the updates at which it must fire, ascending.
        abstains: rule -> at how many updates it must abstain, over all keys.
    """

    name: str
    updates: tuple[Update, ...]
    fires: Mapping[tuple[str, str], tuple[int, ...]]
    abstains: Mapping[str, int]

    def run(self, rules: RuleSet) -> list[str]:
        """Return one message per difference from what is expected; none if the test passes."""
        evaluator = RuleEvaluator(rules)
        fired: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for number, progress, rows in self.updates:
            for firing in evaluator.update(number, progress, rows):
                fired[firing.rule, firing.key].append(number)
        abstained: Counter[str] = Counter()
        for coverage in evaluator.coverage():
            abstained[coverage.rule] += sum(coverage.abstained.values())
        return [
            *(
                f"{_series_name(*series)} must fire at {_join(expected)}, and fires at {_join(fired[series])}"
                for series, expected in self.fires.items()
                if tuple(fired[series]) != expected
            ),
            *(
                f"{rule} must abstain {expected} times, and abstains {abstained[rule]} times"
                for rule, expected in self.abstains.items()
                if abstained[rule] != expected
            ),
        ]


def read_tests(rules: RuleSet) -> tuple[RuleTest, ...]:
    """Parse the unit tests of a rule set. Raises RuleError naming the test and the mistake."""
    names = {rule.name for rule in rules.rules}
    return tuple(_test(raw, number, names, rules.name) for number, raw in enumerate(rules.tests, 1))


def _test(raw: Mapping[str, Any], number: int, rules: set[str], file: str) -> RuleTest:
    name = raw.get("name")
    location = Location(file, path=f"test {name!r}" if isinstance(name, str) else f"test {number}")
    location.table(raw, _KEYS)
    if not isinstance(name, str):
        raise location.error("name must be text: what the test shows")
    updates = _updates(raw, location)
    fires: dict[tuple[str, str], tuple[int, ...]] = {}
    firing = raw.get("fires", {})
    for text, expected in location.at("fires").table(firing, firing if isinstance(firing, dict) else ("RULE",)).items():
        match = _FIRES.fullmatch(text)
        here = location.at(f"fires.{text}")
        if match is None or match["rule"] not in rules:
            raise here.error(f"there is no rule {text!r}. {suggest(text, rules, kind='rules')}")
        if not isinstance(expected, list) or not all(isinstance(update, int) for update in expected):
            raise here.error("must be a list of updates, counted from 1")
        fires[match["rule"], match["key"] or ""] = tuple(sorted(expected))
    abstains = location.at("abstains").table(raw.get("abstains", {}), rules)
    if not fires and not abstains:
        raise location.error("expects nothing; say what fires, or what abstains")
    return RuleTest(name, updates, fires, {rule: location.at(rule).count(n, 0) for rule, n in abstains.items()})


def _updates(raw: Mapping[str, Any], location: Location) -> tuple[Update, ...]:
    series = raw.get("series")
    if not isinstance(series, dict) or not series:
        raise location.error('needs series, such as series."ppo_updates.ratio_max" = "1.0 5.0"')
    parsed = {text: _parse_words(values, location.at(text)) for text, values in series.items()}
    lengths = {len(words) for words in parsed.values()}
    progress: list[Any] | None = None
    if "progress" in raw:
        progress = [next(iter(cells), None) for cells in _parse_words(raw["progress"], location.at("progress"))]
        lengths.add(len(progress))
        if any(isinstance(value, list) for value in progress):
            raise location.at("progress").error("must be numbers, or null for an unknown progress")
    if len(lengths) != 1:
        raise location.error(f"every series, and progress, must have the same number of words, not {_join(lengths)}")
    tables: list[dict[str, list[dict[str, Any]]]] = [{UPDATE_TABLE: [{}]} for _ in range(lengths.pop())]
    for text, words in parsed.items():
        _fill_rows(text, words, tables, location.at(text))
    numbers = [_update_number(rows[UPDATE_TABLE][0], place, location) for place, rows in enumerate(tables, 1)]
    if any(later <= earlier for earlier, later in itertools.pairwise(numbers)):
        raise location.error("the numbers of the updates must ascend")
    return tuple(zip(numbers, progress or [None] * len(tables), tables, strict=True))


def _update_number(row: dict[str, Any], default: int, location: Location) -> int:
    """Return the number that the series `ppo_updates.update` gives the update, else the default."""
    number = row.setdefault("update", default)
    if not isinstance(number, int | float) or not math.isfinite(number) or number != int(number) or number < 1:
        raise location.error(f"{number!r} is not the number of an update")
    row["update"] = int(number)
    return int(number)


def _parse_words(text: Any, location: Location) -> list[Cells]:
    if not isinstance(text, str):
        raise location.error('must be text with one word per update, such as "1.0 5.0x3 nan"')
    words: list[Cells] = []
    for word in text.split():
        body, _, times = word.partition("x") if not word.endswith("]") else (word, "", "")
        if times and not _TIMES.fullmatch(times):
            raise location.error(f"{as_toml(word)} is not a value; repeat one as 1.0x5")
        cells = [] if body == "_" else [_parse_cell(cell, location) for cell in body.split(",")]
        words += [cells] * (int(times) if times else 1)
        if len(words) > _MOST_UPDATES:
            raise location.error(f"has more than {_MOST_UPDATES:,} updates")
    return words


def _parse_cell(text: str, location: Location) -> float | list[str] | None:
    if text == "null":
        return None
    if text.startswith("[") and text.endswith("]"):
        return text[1:-1].split(";") if text != "[]" else []
    try:
        return float(text)
    except ValueError:
        allowed = "a number, nan, inf, -inf, null, or _ for no row"
        raise location.error(f"{text!r} is not a value; write {allowed}") from None


def _fill_rows(
    text: str, words: list[Cells], tables: list[dict[str, list[dict[str, Any]]]], location: Location
) -> None:
    """Write one series into the rows of its table, update by update."""
    match = _SERIES.fullmatch(text)
    if match is None:
        raise location.error("a series is named table.column, or table.column{key=value}")
    table, column = match["table"], match["column"]
    keys = dict(part.split("=", 1) for part in re.split(r",\s*(?=\w+=)", match["keys"] or "") if part)
    if table not in TABLES:
        raise location.error(f"there is no table {table!r}. {suggest(table, TABLES, kind='tables')}")
    types = {c.name: c.type for c in columns(table)}
    if column not in types:
        raise location.error(f"table {table} has no column {column!r}. {suggest(column, types, kind='columns')}")
    is_list = types[column].startswith("list<")
    values = [value for value in itertools.chain.from_iterable(words) if value is not None]
    if any(isinstance(value, list) is not is_list for value in values):
        raise location.error(f"column {column} is a {types[column]}; write {'[a;b]' if is_list else 'numbers'}")
    for key in keys:
        if key not in own_keys(table):
            raise location.error(f"table {table} has no key {key!r}. {suggest(key, own_keys(table), kind='keys')}")
    for tables_of_update, cells in zip(tables, words, strict=True):
        if table == UPDATE_TABLE and len(cells) != 1:
            raise location.error(f"{UPDATE_TABLE} has exactly one row per update")
        rows = tables_of_update.setdefault(table, [])
        matching = [row for row in rows if all(row.get(key) == value for key, value in keys.items())]
        for place, value in enumerate(cells):
            if place == len(matching):
                row = dict.fromkeys(ORDER_COLUMNS.get(table, ()), place + 1) | keys
                rows.append(row)
                matching.append(row)
            matching[place][column] = value


def _series_name(rule: str, key: str) -> str:
    return f"{rule}{{{key}}}" if key else rule


def _join(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in sorted(numbers)) or "none"
