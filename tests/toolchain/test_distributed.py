"""Several processes: joined by torchrun they train as one does, and what cannot work is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dynamic_confidence.models.checkpoint import load_checkpoint
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.toolchain.data import load_image_set, split
from dynamic_confidence.toolchain.distributed import Workers, workers
from dynamic_confidence.toolchain.recipe import TrainingOptions
from dynamic_confidence.toolchain.starting_network import untrained
from dynamic_confidence.toolchain.train import train

BIN = Path(sys.executable).parent


def launched(count: int, script: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [BIN / "torchrun", "--standalone", "--nproc-per-node", count, script, *arguments]
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )


GRADIENTS = '''
"""Without batch normalisation two processes make exactly the step that one makes on the whole batch."""
import json, sys, torch
from torch import nn
from dynamic_confidence.runtime.manifest import Preprocessing
from dynamic_confidence.toolchain.data import ImageSet
from dynamic_confidence.toolchain.distributed import workers
from dynamic_confidence.toolchain.train import _train_batch

torch.manual_seed(0)
network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))
pixels = torch.randint(0, 256, (7, 3, 2, 2), dtype=torch.uint8)
preprocessing = Preprocessing(color="RGB", height=2, width=2, mean=(0.5,) * 3, std=(0.25,) * 3)
images = ImageSet(pixels, torch.arange(7) % 3, ("a", "b", "c"), preprocessing)
optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
with workers(torch.device("cpu")) as team:
    part = images.take(team.part(torch.arange(7)))
    weight = len(part) * team.count / 7
    loss = _train_batch(team.averaging(network), optimizer, part, part.pixels, weight, amp=False)
    mean = team.total(loss * len(part)) / 7
    if team.first:
        weights = [parameter.tolist() for parameter in network.parameters()]
        json.dump({"loss": mean, "weights": weights}, open(sys.argv[1], "w"))
'''


def test_two_processes_make_the_step_of_one(tmp_path: Path):
    script = tmp_path / "step.py"
    script.write_text(GRADIENTS)
    results = []
    for count in (1, 2):
        done = launched(count, script, tmp_path / f"{count}.json")
        assert done.returncode == 0, done.stderr
        results.append(json.loads((tmp_path / f"{count}.json").read_text()))
    one, two = results
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    for first, second in zip(one["weights"], two["weights"], strict=True):
        torch.testing.assert_close(torch.tensor(second), torch.tensor(first), rtol=1e-5, atol=1e-6)


def test_the_loss_curve_of_two_processes_is_that_of_one(tmp_path: Path, digits: Path):
    sets = split(load_image_set(digits / "test", size=8), 1 / 3, seed=0)
    options = TrainingOptions(epochs=4, batch=48, lr=0.02)
    start = untrained("resnet8", {"width": 4}, sets[0].preprocessing, sets[0].class_names, seed=0)
    losses: list[float] = []
    alone = train(start, *sets, options, tmp_path / "alone", on_epoch=lambda report: losses.append(report.loss))
    command = ["--data", digits / "test", "--width", 4, "--size", 8, "--validation-fraction", 1 / 3]
    command += ["--epochs", 4, "--batch", 48, "--lr", 0.02, "--device", "cpu", "--threads", 1]
    output = tmp_path / "model.pt"
    done = launched(2, BIN / "dc-train", *command, "-o", output)
    assert done.returncode == 0, done.stderr
    both = [float(line.split("loss ")[1].split(",")[0]) for line in done.stderr.splitlines() if "loss " in line]
    # Only the first process reports. Batch normalisation sees 24 images instead of 48: equal but for that noise.
    assert both == pytest.approx(losses, rel=0.1)
    assert done.stdout.count("validation accuracy") == 1
    trained = load_checkpoint(output)
    assert trained.notes["recipe"] == alone.notes["recipe"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "alone.best.pt", "model.pt"]


def test_alone_nothing_is_communicated(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with workers(torch.device("cpu")) as team:
        assert team == Workers()
        assert team.first
        assert team.total(2.5) == 2.5
        network = torch.nn.Linear(1, 1)
        assert team.averaging(network) is network
    assert not torch.distributed.is_initialized()


def test_parts_of_a_batch_are_disjoint_and_complete():
    rows = torch.arange(7)
    parts = [Workers(rank, 3).part(rows) for rank in range(3)]
    assert torch.cat(parts).tolist() == rows.tolist()
    assert [len(part) for part in parts] == [3, 2, 2]


def test_a_batch_too_small_for_the_processes(tmp_path: Path, digits: Path):
    sets = split(load_image_set(digits / "test", size=8), 1 / 3, seed=0)
    start = untrained("resnet8", {"width": 4}, sets[0].preprocessing, sets[0].class_names, seed=0)
    text = r"batches of 3 images for 3 processes \(239 images, --batch 4\): expected at least 2 for each of them"
    with pytest.raises(DynamicConfidenceError, match=text):
        train(start, *sets, replace(TrainingOptions(), batch=4), tmp_path / "state", workers=Workers(0, 3))


def test_a_process_without_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    text = r"process 1 of this machine has no GPU of its own \(1 found\): torchrun --nproc-per-node 1"
    with pytest.raises(DynamicConfidenceError, match=text), workers(torch.device("cuda")):
        pass
