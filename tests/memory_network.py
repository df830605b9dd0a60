"""Networks on numpy memory that are as unkind to their buffers as a backend may be, and what they must compute."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynamic_confidence.runtime.engines.device_buffers import Layout
from dynamic_confidence.runtime.manifest import (
    Calibration,
    Grid,
    Input,
    Manifest,
    Method,
    Numerics,
    Output,
    Preprocessing,
    Provenance,
    State,
)

Tensors = dict[str, np.ndarray]
OUTPUTS = ("logits", "confidence", "label", "spikes", "net_spikes")


def manifest_of(
    states: Sequence[tuple[Sequence[int], float]],
    *,
    classes: int = 3,
    steps_per_call: int = 1,
    spikes: bool = False,
    frames: bool = False,
    max_steps: int = 12,
) -> Manifest:
    """A manifest with these states, as (sizes behind the batch, initial value)."""
    call = (steps_per_call, "N")
    image = Preprocessing(color="L", height=2, width=3, mean=(0.0,), std=(1.0,))
    outputs = [
        Output("logits", (*call, classes), "float32"),
        Output("confidence", call, "float32"),
        Output("label", call, "int64"),
        *(Output(name, (*call, len(states)), "float32") for name in OUTPUTS[3:] if spikes),
    ]
    return Manifest(
        version=1,
        name="memory",
        input=Input("input", (*(call if frames else call[1:]), *image.shape), "uint8", frames, image),
        scale_input="alpha",
        states=tuple(
            State(f"s_in.{n}", f"s_out.{n}", ("N", *shape), "float32", value) for n, (shape, value) in enumerate(states)
        ),
        outputs=tuple(outputs),
        steps_per_call=steps_per_call,
        max_steps=max_steps,
        method=Method("qffs", 3, 3) if spikes else Method("qcfs", 3, None),
        class_names=tuple(map(str, range(classes))),
        calibration=Calibration(alpha=1.0),
        numerics=Numerics("fp32", True, False, (Grid("readout", 10, 2.0**14, 1.0, "worst case"),)),
        provenance=Provenance("0" * 64, "0" * 64, "memory", {}),
    )


def tensors_of(layout: Layout, direction: int, memory: np.ndarray) -> Tensors:
    return {name: place.view(memory) for name, place in layout.tensors[direction].items()}


def names_of(tensors: Tensors) -> list[tuple[str, str]]:
    return [(name, name.replace("_in.", "_out.")) for name in tensors if "_in." in name]


def new_states(tensors: Tensors) -> Tensors:
    """Every state depends on itself, the one before it, the pixels and the scale; modulo, so that it stays exact."""
    fed = float(tensors["input"].sum()) + float(tensors["alpha"])
    before, found = 1.0, {}
    for number, (source, target) in enumerate(names_of(tensors)):
        found[target] = np.float32((tensors[source] * 3 + before + fed + number) % 251)
        before = float(tensors[source].flat[0])
    return found


def answer_of(tensors: Tensors) -> Tensors:
    """The answers that follow from the new states."""
    total = sum(float(tensors[target].sum()) for _, target in names_of(tensors)) % 1009
    return {
        name: (np.arange(tensors[name].size) + total).reshape(tensors[name].shape).astype(tensors[name].dtype)
        for name in OUTPUTS
        if name in tensors
    }


def scribbles_first(tensors: Tensors) -> None:
    """Writes over all its outputs before it reads anything."""
    for name, values in tensors.items():
        if "_out." in name or name in OUTPUTS:
            values[...] = 77
    for name, values in new_states(tensors).items():
        tensors[name][...] = values
    for name, values in answer_of(tensors).items():
        tensors[name][...] = values


def reads_late(tensors: Tensors) -> None:
    """Reads a state again after its successor has been written."""
    fed = float(tensors["input"].sum()) + float(tensors["alpha"])
    before, source_before = 1.0, None
    for number, (source, target) in enumerate(names_of(tensors)):
        if source_before is not None:
            before = float(tensors[source_before].flat[0])
        tensors[target][...] = (tensors[source] * 3 + before + fed + number) % 251
        source_before = source
    for name, values in answer_of(tensors).items():
        tensors[name][...] = values


NETWORKS = (scribbles_first, reads_late)


class PlainNetwork:
    """The same network with its states passed by value: a function of the next image (None: it stays)."""

    def __init__(self, manifest: Manifest, layout: Layout, scale: float) -> None:
        table = layout.tensors[0]
        self._manifest = manifest
        self._tensors = {name: np.zeros(place.shape, place.dtype) for name, place in table.items()}
        self._tensors["alpha"][...] = scale
        for state in manifest.states:
            self._tensors[state.input][...] = state.initial

    def __call__(self, image: int | np.ndarray | None) -> Tensors:
        tensors = self._tensors
        if image is not None:
            tensors["input"][...] = image
        done = tensors | new_states(tensors)
        for source, target in names_of(tensors):
            tensors[source] = done[target]
        return done

    def refill(self, rows: Sequence[int], image: int) -> None:
        self._tensors["input"][..., list(rows), :, :, :] = image
        for state in self._manifest.states:
            self._tensors[state.input][list(rows)] = state.initial
