"""Where exits stand: between blocks, nearest to fractions of the backbone's FLOPs."""

from __future__ import annotations

import dataclasses
import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from mate_edge.errors import UsageError
from mate_edge.runs import read_run
from mate_edge.train.backbones import make_parts
from mate_edge.train.exits import choose_cuts, cut, split_blocks
from mate_edge.train.network import build_network, load_network, network_of
from mate_edge.train.new import new_run
from mate_edge.train.options import Options
from mate_edge.train.start import old_run, run_training


def convolution(stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(8, 8, 3, stride, padding=1)


STAGES = [nn.Sequential(*(convolution() for _ in range(4))), nn.Sequential(convolution(2)),
          nn.Sequential(*(convolution() for _ in range(4)))]  # fmt: skip
"""On 16x16: four blocks of 4 units of FLOPs, then five of one unit, 21 in all."""


@pytest.mark.parametrize(
    ("exits", "cuts"),
    [
        (None, ()),
        ("3", ()),
        ("1", (9,)),
        ("2", (3, 9)),  # half of 21 units: 12 are nearer than 8
        ("4", (1, 3, 4, 9)),
        ("0.2,0.8", (1, 5, 9)),
        ("0.95", (8, 9)),
        ("0.999", (8, 9)),  # the final exit's own place is taken
        ("0.001", (1, 9)),
    ],
)
def test_exits_stand_nearest_to_the_fractions(exits: str | None, cuts: tuple[int, ...]) -> None:
    assert choose_cuts("mine", STAGES, exits, 8, 16) == cuts


@pytest.mark.parametrize(
    ("exits", "says"),
    [
        ("10", "10 exits, and this backbone has only 9 blocks"),
        ("99999999999", "only 9 blocks"),
        ("9", "two exits after block 1 of 9.*0.19, 0.38"),
        ("0.5,0.51", "two exits after block 3 of 9"),
        ("0.5,0.4", "rising"),
        ("0,0.5", "rising"),
        ("0.5,1", "rising"),
        ("0", "rising"),
        ("-2", "rising"),
        ("1.5", "rising"),
        ("nan", "rising"),
        ("half", "'half'"),
        ("", "''"),
    ],
)
def test_exits_that_cannot_be_are_refused(exits: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        choose_cuts("mine", STAGES, exits, 8, 16)


@pytest.mark.parametrize("exits", ["2", "0.5"])
def test_images_that_are_too_small_are_a_clear_error_wherever_the_exits_stand(exits: str) -> None:
    stages = make_parts("vgg11_bn", 3, 16, 10).stages
    with pytest.raises(UsageError, match="vgg11_bn cannot take 3x16x16 images: stage 5 fails"):
        choose_cuts("vgg11_bn", stages, exits, 3, 16)


def test_blocks_are_layers_with_what_prepares_their_features_and_whole_residual_blocks() -> None:
    residual = BasicBlock(8, 8)
    stages = [
        nn.Sequential(convolution(), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), residual),
        nn.Sequential(nn.Sequential(convolution(), nn.Dropout()), nn.Sequential(residual)),
    ]
    first, *others = split_blocks(stages)
    assert list(first) == list(stages[0])[:4]
    assert [type(block) for block in others] == [BasicBlock, nn.Sequential, BasicBlock]


@pytest.mark.parametrize("arch", ["resnet18", "vgg11_bn", "mobilenet_v2", "densenet121"])
@torch.no_grad()
def test_a_network_cut_elsewhere_computes_the_same(arch: str) -> None:
    stages = make_parts(arch, 3, 32, 10).stages
    cuts = choose_cuts(arch, stages, "0.3,0.6", 3, 32)
    parts = cut(stages, cuts)
    assert len(parts) == 3
    images = torch.randn(2, 3, 32, 32)
    for module in chain(stages, parts):
        module.eval()
    assert torch.equal(nn.Sequential(*parts)(images), nn.Sequential(*stages)(images))


@pytest.mark.parametrize("head", ["sepconv", "pooled", "bottleneck"])
def test_exits_within_a_stage_train(head: str) -> None:
    network = build_network("resnet18", head, 1, 16, 3, cuts=(1, 2, 3, 4, 8, 9))
    logits = network(torch.randn(2, 1, 16, 16))
    assert logits.shape == (2, 6, 3)
    logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_run_keeps_its_cuts_and_never_counts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = Options(data="digits", epochs=1, train_images=160, batch_size=16, exits="0.4",
                      head="linear")  # fmt: skip
    folder, run, _ = new_run(options, None)
    assert (run.exits, run.exits_at, run.cuts) == (2, "0.4", (2, 4))
    monkeypatch.setattr("mate_edge.train.exits.count_flops", None)
    assert network_of(run).num_exits == 2
    with pytest.raises(UsageError, match="exits 0.4, not 0.5"):
        old_run(dataclasses.replace(options, exits="0.5"), folder)
    run_training(options, folder, resume=True)
    assert load_network(folder, read_run(folder)).num_exits == 2


@pytest.mark.parametrize("exits", [None, "3"])
def test_a_resume_may_say_that_the_exits_are_as_many_as_the_stages(
    exits: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, run, _ = new_run(Options(data="digits", epochs=1, exits=exits), None)
    assert old_run(Options(exits="3"), folder)[1] == run
    with pytest.raises(UsageError, match=f"exits {exits}, not 2"):
        old_run(Options(exits="2"), folder)


def test_as_many_exits_as_a_cut_run_has_are_no_ends_of_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, run, _ = new_run(Options(data="digits", epochs=1, exits="0.2,0.6"), None)
    assert run.exits == 3
    with pytest.raises(UsageError, match="exits 0.2,0.6, not 3"):
        old_run(Options(exits="3"), folder)


LATER = {"exits_at", "cuts", "stem", "pretrained", "weights", "weights_sha256", "freeze_backbone",
         "train_images", "validate_every"}  # fmt: skip
LATER_IN_RECIPE = {"accumulate", "randaugment", "label_smoothing", "mixup", "optimizer", "schedule",
                   "warm_up"}  # fmt: skip


def test_a_run_from_before_there_were_these_options_still_reads(
    tmp_path: Path, run_folder: Path
) -> None:
    run = json.loads((run_folder / "run.json").read_bytes())
    for name in LATER:
        del run[name]
    for name in LATER_IN_RECIPE:
        del run["recipe"][name]
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert read_run(tmp_path) == read_run(run_folder)


def test_profile_shows_exits_anywhere_without_a_run(cli: Any, tmp_path: Path) -> None:
    done = cli("profile", "--arch", "resnet18", "--exits", "0.25,0.5", "--json", cwd=tmp_path)
    backbone = [exit_["flops"] - exit_["head_flops"] for exit_ in json.loads(done.stdout)["exits"]]
    shares = [sum(backbone[: k + 1]) / sum(backbone) for k in range(3)]
    assert shares == pytest.approx([0.25, 0.5, 1.0], abs=0.07)
