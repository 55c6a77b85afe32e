"""`mate-edge doctor` on machines of several kinds, as their files and commands show them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mate_edge.machine import has_nvidia_gpu
from mate_edge.runtime.doctor import doctor as doctor_module
from mate_edge.runtime.doctor.doctor import PROBES, doctor, examine
from mate_edge.runtime.doctor.machine import Finding, Machine, Ran, run_command

SMI = "| NVIDIA-SMI {driver}   Driver Version: {driver}   CUDA Version: {cuda} |"
NVPMODEL = "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=30W >\n"


@dataclass
class Kind:
    """A machine to be faked: its files, what commands print, and what is installed.

    A command is known by a part of it; one that is not listed does not exist.
    """

    files: dict[str, str] = field(default_factory=dict)
    prints: dict[str, str] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    architecture: str = "x86_64"
    python_version: tuple[int, int] = (3, 10)
    venv: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)

    def machine(self, root: Path) -> Machine:
        for name, text in self.files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return Machine(
            root=root,
            run=self.run,
            version={**self.packages, "onnxruntime": "1.23.2", "numpy": "2.2.6"}.get,
            free_bytes=lambda path: 50 * 2**30,
            architecture=self.architecture,
            python="/venv/bin/python" if self.venv else "/usr/bin/python3",
            python_version=self.python_version,
            prefix="/venv" if self.venv else "/usr",
            base_prefix="/usr",
            environment=self.environment,
        )

    def run(self, command: Sequence[str]) -> Ran:
        line = " ".join(command)
        if " -c " not in line:
            part = next((part for part in self.prints if part in line), None)
            return Ran(127) if part is None else Ran(self.codes.get(part, 0), self.prints[part])
        if "onnxruntime" in line:
            return Ran(0, "1.23.2 CPUExecutionProvider\n")
        module = line.split("import ")[2].split(" as ")[0].split(",")[0].split(".")[0].split(";")[0]
        if module in self.modules:
            return Ran(0, self.modules[module] + "\n")
        return Ran(1, error=f"Traceback\nModuleNotFoundError: No module named '{module}'\n")


def jetson(model: str, soc: str, release: str, **changes: object) -> Kind:
    """A Jetson with JetPack installed, a fitting environment and nothing else amiss."""
    kind = Kind(
        architecture="aarch64",
        venv="--system-site-packages",
        files={
            "proc/device-tree/model": f"NVIDIA Jetson {model}\0",
            "proc/device-tree/compatible": f"nvidia,p3737-0000+p3701-0000\0nvidia,{soc}\0",
            "etc/nv_tegra_release": f"# {release}, GCID: 37537400, BOARD: generic, EABI: aarch64",
            "etc/nvpmodel.conf": NVPMODEL,
            "proc/meminfo": "MemTotal: 31336000 kB\nMemAvailable: 27000000 kB\n",
            "dev/nvhost-gpu": "",
            "venv/pyvenv.cfg": "home = /usr/bin\ninclude-system-site-packages = true\n",
            "usr/lib/python3.10/dist-packages/tensorrt/__init__.py": "",
            "sys/class/devfreq/17000000.gpu/min_freq": "1300500000\n",
            "sys/class/devfreq/17000000.gpu/max_freq": "1300500000\n",
        },
        prints={"nvpmodel -q": "NV Power Mode: MAXN\n0\n"},
    )
    for name, value in changes.items():
        setattr(kind, name, value)
    return kind


def orin_6_1() -> Kind:
    return jetson(
        "AGX Orin Developer Kit",
        "tegra234",
        "R36 (release), REVISION: 4.0",
        modules={"tensorrt": "10.3.0", "cuda": "0"},
        packages={"cuda-bindings": "12.9.11", "polygraphy": "0.53.6", "onnx": "1.19.1"},
    )


def thor() -> Kind:
    kind = jetson(
        "AGX Thor Developer Kit",
        "tegra264",
        "R38 (release), REVISION: 2.0",
        python_version=(3, 12),
        modules={"tensorrt": "10.13.3.9", "cuda": "0"},
        packages={"cuda-bindings": "13.0.1", "polygraphy": "0.53.6", "onnx": "1.19.1"},
    )
    kind.prints["nvidia-smi"] = SMI.format(driver="580.00", cuda="13.0")
    kind.files["dev/nvidia0"] = kind.files.pop("dev/nvhost-gpu")
    return kind


def desktop(driver: str = "560.35.03", cuda: str = "12.6") -> Kind:
    return Kind(
        files={"dev/nvidia0": "", "proc/cpuinfo": "model name\t: AMD Ryzen 9\n"},
        prints={
            "--query-gpu=name": f"NVIDIA GeForce RTX 3060, 8.6, {driver}\n",
            "--query-gpu=clocks": "210, 2130\n",
            "nvidia-smi": SMI.format(driver=driver, cuda=cuda),
        },
        packages={"polygraphy": "0.53.6", "onnx": "1.19.1"},
    )


def found_on(kind: Kind, root: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(kind.machine(root))}


def lacking(findings: dict[str, Finding]) -> set[str]:
    return {name for name, finding in findings.items() if finding.needed and finding.fix}


def test_an_orin_with_jetpack_6_1_and_all_installed_lacks_nothing(tmp_path: Path) -> None:
    found = found_on(orin_6_1(), tmp_path)
    assert not lacking(found)
    texts = {name: finding.found for name, finding in found.items()}
    assert texts["machine"] == "NVIDIA Jetson AGX Orin Developer Kit"
    assert texts["GPU"] == "Orin, integrated"
    assert texts["compute capability"] == "8.7"
    assert texts["JetPack"] == "6.1 (Jetson Linux 36.4.0)"
    assert texts["CUDA"] == "12.6 by the driver"
    assert texts["TensorRT"] == "10.3.0"
    assert texts["power mode"] == "MAXN"
    assert texts["clock lock"] == "on, 1300 MHz"
    assert doctor(json=False, machine=orin_6_1().machine(tmp_path)) == 0


def test_a_fresh_orin_is_told_each_command_with_jetpack_6_s_pins(tmp_path: Path) -> None:
    kind = orin_6_1()
    kind.modules, kind.packages = {}, {}
    del kind.files["usr/lib/python3.10/dist-packages/tensorrt/__init__.py"]
    found = found_on(kind, tmp_path)
    assert lacking(found) == {"TensorRT", "cuda-bindings", "polygraphy"}
    assert found["TensorRT"].fix == "sudo apt install python3-libnvinfer"
    pinned = "/venv/bin/python -m pip install 'cuda-bindings>=12.6,<13'"
    assert found["cuda-bindings"].fix == pinned
    assert found["onnx"].fix is not None
    assert "build --frame" in found["onnx"].fix
    assert doctor(json=False, machine=kind.machine(tmp_path)) == 1


def test_an_environment_that_hides_jetpack_s_tensorrt_is_named(tmp_path: Path) -> None:
    kind = orin_6_1()
    del kind.modules["tensorrt"]
    kind.files["venv/pyvenv.cfg"] = "include-system-site-packages = false\n"
    fix = found_on(kind, tmp_path)["TensorRT"].fix
    assert fix is not None
    assert "`python3 -m venv --system-site-packages ~/me`" in fix
    assert "/venv/pyvenv.cfg" in fix


def test_another_python_than_jetpack_s_is_told_which_one_to_use(tmp_path: Path) -> None:
    kind = orin_6_1()
    del kind.modules["tensorrt"]
    kind.python_version = (3, 12)
    fix = found_on(kind, tmp_path)["TensorRT"].fix
    assert fix is not None
    assert "/usr/lib/python3.10/dist-packages/tensorrt is for the system's python3" in fix


def test_cuda_bindings_of_a_later_cuda_than_the_driver_s_are_not_taken(tmp_path: Path) -> None:
    kind = orin_6_1()
    kind.packages["cuda-bindings"] = "13.5.0"
    finding = found_on(kind, tmp_path)["cuda-bindings"]
    assert finding.found == "13.5.0, but the driver serves CUDA 12.6"
    assert finding.fix is not None
    assert "<13" in finding.fix
    assert finding.needed
    kind.modules["pycuda"] = "2024.1.2"
    assert not found_on(kind, tmp_path)["cuda-bindings"].needed


@pytest.mark.parametrize(
    ("release", "words"),
    [
        ("R35 (release), REVISION: 4.1", "flash it with SDK Manager"),
        ("R36 (release), REVISION: 3.0", "sudo apt dist-upgrade"),
    ],
)
def test_a_jetpack_below_6_1_is_told_how_to_upgrade(
    release: str, words: str, tmp_path: Path
) -> None:
    kind = jetson("AGX Orin", "tegra234", release, modules={"tensorrt": "8.5.2.2"})
    found = found_on(kind, tmp_path)
    assert {"JetPack", "TensorRT"} <= lacking(found)
    assert found["JetPack"].fix is not None
    assert words in found["JetPack"].fix
    assert found["TensorRT"].fix is not None
    assert "10.3 is the oldest" in found["TensorRT"].fix


def test_a_xavier_is_sent_to_the_cpu_engine(tmp_path: Path) -> None:
    kind = jetson("AGX Xavier", "tegra194", "R35 (release), REVISION: 4.1")
    found = found_on(kind, tmp_path)
    assert not lacking(found)
    assert found["compute capability"].fix is not None
    assert "--engine onnxruntime" in found["compute capability"].fix


def test_a_thor_with_jetpack_7_gets_cuda_13(tmp_path: Path) -> None:
    found = found_on(thor(), tmp_path)
    assert not lacking(found)
    assert found["JetPack"].found == "7.0 (Jetson Linux 38.2.0)"
    assert found["compute capability"].found == "11.0"
    bare = thor()
    bare.modules = {"tensorrt": "10.13.3.9"}
    fix = found_on(bare, tmp_path)["cuda-bindings"].fix
    assert fix == "/venv/bin/python -m pip install 'cuda-bindings>=13,<14'"


def test_jetpack_s_own_package_tells_its_version(tmp_path: Path) -> None:
    kind = orin_6_1()
    kind.files["etc/nv_tegra_release"] = "# R36 (release), REVISION: 4.7, GCID: 1"
    assert found_on(kind, tmp_path)["JetPack"].found == "6 (Jetson Linux 36.4.7)"
    kind.prints["nvidia-jetpack"] = "6.2.1+b38"
    assert found_on(kind, tmp_path)["JetPack"].found == "6.2.1 (Jetson Linux 36.4.7)"


def test_a_container_on_a_jetson_without_the_gpu_is_told_so(tmp_path: Path) -> None:
    kind = orin_6_1()
    del kind.files["dev/nvhost-gpu"], kind.files["etc/nv_tegra_release"]
    kind.prints["nvidia-l4t-core"] = "36.4.3-20250107174145"
    found = found_on(kind, tmp_path)
    assert lacking(found) == {"GPU"}
    assert found["GPU"].fix is not None
    assert "--runtime nvidia" in found["GPU"].fix
    assert found["JetPack"].found == "6.2 (Jetson Linux 36.4.3)"


def test_a_jetson_is_known_in_a_container_that_sees_no_device_tree(tmp_path: Path) -> None:
    kind = orin_6_1()
    for name in ("proc/device-tree/model", "proc/device-tree/compatible", "etc/nv_tegra_release"):
        del kind.files[name]
    kind.files["proc/sys/kernel/osrelease"] = "5.15.148-tegra\n"
    found = found_on(kind, tmp_path / "by its kernel")
    assert found["machine"].found == "a Jetson of an unknown model"
    assert found["power mode"].found == "MAXN"
    del kind.files["proc/sys/kernel/osrelease"]
    for end in ("min", "max"):
        kind.files[f"sys/class/devfreq/17000000.ga10b/{end}_freq"] = "1300500000\n"
    found = found_on(kind, tmp_path / "by its clock")
    assert (found["GPU"].found, found["compute capability"].found) == ("Orin, integrated", "8.7")


def test_a_user_who_may_not_open_the_gpu_is_told_which_groups_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = orin_6_1()
    kind.files["dev/nvmap"] = ""
    monkeypatch.setattr(os, "access", lambda path, mode: "nvmap" not in str(path))
    found = found_on(kind, tmp_path)["GPU"]
    assert found.found == "Orin, integrated, but this user may not open /dev/nvmap"
    assert "usermod -aG video,render" in str(found.fix)


def test_the_power_mode_counts_though_nvpmodel_complains_of_rights(tmp_path: Path) -> None:
    kind = orin_6_1()
    kind.codes["nvpmodel -q"] = 13
    assert found_on(kind, tmp_path)["power mode"].found == "MAXN"


def test_an_arm_cpu_is_named_by_lscpu(tmp_path: Path) -> None:
    kind = orin_6_1()
    kind.files["proc/cpuinfo"] = "model name\t: ARMv8 Processor rev 1 (v8l)\n"
    kind.prints["lscpu"] = "Architecture: aarch64\nModel name: Cortex-A78AE\n"
    assert str(found_on(kind, tmp_path)["CPU"].found).startswith("Cortex-A78AE")


def test_slow_power_modes_and_free_clocks_are_advice_not_a_lack(tmp_path: Path) -> None:
    kind = orin_6_1()
    kind.prints["nvpmodel -q"] = "NV Power Mode: 30W\n2\n"
    kind.files["sys/class/devfreq/17000000.gpu/min_freq"] = "306000000\n"
    found = found_on(kind, tmp_path)
    assert not lacking(found)
    assert found["power mode"].fix is not None
    assert "sudo nvpmodel -m 0" in found["power mode"].fix
    assert found["clock lock"].found == "off, 306 to 1300 MHz"
    assert found["clock lock"].fix is not None
    assert "sudo jetson_clocks" in found["clock lock"].fix


@pytest.mark.parametrize(
    ("cuda", "package", "bindings"),
    [("12.6", "tensorrt-cu12", "<13"), ("13.0", "tensorrt-cu13", ">=13,<14")],
)
def test_a_desktop_without_tensorrt_gets_the_one_of_its_driver_s_cuda(
    cuda: str, package: str, bindings: str, tmp_path: Path
) -> None:
    found = found_on(desktop(cuda=cuda), tmp_path)
    assert lacking(found) == {"TensorRT", "cuda-bindings"}
    assert found["TensorRT"].fix is not None
    assert f"pip install --upgrade '{package}>=10.3'" in found["TensorRT"].fix
    assert found["cuda-bindings"].fix is not None
    assert bindings in found["cuda-bindings"].fix
    assert found["GPU"].found == "NVIDIA GeForce RTX 3060"
    assert found["CPU"].found is not None
    assert found["CPU"].found.startswith("AMD Ryzen 9")
    assert "JetPack" not in found
    assert "power mode" not in found


def test_tensorrt_for_rtx_serves_a_desktop_in_its_place(tmp_path: Path) -> None:
    kind = desktop()
    kind.modules["tensorrt_rtx"] = "1.7.1.116"
    assert lacking(found_on(kind, tmp_path)) == {"cuda-bindings"}


def test_an_old_driver_is_named(tmp_path: Path) -> None:
    found = found_on(desktop("470.256.02", "11.4"), tmp_path)
    assert found["driver"].fix is not None
    assert "525 or later" in found["driver"].fix


def test_a_gpu_older_than_turing_is_sent_to_the_cpu_engine(tmp_path: Path) -> None:
    kind = desktop()
    kind.prints["--query-gpu=name"] = "NVIDIA GeForce GTX 1080, 6.1, 560.35.03\n"
    found = found_on(kind, tmp_path)
    assert not lacking(found)
    assert found["compute capability"].fix is not None
    assert "TensorRT needs 7.5" in found["compute capability"].fix


def test_a_card_without_a_driver_is_found_on_the_bus(tmp_path: Path) -> None:
    device = "sys/bus/pci/devices/0000:01:00.0"
    kind = Kind(files={f"{device}/vendor": "0x10de\n", f"{device}/class": "0x030000\n"})
    found = found_on(kind, tmp_path)
    assert lacking(found) == {"GPU"}
    assert found["GPU"].fix is not None
    assert "ubuntu-drivers" in found["GPU"].fix


def test_a_machine_without_a_gpu_lacks_nothing(tmp_path: Path) -> None:
    found = found_on(Kind(), tmp_path)
    assert not lacking(found)
    assert found["TensorRT"].found == "not needed without an NVIDIA GPU"
    assert not {"driver", "CUDA", "JetPack", "clock lock"} & set(found)


def test_a_library_that_does_not_load_says_why(tmp_path: Path) -> None:
    kind = desktop()
    error = "ImportError: libcudart.so.12: cannot open shared object file"

    def run(command: Sequence[str]) -> Ran:
        broken = any("import tensorrt as" in part for part in command)
        return Ran(1, error=f"Traceback\n{error}") if broken else kind.run(command)

    machine = kind.machine(tmp_path)
    machine.run = run
    (finding,) = (found for found in examine(machine) if found.name == "TensorRT")
    assert finding.found == f"does not load: {error}"


def test_a_probe_that_breaks_says_so_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(machine: Machine) -> Finding:
        raise RuntimeError("no such thing")

    monkeypatch.setitem(doctor_module.PROBES, "memory", breaks)
    found = found_on(desktop(), tmp_path)
    assert found["memory"].found == "this probe failed: RuntimeError: no such thing"
    assert "TensorRT" in found
    assert "memory" not in lacking(found)


def test_every_probe_bears_its_name(tmp_path: Path) -> None:
    assert list(found_on(orin_6_1(), tmp_path)) == list(PROBES)


def test_a_command_that_hangs_or_is_missing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mate_edge.runtime.doctor.machine.TIMEOUT_S", 0.2)
    assert run_command(["sleep", "30"]).code == 124
    assert run_command(["no-such-command-anywhere"]).code == 127


def test_a_gpu_counts_only_when_cuda_may_use_it(tmp_path: Path) -> None:
    assert not has_nvidia_gpu(tmp_path, {})
    for node in ("dev/nvidia0", "dev/nvhost-gpu", "dev/nvgpu/igpu0/ctrl"):
        root = tmp_path / node.replace("/", "-")
        (root / node).parent.mkdir(parents=True)
        (root / "dev/nvidiactl").touch()
        assert not has_nvidia_gpu(root, {})
        (root / node).touch()
        assert has_nvidia_gpu(root, {})
        assert has_nvidia_gpu(root, {"CUDA_VISIBLE_DEVICES": "0,1"})
        assert not has_nvidia_gpu(root, {"CUDA_VISIBLE_DEVICES": ""})
        assert not has_nvidia_gpu(root, {"CUDA_VISIBLE_DEVICES": "-1"})


def test_this_machine_is_examined_for_real(
    cli: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    shown, lines = cli("doctor"), cli("doctor", "--json")
    assert shown.returncode == lines.returncode
    found = [json.loads(line) for line in lines.stdout.splitlines()]
    assert {"machine", "GPU", "TensorRT", "onnxruntime"} <= {finding["name"] for finding in found}
    lacks = any(finding["needed"] and finding["fix"] for finding in found)
    assert shown.returncode == int(lacks)
    for finding in found:
        assert f" {finding['name']} " in shown.stdout
        assert "this probe failed" not in (finding["found"] or "")


def test_the_doctor_loads_no_library_that_it_asks_about() -> None:
    program = (
        "import sys\nfrom mate_edge.runtime.doctor.doctor import doctor\ndoctor(True)\n"
        "print(sorted({'torch', 'tensorrt', 'cuda', 'onnx', 'onnxruntime'} & set(sys.modules)),"
        " file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.strip() == "[]", done.stderr


def test_the_guide_shows_the_doctor_s_lines(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "jetson.md").read_text(encoding="utf-8")
    (block,) = (part for part in guide.split("```") if part.startswith("\n  machine "))
    shown = [line[2:22].strip() for line in block.splitlines() if line[2:22].strip()]
    assert shown == [*PROBES, "l that this machine"]
    kind = orin_6_1()
    kind.prints["nvpmodel -q"] = "NV Power Mode: MODE_30W\n2\n"
    kind.files["sys/class/devfreq/17000000.gpu/min_freq"] = "306000000\n"
    found = found_on(kind, tmp_path)
    for name in ("GPU", "compute capability", "JetPack", "TensorRT", "cuda-bindings", "PyCUDA"):
        assert found[name].found is not None
        assert f"{name:<20} {found[name].found}\n" in block
    for name in ("power mode", "clock lock"):
        assert f"-> {found[name].fix}\n" in block
