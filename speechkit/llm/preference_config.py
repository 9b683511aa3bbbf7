"""What decides training by preference: DPO on pairs of answers, GRPO on rewards. Frozen, checked. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields

from speechkit.errors import PlanError
from speechkit.llm.llm_config import METHODS, PARTS, PRECISIONS, LlmConfig
from speechkit.llm.llm_settings import Settings, check_choice, check_least, check_positive, check_shares

__all__ = ["PreferenceConfig"]


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig(Settings):
    """Settings of `train_dpo` and `train_grpo`. Raises PlanError, naming the setting, for what cannot be."""

    model: str = "demo/chat"  # what to start from: a name of `speechkit models`, a Hub id or a folder
    revision: str | None = None  # of a Hub model: branch, tag or commit
    folder: str = "runs/llm-preference"  # where the settings, the curve and the model are written; made if absent
    method: str = "lora"  # "lora", "qlora" or "full", as in LlmConfig
    rank: int = 16  # of the adapters' matrices
    alpha: float = 32  # what they add is multiplied by alpha / rank
    targets: tuple[str, ...] = ("auto",)  # names of layers that get an adapter; "auto": as the model's family has it
    part: str = "text"  # of a model that also sees: "text", "vision" or "both"
    quant: str | None = None  # of the base under "qlora": "nf4" (what None means there) or "int8"
    steps: int = 100  # updates of the weights
    rows: int = 4  # pairs (DPO) or prompts (GRPO) per update and accumulated batch
    accumulation: int = 1  # batches whose gradients are added up before an update
    learning_rate: float = 1e-5  # highest; after a warmup it stays
    warmup: float = 0.1  # share of the run in which it rises from nothing
    max_grad_norm: float = 1.0  # longer gradients are shortened to this
    beta: float | None = None  # how much leaving the model before costs; None: 0.1 for DPO, 0 for GRPO
    max_len: int | None = None  # longest pair in tokens, longer ones are left out; None: what the model takes
    generations: int = 8  # GRPO: answers per prompt, which are judged against each other
    max_new_tokens: int = 128  # GRPO: of an answer
    temperature: float = 1.0  # GRPO: of the draw
    precision: str = "auto"  # of multiplications: "float32", "bfloat16", "float16"
    device: str = "auto"  # "cpu", "cuda", …
    kernels: bool = True  # fused kernels where they fit
    log_every: int = 1  # updates between points of the curve
    seed: int = 0  # of the order of the rows, of answers and of new weights

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("method", METHODS), ("precision", PRECISIONS), ("part", PARTS)):
            check_choice(name, getattr(self, name), allowed)
        check_least(self, {
            "steps": 1, "rows": 1, "accumulation": 1, "rank": 1, "max_len": 2, "beta": 0, "max_new_tokens": 1,
            "log_every": 1, "seed": 0,
        })  # fmt: skip
        check_positive(self, ("learning_rate", "max_grad_norm", "alpha", "temperature"))
        check_shares(self, ("warmup",))
        if self.generations < 2:
            raise PlanError(
                f"generations is {self.generations}: answers to a prompt are judged against each other, so it takes 2 "
                "or more; 8 is usual"
            )
        self.as_llm()  # what the two have in common is checked there

    def as_llm(self) -> LlmConfig:
        """The settings that open a model, as those of an ordinary run."""
        both = {one.name for one in fields(self)} & {one.name for one in fields(LlmConfig)}
        given = {name: getattr(self, name) for name in both - {"max_len"}}
        return LlmConfig(**{**given, "decay": 0.0})
