"""Every command answers --help with examples, and without loading what only its work needs."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint, distribution

import pytest

COMMANDS = sorted(distribution("dynamic-confidence").entry_points.select(group="console_scripts"))
HEAVY = (
    "torch",
    "torchvision",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "matplotlib",
    "sklearn",
    "PIL",
    "rich",
)
PROGRAM = f"""
import json, sys
from importlib import import_module
main = getattr(import_module(sys.argv[1]), sys.argv[2])
code = main(["--help"], standalone_mode=False)
print(json.dumps(sorted(set({HEAVY!r}) & set(sys.modules))), file=sys.stderr)
sys.exit(code)
"""


def test_the_list_is_not_empty():
    assert {
        "dc-bench",
        "dc-build",
        "dc-calibrate",
        "dc-data",
        "dc-doctor",
        "dc-eval",
        "dc-export",
        "dc-import",
        "dc-inspect",
        "dc-report",
        "dc-run",
        "dc-train",
        "dc-tune",
    } == {command.name for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help(command: EntryPoint):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, command.module, command.attr], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr) == [], f"{command.name} --help imports these; import them inside the command"
    examples = done.stdout.split("Examples:")[1]
    assert f"  {command.name} " in examples, f"the examples of {command.name} do not use it"
