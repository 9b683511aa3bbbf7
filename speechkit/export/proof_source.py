"""What the source says, in transformers and float32 on the CPU: the numbers that an exported file is held against.

In: a folder, a name or a model with its tokenizer, and prompts. Out: `Facts`, plain numbers; the model can be freed
before the file is opened. Knows nothing of llama.cpp.
"""

from __future__ import annotations

import copy
import os
import time
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechkit.errors import PlanError
from speechkit.export.prompts import CONVERSATIONS, CORPUS, Conversation, chosen

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "CONTINUED", "Chat", "Facts", "Row", "chats_of", "float32_bytes", "greedy", "logp_after", "open_source",
    "read_facts", "rows_of", "stops_of",
]  # fmt: skip

CONTINUED = 24  # tokens of a greedy continuation
LOOKED_BACK = 8  # positions of a plain text's end that are compared besides the continuation's; of a conversation none,
# for chat models are not trained on what others say
LONGEST = 384  # tokens of a prompt; what is longer is cut at its end
KEPT_BYTES = 2**28  # of log-probabilities that are held


@dataclass(frozen=True)
class Chat:
    """A conversation as the source's template renders it."""

    kind: str
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...]
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One prompt with its greedy continuation."""

    prompt: tuple[int, ...]
    continued: tuple[int, ...]  # with the token that stopped it
    text: str  # of the continuation, special tokens left out
    first: int  # length of the shortest prefix whose next token is compared
    logp: NDArray[np.float32]  # (P, V) natural log, after the prefixes of first, first + 1, … tokens

    @property
    def ids(self) -> tuple[int, ...]:
        """All tokens but the last, whose follower was not asked for."""
        return (*self.prompt, *self.continued)[: self.first + len(self.logp) - 1]


@dataclass(frozen=True)
class Facts:
    """All that is kept of a source."""

    name: str
    vocabulary: int
    texts: tuple[tuple[str, bool], ...]  # text, whether the tokens that begin and end any text are wanted
    tokens: tuple[tuple[int, ...], ...]
    chats: tuple[Chat, ...]
    rows: tuple[Row, ...]
    asked: int  # prompts that were to be rows; fewer are where time ran out
    stops: tuple[int, ...]
    bos: str  # the text of the token that begins, "" for none
    begins: bool  # whether the tokenizer puts it before a text
    drawn: int  # a token of printable ASCII
    stripping: tuple[str, ...] = ()  # tokens that swallow white space beside them
    notes: tuple[str, ...] = ()

    @property
    def positions(self) -> int:
        return sum(len(row.logp) for row in self.rows)


def open_source(source: Any, adapter: str | os.PathLike[str] | None = None) -> tuple[Any, Any]:
    """A folder or name, or (model, tokenizer) → both, the model in float32 on the CPU, with the adapter on top.

    A model in another precision or place is copied, so that the one given stays as it is. Raises ModelError for what
    cannot be loaded, PlanError for a source that is neither.
    """
    import torch

    if isinstance(source, (str, os.PathLike)):
        model, tokenizer, own = _loaded(source)
        if own is not None and adapter is not None:
            raise PlanError(f"{source} is an adapter already; merge it first, or leave adapter= out")
        adapter = adapter or own
    elif isinstance(source, tuple) and len(source) == 2:
        model, tokenizer = source
        kinds = {(weight.dtype, weight.device.type) for weight in model.parameters() if weight.is_floating_point()}
        if adapter is not None or kinds != {(torch.float32, "cpu")}:
            model = copy.deepcopy(model).to(device="cpu", dtype=torch.float32)
    else:
        raise PlanError(f"source is {type(source).__name__}; it is a folder, a name, or (model, tokenizer)")
    if adapter is not None:
        from speechkit.llm.adapter_files import load_adapter

        model = load_adapter(model, adapter, kernels=False)
    return model.eval(), tokenizer


def _loaded(source: str | os.PathLike[str]) -> tuple[Any, Any, Path | None]:
    """As the files have it: no repairs, for what stands in them is what was written out."""
    from speechkit.llm import registry
    from speechkit.llm.files import find, read_config, read_model, read_tokenizer

    place = find(registry.resolve(source))
    config = read_config(place.base)
    return read_model(place.base, config, "float32", "cpu"), read_tokenizer(place.tokenizer), place.adapter


def float32_bytes(source: Any) -> int:
    """Bytes that `open_source` takes for it in float32; 0 for a model that is used as it stands, and for facts."""
    import torch

    if isinstance(source, Facts):
        return 0
    if isinstance(source, (str, os.PathLike)):
        from speechkit.llm import registry
        from speechkit.llm.files import find

        return 4 * sum(_elements(path) for path in find(registry.resolve(source)).base.glob("*.safetensors"))
    weights = list(source[0].parameters())
    if all(weight.dtype == torch.float32 and weight.device.type == "cpu" for weight in weights):
        return 0
    return 4 * sum(weight.numel() for weight in weights)


def _elements(path: Path) -> int:
    from math import prod

    from safetensors import SafetensorError, safe_open

    from speechkit.errors import ModelError

    try:
        with safe_open(str(path), framework="np") as file:
            return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}; copy it again") from error


def read_facts(
    source: Any,
    prompts: Sequence[Any] | None = None,
    *,
    adapter: str | os.PathLike[str] | None = None,
    seconds: float = 180.0,
) -> Facts:
    """Everything the source says; of the prompts as many as fit into `seconds`, at least one."""
    training = [module for module in source[0].modules() if module.training] if isinstance(source, tuple) else []
    try:
        return _facts(source, *open_source(source, adapter), prompts, seconds)
    finally:  # a model that was used as it stands is left as it was
        for module in training:
            module.training = True


def _facts(source: Any, model: Any, tokenizer: Any, prompts: Sequence[Any] | None, seconds: float) -> Facts:
    texts, notes = _composed(tokenizer, _texts(tokenizer))
    rows, asked, more = rows_of(model, tokenizer, prompts, seconds)
    size = rows[0].logp.shape[1]  # a token that the model has no row for is not in the file either
    texts = [one for one in texts if max(tokenizer(one[0])["input_ids"], default=0) < size]
    stops, bos = stops_of(model, tokenizer), tokenizer.bos_token or ""
    return Facts(
        name=str(source) if isinstance(source, (str, os.PathLike)) else str(model.config.name_or_path or "a model"),
        vocabulary=rows[0].logp.shape[1], texts=tuple(texts),
        tokens=tuple(tuple(tokenizer(text, add_special_tokens=special)["input_ids"]) for text, special in texts),
        chats=tuple(chats_of(tokenizer)) if getattr(tokenizer, "chat_template", None) else (), rows=rows, asked=asked,
        stops=stops, bos=bos, begins=bool(bos) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id],
        drawn=_printable(tokenizer), stripping=stripping(tokenizer), notes=(*notes, *more),
    )  # fmt: skip


def rows_of(
    model: Any, tokenizer: Any, prompts: Sequence[Any] | None, seconds: float = 180.0
) -> tuple[tuple[Row, ...], int, tuple[str, ...]]:
    """Prompts with greedy continuations and log-probabilities; how many were asked for; what there is to know.

    Prompts are texts, conversations, or token ids. As many as fit into `seconds`, at least one. Raises PlanError
    where there is none, or one that the model or its chat template does not take.
    """
    chat = bool(getattr(tokenizer, "chat_template", None))
    given = [(_ids(tokenizer, one), LOOKED_BACK * isinstance(one, str)) for one in chosen(prompts, chat=chat)]
    wanted = [(ids, back) for ids, back in given if ids]
    if not wanted:
        raise PlanError("there is no prompt to compare by: give texts or conversations in prompts=, or leave it out")
    config = model.config.get_text_config()
    if beyond := [one for ids, _ in wanted for one in ids if not 0 <= one < config.vocab_size]:
        raise PlanError(f"prompts hold token {beyond[0]}; the model has tokens 0 to {config.vocab_size - 1}")
    longest = min(LONGEST, (getattr(config, "max_position_embeddings", None) or LONGEST) - CONTINUED)
    cut = sum(len(ids) > longest for ids, _ in wanted)
    notes = (f"{cut} prompts cut at {longest} tokens",) if cut else ()
    room = max(1, KEPT_BYTES // (4 * config.vocab_size * len(wanted)))
    rows: list[Row] = []
    limit, stops = time.monotonic() + seconds, stops_of(model, tokenizer)
    for ids, back in wanted:
        rows.append(_row(model, tokenizer, ids[:longest], stops, (min(back, room // 3), room)))
        if time.monotonic() > limit:
            break
    return tuple(rows), len(wanted), notes


def stops_of(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Ids at which an answer ends; one that the vocabulary has no row for can never come, and is none."""
    rows = int(model.config.get_text_config().vocab_size)
    settings = getattr(model, "generation_config", None)
    given = getattr(settings, "eos_token_id", None)
    given = given if isinstance(given, (list, tuple)) else [given]
    return tuple(sorted({int(one) for one in (*given, tokenizer.eos_token_id) if one is not None and one < rows}))


def _printable(tokenizer: Any) -> int:
    for letter in "aeioxn.,1":
        ids = tokenizer(letter, add_special_tokens=False)["input_ids"]
        if ids and tokenizer.decode(ids[-1:]).strip() == letter:
            return int(ids[-1])
    raise PlanError("the tokenizer has no token for a plain letter, so that llama.cpp cannot be asked what follows")


def _ids(tokenizer: Any, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if all(isinstance(one, int) for one in prompt):
        return list(prompt)
    if not getattr(tokenizer, "chat_template", None):
        raise PlanError("prompts hold a conversation, and the model has no chat template; give texts")
    from jinja2 import TemplateError

    tools = list(getattr(prompt, "tools", ())) or None
    try:
        text = tokenizer.apply_chat_template(list(prompt), tools=tools, add_generation_prompt=True, tokenize=False)
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise PlanError(f"the chat template refuses a conversation of prompts=: {error}") from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _texts(tokenizer: Any) -> list[tuple[str, bool]]:
    """The corpus, each special token amid words, and texts made of the vocabulary itself."""
    texts = [*CORPUS, *_of_specials(tokenizer), *_of_vocabulary(tokenizer)]
    return [(text, True) for text in texts if text] + [(text, False) for text in texts[:16] if text]


def _composed(tokenizer: Any, texts: list[tuple[str, bool]]) -> tuple[list[tuple[str, bool]], list[str]]:
    """Texts as the tokenizer's own normaliser leaves them: llama.cpp applies none, and a file cannot name one."""
    made, forms = [], set()
    for text, special in texts:
        for form in ("NFC", "NFKC"):
            normal = unicodedata.normalize(form, text)
            if normal != text and tokenizer(normal)["input_ids"] == tokenizer(text)["input_ids"]:
                text = normal
                forms.add(form)
        made.append((text, special))
    names = " and ".join(sorted(forms))
    note = f"llama.cpp does not compose characters ({names}) as this tokenizer does: texts were compared composed"
    return made, [note] if forms else []


def _of_specials(tokenizer: Any, most: int = 48) -> list[str]:
    added = sorted({str(token) for token in tokenizer.get_added_vocab()} | set(tokenizer.all_special_tokens))
    step = max(1, len(added) // most)
    found, bare = added[::step][:most], set(stripping(tokenizer))
    return [
        *(f"one{one}two{one}{one}three" + ("" if one in bare else f" {one} four\n{one}\n{one}") for one in found),
        "".join(found[:8]) + "and < | im_start | > <s > [INST ] </ s>",
    ]


def stripping(tokenizer: Any) -> tuple[str, ...]:
    """Added tokens that swallow white space beside them: llama.cpp knows this of a few models, by their names alone."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return tuple(token.content for token in added if token.lstrip or token.rstrip)


def _of_vocabulary(tokenizer: Any, count: int = 640, together: int = 8) -> list[str]:
    """Tokens drawn evenly, decoded, side by side: merges and cuts that no sentence thinks of."""
    size = len(tokenizer)
    special = set(tokenizer.all_special_ids)
    ids = [one for one in sorted({(7919 * n + 13) % size for n in range(min(count, size))}) if one not in special]
    words = [text for text in (tokenizer.decode([one]) for one in ids) if text and "\ufffd" not in text]
    words = [word for n, word in enumerate(words) if n % 2 == 0] + [word for n, word in enumerate(words) if n % 2]
    rows = [words[n : n + together] for n in range(0, len(words), together)]
    return [("" if n % 2 else " ").join(row) for n, row in enumerate(rows)]


def chats_of(tokenizer: Any) -> list[Chat]:
    """Those that the template takes: one without a place for a system's message or for tools leaves these out."""
    from jinja2 import TemplateError

    found = []
    for one in CONVERSATIONS:
        try:
            text = _rendered(tokenizer, one)
        except (TemplateError, TypeError, ValueError, KeyError):
            continue
        named = [tool["function"]["name"] for tool in one.tools]
        plain = one.kind == "tools" and not all(name in text for name in named)
        lost = one.kind == "system" and str(one[0]["content"]) not in text
        if plain or lost or (one.kind == "tool calls" and named[0] not in text):
            continue
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        found.append(Chat(one.kind, tuple(one), one.tools, text, ids))
    return found


def _rendered(tokenizer: Any, one: Conversation) -> str:
    messages = copy.deepcopy(list(one))  # some templates pop what they have read
    return tokenizer.apply_chat_template(
        messages, tools=copy.deepcopy(list(one.tools)) or None, add_generation_prompt=True, tokenize=False
    )


def _row(model: Any, tokenizer: Any, ids: list[int], stops: tuple[int, ...], room: tuple[int, int]) -> Row:
    """room: positions of the prompt to compare, and of all at most."""
    whole = greedy(model, tokenizer, ids, stops)
    first = max(1, len(ids) - room[0])
    last = min(len(whole) - 1, first + room[1] - 1)  # of prefixes
    text = tokenizer.decode(whole[len(ids) :], skip_special_tokens=True)
    return Row(tuple(ids), tuple(whole[len(ids) :]), text, first, logp_after(model, whole[:last], first))


def greedy(model: Any, tokenizer: Any, ids: Sequence[int], stops: Sequence[int]) -> list[int]:
    """The prompt and its greedy continuation: at most CONTINUED tokens, up to and with the first of `stops`."""
    import torch

    given = torch.tensor([list(ids)], device=model.device)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    with torch.no_grad():
        whole = model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=CONTINUED, do_sample=False,
            temperature=None, top_p=None, top_k=None, num_beams=1, repetition_penalty=1.0, pad_token_id=pad,
            eos_token_id=list(stops) or None, use_cache=True,
        )  # fmt: skip
    return list(whole[0].tolist())


def logp_after(model: Any, ids: Sequence[int], first: int) -> NDArray[np.float32]:
    """(P, V) natural log: of what follows the first `first`, `first` + 1, … tokens of `ids`."""
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False).logits[0, first - 1 :]
        return logits.float().log_softmax(-1).cpu().numpy()
