"""What is packaged is the whole tree, and what ships to the device runs there: without torch, from a plain install."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
DEVICE = ("runtime", "calib", "benchmarks/latency")
OF_EXTRAS = tuple(
    f"dynamic_confidence.runtime.engines.{name}"
    for name in ("events_kernels", "events_llvm", "events_vectors", "openvino_operators")
)
"""What needs numba or OpenVINO to be imported: their engines do so when they are opened."""
HEAVY = ("torch", "torchvision", "sklearn", "matplotlib")
IMPORT_ALL = f"""
import sys
from importlib import import_module
for name in sys.argv[1:]:
    import_module(name)
found = sorted(set({HEAVY!r}) & set(sys.modules))
assert not found, f"imported {{found}}"
"""


def device_modules() -> list[str]:
    files = [file for folder in DEVICE for file in sorted((ROOT / folder).rglob("*.py"))]
    dotted = [".".join(("dynamic_confidence", *file.relative_to(ROOT).with_suffix("").parts)) for file in files]
    return [name.removesuffix(".__init__") for name in dotted]


def tree() -> list[Path]:
    """What git would commit, or all but hidden folders where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip(f"needs a git clone to know which files belong to it ({listed.stderr.strip()})")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_every_package_is_packaged():
    tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = [file.parent.relative_to(ROOT) for file in tree() if file.name == "__init__.py"]
    expected = {".".join(("dynamic_confidence", *folder.parts)) for folder in folders}
    assert {f"dynamic_confidence.{name.replace('/', '.')}" for name in DEVICE} < expected
    assert set(settings["tool"]["setuptools"]["packages"]) == expected


def test_the_modules_of_the_device_import_without_torch():
    modules = device_modules()
    assert "dynamic_confidence.runtime.engines.onnxruntime" in modules
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL, *modules], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def answer(python: Path, network: Path, image: Path, folder: Path) -> dict[str, object]:
    """Run the `dc-run` beside this Python on an image, from a folder that holds no code."""
    command = [python.parent / "dc-run", "--engine", network, "--threshold", "0.6", image, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record.pop("ms") > 0
    return record


def test_a_bare_environment_answers_as_this_one(exported: Callable[..., Path], pixels: np.ndarray, tmp_path: Path):
    copy, python = tmp_path / "copy", tmp_path / "bare" / "bin" / "python"
    for file in tree():
        target = copy / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True, timeout=120)
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", f"{copy}[cpu]"], capture_output=True, text=True, timeout=600
    )
    if "No matching distribution found" in installed.stderr or "Temporary failure in name" in installed.stderr:
        pytest.skip(f"pip reaches no package index: {installed.stderr.strip().splitlines()[-1]}")
    assert installed.returncode == 0, installed.stderr

    empty = tmp_path / "empty"
    empty.mkdir()
    program = "import importlib.util; assert importlib.util.find_spec('torch') is None\n" + IMPORT_ALL
    done = subprocess.run(
        [python, "-c", program, *(name for name in device_modules() if name not in OF_EXTRAS)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=empty,
    )
    assert done.returncode == 0, done.stderr

    image = tmp_path / "image.png"
    Image.fromarray(pixels[0, 0]).save(image)
    network = exported(method="qffs")
    assert answer(python, network, image, empty) == answer(Path(sys.executable), network, image, empty)
