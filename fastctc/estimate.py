"""N-gram models estimated from texts: ``fastctc lm texts.txt -o model.arpa``.

Interpolated Kneser-Ney smoothing with three discounts per order (Chen & Goodman 1998, "An empirical
study of smoothing techniques for language modeling"). Everything is counted in memory, in Python:
meant for texts of up to a few million words.
"""

from __future__ import annotations

import argparse
import gzip
import math
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from fastctc._arguments import path_of, whole_number

__all__ = ["SPACE", "arpa_lines", "characters", "main", "save"]

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
SPACE = "<space>"  # a blank between words, in a model of characters

Words = tuple[str, ...]
Discounts = tuple[float, float, float]

HIGHEST_ORDER = 16
# Where counts are too few, or too regular, to estimate discounts from.
FALLBACK: Discounts = (0.5, 1.0, 1.5)
_UNWRITABLE = re.compile(r"[ \t\r\n\0\ud800-\udfff]")
_IMPOSSIBLE = -99.0  # log10 probability that the format gives to what never follows


def characters(text: str) -> list[str]:
    """A text as words of a model of characters: its letters, `SPACE` for one blank or several."""
    return [SPACE if letter == " " else letter for letter in " ".join(text.split())]


def arpa_lines(sentences: Iterable[Sequence[str]], order: int) -> Iterator[str]:
    """Estimate a model and write it in the ARPA format.

    Args:
        sentences: words of each; empty ones are left out.
        order: length of the longest n-grams, 1 to 16; less where no sentence is so long.

    Returns:
        Lines, each with its line feed. Every probability is that of the interpolated model, so
        that for each context those of all words but ``<s>``, ``<unk>`` included, add up to 1.

    Raises:
        TypeError: `order` is no int.
        ValueError: `order` is out of range, there is no sentence, or a word cannot stand in an
            ARPA file.
    """
    order = whole_number("order", order)
    if not 1 <= order <= HIGHEST_ORDER:
        raise ValueError(f"order must be from 1 to {HIGHEST_ORDER}, not {order}")
    counts = _adjusted_counts(_raw_counts(sentences, order))
    tables = _interpolated(counts)
    return _write(tables)


def _raw_counts(sentences: Iterable[Sequence[str]], order: int) -> list[Counter[Words]]:
    counts: list[Counter[Words]] = [Counter() for _ in range(order)]
    for number, sentence in enumerate(sentences, 1):
        if isinstance(sentence, (str, bytes)) or not isinstance(sentence, Iterable):
            raise TypeError(
                f"sentence {number} must be a list of words, got {type(sentence).__name__}"
            )
        if not sentence:
            continue
        for word in sentence:
            if word in (START, END, UNKNOWN) or not word or _UNWRITABLE.search(word):
                raise ValueError(
                    f"sentence {number}: {word!r} cannot be a word: it is empty, has a blank or "
                    "what UTF-8 cannot hold, or is one of the model's own"
                )
        words = (START, *sentence, END)
        for n, counter in enumerate(counts, 1):
            counter.update(zip(*(words[i:] for i in range(n)), strict=False))
    if not counts[0]:
        raise ValueError("there is no sentence to estimate a model from")
    return [counter for counter in counts if counter]  # no sentence may be as long as the order


def _adjusted_counts(raw: list[Counter[Words]]) -> list[dict[Words, int]]:
    """Below the highest order, in how many contexts an n-gram is seen.

    Nothing comes before the start of a sentence, so n-grams that begin there keep their counts.
    """
    adjusted: list[dict[Words, int]] = []
    for counter, longer in zip(raw, [*raw[1:], None], strict=True):
        if longer is None:
            adjusted.append(dict(counter))
            continue
        before = Counter(words[1:] for words in longer)
        adjusted.append({words: before.get(words, 0) or counter[words] for words in counter})
    del adjusted[0][START,]
    return adjusted


def _discounts(counts: Iterable[int]) -> Discounts:
    """What is taken off counts of 1, of 2, and of 3 and more."""
    seen = Counter(count for count in counts if count <= 4)
    if any(seen[i] == 0 for i in (1, 2, 3, 4)):
        return FALLBACK
    y = seen[1] / (seen[1] + 2 * seen[2])
    one, two, three = (i - (i + 1) * y * seen[i + 1] / seen[i] for i in (1, 2, 3))
    if not (0 <= one <= 1 and 0 <= two <= 2 and 0 <= three <= 3):
        return FALLBACK
    return one, two, three


def _interpolated(counts: list[dict[Words, int]]) -> list[dict[Words, tuple[float, float]]]:
    """Probability and back-off factor of every n-gram, order by order."""
    uniform = 1.0 / (len(counts[0]) + 1)  # over the words, the end and the unknown word
    tables: list[dict[Words, tuple[float, float]]] = []
    shorter: dict[Words, float] = {}
    for order, table in enumerate(counts, 1):
        discounts = _discounts(table.values())
        totals: dict[Words, int] = defaultdict(int)
        freed: dict[Words, float] = defaultdict(float)
        for words, count in table.items():
            totals[words[:-1]] += count
            freed[words[:-1]] += discounts[min(count, 3) - 1]
        factors = {context: freed[context] / total for context, total in totals.items()}
        if order > 1:
            lower = tables[-1]
            for context, factor in factors.items():
                lower[context] = lower[context][0], factor
        probabilities = {
            words: (count - discounts[min(count, 3) - 1]) / totals[words[:-1]]
            + factors[words[:-1]] * (shorter[words[1:]] if order > 1 else uniform)
            for words, count in table.items()
        }
        if order == 1:
            probabilities[UNKNOWN,] = factors[()] * uniform
            probabilities[START,] = 0.0
        tables.append({words: (p, 1.0) for words, p in probabilities.items()})
        shorter = probabilities
    return tables


def _log10(value: float) -> float:
    return math.log10(value) if value > 0 else _IMPOSSIBLE


def _write(tables: list[dict[Words, tuple[float, float]]]) -> Iterator[str]:
    yield "\\data\\\n"
    for order, table in enumerate(tables, 1):
        yield f"ngram {order}={len(table)}\n"
    for order, table in enumerate(tables, 1):
        yield f"\n\\{order}-grams:\n"
        for words, (probability, factor) in sorted(table.items()):
            line = f"{min(_log10(probability), 0.0):.7g}\t{' '.join(words)}"
            yield f"{line}\t{_log10(factor):.7g}\n" if order < len(tables) else f"{line}\n"
    yield "\n\\end\\\n"


def _sentences(paths: Sequence[str], by_character: bool) -> Iterator[list[str]]:
    for path in paths:
        with open(path, encoding="utf-8-sig") as file:
            try:
                for line in file:
                    yield characters(line) if by_character else line.split()
            except UnicodeDecodeError:
                raise ValueError(f"{path} is not UTF-8 text") from None


def main(args: Sequence[str]) -> int:
    """Run ``fastctc lm``; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="fastctc lm",
        description="Estimate an n-gram model (interpolated Kneser-Ney) and write an ARPA file.",
    )
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="UTF-8, a sentence on each line")
    parser.add_argument("-o", "--output", required=True, help="ARPA file; .gz compresses it")
    parser.add_argument("--order", type=int, default=3, help="longest n-grams (default: 3)")
    parser.add_argument(
        "--unit",
        choices=("word", "char"),
        default="word",
        help=f"what is counted; a blank between characters is written {SPACE} (default: word)",
    )
    options = parser.parse_args(list(args))
    try:
        lines = arpa_lines(_sentences(options.texts, options.unit == "char"), options.order)
        save(lines, options.output)
    except (OSError, ValueError) as error:
        print(f"fastctc lm: {error}", file=sys.stderr)
        return 1
    return 0


def save(lines: Iterable[str], path: str | os.PathLike[str]) -> None:
    """Write all of an ARPA file or nothing; .gz compresses it.

    A link is followed, and what is no regular file, a pipe or a device, is written to as it is.

    Raises:
        OSError: it cannot be written.
    """
    name = path_of("path", path)
    whole = os.path.isfile(name) or not os.path.exists(name)
    target = os.path.realpath(name) if whole else name
    partial = f"{target}.partial" if whole else name
    opener = gzip.open if name.endswith(".gz") else open
    try:
        with opener(partial, "wt", encoding="utf-8") as file:
            file.writelines(lines)
        if whole:
            os.replace(partial, target)
    except OSError as error:
        if error.filename != partial:
            raise
        raise OSError(error.errno, error.strerror, name) from None
    finally:
        if whole and os.path.exists(partial):
            os.remove(partial)
