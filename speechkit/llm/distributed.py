"""Settings of DeepSpeed and FSDP from a plan, and what a run on several GPUs asks of this process. In: a `Plan`.

Out: dictionaries as DeepSpeed, transformers and accelerate read them, the files of them, and keyword arguments for
trl's trainer. Every field that transformers would fill in ("auto") is filled in here, so that the file says what runs
and the plan could count it. Kernels go into a model before it is sharded, and stay: a class exchanged in an instance
is nothing that ZeRO or FSDP looks at. Under ZeRO-3 hooks within a layer bring its weights, and fused layers see them:
they compute unfused there.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit import extras
from speechkit.errors import OutputError, PlanError
from speechkit.llm.launch_lines import Launch, launch_line, slurm_script

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike

    from speechkit.llm.plan import Plan
    from speechkit.llm.plan_options import PlanOptions

__all__ = [
    "deepspeed_config", "fsdp_config", "gathered", "save_gathered_adapter", "strategy_of", "training_arguments_for",
    "write_configs",
]  # fmt: skip

WIDTH = 4096  # of a model whose width nobody told: what DeepSpeed's sizes are made of


def deepspeed_config(
    options: PlanOptions, *, hidden: int = WIDTH, live: int | None = None, clip: float = 1.0
) -> dict[str, Any]:
    """DeepSpeed's settings for ZeRO-2 or ZeRO-3.

    hidden: width of the model, of which buckets are made as transformers makes them; live: weights that ZeRO-3 may
    have gathered at once (`memory.live_elements`); clip: length to which longer gradients are shortened, as the
    trainer's `max_grad_norm`. A batch of the trainer is one planned batch. Raises PlanError for another strategy.
    """
    if options.strategy not in ("zero2", "zero3"):
        raise PlanError(f"strategy is {options.strategy!r}; DeepSpeed has zero2 and zero3")
    third = options.strategy == "zero3"
    zero: dict[str, Any] = {
        "stage": 3 if third else 2,
        "overlap_comm": options.card != "cpu",  # on streams, which a CPU has not
        "contiguous_gradients": True,
        "reduce_bucket_size": hidden**2,
    }
    if third:
        zero |= {
            "stage3_prefetch_bucket_size": int(0.9 * hidden**2),
            "stage3_param_persistence_threshold": 10 * hidden,
            "stage3_max_live_parameters": live or 10**9,
            "stage3_max_reuse_distance": live or 10**9,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    else:
        zero |= {"allgather_partitions": True, "allgather_bucket_size": hidden**2, "reduce_scatter": True}
    given: dict[str, Any] = {
        "zero_optimization": zero | _offloads(options),
        "bf16": {"enabled": options.dtype == "bfloat16"},
        "fp16": {"enabled": options.dtype == "float16", "loss_scale": 0, "initial_scale_power": 16},
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": options.accumulation,
        "gradient_clipping": clip,
        "zero_allow_untested_optimizer": True,  # the trainer brings its own, bitsandbytes' among them
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    if options.offload != "none":
        given["zero_force_ds_cpu_optimizer"] = False  # its own Adam for CPUs would have to be compiled first
    return given


def _offloads(options: PlanOptions) -> dict[str, Any]:
    if options.offload == "none":
        return {}
    place: dict[str, Any] = {"device": "nvme", "nvme_path": options.nvme} if options.nvme else {"device": "cpu"}
    place["pin_memory"] = options.card != "cpu"
    found = {"offload_optimizer": place}
    return found | {"offload_param": dict(place)} if options.offload == "parameters" else found


def fsdp_config(options: PlanOptions, layers: Sequence[str] = ()) -> dict[str, Any]:
    """Settings of FSDP 2 as transformers and accelerate read them.

    layers: names of the classes whose instances are gathered one at a time, as "LlamaDecoderLayer"; empty: those that
    the model names itself. Raises PlanError for another strategy.
    """
    if options.strategy != "fsdp2":
        raise PlanError(f"strategy is {options.strategy!r}; settings of FSDP are for fsdp2")
    found: dict[str, Any] = {
        "fsdp_version": 2,
        "fsdp_reshard_after_forward": True,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",  # pieces that another number of ranks can read
        "fsdp_cpu_ram_efficient_loading": options.method != "qlora",
        "fsdp_offload_params": options.offload == "parameters",
        "fsdp_activation_checkpointing": False,  # the trainer's own, which kernels know
    }
    if layers:
        found["fsdp_transformer_layer_cls_to_wrap"] = ",".join(layers)
    return found


def accelerate_config(options: PlanOptions, inner: dict[str, Any], deepspeed: str = "") -> dict[str, Any]:
    """What `accelerate launch --config_file` reads; `inner` of FSDP, or the name of DeepSpeed's file."""
    zero = options.strategy.startswith("zero")
    found: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED" if zero else "FSDP",
        "mixed_precision": {"bfloat16": "bf16", "float16": "fp16"}.get(options.dtype, "no"),
        "num_machines": options.nodes,
        "num_processes": options.ranks,
        "use_cpu": options.card == "cpu" and not zero,  # with the flag accelerate leaves DeepSpeed out
        "rdzv_backend": "c10d" if options.nodes > 1 else "static",
    }
    if not zero:
        return found | {"fsdp_config": inner}
    del found["mixed_precision"]  # DeepSpeed's own file says it, and accelerate refuses both
    return found | {"deepspeed_config": {"deepspeed_config_file": deepspeed, "zero3_init_flag": False}}


def write_configs(plan: Plan, folder: str | PathLike[str], command: Sequence[str] = ()) -> dict[str, Path]:
    """Write what the plan's strategy needs → the files by name: "settings", "accelerate", "launch", "slurm".

    "settings" is what `LlmConfig.distributed` takes. command: what is to be launched. Raises OutputError where the
    folder cannot be written.
    """
    from speechkit.llm.memory import live_elements

    options, place = plan.options, Path(folder)
    given: dict[str, Any]
    if options.strategy == "fsdp2":
        name, given = "fsdp.json", fsdp_config(options)
    else:
        name = "deepspeed.json"
        given = deepspeed_config(options, hidden=plan.counts.hidden, live=live_elements(plan.counts))
    run = tuple(command) or ("-m", "speechkit", "llm-finetune", "--config", "run.json")
    # several machines meet at the first: whoever starts them puts its name there
    launch = Launch.of(options, run, **({"head": "FIRST-MACHINE"} if options.nodes > 1 else {}))
    texts = {
        "settings": (name, json.dumps(given, indent=2)),
        "accelerate": ("accelerate.json", json.dumps(accelerate_config(options, given, str(place / name)), indent=2)),
        "launch": ("launch.sh", launch_line(launch)),
        "slurm": ("launch.sbatch", slurm_script(launch)),
    }
    try:
        place.mkdir(parents=True, exist_ok=True)
        for file, text in texts.values():
            (place / file).write_text(text.rstrip() + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{place} cannot be written: {error}; give another folder") from error
    return {key: place / file for key, (file, _) in texts.items()}


def strategy_of(settings: dict[str, Any], where: str = "the settings") -> str:
    """Whose settings these are: "zero2", "zero3" or "fsdp2". Raises PlanError for neither."""
    zero = settings.get("zero_optimization") if isinstance(settings, dict) else None
    if isinstance(zero, dict) and zero.get("stage") in (2, 3):
        return f"zero{zero['stage']}"
    inner = settings.get("fsdp_config", settings) if isinstance(settings, dict) else {}
    if isinstance(inner, dict) and any(str(name).startswith("fsdp") for name in inner):
        return "fsdp2"
    raise PlanError(
        f"{where} holds neither DeepSpeed's settings (zero_optimization with stage 2 or 3) nor those of FSDP; "
        "distributed.write_configs writes either"
    )


def training_arguments_for(path: str | PathLike[str] | None, device: str = "auto") -> dict[str, Any]:
    """Keyword arguments for trl's or transformers' training arguments; meets the other ranks first.

    path: the file of `LlmConfig.distributed`. Raises PlanError for a file that is no settings, for a strategy that
    this device has not, and for ranks that do not come; MissingExtra where DeepSpeed is not installed.
    """
    if path is None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # each holds the whole model; gradients are averaged
            _meet("nccl" if device.startswith("cuda") else "gloo")
        return {}
    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlanError(f"{path} cannot be read as JSON ({error}); distributed.write_configs writes one") from error
    strategy, cpu = strategy_of(settings, str(path)), device == "cpu"
    if strategy == "fsdp2":
        if cpu:
            raise PlanError("accelerate leaves FSDP out on a CPU, without a word; take zero2 or zero3, or a GPU")
        _meet("nccl")
        return {"fsdp": True, "fsdp_config": settings.get("fsdp_config", settings)}
    if cpu:
        # DeepSpeed chooses its device when it is imported, and would say "cuda" wherever torch is built for it
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    extras.require("deepspeed", extra="zero", purpose=strategy)
    if cpu:
        from speechkit.llm.ranks import no_compiler

        no_compiler()
    _meet("gloo" if cpu else "nccl")
    return {"deepspeed": settings}


def _meet(backend: str) -> None:
    from speechkit.llm.ranks import WAIT_S, join

    join(backend, wait_s=float(os.environ.get("SPEECHKIT_WAIT_S", WAIT_S)))


@contextlib.contextmanager
def gathered(model: Any, names: Sequence[str] = ("lora_", "modules_to_save")) -> Iterator[dict[str, Any]]:
    """Whole weights whose name holds one of `names`, on every rank, while the context lasts; all ranks enter it.

    Of ZeRO-3 those alone are gathered, not the base; of FSDP each one by itself; others are whole anyway.
    """
    found = {name: weight for name, weight in model.named_parameters() if any(one in name for one in names)}
    pieces = [weight for weight in found.values() if hasattr(weight, "ds_id")]
    context: Any = contextlib.nullcontext()
    if pieces:
        deepspeed = extras.require("deepspeed", extra="zero", purpose="gathering weights")
        context = deepspeed.zero.GatheredParameters(pieces)
    with context:
        yield {
            name: (weight.full_tensor() if hasattr(weight, "full_tensor") else weight).detach()
            for name, weight in found.items()
        }


def save_gathered_adapter(model: Any, folder: str | PathLike[str], rank: int = 0) -> None:
    """The adapter of a peft model in peft's format, whole; all ranks call this, rank 0 writes.

    model: peft's model, without DeepSpeed's engine around it.
    """
    with gathered(model) as weights:
        whole = {name: weight.cpu().clone() for name, weight in weights.items()} if rank == 0 else {}
    if rank == 0:
        model.save_pretrained(folder, state_dict=whole)
