"""Training and quantisation-aware fine-tuning that can be interrupted: every epoch ends with a resume file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..models.checkpoint import Checkpoint
from ..models.lsq import LSQ, initialise_scales, positive_scales, scales_are_fresh
from ..models.registry import build
from ..runtime.errors import BackendMissing, DynamicConfidenceError
from ..runtime.manifest import Preprocessing
from .data import AUGMENTATIONS, ImageSet, augmented, normalised
from .training_state import EpochReport, Progress, copied_weights, origin_of, resumed, save_state

SCHEDULES = ("cosine", "exponential")
FINAL_LR = 0.01  # share of the learning rate that the exponential schedule ends with
_EVALUATION_BATCH = 256


@dataclass(frozen=True)
class TrainingOptions:
    """Everything that decides the result, beside the data and the starting weights."""

    epochs: int = 20
    batch: int = 16
    lr: float = 0.05
    weight_decay: float = 5e-4
    momentum: float = 0.9
    schedule: str = "cosine"
    augment: str = "shift"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 2:
            raise DynamicConfidenceError(
                f"epochs {self.epochs}, batch {self.batch}: expected at least 1 epoch, 2 images."
            )
        if not (self.lr > 0 and self.weight_decay >= 0 and 0 <= self.momentum < 1):
            raise DynamicConfidenceError(
                f"lr {self.lr:g}, weight decay {self.weight_decay:g}, momentum {self.momentum:g}: expected lr > 0, "
                "weight decay >= 0 and 0 <= momentum < 1."
            )
        for what, value, known in (("schedule", self.schedule, SCHEDULES), ("augment", self.augment, AUGMENTATIONS)):
            if value not in known:
                raise DynamicConfidenceError(f"{what} '{value}' is unknown, known: {', '.join(known)}.")


def untrained(
    architecture: str, arguments: dict[str, Any], preprocessing: Preprocessing, class_names: tuple[str, ...], seed: int
) -> Checkpoint:
    """Return a freshly initialised network for these classes and images; the same seed gives the same weights."""
    complete = {**arguments, "classes": len(class_names), "in_channels": preprocessing.channels}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(architecture, **complete)
    return Checkpoint(architecture, complete, network.state_dict(), preprocessing, class_names)


def quantised_from_float(checkpoint: Checkpoint, bits: int) -> Checkpoint:
    """Replace the ReLUs of a float network by fresh LSQ quantisers of `bits` bits and keep every weight.

    Raises: DynamicConfidenceError when the network is quantised already.
    """
    activation = checkpoint.arguments.get("activation", "lsq")
    if activation != "relu":
        raise DynamicConfidenceError(
            f"the network is quantised already ({activation}, {checkpoint.arguments.get('bits', 2)} bits), expected "
            "one trained with `dc-train --activation relu` or imported as such. Fine-tune it without --bits."
        )
    arguments = {**checkpoint.arguments, "activation": "lsq", "bits": bits}
    with torch.random.fork_rng(devices=[]):
        fresh = build(checkpoint.architecture, **arguments).state_dict()
    weights = {**fresh, **checkpoint.state_dict}
    notes = {**checkpoint.notes, "quantised_bits": bits}
    return replace(checkpoint, arguments=arguments, state_dict=weights, notes=notes)


def learning_rate(options: TrainingOptions, done: float) -> float:
    """Return the learning rate when the share `done` (0..1) of the training is over."""
    if options.schedule == "cosine":
        return options.lr * 0.5 * (1.0 + math.cos(math.pi * done))
    return options.lr * FINAL_LR**done


def train(
    checkpoint: Checkpoint,
    train_set: ImageSet,
    validation_set: ImageSet,
    options: TrainingOptions,
    state_path: Path,
    on_epoch: Callable[[EpochReport], None] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    device: str = "cpu",
    on_resume: Callable[[int], None] | None = None,
) -> Checkpoint:
    """Train or fine-tune a network and return it with the weights of its best epoch on the validation set.

    `state_path` is written after every epoch; where it exists, training goes on from there, and on a CPU with the same
    number of threads the result is bit-identical to that of an uninterrupted run. It is left for the caller to remove.
    `on_batch(done, total)` counts batches over all epochs; `on_resume(epoch)` tells which epoch was the last one done.
    Raises: DynamicConfidenceError when the resume file belongs to another training, the images do not fit the network,
    or training diverges; BackendMissing for a GPU that is not there.
    """
    place = torch_device(device)
    network = checkpoint.network().to(place)
    _check_fit(network, checkpoint, train_set)
    optimizer = _optimizer(network, options)
    origin = origin_of(checkpoint, train_set, validation_set, asdict(options))
    progress = resumed(state_path, origin, network, optimizer) if state_path.exists() else Progress()
    if progress.epoch and on_resume:
        on_resume(progress.epoch)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        if not progress.epoch and scales_are_fresh(network):
            torch.manual_seed(options.seed)
            # Shuffled, because a folder's first images are all of one class.
            first = torch.randperm(len(train_set))[: options.batch]
            initialise_scales(network.train(), normalised(train_set.pixels[first].to(place), train_set.preprocessing))
        for epoch in range(progress.epoch + 1, options.epochs + 1):
            try:
                loss = _train_epoch(network, optimizer, train_set, options, epoch, on_batch)
            except DynamicConfidenceError:
                state_path.unlink(missing_ok=True)  # resuming would run into the same error
                raise
            accuracy = accuracy_of(network, validation_set)
            if accuracy >= progress.best_accuracy:  # of equals the later: its step was smaller
                progress = Progress(epoch, epoch, accuracy, copied_weights(network))
            progress = replace(progress, epoch=epoch)
            save_state(state_path, origin, network, optimizer, progress)
            if on_epoch:
                on_epoch(EpochReport(epoch, options.epochs, loss, accuracy, progress.best_accuracy))
    notes = {
        "recipe": asdict(options),
        "training_images": len(train_set),
        "validation_images": len(validation_set),
        "validation_accuracy": progress.best_accuracy,
        "best_epoch": progress.best_epoch,
        **({"before": checkpoint.notes} if checkpoint.notes else {}),
    }
    return replace(checkpoint, state_dict=progress.best_weights, notes=notes)


@torch.no_grad()
def accuracy_of(network: nn.Module, image_set: ImageSet) -> float:
    """Return the share (0..1) of images the network, switched to evaluation mode, classifies correctly."""
    place = _device_of(network.eval())
    right = 0
    for start in range(0, len(image_set), _EVALUATION_BATCH):
        rows = slice(start, start + _EVALUATION_BATCH)
        logits = network(normalised(image_set.pixels[rows].to(place), image_set.preprocessing))
        right += int((logits.argmax(1).cpu() == image_set.labels[rows]).sum())
    return right / len(image_set)


def torch_device(name: str) -> torch.device:
    """Return the device "cpu", "cuda", or "auto" (a GPU where there is one).

    Raises: BackendMissing when a GPU is asked for and there is none.
    """
    present = torch.cuda.is_available()
    if name == "cuda" and not present:
        raise BackendMissing("device 'cuda': torch sees no NVIDIA GPU. Use `--device cpu`, or install torch with CUDA.")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and present) else "cpu")


def _train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    train_set: ImageSet,
    options: TrainingOptions,
    epoch: int,
    on_batch: Callable[[int, int], None] | None,
) -> float:
    """Train for one epoch in place and return the mean loss per image."""
    # Each epoch has a random stream of its own, so that a resumed run goes on exactly.
    torch.manual_seed(options.seed * 1_000_003 + epoch)
    batches = math.ceil(len(train_set) / options.batch)
    total = 0.0
    # Batches of nearly equal size: a last batch of one image would break batch normalisation.
    for index, rows in enumerate(torch.randperm(len(train_set)).tensor_split(batches)):
        done = (epoch - 1) * batches + index
        lr = learning_rate(options, done / (options.epochs * batches))
        loss = _train_batch(network, optimizer, train_set.take(rows), lr, options.augment)
        if not math.isfinite(loss):
            raise DynamicConfidenceError(
                f"epoch {epoch}: the loss is {loss}, expected a finite number. Train with a smaller learning rate "
                f"(`--lr`, now {options.lr:g})."
            )
        total += loss * len(rows)
        if on_batch:
            on_batch(done + 1, options.epochs * batches)
    positive_scales(network)
    return total / len(train_set)


def _train_batch(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: ImageSet, lr: float, augment: str
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = lr
    place = _device_of(network)
    logits = network.train()(normalised(augmented(images.pixels, augment).to(place), images.preprocessing))
    loss = functional.cross_entropy(logits, images.labels.to(place))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def _optimizer(network: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    scales = {id(module.scale): module.scale for module in network.modules() if isinstance(module, LSQ)}
    weights = [parameter for parameter in network.parameters() if id(parameter) not in scales]
    # Decay would pull the scales towards 0, where the quantiser ends.
    groups = [
        {"params": weights, "weight_decay": options.weight_decay},
        {"params": list(scales.values()), "weight_decay": 0.0},
    ]
    return torch.optim.SGD([g for g in groups if g["params"]], lr=options.lr, momentum=options.momentum)


@torch.no_grad()
def _check_fit(network: nn.Module, checkpoint: Checkpoint, train_set: ImageSet) -> None:
    if (train_set.preprocessing, train_set.class_names) != (checkpoint.preprocessing, checkpoint.class_names):
        raise DynamicConfidenceError(
            "the images were read with other preprocessing or class names than the network's: read them with "
            "`load_image_set(path, checkpoint.preprocessing, checkpoint.class_names)`."
        )
    place = _device_of(network)
    try:
        classes = network(normalised(train_set.pixels[:1].to(place), train_set.preprocessing)).shape[1]
    except RuntimeError as error:
        raise DynamicConfidenceError(
            f"{checkpoint.architecture} {checkpoint.arguments} cannot take images of {list(train_set.pixels.shape[1:])}"
            f" ({str(error).splitlines()[0]}). Choose another --size, --form or --architecture."
        ) from error
    if classes != len(train_set.class_names):
        raise DynamicConfidenceError(f"the network has {classes} classes, the data {len(train_set.class_names)}.")


def _device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
