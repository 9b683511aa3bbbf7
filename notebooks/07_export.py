# %% [markdown]
# # Export that proves itself: GGUF, merged folders, the Hub
#
# <!-- badges -->
# This copy has no public address yet: `make set-repo URL=…` writes one and makes the Colab links.
# <!-- /badges -->
#
# **You will** write a fine-tuned chat model as one file for llama.cpp, Ollama and LM Studio, see it compared with its
# source before it is kept, watch a file that would talk nonsense being refused, choose among five types by what each
# costs, talk to the file, and publish it with a model card and a version: as a dry run, which sends nothing.
#
# *Time: about three minutes on two CPU cores, half of them to teach the embedded model something worth exporting. No GPU
# is needed. It works offline; with one word in the Config a model of the Hub, or your own folder or adapter, is exported.*

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
    # %pip install -q {pins} "speechkit[llm,export] @ git+{REPOSITORY}@{TAG}"
print({name: version(name) for name in ("speechkit", "torch", "transformers", "gguf", "xllamacpp", "ipywidgets")})

# %% [markdown]
# ## Config
#
# The one cell to change. `MODEL` is a folder, an adapter's folder or a Hub id; empty, the embedded chat model is taught
# the task of notebook 06 first. `QUANT` is the type of the first file; which one is right is measured further down.
# `REPOSITORY_ID` is where it would go on the Hub. `SPEECHKIT_PROFILE` overrules the profile.

# %%
#@title Config
import os

PROFILE = "offline"  #@param ["offline", "hub"]
HUB_MODEL = "Qwen/Qwen3-0.6B"  #@param ["Qwen/Qwen3-0.6B", "HuggingFaceTB/SmolLM2-135M-Instruct"] {allow-input: true}
MODEL = ""  #@param {type:"string"}
QUANT = "Q4_K_M"  #@param ["Q4_K_M", "Q4_K_S", "Q5_K_M", "Q5_K_S", "Q6_K", "Q8_0", "F16"]
STEPS = 400  #@param {type:"slider", min:20, max:1000, step:20}
REPOSITORY_ID = "you/readback-demo"  #@param {type:"string"}
PROFILE = os.environ.get("SPEECHKIT_PROFILE", PROFILE)
SOURCE = MODEL or {"offline": "", "hub": HUB_MODEL}[PROFILE]
print(f"profile {PROFILE}: {SOURCE or 'demo/chat, taught to read back'} → {QUANT} → {REPOSITORY_ID}")

# %% [markdown]
# ## Something worth exporting
#
# The embedded model learns to read a controller's instruction back, as in notebook 06, where each of these lines is
# explained. What comes of it is an adapter of 1.2 MB beside the model that it belongs to.

# %%
import tempfile
from pathlib import Path

from speechkit.demo.readback import write_readback
from speechkit.llm.rows import read_rows

work = Path(tempfile.mkdtemp())
task = write_readback(work / "data", train=1500, rehearsal=0.5)
read_rows(task.dev)

# %% [markdown]
# A run of your own has a folder; name its `best` as `MODEL`, and nothing is trained here.

# %%
from speechkit.llm.finetune import finetune
from speechkit.llm.llm_config import LlmConfig

if not SOURCE:
    run = LlmConfig(
        model="demo/chat", folder=str(work / "tuned"), rank=16, alpha=32, steps=STEPS, minutes=6, seed=1, decay=0.7,
        learning_rate=0.0015, batch_tokens=1024, max_len=256, train=str(task.train), dev=str(task.dev),
    )
    tuned = finetune(run, read_rows(task.train), read_rows(task.dev))
    SOURCE = str(tuned.best)
print(SOURCE)

# %% [markdown]
# ## Write a GGUF file, with proof
#
# The adapter is merged, every weight is packed as llama.cpp would pack it, and tokenizer and chat template go along. Then
# llama.cpp opens the file, in a process of its own, and is asked what transformers was asked: the token ids of the same
# texts, the chat template byte for byte, the log-probabilities of the next token, greedy continuations. What does not hold
# is not kept: the name of the file appears when its proof has passed.

# %%
from speechkit.export import export_gguf

made = export_gguf(SOURCE, work / "gguf" / f"readback-{QUANT}.gguf", QUANT)
print(made)

# %% [markdown]
# ## A file that talks nonsense does not get through
#
# The commonest broken export of all: everything loads, and the text is cut into tokens by another model's rule. Here it is
# on purpose. `force=True` would keep it, and its proof and its model card would say so.

# %%
from speechkit.errors import ExportError

try:
    export_gguf(SOURCE, work / "broken.gguf", "Q8_0", pre="gpt-2")
    print("kept")
except ExportError as error:
    print(f"refused: {error}")
print("broken.gguf is there:", (work / "broken.gguf").exists())

# %% [markdown]
# ## A folder for transformers
#
# The same for transformers and what is built on it: in 16 bits, or quantised (`nf4`, `int8`, `int4`, `fp8`), saved, opened
# again and compared.

# %%
from speechkit.export import export_merged

merged = export_merged(SOURCE, work / "merged")
print(merged)

# %% [markdown]
# ## Which type?
#
# Five files of one model, side by side, each compared with the source. Fewer bits are a smaller file and other answers; how different, is
# measured: top-1 is how often the likeliest next token is the source's, KL how far the probabilities are apart, RMSE how far
# the weights are. In a model as small as the embedded one the errors of single weights average out less than in a large one.

# %%
from speechkit.export.compare_types import compare_types

types = compare_types(SOURCE, work / "types", name="readback")
print(types)
types.plot()

# %% [markdown]
# ### Bits where they matter
#
# An importance matrix tells which inputs of a layer are large, on text like yours; the search for scales then favours the
# weights that meet them. It costs one pass over some text and no byte in the file.

# %%
import speechkit
from speechkit.export.imatrix import importance_of
from speechkit.llm.chat import render

model, tokenizer = speechkit.load_llm(str(work / "merged"), kernels=False)
texts = [render(tokenizer, row.messages) for row in read_rows(task.dev)]
importance = importance_of(model, tokenizer, texts)
weighted = compare_types(SOURCE, work / "weighted", ["Q4_K_M"], imatrix=importance, name="readback")
print(weighted)

# %% [markdown]
# ## Talk to the file
#
# llama.cpp answers, from the file, by the template that is in it: here in this very process, elsewhere in LM Studio, Ollama or
# `llama-server`. Type into the line, or change what is sent below.

# %%
from speechkit.export.gguf_chat import GgufChat
from speechkit.widgets.chat_panel import ChatPanel

chat = GgufChat(made.files[0], max_tokens=64)
panel = ChatPanel(chat, title=f"{made.files[0].name} in llama.cpp")
panel.send("tower: india 28, turn left heading 711")
panel

# %% [markdown]
# Is it as good as before? The same questions as in notebook 06, asked of the file. Agreement on tokens is one thing, the task
# another: a file can part from its source in a word of small talk and still have every call sign right.

# %%
from speechkit.llm.judge import questions

asked = questions(read_rows(task.test))[:50]
right = sum(chat(one.messages) == one.expected for one in asked)
print(f"{right} of {len(asked)} answers right to the letter, from {made.bytes / 2**20:.1f} MiB")

# %% [markdown]
# ## Ollama
#
# A `Modelfile` beside the GGUF file is all that Ollama wants. Its template is written in another language than the model's
# own; it is kept where both render the same conversations to the same letters, and left out, with the reason, where they do
# not: Ollama then takes the one in the file. Stop tokens are written out, for without them an answer goes on as the user.

# %%
from speechkit.export import write_modelfile

print(write_modelfile(made.files[0]))
print((made.files[0].parent / "Modelfile").read_text())

# %% [markdown]
# ## Publish, with a card and a version
#
# The model card is made of facts: base, data, settings, what was measured, and the proof's verdict, forced ones included.
# Each push is a version with a tag and a line in the changelog that says what became better or worse. `dry_run` shows all
# of it and sends nothing; the token, when there is one, is the one of `hf auth login` and is never shown or stored.

# %%
from speechkit.export.card_facts import About, Measured
from speechkit.export.hub import push

about = About(
    source=SOURCE if Path(SOURCE).is_dir() else None, licence="apache-2.0", languages=("en",),
    measured=(Measured("exact_match", right / len(asked), "unseen calls", f"{len(asked)} questions", "notebook 07_export"),),
)
message = f"{QUANT} for llama.cpp, with its proof"
planned = push(made.files[0].parent, REPOSITORY_ID, dry_run=True, message=message, about=about)
planned

# %% [markdown]
# The card as the Hub shows it:

# %%
from IPython.display import Markdown

Markdown(planned.card.split("---", 2)[2])

# %% [markdown]
# Everything above as assertions: the proof passed and the broken file is not there, more bits are nearer to the source, the
# plan of the push names its files and no token, and the file answers the questions that the model learnt to answer.

# %%
assert made.proof.passed and not (work / "broken.gguf").exists()
assert [row.verdict for row in types.rows[:2]] == ["passed"] * 2
assert types.rows[0].kl <= types.rows[-1].kl and types.rows[0].bytes > types.rows[-1].bytes
assert planned.files and "hf_" not in str(planned)
if not MODEL and PROFILE == "offline" and tuned.steps >= 400:
    assert right >= 45
chat.close()
print("ok: the file answers as its source does, what does not is refused, and all of it was measured")
