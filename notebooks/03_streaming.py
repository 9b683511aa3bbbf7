# %% [markdown]
# # Streaming: words while somebody speaks
#
# <!-- badges -->
# This copy has no public address yet: `make set-repo URL=…` writes one and makes the Colab links.
# <!-- /badges -->
#
# **You will** feed a clip to a stream as if it were spoken now, watch words become stable, measure how late they come
# and what being early costs in errors, choose your own window and hop, see that the final text does not depend on how
# the sound arrives, and speak into a microphone.
#
# *Time: about two minutes on two CPU cores. It works offline, with the embedded model and clips; a GPU is used when
# there is one.*

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
print({name: version(name) for name in ("speechkit", "torch", "transformers", "numpy", "ipywidgets")})

# %% [markdown]
# ## Config
#
# The one cell to change. `WINDOW_S` is how much audio the model hears for a partial text, `HOP_S` the audio between two
# of them, `LOOKAHEAD_S` what has to be heard behind a word after which it is stable at the latest; it is stable sooner
# when three partials in a row read it alike. `SPEECHKIT_PROFILE` overrules the profile.

# %%
#@title Config
import os

PROFILE = "offline"  #@param ["offline", "hub"]
HUB_MODEL = "en"  #@param ["en", "zh", "ko", "pt", "pl"] {allow-input: true}
WINDOW_S = 6.0  #@param {type:"slider", min:2, max:12, step:0.5}
HOP_S = 0.12  #@param {type:"slider", min:0.08, max:1, step:0.02}
LOOKAHEAD_S = 0.34  #@param {type:"slider", min:0, max:1, step:0.02}
PROFILE = os.environ.get("SPEECHKIT_PROFILE", PROFILE)
MODEL = {"offline": "demo/en", "hub": HUB_MODEL}[PROFILE]
print(f"profile {PROFILE}: model {MODEL}")

# %% [markdown]
# ## A live feed, simulated
#
# `push` takes sound as it comes, in pieces of any size, and says what there is to say: partials while an utterance is
# open, and a final when it ends. In a partial, the words before the bar are stable, the ones behind it may still change.

# %%
import speechkit
from speechkit import audio, demo

asr = speechkit.load_asr(MODEL)
clips = demo.clips("en")
options = {"window_s": WINDOW_S, "hop_s": HOP_S, "lookahead_s": LOOKAHEAD_S}
stream = asr.stream(**options)
print(f"{asr.name}: {stream.cache.reason}")

# %%
events = [event for piece in audio.blocks(clips[0].path, 0.1) for event in stream.push(piece)]
events += stream.close()
for e in events[:: max(1, len(events) // 12)]:
    words = [w.text for w in e.words]
    print(f"{e.heard_s:5.2f} s  {e.kind:8}{' '.join(words[: e.stable])} | {' '.join(words[e.stable :])}")
print(stream.report)

# %% [markdown]
# A final is made from the whole utterance in one pass, so it may correct a stable word; the report counts how often that
# happened. Pauses end utterances: a small voice-activity model (silero) decides where.
#
# ## How late, and at what price
#
# wav2vec 2.0 looks both ways, so the newest word on screen is a guess. Waiting longer makes it a better guess. Here all
# embedded clips are played at the pace of speech, at five settings and at yours, and every word's delay from its last
# sound to the moment it was called stable is measured, on this machine.

# %%
from speechkit.evaluation.latency import stream_score
from speechkit.evaluation.plots import latency_curve

paths, texts = [c.path for c in clips], [c.text for c in clips]
settings = [(4.0, 0.08, 0.16), (6.0, 0.08, 0.28), (6.0, 0.12, 0.34), (6.0, 0.16, 0.48), (8.0, 0.32, 0.8)]
named = [dict(zip(options, row, strict=True)) for row in settings]
scores = [stream_score(asr, paths, texts, row) for row in [*named, options]]
print(*scores, sep="\n")
latency_curve(scores)

# %% [markdown]
# Down and to the left is better; the last one is yours. Try others: moving a slider plays the clips anew and adds a
# point, in two or three seconds.

# %%
from speechkit.widgets.latency_panel import latency_panel

latency_panel(asr, paths, texts, scores, **options)

# %% [markdown]
# The finals lie together: they do not depend on these settings, and they are what `transcribe` would have said of each
# utterance. Ten clips are a small sample, one word is a whole point: `python kernels/bench/stream.py --spoken 60` asks
# sixty sentences more, where being early costs more.
#
# ## The final text depends on the audio alone
#
# A slow machine or an odd chunk size thins the partials and changes nothing else. Here the same sound comes in pieces
# of random sizes, three times.

# %%
import numpy as np

samples = np.concatenate([audio.load(path) for path in paths[:3]])
finals = []
for seed in range(3):
    cuts = np.sort(np.random.default_rng(seed).integers(0, len(samples), 40))
    live = asr.stream(**options)
    heard = [event for piece in np.split(samples, cuts) for event in live.push(piece)] + live.close()
    finals.append(" / ".join(event.text for event in heard if event.kind == "final"))
print(*finals, sep="\n")

# %% [markdown]
# ## Your voice
#
# Press *Start* and speak; dim words may still change. The browser asks for permission once, and gives the microphone on
# https and on localhost only. Where it does not, the widget says why and takes an audio file instead. Nothing leaves the
# machine that runs the notebook. (The embedded model knows the words of its recipe and little else.)

# %%
from speechkit.widgets.microphone import microphone

live = microphone(asr, **options)
live

# %% [markdown]
# From a terminal: `arecord -q -f S16_LE -r 16000 -t raw | speechkit stream -`, or `speechkit stream talk.flac` to play a
# file at its own pace.
#
# ## The result
#
# What this notebook promised, as a cell that fails if it was not kept.

# %%
assert events[-1].kind == "final" and events[-1].text
assert any(event.kind == "partial" and event.stable for event in events)
assert len(set(finals)) == 1, finals
assert all(score.latencies_s for score in scores) and len(scores) == 6
print(f"ok: your setting {scores[-1]}")
