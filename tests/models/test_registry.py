"""Every architecture builds and answers; unknown names and arguments say what is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dynamic_confidence.models.activations import activation_arguments
from dynamic_confidence.models.lsq import LSQ
from dynamic_confidence.models.qcfs import QCFS
from dynamic_confidence.models.quantiser import quantisers
from dynamic_confidence.models.registry import ARCHITECTURES, FORMS, build
from dynamic_confidence.runtime.errors import DynamicConfidenceError


def test_the_list_of_architectures_is_the_expected_one():
    depths = (8, 18, 20, 32, 34, 44, 50, 56, 110)
    assert list(ARCHITECTURES) == [*(f"resnet{depth}" for depth in depths), "vgg16"]


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
    def found(**arguments: object) -> set[tuple[type, int]]:
        return {(type(q), q.levels) for _, q in quantisers(build(architecture, width=2, **arguments))}

    assert found() == {(LSQ, 3)}
    assert found(bits=4) == {(LSQ, 15)}
    assert found(activation="qcfs") == {(QCFS, 4)}
    assert found(activation="qcfs", levels=10) == {(QCFS, 10)}
    assert found(activation="relu") == set()


def test_a_relu_network_of_the_first_release_has_bits():
    assert not list(quantisers(build("resnet8", width=2, activation="relu", bits=2)))


@pytest.mark.parametrize(
    ("given", "arguments"),
    [
        (("lsq",), {"activation": "lsq", "bits": 2}),
        (("lsq", 3), {"activation": "lsq", "bits": 3}),
        (("qcfs",), {"activation": "qcfs", "levels": 4}),
        (("qcfs", None, 7), {"activation": "qcfs", "levels": 7}),
        (("relu",), {"activation": "relu"}),
    ],
)
def test_the_arguments_of_an_activation(given: tuple[Any, ...], arguments: dict[str, object]):
    assert activation_arguments(*given) == arguments
    assert build("resnet8", width=2, **arguments).training


def test_the_hidden_layers_of_a_vgg():
    def linear(**arguments: object) -> list[tuple[int, int]]:
        modules = build("vgg16", width=2, **arguments).modules()
        return [(m.in_features, m.out_features) for m in modules if isinstance(m, nn.Linear)]

    assert linear() == [(16, 10)]
    assert linear(hidden=6) == [(16, 6), (6, 6), (6, 10)]
    assert linear(form="imagenet") == [(784, 128), (128, 128), (128, 10)]
    assert linear(form="imagenet", hidden=0) == [(784, 10)]


def test_the_pad_shortcut_has_no_weights():
    names = build("resnet20", width=2, shortcut="pad").state_dict()
    assert not any("downsample" in name for name in names)


@pytest.mark.parametrize(
    ("architecture", "arguments", "text"),
    [
        ("resnet19", {}, r"architecture 'resnet19' is unknown, known: resnet8, .*vgg16\. Did you mean 'resnet18'\?"),
        ("transformer-xl", {}, r"architecture 'transformer-xl' is unknown, known: resnet8, .*vgg16\.$"),
        ("resnet8", {"widht": 4}, r"resnet8's argument 'widht' is unknown, known: .*width.*Did you mean 'width'\?"),
        (
            "vgg16",
            {"shortcut": "pad"},
            r"vgg16's argument 'shortcut' is unknown, known: activation, bits, levels, form, width",
        ),
        ("resnet8", {"form": "cifra"}, r"form 'cifra' is unknown, known: cifar, imagenet\. Did you mean 'cifar'\?"),
        ("resnet8", {"shortcut": "padd"}, r"shortcut 'padd' is unknown, known: conv, pad\. Did you mean 'pad'\?"),
        ("resnet8", {"activation": "gelu"}, r"activation 'gelu' is unknown, known: lsq, qcfs, relu"),
        ("resnet8", {"width": 0}, r"width 0: expected a whole number, 1 or more"),
        ("vgg16", {"width": -1}, r"width -1: expected a whole number, 1 or more"),
        ("resnet8", {"classes": 0}, r"classes 0: expected a whole number, 1 or more"),
        ("resnet8", {"in_channels": "3"}, r"in_channels 3: expected a whole number, 1 or more"),
        ("resnet8", {"bits": 0}, r"bits 0: an LSQ quantiser takes 1 to 8 bits"),
        ("resnet8", {"activation": "qcfs", "levels": 0}, r"levels 0: a QCFS activation takes 1 to 255 levels"),
        ("resnet8", {"levels": 4}, r"levels 4: activation 'lsq' takes bits, levels is for qcfs\. Leave it out"),
        ("resnet8", {"activation": "qcfs", "bits": 2}, r"bits 2: activation 'qcfs' takes levels, bits is for lsq"),
        ("resnet8", {"activation": "relu", "levels": 4}, r"levels 4: activation 'relu' takes neither bits nor levels"),
        ("vgg16", {"hidden": -1}, r"hidden -1: expected a whole number, 0 or more"),
    ],
)
def test_unknown_names_and_arguments(architecture: str, arguments: dict[str, object], text: str):
    with pytest.raises(DynamicConfidenceError, match=text):
        build(architecture, **arguments)
