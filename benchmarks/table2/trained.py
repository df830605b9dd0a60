"""A trained network in the place of a random one: its exits are then measured, not projected."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...calib.calibrate import calibrate_file
from ...calib.tuning import representative
from ...models.checkpoint import Checkpoint, load_checkpoint, sha256_of
from ...runtime.errors import DynamicConfidenceError
from ...runtime.exit_policy import ExitPolicy, policy_from_manifest
from ...runtime.images import labelled_arrays
from ...runtime.manifest import Preprocessing
from ..evaluate import evaluate
from ..model_and_data import Images, model_and_parts, spread
from . import settings
from .record import Model, Tested

CALIBRATION_IMAGES = 1000
TIMED_IMAGES = 20
"""One after another in every round."""


@dataclass(frozen=True, eq=False)
class Trained:
    network: str
    """Which one of `settings.NETWORKS` it is."""
    checkpoint: Checkpoint
    calibration: Images
    test: Images
    about: Model


@dataclass(frozen=True, eq=False)
class Exits:
    """When the time steps of a trained network stop, and what that does to its answers."""

    policy: ExitPolicy
    tested: Tested
    timed: np.ndarray
    """Test images `[image, channel, y, x]` that stop about as all of them do."""


def by_network(texts: Iterable[str], wanted: Collection[str]) -> dict[str, Trained]:
    """Read every `MODEL=DATA`; the answer is by network.

    Raises: DynamicConfidenceError as `trained_from_text`, for two of one network, or one that is not `wanted`.
    """
    found: dict[str, Trained] = {}
    for text in texts:
        one = trained_from_text(text)
        if one.network in found:
            raise DynamicConfidenceError(
                f"--model {text}: a second {one.network}, expected one. Leave one of them out."
            )
        if one.network not in wanted:
            raise DynamicConfidenceError(
                f"--model {text}: it is a {one.network}, which --only leaves out. Add --only {one.network}."
            )
        found[one.network] = one
    return found


def trained_from_text(text: str) -> Trained:
    """Read `MODEL=DATA`: a model.pt, and a folder with the parts `validation` and `test`, of which some are taken.

    Raises: DynamicConfidenceError for what cannot be read, or a network that is not in the table.
    """
    path, parts = model_and_parts(text)
    checkpoint = load_checkpoint(path)
    network = network_of(checkpoint, str(path))
    images = [labelled_arrays(part, checkpoint.preprocessing, checkpoint.class_names) for part in parts]
    calibration, test = map(spread, images, (CALIBRATION_IMAGES, settings.TEST_IMAGES))
    about = Model(
        title=path.stem,
        sha256=sha256_of(path),
        data=parts[0].parent.name,
        calibration_images=len(calibration[0]),
        test_images=len(test[0]),
    )
    return Trained(network, checkpoint, calibration, test, about)


def network_of(checkpoint: Checkpoint, title: str) -> str:
    """The network of the table that a trained one is: its architecture, on images of its size.

    Raises: DynamicConfidenceError where the table has none such.
    """

    def about(architecture: str, size: Preprocessing) -> str:
        return f"{architecture} at {size.height} x {size.width}"

    found = about(checkpoint.architecture, checkpoint.preprocessing)
    known = {about(network.architecture, network.preprocessing): key for key, network in settings.NETWORKS.items()}
    if found not in known:
        raise DynamicConfidenceError(
            f"--model {title}: a {found} pixels is in no row of Table 2, expected one of {', '.join(known)}. Leave it "
            "out: random networks are measured in its place."
        )
    return known[found]


def exits_of(file: Path, trained: Trained, threads: int) -> Exits:
    """Calibrate an exported network on the calibration images, as `dc-calibrate` does, and test it."""
    calibrate_file(file, *trained.calibration, data_name=trained.about.data, threads=threads)
    found = evaluate(file, *trained.test, threads=threads)
    tested = Tested(found.accuracy, found.fixed_accuracy, found.mean_steps)
    pixels, _ = trained.test
    return Exits(policy_from_manifest(found.manifest), tested, pixels[representative(found.exits, TIMED_IMAGES)])
