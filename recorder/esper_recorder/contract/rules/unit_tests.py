"""Unit tests of rules, written in the file of the rules: series of values in, the updates that must fire out.

    [[tests]]
    name = "a ratio at the threshold does not fire"
    progress = "0.1 0.2 0.3"                          # optional; not known where left out
    series."ppo_updates.ratio_max" = "1.2 5.0 5.1"    # one word per update
    fires.ratio_explosion = [3]                       # updates, counted from 1; [] says: never
    abstains.ratio_explosion = 0                      # optional: at how many updates it could not look

A word is a number, `nan`, `inf`, `-inf`, `null` (a row whose column is NULL) or `_` (no row); several rows of one
update are joined by commas, `1.0,1.2`; `1.0x5` is the word five times. For a column of lists a word is a list,
`[]` or `[value_loss;entropy]`. A key stands in braces: in a series with its column,
`"gradient_layers.grad_norm{layer=policy.0}"` or `"recurrent_state.rms{layer=lstm,kind=h}"`, in what fires without,
`"layer_gradient{policy.0}" = [2]`. Every
column of a table that is in no series is NULL. Updates are numbered from 1, or by a series `ppo_updates.update`. Rules
that are not named may fire or not.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from esper_recorder.contract.rules.evaluator import RuleEvaluator
from esper_recorder.contract.rules.location import Place
from esper_recorder.contract.rules.ruleset import RuleSet
from esper_recorder.contract.rules.signal import ORDER_COLUMNS, UPDATE_TABLE, own_keys
from esper_recorder.contract.suggest import suggest
from esper_recorder.contract.tables import TABLES, columns

Update = tuple[int, float | None, dict[str, list[dict[str, Any]]]]
"""Number, progress and rows by table: what `RuleEvaluator.update` takes."""

_KEYS: Final = ("name", "progress", "series", "fires", "abstains")
_SERIES: Final = re.compile(r"(?P<table>\w+)\.(?P<column>\w+)(\{(?P<keys>\w+=[^}]*)\})?")
_FIRES: Final = re.compile(r"(?P<rule>[A-Za-z0-9_-]+)(\{(?P<key>[^}]*)\})?")


@dataclass(frozen=True, slots=True)
class RuleTest:
    """One unit test, read and checked.

    Attributes:
        name: what it shows.
        updates: the rows it feeds to the rules.
        fires: (rule, key) -> the updates at which it must fire, ascending.
        abstains: rule -> at how many updates it must abstain, all keys together.
    """

    name: str
    updates: tuple[Update, ...]
    fires: Mapping[tuple[str, str], tuple[int, ...]]
    abstains: Mapping[str, int]

    def run(self, rules: RuleSet) -> list[str]:
        """What differs from what was expected, a sentence each; nothing if the test passes."""
        evaluator = RuleEvaluator(rules)
        fired: dict[tuple[str, str], tuple[int, ...]] = {}
        for number, progress, rows in self.updates:
            for firing in evaluator.update(number, progress, rows):
                series = (firing.rule, firing.key)
                fired[series] = (*fired.get(series, ()), number)
        abstained: dict[str, int] = {}
        for covered in evaluator.coverage():
            abstained[covered.rule] = abstained.get(covered.rule, 0) + sum(covered.abstained.values())
        return [
            *(
                f"{_named(*series)} must fire at {_listed(expected)}, and fires at {_listed(fired.get(series, ()))}"
                for series, expected in self.fires.items()
                if fired.get(series, ()) != expected
            ),
            *(
                f"{rule} must abstain {expected} times, and abstains {abstained.get(rule, 0)} times"
                for rule, expected in self.abstains.items()
                if abstained.get(rule, 0) != expected
            ),
        ]


def read_tests(rules: RuleSet) -> tuple[RuleTest, ...]:
    """The unit tests of a rule set. Raises RuleError naming the test and what is off."""
    known = {rule.name for rule in rules.rules}
    return tuple(_test(raw, number, known, rules.name) for number, raw in enumerate(rules.tests, 1))


def _test(raw: Mapping[str, Any], number: int, known: set[str], file: str) -> RuleTest:
    name = raw.get("name")
    place = Place(file, path=f"test {name!r}" if isinstance(name, str) else f"test {number}")
    place.known(raw, _KEYS)
    if not isinstance(name, str):
        raise place.error("name must be text: what the test shows")
    series = raw.get("series")
    if not isinstance(series, dict) or not series:
        raise place.error('needs series, such as series."ppo_updates.ratio_max" = "1.0 5.0"')
    read = {text: _words(values, place.at(text)) for text, values in series.items()}
    progress = [cells[0] for cells in _words(raw["progress"], place.at("progress"))] if "progress" in raw else None
    lengths = {len(words) for words in read.values()} | ({len(progress)} if progress is not None else set())
    if len(lengths) != 1:
        raise place.error(f"every series, and progress, must have the same number of words, not {_listed(lengths)}")
    updates: list[Update] = [
        (update, progress[update - 1] if progress else None, {UPDATE_TABLE: [{}]})
        for update in range(1, lengths.pop() + 1)
    ]
    for text, words in read.items():
        _lay(text, words, updates, place.at(text))
    updates = [_numbered(update, place) for update in updates]
    if any(later[0] <= earlier[0] for earlier, later in itertools.pairwise(updates)):
        raise place.error("the numbers of the updates must ascend")
    fires: dict[tuple[str, str], tuple[int, ...]] = {}
    for text, expected in place.at("fires").known(raw.get("fires", {}), raw.get("fires", {})).items():
        match = _FIRES.fullmatch(text)
        here = place.at(f"fires.{text}")
        if match is None or match["rule"] not in known:
            raise here.error(f"there is no rule {text!r}. {suggest(text, known, kind='rules')}")
        if not isinstance(expected, list) or not all(isinstance(update, int) for update in expected):
            raise here.error("must be a list of updates, counted from 1")
        fires[match["rule"], match["key"] or ""] = tuple(sorted(expected))
    abstains = place.at("abstains").known(raw.get("abstains", {}), known)
    if not fires and not abstains:
        raise place.error("expects nothing; say what fires, or what abstains")
    return RuleTest(name, tuple(updates), fires, {r: place.at(r).count(n, 0) for r, n in abstains.items()})


def _numbered(update: Update, place: Place) -> Update:
    """The update with the number that the series `ppo_updates.update` gives it, else its own."""
    number, progress, tables = update
    row = tables[UPDATE_TABLE][0]
    given = row.setdefault("update", number)
    if not isinstance(given, int | float) or not math.isfinite(given) or given != int(given) or given < 1:
        raise place.error(f"{given!r} is no number of an update")
    row["update"] = int(given)
    return int(given), progress, tables


def _words(text: Any, place: Place) -> list[list[Any]]:
    """For each update its cells; none where there is no row."""
    if not isinstance(text, str):
        raise place.error('must be text with one word per update, such as "1.0 5.0x3 nan"')
    words: list[list[Any]] = []
    for word in text.split():
        body, _, times = word.partition("x") if not word.endswith("]") else (word, "", "")
        if times and not times.isdigit():
            raise place.error(f"{word!r} is no value; repeat one as 1.0x5")
        cells = [] if body == "_" else [_cell(cell, place) for cell in body.split(",")]
        words += [cells] * (int(times) if times else 1)
    return words


def _cell(text: str, place: Place) -> float | list[str] | None:
    if text == "null":
        return None
    if text.startswith("[") and text.endswith("]"):
        return text[1:-1].split(";") if text != "[]" else []
    try:
        return float(text)
    except ValueError:
        raise place.error(f"{text!r} is no value; write a number, nan, inf, -inf, null, or _ for no row") from None


def _lay(text: str, words: list[list[Any]], updates: list[Update], place: Place) -> None:
    """Put one series into the rows of its table."""
    match = _SERIES.fullmatch(text)
    if match is None:
        raise place.error("a series is named table.column, or table.column{key=value}")
    table, column = match["table"], match["column"]
    keys = dict(part.split("=", 1) for part in re.split(r",\s*(?=\w+=)", match["keys"] or "") if part)
    if table not in TABLES:
        raise place.error(f"there is no table {table!r}. {suggest(table, TABLES, kind='tables')}")
    names = [c.name for c in columns(table)]
    if column not in names:
        raise place.error(f"table {table} has no column {column!r}. {suggest(column, names, kind='columns')}")
    for key in keys:
        if key not in own_keys(table):
            raise place.error(f"{key!r} is no key of {table}; it has {', '.join(own_keys(table)) or 'none'}")
    order = ORDER_COLUMNS.get(table, ())
    for (_, _, tables), cells in zip(updates, words, strict=True):
        if table == UPDATE_TABLE and len(cells) != 1:
            raise place.error(f"{UPDATE_TABLE} has exactly one row per update")
        rows = tables.setdefault(table, [])
        own = [row for row in rows if all(row.get(key) == value for key, value in keys.items())]
        for place_in_update, value in enumerate(cells):
            if place_in_update == len(own):
                row = dict.fromkeys(order, place_in_update + 1) | keys
                rows.append(row)
                own.append(row)
            own[place_in_update][column] = value


def _named(rule: str, key: str) -> str:
    return f"{rule}{{{key}}}" if key else rule


def _listed(numbers: Any) -> str:
    return ", ".join(str(number) for number in sorted(numbers)) or "none"
