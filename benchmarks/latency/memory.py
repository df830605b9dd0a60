"""Memory of this process, as Linux tells it, and of the GPU."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from .nvml import open_nvml
from .record import Memory

STATUS, CLEAR = Path("proc/self/status"), Path("proc/self/clear_refs")
ROOT = Path("/")


@dataclass
class MemoryUse:
    """Megabytes at the moments that count; None where the system does not tell."""

    before: float | None
    gpu_before: float | None
    open: float | None = None
    peak: float | None = None
    gpu: float | None = None

    @classmethod
    def begun(cls, *, on_gpu: bool, root: Path = ROOT) -> MemoryUse:
        """To be called before the engine is opened; the peak counts from here."""
        forget_peak(root)
        return cls(status_mb("VmRSS", root), gpu_mb() if on_gpu else None)

    def opened(self, root: Path = ROOT) -> None:
        """To be called after the engine's first call."""
        self.open = status_mb("VmRSS", root)
        now = None if self.gpu_before is None else gpu_mb()
        self.gpu = None if now is None or self.gpu_before is None else now - self.gpu_before

    def ended(self, root: Path = ROOT) -> None:
        """To be called after its last timed inference."""
        peak = status_mb("VmHWM", root)
        # The kernel counts pages by processor and adds them up late, so its peak may lie a little below what it said.
        self.peak = None if peak is None else max(peak, self.before or 0.0, self.open or 0.0)

    @property
    def record(self) -> Memory | None:
        """None where the system does not tell, or it ended before that."""
        if self.before is None or self.open is None or self.peak is None:
            return None
        return Memory(rss_before=self.before, rss_open=self.open, rss_peak=self.peak, gpu=self.gpu)


def status_mb(key: str, root: Path = ROOT) -> float | None:
    """A line of /proc/self/status such as `VmRSS:   1234 kB`, in units of 10^6 bytes; None where there is none."""
    try:
        lines = (root / STATUS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith(f"{key}:")), None)
    return None if found is None else int(found) * 1024 / 1e6


def forget_peak(root: Path = ROOT) -> None:
    """Let VmHWM count from now on; where that is not allowed it goes on counting from the start of the process."""
    with contextlib.suppress(OSError):
        (root / CLEAR).write_text("5")


def gpu_mb() -> float | None:
    """In use on the GPU, by anyone: in a container the driver does not say whose it is."""
    nvml = open_nvml()
    memory = None if nvml is None else nvml.memory()
    return None if memory is None else memory.used / 1e6
