"""The study of continuous batching measures three ways, counts their calls and notices when they differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dynamic_confidence.benchmarks import continuous_batching
from dynamic_confidence.benchmarks.continuous_batching import main
from dynamic_confidence.runtime import stepping


@pytest.fixture
def arguments(exported: Callable[..., Path], pixels: np.ndarray, tmp_path: Path) -> list[str]:
    np.savez(tmp_path / "data.npz", image=pixels, label=np.arange(64) % 4)
    data = ["--data", str(tmp_path / "data.npz"), "--limit", "60"]
    return [str(exported(method="qffs")), *data, "--batch", "4", "--rounds", "2", "--threshold", "0.6"]


def test_three_ways_the_same_answers(arguments: list[str], tmp_path: Path):
    result = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "r.json")])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "r.json").read_text())["results"]
    assert found["same_answers"] is True
    assert found["images"] == 60
    ways = ["fixed T", "static batches", "continuous"]
    assert list(found["seconds"]) == list(found["images_per_second"]) == ways
    assert all(len(raw) == 2 for raw in found["seconds"].values())
    calls = {way: found["one_run_inside"][way]["calls"] for way in ways}
    assert calls["fixed T"] == 15 * 12
    assert calls["continuous"] < calls["static batches"] < calls["fixed T"]
    # At most one batch of inputs runs out at the end, so the calls are near what the steps allow.
    assert calls["continuous"] <= 60 * found["mean_steps"] / 4 + 12
    assert found["of_what_the_steps_allow_by_calls"]["continuous"] > 0.75
    for way in ways:
        assert f"{way} " in result.output


@pytest.mark.parametrize("field", ["label", "steps", "logits"])
def test_a_difference_is_an_error(arguments: list[str], monkeypatch: pytest.MonkeyPatch, field: str):
    """In one answer of one way."""
    right = continuous_batching.continuously

    def wrong(*given: object) -> list[stepping.Answer]:
        first, *rest = right(*given)  # type: ignore[arg-type]
        return [first._replace(**{field: getattr(first, field) + 1}), *rest]

    monkeypatch.setattr(continuous_batching, "continuously", wrong)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "Error: the ways do not give the same answers." in result.output
