"""Import checkpoints that others trained: what becomes of each key (the plan), and the model.pt that follows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..models.activations import activation_arguments
from ..models.checkpoint import Checkpoint
from ..models.registry import ARCHITECTURES
from ..runtime.errors import DynamicConfidenceError
from ..runtime.manifest import Preprocessing
from .foreign_architecture import Shapes, candidates, expected_shapes, shapes_of
from .foreign_layouts import LAYOUTS, Layout, replaced
from .foreign_weights import COUNT, FLOATS, readable_weights, state_dict_in

TAKEN, MISFITS = ("matched", "renamed"), ("shape", "missing", "unexpected")
COLORS: dict[int, Literal["RGB", "L"]] = {1: "L", 3: "RGB"}
"""What images of so many channels are called in the preprocessing."""
SHOWN = 4
"""Keys that an error names."""


@dataclass(frozen=True)
class Key:
    """What becomes of one key: `theirs` -> `ours`."""

    status: str
    """One of TAKEN and MISFITS, or dropped, folded, filled."""
    theirs: str | None
    ours: str | None
    why: str = ""


@dataclass(frozen=True)
class ImportPlan:
    """The known network nearest to a foreign checkpoint, and every key of the two."""

    source: str
    layout: str
    architecture: str
    arguments: dict[str, Any]
    """As far as names and shapes tell: a checkpoint does not say its quantiser's number of levels."""
    keys: tuple[Key, ...]
    weights: dict[str, Tensor]
    """By our names, with the numbers of the file: nothing is converted before the plan is carried out."""

    @property
    def misfits(self) -> tuple[Key, ...]:
        """The keys that stand in the way."""
        return tuple(key for status in MISFITS for key in self.keys if key.status == status)

    def counts(self) -> Counter[str]:
        """How many keys have each status."""
        return Counter(key.status for key in self.keys)


def plan_import(content: Any, source: str) -> ImportPlan:
    """Find the layout and the architecture with most keys in common, and say what becomes of each key.

    `content` is a state_dict, or a dict that holds one under `state_dict`, `net` or `model`.
    Raises: DynamicConfidenceError when it holds no weights, or none that any known network has, or no plain tensors.
    """
    weights = state_dict_in(content, source)
    _, plan = max(
        ((_rank(plan, layout, weights), plan) for layout in LAYOUTS for plan in _plans(source, weights, layout)),
        key=lambda ranked: ranked[0],
    )
    if not _in_common(plan):
        raise DynamicConfidenceError(
            f"{source}: none of its {len(weights)} keys (such as '{next(iter(weights))}') is one of a known network. "
            f"Known layouts: {', '.join(layout.name for layout in LAYOUTS)}; known architectures: "
            f"{', '.join(ARCHITECTURES)}. Train one of these with `dc-train`."
        )
    return plan


def checkpoint_from_plan(
    plan: ImportPlan,
    preprocessing: Callable[[str], Preprocessing],
    class_names: tuple[str, ...] | None,
    bits: int | None = None,
    levels: int | None = None,
) -> Checkpoint:
    """Carry a plan out.

    `preprocessing` gets the form ("cifar" or "imagenet"), for the image size. `class_names` None: "0", "1", …. `bits`
    and `levels` are the quantiser's, which a checkpoint does not say: LSQ has 2 bits by default, QCFS must be told.
    Raises: DynamicConfidenceError when keys stand in the way, with the nearest network's name; when bits, levels, class
    names or the colours of the images do not fit; and for weights that are no finite numbers, a negative variance, or a
    learned threshold that is not positive.
    """
    if plan.misfits:
        raise DynamicConfidenceError(_misfit_message(plan))
    activation = plan.arguments["activation"]
    if activation == "qcfs" and levels is None:
        raise DynamicConfidenceError(
            f"{plan.source}: a checkpoint does not say with how many levels L its QCFS activations were trained. Pass "
            "it: `--levels 4` or 8 (the authors' networks for CIFAR), `--levels 8` or 16 (for ImageNet)."
        )
    arguments = {**plan.arguments, **activation_arguments(activation, bits, levels)}
    classes = arguments["classes"]
    names = tuple(str(index) for index in range(classes)) if class_names is None else class_names
    _check_class_names(names, classes, plan.source)
    wanted = _preprocessing(plan, preprocessing)
    notes = {"imported_from": plan.source.rsplit("/", 1)[-1], "layout": plan.layout}
    weights = readable_weights(plan.weights, _origins(plan), plan.source)
    checkpoint = Checkpoint(plan.architecture, arguments, weights, wanted, names, notes)
    checkpoint.network()
    return checkpoint


def _check_class_names(names: tuple[str, ...], classes: int, source: str) -> None:
    if len(names) != classes:
        raise DynamicConfidenceError(f"{source}: {len(names)} class names were given, the network has {classes}.")
    for name, count in Counter(names).items():
        if count > 1 or not name.strip():
            raise DynamicConfidenceError(
                f"{source}: class name '{name}' stands {count} times, expected none twice and none empty. Correct "
                "`--class-names`."
            )


def _preprocessing(plan: ImportPlan, preprocessing: Callable[[str], Preprocessing]) -> Preprocessing:
    channels = plan.arguments["in_channels"]
    if channels not in COLORS:
        raise DynamicConfidenceError(
            f"{plan.source}: its first layer takes {channels} channels, expected 3 (RGB images) or 1 (grey ones). "
            "Other images cannot be read; train on one of these kinds with `dc-train`."
        )
    wanted = preprocessing(plan.arguments["form"])
    if wanted.color != COLORS[channels]:
        raise DynamicConfidenceError(
            f"{plan.source}: its first layer takes {channels} channels, the preprocessing gives color {wanted.color}. "
            f"Give it color {COLORS[channels]}."
        )
    return wanted


def _origins(plan: ImportPlan) -> dict[str, str]:
    """Which of their keys each of our weights comes from; two where a bias was folded in."""
    origins: dict[str, str] = {}
    for key in plan.keys:
        if key.ours and key.theirs:
            origins[key.ours] = f"{origins[key.ours]}' or '{key.theirs}" if key.ours in origins else key.theirs
    return origins


class _Translated(NamedTuple):
    """A layout applied: weights by our names, where they come from, and the keys that became none."""

    weights: dict[str, Tensor]
    theirs: dict[str, str]
    left_out: list[Key]


def _translated(weights: Mapping[str, Tensor], layout: Layout) -> _Translated:
    prefix = "module." if all(name.startswith("module.") for name in weights) else ""  # DataParallel's
    named: dict[str, Tensor] = {}
    theirs: dict[str, str] = {}
    left_out: list[Key] = []
    for key, tensor in weights.items():
        bare = key.removeprefix(prefix)
        reason = next((why for pattern, why in layout.drop if re.fullmatch(pattern, bare)), None)
        ours = replaced(bare, layout.rename)
        if reason is not None:
            left_out.append(Key("dropped", key, None, reason))
        elif ours in named:
            left_out.append(Key("unexpected", key, None, f"becomes '{ours}', as '{theirs[ours]}' does"))
        else:
            named[ours], theirs[ours] = tensor, key
    for bias in [name for name in named if any(re.fullmatch(pattern, name) for pattern, _ in layout.fold)]:
        mean = replaced(bias, layout.fold)
        if mean in named and named[mean].shape == named[bias].shape:
            pair = (named[mean], named.pop(bias))
            if all(tensor.dtype in FLOATS for tensor in pair):
                named[mean] = pair[0].float() - pair[1].float()
                left_out.append(Key("folded", theirs.pop(bias), mean, f"subtracted from {mean}"))
            else:
                why = f"cannot be subtracted from {mean}: expected floating-point numbers in both"
                left_out.append(Key("unexpected", theirs.pop(bias), None, why))
    return _Translated(named, theirs, left_out)


def _plans(source: str, weights: Mapping[str, Tensor], layout: Layout) -> list[ImportPlan]:
    """One plan per architecture."""
    translated = _translated(weights, layout)
    shapes = shapes_of(translated.weights)
    plans = []
    for architecture, arguments in candidates(shapes):
        keys = [*_compared(translated.theirs, shapes, expected_shapes(architecture, arguments)), *translated.left_out]
        filled = {key.ours: torch.tensor(0) for key in keys if key.status == "filled" and key.ours}
        named = {**translated.weights, **filled}
        plans.append(ImportPlan(source, layout.name, architecture, arguments, tuple(keys), named))
    return plans


def _compared(theirs: Mapping[str, str], shapes: Shapes, expected: Shapes) -> list[Key]:
    keys = []
    for ours in [*expected, *(name for name in shapes if name not in expected)]:
        key = theirs.get(ours)
        if ours not in expected:
            keys.append(Key("unexpected", key, None))
        elif key is None and ours.endswith(COUNT) and ours.replace(COUNT, "running_mean") in shapes:
            keys.append(Key("filled", None, ours, "0: a count that torch 0.4 did not have and nothing here reads"))
        elif key is None:
            keys.append(Key("missing", None, ours))
        elif shapes[ours] != expected[ours]:
            why = f"has shape {list(shapes[ours])}, expected {list(expected[ours])}"
            keys.append(Key("shape", key, ours, why))
        else:
            keys.append(Key("matched" if key == ours else "renamed", key, ours))
    return keys


def _in_common(plan: ImportPlan) -> int:
    return sum(plan.counts()[status] for status in TAKEN)


def _rank(plan: ImportPlan, layout: Layout, weights: Mapping[str, Tensor]) -> tuple[int, int, bool]:
    """Most keys in common; then fewest in the way; then the layout that the checkpoint bears the mark of."""
    return _in_common(plan), -len(plan.misfits), any(re.search(layout.mark, key) for key in weights)


def _misfit_message(plan: ImportPlan) -> str:
    def text(key: Key) -> str:
        return f"'{key.theirs or key.ours}' {key.why or 'is ' + key.status}"

    more = len(plan.misfits) - SHOWN
    return (
        f"{plan.source}: fits no known network. The nearest is {plan.architecture} in the {plan.layout} layout, with "
        f"{_in_common(plan)} keys in common, but {'; '.join(map(text, plan.misfits[:SHOWN]))}"
        f"{f'; and {more} more' if more > 0 else ''}. `dc-import --dry-run` lists all keys; other networks are trained "
        "with `dc-train`."
    )
