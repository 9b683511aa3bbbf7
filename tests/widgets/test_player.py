"""The widget without a browser: its traits, its answers, and what a saved notebook keeps of it."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import soundfile
from nbclient import NotebookClient

from speechkit.errors import AudioError
from speechkit.widgets.player import VIEW, Player, StaticPlayer, player, player_html

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sent(monkeypatch, samples, transcript):
    """A widget and the list of what it sends."""
    widget = Player(samples, transcript, "clip.wav")
    messages = []
    monkeypatch.setattr(widget, "send", lambda content, buffers=None: messages.append((content, buffers)))
    return widget, messages


def test_the_traits_describe_the_recording(samples, transcript):
    widget = Player(samples, transcript, "clip.wav")
    assert (widget.title, widget.language, widget.duration_s) == ("clip.wav", "en", 1.5)
    assert [word["text"] for word in widget.words] == transcript.text.split()
    assert len(widget.peaks) == 600
    assert (widget.current_s, widget.selected) == (0.0, -1)


def test_no_synced_trait_holds_sound(samples, transcript):
    """Notebook tools save every synced trait; the sound must not be one."""
    state = Player(samples, transcript).get_state()
    assert not [key for key, value in state.items() if isinstance(value, bytes | bytearray | memoryview)]
    assert not any(key.startswith("_samples") or key.startswith("_encoded") for key in state)
    plain = {key: value for key, value in state.items() if not key.startswith("_") and key != "layout"}
    assert len(json.dumps(plain)) < 8000


def test_a_view_that_plays_opus_gets_the_recording_as_opus(sent, samples):
    widget, messages = sent
    widget._answer(widget, {"kind": "audio", "opus": True}, [])
    [(content, [data])] = messages
    assert content == {"kind": "audio", "mime": "audio/ogg"}
    heard, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert soundfile.info(io.BytesIO(data)).subtype == "OPUS"
    assert len(heard) / rate == pytest.approx(1.5, abs=0.02)
    assert len(data) < samples.size * 2 / 3


def test_a_view_without_opus_gets_16_khz_int16_wav_bit_for_bit(sent, samples):
    widget, messages = sent
    widget._answer(widget, {"kind": "audio", "opus": False}, [])
    [(content, [data])] = messages
    assert content["mime"] == "audio/wav"
    heard, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    assert rate == 16000
    np.testing.assert_array_equal(heard, np.round(samples * 32768).astype(np.int16))


def test_other_messages_are_not_answered(sent):
    widget, messages = sent
    widget._answer(widget, {"kind": "hello"}, [])
    widget._answer(widget, {}, [])
    assert messages == []


def test_the_sound_is_encoded_once_per_format(samples, transcript):
    widget = Player(samples, transcript)
    assert widget.audio_bytes("opus") is widget.audio_bytes("opus")


def test_the_mime_bundle_holds_the_view_and_both_twins(samples, transcript):
    widget = Player(samples, transcript, "clip.wav")
    data, _metadata = widget._repr_mimebundle_()
    assert data[VIEW]["model_id"] == widget.model_id
    assert data["text/html"] == player_html(samples, transcript, "clip.wav")
    assert data["text/plain"].endswith("bring the room(0.71) fourteen(0.38)")


def test_without_a_kernel_the_twin_is_returned_unless_the_widget_is_asked_for(samples, transcript):
    twin = player(samples, transcript, "clip.wav")
    assert isinstance(twin, StaticPlayer)
    assert twin == player(samples, transcript, "clip.wav", fallback="always")
    assert twin._repr_html_() == player_html(samples, transcript, "clip.wav")
    assert repr(twin).startswith("clip.wav · 1.5 s")
    assert isinstance(player(samples, transcript, fallback="never"), Player)


def test_an_unknown_fallback_is_refused_with_the_list(samples, transcript):
    with pytest.raises(ValueError, match='fallback is \'sometimes\'; use "auto", "always" or "never"'):
        player(samples, transcript, fallback="sometimes")


def test_a_file_gives_its_name_as_title(tmp_path, samples, transcript):
    path = tmp_path / "clinic-07.wav"
    soundfile.write(path, samples, 16000)
    assert player(path, transcript, fallback="never").title == "clinic-07.wav"
    assert "clinic-07.wav" in player_html(path, transcript)


def test_a_missing_file_is_an_audio_error(tmp_path, transcript):
    with pytest.raises(AudioError, match=r"gone\.wav"):
        player(tmp_path / "gone.wav", transcript)


def test_the_twin_needs_no_audio_at_all(transcript):
    html = player_html(None, transcript, "clip.wav")
    assert "fourteen" in html
    assert "<svg" not in html


def test_importing_the_player_imports_no_torch():
    code = "import sys, speechkit.widgets.player, speechkit.widgets.spectrogram; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> str:
    """A notebook with a player, executed and saved with its widget state, as nbclient and nbmake save it."""
    folder = tmp_path_factory.mktemp("notebook")
    lines = [
        "import numpy as np",
        "from speechkit.types import Transcript, Word",
        "from speechkit.widgets.player import player",
        "noise = np.random.default_rng(0).normal(0, 0.1, 48000).astype(np.float32)",
        "player(noise, Transcript('hello', (Word('hello', 0.5, 1.0, 0.4),), 'en', 3.0, 0.4, 'demo/en'), 'noise')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("\n".join(lines))])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    try:
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return nbformat.writes(notebook)


def test_a_saved_notebook_holds_the_view_and_the_twins(executed):
    [output] = json.loads(executed)["cells"][0]["outputs"]
    assert {VIEW, "text/html", "text/plain"} <= set(output["data"])


def test_a_saved_notebook_holds_no_sound(executed):
    saved = json.loads(executed)
    assert saved["metadata"]["widgets"], "the state was not saved: this test would prove nothing"
    noise = np.random.default_rng(0).normal(0, 0.1, 48000).astype(np.float32)
    pcm = np.round(noise * 32768).astype(np.int16).tobytes()
    assert base64.b64encode(pcm[3000:3060]).decode() not in executed
    assert '"encoding": "base64"' not in executed
    assert len(executed) < 80_000  # 3 s of this noise are 96 kB as int16; the state is the module and its style
