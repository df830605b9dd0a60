"""One network by one method: every candidate made, checked and timed; the result is plain values, raw samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import CheckFailed
from ..record import machine
from .authors import authors
from .candidate import Candidate, Missing
from .eager import demo
from .floor import probes
from .jelly import spikingjelly
from .loop import loop_cost
from .machine import load
from .measure import interleaved, spread
from .ours import PLAIN, exported, ours
from .quantised import quantised
from .setting import LIKELY_RATES, Setting, size_of, spike_rate
from .tuned import compiled, tuned

PARTS_OF_T = (4, 2)
"""The cost over T is measured at T / 4, T / 2 and T."""
LOOPS = 30
RATE_MACS = 4e10
"""Multiply-accumulates that counting the spikes may cost."""


def candidates(setting: Setting, folder: Path, stack: ExitStack) -> Iterator[Candidate | Missing]:
    """Yield every way of answering, the reference first; `stack` closes what has to be closed."""
    yield demo(setting)
    yield tuned(setting)
    yield compiled(setting)
    yield authors(setting)
    yield from spikingjelly(setting)
    yield from quantised(setting)
    yield from ours(setting, folder, stack)


def measured(
    setting: Setting, folder: Path, seconds: float, *, quick: bool = False, told: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Time all candidates in one interleaved run and return what the tables are made from.

    Raises: CheckFailed when two of ours that must be equal are not.
    """
    before, size = load(), size_of(setting.snn)
    images = int(np.clip(RATE_MACS / (size["macs_per_step"] * setting.steps), 1, len(setting.pixels)))
    rate = spike_rate(setting.snn, setting.pixels[:images], setting.steps)
    if not LIKELY_RATES[0] <= rate <= LIKELY_RATES[1]:
        told(f"{rate:.1%} of the neurons spike per step, expected 5 to 20 %: a network unlike trained ones")
    with ExitStack() as stack:
        found = []
        for one in candidates(setting, folder, stack):
            told(f"{one.name}: {'ready' if isinstance(one, Candidate) else f'{one.status} ({one.reason})'}")
            found.append(one)
        present = [one for one in found if isinstance(one, Candidate)]
        equal = _equal(present, setting, images)
        limits = probes(setting.threads)
        runs = {one.name: _call(one, setting, setting.steps) for one in present}
        parts = {
            f"{one.name}, T = {steps}": (one.name, steps, _call(one, setting, steps))
            for one in (present[0], *(one for one in present if one.name == PLAIN.name))
            for steps in (setting.steps // part for part in PARTS_OF_T)
        }
        calls = {
            **runs,
            **{name: call for name, (_, _, call) in parts.items()},
            **{name: (lambda _, probe=probe: probe.call()) for name, probe in limits.items()},
        }
        samples = interleaved(calls, seconds, quick=quick, told=told)
    plain = exported(setting, PLAIN, folder)
    return {
        "network": setting.name,
        "method": setting.method,
        "steps": setting.steps,
        "levels": setting.snn.method.levels,
        "input": list(setting.snn.input_shape),
        **size,
        "spike_rate": rate,
        "commit": machine()["commit"],
        "finished": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "load_average": [before, load()],
        "rounds": len(samples[present[0].name].wall_ms),
        "largest_spread": max(spread(samples[name].wall_ms) for name in runs),
        "rows": [
            _row(one, equal.get(one.name), samples) if isinstance(one, Candidate) else asdict(one) for one in found
        ],
        "over_steps": [
            {"name": name, "steps": steps, **asdict(samples[key])} for key, (name, steps, _) in parts.items()
        ],
        "limits": [
            {"name": name, "kind": probe.kind, "amount": probe.amount, **asdict(samples[name])}
            for name, probe in limits.items()
        ],
        "stepping_loop": loop_cost(plain, setting.pixels, setting.threads, LOOPS),
    }


def _call(one: Candidate, setting: Setting, steps: int) -> Callable[[int], object]:
    """Answer another image in every round."""
    return lambda round_: one.run(setting.pixels[round_ % len(setting.pixels)][None], steps)


def _row(one: Candidate, equal: bool | None, samples: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": one.name,
        "status": "measured",
        "precision": one.precision,
        "steps_per_call": one.steps_per_call,
        "one_pass": one.one_pass,
        "ours": one.ours,
        "backend": one.backend,
        "equal": equal,
        **asdict(samples[one.name]),
    }


def _equal(present: list[Candidate], setting: Setting, images: int) -> dict[str, bool]:
    """Compare the logits of every step within each group of equals, bit for bit.

    Raises: CheckFailed where one of ours differs from the first of ours.
    """
    result: dict[str, bool] = {}
    for group in dict.fromkeys(one.equals for one in present if one.equals is not None):
        members = sorted((one for one in present if one.equals == group), key=lambda one: not one.ours)
        traces = [[one.trace(image[None], setting.steps) for image in setting.pixels[:images]] for one in members]
        for one, trace in zip(members, traces, strict=True):
            same = all(map(np.array_equal, trace, traces[0]))
            result[one.name] = same
            if one.ours and not same:
                raise CheckFailed(
                    f"{setting.name}/{setting.method}: the logits of '{one.name}' are not those of "
                    f"'{members[0].name}', expected the same bits. Nothing of this network was recorded; this is a "
                    "bug: please report it."
                )
    return result
