"""Tables for `romanize`: letters to Latin letters, and each language's spelling to broad sounds. Data, no code.

The signs for sounds are the Czech letters č š ž ň, ǯ for the voiced č, c for ts, j for the glide, h for every h and ch,
and the plain Latin letters otherwise. w and the Polish ł count as v, which is how neighbouring languages hear them.
"""

from __future__ import annotations

__all__ = ["BASE", "CYRILLIC", "INITIAL", "READINGS", "UKRAINIAN"]

# Latin letters that Unicode does not take apart into a base letter and a mark
BASE = {
    "ł": "l", "đ": "d", "ð": "d", "ø": "o", "ß": "ss", "æ": "ae", "œ": "oe", "ı": "i", "þ": "th", "ŋ": "ng", "ħ": "h",
}  # fmt: skip

CYRILLIC = {
    "а": "a", "б": "b", "в": "v", "г": "g", "д": "d", "е": "e", "ё": "yo", "ж": "zh", "з": "z", "и": "i", "й": "y",
    "к": "k", "л": "l", "м": "m", "н": "n", "о": "o", "п": "p", "р": "r", "с": "s", "т": "t", "у": "u", "ф": "f",
    "х": "kh", "ц": "ts", "ч": "ch", "ш": "sh", "щ": "shch", "ъ": "", "ы": "y", "ь": "", "э": "e", "ю": "yu",
    "я": "ya", "ґ": "g", "є": "ye", "і": "i", "ї": "yi", "ў": "u",
}  # fmt: skip
UKRAINIAN = {"г": "h", "и": "y", "й": "i", "є": "ie", "ї": "i", "ю": "iu", "я": "ia"}  # inside a word
INITIAL = {"й": "y", "є": "ye", "ї": "yi", "ю": "yu", "я": "ya"}  # Ukrainian, first in a word

_SOFT_PL = "(?=[aąeęoóu])"  # i before a vowel only softens what stands before it

# (pattern, sound), the first that fits wins; a sound is written as said in the head of this file
READINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "pl": (
        (f"dzi{_SOFT_PL}", "ǯ"), ("dzi", "ǯi"), ("d[żź]", "ǯ"), ("sz|ś", "š"), ("cz|ć", "č"), ("rz|ż|ź", "ž"),
        ("ch", "h"), (f"si{_SOFT_PL}", "š"), ("si", "ši"), (f"ci{_SOFT_PL}", "č"), ("ci", "či"), (f"zi{_SOFT_PL}", "ž"),
        ("zi", "ži"), (f"ni{_SOFT_PL}|ń", "ň"), ("ni", "ňi"), (f"i{_SOFT_PL}", "j"), ("ą", "on"), (r"ę\b", "e"),
        ("ę", "en"), ("ó", "u"), ("[łw]", "v"), ("qu", "kv"), ("x", "ks"),
    ),
    "uk": (
        ("дж", "ǯ"), ("щ", "šč"), ("нь|н(?=[яюєі])", "ň"), ("сь|с(?=[яюєі])", "š"), ("зь|з(?=[яюєі])", "ž"),
        ("(?<=[нсз])я", "a"), ("(?<=[нсз])ю", "u"), ("(?<=[нсз])є", "e"), ("я", "ja"), ("ю", "ju"), ("є", "je"),
        ("ї", "ji"), ("й", "j"), ("йо|ьо", "jo"), ("г", "h"), ("х", "h"), ("ж", "ž"), ("ч", "č"), ("ш", "š"),
        ("ц", "c"), ("и", "y"), ("і", "i"), ("ь|'", ""),
    ),
    "cs": (
        ("dž", "ǯ"), ("ch", "h"), ("ř", "ž"), ("(?<=[dtn])ě", "e"), ("mě", "mňe"), ("ě", "je"), ("n(?=[iíě])", "ň"),
        ("[yý]", "i"), ("ů|ú", "u"), ("qu", "kv"), ("x", "ks"), ("w", "v"), ("č", "č"), ("š", "š"), ("ž", "ž"),
        ("ň", "ň"),
    ),
    "sk": (
        ("dž", "ǯ"), ("ch", "h"), ("[yý]", "i"), ("ô", "vo"), ("i(?=[aeu])", "j"), ("n(?=[ieí])", "ň"), ("qu", "kv"),
        ("x", "ks"), ("w", "v"), ("č", "č"), ("š", "š"), ("ž", "ž"), ("ň", "ň"),
    ),
    "pt": (
        ("nh", "ň"), ("lh", "lj"), ("ch|x", "š"), ("ç|ss", "s"), ("sc(?=[eiéêí])", "s"), ("c(?=[eiéêí])", "s"),
        ("c", "k"),
        (r"rr|\br", "h"), ("qu(?=[eiéêí])", "k"), ("qu", "kv"), ("gu(?=[eiéêí])", "g"), ("g(?=[eiéêí])", "ž"),
        ("j", "ž"),
        ("ão", "aun"), ("õe", "oin"), ("ã", "an"), ("õ", "on"), (r"m\b", "n"),
        ("(?<=[aeiouáéíóúâêô])s(?=[aeiouáéíóúâêô])", "z"),
        ("h", ""), ("w", "v"), ("y", "i"),
    ),
    "en": (
        ("tch|ch", "č"), ("sh", "š"), ("th", "t"), ("ph", "f"), ("ck", "k"), ("kn", "n"), ("wr", "r"), ("dge|j", "ǯ"),
        ("c(?=[eiy])", "s"), ("c", "k"), ("qu", "kv"), ("x", "ks"), ("oo", "u"), ("ee|ea", "i"), ("w", "v"),
        (r"\by", "j"),
        ("y", "i"), ("'", ""),
    ),
    # Revised Romanization
    "ko": (
        ("jj|j", "ǯ"), ("ch", "č"), ("ss", "s"), ("yeo", "jo"), ("yae|ye", "je"), ("ya", "ja"), ("yo", "jo"),
        ("yu", "ju"),
        ("eo", "o"), ("eu", "y"), ("ae|oe", "e"), ("wae|we", "ve"), ("w", "v"),
    ),
    # pinyin without tones
    "zh": (
        ("zh|j", "ǯ"), ("ch|q", "č"), ("sh|x", "š"), ("z", "dz"), (r"\br", "ž"), ("yu", "ju"), ("yi", "i"), ("y", "j"),
        ("wu", "u"), ("w", "v"),
    ),
}  # fmt: skip
