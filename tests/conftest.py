"""Fixtures that the tests share."""

from __future__ import annotations

from collections.abc import Iterator

import cuda_backends
import pytest
import torch
from hypothesis import HealthCheck, settings

from fastctc._backends import BACKENDS
from fastctc._native import _C

# The same examples in every run, and no example fails for being slow on a busy machine.
settings.register_profile(
    "fastctc",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("fastctc")

cuda_backends.install()

ON_CPU = _C is not None and not cuda_backends.ON_CUDA
CPU_TARGETS = _C.cpu_targets() if ON_CPU else ["only one"]


@pytest.fixture(params=CPU_TARGETS)
def cpu_target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once with each set of CPU instructions that this machine has."""
    if not ON_CPU:
        yield request.param
        return
    before = _C.cpu_target()
    _C.set_cpu_target(request.param)
    yield request.param
    _C.set_cpu_target(before)


@pytest.fixture
def needs_library() -> None:
    """Skips tests of the compiled library in a pure-Python installation."""
    if _C is None:
        pytest.skip("fastctc was installed without its compiled library")


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives the test leave to set torch's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def device() -> Iterator[torch.device]:
    """Where a call's tensors are, out of the host's sight: a GPU, or the emulator's."""
    if cuda_backends.EMULATED:
        with BACKENDS["cpu"].everything_on_device():
            yield torch.device("cpu")
    elif torch.cuda.is_available() and "cuda" in BACKENDS:
        yield torch.device("cuda")
    else:
        pytest.skip("needs a CUDA device and a build for it, or the emulator")
