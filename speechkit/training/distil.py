"""A small CTC model learns from a large one. In: student, teacher. Out: a module that the usual trainer trains.

The teacher's posteriors of every frame are followed by Kullback-Leibler divergence at a temperature (Hinton et al.
2015, arXiv:1503.02531), beside CTC on the text. Both hear the same samples, so their frames must lie on one grid and
their outputs mean the same tokens; both are checked. Knows no data and no loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from speechkit.asr import masks
from speechkit.asr.frames import FrameGrid
from speechkit.errors import ModelError, PlanError
from speechkit.training.anatomy import Anatomy, core_of
from speechkit.training.sizes import Sized, SizeTable, size_table
from speechkit.training.student import student_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["DistilForCTC", "DistilOptions", "SizeTable", "Sized", "frame_kl", "size_table", "student_of"]


@dataclass(frozen=True)
class DistilOptions:
    """How the teacher counts."""

    temperature: float = 2.0  # above 1 the teacher's second choices weigh more; CTC's frames are very sure of the blank
    weight: float = 0.5  # of the divergence; CTC gets the rest. 1 needs no text at all


class DistilForCTC(nn.Module):
    """A student that is trained like any CTC model: its forward pass returns a loss with the teacher in it.

    Parameters, state dict, `config` and `save_pretrained` are the student's; the teacher is carried along, frozen, in
    evaluation mode, and in no checkpoint. Raises ModelError or PlanError for a pair that cannot learn from each other.
    """

    base_model_prefix = "base"  # where `asr.masks` looks for the front-end
    main_input_name = "input_values"

    def __init__(self, student: Any, teacher: Any, options: DistilOptions | None = None) -> None:
        super().__init__()
        self.options = options or DistilOptions()
        if self.options.temperature <= 0 or not 0 <= self.options.weight <= 1:
            raise PlanError(
                f"temperature {self.options.temperature} and weight {self.options.weight}: the temperature is above 0 "
                "(1 to 4 is usual), the weight in [0, 1]"
            )
        self.student, teacher = core_of(student), core_of(teacher)
        _check_pair(self.student, teacher)
        for model in (self.student, teacher):
            masks.attach(model)
        # in a tuple: a submodule would be trained, moved, saved and counted with the student
        self._teacher = (teacher.eval().requires_grad_(False),)

    @property
    def teacher(self) -> Any:
        return self._teacher[0]

    @property
    def base(self) -> Any:
        return Anatomy.of(self.student).base

    @property
    def config(self) -> Any:
        return self.student.config

    @property
    def device(self) -> torch.device:
        return next(self.student.parameters()).device

    def save_pretrained(self, folder: Any, **options: Any) -> None:
        """The student, as any transformers model is saved."""
        self.student.save_pretrained(folder, **options)

    def activation_checkpointing_enable(self, *args: Any, **options: Any) -> None:
        """On the student; the teacher keeps no activations anyway."""
        enable = getattr(self.student, "activation_checkpointing_enable", None)
        (enable or self.student.gradient_checkpointing_enable)(*args, **options)

    gradient_checkpointing_enable = activation_checkpointing_enable  # its name before transformers 5.20

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **options: Any,
    ) -> Any:
        """input_values (B, T), labels (B, L) → the student's output, logits (B, F, V), with `loss`.

        loss = weight · KL + (1 - weight) · CTC, both per frame of speech and per label ("mean" of the config), or both
        summed ("sum"). Without labels it is the divergence alone; in evaluation mode CTC alone.
        """
        lengths = attention_mask.sum(-1).tolist() if attention_mask is not None else None
        with _told(self.student, lengths):
            out = self.student(input_values, attention_mask=attention_mask, labels=labels, **options)
        if not self.training:
            return out
        frames = _frames(self.student, input_values, attention_mask)
        with torch.no_grad(), masks.lengths_known(self.teacher, lengths):
            wanted = self._placed()(input_values, attention_mask=attention_mask).logits
        total = self.config.ctc_loss_reduction == "sum"
        divergence = frame_kl(out.logits, wanted, frames, self.options.temperature, total)
        share = self.options.weight if out.loss is not None else 1.0
        out.loss = share * divergence + ((1 - share) * out.loss if out.loss is not None else 0.0)
        return out

    def _placed(self) -> Any:
        """The teacher, where the student is: nobody else moves it."""
        here = self.device
        if next(self.teacher.parameters()).device != here:
            self._teacher = (self.teacher.to(here),)
        return self.teacher


def frame_kl(
    student: torch.Tensor,
    teacher: torch.Tensor,
    frames: torch.Tensor,
    temperature: float = 1.0,
    total: bool = False,
) -> torch.Tensor:
    """τ² · KL(teacher ‖ student) of the posteriors at temperature τ: the mean over frames, or their sum.

    student, teacher: (B, F, V) logits; frames: (B,) how many of F are speech, the rest is padding. Computed in float32.
    τ² keeps the gradients of one size whatever the temperature (Hinton et al. 2015, section 2.1).
    """
    own = (student.float() / temperature).log_softmax(-1)
    other = (teacher.float() / temperature).log_softmax(-1)
    per_frame = (other.exp() * (other - own)).sum(-1)  # (B, F)
    inside = torch.arange(per_frame.shape[1], device=per_frame.device)[None, :] < frames.to(per_frame.device)[:, None]
    summed = per_frame.masked_fill(~inside, 0.0).sum() * temperature**2
    return summed if total else summed / inside.sum().clamp(min=1)


def _frames(model: Any, values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(B,) frames of each clip."""
    grid = FrameGrid.from_config(model.config)
    samples: Sequence[int] = [values.shape[1]] * len(values) if mask is None else mask.sum(-1).tolist()
    return torch.tensor([grid.frames(count) for count in samples])


def _told(model: Any, lengths: Sequence[int] | None) -> Any:
    """The lengths for the student's norms, unless a trainer has told them already and will take them back itself."""
    from contextlib import nullcontext

    norms: Iterator[Any] = (m for m in model.modules() if isinstance(m, masks.MaskedGroupNorm))
    known = any(norm.lengths is not None for norm in norms)
    return nullcontext() if known else masks.lengths_known(model, lengths)


def _check_pair(student: Any, teacher: Any) -> None:
    if student is teacher:
        raise PlanError("student and teacher are one model: make the student with student_of(teacher, layers=…)")
    own, other = Anatomy.of(student), Anatomy.of(teacher)
    rows = own.head.out_features, other.head.out_features
    blanks = own.model.config.pad_token_id, other.model.config.pad_token_id
    if rows[0] != rows[1] or blanks[0] != blanks[1]:
        raise ModelError(
            f"the student has {rows[0]} outputs with blank {blanks[0]}, the teacher {rows[1]} with blank {blanks[1]}: "
            "they must mean the same tokens; give both one vocabulary (student_of keeps it)"
        )
    grids = FrameGrid.from_config(own.model.config), FrameGrid.from_config(other.model.config)
    if grids[0] != grids[1]:
        raise ModelError(
            f"the student has a frame every {grids[0].hop} samples over {grids[0].field}, the teacher every "
            f"{grids[1].hop} over {grids[1].field}: their frames cannot be compared; give the student the teacher's "
            "conv_kernel and conv_stride (student_of keeps them)"
        )
