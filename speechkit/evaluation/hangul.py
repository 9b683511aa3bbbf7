"""Korean syllables → Latin letters: the Revised Romanization (Ministry of Culture and Tourism, 2000). Arithmetic only.

In: a run of Hangul. Out: lower-case letters. Rules between syllables that are kept: a final consonant moves to a
silent lead (한국어 → hangugeo), ㄹㄹ is ll, a final stop turns nasal before ㄴ and ㅁ (습니다 → seumnida). The other
assimilations (ㄴㄹ, ㅎ beside stops, ㄷ and ㅌ before 이) want a dictionary of exceptions and are left out.
"""

from __future__ import annotations

from speechkit.text import to_jamo

__all__ = ["revised_romanization"]

LEADS = dict(
    zip(
        "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ",
        ("g", "kk", "n", "d", "tt", "r", "m", "b", "pp", "s", "ss", "", "j", "jj", "ch", "k", "t", "p", "h"),
        strict=True,
    )
)
VOWELS = dict(
    zip(
        "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ",
        "a ae ya yae eo e yeo ye o wa wae oe yo u wo we wi yu eu ui i".split(),
        strict=True,
    )
)
FINALS = {
    **dict.fromkeys("ㄱㄲㅋㄳㄺ", "k"),
    **dict.fromkeys("ㄴㄵㄶ", "n"),
    **dict.fromkeys("ㄷㅅㅆㅈㅊㅌㅎ", "t"),
    **dict.fromkeys("ㄹㄼㄽㄾㅀ", "l"),
    **dict.fromkeys("ㅁㄻ", "m"),
    **dict.fromkeys("ㅂㅄㅍㄿ", "p"),
    "ㅇ": "ng",
}
# before a silent lead: what stays, and what moves over
MOVED = {
    "ㅇ": ("ng", ""), "ㅎ": ("", ""), "ㄳ": ("k", "s"), "ㄵ": ("n", "j"), "ㄶ": ("n", ""), "ㄺ": ("l", "g"),
    "ㄻ": ("l", "m"), "ㄼ": ("l", "b"), "ㄽ": ("l", "s"), "ㄾ": ("l", "t"), "ㄿ": ("l", "p"), "ㅀ": ("", "r"),
    "ㅄ": ("p", "s"),
}  # fmt: skip
NASAL = {"k": "ng", "t": "n", "p": "m"}


def revised_romanization(run: str) -> str:
    """A run of syllables and single letters → Latin letters; anything else stays."""
    syllables = [to_jamo(char) for char in run]
    out = []
    for at, parts in enumerate(syllables):
        if len(parts) == 1:  # a letter by itself, or no Hangul
            out.append(LEADS.get(parts) or VOWELS.get(parts, FINALS.get(parts, parts)))
            continue
        onset = LEADS[parts[0]]
        if onset == "r" and at and FINALS.get(syllables[at - 1][2:]) == "l":
            onset = "l"
        following = syllables[at + 1] if at + 1 < len(syllables) else ""
        out.append(onset + VOWELS[parts[1]] + _coda(parts[2:], following[0] if len(following) > 1 else ""))
    return "".join(out)


def _coda(tail: str, lead: str) -> str:
    """The final consonant `tail` ("" for none) before a syllable that begins with the letter `lead` ("" for none)."""
    if not tail:
        return ""
    if lead == "ㅇ":
        return "".join(MOVED.get(tail) or ("", LEADS[tail]))
    return NASAL.get(FINALS[tail], FINALS[tail]) if lead in ("ㄴ", "ㅁ") else FINALS[tail]
