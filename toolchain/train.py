"""Training and quantisation-aware fine-tuning that can be interrupted: every epoch ends with a resume file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..models.checkpoint import Checkpoint, save_checkpoint
from ..models.quantiser import initialise_scales, positive_scales, quantisers, scales_are_fresh
from ..runtime.errors import BackendMissing, DynamicConfidenceError
from ..runtime.images import listed
from .augment import drawn, shifted
from .data import ImageSet, normalised
from .distributed import Workers
from .recipe import TrainingOptions, learning_rate
from .training_state import EpochReport, Progress, copied_weights, origin_of, resumed, save_state

_EVALUATION_BATCH = 256


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
    workers: Workers | None = None,
) -> Checkpoint:
    """Train or fine-tune a network and return it with the weights of its best epoch on the validation set.

    `state_path` is written after every epoch, and the best network so far beside it (`best_path`); where it exists,
    training goes on from there, and on a CPU with the same number of threads the result is bit-identical to that of an
    uninterrupted run. Both are left for the caller to remove. With several `workers` each trains on its part of every
    batch (batch normalisation looks at that part only); the first one evaluates and writes, and its result counts.
    `on_batch(done, total)` counts batches over all epochs; `on_resume(epoch)` tells which epoch was the last one done.
    Raises: DynamicConfidenceError when the resume file belongs to another training, the images do not fit the network,
    or training diverges (what was written stays); BackendMissing for a GPU that is not there.
    """
    team = workers or Workers()
    place = torch_device(device, team.local_rank)
    network = checkpoint.network().to(place)
    check_fit(network, checkpoint, train_set)
    _check_batch(len(train_set), options, team)
    _check_classes(train_set)
    optimizer = _optimizer(network, options)
    origin = origin_of(checkpoint, train_set, validation_set, asdict(options))
    progress = resumed(state_path, origin, network, optimizer) if state_path.exists() else Progress()
    if progress.epoch and on_resume:
        on_resume(progress.epoch)

    def best() -> Checkpoint:
        notes = {
            "recipe": asdict(options),
            "training_images": len(train_set),
            "validation_images": len(validation_set),
            "validation_accuracy": progress.best_accuracy,
            "best_epoch": progress.best_epoch,
            **({"before": checkpoint.notes} if checkpoint.notes else {}),
        }
        return replace(checkpoint, state_dict=progress.best_weights, notes=notes)

    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        if not progress.epoch and scales_are_fresh(network):
            torch.manual_seed(options.seed)
            # Shuffled, because a folder's first images are all of one class.
            first = torch.randperm(len(train_set))[: options.batch]
            initialise_scales(network.train(), normalised(train_set.pixels[first].to(place), train_set.preprocessing))
        averaging = team.averaging(network)
        for epoch in range(progress.epoch + 1, options.epochs + 1):
            loss = _train_epoch(averaging, optimizer, train_set, options, epoch, on_batch, team)
            positive_scales(network)
            if not team.first:
                continue
            accuracy = accuracy_of(network, validation_set)
            if accuracy >= progress.best_accuracy:  # of equals the later: its step was smaller
                progress = Progress(epoch, epoch, accuracy, copied_weights(network))
                save_checkpoint(best_path(state_path), best())
            progress = replace(progress, epoch=epoch)
            save_state(state_path, origin, network, optimizer, progress)
            if on_epoch:
                on_epoch(EpochReport(epoch, options.epochs, loss, accuracy, progress.best_accuracy))
    return best() if team.first else checkpoint


def best_path(state_path: Path) -> Path:
    """Where the best network of an unfinished training lies: a checkpoint like any other."""
    return state_path.with_name(f"{state_path.name}.best.pt")


@torch.no_grad()
def accuracy_of(network: nn.Module, image_set: ImageSet) -> float:
    """Return the share (0..1) of images the network, switched to evaluation mode, classifies correctly.

    Raises: DynamicConfidenceError for answers that are no finite numbers: its training has diverged.
    """
    place = _device_of(network.eval())
    right = 0
    for images in _in_advance(image_set, torch.arange(len(image_set)).split(_EVALUATION_BATCH)):
        logits = network(normalised(images.pixels[:].to(place), image_set.preprocessing))
        if not logits.isfinite().all():
            raise DynamicConfidenceError(
                "the network answers with numbers that are not finite: its training has diverged. Train with a smaller "
                "learning rate (`--lr`)."
            )
        right += int((logits.argmax(1).cpu() == images.labels).sum())
    return right / len(image_set)


def torch_device(name: str, number: int = 0) -> torch.device:
    """Return the device "cpu", "cuda" (of this number), or "auto" (a GPU where there is one).

    Raises: BackendMissing when a GPU is asked for and there is none.
    """
    present = torch.cuda.is_available()
    if name == "cuda" and not present:
        raise BackendMissing("device 'cuda': torch sees no NVIDIA GPU. Use `--device cpu`, or install torch with CUDA.")
    return torch.device("cuda", number) if name == "cuda" or (name == "auto" and present) else torch.device("cpu")


def _train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    train_set: ImageSet,
    options: TrainingOptions,
    epoch: int,
    on_batch: Callable[[int, int], None] | None,
    team: Workers,
) -> float:
    """Train for one epoch in place and return the mean loss per image."""
    # Each epoch has a random stream of its own, so that a resumed run goes on exactly.
    torch.manual_seed(options.seed * 1_000_003 + epoch)
    batches = math.ceil(len(train_set) / options.batch)
    total = 0.0
    # Batches of nearly equal size: a last batch of one image would break batch normalisation.
    whole = torch.randperm(len(train_set)).tensor_split(batches)
    for index, images in enumerate(_in_advance(train_set, [team.part(rows) for rows in whole])):
        done = (epoch - 1) * batches + index
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(options, done / (options.epochs * batches))
        # Drawn for the whole batch, so that the images do not depend on the number of processes.
        shift = drawn(options.augment, len(whole[index]), *images.pixels.shape[2:])
        pixels = shifted(images.pixels[:], shift.part(team.part(torch.arange(len(whole[index])))))
        weight = len(images) * team.count / len(whole[index])
        loss = _train_batch(network, optimizer, images, pixels, weight, options.amp)
        if not math.isfinite(loss):
            raise DynamicConfidenceError(
                f"epoch {epoch}: the loss is {loss}, expected a finite number. Train with a smaller learning rate "
                f"(`--lr`, now {options.lr:g})."
            )
        total += loss * len(images)
        if on_batch:
            on_batch(done + 1, options.epochs * batches)
    return team.total(total) / len(train_set)


def _train_batch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: ImageSet,
    pixels: Tensor,
    weight: float,
    amp: bool,
) -> float:
    """Make one update and return the mean loss of these images.

    Processes average their gradients, so `weight`, these images' share of the batch times the number of processes,
    gives the gradient of the whole batch, also where the parts differ in size.
    """
    place = _device_of(network)
    with torch.autocast(place.type, torch.bfloat16, enabled=amp):
        logits = network.train()(normalised(pixels.to(place), images.preprocessing))
    loss = functional.cross_entropy(logits.float(), images.labels.to(place))
    optimizer.zero_grad()
    (loss * weight).backward()
    optimizer.step()
    return float(loss.detach())


def _in_advance(image_set: ImageSet, batches: Sequence[Tensor]) -> Iterator[ImageSet]:
    """Yield the images of each batch of rows in memory, reading the next batch while this one is used."""

    def read(rows: Tensor) -> ImageSet:
        taken = image_set.take(rows)
        return replace(taken, pixels=taken.pixels[:])

    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, batches[0])
        for rows in batches[1:]:
            images = ahead.result()
            ahead = reader.submit(read, rows)
            yield images
        yield ahead.result()


def _optimizer(network: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    scales = {id(quantiser.learned): quantiser.learned for _, quantiser in quantisers(network)}
    weights = [parameter for parameter in network.parameters() if id(parameter) not in scales]
    # Decay would pull the scales towards 0, where the quantiser ends.
    groups = [
        {"params": weights, "weight_decay": options.weight_decay},
        {"params": list(scales.values()), "weight_decay": 0.0},
    ]
    return torch.optim.SGD([g for g in groups if g["params"]], lr=options.lr, momentum=options.momentum)


def _check_classes(train_set: ImageSet) -> None:
    counts = torch.bincount(train_set.labels, minlength=len(train_set.class_names)).tolist()
    empty = [name for name, count in zip(train_set.class_names, counts, strict=True) if not count]
    if empty:
        raise DynamicConfidenceError(
            f"no image of {listed(empty)} to train on, expected some of every class. Add images; a network for fewer "
            "classes is trained from the beginning, without --from."
        )


def _check_batch(images: int, options: TrainingOptions, team: Workers) -> None:
    """Batch normalisation needs two images in every process, also in the smallest batch."""
    smallest = images // math.ceil(images / options.batch)
    if smallest < 2 * team.count:
        raise DynamicConfidenceError(
            f"batches of {smallest} images for {team.count} processes ({images} images, --batch {options.batch}): "
            "expected at least 2 for each of them. Take a larger batch, more images, or fewer processes."
        )


@torch.no_grad()
def check_fit(network: nn.Module, checkpoint: Checkpoint, train_set: ImageSet) -> None:
    """Raise a DynamicConfidenceError when a network cannot take the images, or has other classes."""
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
