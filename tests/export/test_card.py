"""Cards of real runs, adapters, GGUF files, embedded models. Oracles: huggingface_hub's reader, and the run's files."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
sys.path.insert(0, str(Path(__file__).parents[1] / "llm"))

import tiny_llm_runs
import tiny_runs

from speechkit import demo
from speechkit.device import detect
from speechkit.errors import ExportError
from speechkit.export.card import check_card, model_card
from speechkit.export.card_facts import About, Measured, read_facts
from speechkit.export.card_text import carried_over, joined, read_page, with_rows_of
from speechkit.export.hub_files import gather
from speechkit.llm.finetune import finetune as finetune_llm
from speechkit.training.finetune import finetune

if TYPE_CHECKING:
    from collections.abc import Iterator

REPO = "anna/model"


@pytest.fixture(scope="module", autouse=True)
def _definitions() -> Iterator[None]:
    yield from tiny_llm_runs.no_kernels()


@pytest.fixture(scope="module")
def speech_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of finetune, from a base whose card names a licence."""
    folder = tmp_path_factory.mktemp("speech")
    base = tiny_runs.model_folder(folder / "base-model")
    (base / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Base\n")
    config = tiny_runs.small(folder / "letters", base, steps=2, language="pl")
    spoken = [*tiny_runs.examples(6), tiny_runs.examples(1)[0]]
    return finetune(config, spoken, tiny_runs.examples(3, seed=1)).folder


@pytest.fixture(scope="module")
def llm_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run that makes an adapter."""
    folder = tmp_path_factory.mktemp("llm")
    config = tiny_llm_runs.small(folder / "sums", tiny_llm_runs.model_folder(folder / "tiny-base"), steps=2)
    return finetune_llm(config, tiny_llm_runs.chats(12), tiny_llm_runs.chats(4, 50)).folder


def written(folder: Path, about: About | None = None, **more: Any) -> str:
    return model_card(read_facts(folder, about), REPO, **more).text


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


# runs


def test_a_speech_runs_card_holds_its_rates_as_metadata(speech_run: Path) -> None:
    data = ModelCard(written(speech_run)).data
    row = result_of(speech_run)
    found = {one.metric_type: one for one in data.eval_results}
    assert found["wer"].metric_value == round(100 * row["wer"]["value"], 2)
    assert found["cer"].metric_value == round(100 * row["cer"]["value"], 2)
    assert found["wer"].task_type == data.pipeline_tag == "automatic-speech-recognition"
    assert found["wer"].dataset_name == "development set (3 clips)"
    assert (data.language, data.license, data.base_model) == ("pl", "cc-by-4.0", None)
    assert data.model_name == "model"


def test_a_speech_runs_card_says_base_data_config_command_licence_and_hardware(speech_run: Path) -> None:
    card = written(speech_run, About(hardware="two cores of a laptop"))
    for told in (
        "base-model fine-tuned with speechkit", "- training: 6 clips", "learning rate 0.01",
        "    speechkit finetune --config run.json", "`cc-by-4.0`, which may bind", "- torch ",
        "two cores of a laptop; float32",
        f'load_asr("{REPO}")', "- training: 1 duplicate",
    ):  # fmt: skip
        assert told in card, told
    assert card.count("## Use it") == 1 and "/best" not in card
    assert str(speech_run.parent) not in card, "a published card tells nothing of the machine"


def test_an_llm_runs_card_holds_loss_and_perplexity_and_the_adapters_shape(llm_run: Path) -> None:
    card = written(llm_run, About(base="owner/tiny", languages=("en",)))
    data = ModelCard(card).data
    row = result_of(llm_run)
    found = {one.metric_type: one.metric_value for one in data.eval_results}
    assert found["loss"] == round(row["dev_loss"], 4)
    assert found["perplexity"] == pytest.approx(np.exp(row["dev_loss"]), abs=1e-3)
    assert (data.library_name, data.base_model, data.base_model_relation) == ("peft", "owner/tiny", "adapter")
    assert "- `r`: 4" in card and "- `lora_alpha`: 8" in card and "speechkit llm-finetune --config run.json" in card
    assert str(llm_run.parent) not in card
    notes = model_card(read_facts(llm_run), REPO).notes
    assert not any("hardware is not known" in note for note in notes) and str(detect()) in card
    assert any("the base model 'tiny-base' is not in the metadata" in note for note in notes)


def test_a_base_that_peft_named_by_its_folder_is_left_out_and_about_goes_before_it(tmp_path: Path) -> None:
    place = "/srv/models/tiny"
    save_file({"a": np.zeros(4, np.float32)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": place}))
    (tmp_path / "README.md").write_text(
        f"---\nbase_model: {place}\ntags:\n- base_model:adapter:{place}\n- sums\n---\n\n# Sums\n"
    )
    assert "/srv" not in written(tmp_path) and ModelCard(written(tmp_path)).data.base_model is None
    data = ModelCard(written(tmp_path, About(base="owner/tiny"))).data
    assert data.base_model == "owner/tiny" and data.tags == ["sums", "lora", "speechkit"]

    readme = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text(readme.replace(place, "other/base"))
    assert ModelCard(written(tmp_path)).data.base_model == "other/base"
    data = ModelCard(written(tmp_path, About(base="owner/tiny"))).data
    assert data.base_model == "owner/tiny" and "base_model:adapter:other/base" not in data.tags


def test_the_best_folder_of_a_run_is_described_as_the_run(speech_run: Path) -> None:
    assert written(speech_run / "best") == written(speech_run)


def test_a_run_without_a_card_gets_the_one_that_its_training_writes(
    speech_run: Path, llm_run: Path, tmp_path: Path
) -> None:
    for run in (speech_run, llm_run):
        copy = tmp_path / run.name
        shutil.copytree(run, copy)
        for path in (copy / "README.md", copy / "best/README.md"):
            path.unlink()
        assert written(copy) == written(run)


def test_a_run_that_kept_no_model_is_refused(speech_run: Path, tmp_path: Path) -> None:
    for name in ("run.json", "result.json"):
        shutil.copy(speech_run / name, tmp_path)
    with pytest.raises(ExportError, match="kept no model"):
        read_facts(tmp_path)


# sections that are somebody's own


def test_own_sections_and_metadata_of_the_folder_survive(speech_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "letters"
    shutil.copytree(speech_run, copy)
    text = (copy / "README.md").read_text()
    text = text.replace("library_name: transformers", "library_name: transformers\nlicense: mit\ntags: [mine]")
    (copy / "README.md").write_text(f"{text}\n## Limits\n\nLetters only.\n")
    card = written(copy)
    data = ModelCard(card).data
    assert "## Limits\n\nLetters only." in card
    assert data.license == "mit" and data.tags[0] == "mine" and "ctc" in data.tags


def test_sections_written_on_the_hub_survive_and_a_second_push_changes_nothing(speech_run: Path) -> None:
    first = written(speech_run)
    online = first.replace("tags:", "thumbnail: https://example.org/a.png\ntags:") + "\n## Thanks\n\nTo all.\n"
    second = model_card(read_facts(speech_run), REPO, online)
    assert second.kept == ("Thanks",) and second.text.endswith("## Thanks\n\nTo all.\n")
    assert ModelCard(second.text).data["thumbnail"] == "https://example.org/a.png"
    assert model_card(read_facts(speech_run), REPO, second.text).text == second.text


def test_a_section_that_left_the_folder_leaves_the_card(speech_run: Path, tmp_path: Path) -> None:
    shutil.copytree(speech_run, tmp_path / "letters")
    path = tmp_path / "letters/README.md"
    before = path.read_text()
    path.write_text(before + "\n## Limits\n\nLetters only.\n")
    first = model_card(read_facts(tmp_path / "letters"), REPO)
    path.write_text(before)
    second = model_card(
        read_facts(tmp_path / "letters"), REPO, first.text + "\n## Thanks\n\nAll.\n", (), first.sections
    )
    assert "## Limits" not in second.text and second.kept == ("Thanks",)
    assert "Thanks" not in second.sections, "it stays the Hub's"


def test_a_heading_in_a_code_block_is_no_section() -> None:
    page = read_page("# A\n\n```\n## not one\n```\n\n## One\n\ntext\n")
    assert [section.title for section in page.sections] == ["", "One"]
    assert read_page(page.text()) == page


def test_front_matter_that_is_none_is_named_with_its_line() -> None:
    with pytest.raises(ExportError, match=r"README.md is no YAML near line 3"):
        read_page("---\nlicense: mit\na: b: c\n---\n# A\n")
    with pytest.raises(ExportError, match="is a list, not names with values"):
        read_page("---\n- a\n---\n# A\n")
    assert read_page("# A\r\n\r\n## B\r\n").sections[1].title == "B"


def test_a_template_that_nobody_filled_in_is_left_out(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from tiny_llms import tiny

    model = get_peft_model(tiny("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(str(tmp_path / "adapter"))
    theirs = (tmp_path / "adapter/README.md").read_text()
    assert "[More Information Needed]" in theirs
    card = written(tmp_path / "adapter", About(base="owner/tiny"))
    assert "[More Information Needed]" not in card and "Bias, Risks" not in card
    assert "Recommendations" not in card and "## Uses" not in card and "\n# adapter\n" in card
    assert "- `r`: 2" in card and "## Use it" in card
    head, mark, rest = theirs.partition("### Direct Use\n")
    filled = head + mark + rest.replace("[More Information Needed]", "Sums.", 1)
    (tmp_path / "adapter/README.md").write_text(filled)
    assert "### Direct Use" in written(tmp_path / "adapter") and "Sums." in written(tmp_path / "adapter")


def test_parts_are_joined_in_place() -> None:
    page = read_page("# A\n\nintro\n\n## Use it\n\nold\n\n## Limits\n\nmine\n")
    fresh = read_page("\n## Use it\n\nnew\n\n## Hardware\n\nlaptop\n").sections[1:]
    assert [(one.title, one.text.split()[-1]) for one in joined(page, fresh).sections] == [
        ("", "intro"), ("Use it", "new"), ("Limits", "mine"), ("Hardware", "laptop"),
    ]  # fmt: skip
    assert carried_over(page, page) == (page, ())


# GGUF


def gguf(path: Path, quant: str, **proof: Any) -> None:
    import gguf as library

    writer = library.GGUFWriter(path, "llama")
    writer.add_license("mit")
    writer.add_languages(["en", "de"])
    writer.add_context_length(512)
    writer.add_tensor("a.weight", np.zeros((4, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if proof:
        row = {"file": path.name, "source": "owner/base", "quant": quant, "tokens": 1280} | proof
        (path.parent / f"{path.stem}.proof.json").write_text(json.dumps(row))


def test_ggufs_are_listed_with_their_verdicts(tmp_path: Path) -> None:
    gguf(tmp_path / "m-Q8_0.gguf", "Q8_0", verdict="passed", top1=0.995, kl=0.0012, greedy={"same": 31, "of": 32})
    gguf(
        tmp_path / "m-Q4_K.gguf", "Q4_K_M", verdict="failed, kept by force", top1=0.8, kl=0.3, reasons=["top-1 is 0.8"]
    )
    gguf(tmp_path / "m-F16.gguf", "F16")
    facts = read_facts(tmp_path)
    card = model_card(facts, REPO).text
    bits = 8 * (tmp_path / "m-Q8_0.gguf").stat().st_size / (4 * 32)
    assert "| `m-Q8_0.gguf` | Q8_0 | " in card and f" | {bits:.2f} |" in card
    assert "| `m-Q8_0.gguf` | 1,280 | 99.5% | 0.0012 | 31 of 32 | passed |" in card
    assert "**failed, kept by force**" in card and "- `m-Q4_K.gguf`: top-1 is 0.8" in card
    assert "| `m-F16.gguf` | – | – | – | – | **unproved**: it was not compared |" in card
    assert facts.metrics["m-Q8_0.gguf: top-1 agreement %"] == 99.5
    data = ModelCard(card).data
    assert (data.library_name, data.license, data.language) == ("gguf", "mit", ["en", "de"])
    assert (data.base_model, data.base_model_relation) == ("owner/base", "quantized")


def test_only_the_files_that_are_wanted_are_described_and_those_on_the_hub_keep_their_rows(tmp_path: Path) -> None:
    for quant in ("Q8_0", "Q4_K"):
        gguf(tmp_path / f"m-{quant}.gguf", quant, verdict="passed", top1=0.99, kl=0.0)
    cards = [
        model_card(read_facts(tmp_path, None, [f"m-{quant}*"]), REPO).text for quant in ("Q8_0", "Q4_K")
    ]  # fmt: skip
    assert "m-Q4_K" not in cards[0]
    both = model_card(read_facts(tmp_path, None, ["m-Q4_K*"]), REPO, cards[0], ["m-Q8_0.gguf"]).text
    assert both.count("| `m-Q8_0.gguf` |") == 2 and both.count("| `m-Q4_K.gguf` |") == 2
    page = read_page(both)
    assert with_rows_of(page, page, []) == page


def test_a_gguf_that_was_cut_is_refused(tmp_path: Path) -> None:
    gguf(tmp_path / "m.gguf", "F16")
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExportError, match=r"m\.gguf is no whole GGUF file.*export it again"):
        read_facts(tmp_path)


def test_an_export_of_a_run_tells_of_the_run_and_claims_none_of_its_figures(llm_run: Path, tmp_path: Path) -> None:
    gguf(tmp_path / "sums-Q8_0.gguf", "Q8_0", source="best", verdict="passed", top1=1.0, kl=0.0)
    source = read_facts(llm_run, About(base="owner/tiny"))
    facts = read_facts(tmp_path, None, None, source)
    card = model_card(facts, REPO).text
    data = ModelCard(card).data
    for told in ("tiny-base fine-tuned", "Nats per answered token", "12 rows, ", "llm-finetune --config", "| passed |"):
        assert told in card, told
    assert (data.library_name, data.license, data.eval_results) == ("gguf", "mit", None)
    assert (data.base_model, data.base_model_relation) == ("owner/tiny", "finetune")
    assert not any(name.startswith(("loss", "perplexity")) for name in facts.metrics)
    of_the_run = About(base="anna/sums")
    data = ModelCard(model_card(read_facts(tmp_path, of_the_run, None, source), REPO).text).data
    assert (data.base_model, data.base_model_relation) == ("anna/sums", "quantized")
    repeats = {"run.json", "origin.json", "result.json", "curve.jsonl"}
    assert "`run.json` holds every setting" in card and {one.path for one in gather(facts)[0]} >= repeats
    assert not repeats & {one.path for one in gather(read_facts(tmp_path))[0]}


# what the metadata may say


@pytest.mark.parametrize("name", ["en", "pl", "zh", "ko", "pt", "encoder", "chat"])
def test_embedded_models_have_cards_that_hold(name: str) -> None:
    card = written(demo.model_path(name))
    data = ModelCard(card).data
    assert data.license in ("cc-by-sa-4.0", "apache-2.0") and "speechkit" in data.tags
    own = (demo.model_path(name) / "README.md").read_text().partition("\n---\n")[2]
    assert all(row in card for row in own.splitlines()), "every line of the model's own card"
    recipe = json.loads((demo.model_path(name) / "recipe.json").read_text()).get("results") or {}
    rows = {(one.dataset_name.partition(" (")[0], one.metric_type): one.metric_value for one in data.eval_results or ()}
    for told, figures in recipe.items():
        for key, metric in (("wer", "wer"), ("cer", "cer"), ("exact", "exact_match")):
            if isinstance(figures, dict) and key in figures:
                assert rows[told, metric] == round(100 * figures[key], 2)


def test_results_that_are_given_come_with_their_command() -> None:
    more = Measured("exact_match", 0.75, "my questions", "40 questions", "python ask.py")
    card = written(demo.model_path("chat"), About(measured=(more,)))
    assert "## More results" in card and "| my questions | 40 questions | exact match % | 75 |" in card
    assert "    python ask.py" in card
    assert {"my questions (40 questions)"} <= {one.dataset_name for one in ModelCard(card).data.eval_results}


def front(**entries: Any) -> str:
    return "---\n" + "\n".join(f"{name}: {json.dumps(value)}" for name, value in entries.items()) + "\n---\n# A\n"


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ({"license": "other"}, "needs a license_name"),
        ({"language": "english"}, "language 'english' is no ISO 639 code"),
        ({"language": ["en", "Polish"]}, "language 'Polish'"),
        ({"base_model": "/home/x/model"}, "base_model '/home/x/model' is no id of the Hub"),
        ({"tags": "one"}, "tags must be a list"),
        ({"pipeline_tag": ["a"]}, "pipeline_tag must be one word"),
        ({"model-index": [{"name": "a"}]}, "metadata cannot be read|would refuse"),
    ],
)  # fmt: skip
def test_metadata_that_the_hub_refuses_is_refused_here(entries: dict[str, Any], fault: str) -> None:
    with pytest.raises(ExportError, match=fault):
        check_card(front(**entries))


def test_metadata_that_the_hub_takes_is_taken_here() -> None:
    check_card(
        front(license="other", license_name="mine", license_link="LICENSE", language=["en", "zh-TW", "multilingual"])
    )
    check_card("# No front matter\n")
    check_card("---\nlanguage: no\n---\n# Norwegian\n")  # YAML reads it as false


def test_norwegian_stays_norwegian(tmp_path: Path) -> None:
    shutil.copytree(demo.model_path("pl"), tmp_path / "m")
    text = (tmp_path / "m/README.md").read_text().replace("language: pl", "language: no")
    (tmp_path / "m/README.md").write_text(text)
    row = json.loads((tmp_path / "m/recipe.json").read_text())
    del row["recipe"]["language"]
    (tmp_path / "m/recipe.json").write_text(json.dumps(row))
    assert ModelCard(written(tmp_path / "m")).data.language == "no"


@pytest.mark.parametrize(
    ("config", "task", "library"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "text-generation", "transformers"),
        ({"model_type": "smolvlm", "vision_config": {}}, "image-text-to-text", "transformers"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "sentence-similarity", "sentence-transformers"),
        ({"model_type": "hubert", "architectures": ["HubertForCTC"]}, "automatic-speech-recognition", "transformers"),
        ({"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForPreTraining"]}, "feature-extraction", "transformers"),
    ],
)
def test_kinds_of_models_have_their_task(tmp_path: Path, config: dict[str, Any], task: str, library: str) -> None:
    save_file({"a": np.zeros((2, 3), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    data = ModelCard(written(tmp_path)).data
    assert (data.pipeline_tag, data.library_name) == (task, library)


def test_an_unusual_licence_is_remarked_on(tmp_path: Path) -> None:
    save_file({"a": np.zeros((2, 3), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for licence, unusual in (("apache", True), ("apache-2.0", False)):
        notes = model_card(read_facts(tmp_path, About(licence=licence)), REPO).notes
        assert any("is none of those that the Hub was known to take" in note for note in notes) == unusual


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    save_file({"a": np.zeros((2, 3), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    card = model_card(read_facts(tmp_path), REPO)
    assert any("no licence is known" in note for note in card.notes)
    assert "A llama language model" in card.text and "license" not in card.metadata
