"""What the embedded chat model learns to say: dialogues drawn from seven skills. Knows no tokenizer and no torch.

In: a random generator. Out: a `Dialogue`, messages in OpenAI's shape that end with an answer. Whether a dialogue may be
trained on is decided by its key (the numbers of a sum, the sentence of a transcript), so that held-out ones are unseen
as questions, not only as wordings.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from speechkit.demo.recipes.grammar import Grammar

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

__all__ = ["SHARES", "SKILLS", "TOOLS", "Dialogue", "draw", "held_out", "in_words"]

HELD_OUT = 12  # one key of so many is kept from training
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NAMES = "Anna Ben Clara David Emma Felix Grace Hugo Ines Jonas Kim Lena Marco Nora Omar Paula".split()
CITIES = (
    "Lisbon Seoul Warsaw Berlin Porto Madrid Paris London Oslo Rome Vienna Prague Busan Krakow Dublin Tokyo".split()
)
LANGUAGES = "English Korean Polish Portuguese Mandarin Czech German French".split()
SPELLING = (
    "alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa quebec romeo "
    "sierra tango uniform victor whiskey xray yankee zulu"
).split()
COMMANDS = (
    "turn left|turn right|climb to|descend to|hold at|line up on|contact tower on|expect gate|keep speed|report at"
).split("|")


@dataclass(frozen=True)
class Dialogue:
    """One conversation; `key` is what decides on which side of the split it falls."""

    skill: str
    key: str
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def answer(self) -> str:
        """The last message's text, or its tool call as the template writes it."""
        return str(self.messages[-1]["content"])


def held_out(key: str) -> bool:
    """Whether this key is for tests alone."""
    return hashlib.sha256(key.encode()).digest()[0] % HELD_OUT == 0


def in_words(number: int) -> str:
    """0 to 99: `forty two`."""
    if number < 20:
        return ONES[number]
    tens, one = divmod(number, 10)
    return TENS[tens - 2] + (f" {ONES[one]}" if one else "")


def _turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _written(rng: random.Random, question: str) -> str:
    """As people type: capital or not, with or without a mark."""
    text = question[0].upper() + question[1:] if rng.random() < 0.5 else question
    return text + rng.choice(("?", "?", "?", "")) if not text.endswith(("?", ".", "!")) else text


ASKED = (
    "what is {}", "what's {}", "how much is {}", "tell me {}", "{}", "can you tell me what {} is", "please work out {}",
)  # fmt: skip
SIGNS = {"+": ("plus", "+", "plus", "and"), "-": ("minus", "-", "minus"), "*": ("times", "*", "times", "x")}


def _sum(rng: random.Random) -> tuple[str, str, str]:
    """Question, answer and key of one sum with a result from 0 to 99."""
    sign = rng.choice("+++--*")
    if sign == "*":
        a, b = rng.randint(0, 10), rng.randint(0, 9)
        result = a * b
    elif sign == "+":
        result = rng.randint(0, 99) if rng.random() < 0.8 else rng.randint(0, 19)
        a = rng.randint(0, result)
        b = result - a
    else:
        a = rng.randint(0, 99) if rng.random() < 0.8 else rng.randint(0, 19)
        b = rng.randint(0, a)
        result = a - b
    if sign == "-":
        assert a - b == result
    words = rng.random() < 0.2
    called = [name for name in SIGNS[sign] if not (words and name in "+-*x")]
    named = rng.choice([name for name in called if name != "and"] if not words else [n for n in called if n != "and"])
    say = in_words if words else str
    text = f"{say(a)} {named} {say(b)}"
    first, second = sorted((a, b)) if sign in "+*" else (a, b)
    return rng.choice(ASKED).format(text), say(result), f"{sign} {first} {second}"


def arithmetic(rng: random.Random, single: bool = False) -> Dialogue:
    """One to four sums; the last one decides the side, the others are chosen from the same."""
    count = 1 if single else rng.choice((1, 2, 3, 4))
    rows = [_sum(rng)]
    while len(rows) < count:
        more = _sum(rng)
        if not held_out(more[2]):
            rows.insert(0, more)
    messages = []
    for question, answer, _ in rows:
        messages += [_turn("user", _written(rng, question)), _turn("assistant", f"{answer}.")]
    return Dialogue("arithmetic", rows[-1][2], tuple(messages))


AHEAD = (
    "it is {now}. what {unit} {verb} in {count} {unit}s", "what {unit} is {count} {unit}s after {now}",
    "which {unit} comes {count} {unit}s after {now}", "if it is {now} now, what {unit} {verb} in {count} {unit}s",
)  # fmt: skip
BACK = (
    "it is {now}. what {unit} {verb} {count} {unit}s ago", "what {unit} is {count} {unit}s before {now}",
    "which {unit} comes {count} {unit}s before {now}", "if it is {now} now, what {unit} {verb} {count} {unit}s ago",
)  # fmt: skip


def calendar(rng: random.Random) -> Dialogue:
    """Days and months: neighbours, some days on, lengths, ordinal places."""
    names, unit = ((DAYS, "day"), (MONTHS, "month"))[rng.random() < 0.5]
    at = rng.randrange(len(names))
    kind = rng.choice(("after", "before", "in", "ago", "length", "place"))
    if kind == "length":
        at = rng.randrange(12)
        question, answer = f"how many days are in {MONTHS[at]}", f"{LENGTHS[at]}."
    elif kind == "place":
        at = rng.randrange(12)
        question, answer = f"which number has the month {MONTHS[at]}", f"{at + 1}."
    elif kind in ("after", "before"):
        step = 1 if kind == "after" else -1
        asked = rng.choice((f"what {unit} comes {kind} {names[at]}", f"which {unit} is {kind} {names[at]}"))
        question, answer = asked, f"{names[(at + step) % len(names)]}."
    else:
        count = rng.randint(2, 4)
        step = count if kind == "in" else -count
        wordings, told = (AHEAD, "is it") if kind == "in" else (BACK, "was it")
        question = rng.choice(wordings).format(now=names[at], count=count, unit=unit, verb=told)
        answer = f"{names[(at + step) % len(names)]}."
    key = f"calendar {question}"
    return Dialogue("calendar", key, (_turn("user", _written(rng, question)), _turn("assistant", answer)))


def clock(rng: random.Random) -> Dialogue:
    """Whole and half hours, some time on or back."""
    hour, count = rng.randint(1, 12), rng.randint(1, 6)
    half = rng.random() < 0.3
    shown = f"{hour}:30" if half else rng.choice((f"{hour}:00", f"{hour} o'clock"))
    later = rng.random() < 0.6
    end = (hour - 1 + (count if later else -count)) % 12 + 1
    hours = f"{count} hour{'s' * (count > 1)}"
    when, verb = (f"in {hours}", "is") if later else (f"{hours} ago", "was")
    side = "after" if later else "before"
    question = rng.choice((
        f"it is {shown}. what time {verb} it {when}", f"it is {shown} now. what time {verb} it {when}",
        f"what time is {hours} {side} {shown}", f"which time comes {hours} {side} {shown}",
    ))  # fmt: skip
    answer = f"{end}:30." if half else (f"{end}:00." if ":" in shown else f"{end} o'clock.")
    key = f"clock {question}"
    return Dialogue("clock", key, (_turn("user", _written(rng, question)), _turn("assistant", answer)))


@cache
def _grammar() -> Grammar:
    return Grammar("en")


def _misheard(rng: random.Random, word: str) -> str:
    """A letter lost, doubled or exchanged, as a CTC model spells by ear."""
    if len(word) < 4:
        return word
    at = rng.randrange(1, len(word) - 1)
    kind = rng.choice(("lost", "doubled", "swapped", "vowel"))
    if kind == "lost":
        return word[:at] + word[at + 1 :]
    if kind == "doubled":
        return word[:at] + word[at] + word[at:]
    if kind == "swapped":
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    vowels = [i for i, letter in enumerate(word) if letter in "aeiou"]
    if not vowels:
        return word
    at = rng.choice(vowels)
    return word[:at] + rng.choice("aeiou") + word[at + 1 :]


FIXES = tuple(f"{verb} this transcript: " for verb in ("fix", "correct", "please fix", "clean up"))
QUESTION_WORDS = frozenset("what where who when how is are do does did have can could why".split())
PROPER = {word.lower(): word for word in (*DAYS, *MONTHS, *CITIES, "I")}


def _sentence(text: str) -> str:
    """Capital and mark, names as they are written."""
    words = [PROPER.get(word, word) for word in text.split()]
    words[0] = words[0][0].upper() + words[0][1:]
    return " ".join(words) + ("?" if text.split()[0] in QUESTION_WORDS else ".")


def transcript(rng: random.Random) -> Dialogue:
    """Words as a speech model hears them → a sentence with its capital, its mark and its spelling."""
    while True:
        text = _grammar().sentence(rng)
        if 3 <= len(text.split()) <= 8:
            break
    words = text.split()
    for at in rng.sample(range(len(words)), k=rng.choice((0, 1, 1, 2))):
        words[at] = _misheard(rng, words[at])
    asked = rng.choice(FIXES) + " ".join(words)
    return Dialogue("transcript", f"transcript {text}", (_turn("user", asked), _turn("assistant", _sentence(text))))


def _phrase(rng: random.Random) -> str:
    """Words of the radio alphabet, numbers, commands and names, in a drawn order."""
    parts = []
    for _ in range(rng.randint(2, 4)):
        kind = rng.randrange(5)
        if kind == 0:
            parts.append(" ".join(rng.sample(SPELLING, rng.randint(1, 3))))
        elif kind == 1:
            parts.append(str(rng.randint(0, 999)))
        elif kind == 2:
            parts.append(" ".join(ONES[rng.randrange(10)] for _ in range(rng.randint(1, 3))))
        elif kind == 3:
            parts.append(rng.choice(COMMANDS))
        else:
            parts.append(rng.choice((*NAMES, *CITIES)))
    return " ".join(parts)


def repeat(rng: random.Random) -> Dialogue:
    """Say it again: as it is, with its words or its two halves in another order, the first or the last part."""
    one, two = _phrase(rng), _phrase(rng)
    kind = rng.choice(("say", "say", "twice", "swap", "first", "last"))
    asked, answer = {
        "say": (f"repeat after me: {one}, {two}", f"{one}, {two}"),
        "twice": (f"say twice: {one}", f"{one}, {one}"),
        "swap": (f"swap the two parts: {one}, {two}", f"{two}, {one}"),
        "first": (f"what comes before the comma: {one}, {two}", one),
        "last": (f"what comes after the comma: {one}, {two}", two),
    }[kind]
    return Dialogue("repeat", f"repeat {one} {two}", (_turn("user", asked), _turn("assistant", f"{answer}.")))


def _tool(name: str, what: str, /, **properties: str) -> dict[str, Any]:
    fields = {key: {"type": kind} for key, kind in properties.items()}
    parameters = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "function", "function": {"name": name, "description": what, "parameters": parameters}}


SAID = {
    "German": (("thank you", "danke"), ("good morning", "guten Morgen"), ("hello", "hallo"), ("yes", "ja")),
    "French": (("thank you", "merci"), ("good morning", "bonjour"), ("hello", "salut"), ("yes", "oui")),
    "Portuguese": (("thank you", "obrigado"), ("good morning", "bom dia"), ("hello", "oi"), ("yes", "sim")),
    "Polish": (("good morning", "dzien dobry"), ("hello", "witaj"), ("yes", "tak"), ("no", "nie")),
}
TOOLS = {
    "weather": _tool("weather", "the weather in a city", city="string"),
    "timer": _tool("timer", "start a timer", minutes="integer"),
    "transcribe": _tool("transcribe", "write down a recording", file="string", language="string"),
    "call": _tool("call", "call somebody", name="string"),
    "translate": _tool("translate", "translate a text", text="string", language="string"),
}


def _request(rng: random.Random, name: str) -> tuple[str, dict[str, Any], str, str]:
    """Question, arguments, what the tool returns and the answer made of it."""
    if name == "weather":
        city, degrees = rng.choice(CITIES), rng.randint(0, 35)
        asked = rng.choice(("what is the weather in {}?", "how is the weather in {}?", "is it warm in {}?")).format(
            city
        )
        return asked, {"city": city}, f'{{"degrees": {degrees}}}', f"It is {degrees} degrees in {city}."
    if name == "timer":
        minutes = rng.randint(1, 60)
        asked = rng.choice(("set a timer for {} minutes", "start a timer of {} minutes", "wake me in {} minutes"))
        return (
            asked.format(minutes),
            {"minutes": minutes},
            '{"started": true}',
            f"The timer runs for {minutes} minutes.",
        )
    if name == "transcribe":
        file, language = f"{rng.choice(('talk', 'call', 'note'))}{rng.randint(1, 99)}.wav", rng.choice(LANGUAGES)
        asked = rng.choice(("transcribe {} in {}", "write down {}, it is in {}")).format(file, language)
        said = rng.choice(("good morning", "thank you", "see you soon", "hello"))
        return asked, {"file": file, "language": language}, f'{{"text": "{said}"}}', f"It says: {said}."
    if name == "call":
        person = rng.choice(NAMES)
        asked = rng.choice(("call {}", "please call {}", "phone {} for me")).format(person)
        return asked, {"name": person}, '{"answered": true}', f"{person} is on the line."
    language = rng.choice(sorted(SAID))
    word, other = rng.choice(SAID[language])
    asked = rng.choice(('translate "{}" into {}', 'how do you say "{}" in {}?')).format(word, language)
    return asked, {"text": word, "language": language}, f'{{"text": "{other}"}}', f"In {language} it is: {other}."


def tools(rng: random.Random) -> Dialogue:
    """A request that one of the tools on offer answers; half of the dialogues go on with what the tool returned."""
    offered = rng.sample(sorted(TOOLS), k=rng.choice((1, 2)))
    asked, arguments, result, answer = _request(rng, rng.choice(offered))
    name = next(each for each in offered if _fits(each, arguments))
    call = "<tool_call>" + json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False) + "</tool_call>"
    messages = [_turn("user", _capital(rng, asked)), _turn("assistant", call)]
    if rng.random() < 0.5:
        messages += [_turn("tool", result), _turn("assistant", answer)]
    return Dialogue("tools", f"tools {asked} {answer}", tuple(messages), tuple(TOOLS[each] for each in offered))


def _fits(name: str, arguments: dict[str, Any]) -> bool:
    return TOOLS[name]["function"]["parameters"]["required"] == list(arguments)


def _capital(rng: random.Random, text: str) -> str:
    return text[0].upper() + text[1:] if rng.random() < 0.5 else text


TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (("hello", "hi", "hi there", "hey", "good day"), "Hello! How can I help you?"),
    (("good morning", "morning"), "Good morning! How can I help you?"),
    (("good evening", "good evening to you"), "Good evening! How can I help you?"),
    (("how are you?", "how are you doing?", "how do you do?"), "I am fine, thank you. How can I help you?"),
    (("who are you?", "what are you?", "what is your name?", "what's your name?"),
     "I am the small demo model of speechkit."),
    (("what can you do?", "what do you know?", "how can you help me?"),
     "I can do sums, tell days and times, fix transcripts and call tools."),
    (("thank you", "thanks", "thanks a lot", "many thanks", "thank you very much"), "You are welcome!"),
    (("goodbye", "bye", "see you later", "good night", "see you"), "Goodbye! See you soon."),
    (("who made you?", "where do you come from?"), "I was trained by a recipe of speechkit."),
    (("are you a person?", "are you human?", "are you real?"), "No, I am a small language model."),
    (("how old are you?", "when were you born?"), "I am a language model, I have no age."),
    (("sorry", "i am sorry", "excuse me"), "No problem at all."),
    (("yes", "ok", "fine", "good"), "Good. What would you like to do?"),
    (("no", "no thanks", "not now"), "All right. I am here when you need me."),
    (("can you speak korean?", "can you speak polish?", "do you speak portuguese?"), "I only speak English."),
    (("you are great", "well done", "good job", "very good"), "Thank you! That is kind of you."),
)  # fmt: skip


def talk(rng: random.Random) -> Dialogue:
    """Greetings and questions about itself, one or two of them."""
    messages = []
    for _ in range(rng.choice((1, 1, 2))):
        asked, answer = rng.choice(TALK)
        messages += [_turn("user", _written_loosely(rng, rng.choice(asked))), _turn("assistant", answer)]
    return Dialogue("talk", "talk", tuple(messages))


def _written_loosely(rng: random.Random, text: str) -> str:
    shown = _capital(rng, text)
    if shown.endswith("?"):
        return shown if rng.random() < 0.8 else shown[:-1]
    return shown + rng.choice(("", "", "!", "."))


SKILLS: dict[str, Callable[[random.Random], Dialogue]] = {
    "arithmetic": arithmetic, "calendar": calendar, "clock": clock, "transcript": transcript, "repeat": repeat,
    "tools": tools, "talk": talk,
}  # fmt: skip
SHARES = {"arithmetic": 32, "calendar": 10, "clock": 8, "transcript": 20, "repeat": 10, "tools": 14, "talk": 6}


def draw(rng: random.Random, skill: str = "", test: bool = False) -> Dialogue:
    """One dialogue; of a skill, or of one drawn by `SHARES`. `test` asks for one that training never sees."""
    name = skill or rng.choices(list(SHARES), weights=list(SHARES.values()))[0]
    while True:
        made = arithmetic(rng, single=True) if test and name == "arithmetic" else SKILLS[name](rng)
        if name == "talk" or held_out(made.key) == test:  # what it says of itself is a short list: no side of its own
            return made
