"""Slots have one order, and one that is not known is an error."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from esper_recorder.esper import CANONICAL_SLOTS, UnknownSlotError, ordered_slots


def test_the_order_does_not_depend_on_the_order_they_are_named_in() -> None:
    slots = ("early", "mid", "late", "r0c2", "r0c10", "r1c0")
    for order in itertools.permutations(slots):
        assert ordered_slots(order) == slots


def test_each_slot_counts_once_and_no_slot_is_valid() -> None:
    assert ordered_slots(["late", "early", "late"]) == ("early", "late")
    assert ordered_slots([]) == ()
    assert ordered_slots(CANONICAL_SLOTS) == ("early", "mid", "late")


@pytest.mark.parametrize("slot", ["middle", "", "r0", "r0c", "r-1c0", "r01c0", "R0c0", " mid", "r0c1 ", None, 5])
def test_an_unknown_slot_is_an_error_that_suggests_slots(slot: Any) -> None:
    with pytest.raises(
        UnknownSlotError, match=r"(Did you mean|The slots are: early, mid, late\.).* is r<row>c<column>"
    ):
        ordered_slots(["mid", slot])


def test_an_unknown_slot_of_another_host_is_an_error_that_suggests_its_slots() -> None:
    known = ["r0c0", "r0c1"]
    assert ordered_slots(["r0c1", "r0c0"], known) == ("r0c0", "r0c1")
    with pytest.raises(UnknownSlotError, match=r"slot 'mid' is not known\. The slots are: r0c0, r0c1\.$"):
        ordered_slots(["mid"], known)
    with pytest.raises(UnknownSlotError, match=r"slot 'r0c7' is not known\. Did you mean r0c. or r0c.\?$"):
        ordered_slots(["r0c7"], known)
