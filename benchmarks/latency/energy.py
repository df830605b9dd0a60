"""What an inference costs in joules, in a pass of its own: by NVML, the rails of a Jetson, or RAPL."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .nvml import open_nvml
from .record import Energy, NotMeasured

ROOT = Path("/")
POWERCAP, HWMON = Path("sys/class/powercap"), Path("sys/class/hwmon")
MODULE_RAILS = ("VDD_IN", "POM_5V_IN")
"""Of a Jetson: what the whole module draws. Modules without one have rails that are added up."""
BLOCK_S = 3.0
"""Long beside the tenth of a second in which NVML and INA sensors take a new value."""
SAMPLING_S = 0.02


class Meter(NamedTuple):
    source: str
    joules: Callable[[Callable[[], object]], float]
    """Do this, and say what was used meanwhile."""


def find_meter(*, on_gpu: bool, root: Path = ROOT) -> Meter | NotMeasured:
    """Find what measures where the engine runs; `root` is where /sys is."""
    rails = jetson_rails(root)
    if rails is not None:
        return rails
    return gpu_meter() if on_gpu else rapl(root)


def measure_energy(meter: Meter, run: Callable[[int, bool], object], images: int, ms: float) -> Energy:
    """Measure idle power, then inferences with early exit, without, without and with, on the same images.

    `run(image, early_exit)` infers; `ms` is about what it takes without early exit.
    """
    inferences = max(1, math.ceil(BLOCK_S * 1e3 / ms))
    chosen = [index * images // inferences for index in range(inferences)]

    def block(early_exit: bool) -> float:
        return meter.joules(lambda: [run(index, early_exit) for index in chosen]) / inferences

    started = time.perf_counter()
    idle = meter.joules(lambda: time.sleep(BLOCK_S)) / (time.perf_counter() - started)
    first, second, third, fourth = (block(early_exit) for early_exit in (True, False, False, True))
    return Energy(
        source=meter.source,
        idle_watts=idle,
        joules_with_exit=(first + fourth) / 2,
        joules_without_exit=(second + third) / 2,
    )


def rapl(root: Path = ROOT) -> Meter | NotMeasured:
    """The processor's packages, memory not included, by Linux's powercap counters."""
    packages = [
        folder
        for folder in sorted((root / POWERCAP).glob("intel-rapl:*"))
        if folder.name.count(":") == 1 and _text(folder / "name").startswith("package")
    ]
    if not packages:
        return NotMeasured(reason=f"no counter of the processor's energy ({POWERCAP}/intel-rapl:*) on this machine")
    counters = [(folder / "energy_uj", folder / "max_energy_range_uj") for folder in packages]
    try:
        ranges = [_number(largest) for _, largest in counters]
        for counter, _ in counters:
            _number(counter)
    except OSError as error:
        return NotMeasured(
            reason=f"{error.filename} cannot be read ({error.strerror}); root may allow it: sudo chmod a+r "
            f"/{POWERCAP}/intel-rapl:*/energy_uj"
        )

    def joules(work: Callable[[], object]) -> float:
        before = [_number(counter) for counter, _ in counters]
        work()
        after = [_number(counter) for counter, _ in counters]
        # A counter begins again at 0 behind its range.
        used = ((b - a) % (largest + 1) for a, b, largest in zip(before, after, ranges, strict=True))
        return sum(used) / 1e6

    return Meter(f"RAPL, {' + '.join(_text(folder / 'name') for folder in packages)}", joules)


def jetson_rails(root: Path = ROOT) -> Meter | None:
    """The INA sensors of a Jetson; None elsewhere, or where they cannot be read.

    P = U I; a module without a rail for all of it: the sum of its rails.
    """
    rails: dict[str, tuple[Path, Path]] = {}
    for folder in sorted((root / HWMON).glob("hwmon*")):
        if not _text(folder / "name").startswith("ina3221"):
            continue
        for label in sorted(folder.glob("in[0-9]*_label")):
            number = label.name.removeprefix("in").removesuffix("_label")
            volts, amperes = folder / f"in{number}_input", folder / f"curr{number}_input"
            if _text(volts) and _text(amperes):
                rails[_text(label)] = volts, amperes
    whole = next((name for name in MODULE_RAILS if name in rails), None)
    chosen = rails if whole is None else {whole: rails[whole]}
    if not chosen:
        return None

    def watts() -> float:
        return sum(_number(volts) * _number(amperes) for volts, amperes in chosen.values()) / 1e6  # mV mA

    return Meter(f"Jetson, {' + '.join(chosen)}", lambda work: sampled_joules(watts, work))


def gpu_meter() -> Meter | NotMeasured:
    """The energy counter of the GPU's board; what the host uses is not in it."""
    nvml = open_nvml()
    if nvml is None or nvml.joules() is None:
        why = "no NVML (libnvidia-ml.so.1)" if nvml is None else "its NVML has no energy counter (before Volta)"
        return NotMeasured(reason=f"the GPU does not tell its energy: {why}")

    def joules(work: Callable[[], object]) -> float:
        before = nvml.joules()
        work()
        after = nvml.joules()
        return math.nan if before is None or after is None else after - before

    return Meter("NVML, the GPU's board", joules)


def sampled_joules(watts: Callable[[], float], work: Callable[[], object]) -> float:
    """Integrate power over the time that the work takes, by the trapezoidal rule; sampled in a thread of its own."""
    samples, done = [(time.perf_counter(), watts())], threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLING_S):
            samples.append((time.perf_counter(), watts()))

    thread = threading.Thread(target=sample, name="power")
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    samples.append((time.perf_counter(), watts()))
    return integrated(samples)


def integrated(samples: list[tuple[float, float]]) -> float:
    """Joules of samples (second, watts): sum of (t_k+1 - t_k) (P_k + P_k+1) / 2."""
    return sum((t1 - t0) * (p0 + p1) / 2 for (t0, p0), (t1, p1) in itertools.pairwise(samples))


def _number(file: Path) -> int:
    return int(file.read_text(encoding="utf-8"))


def _text(file: Path) -> str:
    """Empty where there is none that may be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
