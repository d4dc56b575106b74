"""Beam search on a GPU, or by the emulator (see `cuda_backends`): the hypotheses of the CPU."""

from __future__ import annotations

import random
import threading
from typing import Any

import decoder_cases as cases
import pytest
import torch
from cuda_backends import EMULATED
from test_decoder_fusion import OPTIONS, TOKENS
from torch import Tensor

from fastctc import CTCDecoder, DecodedBatch, Hypothesis, _decode, config, greedy_decode
from fastctc._backends import BACKENDS

pytestmark = pytest.mark.gpu

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HUGE = (-1, 41, 2**31, 2**62, 2**63 - 1, -(2**63))
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or "cuda" not in BACKENDS,
    reason="needs a CUDA device and a build with the CUDA library",
)


def decoder(classes: int, beam: int, **options: Any) -> CTCDecoder:
    letters = [chr(0x100 + c) for c in range(classes)]
    return CTCDecoder(letters, beam_size=beam, **{"nbest": beam, **options})


def on_cpu(
    search: CTCDecoder, emissions: Tensor, lengths: Any = None, from_logits: bool = False
) -> list[list[Hypothesis]]:
    """What the host's kernels find, whichever take CPU tensors in this process."""
    checked = _decode.check_lengths(lengths, emissions.size(0), emissions.size(1))
    options = search._options[from_logits]
    emissions = _decode.with_adjacent_classes(emissions)
    return search.hypotheses(
        _decode.beam_search(options, emissions, checked, search.nbest, search.blank)
    )


def assert_same(
    found: list[list[Hypothesis]], expected: list[list[Hypothesis]], tolerance: float = 3e-5
) -> None:
    """Scores that are closer than rounding may come in either order."""
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        assert [h.score for h in row] == sorted((h.score for h in row), reverse=True)
        twins = {tuple(h.tokens): h for h in wanted}
        assert {tuple(h.tokens) for h in row} == set(twins)
        for h in row:
            twin = twins[tuple(h.tokens)]
            assert h.score == pytest.approx(twin.score, abs=tolerance)
            assert h.lm_score == pytest.approx(twin.lm_score, abs=tolerance)
            assert h.timesteps == twin.timesteps
            assert h.confidence == pytest.approx(twin.confidence, abs=1e-4)


def random_options(rng: random.Random, classes: int) -> dict[str, Any]:
    options: dict[str, Any] = {"blank": rng.choice([0, classes - 1, rng.randrange(classes)])}
    for name, value in [
        ("top_k", rng.randint(1, classes)),
        ("top_p", rng.uniform(0.05, 1)),
        ("beam_threshold", rng.uniform(0.1, 10)),
        ("blank_skip_threshold", rng.uniform(0.3, 1)),
    ]:
        if rng.random() < 0.25:
            options[name] = value
    return options


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_cpu(device: torch.device, seed: int) -> None:
    rng, generator = random.Random(seed), torch.manual_seed(seed)
    for case in range(8):
        frames, classes = rng.randint(1, 30), rng.choice([2, 3, 5, 29, 33, 130, 300, 600])
        scale = rng.choice([0.5, 2.0, 6.0])
        emissions = torch.randn(3, frames, classes, generator=generator).mul(scale)
        emissions = emissions.to(DTYPES[case % 2])
        from_logits = rng.random() < 0.5
        if not from_logits:
            emissions = emissions.log_softmax(-1)
        for value in (-torch.inf, torch.nan):
            if rng.random() < 0.15:
                hit = torch.rand(emissions.shape, generator=generator) < 0.2 / classes
                emissions[hit] = value
        lengths = torch.tensor([frames, rng.randint(0, frames), 0])
        beam = rng.choice([1, 2, 7, 10, 16, 31, 32, 33, 64])
        search = decoder(classes, beam, **random_options(rng, classes))
        found = search(emissions.to(device), lengths.to(device), from_logits=from_logits)
        assert_same(found, on_cpu(search, emissions, lengths, from_logits))


@pytest.mark.parametrize("beam", [100, 256])
def test_wide_beams_and_many_classes(device: torch.device, beam: int) -> None:
    generator = torch.manual_seed(beam)
    for frames, classes in [(6, 3000), (12, 29)]:
        emissions = torch.randn(1, frames, classes, generator=generator).mul(2).log_softmax(-1)
        search = decoder(classes, beam, timesteps=False, confidence=False)
        assert_same(search(emissions.to(device)), on_cpu(search, emissions))


def test_a_large_vocabulary(device: torch.device) -> None:
    emissions = torch.randn(1, 4, 50_000, generator=torch.manual_seed(1)).mul(3)
    for beam in (10, 200):
        search = decoder(50_000, beam, blank=49_999, nbest=5)
        found = search(emissions.to(device), from_logits=True)
        assert_same(found, on_cpu(search, emissions, from_logits=True))


@pytest.mark.parametrize("dtype", DTYPES[2:])
def test_half_precision(device: torch.device, dtype: torch.dtype) -> None:
    """Scores of few bits are often equal on paper: which of them the beam's end holds is open."""
    for classes, from_logits in [(5, False), (29, True)]:
        emissions = torch.randn(2, 12, classes, generator=torch.manual_seed(classes)).mul(3)
        emissions = emissions.to(dtype)
        search = decoder(classes, 30)
        found = search(emissions.to(device), from_logits=from_logits)
        expected = on_cpu(search, emissions, from_logits=from_logits)
        for row, wanted in zip(found, expected, strict=True):
            twins = {tuple(h.tokens): h for h in wanted}
            for h, twin in zip(row[:5], wanted, strict=False):
                assert h.score == pytest.approx(twin.score, abs=3e-5)
                assert h.score == pytest.approx(twins[tuple(h.tokens)].score, abs=3e-5)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("beam", [9, 40])
def test_models_lexicons_and_hotwords(device: torch.device, name: str, beam: int) -> None:
    generator = torch.manual_seed(beam)
    emissions = torch.randn(2, 25, len(TOKENS), generator=generator).log_softmax(-1)
    lengths = torch.tensor([25, 11])
    for pruning in ({}, {"top_k": 4, "beam_threshold": 8.0}):
        search = CTCDecoder(TOKENS, beam_size=beam, nbest=beam, **OPTIONS[name], **pruning)
        found = search(emissions.to(device), lengths.to(device))
        assert_same(found, on_cpu(search, emissions, lengths), 1e-4)


def test_a_fusion_looks_at_the_best_256_classes(device: torch.device) -> None:
    """The last class is the only hotword, and out of sight."""
    emissions = torch.linspace(0, -3, 300).expand(1, 3, -1).log_softmax(-1).contiguous()
    tokens = [chr(0x100 + c) for c in range(300)]
    for hotword, seen in [(254, True), (257, False)]:
        search = CTCDecoder(tokens, beam_size=4, hotwords={tokens[hotword]: 20.0}, top_k=300)
        assert (hotword in search(emissions.to(device))[0][0].tokens) == seen


def test_ties_are_broken_as_on_the_cpu(device: torch.device) -> None:
    for frames, classes, beam, blank in [
        (2, 3, 2, 0),
        (6, 4, 9, 2),
        (5, 29, 30, 0),
        (5, 40, 50, 3),
    ]:
        equal = torch.zeros(1, frames, classes)
        search = decoder(classes, beam, blank=blank, timesteps=False, confidence=False)
        found, expected = search(equal.to(device))[0], on_cpu(search, equal)[0]
        assert [h.tokens for h in found] == [h.tokens for h in expected]


def test_layouts(device: torch.device) -> None:
    emissions = torch.randn(3, 20, 11, generator=torch.manual_seed(0)).log_softmax(-1)
    search = decoder(11, 9)
    expected = search(emissions.to(device))
    apart = emissions.to(device).transpose(1, 2).contiguous().transpose(1, 2)
    time_major = emissions.to(device).transpose(0, 1).contiguous().transpose(0, 1)
    backwards = torch.stack([emissions.to(device)] * 2, 2)[:, :, 1]
    for same in (apart, time_major, backwards):
        assert search(same) == expected
    assert search(emissions.to(device)[:0]) == []


def test_tensors_are_as_wide_as_the_frames(device: torch.device) -> None:
    emissions = torch.randn(3, 15, 5, generator=torch.manual_seed(2)).log_softmax(-1)
    lengths = torch.tensor([15, 1, 0])
    search = decoder(5, 8, nbest=4, blank=2)
    tensors = search.decode_tensors(emissions.to(device), lengths.to(device))
    tensors = DecodedBatch(*(each.cpu() for each in tensors))
    assert tensors.tokens.shape == (3, 4, 15)
    past = torch.arange(15) >= tensors.lengths[..., None]
    assert (tensors.tokens[past] == 2).all()
    for zero in (tensors.starts, tensors.ends, tensors.confidence):
        assert (zero[past] == 0).all()
    assert torch.isneginf(tensors.scores[2, 1:]).all()
    assert search.hypotheses(tensors) == search(emissions.to(device), lengths.to(device))


@pytest.mark.parametrize(
    "nbest", [3, 8, 40]
)  # segments are enough for one turn, for two, or not for one result in two
def test_alignment_takes_turns_where_memory_is_scarce(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, nbest: int
) -> None:
    emissions = torch.randn(5, 120, 9, generator=torch.manual_seed(3)).log_softmax(-1)
    search = decoder(9, 40, nbest=nbest)
    lengths = torch.tensor([120, 7, 0, 64, 119])
    at_once = search.decode_tensors(emissions.to(device), lengths.to(device))
    monkeypatch.setattr(config, "max_workspace_mb", 1)
    in_turn = search.decode_tensors(emissions.to(device), lengths.to(device))
    for one, other in zip(at_once, in_turn, strict=True):
        assert torch.equal(one, other)
    assert_same(search.hypotheses(in_turn), on_cpu(search, emissions, lengths))


def test_long_utterances(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many more prefixes come and go than the beam holds; states lie in global memory."""
    emissions = torch.randn(1, 1600, 4, generator=torch.manual_seed(4)).log_softmax(-1)
    search = decoder(4, 5, nbest=2)
    tensors = search.decode_tensors(emissions.to(device))
    assert_same(search.hypotheses(tensors), on_cpu(search, emissions), 1e-3)
    monkeypatch.setattr(config, "max_workspace_mb", 1)
    in_segments = search.decode_tensors(emissions.to(device))
    for one, other in zip(tensors, in_segments, strict=True):
        assert torch.equal(one, other)


def test_lengths_out_of_range_have_no_hypotheses(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    emissions = torch.randn(3, 40, 5, generator=torch.manual_seed(5)).log_softmax(-1)
    search = decoder(5, 6)
    expected = search(emissions.to(device))
    for value in HUGE:
        lengths = torch.tensor([40, value, 40]).to(device)
        assert search(emissions.to(device), lengths) == [expected[0], [], expected[2]]
        greedy = greedy_decode(emissions.to(device), lengths)
        assert torch.isneginf(greedy.scores[:, 0]).tolist() == [False, True, False]
        monkeypatch.setattr(config, "validate_device_inputs", True)
        with pytest.raises(ValueError, match=r"lengths\[1\] is -?\d+: it must be from 0 to 40"):
            search(emissions.to(device), lengths)
        monkeypatch.setattr(config, "validate_device_inputs", False)


def test_lengths_may_stay_on_the_host() -> None:
    if not EMULATED and not (torch.cuda.is_available() and "cuda" in BACKENDS):
        pytest.skip("needs a CUDA device and a build for it, or the emulator")
    emissions = torch.randn(2, 20, 5, generator=torch.manual_seed(6)).log_softmax(-1)
    there, search = emissions.to("cpu" if EMULATED else "cuda"), decoder(5, 6)
    assert_same(search(there, [20, 7]), on_cpu(search, emissions, [20, 7]))
    with pytest.raises(ValueError, match=r"lengths\[1\] is 21: it must be from 0 to 20"):
        search(there, [20, 21])


def test_wider_beams_are_searched_on_the_cpu(device: torch.device) -> None:
    emissions = torch.randn(1, 6, 5, generator=torch.manual_seed(7)).log_softmax(-1)
    search = decoder(5, 257)
    assert search(emissions.to(device)) == on_cpu(search, emissions)


def test_too_many_frames_are_refused(device: torch.device) -> None:
    emissions = torch.zeros(1, 1, 2).to(device).expand(1, 2**22, 2)
    with pytest.raises(ValueError, match="a beam of 256 is served for at most 2097152"):
        decoder(2, 256).decode_tensors(emissions)


@pytest.mark.parametrize("from_logits", [False, True])
def test_greedy_decoding_equals_the_cpu(device: torch.device, from_logits: bool) -> None:
    emissions = torch.randn(5, 30, 5, generator=torch.manual_seed(8))
    lengths = torch.tensor([30, 0, 1, 17, 29])
    found = greedy_decode(emissions.to(device), lengths.to(device), from_logits=from_logits)
    expected = _decode.greedy(emissions, lengths, 0, from_logits)
    assert found.tokens.shape == (5, 1, 30)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other)


def test_many_threads_share_a_decoder(device: torch.device) -> None:
    if EMULATED:
        pytest.skip("the emulator runs one kernel at a time")
    search = CTCDecoder(TOKENS, beam_size=12, nbest=2, **OPTIONS["all"])
    inputs = [
        torch.randn(2, 40, 6, generator=torch.manual_seed(seed)).log_softmax(-1).to(device)
        for seed in range(4)
    ]
    expected = [on_cpu(search, emissions.cpu()) for emissions in inputs]
    results: dict[int, list[list[Hypothesis]]] = {}

    def work(k: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            results[k] = search(inputs[k])

    torch.cuda.synchronize()
    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for k in range(4):
        assert_same(results[k], expected[k], 1e-4)


def gpu_search() -> CTCDecoder:
    return CTCDecoder(TOKENS, beam_size=12, nbest=3, **OPTIONS["all"])


def gpu_emissions(seed: int) -> Tensor:
    return torch.randn(3, 50, 6, generator=torch.manual_seed(seed)).log_softmax(-1)


@needs_gpu
def test_nobody_waits_for_the_gpu() -> None:
    search, emissions = gpu_search(), gpu_emissions(1).cuda()
    lengths = torch.tensor([50, 20, 0]).cuda()
    search.decode_tensors(emissions, lengths)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        search.decode_tensors(emissions, lengths)
        search.decode_tensors(emissions)
        greedy_decode(emissions, lengths)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@needs_gpu
def test_a_graph_serves_new_emissions_and_lengths() -> None:
    search = gpu_search()
    emissions, lengths = gpu_emissions(2).cuda(), torch.tensor([50, 20, 0]).cuda()
    search.decode_tensors(emissions, lengths)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = search.decode_tensors(emissions, lengths)
    for seed, fresh in [(3, [50, 50, 1]), (2, [3, 20, 0])]:
        emissions.copy_(gpu_emissions(seed))
        lengths.copy_(torch.tensor(fresh))
        graph.replay()
        torch.cuda.synchronize()
        expected = on_cpu(search, gpu_emissions(seed), fresh)
        assert_same(search.hypotheses(result), expected, 1e-4)


@needs_gpu
def test_the_current_stream_is_used() -> None:
    search, emissions = gpu_search(), gpu_emissions(4).cuda()
    search.decode_tensors(emissions)
    late = torch.zeros_like(emissions)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(emissions)
        result = search.decode_tensors(late)
    stream.synchronize()
    assert_same(search.hypotheses(result), on_cpu(search, gpu_emissions(4)), 1e-4)


@needs_gpu
def test_two_runs_are_the_same_bit_for_bit() -> None:
    emissions = torch.randn(8, 200, 29, generator=torch.manual_seed(9)).cuda()
    search = decoder(29, 50, nbest=10)
    first, second = (search.decode_tensors(emissions, from_logits=True) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_published_answers(device: torch.device) -> None:
    logits = torch.from_numpy(cases.TENSORFLOW_LOGITS)[None].to(device)
    found = decoder(6, 2, blank=cases.TENSORFLOW_BLANK)(logits, from_logits=True)[0]
    for h, (tokens, score) in zip(found, cases.TENSORFLOW_BEAM_2, strict=True):
        assert tuple(h.tokens) == tokens
        assert h.score == pytest.approx(score, abs=1e-6)
    for probabilities, beam, (answer, score) in [
        (cases.PADDLE_1, 20, cases.PADDLE_1_BEAM_20),
        (cases.PADDLE_1, 40, cases.PADDLE_1_BEAM_40),
    ]:
        search = CTCDecoder(cases.PADDLE_TOKENS, blank=cases.PADDLE_BLANK, beam_size=beam)
        best = search(torch.from_numpy(probabilities).log()[None].to(device))[0][0]
        assert best.text == answer
        assert best.score == pytest.approx(score, abs=1e-6)


def test_a_bonus_beyond_the_sums_is_refused(device: torch.device) -> None:
    search = CTCDecoder("_ab", hotwords={"a": 81.0}, confidence=False)
    emissions = torch.zeros(1, 4, 3, device=device)
    with pytest.raises(ValueError, match=r"may add 81.* nats .* float32 .* at most 80"):
        search(emissions)
    assert search(emissions.double())[0][0].text


@pytest.mark.parametrize("beam", [16, 40])
def test_large_bonuses_follow_each_other(device: torch.device, beam: int) -> None:
    """Of "b" and "bc", which have long been unlikely, one takes 79 nats and the other 79 more."""
    frames = [[0, -80, -200], [0, -200, -80], [-20, 0, -200], [-20, -200, 0], [-1, -2, -3]]
    log_probs = torch.tensor([frames], dtype=torch.float64)
    hotwords = {"b": 79.0, "c": 79.0}
    search = CTCDecoder("_bc", beam_size=beam, nbest=beam, hotwords=hotwords, word_boundary="")
    exact = {tuple(h.tokens): h.score for h in on_cpu(search, log_probs)[0]}
    found = {tuple(h.tokens): h.score for h in search(log_probs.float().to(device))[0]}
    assert found == pytest.approx({tokens: exact[tokens] for tokens in found}, abs=1e-4)
    assert max(found.values()) == pytest.approx(235.0, abs=1e-4)


def test_a_large_bonus_leaves_the_next_frame_its_range(device: torch.device) -> None:
    log_probs = torch.tensor([[[-1.0, -9, 0], [-30, 0, -40]]], device=device)
    search = CTCDecoder("_bc", nbest=2, hotwords=["c"], hotword_weight=75.0, word_boundary="")
    found = [(h.tokens, h.score) for h in search(log_probs)[0]]
    assert found == [([2, 1], pytest.approx(75, abs=1e-4)), ([2], pytest.approx(45, abs=1e-4))]


def test_blanks_below_the_normal_range_are_impossible(device: torch.device) -> None:
    emissions = torch.randn(2, 10, 4, generator=torch.manual_seed(7)).mul(3)
    for blank in (-86.0, -88.0, -95.0, -103.0):
        emissions[:, :, 0] = blank
        search = decoder(4, 8, blank_skip_threshold=1e-44)
        expected = on_cpu(search, emissions, from_logits=True)
        assert_same(search(emissions.to(device), from_logits=True), expected)


def test_long_tokens_and_short_hotwords_are_served(device: torch.device) -> None:
    pieces = [
        "_",
        *(f"\N{LOWER ONE EIGHTH BLOCK}{word}" for word in ("internationalisation", "a", "i")),
    ]
    search = CTCDecoder(pieces, hotwords={"a": 8.0, "i": 8.0}, beam_size=6)
    emissions = torch.randn(2, 9, 4, generator=torch.manual_seed(6)).log_softmax(-1)
    assert_same(search(emissions.to(device)), on_cpu(search, emissions))


def test_not_a_number_is_impossible_for_times_too(device: torch.device) -> None:
    emissions = torch.tensor([[[-2.0, -3, -0.2], [-0.5, -3, float("nan")], [-0.2, -2, -3]]])
    search = CTCDecoder("_ab")
    assert_same(search(emissions.to(device)), on_cpu(search, emissions))
    assert search(emissions.to(device))[0][0].timesteps == [(0, 1)]
