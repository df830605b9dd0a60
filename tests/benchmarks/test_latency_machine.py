"""Energy, memory and machine, read from files as Linux has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dynamic_confidence.benchmarks import processor
from dynamic_confidence.benchmarks.latency import energy, machine, memory
from dynamic_confidence.benchmarks.latency.energy import Meter, find_meter, integrated, jetson_rails, measure_energy
from dynamic_confidence.benchmarks.latency.energy import rapl as rapl_of
from dynamic_confidence.benchmarks.latency.memory import MemoryUse
from dynamic_confidence.benchmarks.latency.nvml import open_nvml
from dynamic_confidence.benchmarks.latency.record import Energy, NotMeasured
from dynamic_confidence.runtime import load

POWERCAP = Path("sys/class/powercap")
HWMON = Path("sys/class/hwmon")


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        root.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


def packages(root: Path, *energies: int, largest: int = 1000) -> list[Path]:
    """A processor with packages, and a domain of memory inside the first, which does not count."""
    folders = []
    for number, uj in enumerate(energies):
        folders.append(root / POWERCAP / f"intel-rapl:{number}")
        write(folders[-1], name=f"package-{number}", energy_uj=str(uj), max_energy_range_uj=str(largest))
    write(root / POWERCAP / "intel-rapl:0:0", name="dram", energy_uj="7", max_energy_range_uj="9")
    write(root / POWERCAP / "intel-rapl:9", name="psys", energy_uj="7", max_energy_range_uj="9")
    return folders


def meter_of(found: Meter | NotMeasured | None) -> Meter:
    assert isinstance(found, Meter)
    return found


def test_rapl_adds_up_packages_and_counts_over_the_end(tmp_path: Path):
    first, second = packages(tmp_path, 100, 990)

    def work() -> None:
        write(first, energy_uj="350")
        write(second, energy_uj="10")  # 990 … 1000, 0 … 10

    meter = meter_of(rapl_of(tmp_path))
    assert meter.source == "RAPL, package-0 + package-1"
    assert meter.joules(work) == pytest.approx((250 + 21) / 1e6)
    assert meter.joules(lambda: None) == 0


def test_no_counter_is_said(tmp_path: Path):
    found = rapl_of(tmp_path)
    assert isinstance(found, NotMeasured)
    assert found.reason == "no counter of the processor's energy (sys/class/powercap/intel-rapl:*) on this machine"


def test_a_counter_that_only_root_may_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (counter,) = packages(tmp_path, 1)

    def refused(file: Path) -> int:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(energy, "_number", refused)
    found = rapl_of(tmp_path)
    assert isinstance(found, NotMeasured)
    file = counter / "max_energy_range_uj"
    assert found.reason.startswith(f"{file} cannot be read (Permission denied); root may allow it")
    assert found.reason.endswith("sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj")


def sensor(folder: Path, **rails: tuple[int, int]) -> None:
    """An INA3221: name -> mV, mA; and the sum of the shunts, which is no rail."""
    write(folder, name="ina3221", in7_label="sum of shunt voltages", in7_input="3")
    for number, (name, (mv, ma)) in enumerate(rails.items(), 1):
        write(folder, **{f"in{number}_label": name, f"in{number}_input": str(mv), f"curr{number}_input": str(ma)})


def test_the_rail_of_a_whole_module_is_taken_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / HWMON / "hwmon0", name="thermal", in1_label="VDD_IN")
    sensor(tmp_path / HWMON / "hwmon3", VDD_IN=(5000, 2000), VDD_CPU_GPU_CV=(5000, 900))
    monkeypatch.setattr(energy, "sampled_joules", lambda watts, work: watts())
    meter = meter_of(find_meter(on_gpu=False, root=tmp_path))
    assert meter.source == "Jetson, VDD_IN"
    assert meter.joules(lambda: None) == pytest.approx(10.0)


def test_without_one_the_rails_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sensor(tmp_path / HWMON / "hwmon3", VDD_GPU_SOC=(10000, 300), VDD_CPU_CV=(10000, 200))
    sensor(tmp_path / HWMON / "hwmon4", VIN_SYS_5V0=(5000, 100))
    monkeypatch.setattr(energy, "sampled_joules", lambda watts, work: watts())
    meter = meter_of(find_meter(on_gpu=True, root=tmp_path))
    assert meter.source == "Jetson, VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert meter.joules(lambda: None) == pytest.approx(3.0 + 2.0 + 0.5)


def test_another_machine_has_no_rails(tmp_path: Path):
    assert jetson_rails(tmp_path) is None
    packages(tmp_path, 1)
    assert meter_of(find_meter(on_gpu=False, root=tmp_path)).source == "RAPL, package-0"


def test_power_is_integrated():
    assert integrated([(0.0, 2.0), (1.0, 4.0), (1.5, 4.0)]) == pytest.approx(3.0 + 2.0)
    steps = np.linspace(0.0, 2.0, 201)
    assert integrated([(t, 3.0 * t) for t in steps.tolist()]) == pytest.approx(6.0)


def test_power_is_sampled_while_the_work_lasts(monkeypatch: pytest.MonkeyPatch):
    asked: list[float] = []

    def watts() -> float:
        asked.append(5.0)
        return 5.0

    monkeypatch.setattr(energy, "SAMPLING_S", 0.001)
    joules = energy.sampled_joules(watts, lambda: [None for _ in iter(lambda: len(asked) > 4, True)])
    assert joules > 0
    assert len(asked) >= 6  # before, during, after


class CountingMeter:
    """Every inference costs 2 J with early exit, 5 J without; a second of rest 1 J."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.used, self.log = 0.0, 0.0, []
        monkeypatch.setattr(energy.time, "sleep", self.sleep)
        monkeypatch.setattr(energy.time, "perf_counter", lambda: self.now)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.used += seconds

    def run(self, index: int, early_exit: bool) -> None:
        self.log.append((index, early_exit))
        self.used += 2.0 if early_exit else 5.0

    def joules(self, work: Callable[[], object]) -> float:
        before = self.used
        work()
        return self.used - before


def test_energy_per_inference_on_the_same_images(monkeypatch: pytest.MonkeyPatch):
    counting = CountingMeter(monkeypatch)
    found = measure_energy(Meter("a meter", counting.joules), counting.run, 4, ms=1500.0)
    assert found == Energy(source="a meter", idle_watts=1.0, joules_with_exit=2.0, joules_without_exit=5.0)
    assert counting.log == [(index, way) for way in (True, False, False, True) for index in (0, 2)]


def test_short_inferences_go_through_all_images_alike(monkeypatch: pytest.MonkeyPatch):
    counting = CountingMeter(monkeypatch)
    measure_energy(Meter("a meter", counting.joules), counting.run, 3, ms=500.0)
    assert [index for index, _ in counting.log[:6]] == [0, 0, 1, 1, 2, 2]


@pytest.mark.skipif(open_nvml() is not None, reason="has an NVIDIA GPU")
def test_without_a_gpu_its_energy_is_not_measured(tmp_path: Path):
    found = find_meter(on_gpu=True, root=tmp_path)
    assert isinstance(found, NotMeasured)
    assert found.reason == "the GPU does not tell its energy: no NVML (libnvidia-ml.so.1)"
    assert memory.gpu_mb() is None
    assert machine.described(on_gpu=True).gpu is None


@pytest.mark.gpu
def test_the_gpu_tells_what_it_is():
    nvml = open_nvml()
    assert nvml is not None
    assert nvml.name()
    assert nvml.driver()
    total, used = nvml.memory() or (0, 1)
    assert 0 < used < total
    assert (nvml.clock_mhz() or 0) > 0
    assert nvml.joules() is None or nvml.joules() > 0  # type: ignore[operator]
    assert machine.described(on_gpu=True).gpu is not None


def status(root: Path, rss: int, peak: int) -> None:
    write(root / "proc" / "self", status=f"Name:\tpython\nVmHWM:\t  {peak} kB\nVmRSS:\t  {rss} kB", clear_refs="")


def test_memory_at_the_moments_that_count(tmp_path: Path):
    status(tmp_path, 1000, 5000)
    use = MemoryUse.begun(on_gpu=False, root=tmp_path)
    assert (tmp_path / "proc/self/clear_refs").read_text() == "5"  # the peak counts from here
    assert use.record is None
    status(tmp_path, 2000, 2500)
    use.opened(tmp_path)
    status(tmp_path, 2000, 4000)
    assert use.record is None
    use.ended(tmp_path)
    assert use.record is not None
    found = use.record.rss_before, use.record.rss_open, use.record.rss_peak, use.record.gpu
    assert found == (1.024, 2.048, 4.096, None)
    status(tmp_path, 1999, 1999)  # the kernel adds pages up late
    use.ended(tmp_path)
    assert use.record.rss_peak == 2.048


def test_a_system_that_does_not_tell_its_memory(tmp_path: Path):
    use = MemoryUse.begun(on_gpu=False, root=tmp_path)
    use.opened(tmp_path)
    use.ended(tmp_path)
    assert use.record is None


def test_this_machine_tells_what_it_is():
    found = machine.described(on_gpu=False)
    assert found.processor
    assert found.cores >= 1
    assert found.gpu is None
    assert found.libraries["numpy"] == np.__version__
    assert {"onnxruntime", "tensorrt"} <= set(found.libraries)


def test_a_processor_of_a_board(tmp_path: Path):
    write(tmp_path / "proc", cpuinfo="processor\t: 0\nFeatures\t: fp asimd i8mm\nModel\t\t: A board")
    frequencies = tmp_path / "sys/devices/system/cpu/cpu2/cpufreq"
    write(frequencies, scaling_governor="powersave", scaling_cur_freq="1500000")
    assert processor.processor(tmp_path) == "A board"
    assert processor.flags(tmp_path) == ["asimd", "i8mm"]
    assert processor.governor([2, 3], tmp_path) == "powersave"
    assert processor.clock_mhz([2, 3], tmp_path) == 1500.0
    assert processor.governor([], tmp_path) == "not readable"
    assert processor.clock_mhz([], tmp_path) is None


def test_the_clock_of_a_processor_without_a_driver_for_it(tmp_path: Path):
    lines = "processor\t: 0\nmodel name\t: A processor\ncpu MHz\t\t: 2400.1\n\nprocessor\t: 1\ncpu MHz\t\t: 1200.0"
    write(tmp_path / "proc", cpuinfo=lines)
    assert processor.processor(tmp_path) == "A processor"
    assert processor.clock_mhz([], tmp_path) == 2400.1
    assert processor.clock_mhz([1], tmp_path) == 1200.0
    assert processor.clock_mhz([5], tmp_path) is None


def test_pinned_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {3, 1}, raising=False)
    assert machine.pinned_cores() == [1, 3]
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert machine.pinned_cores() == []


@pytest.mark.parametrize(
    ("script", "expected"),
    [("echo 'NV Power Mode: MAXN'; echo 0", "NV Power Mode: MAXN 0"), ("exit 4", None), (None, None)],
)
def test_the_power_mode_of_a_jetson(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, expected: str | None
):
    write(tmp_path / "etc", nv_tegra_release="# R36 (release)")
    programs = tmp_path / "bin"
    programs.mkdir()
    if script is not None:
        (programs / "nvpmodel").write_text(f"#!/bin/sh\n{script}\n")
        (programs / "nvpmodel").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    assert machine.power_mode(tmp_path) == expected
    assert machine.power_mode(programs) is None  # another machine


def test_what_others_use_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def pass_time(seconds: float) -> None:
        assert seconds == load.WATCHED_S
        write(tmp_path, stat="cpu  110 10 15 160 25 0 0 5 99 99\ncpu0 …")

    write(tmp_path, stat="cpu  100 10 10 100 20 0 0 0 50 50\ncpu0 …")
    monkeypatch.setattr(load.time, "sleep", pass_time)
    assert load.used_share(tmp_path) == (10 + 5 + 5) / (10 + 5 + 60 + 5 + 5)


@pytest.mark.parametrize("stat", [None, "", "cpu 1 2", "cpu a b c d e", "intr 1 2 3 4 5 6"])
def test_the_load_average_where_the_system_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stat: str | None
):
    if stat is not None:
        write(tmp_path, stat=stat)
    monkeypatch.setattr(load.os, "getloadavg", lambda: (3.0, 0.0, 0.0), raising=False)
    monkeypatch.setattr(load.os, "cpu_count", lambda: 4)
    assert load.used_share(tmp_path) == 0.75
    monkeypatch.delattr(load.os, "getloadavg")
    assert load.used_share(tmp_path) is None
