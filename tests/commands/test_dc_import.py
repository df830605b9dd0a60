"""dc-import: what it writes, what it says, what a dry run lists, and why a checkpoint does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from foreign_networks import QcfsVgg
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
    assert "resnet8 (paper's demo layout), lsq activations, 3 classes" in result.stdout
    assert f"keys: {len(weights())} matched, 1 dropped; images of 32 x 32 pixels" in result.stdout
    assert "Left out: activation2.scale (quantises the logits, which no spiking network does" in result.stdout
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
    assert checkpoint.notes == {"imported_from": "foreign.pt", "layout": "paper's demo"}
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
    assert f"(akamaster layout), relu activations, 3 classes; keys: {len(akamaster())} renamed;" in result.stdout
    assert f"Quantise it next: dc-train --from {tmp_path / 'model.pt'} --activation lsq --bits 2" in result.stdout
    assert "pools" not in result.stdout
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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "names.txt",
            "Käfer\nb\nc".encode("latin-1"),
            "names.txt: not UTF-8 text. Expected a text file with a name per",
        ),
        ("names.txt", b"a\nb\na\n", "class name 'a' stands 2 times"),
        ("names.txt", b"a\n\nb\n", "class name '' stands 1 times"),
        ("names.txt", b"", "0 class names were given, the network has 3"),
        (".", None, "cannot be read (Is a directory). Expected a text file"),
        ("n" * 300, None, "cannot be read (File name too long). Expected a text file"),
        ("missing", None, "missing: no such file. Expected a text file with a name per line"),
    ],
)
def test_class_names_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, message: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = run(saved(tmp_path, weights()), "--class-names", tmp_path / name, "-o", tmp_path / "model.pt")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "model.pt").exists()


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path):
    (tmp_path / "names.txt").write_bytes("a\r\nb\r\nc\r\n".encode("utf-8-sig"))
    result = run(saved(tmp_path, weights()), "--class-names", tmp_path / "names.txt", "-o", tmp_path / "model.pt")
    assert result.exit_code == 0, result.output
    assert load_checkpoint(tmp_path / "model.pt").class_names == ("a", "b", "c")


def test_a_hundred_class_names(tmp_path: Path):
    names = [f"class number {index}" for index in range(100)]
    result = run(saved(tmp_path, weights(classes=100)), "--class-names", ",".join(names), "-o", tmp_path / "model.pt")
    assert result.exit_code == 0, result.output
    assert load_checkpoint(tmp_path / "model.pt").class_names == tuple(names)


def test_grey_images(tmp_path: Path):
    foreign, output = saved(tmp_path, weights(in_channels=1)), tmp_path / "model.pt"
    result = run(foreign, "-o", output)
    assert result.exit_code == 2
    assert "--normalisation cifar10: numbers for red, green and blue, but" in result.stderr
    assert "Expected one mean and one standard deviation, such as `--normalisation 0.1307/0.3081`, or" in result.stderr
    result = run(foreign, "--normalisation", "none", "-o", output)
    assert result.exit_code == 0, result.output
    preprocessing = load_checkpoint(output).preprocessing
    assert (preprocessing.color, preprocessing.mean, preprocessing.std) == ("L", (0.0,), (1.0,))
    assert run(foreign, "--normalisation", "0.1307/0.3081", "-o", output).exit_code == 0
    preprocessing = load_checkpoint(output).preprocessing
    assert (preprocessing.color, preprocessing.mean, preprocessing.std) == ("L", (0.1307,), (0.3081,))


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("none", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ("0.5/0.25", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        ("0.5,0.4,0.3/0.2,0.1,1", (0.5, 0.4, 0.3), (0.2, 0.1, 1.0)),
    ],
)
def test_normalisation_in_numbers(tmp_path: Path, text: str, mean: tuple[float, ...], std: tuple[float, ...]):
    foreign, output = saved(tmp_path, weights()), tmp_path / "model.pt"
    assert run(foreign, "--normalisation", text, "-o", output).exit_code == 0
    preprocessing = load_checkpoint(output).preprocessing
    assert (preprocessing.mean, preprocessing.std) == (mean, std)


@pytest.mark.parametrize("text", ["cifar", "", "0.5", "0.5/", "0.5/0.2/0.1", "0.5,0.5/0.2,0.2", "0.5/0.2,0.2,0.2"])
def test_what_is_no_normalisation(tmp_path: Path, text: str):
    result = run(saved(tmp_path, weights()), "--normalisation", text, "-o", tmp_path / "model.pt")
    assert result.exit_code == 2
    assert f"--normalisation {text}: expected cifar10, cifar100, imagenet, none, or MEAN/STD with" in result.stderr
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(
    ("text", "message"), [("0.5/0", "std [0.0, 0.0, 0.0]"), ("nan/0.2", "mean"), ("0.5/-1", "std [-1.0")]
)
def test_a_normalisation_that_cannot_be(tmp_path: Path, text: str, message: str):
    result = run(saved(tmp_path, weights()), "--normalisation", text, "-o", tmp_path / "model.pt")
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_a_file_that_holds_itself(tmp_path: Path):
    content: dict[str, object] = {}
    content["state_dict"] = content
    result = run(saved(tmp_path, content))
    assert result.exit_code == 2
    assert "holds no state_dict" in result.stderr


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
        ({"some.weight": torch.zeros(2)}, ["none of its 1 keys (such as 'some.weight') is one of a known network"]),
        (
            without(weights(), "bn1.weight"),
            ["The nearest is resnet8 in the paper's demo layout", "'bn1.weight' is missing", "`dc-import --dry-run`"],
        ),
        (deeper(weights()), ["The nearest is resnet20", "'layer1.1.conv1.weight' is missing"]),
        ({"epoch": 3}, ["holds no state_dict (neither", "Save `model.state_dict()` with torch.save."]),
        ([1, 2], ["holds no state_dict"]),
        ({}, ["holds no state_dict"]),
        (
            {**weights(), "activation1.scale": torch.zeros(1)},
            ["'activation1.scale' (a quantiser's learned scale) is 0"],
        ),
        ({**weights(), "bn1.running_var": -torch.ones(4)}, ["'bn1.running_var' holds -1, expected a variance"]),
        ({**weights(), "fc.bias": torch.zeros(1).expand(10**12)}, ["'fc.bias' claims 4000000000000 bytes"]),
    ],
)
def test_checkpoints_that_do_not_fit(tmp_path: Path, content: object, messages: list[str]):
    result = run(saved(tmp_path, content), "-o", tmp_path / "model.pt")
    assert result.exit_code == 2
    for message in messages:
        assert message in result.stderr
    assert not (tmp_path / "model.pt").exists()


def test_qcfs_networks_need_their_levels(tmp_path: Path):
    foreign, output = saved(tmp_path, QcfsVgg(new=True).state_dict()), tmp_path / "model.pt"
    result = run(foreign, "-o", output)
    assert result.exit_code == 2
    assert (
        "does not say with how many levels L its QCFS activations were trained. Pass it: `--levels 4`" in result.stderr
    )
    assert not output.exists()
    result = run(foreign, "--levels", 8, "-o", output)
    assert result.exit_code == 0, result.output
    assert "vgg16 (new QCFS layout), qcfs activations, 3 classes; keys: 99 renamed, 13 folded;" in result.stdout
    assert f"the number of time steps either: dc-export {output} -T" in result.stdout
    assert load_checkpoint(output).arguments["levels"] == 8


def test_max_pooling_is_said(tmp_path: Path):
    foreign = saved(tmp_path, weights(activation="relu", form="imagenet"))
    result = run(foreign, "-o", tmp_path / "model.pt")
    assert "Its pools took the maximum; here they average" in result.stdout
    assert "images of 224 x 224 pixels" in result.stdout


def mixed() -> dict[str, Tensor]:
    """One key of each fate."""
    named = without(demo(), "bn1.bias")
    named["module.extra"] = torch.zeros(1)
    return {**named, "fc.bias": torch.zeros(2)}


def test_a_dry_run_lists_every_key(tmp_path: Path):
    foreign = saved(tmp_path, mixed())
    result = run(foreign, "--dry-run", "--json", "-o", tmp_path / "model.pt")
    assert result.exit_code == 1
    assert "fits no known network. The nearest is resnet8" in result.stderr
    record = json.loads(result.stdout)
    assert (record["architecture"], record["layout"], record["output"]) == ("resnet8", "paper's demo", None)
    assert record["counts"] == {"matched": len(weights()) - 2, "missing": 1, "shape": 1, "unexpected": 1, "dropped": 1}
    assert record["error"] in result.stderr
    fates = {key["theirs"] or key["ours"]: (key["status"], key["ours"], key["why"]) for key in record["keys"]}
    assert fates["conv1.weight"] == ("matched", "conv1.weight", "")
    assert fates["bn1.bias"] == ("missing", "bn1.bias", "")
    assert fates["module.extra"] == ("unexpected", None, "")
    assert fates["fc.bias"] == ("shape", "fc.bias", "has shape [2], expected [3]")
    assert fates["activation2.scale"][:2] == ("dropped", None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["foreign.pt"]


def test_a_dry_run_as_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "160")
    foreign = saved(tmp_path, mixed())
    result = run(foreign, "--dry-run")
    assert result.exit_code == 1
    for words in (["bn1.bias", "missing"], ["fc.bias", "shape"], ["module.extra", "unexpected"]):
        assert any(all(word in line for word in words) for line in result.stdout.splitlines()), words
    assert "resnet8 (paper's demo layout)" in result.stdout


def test_a_dry_run_of_what_fits(tmp_path: Path):
    foreign = saved(tmp_path, akamaster())
    result = run(foreign, "--dry-run", "-o", tmp_path / "model.pt")
    assert result.exit_code == 0, result.output
    assert "module.linear.bias" in result.stdout
    assert "It fits: without --dry-run" in result.stdout
    assert json.loads(run(foreign, "--dry-run", "--json").stdout)["error"] is None
    assert [entry.name for entry in tmp_path.iterdir()] == ["foreign.pt"]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (QcfsVgg(new=False).state_dict(), [], "does not say with how many levels"),
        (QcfsVgg(new=False).state_dict(), ["--levels", "0"], "levels 0: a QCFS activation takes 1 to 255 levels"),
        (weights(), ["--class-names", "a,b"], "2 class names were given, the network has 3"),
        (
            weights(),
            ["--class-names", "names.txt"],
            "--class-names names.txt: no such file. Expected a text file with a name per",
        ),
        (weights(), ["--levels", "4"], "levels 4: activation 'lsq' takes bits"),
    ],
)
def test_a_dry_run_finds_what_else_is_wrong(tmp_path: Path, content: object, options: list[str], message: str):
    result = run(saved(tmp_path, content), "--dry-run", *options)
    assert result.exit_code == 1
    assert message in result.stderr


def test_the_record_of_an_import(tmp_path: Path):
    result = run(saved(tmp_path, demo()), "--json", "-o", tmp_path / "model.pt")
    record = json.loads(result.stdout)
    assert (record["output"], record["error"]) == (str(tmp_path / "model.pt"), None)
    assert load_checkpoint(tmp_path / "model.pt").architecture == record["architecture"]


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
        (["--normalisation", "guess"], "--normalisation guess: expected cifar10, cifar100, imagenet, none, or"),
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
