"""The conversion check: it passes what is right, ties included, and names the first layer that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import random_checkpoint
from torch import nn

from dynamic_confidence.models.checkpoint import Checkpoint
from dynamic_confidence.models.lsq import LSQ
from dynamic_confidence.models.qcfs import QCFS
from dynamic_confidence.runtime.errors import CheckFailed
from dynamic_confidence.runtime.manifest import Preprocessing
from dynamic_confidence.toolchain import conversion_check
from dynamic_confidence.toolchain.conversion_check import check_conversion
from dynamic_confidence.toolchain.oracle import oracle_steps
from dynamic_confidence.toolchain.self_check import synthetic_pixels
from dynamic_confidence.toolchain.snn import Layer, Snn
from dynamic_confidence.toolchain.snn_from_ann import snn_from_ann

# pixel / 255 / (1 / 255): the network sees the pixels themselves
RAW = Preprocessing(color="L", height=8, width=8, mean=(0.0,), std=(1 / 255,))


@pytest.mark.parametrize(
    ("architecture", "arguments", "side"),
    [
        ("resnet8", {}, 16),
        ("resnet8", {"shortcut": "pad", "bits": 1}, 16),
        ("resnet20", {"bits": 3}, 16),
        ("resnet20", {"activation": "qcfs", "levels": 4}, 16),
        ("vgg16", {"activation": "qcfs", "levels": 1, "hidden": 8}, 32),
        ("resnet50", {"form": "imagenet"}, 64),
        ("vgg16", {}, 32),
    ],
)
def test_a_right_conversion_passes(architecture: str, arguments: dict[str, object], side: int) -> None:
    colour = Preprocessing(color="RGB", height=side, width=side, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    checkpoint = random_checkpoint(architecture, colour, **arguments)
    pixels = synthetic_pixels(colour.shape, 2)
    steps = check_conversion(checkpoint.network(), colour, pixels)
    snn = snn_from_ann(checkpoint.network(), colour, "qffs")
    assert snn.method.levels <= steps <= snn.method.levels * len(snn.layers)


def test_the_steps_are_those_it_settles_in(checkpoint: Checkpoint, pixels: np.ndarray) -> None:
    steps = check_conversion(checkpoint.network(), checkpoint.preprocessing, pixels[:4])
    snn = snn_from_ann(checkpoint.network(), checkpoint.preprocessing, "qffs")
    trains = [step.spikes for step in oracle_steps(snn, pixels[:4], steps + 3)]
    fires = [any(z.any() for z in spikes.values()) for spikes in trains]
    assert fires[steps - 1]
    assert not any(fires[steps:])


def test_a_trained_network_passes(resnet20: Checkpoint, lossless: tuple[np.ndarray, np.ndarray]) -> None:
    assert check_conversion(resnet20.network(), resnet20.preprocessing, lossless[0][:2]) < 12


@pytest.mark.parametrize("quantiser", [LSQ(1, 1.0), QCFS(1, 1.0)], ids=["lsq", "qcfs"])
def test_ties_do_not_fail_a_right_conversion(quantiser: nn.Module) -> None:
    """Half of all pixels lie half-way between the two levels, where LSQ rounds to even, QCFS and the neuron up."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1), quantiser, nn.Flatten(), nn.Linear(64, 3)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        network[0].weight.fill_(0.5)
        network[0].bias.zero_()
    pixels = np.random.default_rng(0).integers(0, 2, (4, 1, 8, 8)).astype(np.uint8)
    snn = snn_from_ann(network, RAW, "qffs")
    settled = list(oracle_steps(snn, pixels, 2))[-1].logits
    with torch.no_grad():
        rounded = network(torch.from_numpy(pixels).float()).numpy()
    up = np.allclose(settled, rounded, atol=1e-6)
    assert up == isinstance(quantiser, QCFS), "these images must have ties, or the test is empty"
    assert check_conversion(network, RAW, pixels) == 1


def test_the_network_is_left_as_it_is(checkpoint: Checkpoint, pixels: np.ndarray) -> None:
    network = checkpoint.network().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    check_conversion(network, checkpoint.preprocessing, pixels[:2])
    assert network.training
    assert not any(module._forward_pre_hooks for module in network.modules())
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def with_layer(snn: Snn, name: str, change: Callable[[Layer], Layer]) -> Snn:
    if name == snn.readout.name:
        return replace(snn, readout=change(snn.readout))
    return replace(snn, nodes=tuple(change(n) if isinstance(n, Layer) and n.name == name else n for n in snn.nodes))


def scaled(layer: Layer) -> Layer:
    return replace(layer, synapses=tuple(s.times(np.array(1.0 + 1e-5)) for s in layer.synapses))


def shifted(layer: Layer) -> Layer:
    return replace(layer, bias=layer.bias + 1e-5)


def without_the_last_synapse(layer: Layer) -> Layer:
    return replace(layer, synapses=layer.synapses[:-1])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("activation1", scaled, "layer 'activation1': the settled spiking network differs"),
        ("activation1", shifted, "layer 'activation1': the settled spiking network differs"),
        ("layer2.0.activation1", scaled, r"layer 'layer2.0.activation1': the settled spiking network differs"),
        (
            "layer3.0.activation2",
            without_the_last_synapse,
            r"'layer3.0.activation2': .* by [\d.e+-]+ at most \(standard",
        ),
        ("readout", scaled, "the logits: the settled spiking network differs"),
        ("readout", shifted, "the logits: the settled spiking network differs"),
    ],
)
def test_a_wrong_conversion_is_named(
    name: str,
    change: Callable[[Layer], Layer],
    message: str,
    checkpoint: Checkpoint,
    pixels: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hundred-thousandth too much in one layer, which hardly changes a spike, is found."""
    wrong = with_layer(snn_from_ann(checkpoint.network(), checkpoint.preprocessing, "qffs"), name, change)
    monkeypatch.setattr(conversion_check, "snn_from_ann", lambda *_: wrong)
    with pytest.raises(CheckFailed, match=message):
        check_conversion(checkpoint.network(), checkpoint.preprocessing, pixels[:3])


def test_another_shape_is_named() -> None:
    """torch broadcasts `[image, 4]` with `[image, 4, 1, 1]` to something else; the conversion sees one shape."""

    class Broadcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(1, 2, 8), LSQ(2, 0.2)
            self.one, self.other = nn.Linear(2, 4), nn.Conv2d(2, 4, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = self.act(self.conv(image))
            return self.one(x.flatten(1)) + self.other(x)

    with pytest.raises(CheckFailed, match="the logits: 4 values per image in the spiking network, expected 32 as in"):
        check_conversion(Broadcast().eval(), RAW, synthetic_pixels((1, 8, 8), 2))


def test_what_an_addition_in_place_changes_elsewhere_is_found() -> None:
    """torch.fx traces `y += …` as `y = y + …`: the second reader of the same tensor sees another value."""

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.act = nn.Conv2d(1, 2, 3), LSQ(2, 20.0)
            self.branch, self.act2, self.end = nn.Conv2d(2, 2, 1), LSQ(2, 20.0), nn.Linear(72, 4)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = self.act(self.conv(image))
            y = x
            y += self.branch(x)
            return self.end(self.act2(y + x).flatten(1))

    with pytest.raises(CheckFailed, match="layer 'act2': the settled spiking network differs"):
        check_conversion(InPlace().eval(), RAW, synthetic_pixels((1, 8, 8), 2))


def test_weights_that_are_no_numbers_never_settle() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 8), LSQ(2, 0.2), nn.Flatten(), nn.Linear(2, 4)).eval()
    with torch.no_grad():
        network[0].weight.fill_(float("nan"))
    with pytest.raises(CheckFailed, match=r"still fire after 3 steps \(3 levels, 1 layers\).*finite numbers"):
        check_conversion(network, RAW, synthetic_pixels((1, 8, 8), 2))
