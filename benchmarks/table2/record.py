"""The record of Table 2 on a machine: every sample. The page is computed from it and the paper's numbers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from ...runtime.errors import DynamicConfidenceError
from ..record import RecordPart, require, require_alike, require_same, require_times
from ..record import read_record as read
from .settings import names

VERSION = 1


class Computer(RecordPart, frozen=True):
    """What the cells of one record have in common."""

    processor: str
    flags: list[str]
    """Those that decide which kernels run."""
    cores: int
    pinned_to: int
    """How many cores the process was kept to; 0: to no particular ones."""
    governor: str
    system: str
    gpu: str | None
    """Compute capability, as `sm89`; null: none."""
    python: str
    libraries: dict[str, str]


class Series(RecordPart, frozen=True):
    """Milliseconds of an image, one entry per round."""

    wall_ms: list[float]
    cpu_ms: list[float]

    def __post_init__(self) -> None:
        require_alike(wall_ms=self.wall_ms, cpu_ms=self.cpu_ms)
        require_times(self.wall_ms)


class Tested(RecordPart, frozen=True):
    """What early exit does on the test images; accuracies are fractions."""

    accuracy: float
    fixed_accuracy: float
    """After all T steps."""
    mean_steps: float

    def __post_init__(self) -> None:
        fits = 0 <= self.accuracy <= 1 and 0 <= self.fixed_accuracy <= 1
        require(fits, f"accuracy {self.accuracy} and {self.fixed_accuracy}: expected fractions, 0 to 1")


class WithExit(RecordPart, frozen=True):
    """Dynamic Confidence on a trained network: in every round all timed images, the time divided by their number."""

    series: Series
    exit_steps: list[int]
    """Of the timed ones, `[image]`."""
    threshold: float
    tested: Tested


class Row(RecordPart, frozen=True):
    """One engine; its calls took turns with those of all others of the cell."""

    name: str
    """`OpenVINO int8`"""
    backend: str
    """With its version."""
    precision: Literal["fp32", "int8"]
    fixed: Series
    """All T steps, one step per call, batch 1."""
    one_pass: Series | None
    """The quantised network before conversion on the same backend; null: it has none."""
    with_exit: WithExit | None
    """null: not measured, the weights are random."""


class Absent(RecordPart, frozen=True):
    """An engine that was not measured."""

    name: str
    status: str
    reason: str


class Model(RecordPart, frozen=True):
    """A trained network, and the data that its exits come from."""

    title: str
    sha256: str
    data: str
    calibration_images: int
    test_images: int


class Cell(RecordPart, frozen=True):
    """One setting of the table."""

    steps: int
    """T"""
    width: int | None
    """Channels of the first stage of a random network; null: a trained one."""
    input: list[int]
    """`[channel, y, x]`"""
    macs_per_step: int
    weights: int
    neurons: int
    spike_rate: float
    """Share of the neurons that spike in a mean step, of the first ones."""
    model: Model | None
    """null: random weights."""
    commit: str
    finished: str
    load_average: list[float | None]
    """Before and after."""
    rows: list[Row]
    absent: list[Absent]

    def __post_init__(self) -> None:
        require(len(self.rows) > 0, "rows: expected at least one engine")
        require(self.steps > 0, f"steps {self.steps}: expected at least 1")
        require(0 <= self.spike_rate <= 1, f"spike_rate {self.spike_rate}: expected a share, 0 to 1")
        for row in self.rows:
            if (found := row.with_exit) is None:
                continue
            fits = len(found.exit_steps) > 0 and all(1 <= step <= self.steps for step in found.exit_steps)
            require(fits, f"exit_steps of {row.name}: expected at least one, each 1 to {self.steps}")
            mean = found.tested.mean_steps
            require(1 <= mean <= self.steps, f"mean_steps {mean} of {row.name}: expected 1 to {self.steps}")
        exits_of = [row.name for row in self.rows if row.with_exit is not None]
        require(self.model is not None or not exits_of, f"with_exit of {exits_of}: expected null without a model")


class Table2Record(RecordPart, frozen=True, tag_field="study", tag="table2"):
    version: Literal[1]
    quick: bool
    """Narrower networks and few rounds: to see that all works."""
    threads: int
    machine: Computer
    cells: dict[str, Cell]
    """By setting, `network/method`."""


def exits_by_precision(cell: Cell) -> dict[str, WithExit]:
    """Those of the first engine of each precision, since all have the same; empty for random weights."""
    found: dict[str, WithExit] = {}
    for row in cell.rows:
        if row.with_exit is not None:
            found.setdefault(row.precision, row.with_exit)
    return found


def read_record(path: Path) -> Table2Record:
    """Read and check a record. Raises: DynamicConfidenceError for what is none, with the key at fault."""
    command = f"python -m dynamic_confidence.benchmarks.table2 -o {path.stem}_2.json"
    again = f"Name another file with -o, or measure one: {command}"
    return read(path, Table2Record, f"a record of Table 2 of version {VERSION}", again)


def read_measured(path: Path) -> Table2Record:
    """Read a record that is to be shown. Raises: DynamicConfidenceError as `read_record`, or for one of no setting."""
    record = read_record(path)
    require_settings(path, record)
    return record


def require_settings(path: Path, record: Table2Record) -> None:
    """Raise a DynamicConfidenceError for a record that holds nothing of the table."""
    if not record.cells.keys() & set(names()):
        held = ", ".join(record.cells) or "nothing"
        raise DynamicConfidenceError(
            f"{path}: holds no setting of Table 2 ({held}), expected one as {names()[0]}. Measure one: "
            f"python -m dynamic_confidence.benchmarks.table2 -o {path.stem}_2.json"
        )


def continued(path: Path, fresh: Table2Record) -> Table2Record:
    """What an earlier run measured, if this one may go on with it; `fresh`, without cells, where there is none.

    Raises: DynamicConfidenceError for one of other options, another machine or other versions, saying what differs.
    """
    if not path.exists():
        return fresh
    before = read_record(path)
    require_same(path, _common(before), _common(fresh))
    return before


def _common(record: Table2Record) -> dict[str, Any]:
    """What all cells of a record must have in common."""
    machine = msgspec.to_builtins(record.machine)
    return {"quick": record.quick, "threads": record.threads, **machine.pop("libraries"), **machine}
