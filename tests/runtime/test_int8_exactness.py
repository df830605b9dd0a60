"""int8 on 1,000 real images, however it is run: the logits of every step and the exit steps are the simulation's.

The images are what scikit-learn ships: handwritten digits, and patches of two photographs. Of all cases the tests take
those that hold every combination of any three settings (digits) or any two (a ResNet-20, with which a case takes long).
Slow, and where the development data is: CIFAR-10 and MNIST.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from covering import covering
from every_way import FACTORS, Known, assert_equal, known
from msgspec.structs import replace as replace_fields
from onnx import TensorProto, numpy_helper
from PIL import Image
from sklearn.datasets import load_sample_images
from support import ROOT

from dynamic_confidence.models.checkpoint import load_checkpoint
from dynamic_confidence.runtime.images import labelled_arrays
from dynamic_confidence.runtime.onnx_file import bytes_with_manifest, graph_sha256, read_onnx
from dynamic_confidence.toolchain.data import load_image_set
from dynamic_confidence.toolchain.recipe import TrainingOptions
from dynamic_confidence.toolchain.starting_network import untrained
from dynamic_confidence.toolchain.train import train

IMAGES = 1000


def cases(together: int, **narrower: tuple[Any, ...]) -> list[Any]:
    chosen = covering({**FACTORS, **narrower}, together)
    return [pytest.param(case, id="-".join(map(str, case.values()))) for case in chosen]


@pytest.fixture(scope="module")
def digit_network(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Known]:
    """A small network that was trained on the digits; by method."""
    images = load_image_set(digits / "train", size=8)
    start = untrained("resnet8", {"width": 8}, images.preprocessing, images.class_names, seed=0)
    folder = tmp_path_factory.mktemp("digits")
    validation = load_image_set(digits / "calibration", images.preprocessing, images.class_names)
    trained = train(start, images, validation, TrainingOptions(epochs=4, batch=32), folder / "state")
    pixels = np.concatenate(
        [labelled_arrays(digits / part, images.preprocessing, images.class_names)[0] for part in ("test", "train")]
    )[:IMAGES]
    return cache(lambda method: known(trained, pixels, method, 9, folder))


@pytest.fixture(scope="module")
def resnet20(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Known]:
    """The network that ships, on patches of photographs."""
    checkpoint = load_checkpoint(ROOT / "models" / "pretrained" / "resnet20_cifar10.pt")
    folder, pixels = tmp_path_factory.mktemp("resnet20"), patches(IMAGES)
    return cache(lambda method: known(checkpoint, pixels, method, 4, folder))


def patches(count: int) -> np.ndarray:
    """32 x 32 pixels out of two photographs at half their size: uint8 `[count, 3, 32, 32]`."""
    found = []
    for photograph in load_sample_images().images:
        height, width, _ = photograph.shape
        half = np.asarray(Image.fromarray(photograph).resize((width // 2, height // 2), Image.Resampling.BILINEAR))
        corners = product(range(0, height // 2 - 31, 8), range(0, width // 2 - 31, 12))
        found += [half[y : y + 32, x : x + 32].transpose(2, 0, 1) for y, x in corners]
    assert len(found) >= count
    return np.stack(found)[np.arange(count) * len(found) // count]


@pytest.mark.parametrize("together", [2, 3])
def test_the_cases_hold_every_combination(together: int):
    chosen = covering(FACTORS, together)
    assert len(chosen) < 0.2 * np.prod([len(values) for values in FACTORS.values()])
    for names in combinations(FACTORS, together):
        wanted = set(product(*(FACTORS[name] for name in names)))
        assert {tuple(case[name] for name in names) for case in chosen} == wanted


@pytest.mark.parametrize("case", cases(together=3))
def test_digits(digit_network: Callable[[str], Known], case: dict[str, Any]):
    assert_equal(digit_network(case["method"]), case)


@pytest.mark.parametrize("case", cases(together=2, level=("default", "all", "none")))
def test_resnet20(resnet20: Callable[[str], Known], case: dict[str, Any]):
    assert_equal(resnet20(case["method"]), case)


@pytest.mark.parametrize("method", FACTORS["method"])
def test_the_images_say_something(digit_network, resnet20, method: str):
    """Inputs stop at several steps, for both reasons, and are answered with several classes."""
    for network in (digit_network(method), resnet20(method)):
        assert len(network.pixels) == IMAGES == len(np.unique(network.pixels, axis=0))
        assert len(set(network.exits)) >= 3
        assert len(set(network.logits[:, -1].argmax(1))) >= 8
    assert digit_network(method).quiet.any() == (method == "qffs")


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(together=2))
@pytest.mark.parametrize("name", ["resnet20_cifar10", "resnet8_mnist"])
def test_the_sets_they_were_trained_for(real: Callable[[str, str], Known], name: str, case: dict[str, Any]):
    assert_equal(real(name, case["method"]), case)


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Known]:
    """The networks that ship, on CIFAR-10 and MNIST."""
    sets = {"resnet20_cifar10": "cifar10_train_lossless7044", "resnet8_mnist": "mnist_test_even5000"}

    @cache
    def make(name: str, method: str) -> Known:
        with np.load(shared_data / f"{sets[name]}.npz") as archive:
            images = archive["image"]
        pixels = images[np.arange(IMAGES) * len(images) // IMAGES].reshape(IMAGES, *images.shape[1:3], -1)
        checkpoint = load_checkpoint(ROOT / "models" / "pretrained" / f"{name}.pt")
        return known(checkpoint, pixels.transpose(0, 3, 1, 2), method, 9, tmp_path_factory.mktemp(name))

    return make


@pytest.mark.parametrize("engine", ["conv", "matmul", "openvino"])
@pytest.mark.parametrize("method", FACTORS["method"])
def test_a_weight_that_is_one_unit_off_is_seen(digit_network, method: str, engine: str, tmp_path: Path):
    """In the calls of four steps only: those of two are right."""
    right, form = digit_network(method), "matmul" if engine == "matmul" else "conv"
    model, manifest = read_onnx(right.paths[form])
    tensor = next(tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8 and tensor.dims)
    weights = numpy_helper.to_array(tensor).copy()
    weights.flat[np.abs(weights.astype(int)).argmin()] += 1
    model.graph.initializer.append(numpy_helper.from_array(weights, "wrong"))
    readers = [node for node in model.graph.node if tensor.name in node.input and node.output[0].endswith("@4")]
    assert readers
    for node in readers:
        node.input[:] = ["wrong" if name == tensor.name else name for name in node.input]
    provenance = replace_fields(manifest.provenance, graph_sha256=graph_sha256(model))
    wrong = tmp_path / "wrong.onnx"
    wrong.write_bytes(bytes_with_manifest(model, replace_fields(manifest, provenance=provenance)))
    case = {"method": method, "engine": engine, "level": "default", "batch": 64, "threads": 1}
    assert_equal(right, case | {"k": 2}, wrong)
    with pytest.raises(AssertionError, match="Mismatched elements"):
        assert_equal(right, case | {"k": 4}, wrong)
