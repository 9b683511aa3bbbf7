# %% [markdown]
# # Cross-lingual evaluation: which model to start from for a new language
#
# <!-- badges -->
# This copy has no public address yet: `make set-repo URL=…` writes one and makes the Colab links.
# <!-- /badges -->
#
# **You will** let every model hear every language, read what it heard as sounds where the alphabets differ, see which
# sounds it mistakes, rank the models as donors for a language that has none, look at one pair clip by clip, and then
# measure what minutes of labelled speech buy from each start: one and three minutes now, more from a file that says when
# and how it was made.
#
# *Time: about four minutes on two CPU cores, three of them training. It works offline, with the embedded models and with
# sentences that espeak-ng speaks while you wait; a GPU is used when there is one.*

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
# The one cell to change. `LANGUAGE` is the new language, one that has clips here and no model. `CLIPS` is how many
# sentences of each language are spoken beside the embedded ones: more of them, narrower intervals. `offline` compares the
# embedded models, `hub` the published ones; what is fine-tuned below is small and embedded either way.
# `SPEECHKIT_PROFILE` overrules the choice.

# %%
#@title Config
import os

from speechkit import demo

PROFILE = "offline"  #@param ["offline", "hub"]
LANGUAGE = "cs"  #@param ["cs", "sk", "uk"]
CLIPS = 14  #@param {type:"slider", min:2, max:60, step:2}
PROFILE = os.environ.get("SPEECHKIT_PROFILE", PROFILE)
MODELS = {"offline": [f"demo/{code}" for code in demo.languages()], "hub": ["en", "pl", "pt", "ko", "zh"]}[PROFILE]
print(f"profile {PROFILE}: {', '.join(MODELS)}; new language: {LANGUAGE}")

# %% [markdown]
# ## Everybody hears everything
#
# A model that was never trained on a language still writes something when it hears it: what the sounds are nearest to in
# its own alphabet. How much of the language gets through is the first thing to know about a base model, and it costs no
# training. The clips are sentences and voices that no embedded model has met.

# %%
import tempfile
from pathlib import Path

from speechkit.demo.recipes.transfer_speech import held_out_clips

work = Path(tempfile.mkdtemp(prefix="speechkit-"))
languages = list(dict.fromkeys(clip.language for clip in demo.clips()))
sets = {code: held_out_clips(code, CLIPS, work / "clips") for code in languages}
for code, rows in sets.items():
    print(f"{code}  {len(rows)} clips, {sum(clip.seconds for clip in rows):4.0f} s  {rows[0].text}")

# %% [markdown]
# Each model is loaded once and hears every set as it is. A cell that cannot be had, because a model does not load or a
# language has no clips, would be marked with its reason and leave the others alone. In each cell stand the rate over all
# clips and its 95 % interval, from drawing the clips anew.

# %%
from speechkit.evaluation.crosslingual import cross_evaluate
from speechkit.evaluation.rate_plots import cross_map

matrix = cross_evaluate(MODELS, sets)
cross_map(matrix, "wer")

# %% [markdown]
# The word error rate says how good a model is in its own language, the framed cells. Elsewhere it stands near 100 % or
# above whatever was heard, for one wrong letter spoils a word. Characters tell more, as long as both sides share an
# alphabet.

# %%
print(*(cell for cell in matrix.cells if cell.native), sep="\n")
cross_map(matrix, "cer")

# %% [markdown]
# ## The same words in two alphabets
#
# A model of Polish that hears Ukrainian perfectly well has a character error rate of 100 %, because it writes Latin
# letters. So both sides are turned into one row of broad sounds: the reference read by the rules of its language, the
# hypothesis by those of the model's. Ukrainian and Polish, on paper without a letter in common, then turn out to be
# neighbours.

# %%
from speechkit.evaluation.romanize import romanize

pairs = [("школа", "szkoła"), ("чорний хліб", "czarny chleb"), ("нова вулиця", "nowa ulica"), ("риба", "ryba")]
for ukrainian, polish in pairs:
    print(f"uk {ukrainian:12} {romanize(ukrainian, 'uk', 'sounds'):14} pl {polish:13} {romanize(polish, 'pl', 'sounds')}")

# %% [markdown]
# With that the matrix can be read across scripts. Spaces do not count, for Mandarin has none; length, stress and tone
# are left out. It is a broad measure: spelling hides sounds, above all in English.

# %%
cross_map(matrix)

# %% [markdown]
# Here is what one sentence of Ukrainian becomes: what was said, what each model wrote, and both as sounds.

# %%
said = sets["uk"][0].text
print(f"{'said':10} {said:56} {romanize(said, 'uk', 'sounds')}")
for model in matrix.models:
    cell = matrix.cell(model, "uk")
    written = cell.report.utterances[0].raw_hypothesis
    print(f"{model:10} {written:56} {romanize(written, cell.model_language, 'sounds')}")

# %% [markdown]
# ## Families
#
# Is it kinship that carries over? All cells of a pair of families together, a model's own language left out. Read it with
# the intervals in mind, and remember how few models there are of each family.

# %%
for row in matrix.by_family():
    print(f"{row.model_family:13} models on {row.language_family:13} languages  {row.rate}")

# %% [markdown]
# ## Which sounds go astray
#
# The alignment of those sounds says more than a rate: which sounds of the new language the best model takes for which of
# its own. Regular confusions are good news, for a few minutes of training undo them; sounds that are simply not heard
# are the harder part.

# %%
from speechkit.evaluation.rate_plots import character_map

ranking = {code: matrix.donors(code) for code in ("cs", "sk", "uk")}
donor = ranking[LANGUAGE][0].model
print(f"{donor} hears {LANGUAGE}")
print(matrix.confusions(donor, LANGUAGE, n=5))
character_map(matrix.sounds(donor, LANGUAGE), most=24)

# %% [markdown]
# ## The best donor
#
# For each of the three languages without a model: who hears most of it. Behind each rate stands the probability that the
# model is truly better than the next one, from drawing the same clips anew for both. A donor is a place to start from,
# not a recognizer.

# %%
for code, rows in ranking.items():
    print(f"{code}:", *rows, sep="\n   ")

# %% [markdown]
# ## One cell, clip by clip
#
# A rate hides what went wrong. On the board, sort by errors, read each difference between what was said and what was
# heard, click a word to hear that very stretch, or save the table as CSV.

# %%
from speechkit.widgets.error_board import ErrorBoard

board = ErrorBoard(matrix.cell(donor, LANGUAGE).report, title=f"{donor} hears {LANGUAGE}")
board

# %% [markdown]
# ## What a minute of labelled speech buys
#
# Now somebody sits down and transcribes a minute of the new language, then three. Four starts get the same minutes: the
# encoder that listened to many languages without any text, a model of English, the best donor from above, and a model
# that knows nothing.
#
# For the comparison to be about data, everything else is the same: the sentences and voices (the one minute lies within
# the three), the settings, and the number of updates, which grows with the minutes. The best of four evaluations on
# another minute is kept, and the score is taken on a hundred other sentences by voices that were in neither.

# %%
from speechkit.demo.recipes import transfer

recipe = transfer.TransferRecipe(LANGUAGE)
chosen = [start for start in transfer.starts(donor if PROFILE == "offline" else None) if start.times == 1]
wanted = [(start, minutes) for minutes in (1, 3) for start in chosen]
print(*(f"{start.name}, {minutes} min: {recipe.steps(minutes)} updates" for start, minutes in wanted), sep="\n")

# %% [markdown]
# Each line below is a whole fine-tuning run. This is the long cell.

# %%
live = transfer.measure(recipe, wanted, work / "transfer", done=lambda curve: print(curve.points[-1], flush=True))

# %% [markdown]
# ## The curve
#
# Ten and thirty minutes would take too long here. They were measured by the same code and come with the package; a
# hollow mark is such a point. "Longer from scratch" had six times as many updates: where it lies no lower than "from
# scratch", it is data that is lacking, and not time.

# %%
from speechkit.evaluation.rate_plots import efficiency_lines

stored = transfer.stored(LANGUAGE)
curve = stored.merge(live)
print(*sorted({f"{point.origin.date[:10]}: {point.origin.command}" for point in stored.points}), sep="\n")
print(f"{len(live.points)} points measured now, {len(curve.points) - len(live.points)} from the file")
efficiency_lines(curve)

# %% [markdown]
# The same in figures, with intervals; a star marks what was measured now. Word error rates of so little data are high,
# and characters show sooner that something was learnt.

# %%
print(curve.table())
for point in curve.points:
    print(f"{point.start}, {point.minutes:g} min: CER {point.cer}, {point.clips} clips{' *' if point.fresh else ''}")

# %% [markdown]
# ## Does it hold what was promised?
#
# Pretrained models are published with the claim that they need ten to a hundred times less labelled data. How many times
# less is read off the curves: the minutes that two starts need for the same error rate, the lowest that both reach. It is
# counted in characters, for a model that starts from nothing hardly gets a whole word right. The better of its two ways
# counts. The sentences follow from the numbers, whatever they are.

# %%
from textwrap import fill

nothing = [name for name in (transfer.SCRATCH, transfer.LONGER) if name in curve.starts]
scratch = min(nothing, key=lambda name: curve.curve(name)[-1].cer.value)
for start in (name for name in curve.starts if name not in nothing):
    saving = curve.saving(start, scratch, figure="CER")
    print(fill(str(saving), 100), fill(transfer.judged(saving), 100), sep="\n", end="\n\n")

# %% [markdown]
# ## Did the zero-shot ranking tell?
#
# The donor was chosen before any training. Whether that was a good choice is seen now: the rate that a model had on the
# language without training, beside what three minutes made of it.

# %%
for start in chosen:
    heard = [row for row in ranking[LANGUAGE] if row.model == start.model]
    after = next(point for point in live.curve(start.name) if point.minutes == 3)
    print(f"{start.name:28} untrained {heard[0].rate if heard else 'not heard yet'}, after 3 min CER {after.cer}")

# %% [markdown]
# ## The result
#
# What this notebook promised, as a cell that fails if it was not kept. Your own languages and models go the same way:
# `cross_evaluate(models, {"xx": [(path, text), …]})`, then `speechkit finetune` from the donor. More points for the
# curve: `python -m speechkit.demo.recipes.transfer --language cs`.

# %%
import shutil

cer = {(point.start, point.minutes): point.cer.value for point in live.points}
for model in matrix.models:
    row = {cell.language: cell.rate("romanized").value for cell in matrix.cells if cell.model == model}
    assert min(row, key=row.get) == matrix.cell(model, languages[0]).model_language, (model, row)
assert not matrix.failures and all(point.fresh for point in live.points) and len(live.points) == 2 * len(chosen)
for start in (start for start in chosen if start.model in {donor, "demo/en"}):  # what the encoder does is shown, not promised
    assert cer[start.name, 3] < min(cer[start.name, 1], cer[transfer.SCRATCH, 3]), start
shutil.rmtree(work)
print(f"ok: best at three minutes: {min(chosen, key=lambda start: cer[start.name, 3]).name}")
