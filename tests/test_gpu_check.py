"""What needs a GPU is one command; without one it says so. And the compile gates of the kernels."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench_beam_search_cuda as bench_beam
from benchmarks import bench_ctc_loss_cuda as bench
from benchmarks.shapes import WORKLOADS

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "packaging"))

import cuda_resources  # noqa: E402
import gpu_check  # noqa: E402


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_ends_with_a_sentence(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, ROOT / "packaging" / "gpu_check.py", "--out", out],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("gpu-check needs a CUDA device: ")
    assert done.stderr.endswith("Nothing was checked.\n")
    assert len(done.stderr.splitlines()) == 1
    assert not out.exists()


def stage(name: str, code: str, seconds: int = 60, **options: Any) -> gpu_check.Stage:
    return gpu_check.Stage(name, [sys.executable, "-c", code], seconds, **options)


def test_stages_fail_on_their_own() -> None:
    printed: list[str] = []
    planned = [
        stage("build", "print('built')", needs_build=False),
        stage("broken", "print('why'); raise SystemExit(3)"),
        gpu_check.Stage("absent", ["/no/such/program"], 60),
        gpu_check.Stage("endless", ["sh", "-c", "echo begun; exec sleep 60"], 2),
    ]
    results = gpu_check.run_all(planned, printed.append, 60)
    assert [r["status"] for r in results] == ["passed", "FAILED", "FAILED", "OUT OF TIME"]
    assert [r["last_lines"] for r in results[:2]] == [["built"], ["why"]]
    assert "No such file" in results[2]["last_lines"][0]
    assert results[3]["last_lines"] == ["begun"]
    assert results[3]["seconds"] < 30
    assert "why" in "".join(printed)


def test_nothing_runs_without_its_build_or_time() -> None:
    unbuilt = [stage("build", "raise SystemExit(1)", needs_build=False), stage("tests", "")]
    statuses = [r["status"] for r in gpu_check.run_all(unbuilt, lambda text: None, 60)]
    assert statuses == ["FAILED", "NOT RUN"]
    late = [stage("build", "", needs_build=False)]
    assert gpu_check.run_all(late, lambda text: None, 0)[0]["status"] == "NO TIME"


def test_stages_name_what_exists(tmp_path: Path) -> None:
    planned = gpu_check.stages(tmp_path, "90", quick=True)
    names = [each.name for each in planned]
    assert len(names) == len(set(names))
    kept = sum(each.least for each in planned)
    assert kept <= gpu_check._SECONDS
    build = next(each for each in planned if each.name == "build")
    assert build.seconds <= gpu_check._SECONDS - kept + build.least
    for each in planned:
        for part in map(str, each.command):
            if part.startswith("tests"):
                assert (ROOT / part).exists(), part


def test_slow_stages_leave_time_for_the_others() -> None:
    endless = "import time; time.sleep(60)"
    planned = [
        stage("slow", endless, least=0, needs_build=False),
        stage("slow too", endless, least=6, needs_build=False),
        stage("last", "", least=20, needs_build=False),
    ]
    results = gpu_check.run_all(planned, lambda text: None, 26.5)
    assert [r["status"] for r in results] == ["NO TIME", "OUT OF TIME", "passed"]
    assert results[1]["seconds"] < 20


@pytest.mark.parametrize("version", [None, "2.13.6", "3.0.1"])
def test_pybind11_comes_from_its_package_or_from_torch(
    monkeypatch: pytest.MonkeyPatch, version: str | None
) -> None:
    pybind11 = pytest.importorskip("pybind11")
    find_spec = importlib.util.find_spec

    def hiding(name: str, *rest: Any) -> Any:
        return None if name == "pybind11" and version is None else find_spec(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", hiding)
    if version is not None:
        monkeypatch.setattr(pybind11, "__version__", version)
    option = gpu_check.pybind11_option()
    name, _, folder = option.partition("=")
    assert name == ("-Dpybind11_DIR" if version == "3.0.1" else "-DFASTCTC_PYBIND11_INCLUDE")
    if version != "3.0.1":
        assert (Path(folder) / "pybind11" / "pybind11.h").exists()


def row(**values: Any) -> dict[str, Any]:
    shared = {
        "workload": "C",
        "dtype": "float32",
        "S": 200,
        "peer": "torch",
        "ours_step_s": 1e-4,
        "peer_step_s": 1e-3,
        "ours_graph_s": 1e-4,
        "byte_floor_s": 9e-5,
        "frame_floor_s": 1e-6,
        "share_of_floor": 0.91,
        "lattice_us_per_frame": 0.0571,
        "ratio": 10.0,
        "cold_ratio": 11.0,
        "memory_ratio": 0.2,
    }
    return shared | values


def test_benchmark_judges_its_rows() -> None:
    assert bench.missed(row()) == []
    assert bench.missed(row(ratio=5.0)) == ["5.0x < 6x"]
    assert bench.missed(row(ratio=9.0, dtype="bfloat16")) == ["9.0x < 10x"]
    assert bench.missed(row(ratio=9.0, workload="A")) == ["9.0x < 10x"]
    assert bench.missed(row(ratio=4.0, peer="cudnn", memory_ratio=0.9)) == []
    assert bench.missed(row(memory_ratio=0.5)) == ["memory 0.50 > 0.33"]
    assert bench.missed(row(ours_graph_s=2e-4)) == ["2.22 byte floors > 1.5"]
    assert bench.missed(row(lattice_us_per_frame=0.11)) == ["0.110 us per frame > 0.1"]
    assert bench.missed(row(lattice_us_per_frame=0.11, S=400)) == []
    assert bench.missed(row(lattice_us_per_frame=None)) == []
    byte_floor, frame_floor = bench.floors(WORKLOADS["F"], 2, 4e12)
    assert byte_floor == pytest.approx(3 * 183 * 90 * 10241 * 2 / 4e12)
    assert frame_floor == pytest.approx(183 * bench.STEP_SECONDS)


def test_benchmark_shows_its_rows() -> None:
    report = {
        "copy_bytes_per_s": 4.3e12,
        "quick": False,
        "rows": [row(), row(peer="cudnn", ratio=2.0)],
        "latency": [
            {"T": 4000, "S": 40, "graph_us_per_frame": 0.1, "lattice_us_per_frame": None},
            {"T": 4000, "S": 200, "graph_us_per_frame": 0.1, "lattice_us_per_frame": 0.0571},
        ],
    }
    text = bench.render(report)
    assert "4.30 TB/s" in text
    figures = "100 | 1000 | 10.0 | 11.0 | 100 | 91 | 91% | 0.057 | 0.20"
    assert f"| C | float32 | torch | {figures} | - |" in text
    assert "| 2.0x < 3x |" in text
    assert "2.0x < 3x" not in bench.render(report | {"quick": True})
    assert "| T=4000 S=40 | - | 0.100 |" in text
    assert "| T=4000 S=200 | 0.057 | 0.100 |" in text


def test_benchmark_of_the_beam_search_has_rows_that_decode() -> None:
    for each in bench_beam.QUICK_ROWS:
        emissions, decoder = bench_beam.emissions_of(each), bench_beam.decoder_of(each)
        found = decoder(emissions)
        assert len(found) == each.batch
        assert all(len(hypotheses) == each.nbest for hypotheses in found)
        assert bool(found[0][0].timesteps) == each.times
    measured = {
        "name": "batch",
        "ours_step_s": 1e-3,
        "ours_graph_s": 9e-4,
        "graph_us_per_frame": 0.9,
        "share_of_floor": 0.125,
        "cpu_ratio": 25.0,
        "ratio": None,
        "peer_missing": "torchaudio is not installed",
    }
    told = "batch: 1000, 900, 0.900, 12.5%, 25.0, torchaudio is not installed"
    assert bench_beam.told(measured) == told
    assert bench_beam.told(measured | {"ratio": 11.0}).endswith(", 11.0")


PTXAS = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN7fastctc4addsIfLi2EEEvPT_i' for 'sm_90'
ptxas info    : Function properties for _ZN7fastctc4addsIfLi2EEEvPT_i
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem, 8 bytes cmem[2]
ptxas info    : Compile time = 4.093 ms
ptxas info    : Compiling entry function '_ZN7fastctc5spillEPf' for 'sm_90'
ptxas info    : Function properties for _ZN7fastctc5spillEPf
    48 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers
"""


def test_resources_are_read_off_the_assembler() -> None:
    adds, spill = cuda_resources.parse("x.cu", PTXAS)
    assert (adds.arch, adds.registers, adds.shared, adds.local) == ("90", 40, 1024, 0)
    assert (spill.registers, spill.shared, spill.local) == (255, 0, 48)
    (problem,) = cuda_resources.local_memory([adds, spill])
    assert problem.endswith("spillEPf keeps 48 bytes in local memory on sm_90")


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        ("fastctc::rows(float const*, int)", "rows"),
        ("void fastctc::(anonymous namespace)::rows<float, 2>(float*)", "rows<float, 2>"),
        ("void a::k<__nv_bfloat16, (int)4, (bool)1, b::T<int> >(b::P<int>)",
         "k<__nv_bfloat16, 4, 1, T<int> >"),
    ],
)  # fmt: skip
def test_kernels_have_readable_names(signature: str, name: str) -> None:
    assert cuda_resources._shortened(signature) == name


def test_a_changed_figure_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usage = cuda_resources.Usage("x.cu", "k<float>", "90", 40, 1024, 0)
    more = cuda_resources.Usage("x.cu", "k<float>", "90", 41, 1024, 0)
    table = tmp_path / "table.md"
    found = cuda_resources.render([usage], "13.0.88")
    assert "| `k<float>` | 1024 | 40 |" in found
    assert cuda_resources.compare(found, table, "13.0.88")
    table.write_text(found)
    assert cuda_resources.compare(found, table, "13.0.88") == []
    changed = cuda_resources.compare(cuda_resources.render([more], "13.0.88"), table, "13.0.88")
    assert "-| `k<float>` | 1024 | 40 |" in changed
    assert "+| `k<float>` | 1024 | 41 |" in changed
    other = cuda_resources.render([more], "13.1.5")
    assert cuda_resources.compare(other, table, "13.1.5") == []
    assert "another nvcc" in capsys.readouterr().out


def test_a_part_of_the_table_can_be_renewed() -> None:
    usages = [cuda_resources.Usage(f"{x}.cu", "k", "90", 40, 0, 0) for x in "ac"]
    more = [cuda_resources.Usage(f"{x}.cu", "k", "90", 41, 0, 0) for x in "bc"]
    table = cuda_resources.render(usages, "13.0.88")
    result = cuda_resources.merged(table, cuda_resources.render(more, "13.0.88"))
    assert result == cuda_resources.render([usages[0], *more], "13.0.88")


SPILLING = """
__global__ void fine(float* x) { x[threadIdx.x] *= 2; }
__global__ void indexed(float* x, int n) {
  float a[64];
  for (int i = 0; i < 64; ++i) a[(i * n) & 63] = x[i];
  x[n] = a[n & 63];
}
"""


@pytest.mark.skipif(cuda_resources.find_nvcc() is None, reason="needs nvcc")
@pytest.mark.skipif(not shutil.which("c++filt"), reason="needs binutils")
def test_local_memory_fails_the_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "kernels.cu"
    source.write_text(SPILLING)
    assert cuda_resources.main([str(source), "--archs", "90"]) == 1
    told = capsys.readouterr().err
    assert "kernels.cu: indexed keeps 256 bytes in local memory on sm_90" in told
    assert "fine" not in told
    source.write_text(SPILLING.partition("__global__ void indexed")[0])
    assert cuda_resources.main([str(source), "--archs", "90"]) == 0
