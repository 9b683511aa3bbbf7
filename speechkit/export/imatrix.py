"""Importance matrices: how much each input of each layer matters to a quantised model, measured, saved and loaded.

    importance = importance_of(model, tokenizer, texts)        # one pass over calibration texts
    export_gguf(model, "model.gguf", "Q4_K_M", imatrix=importance)
    save_imatrix(importance, "imatrix.gguf")                   # llama.cpp's llama-quantize reads it, and load_imatrix

The importance of a column of a weight matrix is the mean of the square of its input: what an error in that column
does to the output, on average (llama.cpp's `imatrix`, pull request 4861). Of experts each has its own. Names are
llama.cpp's where it knows the architecture, so that a matrix fits a model however it was made.
"""

from __future__ import annotations

import os
import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit import extras
from speechkit.errors import DataError, ModelError, OutputError, PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import torch

__all__ = ["Importance", "importance_of", "load_imatrix", "save_imatrix"]

MOST_TOKENS = 2**15
CONTEXT = 512  # tokens of a window, llama.cpp's default
BATCH_TOKENS = 2048
SUMS, COUNTS = ".in_sum2", ".counts"
LONGEST_NAME = 1024  # bytes; a length beyond is a broken file


class Importance(dict[str, np.ndarray]):
    """Name of a tensor → mean of the squared inputs, (K,) float32; (E, K) of stacked experts.

    `counts`: how many tokens each mean is over, (1,) or (E,), for the names where it is known; experts that saw none
    have importance 1 throughout, as in llama.cpp. `context`: tokens of a window; `datasets`: where the texts are from.
    """

    def __init__(self, values: Mapping[str, np.ndarray] | None = None, **about: Any) -> None:
        super().__init__(values or {})
        self.counts: dict[str, np.ndarray] = dict(about.get("counts", {}))
        self.context: int = about.get("context", CONTEXT)
        self.datasets: tuple[str, ...] = tuple(about.get("datasets", ()))

    @property
    def tokens(self) -> int:
        """The most that any tensor saw; 0 where it is not known."""
        return max((int(counts.max()) for counts in self.counts.values()), default=0)

    @property
    def unseen(self) -> dict[str, int]:
        """Stacked experts of which some saw no token, and how many."""
        missing = {name: int((counts == 0).sum()) for name, counts in self.counts.items()}
        return {name: count for name, count in missing.items() if count}

    def __repr__(self) -> str:
        unseen = sum(self.unseen.values())
        tail = f"; {unseen} experts saw none of them" if unseen else ""
        return f"importance of {len(self)} tensors over {self.tokens:,} tokens{tail}"


def importance_of(
    model: Any,
    tokenizer: Any,
    texts: Iterable[str],
    most_tokens: int = MOST_TOKENS,
    *,
    context: int = CONTEXT,
    output: bool = False,
) -> Importance:
    """Mean squared inputs of the linear layers of a transformers causal language model, over at most `most_tokens`.

    Texts are joined and cut into windows of `context` tokens, as llama.cpp does; take what the model will be used on.
    The layers' tensors have llama.cpp's names, or transformers' where llama.cpp does not know the architecture.
    output: the head's too, which llama.cpp leaves out unless told. Linear layers and stacked experts are measured;
    other weights of three axes are named in a warning. The model is left as it was.
    Raises DataError for no text, PlanError for limits that cannot be, ModelError for inputs that are not finite or a
    model without layers that llama.cpp could name.
    """
    import torch

    if most_tokens < 1 or context < 2:
        raise PlanError(f"most_tokens is {most_tokens} and context {context}; give at least 1 and 2")
    windows = _windows(tokenizer, texts, most_tokens, context)
    sums, modes = _Sums(), {module: module.training for module in model.modules()}
    handles = _hook(model, _namer(model), sums, output)
    device = next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad():
            for batch in windows:
                model(input_ids=torch.tensor(batch, device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return sums.means(context)


def save_imatrix(importance: Mapping[str, np.ndarray], path: str | os.PathLike[str]) -> Path:
    """A file in llama.cpp's format (GGUF of type imatrix: sums of squares and counts), as llama-quantize reads it.

    Written beside its place and renamed. Raises PlanError for a name without .gguf, no entries, or values that are
    negative or no numbers, OutputError where it cannot be written, MissingExtra without gguf.
    """
    gguf = extras.require("gguf", extra="export", purpose="writing an importance matrix")
    target = Path(path).expanduser()
    if target.suffix != ".gguf":
        raise PlanError(f"{target.name} does not end in .gguf, the format of importance matrices; name it so")
    if not importance:
        raise PlanError("the importance matrix has no entry: nothing to save")
    for name, values in importance.items():
        if not (np.isfinite(values).all() and np.greater_equal(values, 0).all()):
            raise PlanError(f"the importance of {name} holds values that are negative or no numbers; make it anew")
    about = importance if isinstance(importance, Importance) else Importance(importance)
    part = target.with_name(f".{target.name}.part")
    try:
        writer = gguf.GGUFWriter(part, "imatrix")
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", list(about.datasets or ("texts",)))
        writer.add_uint32("imatrix.chunk_count", max(1, about.tokens // about.context))
        writer.add_uint32("imatrix.chunk_size", about.context)
        for name in sorted(about):
            means = np.atleast_2d(np.asarray(about[name], np.float32))  # (E or 1, K)
            counts = np.asarray(about.counts.get(name, np.ones(len(means))), np.float32)[:, None]
            writer.add_tensor(name + SUMS, means * counts)
            writer.add_tensor(name + COUNTS, counts)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(part, target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    return target


def load_imatrix(path: str | os.PathLike[str]) -> Importance:
    """What llama.cpp's imatrix tool, or `save_imatrix`, wrote: GGUF, or the .dat of before 2025.

    In .dat files stacked experts are one row, (E · K,), with no counts of their own. Raises DataError for a file that
    is missing, broken or no importance matrix, MissingExtra without gguf.
    """
    file = Path(path).expanduser()
    try:
        with file.open("rb") as opened:
            begins = opened.read(4)
    except OSError as error:
        raise DataError(f"the importance matrix {file} cannot be read: {error}") from error
    found = _load_gguf(file) if begins == b"GGUF" else _load_dat(file)
    for name, values in found.items():
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise DataError(f"{file}: {name} holds values that are negative or no numbers; make the matrix anew")
    return found


class _Sums:
    """Sums of squares by name, in double precision on the CPU."""

    def __init__(self) -> None:
        self.squares: dict[str, np.ndarray] = {}  # (E or 1, K)
        self.counts: dict[str, np.ndarray] = {}  # (E or 1,)

    def add(self, names: Sequence[str], x: torch.Tensor, expert: int = 0, experts: int = 1) -> None:
        """x: (..., K), the inputs of one expert."""
        flat = x.detach().flatten(0, -2).float()
        total = flat.square().sum(dim=0).double().cpu().numpy()
        if not np.isfinite(total).all():
            raise ModelError(
                f"the inputs of {names[0]} are not finite: the model is broken, or its dtype too narrow; look for NaN "
                "in its weights, or load it in float32"
            )
        for name in names:
            if name not in self.squares:
                self.squares[name], self.counts[name] = np.zeros((experts, len(total))), np.zeros(experts, np.int64)
            self.squares[name][expert] += total
            self.counts[name][expert] += len(flat)

    def means(self, context: int) -> Importance:
        found = {}
        for name, squares in self.squares.items():
            counts = self.counts[name][:, None]
            means = np.where(counts > 0, squares / np.maximum(counts, 1), 1.0).astype(np.float32)
            found[name] = means if len(means) > 1 else means[0]
        return Importance(found, counts=self.counts, context=context)


def _windows(tokenizer: Any, texts: Iterable[str], most: int, context: int) -> list[list[list[int]]]:
    """Batches of windows of equal length; what remains is a window of its own."""
    stream: list[int] = []
    begin = getattr(tokenizer, "bos_token", None) or ""
    for text in [texts] if isinstance(texts, str) else texts:
        rendered = bool(begin) and text.startswith(begin)  # a chat template has put it there
        stream += tokenizer(text, add_special_tokens=not rendered)["input_ids"]
        if len(stream) >= most:
            break
    stream = stream[:most]
    if not stream:
        raise DataError("there is no text to measure importance on: give some of what the model will be used on")
    windows = [stream[at : at + context] for at in range(0, len(stream), context)]
    last = [windows.pop()] if len(windows[-1]) < context else []
    each = max(1, BATCH_TOKENS // context)
    batches = [windows[at : at + each] for at in range(0, len(windows), each)]
    return [*batches, last] if last else batches


def _namer(model: Any) -> Callable[[str], str]:
    """transformers' name of a weight → llama.cpp's; itself where llama.cpp has none for the architecture."""
    from speechkit.export.gguf_families import ARCHITECTURES
    from speechkit.export.gguf_tensors import name_map

    extras.require("gguf", extra="export", purpose="naming layers as llama.cpp does")
    row = ARCHITECTURES.get(model.config.model_type)
    if row is None:
        return lambda name: name
    names = name_map(row.arch, model.config.get_text_config().num_hidden_layers)
    return lambda name: names(name) or ""


def _hook(model: Any, named: Callable[[str], str], sums: _Sums, output: bool) -> list[Any]:
    import torch

    head, handles, left_out = model.get_output_embeddings(), [], []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            found = ("output.weight" if output else "") if module is head else named(f"{name}.weight")
            if found:
                handles.append(module.register_forward_pre_hook(_measured((found,), sums)))
        elif _is_experts(module):
            handles.append(module.register_forward_pre_hook(_measured_experts(name, named, sums)))
        elif any(weight.dim() == 3 for weight in module.parameters(recurse=False)):
            left_out.append(name)
    if not handles:
        raise ModelError(
            f"{type(model).__name__} has no linear layers with names that llama.cpp knows; a model with adapters is "
            "merged first (speechkit.llm.merge)"
        )
    if left_out:
        warnings.warn(f"no importance is measured for {', '.join(left_out)}", RuntimeWarning, stacklevel=3)
    return handles


def _measured(names: tuple[str, ...], sums: _Sums) -> Callable[[Any, tuple[Any, ...]], None]:
    def hook(module: Any, given: tuple[Any, ...]) -> None:
        sums.add(names, given[0])

    return hook


def _is_experts(module: Any) -> bool:
    """transformers' stacked experts: gate and up (E, 2 K', K) in one, down (E, K, K'), each row an output."""
    weights = dict(module.named_parameters(recurse=False))
    if not {"gate_up_proj", "down_proj"} <= weights.keys() or getattr(module, "is_transposed", False):
        return False
    return all(weight.dim() == 3 for weight in weights.values())  # no biases


def _measured_experts(name: str, named: Callable[[str], str], sums: _Sums) -> Callable[[Any, tuple[Any, ...]], None]:
    """Each expert's inputs are the tokens that the router sent it; what its down projection sees is computed again."""
    down = named(f"{name}.down_proj").removesuffix(".weight")
    before: tuple[str, ...] = (f"{name}.gate_up_proj",)
    if down.startswith("blk."):
        before = tuple(f"{down.replace('ffn_down', part)}.weight" for part in ("ffn_gate", "ffn_up"))
    after = f"{down}.weight" if down.startswith("blk.") else f"{name}.down_proj"

    def hook(module: Any, given: tuple[Any, ...]) -> None:
        import torch

        hidden, chosen = given[0].flatten(0, -2), given[1].flatten(0, -2)  # (M, K), (M, experts of a token)
        experts = len(module.down_proj)
        for expert in range(experts):
            tokens = hidden[(chosen == expert).any(dim=-1)]
            both = torch.nn.functional.linear(tokens, module.gate_up_proj[expert])
            gate = getattr(module, "_apply_gate", None)
            inner = gate(both) if gate else module.act_fn(both.chunk(2, dim=-1)[0]) * both.chunk(2, dim=-1)[1]
            sums.add(before, tokens, expert, experts)
            sums.add((after,), inner, expert, experts)

    return hook


def _load_gguf(file: Path) -> Importance:
    gguf = extras.require("gguf", extra="export", purpose=f"reading {file.name}")
    try:
        reader = gguf.GGUFReader(file)
        tensors = {tensor.name: np.array(tensor.data, np.float32) for tensor in reader.tensors}
        context, datasets = reader.get_field("imatrix.chunk_size"), reader.get_field("imatrix.datasets")
        about = {
            "context": int(context.contents()) if context else CONTEXT,
            "datasets": tuple(datasets.contents()) if datasets else (),
        }
    except (ValueError, IndexError, KeyError, OverflowError, OSError, TypeError) as error:
        raise DataError(f"{file} is a GGUF file that cannot be read, cut short perhaps: {error}") from error
    names = [name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)]
    if not names:
        raise DataError(f"{file} is a GGUF file without an importance matrix: it holds {len(tensors)} other tensors")
    found, counted = {}, {}
    for name in names:
        sums, counts = tensors[name + SUMS], tensors.get(name + COUNTS)
        if counts is None or not counts.size or sums.size % counts.size:
            raise DataError(f"{file}: the counts of {name} are missing or do not fit its sums; make the matrix anew")
        counts = counts.reshape(-1, 1)
        means = np.where(counts > 0, sums.reshape(len(counts), -1) / np.maximum(counts, 1), np.float32(1))
        found[name] = means if len(means) > 1 else means[0]
        counted[name] = np.rint(counts.ravel()).astype(np.int64)
    return Importance(found, counts=counted, **about)


def _load_dat(file: Path) -> Importance:
    """int32 entries; of each: length and name, calls, values, float32 sums over the calls; then calls and data set."""
    data, found = file.read_bytes(), {}
    try:
        (entries,), at = struct.unpack_from("<i", data), 4
        if entries < 1:
            raise ValueError(f"it would hold {entries} entries")
        for _ in range(entries):
            name, at = _text(data, at)
            calls, count = struct.unpack_from("<ii", data, at)
            if count < 1 or at + 8 + 4 * count > len(data):
                raise ValueError(f"{name} would have {count} values")
            values = np.frombuffer(data, "<f4", count, at + 8)
            found[name], at = values / np.float32(calls if calls > 0 else 1), at + 8 + 4 * count
        dataset = _text(data, at + 4)[0] if at + 8 <= len(data) else ""
    except (struct.error, ValueError) as error:
        raise DataError(f"{file} is no importance matrix of llama.cpp, or is cut short: {error}") from error
    return Importance(found, datasets=(dataset,) if dataset else ())


def _text(data: bytes, at: int) -> tuple[str, int]:
    """A length and that many bytes of UTF-8, and where they end."""
    (length,) = struct.unpack_from("<i", data, at)
    if not 0 <= length <= LONGEST_NAME or at + 4 + length > len(data):
        raise ValueError(f"a name of {length} bytes at byte {at}")
    return data[at + 4 : at + 4 + length].decode(), at + 4 + length
