"""dc-import: two families of foreign checkpoints, and why others do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from dynamic_confidence.models.checkpoint import load_checkpoint
from dynamic_confidence.models.registry import build
from dynamic_confidence.toolchain.dc_import import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["--normalisation", "cifar10", *(str(a) for a in arguments)])


def weights(architecture: str = "resnet8", **arguments: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(build(architecture, **{"width": 4, "classes": 3, **arguments}).state_dict())


def demo(**arguments: Any) -> dict[str, Tensor]:
    """Our names, and a quantiser of the logits."""
    return {**weights(**arguments), "activation2.scale": torch.ones(1)}


def akamaster(**arguments: Any) -> dict[str, Tensor]:
    """A ReLU network without weights in its shortcuts, wrapped in DataParallel, with `linear` as its read-out."""
    named = weights(activation="relu", shortcut="pad", **arguments)
    return {f"module.{name.replace('fc.', 'linear.')}": tensor for name, tensor in named.items()}


def saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "foreign.pt")
    return folder / "foreign.pt"


def test_the_demo_layout(tmp_path: Path):
    foreign, output = saved(tmp_path, demo(bits=3)), tmp_path / "model.pt"
    result = run(foreign, "--class-names", "a,b,c", "--bits", 3, "-o", output)
    assert result.exit_code == 0, result.output
    assert "resnet8 (demo or torchvision layout), lsq activations, 3 classes" in result.stdout
    assert "0 renamed, dropped activation2.scale" in result.stdout
    checkpoint = load_checkpoint(output)
    assert checkpoint.class_names == ("a", "b", "c")
    assert checkpoint.arguments == {
        "activation": "lsq",
        "bits": 3,
        "form": "cifar",
        "width": 4,
        "classes": 3,
        "in_channels": 3,
        "shortcut": "conv",
    }
    expected = weights(bits=3)
    assert checkpoint.state_dict.keys() == expected.keys()
    assert all(torch.equal(checkpoint.state_dict[name], tensor) for name, tensor in expected.items())
    assert checkpoint.notes == {"imported_from": "foreign.pt", "layout": "demo or torchvision"}
    image = torch.randn(2, 3, 32, 32)
    theirs = build("resnet8", width=4, classes=3, bits=3)
    theirs.load_state_dict(expected)
    with torch.no_grad():
        assert torch.equal(checkpoint.network()(image), theirs.eval()(image))


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_akamaster_layout(tmp_path: Path, wrapped: bool):
    content = {"state_dict": akamaster(), "best_prec1": 91.7} if wrapped else akamaster()
    result = run(saved(tmp_path, content), "-o", tmp_path / "model.pt")
    assert result.exit_code == 0, result.output
    checkpoint = load_checkpoint(tmp_path / "model.pt")
    assert (checkpoint.architecture, checkpoint.arguments["activation"]) == ("resnet8", "relu")
    assert checkpoint.arguments["shortcut"] == "pad"
    assert f"(akamaster layout), relu activations, 3 classes, {len(akamaster())} tensors" in result.stdout
    assert f"{len(akamaster())} renamed" in result.stdout
    assert torch.equal(checkpoint.state_dict["fc.weight"], akamaster()["module.linear.weight"])
    assert checkpoint.class_names == ("0", "1", "2")


def test_half_precision_becomes_single(tmp_path: Path):
    half = {name: t.half() if t.is_floating_point() else t for name, t in demo().items()}
    assert run(saved(tmp_path, half), "-o", tmp_path / "model.pt").exit_code == 0
    tensors = load_checkpoint(tmp_path / "model.pt").state_dict.values()
    assert {t.dtype for t in tensors} == {torch.float32, torch.int64}


def test_preprocessing(tmp_path: Path):
    foreign = saved(tmp_path, weights())
    assert run(foreign, "--size", 24, "--resize", 28, "-o", tmp_path / "model.pt").exit_code == 0
    preprocessing = load_checkpoint(tmp_path / "model.pt").preprocessing
    assert preprocessing.shape == (3, 24, 24)
    assert preprocessing.resize_shorter_side == 28
    assert preprocessing.mean == (0.4914, 0.4822, 0.4465)
    assert preprocessing.std == (0.2023, 0.1994, 0.2010)


@pytest.mark.parametrize("text", ["a\nb\nc\n", "a\nb\nc"])
def test_class_names_from_a_file(tmp_path: Path, text: str):
    (tmp_path / "names.txt").write_text(text)
    result = run(saved(tmp_path, weights()), "--class-names", tmp_path / "names.txt", "-o", tmp_path / "model.pt")
    assert result.exit_code == 0, result.output
    assert load_checkpoint(tmp_path / "model.pt").class_names == ("a", "b", "c")


def test_class_names_of_a_known_set(tmp_path: Path):
    foreign = saved(tmp_path, weights(classes=10))
    assert run(foreign, "--class-names", "cifar10", "-o", tmp_path / "model.pt").exit_code == 0
    assert load_checkpoint(tmp_path / "model.pt").class_names[3] == "cat"


def without(content: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in content.items() if name != key}


def deeper(content: dict[str, Tensor]) -> dict[str, Tensor]:
    second = {name.replace("layer2.0", "layer2.1"): t for name, t in content.items() if name.startswith("layer2.0")}
    return {**content, **second}


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        (
            {"some.weight": torch.zeros(2)},
            ["fits no known layout", "torchvision: no residual network", "akamaster: no residual"],
        ),
        (without(weights(), "bn1.weight"), ["torchvision: a resnet8, but for 1 keys such as 'bn1.weight'"]),
        (
            {**weights(), "fc.bias": torch.zeros(2)},
            ["torchvision: a resnet8, but for 1 keys such as 'fc.bias'"],
        ),
        (
            deeper(weights()),
            ["basic blocks (1, 2, 1) are no registered architecture", "known: resnet8 (1, 1, 1), resnet20"],
        ),
        ({"epoch": 3}, ["holds no state_dict. Save `model.state_dict()` with torch.save."]),
        ([1, 2], ["holds no state_dict"]),
        ({}, ["holds no state_dict"]),
        ({**weights(), "activation1.scale": torch.zeros(1)}, ["layer 'activation1': the LSQ scale is 0"]),
    ],
)
def test_checkpoints_that_do_not_fit(tmp_path: Path, content: object, messages: list[str]):
    result = run(saved(tmp_path, content), "-o", tmp_path / "model.pt")
    assert result.exit_code == 2
    for message in messages:
        assert message in result.stderr
    assert not (tmp_path / "model.pt").exists()


def test_a_wrong_number_of_class_names(tmp_path: Path):
    result = run(saved(tmp_path, weights()), "--class-names", "a,b", "-o", tmp_path / "model.pt")
    assert result.exit_code == 2
    assert "2 class names were given, the network has 3" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", "0"], "bits 0: an LSQ quantiser takes 1 to 8 bits"),
        (["--size", "0"], "Invalid value for '--size'"),
        (["--size", "32", "--resize", "16"], "--resize 16: expected at least --size 32"),
        (["--normalisation", "guess"], "'guess' is not one of 'cifar10', 'imagenet', 'none'"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: list[str], message: str):
    result = run(saved(tmp_path, weights()), *options, "-o", tmp_path / "model.pt")
    assert result.exit_code == 2
    assert message in result.stderr


def test_broken_and_missing_files(tmp_path: Path):
    assert "no such file" in run(tmp_path / "missing.pt").stderr
    (tmp_path / "foreign.pt").write_bytes(b"")
    assert "foreign.pt: not a checkpoint" in run(tmp_path / "foreign.pt").stderr


def test_importing_a_model_file_or_over_itself_is_refused(model_file: Path, tmp_path: Path):
    result = CliRunner().invoke(main, [str(model_file), "--normalisation", "none", "-o", str(tmp_path / "new.pt")])
    assert result.exit_code == 2
    assert "is a model.pt already: `dc-export" in result.stderr
    result = CliRunner().invoke(main, [str(model_file), "--normalisation", "none", "-o", str(model_file)])
    assert "is the checkpoint itself; choose another name with -o" in result.stderr
    assert not list(tmp_path.iterdir())
