"""What the archives contain. These tests build the package into a folder of theirs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from fastctc import __version__

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "packaging"))

import build_wheel  # noqa: E402
import check_tools  # noqa: E402
import check_wheel  # noqa: E402

pytest.importorskip("scikit_build_core", reason="the build backend comes with the extra [test]")
pytest.importorskip("pybind11", reason="pybind11 comes with the extra [test]")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or not shutil.which("nm"),
        reason="reads Linux binaries with binutils",
    ),
]

BASE = __version__.partition("+")[0]


def run(*command: str, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip_wheel(source: Path, out: Path, **environment: str) -> Path:
    options = ["--no-deps", "--no-build-isolation", "-q", "-w", str(out)]
    run(sys.executable, "-m", "pip", "wheel", *options, str(source), **environment)
    (wheel,) = out.glob("*.whl")
    return wheel


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packaging")


@pytest.fixture(scope="module")
def environment(work: Path) -> dict[str, str]:
    """One build folder for all, so that the second build compiles nothing."""
    return {"SKBUILD_BUILD_DIR": str(work / "build"), "FASTCTC_CUDA": "0"}


@pytest.fixture(scope="module")
def wheel(work: Path, environment: dict[str, str]) -> Path:
    return pip_wheel(ROOT, work / "wheel", **environment)


@pytest.fixture(scope="module")
def sdist(work: Path) -> Path:
    out = work / "sdist"
    run(sys.executable, "setup.py", "sdist", "-d", str(out))
    (archive,) = out.glob("*.tar.gz")
    return archive


def test_wheel_holds_the_package_and_one_module(wheel):
    assert check_wheel.inspect(wheel).problems == []
    names = contents(wheel)
    assert sum(name.startswith("fastctc/_C.") for name in names) == 1
    for path in (ROOT / "fastctc").rglob("*.py"):
        assert path.relative_to(ROOT).as_posix() in names
    for path in (ROOT / "fastctc").rglob("*.yaml"):
        assert path.relative_to(ROOT).as_posix() in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_module_needs_no_torch_no_cuda_and_no_openmp(wheel):
    needed = " ".join(check_wheel.inspect(wheel).libraries)
    assert "libc.so" in needed
    assert not re.search(r"torch|cuda|omp|python", needed)


def test_module_exports_its_entry_alone(wheel):
    assert check_wheel.inspect(wheel).exports == ["PyInit__C"]


def test_setup_py_gives_the_same_wheel(wheel, work, environment):
    out = work / "setup"
    run(sys.executable, "setup.py", "bdist_wheel", "-d", str(out), **environment)
    (other,) = out.glob("*.whl")
    assert other.name == wheel.name
    assert contents(other) == contents(wheel)


def test_local_tag_is_read_off_the_module(wheel, work):
    out = work / "tagged"
    out.mkdir()
    tagged = build_wheel.retag(wheel, build_wheel.local_tag(wheel), out)
    assert tagged.name == wheel.name.replace(f"-{BASE}-", f"-{BASE}+cpu-")
    assert check_wheel.inspect(tagged).problems == []
    files = contents(tagged)
    assert f"\nVersion: {BASE}+cpu\n".encode() in files[f"fastctc-{BASE}+cpu.dist-info/METADATA"]
    assert f'__version__ = "{BASE}+cpu"'.encode() in files["fastctc/_version.py"]


def test_tagged_wheel_installs_and_its_record_is_right(wheel, work):
    out = work / "tagged-install"
    out.mkdir()
    tagged = build_wheel.retag(wheel, "cpu", out)
    site = work / "site"
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(site),
        str(tagged),
    )
    listing = run(sys.executable, "-m", "pip", "list", "--path", str(site))
    assert f"{BASE}+cpu" in listing
    # An editable install finds the source tree first; its finder must not answer here.
    code = (
        "import sys\n"
        "sys.meta_path = [f for f in sys.meta_path if 'ScikitBuild' not in type(f).__name__]\n"
        f"sys.path.insert(0, {str(site)!r})\n"
        "import fastctc\n"
        "print(fastctc.__version__, fastctc.build_info()['compiled'], fastctc.__file__)"
    )
    version, compiled, file = run(sys.executable, "-c", code, cwd=work).split()
    assert (version, compiled) == (f"{BASE}+cpu", "True")
    assert Path(file).is_relative_to(site)


def test_a_wheel_tagged_against_its_contents_is_found_out(wheel, work):
    out = work / "wrong"
    out.mkdir()
    wrong = build_wheel.retag(wheel, "cu130", out)
    assert any("tagged +cu130" in problem for problem in check_wheel.inspect(wrong).problems)


def test_a_stray_file_in_a_wheel_is_found_out(wheel, work):
    stray = work / wheel.name
    shutil.copy(wheel, stray)
    with zipfile.ZipFile(stray, "a") as archive:
        archive.writestr("tests/test_x.py", "")
    assert check_wheel.inspect(stray).problems == ["tests/test_x.py does not belong into a wheel"]


@pytest.mark.parametrize("target", ["avx512", "avx2", "vec128", "portable"])
def test_kernel_objects_offer_nothing_that_other_code_could_link_to(wheel, environment, target):
    """A shared inline function compiled for AVX-512 would crash older machines."""
    objects = list(Path(environment["SKBUILD_BUILD_DIR"]).rglob(f"*_{target}.cpp.o"))
    if not objects:
        pytest.skip(f"this compiler and processor build no {target} kernels")
    for path in objects:
        lines = run("nm", "--defined-only", "--extern-only", str(path)).splitlines()
        kinds = {line.split()[-1]: line.split()[-2] for line in lines}
        assert kinds, f"{path.name} offers nothing"
        assert not [name for name, kind in kinds.items() if kind in "WwVvu"]
        assert all(target in name for name in kinds), kinds


def test_sdist_keeps_the_base_version_and_builds(sdist, work, environment):
    assert sdist.name == f"fastctc-{BASE}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(work / "unpacked", filter="data")
    for name in ("CMakeLists.txt", "LICENSE", "README.md", "setup.py", "Makefile", "PKG-INFO"):
        assert name in names
    assert not [n for n in names if n.startswith(("build/", "dist/", ".venv", "runs/"))]
    built = pip_wheel(
        work / "unpacked" / f"fastctc-{BASE}",
        work / "from-sdist",
        SKBUILD_BUILD_DIR=str(work / "build-sdist"),
        FASTCTC_BUILD="none",
    )
    assert built.name.startswith(f"fastctc-{BASE}-")


def test_sdist_holds_every_native_source(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("csrc", "cmake", "fastctc", "packaging"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so":
                assert path.relative_to(ROOT).as_posix() in names


def test_pure_wheel_needs_no_compiler(work):
    nothing = {"CXX": "/nowhere/c++", "CC": "/nowhere/cc"}
    pure = pip_wheel(ROOT, work / "pure", FASTCTC_BUILD="none", **nothing)
    assert pure.name == f"fastctc-{BASE}-py3-none-any.whl"
    report = check_wheel.inspect(pure)
    assert report.problems == []
    assert report.modules == []
    assert build_wheel.local_tag(pure) == ""


def test_unknown_cuda_choice_is_refused(work):
    done = configure(work / "refused", "-DFASTCTC_CUDA=perhaps")
    assert done.returncode != 0
    assert "it takes auto, 0, 1 or emulate" in " ".join(done.stderr.split())


def test_cuda_without_nvcc_is_an_error_that_says_so(work):
    done = configure(work / "no-nvcc", "-DFASTCTC_CUDA=1", CUDACXX="/nowhere/nvcc")
    assert done.returncode != 0
    assert "FASTCTC_CUDA=1, but" in done.stderr
    assert "FASTCTC_CUDA=0" in done.stderr


def test_auto_without_nvcc_goes_on_without_cuda(work):
    done = configure(work / "auto", "-DFASTCTC_CUDA=auto", CUDACXX="/nowhere/nvcc")
    assert done.returncode == 0, done.stderr
    assert "fastctc: CUDA off" in done.stdout


def configure(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import pybind11

    command = ["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *options]
    command += [
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": tools, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_check_tools_is_silent_where_all_is_there():
    assert check_tools.missing_tools() == []


def test_check_tools_names_the_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    (sentence,) = check_tools.missing_tools()
    assert "No C++ compiler" in sentence
    assert "apt-get install g++" in sentence


def test_check_tools_names_the_headers(monkeypatch, tmp_path):
    monkeypatch.setattr(check_tools.sysconfig, "get_path", lambda _: str(tmp_path))
    (sentence,) = check_tools.missing_tools()
    assert "C headers" in sentence


def test_constraints_hold_torch_and_pin_everything():
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert "torch==2.13.0" in pins
    assert all(re.match(r"^[\w.-]+==[\w.]+( ;.*)?$", pin) for pin in pins)
