"""Models of every architecture and tokenizers of every kind in miniature, as folders; and llama.cpp asked in-process.

Weights are random, norms too, so that a wrong offset, order or scale shows. Imported by the tests beside it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = (
    "The quick brown fox jumps over the lazy dog. The dog did not mind; it's been there before, and they'll be back.",
    "She said that the weather was nice, the water warm, and that nothing would ever be the same again. 1234 5678 2026",
    "def add(a, b):\n    return a + b\n\n\nclass Thing:\n\tname = 'x'  # a comment\n",
    "HTTPServer camelCase iPhone",
    "Größe und Übung, naïve café, señor, Ærø, Привет мир, привет всем, 日本語の文、漢字。",
    "안녕하세요 مرحبا नमस्ते 🙂👩‍👩‍👧",
)  # fmt: skip
SAMPLES = (
    "Hello world", " the dog", "  two  spaces", "It's they'll IT'S", "12345 3.14", "a\n\nb\r\n\tc", "naïve café Größe",
    "Привет, мир", "日本語。漢字", "안녕 مرحبا", "🙂🙂 👩‍👩‍👧", "HTTPServer iPhone", "x=1;y+=2//ok", "<|end|>after",
    "one<|user|> two", "a <|end|> b <|end|>\n<|end|>", "\u00a0nbsp", "…—“”", "trailing  ", "a", " ",
)  # fmt: skip
SPECIALS = ("<|pad|>", "<|begin|>", "<|end|>", "<|user|>")
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|user|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|user|>' }}{% endif %}"
)


def wrapped(bare: Any, begins: bool = False, **more: Any) -> Any:
    """The transformers tokenizer around a tokenizers.Tokenizer with our specials; begins: a text gets <|begin|>."""
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    bare.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIALS])
    if begins:
        number = bare.token_to_id("<|begin|>")
        bare.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", number)]
        )
    names = {"pad_token": "<|pad|>", "bos_token": "<|begin|>", "eos_token": "<|end|>", **more}
    made = PreTrainedTokenizerFast(tokenizer_object=bare, clean_up_tokenization_spaces=False, **names)
    made.chat_template = TEMPLATE
    return made


def byte_level(
    stages: tuple[str, ...] = (LLAMA3,), *, ignore_merges: bool = False, normalizer: Any = None, begins: bool = False
) -> Any:
    """Byte-level BPE, trained on the texts above, that cuts by these expressions one after the other."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    bare = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    cuts = [pre_tokenizers.Split(Regex(stage), behavior="isolated") for stage in stages]
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bare.pre_tokenizer = pre_tokenizers.Sequence([*cuts, bytes_])
    bare.decoder = decoders.ByteLevel()
    if normalizer is not None:
        bare.normalizer = normalizer
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=480, initial_alphabet=letters, special_tokens=list(SPECIALS), show_progress=False
    )
    bare.train_from_iterator(TEXTS * 2, trainer)
    return wrapped(bare, begins)


def sentencepiece(space: bool = True, begins: bool = True) -> Any:
    """SentencePiece's BPE with byte tokens as transformers keeps it: of each piece every pair that makes it is a merge.

    space: one is put before the text (Llama 2, Mistral); without it as Gemma's.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    learner.train_from_iterator(TEXTS * 2, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    learnt = sorted(learner.get_vocab(), key=lambda word: learner.get_vocab()[word])
    pieces = ["<unk>", *SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *learnt]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in learnt
        for cut in range(1, len(piece))
        if piece[:cut] in learnt and piece[cut:] in learnt
    ]
    bare = Tokenizer(models.BPE(vocabulary, merges, unk_token=pieces[0], byte_fallback=True, fuse_unk=True))
    steps = [normalizers.Prepend("▁")] if space else []
    bare.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    ends = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    bare.decoder = decoders.Sequence([*ends, *([decoders.Strip(" ", 1, 0)] if space else [])])
    return wrapped(bare, begins, unk_token=pieces[0])


SIZE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
}  # fmt: skip
LATENT: dict[str, Any] = {
    "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4, "routed_scaling_factor": 1.5,
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
    "gemma2": {"query_pre_attn_scalar": 40, "sliding_window": 8},
    "gemma3_text": {"query_pre_attn_scalar": 40, "sliding_window": 8, "num_hidden_layers": 6},
    "deepseek_v2": LATENT,
    "deepseek_v3": {**LATENT, "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "head_dim": 16},
}


def tiny(kind: str, vocabulary: int, **more: Any) -> Any:
    """A random model in float32; `more` goes into its configuration."""
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    names = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(kind, **{**SIZE, "vocab_size": vocabulary, **names, **MORE.get(kind, {}), **more})
    model = AutoModelForCausalLM.from_config(config).float()
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(weight, std=0.3, mean=0.0 if "gemma" in kind else 1.0)
        elif weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.15)
        else:
            torch.nn.init.normal_(weight, std=0.1)
    for name, held in model.named_buffers():
        if "correction_bias" in name:
            torch.nn.init.normal_(held, std=0.2)
    return model.eval()


def folder_of(place: Path, kind: str = "llama", tokenizer: Any = None, **more: Any) -> Path:
    """Model and tokenizer saved in `place`."""
    tokenizer = tokenizer or byte_level(ignore_merges=True)
    model = tiny(kind, max(512, len(tokenizer)), **more)
    return saved(place, model, tokenizer)


def saved(place: Path, model: Any, tokenizer: Any, **more: Any) -> Path:
    model.save_pretrained(place, **more)
    tokenizer.save_pretrained(place)
    return place


def engine(path: Path, **more: Any) -> Any:
    """llama.cpp on a file."""
    from speechkit.export.proof_engine import Engine

    return Engine({"path": str(path), "context": 128, "threads": 1, **more})


def following(opened: Any, ids: list[int], vocabulary: int) -> torch.Tensor:
    """llama.cpp's log-probabilities after `ids`: (V,), NaN where it tells none."""
    found = torch.full((vocabulary,), torch.nan)
    for number, value in opened.following(ids, vocabulary, ids[-1]):
        found[number] = value
    return found


def difference(
    folder: Path, path: Path, lengths: tuple[int, ...] = (1, 6, 30), model: Any = None, **more: Any
) -> float:
    """The largest difference of log-probabilities between transformers and llama.cpp, over the whole vocabulary."""
    from transformers import AutoModelForCausalLM

    if model is None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    size = model.config.get_text_config().vocab_size
    letters = plain_ids(folder)
    ids = [letters[(7 * number + number * number) % len(letters)] for number in range(max(lengths))]
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    opened = engine(path, **more)
    worst = 0.0
    for length in lengths:
        found = following(opened, ids[:length], size)
        known = ~found.isnan()
        assert known.sum() >= 0.9 * size
        worst = max(worst, float((found - wanted[length - 1])[known].abs().max()))
    return worst


def plain_ids(folder: Path) -> list[int]:
    """Ids of tokens that are printable ASCII, of which llama.cpp's server says what it thinks."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    return sorted(number for word, number in vocabulary.items() if word.isascii() and word.isalpha())
