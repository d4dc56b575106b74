"""Language model, lexicon, word score and hotwords together, against their definitions."""

from __future__ import annotations

import itertools
import math
import pickle
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastctc._fusion import Fusion
from fastctc._native import _C
from fastctc.estimate import arpa_lines, characters
from fastctc.lexicon import Lexicon
from fastctc.lm import NGramModel
from fastctc.reference import language_model as reference

if _C is None:
    pytest.skip("fastctc was installed without its compiled library", allow_module_level=True)

PIECE = "\N{LOWER ONE EIGHTH BLOCK}"
TOKENS = ["-", " ", "a", "b", "c", "ab", "b a"]  # the last one ends a word and begins another
WORDS = ["a", "ab", "abc", "ba", "cab", "b"]
TEXTS = [t.split() for t in ("a ab abc", "ba cab a", "ab ab ba", "b a b a", "cab", "abc ba a")]
CHARACTER_TEXTS = [characters(" ".join(words)) for words in TEXTS]


def arpa(texts: Iterable[list[str]], order: int) -> str:
    return "".join(arpa_lines(texts, order))


def model(text: str) -> NGramModel:
    return NGramModel._read([text.encode()], -100.0)


WORD_ARPA = arpa(TEXTS, 3)
CHARACTER_ARPA = arpa(CHARACTER_TEXTS, 3)

# Options of Fusion, and the same of the reference. To the model of characters, tokens of several
# characters are unknown words.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "word score": ({"word_score": 0.7}, {"word_score": 0.7}),
    "word model": (
        {"lm": model(WORD_ARPA), "lm_weight": 0.6, "unknown_score": -1.5},
        {"lm": reference.parse_arpa(WORD_ARPA), "lm_weight": 0.6, "unknown_score": -1.5},
    ),
    "word model and lexicon": (
        {"lm": model(WORD_ARPA), "lexicon": Lexicon(["ab", "b", "bb", "ba"]), "word_score": -0.5},
        {
            "lm": reference.parse_arpa(WORD_ARPA),
            "lexicon": ["ab", "b", "bb", "ba"],
            "word_score": -0.5,
            "unknown_score": -math.inf,
        },
    ),
    "character model": (
        {"lm": model(CHARACTER_ARPA), "lm_unit": "token", "lm_weight": 0.8},
        {"lm": reference.parse_arpa(CHARACTER_ARPA), "lm_weight": 0.8, "by_word": False},
    ),
    "lexicon": (
        {"lexicon": Lexicon(WORDS), "unknown_score": -2.0},
        {"lexicon": WORDS, "unknown_score": -2.0},
    ),
    "hotwords": (
        {"hotwords": {"ab": 2.0, "ab ba": 3.5, "a": -1.0, "b ab": 0.5}},
        {"hotwords": {"ab": 2.0, "ab ba": 3.5, "a": -1.0, "b ab": 0.5}},
    ),
    "everything": (
        {
            "lm": model(WORD_ARPA),
            "lm_weight": 0.4,
            "word_score": 0.3,
            "lexicon": Lexicon(WORDS),
            "unknown_score": -3.0,
            "hotwords": ["cab", "a cab a"],
            "hotword_weight": 2.5,
        },
        {
            "lm": reference.parse_arpa(WORD_ARPA),
            "lm_weight": 0.4,
            "word_score": 0.3,
            "lexicon": WORDS,
            "unknown_score": -3.0,
            "hotwords": {"cab": 2.5, "a cab a": 2.5},
        },
    ),
}


def twins(name: str) -> tuple[Fusion, reference.Fusion]:
    ours, theirs = CASES[name]
    spelled = ["" if token == "-" else token for token in TOKENS]
    if name == "character model":
        spelled[1] = "<space>"
        return Fusion(TOKENS, **ours), reference.Fusion(spelled, boundary="<space>", **theirs)
    return Fusion(TOKENS, **ours), reference.Fusion(spelled, **theirs)


@pytest.mark.parametrize("name", CASES)
@given(tokens=st.lists(st.integers(1, len(TOKENS) - 1), max_size=10))
def test_every_step_is_what_the_definition_says(name: str, tokens: list[int]) -> None:
    fusion, twin = twins(name)
    state, twin_state = _C.fusion_start(fusion.address), twin.start()
    for token in tokens:
        largest = _C.fusion_largest_bonus(fusion.address, state)
        assert largest <= fusion.largest_bonus
        largest_of_it = _C.fusion_largest_bonus(fusion.address, state, token)
        bonus, state = _C.fusion_extend(fusion.address, state, token)
        assert bonus <= largest_of_it
        expected, twin_state = twin.extend(twin_state, token)
        assert bonus == pytest.approx(expected, abs=2e-5)
        assert bonus <= largest
        if bonus == -math.inf:
            assert not fusion.trace(tokens).allowed
            return
    bonus = _C.fusion_finish(fusion.address, state)
    assert bonus == pytest.approx(twin.finish(twin_state), abs=2e-5)
    trace = fusion.trace(tokens)
    assert trace.allowed == (bonus > -math.inf)
    if trace.allowed:
        assert trace.total == pytest.approx(twin.total(twin_state), abs=5e-5)
    text = "".join(TOKENS[token] for token in tokens)
    assert [word.text for word in trace.words] == text.split()


def test_a_long_token_is_worth_the_phrases_that_end_in_it() -> None:
    """Not as many times the dearest symbol as it has symbols."""
    tokens = ["-", "_" + "a" * 20, "_b", "_a"]
    fusion = Fusion(tokens, hotwords={"a": 6.0, "b": 5.0}, word_boundary="_")
    state = _C.fusion_start(fusion.address)
    steps = [_C.fusion_extend(fusion.address, state, token) for token in (1, 2, 3)]
    steps += [
        _C.fusion_extend(fusion.address, after, token) for _, after in steps for token in (1, 2)
    ]
    assert max(bonus for bonus, _ in steps) <= fusion.largest_bonus < 15


@pytest.mark.parametrize("name", [name for name in CASES if name != "character model"])
def test_bounds_of_tokens_of_one_symbol_hold(name: str) -> None:
    letters = TOKENS[:5]
    fusion = Fusion(letters, **CASES[name][0])
    states = [_C.fusion_start(fusion.address)]
    tightest = math.inf
    for _ in range(5):
        longer = []
        for state in states:
            bound = _C.fusion_largest_bonus(fusion.address, state)
            steps = [_C.fusion_extend(fusion.address, state, t) for t in range(1, len(letters))]
            for token, (bonus, _) in enumerate(steps, 1):
                assert bonus <= _C.fusion_largest_bonus(fusion.address, state, token)
            assert max(bonus for bonus, _ in steps) <= bound <= fusion.largest_bonus + 1e-5
            tightest = min(tightest, bound)
            longer += [after for bonus, after in steps if bonus > -math.inf]
        states = longer
    if "hotwords" in CASES[name][0]:
        assert tightest < fusion.largest_bonus


def ids(text: str, tokens: list[str] = TOKENS) -> list[int]:
    """Tokens of single characters."""
    return [tokens.index(character) for character in text]


def test_words_and_their_tokens() -> None:
    fusion = Fusion(TOKENS, lexicon=Lexicon(["a", "ab"]), unknown_score=-1.0)
    words = fusion.trace([1, 1, 5, 1, 2, 6, 4, 1]).words  # "  ab ab ac "
    assert words == [("ab", 2, 3, True), ("ab", 4, 6, True), ("ac", 5, 7, False)]
    assert fusion.trace([]).words == []


@pytest.mark.parametrize("token", [-1, len(TOKENS), 2**40])
def test_a_token_that_is_no_class_has_no_trace(token: int) -> None:
    fusion = Fusion(TOKENS, lexicon=Lexicon({"ab": "a b"}))
    with pytest.raises(ValueError, match=f"token {token} is none of the 7 classes"):
        fusion.trace([2, 3, token])


def test_the_parts_of_a_trace() -> None:
    lm = model(WORD_ARPA)
    fusion = Fusion(
        TOKENS, lm=lm, lm_weight=0.5, word_score=0.25, hotwords=["ab"], hotword_weight=3
    )
    trace = fusion.trace(ids("ab ba"))
    assert trace.lm_score == pytest.approx(lm.score("ab ba"), abs=1e-5)
    assert trace.word_score == 0.5
    assert trace.hotword_score == 3.0
    assert trace.total == pytest.approx(0.5 * lm.score("ab ba") + 3.5, abs=1e-5)


def test_hotwords_are_whole_words_where_words_have_boundaries() -> None:
    fusion = Fusion(TOKENS, hotwords=["ab"], hotword_weight=1.0)
    for text, times in {"ab": 1, "abc": 0, "cab": 0, "ab ab": 2, "  ab  c": 1, "a b": 0}.items():
        assert fusion.trace(ids(text)).total == pytest.approx(times), text
    unfenced = Fusion(["-", "a", "b", "c"], hotwords=["ab"], hotword_weight=1.0)
    assert unfenced.trace([1, 2, 3, 3, 1, 2]).total == pytest.approx(2.0)


def test_a_hotword_that_stops_half_way_gives_back_what_it_was_lent() -> None:
    fusion = Fusion(TOKENS, hotwords=["abca"], hotword_weight=4.0)
    state, bonuses = _C.fusion_start(fusion.address), []
    for token in ids("abcb"):
        bonus, state = _C.fusion_extend(fusion.address, state, token)
        bonuses.append(bonus)
    assert bonuses == [1.0, 1.0, 1.0, -3.0]


def test_thousands_of_hotwords_give_what_each_gives() -> None:
    rng = random.Random(2)
    letters = "abcdefgh"
    tokens = ["-", " ", *letters]
    phrases = {"".join(rng.choices(letters, k=rng.randint(1, 6))) for _ in range(3000)}
    fusion = Fusion(tokens, hotwords=phrases, hotword_weight=1.0)
    for _ in range(300):
        words = ["".join(rng.choices(letters, k=rng.randint(1, 4))) for _ in range(6)]
        expected = sum(word in phrases for word in words)
        assert fusion.trace(ids(" ".join(words), tokens)).total == pytest.approx(expected, abs=1e-4)


def test_letters_of_large_alphabets() -> None:
    """More than 64 symbols: nodes of the tries then find some of their children by search."""
    rng = random.Random(5)
    letters = [chr(0x4E00 + i) for i in range(150)]
    few = letters[5:150:24]
    words = {
        "".join(rng.choices(rng.choice([letters, few]), k=rng.randint(1, 3))) for _ in range(400)
    }
    tokens = ["-", " ", *letters]
    fusion = Fusion(tokens, lexicon=Lexicon(sorted(words)), unknown_score=-1.0, hotwords=words)
    twin = reference.Fusion(
        ["", *tokens[1:]], lexicon=words, unknown_score=-1.0, hotwords=dict.fromkeys(words, 0.0)
    )
    for _ in range(60):
        spoken = [*rng.choices(sorted(words), k=4), "".join(rng.choices(few, k=2))]
        trace = fusion.trace(ids(" ".join(spoken), tokens))
        assert trace.word_score == pytest.approx(twin.total(" ".join(spoken)))
        assert [word.known for word in trace.words] == [word in words for word in spoken]


def test_a_word_with_several_spellings_and_a_spelling_with_several_words() -> None:
    tokens = ["-", "|", "r", "iy", "eh", "d"]
    lexicon = Lexicon({"read": ["r iy d |", ["r", "eh", "d"]], "red": ["r eh d"], "reed": "r iy d"})
    lm = NGramModel.estimate([["the", "red", "reed"], ["they", "read"], ["red", "reed"]], 2)
    fusion = Fusion(tokens, lexicon=lexicon, lm=lm, lm_unit="word")
    trace = fusion.trace([2, 4, 5, 1, 2, 3, 5])
    best = max(
        itertools.product(["read", "red"], ["read", "reed"]), key=lambda w: lm.score(list(w))
    )
    assert [word.text for word in trace.words] == list(best) == ["red", "reed"]
    assert trace.lm_score == pytest.approx(lm.score(list(best)), abs=1e-5)
    assert not fusion.trace([2, 4]).allowed
    first = Fusion(tokens, lexicon=lexicon).trace([2, 3, 5])
    assert [word.text for word in first.words] == ["read"]


def test_hotwords_of_a_spelled_lexicon_count_in_every_spelling() -> None:
    tokens = ["-", "|", "r", "iy", "eh", "d"]
    lexicon = Lexicon({"read": ["r iy d", "r eh d"], "deer": ["d iy r"]})
    fusion = Fusion(tokens, lexicon=lexicon, hotwords=["deer read"], hotword_weight=2.0)
    for vowel in (3, 4):
        assert fusion.trace([5, 3, 2, 1, 2, vowel, 5]).total == pytest.approx(2.0)
    with pytest.raises(ValueError, match="hotword 'dear' is not in the lexicon"):
        Fusion(tokens, lexicon=lexicon, hotwords=["dear"])


def test_word_pieces() -> None:
    tokens = ["-", PIECE + "the", PIECE + "th", "e", PIECE, "n", "the", "<unk>"]
    lm = NGramModel.estimate([["the", "then"], ["then", "e"]], 2)
    fusion = Fusion(tokens, lm=lm, lm_unit="word", hotwords=["the then"], hotword_weight=5.0)
    for pieces in ([1, 1, 5], [2, 3, 4, 6, 5], [6, 2, 3, 5]):
        trace = fusion.trace(pieces)
        assert [word.text for word in trace.words] == ["the", "then"]
        assert trace.lm_score == pytest.approx(lm.score("the then"), abs=1e-5)
        assert trace.hotword_score == pytest.approx(5.0)
    strange = fusion.trace([1, 7])
    assert [(word.text, word.known) for word in strange.words] == [("the<unk>", False)]


def test_a_lexicon_spelled_in_word_pieces() -> None:
    tokens = ["-", PIECE + "the", PIECE + "th", "e", "n"]
    fusion = Fusion(tokens, lexicon=Lexicon({"the": [PIECE + "the"], "then": f"{PIECE}th e n"}))
    assert [word.text for word in fusion.trace([1, 2, 3, 4]).words] == ["the", "then"]
    assert not fusion.trace([2, 3]).allowed  # the letters of "the", but not its spelling


@pytest.mark.parametrize("blank", ["<space>", "|", PIECE, "_"])
def test_the_unit_of_a_model_is_seen_from_its_words(blank: str) -> None:
    spaced = [[blank if c == "<space>" else c for c in text] for text in CHARACTER_TEXTS]
    lm = NGramModel.estimate(spaced, 3)
    fusion = Fusion(TOKENS, lm=lm)
    text = [blank if c == "<space>" else c for c in characters("ab c")]
    assert fusion.trace(ids("ab c")).lm_score == pytest.approx(lm.score(text), abs=1e-5)
    words = Fusion(TOKENS, lm=model(WORD_ARPA))
    assert words.trace(ids("ab c")).lm_score == pytest.approx(
        model(WORD_ARPA).score("ab c"), abs=1e-5
    )


def test_special_words_and_the_blank_say_nothing_of_the_unit() -> None:
    lm = NGramModel.estimate([["a", "cab", "abc"]], 2)
    fusion = Fusion(["<unk>", "<s>", "</s>", " ", "a", "b", "c"], lm=lm)
    words = fusion.trace([6, 4, 5]).words
    assert [(word.text, word.known) for word in words] == [("cab", True)]
    blank = Fusion(["cab", " ", "a", "b", "c"], lm=lm)
    assert [word.known for word in blank.trace([4, 2, 3]).words] == [True]


def test_a_token_that_is_nul_is_a_letter() -> None:
    fusion = Fusion(["-", "|", "\0", "a"], lexicon=Lexicon({"x": [["a", "\0"]]}), unknown_score=-1)
    words = fusion.trace([3, 2, 1, 2, 3]).words
    assert [(word.text, word.known) for word in words] == [("x", True), ("\0a", False)]


def test_weight_zero_is_no_model() -> None:
    assert Fusion(TOKENS, lm=model(WORD_ARPA), lm_weight=0).trace(ids("ab c")).total == 0


def test_pickled_and_on_a_device() -> None:
    fusion = Fusion(TOKENS, **CASES["everything"][0])
    again = pickle.loads(pickle.dumps(fusion))
    assert again.trace(ids("cab a ab")) == fusion.trace(ids("cab a ab"))
    assert again.address != fusion.address
    view = fusion.view_on(torch.device("cpu"))
    assert view is fusion.view_on(torch.device("cpu"))
    assert view != fusion._view  # the same numbers, and tables that lie elsewhere
    assert len(view) == len(fusion._view)


def test_lexicon_files(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text("\ufeffa a |\n\nab a b |\na a a |\n")
    lexicon = Lexicon.from_file(path)
    assert lexicon.words == ["a", "ab"]
    assert lexicon.spellings == [(0, ("a", "|")), (0, ("a", "a", "|")), (1, ("a", "b", "|"))]
    path.write_text("a\nab\na\n")
    letters = Lexicon.from_file(path)
    assert (letters.words, letters.spellings) == (["a", "ab"], None)
    assert len(letters) == 2
    assert repr(letters) == "<Lexicon of 2 words, spelled by letters>"
    for content, message in {
        "a a\nab\n": r"lexicon\.txt: line 2: 'ab' has no spelling",
        "a\nab a b\n": r"lexicon\.txt: line 2: 'ab' has a spelling",
        "\n": r"lexicon\.txt: no word",
    }.items():
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            Lexicon.from_file(path)
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(ValueError, match="line 2: not UTF-8"):
        Lexicon.from_file(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "at least one word"),
        (["a b"], "'a b' is no word"),
        ([""], "'' is no word"),
        ({"a": []}, "empty spelling, or none, for 'a'"),
        ({"a": ["a", " "]}, "empty spelling, or none, for 'a'"),
    ],
)
def test_lexicons_that_make_no_sense(words: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lexicon(words)


NAN = float("nan")
PLAIN = ["-", "a", "b"]


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (TOKENS, {"lm_weight": -1.0}, "lm_weight must be at least 0, not -1.0"),
        (TOKENS, {"lm_weight": NAN}, "lm_weight is nan: it must be from"),
        (TOKENS, {"word_score": math.inf}, "word_score is inf: it must be from"),
        (
            TOKENS,
            {"word_score": 1e7},
            r"word_score is 10000000.0: it must be from -1e\+06 to 1e\+06",
        ),
        (TOKENS, {"lm_unit": "letter"}, "lm_unit must be 'token' or 'word', not 'letter'"),
        (TOKENS, {"word_boundary": "|"}, r"word_boundary is '\|', which is in no token"),
        (TOKENS, {"unknown_score": -1.0}, "unknown_score needs a lexicon"),
        (
            TOKENS,
            {"unknown_score": NAN, "lexicon": Lexicon(["a"])},
            "unknown_score must be a number below infinity, not nan",
        ),
        (TOKENS, {"lexicon": Lexicon(["a", "axe"])}, "word 'axe' cannot be spelled: .* 'x'"),
        (TOKENS, {"lexicon": Lexicon({"a": "a x"})}, "spells 'a' with 'x', which is no token"),
        (["-", "|", "a"], {"lexicon": Lexicon({"a": "a | a"})}, "nothing, or two words"),
        (["-", "|", "a"], {"lexicon": Lexicon({"a": "|"})}, "nothing, or two words"),
        (TOKENS, {"hotwords": ["ax"]}, "hotword 'ax' cannot be spelled: no token has 'x'"),
        (TOKENS, {"hotwords": [" "]}, "hotword ' ' is empty"),
        (TOKENS, {"hotwords": {"a": NAN}}, "bonus of hotword 'a' is nan: it must be from"),
        (PLAIN, {"hotwords": ["a b"]}, "hotword 'a b' has a blank"),
        (PLAIN, {"lexicon": Lexicon(["a"])}, "lexicon needs a token that is a boundary"),
        (PLAIN, {"word_score": 1.0}, "word_score needs a token that is a boundary"),
        (PLAIN, {"lm": model(WORD_ARPA), "lm_unit": "word"}, "model of words needs a token"),
        (["-", " ", "x"], {"lm": model(WORD_ARPA)}, r"none of the 6 words .* one is '[abc]+'\."),
        (["-", "x"], {"lm": model(WORD_ARPA), "lm_unit": "token"}, "none of the tokens is a word"),
    ],
)
def test_arguments_that_make_no_sense(
    tokens: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Fusion(tokens, **options)


def test_one_text_is_not_a_collection() -> None:
    with pytest.raises(TypeError, match="hotwords must be a collection"):
        Fusion(TOKENS, hotwords="ab")
    with pytest.raises(TypeError, match="words must be a mapping or a collection"):
        Lexicon("ab")
    with pytest.raises(TypeError, match="hotwords must be a collection of phrases, not int"):
        Fusion(TOKENS, hotwords=5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (5, "words must be a mapping or a collection of words, not int"),
        (b"ab", "words must be a mapping or a collection of words, not bytes"),
        ([5], "words must be texts, got int"),
        ({"a": None}, "spelling of 'a' must be a text or a list of spellings, got NoneType"),
        ({"a": [b"ab"]}, "spelling of 'a' must be a text or a list of spellings, got bytes"),
        ({"a": [[5]]}, "spells 'a' with what is no text"),
    ],
)
def test_lexicons_of_what_is_no_text(words: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Lexicon(words)


def test_too_many_spellings_of_a_phrase() -> None:
    tokens = ["-", "|", "a", "b", "c"]
    lexicon = Lexicon({"x": ["a", "b", "c"]})
    Fusion(tokens, lexicon=lexicon, hotwords=["x x x x x"])
    with pytest.raises(ValueError, match="has more than 256 spellings"):
        Fusion(tokens, lexicon=lexicon, hotwords=["x x x x x x"])
