# %% [markdown]
# # Embeddings: what the layers of a speech model know
#
# <!-- badges -->
# This copy has no public address yet: `make set-repo URL=…` writes one and makes the Colab links.
# <!-- /badges -->
#
# **You will** turn clips into vectors, find out layer by layer which word and which voice they hold, look at them on a
# map where every point can be heard, search for the nearest clip, train a classifier on a label of your own, and cut
# speech into discrete units that you can play.
#
# *Time: about two minutes on two CPU cores. It works offline, with the embedded model and with words that espeak-ng
# speaks while you wait; a GPU is used when there is one.*

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
print({name: version(name) for name in ("speechkit", "torch", "transformers", "numpy", "ipywidgets")})

# %% [markdown]
# ## Config
#
# The one cell to change. `offline` uses the embedded model, `hub` a published one; `SPEECHKIT_PROFILE` overrules the
# choice. `CLUSTERS` is the number of discrete units, `METHOD` how vectors become a picture.

# %%
#@title Config
import os

PROFILE = "offline"  #@param ["offline", "hub"]
HUB_MODEL = "en"  #@param ["en", "zh", "ko", "pt", "pl"] {allow-input: true}
METHOD = "pca"  #@param ["pca", "tsne"]
CLUSTERS = 60  #@param {type:"integer"}
PROFILE = os.environ.get("SPEECHKIT_PROFILE", PROFILE)
MODEL = {"offline": "demo/en", "hub": HUB_MODEL}[PROFILE]
print(f"profile {PROFILE}: model {MODEL}")

# %% [markdown]
# ## From a clip to vectors
#
# A speech model computes one vector per 20 ms in every layer. `embed` hands them out: any layer, all of them, or a
# weighted set; as frames with their times, or pooled into one vector for the clip. Pooling leaves pauses out.

# %%
import speechkit
from speechkit import demo

asr = speechkit.load_asr(MODEL)
clip = demo.clips("en")[0]
frames = asr.embed(clip.path)
whole = asr.embed(clip.path, layer="all", pool="mean")
print(frames, whole, sep="\n")
print("first frames at", [f"{t * 1000:.1f} ms" for t in frames.times_s[:3]])

# %% [markdown]
# ## Material with labels
#
# To ask what a layer knows, we need clips of which we know the word and the voice. Eight words by eight synthetic
# voices, four times each at different rates and pitches, are spoken now. With recordings of your own, this is the cell
# to replace: all that follows wants is sounds and labels. The words are chosen to be alike, so that a vector has to tell
# *forty* from *fourteen*, whoever speaks.

# %%
from speechkit.demo.words import spoken_words

WORDS = ("four", "fourteen", "forty", "five", "fifteen", "fifty", "nine", "ninety")
words = spoken_words(WORDS, takes=4)
texts, voices = [w.text for w in words], [w.voice for w in words]
print(f"{len(words)} clips, {sum(len(w.samples) for w in words) / 16000:.0f} s, {len(set(voices))} voices")

# %% [markdown]
# ## Which layer knows what
#
# A *probe* is a linear classifier on one layer's vectors. For the word, no voice stands on both sides of a split, so the
# probe cannot win by recognising the speaker; for the voice, no word does.

# %%
import numpy as np

from speechkit.evaluation.plots import layer_curve
from speechkit.evaluation.probe import probe

pooled = np.stack([e.vectors for e in asr.embed([w.samples for w in words], layer="all", pool="mean+std")])
by_word = probe(pooled, texts, groups=voices, label="word", folds=4)
by_voice = probe(pooled, voices, groups=texts, label="voice", folds=4)
print(by_word, by_voice, sep="\n\n")
layer_curve([by_word, by_voice])

# %% [markdown]
# Here the word can be read at every layer, for eight words are an easy question to a probe, while the voice is easiest
# near the input and fades on the way up. That is the usual picture in models fine-tuned for recognition: they are trained to
# forget who spoke. For *your* label, measure and take the best layer. On recordings of people the curves are less neat:
# `python kernels/bench/probe.py --speech-data FOLDER` draws the table for a folder of them.
#
# ## Same speaker or another?
#
# Without any training, the cosine of two vectors is a guess at whether two clips are by the same voice. The *equal error
# rate*, 50 % by chance, is where as many pairs of one voice are refused as pairs of two are accepted. Pairs that say the
# same word are left out, or the word would help. The same can be asked of the word, across voices: there the upper layers
# win.
#
# Expect little for voices of a recognition model: a probe found them above because it was trained to, and without
# training they hide behind what is said.

# %%
from speechkit.evaluation.verification import verify

early, late = (verify(pooled[:, layer], voices, apart=texts) for layer in (by_voice.best.layer, -1))
print(f"same voice?\n  layer {by_voice.best.layer}: {early}\n  last layer: {late}")
word_early, word_late = (verify(pooled[:, layer], texts, apart=voices) for layer in (0, -1))
print(f"same word?\n  layer 0: {word_early}\n  last layer: {word_late}")

# %% [markdown]
# ## A map that can be heard
#
# Vectors of hundreds of numbers cannot be looked at. PCA keeps the two directions in which the clips differ most; t-SNE
# rather keeps neighbours together, and its distances mean little. Each point is a clip: hover to read it, click to hear
# it, click a label in the legend to hide it. The arrow keys and Enter do the same.

# %%
from speechkit.evaluation.projection import project
from speechkit.widgets.sound_map import sound_map

flat = project(pooled[:, -1], METHOD)
said = [f"{w.text}, by {w.voice}" for w in words]
print(flat)
sound_map(flat.points, [w.samples for w in words], said, texts, title="words, last layer")

# %% [markdown]
# The same as a still picture, for a paper or a report, here by voice: colours that mix say that the last layer does not
# sort by who spoke.

# %%
from speechkit.evaluation.plots import scatter

scatter(flat.points, voices, "voices, last layer")

# %% [markdown]
# ## A store, and the nearest clip
#
# For a collection that does not fit into memory, `embed_rows` reads any stream of rows, writes vectors and a manifest
# part by part, and goes on where it was stopped; `embed_files` does it for a folder. The store answers which clips are
# nearest to a given one, the same word by other voices if the layer has forgotten who spoke.

# %%
import tempfile

from speechkit.asr.store import StoreOptions, embed_rows

rows = [{"audio": w.samples, "text": w.text, "voice": w.voice} for w in words]
store = embed_rows(asr, rows, tempfile.mkdtemp(), StoreOptions(layer=-1))
near = store.nearest(store.clip(5), k=8)
print(f"asked about {texts[5]} by {voices[5]}; nearest:")
print("\n".join(f"{n.similarity:.3f}  {texts[n.row]:8} {voices[n.row]}" for n in near))

# %% [markdown]
# ## A classifier for a label of your own
#
# Emotion, intent, language, product name: any column of a manifest. The report counts clips of voices that the
# classifier had not heard; `save` writes safetensors and JSON.

# %%
from speechkit.evaluation.classifier import Classifier

size = {"four": "ones", "five": "ones", "nine": "ones", "forty": "tens", "fifty": "tens", "ninety": "tens"}
label = [size.get(text, "teens") for text in texts]
classifier = Classifier.fit(pooled[:, -1], label, groups=voices, folds=4)
print(classifier.report)
print(*zip(texts[::64], classifier.guess(pooled[::64, -1]), strict=True), sep="\n")

# %% [markdown]
# ## Discrete units
#
# k-means over a hidden layer turns speech into a string of numbers: what a language model over speech reads. A
# checkpoint fine-tuned with CTC has no codebook of its own, so the clusters are made here; pretraining checkpoints keep
# theirs (`Codebook.load`). Purity says how far the units agree with the letters that the model heard.

# %%
from speechkit.asr.kmeans import KMeansUnits
from speechkit.asr.units import bitrate, purity, usage

paths = [c.path for c in demo.clips("en")]
kmeans = KMeansUnits.fit(asr, paths, clusters=CLUSTERS)
units, heard = kmeans.units(asr, paths), asr.transcribe(paths)
agreement = purity(units, heard)
print(f"units of the first clip: {str(units[0])[:100]} …")
print(f"{bitrate(units):.0f} bits per second; {usage(units)[0]}\n{agreement}")

# %% [markdown]
# Choose a unit to hear every place where it occurs, one after the other. Units of an upper layer tend to be letters or
# parts of them; some are pauses.

# %%
from speechkit.widgets.unit_browser import unit_browser

unit_browser(paths, units, heard, title=f"{CLUSTERS} units of layer {kmeans.layer}")

# %% [markdown]
# ## The result
#
# What this notebook promised, as a cell that fails if it was not kept. Chance is one in eight for words and voices.

# %%
assert whole.vectors.shape[0] == asr.config.num_hidden_layers + 1
assert by_word.best.accuracy > 2 * by_word.chance and by_voice.best.accuracy > 2 * by_voice.chance
assert word_late.eer < word_early.eer and near[0].row == 5
assert classifier.report.accuracy > classifier.report.chance
assert 0 < agreement.information <= 1 and len(units) == len(paths)
print(f"ok: word {by_word.best.accuracy:.0%} at layer {by_word.best.layer}, voice {by_voice.best.accuracy:.0%}")
