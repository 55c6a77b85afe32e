"""The multi-exit network, its backbones and its heads."""

from __future__ import annotations

import pytest
import torch
import torchvision
from accelerate import init_empty_weights
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mate_edge.errors import UsageError
from mate_edge.train.backbones import BACKBONES, TORCHVISION, make_parts
from mate_edge.train.backbones.parts import channels_last
from mate_edge.train.heads import DEFAULT_HEAD, HEADS, remaining_shapes
from mate_edge.train.network import MultiExitNet, assemble, build_network

DEEPER = {"resnet34", "resnet101", "resnet56", "wide_resnet50_2", "vgg13_bn", "vgg16_bn",
          "efficientnet_b1", "efficientnet_b2", "regnet_y_800mf", "regnet_x_800mf",
          "shufflenet_v2_x1_0"}  # fmt: skip
"""They differ from another of their family in depth or width alone."""

LARGER = {"resnet152", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d",
          "wide_resnet101_2", "vgg19_bn", "convnext_small", "convnext_base", "convnext_large",
          "densenet161", "densenet169", "densenet201", "shufflenet_v2_x1_5",
          "shufflenet_v2_x2_0"} | {
    *(f"efficientnet_b{number}" for number in range(3, 8)),
    *(f"regnet_{kind}_{flops}gf" for kind in "xy" for flops in ("1_6", "3_2", "8", "16", "32")),
}  # fmt: skip
"""So do these, and they are too large to be trained here: they are taken apart without weights."""


@pytest.mark.parametrize(
    ("arch", "head"),
    [
        pytest.param(arch, DEFAULT_HEAD, marks=[pytest.mark.slow] if arch in DEEPER else [])
        for arch in BACKBONES
        if arch not in LARGER
    ]
    + [("resnet18", head) for head in HEADS]
    + [
        pytest.param("vgg11_bn", "bottleneck", marks=pytest.mark.slow),
        ("mobilenet_v2", "bottleneck"),
        ("mobilenet_v2", "sepconv"),
    ],
)
def test_every_backbone_and_head_trains_at_every_exit(arch: str, head: str) -> None:
    network = build_network(arch, head, channels=1, size=32, classes=7)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    logits = network(torch.randn(4, 1, 32, 32))
    assert logits.shape == (4, len(network.stages), 7)
    nn.functional.cross_entropy(logits.mean(dim=1), torch.arange(4)).backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    assert network(torch.randn(4, 1, 32, 32)).isfinite().all()
    still = [name for name, p in network.named_parameters() if torch.equal(p, before[name])]
    # an early layer of a dying ReLU may get no gradient in one step, a whole part may not
    assert len(still) < 0.1 * len(before)


def test_exit_k_is_its_head_on_the_stages_up_to_it() -> None:
    network = build_network("resnet8", "sepconv", 3, 32, 10).eval()
    images = torch.randn(2, 3, 32, 32)
    features, logits = images, network(images)
    for k, (stage, head) in enumerate(zip(network.stages, network.heads, strict=True)):
        features = stage(features)
        torch.testing.assert_close(logits[:, k], head(features))


@pytest.mark.parametrize("arch", TORCHVISION)
@torch.no_grad()
def test_taken_apart_a_network_loses_no_weight_and_computes_as_many_logits(arch: str) -> None:
    with init_empty_weights():
        parts = make_parts(arch, 3, 224, 1000)
    parts.network.to("meta")
    assert parts.classifier is not None
    modules = [*parts.stages, parts.classifier]
    kept = {id(p) for module in modules for p in module.parameters()}
    assert kept == {id(p) for p in parts.network.parameters()}
    features = torch.zeros(2, 3, 224, 224, device="meta")
    sides = []
    for module in modules:
        features = module.eval()(features)
        sides.append(features.shape[-1])
    assert features.shape == (2, 1000)
    assert sides[:-1] == sorted(sides[:-1], reverse=True)
    assert sides[-2] == 7, "it halves the image five times"


@pytest.mark.parametrize("arch", [arch for arch in TORCHVISION if arch not in DEEPER | LARGER])
@torch.no_grad()
def test_for_large_images_the_last_exit_is_torchvisions_network_bit_by_bit(arch: str) -> None:
    parts = make_parts(arch, 3, 128, 1000)
    network = assemble(arch, parts, "linear", 3, 128, 1000).eval()
    reference = torchvision.models.get_model(arch, weights=None).eval()
    reference.load_state_dict(parts.network.state_dict())
    images = torch.randn(2, 3, 128, 128)
    assert torch.equal(network(images)[:, -1], reference(images))


def test_weights_are_drawn_in_the_order_backbone_stem_early_heads_last_head() -> None:
    torch.manual_seed(3)
    found = build_network("resnet18", "sepconv", 3, 32, 100).state_dict()
    torch.manual_seed(3)
    backbone = torchvision.models.resnet18()
    stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    ends = [torch.Size((64 * 2**k, 32 // 2**k, 32 // 2**k)) for k in range(4)]
    heads = [HEADS["sepconv"](ends[k:], 100) for k in range(3)]
    last = nn.Linear(512, 100)
    for name, expected in (
        ("stages.0.0.weight", stem.weight),
        ("stages.0.3.1.conv2.weight", backbone.layer1[1].conv2.weight),
        ("stages.3.1.conv2.weight", backbone.layer4[1].conv2.weight),
        ("heads.0.0.weight", heads[0].get_parameter("0.weight")),
        ("heads.1.4.weight", heads[1].get_parameter("4.weight")),
        ("heads.3.2.weight", last.weight),
    ):
        assert torch.equal(found[name], expected), name


@pytest.mark.parametrize(
    ("arch", "size", "side"),
    [
        ("resnet18", 32, 32),
        ("resnet18", 224, 56),
        ("densenet121", 32, 16),
        ("mobilenet_v2", 32, 16),
        ("mobilenet_v2", 224, 56),
        ("convnext_tiny", 32, 16),
        ("convnext_tiny", 224, 56),
    ],
)
def test_small_images_get_a_stem_with_less_stride(arch: str, size: int, side: int) -> None:
    (first, *_) = make_parts(arch, 3, size, 10).stages
    assert first.eval()(torch.randn(1, 3, size, size)).shape[2:] == (side, side)


def test_a_network_that_needs_larger_images_says_so() -> None:
    with pytest.raises(UsageError, match="vgg11_bn cannot take 3x16x16 images: stage 5 .* --size"):
        build_network("vgg11_bn", "sepconv", 3, 16, 10)


def test_an_early_head_halves_the_size_where_the_backbone_does() -> None:
    ends = [torch.Size(end) for end in ((1, 16, 32, 32), (1, 32, 16, 16), (1, 48, 16, 16),
                                        (1, 64, 8, 8), (1, 96, 8, 8))]  # fmt: skip
    found = [remaining_shapes(end, ends) for end in ends]
    widths = [[shape[0] for shape in shapes] for shapes in found]
    assert widths == [[16, 48, 96], [32, 96], [48, 96], [64], [96]]
    in_the_midst_of_stage_2 = torch.Size((1, 32, 16, 16))
    assert remaining_shapes(in_the_midst_of_stage_2, ends) == [(32, 16, 16), (96, 8, 8)]


def test_early_heads_end_with_the_backbones_width() -> None:
    for head in ("sepconv", "bottleneck"):
        network = build_network("resnet50", head, 3, 32, 10)
        for part in network.heads:
            assert isinstance(part, nn.Sequential)
            assert part[-1].in_features == 2048


SIDES = st.integers(1, 40)


@given(st.integers(1, 2000), SIDES, SIDES, SIDES, SIDES)
def test_a_pooled_head_sees_every_pixel_and_is_no_larger_than_promised(
    channels: int, height: int, width: int, last_height: int, last_width: int
) -> None:
    ends = [torch.Size((channels, height, width)), torch.Size((5, last_height, last_width))]
    pool, _, hidden, *_ = HEADS["pooled"](ends, 10).children()
    assert hidden.in_features <= max(1024, channels)
    image = torch.ones(1, channels, height, width, requires_grad=True)
    fields = pool(image)
    assert fields.numel() == hidden.in_features
    torch.testing.assert_close(fields, torch.ones_like(fields))
    fields.sum().backward()
    assert image.grad is not None
    assert (image.grad > 0).all()


@pytest.mark.parametrize(
    ("channels", "size", "last", "fields"),
    [(16, 32, 8, 8), (32, 16, 8, 4), (16, 28, 7, 7), (64, 56, 7, 4), (256, 14, 7, 2), (3, 2, 8, 2)],
)
def test_a_pooled_head_has_the_fields_that_the_backbone_ends_with_or_half_as_many(
    channels: int, size: int, last: int, fields: int
) -> None:
    shapes = [torch.Size((channels, size, size)), torch.Size((512, last, last))]
    pool, *_ = HEADS["pooled"](shapes, 10).children()
    assert pool(torch.zeros(1, channels, size, size)).shape[2:] == (fields, fields)


def test_a_pooled_head_knows_what_is_where_and_a_linear_one_does_not() -> None:
    image = torch.zeros(1, 2, 9, 14)
    image[..., :3] = 1
    for name, same in (("pooled", False), ("linear", True)):
        torch.manual_seed(0)  # its few hidden features may all be off for other weights
        head = HEADS[name]([torch.Size((2, 9, 14)), torch.Size((4, 5, 7))], 10).eval()
        assert torch.allclose(head(image), head(image.flip(-1)), atol=1e-6) == same, name


def test_a_pooled_heads_hidden_layer_grows_with_the_classes_up_to_the_backbones_width() -> None:
    for arch, classes, width in (
        ("resnet8", 10, 64),
        ("resnet50", 10, 128),
        ("resnet50", 200, 200),
        ("resnet18", 1000, 512),
    ):
        network = build_network(arch, "pooled", 3, 32, classes)
        for head in list(network.heads)[:-1]:
            assert isinstance(head, nn.Sequential)
            assert head[-1].in_features == width


@pytest.mark.parametrize(
    ("head", "kind"), [("pooled", nn.AvgPool2d), ("sepconv", nn.AdaptiveAvgPool2d)]
)
def test_the_last_head_is_the_networks_own_or_else_like_the_others(
    head: str, kind: type[nn.Module]
) -> None:
    ours, torchvisions = (build_network(arch, head, 3, 32, 10) for arch in ("resnet8", "resnet18"))
    own = make_parts("resnet18", 3, 32, 10).classifier
    assert own is not None
    for last, expected in ((ours.heads[-1], kind), (torchvisions.heads[-1], type(own[0]))):
        assert isinstance(last, nn.Sequential)
        assert type(last[0]) is expected


def test_keeping_some_exits_merges_segments_without_changing_an_answer() -> None:
    network = build_network("resnet18", "sepconv", 3, 32, 10).eval()
    images = torch.randn(2, 3, 32, 32)
    logits = network(images)
    for exits in ([1, 3], [4], [2, 3, 4], [1, 2, 3, 4]):
        kept = network.keep_exits(exits)
        assert kept.num_exits == len(exits)
        torch.testing.assert_close(kept(images), logits[:, [k - 1 for k in exits]])


def test_heads_and_stages_must_match() -> None:
    with pytest.raises(ValueError, match="as many heads"):
        MultiExitNet([nn.Identity()], [])


def test_unknown_names_list_the_valid_ones() -> None:
    with pytest.raises(UsageError, match="resnet8, resnet20.*Did you mean resnet18"):
        build_network("resnet17", "sepconv", 3, 32, 10)
    with pytest.raises(UsageError, match="pooled, sepconv, bottleneck, linear"):
        build_network("resnet8", "sep", 3, 32, 10)


@pytest.mark.parametrize(("inputs", "kernel"), [(4, 1), (1, 3), (4, 3)])
def test_weights_lie_as_module_to_lays_them_where_one_side_is_1_too(
    inputs: int, kernel: int
) -> None:
    # gradients are laid so, and DistributedDataParallel's buckets as the weights are
    ours, own = (torch.nn.Conv2d(inputs, 8, kernel) for _ in range(2))
    expected = own.to(memory_format=torch.channels_last).weight.stride()
    assert channels_last(ours).weight.stride() == expected
