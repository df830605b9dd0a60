"""Networks that the tests share: a small random one, exported once per form, and the data that lies beside the clone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dynamic_confidence.models.checkpoint import Checkpoint, save_checkpoint, sha256_of
from dynamic_confidence.models.lsq import initialise_scales
from dynamic_confidence.models.registry import build
from dynamic_confidence.runtime.manifest import Preprocessing
from dynamic_confidence.toolchain.export import ExportOptions, export

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"

GREY = Preprocessing(color="L", height=12, width=12, mean=(0.3,), std=(0.4,))
CLASSES = tuple("zero one two three".split())


def random_checkpoint(
    architecture: str = "resnet8", preprocessing: Preprocessing = GREY, **arguments: object
) -> Checkpoint:
    """A network with random weights, settled batch statistics and quantisers that see their range."""
    torch.manual_seed(0)
    arguments = {"width": 4, "classes": len(CLASSES), "in_channels": preprocessing.channels, **arguments}
    network = build(architecture, **arguments)
    images = torch.randn(64, *preprocessing.shape)
    with torch.no_grad():
        network.train()
        for _ in range(20):
            network(images)
        network.eval()
        initialise_scales(network, images)
        network.get_parameter("fc.weight").mul_(4.0)  # answers that differ from image to image
    return Checkpoint(architecture, arguments, network.state_dict(), preprocessing, CLASSES)


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return random_checkpoint()


@pytest.fixture(scope="session")
def model_file(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `model.pt` of the small random network. Read it, never write to it."""
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_checkpoint(path, checkpoint)
    return path


@pytest.fixture(scope="session")
def exported(checkpoint: Checkpoint, model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`exported(method="qffs", steps=12, steps_per_call=4) -> Path`: the network's .onnx. Read it, never write to it."""
    folder, made = tmp_path_factory.mktemp("exported"), {}

    def export_once(**options: object) -> Path:
        settings = ExportOptions(**{"steps": 12, **options})  # type: ignore[arg-type]
        if settings not in made:
            path = folder / f"network{len(made)}.onnx"
            path.write_bytes(export(checkpoint, sha256_of(model_file), settings, name=path.stem).content)
            made[settings] = path
        return made[settings]

    return export_once


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """uint8 `[64, 1, 12, 12]`: blobs that the random network tells apart."""
    generator = np.random.default_rng(1)
    coarse = generator.uniform(0, 255, (64, 1, 4, 4))
    noise = generator.normal(0, 15, (64, 1, 12, 12))
    return np.clip(np.kron(coarse, np.ones((1, 1, 3, 3))) + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data sets that lie beside the repository where the project is developed."""
    if not SHARED.is_dir():
        pytest.skip(f"the development data is not beside this clone (looked for {SHARED})")
    return SHARED
