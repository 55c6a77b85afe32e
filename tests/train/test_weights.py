"""Imported weights: the last exit is the user's network, and stays it when frozen."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from mate_edge.errors import DataError, ImageError, RunError, UsageError
from mate_edge.images import normalize
from mate_edge.runs import read_run
from mate_edge.train import new, state
from mate_edge.train.data import load_dataset
from mate_edge.train.data.dataset import IMAGENET_MEAN, IMAGENET_STD, Dataset
from mate_edge.train.data.images import FileImages
from mate_edge.train.network import build_network, load_network
from mate_edge.train.new import new_run
from mate_edge.train.options import Options
from mate_edge.train.start import old_run, run_training
from mate_edge.train.weights import imagenet_weights, import_parts, read_weights

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `set/`, 60 images of three classes."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 80, (36, 36, 3), np.uint8)
            pixels[..., label] += 100
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{number:02}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fine_tuned(arch: str = "mobilenet_v3_small", classes: int = 3) -> nn.Module:
    """A network of the user's: BatchNorm has seen data, and the answers differ."""
    torch.manual_seed(1)
    network = torchvision.models.get_model(arch, num_classes=classes)
    with torch.no_grad():
        for _ in range(5):
            network.train()(torch.randn(8, 3, 32, 32))
    return network.eval()


def options(**changes: Any) -> Options:
    given = {"data": "set", "size": 32, "arch": "mobilenet_v3_small", "batch_size": 16, "epochs": 1}
    return Options(**given | {"weights": Path("mine.pth")} | changes)


def last_exit(folder: Path, images: torch.Tensor) -> list[torch.Tensor]:
    network = load_network(folder, read_run(folder))
    with torch.no_grad():
        return [network(images)[:, -1], network.unsplit()(images)]


def validation(dataset: Dataset) -> torch.Tensor:
    pixels = dataset.val.plain(range(len(dataset.val.labels)), dataset.preprocessing)
    return torch.from_numpy(normalize(pixels, dataset.preprocessing))


def test_a_frozen_backbone_leaves_the_imported_network_as_it_was_bit_by_bit(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = fine_tuned()
    torch.save(mine.state_dict(), "mine.pth")
    folder, run, dataset = new_run(options(freeze_backbone=True, epochs=2, lr=0.1), None)
    images = validation(dataset)
    with torch.no_grad():
        expected = mine(images)
    right = (expected.argmax(dim=1).numpy() == dataset.val.labels).mean()
    said = capsys.readouterr().err
    assert f"imported network: {100 * right:.2f} % of 5 validation images" in said
    run_training(Options(), folder, resume=True)
    for found in last_exit(folder, images):
        assert torch.equal(found, expected)

    trained = load_network(folder, read_run(folder)).state_dict()
    torch.manual_seed(run.seed)
    untrained = build_network(run.arch, run.head, 3, 32, 3).state_dict()
    heads = [name for name in trained if name.startswith("heads.0") and "weight" in name]
    assert heads
    assert not any(torch.equal(trained[name], untrained[name]) for name in heads)


def test_a_broken_validation_image_is_found_before_there_is_a_run(home: Path) -> None:
    torch.save(fine_tuned().state_dict(), "mine.pth")
    found = load_dataset("set", 128).val
    assert isinstance(found, FileImages)
    found.paths[2].write_bytes(b"broken")
    with pytest.raises(ImageError, match=f"{found.paths[2]} is not an image"):
        new_run(options(size=128), None)
    assert not Path("runs").exists()


def test_no_gradient_goes_through_a_frozen_backbone() -> None:
    network = build_network("mobilenet_v3_small", "sepconv", 3, 32, 3)
    network.freeze()
    assert [head.training for head in network.train().heads] == [True, True, True, False]
    assert not any(m.training for m in (*network.stages.modules(), *network.heads[-1].modules()))
    features = []
    for stage in network.stages:
        stage.register_forward_hook(lambda module, given, made: features.append(made))
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    assert not any(feature.requires_grad for feature in features)
    assert all(p.grad is not None for p in network.heads[0].parameters())


def test_an_imported_network_that_is_no_better_than_chance_is_said_to_be(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(fine_tuned().state_dict(), "mine.pth")
    for accuracy, told in ((0.3, True), (0.9, False)):
        monkeypatch.setattr(new, "exit_accuracy", lambda *given, a=accuracy: ((a,), a))
        new_run(options(), None)
        assert ("no better than chance among 3 classes" in capsys.readouterr().err) == told


def test_without_freezing_all_of_the_network_learns(home: Path) -> None:
    mine = fine_tuned()
    torch.save(mine.state_dict(), "mine.pth")
    folder, run, dataset = new_run(options(), None)
    images = validation(dataset)
    network = build_network(run.arch, run.head, 3, 32, 3, run.cuts, run.stem)
    state.load_initial(folder, network)
    with torch.no_grad():
        assert torch.equal(network.eval()(images)[:, -1], mine(images))
    run_training(Options(), folder, resume=True)
    with torch.no_grad():
        assert not torch.equal(last_exit(folder, images)[0], mine(images))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("plain.pt", lambda tensors, path: torch.save(tensors, path)),
        ("a.pth", lambda tensors, path: torch.save({"state_dict": tensors, "epoch": 3}, path)),
        ("b.pth", lambda tensors, path: torch.save({"model": tensors}, path)),
        (
            "parallel.pth",
            lambda tensors, path: torch.save(
                {"state_dict": {f"module.{name}": t for name, t in tensors.items()}}, path
            ),
        ),
        (
            "compiled.pth",
            lambda tensors, path: torch.save(
                {
                    "model_state_dict": {
                        f"module._orig_mod.{name}": t for name, t in tensors.items()
                    }
                },
                path,
            ),
        ),
        (
            "lightning.ckpt",
            lambda tensors, path: torch.save(
                {"state_dict": {f"model.{name}": t for name, t in tensors.items()}}, path
            ),
        ),
        ("c.safetensors", lambda tensors, path: save_file(tensors, path)),
    ],
)
def test_a_state_dict_is_found_however_it_was_saved(
    name: str, write: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    tensors = fine_tuned("shufflenet_v2_x0_5").state_dict()
    write(dict(tensors), tmp_path / name)
    found = read_weights(tmp_path / name)
    assert found.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert found.tensors.keys() == tensors.keys()
    parts = import_parts("shufflenet_v2_x0_5", found, 3, 32, 3).parts
    assert torch.equal(parts.network.get_parameter("fc.weight"), tensors["fc.weight"])


def test_a_checkpoint_of_torchvisions_own_script_is_read(tmp_path: Path) -> None:
    mine = fine_tuned("shufflenet_v2_x0_5")
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1, momentum=0.9)
    checkpoint = {
        "model": mine.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2]).state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(device="cuda", lr=0.1, gpu=0, weights=None),
    }
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    found = read_weights(tmp_path / "checkpoint.pth")
    assert found.tensors.keys() == mine.state_dict().keys()
    assert argparse.Namespace not in torch.serialization.get_safe_globals(), "for this file alone"


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("hacked"),)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.pth", None, "is missing"),
        ("text.pth", b"text", "damaged, or torch.save did not write it: copy it again"),
        ("text.safetensors", b"text", "damaged"),
        ("network.pth", nn.Linear(2, 2), r"more than tensors \(torch.nn.modules.linear.Linear\)"),
        ("hostile.pth", Hostile(), r"more than tensors \(getattr\)"),
        (
            "within.pth",
            {"model": {"a": torch.zeros(2)}, "args": argparse.Namespace(a=Hostile())},
            r"more than tensors \(getattr\)",
        ),
        ("list.pth", [torch.zeros(2)], r"no state dict \(but a list\)"),
        ("nested.pth", {"net": {"a": torch.zeros(2)}, "acc": 3}, r"no state dict \(but net, acc\)"),
        ("numbered.pth", {0: torch.zeros(2)}, r"no state dict \(but 0\)"),
    ],
)
def test_a_file_without_a_state_dict_is_a_clear_error_and_runs_no_code(
    name: str, content: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        Path(name).write_bytes(content)
    elif content is not None:
        torch.save(content, name)
    with pytest.raises(UsageError, match=says):
        read_weights(Path(name))
    assert not Path("hacked").exists()


@pytest.mark.parametrize("keep", [0, 4, 1000, 10**5])
def test_a_truncated_file_is_damaged(keep: int, tmp_path: Path) -> None:
    torch.save(fine_tuned("shufflenet_v2_x0_5").state_dict(), tmp_path / "mine.pth")
    whole = (tmp_path / "mine.pth").read_bytes()
    (tmp_path / "mine.pth").write_bytes(whole[:keep])
    with pytest.raises(UsageError, match="mine.pth is damaged, or torch.save did not write it"):
        read_weights(tmp_path / "mine.pth")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"extra": torch.zeros(1)}, r"small: 1 of the file's 245 unknown \(extra\)$"),
        (
            {"features.0.1.weight": torch.zeros(3)},
            r"small: 1 of another shape \(features.0.1.weight is \(3,\), not \(16,\)\)$",
        ),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    torch.save(fine_tuned().state_dict() | change, tmp_path / "mine.pth")
    with pytest.raises(UsageError, match=says):
        import_parts("mobilenet_v3_small", read_weights(tmp_path / "mine.pth"), 3, 32, 3)


def test_of_much_that_does_not_fit_a_part_is_shown_and_a_file_lists_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = fine_tuned()
    torch.save(mine.state_dict(), tmp_path / "mine.pth")
    with pytest.raises(UsageError) as caught:
        import_parts("resnet18", read_weights(tmp_path / "mine.pth"), 3, 32, 3)
    said = re.fullmatch(
        r"mine.pth does not fit --arch resnet18: 102 of the network's 102 tensors missing "
        r"\(conv1.weight, bn1.weight, bn1.bias and 99 more\), 244 of the file's 244 unknown "
        r"\(features.0.0.weight, features.0.1.weight, features.0.1.bias and 241 more\); (\S+) "
        "lists them all",
        str(caught.value),
    )
    assert said is not None, str(caught.value)
    listed = Path(said[1]).read_text().splitlines()
    assert set(mine.state_dict()) < set(listed)
    assert "layer4.1.conv2.weight" in listed


def test_a_network_within_another_module_is_found_and_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = fine_tuned("shufflenet_v2_x0_5").state_dict()
    within = {f"student.backbone.{name}": tensor for name, tensor in tensors.items()}
    torch.save(within | {"loss.weight": torch.ones(3)}, tmp_path / "mine.pth")
    parts = import_parts("shufflenet_v2_x0_5", read_weights(tmp_path / "mine.pth"), 3, 32, 3).parts
    assert torch.equal(parts.network.get_parameter("fc.weight"), tensors["fc.weight"])
    said = "mine.pth holds the network under student.backbone.; left out: loss.weight\n"
    assert capsys.readouterr().err == said

    twice = within | {f"ema.{name}": tensor for name, tensor in tensors.items()}
    torch.save(twice, tmp_path / "twice.pth")
    with pytest.raises(UsageError, match=r"2 times, under student.backbone., ema.: save the one"):
        import_parts("shufflenet_v2_x0_5", read_weights(tmp_path / "twice.pth"), 3, 32, 3)


def test_weights_for_other_classes_say_both_numbers(tmp_path: Path) -> None:
    torch.save(fine_tuned(classes=7).state_dict(), tmp_path / "mine.pth")
    with pytest.raises(UsageError, match="mine.pth is for 7 classes, and the data set has 3"):
        import_parts("mobilenet_v3_small", read_weights(tmp_path / "mine.pth"), 3, 32, 3)


def test_weights_for_colour_refuse_gray_images(tmp_path: Path) -> None:
    torch.save(fine_tuned().state_dict(), tmp_path / "mine.pth")
    with pytest.raises(UsageError, match="3 channels, and the data set's have 1"):
        import_parts("mobilenet_v3_small", read_weights(tmp_path / "mine.pth"), 1, 32, 3)


def test_the_stem_is_the_one_that_the_weights_are_for(tmp_path: Path) -> None:
    network = torchvision.models.resnet18(num_classes=3)
    for stem, kernel in (("imagenet", 7), ("small", 3)):
        network.conv1 = nn.Conv2d(3, 64, kernel, bias=False)
        torch.save(network.state_dict(), tmp_path / "mine.pth")
        found = import_parts("resnet18", read_weights(tmp_path / "mine.pth"), 3, 32, 3)
        assert found.stem == stem
        assert found.parts.network.get_parameter("conv1.weight").shape[2:] == (kernel, kernel)


def test_imagenet_weights_keep_the_stem_and_get_a_new_classifier(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imagenet = fine_tuned(classes=1000).state_dict()
    kind = type(torchvision.models.get_model_weights("mobilenet_v3_small").DEFAULT)
    monkeypatch.setattr(kind, "get_state_dict", lambda self, **options: imagenet)
    chosen = options(weights=None, pretrained=True, epochs=None)
    folder, run, dataset = new_run(chosen, None)
    assert (run.stem, run.weights) == ("imagenet", "MobileNet_V3_Small_Weights.IMAGENET1K_V1")
    assert (run.recipe.epochs, run.recipe.lr) == (20, 0.01)
    assert (run.preprocessing.mean, run.preprocessing.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert "imported network" not in capsys.readouterr().err
    network = build_network(run.arch, run.head, 3, 32, 3, run.cuts, run.stem)
    state.load_initial(folder, network)
    stem = network.stages[0].get_parameter("0.0.weight")
    assert torch.equal(stem, imagenet["features.0.0.weight"])
    assert network(validation(dataset)).shape == (5, 4, 3)
    with pytest.raises(UsageError, match="classifier was not imported"):
        new_run(dataclasses.replace(chosen, freeze_backbone=True), None)


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    def offline(*arguments: Any, **options: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UsageError, match="no route to host.*download https.*resnet18.*checkpoints"):
        new_run(options(arch="resnet18", weights=None, pretrained=True), None)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torchvision keeps the weights of shufflenet_v2_x0_5, still without the file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub._hub_dir", None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder / "shufflenetv2_x0.5-f707e7126e.pth"


@pytest.mark.parametrize("new", [True, False])
def test_torchvisions_own_file_is_read_in_either_format(cached: Path, new: bool) -> None:
    mine = fine_tuned("shufflenet_v2_x0_5", 1000).state_dict()
    torch.save(mine, cached, _use_new_zipfile_serialization=new)
    found = imagenet_weights("shufflenet_v2_x0_5").tensors
    assert all(torch.equal(found[name], mine[name]) for name in mine)


@pytest.mark.parametrize("given", [None, "1"])
def test_a_hostile_file_in_torchvisions_cache_runs_no_code_and_is_named(
    given: str | None, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        monkeypatch.delenv(name, raising=False)
    if given:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", given)
    before = dict(os.environ)
    torch.save(Hostile(), cached)
    with pytest.raises(UsageError, match=f"{cached} is damaged, or holds more .*remove it"):
        imagenet_weights("shufflenet_v2_x0_5")
    assert not Path("hacked").exists()
    assert dict(os.environ) == before


@pytest.mark.parametrize("keep", [0, 4, 1000])
def test_a_damaged_file_in_torchvisions_cache_is_one_line(keep: int, cached: Path) -> None:
    torch.save(fine_tuned("shufflenet_v2_x0_5", 1000).state_dict(), cached)
    cached.write_bytes(cached.read_bytes()[:keep])
    with pytest.raises(UsageError, match=f"{cached} is damaged.*remove it"):
        imagenet_weights("shufflenet_v2_x0_5")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pretrained": True}, "--weights or --pretrained, not both"),
        ({"weights": None, "freeze_backbone": True}, "give --weights or --pretrained"),
        ({"freeze_backbone": True, "exits": "1"}, "--exits 1 has none"),
        ({"weights": None, "pretrained": True, "arch": "resnet8"}, "resnet8 is none: choose from"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(
    changes: dict[str, Any], says: str, home: Path
) -> None:
    torch.save(fine_tuned().state_dict(), "mine.pth")
    with pytest.raises(UsageError, match=says):
        new_run(options(**changes), None)
    assert not Path("runs").exists()


def test_a_resume_needs_no_weights_and_refuses_others(home: Path) -> None:
    torch.save(fine_tuned().state_dict(), "mine.pth")
    folder, run, _ = new_run(options(epochs=2), None)
    assert old_run(options(epochs=2), folder)[1] == run
    torch.save(fine_tuned("shufflenet_v2_x0_5").state_dict(), "other.pth")
    with pytest.raises(UsageError, match="started with weights"):
        old_run(Options(weights=Path("other.pth")), folder)
    Path("mine.pth").unlink()
    assert run_training(Options(), folder, resume=True)[1].finished


def test_images_are_normalized_as_the_network_was_trained(home: Path) -> None:
    torch.save(fine_tuned().state_dict(), "mine.pth")
    folder, run, _ = new_run(options(mean="0.5", std="0.5,0.25,0.5"), home / "run")
    assert run.preprocessing.mean == (0.5, 0.5, 0.5)
    assert run.preprocessing.std == (0.5, 0.25, 0.5)
    assert old_run(Options(mean="0.5,0.5,0.5"), folder)[1] == run
    with pytest.raises(UsageError, match=r"started with std \(0.5, 0.25, 0.5\)"):
        old_run(Options(std="0.5"), folder)
    assert run_training(Options(), folder, resume=True)[1].finished
    for wrong in ("0.5,0.5", "a", "-1", "nan", "127.5", ""):
        with pytest.raises(UsageError, match="--mean takes 3 numbers such as 0.5,0.5,0.5"):
            new_run(options(mean=wrong), home / "other")
    with pytest.raises(UsageError, match="--std takes"):
        new_run(options(std="0"), home / "other")


def test_images_are_scaled_as_the_network_was_trained(home: Path) -> None:
    assert new_run(options(weights=None, size=128), None)[1].preprocessing.resize == 146
    folder, run, _ = new_run(options(weights=None, size=128, resize=128), home / "run")
    assert run.preprocessing.resize == 128
    assert old_run(Options(), folder)[2].preprocessing.resize == 128
    with pytest.raises(UsageError, match="resize 128, not 140"):
        old_run(options(weights=None, size=128, resize=140), folder)
    for resize in (127, 9000):
        with pytest.raises(UsageError, match=f"between 128 and 8192, not {resize}"):
            new_run(options(weights=None, size=128, resize=resize), home / "other")
    with pytest.raises(UsageError, match="--resize goes with images in files and --size 128"):
        new_run(options(weights=None, resize=40), home / "other")


def test_imported_weights_that_are_gone_before_training_are_a_clear_error(home: Path) -> None:
    torch.save(fine_tuned().state_dict(), "mine.pth")
    folder, _, _ = new_run(options(), None)
    (folder / "state" / "initial.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"initial.safetensors is damaged.*train a new run"):
        run_training(Options(), folder, resume=True)


def test_classes_follow_the_order_of_the_networks_outputs(home: Path) -> None:
    torch.save(fine_tuned().state_dict(), "mine.pth")
    Path("classes.txt").write_text("cat\nant\n\nbee\n")
    chosen = options(classes=Path("classes.txt"))
    folder, run, dataset = new_run(chosen, None)
    assert run.classes == ("cat", "ant", "bee")
    plain = new_run(options(), None)[2]
    for split, other in ((dataset.train, plain.train), (dataset.test, plain.test)):
        names = [run.classes[label] for label in split.labels]
        assert names == [plain.classes[label] for label in other.labels]
    assert old_run(chosen, folder)[2].classes == run.classes
    Path("classes.txt").write_text("ant\nbee\ncat\n")
    with pytest.raises(UsageError, match="classes"):
        old_run(chosen, folder)


def test_numbers_in_the_order_of_text_are_not_taken_for_a_networks_order(home: Path) -> None:
    torch.save(fine_tuned().state_dict(), "mine.pth")
    for name, number in zip(CLASSES, ("2", "10", "11"), strict=True):
        Path("set", name).rename(Path("set", number))
    says = "numbers in the order of text, 10, 11, 2, and the order of your .* give --classes FILE"
    with pytest.raises(UsageError, match=says):
        new_run(options(), None)
    assert not Path("runs").exists()
    Path("classes.txt").write_text("2\n10\n11\n")
    _, run, dataset = new_run(options(classes=Path("classes.txt")), None)
    assert run.classes == ("2", "10", "11")
    assert "in the order of text" not in dataset.note
    _, run, dataset = new_run(options(weights=None), None)
    assert run.classes == ("10", "11", "2"), "as it always was"
    assert "numbers in the order of text, 10, 11, 2: --classes FILE gives another" in dataset.note


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ant\nbee\n", r"1 of the data set are missing \(cat\)"),
        ("ant\nbee\ncat\ndog\nelk", r"2 are not in the data set \(dog, elk\)"),
        ("ant\nbee\ndog\n", r"missing \(cat\); 1 are not"),
        ("ant\nant\nbee\ncat", r"more than once: ant"),
        ("\xff", "UTF-8"),
    ],
)
def test_classes_that_are_not_the_data_sets_are_listed(text: str, says: str, home: Path) -> None:
    Path("classes.txt").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=says):
        new_run(options(weights=None, classes=Path("classes.txt")), None)


def test_an_own_network_takes_weights_by_the_names_of_its_stages(home: Path) -> None:
    Path("my_nets_w.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))\n"
        "    return [nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1), head]\n"
    )
    pool = nn.AdaptiveAvgPool2d(1)
    mine = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1),
                         nn.Sequential(pool, nn.Flatten(), nn.Linear(8, 3)))  # fmt: skip
    save_file(mine.state_dict(), "mine.safetensors")
    chosen = options(arch="my_nets_w:make", weights=Path("mine.safetensors"), freeze_backbone=True)
    folder, run, dataset = new_run(chosen, None)
    assert run.stem is None
    run_training(Options(), folder, resume=True)
    images = validation(dataset)
    with torch.no_grad():
        assert torch.equal(last_exit(folder, images)[0], mine(images))


def test_averaged_weights_beside_those_taken_are_named_and_sparse_ones_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {"a.weight": torch.ones(2, 2)}
    torch.save({"model": tensors, "model_ema": tensors, "epoch": 3}, tmp_path / "a.pth")
    read_weights(tmp_path / "a.pth")
    assert "model is taken; the averaged weights in model_ema are others" in capsys.readouterr().err
    torch.save({"state_dict": tensors, "ema_state_dict": tensors}, tmp_path / "c.pth")
    read_weights(tmp_path / "c.pth")
    assert "the averaged weights in ema_state_dict are others" in capsys.readouterr().err
    torch.save({"model": tensors, "ema_decay": 0.999, "ema": None}, tmp_path / "d.pth")
    read_weights(tmp_path / "d.pth")
    assert not capsys.readouterr().err
    torch.save({"a.weight": torch.eye(3).to_sparse()}, tmp_path / "b.pth")
    with pytest.raises(UsageError, match=r"b\.pth holds sparse tensors: a\.weight"):
        read_weights(tmp_path / "b.pth")
