"""The loss takes, returns and refuses what torch's does, checked against torch itself."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import fastctc

FRAMES, BATCH, CLASSES = 5, 2, 4
LOG_PROBS = torch.randn(FRAMES, BATCH, CLASSES, generator=torch.manual_seed(0)).log_softmax(-1)
TARGETS = torch.tensor([[1, 2], [2, 3]])
FRAME_COUNTS = torch.tensor([5, 4])
LABEL_COUNTS = torch.tensor([2, 2])
GOOD: dict[str, Any] = {
    "log_probs": LOG_PROBS,
    "targets": TARGETS,
    "input_lengths": FRAME_COUNTS,
    "target_lengths": LABEL_COUNTS,
}


def longs(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def outcome(function: Any, arguments: dict[str, Any]) -> Any:
    """A result, or the type and text of the exception and any warnings on the way."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            result = function(**arguments)
        except Exception as error:
            return type(error), str(error)
    return result, [(w.category, str(w.message)) for w in seen]


# What torch refuses, and what it says.
REFUSED: dict[str, dict[str, Any]] = {
    "no rows": {
        "log_probs": torch.zeros(5, 0, 4),
        "targets": torch.zeros(0, 2),
        "input_lengths": longs(),
        "target_lengths": longs(),
    },
    "no frames": {"log_probs": torch.zeros(0, 2, 4), "input_lengths": longs(0, 0)},
    "no classes": {"log_probs": torch.zeros(5, 2, 0)},
    "one utterance without frames": {
        "log_probs": torch.zeros(0, 4),
        "targets": longs(1),
        "input_lengths": torch.tensor(0),
        "target_lengths": torch.tensor(1),
    },
    "blank too large": {"blank": 4},
    "blank negative": {"blank": -1},
    "reduction unknown": {"reduction": "average"},
    "reduction None": {"reduction": None},
    "reduction a number": {"reduction": 1},
    "input_lengths too few": {"input_lengths": longs(5)},
    "input_lengths too many": {"input_lengths": longs(5, 4, 3)},
    "target_lengths too few": {"target_lengths": longs(2)},
    "target_lengths 0-d": {"target_lengths": torch.tensor(2)},
    "lists too short": {"input_lengths": [5], "target_lengths": [2, 2]},
    "list of labels too long": {"input_lengths": [5, 4], "target_lengths": [2, 2, 2]},
    "input_lengths float": {"input_lengths": FRAME_COUNTS.float()},
    "input_lengths bool": {"input_lengths": FRAME_COUNTS.bool()},
    "target_lengths float": {"target_lengths": LABEL_COUNTS.double()},
    "target_lengths bool": {"target_lengths": LABEL_COUNTS.bool()},
    "input_lengths above frames": {"input_lengths": longs(5, 6)},
    "input_lengths negative": {"input_lengths": longs(-1, 5)},
    "input_lengths smallest": {"input_lengths": longs(-(2**63), 5)},
    "input_lengths largest": {"input_lengths": longs(2**63 - 1, 5)},
    "target_lengths negative": {"target_lengths": longs(2, -1)},
    "target_lengths above width": {"target_lengths": longs(3, 5)},
    "target_lengths below sum": {"targets": TARGETS.flatten(), "target_lengths": longs(2, 1)},
    "target_lengths above sum": {"targets": TARGETS.flatten(), "target_lengths": longs(2, 3)},
    "target_lengths negative with the right sum": {
        "targets": TARGETS.flatten(),
        "target_lengths": longs(5, -1),
    },
    "targets with too few rows": {"targets": TARGETS[:1]},
    "targets with too many rows": {"targets": TARGETS.repeat(2, 1)},
    "targets 3-d": {"targets": TARGETS[None]},
    "targets 0-d": {"targets": torch.tensor(1)},
    "log_probs int64": {"log_probs": LOG_PROBS.long()},
    "log_probs int32": {"log_probs": LOG_PROBS.int()},
    "log_probs uint8": {"log_probs": LOG_PROBS.byte()},
    "log_probs bool": {"log_probs": LOG_PROBS.bool()},
    "log_probs complex": {"log_probs": LOG_PROBS.to(torch.complex64)},
    "one utterance with two lengths": {"log_probs": LOG_PROBS[:, 0], "targets": TARGETS[0]},
    "one utterance with two rows of targets": {
        "log_probs": LOG_PROBS[:, 0],
        "input_lengths": longs(5),
        "target_lengths": longs(2),
    },
    "one utterance with too many labels": {
        "log_probs": LOG_PROBS[:, 0],
        "targets": TARGETS[0],
        "input_lengths": longs(5),
        "target_lengths": longs(1),
    },
    "several at once: lengths first": {
        "input_lengths": longs(5),
        "target_lengths": LABEL_COUNTS.float(),
        "blank": 7,
    },
    "several at once: emptiness first": {"log_probs": torch.zeros(0, 2, 4), "blank": 7},
    "several at once: labels first": {
        "input_lengths": longs(5, 9),
        "target_lengths": longs(-1, 2),
    },
    "targets on no device": {"targets": TARGETS.to("meta")},
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_in_torch_words(name: str) -> None:
    arguments = GOOD | REFUSED[name]
    expected = outcome(F.ctc_loss, arguments)
    assert isinstance(expected[0], type), f"torch takes this: {expected}"
    assert outcome(fastctc.ctc_loss, arguments) == expected


@pytest.mark.parametrize("dims", [1, 4])
def test_refuses_other_dimensions(dims: int) -> None:
    # torch adds a batch dimension before it counts, and says one too many.
    arguments = GOOD | {"log_probs": LOG_PROBS[(0,) * 2] if dims == 1 else LOG_PROBS[None]}
    kind, message = outcome(F.ctc_loss, arguments)
    assert outcome(fastctc.ctc_loss, arguments) == (
        kind,
        message.replace(f"got {dims + 1}-dim", f"got {dims}-dim"),
    )


# What torch refuses with a list of its overloads: here the argument and its type are named.
MISTYPED: dict[str, tuple[dict[str, Any], str]] = {
    "list and tensor": ({"input_lengths": [5, 4]}, "got list and Tensor"),
    "tensor and tuple": ({"target_lengths": (2, 2)}, "got Tensor and tuple"),
    "arrays": (
        {"input_lengths": np.array([5, 4]), "target_lengths": np.array([2, 2])},
        "got ndarray and ndarray",
    ),
    "numbers": ({"input_lengths": 5, "target_lengths": 2}, "got int and int"),
    "None": ({"input_lengths": None}, "got NoneType and Tensor"),
    "list of floats": (
        {"input_lengths": [5, 4.0], "target_lengths": [2, 2]},
        "input_lengths[1] must be an int, got float",
    ),
    "list of bools": (
        {"input_lengths": [5, 4], "target_lengths": [True, 2]},
        "target_lengths[0] must be an int, got bool",
    ),
    "blank float": ({"blank": 1.0}, "blank must be an int, got float"),
    "blank bool": ({"blank": True}, "blank must be an int, got bool"),
    "zero_infinity numpy": (
        {"zero_infinity": np.bool_(True)},
        "zero_infinity must be a bool, got bool",
    ),
    "zero_infinity number": ({"zero_infinity": 1}, "zero_infinity must be a bool, got int"),
    "targets list": ({"targets": [[1, 2], [2, 3]]}, "targets must be a Tensor, got list"),
    "log_probs list": ({"log_probs": [0.5]}, "log_probs must be a Tensor, got list"),
}


@pytest.mark.parametrize("name", MISTYPED)
def test_refuses_types_that_torch_refuses(name: str) -> None:
    change, sentence = MISTYPED[name]
    kind, message = outcome(F.ctc_loss, GOOD | change)
    ours_kind, ours = outcome(fastctc.ctc_loss, GOOD | change)
    assert ours_kind is kind is TypeError
    assert message.startswith("ctc_loss()")
    assert ours.startswith("ctc_loss() received an invalid combination of arguments - ")
    assert sentence in ours


TAKEN: dict[str, dict[str, Any]] = {
    "as it is": {},
    "float64": {"log_probs": LOG_PROBS.double()},
    "old name of the mean": {"reduction": "elementwise_mean"},
    "blank as a 0-d tensor": {"blank": torch.tensor(0)},
    "blank as numpy": {"blank": np.int64(1)},
    "floating targets": {"targets": TARGETS.float() + 0.5},
    "boolean targets": {"targets": TARGETS > 1},
    "targets that want a gradient": {"targets": TARGETS.float().requires_grad_()},
    "wide targets": {"targets": torch.cat([TARGETS, TARGETS * 0 - 7], 1)},
    "wide targets, one utterance": {
        "log_probs": LOG_PROBS[:, 0],
        "targets": TARGETS[:1],
        "input_lengths": longs(5),
        "target_lengths": longs(1),
    },
    "lengths of other shapes": {"input_lengths": FRAME_COUNTS[None], "reduction": "none"},
    "lengths 0-d and 1-d": {
        "log_probs": LOG_PROBS[:, 0],
        "targets": TARGETS[0],
        "input_lengths": torch.tensor(5),
        "target_lengths": longs(2),
        "reduction": "none",
    },
    "impossible row": {"input_lengths": longs(1, 4)},
    "impossible row dropped": {"input_lengths": longs(1, 4), "zero_infinity": True},
    "impossible row, sum": {"input_lengths": longs(1, 4), "reduction": "sum"},
    "no labels": {"targets": longs(), "target_lengths": longs(0, 0)},
    "no frames, no labels": {
        "input_lengths": longs(0, 0),
        "target_lengths": longs(0, 2),
        "reduction": "none",
    },
    "NaN": {"log_probs": LOG_PROBS * torch.nan, "zero_infinity": True},
    "parameter": {"log_probs": torch.nn.Parameter(LOG_PROBS)},
}


@pytest.mark.parametrize("name", TAKEN)
def test_takes_what_torch_takes(name: str) -> None:
    arguments = GOOD | TAKEN[name]
    expected, expected_warnings = outcome(F.ctc_loss, arguments)
    result, seen = outcome(fastctc.ctc_loss, arguments)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert result.requires_grad == expected.requires_grad
    assert seen == expected_warnings


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_float32(reduction: str, dtype: torch.dtype) -> None:
    arguments = GOOD | {"log_probs": LOG_PROBS.to(dtype), "reduction": reduction}
    plain = fastctc.ctc_loss(**arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = fastctc.ctc_loss(**arguments)
    assert plain.dtype is under_autocast.dtype is torch.float32
    assert torch.equal(plain, under_autocast)
    exact = F.ctc_loss(**arguments | {"log_probs": LOG_PROBS.to(dtype).double()})
    torch.testing.assert_close(plain.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("position", [(0, 1), (1, 0)])
@pytest.mark.parametrize("label", [-1, CLASSES, 2**40, -(2**63)])
@pytest.mark.parametrize("layout", ["padded", "concatenated"])
def test_names_the_row_of_a_label_outside_the_alphabet(
    cpu_target: str, position: tuple[int, int], label: int, layout: str
) -> None:
    targets = TARGETS.clone()
    targets[position] = label
    if layout == "concatenated":
        targets = targets.flatten()
    row, place = position
    with pytest.raises(
        IndexError,
        match=f"targets: label {label} at position {place} of row {row} .* {CLASSES} classes",
    ):
        fastctc.ctc_loss(**GOOD | {"targets": targets})


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"grad": "exact"}, ValueError, "grad must be 'torch' or 'true', got 'exact'"),
        ({"from_logits": 1}, TypeError, "from_logits must be a bool, got int"),
        ({"batch_first": None}, TypeError, "batch_first must be a bool, got NoneType"),
        (
            {"max_target_length": 1},
            ValueError,
            r"target_lengths\[0\] is 2, above max_target_length=1",
        ),
        (
            {"targets": TARGETS.to_sparse()},
            RuntimeError,
            "targets must be a dense tensor, got one of layout torch.sparse_coo",
        ),
        (
            {"targets": TARGETS.int().to_sparse()},
            RuntimeError,
            "targets must be a dense tensor, got one of layout torch.sparse_coo",
        ),
        (
            {"input_lengths": FRAME_COUNTS.to_sparse()},
            RuntimeError,
            "input_lengths must be a dense tensor, got one of layout torch.sparse_coo",
        ),
        (
            {"target_lengths": LABEL_COUNTS.int().to_sparse()},
            RuntimeError,
            "target_lengths must be a dense tensor, got one of layout torch.sparse_coo",
        ),
        ({"max_target_length": 2.0}, TypeError, "max_target_length must be an int, got float"),
        ({"log_probs": LOG_PROBS.to_sparse()}, NotImplementedError, "layout torch.strided"),
        (
            {"input_lengths": [2**70, 4], "target_lengths": [2, 2]},
            RuntimeError,
            r"input_lengths\[0\] is 1180591620717411303424, which does not fit into 64 bits",
        ),
    ],
)
def test_refuses_what_only_it_knows(
    options: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        fastctc.ctc_loss(**GOOD | options)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_refuses_nested_targets(layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([longs(1, 2), longs(2)], layout=layout)
    with pytest.raises(RuntimeError, match="targets must be a dense tensor, got a nested tensor"):
        fastctc.ctc_loss(**GOOD | {"targets": nested})


def test_names_a_late_row_of_a_large_batch(cpu_target: str) -> None:
    targets = torch.ones(24, 2, dtype=torch.int64)
    targets[20, 1] = CLASSES
    arguments = {
        "log_probs": LOG_PROBS[:, :1].expand(-1, 24, -1),
        "targets": targets,
        "input_lengths": torch.full((24,), FRAMES),
        "target_lengths": torch.full((24,), 2),
    }
    for given in (targets, targets.flatten()):
        with pytest.raises(IndexError, match=f"label {CLASSES} at position 1 of row 20 "):
            fastctc.ctc_loss(**arguments | {"targets": given})


@pytest.mark.parametrize("name", GOOD)
def test_refuses_tensors_without_memory(name: str) -> None:
    value = GOOD[name].clone()
    value.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=f"{name} has no memory"):
        fastctc.ctc_loss(**GOOD | {name: value})
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(GOOD[name])
    if name != "log_probs":  # which would be taken for a trace, and give a fake result
        with pytest.raises(RuntimeError, match=f"{name} has no memory"):
            fastctc.ctc_loss(**GOOD | {name: fake})


def test_bound_on_target_lengths_changes_nothing() -> None:
    expected = fastctc.ctc_loss(**GOOD)
    assert torch.equal(fastctc.ctc_loss(**GOOD, max_target_length=2), expected)
    assert torch.equal(fastctc.ctc_loss(**GOOD, max_target_length=100), expected)


def test_scores_on_meta_give_a_result_on_meta() -> None:
    loss = fastctc.ctc_loss(**GOOD | {"log_probs": LOG_PROBS.to("meta"), "reduction": "none"})
    assert loss.is_meta
    assert loss.shape == (BATCH,)


def test_module_is_torch_module_with_more_options() -> None:
    ours = fastctc.CTCLoss(1, "sum", True)
    assert isinstance(ours, torch.nn.CTCLoss)
    expected = torch.nn.CTCLoss(1, "sum", True)(*GOOD.values())
    torch.testing.assert_close(ours(*GOOD.values()), expected)
    assert repr(ours) == (
        "CTCLoss(blank=1, reduction='sum', zero_infinity=True, from_logits=False, "
        "batch_first=False, grad='torch')"
    )
    assert ours.state_dict() == {}
    assert list(ours.parameters()) == []


def test_module_passes_its_options_on() -> None:
    module = fastctc.CTCLoss(
        blank=1,
        reduction="none",
        from_logits=True,
        batch_first=True,
        grad="true",
        max_target_length=2,
    )
    batch_first = LOG_PROBS.transpose(0, 1).contiguous()
    expected = fastctc.ctc_loss(**GOOD, blank=1, reduction="none")
    for loss in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        result = loss(batch_first, TARGETS, FRAME_COUNTS, LABEL_COUNTS)
        torch.testing.assert_close(result, expected)
        assert "max_target_length=2" in repr(loss)
    with pytest.raises(ValueError, match="above max_target_length=2"):
        module(batch_first, torch.zeros(2, 3), FRAME_COUNTS, longs(3, 0))


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "average"},
        {"grad": "exact"},
        {"from_logits": "yes"},
        {"max_target_length": 2.0},
        {"max_target_length": "2"},
        {"max_target_length": True},
    ],
)
def test_module_checks_its_options_when_made(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        fastctc.CTCLoss(**options)
