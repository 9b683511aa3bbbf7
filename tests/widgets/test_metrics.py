"""Live metrics without a browser: phases, throttle, Stop, resumed runs, the printed table, twins."""

from __future__ import annotations

import json
import signal
import threading
import time

import pytest

from speechkit.errors import DataError
from speechkit.training.curve import Curve, Point
from speechkit.widgets import metrics
from speechkit.widgets.metrics import LiveMetrics


@pytest.fixture
def live() -> LiveMetrics:
    return LiveMetrics(100, "digits", fallback="never")


def train(live: LiveMetrics, steps: int, at=None) -> str:
    """A trainer: a point a step, a checkpoint where it ends."""
    for step in range(1, steps + 1):
        live.add(Point(step, 0.1 * step, loss=1 / step, wer=1 / step))
        if step == at:
            signal.raise_signal(signal.SIGINT)
        if live.requested:
            return f"checkpoint at {step}"
    return f"trained for {steps}"


def test_a_run_goes_from_waiting_over_training_to_finished(live):
    assert (live.phase, live.requested) == ("waiting", False)
    with live:
        assert live.can_interrupt
        assert train(live, 3) == "trained for 3"
        assert live.phase == "training"
    assert (live.phase, live.step, live.can_interrupt) == ("finished", 3, False)
    assert live.curve == Curve(tuple(Point(i, 0.1 * i, loss=1 / i, wer=1 / i) for i in (1, 2, 3)), 100)


def test_an_interrupt_stops_the_run_between_two_steps(live):
    with live:
        assert train(live, 9, at=4) == "checkpoint at 4"
        assert live.phase == "stopping"
    assert (live.phase, live.state) == ("stopped", "stopped as asked, at step 4")


def test_one_more_interrupt_breaks_off_and_the_view_says_so(live):
    with pytest.raises(KeyboardInterrupt), live:
        live.add(Point(1, 0.1))
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert (live.phase, live.state) == ("failed", "broken off by KeyboardInterrupt")


def test_an_exception_passes_through_and_is_named(live):
    with pytest.raises(RuntimeError, match="disk full"), live:
        live.add(Point(1, 0.1, loss=2.0))
        raise RuntimeError("disk full")
    assert live.state == "broken off by RuntimeError: disk full"
    assert "disk full" in repr(live)


def test_the_button_is_a_wish_to_stop_and_after_the_run_it_is_none(live):
    with live:
        live.add(Point(1, 0.1))
        live._message(live, {"kind": "other"}, [])
        assert not live.requested
        live._message(live, {"kind": "stop"}, [])
        assert live.requested and live.phase == "stopping"
    live._message(live, {"kind": "stop"}, [])  # handled when the cell has ended
    assert live.phase == "stopped"
    with live:
        assert not live.requested, "the next run is another one"
    assert live.phase == "finished"


def test_stop_works_from_any_thread_and_without_the_with(live):
    live.add(Point(1, 0.1))
    thread = threading.Thread(target=live.stop)
    thread.start()
    thread.join()
    assert live.requested and train(live, 5) == "checkpoint at 1"


def test_the_view_hears_of_points_rarely_and_of_the_last_one_always(live, monkeypatch):
    monkeypatch.setattr(metrics, "UPDATE_S", 3600.0)
    told = []
    live.observe(lambda change: told.append(change["new"]), "step")
    for step in range(1, 501):
        live.add(Point(step, float(step), loss=1.0))
    assert told == [1]
    with live:
        live.add(Point(501, 501.0, loss=1.0))
    assert told == [1, 501]


def test_a_point_after_which_nothing_comes_is_shown_all_the_same(live):
    for step in (1, 2, 3):
        live.add(Point(step, float(step), loss=1.0))
    until = time.monotonic() + 60
    while live.step != 3 and time.monotonic() < until:
        time.sleep(0.01)
    assert live.step == 3


def test_a_resumed_run_takes_back_what_came_after_its_checkpoint():
    before = Curve(tuple(Point(i, float(i), loss=1.0) for i in range(1, 8)), 20, "digits")
    live = LiveMetrics(before, fallback="never")
    assert (live.title, live.steps, live.step) == ("digits", 20, 7)
    live.add(Point(5, 9.0, loss=0.5))
    assert [(p.step, p.elapsed_s) for p in live.curve.points] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 9)]
    assert live.curve.name == "digits"


def test_what_is_synced_is_json_even_when_the_loss_is_none(live):
    live.add(Point(1, 1.0, loss=float("nan"), wer=0.5))
    live.add(Point(2, 2.0, loss=float("inf"), wer=0.25))
    live._push()
    state = {name: value for name, value in live.get_state().items() if not name.startswith("_")}
    state.pop("layout", None)
    assert json.loads(json.dumps(state, allow_nan=False))["figures"][0]["bad"] is True


def test_where_there_are_no_widgets_rows_are_printed_sparsely_and_how_it_ended(capsys):
    live = LiveMetrics(40, "digits")  # no notebook here
    with live:
        for step in range(1, 31):
            live.add(Point(step, float(step), loss=1 / step, wer=0.5 if step % 10 == 0 else None))
        live.add(Point(31, 31.0, loss=0.01))
        live.stop()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "digits" and lines[1].split() == ["step", "time", "loss", "WER", "CER", "rate"]
    assert [line.split()[0] for line in lines[2:7]] == ["1", "10", "20", "30", "stopping:"]
    assert lines[7].split() == "31 of 40 31 s 0.01".split(), "the last point whatever the clock says"
    assert lines[8].startswith("stopped as asked, at step 31 · loss 0.01, WER 50.0 % (best 50.0 % at step 10)")
    assert len(lines) == 9


def test_a_language_models_rows_are_printed_at_each_evaluation_under_their_own_head(capsys):
    with LiveMetrics(20, "greetings", fallback="always") as live:
        for step in range(21):
            live.add(Point(step, step / 2, 1.0, dev_loss=2.0 if step % 10 == 0 else None, tokens=100 * step))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == "step time loss kept out tokens memory rate".split()
    assert [line.split()[0] for line in lines[2:5]] == ["0", "10", "20"]
    assert lines[5].startswith("finished · loss 1, kept-out loss 2 (best 2 at step 0), tokens per second 200")


def test_the_bundle_holds_both_twins_and_the_view_only_where_widgets_are(live):
    live.add(Point(1, 1.0, loss=2.0))
    data, _ = live._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "<svg" in data["text/html"] and data["text/plain"] == repr(live)
    plain, _ = LiveMetrics(fallback="always")._repr_mimebundle_()
    assert sorted(plain) == ["text/html", "text/plain"]


@pytest.mark.parametrize("plan", [-1, 2.5, True, "600", None])
def test_a_plan_that_is_no_number_of_steps_is_told(plan):
    with pytest.raises(DataError, match="give the number of steps, 0 where it is not known, or a Curve"):
        LiveMetrics(plan)


def test_what_is_no_point_is_told(live):
    with pytest.raises(DataError, match=r"a dict is no point; give a speechkit\.training\.curve\.Point"):
        live.add({"step": 1})
    with pytest.raises(ValueError, match='"auto", "always" or "never"'):
        LiveMetrics(fallback="sometimes")
