"""Small losses and searches on a GPU, held against the CPU's: for compute-sanitizer.

    compute-sanitizer --tool memcheck python tests/cuda_small_cases.py

Not a test by itself: sanitizers slow kernels down a hundredfold, so this takes each path once.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from align_cases import align, assert_same
from loss_cases import Case, assert_close, make_case, ours
from test_beam_search_cuda import assert_same as assert_same_hypotheses
from test_beam_search_cuda import decoder, on_cpu
from test_decoder_fusion import OPTIONS, TOKENS

from fastctc import CTCDecoder, greedy_decode

# Frames, rows, classes, labels; what is special.
CASES: list[tuple[tuple[int, int, int, int], dict[str, Any], dict[str, Any]]] = [
    ((1, 1, 1, 0), {}, {}),
    ((7, 3, 5, 3), {"fitting": False}, {"reduction": "none"}),
    ((33, 4, 29, 12), {"layout": "concatenated"}, {"from_logits": True}),
    ((90, 2, 131, 40), {"repeats": True}, {"from_logits": True, "reduction": "sum"}),
    ((210, 2, 29, 100), {"ragged": False}, {"from_logits": True, "reduction": "none"}),
    ((420, 1, 29, 200), {"ragged": False}, {"grad": "true"}),
    ((830, 1, 33, 400), {"ragged": False}, {"from_logits": True}),
    ((1110, 1, 9, 1100), {"ragged": False}, {"from_logits": True}),
    ((20, 3, 5003, 6), {}, {"from_logits": True}),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
BAD = {"input_lengths": 2**40, "target_lengths": -3, "targets": 2**62}


def there(case: Case) -> Case:
    tensors = (case.scores, case.targets, case.input_lengths, case.target_lengths)
    return Case(*(tensor.cuda() for tensor in tensors), case.blank)


def align_small_cases() -> int:
    """Alignments in one warp, in several, and in strips; bad values on the GPU."""
    shapes = [(7, 3, 5, 3), (90, 2, 131, 40), (600, 1, 9, 520)]
    for index, shape in enumerate(shapes):
        case = make_case(540 + index, *shape)
        for from_logits in (False, True):
            paths, scores = align(there(case), from_logits=from_logits)
            assert_same(case, (paths.cpu(), scores.cpu()), from_logits)
    for name, value in BAD.items():
        case = there(make_case(550))
        getattr(case, name).view(-1)[1] = value
        align(case)
    return 2 * len(shapes) + len(BAD)


def search_small_cases() -> int:
    """Beams in one warp and in several, classes for a warp and a block, models, bad lengths."""
    shapes = [(12, 29, 8), (4, 900, 12), (6, 29, 70), (3, 700, 120)]
    for index, (frames, classes, beam) in enumerate(shapes):
        generator = torch.manual_seed(560 + index)
        emissions = torch.randn(2, frames, classes, generator=generator).mul(2)
        lengths = torch.tensor([frames, 2])
        search = decoder(classes, beam, blank=index)
        found = search(emissions.cuda(), lengths.cuda(), from_logits=True)
        assert_same_hypotheses(found, on_cpu(search, emissions, lengths, True))
        greedy_decode(emissions.cuda(), lengths.cuda())
    emissions = torch.randn(2, 12, len(TOKENS), generator=torch.manual_seed(570)).log_softmax(-1)
    for beam in (8, 40):
        search = CTCDecoder(TOKENS, beam_size=beam, nbest=beam, **OPTIONS["all"])
        assert_same_hypotheses(search(emissions.cuda()), on_cpu(search, emissions), 1e-4)
    equal = torch.zeros(1, 4, 40)
    for beam in (30, 50):
        search = decoder(40, beam, timesteps=False, confidence=False)
        assert_same_hypotheses(search(equal.cuda()), on_cpu(search, equal))
    assert search(equal.cuda(), torch.tensor([2**40]).cuda()) == [[]]
    return len(shapes) + 5


def main() -> int:
    count = 0
    for index, (shape, made, options) in enumerate(CASES):
        for dtype in DTYPES if shape[0] < 300 else DTYPES[:1]:
            case = make_case(500 + index, *shape, dtype=dtype, **made)
            loss, grad = ours(there(case), **options)
            assert_close(case, (loss.cpu(), grad.cpu()), ours(case, **options), 1e-4)
            count += 1
    for name, value in BAD.items():
        case = there(make_case(520))
        getattr(case, name).view(-1)[1] = value
        ours(case, from_logits=True, reduction="none")
        count += 1
    count += align_small_cases() + search_small_cases()
    torch.cuda.synchronize()
    print(f"{count} losses, gradients, alignments and searches on {torch.cuda.get_device_name()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
