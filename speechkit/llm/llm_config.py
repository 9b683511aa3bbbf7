"""Everything that decides the fine-tuning of a language model, as one frozen object: written, read, changed, compared.

In: keyword arguments, or JSON. Out: an `LlmConfig` that was checked. Knows no torch. What only the machine can tell
(whether a device can do what is asked) is judged when the run begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from speechkit.errors import PlanError
from speechkit.llm.llm_settings import Settings, check_choice, check_least, check_positive, check_shares

__all__ = ["CHECKPOINTING", "METHODS", "OPTIMIZERS", "QUANTS", "LlmConfig"]

METHODS = ("lora", "qlora", "full")
QUANTS = ("nf4", "int8")  # in which a base that is not trained can lie under an adapter
OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit")
CHECKPOINTING = ("none", "layers", "offload")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
PARTS = ("text", "vision", "both")


@dataclass(frozen=True, kw_only=True)
class LlmConfig(Settings):
    """Settings of one run. Shares and rates are fractions (0.1 is 10 %), sizes are in tokens.

    At least one of `steps`, `epochs` and `minutes` is needed; the first that is reached ends the run.
    Raises PlanError, naming the setting, for a value of the wrong type or out of range.
    """

    model: str = "demo/chat"  # what to start from: a name of `speechkit models`, a Hub id or a folder
    revision: str | None = None  # of a Hub model: branch, tag or commit
    folder: str = "runs/llm-finetune"  # where everything is written; made if absent
    train: str = ""  # where the rows come from: the command line reads these two, `finetune` is handed them
    dev: str = ""  # rows that are kept out; the command line splits them off `train` where none are named
    method: str = "lora"  # "lora": adapters; "qlora": adapters on a quantised base; "full": every weight
    rank: int = 16  # of the adapters' matrices
    alpha: float = 32  # what they add is multiplied by alpha / rank
    dropout: float = 0.0  # of what goes into the adapters; above 0 the fused kernels stay out
    rslora: bool = False  # alpha / sqrt(rank) instead (rank-stabilised LoRA, arXiv:2312.03732)
    dora: bool = False  # direction and size of each weight apart (arXiv:2402.09353)
    targets: tuple[str, ...] = ("auto",)  # names of layers that get an adapter; "auto": as the model's family has it
    part: str = "text"  # of a model that also sees: "text", "vision" or "both"
    quant: str | None = None  # of the base under "qlora": "nf4" (what None means there) or "int8"
    max_len: int | None = None  # longest row; None: what the model and a block can hold
    packing: bool = True  # rows one behind the other in blocks without padding; else batches padded to their longest
    batch_tokens: int = 2048  # tokens per batch and process: the size of a block
    accumulation: int = 1  # batches per process whose gradients are added up before an update
    steps: int | None = None  # updates of the weights
    epochs: float | None = None  # passes over the rows
    minutes: float | None = None  # of training, over all sittings, evaluations included
    learning_rate: float = 2e-4  # highest
    warmup: float = 0.05  # share of the run in which the learning rate rises from nothing
    decay: float = 0.5  # share of the run, at its end, in which it falls to nothing
    weight_decay: float = 0.0  # of matrices; norms and biases have none
    max_grad_norm: float = 1.0  # longer gradients are shortened to this
    optimizer: str = "adamw"  # "adamw_8bit": a quarter of its memory; "paged_…": moved out when the GPU is full
    checkpointing: str = "none"  # "layers": activations computed twice; "offload": what is left of them in main memory
    precision: str = "auto"  # of multiplications: "float32", "bfloat16", "float16"
    device: str = "auto"  # "cpu", "cuda", …
    kernels: bool = True  # fused kernels where they fit; the result is the same but for rounding
    eval_every: int = 0  # updates between evaluations, each of which leaves a checkpoint; 0: ten times over the run
    patience: int = 0  # evaluations without a lower kept-out loss after which the run ends; 0: never
    log_every: int = 10  # updates between points of the curve
    keep: int = 2  # checkpoints to go on from that are kept; the best model is kept beside them
    seed: int = 0  # of the order of the rows and of new weights
    resume: bool = True  # go on from the last checkpoint in `folder`, if there is one
    distributed: str | None = None  # JSON file for several GPUs: DeepSpeed's settings, or accelerate's for FSDP

    # The learning rate follows `steps`, `epochs` and `minutes`: after a change of those the curve is no longer that of
    # one sitting.
    CHANGEABLE: ClassVar[frozenset[str]] = frozenset({
        "steps", "epochs", "minutes", "eval_every", "log_every", "patience", "keep", "checkpointing", "resume",
        "folder", "train", "dev", "distributed",
    })  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_length(self)
        for name, allowed in (
            ("method", METHODS), ("optimizer", OPTIMIZERS), ("checkpointing", CHECKPOINTING),
            ("precision", PRECISIONS), ("part", PARTS),
        ):  # fmt: skip
            check_choice(name, getattr(self, name), allowed)
        _check_method(self)
        check_least(self, {
            "accumulation": 1, "log_every": 1, "keep": 1, "rank": 1, "max_len": 2, "batch_tokens": 2, "eval_every": 0,
            "patience": 0, "weight_decay": 0, "seed": 0,
        })  # fmt: skip
        check_positive(self, ("learning_rate", "max_grad_norm", "alpha"))
        check_shares(self, ("warmup", "decay", "dropout"))
        if self.warmup + self.decay > 1:
            raise PlanError(f"warmup {self.warmup} and decay {self.decay} are more than the whole run together")
        if self.max_len is not None and self.max_len > self.batch_tokens:
            raise PlanError(
                f"max_len is {self.max_len} and batch_tokens {self.batch_tokens}: a row of that length fits no batch. "
                f"Give batch_tokens {self.max_len} or more, or a smaller max_len"
            )

    @property
    def base_quant(self) -> str | None:
        """How the base lies in memory: None, "nf4" or "int8"."""
        return (self.quant or "nf4") if self.method == "qlora" else None


def _check_length(config: LlmConfig) -> None:
    if all(getattr(config, name) is None for name in ("steps", "epochs", "minutes")):
        raise PlanError("the run has no end: give steps, epochs or minutes, e.g. LlmConfig(minutes=5)")
    check_positive(config, ("steps", "epochs", "minutes"))


def _check_method(config: LlmConfig) -> None:
    if config.quant is not None:
        check_choice("quant", config.quant, QUANTS)
        if config.method != "qlora":
            reason = "weights that learn cannot be quantised" if config.method == "full" else "plain LoRA has no quant"
            raise PlanError(
                f'quant is "{config.quant}" and method "{config.method}": {reason}; method "qlora" trains adapters on '
                "a quantised base"
            )
    if not config.targets:
        raise PlanError('targets is empty; give names of layers, e.g. ["q_proj", "v_proj"], or ["auto"]')
    if config.dropout == 1:
        raise PlanError("dropout is 1, with which nothing reaches the adapters; 0.05 is usual")
