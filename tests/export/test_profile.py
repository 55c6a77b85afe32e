"""FLOPs, parameters and borders, against arithmetic by hand and against the whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fvcore.nn import FlopCountAnalysis
from torch import nn, zeros

from mate_edge.export.profile import profile_network
from mate_edge.train.network import MultiExitNet, build_network


def whole_model_flops(module: nn.Module, channels: int, size: int) -> int:
    analysis = FlopCountAnalysis(module.eval(), zeros(1, channels, size, size))
    return round(analysis.unsupported_ops_warnings(False).total())


def test_a_small_network_is_counted_as_by_hand() -> None:
    # 3x3 convolutions on 8x8 images: 2 -> 4 channels, then 4 -> 6 with stride 2
    network = MultiExitNet(
        [
            nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.ReLU()),
            nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
        ],
        [
            nn.Sequential(nn.Flatten(), nn.Linear(4 * 64, 5, bias=False)),
            nn.Sequential(nn.Flatten(), nn.Linear(6 * 16, 5, bias=False)),
        ],
    )
    first, second = (found := profile_network(network, 2, 8)).exits
    convolution_1, head_1 = 2 * 4 * 9 * 64, 4 * 64 * 5
    convolution_2, head_2 = 4 * 6 * 9 * 16, 6 * 16 * 5
    assert (first.flops, first.head_flops) == (convolution_1 + head_1, head_1)
    assert (second.flops, second.head_flops) == (convolution_2 + head_2, head_2)
    assert first.cumulative_flops == first.flops
    assert second.cumulative_flops == first.flops + second.flops
    assert first.parameters == 2 * 4 * 9 + 4 * 64 * 5
    assert second.cumulative_parameters == first.parameters + 4 * 6 * 9 + 6 * 16 * 5
    assert (first.border_shape, first.border_bytes) == ((4, 8, 8), 4 * 64 * 4)
    assert (second.border_shape, second.border_bytes) == ((), 0)
    assert found.unsplit_flops == convolution_1 + convolution_2 + head_2
    assert found.unsplit_parameters == 2 * 4 * 9 + 4 * 6 * 9 + 6 * 16 * 5
    assert found.uncounted == {"aten::relu": 1}
    assert found.ceiling == pytest.approx(found.unsplit_flops / first.flops)


def test_what_fvcore_did_not_count_is_listed() -> None:
    found = profile_network(build_network("resnet8", "sepconv", 3, 32, 10), 3, 32)
    assert found.uncounted["aten::add_"] == 3
    assert sum(n for op, n in found.uncounted.items() if "relu" in op) == 7 + 2 * 3


@pytest.mark.parametrize(
    ("arch", "head", "size"),
    [
        ("resnet8", "sepconv", 32),
        ("resnet18", "bottleneck", 32),
        ("resnet18", "pooled", 32),
        ("resnet50", "linear", 64),
    ],
)
def test_the_segments_add_up_to_the_whole_model(arch: str, head: str, size: int) -> None:
    network = build_network(arch, head, 3, size, 100)
    found = profile_network(network, 3, size)
    assert found.exits[-1].cumulative_flops == whole_model_flops(network, 3, size)
    assert found.unsplit_flops == whole_model_flops(network.unsplit(), 3, size)
    assert found.exits[-1].cumulative_parameters == sum(p.numel() for p in network.parameters())


def test_resnet18_at_224_has_its_exits_where_the_backbones_flops_are() -> None:
    found = profile_network(build_network("resnet18", "linear", 3, 224, 1000), 3, 224)
    backbone = found.exits[-1].cumulative_flops - sum(cost.head_flops for cost in found.exits)
    reached, shares = 0, []
    for cost in found.exits:
        reached += cost.flops - cost.head_flops
        shares.append(reached / backbone)
    assert shares[1:] == pytest.approx([0.548, 0.774, 1.0], abs=5e-4)
    assert found.unsplit_flops == pytest.approx(1.82e9, rel=0.01)


@pytest.mark.parametrize(("head", "millions"), [("sepconv", 163), ("bottleneck", 304)])
def test_exit_1_of_resnet18_at_32_costs_what_the_literatures_heads_cost(
    head: str, millions: int
) -> None:
    found = profile_network(build_network("resnet18", head, 3, 32, 100), 3, 32)
    assert found.exits[0].flops / 1e6 == pytest.approx(millions, rel=0.01)


def test_the_command_prints_a_table_and_json_and_keeps_profile_json(
    cli: Any, run_folder: Path
) -> None:
    shown = cli("profile", run_folder)
    assert shown.returncode == 0, shown.stderr
    for text in ("exit 1", "exit 3", "unsplit", "multiply-add = 1", "aten::add_ x3", "Ceiling"):
        assert text in shown.stdout
    printed = json.loads(cli("profile", run_folder, "--json").stdout)
    assert printed == json.loads((run_folder / "profile.json").read_bytes())
    assert printed["exits"][0]["border_shape"] == [16, 32, 32]


def test_a_backbone_is_profiled_without_a_run(typed: Any, tmp_path: Path) -> None:
    done = typed("profile", "--arch", "resnet20", "--size", "32", "--json", cwd=tmp_path)
    assert len(json.loads(done.stdout)["exits"]) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no run under runs/"),
        (["none"], "no run folder none"),
        (["--arch", "resnet19"], "resnet18"),
        (["--arch", "resnet18", "--size", "2"], "--size"),
        (["x", "--arch", "resnet18"], "not both"),
        (["x", "--head", "linear"], "go with --arch"),
    ],
)
def test_a_mistake_gets_one_line(
    arguments: list[str], says: str, typed: Any, tmp_path: Path
) -> None:
    done = typed("profile", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("mate-edge: ")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
