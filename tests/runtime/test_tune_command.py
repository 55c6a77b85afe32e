"""`mate-edge tune`, typed as a user types it, and what `run` makes of its points."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mate_edge.bundle import read_bundle
from mate_edge.decide.calibrate import halve
from mate_edge.decide.simulate import simulate
from mate_edge.files import arrays_to_bytes, sha256
from mate_edge.runtime.calibration import read_calibration
from mate_edge.runtime.points import POINTS, all_points, kept_points, read_point
from mate_edge.runtime.policy import resolve_policy
from mate_edge.runtime.state import state_folder

GOAL = ("--max-risk", "10%", "--delta", "0.2")
HOURS = ("--max-risk", "10%", "--delta", "0.2", "--max-ms", "3600000")


def tuned(typed: Any, bundle: Path, *arguments: str | Path) -> dict[str, Any]:
    done = typed("tune", bundle, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_it_says_what_the_point_does_on_samples_that_did_not_choose_it(
    typed: Any, bundle_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "mine.json"
    done = typed("tune", bundle_folder, *GOAL, "--policy", "margin", "--name", "mine", "--out", out)
    assert done.returncode == 0, done.stderr
    bundle = read_bundle(bundle_folder)
    found = read_point(out, bundle)
    logits, labels = read_calibration(bundle)
    _, held = halve(len(labels))
    outcome = simulate(resolve_policy(bundle, out), logits[held])
    assert found.point.policy == "margin"
    assert found.samples == len(held)
    assert found.point.val_accuracy == outcome.accuracy(labels[held])
    assert found.point.val_exit_shares == outcome.exit_shares(3)
    flops = [exit_.cumulative_flops for exit_ in bundle.manifest.exits]
    assert found.point.val_mean_flops == outcome.mean_cost(flops)
    last = logits[held, -1].argmax(-1) == labels[held]
    guarantee = found.point.guarantee
    assert guarantee is not None
    assert guarantee.losses == int((last & (outcome.predictions != labels[held])).sum())
    assert (guarantee.epsilon, guarantee.delta, guarantee.n) == (0.1, 0.2, len(held))
    accuracy = 100 * found.point.val_accuracy
    for words in (
        f"on the {len(held)} validation images held back: accuracy {accuracy:.2f} %",
        f"guaranteed: on images like the {len(held)} held back, at most 10 % of answers are wrong "
        "where the last exit is right, with 80 % confidence; a deadline voids this",
        "stored: mate-edge run --policy mine",
    ):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "guaranteed", "goal"),
    [
        (("--max-drop", "1", "--policy", "entropy"), False, "--max-drop 1"),
        (("--max-drop", "1%"), False, "--max-drop 1"),
        (("--budget-flops", "9e6", "--policy", "ensemble"), False, "--budget-flops 9e+06"),
        (("--budget-ms", "1e4"), False, "--budget-ms 10000"),
        (
            ("--max-risk", "0.2", "--mean-risk", "--loss", "differs"),
            True,
            "--max-risk 0.2 --mean-risk --loss differs",
        ),
    ],
)
def test_every_goal_gives_a_point_that_runs(
    arguments: tuple[str, ...], guaranteed: bool, goal: str, typed: Any, bundle_folder: Path
) -> None:
    found = tuned(typed, bundle_folder, *arguments)
    assert found["goal"] == goal
    assert (found["point"]["guarantee"] is not None) == guaranteed
    assert (found["mean_ms"] is not None) == ("--budget-ms" in arguments)
    bundle = read_bundle(bundle_folder)
    policy = resolve_policy(bundle, "tuned")
    assert list(policy.thresholds) == found["point"]["parameters"]["thresholds"]  # type: ignore[attr-defined]


def test_labelled_images_of_ones_own_choose_and_certify(
    typed: Any, bundle_folder: Path, golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    last = golden["logits"][:, -1].argmax(axis=-1)
    for number, (pixels, label) in enumerate(zip(golden["images"], last, strict=True)):
        folder = tmp_path / "ours" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        for copy in range(5):
            Image.fromarray(pixels[..., 0]).save(folder / f"{number}-{copy}.png")
    (tmp_path / "ours" / str(last[0]) / "bad.png").write_text("no image")
    options = ("--images", tmp_path / "ours", "--threads", "1", "--name", "ours")
    found = tuned(typed, bundle_folder, "--max-risk", "30%", "--delta", "20%", *options)
    assert found["images"] == str(tmp_path / "ours")
    assert len(found["images_sha256"]) == 64
    assert found["confidences"] == [], "too few to tell drift by"
    assert (found["samples"], found["last_accuracy"]) == (20, 1.0)
    policy = resolve_policy(read_bundle(bundle_folder), "ours")
    _, held = halve(40)
    alike = np.repeat(np.argsort(last, kind="stable"), 5)[held]  # sorted by the class's folder
    outcome = simulate(policy, golden["logits"][alike])
    assert found["point"]["val_accuracy"] == pytest.approx(outcome.accuracy(last[alike]))
    done = typed("tune", bundle_folder, "--max-drop", "1", *options)
    assert f"on the 20 images of {tmp_path / 'ours'} held back" in done.stdout
    assert "bad.png" in done.stderr
    assert "40 labelled images are few" in done.stderr


def test_images_like_those_of_ones_own_have_not_drifted(
    typed: Any, bundle_folder: Path, golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    folder = tmp_path / "lab" / "0"
    folder.mkdir(parents=True)
    for number, pixels in enumerate(golden["images"]):
        for copy in range(15):
            Image.fromarray(255 - pixels[..., 0]).save(folder / f"{number}-{copy}.png")
    tuned(typed, bundle_folder, "--max-drop", "100", "--images", tmp_path / "lab", "--name", "lab")
    ours = typed("run", "--bundle", bundle_folder, "--policy", "lab", folder)
    assert "120 images" in ours.stdout
    assert "drifted" not in ours.stdout
    others = typed("run", "--bundle", bundle_folder, "--policy", "balanced", folder)
    assert "not spread as on the validation images" in others.stdout
    for pixels in sorted(folder.iterdir()):
        shutil.copy(folder / "0-0.png", pixels) if pixels.name != "0-0.png" else None
    changed = typed("run", "--bundle", bundle_folder, "--policy", "lab", folder)
    assert "not spread as on the images it was tuned on" in changed.stdout


def test_a_deadline_that_exit_1_may_miss_is_said(typed: Any, bundle_folder: Path) -> None:
    done = typed("tune", bundle_folder, *GOAL, "--max-ms", "0.001")
    assert "0.001 ms is less than" in done.stderr


def test_a_budget_in_ms_counts_decoding_once_it_was_measured(
    typed: Any, bundle_folder: Path, pictures: Path
) -> None:
    budget = ("tune", bundle_folder, "--budget-ms", "1e4")
    not_counted = "these latencies count no decoding or scaling of images of yours"
    assert not_counted in typed(*budget).stderr
    bench = ("bench", bundle_folder, "--rounds", "300")
    assert typed(*bench, "--images", pictures).returncode == 0
    assert not_counted not in typed(*budget).stderr
    replaced = typed(*bench)
    assert re.search(rf"golden images .* replace those of \S+ of {pictures}", replaced.stderr)
    assert not_counted in typed(*budget).stderr


def test_run_takes_a_stored_name_and_a_file_and_says_what_holds(
    typed: Any, bundle_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.json"
    tuned(typed, bundle_folder, *GOAL, "--name", "mine", "--out", out)
    for policy in ("mine", out):
        done = typed("run", "--bundle", bundle_folder, "--policy", policy, pictures)
        assert done.returncode == 0, done.stderr
        assert f"policy {policy} is guaranteed: on images like the" in done.stdout
        assert "a deadline voids this" in done.stdout
    run = ("run", "--bundle", bundle_folder, pictures)
    hurried = typed(*run, "--policy", "mine", "--max-ms", "500").stdout
    assert "policy mine carries a guarantee, which this deadline voids" in hurried
    assert "policy balanced carries no guarantee" in typed(*run).stdout
    rows = typed("bench", bundle_folder, "--rounds", "2", "--json")
    assert {"mine", "balanced"} <= set(json.loads(rows.stdout)["points"])
    lines = typed(*run, "--policy", "exit-2", "--json").stdout.splitlines()
    exits = [json.loads(line)["exit"] for line in lines]
    assert exits == [2] * 8


@pytest.mark.parametrize(
    "damage",
    [
        lambda point: point["parameters"].update(thresholds=[0.5], temperatures=[1.0, 1.0]),
        lambda point: point["parameters"].update(temperatures=[1.0, 1.0, 0.0]),
        lambda point: point.update(val_exit_shares=[1.0]),
        lambda point: point.update(policy="lucky"),
    ],
)
def test_a_stored_point_that_makes_no_sense_counts_as_absent(
    damage: Any, typed: Any, bundle_folder: Path, tmp_path: Path
) -> None:
    bundle = read_bundle(bundle_folder)
    found = tuned(typed, bundle_folder, *GOAL, "--name", "mine")
    assert set(kept_points(bundle)) == {"mine"}
    damage(found["point"])
    path = state_folder(bundle.id, POINTS) / "mine.json"
    path.write_text(json.dumps(found))
    assert kept_points(bundle) == {}


def test_a_deadline_certified_with_the_policy_holds_and_so_does_a_longer_one(
    typed: Any, bundle_folder: Path, pictures: Path
) -> None:
    found = tuned(typed, bundle_folder, *HOURS, "--name", "joint")
    guarantee = found["point"]["guarantee"]
    assert guarantee["max_ms"] == 3_600_000
    assert 0 <= guarantee["halted"] < guarantee["n"] / 5, "no round is late, a few may be"
    assert guarantee["rounds"] >= 10
    assert guarantee["device"]["cpus"] >= 1
    run = ("run", "--bundle", bundle_folder, "--policy", "joint", pictures)
    for longer in ("3600000", "7200000"):
        assert "at most 10 % of answers" in typed(*run, "--max-ms", longer).stdout
    assert "is guaranteed" in typed(*run).stdout
    assert "this shorter one voids the guarantee" in typed(*run, "--max-ms", "60000").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "exactly one of --max-drop, --max-risk, --budget-flops and --budget-ms"),
        (("--max-drop", "1", "--max-risk", "0.1"), "exactly one of"),
        (("--max-risk", "0"), "--max-risk must lie between 0 and 1, not 0"),
        (("--max-risk", "2"), "0.01 or 1% is one per cent"),
        (("--max-risk", "much"), "--max-risk takes a share such as 0.01 or 1%, not 'much'"),
        (("--max-risk", "nan"), "--max-risk must lie between 0 and 1"),
        (("--max-risk", "0.1", "--delta", "1"), "--delta must lie between 0 and 1, not 1"),
        (("--max-risk", "0.01"), "needs 299 samples to certify with, here are"),
        (("--max-risk", "0.001", "--mean-risk"), "needs 999 samples"),
        (("--max-risk", "0.1", "--mean-risk", "--delta", "0.1"), "leave one of them out"),
        (("--max-risk", "0.1", "--loss", "wors"), "Did you mean worse?"),
        (("--max-risk", "0.1", "--max-ms", "0"), "deadline must be a positive number"),
        (("--max-drop", "1", "--max-ms", "5"), "go with --max-risk"),
        (("--max-drop", "1", "--delta", "0.1"), "go with --max-risk"),
        (("--max-drop", "-1"), "--max-drop must lie between 0 and 100 points, not -1"),
        (("--max-drop", "much"), "--max-drop takes points such as 0.5, not 'much'"),
        (("--budget-flops", "nan"), "--budget-flops must be a positive number"),
        (("--budget-flops", "3"), "a budget of 3 FLOPs is below what exit 1 alone costs"),
        (("--budget-ms", "1e-9"), "a budget of 1e-09 ms is below what exit 1 alone costs"),
        (("--max-drop", "1", "--policy", "patience"), "unknown --policy 'patience'"),
        (("--max-drop", "1", "--name", "fast"), "one of the bundle's own"),
        (("--max-drop", "1", "--name", "exit-3"), "means a policy or the unsplit network"),
        (("--max-drop", "1", "--name", "unsplit"), "means a policy or the unsplit network"),
        (("--max-drop", "1", "--name", "../mine"), "--name takes up to 64 letters"),
        (("--max-drop", "1", "--name", "0.1"), "--name 0.1 would be taken for a threshold"),
        (("--max-drop", "1", "--name", "20261201"), "would be taken for a threshold"),
        (("--max-drop", "1", "--name", "1e-3"), "would be taken for a threshold"),
        (("--max-drop", "1", "--name", "a.json"), "without .json at the end, not 'a.json'"),
        (("--max-drop", "1", "--out", "p.txt"), "ends in .json, not p.txt"),
        (("--max-drop", "1", "--out", "BUNDLE/manifest.json"), "and is no operating point"),
        (("--max-drop", "1", "--engine", "openvino"), "go with --budget-ms, --max-ms or --images"),
        (("--max-drop", "1", "--threads", "1"), "go with --budget-ms, --max-ms or --images"),
        (("--max-drop", "1", "--out", "/proc/nowhere/p.json"), "/proc/nowhere"),
        (("--max-drop", "1", "--threads", "0"), "--threads must lie between 1 and"),
        (("--list", "--max-risk", "7"), "--list and --remove tune nothing: --json alone goes"),
        (("--remove", "mine", "--engine", "onnxruntime"), "--list and --remove tune nothing"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    arguments: tuple[str, ...], says: str, typed: Any, bundle_folder: Path, tmp_path: Path
) -> None:
    given = (word.replace("BUNDLE", str(bundle_folder)) for word in arguments)
    done = typed("tune", bundle_folder, *given, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    line = done.stderr.splitlines()[-1]
    assert line.startswith("mate-edge: ")
    assert says in line
    assert "Traceback" not in done.stderr


def test_a_point_of_another_bundle_and_one_for_other_exits_are_refused(
    typed: Any, bundle_folder: Path, own_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.json"
    found = tuned(typed, bundle_folder, "--max-drop", "1", "--out", out)

    def refused(bundle: Path) -> str:
        done = typed("run", "--bundle", bundle, "--policy", out, pictures)
        assert (done.returncode, done.stdout) == (2, "")
        return str(done.stderr)

    found["point"]["parameters"] = {"thresholds": [0.5], "temperatures": [1.0, 1.0]}
    out.write_text(json.dumps(found))
    assert "for another number of exits: 2, the bundle has 3" in refused(bundle_folder)
    manifest = own_bundle / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    assert "was made for" in refused(own_bundle)
    out.write_text("{}")
    assert "p.json" in refused(bundle_folder)
    out.unlink()
    assert "p.json" in refused(bundle_folder)


def test_a_state_that_cannot_be_looked_into_is_as_if_nothing_was_stored(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = read_bundle(bundle_folder)
    monkeypatch.setenv("MATE_EDGE_STATE", "/" + "x" * 300)
    assert all_points(bundle) == bundle.manifest.operating_points


def test_a_stored_point_that_is_damaged_is_named_and_replaced(
    typed: Any, bundle_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    tuned(typed, bundle_folder, "--max-drop", "1", "--name", "mine")
    (stored,) = (tmp_path / "state").rglob("mine.json")
    whole = json.loads(stored.read_text())
    for damaged in ('{"schema": 1', json.dumps(whole | {"confidences": [1, 2]})):
        stored.write_text(damaged)
        done = typed("run", "--bundle", bundle_folder, "--policy", "mine", pictures)
        assert done.returncode == 2
        assert "mine is stored on this device, but is damaged" in done.stderr
    again = typed("tune", bundle_folder, "--max-drop", "1", "--name", "mine")
    assert "mine replaces one that was damaged or of another version" in again.stderr
    assert typed("run", "--bundle", bundle_folder, "--policy", "mine", pictures).returncode == 0


def test_what_is_stored_is_listed_and_can_be_removed(typed: Any, bundle_folder: Path) -> None:
    refused = typed("tune", bundle_folder, "--remove", "mine")
    assert refused.returncode == 2
    assert "nothing is stored on this device for" in refused.stderr
    tuned(typed, bundle_folder, "--max-drop", "1", "--name", "mine")
    tuned(typed, bundle_folder, *GOAL, "--name", "sure")
    listed = typed("tune", bundle_folder, "--list").stdout.splitlines()
    assert [line.split()[0] for line in listed[2:]] == ["mine", "sure"]
    assert "--max-drop 1" in listed[2]
    assert " yes " in listed[3]
    wrong = typed("tune", bundle_folder, "--remove", "min")
    assert (
        "unknown operating point 'min': choose from mine, sure. Did you mean mine?" in wrong.stderr
    )
    left = json.loads(typed("tune", bundle_folder, "--remove", "mine", "--json").stdout)
    assert list(left) == ["sure"]


def test_a_stored_name_that_means_something_by_now_is_passed_over(
    typed: Any, bundle_folder: Path
) -> None:
    bundle = read_bundle(bundle_folder)
    tuned(typed, bundle_folder, "--max-drop", "1", "--name", "mine")
    stored = state_folder(bundle.id, POINTS) / "mine.json"
    shutil.copy(stored, stored.with_name("unsplit.json"))
    assert "mine" in all_points(bundle)
    assert "unsplit" not in all_points(bundle)


def test_what_was_found_is_kept_under_its_name_where_the_file_cannot_be_written(
    typed: Any, bundle_folder: Path
) -> None:
    done = typed(
        "tune", bundle_folder, "--max-drop", "1", "--name", "mine", "--out", "/proc/p.json"
    )
    assert done.returncode == 0
    assert "cannot write /proc/p.json" in done.stderr
    assert "stored: mate-edge run --policy mine" in done.stdout


def test_what_was_found_is_printed_where_it_cannot_be_kept(
    typed: Any, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MATE_EDGE_STATE", str(tmp_path / "file"))
    goal, out = ("--max-drop", "1", "--name", "mine"), tmp_path / "p.json"
    done = typed("tune", bundle_folder, *goal, "--json")
    assert done.returncode == 2  # what comes next in a script would miss it
    assert json.loads(done.stdout)["name"] == "mine"
    assert "mine is not kept on this device: cannot make the folder" in done.stderr
    plain = typed("tune", bundle_folder, *goal)
    assert "validation images held back: accuracy" in plain.stdout
    assert "stored:" not in plain.stdout
    written = typed("tune", bundle_folder, *goal, "--out", out)
    assert written.returncode == 0
    assert f"stored: mate-edge run --policy {out}" in written.stdout


def calibrate_on(bundle: Path, logits: np.ndarray, labels: np.ndarray) -> None:
    """Give a bundle other validation images, with all that its manifest says of them."""
    data = arrays_to_bytes({"logits": logits.astype(np.float16), "labels": labels})
    (bundle / "calibration.npz").write_bytes(data)
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    manifest["calibration"].update(bytes=len(data), sha256=sha256(data))
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_a_budget_that_is_exceeded_on_the_half_held_back_is_said(
    typed: Any, own_bundle: Path, tmp_path: Path
) -> None:
    logits, labels = np.zeros((400, 3, 10)), np.zeros(400, int)
    logits[:, 1:, 0] = 8.0
    logits[:, 0, 1] = 1.0  # exit 1 is unsure, and wrong
    search, _ = halve(400)
    logits[search[::2], 0] = logits[0, 2]  # but for half of those that the search sees
    calibrate_on(own_bundle, logits, labels)
    first, second, _ = (exit_.cumulative_flops for exit_ in read_bundle(own_bundle).manifest.exits)
    budget = (first + second) / 2
    done = typed("tune", own_bundle, "--budget-flops", budget, cwd=tmp_path)
    assert done.returncode == 0
    assert (
        f"on the half held back an image costs {second:.4g} on average, more than the budget of "
        f"{budget:.4g}: a search is no promise"
    ) in done.stderr
    done = typed("tune", own_bundle, "--budget-flops", second, cwd=tmp_path)
    assert "more than the budget" not in done.stderr


def test_calibration_that_does_not_fit_the_manifest_is_a_clear_error(
    typed: Any, own_bundle: Path
) -> None:
    calibrate_on(own_bundle, np.zeros((9, 2, 10)), np.zeros(9, int))
    done = typed("tune", own_bundle, "--max-drop", "1")
    assert done.returncode == 2
    assert "export the run again" in done.stderr


def test_without_a_bundle_it_takes_the_newest(
    typed: Any, bundle_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle_folder, tmp_path / "only.mate")
    assert typed("tune", "--max-drop", "1", cwd=tmp_path).returncode == 0
