"""What a setting is run on: our engines that are present here, and one pass of the network on their backends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...runtime.engine import Engine, open_engine
from ...runtime.engines.openvino import SETTINGS as OPENVINO
from ...runtime.engines.openvino import load_openvino
from ...runtime.errors import BackendMissing, DynamicConfidenceError
from ...runtime.gpu import device_target
from ...runtime.interrupts import held_back
from ...runtime.plan_file import LIBRARIES
from ...toolchain.snap import snap
from ...toolchain.snn import INPUT
from ...toolchain.snn_from_ann import snn_from_ann
from ..gpu.plans import build, installed
from ..peers import ours
from ..peers.candidate import Missing, Precision
from ..peers.ours import TITLES, Variant, exported, opened
from ..peers.quantised import NAME as QUANTISED
from ..peers.quantised import quantised, quantised_graph
from ..peers.setting import Setting

Pass = Callable[[np.ndarray], np.ndarray]
"""`pixels uint8 [1, channel, y, x] -> logits [1, class]`, in one pass of the quantised network."""
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")


class Opened(NamedTuple):
    """An engine to be measured; K = 1, since a call of more steps does more than an exit needs."""

    name: str
    precision: Precision
    file: Path
    engine: Engine


def cpu_engines(
    setting: Setting, folder: Path, stack: ExitStack, checked: int | None = None
) -> Iterator[Opened | Missing]:
    """Open every backend and precision on the CPU; `stack` closes them. `checked`: as `peers.ours.exported`."""
    for variant, found in opened(setting, variants(), folder, stack, checked):
        name = f"{TITLES[variant.backend]} {variant.precision}"
        if isinstance(found, Missing):
            yield Missing(name, found.status, found.reason)
        else:
            yield Opened(name, variant.precision, exported(setting, variant, folder), found)


def variants() -> list[Variant]:
    """One of each backend and precision: K = 1, and the form that is the backend's own."""
    forms = {("onnxruntime", "int8"): "matmul"}
    found = (v for v in ours.VARIANTS if v.steps_per_call == 1)
    return [v for v in found if v.form == forms.get((v.backend, v.precision), "conv")]


def gpu_engines(setting: Setting, folder: Path, stack: ExitStack) -> Iterator[Opened | Missing]:
    """Build and open a plan of each library and exact precision, with CUDA graphs; none where there is no GPU."""
    if device_target() is None:
        yield Missing(" and ".join(LIBRARIES.values()), "not possible", "no NVIDIA GPU on this machine")
        return
    for flavour, title in LIBRARIES.items():
        if not installed(flavour):
            yield Missing(title, "not installed", "`dc-doctor` says what it needs")
            continue
        for precision in PRECISIONS:
            name = f"{title} {precision}"
            network = exported(setting, Variant("onnxruntime", precision, "conv", 1), folder)
            try:
                engine = stack.enter_context(open_engine(build(network, flavour)))
            except DynamicConfidenceError as error:
                yield Missing(name, "not working here", str(error))
                continue
            yield Opened(name, precision, network, engine)


def passes(setting: Setting) -> dict[str, Pass]:
    """The quantised network in one pass, by the names of the engines on whose backends it runs.

    Events and plans have none: there one pass has no spikes, and a plan is built from a time step.
    """
    found: dict[str, Pass] = {}
    for candidate in quantised(setting):
        name = candidate.name.replace(QUANTISED, TITLES["onnxruntime"])
        found[name] = lambda pixels, run=candidate.run: run(pixels, 1)
    try:
        openvino = load_openvino()
    except BackendMissing:
        return found  # `cpu_engines` says so
    for precision in PRECISIONS:
        found[f"{TITLES['openvino']} {precision}"] = _openvino_pass(openvino, setting, precision)
    return found


def _openvino_pass(openvino: Any, setting: Setting, precision: Precision) -> Pass:
    """Written for OpenVINO as our engine writes a time step: bytes between the layers, the channel last."""
    from openvino import opset13 as ops

    from ...runtime.engines.openvino_model import translate
    from ...runtime.engines.openvino_operators import Value, plain

    converted = snn_from_ann(setting.network, setting.checkpoint.preprocessing, "qcfs")
    snn, _ = snap(converted, setting.snn.method.levels, None, precision)
    pixels = ops.parameter([1, *snn.input_shape], np.uint8, INPUT)
    values = {INPUT: Value(pixels.output(0))}
    translate(quantised_graph(snn, precision, "conv"), values, signed=False)
    model = openvino.Model([ops.result(plain(values["logits"]))], [pixels], "quantised network")
    with held_back():
        compiled = openvino.Core().compile_model(model, "CPU", OPENVINO | {"INFERENCE_NUM_THREADS": setting.threads})
    request = compiled.create_infer_request()

    def run(pixels: np.ndarray) -> np.ndarray:
        return next(iter(request.infer({0: pixels}, share_outputs=True).values()))

    return run
