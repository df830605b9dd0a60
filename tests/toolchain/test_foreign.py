"""The importer: every layout gives the logits of the network it comes from, and what does not fit is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from foreign_networks import AkamasterResNet, QcfsResNet, QcfsVgg, TorchvisionVgg, trained_looking
from torch import Tensor, nn

from dynamic_confidence.models.checkpoint import Checkpoint
from dynamic_confidence.models.registry import ARCHITECTURES, build
from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.manifest import Preprocessing
from dynamic_confidence.toolchain.foreign import ImportPlan, checkpoint_from_plan, plan_import
from dynamic_confidence.toolchain.foreign_architecture import READERS
from dynamic_confidence.toolchain.foreign_layouts import LAYOUTS

State = dict[str, Tensor]


def preprocessing(form: str) -> Preprocessing:
    side = 224 if form == "imagenet" else 32
    return Preprocessing(color="RGB", height=side, width=side, mean=(0.0,) * 3, std=(1.0,) * 3)


def imported(state: Any, names: tuple[str, ...] | None = None, **options: int) -> Checkpoint:
    return checkpoint_from_plan(plan_import(state, "foreign.pth"), preprocessing, names, **options)


def assert_same_logits(checkpoint: Checkpoint, theirs: nn.Module, side: int = 32) -> None:
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        expected, got = theirs.double()(images), checkpoint.network().double()(images)
    assert expected.std(0).min() > 1e-4, "the images must give different answers, or the test is empty"
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_the_tables_are_complete() -> None:
    assert [layout.name for layout in LAYOUTS] == ["paper's demo", "torchvision", "akamaster", "old QCFS", "new QCFS"]
    assert set(READERS) == set(ARCHITECTURES)


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize(
    ("architecture", "depths", "keys", "thresholds"),
    [("resnet18", (2, 2, 2, 2), 139, 17), ("resnet20", (3, 3, 3), 147, 19), ("resnet34", (3, 4, 6, 3), 251, 33)],
)
def test_qcfs_residual_networks(
    architecture: str, depths: tuple[int, ...], keys: int, thresholds: int, new: bool
) -> None:
    theirs = trained_looking(QcfsResNet(depths, new))
    state = theirs.state_dict()
    assert len(state) == keys
    assert sum(name.endswith(".thresh" if new else ".up") for name in state) == thresholds
    plan = plan_import(state, "foreign.pth")
    assert plan.layout == ("new QCFS" if new else "old QCFS")
    assert plan.counts() == {"renamed": keys - 2, "matched": 2}  # the read-out keeps its name
    checkpoint = imported(state, levels=4)
    assert checkpoint.architecture == architecture
    assert checkpoint.arguments == {
        "activation": "qcfs", "levels": 4, "form": "cifar", "width": 4, "classes": 3, "in_channels": 3,
        "shortcut": "conv",
    }  # fmt: skip
    assert_same_logits(checkpoint, theirs)


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize(("form", "side"), [("cifar", 32), ("imagenet", 224)])
def test_qcfs_vgg(form: str, side: int, new: bool) -> None:
    theirs = trained_looking(QcfsVgg(new, side=side // 32), side)
    state = theirs.state_dict()
    assert len(state) == 112
    assert sum(name.endswith(".thresh" if new else ".up") for name in state) == 15
    plan = plan_import(state, "foreign.pth")
    assert plan.counts() == {"renamed": 99, "folded": 13}
    checkpoint = imported(state, levels=4)
    assert (checkpoint.architecture, checkpoint.arguments["form"], checkpoint.arguments["hidden"]) == ("vgg16", form, 8)
    assert_same_logits(checkpoint, theirs, side)


def test_another_number_of_levels_is_another_network() -> None:
    theirs = trained_looking(QcfsResNet((1, 1, 1), new=True))
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        assert_same_logits(imported(theirs.state_dict(), levels=8), theirs)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "vgg16_bn"])
def test_torchvision_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        state = torchvision.models.get_model(name).state_dict()
    state = {key: torch.empty_like(tensor, device="cpu") for key, tensor in state.items()}  # planned by shapes alone
    plan = plan_import(state, "foreign.pth")
    assert (plan.layout, plan.architecture) == ("torchvision", name.removesuffix("_bn"))
    assert plan.misfits == ()
    assert plan.arguments["form"] == "imagenet"
    assert plan.arguments["classes"] == 1000
    assert plan.counts()["folded"] == (13 if name == "vgg16_bn" else 0)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_residual_networks_but_for_the_pool(name: str) -> None:
    torch.manual_seed(0)
    theirs = trained_looking(torchvision.models.get_model(name, num_classes=3))
    theirs.maxpool = nn.AvgPool2d(3, 2, 1)
    checkpoint = imported(theirs.state_dict())
    assert checkpoint.arguments["activation"] == "relu"
    assert_same_logits(checkpoint, theirs, 64)


def test_torchvision_vgg_but_for_the_pools() -> None:
    theirs = trained_looking(TorchvisionVgg(), 224)
    checkpoint = imported(theirs.state_dict())
    assert checkpoint.notes["layout"] == "torchvision"
    assert_same_logits(checkpoint, theirs, 224)


@pytest.mark.parametrize(
    ("blocks", "architecture"),
    [(1, "resnet8"), (3, "resnet20"), (5, "resnet32"), (7, "resnet44"), (9, "resnet56"), (18, "resnet110")],
)
def test_akamaster(blocks: int, architecture: str) -> None:
    """Wrapped in DataParallel and in a training script's dict, and from before batch normalisation counted."""
    theirs = trained_looking(AkamasterResNet(blocks))
    state = {f"module.{k}": v for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}
    plan = plan_import({"state_dict": state, "best_prec1": 91.7}, "foreign.th")
    assert (plan.layout, plan.architecture) == ("akamaster", architecture)
    assert plan.counts() == {"renamed": len(state), "filled": 6 * blocks + 1}
    checkpoint = imported({"state_dict": state, "best_prec1": 91.7})
    assert checkpoint.arguments["shortcut"] == "pad"
    assert_same_logits(checkpoint, theirs)


@pytest.mark.parametrize("wrapper", ["state_dict", "net", "model"])
def test_shortcuts_with_weights_and_every_wrapper(wrapper: str) -> None:
    theirs = trained_looking(AkamasterResNet(1, weights=True))
    checkpoint = imported({wrapper: theirs.state_dict(), "epoch": 3})
    assert checkpoint.arguments["shortcut"] == "conv"
    assert_same_logits(checkpoint, theirs)


def test_wrappers_in_each_other_and_dataparallel_in_any_layout() -> None:
    theirs = trained_looking(QcfsResNet((1, 1, 1), new=False))
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    assert_same_logits(imported({"model": {"state_dict": state}}, levels=4), theirs)


def test_the_demo() -> None:
    torch.manual_seed(0)
    theirs = build("resnet18", width=4, classes=3).eval()
    state = {**theirs.state_dict(), "activation2.scale": torch.tensor([2.338])}
    assert len(state) == 140
    plan = plan_import(state, "foreign.pth")
    assert (plan.layout, plan.architecture) == ("paper's demo", "resnet18")
    dropped = [key for key in plan.keys if key.status == "dropped"]
    assert [(key.theirs, key.why) for key in dropped] == [
        ("activation2.scale", "quantises the logits, which no spiking network does, nor the paper's read-out")
    ]
    assert plan.counts() == {"matched": 139, "dropped": 1}
    assert_same_logits(imported(state), theirs)
    assert imported(state, bits=3).arguments["bits"] == 3


def test_the_callers_weights_are_left_as_they_are() -> None:
    theirs = trained_looking(QcfsVgg(new=True))
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    imported(theirs.state_dict(), levels=4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in theirs.state_dict().items())


def ours(architecture: str = "resnet8", **arguments: Any) -> State:
    torch.manual_seed(0)
    return dict(build(architecture, **{"width": 4, "classes": 3, **arguments}).state_dict())


def without(state: State, *names: str) -> State:
    return {name: tensor for name, tensor in state.items() if name not in names}


def deeper(state: State, block: str, new: str) -> State:
    return {**state, **{name.replace(block, new): t for name, t in state.items() if name.startswith(block)}}


def bare_vgg(new: bool) -> State:
    """The authors' VGG-16 without normalisation, whose layers have other places: `vgg16_wobn`."""
    return {name: tensor for name, tensor in QcfsVgg(new).state_dict().items() if ".1." not in name}


@pytest.mark.parametrize(
    ("state", "nearest", "in_the_way"),
    [
        (without(ours(), "bn1.weight"), "resnet8 in the paper's demo layout", "'bn1.weight' is missing"),
        (
            {**ours(activation="relu"), "fc.bias": torch.zeros(2)},
            "resnet8 in the torchvision layout",
            r"'fc.bias' has shape \[2\], expected \[3\]",
        ),
        ({**ours(), "fc.scale": torch.ones(1)}, "resnet8 in the paper's demo layout", "'fc.scale' is unexpected"),
        (
            deeper(ours(), "layer2.0", "layer2.1"),
            "resnet20 in",
            "'layer1.1.conv1.weight' is missing; .*and [0-9]+ more",
        ),
        (
            without(AkamasterResNet(9).state_dict(), "linear.bias"),
            "resnet56 in the akamaster layout, with 331 keys in common",
            "'fc.bias' is missing",
        ),
        (
            deeper(ours("resnet50", activation="relu"), "layer3.5", "layer3.6"),
            "resnet50 in the torchvision layout",
            "'layer3.6.conv1.weight' is unexpected",
        ),
        (without(ours("resnet20"), "conv1.weight"), "resnet20 in", r"shape \[4\], expected \[16\]"),
        (bare_vgg(new=True), "vgg16 in the new QCFS layout", "is missing"),
        (
            {"linear.weight": torch.zeros(3, 16), "fc.weight": torch.zeros(3, 16), **without(ours(), "fc.weight")},
            "resnet8 in",
            "'linear.weight' is unexpected",
        ),
    ],
)
def test_the_nearest_network_and_what_stands_in_the_way(state: State, nearest: str, in_the_way: str) -> None:
    message = rf"foreign.pth: fits no known network\. The nearest is {nearest}.*{in_the_way}.*`dc-import --dry-run`"
    with pytest.raises(DynamicConfidenceError, match=message):
        imported(state)


def test_two_names_for_one_weight_are_not_both_taken() -> None:
    state = AkamasterResNet(1).state_dict()
    state["fc.bias"] = state["linear.bias"]
    with pytest.raises(DynamicConfidenceError, match=r"'fc\.bias' becomes 'fc\.bias', as 'linear\.bias' does"):
        imported(state)


def test_nothing_in_common() -> None:
    with pytest.raises(DynamicConfidenceError) as raised:
        imported({"some.weight": torch.zeros(2)})
    for part in (
        "none of its 1 keys (such as 'some.weight')",
        "paper's demo, torchvision, akamaster",
        "resnet110, vgg16",
    ):
        assert part in str(raised.value)


@pytest.mark.parametrize("content", [{"epoch": 3}, {"state_dict": {"epoch": 3}}, [1, 2], {}, {"model": {}}, None])
def test_no_weights_at_all(content: object) -> None:
    with pytest.raises(DynamicConfidenceError, match=r"holds no state_dict \(neither at the top nor under state_dict"):
        imported(content)


@pytest.mark.parametrize(
    ("state", "options", "message"),
    [
        (QcfsResNet((1, 1, 1), new=True).state_dict(), {}, r"does not say with how many levels L .*`--levels 4` or 8"),
        (QcfsResNet((1, 1, 1), new=True).state_dict(), {"levels": 0}, "levels 0: a QCFS activation takes 1 to 255"),
        (QcfsResNet((1, 1, 1), new=True).state_dict(), {"levels": 256}, "levels 256: a QCFS activation takes 1 to 255"),
        (
            QcfsResNet((1, 1, 1), new=True).state_dict(),
            {"levels": 4, "bits": 2},
            "bits 2: activation 'qcfs' takes levels, bits is for lsq",
        ),
        (ours(), {"levels": 4}, "levels 4: activation 'lsq' takes bits, levels is for qcfs"),
        (ours(activation="relu"), {"bits": 3}, "bits 3: activation 'relu' takes neither bits nor levels"),
        (
            {**ours(), "layer1.0.activation2.scale": torch.zeros(1)},
            {},
            r"'layer1\.0\.activation2\.scale' \(a quantiser's learned scale\) is 0, .*positive .*of another kind",
        ),
        (
            {**QcfsResNet((1, 1, 1), new=False).state_dict(), "conv1.2.up": -torch.ones(1)},
            {"levels": 4},
            r"'conv1\.2\.up' \(a quantiser's learned threshold\) is -1, expected a positive number",
        ),
    ],
)
def test_what_the_file_does_not_say(state: State, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DynamicConfidenceError, match=message):
        imported(state, **options)


def test_every_key_of_both_sides_is_accounted_for() -> None:
    state = {**without(ours(), "bn1.bias"), "fc.bias": torch.zeros(2), "extra": torch.zeros(1)}
    plan: ImportPlan = plan_import({**state, "activation2.scale": torch.ones(1)}, "foreign.pth")
    assert plan.counts() == {"matched": len(ours()) - 2, "missing": 1, "shape": 1, "unexpected": 1, "dropped": 1}
    assert {key.theirs for key in plan.keys} - {None} == {*state, "activation2.scale"}
    assert {key.ours for key in plan.keys} - {None} == set(ours())


def first(value: float, tensor: Tensor) -> Tensor:
    """The tensor with another first number."""
    return torch.cat([tensor.new_tensor([value]), tensor.flatten()[1:]]).reshape(tensor.shape)


NORMALISED = QcfsVgg(new=True).state_dict()


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("fc.weight", lambda t: t.to(torch.int8), "'fc.weight' holds int8, expected floating-point numbers"),
        ("fc.weight", lambda t: t.bool(), "'fc.weight' holds bool, expected floating-point"),
        ("fc.weight", lambda t: t.to(torch.complex64), "'fc.weight' holds complex64, expected floating-point"),
        ("fc.weight", lambda t: t.to(torch.float8_e4m3fn), "'fc.weight' holds float8_e4m3fn, .* 16 bits or more"),
        ("bn1.running_var", lambda t: t.long(), "'bn1.running_var' holds int64, expected floating-point"),
        ("bn1.num_batches_tracked", lambda t: t.bool(), "'bn1.num_batches_tracked' holds bool"),
        ("conv1.weight", lambda t: first(float("nan"), t), "'conv1.weight' holds 1 numbers that are NaN or infinite"),
        ("bn1.bias", lambda t: first(float("-inf"), t), "'bn1.bias' holds 1 numbers that are NaN or infinite"),
        ("fc.bias", lambda t: first(1e300, t.double()), "'fc.bias' holds 1 numbers .* infinite in float32"),
        ("activation1.scale", lambda t: t * float("nan"), "'activation1.scale' holds 1 numbers that are NaN"),
        ("bn1.running_var", lambda t: first(-0.5, t), "'bn1.running_var' holds -0.5, expected a variance, .*0"),
        ("activation1.scale", lambda t: -t, "'activation1.scale' .* is -1, expected a positive number"),
    ],
)  # fmt: skip
def test_numbers_that_no_network_has(key: str, change: Callable[[Tensor], Tensor], message: str) -> None:
    state = ours()
    with pytest.raises(DynamicConfidenceError, match=f"foreign.pth: {message}.*damaged or of another kind: get it"):
        imported({**state, key: change(state[key])})


def test_numbers_at_the_border_are_taken() -> None:
    state = ours()
    state["bn1.running_var"] = torch.zeros_like(state["bn1.running_var"])
    state["bn1.num_batches_tracked"] = torch.tensor(7, dtype=torch.int32)
    weights = imported(state).state_dict
    assert torch.equal(weights["bn1.running_var"], state["bn1.running_var"])
    assert int(weights["bn1.num_batches_tracked"]) == 7


def test_a_folded_bias_that_is_damaged_is_named() -> None:
    bias, mean = "layer1.0.bias", "layer1.1.running_mean"
    with pytest.raises(DynamicConfidenceError, match=f"'{mean}' or '{bias}' holds 1 numbers that are NaN"):
        imported({**NORMALISED, bias: first(float("nan"), NORMALISED[bias])}, levels=4)
    for key in (bias, mean):
        with pytest.raises(
            DynamicConfidenceError, match=f"'{bias}' cannot be subtracted from .*: expected floating-point"
        ):
            imported({**NORMALISED, key: NORMALISED[key].bool()}, levels=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.to_sparse(), r"is sparse \(sparse_coo\)"),
        (lambda t: t.to_sparse_csr(), r"is sparse \(sparse_csr\)"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), r"is quantised \(qint8\)"),
        (lambda t: t.to("meta"), r"has a shape but no numbers \(device meta\)"),
        (lambda t: t.new_zeros(10**9, 0), r"is empty \(shape \[1000000000, 0\]\)"),
        (lambda t: t.new_zeros(1).expand(10**12), "claims 4000000000000 bytes of which the file holds 4"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch's, that sparse and quantised tensors may change
def test_tensors_that_are_not_plain(change: Callable[[Tensor], Tensor], message: str) -> None:
    state = ours()
    with pytest.raises(DynamicConfidenceError, match=f"'fc.weight' {message}, expected a plain, .* another kind: save"):
        plan_import({**state, "fc.weight": change(state["fc.weight"])}, "foreign.pth")


def test_slices_of_one_storage_are_plain() -> None:
    state, storage = ours(), torch.randn(2, 4)
    state["bn1.weight"], state["bn1.bias"] = storage.unbind()
    assert torch.equal(imported(state).state_dict["bn1.bias"], storage[1])


def test_a_key_whose_number_no_integer_holds() -> None:
    key = f"features.{'1' * 5000}.bias"
    with pytest.raises(DynamicConfidenceError, match=r"'features\.1{246}' has a name of 5014 characters"):
        plan_import({**ours(), key: torch.zeros(1)}, "foreign.pth")


def test_a_width_that_no_network_has() -> None:
    state = {**ours(), "conv1.weight": torch.zeros(10**8, 1, 1, 1, dtype=torch.uint8)}
    with pytest.raises(
        DynamicConfidenceError, match=r"'conv1\.weight' has shape \[100000000, 1, 1, 1\], expected \[16,"
    ):
        imported(state)


def test_a_file_that_holds_itself() -> None:
    content: dict[str, Any] = {}
    content["state_dict"] = content
    with pytest.raises(DynamicConfidenceError, match="holds no state_dict"):
        imported(content)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a", "b", "a"), "class name 'a' stands 2 times, expected none twice and none empty. Correct `--class-names`"),
        (("a", "", "b"), "class name '' stands 1 times"),
        (("a", " ", "b"), "class name ' ' stands 1 times"),
        ((), "0 class names were given, the network has 3"),
    ],
)
def test_class_names_that_do_not_tell_classes_apart(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DynamicConfidenceError, match=message):
        imported(ours(), names)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (1, "takes 1 channels, the preprocessing gives color RGB. Give it color L"),
        (2, r"takes 2 channels, expected 3 \(RGB images\) or 1 \(grey ones\)"),
        (4, r"takes 4 channels, expected 3 \(RGB images\) or 1 \(grey ones\)"),
    ],
)
def test_colours_that_images_do_not_have(channels: int, message: str) -> None:
    with pytest.raises(DynamicConfidenceError, match=f"foreign.pth: its first layer {message}"):
        imported(ours(in_channels=channels))
