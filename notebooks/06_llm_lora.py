# %% [markdown]
# # A language model learns a new task: LoRA from data to proof
#
# <!-- badges -->
# This copy has no public address yet: `make set-repo URL=…` writes one and makes the Colab links.
# <!-- /badges -->
#
# **You will** load a chat model and see what was done to it, check a file of conversations before anything trains, pack
# rows without padding and without letting one see another, ask what a run would need on your GPUs, teach the model a task
# that it fails at, watch it learn, measure what it gained and what it forgot, and merge the adapter with proof.
#
# *Time: about two minutes on two CPU cores. It works offline, with the embedded chat model of 3.4 million weights; with
# one word in the Config the same cells train a model of the Hub, for which you want a GPU: the plan below says what fits on
# which card.*

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
    # %pip install -q {pins} "speechkit[llm] @ git+{REPOSITORY}@{TAG}"
print({name: version(name) for name in ("speechkit", "torch", "transformers", "peft", "trl", "ipywidgets")})

# %% [markdown]
# ## Config
#
# The one cell to change. `DATA` is your own file of conversations (JSON lines, JSON or CSV; chat, instructions, prompt and
# completion); empty, a task is made up. `METHOD` is `lora` (adapters), `qlora` (adapters on a base in four bits) or `full`
# (every weight). A model of the Hub wants a lower `LEARNING_RATE`, 0.0002 or so. `SPEECHKIT_PROFILE` overrules the profile.

# %%
#@title Config
import os

PROFILE = "offline"  #@param ["offline", "hub"]
HUB_MODEL = "Qwen/Qwen3-0.6B"  #@param ["Qwen/Qwen3-0.6B", "meta-llama/Llama-3.2-1B-Instruct"] {allow-input: true}
DATA = ""  #@param {type:"string"}
METHOD = "lora"  #@param ["lora", "qlora", "full"]
STEPS = 400  #@param {type:"slider", min:20, max:1000, step:20}
LEARNING_RATE = 0.0015  #@param {type:"number"}
PROFILE = os.environ.get("SPEECHKIT_PROFILE", PROFILE)
MODEL = {"offline": "demo/chat", "hub": HUB_MODEL}[PROFILE]
print(f"profile {PROFILE}: {MODEL}, {METHOD}, {STEPS} steps, data {DATA or 'made up'}")

# %% [markdown]
# ## Load, and see what was done
#
# `load_llm` chooses device and precision and says why, repairs what would go wrong silently later (a pad token that is also
# the end token, an end of turn that generation does not know), and puts in the fused kernels that fit this family.
# `explain` lists all of it. On a CPU the kernels run by their definitions: nothing is gained there, and nothing differs.

# %%
import speechkit
from speechkit.llm import explain

model, tokenizer = speechkit.load_llm(MODEL)
explain(model)

# %% [markdown]
# The embedded model knows seven narrow things (sums to 99, days, hours, transcripts, tool calls, repeating, greetings) and
# nothing of the world. Answers here are greedy: the likeliest token each time, so that they are the same in every run.

# %%
from speechkit.llm.judge import answers

asked = ["what is 3 plus 4?", "What day comes after Monday?", "fix this transcript: the meetin starts at nine"]
for question, answer in zip(asked, answers(model, tokenizer, [[{"role": "user", "content": q}] for q in asked]), strict=True):
    print(f"{question:50} {answer}")

# %% [markdown]
# ## The new task
#
# Pilots read a controller's instruction back: the action first, in their own words, the call sign last. The rows are made
# up here; one in three is an old dialogue, mixed in so that old skills are not lost, and one row is broken on purpose. The
# test has call signs and numbers that training never meets.

# %%
import tempfile
from pathlib import Path

from speechkit.demo.readback import write_readback
from speechkit.llm.rows import read_rows

work = Path(tempfile.mkdtemp())
task = write_readback(work / "data", train=1500, rehearsal=0.5)
rows = read_rows(DATA or task.train)
print(*task.test.read_text().splitlines()[:2], sep="\n")
rows

# %% [markdown]
# A broken row costs only itself, and is named by its line. Shapes are told apart by themselves: OpenAI's `messages`,
# ShareGPT's `conversations`, instructions, prompt and completion, preferences.

# %%
print(*rows.broken, sep="\n")
print(*rows.rows[0].messages, sep="\n")

# %% [markdown]
# ## Before: how good is it at this, and at the rest?
#
# Right means right to the letter. The brackets are 95 % intervals.

# %%
from speechkit.llm.judge import exact_match, questions

tests = {"readback": questions(read_rows(task.test)), "old skills": questions(read_rows(task.old))}
before = {name: exact_match(model, tokenizer, one) for name, one in tests.items()}
for name, found in before.items():
    print(f"{name}: {found}\n")

# %% [markdown]
# ## Lint the template
#
# Most fine-tuned models that never stop talking, or repeat the question, owe it to their template: the token that ends a
# turn carries no label, or pad and end are one, or there are two beginnings. Each of these trains without an error message.

# %%
from speechkit.llm.template_lint import lint

linted = lint(tokenizer, rows.rows[:50], generation_config=model.generation_config)
linted

# %% [markdown]
# Rows become tokens, and labels for what the assistant says alone. Brackets mark the tokens that carry a loss; the last one
# must be the end of the turn.

# %%
from speechkit.llm.data import tokenize

tokens = tokenize(rows.rows, tokenizer, max_len=256)
print(tokens)
pairs = zip(tokens.rows[0].input_ids, tokens.rows[0].labels, strict=True)
print("".join(f"[{tokenizer.decode([i])}]" if label >= 0 else tokenizer.decode([i]) for i, label in pairs))

# %% [markdown]
# ## Pack, without leaks
#
# Rows differ in length, and padding them to the longest of a batch wastes the rest. Packing puts rows one behind the other
# in blocks; each starts at position zero and sees nothing of its neighbours. That is a claim to be checked: the loss and all
# gradients of packed rows, beside those of the same rows one by one.

# %%
from speechkit.llm.exact import packed_equals_separate
from speechkit.llm.packing import pack, report

blocks = pack(tokens.rows, 1024)
print(report(tokens.rows, blocks, 1024))
agreement = packed_equals_separate(model, tokens.rows[:12])
agreement

# %% [markdown]
# ## Plan before you run
#
# What would this need, and would it fit? The plan goes through one step with tensors that have a shape and no memory, for
# the model at hand or for one of any size, and refuses pairs that are known not to work, with the reason. Here: this run, and
# a model of 1.2 thousand million weights on two cards of 15 GiB, in every way there is. A line is the moment of the peak:
# where that is the optimizer's step, activations and logits are gone.

# %%
from transformers import LlamaConfig

from speechkit.llm.plan import PlanOptions, plan, table

print(plan(model.config, PlanOptions(method=METHOD, batch_tokens=1024, dtype=str(model.dtype).removeprefix("torch."))))
large = LlamaConfig(
    vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8,
)
table(large, PlanOptions(batch_tokens=2048, dtype="float16", card="T4"), ranks=2)

# %% [markdown]
# ## Train, and watch
#
# One object holds every setting of the run, and is written beside its result. *Useful* tokens per second count no padding.
# *Stop* ends the run after the step at hand and leaves a checkpoint; running the cell again goes on from there, and so does a
# run that was killed.

# %%
from speechkit.llm.finetune import finetune
from speechkit.llm.llm_config import LlmConfig
from speechkit.widgets.metrics import LiveMetrics

config = LlmConfig(
    model=MODEL, folder=str(work / "tuned"), method=METHOD, rank=16, alpha=32, steps=STEPS, minutes=6, seed=1,
    learning_rate=LEARNING_RATE, decay=0.7, batch_tokens=1024, max_len=256, eval_every=STEPS // 4, log_every=10,
)
with LiveMetrics(STEPS, f"{MODEL} learns to read back") as live:
    tuned = finetune(config, rows, read_rows(task.dev), on_point=live.add, stop=live)
print(tuned)

# %% [markdown]
# ## After: what it gained, and what it lost
#
# The same questions, the same judge. The old skills had one row in three of the training; without them they fade first
# where the new task is most like them.

# %%
learnt, its_tokenizer = tuned.model, tuned.tokenizer
after = {name: exact_match(learnt, its_tokenizer, one) for name, one in tests.items()}
for name, one in after.items():
    low, high = one.interval
    print(f"{name}: {before[name].share:.0%} → {one.share:.0%}, 95 % interval {low:.0%} to {high:.0%}")
for i, question in enumerate(tests["readback"][:3]):
    print(f"\n{question.messages[-1]['content']}\n  before: {before['readback'].given[i]}")
    print(f"  after:  {after['readback'].given[i]}")

# %% [markdown]
# ## Merge, with proof
#
# An adapter beside the weights is slower and needs peft; merged, it is a model like any other. Merging rounds, though, and an
# adapter that was never trained merges without complaint. So it is measured: the largest difference of the logits, and how
# often the likeliest token is the same. A change of nothing, or one that rounding eats, is refused. (`full` has nothing to
# merge.)

# %%
from speechkit.llm.merge import merge

merged, proof = merge(learnt) if METHOD != "full" else (learnt, None)
print(proof or "every weight was trained: nothing to merge")
again = exact_match(merged, its_tokenizer, tests["readback"])
print(again)

# %% [markdown]
# ## Hand it over
#
# The merged model is a plain folder that transformers, and everything built on it, opens; `load_llm` opens the adapter's
# folder as well, on its base. From the terminal the same run is `speechkit llm-finetune --config run.json`; on several GPUs
# `--plan 8 --strategy zero3` prints what each would need and the line to start them with.

# %%
merged.save_pretrained(work / "merged")
its_tokenizer.save_pretrained(work / "merged")
config.save(work / "run.json")
opened, _ = speechkit.load_llm(str(work / "merged"))
print(sorted(path.name for path in (work / "merged").iterdir()))

# %% [markdown]
# Everything above as assertions: a row that was broken on purpose is found and nothing else is lost, packing changes
# nothing, and of the embedded model also that it learnt the task and kept what it knew, where all steps were made in time.

# %%
import math

assert linted.ok and agreement.ok
assert math.isfinite(tuned.loss) and tuned.dev_loss < tuned.dev_loss_before
if MODEL == "demo/chat" and not DATA and METHOD == "lora" and tuned.steps >= 400:
    assert len(rows.broken) == 1
    assert before["readback"].share <= 0.05 and after["readback"].share >= 0.9 and again.share >= 0.9
    assert after["old skills"].share >= before["old skills"].share - 0.1
    assert exact_match(opened, its_tokenizer, tests["readback"]).share >= 0.9
print("ok: the task is learnt, the rest is kept, the adapter is merged, and each of these was measured")
