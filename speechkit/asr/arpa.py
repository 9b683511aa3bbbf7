"""The ARPA format of n-gram models, read and written. In: a path. Out: an `NGram`; and back.

    \\data\\           how many n-grams of each length: `ngram 2=714`
    \\2-grams:        one line each: log10 probability, the units, log10 back-off weight (left out where it is 0)
    \\end\\

(Format: D. Paul's, as SRILM's manual page ngram-format(5) writes it down.)
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from speechkit.asr.lm import BEGIN, END, UNKNOWN, NGram
from speechkit.asr.trie import Trie
from speechkit.errors import DataError, OutputError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from speechkit.asr.lm import Unit

__all__ = ["read", "write"]

LN10 = math.log(10.0)
NEVER = -99.0  # log10; what the format writes for a probability of zero
# for a file without <unk>: how much rarer than its rarest unit an unknown one is. With much more, a search, which
# pays it once per unknown word of whatever length, runs unknown words together
RARER_LOG10 = 1.0
CHAR_SHARE = 0.9
_COUNT = re.compile(r"ngram\s+(\d+)\s*=\s*(\d+)$")


def read(path: str | os.PathLike[str], unit: Unit | Literal["auto"] = "auto") -> NGram:
    """See :meth:`NGram.read`."""
    if unit not in ("auto", "word", "char"):
        raise DataError(f"unit is {unit!r}; it can be 'auto', 'word' or 'char'")
    reader = _Reader(Path(path))
    words, levels = reader.everything()
    return _assemble(words, levels, reader, unit)


def write(model: NGram, path: str | os.PathLike[str]) -> None:
    """See :meth:`NGram.write`."""
    target = Path(path)
    opened = gzip.open if target.suffix == ".gz" else open
    try:
        with opened(target, "wt", encoding="utf-8", newline="\n") as file:
            file.write("\\data\\\n")
            file.writelines(f"ngram {n}={count}\n" for n, count in enumerate(model.counts, 1))
            texts = [""]  # per node; the parent's text is ready before the child's, since levels come in order
            parents, symbols = model.trie.parents.tolist(), model.trie.symbols.tolist()
            for n in range(1, model.order + 1):
                file.write(f"\n\\{n}-grams:\n")
                rows = model.trie.level(n)
                for node in range(rows.start, rows.stop):
                    before = texts[parents[node]]
                    texts.append(f"{before} {model.words[symbols[node]]}" if before else model.words[symbols[node]])
                    weight = model.backoff[node] / LN10
                    tail = f"\t{weight:.7g}" if weight else ""
                    file.write(f"{model.logp[node] / LN10:.7g}\t{texts[node]}{tail}\n")
            file.write("\n\\end\\\n")
    except OSError as error:
        raise OutputError(f"{target}: the language model cannot be written: {error.strerror or error}") from error


class _Reader:
    """Walks the lines once; every complaint names the file and the line."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, 0

    def wrong(self, what: str, line: int | None = None) -> DataError:
        return DataError(f"{self.path}, line {self.number if line is None else line}: {what}")

    def everything(self) -> tuple[list[str], list[_Level]]:
        """All sections → the units, and one level per length."""
        lines = self._lines()
        try:
            counts = self._header(lines)
            words: dict[str, int] = {}
            levels: list[_Level] = []
            for n, count in enumerate(counts, 1):
                levels.append(self._section(lines, n, count, words, "end" if n == len(counts) else f"{n + 1}-grams:"))
            for _ in lines:  # a gz file's checksum stands at its end and is compared when that is reached
                pass
        except UnicodeDecodeError as error:
            raise self.wrong("not UTF-8; convert the file first", self.number + 1) from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise self.wrong(f"the gz file is damaged or cut off ({error})", self.number + 1) from error
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        return list(words), levels

    def _lines(self) -> Iterator[str]:
        """Lines without their ends, blank ones left out; gz is told by its first two bytes, not by the name."""
        with self.path.open("rb") as probe:
            packed = probe.read(2) == b"\x1f\x8b"
        opened = gzip.open if packed else open
        with opened(self.path, "rt", encoding="utf-8", newline="\n") as file:
            for self.number, line in enumerate(file, 1):
                text = line.strip(" \t\r\n")
                if text:
                    yield text

    def _header(self, lines: Iterator[str]) -> list[int]:
        if not any(line == "\\data\\" for line in lines):
            raise self.wrong("the file ends and no line was \\data\\: this is not an ARPA language model")
        counts: list[int] = []
        for line in lines:
            if line == "\\1-grams:":
                break
            match = _COUNT.match(line)
            if not match or int(match[1]) != len(counts) + 1:
                wanted = f"'ngram {len(counts) + 1}=COUNT'" + (" or '\\1-grams:'" if counts else "")
                raise self.wrong(f"{line[:60]!r} stands where {wanted} is expected")
            counts.append(int(match[2]))
        else:
            raise self.wrong("the file ends before \\1-grams:")
        if not counts:
            raise self.wrong("\\1-grams: begins and no line said how many there are ('ngram 1=COUNT')")
        return counts

    def _section(self, lines: Iterator[str], n: int, count: int, words: dict[str, int], after: str) -> _Level:
        """The n-grams of one length, up to and with the head of the next section."""
        level, last = _Level(n), f"\\{n}-grams:"
        for line in lines:
            if line[0] == "\\":
                if line != f"\\{after}" + ("\\" if after == "end" else ""):
                    raise self.wrong(f"{line[:60]!r} stands where '\\{after}' is expected")
                if len(level.logp) != count:
                    raise self.wrong(f"the head promised {count:,} {n}-grams, there are {len(level.logp):,}")
                return level
            self._entry(line, n, level, words)
        raise self.wrong(f"the file ends within {last} and without \\end\\: it is cut off")

    def _entry(self, line: str, n: int, level: _Level, words: dict[str, int]) -> None:
        fields = line.replace("\t", " ").split(" ")  # not split(): an ideographic space may be a unit
        if "" in fields:
            fields = [field for field in fields if field]
        if not n + 1 <= len(fields) <= n + 2:
            raise self.wrong(
                f"{len(fields)} fields; a {n}-gram has {n + 1} (log10 probability, {n} units) or {n + 2} "
                "(and log10 back-off weight)"
            )
        logp = self._number(fields[0], "log10 probability")
        if logp > 1e-4:  # rounding in other tools may leave a hair above zero
            raise self.wrong(f"the log10 probability is {fields[0]}; it must not be above 0")
        if n == 1 and words.setdefault(fields[1], len(words)) != len(level.logp):
            raise self.wrong(f"{fields[1]!r} stands twice among the 1-grams")
        try:
            level.units.extend([words[word] for word in fields[1 : n + 1]])
        except KeyError as error:
            raise self.wrong(f"{error.args[0]!r} is not among the 1-grams") from None
        level.logp.append(min(max(logp, NEVER), 0.0))
        level.backoff.append(self._number(fields[-1], "log10 back-off weight") if len(fields) == n + 2 else 0.0)
        level.lines.append(self.number)

    def _number(self, text: str, what: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise self.wrong(f"the {what} is {text[:40]!r}, not a number") from None
        if math.isnan(value) or value == math.inf:
            raise self.wrong(f"the {what} is {text}; a finite number is needed")
        return max(value, NEVER)


class _Level:
    """What one section holds, flat and in the file's order."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.units: list[int] = []
        self.logp: list[float] = []
        self.backoff: list[float] = []
        self.lines: list[int] = []


def _assemble(words: list[str], levels: list[_Level], reader: _Reader, unit: Unit | Literal["auto"]) -> NGram:
    if not words:
        raise reader.wrong("the model has no 1-grams")
    note = "" if UNKNOWN in words else _add_unknown(words, levels[0])
    trie = Trie(len(words))
    logp, backoff = [np.zeros(1)], [np.zeros(1)]
    for level in levels:
        nodes = _placed(trie, level, words, reader)
        first = len(trie) - len(trie.levels[-1])
        for values, out in ((level.logp, logp), (level.backoff, backoff)):
            row = np.zeros(len(nodes))
            row[nodes - first] = np.array(values) * LN10
            out.append(row)
    shorter = trie.suffixes()
    if unit == "auto":
        real = [word for word in words if word not in (BEGIN, END, UNKNOWN)]
        unit = "char" if sum(len(word) == 1 for word in real) >= CHAR_SHARE * len(real) > 0 else "word"
    return NGram(tuple(words), trie, np.concatenate(logp), np.concatenate(backoff), shorter, unit, note)


def _add_unknown(words: list[str], level: _Level) -> str:
    """Find <unk> under another name, or give the model one; → a note on the latter."""
    twin = next((word for word in words if word.lower() == UNKNOWN), None)  # SRILM's <unk>, others' <UNK>
    if twin is not None:
        words[words.index(twin)] = UNKNOWN
        return ""
    seen = [p for word, p in zip(words, level.logp, strict=True) if word not in (BEGIN, END) and p > NEVER]
    logp = max(min(seen, default=0.0) - RARER_LOG10, NEVER)
    words.append(UNKNOWN)
    level.units.append(len(words) - 1)
    level.logp.append(logp)
    level.backoff.append(0.0)
    return (
        f"the language model has no {UNKNOWN}: what it does not know is taken for {10**RARER_LOG10:.0f} times rarer "
        f"than its rarest 1-gram (log10 {logp:.3g}); train one with {UNKNOWN} to have that estimated"
    )


def _placed(trie: Trie, level: _Level, words: list[str], reader: _Reader) -> NDArray[np.int64]:
    """Add a section's n-grams to the trie → their nodes; an n-gram twice or without its context is an error."""
    units = np.array(level.units, np.int64).reshape(-1, level.n)
    contexts = np.zeros(len(units), np.int64)
    for column in units.T[:-1]:
        contexts = trie.find(contexts, column).astype(np.int64)
    for row in np.flatnonzero(contexts < 0)[:1].tolist():
        missing = " ".join(words[unit] for unit in units[row, :-1])
        raise reader.wrong(f"its context {missing!r} is not among the {level.n - 1}-grams", level.lines[row])
    nodes = trie.grow(contexts, units[:, -1])
    if len(trie.levels[-1]) < len(nodes):
        _, first = np.unique(nodes, return_index=True)
        row = int(np.setdiff1d(np.arange(len(nodes)), first)[0])
        text = " ".join(words[unit] for unit in units[row])
        raise reader.wrong(f"{text!r} stands twice among the {level.n}-grams", level.lines[row])
    return nodes
