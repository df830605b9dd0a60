"""Every architecture builds and answers; unknown names and arguments say what is known."""

from __future__ import annotations

import pytest
import torch

from dynamic_confidence.models.lsq import LSQ
from dynamic_confidence.models.registry import ARCHITECTURES, FORMS, build
from dynamic_confidence.runtime.errors import DynamicConfidenceError


def test_the_list_of_architectures_is_the_expected_one():
    assert list(ARCHITECTURES) == ["resnet8", "resnet18", "resnet20", "resnet34", "resnet50", "vgg16"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_builds_and_answers(architecture: str, form: str):
    network = build(architecture, form=form, width=2, classes=5, in_channels=1).eval()
    # VGG-16's linear layers fix its image size; the others take any.
    size = {"cifar": 32, "imagenet": 224 if architecture == "vgg16" else 64}[form]
    with torch.no_grad():
        assert network(torch.zeros(2, 1, size, size)).shape == (2, 5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_activation_and_bits_reach_every_layer(architecture: str):
    levels = {m.levels for m in build(architecture, width=2, bits=4).modules() if isinstance(m, LSQ)}
    assert levels == {15}
    assert not any(isinstance(m, LSQ) for m in build(architecture, width=2, activation="relu").modules())


def test_the_pad_shortcut_has_no_weights():
    names = build("resnet20", width=2, shortcut="pad").state_dict()
    assert not any("downsample" in name for name in names)


@pytest.mark.parametrize(
    ("architecture", "arguments", "text"),
    [
        ("resnet19", {}, r"architecture 'resnet19' is unknown, known: resnet8, .*vgg16\. Did you mean 'resnet18'\?"),
        ("transformer-xl", {}, r"architecture 'transformer-xl' is unknown, known: resnet8, .*vgg16\.$"),
        ("resnet8", {"widht": 4}, r"resnet8's argument 'widht' is unknown, known: .*width.*Did you mean 'width'\?"),
        ("vgg16", {"shortcut": "pad"}, r"vgg16's argument 'shortcut' is unknown, known: activation, bits, form, width"),
        ("resnet8", {"form": "cifra"}, r"form 'cifra' is unknown, known: cifar, imagenet\. Did you mean 'cifar'\?"),
        ("resnet8", {"shortcut": "padd"}, r"shortcut 'padd' is unknown, known: conv, pad\. Did you mean 'pad'\?"),
        ("resnet8", {"activation": "gelu"}, r"activation 'gelu' is unknown, known: lsq, relu"),
        ("resnet8", {"width": 0}, r"width 0: expected a whole number above 0"),
        ("vgg16", {"width": -1}, r"width -1: expected a whole number above 0"),
        ("resnet8", {"classes": 0}, r"classes 0: expected a whole number above 0"),
        ("resnet8", {"in_channels": "3"}, r"in_channels 3: expected a whole number above 0"),
        ("resnet8", {"bits": 0}, r"bits 0: an LSQ quantiser takes 1 to 8 bits"),
    ],
)
def test_unknown_names_and_arguments(architecture: str, arguments: dict[str, object], text: str):
    with pytest.raises(DynamicConfidenceError, match=text):
        build(architecture, **arguments)
