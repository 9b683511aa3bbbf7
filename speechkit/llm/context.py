"""How many tokens a model reads. In: its configuration and the length asked for. Out: a `Context` with its reason.

Beyond the length that the model was made for, rotary positions are stretched by YaRN (Peng et al. 2023,
arXiv:2309.00071), as transformers computes it; the configuration is changed before the weights are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechkit.errors import PlanError
from speechkit.llm.registry import features_of

if TYPE_CHECKING:
    from speechkit.llm.families import Family

__all__ = ["MOST", "Context", "check_length", "stretch"]

MOST = 8.0  # times the model's own length; beyond, nothing is known of what is left of it


@dataclass(frozen=True)
class Context:
    """The longest row that this model and its tokenizer are set to."""

    tokens: int  # 0: neither the model nor the caller says
    of_model: int  # what it was made for
    reason: str
    factor: float = 1.0  # by which positions are stretched

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens ({self.reason})" if self.tokens else f"no limit ({self.reason})"


def check_length(max_len: int | None) -> None:
    """Raise PlanError unless this is None or a whole number from 1."""
    if max_len is not None and (isinstance(max_len, bool) or not isinstance(max_len, int) or max_len < 1):
        raise PlanError(f"max_len is {max_len!r}; it can be None (the model's own) or a whole number from 1")


def stretch(config: Any, max_len: int | None, family: Family | None = None) -> Context:
    """Set `config` (in place) to rows of `max_len` tokens; None leaves the model's own length.

    Raises PlanError for a length that is more than eight times the model's, or beyond it where positions cannot be
    stretched: learned ones, several kinds of them, or ones that are stretched already. The message names the limit.
    """
    check_length(max_len)
    features = features_of(config)
    own = features.context
    if max_len is None:
        return Context(own, own, "what the model was made for" if own else "its configuration names none")
    if not own or max_len <= own:
        return Context(max_len, own, f"asked for; the model was made for {own:,}" if own else "asked for")
    name = family.name if family else getattr(config, "model_type", "this model")
    if max_len > MOST * own:
        raise PlanError(
            f"max_len is {max_len:,}, the model's own is {own:,}; positions are stretched up to {MOST:g} times: "
            f"at most {int(MOST * own):,}"
        )
    if reason := _why_not(features.scaling, family):
        raise PlanError(
            f"max_len is {max_len:,}, above the {own:,} that {name} was made for, and {reason}: at most {own:,}"
        )
    factor = max_len / own
    _set_yarn(config.get_text_config(), factor, own, max_len)
    return Context(
        max_len, own, f"positions stretched by YaRN, factor {factor:g}: the model was made for {own:,}, and needs some "
        "training at this length", factor,
    )  # fmt: skip


def _why_not(scaling: str, family: Family | None) -> str:
    if family is not None and not family.long:
        return "its positions are of several kinds, which nothing here stretches"
    if not scaling:
        return "its positions are learned ones, which cannot be stretched"
    return "" if scaling == "default" else f"its positions are stretched already ({scaling})"


def _set_yarn(config: Any, factor: float, own: int, max_len: int) -> None:
    """Layers with a sliding window look back no further than before, so that theirs stay."""
    rope = dict(config.rope_parameters)
    more = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": own}
    if isinstance(rope.get("full_attention"), dict):
        rope["full_attention"] = {**rope["full_attention"], **more}
    else:
        rope |= more
    config.max_position_embeddings = max_len
    config.rope_parameters = rope
