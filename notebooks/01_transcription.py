# %% [markdown]
# # Transcription: from one clip to a folder
#
# <!-- badges -->
# This copy has no public address yet: `make set-repo URL=…` writes one and makes the Colab links.
# <!-- /badges -->
#
# **You will** transcribe a clip, listen to it, find the words the model doubts, see them on the spectrogram,
# turn confidences into probabilities, read noisy speech with hotwords and a language model, align a text that is known,
# transcribe a folder with a broken file in it without losing the others, write subtitles, and let the model prove
# that batches change nothing.
#
# *Time: about a minute and a half on two CPU cores. It works offline, with the embedded model and clips; a GPU is used when
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
    # %pip install -q {pins} "speechkit[synth] @ git+{REPOSITORY}@{TAG}"
print({name: version(name) for name in ("speechkit", "torch", "transformers", "numpy", "ipywidgets")})

# %% [markdown]
# ## Config
#
# The one cell to change. `offline` uses the embedded model, `hub` the published one of a language;
# `SPEECHKIT_PROFILE` overrules the choice. `DOUBTFUL` is the confidence below which a word is listed for a second
# listen.

# %%
#@title Config
import os

PROFILE = "offline"  #@param ["offline", "hub"]
HUB_MODEL = "en"  #@param ["en", "zh", "ko", "pt", "pl"] {allow-input: true}
CLIP = 0  #@param {type:"integer"}
DOUBTFUL = 0.85  #@param {type:"slider", min:0, max:1, step:0.05}
PROFILE = os.environ.get("SPEECHKIT_PROFILE", PROFILE)
MODEL = {"offline": "demo/en", "hub": HUB_MODEL}[PROFILE]
print(f"profile {PROFILE}: model {MODEL}")

# %% [markdown]
# ## Transcribe
#
# One recognizer serves everything below. Loading chooses the device and the precision; a transcript is a frozen
# record of what was heard, so it can be printed, stored as JSON and compared.

# %%
import speechkit
from speechkit import demo

clips = demo.clips("en")
clip = clips[CLIP]
asr = speechkit.load_asr(MODEL)
transcript = asr.transcribe(clip.path)
print(transcript)

# %% [markdown]
# ## Listen
#
# A transcript is best judged by ear. Click a word to hear it, or press space to play; the word being spoken is
# highlighted. Colour and underline say the same thing twice, so that it also works without colour: solid is sure,
# dashed doubtful, wavy wants a listen.

# %%
from speechkit.widgets.player import player

player(clip.path, transcript, title=clip.path.name)

# %% [markdown]
# ## Confidence
#
# Confidence is read from the model's own probabilities in the frames where it emitted the characters of a word. It is
# there to rank words, and no promise: 0.9 does not mean nine out of ten. Here are the least certain words over all
# clips: the place to listen first.

# %%
heard = asr.transcribe([c.path for c in clips])
pairs = zip(clips, heard, strict=True)
ranked = sorted((word.confidence, word.text, c.path.name) for c, t in pairs for word in t.words)
doubtful = [row for row in ranked if row[0] < DOUBTFUL]
print(f"{len(doubtful)} of {len(ranked)} words below {DOUBTFUL}; the least certain:")
print("\n".join(f"{confidence:.2f}  {word:16} {name}" for confidence, word, name in ranked[:8]))

# %% [markdown]
# Given a list, the recognizer puts clips of like length into batches and answers in the order of the list. What was
# said is known, so the mistakes can be counted: this is a figure of a small demonstration model on clean synthetic
# voices, and says nothing about your recordings.

# %%
from speechkit.evaluation.metrics import wer

total = wer([c.text for c in clips], [t.text for t in heard])
spoken = sum(t.duration_s for t in heard)
print(f"word error rate {total:.1%} over {len(clips)} embedded clips, {spoken:.0f} s, model {MODEL}")

# %% [markdown]
# ## From confidence to probability
#
# A calibration is fitted on speech of which the text is known. espeak-ng now speaks 160 sentences that the model never
# learnt, by voices that it never heard, under more or less noise. Half of the voices serve for the fit, and the picture
# shows the other half: on the diagonal, a confidence is what it says. ECE, the expected calibration error, is the mean
# distance from it.

# %%
import numpy as np

from speechkit.demo.recipes.heldout import spoken, with_noise

unheard, levels = spoken(160, seed=3), np.random.default_rng(0).uniform(0, 25, 160)
said = [s.text for s in unheard]
noisy = [with_noise(s.samples, db, i) for i, (s, db) in enumerate(zip(unheard, levels, strict=True))]
print(f"{len(noisy)} clips, {sum(map(len, noisy)) / 16000:.0f} s; the first: {said[0]}")

# %% [markdown]
# All clips of a voice stand on one side, for words of one speaker err together, and a fit that has met the speaker would
# look better than it is.

# %%
from speechkit.evaluation.plots import reliability_diagram
from speechkit.evaluation.temperature import frames_before_and_after

voices = [s.voice for s in unheard]
calibrated = frames_before_and_after(asr.log_probs(noisy), said, asr.alphabet, groups=voices)
print(calibrated)
reliability_diagram(calibrated)

# %% [markdown]
# Left, as the model says it: below the diagonal it is surer than it should be. Right, after the fit: a temperature for
# the frames, which also sees what stood beside the winner of each, and a curve for the words. A stem is the gap of one
# bin, the band shows how far chance alone may move a bin of its size, and under it stands how many words each bin holds.
#
# To use one: `FrameCalibration.fit` where the log-probabilities are at hand, `ConfidenceMap.fit` for saved transcripts,
# and `review_queue(transcripts, calibration)` puts the words that a listener should check in order. Calibrate on speech
# like yours; a few hundred words of it, some of them wrong, will do.
#
# ## Words that can be expected
#
# Greedy search takes the best letter of each frame. A beam search weighs whole texts, and listens to more than the
# sound: to *hotwords*, names or terms that may well occur, and to an n-gram language model, here one of words, built now
# from five thousand other sentences of the same grammar. Such a model counts which word follows which two, and falls
# back on shorter memories where it has not seen the three (Kneser-Ney smoothing).

# %%
from speechkit.asr.lm import NGram
from speechkit.demo.recipes.heldout import other_sentences

lm = NGram.train(other_sentences(5000), order=3)
terms = sorted({word for text in said[:80] for word in text.split() if len(word) > 6})
print(f"{lm}; {len(terms)} hotwords, such as {', '.join(terms[:5])}")

# %% [markdown]
# The same eighty clips four ways, and one of the noisier ones read aloud. Nothing of the model changes; only what is
# made of its probabilities does.

# %%
ways = {"greedy": {}, "beam": {"decoder": "beam"}, "hotwords": {"hotwords": terms}, "language model": {"lm": lm}}
rates, one = {}, int(np.argsort(levels[:80])[25])  # a clip with much noise
for name, how in ways.items():
    read = asr.transcribe(noisy[:80], **how)
    rates[name] = wer(said[:80], [t.text for t in read])
    print(f"{name:15} word error rate {rates[name]:5.1%}  {read[one].text}")
print(f"{'said':38}{said[one]}")

# %% [markdown]
# A hotword helps where it was said, and may intrude where it was not: raise or lower `BeamOptions.hotword_weight`. The
# language model has `lm_weight` and `word_bonus`. Text of the very domain, as here, is the best case. Your own model comes from your own text, one sentence a line, or
# from an ARPA file: `asr.transcribe(path, lm="domain.arpa.gz")`.
#
# ## A text that is known
#
# Where the text is there already, alignment finds out when each word was said: for subtitles of a script, for cutting a
# corpus, for karaoke. What the model cannot spell, such as digits, is placed by its neighbours and flagged.

# %%
script = clip.text.replace("nine", "9")
aligned = asr.align(clip.path, script)
print(aligned.table())
print(*aligned.warnings, sep="\n")

# %% [markdown]
# ## The words on the spectrogram
#
# Time runs to the right, frequency upwards, and the more a spot stands out from the background, the louder it is. Each
# word stands over the stretch where the model heard it, so a word that sits beside its sound, or covers a pause, is
# easy to see.

# %%
from speechkit.widgets.spectrogram import spectrogram

figure = spectrogram(clip.path, transcript)
figure

# %% [markdown]
# ## A folder, with one broken file in it
#
# Real folders hold files that are not what their name says. We make such a folder: some clips, and a text file that
# claims to be a recording.

# %%
import shutil
import tempfile
from pathlib import Path

folder = Path(tempfile.mkdtemp(prefix="speechkit-"))
for source in clips[:4]:
    shutil.copy(source.path, folder)
(folder / "broken.wav").write_text("this is not a recording")
print(*sorted(path.name for path in folder.iterdir()), sep="\n")

# %% [markdown]
# `transcribe_files` gives one result per file, in order. A file that cannot be read becomes a row with the reason,
# never an exception that costs the rest. With `out` it also writes each transcript and a manifest, line by line.

# %%
out = folder / "out"
results = list(asr.transcribe_files([folder], out=out, formats=("txt", "srt")))
for result in results:
    print(f"{result.status:5} {result.path.name:14} {result.transcript.text if result.transcript else result.reason}")

# %% [markdown]
# The manifest makes the work resumable: a second run skips what is done and tries the broken file again. After a
# power cut at file 9,000 of 10,000, that is a thousand files of work and not ten thousand.

# %%
again = list(asr.transcribe_files([folder], out=out, formats=("txt", "srt")))
print([f"{result.path.name}: {result.status}" for result in again])
print("written:", *sorted(path.name for path in out.iterdir()))

# %% [markdown]
# ## Subtitles
#
# Words become cues at pauses, at 42 characters or after six seconds. SRT is what most players read; WebVTT is for the
# web.

# %%
print(transcript.to_srt())
print(transcript.to_vtt(max_chars=20))

# %% [markdown]
# ## Self-check: does batching change anything?
#
# Clips in a batch have to be padded to one length, and padding that leaks changes the text. `self_check` runs clips
# alone and in ragged batches and shows the largest difference between the two, measured now, on this machine, with
# this model.

# %%
check = asr.self_check()
print(check)

# %% [markdown]
# ## The result
#
# What this notebook promised, as a cell that fails if it was not kept. On to your own files: `speechkit transcribe
# FOLDER --out OUT` does the same from a terminal.

# %%
status = {result.path.name: result.status for result in results}
assert status.pop("broken.wav") == "error" and set(status.values()) == {"ok"} and len(status) == len(clips[:4])
assert {result.status for result in again} == {"skipped", "error"}
assert transcript.to_srt().startswith("1\n00:00:0") and figure.axes
assert check.ok, check
assert " ".join(word.text for word in aligned.words) == script
assert MODEL != "demo/en" or (calibrated.change < 0 and rates["language model"] < rates["greedy"])
assert MODEL != "demo/en" or total <= demo.results("en")["clips"].wer + 0.005  # the model's card keeps its word
shutil.rmtree(folder)
print(f"ok: {len(results) - 1} files transcribed, 1 refused with a reason, batches equal singles")
