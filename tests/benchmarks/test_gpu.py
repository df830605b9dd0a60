"""`make gpu` where there is no GPU: every item says why it was not run; and what of it can be checked without one."""

from __future__ import annotations

import ast
import json
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dynamic_confidence.benchmarks.gpu import __main__ as gpu
from dynamic_confidence.benchmarks.gpu import loop, parity
from dynamic_confidence.benchmarks.gpu.items import ITEMS
from dynamic_confidence.benchmarks.gpu.loop import compiled_kernel
from dynamic_confidence.runtime.engine import open_engine
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.gpu import device_target

without_gpu = pytest.mark.skipif(device_target() is not None, reason="this machine has an NVIDIA GPU: `make gpu`")


@without_gpu
def test_without_a_gpu_every_item_says_why_and_nothing_is_written(tmp_path: Path):
    record = tmp_path / "gpu.json"
    result = CliRunner().invoke(gpu.main, ["-o", str(record)])
    assert result.exit_code == 3, result.output
    lines = result.output.splitlines()
    for name in ITEMS:
        line = next(line for line in lines if f" {name} " in line)
        assert line.startswith("not run")
        assert "found no NVIDIA driver" in line
    assert "nothing could be run here" in result.output
    assert not record.exists()


def fake_items(monkeypatch: pytest.MonkeyPatch, folder: Path, program: str) -> None:
    """Let the items be what this program does with (name, results file)."""
    (folder / "stand_in").mkdir()
    (folder / "stand_in" / "__init__.py").touch()
    (folder / "stand_in" / "items.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(gpu, "ITEMS_MODULE", "stand_in.items")


@pytest.mark.parametrize(
    ("program", "state", "detail"),
    [
        ("print('as it should be')", "passed", "as it should be"),
        ("import sys; sys.exit('Error: logits differ')", "failed", "logits differ"),
        ("import sys; print('Error: no GPU', file=sys.stderr); sys.exit(3)", "not run", "no GPU"),
        ("import os; os.abort()", "failed", r"ended by SIGABRT (a crash in native code)"),
        ("import sys; sys.exit(70)", "failed", "exit code 70, without a word"),
        ("import time; time.sleep(60)", "failed", "stopped after 1 s"),
    ],
    ids=["passes", "fails", "cannot run", "crashes", "dies silently", "hangs"],
)
def test_an_item_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, state: str, detail: str):
    fake_items(monkeypatch, tmp_path, "import sys\nopen(sys.argv[2], 'w').write('[1.5]')\n" + program)
    outcome = gpu.run_item("latency", 1.0)
    assert (outcome.state, outcome.detail) == (state, detail)
    assert outcome.results == [1.5]  # what was measured until then


def test_no_time_left():
    assert gpu.run_item("latency", 0.0).detail == "no time was left for it: --limit"


def test_the_record_keeps_what_ran_and_a_failure_is_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = "import sys\nsys.exit({'tests': 'Error: a test failed', 'latency': 0}.get(sys.argv[1], 3))"
    fake_items(monkeypatch, tmp_path, program)
    record = tmp_path / "gpu.json"
    result = CliRunner().invoke(gpu.main, ["-o", str(record)])
    assert result.exit_code == 1, result.output
    items = json.loads(record.read_text())["results"]["items"]
    assert {item["item"]: item["state"] for item in items} == {
        name: {"tests": "failed", "latency": "passed"}.get(name, "not run") for name in ITEMS
    }


def test_parity_tells_equal_runs_from_others(exported, pixels: np.ndarray):
    with open_engine(exported(), batch=16) as engine:
        run = parity._run(engine, pixels[:16])
    assert parity._compare(run, run)["equal"]
    other = run._replace(logits=run.logits.copy())
    other.logits[3, 5:, 0] += 0.25
    found = parity._compare(run, other)
    assert not found["equal"]
    assert (found["first_step_that_differs"], found["largest_difference"]) == (6, 0.25)
    late = parity._compare(run, run._replace(exits=run.exits + 1))
    assert (late["equal"], late["equal_exits"], late["first_step_that_differs"]) == (False, 0.0, None)
    other.logits[0] = np.nan
    with pytest.raises(DynamicConfidenceError, match="logits that are no numbers came back from the GPU"):
        parity._compare(run, other)


def test_what_an_item_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    child = f"import time; time.sleep(2); open({str(tmp_path / 'survived')!r}, 'w')"
    program = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
    fake_items(monkeypatch, tmp_path, program)
    assert gpu.run_item("tests", 1.0).detail == "stopped after 1 s"
    time.sleep(2)
    assert not (tmp_path / "survived").exists()


def test_the_names_of_cuda_that_the_loop_uses():
    modules = {name: pytest.importorskip(f"cuda.bindings.{name}") for name in ("runtime", "driver", "nvrtc")}
    used = set()
    for node in ast.walk(ast.parse(Path(loop.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            path = ast.unparse(node).split(".")
            if path[0] in modules:
                used.add(".".join(path))
                thing = modules[path[0]]
                for name in path[1:]:
                    assert hasattr(thing, name), node.attr
                    thing = getattr(thing, name)
    assert {"runtime.cudaGraphConditionalHandleFlags.cudaGraphCondAssignDefault", "driver.cuLaunchKernel"} <= used


@pytest.mark.parametrize("target", ["sm80", "sm120"])
def test_the_deciding_kernel_compiles(target: str):
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-python's compiler is not installed")
    assert compiled_kernel(target)[:4] == b"\x7fELF"
