"""A CTC model and two vocabularies → the same model with a head for the second. The one place where rows are moved.

Greedy transcripts do not change by growing the head: a new row starts where it can win no frame that a known token
would have won. Knows no tokenizer file and no audio.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechkit.errors import ModelError

if TYPE_CHECKING:
    from speechkit.training.vocabulary import Vocabulary

__all__ = ["HeadChange", "resize_head"]

HANDICAP = 1.0  # nats by which a new letter starts below the one that it was copied from


@dataclass(frozen=True)
class HeadChange:
    """What became of each output of the new head: tokens, and for the derived ones the token they start from."""

    copied: tuple[str, ...]
    derived: tuple[tuple[str, str], ...]  # (new, known): a relative's row, a little less likely
    fresh: tuple[str, ...]  # the mean row of the known letters, or random where nothing was known
    dropped: tuple[str, ...]  # outputs of the old head that the new one lacks

    def __str__(self) -> str:
        pairs = ", ".join(f"{new} ← {known}" for new, known in self.derived[:8])
        parts = [f"{len(self.copied)} rows copied"]
        parts += [f"{len(self.derived)} started from a relative ({pairs})"] if self.derived else []
        parts += [f"{len(self.fresh)} new ({' '.join(self.fresh[:12])})"] if self.fresh else []
        parts += [f"{len(self.dropped)} dropped ({' '.join(self.dropped[:12])})"] if self.dropped else []
        return "head: " + ", ".join(parts)


def resize_head(model: Any, old: Vocabulary | None, new: Vocabulary) -> HeadChange:
    """Replace `model.lm_head`, (old V, D) → (new V, D), and set the ids in `model.config` to those of `new`.

    Known tokens keep their row, also in another letter case where `new` has one case only; blank, unknown and delimiter
    are matched by what they do, not by name. An accented letter (`é`) that is new starts from its plain form, other new
    tokens from the mean of the known letters, whose score is never the highest of all. With `old` None everything is
    drawn from N(0, `initializer_range`), as in a model that never had a head.

    Raises ModelError for a model without a CTC head (`lm_head`), or with fewer outputs than `old` has tokens.
    """
    import torch

    head = getattr(model, "lm_head", None)
    if not isinstance(head, torch.nn.Linear):
        raise ModelError(
            f"{type(model).__name__} has no CTC head (lm_head); load it as Wav2Vec2ForCTC or another …ForCTC"
        )
    if old is not None and head.out_features < len(old):
        raise ModelError(f"the head has {head.out_features} outputs, the old vocabulary {len(old)} tokens: not a pair")
    grown = torch.nn.Linear(head.in_features, len(new), bias=head.bias is not None)
    grown = grown.to(device=head.weight.device, dtype=head.weight.dtype)
    plan = _plan(old, new, related=head.bias is not None)
    with torch.no_grad():
        std = float(getattr(model.config, "initializer_range", 0.02))
        grown.weight.normal_(0.0, std)
        if grown.bias is not None:
            grown.bias.zero_()
        if old is not None:
            _fill(grown, head, old, plan)
    grown.train(head.training).requires_grad_(head.weight.requires_grad)
    model.lm_head = grown
    _configure(model.config, new)
    return _change(plan, old, new)


# id of the new token → (id of the old one, whether it is the same token)
_Plan = dict[int, tuple[int, bool]]


def _plan(old: Vocabulary | None, new: Vocabulary, related: bool) -> _Plan:
    """`related`: whether a letter may start from another one; without a bias the two would tie."""
    if old is None:
        return {}
    plan: _Plan = {new.blank: (old.blank, True)}
    for to, source in ((new.unk, old.unk), (new.delimiter, old.delimiter)):
        if to is not None and source is not None:
            plan.setdefault(to, (source, True))
    known = {unicodedata.normalize("NFC", token): number for token, number in reversed(list(old.ids.items()))}
    taken = {unicodedata.normalize("NFC", token) for token in new.tokens}
    for number, token in enumerate(new.tokens):
        if number in plan:
            continue
        for form in _relatives(unicodedata.normalize("NFC", token)):
            same = form == token or form not in taken
            if form in known and known[form] not in (old.blank, old.unk, old.delimiter) and (same or related):
                plan[number] = (known[form], same)
                break
    return plan


def _relatives(token: str) -> list[str]:
    """The token, its other case, and its plain letter in both."""
    base = unicodedata.normalize("NFD", token)[:1] if len(token) == 1 else token
    return list(dict.fromkeys([token, token.lower(), token.upper(), base, base.lower(), base.upper()]))


def _fill(grown: Any, head: Any, old: Vocabulary, plan: _Plan) -> None:
    """Rows by `plan`; what it does not name gets the mean of the known letters' rows."""
    letters = [old.ids[token] for token in old.letters]
    if letters:
        grown.weight[:] = head.weight[letters].mean(dim=0)
        if head.bias is not None:
            grown.bias[:] = head.bias[letters].mean()
    for number, (source, same) in plan.items():
        grown.weight[number] = head.weight[source]
        if head.bias is not None:
            grown.bias[number] = head.bias[source] - (0.0 if same else HANDICAP)


def _configure(config: Any, new: Vocabulary) -> None:
    config.vocab_size = len(new)
    config.pad_token_id = new.blank  # transformers' CTC loss takes this id for the blank
    config.bos_token_id = new.ids.get("<s>")
    config.eos_token_id = new.ids.get("</s>")


def _change(plan: _Plan, old: Vocabulary | None, new: Vocabulary) -> HeadChange:
    used = {source for source, _ in plan.values()}
    names = old.tokens if old is not None else ()
    return HeadChange(
        copied=tuple(new.tokens[number] for number, (_, same) in sorted(plan.items()) if same),
        derived=tuple((new.tokens[n], names[source]) for n, (source, same) in sorted(plan.items()) if not same),
        fresh=tuple(token for number, token in enumerate(new.tokens) if number not in plan),
        dropped=tuple(token for number, token in enumerate(names) if number not in used),
    )
