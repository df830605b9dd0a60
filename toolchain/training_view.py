"""The progress bar of a training on stderr: epoch, loss, validation accuracy, time left."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .training_state import EpochReport


class TrainingView:
    """Shows a training while the `with` block runs; its methods are the callbacks of `train`."""

    def __init__(self, epochs: int, shown: bool = True) -> None:
        self._console = Console(stderr=True, quiet=not shown)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._epochs = epochs
        self._task = self._bar.add_task(f"epoch 1/{epochs}", total=None, numbers="")

    def __enter__(self) -> TrainingView:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def resume(self, epoch: int) -> None:
        """Say that training goes on after this epoch."""
        self._console.print(f"Resuming after epoch {epoch} of {self._epochs}.", highlight=False)

    def batch(self, done: int, total: int) -> None:
        """Advance the bar."""
        self._bar.update(self._task, completed=done, total=total)

    def epoch(self, report: EpochReport) -> None:
        """Show an epoch's numbers."""
        best = f"best {100 * report.best_accuracy:.2f} %"
        numbers = f"loss {report.loss:.3f}, validation {100 * report.accuracy:.2f} % ({best})"
        if not self._console.is_terminal:
            self._console.print(f"epoch {report.epoch}/{report.epochs}: {numbers}", highlight=False, soft_wrap=True)
        self._bar.update(
            self._task, description=f"epoch {min(report.epoch + 1, report.epochs)}/{report.epochs}", numbers=numbers
        )
