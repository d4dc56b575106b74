"""Threads, processes and the interpreter lock."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from loss_cases import make_case, ours

from fastctc import _checks, _cpu

# Long enough on any machine; a process that hangs is killed, and the test fails.
PATIENCE = 120


@pytest.mark.parametrize("shape", [(40, 1, 30, 10), (60, 7, 30, 20), (20, 33, 300, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_any_number_of_threads_gives_the_same_bits(
    cpu_target: str,
    threads: None,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    reduction: str,
) -> None:
    case = make_case(100, *shape, dtype=dtype)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(ours(case, from_logits=True, reduction=reduction))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=0)


def test_number_of_threads_is_torch_number(monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    case = make_case(101)
    seen = []
    kernel = _cpu.ctc_loss_cpu

    def recording(*arguments: int) -> tuple[int, int, int, int] | None:
        seen.append(arguments[-1])
        return kernel(*arguments)

    monkeypatch.setattr(_cpu, "ctc_loss_cpu", recording)
    for count in (2, 1, 3):
        torch.set_num_threads(count)
        ours(case)
    assert seen == [2, 1, 3]


def test_many_python_threads_at_once(threads: None) -> None:
    torch.set_num_threads(2)
    cases = [make_case(102 + n, 20 + 9 * n, 1 + n, 5 + 11 * n, 3 + n) for n in range(8)]
    expected = [ours(case, from_logits=True) for case in cases]
    together = threading.Barrier(8)

    def work(worker: int) -> bool:
        together.wait(PATIENCE)
        same = True
        for turn in range(24):
            index = (worker + turn) % len(cases)
            loss, grad = ours(cases[index], from_logits=True)
            same &= torch.equal(loss, expected[index][0])
            same &= torch.equal(grad, expected[index][1])
        return same

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


class TakenByAnother(list[torch.Tensor]):
    """A list that another thread empties between a look at it and the taking."""

    def __len__(self) -> int:
        return 1


def test_the_gradient_at_hand_goes_to_one_of_the_threads_of_a_graph() -> None:
    case = make_case(110, 12, 2, 8, 3)
    options = _checks.check_options(0, "sum", False, True, False, "torch")
    backend, saved = _cpu.Cpu(), case.arguments()[:4]
    _, _, kept = backend.loss_for_backward(backend.prepare(*saved, options))
    (expected,) = kept
    ones = torch.ones(())
    assert torch.equal(backend.backward(saved, TakenByAnother(), options, ones), expected)
    assert backend.backward(saved, kept, options, ones) is expected


def test_interpreter_lock_is_released(needs_library: None, threads: None) -> None:
    torch.set_num_threads(1)
    case = make_case(110, 400, 16, 64, 60)
    problem = _cpu.Cpu().prepare(
        *case.arguments()[:4],
        _checks.check_options(0, "mean", False, True, False, "torch"),
    )
    loss, grad = torch.empty(()), torch.empty_like(case.scores)
    arguments = (
        *problem.arguments,
        0,
        loss.data_ptr(),
        grad.data_ptr(),
        *problem.grad_strides,
        1,
    )
    steps = 0
    stop = threading.Event()
    started = threading.Event()

    def stepping() -> None:
        nonlocal steps
        while not stop.is_set():
            steps += 1
            started.set()
            stop.wait(1e-4)

    # With switches this rare, the other thread moves only where this one lets go of the lock.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    other = threading.Thread(target=stepping)
    other.start()
    try:
        assert started.wait(PATIENCE)
        for _ in range(500):  # in case the machine leaves the other thread waiting for a core
            before = steps
            _cpu.ctc_loss_cpu(*arguments)
            moved = steps > before
            if moved:
                break
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        other.join(PATIENCE)
    assert moved


def run_script(script: str) -> str:
    """Run Python code in a process of its own, which is killed if it hangs."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FORK = """
    import os, signal, sys, time, warnings
    import torch, fastctc

    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    torch.manual_seed(0)
    scores = torch.randn(50, 8, 20, requires_grad=True)
    targets = torch.randint(1, 20, (8, 10))
    lengths = torch.full((8,), 50), torch.full((8,), 10)

    def step():
        loss = fastctc.ctc_loss(scores, targets, *lengths, from_logits=True)
        (grad,) = torch.autograd.grad(loss, scores)
        return loss.detach(), grad

    expected = step()  # the pool of threads is running now
"""


@pytest.mark.parametrize("generations", [1, 2])
def test_forked_child_finishes(generations: int) -> None:
    output = run_script(
        FORK
        + f"""
    def generation(left):
        child = os.fork()
        if child == 0:
            signal.alarm({PATIENCE // 2})  # ends a child that hangs
            ok = all(map(torch.equal, step(), expected))
            if ok and left > 1:
                ok = generation(left - 1)
            os._exit(0 if ok else 1)
        return os.waitpid(child, 0)[1] == 0

    assert generation({generations})
    assert all(map(torch.equal, step(), expected))  # the parent's pool has survived
    print("done")
    """
    )
    assert output.strip() == "done"


def test_fork_while_other_threads_are_in_a_call() -> None:
    output = run_script(
        FORK
        + f"""
    import threading

    stop = threading.Event()

    def busy():
        while not stop.is_set():
            fastctc.ctc_loss(scores.detach(), targets, *lengths, from_logits=True)

    workers = [threading.Thread(target=busy) for _ in range(3)]
    for worker in workers:
        worker.start()
    statuses = []
    for _ in range(20):
        child = os.fork()
        if child == 0:
            signal.alarm({PATIENCE // 2})
            loss = fastctc.ctc_loss(scores.detach(), targets, *lengths, from_logits=True)
            os._exit(0 if torch.equal(loss, expected[0]) else 1)
        statuses.append(os.waitpid(child, 0)[1])
    stop.set()
    for worker in workers:
        worker.join()
    assert statuses == [0] * 20, statuses
    print("done")
    """
    )
    assert output.strip() == "done"


def test_data_loader_worker_finishes() -> None:
    output = run_script(
        FORK
        + """
    class Losses(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            torch.set_num_threads(2)
            return fastctc.ctc_loss(scores.detach(), targets, *lengths, from_logits=True)

    loader = torch.utils.data.DataLoader(
        Losses(), batch_size=3, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    losses = torch.cat(list(loader))
    assert torch.equal(losses, expected[0].expand(6)), losses
    print("done")
    """
    )
    assert output.strip() == "done"
