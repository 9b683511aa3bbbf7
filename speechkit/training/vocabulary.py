"""Transcripts → the tokens of a CTC model, and texts ↔ their ids. In: texts, or a model's folder. Out: `Vocabulary`.

One token is one character (Unicode NFC), combining marks are tokens of their own, a space is the delimiter. Texts pass
`speechkit.text.normalize`, then take the vocabulary's own letter case and keep the punctuation that it has, so labels
are spelt as the model spells. Knows no audio; torch and transformers are imported by what hands out their objects.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from speechkit.errors import DataError, ModelError
from speechkit.text import normalize
from speechkit.training.head import HeadChange, resize_head
from speechkit.training.scripts import described, expected, main_script, script_of, scripts_of
from speechkit.training.vocabulary_report import Finding, VocabularyReport, vocabulary_doctor

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "Finding",
    "HeadChange",
    "Vocabulary",
    "VocabularyReport",
    "build_vocabulary",
    "extend_vocabulary",
    "resize_head",
    "vocabulary_doctor",
]

BLANK, UNKNOWN, DELIMITER = "<pad>", "<unk>", "|"
RARE = 5  # seen less often, a character is hardly learnt
SHOWN = 12  # characters that a note names
_CONTROL = re.compile(r"<[^<>]+>|\[[^\[\]]+\]")
_JAMO = re.compile("[\u1100-\u11ff\ua960-\ua97f\ud7b0-\ud7ff]")
_SYLLABLES = re.compile("[\uac00-\ud7a3]+")


@dataclass(frozen=True)
class Vocabulary:
    """`tokens` in the order of their ids; `blank`, `unk` and `delimiter` are ids among them, None where there is none.

    `language` matters for casing only ("tr", "az"). `lower` says that the tokenizer lowers what it decodes, as that of
    wav2vec2-base-960h may. Raises DataError for two tokens alike, an empty token, and ids that are not there.
    """

    tokens: tuple[str, ...] = field(repr=False)
    blank: int = 0
    unk: int | None = None
    delimiter: int | None = None
    language: str | None = None
    lower: bool = False
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)  # what was decided when it was built

    def __post_init__(self) -> None:
        twice = sorted(token for token, count in Counter(self.tokens).items() if count > 1)
        if twice or "" in self.tokens:
            what = f"{_shown(twice)} more than once" if twice else "an empty token"
            raise DataError(f"the vocabulary holds {what}; every token has one id of its own")
        for name, at in (("blank", self.blank), ("unk", self.unk), ("delimiter", self.delimiter)):
            if at is not None and not 0 <= at < len(self.tokens):
                raise DataError(f"{name} is id {at}; the {len(self.tokens)} tokens have the ids 0 to {len(self) - 1}")

    def __len__(self) -> int:
        return len(self.tokens)

    def __str__(self) -> str:
        head = f"{len(self)} tokens ({len(self.letters)} that write something): {_shown(self.letters, 60)}"
        return "\n".join([head, *(f"note: {line}" for line in self.notes)])

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Token → id."""
        return {token: number for number, token in enumerate(self.tokens)}

    @cached_property
    def control(self) -> frozenset[int]:
        """Ids that write nothing: blank, unknown, and tokens such as `<s>` and `[CLS]`."""
        named = {number for number, token in enumerate(self.tokens) if _CONTROL.fullmatch(token)}
        return frozenset({self.blank, self.unk, *named} - {None, self.delimiter})  # type: ignore[arg-type]

    @cached_property
    def letters(self) -> tuple[str, ...]:
        """Tokens that write a character, in the order of their ids."""
        silent = {*self.control, self.delimiter}
        return tuple(token for number, token in enumerate(self.tokens) if number not in silent and token.strip())

    @cached_property
    def case(self) -> Literal["lower", "upper", "both"]:
        """The case of its letters; "lower" for scripts without case."""
        upper = any(token != token.lower() for token in self.letters)
        lower = any(token != token.upper() for token in self.letters)
        return "both" if upper and lower else "upper" if upper else "lower"

    @cached_property
    def in_jamo(self) -> bool:
        """Whether Korean is spelt by the parts of its syllables."""
        return any(map(_JAMO.match, self.letters)) and not any(map(_SYLLABLES.match, self.letters))

    def prepare(self, text: str) -> str:
        """`text` as this vocabulary spells it, characters that it lacks included; `encode` starts from it."""
        parts = [text]
        if self._marks:
            parts = re.split(f"([{re.escape(''.join(sorted(self._marks)))}])", unicodedata.normalize("NFC", text))
        plain = "".join(part if part in self._marks else self._plain(part) for part in parts if part)
        plain = " ".join(plain.split())
        return _SYLLABLES.sub(lambda match: unicodedata.normalize("NFD", match[0]), plain) if self.in_jamo else plain

    def encode(self, text: str) -> list[int]:
        """Text → ids, the longest token first; `unk` for a character that is no token, nothing where there is no `unk`.

        For a vocabulary of characters these are the ids that `Wav2Vec2CTCTokenizer` gives to `prepare(text)`.
        """
        plain = self.prepare(text)
        if len(plain) == 1 or self._longest == 1:
            return [at for at in (self._id(char) for char in plain) if at is not None]
        found, at = [], 0
        while at < len(plain):
            sizes = range(min(self._longest, len(plain) - at), 1, -1)
            size = next((size for size in sizes if plain[at : at + size] in self._writing), 1)
            number = self._id(plain[at : at + size])
            found += [] if number is None else [number]
            at += size
        return found

    def missing(self, text: str) -> Counter[str]:
        """The characters of `text`, as prepared, that no token writes, and how often they occur."""
        plain = self.prepare(text)
        if self._longest > 1:
            for token in sorted(self._writing, key=len, reverse=True):
                plain = plain.replace(token, "") if len(token) > 1 else plain
        return Counter(char for char in plain if char != " " and char not in self._writing)

    def decode(self, ids: Iterable[int]) -> str:
        """Label ids → text; nothing is merged, so it is the inverse of :meth:`encode`, not of a frame-wise path."""
        words = (self._text(int(number)) for number in ids)
        text = unicodedata.normalize("NFC", "".join(words).strip())
        return text.lower() if self.lower else text

    def tokenizer(self) -> Any:
        """A genuine `Wav2Vec2CTCTokenizer` with these ids."""
        from transformers import Wav2Vec2CTCTokenizer

        def token(number: int | None) -> str | None:
            return None if number is None else self.tokens[number]

        with TemporaryDirectory() as folder:
            file = Path(folder, "vocab.json")
            file.write_text(json.dumps(self.ids, ensure_ascii=False), encoding="utf-8")
            return Wav2Vec2CTCTokenizer(
                str(file),
                pad_token=token(self.blank),
                unk_token=token(self.unk),
                bos_token="<s>" if "<s>" in self.ids else None,
                eos_token="</s>" if "</s>" in self.ids else None,
                # None makes the tokenizer fail at the first space
                word_delimiter_token=token(self.delimiter) or (" " if " " in self.ids else DELIMITER),
                do_lower_case=self.lower,
            )

    def processor(self, mask: bool = True) -> Any:
        """A genuine `Wav2Vec2Processor`: the tokenizer, and a feature extractor for 16 kHz that normalises each clip.

        mask: whether batches carry an attention mask, which models with `feat_extract_norm="layer"` were trained with.
        """
        from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Processor

        extractor = Wav2Vec2FeatureExtractor(
            feature_size=1, sampling_rate=16_000, padding_value=0.0, do_normalize=True, return_attention_mask=mask
        )
        return Wav2Vec2Processor(feature_extractor=extractor, tokenizer=self.tokenizer())

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write vocab.json and tokenizer_config.json, as `Wav2Vec2CTCTokenizer` reads them. The inverse of `load`."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        self.tokenizer().save_pretrained(target)
        return target

    @classmethod
    def load(cls, source: Any, language: str | None = None) -> Vocabulary:
        """A model's folder, its vocab.json, or anything with a CTC tokenizer (a processor, a `Recognizer`).

        Raises ModelError where there is none, or where two tokens share an id or an id is left out.
        """
        tokenizer = getattr(source, "tokenizer", source)
        if isinstance(source, str) or hasattr(source, "__fspath__"):
            tokenizer = _tokenizer_in(Path(source))
        table: Mapping[str, int] | None = getattr(tokenizer, "encoder", None)
        if not table:
            raise ModelError(f"{type(source).__name__} has no CTC vocabulary; give a model's folder or its processor")
        tokens = sorted(table, key=lambda token: table[token])
        wrong = [token for number, token in enumerate(tokens) if table[token] != number]
        if wrong:
            raise ModelError(
                f"the vocabulary's {len(tokens)} ids are not 0 to {len(tokens) - 1}: {wrong[0]!r} has id "
                f"{table[wrong[0]]}; vocabulary_doctor(folder) names every such token"
            )
        dotless = "tr" if {"ı", "i"} <= table.keys() else None
        return cls(
            tuple(tokens),
            _blank_of(tokenizer, table),
            table.get(tokenizer.unk_token or ""),
            table.get(tokenizer.word_delimiter_token or ""),
            language or dotless,
            bool(getattr(tokenizer, "do_lower_case", False)),
        )

    @cached_property
    def _writing(self) -> frozenset[str]:
        return frozenset(self.letters)

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.letters), default=1)

    @cached_property
    def _marks(self) -> frozenset[str]:
        """Punctuation and symbols that are tokens. The apostrophe is none where it counts inside words only."""
        kept = (token for token in self.letters if len(token) == 1 and unicodedata.category(token)[0] not in "LMN")
        return frozenset(kept) - ({"'"} if self.case != "both" else frozenset())

    def _plain(self, text: str) -> str:
        """One stretch without kept marks, normalised, in the vocabulary's case, its outer spaces kept."""
        if self.case == "both":
            return "".join(map(self._cased, unicodedata.normalize("NFC", text)))
        plain = normalize(text, self.language)
        if self.case == "upper":
            dotted = (self.language or "").split("-")[0] in ("tr", "az")
            plain = unicodedata.normalize("NFC", (plain.replace("i", "İ") if dotted else plain).upper())
        return f"{' ' * text[:1].isspace()}{plain}{' ' * text[-1:].isspace()}"

    def _cased(self, char: str) -> str:
        if char in self._writing:
            return char
        return normalize(char, self.language) or ("" if unicodedata.category(char) in ("Cf", "Co", "Cs") else " ")

    def _id(self, char: str) -> int | None:
        if char == " ":
            return self.delimiter if self.delimiter is not None else self.ids.get(" ")
        return self.ids[char] if char in self._writing else self.unk

    def _text(self, number: int) -> str:
        return " " if number == self.delimiter else "" if number in self.control else self.tokens[number]


def build_vocabulary(
    texts: Iterable[str],
    language: str | None = None,
    *,
    min_count: int = 1,
    hangul: Literal["syllables", "jamo"] = "syllables",
    keep: str = "",
) -> Vocabulary:
    """The characters of the normalised texts: blank, unknown and delimiter first, then by code point.

    min_count: characters seen less often are left out; `notes` names them. keep: punctuation that is spoken or wanted
    in transcripts, such as "-". hangul: Korean by syllable (one token each, some thousand of them, many rare) or by
    jamo (67 letters and every syllable can be written, but labels are 2-3 times as long, so clips need more frames);
    with little data the syllables that were never heard can never be written, and jamo is the better choice. Mandarin
    and Japanese are spelt by their characters: a character that is not in the texts cannot come out.

    Raises DataError: no text with a letter, fewer than two letters, most letters in a script that `language` is not
    written in.
    """
    if min_count < 1 or hangul not in ("syllables", "jamo"):
        raise DataError(f"min_count is {min_count} (1 or more), hangul {hangul!r} ('syllables' or 'jamo')")
    # a stand-in that has the marks to keep and, for jamo, one jamo, spells texts as the result will
    seed = tuple(dict.fromkeys([BLANK, UNKNOWN, DELIMITER, *keep, *("\u1100" * (hangul == "jamo"))]))
    speller = Vocabulary(seed, 0, 1, 2, language)
    counts: Counter[str] = Counter()
    raw: Counter[str] = Counter()
    for text in texts:
        raw.update(set(text))
        counts.update(speller.prepare(text))
    del counts[" "]
    if not counts:
        raise DataError(f"{'none of the texts holds a letter' if raw else 'there are no texts'}: nothing to spell")
    _check_script(counts, language)
    kept = sorted(char for char, count in counts.items() if count >= min_count)
    if len(kept) < 2:
        raise DataError(
            f"the vocabulary would hold {_shown(kept) or 'no character'} only; a model with one letter learns "
            "nothing: check that the texts are transcripts" + (f", or lower min_count={min_count}" * (min_count > 1))
        )
    notes = tuple(_notes(counts, raw, min_count, hangul))
    return Vocabulary(
        (BLANK, UNKNOWN, DELIMITER, *(c for c in kept if c not in seed[:3])), 0, 1, 2, language, notes=notes
    )


def extend_vocabulary(old: Vocabulary, texts: Iterable[str], min_count: int = 1) -> Vocabulary:
    """`old`, its ids unchanged, and behind them the characters of `texts` that it lacks, by code point.

    Seen less than `min_count` times, a character is left out and named in `notes`. The head must follow:
    `resize_head(model, old, new)`.
    """
    lacking: Counter[str] = Counter()
    for text in texts:
        lacking.update(old.missing(text))
    new = sorted(char for char, count in lacking.items() if count >= min_count)
    rare = [char for char in sorted(lacking) if lacking[char] < min_count]
    notes = [f"added {len(new)}: {_shown(new, 60)}" if new else "nothing to add: every character is a token already"]
    notes += [f"left out, seen less than {min_count} times: {_shown(rare, 60)}"] if rare else []
    return replace(old, tokens=(*old.tokens, *new), notes=tuple(notes))


def _notes(counts: Counter[str], raw: Counter[str], min_count: int, hangul: str) -> Iterable[str]:
    out = sorted((count, char) for char, count in counts.items() if count < min_count)
    rare = sorted((count, char) for char, count in counts.items() if min_count <= count < RARE)
    if out:
        yield f"left out, seen less than {min_count} times: {_counted(out)}"
    if rare:
        yield f"rare, hardly to be learnt (seen less than {RARE} times): {_counted(rare)}"
    digits = [char for char in sorted(counts) if char.isdecimal()]
    if digits:
        yield f"digits {''.join(digits)}: each is read in many ways, and CTC learns sounds; write numbers out as words"
    if DELIMITER in raw:
        yield f"{raw[DELIMITER]} texts hold '|', which is the word delimiter here; it counts as a space"
    found = scripts_of(counts)
    if len(found) > 1 and set(found) != {"Han", "Kana"}:
        yield f"more than one script: {described(found)}"
    if found["Hangul"] and hangul == "syllables":
        yield "Korean by syllable: a syllable that no text holds can never be written; hangul='jamo' writes them all"
    if found["Han"]:
        han = sum(unicodedata.name(char, "").startswith("CJK") for char in counts)
        yield f"{han} ideographs: others can never be written; build from more texts than those with audio"


def _check_script(counts: Counter[str], language: str | None) -> None:
    wanted = expected(language)
    found = scripts_of(counts)
    main = main_script(found)
    if wanted and main and main not in wanted:
        sample = "".join(sorted(char for char in counts if script_of(char) == main))[:SHOWN]
        raise DataError(
            f"the texts are written in {described(found)} ({sample}…), language {language!r} in {' or '.join(wanted)}: "
            "check the text column and the language"
        )


def _tokenizer_in(path: Path) -> Any:
    from transformers import Wav2Vec2CTCTokenizer

    from speechkit.asr.checkpoint import quiet

    folder = path.parent if path.name == "vocab.json" else path
    if not (folder / "vocab.json").is_file():
        raise ModelError(f"{folder} has no vocab.json; give the folder of a CTC model, or the file itself")
    try:
        with quiet():
            return Wav2Vec2CTCTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the tokenizer of {folder} cannot be read: {error}") from error


def _blank_of(tokenizer: Any, table: Mapping[str, int]) -> int:
    if tokenizer.pad_token not in table:
        raise ModelError(
            f"the pad token {tokenizer.pad_token!r} is not in the vocabulary, and CTC needs it as its blank; set "
            "pad_token in tokenizer_config.json to a token of vocab.json"
        )
    return int(table[tokenizer.pad_token])


def _shown(chars: Sequence[str], most: int = SHOWN) -> str:
    rest = f" and {len(chars) - most} more" if len(chars) > most else ""
    return " ".join(_visible(char) for char in chars[:most]) + rest


def _counted(pairs: Sequence[tuple[int, str]]) -> str:
    return _shown([f"{_visible(char)} ({count})" for count, char in pairs])


def _visible(char: str) -> str:
    """A combining mark on a dotted circle: alone it would sit on the character before it."""
    return f"◌{char}" if unicodedata.category(char[0])[0] == "M" else char
