"""What the tests share: a small random network, exported once per form, digits, and the data beside the clone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support import SHARED, random_checkpoint

from dynamic_confidence.models.checkpoint import Checkpoint, save_checkpoint, sha256_of
from dynamic_confidence.runtime.gpu import device_target
from dynamic_confidence.runtime.manifest import Preprocessing
from dynamic_confidence.toolchain.digits import write_digits
from dynamic_confidence.toolchain.export import ExportOptions, export

# OpenVINO would report every import to its makers (runtime/engines/openvino.py); some tests import it by themselves.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
# Small networks: two threads wait for each other longer than they compute, above all when tests share the cores.
torch.set_num_threads(1)


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
    """`exported(method="qffs", steps_per_call=4) -> Path`: the network's .onnx. Read it, never write to it."""
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
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scikit-learn's digits: `train`, `calibration`, `test`. Read them, never write to them."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_digits(folder)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data sets that lie beside the repository where the project is developed."""
    if not SHARED.is_dir():
        pytest.skip(f"the development data is not beside this clone (looked for {SHARED})")
    return SHARED


@pytest.fixture(scope="session")
def resnet20(shared_data: Path) -> Checkpoint:
    """A trained 2-bit ResNet-20 for CIFAR-10, imported."""
    from dynamic_confidence.models.checkpoint import safe_load
    from dynamic_confidence.toolchain.foreign import checkpoint_from_plan, plan_import

    imagenet = Preprocessing(color="RGB", height=32, width=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    path = shared_data / "models" / "resnet20_lsq2.pt"
    return checkpoint_from_plan(plan_import(safe_load(path), path.name), lambda form: imagenet, None)


@pytest.fixture(scope="session")
def lossless(shared_data: Path) -> tuple[np.ndarray, np.ndarray]:
    """500 CIFAR-10 test images with their original pixels, uint8 `[500, 3, 32, 32]`, and labels."""
    with np.load(shared_data / "cifar10_test_even_lossless500.npz") as archive:
        return np.ascontiguousarray(archive["image"].transpose(0, 3, 1, 2)), archive["label"].astype(np.int64)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none, and say so."""
    if device_target() is None:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU and its driver, found none"))
