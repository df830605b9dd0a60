"""Import checkpoints that others trained: one table of layouts, and the architecture read off the shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.checkpoint import Checkpoint
from ..models.registry import build
from ..runtime.errors import DynamicConfidenceError
from ..runtime.manifest import Preprocessing


@dataclass(frozen=True)
class Layout:
    """How one family of checkpoints names its weights, as regular expressions over our names."""

    name: str
    rename: tuple[tuple[str, str], ...]
    drop: tuple[str, ...]
    """Keys that are left out, each with a reason in the comment beside it."""


LAYOUTS = (
    # The paper's demo and torchvision: our own names. The demo's root `activation2` quantises the logits, which the
    # spiking network never does and the paper does not describe (its output layer is full precision).
    Layout("demo or torchvision", (), (r"activation2\.scale",)),
    # github.com/akamaster/pytorch_resnet_cifar10: DataParallel's prefix, and `linear` for the read-out.
    Layout("akamaster", ((r"^module\.", ""), (r"^linear\.", "fc.")), ()),
)

DEPTHS = {
    ("basic", (1, 1, 1)): "resnet8",
    ("basic", (3, 3, 3)): "resnet20",
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
}


@dataclass(frozen=True)
class Imported:
    """A converted checkpoint, and what was done to its keys."""

    checkpoint: Checkpoint
    layout: str
    renamed: dict[str, str]
    dropped: tuple[str, ...]


def import_checkpoint(
    content: Any,
    source: str,
    preprocessing: Callable[[str], Preprocessing],
    class_names: tuple[str, ...] | None,
    bits: int = 2,
) -> Imported:
    """Convert the content of a foreign checkpoint (a state_dict, or a dict that holds one under `state_dict`).

    Architecture, width, classes, form and shortcut are read off the keys and shapes. `preprocessing` gets the form
    ("cifar" or "imagenet"), for the image size. `class_names` None: "0", "1", …
    Raises: DynamicConfidenceError when no layout fits; the message names the keys that stand in the way.
    """
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        raise DynamicConfidenceError(f"{source}: holds no state_dict. Save `model.state_dict()` with torch.save.")
    reasons = []
    for layout in LAYOUTS:
        named, renamed, dropped = _apply(layout, weights)
        try:
            architecture, arguments = _resnet_arguments(named, bits)
            network = build(architecture, **arguments)
        except DynamicConfidenceError as error:
            reasons.append(f"{layout.name}: {error}")
            continue
        wanted = network.state_dict()
        odd = sorted(set(wanted) ^ set(named)) or sorted(k for k in wanted if wanted[k].shape != named[k].shape)
        if odd:
            reasons.append(f"{layout.name}: a {architecture}, but for {len(odd)} keys such as '{odd[0]}'")
            continue
        classes = int(arguments["classes"])
        names = class_names or tuple(str(index) for index in range(classes))
        if len(names) != classes:
            raise DynamicConfidenceError(f"{source}: {len(names)} class names were given, the network has {classes}.")
        notes = {"imported_from": source.rsplit("/", 1)[-1], "layout": layout.name}
        checkpoint = Checkpoint(architecture, arguments, named, preprocessing(arguments["form"]), names, notes)
        checkpoint.network()
        return Imported(checkpoint, layout.name, renamed, dropped)
    raise DynamicConfidenceError(
        f"{source}: fits no known layout. {'; '.join(reasons)}. Other networks are trained with `dc-train`."
    )


def _apply(layout: Layout, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]:
    named, renamed, dropped = {}, {}, []
    for key, tensor in weights.items():
        if any(re.fullmatch(pattern, key) for pattern in layout.drop):
            dropped.append(key)
            continue
        name = key
        for pattern, replacement in layout.rename:
            name = re.sub(pattern, replacement, name)
        if name != key:
            renamed[key] = name
        named[name] = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
    return named, renamed, tuple(dropped)


def _resnet_arguments(weights: Mapping[str, Tensor], bits: int) -> tuple[str, dict[str, Any]]:
    """Read a residual network's name and arguments off its keys and shapes."""
    stem, readout = weights.get("conv1.weight"), weights.get("fc.weight")
    blocks = {tuple(map(int, m.groups())) for k in weights if (m := re.match(r"layer(\d+)\.(\d+)\.", k))}
    if stem is None or readout is None or not blocks:
        raise DynamicConfidenceError("no residual network (expected conv1.weight, layer1.0.…, fc.weight)")
    stages = max(stage for stage, _ in blocks)
    depths = tuple(sum(stage == s for stage, _ in blocks) for s in range(1, stages + 1))
    kind = "bottleneck" if "layer1.0.conv3.weight" in weights else "basic"
    if (kind, depths) not in DEPTHS:
        known = ", ".join(f"{name} {d}" for (_, d), name in DEPTHS.items())
        raise DynamicConfidenceError(f"{kind} blocks {depths} are no registered architecture, known: {known}")
    return DEPTHS[kind, depths], {
        "activation": "lsq" if "activation1.scale" in weights else "relu",
        "bits": bits,
        "form": "imagenet" if stem.shape[-1] == 7 else "cifar",
        "width": stem.shape[0],
        "classes": readout.shape[0],
        "in_channels": stem.shape[1],
        "shortcut": "conv" if any("downsample" in key for key in weights) else "pad",
    }
