"""A comparison: paired by seed, resumable, honest about what it cannot say."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from PIL import Image

from mate_edge.errors import TrainingStopped, UsageError
from mate_edge.report.comparison import (
    Row,
    as_markdown,
    difference_table,
    draw,
    loss_table,
    paired_difference,
    relative_step,
    result_table,
)
from mate_edge.runs import read_outputs, read_run
from mate_edge.train import compare, ending, new
from mate_edge.train.compare import (
    parse_methods,
    parse_seeds,
    run_comparison,
    write_report,
    write_results,
)
from mate_edge.train.evaluate import exit_accuracy
from mate_edge.train.losses.ce import CrossEntropy
from mate_edge.train.options import Options

QUICK = Options(
    data="digits", arch="small:stages", epochs=1, batch_size=128, train_images=256, lr=0.02
)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods with two seeds."""
    folder = tmp_path_factory.mktemp("compared") / "digits"
    busy = run_comparison(folder, parse_methods("ce,mate+alpha=2"), (0, 1), QUICK)
    assert busy == (0, 0)
    return folder


def test_the_results_have_a_row_for_each_run_counted_from_its_outputs(comparison: Path) -> None:
    with open(comparison / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["seed"]) for row in rows] == [
        ("ce", "0"), ("mate+alpha=2", "0"), ("ce", "1"), ("mate+alpha=2", "1"),
    ]  # fmt: skip
    folder = comparison / "mate+alpha=2-seed1"
    run = read_run(folder)
    assert run.method_options["alpha"] == 2
    outputs = read_outputs(folder, run)
    each, ensemble = exit_accuracy(outputs["test_logits"], outputs["test_labels"])
    assert [float(rows[3][f"test_exit_{k}"]) for k in (1, 2, 3)] == pytest.approx(each)
    assert float(rows[3]["test_mean"]) == pytest.approx(sum(each) / 3)
    assert float(rows[3]["test_ensemble"]) == pytest.approx(ensemble)
    assert run.results is not None
    flops = run.results.cumulative_flops
    assert [int(rows[3][f"flops_{k}"]) for k in (1, 2, 3)] == list(flops)
    assert 0 < flops[0] < flops[1] < flops[2]


def test_what_is_finished_is_not_trained_again_and_more_seeds_can_be_added(
    comparison: Path,
) -> None:
    kept = comparison / "ce-seed0" / "run.json"
    before = kept.stat().st_mtime_ns
    run_comparison(comparison, parse_methods("ce"), (0, 2), QUICK)
    assert kept.stat().st_mtime_ns == before
    assert {row["seed"] for row in write_results(comparison) if row["method"] == "ce"} == {0, 1, 2}


def test_a_signal_stops_a_comparison_which_then_goes_on_where_it_was(
    comparison: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, contenders = tmp_path / "stopped", parse_methods("ce,mate+alpha=2")
    real, calls = ending.compute_logits, 0

    def signalled(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:  # of the second run; the first one looks at two splits
            signal.raise_signal(signal.SIGTERM)
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(ending, "compute_logits", signalled)
        with pytest.raises(TrainingStopped, match="mate.alpha=2-seed0: .*type the same") as stopped:
            run_comparison(folder, contenders, (0,), QUICK)
    assert stopped.value.exit_code == 143
    finished = folder / "ce-seed0" / "run.json"
    before = finished.stat().st_mtime_ns
    assert run_comparison(folder, contenders, (0,), QUICK) == (0, 0)
    assert finished.stat().st_mtime_ns == before
    for name in ("ce-seed0", "mate+alpha=2-seed0"):
        ours, theirs = ((at / name / "model.safetensors") for at in (folder, comparison))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_run_that_another_process_is_at_is_left_to_it(comparison: Path) -> None:
    with FileLock(comparison / ".ce-seed9.lock"):
        assert run_comparison(comparison, parse_methods("ce"), (9,), QUICK) == (1, 0)
    assert not (comparison / "ce-seed9").exists()


def test_another_network_of_the_same_name_is_not_compared(comparison: Path) -> None:
    kept = comparison / "ce-seed0" / "run.json"
    before = kept.read_bytes()
    run = json.loads(before)
    try:
        kept.write_text(json.dumps(run | {"structure": "another"}))
        with pytest.raises(UsageError, match="cannot be compared: structure is"):
            run_comparison(comparison, parse_methods("ce"), (0,), QUICK)
        kept.write_text(json.dumps(run | {"structure": None}))  # of an earlier version
        run_comparison(comparison, parse_methods("ce"), (0,), QUICK)
    finally:
        kept.write_bytes(before)


def test_runs_of_other_options_are_not_taken_for_these(comparison: Path) -> None:
    for epochs, says in ((2, "epochs 1, not 2"), (None, "epochs 1, not the default")):
        other = dataclasses.replace(QUICK, epochs=epochs)
        with pytest.raises(UsageError, match=says):
            run_comparison(comparison, parse_methods("ce"), (0, 1), other)
    kept = comparison / "mate-seed5"
    (comparison / "mate+alpha=2-seed0").rename(kept)  # as if a default had changed since
    try:
        with pytest.raises(UsageError, match=r"method_options .*'alpha': 2.0"):
            run_comparison(comparison, parse_methods("mate"), (5,), QUICK)
    finally:
        kept.rename(comparison / "mate+alpha=2-seed0")


def test_a_run_is_no_comparison_and_stays_as_it_is(comparison: Path) -> None:
    folder = comparison / "ce-seed0"
    before = sorted(folder.iterdir())
    with pytest.raises(UsageError, match="ce-seed0 is a run, and a comparison has runs in it"):
        run_comparison(folder, parse_methods("ce"), (0,), QUICK)
    assert sorted(folder.iterdir()) == before


def test_options_with_which_no_run_began_bind_nobody(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--epochs must be 1 or more"):
        run_comparison(tmp_path, parse_methods("ce"), (0,), dataclasses.replace(QUICK, epochs=0))
    assert run_comparison(tmp_path, parse_methods("ce"), (0,), QUICK) == (0, 0)


def test_paths_are_compared_and_not_their_spelling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ant", "bee"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (32, 32), (number,) * 3).save(
                tmp_path / "set" / name / f"{number}.png"
            )
    Path("names.txt").write_text("bee\nant\n")
    given = Options(data="set", arch="resnet8", size=32, epochs=1, batch_size=8,
                    classes=Path("names.txt"))  # fmt: skip
    out = Path("out")
    run_comparison(out, parse_methods("ce"), (0,), given)
    stored = json.loads((out / "options.json").read_bytes())
    assert (stored["data"], stored["classes"]) == (f"{tmp_path}/set", f"{tmp_path}/names.txt")
    for data in ("./set", "set/", str(tmp_path / "set")):
        again = dataclasses.replace(given, data=data, classes=tmp_path / "names.txt")
        assert run_comparison(out, parse_methods("ce"), (0,), again) == (0, 0)
    (out / "options.json").write_text(json.dumps(stored | {"data": "set"}))  # an earlier version
    assert run_comparison(out, parse_methods("ce"), (0,), given) == (0, 0)
    Path("set").rename("other")
    with pytest.raises(UsageError, match=f"begun with data {tmp_path}/set, not {tmp_path}/other"):
        run_comparison(out, parse_methods("ce"), (0,), dataclasses.replace(given, data="other"))


def make_rows(**accuracies: list[float]) -> list[Row]:
    """Rows of two exits; a method's list is its mean over the exits, one a seed."""
    rows: list[Row] = []
    for method, means in accuracies.items():
        for seed, value in enumerate(means):
            row: Row = {"method": method, "seed": seed, "options": ""}
            for figure in ("exit_1", "exit_2", "mean", "ensemble", "overthinking", "area"):
                row[f"test_{figure}"] = row[f"val_{figure}"] = value
            row["test_overthinking"], row["test_area"] = value / 10, value - 0.01
            for figure in ("loss_1", "loss_2", "loss"):
                row[f"test_{figure}"] = row[f"val_{figure}"] = 1 - value
            step_ms = (150.0 if method == "mate" else 100.0) + seed
            rows.append(row | {"step_ms": step_ms, "flops_1": 1e6, "flops_2": 2e6})
    return rows


def test_a_paired_difference_has_students_interval() -> None:
    # differences 1, 2, 3: mean 2, standard deviation 1, t(0.975, 2) = 4.3027
    rows = make_rows(ce=[0.10, 0.20, 0.30], mate=[0.11, 0.22, 0.33])
    found = paired_difference(rows, "mate", "ce", "test_mean")
    assert found is not None
    assert found.mean == pytest.approx(0.02)
    assert found.half == pytest.approx(4.3027 * 0.01 / math.sqrt(3), rel=1e-4)
    assert not found.excludes_zero
    assert found.seeds == 3
    opposite = paired_difference(rows, "ce", "mate", "test_mean")
    assert opposite is not None
    assert opposite.mean == pytest.approx(-found.mean)


def test_only_seeds_that_both_have_are_paired() -> None:
    rows = make_rows(ce=[0.5], mate=[0.6, 0.9])
    found = paired_difference(rows, "mate", "ce", "test_mean")
    assert found is not None
    assert (found.seeds, round(found.mean, 6)) == (1, 0.1)
    assert math.isnan(found.half)
    assert not found.excludes_zero, "one seed proves nothing"
    none = [row for row in rows if (row["method"], row["seed"]) != ("mate", 0)]
    assert paired_difference(none, "mate", "ce", "test_mean") is None


def test_the_table_of_label_losses_counts_a_smaller_one_as_ahead() -> None:
    headers, cells = loss_table(make_rows(ce=[0.50, 0.60], mate=[0.52, 0.62]))
    assert headers == ["loss, calibrated", "exit 1", "exit 2", "mean", "ce - mean"]
    assert cells[0] == ["ce", *["0.4500 ± 0.0707"] * 3, "-"]
    assert cells[1][-1] == "+0.0200 ± 0.0000 *"


def test_the_tables_show_losses_as_well_as_gains() -> None:
    rows = make_rows(ce=[0.50, 0.60], mate=[0.52, 0.62], eed=[0.40, 0.49])
    headers, cells = result_table(rows)
    assert headers[:5] == ["method", "seeds", "exit 1", "exit 2", "mean"]
    text = as_markdown(headers, cells)
    assert "| mate | 2 | 57.00 ± 7.07 |" in text
    columns = dict(zip(headers, cells[[line[0] for line in cells].index("mate")], strict=True))
    assert columns["overthinking"] == "5.70 ± 0.71"
    assert columns["area"] == "56.00 ± 7.07"
    assert "+2.00 ± 0.00 *" in text
    assert "-10.50 ± 6.35 *" in text
    headers, cells = difference_table(rows, "mate")
    assert [line[0] for line in cells] == ["ce", "eed"]
    assert cells[1][3] == "+12.50 ± 6.35 *"
    assert relative_step(rows, "mate") == pytest.approx(1.5, abs=0.01)
    assert relative_step(rows, "eed") == 1.0


def test_the_picture_is_a_png() -> None:
    assert draw(make_rows(ce=[0.5, 0.6], mate=[0.6, 0.7]), "title")[:8] == b"\x89PNG\r\n\x1a\n"


def test_methods_and_seeds_are_read_as_written() -> None:
    one, two = parse_methods("ce, mate+alpha=2+teacher_weights=fixed")
    assert (one.method, one.options) == ("ce", {})
    assert two.label == "mate+alpha=2+teacher_weights=fixed"
    assert two.options == {"alpha": "2", "teacher_weights": "fixed"}
    assert parse_seeds("3") == (0, 1, 2)
    assert parse_seeds("4,0") == (4, 0)
    assert parse_seeds("7,") == (7,)


def test_more_seeds_than_anybody_trains_are_refused() -> None:
    with pytest.raises(UsageError, match="99999999999999999999 is more than 1000"):
        parse_seeds("99999999999999999999")


def test_a_seed_that_is_there_twice_is_named() -> None:
    with pytest.raises(UsageError, match="--seeds 3,0,0 names 0 twice"):
        parse_seeds("3,0,0")


@pytest.mark.parametrize("text", ["", "0", "-1", "a", "1,-2", "1.5"])
def test_seeds_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--seeds takes"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ce,mat", "Did you mean mate"),
        ("ce,ce", "twice"),
        ("mate+alph=2", "Did you mean alpha"),
        ("mate+alpha", "alpha=: a value is missing"),
        ("mate+alpha=-1", "expected a number >= 0.0"),
    ],
)
def test_methods_that_make_no_sense_are_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_methods(text)


def test_the_command_prints_and_keeps_the_tables_and_trains_nothing_twice(
    cli: Any, tmp_path: Path
) -> None:
    command = ["compare", "--data", "digits", "--epochs", "1", "--train-images", "64",
               "--seeds", "1"]  # fmt: skip
    done = cli(*command, "--methods", "ce", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = cli(*command, "--methods", "ce,mate", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mate, seed 0" in done.stderr
    assert "ce, seed 0" not in done.stderr
    assert "mate minus" in done.stdout
    folder = tmp_path / "comparisons" / "digits-default"
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        "ce-seed0", "mate-seed0", "comparison.png", "options.json", "results.csv", "table.md",
    }  # fmt: skip
    assert "| mate | 1 |" in (folder / "table.md").read_text()
    refused = cli(*command[:-1], "x", cwd=tmp_path)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1


def test_a_run_that_diverges_does_not_keep_the_others_from_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CrossEntropy, "forward", lambda self, logits, labels: logits.sum() / 0)
    said: list[str] = []
    contenders = parse_methods("ce,mate")
    assert run_comparison(tmp_path, contenders, (0,), QUICK, say=said.append) == (0, 1)
    assert sum("the loss is no number at step 1 of epoch 1" in line for line in said) == 1
    assert run_comparison(tmp_path, contenders, (0,), QUICK, say=said.append) == (0, 1)
    assert [line for line in said if "seed 0" in line] == [
        "ce, seed 0",
        "mate, seed 0",
        "ce, seed 0",
    ]
    assert [row["method"] for row in write_results(tmp_path)] == ["mate"]
    (_, cells), *_ = write_report(tmp_path, contenders, (0,))
    assert [line[0] for line in cells] == ["mate"]
    assert "-" in cells[0], "there is no ce to be held against"


def test_the_command_says_that_a_run_failed_and_exits_with_1(
    typed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CrossEntropy, "forward", lambda self, logits, labels: logits.sum() / 0)
    command = ["compare", "--data", "digits", "--epochs", "1", "--train-images", "64",
               "--methods", "ce,mate", "--seeds", "1"]  # fmt: skip
    done = typed(*command, cwd=tmp_path)
    assert done.returncode == 1
    assert "ce-seed0 failed: the loss is no number" in done.stderr
    assert "1 of the runs failed, see above: the tables are without them" in done.stdout
    assert "| mate | 1 |" in (tmp_path / "comparisons" / "digits-default" / "table.md").read_text()


def test_while_options_are_chosen_the_table_is_of_validation(comparison: Path) -> None:
    contenders = parse_methods("ce,mate+alpha=2")
    (_, cells), *_ = write_report(comparison, contenders, (0,), "val")
    row = next(row for row in write_results(comparison) if row["method"] == "ce")
    assert cells[0][2] == f"{100 * row['val_exit_1']:.2f}"
    assert "validation split" in (comparison / "table.md").read_text()
    with pytest.raises(UsageError, match="Did you mean val"):
        write_report(comparison, contenders, (0,), "vall")


def test_launched_together_it_says_to_start_it_once_for_each_device(
    comparison: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="once for each device"):
        run_comparison(comparison, parse_methods("ce"), (0,), QUICK)


def test_a_method_that_cannot_have_so_many_exits_is_refused_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "six_stages.py").write_text(
        "from torch import nn\n"
        "def stages(channels, size):\n"
        "    widths = [channels, 4, 4, 4, 4, 4, 4]\n"
        "    return [nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:])]\n"
    )
    monkeypatch.chdir(tmp_path)
    own = dataclasses.replace(QUICK, arch="six_stages:stages")
    said: list[str] = []
    for methods in ("ce,beed,mate", "ce,mate+beta=0.1"):
        label = methods.split(",")[1]
        with pytest.raises(UsageError, match=re.escape(f"{label}: ")):
            run_comparison(tmp_path / "out", parse_methods(methods), (0,), own, say=said.append)
    assert not list((tmp_path / "out").glob("[!.]*-seed*")), "nothing binds the next attempt"
    assert said == ["ce, seed 0"] * 2


def test_runs_that_differ_in_more_than_the_method_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_comparison(tmp_path, parse_methods("ce"), (0,), QUICK)
    monkeypatch.setattr(new, "DEFAULT_HEAD", "linear")  # as another version's may be
    with pytest.raises(UsageError, match="head is pooled there and linear here"):
        run_comparison(tmp_path, parse_methods("ce"), (0, 1), QUICK)
    assert not (tmp_path / "ce-seed1").exists(), "it was not trained"
    assert len(write_results(tmp_path)) == 1


def test_only_folders_that_a_comparison_names_so_are_its_runs(
    comparison: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copied"
    shutil.copytree(comparison, folder)
    shutil.copytree(folder / "ce-seed0", folder / "ce-seed0-old")
    shutil.copytree(folder / "ce-seed0", folder / ".ce-seed7.123.tmp")
    shutil.copytree(folder / "ce-seed0", folder / "ce-seed8")
    found = [(row["method"], row["seed"]) for row in write_results(folder)]
    assert len(found) == len(set(found))
    assert {seed for _, seed in found} <= {0, 1, 2}


def test_a_damaged_record_of_the_epochs_costs_the_times_alone(
    comparison: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copied"
    shutil.copytree(comparison, folder)
    (folder / "ce-seed0" / "metrics.csv").write_text("epoch,loss\n1,2\n")
    (folder / "ce-seed1" / "metrics.csv").write_bytes(b"\xff\xfe")
    rows = {(row["method"], row["seed"]): row for row in write_results(folder)}
    assert math.isnan(rows["ce", 0]["step_ms"])
    assert math.isnan(rows["ce", 1]["step_ms"])
    assert rows["ce", 0]["test_mean"] > 0
    write_report(folder, parse_methods("ce,mate+alpha=2"), (0, 1))


def test_a_damaged_run_is_no_failure_of_another(comparison: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copied"
    shutil.copytree(comparison, folder)
    shutil.rmtree(folder / "ce-seed0")
    (folder / "ce-seed1" / "outputs.npz").write_bytes(b"")
    said: list[str] = []
    found = run_comparison(folder, parse_methods("ce"), (0,), QUICK, say=said.append)
    assert found == (0, 0)
    assert read_run(folder / "ce-seed0").finished
    assert any("results.csv is as it was" in line and "ce-seed1" in line for line in said)


def test_the_options_of_who_begins_first_bind_and_not_of_who_only_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, train = tmp_path / "compared", compare.run_training

    def beside_another(options: Options, *given: Any) -> Any:
        """Train, while another process with other options has come in meanwhile."""
        run_comparison(folder, (), (), dataclasses.replace(QUICK, lr=0.3))
        return train(options, *given)

    monkeypatch.setattr(compare, "run_training", beside_another)
    run_comparison(folder, parse_methods("ce"), (0,), QUICK)
    monkeypatch.undo()
    assert json.loads((folder / "options.json").read_bytes())["lr"] == QUICK.lr
    run_comparison(folder, parse_methods("ce"), (0,), QUICK)
    with pytest.raises(UsageError, match=r"begun with lr 0\.02, not 0\.3"):
        run_comparison(folder, (), (), dataclasses.replace(QUICK, lr=0.3))


def test_a_name_that_is_no_utf8_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    options = dataclasses.replace(QUICK, weights="w\udcff.pth")
    with pytest.raises(UsageError, match="not UTF-8: rename it"):
        run_comparison(tmp_path, parse_methods("ce"), (0,), options)
    assert not (tmp_path / "options.json").exists()
