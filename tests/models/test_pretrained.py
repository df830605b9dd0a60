"""The networks that ship: small, whole, convertible, and as accurate as their card and the record say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from dynamic_confidence.benchmarks.tables.markdown import page
from dynamic_confidence.models.checkpoint import Checkpoint, load_checkpoint
from dynamic_confidence.models.quantiser import quantisers
from dynamic_confidence.toolchain.export import ExportOptions, export

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "models" / "pretrained"
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")
SETTINGS = json.loads((ROOT / "benchmarks" / "results" / "tables.json").read_text(encoding="utf-8"))["results"][
    "settings"
]
LEAST = {"resnet20_cifar10": 85.0, "resnet8_mnist": 99.2}
"""What is asked of the quantised networks, in % of the test images."""
START = "resnet20_cifar10_relu"
"""Not quantised: a start for fine-tuning."""
LARGEST = 1_200_000
NETWORKS = sorted(path.stem for path in FOLDER.glob("*.pt"))


def loaded(name: str) -> Checkpoint:
    return load_checkpoint(FOLDER / f"{name}.pt")


def test_these_networks_ship():
    assert sorted([*LEAST, START]) == NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_small_and_says_how_it_was_made(name: str):
    path = FOLDER / f"{name}.pt"
    assert path.stat().st_size <= LARGEST
    assert hashlib.sha256(path.read_bytes()).hexdigest() in CARD
    checkpoint = loaded(name)
    levels = {quantiser.levels for _, quantiser in quantisers(checkpoint.network())}
    assert levels == (set() if name == START else {3})  # 2 bits
    assert len(checkpoint.class_names) == 10
    assert checkpoint.notes["recipe"]["epochs"] > 0
    assert f"{100 * checkpoint.notes['validation_accuracy']:.2f}" in CARD


def row(setting: dict[str, Any]) -> str:
    found = setting["table_1"]["rules"]["safe"]["evaluation"]
    numbers = (
        f"{100 * setting['ann_accuracy']:.2f}",
        f"{100 * found['accuracy_at_step'][-1]:.2f}",
        f"{100 * found['accuracy']:.2f}",
        f"{found['steps']} → {found['mean_steps']:.2f}",
        f"{100 * found['saved']:.1f} %",
    )
    network = setting["network"].removesuffix(f"_{setting['method']}")
    return f"| `{network}` | {setting['method'].upper()} | " + " | ".join(numbers) + " |"


def test_the_page_of_tables_is_the_record_s():
    """What follows are the figures, which `benchmarks.tables` draws from the same record."""
    text = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    assert text.startswith(f"{page(SETTINGS)}\n")


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting["network"])
def test_figures_are_the_record_s(setting: dict[str, Any]):
    assert row(setting) in CARD
    assert row(setting) in (ROOT / "README.md").read_text(encoding="utf-8")
    network = setting["network"].removesuffix(f"_{setting['method']}")
    assert 100 * setting["ann_accuracy"] >= LEAST[network]
    assert setting["calibration"] != setting["test"]


@pytest.mark.parametrize("method", ["qcfs", "qffs"])
@pytest.mark.parametrize("name", sorted(LEAST))
def test_a_network_converts_exactly(name: str, method: str):
    exported = export(loaded(name), "", ExportOptions(method, steps=6))
    assert exported.manifest.numerics.exact
    assert exported.check.steps == 6
