"""What the figures were measured on."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from importlib import metadata
from itertools import chain
from typing import Any

import numpy as np
import torch

from benchmarks.peers import PEERS

# The instruction sets that decide how fast the kernels and their peers run.
TELLING_FLAGS = re.compile(
    r"(sse4_[12]|avx.*|fma|f16c|bmi2|amx.*|asimd.*|sve.*|neon|vaes|fsrm|erms)$"
)

# What the suites of normalisation, decoding and alignment are measured against, where it is there.
OTHER_PEERS = ("torchaudio", "flashlight-text", "fast-ctc-decode", "pyctcdecode")


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_cpu() -> dict[str, Any]:
    """Model, usable CPUs and telling instruction-set flags."""
    import cpuinfo  # comes with pytest-benchmark

    found = cpuinfo.get_cpu_info()
    # The same extension can be listed as avx512_vnni and as avx512vnni.
    flags = {flag.replace("_", ""): flag for flag in sorted(found.get("flags", []))[::-1]}
    return {
        "model": found.get("brand_raw", "unknown"),
        "family": found.get("family"),  # models of one name differ in these two
        "model_number": found.get("model"),
        "architecture": found.get("arch", "unknown"),
        "usable_cpus": usable_cpus(),
        "clock": found.get("hz_advertised_friendly", "unknown"),
        "l2_cache_bytes": found.get("l2_cache_size"),
        "l3_cache_bytes": found.get("l3_cache_size"),
        "flags": sorted(flag for flag in flags.values() if TELLING_FLAGS.match(flag)),
    }


def versions(peers: Iterable[str]) -> dict[str, str]:
    """Versions of what is measured, by distribution name, as far as it is installed."""
    found = {"torch": torch.__version__, "numpy": np.__version__}
    of_loss = chain.from_iterable(PEERS[peer].distributions for peer in peers)
    for name in chain(of_loss, OTHER_PEERS):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.setdefault(name, metadata.version(name))
    return found


def fastctc_build() -> dict[str, Any]:
    """Version and build of fastctc, and the CPU targets that this machine can run."""
    import fastctc
    from fastctc._native import _C

    return {
        "version": fastctc.__version__,
        "build": {key: value for key, value in fastctc.build_info().items() if key != "path"},
        "cpu_targets": [] if _C is None else list(_C.cpu_targets()),
        "cpu_target": "reference" if _C is None else _C.cpu_target(),
    }
