"""N-gram models: kenlm's numbers, broken files, estimation."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import math
import os
import pickle
import random
import threading
from pathlib import Path

import pytest

from fastctc.cli import main
from fastctc.estimate import arpa_lines, characters, save
from fastctc.lm import NGramModel
from fastctc.reference.language_model import NGram, parse_arpa

DATA = Path(__file__).parent / "data"
PRUNED = DATA / "pruned.arpa"
# From kenlm 0.3.0, full_scores on the same file.
KENLM = json.loads((DATA / "pruned.kenlm.json").read_text())
LN10 = math.log(10)

pytestmark = pytest.mark.usefixtures("needs_library")


def read(tmp_path: Path, text: str | bytes, **options: float) -> NGramModel:
    path = tmp_path / "model.arpa"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return NGramModel.from_arpa(path, **options)


def write(ngrams: dict[str, tuple[float, ...]]) -> str:
    """An ARPA text of "a b": (log10 probability, log10 back-off)."""
    order = max(len(words.split()) for words in ngrams)
    sections = [[w for w in ngrams if len(w.split()) == n] for n in range(1, order + 1)]
    lines = ["\\data\\", *(f"ngram {n}={len(s)}" for n, s in enumerate(sections, 1))]
    for n, section in enumerate(sections, 1):
        lines += ["", f"\\{n}-grams:"]
        for words in section:
            score, *backoff = ngrams[words]
            lines.append("\t".join([str(score), words, *map(str, backoff)]))
    return "\n".join([*lines, "", "\\end\\", ""])


@pytest.mark.parametrize("case", KENLM, ids=lambda c: f"{c['sentence']}-{c['bos']}")
def test_scores_are_those_of_kenlm(case: dict) -> None:
    model = NGramModel.from_arpa(PRUNED)
    scores = model.word_scores(case["sentence"], bos=case["bos"], eos=case["eos"])
    assert [score / LN10 for _, score, _ in scores] == pytest.approx(case["log10"], abs=1e-6)
    total = model.score(case["sentence"].split(), bos=case["bos"], eos=case["eos"])
    assert total / LN10 == pytest.approx(sum(case["log10"]), abs=1e-5)


def test_scores_are_those_of_the_kenlm_at_hand(tmp_path: Path) -> None:
    kenlm = pytest.importorskip("kenlm", reason="kenlm is not installed")
    path = tmp_path / "model.arpa"
    rng = random.Random(5)
    texts = [rng.choices("abcdefgh", k=rng.randint(1, 9)) for _ in range(200)]
    path.write_text("".join(arpa_lines(texts, 4)))
    model, theirs = NGramModel.from_arpa(path), kenlm.Model(str(path))
    for _ in range(50):
        text = " ".join(rng.choices("abcdefghz", k=8))
        assert model.score(text) / LN10 == pytest.approx(theirs.score(text), abs=1e-5)


def test_a_context_that_was_pruned_away_counts_with_its_backed_off_score(tmp_path: Path) -> None:
    text = write(
        {
            "<s>": (-99, -0.3),
            "</s>": (-1.0,),
            "<unk>": (-2.0,),
            "a": (-0.8, -0.4),
            "b": (-0.7, -0.2),
            "c": (-0.6, -0.1),
            "b c": (-0.5, -0.3),
            "a b c": (-0.1, 0),  # without "a b"
            "b c a": (-0.2, -0.6),
            "c a b a": (-0.05,),  # without "c a b" and "c a"
        }
    )
    model, twin = read(tmp_path, text), parse_arpa(text)
    for words in itertools.product("abcx", repeat=5):
        got = [score for _, score, _ in model.word_scores(words)]
        assert got == pytest.approx(twin.word_scores(words), abs=1e-5), words


def test_random_models_agree_with_the_definition(tmp_path: Path) -> None:
    rng = random.Random(1)
    vocabulary = ["<s>", "</s>", "<unk>", "a", "b", "c"]
    for order in (1, 2, 3, 4):
        ngrams: dict[str, tuple[float, ...]] = {}
        for n in range(1, order + 1):
            for words in itertools.product(vocabulary, repeat=n):
                if n == 1 or rng.random() < 0.4:
                    backoff = () if n == order else (round(rng.uniform(-1, 0.2), 3),)
                    ngrams[" ".join(words)] = (round(rng.uniform(-2, 0), 3), *backoff)
        text = write(ngrams)
        model, twin = read(tmp_path, text), parse_arpa(text)
        for _ in range(60):
            words = rng.choices(["a", "b", "c", "zzz"], k=6)
            got = [score for _, score, _ in model.word_scores(words)]
            assert got == pytest.approx(twin.word_scores(words), abs=2e-5)


def test_gzip_text_and_foreign_line_ends_are_the_same_model(tmp_path: Path) -> None:
    plain = PRUNED.read_bytes()
    want = NGramModel.from_arpa(PRUNED)
    variants = {
        "gzip": gzip.compress(plain),
        "crlf": plain.replace(b"\n", b"\r\n"),
        "blanks": plain.replace(b"\t", b"  "),
        "mark": b"\xef\xbb\xbf" + plain,
        "preface": b"made by hand\n\n" + plain,
        "no last line feed": plain.rstrip(),
    }
    for name, variant in variants.items():
        got = read(tmp_path, variant)
        assert got._table == want._table, name
        assert got.words == want.words, name


def test_text_in_pieces_of_any_size_is_the_same_model() -> None:
    text = PRUNED.read_bytes()
    want = NGramModel._read([text], -100.0)
    for size in (1, 7, 64):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert NGramModel._read(pieces, -100.0)._table == want._table


def test_unknown_words(tmp_path: Path) -> None:
    known = {"<s>": (-99.0,), "</s>": (-1.0,), "a": (-0.5,)}
    listed = read(tmp_path, write({**known, "<UNK>": (-3.0,)}))
    assert listed.unknown_is_listed
    assert listed.word_scores("b", eos=False) == [("b", pytest.approx(-3 * LN10), False)]
    absent = read(tmp_path, write(known))
    assert not absent.unknown_is_listed
    assert absent.score("b", eos=False) == pytest.approx(-100 * LN10)
    assert read(tmp_path, write(known), unknown_log10=-4.0).score("b", eos=False) == pytest.approx(
        -4 * LN10
    )
    assert absent.word_scores("a", eos=False)[0].known
    with pytest.raises(ValueError, match=r"unknown_log10 must be at most 0, not 1\.0"):
        read(tmp_path, write(known), unknown_log10=1.0)


def test_models_without_sentence_marks(tmp_path: Path) -> None:
    model = read(tmp_path, write({"a": (-0.5, -0.1), "b": (-0.6,), "a b": (-0.2,)}))
    assert model.score("a b") == pytest.approx(-0.7 * LN10)
    assert model.perplexity("a b") == pytest.approx(10**0.35)
    with pytest.raises(ValueError, match="perplexity of no words"):
        model.perplexity("")
    hopeless = read(tmp_path, write({"a": (-0.5,)}), unknown_log10=-1000.0)
    assert hopeless.perplexity("b") == math.inf


def test_what_a_model_says_of_itself() -> None:
    model = NGramModel.from_arpa(PRUNED)
    assert model.order == 4
    assert model.counts == (18, 27, 27, 16)
    assert "cat" in model
    assert "zebra" not in model
    assert "18 1-grams" in repr(model)
    again = pickle.loads(pickle.dumps(model))
    assert again.score("the old cat") == model.score("the old cat")


GOOD = write({"<s>": (-99, -0.3), "</s>": (-1,), "a": (-0.5, -0.1), "a </s>": (-0.2,)})


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("\\data\\", "data", 13, "ends without a line"),
        ("ngram 2=1", "ngram 3=1", 3, "count of order 2 should come next"),
        ("ngram 2=1", "ngram 2=one", 3, "a count like"),
        ("ngram 2=1", "ngram 2=-1", 3, "a count like"),
        ("ngram 2=1", "2-grams", 3, "'ngram 1=...' or .* was expected"),
        ("ngram 2=1", "ngram 2=2", 13, "ends after 1 n-grams; .* announces 2"),
        ("ngram 2=1", "ngram 2=0", 11, "more n-grams than the 0"),
        ("ngram 1=3", "ngram 1=99999999999999999", 10, "ends after 3 n-grams"),
        ("\\2-grams:", "\\3-grams:", 10, r"2-grams: should come next"),
        ("\\2-grams:", "", 11, "more n-grams than the 3"),
        ("\\1-grams:", "\\end\\", 5, r"1-grams: should be"),
        ("-0.5\ta", "-0.5x\ta", 8, "'-0.5x' is not a log10 probability"),
        ("-0.5\ta", "nan\ta", 8, "'nan' is not a log10 probability"),
        ("-0.5\ta", "0.5\ta", 8, "'0.5' is above 0"),
        ("-0.5\ta", "-1e\ta", 8, "'-1e' is not a log10 probability"),
        ("-0.5\ta\t-0.1", "-0.5", 8, "a log10 probability, 1 word and perhaps"),
        ("a\t-0.1", "a\t-0.1\t-0.1", 8, "a log10 probability, 1 word and perhaps"),
        ("a\t-0.1", "a\t-inf", 8, "'-inf' is not a log10 back-off"),
        ("a\t-0.1", "</s>\t-0.1", 8, "'</s>' is there twice"),
        ("-0.2\ta </s>", "-0.2\ta </s>\t-0.4", 11, "highest order have no back-off"),
        ("-0.2\ta </s>", "-0.2\ta b", 11, "'b' is not among"),
        ("-0.2\ta </s>", "-0.2\ta <unk>", 11, "'<unk>' is not among"),
        ("-0.2\ta </s>", "-0.2\ta", 11, "2 words and nothing more were expected"),
        ("\n\\end\\", "", 12, r"ends before .*end"),
        ("\\end\\", "\\end\\\nmore", 14, "text after"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_by_line(
    tmp_path: Path, old: str, new: str, line: int, message: str
) -> None:
    assert old in GOOD
    read(tmp_path, GOOD)
    with pytest.raises(ValueError, match=rf"model\.arpa: line {line}: .*{message}"):
        read(tmp_path, GOOD.replace(old, new, 1))


def test_files_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 0: the text ends without"):
        read(tmp_path, "")
    with pytest.raises(ValueError, match="line 1: longer than 1048576 bytes"):
        read(tmp_path, b"\0" * (1 << 21))
    with pytest.raises(ValueError, match=r"line 1: a model in kenlm's binary form"):
        read(tmp_path, b"mmap lm http://kheafield.com/code format version 5\n\0")
    with pytest.raises(ValueError, match="line 8: the word is not UTF-8"):
        read(tmp_path, GOOD.encode().replace(b"\ta\t", b"\t\xe4\t"))
    with pytest.raises(ValueError, match=r"model\.arpa: line \d+: broken gzip data"):
        read(tmp_path, gzip.compress(GOOD.encode())[:-20])
    with pytest.raises(ValueError, match=r"line 4: .* not 'ngram \\xff\\x01\\xc3'"):
        read(tmp_path, b"\\data\\\nngram 1=1\n\nngram \xff\x01\xc3\n")
    with pytest.raises(ValueError, match=f"line 2: .* not 'x{30 * chr(0xE9)}\\.\\.\\.'"):
        read(tmp_path, "\\data\\\nx" + 40 * chr(0xE9))
    with pytest.raises(FileNotFoundError):
        NGramModel.from_arpa(tmp_path / "absent.arpa")
    twice = write({"a": (-1,), "a a": (-1,)}).replace("ngram 2=1", "ngram 2=2")
    with pytest.raises(ValueError, match="this n-gram is there twice"):
        read(tmp_path, twice.replace("-1\ta a", "-1\ta a\n-2\ta a"))


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Cut off, with bytes changed, with a piece missing or twice, or with its lines in disorder."""
    first, second = sorted(rng.randrange(len(data)) for _ in range(2))
    lines = data.split(b"\n")
    line = rng.randrange(len(lines))
    number = rng.choice([b"nan", b"inf", b"1e999", b"1e38", b"-1e38", b"", b"9" * 400, b"\xff"])
    return rng.choice(
        [
            lambda: data[:first],
            lambda: data[:first] + bytes([rng.randrange(256)]) + data[first + 1 :],
            lambda: data[:first] + data[second:],
            lambda: data[:second] + data[first:],
            lambda: b"\n".join(rng.sample(lines, len(lines))),
            lambda: b"\n".join([*lines[:line], number + b"\t" + lines[line], *lines[line:]]),
            lambda: b"\n".join([*lines[:line], lines[line] + b"\t" + number, *lines[line + 1 :]]),
        ]
    )()


def outcome(tmp_path: Path, data: bytes) -> NGramModel | str:
    """A model, or why there is none."""
    try:
        return read(tmp_path, data)
    except ValueError as error:
        return str(error)


def test_damaged_files_are_refused_by_line_or_read(tmp_path: Path) -> None:
    rng = random.Random(3)
    refused = 0
    for _ in range(1500):
        data = damaged(rng, rng.choice([GOOD.encode(), PRUNED.read_bytes()]))
        if rng.random() < 0.3:
            data = gzip.compress(data, 1)
            if rng.random() < 0.7:
                data = damaged(rng, data)
        found = outcome(tmp_path, data)
        if isinstance(found, str):
            refused += 1
            assert "model.arpa: line " in found
        else:
            assert all(-math.inf <= score < 1e9 for _, score, _ in found.word_scores("a b zzz a"))
    assert refused > 1200


def test_models_of_many_words_agree_with_the_definition(tmp_path: Path) -> None:
    """Those of few words have a table of every step, these have not."""
    rng = random.Random(4)
    words = [f"w{i}" for i in range(300)]
    texts = [rng.choices(words, weights=range(300, 0, -1), k=9) for _ in range(200)]
    text = "".join(arpa_lines(texts, 3))
    model, twin = read(tmp_path, text), parse_arpa(text)
    for sentence in [*texts[:20], *(rng.choices([*words, "zzz"], k=9) for _ in range(20))]:
        found = [score for _, score, _ in model.word_scores(sentence)]
        assert found == pytest.approx(twin.word_scores(sentence), abs=1e-4)


TEXTS = [line.split() for line in ["a b a c", "b a", "a", "c a b a b", "b b a c", "", "a b"] * 3]


def every_context(twin: NGram) -> set[tuple[str, ...]]:
    return {words[:-1] for words in twin.ngrams} | {("zzz",), ("c", "c", "c")}


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("texts", [TEXTS, [["a"]], [list("abracadabra")]])
def test_estimated_probabilities_add_up_to_one(order: int, texts: list[list[str]]) -> None:
    twin = parse_arpa("".join(arpa_lines(texts, order)))
    words = twin.words - {"<s>"}
    for context in every_context(twin):
        if "</s>" in context:
            continue
        total = sum(10 ** twin.log10(context, word) for word in words)
        assert total == pytest.approx(1, abs=1e-6), context


def test_kneser_ney_by_hand() -> None:
    """One sentence, "a a b": discounts are 1/2, as there is too little to estimate them from."""
    twin = parse_arpa("".join(arpa_lines([["a", "a", "b"]], 2)))
    # Seen after: a, in 2 contexts; b in 1; </s> in 1. Uniform over a, b, </s>, <unk>.
    freed = (1.0 + 0.5 + 0.5) / 4
    one = {"a": 1 / 4 + freed / 4, "b": 0.5 / 4 + freed / 4, "<unk>": freed / 4}
    assert 10 ** twin.log10((), "a") == pytest.approx(one["a"])
    assert 10 ** twin.log10((), "zzz") == pytest.approx(one["<unk>"])
    # After a: a once, b once, half of each given to the unigrams.
    assert 10 ** twin.log10(("a",), "b") == pytest.approx(0.5 / 2 + 0.5 * one["b"])
    assert 10 ** twin.log10(("a",), "zzz") == pytest.approx(0.5 * one["<unk>"])


def test_discounts_come_from_the_counts_of_counts() -> None:
    """Words a..e as often as 1, 2, 3, 4 and 1 times."""
    text = "".join(arpa_lines([list("abbcccdddde")], 1))
    twin = parse_arpa(text)
    n1, n2, n3, n4 = 3, 1, 1, 1  # a, e and the end; b; c; d
    y = n1 / (n1 + 2 * n2)
    d1, d2, d3 = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
    freed = (3 * d1 + d2 + 2 * d3) / 12
    assert 10 ** twin.log10((), "a") == pytest.approx((1 - d1) / 12 + freed / 7)
    assert 10 ** twin.log10((), "b") == pytest.approx((2 - d2) / 12 + freed / 7)
    assert 10 ** twin.log10((), "d") == pytest.approx((4 - d3) / 12 + freed / 7)


def test_a_model_prefers_what_it_was_estimated_from() -> None:
    model = NGramModel.estimate(TEXTS, 3)
    assert model.order == 3
    assert model.score("a b a c") > model.score("c a b a") > model.score("zzz zzz zzz zzz")


@pytest.mark.parametrize("word", ["<s>", "</s>", "<unk>", "", "a b", "a\tb", "\udc80"])
def test_words_that_no_arpa_file_can_hold_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"sentence 2: .* cannot be a word"):
        arpa_lines([["a"], ["b", word]], 2)


def test_estimation_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="order must be from 1 to 16, not 0"):
        arpa_lines([["a"]], 0)
    for order in ("2", 1.5):
        with pytest.raises(TypeError, match=r"order must be an int, got (str|float)"):
            NGramModel.estimate([["a"]], order)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no sentence"):
        arpa_lines([[]], 2)


def test_the_command_writes_what_the_reader_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("so  it is\nis it so\n")
    for name in ("model.arpa", "model.arpa.gz"):
        output = tmp_path / name
        arguments = ["lm", "--order", "4", "--unit", "char", str(texts), "-o", str(output)]
        assert main(arguments) == 0
        model = NGramModel.from_arpa(output)
        assert model.order == 4
        assert set(model.words) == {"<s>", "</s>", "<unk>", "<space>", "s", "o", "i", "t"}
        expected = NGramModel.estimate(map(characters, ["so it is", "is it so"]), 4)
        assert model.score(characters("it so")) == expected.score(characters("it so"))
    assert main(["lm", str(tmp_path / "absent.txt"), "-o", str(tmp_path / "x.arpa")]) == 1
    texts.write_text("<s>\n")
    assert main(["lm", str(texts), "-o", str(tmp_path / "x.arpa")]) == 1
    assert "fastctc lm: sentence 1: '<s>' cannot be a word" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {
        "texts.txt",
        "model.arpa",
        "model.arpa.gz",
    }


def test_a_model_goes_where_its_path_leads(tmp_path: Path) -> None:
    lines = list(arpa_lines([["a", "b"]], 2))
    target, link, pipe = (tmp_path / name for name in ("model.arpa", "link.arpa", "pipe"))
    link.symlink_to(target)
    save(lines, link)
    assert link.is_symlink()
    assert target.read_text() == "".join(lines)
    os.mkfifo(pipe)
    read: list[NGramModel] = []
    reader = threading.Thread(target=lambda: read.append(NGramModel.from_arpa(pipe)), daemon=True)
    reader.start()
    save(lines, str(pipe))
    reader.join(20)
    assert pipe.is_fifo()
    assert [model.score("a b") for model in read] == [NGramModel.from_arpa(target).score("a b")]
    with pytest.raises(FileNotFoundError, match=r"absent/model\.arpa'$"):
        save(lines, str(tmp_path / "absent" / "model.arpa"))
    assert {path.name for path in tmp_path.iterdir()} == {"model.arpa", "link.arpa", "pipe"}


def test_reading_takes_time_linear_in_the_file() -> None:
    """A long file of one context is read word by word without a search through what came before."""
    words = [f"w{i}" for i in range(60_000)]
    text = io.StringIO()
    text.write(f"\\data\\\nngram 1={len(words)}\nngram 2={len(words)}\n\n\\1-grams:\n")
    text.writelines(f"-5\t{word}\t-0.1\n" for word in words)
    text.write("\n\\2-grams:\n")
    text.writelines(f"-1\tw0 {word}\n" for word in words)
    text.write("\n\\end\\\n")
    model = NGramModel._read([text.getvalue().encode()], -100.0)
    assert model.score("w0 w59999 w0", bos=False) == pytest.approx((-5 - 1 - 5.1) * LN10, rel=1e-6)
    assert len(model._table) < 50 * len(words)
