"""Conversion: every architecture through one round trip, and what each method must converge to."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from support import SHARED, random_checkpoint
from torch import Tensor, nn
from torch.nn import functional

from dynamic_confidence.models.checkpoint import Checkpoint
from dynamic_confidence.models.lsq import LSQ
from dynamic_confidence.models.qcfs import QCFS
from dynamic_confidence.models.registry import ARCHITECTURES
from dynamic_confidence.models.resnet import PadShortcut
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.manifest import Preprocessing
from dynamic_confidence.toolchain.conversion_check import check_conversion
from dynamic_confidence.toolchain.export import ExportOptions, export
from dynamic_confidence.toolchain.onnx_from_snn import onnx_from_snn
from dynamic_confidence.toolchain.oracle import oracle_steps
from dynamic_confidence.toolchain.self_check import synthetic_pixels
from dynamic_confidence.toolchain.simulate import simulate, simulation_from_snn
from dynamic_confidence.toolchain.snap import snap
from dynamic_confidence.toolchain.snn import Pool, Snn
from dynamic_confidence.toolchain.snn_from_ann import free_name, snn_from_ann


def colour(side: int) -> Preprocessing:
    return Preprocessing(color="RGB", height=side, width=side, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


# With random weights the sums of ResNet-110's 54 blocks outgrow float32's grid.
FORMS = [(name, "cifar", 32 if name == "vgg16" else 16) for name in ARCHITECTURES if name != "resnet110"]
FORMS += [(name, "imagenet", 64) for name in ("resnet18", "resnet50")] + [("vgg16", "imagenet", 224)]


def ann_logits(checkpoint: Checkpoint, pixels: np.ndarray, *, clipped: bool = False) -> np.ndarray:
    """Float64 logits of the quantised network, or of the clipped-ReLU network with the same thresholds."""
    network = copy.deepcopy(checkpoint.network()).double()
    if clipped:
        for name, module in list(network.named_modules()):
            if isinstance(module, LSQ | QCFS):
                parent, _, child = name.rpartition(".")
                lsq = isinstance(module, LSQ)
                top = float(module.scale.detach()) * module.levels if lsq else float(module.threshold.detach())
                setattr(network.get_submodule(parent), child, nn.Hardtanh(0.0, top))
    mean = torch.tensor(checkpoint.preprocessing.mean, dtype=torch.float64).view(1, -1, 1, 1)
    std = torch.tensor(checkpoint.preprocessing.std, dtype=torch.float64).view(1, -1, 1, 1)
    with torch.no_grad():
        return network((torch.from_numpy(pixels).double() / 255 - mean) / std).numpy()


def logits_over_time(snn: Snn, pixels: np.ndarray, steps: int) -> np.ndarray:
    """Accumulated float64 logits `[step, image, class]` of the torch simulation."""
    simulation = simulation_from_snn(snn, torch.float64)
    return np.stack([state.logits.numpy() for _, state in simulate(simulation, pixels, steps)])


def test_a_qcfs_layer_becomes_neurons_with_its_threshold() -> None:
    checkpoint = random_checkpoint("resnet8", colour(16), activation="qcfs", levels=5)
    for method, injection_steps in (("qcfs", None), ("qffs", 5)):
        snn = converted(checkpoint, method)
        assert (snn.method.levels, snn.method.injection_steps) == (5, injection_steps)
        for layer in snn.layers:
            assert layer.threshold == float(checkpoint.state_dict[f"{layer.name}.threshold"])


def converted(checkpoint: Checkpoint, method: str) -> Snn:
    return snn_from_ann(checkpoint.network(), checkpoint.preprocessing, method)


@pytest.mark.parametrize("method", ["qcfs", "qffs"])
@pytest.mark.parametrize(("architecture", "form", "side"), FORMS)
def test_every_architecture_makes_the_round_trip(architecture: str, form: str, side: int, method: str) -> None:
    """Convert, snap, export and self-check: the check inside `export` demands equality of every spike."""
    width = 1 if side == 224 else 4
    checkpoint = random_checkpoint(architecture, colour(side), form=form, width=width)
    exported = export(checkpoint, "0" * 64, ExportOptions(method=method, steps=3, steps_per_call=2))
    assert exported.check.spikes > 0
    assert len(exported.manifest.states) == exported.check.layers * (2 if method == "qffs" else 1) + (
        2 if method == "qffs" else 1
    )


QUANTISERS = [{"bits": bits} for bits in (1, 2, 3)] + [{"activation": "qcfs", "levels": n} for n in (1, 4, 10)]


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [("resnet8", {}), ("resnet8", {"shortcut": "pad"}), ("vgg16", {}), ("vgg16", {"hidden": 16})],
)
@pytest.mark.parametrize("quantiser", QUANTISERS, ids=str)
def test_qffs_settles_on_the_quantised_network(
    architecture: str, arguments: dict[str, object], quantiser: dict[str, object]
) -> None:
    """After the correction steps the accumulated logits / levels are the quantised network's, to float64 rounding."""
    checkpoint = random_checkpoint(architecture, colour(32), **quantiser, **arguments)
    pixels = synthetic_pixels((3, 32, 32), 6)
    snn = converted(checkpoint, "qffs")
    levels = snn.method.levels
    over_time = logits_over_time(snn, pixels, levels * len(snn.layers) + 1) / levels
    expected = ann_logits(checkpoint, pixels)
    scale = expected.std()
    np.testing.assert_allclose(over_time[-1], expected, rtol=0, atol=1e-10 * scale)
    error = np.abs(over_time - expected).max(axis=(1, 2))
    settled = int(np.argmax(error < 1e-10 * scale)) + 1
    print(f"{architecture} {arguments} {quantiser}: settled after {settled} steps ({len(snn.layers)} layers)")
    assert settled >= levels, "no network can be final while the input is still injected"


def test_qffs_is_lossless_on_a_trained_network(resnet20: Checkpoint, lossless: tuple[np.ndarray, np.ndarray]) -> None:
    pixels = lossless[0][:25]
    expected = ann_logits(resnet20, pixels)
    over_time = logits_over_time(converted(resnet20, "qffs"), pixels, 16) / 3
    error = np.abs(over_time - expected).max(axis=(1, 2))
    print("largest error per step:", " ".join(f"{e:.1e}" for e in error))
    assert error[-1] < 1e-10
    assert error[5] > 1e-3


@pytest.mark.parametrize("quantiser", [{"bits": 2}, {"activation": "qcfs", "levels": 4}], ids=str)
def test_qcfs_approaches_the_clipped_relu_network_like_one_over_t(quantiser: dict[str, object]) -> None:
    checkpoint = random_checkpoint("resnet8", colour(16), **quantiser)
    pixels = synthetic_pixels((3, 16, 16), 6)
    times = np.array([16, 64, 256])
    over_time = logits_over_time(converted(checkpoint, "qcfs"), pixels, int(times[-1]))
    expected = ann_logits(checkpoint, pixels, clipped=True)
    distance = [float(np.sqrt(np.mean((over_time[t - 1] / t - expected) ** 2))) for t in times]
    ratios = [near / far for near, far in zip(distance[1:], distance[:-1], strict=True)]
    assert all(0.15 < ratio < 0.4 for ratio in ratios), f"a quarter is expected per factor four, got {ratios}"
    quantised = ann_logits(checkpoint, pixels)
    assert float(np.sqrt(np.mean((over_time[-1] / times[-1] - quantised) ** 2))) > 5 * distance[-1]


def test_the_first_current_is_the_normalised_padded_convolution() -> None:
    """uint8 pixels and a bias map against torch on the normalised image, borders included."""
    checkpoint = random_checkpoint("resnet8", colour(16))
    snn, network = converted(checkpoint, "qcfs"), checkpoint.network().double()
    pixels = synthetic_pixels((3, 16, 16), 2)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)))
    with torch.no_grad():
        image = (torch.from_numpy(pixels).double() / 255 - mean) / std
        expected = network.get_submodule("bn1")(network.get_submodule("conv1")(image)).numpy()
    stem = snn.layers[0]
    first = next(oracle_steps(snn, pixels, 1))
    current = first.membrane[stem.name] + first.spikes[stem.name] - 0.5
    np.testing.assert_allclose(current * stem.threshold, expected, atol=1e-12)
    assert stem.bias.shape == stem.shape, "zero padding of a normalised image needs a bias per position"


def test_oracle_and_simulation_agree_on_time_varying_input(checkpoint: Checkpoint, pixels: np.ndarray) -> None:
    frames = pixels[:12].reshape(6, 2, 1, 12, 12)
    snn = converted(checkpoint, "qcfs")
    oracle = np.stack([step.logits for step in oracle_steps(snn, frames, 6)])
    np.testing.assert_allclose(logits_over_time(snn, frames, 6), oracle, atol=1e-9)
    still = np.stack([step.logits for step in oracle_steps(snn, frames[0], 6)])
    assert not np.allclose(oracle, still)


GREY = Preprocessing(color="L", height=12, width=12, mean=(0.5,), std=(0.5,))
ZERO_MEAN = Preprocessing(color="L", height=12, width=12, mean=(0.0,), std=(0.3,))


def network_of(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers).eval()


class Written(nn.Module):
    """conv - act, then what a test writes between the two dots, then pool - fc."""

    def __init__(self, write: Callable[[Written, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.write = write
        self.conv, self.act = nn.Conv2d(1, 3, 3, padding=1), LSQ(2, 0.2)
        self.branch, self.act2 = nn.Conv2d(3, 3, 3, padding=1), LSQ(2, 0.15)
        self.pool, self.same = nn.AvgPool2d(2), nn.Identity()
        self.end, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(3, 4)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        x = self.write(self, self.act(self.conv(image)), image)
        return self.fc(torch.flatten(self.end(x), 1))


def iadd(a: Tensor, b: Tensor) -> Tensor:
    a += b
    return a


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (network_of(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(200, 4)), "dc-train --from model.pt"),
        (network_of(nn.Conv2d(1, 2, 3), LSQ(2), nn.Conv2d(2, 2, 1), nn.ReLU()), "'3' is a ReLU among quantised"),
        (
            network_of(nn.Conv2d(1, 2, 3), LSQ(2), nn.Conv2d(2, 2, 1), LSQ(3)),
            "layer '3' is LSQ with 7 levels, but layer '1' is LSQ with 3 levels: expected one kind of quantiser",
        ),
        (
            network_of(nn.Conv2d(1, 2, 3), LSQ(2), nn.Conv2d(2, 2, 1), QCFS(3)),
            "layer '3' is QCFS with 3 levels, but layer '1' is LSQ with 3 levels",
        ),
        (
            network_of(nn.Conv2d(1, 2, 3), QCFS(4), nn.Sequential(nn.Conv2d(2, 2, 1), QCFS(8))),
            r"layer '2\.1' is QCFS with 8 levels, but layer '1' is QCFS with 4 levels",
        ),
        (
            network_of(nn.Conv2d(1, 2, 3), LSQ(2), nn.MaxPool2d(2)),
            "'2' is a MaxPool2d, which has no spiking form. Known",
        ),
        (network_of(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), LSQ(2)), "'1': a convolution needs a quantised activation"),
        (network_of(nn.Conv2d(1, 2, 3, dilation=2), LSQ(2)), "'0': only undilated convolutions with zero padding"),
        (network_of(nn.AvgPool2d(2), nn.Conv2d(1, 2, 3), LSQ(2)), "'0': pooling of the image itself"),
        (network_of(nn.Conv2d(1, 2, 3), LSQ(2), nn.AdaptiveAvgPool2d(2)), "'2': adaptive pooling to 2 has no spiking"),
        (network_of(nn.Conv2d(1, 2, 3), LSQ(2), LSQ(2)), "'2': a quantiser must follow a linear layer"),
        (network_of(LSQ(2)), "'0': a quantiser must follow a linear layer"),
        (
            network_of(nn.Conv2d(1, 2, 3), LSQ(2), nn.BatchNorm2d(2)),
            "'2': batch normalisation must follow a convolution",
        ),
        (network_of(nn.Conv2d(1, 2, 3), LSQ(2), nn.Linear(9, 4)), "'2' takes 9 features, but images of"),
        (network_of(nn.Conv2d(1, 2, 3), LSQ(2)), "output is not a linear read-out"),
        (
            network_of(nn.Conv2d(1, 2, 3), LSQ(2), nn.Conv2d(2, 4, 1)),
            r"output has the shape \[4, 10, 10\] \(channel, y, x\), expected one number per class",
        ),
        (network_of(nn.Conv2d(3, 2, 3), LSQ(2)), r"'0' takes 3 channels, but \[1, 12, 12\] reaches it"),
        (network_of(nn.Conv2d(1, 2, 13), LSQ(2)), r"'0': a window of \[13, 13\] does not fit into \[1, 12, 12\]"),
        (
            network_of(nn.Conv2d(1, 2, 3), LSQ(2), nn.Flatten(0), nn.Linear(200, 4)),
            "'2': flattening with start_dim=0, end_dim=-1 has no spiking form",
        ),
        (
            network_of(nn.Conv2d(1, 2, 3), LSQ(2), nn.Flatten(1, 2), nn.Linear(200, 4)),
            "'2': flattening with start_dim=1, end_dim=2 has no spiking form",
        ),
        (network_of(nn.Conv2d(1, 2, 3), LSQ(2), nn.AvgPool2d(2, ceil_mode=True)), "'2': average pooling must divide"),
    ],
)
def test_what_cannot_be_converted_is_named(network: nn.Module, message: str) -> None:
    with pytest.raises(DynamicConfidenceError, match=message):
        snn_from_ann(network, GREY, "qcfs")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda n, x, _: n.act2(torch.add(n.branch(x), x, alpha=0.25)), r"'add': an addition with alpha=0.25 has no"),
        (lambda n, x, _: n.act2(n.branch(x).add(x, alpha=2)), r"'add': an addition with alpha=2 has no spiking form"),
        (lambda n, x, _: n.act2(torch.add(n.branch(x), x, out=x)), r"'add' with \(a value, a value, out=a value\) has"),
        (lambda n, x, _: n.act2(n.branch(x) + 1.0), r"'add': 1.0 has no spiking form here"),
        (lambda n, x, _: n.act2(1.0 + n.branch(x)), r"'add': 1.0 has no spiking form here"),
        (lambda n, x, _: n.act2(n.branch(x) + n.branch(n.pool(x))), r"'add(_\d)?': an addition of \[3, 12, 12\] and"),
        (lambda n, x, _: torch.flatten(x), r"'flatten': flattening with start_dim=0, end_dim=-1 has no spiking form"),
        (lambda n, x, _: torch.flatten(x, start_dim=2), r"'flatten': flattening with start_dim=2"),
        (lambda n, x, _: functional.relu(n.branch(x)), r"'relu' is a ReLU among quantised"),
        (lambda n, x, _: n.branch(x).relu(), r"'relu' is a ReLU among quantised"),
        (lambda n, x, _: functional.avg_pool2d(x, 2, ceil_mode=True), r"'avg_pool2d': average pooling must divide"),
        (
            lambda n, x, _: n.act2(n.branch(input=x)),
            r"'branch' is called with \(input=a value\), expected one positional",
        ),
        (lambda n, x, _: n.act2(n.branch(x) * 2), r"'mul' \(mul\) has no spiking form"),
        (lambda n, x, _: x.mean((2, 3)), r"'mean' \(mean\) has no spiking form"),
        (lambda n, x, _: n.act2(n.branch(x).add_(x)), r"'add_' \(add_\) has no spiking form"),
    ],
)
@pytest.mark.parametrize("method", ["qcfs", "qffs"])
def test_calls_that_mean_something_else_are_refused(
    write: Callable[[Written, Tensor, Tensor], Tensor], message: str, method: str
) -> None:
    with pytest.raises(DynamicConfidenceError, match=message):
        snn_from_ann(Written(write), GREY, method)


@pytest.mark.parametrize("preprocessing", [GREY, ZERO_MEAN])
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda n, x, image: n.pool(image), "'pool': pooling of the image itself has no spiking form"),
        (lambda n, x, image: n.act2(n.branch(x) + image), "'add': an addition of the image itself has no spiking form"),
        (lambda n, x, image: n.act2(image + n.conv(image)), "'add': an addition of the image itself"),
        (lambda n, x, image: n.act2(n.shortcut(n.same(image))), "'shortcut': a shortcut of the image itself"),
    ],
)
def test_the_image_itself_is_no_spike_train(
    write: Callable[[Written, Tensor, Tensor], Tensor], message: str, preprocessing: Preprocessing
) -> None:
    """Whatever its mean: a normalisation that happens to have no offset does not make spikes of pixels."""
    network = Written(write)
    network.shortcut = PadShortcut(1, 3, 1)
    with pytest.raises(DynamicConfidenceError, match=message):
        snn_from_ann(network, preprocessing, "qffs")


def test_a_second_input_is_refused() -> None:
    class Two(Written):
        def forward(self, image: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(image)

    with pytest.raises(DynamicConfidenceError, match="the network has a second input, 'other', expected the image"):
        snn_from_ann(Two(lambda n, x, image: x), GREY)


SAME = [
    ("+", lambda n, x, _: n.act2(n.branch(x) + x)),
    ("torch.add", lambda n, x, _: n.act2(torch.add(n.branch(x), x))),
    ("torch.add by keyword", lambda n, x, _: n.act2(torch.add(input=n.branch(x), other=x, alpha=1))),
    (".add", lambda n, x, _: n.act2(n.branch(x).add(x))),
    ("+=", lambda n, x, _: n.act2(iadd(n.branch(x), x))),
    ("+= to the identity", lambda n, x, _: n.act2(iadd(x, n.branch(x)))),
    ("through Identity", lambda n, x, _: n.act2(iadd(n.same(n.branch(x)), n.same(x)))),
]
OTHERS = [
    ("avg_pool2d", lambda n, x, _: functional.avg_pool2d(n.act2(n.branch(x)), 3, stride=2, padding=1)),
    ("avg_pool2d twice", lambda n, x, _: functional.avg_pool2d(functional.avg_pool2d(x, 2), (2, 2))),
    ("no flattening of the last map", lambda n, x, _: n.act2(n.conv2(functional.avg_pool2d(x, 6)))),
    ("one pool twice", lambda n, x, _: n.pool(n.act2(n.branch(n.pool(x))))),
    ("one activation twice", lambda n, x, _: n.act(n.branch(x))),
    ("one activation thrice, one convolution twice", lambda n, x, _: n.act(n.branch(n.act(n.branch(x))) + x)),
]


@pytest.mark.parametrize(("name", "write"), SAME + OTHERS, ids=[name for name, _ in SAME + OTHERS])
@pytest.mark.parametrize("preprocessing", [GREY, ZERO_MEAN])
def test_what_users_write_settles_on_their_network(
    name: str, write: Callable[[Written, Tensor, Tensor], Tensor], preprocessing: Preprocessing
) -> None:
    network, pixels = Written(write), synthetic_pixels((1, 12, 12), 3)
    network.conv2 = nn.Conv2d(3, 3, 1).eval()
    steps = check_conversion(network, preprocessing, pixels)
    snn = snn_from_ann(network, preprocessing, "qffs")
    settled = list(oracle_steps(snn, pixels, steps))[-1].logits / 3
    reference = copy.deepcopy(network).double()
    image = (torch.from_numpy(pixels).double() / 255 - preprocessing.mean[0]) / preprocessing.std[0]
    with torch.no_grad():
        np.testing.assert_allclose(settled, reference(image).numpy(), atol=1e-10)
    assert settled.std(axis=0).max() > 1e-3, "the images must give different answers"


def test_equal_networks_convert_to_equal_networks() -> None:
    pixels = synthetic_pixels((1, 12, 12), 3)
    logits = [list(oracle_steps(snn_from_ann(Written(write), GREY, "qcfs"), pixels, 6))[-1].logits for _, write in SAME]
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], atol=1e-10)


def test_modules_called_twice_become_nodes_of_their_own() -> None:
    snn = snn_from_ann(Written(lambda n, x, _: n.pool(n.act(n.branch(n.pool(x))))), GREY, "qffs")
    assert [node.name for node in snn.nodes] == ["act", "pool", "act.1", "pool.1", "end"]
    assert [node.source for node in snn.nodes if isinstance(node, Pool)] == ["act", "act.1", "pool.1"]
    onnx.checker.check_model(onnx_from_snn(snap(snn, 6)[0], steps_per_call=2).model)


def test_layers_called_as_the_input_and_the_readout_convert() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.input = nn.Conv2d(1, 3, 3), LSQ(2, 0.2)
            self.branch, self.readout, self.end = nn.Conv2d(3, 3, 3), LSQ(2, 0.2), nn.Linear(192, 4)

        def forward(self, image: Tensor) -> Tensor:
            return self.end(self.readout(self.branch(self.input(self.conv(image)))).flatten(1))

    snn = snn_from_ann(Named().eval(), GREY, "qffs")
    assert [layer.name for layer in (*snn.layers, snn.readout)] == ["input.1", "readout.1", "readout"]
    onnx.checker.check_model(onnx_from_snn(snap(snn, 6)[0]).model)
    check_conversion(Named().eval(), GREY, synthetic_pixels((1, 12, 12), 3))


def test_free_names() -> None:
    assert free_name("pool", {"act"}) == "pool"
    assert free_name("pool", {"pool", "pool.1", "pool.3"}) == "pool.2"


def test_unknown_method(checkpoint: Checkpoint) -> None:
    with pytest.raises(DynamicConfidenceError, match="method 'snn' is unknown, known: qcfs, qffs"):
        converted(checkpoint, "snn")


def test_linear_layers_after_flattening_see_the_image_in_torch_order() -> None:
    """A classifier on a map that is not 1 x 1 (VGG in ImageNet form) becomes a convolution over the whole map."""
    torch.manual_seed(0)
    network = network_of(nn.Conv2d(1, 3, 3), LSQ(2, 0.3), nn.Flatten(), nn.Linear(300, 4))
    snn = snn_from_ann(network, GREY, "qffs")
    pixels = synthetic_pixels((1, 12, 12), 3)
    last = list(oracle_steps(snn, pixels, 8))[-1].logits / 3
    with torch.no_grad():
        expected = network.double()((torch.from_numpy(pixels).double() / 255 - 0.5) / 0.5).numpy()
    np.testing.assert_allclose(last, expected, atol=1e-10)


def test_the_data_beside_the_clone_is_where_the_tests_look() -> None:
    """Guards the skips: where the development data exists at all, the network of the tests is in it."""
    if SHARED.is_dir():
        assert (SHARED / "models" / "resnet20_lsq2.pt").is_file()
