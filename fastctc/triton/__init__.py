"""Kernels in Triton: spectrogram normalisation on a GPU.

triton is no dependency of fastctc. torch's CUDA builds for Linux bring the version they go with.
"""

from __future__ import annotations


def why_missing() -> str:
    """Why the kernels cannot be used; an empty string where they can."""
    try:
        import triton
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        return (
            "fastctc.triton needs triton, which is not installed. torch's CUDA builds for Linux "
            "bring it along; elsewhere `pip install triton` may do"
        )
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < (3, 6):
        return f"fastctc.triton needs triton 3.6 or newer, and {triton.__version__} is installed"
    return ""
