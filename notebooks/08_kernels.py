# %% [markdown]
# # Kernels: what a GPU waits for, and how to spare it the waiting
#
# <!-- badges -->
# This copy has no public address yet: `make set-repo URL=…` writes one and makes the Colab links.
# <!-- /badges -->
#
# **You will** follow one kernel from its formula to its proof, count what fusing saves on any card, set aims and
# figures under a roofline, measure the machine that you are on, ask which attention would run where and why, pack
# sentences into one row without changing any, keep weights in four bits, compute a loss without its logits, and put
# kernels into a language model and a speech model and take them out again.
#
# *Time: about a minute on two CPU cores. It works offline. Without a GPU the kernels run in Triton's
# interpreter, on CPU tensors: the same source and the same numbers, at none of the speed. With a GPU they are compiled,
# and what is measured is yours.*

# %% [markdown]
# ## Setup
#
# Installs in Colab only, from a tagged version, and keeps the versions of PyTorch, NumPy and ipywidgets that Colab
# brings.

# %%
#@title Setup: installs in Colab only, and leaves Colab's own PyTorch, NumPy and ipywidgets alone
import sys
from importlib.metadata import distributions, version

REPOSITORY = ""
TAG = "v0.1.0"
if "google.colab" in sys.modules:
    assert REPOSITORY, "this copy has no public address yet to install from: see `make set-repo` in the README"
    kept = {"torch", "torchvision", "torchaudio", "numpy", "ipywidgets", "ipython", "ipykernel"}
    pins = " ".join(f"{n}=={version(n)}" for n in sorted(kept & {str(d.name).lower() for d in distributions()}))
    # %pip install -q {pins} "speechkit @ git+{REPOSITORY}@{TAG}"
print({name: version(name) for name in ("speechkit", "torch", "triton", "transformers", "ipywidgets")})

# %% [markdown]
# ## Config
#
# The one cell to change. `CARD` is the data sheet that floors are computed from. `M` tokens of width `H` are the shapes
# of the lesson: a layer of a model of eight thousand million weights sees them. `SPEECHKIT_PROFILE` overrules the
# profile, which chooses the speech model.

# %%
#@title Config
import os

PROFILE = "offline"  #@param ["offline", "hub"]
HUB_MODEL = "en"  #@param ["en", "zh", "ko", "pt", "pl"] {allow-input: true}
CARD = "H200"  #@param ["H200", "A100", "L4", "T4"]
M = 8192  #@param {type:"integer"}
H = 4096  #@param {type:"integer"}
PROFILE = os.environ.get("SPEECHKIT_PROFILE", PROFILE)
MODEL = {"offline": "demo/en", "hub": HUB_MODEL}[PROFILE]
print(f"profile {PROFILE}: speech model {MODEL}; floors of {CARD} for {M:,} tokens of width {H:,}")

# %% [markdown]
# ## Where the kernels run
#
# Triton compiles a kernel for the GPU that its tensors are on. Where there is none it can also *interpret* it, if it is
# told so before it is imported; that is the only reason for this cell's order. Where the lesson wants half precision it
# takes what the card has: a T4 knows no bfloat16.

# %%
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
os.environ.setdefault("TRITON_INTERPRET", "0" if DEVICE == "cuda" else "1")
from speechkit_kernels.launch import hardware_of, support

hardware = hardware_of(torch.device(DEVICE))
HALVES = [kind for kind in (torch.bfloat16, torch.float16) if support(hardware, kind).value]
print(f"{hardware}: {support(hardware, torch.float16).reason}")

# %% [markdown]
# ## One kernel, from formula to proof
#
# The root-mean-square norm stands twice in every layer of a language model. Of each row $x$ of $H$ numbers,
#
# $$y = \frac{x}{\sqrt{\tfrac1H\sum_i x_i^2 + \varepsilon}}\cdot w$$
#
# The *definition* says this in PyTorch, in float32 whatever comes in. It is what every kernel is tested against, and
# what runs where a kernel cannot. (`offset` is Gemma's habit of keeping weights around zero, `residual` the addition
# that stands before a norm anyway.)

# %%
from speechkit_kernels import reference

from speechkit.widgets.source import source_of

source_of(reference.rms_norm)

# %% [markdown]
# The *kernel* is one program for each row. It loads the row once, keeps it in registers as float32, and stores the
# result once; $1/\sqrt{\cdot}$ goes out too, four bytes a row, because the backward pass wants it. `mask` is for widths
# that are no power of two.

# %%
import speechkit_kernels.rms_norm as lesson

source_of(lesson._forward)

# %% [markdown]
# Its gradient is derived by hand. With $g = dy\cdot w$ and $\hat x = x\cdot r$, where $r = 1/\sqrt{\cdot}$ from above,
#
# $$dx = r\,\bigl(g - \hat x\cdot\tfrac1H\textstyle\sum_i g_i\hat x_i\bigr),\qquad dw = \sum_{rows} dy\cdot\hat x$$
#
# **The check**: value and both gradients beside the definition's, on rows of odd width, as a share of their size.
# Float32 has seven digits.

# %%
from speechkit_kernels.agreement import errors
from speechkit_kernels.rms_norm import rms_norm

torch.manual_seed(0)
x, weight, dy = (torch.randn(shape, device=DEVICE) for shape in ((12, 999), (999,), (12, 999)))
inputs = [x.requires_grad_(), weight.requires_grad_()]
exact = errors(rms_norm, reference.rms_norm, inputs, dy)
print("y off by {:.1e}, dx by {:.1e}, dw by {:.1e}".format(*exact.values()))

# %% [markdown]
# In half precision the question is another one: every way rounds, so who is nearer to the float32 truth? The kernel
# rounds once, on storing. Plain PyTorch, as transformers writes it, rounds before the weight and after. A norm computed
# in half precision throughout rounds at every step. (The interpreter *cuts* bfloat16 where a GPU rounds, which doubles
# the kernel's error there; float16 it rounds.)

# %%
from speechkit_kernels.live import plain_rms_norm

ways = {"kernel": rms_norm, "plain PyTorch": plain_rms_norm}
ways["half throughout"] = lambda x, w: w * (x * (x * x).mean(-1, keepdim=True).add(1e-6).rsqrt())
rounding = {}
for kind in HALVES:
    halves = [t.detach().to(kind).requires_grad_() for t in inputs]
    for name, way in ways.items():
        rounding[kind, name] = list(errors(way, reference.rms_norm, halves, dy.to(kind)).values())
        print(f"{str(kind)[6:]:9} {name:16}", "y {:.1e}   dx {:.1e}   dw {:.1e}".format(*rounding[kind, name]))

# %% [markdown]
# ## What fusing saves
#
# A norm does four operations on each number and has to move four bytes for it. A GPU can do ten to a hundred operations
# in the time that a byte takes, so the arithmetic is free and the moving is all. Plain PyTorch runs one operation after the other,
# and each reads its inputs from memory and writes its result back. Here they are counted as PyTorch dispatches them, on
# tensors that have a shape and no memory.

# %%
from speechkit_kernels.fusing import fusing

norm = fusing("rms_norm", M, H, torch.bfloat16)
for step in norm.plain.steps:
    print(f"{step.name:8} reads {step.read / 1e6:7.2f} MB, writes {step.written / 1e6:7.2f} MB")
norm.table

# %% [markdown]
# The last column is a **floor**: bytes that must be moved over the bandwidth in the card's data sheet. No kernel is
# faster, and a good one comes close. Try other parts and sizes; for `swiglu` the width is that of the inner layer, for
# `cross_entropy` it is the vocabulary.

# %%
from speechkit.widgets.kernel_panels import FusingPanel

FusingPanel("rms_norm", M, H)

# %% [markdown]
# ## Aims and figures
#
# Every kernel has an aim, set before it was written, and a bench script in `kernels/bench/` that measures it beside its
# peers and stores the result with the card, the versions and the date. The table reads those files, and where nobody has
# run a script yet it says *not run*: nothing is carried over from another card or a paper.

# %%
from speechkit_kernels import figures
from speechkit_kernels.roofline import card_named

card = card_named(CARD)
aims = figures.goals(card)
aims

# %% [markdown]
# The same as a picture. To the right, more operations for each byte; upwards, more operations a second. Under the
# slope a kernel waits for memory, under the flat for arithmetic, and the hollow marks are the most that each can do.
# Filled marks, where there are any, are stored runs on this card. Most kernels of the lesson sit far to the left, which
# is why bytes are what this notebook talks about.

# %%
from speechkit.widgets.roofline import roofline_plot

roofline_plot(card, figures.works(), {"stored run": figures.points(card)})

# %% [markdown]
# ## Measured here
#
# Now the machine that runs this notebook, by its own measure: a copy gives the slope, a square product the flat. With a
# GPU each kernel and the same in plain PyTorch take turns, after they were found equal. Without one, interpreted kernels
# would say nothing of speed, so plain PyTorch is measured alone: the distance to the roof is what separate operations
# cost.

# %%
from speechkit_kernels.live import measure_here

live = measure_here(DEVICE)
live

# %% [markdown]
# Filled marks are what was measured, hollow ones what this machine's own memory would allow.

# %%
roofline_plot(live.card, live.works, live.rates)

# %% [markdown]
# ## Which attention, and why
#
# Attention has been written many times, and which one is fastest depends on the card, the dtype, the head size, the
# lengths, the mask. The dispatcher chooses by a pure function of these, so it can be asked about cards that are not
# here. Its order comes from published figures, which each reason names, until `kernels/bench/attention.py` has been run.

# %%
from speechkit_kernels.attention import choose

from speechkit.widgets.kernel_panels import DispatchPanel, case_on

chosen = {name: choose(case_on(name, kind)) for name, kind in
          {"T4": "float16", "L4": "bfloat16", "A100": "bfloat16", "H200": "bfloat16", "CPU": "float32"}.items()}
for name, choice in chosen.items():
    print(f"{name:5} {choice.name:15} {choice.reason}")

# %% [markdown]
# Every candidate for any case: usable or not, and what speaks against it. Tick *packed documents*, or choose bfloat16 on
# the T4, and watch the choice move.

# %%
DispatchPanel(CARD)

# %% [markdown]
# ## Packed is the same as separate
#
# Sentences of different lengths padded to the longest waste the difference. Packed, they lie one behind the other in one
# row, and attention must not look across the seams. Here three documents are packed, through every attention that this
# machine can run, and compared with each document by itself: outputs and gradients of q, k and v, the largest error.

# %%
from speechkit_kernels.attention import Call, Packing, Rule, attention, case_of
from speechkit_kernels.attention_backends import available

packing = Packing.of([19, 5, 40], DEVICE)
qkv = [torch.randn(64, 2, 32, device=DEVICE).requires_grad_() for _ in range(3)]
here = choose(case_of(*qkv, Call(Rule(causal=True), packing)), available(qkv[0].device))
print(here)

# %% [markdown]
# Each document by itself goes through `math`, attention in plain PyTorch; packed they go through all that are usable.

# %%
from functools import partial

from speechkit_kernels.agreement import by_document

apart, separate = {}, by_document(partial(attention, causal=True, backend="math"), packing.lengths)
for name in (one.name for one in here.verdicts if one.usable):
    packed = partial(attention, causal=True, packing=packing, backend=name)
    apart[name] = max(errors(packed, separate, qkv, torch.ones_like(qkv[0])).values())
    print(f"{name:15} packed and separate differ by {apart[name]:.0e}")

# %% [markdown]
# ## Weights in four bits
#
# NF4 keeps a weight as one of sixteen levels, times the largest of its block of 64; those largest ones are themselves
# kept in eight bits. That is 4.13 bits instead of 16, bit for bit as bitsandbytes writes them, so checkpoints go both
# ways. The price is an error of about a tenth of a weight's size, where weights are normally distributed.

# %%
from speechkit_kernels.nf4 import nf4_quantise
from speechkit_kernels.nf4_linear import nf4_linear, plan

w, one_row = torch.randn(128, 512, device=DEVICE) * 0.02, torch.randn(1, 512, device=DEVICE)
small = nf4_quantise(w)
bits, off = 8 * small.nbytes / w.numel(), ((small.dequantise() - w).norm() / w.norm()).item()
product = (nf4_linear(one_row, small) - one_row @ small.dequantise().T).abs().max().item()
print(f"{small}: {bits:.2f} bits a weight, off by {off:.1%}; the product differs by {product:.0e}")

# %% [markdown]
# How to multiply with such a weight depends on how many rows there are. A few rows wait for the bytes of W alone, so it is
# unpacked in registers inside the product: writing it out first would move nine times as many bytes. Many rows are bound by
# arithmetic, which the library does best, so W is written once into a shared scratch. `plan` decides and says why.

# %%
from speechkit_kernels.launch import Hardware

for name, capability in {"T4": (7, 5), "H200": (9, 0)}.items():
    for rows in (1, 16, 8192):
        found = plan(Hardware("cuda", capability, name), torch.float16, rows, 4096)
        print(f"{name:5} {rows:5} rows: {found.value:8} {found.reason}")

# %% [markdown]
# The formats of llama.cpp (Q4_K and its kin) are found by a search over scales. Ours makes the same bytes. On a CPU, where
# this was measured, the definition in PyTorch has a quarter to a half of the speed of llama.cpp's C; what the kernel
# does on a GPU stands in the table of aims.

# %%
on_cpu = figures.k_quant_on_cpu()
on_cpu

# %% [markdown]
# ## A loss without its logits
#
# The last layer turns 4096 numbers a token into 128,256 logits, and the loss keeps one number of them. In plain PyTorch
# the logits, their float32 copy, their logarithms and their gradient all lie in memory together. `linear_cross_entropy`
# goes through the tokens in chunks and writes each chunk's gradient over its logits, so that only one chunk is ever
# there. Here both are run, on small shapes, and what their tensors hold at the fullest moment is counted.

# %%
from speechkit_kernels.linear_cross_entropy import chunk_of, linear_cross_entropy
from speechkit_kernels.traffic import traffic
from torch.nn.functional import cross_entropy, linear

states, head = torch.randn(256, 64, device=DEVICE).requires_grad_(), torch.randn(4096, 64, device=DEVICE)
labels, grad = torch.randint(0, 4096, (256,), device=DEVICE), torch.autograd.grad
loss = {"plain": lambda x, w, y: grad(cross_entropy(linear(x, w).float(), y), x)[0],
        "chunks": lambda x, w, y: grad(linear_cross_entropy(x, w, y, chunk=16), x)[0]}
peaks = {name: traffic(way, states, head, labels).peak / 1e6 for name, way in loss.items()}
same = (loss["plain"](states, head, labels) - loss["chunks"](states, head, labels)).abs().max().item()
print(*(f"{name:7} {peak:5.1f} MB" for name, peak in peaks.items()), f"gradients differ by {same:.0e}", sep="\n")

# %% [markdown]
# And at full size, computed: plain PyTorch on tensors without memory, ours from the size of its chunks (logits of one
# chunk, and the gradient that is the result).

# %%
V, half = 128_256, {"dtype": torch.bfloat16, "device": "meta"}
x, w = torch.empty(M, H, **half).requires_grad_(), torch.empty(V, H, **half)
full = traffic(loss["plain"], x, w, torch.empty(M, dtype=torch.long, device="meta")).peak / 2**30
rows = chunk_of(M, V, 2)
ours = (rows * V + M * H) * 2 / 2**30
print(f"{M:,} tokens, vocabulary {V:,}, {rows:,} rows a chunk")
print(f"{full:.1f} GiB → {ours:.2f} GiB: {full / ours:.0f} times less")

# %% [markdown]
# ## Kernels of speech
#
# A speech model gives probabilities of letters, fifty times a second. `ctc_greedy` collapses them into letters, each with
# its frames and its confidence, in one pass over the batch.

# %%
from speechkit_kernels.ctc_greedy import ctc_greedy

import speechkit
from speechkit import demo

asr, clip = speechkit.load_asr(MODEL), demo.clips("en")[0]
logp, blank = torch.from_numpy(asr.log_probs(clip.path))[None].to(DEVICE), asr.alphabet.blank
letters, symbols = ctc_greedy(logp, blank=blank).row(0), asr.alphabet.symbols
print("".join(symbols[token] or " " for token, *_ in letters))
for token, first, last, sure in letters[:4]:
    print(f"{symbols[token]}  frames {first} to {last}, confidence {sure:.3f}")

# %% [markdown]
# `ctc_align` goes the other way: letters that are known are placed on the most probable path, for a whole batch in one
# launch, with two bits to remember each step by. Beside it speechkit's own search, which is tested frame by frame
# against torchaudio's.

# %%
from speechkit_kernels.ctc_align import ctc_align

from speechkit.asr.viterbi import search

ids = torch.tensor([[token for token, *_ in letters]])
path = ctc_align(logp, ids, blank=blank)
own = search(logp.double().cpu().numpy(), ids.numpy(), blank=blank)
equal = (path.owners.cpu().numpy() == own.owners).mean()
print(f"{len(letters)} letters in {logp.shape[1]} frames; on {equal:.0%} of them both paths are the same")

# %% [markdown]
# ## Into a language model, and out again
#
# `apply_kernels` puts kernels into one model of a family that it knows: norms, gated units, positions, attention, the
# loss. Nothing of transformers is patched; another model in the same process stays as it is. It says what it did and what
# it left alone. Here a tiny Llama with random weights: the logits with kernels, and after `undo_kernels`.

# %%
from transformers import LlamaConfig, LlamaForCausalLM

from speechkit.llm import apply_kernels, undo_kernels

sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2}
llm = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).to(DEVICE).eval()
tokens = torch.randint(0, 128, (2, 24), device=DEVICE)
before = llm(tokens).logits.detach()
print(apply_kernels(llm))
with_kernels = (llm(tokens).logits - before).abs().max().item()
undone = undo_kernels(llm) and torch.equal(llm(tokens).logits, before)
print(f"logits differ by {with_kernels:.0e} with kernels; undone they are equal to the last bit: {undone}")

# %% [markdown]
# The speech model has doors of its own: the norm and GELU of its convolutions in one kernel, and the positional
# convolution as matrix products.

# %%
from speechkit.asr import kernels as speech_kernels

heard = asr.log_probs(clip.path)
print(speech_kernels.apply_kernels(asr))
speech_off = float(abs(asr.log_probs(clip.path) - heard).max())
speech_kernels.undo_kernels(asr)
speech_undone = (asr.log_probs(clip.path) == heard).all()
print(f"log-probabilities differ by {speech_off:.0e} with kernels; undone they are equal: {speech_undone}")

# %% [markdown]
# ## Where next
#
# - Every kernel's file in `speechkit_kernels` is built like the one above: formula, forward, backward, launcher, function.
#   Its test has the same name in `tests/kernels/`, and scripts in `kernels/bench/` time it.
# - On a machine with a GPU, `python kernels/bench/elementwise.py` (and its neighbours) fills the table above; results lie
#   in `kernels/bench/results/`.
#
# The last cell states what this notebook promised, and fails if it was not kept.

# %%
assert max(exact.values()) < 1e-5, exact
for kind in HALVES:
    assert max(rounding[kind, "kernel"]) < max(rounding[kind, "half throughout"]), rounding
assert all(row[-1] for row in aims.rows) and live.timed and len(on_cpu.rows) == 4
assert max(apart.values()) < 1e-4 and "math" in apart and chosen["T4"].name == "sdpa_efficient"
assert bits < 4.2 and off < 0.1 and peaks["plain"] > 5 * peaks["chunks"] and same < 1e-4
assert equal == 1 and with_kernels < 1e-3 and undone and speech_undone
if (M, H) == (8192, 4096):
    assert norm.ratio > 8 and full > 15 * ours
print(f"ok: off by {max(exact.values()):.0e}, {norm.ratio:.1f} times fewer bytes, {full / ours:.0f} times less memory")
