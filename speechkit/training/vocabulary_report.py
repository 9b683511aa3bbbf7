"""What will go wrong with a vocabulary, before anything trains. In: vocabulary, texts, model. Out: findings with fixes.

Each finding is a collision that trains without an error message and shows as a word error rate stuck near 1: a blank
that is not the pad token, letters that are all unknown, two tokens that look alike. Knows no audio.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from speechkit.errors import ModelError
from speechkit.training.scripts import described, main_script, script_of, scripts, scripts_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from speechkit.training.vocabulary import Vocabulary

__all__ = ["Finding", "VocabularyReport", "vocabulary_doctor"]

SHOWN = 12
MUCH = 0.05  # share of unknown characters from which training is wasted: about one word in five is touched
STRAY = 0.01  # share of letters in another script below which they are look-alikes, not a language


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or odd. An error spoils training, a warning costs accuracy, a note is good to know."""

    kind: str
    severity: Literal["error", "warning", "note"]
    detail: str
    fix: str
    tokens: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.severity:<7}  {self.kind}: {self.detail}\n         → {self.fix}"


@dataclass(frozen=True)
class VocabularyReport:
    """Findings, the worst first. Shares are of the characters of the texts, spaces left out; None without texts."""

    findings: tuple[Finding, ...]
    tokens: int
    characters: int = 0
    unknown_share: float | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing here spoils training."""
        return not any(finding.severity == "error" for finding in self.findings)

    def found(self, kind: str) -> Finding | None:
        """The finding of this kind, if there is one."""
        return next((finding for finding in self.findings if finding.kind == kind), None)

    def __str__(self) -> str:
        return "\n".join([self._head(), *map(str, self.findings)])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{row.severity}</td><td>{escape(row.kind)}</td><td>{escape(row.detail)}</td>"
            f"<td>{escape(row.fix)}</td></tr>"
            for row in self.findings
        )
        titles = "<tr><th>how bad</th><th>what</th><th>detail</th><th>what to do</th></tr>"
        return f"<p>{escape(self._head())}</p>" + (f"<table>{titles}{rows}</table>" if rows else "")

    def _head(self) -> str:
        counts = Counter(finding.severity for finding in self.findings)
        said = ", ".join(f"{n} {name}{'s' * (n > 1)}" for name, n in counts.items()) or "nothing to complain of"
        share = "" if self.unknown_share is None else f", {self.unknown_share:.2%} of {self.characters:,} characters"
        return f"vocabulary of {self.tokens} tokens{share and f'{share} unknown'}: {said}"


def vocabulary_doctor(vocabulary: Any, texts: Iterable[str] | None = None, model: Any = None) -> VocabularyReport:
    """Look for collisions in `vocabulary`, against the `texts` that it is to write and the `model` that is to emit it.

    vocabulary: a `Vocabulary`, a model's folder or vocab.json, a processor, or a mapping of tokens to ids, however
    broken. texts: transcripts as they are, read once. model: anything with a `config` and perhaps an `lm_head`.

    Raises ModelError where there is no vocabulary at all.
    """
    from speechkit.training.vocabulary import Vocabulary

    if not isinstance(vocabulary, Vocabulary):
        table, repeated = _table(vocabulary)
        broken = tuple(_table_findings(table, repeated))
        if broken:
            return VocabularyReport(_sorted(broken), len(table))
        vocabulary = _from_table(table) if isinstance(vocabulary, dict) else Vocabulary.load(vocabulary)
    seen = _Seen.of(vocabulary, texts) if texts is not None else None
    findings = [*_own_findings(vocabulary), *_twins(vocabulary)]
    if model is not None:
        findings += _model_findings(vocabulary, model)
    if seen is not None:
        findings += [*_text_findings(vocabulary, seen), *_script_findings(vocabulary, seen)]
        return VocabularyReport(_sorted(findings), len(vocabulary), seen.total, seen.unknown_share)
    return VocabularyReport(_sorted(findings), len(vocabulary))


@dataclass(frozen=True)
class _Seen:
    """One pass over the texts."""

    total: int  # characters as prepared, spaces left out
    counts: Counter[str]
    missing: Counter[str]
    raw: Counter[str]  # characters as given → texts that hold them
    spaces: int

    @classmethod
    def of(cls, vocabulary: Vocabulary, texts: Iterable[str]) -> _Seen:
        counts: Counter[str] = Counter()
        missing: Counter[str] = Counter()
        raw: Counter[str] = Counter()
        for text in texts:
            counts.update(vocabulary.prepare(text))
            missing.update(vocabulary.missing(text))
            raw.update(set(text))
        spaces = counts.pop(" ", 0)
        return cls(sum(counts.values()), counts, missing, raw, spaces)

    @property
    def unknown_share(self) -> float:
        return sum(self.missing.values()) / self.total if self.total else 0.0


def _table(source: Any) -> tuple[Mapping[str, int], tuple[str, ...]]:
    """Token → id as written, and tokens that the file names twice."""
    if isinstance(source, dict):
        return source, ()
    if isinstance(source, str) or hasattr(source, "__fspath__"):
        file = Path(source)
        file = file if file.suffix == ".json" else file / "vocab.json"
        try:
            pairs = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=list)
        except (OSError, ValueError) as error:
            raise ModelError(f"{file} cannot be read as a vocabulary: {error}") from error
        if isinstance(pairs, list) and all(isinstance(pair, tuple) and isinstance(pair[1], int) for pair in pairs):
            counts = Counter(token for token, _ in pairs)
            return dict(pairs), tuple(token for token, count in counts.items() if count > 1)
    tokenizer = getattr(source, "tokenizer", source)  # a nested vocabulary comes here too, by its loaded tokenizer
    if isinstance(source, str) or hasattr(source, "__fspath__"):
        return {}, ()
    table = getattr(tokenizer, "encoder", None)
    if not table:
        raise ModelError(f"{type(source).__name__} has no CTC vocabulary; give a model's folder or its processor")
    return dict(table), ()


def _from_table(table: Mapping[str, int]) -> Vocabulary:
    """A mapping alone does not say which token is the blank: the usual names do."""
    from speechkit.training.vocabulary import Vocabulary

    def first(*names: str) -> int | None:
        return next((table[name] for name in names if name in table), None)

    blank = first("<pad>", "[PAD]", "<blank>", "_", "<s>")
    if blank is None:
        raise ModelError("no token of the mapping is called <pad> or [PAD]; give a Vocabulary, which names its blank")
    tokens = tuple(sorted(table, key=lambda token: table[token]))
    return Vocabulary(tokens, blank, first("<unk>", "[UNK]"), first("|", " "))


def _table_findings(table: Mapping[str, int], repeated: tuple[str, ...]) -> Iterator[Finding]:
    owners: dict[int, list[str]] = {}
    for token, number in table.items():
        owners.setdefault(number, []).append(token)
    shared = [tokens for tokens in owners.values() if len(tokens) > 1]
    if shared:
        named = ", ".join("/".join(map(repr, tokens)) for tokens in shared[:SHOWN])
        yield Finding(
            "duplicate ids", "error", f"tokens that share one id: {named}; only one of each can ever be written",
            "number the tokens from 0, each once", tuple(token for tokens in shared for token in tokens),
        )  # fmt: skip
    holes = sorted(set(range(len(owners))) - owners.keys())
    if holes and not shared:
        yield Finding(
            "gaps in the ids", "error", f"no token has id {', '.join(map(str, holes[:SHOWN]))}",
            f"number the {len(table)} tokens 0 to {len(table) - 1}, or the head has outputs that mean nothing",
        )  # fmt: skip
    if repeated:
        yield Finding(
            "duplicate tokens", "error", f"named twice in the file: {_shown(repeated)}; readers keep the last id only",
            "remove one of each and number the rest anew", repeated,
        )  # fmt: skip


def _own_findings(vocabulary: Vocabulary) -> Iterator[Finding]:
    """What is wrong with it by itself."""
    blank = vocabulary.tokens[vocabulary.blank]
    if vocabulary.blank in (vocabulary.unk, vocabulary.delimiter):
        other = "unknown token" if vocabulary.blank == vocabulary.unk else "word delimiter"
        yield Finding(
            "blank is taken", "error", f"{blank!r} is both the CTC blank and the {other}",
            "give the blank a token of its own, such as <pad>", (blank,),
        )  # fmt: skip
    elif len(blank) == 1 and blank.isalnum():
        yield Finding(
            "blank is a letter", "error", f"the blank is {blank!r}, which texts hold too",
            "name the blank <pad>", (blank,),
        )  # fmt: skip
    if len(vocabulary.letters) < 2:
        yield Finding(
            "one character", "error", f"{_shown(vocabulary.letters) or 'no token'} is all that it can write",
            "build it from the transcripts: build_vocabulary(texts)", vocabulary.letters,
        )  # fmt: skip
    if vocabulary.unk is None:
        yield Finding(
            "no unknown token", "note", "characters outside the vocabulary are left out of the labels",
            "fine where the texts hold none; else extend_vocabulary(vocabulary, texts)",
        )  # fmt: skip
    long = tuple(token for token in vocabulary.letters if len(token) > 1)
    if long:
        yield Finding(
            "tokens of several characters", "warning",
            f"{_shown(long)}: transformers' tokenizer drops the spaces beside such a token when it encodes",
            "encode labels by Vocabulary.encode, or use single characters", long,
        )  # fmt: skip


def _twins(vocabulary: Vocabulary) -> Iterator[Finding]:
    odd = tuple(token for token in vocabulary.letters if unicodedata.normalize("NFC", token) != token)
    if odd:
        yield Finding(
            "not NFC", "error", f"{_shown(odd)}: texts are compared in NFC, so these can never be met in a label",
            "write the tokens in NFC (build_vocabulary does), then resize_head", odd,
        )  # fmt: skip
    twins = _groups(vocabulary.letters, lambda token: unicodedata.normalize("NFC", token))
    alike = _groups(vocabulary.letters, lambda token: unicodedata.normalize("NFKC", token))
    if alike:  # other forms of a letter (full width, ligatures) do occur apart; the same letter twice never does
        yield Finding(
            "look-alikes", "error" if twins else "warning",
            f"the same character twice: {twins or alike}; the model has to guess which one is meant",
            "keep one of each, in NFC",
        )  # fmt: skip
    cased = [token for token in vocabulary.letters if token.lower() != token and token.lower() in vocabulary.ids]
    if cased:
        yield Finding(
            "both cases", "warning", f"{len(cased)} letters stand in capitals and in small: {_shown(cased)}",
            "keep one case, unless the transcripts have capitals where they are spoken of: case cannot be heard",
            tuple(cased),
        )  # fmt: skip


def _groups(tokens: Iterable[str], key: Any) -> str:
    found: dict[str, list[str]] = {}
    for token in tokens:
        found.setdefault(key(token), []).append(token)
    twins = [group for group in found.values() if len(group) > 1]
    return ", ".join("/".join(f"{t} ({_points(t)})" for t in group) for group in twins[:SHOWN])


def _model_findings(vocabulary: Vocabulary, model: Any) -> Iterator[Finding]:
    config = getattr(model, "config", model)
    pad, size = getattr(config, "pad_token_id", None), int(getattr(config, "vocab_size", 0) or 0)
    if pad != vocabulary.blank:
        named = f" ({vocabulary.tokens[pad]!r})" if isinstance(pad, int) and 0 <= pad < len(vocabulary) else ""
        yield Finding(
            "blank is not pad", "error",
            f"the loss takes id {pad}{named} for the blank (config.pad_token_id), the vocabulary has it at "
            f"{vocabulary.blank} ({vocabulary.tokens[vocabulary.blank]!r})",
            f"model.config.pad_token_id = {vocabulary.blank}, or resize_head, which sets it",
        )  # fmt: skip
    head = getattr(model, "lm_head", None)
    rows = int(head.out_features) if head is not None else size
    if rows != len(vocabulary):
        lacking = tuple(vocabulary.tokens[rows:])
        detail = f"the head has {rows} outputs, the vocabulary {len(vocabulary)} tokens"
        yield Finding(
            "head of another size", "error", detail + (f"; without an output: {_shown(lacking)}" if lacking else ""),
            "resize_head(model, old, new), or take the vocabulary that the model was trained with", lacking,
        )  # fmt: skip
    elif size != rows:
        yield Finding(
            "config of another size", "error", f"config.vocab_size is {size}, the head has {rows} outputs: once saved, "
            "it cannot be loaded", f"model.config.vocab_size = {rows}",
        )  # fmt: skip


def _text_findings(vocabulary: Vocabulary, seen: _Seen) -> Iterator[Finding]:
    delimiter = vocabulary.tokens[vocabulary.delimiter] if vocabulary.delimiter is not None else None
    if delimiter and delimiter.strip() and seen.raw[delimiter]:
        yield Finding(
            "delimiter in the texts", "warning",
            f"{seen.raw[delimiter]} texts hold {delimiter!r}, which stands for the space between words (in Hindi it is "
            "often typed for the danda ।)",
            "nothing for Vocabulary.encode, which drops it; remove it before any other tokenizer sees the texts",
            (delimiter,),
        )  # fmt: skip
    if delimiter is None and " " not in vocabulary.ids and seen.spaces:
        yield Finding(
            "no word delimiter", "error", f"the texts hold {seen.spaces:,} spaces, and no token writes one",
            "add '|' as the word delimiter (build_vocabulary does)",
        )  # fmt: skip
    if seen.missing:
        share = seen.unknown_share
        yield Finding(
            "unknown characters", "error" if share >= MUCH else "warning",
            f"{share:.2%} of the characters are no token: {_counted(seen.missing)}",
            "new = extend_vocabulary(old, texts); resize_head(model, old, new)", tuple(sorted(seen.missing)),
        )  # fmt: skip
    digits = "".join(sorted(char for char in seen.counts if char.isdecimal()))
    if digits:
        yield Finding(
            "digits", "warning", f"digits {digits} are in the texts; each is read in many ways, and CTC learns sounds",
            "write numbers out as words", tuple(digits),
        )  # fmt: skip
    spelt = seen.counts.keys() if all(len(token) == 1 for token in vocabulary.letters) else None
    unused = tuple(token for token in vocabulary.letters if spelt is not None and token not in spelt)
    if unused:
        yield Finding(
            "never used", "note", f"{len(unused)} of {len(vocabulary.letters)} tokens are in no text: {_shown(unused)}",
            "harmless in a model that has learnt them elsewhere; fine-tuning will make it forget them", unused,
        )  # fmt: skip


def _script_findings(vocabulary: Vocabulary, seen: _Seen) -> Iterator[Finding]:
    written = scripts_of(seen.counts)
    known = scripts(vocabulary.letters)
    main = main_script(written)
    if main and main not in known:
        yield Finding(
            "another script", "error", f"the texts are {described(written)}, the vocabulary is {described(known)}",
            f"check the text column and the model's language; to teach it {main}, build_vocabulary(texts) and a "
            "new head",
        )  # fmt: skip
    total = sum(written.values())
    strays = {name: count for name, count in written.items() if name != main and count <= STRAY * total}
    if strays and not {"Han", "Kana", "Hangul"} & {main}:  # Latin names among them are ordinary
        sample = Counter({char: count for char, count in seen.counts.items() if script_of(char) in strays})
        yield Finding(
            "stray letters", "warning",
            f"a few letters of another script, which may only look right: {_counted(sample)}",
            f"replace them by their {main} look-alikes, or leave those rows out", tuple(sorted(sample)),
        )  # fmt: skip


def _sorted(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    ranks = ("error", "warning", "note")
    return tuple(sorted(findings, key=lambda finding: ranks.index(finding.severity)))


def _counted(counts: Counter[str]) -> str:
    shown = [f"{_visible(char)} ({_points(char)}) ×{count}" for char, count in counts.most_common(SHOWN)]
    return ", ".join(shown) + (f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else "")


def _shown(tokens: Iterable[str]) -> str:
    listed = [_visible(token) for token in tokens]
    return " ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")


def _visible(token: str) -> str:
    return f"◌{token}" if unicodedata.category(token[0])[0] == "M" else token


def _points(token: str) -> str:
    return "+".join(f"U+{ord(char):04X}" for char in token)
