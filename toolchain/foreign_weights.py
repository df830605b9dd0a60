"""The weights in a foreign file: where they lie, and whether they are what a network can hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..runtime.errors import DynamicConfidenceError

WRAPPERS = ("state_dict", "net", "model")
"""Where training scripts put the weights, beside epoch and optimiser."""
DEEPEST = 4
"""Wrappers in each other that are opened: a file can hold itself."""
LONGEST = 255
"""Characters of a key; ten times what any known network has, and numbers in a key stay numbers that `int` reads."""
COUNT = "num_batches_tracked"
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Numbers that mean what they say; those of 8 bits and less come with scales that lie elsewhere."""
LEARNED = (".scale", ".threshold")
"""How our names of a quantiser's learned number end."""


def state_dict_in(content: Any, source: str) -> dict[str, Tensor]:
    """Return the weights that lie in `content` or under WRAPPERS, by their names.

    Raises: DynamicConfidenceError when there are none, and for a tensor that is not plain or that its file cannot fill.
    """
    for _ in range(DEEPEST):
        if not isinstance(content, Mapping):
            break
        content = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), content)
    if not (isinstance(content, Mapping) and content and all(isinstance(value, Tensor) for value in content.values())):
        raise DynamicConfidenceError(
            f"{source}: holds no state_dict (neither at the top nor under {', '.join(WRAPPERS)}). "
            "Save `model.state_dict()` with torch.save."
        )
    weights = {str(name): tensor for name, tensor in content.items()}
    for name, tensor in weights.items():
        odd = f"has a name of {len(name)} characters" if len(name) > LONGEST else _oddity(tensor)
        if odd is not None:
            raise DynamicConfidenceError(
                f"{source}: '{name[:LONGEST]}' {odd}, expected a plain, dense tensor. The file is damaged or of "
                "another kind: save the network's `state_dict()` in float32 with torch.save."
            )
    return weights


def _oddity(tensor: Tensor) -> str | None:
    """Say what keeps a tensor from being read as numbers; only names and sizes are looked at."""
    if tensor.layout != torch.strided:
        return f"is sparse ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.is_quantized:
        return f"is quantised ({_dtype(tensor)})"
    if tensor.is_meta:
        return "has a shape but no numbers (device meta)"
    if not tensor.numel():
        return f"is empty (shape {list(tensor.shape)})"
    claimed, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    return f"claims {claimed} bytes of which the file holds {held}" if claimed > held else None


def readable_weights(weights: Mapping[str, Tensor], theirs: Mapping[str, str], source: str) -> dict[str, Tensor]:
    """Return the weights of a network (by our names) as float32; counts stay integers.

    `theirs`: the keys of the file that each comes from, for the error.
    Raises: DynamicConfidenceError that names the first key whose numbers no network can have.
    """
    single = {name: t.float() if t.dtype in FLOATS else t for name, t in weights.items()}
    for name, fault in _faults(single):
        raise DynamicConfidenceError(
            f"{source}: '{theirs.get(name, name)}' {fault}. The checkpoint is damaged or of another kind: get it again "
            "from where it came, or save the network's `state_dict()` in float32."
        )
    return single


def _faults(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    for name, tensor in weights.items():
        if tensor.dtype not in FLOATS:
            if not (name.endswith(COUNT) and tensor.dtype in (torch.int64, torch.int32)):
                yield name, f"holds {_dtype(tensor)}, expected floating-point numbers of 16 bits or more"
        elif not (finite := tensor.isfinite()).all():
            yield (
                name,
                f"holds {int((~finite).sum())} numbers that are NaN or infinite in float32, expected none",
            )
        elif name.endswith("running_var") and (least := float(tensor.detach().min())) < 0:
            yield name, f"holds {least:g}, expected a variance, which is at least 0"
        elif name.endswith(LEARNED) and (least := float(tensor.detach().min())) <= 0:
            yield name, f"(a quantiser's learned {name.rsplit('.', 1)[1]}) is {least:g}, expected a positive number"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
