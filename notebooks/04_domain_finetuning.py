# %% [markdown]
# # Domain fine-tuning: sixty clips and a CSV
#
# <!-- badges -->
# This copy has no public address yet: `make set-repo URL=…` writes one and makes the Colab links.
# <!-- /badges -->
#
# **You will** bring recordings and a table of what is said in them, see which rows cannot be trained on and why, measure
# how a model does on your domain, adapt it while you watch, and know by how much it got better, how sure that is, what
# it forgot, and which way of training costs what.
#
# *Time: about four minutes on two CPU cores. It works offline, with the embedded model and with radio calls that
# espeak-ng speaks while you wait; a GPU is used when there is one.*

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
    # %pip install -q {pins} "speechkit[train,synth] @ git+{REPOSITORY}@{TAG}"
print({name: version(name) for name in ("speechkit", "torch", "transformers", "peft", "ipywidgets")})

# %% [markdown]
# ## Config
#
# The one cell to change. `DATA` is your table (CSV, TSV or JSON lines with the columns file, text and, if you can,
# speaker) or a folder of recordings with a text file beside each; empty, radio calls are made up. `STEPS` is how many
# times the weights are updated. A published model (`hub`) wants a lower `LEARNING_RATE`, 0.0001 or less.
# `SPEECHKIT_PROFILE` overrules the profile.

# %%
#@title Config
import os

PROFILE = "offline"  #@param ["offline", "hub"]
HUB_MODEL = "en"  #@param ["en", "zh", "ko", "pt", "pl"] {allow-input: true}
DATA = ""  #@param {type:"string"}
STRATEGY = "all"  #@param ["all", "top-2", "head", "adapters", "lora"]
STEPS = 60  #@param {type:"slider", min:20, max:400, step:10}
LEARNING_RATE = 0.0005  #@param {type:"number"}
PROFILE = os.environ.get("SPEECHKIT_PROFILE", PROFILE)
MODEL = {"offline": "demo/en", "hub": HUB_MODEL}[PROFILE]
print(f"profile {PROFILE}: {MODEL}, {STRATEGY}, {STEPS} steps, data {DATA or 'made up'}")

# %% [markdown]
# ## A domain that the model has not heard
#
# Air traffic control: about eighty words that the embedded model never met (*squawk*, *niner*, *wilco*, call signs), in
# sentences of their own. Ten voices read sixty training clips, and because collections are never clean, three more rows
# are broken on purpose. Other voices, which the model has not heard in any training, read other sentences for the test.
# Two more tables hold everyday sentences: to see what is forgotten, and to do something against it.

# %%
import tempfile
from pathlib import Path

from speechkit.demo.domain import write_domain

work = Path(tempfile.mkdtemp())
domain = write_domain(work / "radio")
print(domain)
print(*domain.train.read_text().splitlines()[:4], sep="\n")

# %% [markdown]
# ## What is in the data, before anything trains
#
# Every recording is read once, as training will read it. Rows that cannot be used are named with the reason and left
# out; nothing here is fatal. A label that is longer than its recording has frames would otherwise show up hours later as
# an infinite loss.

# %%
import speechkit
from speechkit.training.check import check_examples
from speechkit.training.data import read_examples
from speechkit.training.vocabulary import Vocabulary, vocabulary_doctor

asr = speechkit.load_asr(MODEL)
vocabulary = Vocabulary.load(asr)
report = check_examples(read_examples(DATA or domain.train), vocabulary=vocabulary)
report

# %% [markdown]
# The *vocabulary doctor* asks whether the model can spell these texts at all: characters that it lacks, tokens that
# collide, a blank that is not the pad token. Each of these trains without an error message and ends in a word error rate
# near 100 %. Texts are compared as the model spells them, so capitals and full stops do no harm.

# %%
vocabulary_doctor(vocabulary, [row.text for row in report.kept], asr.model)

# %% [markdown]
# Some clips are set aside to choose the best step on, by *speaker* where speakers are known: a voice that was trained on
# is easier than any new one. With your own `DATA` a test set is split off in the same way.

# %%
from speechkit.training.split import split_examples

split = split_examples(report.kept, dev=0.15, test=0.3 if DATA else 0, seed=1)
tests = {"domain": split.test or read_examples(domain.test), "everyday": read_examples(domain.general_test)}
print(split)

# %% [markdown]
# ## Before: how good is it now?
#
# Two numbers matter: the word error rate on the domain, and on the everyday sentences that the model was made for. The
# brackets are 95 % intervals: sixty clips drawn anew would give a rate between these ends nineteen times out of twenty.

# %%
from speechkit.training.evaluate import evaluate

before = {name: evaluate(asr, rows, "before") for name, rows in tests.items()}
for name, found in before.items():
    print(f"{name:9} WER {found.wer}   CER {found.cer}")
print(before["domain"].confusions(6))

# %% [markdown]
# A model that spells by ear gets most letters and few of the new words. The board shows every difference, marked by a
# line as well as by colour; sort it, filter it, click a word to hear it.

# %%
from speechkit.widgets.error_board import ErrorBoard

ErrorBoard(before["domain"], "radio calls, before")

# %% [markdown]
# ## Adapt, and watch
#
# One object holds every setting of the run. `strategy` says which weights learn, `augmentation` changes each clip anew
# whenever it is heard (rate, room, microphone, noise): three minutes of speech are soon known by heart, and what sounds
# different every time is not. The run ends after `STEPS`, or after five minutes, whichever comes first. *Stop* ends it
# after the step at hand and leaves a checkpoint; running the cell again goes on from there.

# %%
from speechkit.training.config import FinetuneConfig
from speechkit.training.finetune import finetune
from speechkit.widgets.metrics import LiveMetrics

config = FinetuneConfig(
    model=MODEL, folder=str(work / "tuned"), strategy=STRATEGY, steps=STEPS, minutes=5, learning_rate=LEARNING_RATE,
    augmentation={}, eval_every=max(1, STEPS // 4), log_every=4, seed=1,
)
with LiveMetrics(STEPS, f"{MODEL} learns radio calls") as live:
    tuned = finetune(config, split.train, split.dev, on_point=live.add, stop=live)
print(tuned)

# %% [markdown]
# ## After: by how much, and how sure?
#
# The rate in the report above is of the clips that chose the best step, so it flatters. This is the test set: other
# voices, other sentences, looked at for the first time since. Both models are compared clip by clip, on the same clips
# drawn anew many times; what makes a clip hard for both cancels out.

# %%
from speechkit.evaluation.compare import compare

better = speechkit.load_asr(tuned.best)
after = {name: evaluate(better, rows, "after") for name, rows in tests.items()}
gain = compare(before["domain"], after["domain"])
print(gain.table(2))

# %% [markdown]
# What is still wrong tells what to record next: words that never came up in training, or one voice that the others do
# not cover.

# %%
print(after["domain"].by("speaker"))
ErrorBoard(after["domain"], "radio calls, after")

# %% [markdown]
# ## What it forgot
#
# A model that hears nothing but radio calls for a while gets worse at everything else, and nobody sees it who measures
# the domain alone. This is the same comparison on the everyday sentences.

# %%
lost = compare(before["everyday"], after["everyday"])
print(lost)

# %% [markdown]
# If the model will only ever hear the radio, that may be fine. If not, the plainest remedy is to train on some of the old
# material too: here as many everyday clips as there are radio calls, by the same ten voices. Everything else stays as it
# was, the number of updates included, so what it costs on the domain can be seen too.

# %%
everyday = check_examples(read_examples(domain.general), vocabulary=vocabulary).kept
mixed = finetune(config.replace(folder=str(work / "mixed")), [*split.train, *everyday], split.dev)
both = speechkit.load_asr(mixed.best)
remedy = {name: evaluate(both, rows, "mixed") for name, rows in tests.items()}
for name in tests:
    print(f"{name:9} WER {before[name].wer} → {after[name].wer} radio only, {remedy[name].wer} mixed")
kept = compare(after["everyday"], remedy["everyday"])
print(kept)

# %% [markdown]
# ## Which strategy?
#
# The other way to forget less is to change less: only the *head* (the last matrix, from sounds to letters), the *top-2*
# layers, small *adapters* in each layer, or low-rank updates (*LoRA*). Each is trained now, on the radio calls, with as
# many updates as above; what moves fewer numbers gets a higher learning rate. The model's size in memory matters little
# here; on a published model of 300 million numbers it decides what fits on a GPU.

# %%
from speechkit.training.compare_strategies import FACTORS, StrategyRun, compare_strategies

others = {name: {"learning_rate": LEARNING_RATE * f} for name, f in FACTORS.items() if name != STRATEGY}
common = config.replace(folder=str(work / "strategies"))
table = compare_strategies(common, split.train, split.dev, tests, others, on_run=print)
table = table.with_run(StrategyRun(STRATEGY, tuned, after)).with_run(StrategyRun("mixed", mixed, remedy))
table

# %% [markdown]
# Read it from both sides: the domain column says what you gain, the everyday column what you pay. The minutes are of this
# machine, and hardly differ on a model this small: the forward pass is the same for all. Adapters and LoRA have one
# advantage more that no column shows: the model underneath stays as it is. An adapter is a small file, and one model in
# memory can serve many domains by swapping it.

# %%
from speechkit.training.adapters import save_adapter, swap_adapter, take_adapter

adapter = take_adapter(speechkit.load_asr(table["adapters"].result.best), "radio")
clip = tests["domain"][0]
heard = asr.transcribe(clip.audio).text
original = swap_adapter(asr, adapter)
print(f"{adapter}, {save_adapter(adapter, work).stat().st_size / 1e6:.1f} MB\nsaid    {clip.text}\nwithout {heard}")
print("with   ", asr.transcribe(clip.audio).text)
swap_adapter(asr, original)
print("back   ", asr.transcribe(clip.audio).text)

# %% [markdown]
# ## Take it with you
#
# The folder of a run holds the model in transformers' format, a card with the figures, every setting, versions, the data
# report and the curve: enough to repeat it. `load_asr` opens the folder like any other model.

# %%
print(*sorted(path.name for path in mixed.folder.iterdir()), sep="  ")
print(*(mixed.folder / "README.md").read_text().splitlines()[4:16], sep="\n")
print(speechkit.load_asr(mixed.best).transcribe(clip.audio))

# %% [markdown]
# ## Where next
#
# - Your own recordings: write the path of a table into `DATA` and run everything again. An hour of speech is better than
#   three minutes, and ten speakers are better than one.
# - A published model on a GPU: in Colab choose the profile `hub`, a learning rate of 0.0001 and more steps.
# - Without a notebook: `speechkit finetune --config run.json`, where `run.json` is the file in the folder above with
#   `train` set to your table. Under `torchrun` it uses every GPU.
# - `05_cross_lingual_evaluation` asks which model to start from when the *language* is new.
#
# The last cell states what this notebook promised, and fails if it was not kept. What depends on your data is asserted
# for the made-up domain only.

# %%
assert (tuned.best / "model.safetensors").is_file() and tuned.wer is not None
assert [run.name for run in table.runs] == ["before", *others, STRATEGY, "mixed"]
if not DATA and MODEL == "demo/en" and tuned.ending == "steps":
    assert {problem.kind for problem in report.left_out} == {"empty text", "unreadable", "label longer than frames"}
    assert gain.sure and after["domain"].wer.value < 0.75 * before["domain"].wer.value
    assert after["everyday"].wer.value > before["everyday"].wer.value  # it forgets
    assert remedy["everyday"].wer.value < after["everyday"].wer.value  # and less so with old material
    assert table.best("domain").name != "before"
print(f"ok: WER {before['domain'].wer} → {after['domain'].wer} in {tuned.minutes:.1f} minutes")
