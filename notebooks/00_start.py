# %% [markdown]
# # Start here: speech to text in five minutes
#
# <!-- badges -->
# This copy has no public address yet: `make set-repo URL=…` writes one and makes the Colab links.
# <!-- /badges -->
#
# **You will** turn a recording into words with times, hear it word by word, put your own file in its place, and check
# that this machine is in order. No account, no token, no download: the clips and the model are inside the package.
#
# *Time: under a minute on two CPU cores, after the installation. A GPU is used when there is one and is not needed.*

# %% [markdown]
# ## Setup
#
# On your own machine this cell installs nothing and only says what is there: `make demo` has done the rest. In Colab
# it installs this version of the package and tells pip to keep the versions that Colab brings, because replacing
# PyTorch or NumPy under a running notebook is what usually breaks one.

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
print({name: version(name) for name in ("speechkit", "torch", "transformers", "numpy", "ipywidgets")})

# %% [markdown]
# ## Config
#
# Everything you may want to change stands in this one cell. `offline` uses the embedded model; `hub` fetches the
# published model of a language (about 380 MB for English, 1.3 GB for the others). The environment variable
# `SPEECHKIT_PROFILE` overrules the choice.

# %%
#@title Config
import os

PROFILE = "offline"  #@param ["offline", "hub"]
HUB_MODEL = "en"  #@param ["en", "zh", "ko", "pt", "pl"] {allow-input: true}
AUDIO = ""  #@param {type:"string"}
PROFILE = os.environ.get("SPEECHKIT_PROFILE", PROFILE)
MODEL = {"offline": "demo/en", "hub": HUB_MODEL}[PROFILE]
print(f"profile {PROFILE}: model {MODEL}, audio {AUDIO or 'an embedded clip'}")

# %% [markdown]
# ## One clip, one call
#
# `load_asr` takes the name of an embedded model (`demo/en`), a language (`en`), a Hub id or a folder. `transcribe`
# takes a path, bytes, an open file or an array. The clip below was spoken by a synthetic voice that the model did not
# hear in training.

# %%
import speechkit
from speechkit import demo

clip = demo.clips("en")[0]
asr = speechkit.load_asr(MODEL)
transcript = asr.transcribe(AUDIO or clip.path)
print(transcript)

# %% [markdown]
# The second line says how long the clip is, which model spoke, and how sure it was on average. For the embedded clip
# we know what was said, so we can count the mistakes: the word error rate is the share of words that are wrong,
# missing or too many.

# %%
from speechkit.evaluation.metrics import wer

print("said: ", clip.text if not AUDIO else "(your file: no reference)")
print("heard:", transcript.text)
print("word error rate:", "unknown" if AUDIO else f"{wer([clip.text], [transcript.text]):.0%}")

# %% [markdown]
# ## Words with times
#
# Each word carries its start and end in seconds and a confidence between 0 and 1. The times come from the frames of
# the model, one every 20 ms: no time can be finer than that.

# %%
print(transcript.table())

# %% [markdown]
# ## Listen
#
# Press play, or click a word to hear it. A solid underline is a word the model is sure of, dashed is doubtful, wavy
# wants your ear. The keys work too: space plays and pauses, ← and → walk through the words, Enter plays one.

# %%
from speechkit.widgets.player import player

player(AUDIO or clip.path, transcript, title=os.path.basename(AUDIO) or clip.path.name)

# %% [markdown]
# ## Your own recording
#
# Write a path into `AUDIO` in the config cell and run the notebook again: WAV, FLAC, OGG, Opus and MP3 work as they
# are, any sample rate, mono or stereo. The embedded model is small and learnt mostly from synthetic voices: for real
# work choose the profile `hub`. What it made of a clip is an ordinary object, so subtitles are one call away.

# %%
print(transcript.to_srt())

# %% [markdown]
# ## Is this machine in order?
#
# `doctor` looks at the parts that break most often and names the next step for each. `warn` is something you can live
# with: without network, for example, the Hub cannot be reached, and everything on this page works all the same.

# %%
from speechkit import doctor

findings = doctor.run()
print("\n".join(f"{f.status:5} {f.name}: {f.detail}" for f in findings))

# %% [markdown]
# ## Where next
#
# - `01_transcription` goes further: confidence, words on a spectrogram, a folder in one go, the model's self-check.
# - In a terminal the same work is `speechkit transcribe FOLDER --format srt --out OUT`.
# - `speechkit doctor` prints what you saw above, with the next steps.
#
# The last cell states what this notebook promised, and fails if it was not kept.

# %%
assert all(0 <= word.start_s <= word.end_s <= transcript.duration_s + 0.01 for word in transcript.words)
assert all(0 <= word.confidence <= 1 for word in transcript.words)
assert not [f for f in findings if f.status == "fail"], "doctor found something broken"
usual = demo.results("en")["clips"].wer  # over all clips, as the model's card states it
assert AUDIO or MODEL != "demo/en" or wer([clip.text], [transcript.text]) <= usual + 0.2
print(f"ok: {len(transcript.words)} words in {transcript.duration_s:.1f} s of speech")
