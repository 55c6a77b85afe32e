"""Every architecture becomes ONNX that computes what torch computes."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from mate_edge.errors import ExportError
from mate_edge.export.check import TOLERANCE
from mate_edge.export.segments import SegmentModule, segment_modules, to_onnx
from mate_edge.train.backbones import BACKBONES
from mate_edge.train.heads import HEADS
from mate_edge.train.network import MultiExitNet, build_network

OPSETS = (18, 21)


def used(arch: str, head: str = "sepconv") -> MultiExitNet:
    """A network whose BatchNorms have seen data, so that leaving one out shows."""
    torch.manual_seed(0)
    network = build_network(arch, head, 3, 32, 5)
    with torch.no_grad():
        network.train()(torch.randn(8, 3, 32, 32))
    return network.eval()


@torch.no_grad()
def compare_segments(modules: list[SegmentModule]) -> set[str]:
    """Hold what is exported against torch; return the operators in it."""
    features, operators = torch.randn(3, 3, 32, 32), set()
    for module in modules:
        names = ["logits"] if module.last else ["features", "logits"]
        data = to_onnx(module, features[:2], "input", names, OPSETS)
        operators |= {node.op_type for node in onnx.load_from_string(data).graph.node}
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        found = session.run(names, {"input": features.numpy()})
        outputs = module(features)
        expected = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        for f, e in zip(found, expected, strict=True):
            assert (torch.from_numpy(f) - e).abs().max() <= TOLERANCE * e.abs().max()
        features = expected[0]
    return operators


@pytest.mark.parametrize(
    ("arch", "own"),
    [
        ("mobilenet_v3_small", {"HardSwish", "HardSigmoid"}),
        ("convnext_tiny", {"LayerNormalization", "Gelu"}),
        pytest.param("shufflenet_v2_x0_5", {"Split", "Concat"}, marks=pytest.mark.slow),
    ],
)
def test_the_families_with_operators_of_their_own_are_exported(arch: str, own: set[str]) -> None:
    first = segment_modules(used(arch))[:1]  # which has them all; each export takes seconds
    assert own <= compare_segments(first)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_is_exported_with_its_batch_norm_folded(head: str) -> None:
    assert "BatchNormalization" not in compare_segments(segment_modules(used("resnet8", head))[:1])


@pytest.mark.slow
@pytest.mark.parametrize("arch", BACKBONES)
def test_every_segment_of_every_architecture_is_exported(arch: str) -> None:
    compare_segments(segment_modules(used(arch)))


def test_a_batch_norm_before_its_convolution_stays() -> None:
    class DenseLayer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, padding=1)
            self.norm, self.second = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

        def forward(self, images: Tensor) -> Tensor:
            features = self.first(images)
            return torch.cat([features, self.second(self.norm(features))], dim=1)

    torch.manual_seed(0)
    layer = DenseLayer()
    images = torch.randn(3, 3, 8, 8)
    layer.train()(5 * images + 2)
    data = to_onnx(layer.eval(), images, "images", ["features"], OPSETS)
    kinds = [node.op_type for node in onnx.load_from_string(data).graph.node]
    assert "BatchNormalization" in kinds
    (found,) = onnxruntime.InferenceSession(data).run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), layer(images).detach())


def test_a_batch_norm_that_should_have_been_folded_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    export = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *a, **k: export(*a, **k, optimize=False))
    for module, images in (
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.zeros(2, 3, 8, 8)),
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), torch.zeros(2, 3)),
    ):
        with pytest.raises(ExportError, match="could not be folded"):
            to_onnx(module.eval(), images, "images", ["features"], OPSETS)
