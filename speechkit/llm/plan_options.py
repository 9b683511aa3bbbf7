"""What a training run is to be, for planning its memory: one frozen object, checked; and the cards that are known.

In: keyword arguments, or an `LlmConfig`. Out: `PlanOptions`, whose words are those of `LlmConfig` where both have
them. Knows no torch and no model; whether a combination works is for `validity` to say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from dataclasses import replace as replaced
from typing import TYPE_CHECKING, Any

from speechkit.device import Gpu, Hardware, cpu_cores
from speechkit.errors import PlanError
from speechkit.llm.lora_options import LoraOptions
from speechkit.training.settings import check_names

if TYPE_CHECKING:
    from speechkit.llm.llm_config import LlmConfig

__all__ = ["CARDS", "METHODS", "OFFLOADS", "OPTIMIZERS", "STRATEGIES", "PlanOptions", "card_of", "hardware_for"]

METHODS = ("full", "lora", "qlora")
STRATEGIES = ("one", "zero2", "zero3", "fsdp2")
CHECKPOINTING = ("none", "layers", "offload")
OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit")
OFFLOADS = ("none", "optimizer", "parameters")
DTYPES = ("float32", "bfloat16", "float16")

# What a program finds free on an idle card; the name on the box counts otherwise (T4: 16 GB, 15 GiB with ECC on)
CARDS = {
    "T4": Gpu("T4", (7, 5), 15.0),
    "L4": Gpu("L4", (8, 9), 22.5),
    "A100-40": Gpu("A100-40", (8, 0), 39.5),
    "A100-80": Gpu("A100-80", (8, 0), 79.2),
    "H100": Gpu("H100", (9, 0), 79.1),
    "H200": Gpu("H200", (9, 0), 139.8),
}


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Raises PlanError, naming the setting, for a value that does not exist or is out of range."""

    method: str = "lora"  # "full": every weight; "lora": adapters; "qlora": adapters on a 4-bit or 8-bit base
    strategy: str = "one"  # "one" process; "zero2", "zero3": DeepSpeed; "fsdp2": torch's fully_shard
    ranks: int = 1  # processes, one GPU each where there are any, over all nodes
    nodes: int = 1  # machines; `ranks` is divided evenly among them
    batch_tokens: int = 2048  # per rank and batch: the size of a block, or rows × max_len
    max_len: int | None = None  # longest row; None: batch_tokens, one row a batch
    packing: bool = True  # rows one behind the other; False: each padded to the longest
    fill: float = 0.5  # share of tokens that are no padding where rows are padded; packed it is taken as 1
    accumulation: int = 1  # batches per rank whose gradients are added up before an update
    global_tokens: int | None = None  # useful tokens that an update should see; None: no wish
    checkpointing: str = "layers"  # "none", "layers": computed twice; "offload": what is left of them in main memory
    kernels: bool = True  # speechkit's: no logits of the batch, less kept for backward
    optimizer: str = "adamw"  # or "adamw_8bit", "paged_adamw", "paged_adamw_8bit"
    dtype: str = "bfloat16"  # of multiplications, and of weights that are not trained
    trained_dtype: str = "float32"  # of weights that are trained, their gradients and what the optimizer keeps
    quant: str = "nf4"  # of the base under "qlora": "nf4" or "int8"
    offload: str = "none"  # to main memory: the "optimizer", or with zero3 the "parameters" too
    nvme: str = ""  # folder on a fast disk that takes what is offloaded, instead of main memory; zero3 alone
    lora: LoraOptions = field(default_factory=LoraOptions)  # the adapter, for "lora" and "qlora"
    card: str | None = None  # a name of CARDS, "cpu", or None for what this machine has

    def __post_init__(self) -> None:
        allowed = {
            "method": METHODS, "strategy": STRATEGIES, "checkpointing": CHECKPOINTING, "optimizer": OPTIMIZERS,
            "dtype": DTYPES, "trained_dtype": DTYPES, "offload": OFFLOADS, "quant": ("nf4", "int8"),
            "card": (*CARDS, "cpu", None),
        }  # fmt: skip
        for name, known in allowed.items():
            if (value := getattr(self, name)) not in known:
                raise PlanError(f"{name} is {value!r}; it can be {', '.join(repr(one) for one in known)}")
        for name in ("ranks", "nodes", "batch_tokens", "max_len", "accumulation", "global_tokens"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise PlanError(f"{name} is {value!r}; it should be a whole number, 1 or more")
        if not 0 < self.fill <= 1:
            raise PlanError(f"fill is {self.fill}, a share: it should be more than 0 and at most 1")
        if self.ranks % self.nodes:
            raise PlanError(f"{self.ranks} ranks cannot be divided evenly among {self.nodes} nodes")
        if self.max_len is not None and self.max_len > self.batch_tokens:
            raise PlanError(
                f"max_len is {self.max_len} and batch_tokens {self.batch_tokens}: a row of that length fits no batch. "
                f"Give batch_tokens {self.max_len} or more"
            )

    @classmethod
    def of(cls, config: LlmConfig, **more: Any) -> PlanOptions:
        """The run of `config`; `more` says what it does not, such as strategy, ranks and card."""
        same = ("method", "batch_tokens", "max_len", "packing", "accumulation", "checkpointing", "kernels", "optimizer")
        given: dict[str, Any] = {name: getattr(config, name) for name in same}
        names = ("rank", "alpha", "dropout", "rslora", "dora", "targets", "part")
        given["lora"] = LoraOptions(**{name: getattr(config, name) for name in names})
        if config.precision != "auto":
            given["dtype"] = config.precision
        if config.base_quant:
            given["quant"] = config.base_quant
        check_names(more, list(cls.__dataclass_fields__), "PlanOptions.of")
        return cls(**{**given, **more})

    def replace(self, **changes: Any) -> PlanOptions:
        """The same but for `changes`, checked again."""
        return replaced(self, **changes)

    @property
    def rows(self) -> tuple[int, int]:
        """Rows of a batch, and tokens of each."""
        if self.packing:
            return 1, self.batch_tokens
        length = self.max_len or self.batch_tokens
        return self.batch_tokens // length, length

    @property
    def sharded(self) -> bool:
        """Whether several processes share weights, gradients or the optimizer."""
        return self.strategy != "one"

    def __str__(self) -> str:
        ranks = "" if self.ranks == 1 else f" × {self.ranks}"
        rows = "packed" if self.packing else f"{self.rows[0]} padded rows of {self.rows[1]:,}"
        more = [f"checkpointing {self.checkpointing}", self.optimizer, self.dtype]
        more += ["kernels"] * self.kernels + [f"{self.offload} offloaded"] * (self.offload != "none")
        return f"{self.method}, {self.strategy}{ranks}, {self.batch_tokens:,} tokens {rows}, {', '.join(more)}"


def card_of(options: PlanOptions, hardware: Hardware | None = None) -> Gpu | None:
    """The card that the run is for; None for a CPU. Looks at this machine only where none is named."""
    found = hardware_for(options, hardware)
    return found.gpus[0] if found.gpus else None


def hardware_for(options: PlanOptions, hardware: Hardware | None = None) -> Hardware:
    """A machine with the named cards, as many as a node of the run has; what `hardware` or this machine is, else."""
    if options.card == "cpu":
        return Hardware(cpu_cores(), note="the plan is for a CPU")
    if options.card is not None:
        return Hardware(cpu_cores(), (CARDS[options.card],) * (options.ranks // options.nodes))
    if hardware is not None:
        return hardware
    from speechkit.device import detect

    return detect()
