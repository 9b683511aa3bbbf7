"""Chat templates of the shapes that families have, in their smallest form, with a tokenizer whose words they are."""

from __future__ import annotations

from typing import Any

LLAMA_3 = (
    "{% for m in messages %}{{ (bos_token if loop.first else '') + '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + "
    "'\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
PHI_3 = (  # one more token behind the last turn
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
QWEN_3 = (  # thoughts stay in the last answer alone
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% set said = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.last %}{% set thought = m['content'].split('</think>')[0].split('<think>')[-1].strip('\n') "
    "if '</think>' in m['content'] else '' %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ said }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
R1 = (  # opens a thought for the model and drops it from what it said
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{{ '<｜Assistant｜>' + m['content'].split('</think>')[-1] + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
MARKED = (  # as trl marks ChatML for training
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# name → template, tokens that are one, bos, eos, pad, what generation config calls eos beside
SHAPES: dict[str, tuple[str, tuple[str, ...], str | None, str, str, tuple[str, ...]]] = {
    "Llama 3": (LLAMA_3, ("<|start_header_id|>", "<|end_header_id|>"), "<|begin_of_text|>", "<|eot_id|>",
                "<|finetune_right_pad_id|>", ()),
    "ChatML": (CHATML, ("<|im_start|>",), None, "<|im_end|>", "<|endoftext|>", ()),
    "ChatML with marks": (MARKED, ("<|im_start|>",), None, "<|im_end|>", "<|endoftext|>", ()),
    "Gemma": (GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>", "<pad>", ("<end_of_turn>",)),
    "Mistral": (MISTRAL, ("[INST]", "[/INST]"), "<s>", "</s>", "<pad>", ()),
    "Phi 3": (PHI_3, ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), "<s>", "<|endoftext|>", "<unk>",
              ("<|end|>",)),
    "Qwen 3": (QWEN_3, ("<|im_start|>", "<think>", "</think>"), None, "<|im_end|>", "<|endoftext|>", ()),
    "R1": (R1, ("<｜User｜>", "<｜Assistant｜>"), "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>",
           ()),
}  # fmt: skip


def made(template: str | None, tokens: tuple[str, ...], bos: str | None, eos: str, pad: str) -> Any:
    """A byte-level tokenizer that knows these tokens besides 256 bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = tuple(dict.fromkeys(word for word in (pad, bos, eos, *tokens) if word))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE(vocab={word: n for n, word in enumerate((*words, *letters))}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    bare.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in words])
    given = {"bos_token": bos} if bos else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token=eos, pad_token=pad, **given)
    tokenizer.chat_template = template
    return tokenizer


def of(name: str) -> tuple[Any, Any]:
    """Tokenizer and generation config of a shape."""
    from transformers import GenerationConfig

    template, tokens, bos, eos, pad, more = SHAPES[name]
    tokenizer = made(template, tokens, bos, eos, pad)
    ends = [tokenizer.convert_tokens_to_ids(word) for word in (eos, *more)]
    return tokenizer, GenerationConfig(eos_token_id=ends)
