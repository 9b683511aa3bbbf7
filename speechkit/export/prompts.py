"""Texts that exports are compared on: prompts, conversations, and a corpus on which tokenizers part ways.

Out: plain data, nothing else. All sentences were written for this file. A model compared by its own task's prompts
(`prompts=`) is compared on what it is for; these stand in where none are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from speechkit.errors import PlanError

__all__ = ["BEGINNINGS", "CONVERSATIONS", "CORPUS", "MOST_PROMPTS", "QUESTIONS", "TOOLS", "Conversation", "chosen"]

MOST_PROMPTS = 32

QUESTIONS = (
    "What is 17 plus 25?",
    "Hello! Who are you?",
    "What day comes after Tuesday?",
    "Say twice: green lamp.",
    "It is 3 o'clock. What time is it in 2 hours?",
    "How many days are in April?",
    "Correct this transcript: we met at noon in berlin and then we had soup",
    "What is six times seven?",
    "Swap the two parts: river stone, garden gate",
    "Which month is before June?",
    "What can you do?",
    "How much is 90 minus 34?",
    "What time is 4 hours after 7:30?",
    "Repeat after me: seven small boats, one long pier",
    "Which number has the month August?",
    "Please fix this transcript: hugo reads the leter on monday and calls anna",
    "What comes before the comma: cold water, warm bread",
    "It is Friday. What day will it be in 3 days?",
    "Tell me 8 * 9.",
    "Thank you, goodbye.",
    "It is 10:00 now. What time was it 3 hours ago?",
    "What comes after the comma: left hand, right hand",
    "Can you tell me what 45 and 12 is?",
    "Clean up this transcript: the train to porto is late agian",
    "What is eighty minus thirteen?",
    "Fix this transcript: anna has a metting in berlin on friday",
    "Which day is two days before Sunday?",
    "Was ist die Hauptstadt von Polen?",
    "What is your name?",
    "Correct this transcript: please turn left and hold at the tower",
    "대한민국의 수도는 어디입니까?",
    "Are you a person?",
)
BEGINNINGS = (
    "The harbour was quiet when the first boat came in, and",
    "To boil an egg, you first",
    "Seven days make a week, twelve months make",
    "def area(width, height):\n    return",
    '{"name": "Ada", "year": 1843, "city":',
    "Dear neighbours,\nwe would like to tell you that",
    "1, 2, 3, 4, 5,",
    "In winter the lake freezes; in summer it",
    "Der Zug nach Leipzig fährt heute",
    "Le chat dort sur",
    "Wczoraj padał deszcz, a dzisiaj",
    "昨天下雨，今天",
)


class Conversation(tuple[dict[str, Any], ...]):
    """Messages in OpenAI's shape; `kind` says what it tries, `tools` what may be called."""

    kind: str
    tools: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, kind: str, *messages: dict[str, Any], tools: Sequence[dict[str, Any]] = ()) -> Conversation:
        made = cls(messages)
        made.kind, made.tools = kind, tuple(tools)
        return made


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "weather_in",
            "description": "The weather of a town today.",
            "parameters": {
                "type": "object",
                "properties": {"town": {"type": "string", "description": "Name of the town"}},
                "required": ["town"],
            },
        },
    },
)
_CALL = {"type": "function", "id": "call00001", "function": {"name": "weather_in", "arguments": {"town": "Gdańsk"}}}
CONVERSATIONS: tuple[Conversation, ...] = (
    Conversation.of("one turn", _user("Hello! Who are you?")),
    Conversation.of("one turn", _user("Two lines:\n  the second is indented — and “quoted” 🙂")),
    Conversation.of("turns", _user("What is 2 plus 3?"), _assistant("5"), _user("And times four?")),
    Conversation.of(
        "turns",
        _user("你好"), _assistant("你好！需要什么？"), _user("In English."), _assistant("Hello!"), _user("Thanks."),
    ),
    Conversation.of("system", _system("Answer in one word."), _user("Is ice cold?")),
    Conversation.of("system", _system("Be brief."), _user("Hi."), _assistant("Hi!"), _user("Name a tree.")),
    Conversation.of("tools", _user("How is the weather in Gdańsk?"), tools=TOOLS),
    Conversation.of("tools", _system("Use the tools."), _user("Is it raining in Oslo?"), tools=TOOLS),
    Conversation.of(
        "tool calls",
        _user("How is the weather in Gdańsk?"),
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        {"role": "tool", "name": "weather_in", "tool_call_id": "call00001", "content": '{"sky": "clear"}'},
        tools=TOOLS,
    ),
)  # fmt: skip

CORPUS: tuple[str, ...] = (
    "The quick brown fox jumps over the lazy dog.",
    "It's what we'd've said; they'll say they're sure, I'm not. IT'S WHAT WE'D SAY, THEY'LL, I'M.",
    "Straße, naïve café, Ærø, Łódź, šťastný, Île-de-France, Ångström, İstanbul, ẞ",
    "Zażółć gęślą jaźń. Příliš žluťoučký kůň úpěl ďábelské ódy. Ґанок, їжак, об'єкт.",
    "Быстрая лиса прыгает через ленивую собаку; ёлка, подъезд, 3-й день.",
    "快速的棕色狐狸跳过懒狗。今天是2026年11月22日，星期日！「引号」、顿号；全角ＡＢＣ１２３",
    "すばしこい茶色の狐はのろまな犬を飛び越える。カタカナもｶﾀｶﾅも、１２３。",
    "빠른 갈색 여우가 게으른 개를 뛰어넘는다. 안녕하세요? ㅋㅋㅋ",
    "الثعلب البني السريع يقفز فوق الكلب الكسول، والسعر ١٢٣ ريال. مُحَمَّد",
    "השועל החום המהיר קופץ מעל הכלב העצלן. שָׁלוֹם",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है। क्षत्रिय १२३",
    "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ ๑๒๓",
    "Con cáo nâu nhanh nhẹn nhảy qua con chó lười biếng. Tiếng Việt: ậ ẫ ỡ ữ",
    "🙂 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇵🇱 ❤️ ☎️ 1️⃣ 🫠 text 😀😀😀 text",
    "a\u0301 \u00e1 e\u0308\u0323 n\u0303 \u1e9b\u0323 \ufb01 \u2126 \u212b \u00bd \u2460",  # composed and not
    "12 345 6789 01234 3.14159 1,000,000 1e-10 0x1F 2026-11-22 10:30 ½ ² ₃ ٣ 50%",
    "1 12 123 1234 12345 123456 1234567 a1b2c3 2x+3y=4z",
    "one two  three   four    five     six      \tseven\t\teight \t nine",
    " leading space", "  two leading spaces", "trailing space ", "trailing spaces   ", "\ttab first", "   ", " ", "",
    "line\nline\n\nline\n\n\nline\r\nline\r\n\r\nline \n line\n ", "\n", "\n\n", "\n \n", " \n\n  \n", "\r\n",
    "no\u00a0break\u2003em\u2009thin\u200bzero\u3000wide\ufeffmark\u2028line\u00adsoft",
    "def f(x: int) -> str:\n    if x > 0:\n        return f\"{x:>10}\"  # note\n\treturn 'a'*3\n\n\nclass A: pass\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * 0.5f; } // loop\n#include <stdio.h>\n",
    "SELECT name, COUNT(*) FROM t WHERE x <> 'y''z' GROUP BY 1; -- done",
    '{"key": ["value", 1.5, null, true, {"nested": "\\u00e9\\n"}]}',
    "<html><body class=\"a b\"><!-- x --><p>one &amp; two</p></body></html>",
    "https://example.org/a/b_c?d=e&f=%20g#h user.name+tag@example.org C:\\dir\\file.txt ../up",
    "Hello!!! What??? No... Yes—no; (well) [so] {and} <then> *star* _under_ ~tilde~ `code` $5 £6 €7 #8 @9 ^ | \\",
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~", "....", "-----", "=====", "______", "!!!!!!!!", "\"\"\"", "'''",
    "CamelCase camelCase snake_case SCREAMING_CASE kebab-case mixedUPPERlower XMLHttpRequest iPhone",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbbbbbbbbbbbbbb abababababababab",
    "don't Don't DON'T don’t ‘single’ “double” „low“ «angle» ‹one› – — … • † ‰",
    "∑ ∫ √ ∞ ≈ ≠ ≤ ≥ ∂ π θ α β γ → ← ↔ ⇒ ℝ ∈ ∉ ∀ ∃ x² + y₁ = z⁻¹",
    "𝒜𝓃 𝕞𝕒𝕥𝕙 𝟙𝟚𝟛 𐍈 𠜎 𠀀 \U0001f9d1\u200d\U0001f680",
    "Bonjour, comment ça va ? L'été, l'œuf, aujourd'hui ; « oui » — n'est-ce pas ?",
    "Olá, tudo bem? São Paulo, coração, pão-de-ló. ¿Qué? ¡Año nuevo, niño!",
    "Γειά σου Κόσμε, ὁ ἄνθρωπος. Բարեւ աշխարհ. გამარჯობა მსოფლიო. ሰላም ልዑል",
    "word,word.word;word:word!word?word/word\\word|word-word_word'word\"word",
    "(a)(b) [c][d] {e}{f} <g><h> a(b)c a[b]c a{b}c a<b>c a'b'c a\"b\"c",
)  # fmt: skip


def chosen(prompts: Sequence[Any] | None, *, chat: bool) -> tuple[Any, ...]:
    """At most 32 prompts: those given, or 32 questions (asked as conversations where there is a chat template), of
    which a model without one gets 20 and 12 beginnings to go on with.

    A prompt is a text, token ids, or a conversation (messages in OpenAI's shape) that the chat template renders.
    Raises PlanError for anything else, also for one text or one conversation that stands alone.
    """
    if prompts is not None:
        if isinstance(prompts, str):
            raise PlanError("prompts is one text; give a list of them: prompts=[text]")
        given = tuple(prompts)[:MOST_PROMPTS]
        for number, one in enumerate(given):
            _check(one, number)
        return given
    if chat:
        return tuple(Conversation.of("one turn", _user(text)) for text in QUESTIONS)
    return (*BEGINNINGS, *QUESTIONS)[:MOST_PROMPTS]


def _check(prompt: Any, number: int) -> None:
    if isinstance(prompt, Mapping) and "role" in prompt:
        raise PlanError("prompts is one conversation; give a list of them: prompts=[messages]")
    if isinstance(prompt, str):
        return
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytes):
        if all(isinstance(one, int) for one in prompt):
            return
        if all(isinstance(one, Mapping) and "role" in one for one in prompt):
            return
    raise PlanError(
        f"prompts[{number}] is {prompt!r:.60}; a prompt is a text, a list of token ids, or a list of messages such as "
        "{'role': 'user', 'content': 'Hello!'}"
    )
