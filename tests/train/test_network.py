"""The multi-exit network, its backbones and its heads."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from mate_edge.errors import UsageError
from mate_edge.train.backbones import BACKBONES
from mate_edge.train.heads import HEADS
from mate_edge.train.network import MultiExitNet, build_network


@pytest.mark.parametrize(
    ("arch", "head"), [(arch, "sepconv") for arch in BACKBONES] + [("resnet18", h) for h in HEADS]
)
def test_every_backbone_and_head_gives_logits_for_every_exit(arch: str, head: str) -> None:
    network = build_network(arch, head, channels=1, size=32, classes=7)
    logits = network(torch.randn(2, 1, 32, 32))
    assert logits.shape == (2, len(network.stages), 7)
    logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_exit_k_is_its_head_on_the_stages_up_to_it() -> None:
    network = build_network("resnet8", "sepconv", 3, 32, 10).eval()
    images = torch.randn(2, 3, 32, 32)
    features, logits = images, network(images)
    for k, (stage, head) in enumerate(zip(network.stages, network.heads, strict=True)):
        features = stage(features)
        torch.testing.assert_close(logits[:, k], head(features))


def test_at_224_pixels_the_last_exit_is_torchvisions_network() -> None:
    network = build_network("resnet18", "sepconv", 3, 224, 1000).eval()
    reference = torchvision.models.resnet18().eval()
    weights = network.unsplit().state_dict().values()
    reference.load_state_dict(dict(zip(reference.state_dict(), weights, strict=True)))
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(network(images)[:, -1], reference(images))


def test_small_images_get_a_stem_that_keeps_their_size() -> None:
    assert build_network("resnet18", "linear", 3, 32, 10).stages[0](
        torch.randn(1, 3, 32, 32)
    ).shape == (1, 64, 32, 32)
    assert build_network("resnet18", "linear", 3, 224, 10).stages[0](
        torch.randn(1, 3, 224, 224)
    ).shape == (1, 64, 56, 56)


def test_early_heads_end_with_the_backbones_width() -> None:
    for head in ("sepconv", "bottleneck"):
        network = build_network("resnet50", head, 3, 32, 10)
        for part in network.heads:
            assert isinstance(part, nn.Sequential)
            assert part[-1].in_features == 2048


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
    with pytest.raises(UsageError, match="sepconv, bottleneck, linear"):
        build_network("resnet8", "sep", 3, 32, 10)
