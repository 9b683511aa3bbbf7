"""The loss of a causal language model from its last hidden states and its head, without the logits of the batch.

With labels, a model in training returns its loss, and `logits` is None; in evaluation both, as ever. `skip_logits=True`
or `False` in the call says otherwise, the word that transformers' Trainer has for it. Without labels nothing changes.
trl's SFTTrainer brings a head of its own (`fused_lm_head`) and never asks for this loss; both may be in.

As in transformers: labels are shifted here unless `shift_labels` are given, `num_items_in_batch` divides the sum, what
a family does to its logits (Gemma's soft cap) and adds to its loss (a router's balance) stays. One thing differs: where
every label is ignored and nothing is said of items, transformers' mean is NaN, ours zero.
Where the head is no plain layer (quantised, adapted, offloaded, sharded), transformers' own forward runs.
"""

from __future__ import annotations

import inspect
from dataclasses import fields
from functools import wraps
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import nn

from speechkit.llm.exchange import recipe_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["causal_loss", "head_reason"]


def causal_loss(base: type) -> dict[str, Any]:
    """The forward of a ForCausalLM class whose loss comes from `linear_cross_entropy`."""
    original: Callable[..., Any] = base.forward  # type: ignore[attr-defined]
    names = tuple(inspect.signature(original).parameters)[1:]
    plain = inspect.unwrap(original)
    capped, routed = "final_logit_softcapping" in plain.__code__.co_names, "output_router_logits" in names
    output = _output_of(original)

    @wraps(original)  # generate and Trainer read the signature
    def forward(self: Any, *args: Any, **given: Any) -> Any:
        given.update(zip(names, args, strict=False))
        skip = given.pop("skip_logits", None)
        if not _is_ours(self, given, skip):
            return original(self, **given)
        labels, shifted = given.pop("labels"), given.pop("shift_labels", None)
        items, ignored = given.pop("num_items_in_batch", None), given.pop("ignore_index", -100)
        as_tuple = _pop(given, "return_dict", self.config.return_dict) is False
        given.pop("logits_to_keep", None)
        if routed:
            given["output_router_logits"] = _pop(given, "output_router_logits", self.config.output_router_logits)
        found = self.base_model(**given, return_dict=True)
        shifted = nn.functional.pad(labels, (0, 1), value=ignored)[..., 1:] if shifted is None else shifted
        cap = self.config.get_text_config().final_logit_softcapping if capped else None
        loss = _loss(found.last_hidden_state, self.get_output_embeddings(), shifted, items, ignored, cap)
        more = {name: value for name, value in found.items() if name in output[1]}
        if routed and given["output_router_logits"]:
            balance = plain.__globals__["load_balancing_loss_func"]
            asked = (self.num_experts, self.num_experts_per_tok, given.get("attention_mask"))
            more["aux_loss"] = balance(found.router_logits, *asked)
            loss = loss + self.router_aux_loss_coef * more["aux_loss"].to(loss.device)
        result = output[0](loss=loss, **more)
        return result.to_tuple() if as_tuple else result

    return {"forward": forward}


def head_reason(model: Any) -> str:
    """Why the loss of this model is transformers' own even with the kernel in; empty where it is not."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return f"its head is a {type(head).__name__}"
    plain = type(head.weight) in (nn.Parameter, torch.Tensor) and head.weight.is_floating_point()
    if not plain or hasattr(head.weight, "ds_id"):  # bitsandbytes, torchao, FSDP 2, ZeRO 3
        return "its head is quantised or sharded"
    if head._forward_hooks or head._forward_pre_hooks or _is_replaced(head):
        return "its head has hooks"
    return "" if _is_shifted(model) else "its loss is not the usual one of causal models"


def _is_replaced(head: nn.Linear) -> bool:
    """Whether its forward is another's; accelerate's that only moves what goes in (device_map) is no matter."""
    return "forward" in head.__dict__ and getattr(head.__dict__.get("_hf_hook"), "offload", True)


def _is_ours(model: Any, given: dict[str, Any], skip: bool | None) -> bool:
    asked = model.training if skip is None else skip
    keep = given.get("logits_to_keep")
    whole = keep is None or (isinstance(keep, int) and keep == 0)
    put_in = recipe_of(model) is not None  # somebody may have kept this forward when the kernel was taken out
    return bool(asked and whole and put_in and given.get("labels") is not None and not head_reason(model))


def _is_shifted(model: Any) -> bool:
    from transformers.loss.loss_utils import ForCausalLMLoss

    return model.loss_function is ForCausalLMLoss


def _loss(
    hidden: torch.Tensor, head: nn.Linear, labels: torch.Tensor, items: Any, ignored: int, cap: float | None
) -> torch.Tensor:
    """hidden: (B, S, H); labels: (B, S) of the next tokens; items: what the sum is divided by, None for the mean."""
    from speechkit_kernels.linear_cross_entropy import linear_cross_entropy

    hidden, labels = hidden.to(head.weight.device), labels.to(head.weight.device)  # of layers on several GPUs
    loss: torch.Tensor = linear_cross_entropy(
        hidden, head.weight, labels, bias=head.bias, ignore_index=ignored, softcap=cap,
        reduction="mean" if items is None else "sum",
    )  # fmt: skip
    if items is None:
        return loss
    return loss / (items.to(loss.device) if isinstance(items, torch.Tensor) else items)


def _output_of(forward: Callable[..., Any]) -> tuple[Any, frozenset[str]]:
    """What the forward returns, read from its annotation, and the names of what it holds."""
    from transformers.modeling_outputs import CausalLMOutputWithPast
    from transformers.utils.generic import ModelOutput

    said = inspect.unwrap(forward).__annotations__.get("return")
    kinds: list[Any] = [
        kind for kind in (said, *get_args(said)) if inspect.isclass(kind) and issubclass(kind, ModelOutput)
    ]
    kind = kinds[0] if kinds else CausalLMOutputWithPast
    return kind, frozenset(field.name for field in fields(kind))


def _pop(given: dict[str, Any], name: str, default: Any) -> Any:
    """The value given, the default where there is none or None."""
    value = given.pop(name, None)
    return default if value is None else value
