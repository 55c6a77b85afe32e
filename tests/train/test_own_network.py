"""The user's own network, imported by its name."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn
from warm import keep_export_tables

from mate_edge.errors import ExportError, RunError, UsageError
from mate_edge.export.check import check_models
from mate_edge.export.export import export_run
from mate_edge.export.segments import export_models
from mate_edge.files import write_json
from mate_edge.images import Preprocessing, normalize
from mate_edge.runs import read_finished_run, read_outputs, write_run
from mate_edge.train.backbones import make_parts
from mate_edge.train.ending import Ending
from mate_edge.train.evaluate import cumulative_flops
from mate_edge.train.loop import make_accelerator, train
from mate_edge.train.network import build_network, load_network
from mate_edge.train.new import new_run
from mate_edge.train.options import Options
from mate_edge.train.start import run_training


@pytest.fixture(scope="module", autouse=True)
def _quick_exports() -> None:
    keep_export_tables()


NETS = """
import torch
from torch import nn

def conv(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU())

def stages(channels, size):
    return [conv(channels, size // 4), conv(size // 4, 16)]

def without_arguments():
    return nn.Sequential(conv(1, 4), conv(4, 8))

ready = [conv(1, 4), conv(4, 8)]

class Whole(nn.Sequential):
    def __init__(self, channels, size, classes=10):
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
        super().__init__(conv(channels, 4), conv(4, 8), pool)

def five_classes():
    return Whole(1, 32, 5)

def empty(): return []
def only_classifier(): return [nn.Sequential(*Whole(1, 32))]
def nothing(): return None
def mixed(): return [conv(1, 4), "head"]
def one_module(): return nn.Conv2d(1, 4, 3)
def colour(): return [conv(3, 4), conv(4, 8)]
def flat(): return [nn.Flatten(), nn.Linear(1024, 8), nn.Linear(8, 10)]
def listing():
    class Pair(nn.Module):
        def forward(self, x): return [x, x]
    return [Pair()]
class Features(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.rand(4, 1, 1), persistent=False)
    def forward(self, x):
        return x * self.scale
def drawing(channels, size):
    return [nn.Sequential(conv(channels, 4), Features()), conv(4, 8)]
def broken(): return 1 / 0
def with_defaults(width=6, depth=1): return [conv(1, width), conv(width, 8)]
def one_needed(in_channels, image_size=8): return [conv(in_channels, 4), conv(4, image_size)]
def by_name_only(*, channels=5, size=8): return [conv(1, channels), conv(channels, size)]
def named(channels=3, size=224): return [conv(channels, channels), conv(channels, size)]
class Dynamic(nn.Module):  # kernels that are mixed: weights of five axes
    def __init__(self):
        super().__init__()
        self.kernels = nn.Parameter(torch.randn(2, 4, 1, 3, 3) / 3)
    def forward(self, x): return nn.functional.conv2d(x, self.kernels.mean(0), stride=2, padding=1)
def dynamic(): return [Dynamic(), conv(4, 8)]
def computed():
    return [nn.Sequential(nn.utils.weight_norm(nn.Conv2d(1, 4, 3))), conv(4, 8)]
def one_by_one(): yield conv(1, 4)

def scripted():
    return [conv(1, 4), torch.jit.script(conv(4, 8))]

def shared(classes=10):
    same = nn.Conv2d(4, 4, 3, 2, 1)
    return [conv(1, 4), same, nn.Sequential(nn.ReLU(), same)]

def tied():
    first, second = nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
    second.weight = first.weight
    return [nn.Sequential(conv(1, 4), first), second]

def twice():
    same = nn.Conv2d(4, 4, 3, 1, 1)
    return [conv(1, 4), nn.Sequential(same, same)]

def classifying():
    last = nn.Linear(4, 10)
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.unused = conv(1, 4), last
        def forward(self, x): return self.conv(x)
    return [Odd(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)]

def overwriting(): return [conv(1, 4), nn.Sequential(nn.ReLU(inplace=True), conv(4, 8))]
class OnlyEval(nn.Module):
    def forward(self, features):
        if self.training: raise KeyError("no mask")
        return features
def only_eval(): return [nn.Sequential(conv(1, 4), OnlyEval()), conv(4, 8)]
class OfTwo(nn.Module):
    def forward(self, features): return features[:2]
def of_two(): return [nn.Sequential(conv(1, 4), OfTwo()), conv(4, 8)]
class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Linear(3, 3)
    def forward(self, features): return features
def idle(): return [nn.Sequential(conv(1, 4), Idle()), conv(4, 8)]
def leaving():
    import sys
    sys.exit(3)
def pooled():
    pool = nn.AdaptiveAvgPool2d(8)
    return [nn.Sequential(nn.Conv2d(1, 4, 3), pool), nn.Sequential(nn.Conv2d(4, 4, 3), pool)]
class Viewing(nn.Module):
    def forward(self, x): return x.view(x.size(0), -1)
def viewing(): return [conv(1, 4), nn.Sequential(Viewing(), nn.Linear(1024, 10))]
class Squeezing(nn.Module):
    def forward(self, x): return x.squeeze()
def squeezing():
    return [conv(1, 4), nn.Sequential(nn.AdaptiveAvgPool2d(1), Squeezing(), nn.Linear(4, 10))]
of_module = [conv(1, 4), conv(4, 8)]
def from_module(): return of_module
class Choosing(nn.Module):
    def forward(self, x): return x.clamp(max=100) if x.abs().max() > 100 else x
def choosing(): return [nn.Sequential(conv(1, 4), Choosing()), conv(4, 8)]
def of_the_batch(): return [nn.Sequential(conv(1, 4), nn.BatchNorm2d(4, track_running_stats=False)),
                            conv(4, 8)]
class Doubling(nn.Module):
    def forward(self, x): return x if x.shape[0] > 1 else 2 * x
def doubling(): return [nn.Sequential(conv(1, 4), Doubling()), conv(4, 8)]
class Extra(nn.Conv2d):
    def get_extra_state(self): return {"notes": 1}
    def set_extra_state(self, state): pass
def extra(): return [nn.Sequential(Extra(1, 4, 3, 2, 1)), conv(4, 8)]
class OfAConstant(nn.Module):
    def forward(self, x): return x.reshape(int(x.shape[0]), 4, 16, 16)
def of_a_constant(): return [nn.Sequential(conv(1, 4), OfAConstant()), conv(4, 8)]
class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        found, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return found.transpose(1, 2).reshape(x.shape)
def attending(): return [conv(1, 8), Attending()]
number = 7
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write the module into the working folder; return how to name what is in it."""
    module = f"nets_{tmp_path.name}"  # a name of its own: modules stay imported
    (tmp_path / f"{module}.py").write_text(NETS)
    (tmp_path / f"{module}_bad.py").write_text("import no_such_package")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path.copy())
    return lambda name: f"{module}{name}"


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("stages", [8, 16]),
        ("without_arguments", [4, 8]),
        ("with_defaults", [6, 8]),
        ("named", [1, 32]),
        ("one_needed", [4, 32]),
        ("by_name_only", [5, 8]),
        ("ready", [4, 8]),
        ("Whole", [4, 8]),
    ],
)
def test_functions_classes_and_ready_lists_give_stages(
    name: str, widths: list[int], nets: Callable[[str], str]
) -> None:
    network = build_network(nets(f":{name}"), "sepconv", 1, 32, 10)
    assert [stage[0].out_channels for stage in network.stages] == widths  # type: ignore[index,union-attr]
    assert network(torch.randn(2, 1, 32, 32)).shape == (2, 2, 10)


def test_what_is_ready_is_copied_with_its_weights(nets: Callable[[str], str]) -> None:
    first, second = (make_parts(nets(":ready"), 1, 32, 10).stages[0] for _ in range(2))
    one, other = (stage.get_parameter("0.weight") for stage in (first, second))
    assert torch.equal(one, other)
    assert one is not other


def test_a_last_module_that_classifies_is_the_last_head(nets: Callable[[str], str]) -> None:
    parts = make_parts(nets(":Whole"), 1, 32, 10)
    assert isinstance(parts.network, nn.Sequential)
    assert len(parts.stages) == 2
    assert parts.classifier is parts.network[-1]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("x:stages", "cannot be imported .*No module named"),
        ("_bad:stages", "cannot be imported .*no_such_package"),
        (":stage", "cannot be imported .*no attribute 'stage'"),
        (":", "names no network: give package.module:name"),
        ("/../evil:stages", "names no network"),
        ("..evil:stages", "names no network"),
        (" :stages", "names no network"),
        (":stages.__globals__", "names no network"),
        (":__builtins__", "no part begins with an underscore"),
        ("._private:stages", "no part begins with an underscore"),
        (":nothing", "gives an object of type NoneType: it must be a list"),
        (":mixed", "gives a list with an object of type str"),
        (":number", "gives an object of type int"),
        (":one_by_one", "gives an object of type generator: it must be a list"),
        (":one_module", "gives an object of type Conv2d"),
        (":empty", "no stage"),
        (":only_classifier", "no stage"),
        (":colour", r"stage 1 fails on features \(2, 1, 32, 32\).*3 channels"),
        (":flat", r"stage 1 of .* makes \(2, 1024\)"),
        (":listing", "stage 1 of .* makes a list"),
        (":five_classes", "5 outputs, and there are 10 classes"),
        (":shared", r"stage 2 \(weight\) and stage 3 \(1.weight\) of .* share weights"),
        (":tied", r"stage 1 \(1.weight\) and stage 2 \(weight\) of .* share weights"),
        (":twice", r"stage 2 \(0.weight\) and stage 2 \(1.weight\)"),
        (":classifying", r"stage 1 \(unused.weight\) and stage 2 \(2.weight\)"),
        (":broken", r"broken\(\) fails \(ZeroDivisionError: division by zero in .*\.py:\d+\)"),
        (":leaving", r"leaving\(\) fails \(SystemExit: 3"),
        (":computed", r"network that cannot be copied \(RuntimeError.*use .*parametrizations"),
    ],
)
def test_a_network_that_cannot_work_is_a_clear_error(
    name: str, says: str, nets: Callable[[str], str]
) -> None:
    with pytest.raises(UsageError, match=says):
        build_network(nets(name), "sepconv", 1, 32, 10)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_stage_that_cannot_be_counted_fails_before_there_is_a_run(
    nets: Callable[[str], str],
) -> None:
    options = Options(data="digits", arch=nets(":scripted"), epochs=1)
    with pytest.raises(UsageError, match=r"FLOPs of stage 2 cannot be counted.*ScriptModules"):
        new_run(options, None)
    with pytest.raises(UsageError, match=r"FLOPs of block 2 cannot be counted.*ScriptModules"):
        new_run(dataclasses.replace(options, exits="0.5"), None)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (":overwriting", r"cannot be trained: a module overwrites .*: use inplace=False"),
        (":only_eval", "cannot be trained: 'no mask'"),
        (":of_two", "cannot be trained: Expected input batch_size"),
        (":viewing", r"cannot be trained: view size is not compatible.*Use \.reshape"),
        (":of_the_batch", "answers otherwise to an image alone than to the same one in a batch"),
        (":extra", r"stage 1 of .* keeps in 0._extra_state what is no tensor"),
        (":squeezing", r"gives logits \(10, 1\) for a single image, not \(1, 1, 10\)"),
    ],
)
def test_what_fails_only_in_training_fails_before_there_is_a_run(
    name: str, says: str, nets: Callable[[str], str]
) -> None:
    with pytest.raises(UsageError, match=says):
        new_run(Options(data="digits", arch=nets(name), epochs=1), None)
    assert not Path("runs").exists()


def test_a_weight_without_a_gradient_is_refused_only_where_processes_must_agree_on_it(
    nets: Callable[[str], str],
) -> None:
    options = Options(data="digits", arch=nets(":idle"), epochs=1)
    with pytest.raises(UsageError, match=r"nothing depends on \(stages.0.1.left.weight"):
        new_run(options, None, processes=2)
    new_run(options, None)


def test_weights_of_five_axes_train(nets: Callable[[str], str]) -> None:
    _, run = run_training(Options(data="digits", arch=nets(":dynamic"), epochs=1), None, False)
    assert run.finished


def test_a_network_that_a_function_hands_out_is_copied(nets: Callable[[str], str]) -> None:
    """Or the next training of a comparison would begin with the weights of the one before."""
    first, second = (make_parts(nets(":from_module"), 1, 32, 10).stages for _ in range(2))
    weights = [stages[0][0].weight for stages in (first, second)]  # type: ignore[index, union-attr]
    assert torch.equal(weights[0], weights[1])  # type: ignore[arg-type]
    assert weights[0] is not weights[1]


def test_attention_counts_what_its_projections_cost(nets: Callable[[str], str]) -> None:
    network = build_network(nets(":attending"), "linear", 1, 32, 10)
    preprocessing = Preprocessing(channels=1, size=32, resize=32, mean=(0,), std=(1,))
    first, last = cumulative_flops(network, preprocessing)
    head = 8 * 16**2 + 8 * 10
    assert (
        last - first == 16**2 * 8 * (3 * 8 + 8) + head
    )  # tokens times in, out and queries, keys, values


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (":choosing", r"torch cannot export the segment of logits_1, after \w+\.py:\d+: "),
        (":of_a_constant", "the segment of logits_1 takes 2 samples and no other number"),
    ],
)
def test_what_torch_cannot_export_is_one_line(
    name: str, says: str, nets: Callable[[str], str], capfd: pytest.CaptureFixture[str]
) -> None:
    network = build_network(nets(name), "linear", 1, 32, 10).eval()
    with pytest.raises(ExportError, match=says) as caught:
        export_models(network, (1, 32, 32), (18, 18), lambda line: None)
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def test_what_torch_computes_of_an_image_alone_is_compared_too(nets: Callable[[str], str]) -> None:
    network = build_network(nets(":doubling"), "linear", 1, 32, 10).eval()
    models = export_models(network, (1, 32, 32), (18, 20), lambda line: None)
    images = torch.randn(4, 1, 32, 32).numpy()
    with pytest.raises(ExportError, match="exit 1 alone"):
        check_models(models, network, images)


def write_edited(activation: str) -> None:
    """Write `edited:stages` into the working folder, to be imported anew.

    Python takes what it compiled in the same second from a file of the same length.
    """
    Path("edited.py").write_text(
        "from torch import nn\ndef stages(channels, size):\n    return [nn.Sequential(nn.Conv2d("
        f"channels, 4, 3, 2), nn.BatchNorm2d(4), nn.{activation}()), nn.Conv2d(4, 4, 3)]\n"
    )
    sys.modules.pop("edited", None)
    importlib.invalidate_caches()


def test_a_network_that_computes_something_else_than_it_did_is_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_edited("ReLU")
    options = Options(data="digits", epochs=1, train_images=256, arch="edited:stages")
    folder, run = run_training(options, tmp_path / "run", resume=False)
    write_edited("Sigmoid")
    with pytest.raises(ExportError, match="the network is not the one that was trained"):
        export_run(folder, run, "cpu", None, None, tmp_path / "b.mate", print)
    assert not (tmp_path / "b.mate").exists()


def test_what_an_own_network_draws_and_no_state_dict_keeps_is_drawn_again(
    nets: Callable[[str], str], tmp_path: Path
) -> None:
    options = Options(data="digits", arch=nets(":drawing"), epochs=1, train_images=64, seed=7)
    options = dataclasses.replace(options, batch_size=32)
    folder, run = run_training(options, tmp_path / "run", resume=False)
    torch.rand(3)  # export is another process: its generators stand elsewhere
    network = load_network(folder, run)
    outputs = read_outputs(folder, run)
    sample = outputs["val_images"]
    found = network(torch.from_numpy(normalize(sample, run.preprocessing)))
    kept = torch.from_numpy(outputs["val_logits"][outputs["val_image_indices"]])
    torch.testing.assert_close(found, kept, rtol=1e-4, atol=1e-4)


def test_a_layer_without_weights_may_stand_in_two_stages_and_counts_in_both(
    nets: Callable[[str], str],
) -> None:
    network = build_network(nets(":pooled"), "linear", 1, 32, 10)
    preprocessing = Preprocessing(channels=1, size=32, resize=32, mean=(0,), std=(1,))
    convolutions = (9 * 4 * 30**2, 9 * 16 * 6**2)
    pools, heads = (4 * 30**2, 4 * 6**2), (4 * 64 + 40, 4 * 64 + 40)
    each = [sum(parts) for parts in zip(convolutions, pools, heads, strict=True)]
    assert cumulative_flops(network, preprocessing) == (each[0], each[0] + each[1])


def test_an_own_network_goes_the_whole_way(nets: Callable[[str], str], tmp_path: Path) -> None:
    options = Options(data="digits", arch=nets(":Whole"), epochs=1, train_images=160, batch_size=16)
    folder, run, _ = new_run(options, None)
    assert run.arch == nets(":Whole")
    assert ":" not in folder.name
    run_training(options, folder, resume=True)
    said: list[Any] = []
    _, manifest = export_run(folder, read_finished_run(folder), "cpu", None, None,
                             tmp_path / "own.mate", said.append)  # fmt: skip
    assert len(manifest.exits) == 2


def test_a_runs_own_network_is_named_before_its_code_runs(
    nets: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = Options(data="digits", arch=nets(":Whole"), epochs=1, train_images=160, batch_size=16)
    folder, run, _ = new_run(options, None)
    assert "importing" not in capsys.readouterr().err
    line = f"importing {nets(':Whole')}, as {folder}/run.json says\n"
    run_training(Options(), folder, resume=True)
    assert capsys.readouterr().err.count(line) == 1
    load_network(folder, read_finished_run(folder))
    assert capsys.readouterr().err == line

    run = msgspec.structs.replace(read_finished_run(folder), arch=f"no_such_{nets(':Whole')}")
    write_run(folder, run)
    with pytest.raises(UsageError, match="cannot be imported"):
        load_network(folder, run)
    assert capsys.readouterr().err == f"importing {run.arch}, as {folder}/run.json says\n"


def test_a_network_that_comes_with_mate_edge_is_imported_without_a_word(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_network(run_folder, read_finished_run(run_folder))
    assert capsys.readouterr().err == ""


def test_the_command_finds_a_module_in_the_working_folder(
    cli: Any, nets: Callable[[str], str], tmp_path: Path
) -> None:
    done = cli("profile", "--arch", nets(":stages"), "--size", "32", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "exit 2" in done.stdout


def test_profile_takes_the_classes_that_an_own_classifier_has(
    typed: Any, nets: Callable[[str], str], tmp_path: Path
) -> None:
    command = ("profile", "--arch", nets(":five_classes"), "--size", "32", "--channels", "1")
    done = typed(*command, "--head", "linear", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, _ = json.loads(done.stdout)["exits"]
    assert first["head_flops"] == 4 * 16**2 + 4 * 5, "the mean of each channel, and five logits"
    done = typed(*command, "--classes", "6", cwd=tmp_path)
    assert done.returncode == 2
    assert "has 5 outputs, and there are 6 classes" in done.stderr


def test_a_network_that_has_changed_is_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = "from torch import nn\nWIDTH = 4\ndef stages(channels, size):\n    return {}\n"
    stages = "[nn.Conv2d(channels, WIDTH, 3), nn.Conv2d(WIDTH, 4, 3)]"
    (tmp_path / "changing.py").write_text(source.format(stages))
    options = Options(data="digits", epochs=1, train_images=256, arch="changing:stages")
    folder, _, _ = new_run(options, tmp_path / "run")
    for changed in (
        source.format(stages.replace("]", ", nn.Conv2d(4, 4, 3)]")),
        source.format(stages).replace("= 4", "= 5"),
    ):
        (tmp_path / "changing.py").write_text(changed)
        sys.modules.pop("changing")
        importlib.invalidate_caches()
        with pytest.raises(RunError, match="changing:stages is another network now"):
            run_training(Options(), folder, resume=True)
    (tmp_path / "changing.py").write_text(source.format(stages))
    sys.modules.pop("changing")
    assert run_training(Options(), folder, resume=True)[1].finished


def test_a_resume_refuses_a_network_of_the_same_weights_that_computes_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_edited("ReLU")
    options = Options(data="digits", epochs=2, train_images=256, arch="edited:stages")
    folder, run, dataset = new_run(options, None)

    class KilledError(Exception):
        pass

    def kill(*given: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Ending, "conclude", kill)
        with pytest.raises(KilledError):
            train(folder, run, dataset, make_accelerator("fp32"))
    write_edited("Sigmoid")
    with pytest.raises(RunError, match="edited:stages is another network now than"):
        run_training(Options(), folder, resume=True)
    earlier = Path(shutil.copytree(folder, "earlier")) / "state" / "epoch-1" / "position.json"
    write_json(earlier, {"epoch": 1})  # a state of a version that kept no answers
    assert run_training(Options(), Path("earlier"), resume=True)[1].finished
    write_edited("ReLU")
    assert run_training(Options(), folder, resume=True)[1].finished


def test_what_is_ready_is_the_same_in_every_process(nets: Callable[[str], str]) -> None:
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        sys.modules.pop(nets(""), None)
        parts = make_parts(nets(":ready"), 1, 32, 10)
        weight = parts.stages[0][0].weight  # type: ignore[index, union-attr]
        if seed == 1:
            first = weight
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, weight)  # type: ignore[arg-type]
