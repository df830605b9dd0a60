"""Few cases that hold every combination of the values of any t factors: what to test where all cases are too many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any


def covering(factors: Mapping[str, Sequence[Any]], together: int) -> list[dict[str, Any]]:
    """Return cases such that any `together` factors take all their combinations; greedy, always the same."""
    cases = list(product(*factors.values()))
    groups = list(combinations(range(len(factors)), together))
    parts = {case: {(group, tuple(case[i] for i in group)) for group in groups} for case in cases}
    left, chosen = set().union(*parts.values()), []
    while left:
        case = max(cases, key=lambda case: len(parts[case] & left))
        left -= parts[case]
        chosen.append(dict(zip(factors, case, strict=True)))
    return chosen
