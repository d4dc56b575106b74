"""The contenders: fastctc, and what it is measured against.

Each is prepared for a case once and then called many times. A call in mode "train" computes the
mean loss and a fresh gradient with respect to the logits, and frees that gradient again; a call
in mode "forward" computes the mean loss alone, without recording anything for a backward pass.
What a framework asks for its inputs (layouts, integer types, compilation) is done beforehand.
The optional peers take logits, and are held to one thread by settings that some of them read only
once, when they start: they have rows for that alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.shapes import Case

SCORES = ("logits", "log_probs")
MODES = ("train", "forward")

LossFunction = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Prepared:
    """``step()`` is what gets timed; ``evaluate()`` gives the mean loss and, in mode "train" and
    where the contender works on torch tensors, the gradient (T, N, C)."""

    step: Callable[[], object]
    evaluate: Callable[[], tuple[float, torch.Tensor | None]]


@dataclass(frozen=True)
class Contender:
    """``modules`` must be importable; ``distributions`` name them where versions are listed."""

    name: str
    call: str
    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    requirements: str | None
    prepare: Callable[[Case, str, str], Prepared]

    def why_missing(self) -> str | None:
        """A sentence that says what to install, or None where the contender can run."""
        for module in self.modules:
            if importlib.util.find_spec(module) is None:
                return (
                    f"{self.name} needs the module {module}, which is not installed: "
                    f"pip install -r benchmarks/{self.requirements}"
                )
        return None


def _prepare_torch_step(case: Case, mode: str, loss: LossFunction) -> Prepared:
    """Steps of any loss that goes through torch's autograd."""
    logits = case.logits

    def train() -> torch.Tensor:
        value = loss(logits)
        value.backward()
        logits.grad = None
        return value

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return loss(logits)

    def evaluate() -> tuple[float, torch.Tensor | None]:
        if mode == "forward":
            return float(forward()), None
        value = loss(logits)
        value.backward()
        gradient, logits.grad = logits.grad, None
        return float(value.detach()), gradient

    return Prepared(train if mode == "train" else forward, evaluate)


def prepare_ours(case: Case, scores: str, mode: str) -> Prepared:
    """fastctc; from log-probabilities, torch computes those and its share is in the time."""
    from fastctc import ctc_loss

    arguments = (case.targets, case.input_lengths, case.target_lengths)

    def from_logits(logits: torch.Tensor) -> torch.Tensor:
        return ctc_loss(logits, *arguments, from_logits=True)

    def from_log_probs(logits: torch.Tensor) -> torch.Tensor:
        return ctc_loss(logits.log_softmax(-1), *arguments)

    return _prepare_torch_step(case, mode, from_logits if scores == "logits" else from_log_probs)


def prepare_torch(case: Case, scores: str, mode: str) -> Prepared:
    """torch's log_softmax and ctc_loss, in float32 for the half types, which it does not take."""
    del scores  # torch's loss takes log-probabilities only
    kind = case.logits.dtype
    wide = torch.float32 if kind in (torch.float16, torch.bfloat16) else kind

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return F.ctc_loss(
            logits.log_softmax(-1, dtype=wide),
            case.targets,
            case.input_lengths,
            case.target_lengths,
        )

    return _prepare_torch_step(case, mode, loss)


def _padding(lengths: torch.Tensor, longest: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """1 where a position lies past its row's length, shape (N, longest)."""
    past: torch.Tensor = torch.arange(longest) >= lengths[:, None]
    return past.to(torch.float32).numpy()


def prepare_optax(case: Case, scores: str, mode: str) -> Prepared:
    """optax.ctc_loss, compiled by jax; the logits are batch-major, as it wants them."""
    del scores
    # Read once, when jax starts.
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    )
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    jax: Any = importlib.import_module("jax")
    jnp: Any = importlib.import_module("jax.numpy")
    optax: Any = importlib.import_module("optax")

    logits = jnp.asarray(np.ascontiguousarray(case.logits.detach().numpy().transpose(1, 0, 2)))
    logit_padding = jnp.asarray(_padding(case.input_lengths, case.shape.frames))
    labels = jnp.asarray(case.targets.numpy().astype(np.int32))
    label_padding = jnp.asarray(_padding(case.target_lengths, case.shape.labels))
    weights = jnp.asarray((1.0 / case.target_lengths.clamp(min=1)).to(torch.float32).numpy())

    def mean_loss(values: Any) -> Any:
        rows = optax.ctc_loss(values, logit_padding, labels, label_padding, blank_id=0)
        return jnp.mean(rows * weights)

    compiled = jax.jit(jax.value_and_grad(mean_loss) if mode == "train" else mean_loss)

    def step() -> Any:
        return jax.block_until_ready(compiled(logits))

    def evaluate() -> tuple[float, None]:
        result = step()
        return float(result[0] if mode == "train" else result), None

    return Prepared(step, evaluate)


def prepare_tensorflow(case: Case, scores: str, mode: str) -> Prepared:
    """tf.nn.ctc_loss with dense labels inside a tf.function."""
    del scores
    tf: Any = importlib.import_module("tensorflow")
    if not tf.executing_eagerly():
        raise RuntimeError("tensorflow must execute eagerly")
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        # Already running: the counts were set by an earlier row.
        if tf.config.threading.get_intra_op_parallelism_threads() != 1:
            raise

    logits = tf.constant(case.logits.detach().numpy())
    labels = tf.constant(case.targets.numpy().astype(np.int32))
    logit_lengths = tf.constant(case.input_lengths.numpy().astype(np.int32))
    label_lengths = tf.constant(case.target_lengths.numpy().astype(np.int32))
    weights = tf.constant((1.0 / case.target_lengths.clamp(min=1)).to(torch.float32).numpy())

    def mean_loss(values: Any) -> Any:
        rows = tf.nn.ctc_loss(
            labels, values, label_lengths, logit_lengths, logits_time_major=True, blank_index=0
        )
        return tf.reduce_mean(rows * weights)

    def loss_and_gradient(values: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = mean_loss(values)
        return loss, tape.gradient(loss, values)

    compiled = tf.function(loss_and_gradient if mode == "train" else mean_loss)

    def step() -> Any:
        result = compiled(logits)
        # Reading the scalar waits for the graph.
        return float(result[0] if mode == "train" else result)

    def evaluate() -> tuple[float, None]:
        return step(), None

    return Prepared(step, evaluate)


def prepare_paddle(case: Case, scores: str, mode: str) -> Prepared:
    """paddle.nn.functional.ctc_loss (warp-ctc inside), which applies the softmax itself."""
    del scores
    paddle: Any = importlib.import_module("paddle")
    paddle.set_device("cpu")
    logits = paddle.to_tensor(case.logits.detach().numpy(), stop_gradient=False)
    labels = paddle.to_tensor(case.targets.numpy().astype(np.int32))
    input_lengths = paddle.to_tensor(case.input_lengths.numpy())
    label_lengths = paddle.to_tensor(case.target_lengths.numpy())

    def loss() -> Any:
        return paddle.nn.functional.ctc_loss(
            logits, labels, input_lengths, label_lengths, blank=0, reduction="mean"
        )

    def train() -> float:
        value = loss()
        value.backward()
        logits.clear_gradient()
        return float(value)

    def forward() -> float:
        with paddle.no_grad():
            return float(loss())

    step = train if mode == "train" else forward
    return Prepared(step, lambda: (step(), None))


OURS = Contender(
    name="fastctc",
    call="fastctc.ctc_loss",
    modules=("fastctc",),
    distributions=("fastctc",),
    requirements=None,
    prepare=prepare_ours,
)

PEERS = {
    peer.name: peer
    for peer in (
        Contender(
            name="torch",
            call="log_softmax + torch.nn.functional.ctc_loss",
            modules=("torch",),
            distributions=("torch",),
            requirements=None,
            prepare=prepare_torch,
        ),
        Contender(
            name="optax",
            call="optax.ctc_loss under jax.jit",
            modules=("jax", "optax"),
            distributions=("jax", "optax"),
            requirements="requirements-optax.txt",
            prepare=prepare_optax,
        ),
        Contender(
            name="tensorflow",
            call="tf.nn.ctc_loss in a tf.function",
            modules=("tensorflow",),
            distributions=("tensorflow", "tensorflow-cpu"),
            requirements="requirements-tensorflow.txt",
            prepare=prepare_tensorflow,
        ),
        Contender(
            name="paddle",
            call="paddle.nn.functional.ctc_loss",
            modules=("paddle",),
            distributions=("paddlepaddle",),
            requirements="requirements-paddle.txt",
            prepare=prepare_paddle,
        ),
    )
}
