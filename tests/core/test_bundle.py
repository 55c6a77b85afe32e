"""A bundle is checked before it is used: every way to damage one gives a clear error."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mate_edge import files
from mate_edge.bundle import find_bundle, read_bundle
from mate_edge.errors import BundleError, EngineError, UsageError
from mate_edge.runtime.calibration import read_calibration
from mate_edge.runtime.predictor import Predictor


def edit(bundle: Path, change: Callable[[Any], object]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_the_id_is_the_hash_of_the_manifest(bundle_folder: Path) -> None:
    data = (bundle_folder / "manifest.json").read_bytes()
    assert read_bundle(bundle_folder).id == hashlib.sha256(data).hexdigest()


def test_every_file_is_listed_with_its_hash_and_nothing_else_is_there(bundle_folder: Path) -> None:
    bundle = read_bundle(bundle_folder)
    manifest = bundle.manifest
    listed = [manifest.unsplit, manifest.golden, manifest.calibration]
    listed += [segment.file for segment in manifest.segments]
    for file in listed:
        assert hashlib.sha256(bundle.read(file)).hexdigest() == file.sha256
    there = {str(f.relative_to(bundle_folder)) for f in bundle_folder.rglob("*") if f.is_file()}
    assert there == {file.path for file in listed} | {"manifest.json"}


def test_calibration_holds_the_validation_logits_of_every_exit(bundle_folder: Path) -> None:
    bundle = read_bundle(bundle_folder)
    arrays = bundle.arrays(bundle.manifest.calibration)
    n, k, c = arrays["logits"].shape
    assert (k, c) == (len(bundle.manifest.exits), len(bundle.manifest.classes))
    assert arrays["logits"].dtype == np.float16
    accuracies = (arrays["logits"].argmax(-1) == arrays["labels"][:, None]).mean(0)
    stated = [exit_.val_accuracy for exit_ in bundle.manifest.exits]
    np.testing.assert_allclose(accuracies, stated, atol=2 / n)


def test_no_path_of_the_machine_that_made_it_is_inside(bundle_folder: Path) -> None:
    for file in bundle_folder.rglob("*"):
        if file.is_file():
            assert str(Path(__file__).parents[2]).encode() not in file.read_bytes()
            assert b"site-packages" not in file.read_bytes()


def remove(bundle: Path, name: str) -> None:
    (bundle / name).unlink()


def flip(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)


def cut(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes((bundle / name).read_bytes()[:-10])


def grow(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes((bundle / name).read_bytes() + b"more")


@pytest.mark.parametrize(
    ("damage", "says"),
    [(remove, "missing"), (flip, "altered"), (cut, "truncated"), (grow, "larger")],
)
def test_a_damaged_segment_never_runs(
    damage: Callable[[Path, str], None], says: str, own_bundle: Path
) -> None:
    damage(own_bundle, "segments/2.onnx")
    with pytest.raises(BundleError, match=says):
        Predictor.load(own_bundle)


@pytest.mark.parametrize(
    "damage", [remove, cut, lambda bundle, name: (bundle / name).write_text("[]")]
)
def test_a_damaged_manifest_is_a_clear_error(
    damage: Callable[[Path, str], None], own_bundle: Path
) -> None:
    damage(own_bundle, "manifest.json")
    with pytest.raises(BundleError, match=r"manifest\.json"):
        read_bundle(own_bundle)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(schema=99), "upgrade"),
        (lambda m: m.pop("classes"), "classes"),
        (lambda m: m["segments"].pop(), "one segment for each exit"),
        (lambda m: m.update(classes=["one"]), "two classes"),
        (lambda m: m["preprocessing"].update(size=-3), "size"),
        (lambda m: m["preprocessing"].update(mean="x"), "mean"),
        (lambda m: m["segments"][0]["file"].update(bytes="many"), "bytes"),
        (lambda m: m["exits"][0].update(temperature=0), "temperature"),
        (lambda m: m["exits"][0].update(temperature=1e-50), "between 0.001 and 1000"),
        (lambda m: m["exits"][0].update(cumulative_flops=0), "cannot be negative"),
        (lambda m: m["exits"][1].update(parameters=-1), "cannot be negative"),
        (lambda m: m["exits"][2].update(cumulative_flops=1), "must rise from exit to exit"),
        (lambda m: m.update(unsplit_flops=0), "the unsplit be some"),
        (lambda m: m["classes"].pop(), "shapes of segment 1"),
        (lambda m: m["segments"][1]["input"].update(shape=[1, 2, 3]), "shapes of segment 2"),
        (lambda m: m["segments"][1]["input"].update(dtype="float16"), "segment 2 must be float32"),
        (lambda m: m["segments"][0]["outputs"][0].update(shape=[-1, 2, 3]), "must be positive"),
        (lambda m: m["segments"][0]["outputs"].pop(0), "1 outputs"),
        (lambda m: m["segments"][0]["outputs"].clear(), "needs an output"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_a_clear_error(
    change: Callable[[Any], object], says: str, own_bundle: Path
) -> None:
    edit(own_bundle, change)
    with pytest.raises(BundleError, match=says):
        read_bundle(own_bundle)


@pytest.mark.parametrize(
    "name", ["deepest", "unsplit", "exit-2", "patience-2", "exit 1", "a/b", "mine.json", ""]
)
def test_a_point_whose_name_means_something_else_is_a_clear_error(
    name: str, own_bundle: Path
) -> None:
    edit(own_bundle, lambda m: m["operating_points"].update({name: m["operating_points"]["fast"]}))
    with pytest.raises(BundleError, match=f"no operating point may be called '{name}'"):
        read_bundle(own_bundle)


@pytest.mark.parametrize("path", ["../../secret", "/etc/passwd", "segments/../../x"])
def test_a_path_out_of_the_bundle_is_refused(path: str, own_bundle: Path) -> None:
    edit(own_bundle, lambda m: m["segments"][0]["file"].update(path=path))
    with pytest.raises(BundleError, match="outside"):
        Predictor.load(own_bundle)


def test_a_size_in_the_manifest_is_not_believed(own_bundle: Path) -> None:
    for size in (-1, 10, 2**60):
        edit(own_bundle, lambda m, size=size: m["segments"][0]["file"].update(bytes=size))
        with pytest.raises(BundleError, match="larger|truncated|cannot have"):
            Predictor.load(own_bundle)


@pytest.mark.parametrize("path", ["x" * 5000, "a\0.mate"], ids=["long", "nul"])
def test_what_no_folder_can_be_called_is_a_clear_error(path: str) -> None:
    with pytest.raises(BundleError, match="cannot use xxx.*too long|no bundle folder a"):
        read_bundle(path)


def test_a_link_that_leads_to_itself_is_refused(own_bundle: Path) -> None:
    (own_bundle / "segments" / "1.onnx").unlink()
    (own_bundle / "segments" / "1.onnx").symlink_to("1.onnx")
    with pytest.raises(BundleError, match="outside|cannot read"):
        Predictor.load(own_bundle)


def test_a_bundle_stays_itself_when_the_link_to_it_is_switched(
    own_bundle: Path, tmp_path: Path
) -> None:
    link = tmp_path / "current"
    link.symlink_to(own_bundle.name)
    bundle = read_bundle(link)
    other = tmp_path / "2.mate"
    shutil.copytree(own_bundle, other)
    flip(other, bundle.manifest.calibration.path)
    link.unlink()
    link.symlink_to(other.name)
    bundle.arrays(bundle.manifest.calibration)
    with pytest.raises(BundleError, match="altered"):
        read_bundle(link).arrays(bundle.manifest.calibration)


def test_calibration_logits_beyond_float32_and_labels_of_no_axis_are_refused(
    own_bundle: Path,
) -> None:
    bundle = read_bundle(own_bundle)
    whole: dict[str, Any] = bundle.arrays(bundle.manifest.calibration)
    huge = whole["logits"].astype(np.float64)
    huge[0, 0, 0] = 1e300
    for changed, says in (({"logits": huge}, "out of range"), ({"labels": np.int64(3)}, "labels")):
        data = files.arrays_to_bytes(whole | changed)
        (own_bundle / bundle.manifest.calibration.path).write_bytes(data)
        entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        edit(own_bundle, lambda manifest, entry=entry: manifest["calibration"].update(entry))
        with pytest.raises(BundleError, match=says):
            read_calibration(read_bundle(own_bundle))


@pytest.mark.parametrize(
    "damage", [{"val_mean_flops": 0}, {"val_exit_shares": [5, -3, 1]}], ids=lambda d: next(iter(d))
)
def test_a_point_of_no_flops_or_of_shares_that_are_none_is_refused(
    damage: dict[str, Any], own_bundle: Path
) -> None:
    edit(own_bundle, lambda manifest: manifest["operating_points"]["balanced"].update(damage))
    with pytest.raises(BundleError, match=r"above 0.*between 0 and 1"):
        read_bundle(own_bundle)


def test_a_tensor_name_that_the_segment_lacks_is_a_clear_error(own_bundle: Path) -> None:
    edit(own_bundle, lambda m: m["segments"][0]["input"].update(name="pictures"))
    with pytest.raises(EngineError, match="segment 1 of .* failed"):
        Predictor.load(own_bundle)


def test_an_operating_point_for_other_exits_is_refused(own_bundle: Path) -> None:
    edit(
        own_bundle,
        lambda m: m["operating_points"]["fast"].update(
            parameters={"thresholds": [0.5], "temperatures": [1.0, 1.0]}
        ),
    )
    with pytest.raises(UsageError, match="another number of exits"):
        Predictor.load(own_bundle, policy="fast")


def test_the_bundle_meant_is_the_latest_or_the_lone_one(
    own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_bundle(None) == Path(own_bundle.name)
    (tmp_path / "second.mate").mkdir()
    with pytest.raises(BundleError, match="2 bundles"):
        find_bundle(None)
    (tmp_path / "bundles" / "third.mate").mkdir(parents=True)
    files.write_latest(tmp_path / "bundles", tmp_path / "bundles" / "third.mate")
    assert find_bundle(None) == Path("bundles/third.mate")
    assert find_bundle(own_bundle) == own_bundle
    monkeypatch.chdir("/")
    with pytest.raises(BundleError, match="mate-edge export"):
        find_bundle(None)
    with pytest.raises(BundleError, match="no bundle folder"):
        read_bundle(tmp_path / "none")
