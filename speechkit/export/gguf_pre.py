"""How a byte-level tokenizer cuts text before its merges → llama.cpp's name for that (`tokenizer.ggml.pre`).

In: what `tokenizers` saves. Out: a name and why, or an error that says which cut is unknown and how near others come.
Recognised by the regular expressions themselves, so that a tokenizer trained anew or cut down keeps its name.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any

from speechkit.errors import ExportError, PlanError

__all__ = ["CORPUS", "KNOWN", "Cut", "parity", "pre_of", "stages_of"]

_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}*{_SMALL}+"
_UPPER = rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}+{_SMALL}*"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_SHORT}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_REST}"
_MARKS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_ASIAN, _CODER = "[一-龥ࠀ-一가-퟿]+", ("[\\r\\n]", r"\s?\p{L}+", r"\s?\p{P}+")
DIGIT = r"\p{N}"


@dataclass(frozen=True, slots=True)
class Cut:
    """A row: llama.cpp's name, the expressions one after the other, whether whole words go before merges."""

    name: str
    stages: tuple[str, ...]
    ignore_merges: bool = False


KNOWN: tuple[Cut, ...] = (
    Cut("llama-bpe", (_LLAMA3,), ignore_merges=True),
    Cut("smaug-bpe", (_LLAMA3,)),
    Cut("qwen2", (rf"{_SHORT}|{_WORD}|\p{{N}}|{_SIGNS}|{_REST}",)),
    Cut("qwen35", (
        rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_REST}",
    )),
    Cut("gpt-2", (GPT2,)),
    Cut("smollm", (DIGIT, GPT2)),
    Cut("tekken", (rf"{_CASED}|{_UPPER}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}",), ignore_merges=True),
    Cut("gpt-4o", (
        rf"{_CASED}{_SHORT}?|{_UPPER}{_SHORT}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}",
    )),
    Cut("deepseek-v3", (
        r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
        rf"{_MARKS}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_REST}",
    )),
    Cut("deepseek-coder", (*_CODER, _ASIAN, DIGIT)),
    Cut("seed-coder", (rf"{_SHORT}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_REST}",)),
)  # fmt: skip
# DeepSeek LLM and V2 name every cased letter by its code points; the first of them tell it
_LETTERS = "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳ"
DEEPSEEK_LLM = ("[\\r\\n]", _LETTERS, "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", "\\s+$", _ASIAN)

CORPUS: tuple[str, ...] = (
    "Hello, world!", "I'm sure they'll've gone; IT'S late, we'd say.", "camelCase HTTPServer snake_case iPhone",
    "3.14159 1234567 2026-11-22 1,000,000", "  leading, trailing  ", "a\n\nb\r\n\tc\n \n d", "x=1;y+=2 // ok\n/* ok */",
    "Größe, naïve, İstanbul, Ærøskøbing", "Привет, мир! Как дела?", "日本語のテキスト、漢字とかな。", "안녕하세요 세계",
    "नमस्ते दुनिया", "مرحبا بالعالم", "שלום עולם", "สวัสดีชาวโลก", "👩‍👩‍👧 🙂🇩🇪", "e\u0301 cafe\u0301", "½ ² Ⅷ ٣",
    "“quotes” — dash… «так»", "https://example.org/a?b=c#d", "\t\tif (x):\n\t\t\treturn x", "ÀÉÎ ÅÄÖ ßẞ", "¿Qué? ¡Sí!",
    "don't DON'T Don'T", "12345678901234567890", "fi\ufb01 \u00a0nbsp\u2003em",
)  # fmt: skip


def pre_of(state: dict[str, Any], chosen: str | None = None) -> tuple[str, str]:
    """llama.cpp's name and a note ("" where there is nothing to say) for what `Tokenizer.to_str` holds.

    chosen: a name to take where none is recognised; the note then says how far it agrees.
    Raises ExportError for cuts that llama.cpp has no name for, with the nearest and its parity, PlanError for a
    `chosen` that is none.
    """
    names = [cut.name for cut in KNOWN]
    if chosen is not None and chosen not in (*names, "deepseek-llm"):
        raise PlanError(f"pre is {chosen!r}; it can be {', '.join(names)}, deepseek-llm or None")
    stages, flag = stages_of(state), bool(state["model"].get("ignore_merges"))
    if chosen is None and stages is not None:
        if len(stages) == 6 and stages[1].startswith(_LETTERS) and stages[:1] + stages[2:5] == _without(DEEPSEEK_LLM):
            return "deepseek-llm", ""
        found = [cut for cut in KNOWN if cut.stages == stages]
        for cut in sorted(found, key=lambda cut: cut.ignore_merges != flag):
            if cut.ignore_merges == flag or _same_words(state):
                return cut.name, ""
    figures = sorted(((parity(state, cut), cut.name) for cut in KNOWN), key=lambda pair: -pair[0])
    if chosen is not None:
        shares = {name: share for share, name in figures}
        told = f"{shares[chosen]:.0%} of {len(CORPUS)} texts" if chosen in shares else "an unmeasured share of texts"
        return chosen, f"pre-tokenizer {chosen!r} was asked for: it cuts {told} as the tokenizer does"
    share, nearest = figures[0]
    raise ExportError(
        f"llama.cpp has no pre-tokenizer that cuts text as this tokenizer does: {_told(state)}. The nearest is "
        f"{nearest!r}, which gives the same tokens for {share:.0%} of {len(CORPUS)} texts; to take it knowingly, pass "
        f"pre={nearest!r}"
    )


def parity(state: dict[str, Any], cut: Cut) -> float:
    """Share of texts in `CORPUS` that get the same tokens when text is cut as `cut` does."""
    from tokenizers import Tokenizer

    other = copy.deepcopy({**state, "model": {}})
    other["model"] = {**state["model"], "ignore_merges": cut.ignore_merges}
    other["normalizer"] = None
    splits = [
        {"type": "Split", "pattern": {"Regex": one}, "behavior": "Isolated", "invert": False} for one in cut.stages
    ]
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    other["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*splits, bytes_]}
    one, two = Tokenizer.from_str(json.dumps(state)), Tokenizer.from_str(json.dumps(other))
    return sum(one.encode(text).ids == two.encode(text).ids for text in CORPUS) / len(CORPUS)


def stages_of(state: dict[str, Any]) -> tuple[str, ...] | None:
    """The expressions one after the other, in one spelling; None where there is more to it than expressions."""
    found: list[str] = []
    for one in _flat(state.get("pre_tokenizer")):
        kind, whole = one.get("type"), one.get("behavior") == "Isolated" and not one.get("invert")
        if kind == "Split" and whole and "Regex" in one["pattern"]:
            found.append(_spelt(one["pattern"]["Regex"]))
        elif kind == "Digits" and one.get("individual_digits"):
            found.append(DIGIT)
        elif kind == "ByteLevel" and not one.get("add_prefix_space"):
            found += [GPT2] if one.get("use_regex", True) else []
        else:
            return None
    kinds = [one.get("type") for one in _flat(state.get("normalizer"), "normalizers")]
    return tuple(found) if set(kinds) <= {"NFC"} else None


def _flat(one: dict[str, Any] | None, key: str = "pretokenizers") -> list[dict[str, Any]]:
    if one is None:
        return []
    if one.get("type") == "Sequence":
        return [leaf for inner in one[key] for leaf in _flat(inner, key)]
    return [one]


def _spelt(pattern: str) -> str:
    """One spelling of what means the same."""
    long = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    for old, new in ((long, _SHORT), ("\r", r"\r"), ("\n", r"\n"), (r"\p{N}{1}|", r"\p{N}|"), ("?+", "?"), ("++", "+")):
        pattern = pattern.replace(old, new)
    return pattern


def _without(stages: tuple[str, ...]) -> tuple[str, ...]:
    return (*stages[:1], *stages[2:])


def _same_words(state: dict[str, Any]) -> bool:
    """Whether merges alone make every word of the vocabulary, so that taking whole words first changes nothing."""
    from tokenizers import Tokenizer

    tokenizers = []
    for flag in (True, False):
        other = {**state, "model": {**state["model"], "ignore_merges": flag}, "pre_tokenizer": None, "normalizer": None}
        tokenizers.append(Tokenizer.from_str(json.dumps({**other, "added_tokens": [], "post_processor": None})))
    added = {one["content"] for one in state.get("added_tokens") or ()}
    words = [word for word in state["model"]["vocab"] if word not in added]
    pairs = zip(*(one.encode_batch(words, add_special_tokens=False) for one in tokenizers), strict=True)
    return all(a.ids == b.ids for a, b in pairs)


def _told(state: dict[str, Any]) -> str:
    cuts = json.dumps(state.get("pre_tokenizer"), ensure_ascii=False)
    normal = state.get("normalizer")
    more = f", after normalising by {json.dumps(normal, ensure_ascii=False)[:160]}" if normal else ""
    return f"{cuts[:400]}{'…' if len(cuts) > 400 else ''}{more}"
