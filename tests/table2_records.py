"""Records of Table 2 with numbers that are easy to reckon with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from support import GREY

from dynamic_confidence.benchmarks.table2.record import (
    VERSION,
    Absent,
    Cell,
    Computer,
    Model,
    Row,
    Series,
    Table2Record,
    Tested,
    WithExit,
)
from dynamic_confidence.benchmarks.table2.settings import Network, PaperSetting

STEPS = 4
TINY = {"tiny": Network("Tiny", "Noise", "resnet8", GREY, {"classes": 4}, width=16)}
TINY_SETTINGS = (
    PaperSetting("tiny", "qcfs", STEPS, 2.5, 100.0, 50.0, note="nobody published this"),
    PaperSetting("tiny", "qffs", 3),
)
GPU = "TensorRT and TensorRT-RTX"
COMPUTER = Computer(
    processor="a processor",
    flags=["avx2"],
    cores=2,
    pinned_to=1,
    governor="performance",
    system="Linux",
    gpu=None,
    python="3.11",
    libraries={"onnxruntime": "1.0"},
)


def series(*wall_ms: float) -> Series:
    return Series(wall_ms=list(wall_ms), cpu_ms=[x / 2 for x in wall_ms])


def row(name: str, fixed: Series, **changes: Any) -> Row:
    values = {"backend": f"{name.split()[0]} 1.0", "precision": "fp32", "one_pass": None, "with_exit": None, **changes}
    return Row(name=name, fixed=fixed, **values)


ROWS = (
    row("ONNX Runtime fp32", series(20.0, 24.0, 16.0), one_pass=series(10.0, 10.0, 10.0)),
    row("events fp32", series(8.0, 9.0, 8.0)),
)


def cell(*rows: Row, **changes: Any) -> Cell:
    """One setting, T = 4."""
    values: dict[str, Any] = {
        "steps": STEPS,
        "width": 16,
        "input": [1, 12, 12],
        "macs_per_step": 1_500_000,
        "weights": 1000,
        "neurons": 500,
        "spike_rate": 0.125,
        "model": None,
        "commit": "abc",
        "finished": "now",
        "load_average": [0.0, 1.5],
        "absent": [Absent(name=GPU, status="not possible", reason="no NVIDIA GPU on this machine")],
    }
    return Cell(rows=list(rows or ROWS), **(values | changes))


def trained_cell(accuracy: float = 0.695, test_images: int = 2000) -> Cell:
    """Exits that were measured: 1, 2 and 2 steps of those that are timed."""
    model = Model(title="net", sha256="0" * 64, data="noise", calibration_images=1000, test_images=test_images)
    tested = Tested(accuracy=accuracy, fixed_accuracy=0.7, mean_steps=1.75)
    measured = WithExit(series=series(3.0, 4.0, 3.0), exit_steps=[1, 2, 2], threshold=0.6, tested=tested)
    return cell(row("ONNX Runtime fp32", series(8.0, 8.0, 8.0), with_exit=measured), model=model, width=None)


def table2_record(cells: Mapping[str, Cell], **changes: Any) -> Table2Record:
    """A record of these settings."""
    record = Table2Record(version=VERSION, quick=False, threads=1, machine=COMPUTER, cells=dict(cells))
    return msgspec.structs.replace(record, **changes)
