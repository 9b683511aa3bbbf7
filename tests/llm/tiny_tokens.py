"""A real tokenizer in miniature: byte-level BPE without merges, seven specials, a chat template with marks.

263 tokens: `tiny("llama", vocab_size=VOCABULARY)` goes with it; pad, begin and end have the ids 0, 1 and 2 that tiny
models have in their configuration. Imported by the tests beside it.
"""

from __future__ import annotations

from typing import Any

__all__ = ["SPECIALS", "TEMPLATE", "VOCABULARY", "tokenizer"]

SPECIALS = ("<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
VOCABULARY = 256 + len(SPECIALS)
TEMPLATE = (
    "{{ bos_token }}"
    "{% if tools %}{{ '<|system|>Tools: ' + (tools | tojson) + '<|end|>' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}"
    "{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}{{ call['function'] | tojson }}{% endfor %}"
    "{{ eos_token }}"
    "{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tokenizer(chat_template: str | None = TEMPLATE, **more: Any) -> Any:
    """A PreTrainedTokenizerFast; `more` goes to its constructor (`pad_token="<|end|>"`, …)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: number for number, word in enumerate((*SPECIALS, *letters))}
    bare = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    bare.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIALS])
    given = {"pad_token": "<|pad|>", "bos_token": "<|begin|>", "eos_token": "<|end|>", **more}
    made = PreTrainedTokenizerFast(tokenizer_object=bare, clean_up_tokenization_spaces=False, **given)
    made.chat_template = chat_template
    return made
