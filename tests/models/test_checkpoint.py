"""The model.pt format: what is written comes back, code in a file never runs, and every wrong file says what it is."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dynamic_confidence.models.checkpoint import Checkpoint, load_checkpoint, safe_load, save_checkpoint, sha256_of
from dynamic_confidence.models.registry import build
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.manifest import Preprocessing

ARGUMENTS = {"width": 2, "classes": 3, "in_channels": 1}


@pytest.fixture
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(
        architecture="resnet8",
        arguments=ARGUMENTS,
        state_dict=build("resnet8", **ARGUMENTS).state_dict(),
        preprocessing=Preprocessing(color="L", height=8, width=8, mean=(0.3,), std=(0.2,), resize_shorter_side=9),
        class_names=("one", "two", "three"),
        notes={"recipe": {"epochs": 3, "lr": 0.1}, "seed": 0},
    )


def content_of(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_round_trip(tmp_path: Path, checkpoint: Checkpoint):
    path = tmp_path / "model.pt"
    save_checkpoint(path, checkpoint)
    loaded = load_checkpoint(path)
    assert replace(loaded, state_dict={}) == replace(checkpoint, state_dict={})
    assert list(loaded.state_dict) == list(checkpoint.state_dict)
    assert all(torch.equal(loaded.state_dict[name], tensor) for name, tensor in checkpoint.state_dict.items())
    network = loaded.network()
    assert not network.training
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]


def test_the_same_checkpoint_gives_the_same_file(tmp_path: Path, checkpoint: Checkpoint):
    save_checkpoint(tmp_path / "a.pt", checkpoint)
    save_checkpoint(tmp_path / "b.pt", checkpoint)
    assert sha256_of(tmp_path / "a.pt") == sha256_of(tmp_path / "b.pt")


@pytest.mark.parametrize("writer", ["pickle", "torch", "torch, old format"])
def test_code_in_a_file_does_not_run(tmp_path: Path, writer: str):
    path, marker = tmp_path / "model.pt", tmp_path / "marker"
    content = {"format": "dynamic-confidence/model", "weights": Malicious(marker)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(DynamicConfidenceError, match=r"not loaded, because it holds more than weights .*dc-import"):
        load_checkpoint(path)
    assert not marker.exists()


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(DynamicConfidenceError, match=r"no such file\. Train one with `dc-train`"):
        load_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("junk", [b"", b"\x89PNG\r\n\x1a\n" + bytes(64), b"epoch,loss\n1,0.5\n", b"\x80\x02]q\x00."])
def test_junk_is_no_checkpoint(tmp_path: Path, junk: bytes):
    path = tmp_path / "model.pt"
    path.write_bytes(junk)
    with pytest.raises(DynamicConfidenceError, match=r"model\.pt: (not a checkpoint|not loaded|a torch file)"):
        load_checkpoint(path)


@pytest.mark.parametrize("old_format", [False, True])
def test_damaged_files_give_one_kind_of_error(tmp_path: Path, checkpoint: Checkpoint, old_format: bool):
    path = tmp_path / "model.pt"
    torch.save(checkpoint.state_dict, path, _use_new_zipfile_serialization=not old_format)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(40):
        path.write_bytes(whole[: rng.integers(len(whole))])
        with pytest.raises(DynamicConfidenceError):
            load_checkpoint(path)
        damaged = bytearray(whole)
        for place in rng.integers(min(len(whole), 400), size=3):
            damaged[place] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        with pytest.raises(DynamicConfidenceError):
            load_checkpoint(path)


def test_a_bare_state_dict_is_for_dc_import(tmp_path: Path, checkpoint: Checkpoint):
    path = tmp_path / "resnet20.th"
    torch.save(checkpoint.state_dict, path)
    with pytest.raises(
        DynamicConfidenceError, match=r"a torch file, but not a `model\.pt`.*`dc-import resnet20\.th -o"
    ):
        load_checkpoint(path)
    assert set(safe_load(path)) == set(checkpoint.state_dict)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 2}, r"version 2 of the format \(unknown or missing keys: none\), expected version 1"),
        ({"surprise": 1}, r"unknown or missing keys: surprise"),
        ({"class_names": [1]}, r"Expected `str`, got `int` - at `\$\.class_names\[0\]`\. Write it again"),
        (
            {"arguments": None},
            r"Expected `object`, got `None` - at `\$\.arguments`|Expected `object`, got `null` - at `\$\.arguments`",
        ),
        ({"state_dict": {"fc.weight": 1.0}}, r"Expected tensors by name - at `\$\.state_dict`"),
        ({"preprocessing": {"color": "CMYK"}}, r"Invalid enum value 'CMYK' - at `\$\.preprocessing\.color`"),
    ],
)
def test_a_wrong_part_is_named(tmp_path: Path, checkpoint: Checkpoint, change: dict[str, Any], text: str):
    path = tmp_path / "model.pt"
    save_checkpoint(path, checkpoint)
    torch.save({**content_of(path), **change}, path)
    with pytest.raises(DynamicConfidenceError, match=text):
        load_checkpoint(path)


def test_weights_of_another_network(checkpoint: Checkpoint):
    weights = dict(checkpoint.state_dict)
    del weights["fc.bias"]
    weights["fc.scale"] = torch.ones(1)
    weights["fc.weight"] = torch.ones(7, 8)
    text = (
        r"the weights do not fit resnet8 .*'fc\.bias' is missing; 'fc\.scale' is unexpected; "
        r"'fc\.weight' has shape \[7, 8\], expected \[3, 8\]\. .*dc-import"
    )
    with pytest.raises(DynamicConfidenceError, match=text):
        replace(checkpoint, state_dict=weights).network()


def test_a_scale_that_is_not_positive_names_its_layer(checkpoint: Checkpoint):
    weights = {**checkpoint.state_dict, "layer2.0.activation1.scale": torch.tensor([-0.5])}
    with pytest.raises(DynamicConfidenceError, match=r"layer 'layer2\.0\.activation1': the LSQ scale is -0\.5"):
        replace(checkpoint, state_dict=weights).network()


def test_an_unwritable_place(tmp_path: Path, checkpoint: Checkpoint):
    with pytest.raises(DynamicConfidenceError, match=r"its folder does not exist: mkdir -p .*missing"):
        save_checkpoint(tmp_path / "missing" / "model.pt", checkpoint)


def test_other_kinds_of_network_files_are_named(tmp_path: Path):
    (tmp_path / "net.onnx").write_bytes(b"x")
    with pytest.raises(DynamicConfidenceError, match=r"net\.onnx: an ONNX file, expected a checkpoint \(\.pt\)"):
        load_checkpoint(tmp_path / "net.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; its files are still around
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(DynamicConfidenceError, match=r"script\.pt: a TorchScript program, expected weights"):
        load_checkpoint(tmp_path / "script.pt")


def test_a_flipped_bit_is_found(tmp_path: Path, checkpoint: Checkpoint):
    path = tmp_path / "model.pt"
    save_checkpoint(path, checkpoint)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[largest.header_offset + 100 + largest.file_size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DynamicConfidenceError, match=r"model\.pt: is damaged \(checksum of .*Copy it again"):
        load_checkpoint(path)
