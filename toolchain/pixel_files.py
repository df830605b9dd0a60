"""Images that stay on disk until a batch needs them: ImageNet does not fit into memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..runtime.manifest import Preprocessing
from ..runtime.pixels import pixels_from_files


@dataclass(frozen=True, eq=False)
class PixelFiles:
    """Image files that can be indexed like their pixels uint8 `[N, channel, y, x]`; each reading decodes them again."""

    files: Sequence[Path]
    preprocessing: Preprocessing

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.files), *self.preprocessing.shape))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Decode the images of these rows. Raises: DynamicConfidenceError when one is not a readable image."""
        chosen = self.subset(torch.arange(len(self))[rows]).files
        return torch.from_numpy(pixels_from_files(chosen, self.preprocessing))

    def subset(self, rows: Tensor) -> PixelFiles:
        """Return the files of these rows `[n]`, without reading them."""
        return PixelFiles([self.files[row] for row in rows.tolist()], self.preprocessing)

    def digest(self) -> str:
        """Hash of the files' names and sizes: their contents would take as long to read as an epoch."""
        names = (f"{file.parent.name}/{file.name} {file.stat().st_size}\n" for file in self.files)
        return hashlib.sha256("".join(names).encode()).hexdigest()
