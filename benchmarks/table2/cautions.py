"""Where a record of Table 2 was measured, what makes it doubtful, and what sets two of them apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..latency.report_machines import apart
from ..latency.report_parts import Table
from ..latency.report_text import percent
from . import settings
from .record import Cell, Table2Record, exits_by_precision

OTHERS = 0.5
"""Load average beside our own from which on the timings are not to be trusted."""
TOLERATED = 0.01
"""Accuracy that an exit calibrated on 1,000 images may well lose on others."""


def differences(records: Sequence[Table2Record]) -> Iterator[str]:
    """Say what keeps these records from being compared; nothing where they belong together."""
    if found := apart([_hardware(record) for record in records]):
        yield f"These records come from different machines ({found}). Compare what is saved, not the milliseconds."
    if found := apart([_software(record) for record in records]):
        yield f"These records were measured with different software ({found})."
    if found := apart([_options(record) for record in records]):
        yield f"These records were measured with different options ({found})."


def cautions(record: Table2Record) -> Iterator[str]:
    """Say what a reader should know before a number is quoted."""
    if record.quick:
        yield (
            f"Measured with `--quick`: networks with {settings.QUICK} times fewer channels, three rounds. Not the "
            "networks of the paper: nothing here is to be quoted."
        )
    low, high = settings.LIKELY_RATES
    for name, cell in record.cells.items():
        if cell.model is not None:
            yield from _of_trained(name, cell)
        elif not low <= cell.spike_rate <= high:
            yield (
                f"{name}: {cell.spike_rate:.1%} of the neurons spike per step, trained networks {low:.0%} to "
                f"{high:.0%}: what sparsity gains there is not shown by these times."
            )
    expected = {setting.name: setting.steps for setting in settings.SETTINGS}
    for name, cell in record.cells.items():
        if (steps := expected.get(name, cell.steps)) != cell.steps:
            yield f"{name}: measured with T = {cell.steps}, the paper's is {steps}: not to be set beside it."
    if unknown := sorted(record.cells.keys() - set(settings.names())):
        yield (
            f"The record also holds {', '.join(unknown)}, which this version's table does not have: not shown. Update "
            "dynamic-confidence."
        )
    busiest = max(_loads(record), default=0.0)
    if busiest > record.threads + OTHERS:
        yield (
            f"The load average was up to {busiest:.1f} with {record.threads} thread(s): other processes may have used "
            "the machine. Measure again when nothing else runs."
        )


def _of_trained(name: str, cell: Cell) -> Iterator[str]:
    """Say where early exit loses more answers than it may, or cannot be told to."""
    if cell.model is not None and cell.model.test_images < settings.TEST_IMAGES:
        yield (
            f"{name}: {cell.model.title} was tested on {cell.model.test_images} images: too few to tell what early "
            "exit does to its accuracy. Give it a larger part `test`."
        )
    for precision, exits in exits_by_precision(cell).items():
        lost = exits.tested.fixed_accuracy - exits.tested.accuracy
        if round(lost, 6) > TOLERATED:
            yield (
                f"{name}, {precision}: early exit loses {percent(lost)} points of accuracy, which its milliseconds do "
                "not show."
            )


def machine_table(record: Table2Record) -> Table:
    """All of it, as words."""
    loads, cells = _loads(record), record.cells.values()
    rows = {
        "command": "python -m dynamic_confidence.benchmarks.table2 -o record.json" + " --quick" * record.quick,
        **_hardware(record),
        "threads": str(record.threads),
        "load average": f"{min(loads):.1f} to {max(loads):.1f}" if loads else "not known",
        "software": ", ".join(f"{name} {version}" for name, version in _software(record).items()),
        "commit": ", ".join(sorted({cell.commit for cell in cells})),
        "finished": ", ".join(sorted({cell.finished for cell in cells})),
    }
    return Table("The machine", ("", "found"), tuple(rows.items()), words=True)


def _hardware(record: Table2Record) -> dict[str, str]:
    machine = record.machine
    return {
        "processor": machine.processor,
        "flags": " ".join(machine.flags) or "not readable",
        "cores": str(machine.cores),
        "pinned to": f"{machine.pinned_to} core(s)" if machine.pinned_to else "no particular cores",
        "governor": machine.governor,
        "system": machine.system,
        "GPU": machine.gpu or "none",
    }


def _software(record: Table2Record) -> dict[str, str]:
    return {"Python": record.machine.python, **record.machine.libraries}


def _options(record: Table2Record) -> dict[str, str]:
    return {"networks": "narrow (--quick)" if record.quick else "whole", "threads": str(record.threads)}


def _loads(record: Table2Record) -> list[float]:
    return [load for cell in record.cells.values() for load in cell.load_average if load is not None]
