"""When a run reports, evaluates, saves and ends: orders by steps and by the clock, without a model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from speechkit.training.callbacks import Pace, Watch, asked
from speechkit.training.config import FinetuneConfig
from speechkit.training.curve import Curve, Point


class Clock:
    """Seconds that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def control() -> Any:
    names = ("should_log", "should_evaluate", "should_save", "should_training_stop")
    return SimpleNamespace(**dict.fromkeys(names, False))


def step(watch: Watch, number: int, loss: float = 1.0, wer: float | None = None, norm: float = 1.0) -> Any:
    """One update, as the trainer makes it: orders, then the log, then the evaluation that was ordered."""
    state, orders = SimpleNamespace(global_step=number), control()
    watch.on_step_end(None, state, orders)
    if orders.should_log:
        watch.on_log(None, state, orders, logs={"loss": loss, "learning_rate": 1e-3, "grad_norm": norm})
    if orders.should_evaluate:
        watch.on_evaluate(None, state, orders, metrics={"eval_wer": wer or 0.0, "eval_cer": 0.1, "eval_loss": 1.0})
    return orders


def watch_of(pace: Pace | None = None, stop: Any = None, curve: Curve | None = None, **settings: Any) -> Watch:
    config = FinetuneConfig(**{"steps": 100, **settings})
    return Watch(config, pace or Pace(config.steps, config.minutes), None, curve or Curve(), None, stop)


def test_the_learning_rate_is_a_trapezium_over_the_run() -> None:
    pace = Pace(steps=100, minutes=None)
    factors = [pace.factor(number, warmup=0.1, decay=0.5) for number in range(100)]
    assert factors[0] == pytest.approx(0.05) and factors[9] == pytest.approx(0.95)
    assert factors[10:50] == [1.0] * 40
    assert factors[50] == pytest.approx(0.99) and factors[99] == pytest.approx(0.01)


def test_the_share_of_a_run_is_the_larger_of_steps_and_minutes() -> None:
    pace = Pace(steps=100, minutes=2.0)
    pace.agreed_s = 60.0
    assert (pace.share(10), pace.share(80), pace.share(200)) == (0.5, 0.8, 1.0)
    assert Pace(None, None).share(5) == 0.0


def test_time_of_earlier_sittings_counts() -> None:
    clock = Clock()
    pace = Pace(None, 2.0, before_s=60.0, now=clock)
    pace.start()
    clock.now += 30
    assert pace.elapsed_s == 90.0


def test_evaluations_are_spread_evenly_where_their_distance_is_not_given() -> None:
    watch = watch_of(steps=50)
    due = [number for number in range(1, 51) if step(watch, number, wer=0.5).should_evaluate]
    assert due == list(range(5, 51, 5))


def test_every_evaluation_is_logged_and_saved_in_one_point() -> None:
    watch = watch_of(steps=6, eval_every=4, log_every=3)
    orders = {number: step(watch, number, wer=0.5) for number in range(1, 7)}
    assert [number for number, one in orders.items() if one.should_save] == [4, 6]
    assert [point.step for point in watch.curve.points] == [1, 3, 4, 6]
    assert watch.curve.points[2].loss == 1.0 and watch.curve.points[2].wer == 0.5
    assert orders[6].should_training_stop and watch.ending == "steps"


def test_the_clock_ends_a_run_and_spreads_its_evaluations() -> None:
    clock = Clock()
    pace = Pace(None, 1.0, now=clock)
    pace.start()
    watch = watch_of(pace, steps=None, minutes=1.0)
    seen = []
    for number in range(1, 100):
        clock.now += 2.5
        orders = step(watch, number, wer=0.5)
        seen += [number] if orders.should_evaluate else []
        if orders.should_training_stop:
            break
    assert watch.ending == "minutes" and number == 24
    assert len(seen) == 10 and seen[-1] == 24


def test_patience_counts_evaluations_since_the_best_also_those_before_a_resume() -> None:
    old = Curve((Point(0, 0.0, wer=0.1), Point(10, 1.0, wer=0.3, cer=0.2), Point(20, 2.0, wer=0.4, cer=0.2)))
    watch = watch_of(curve=old, eval_every=10, patience=2)
    assert step(watch, 30, wer=0.35).should_training_stop
    assert watch.ending == "patience" and watch.best is not None and watch.best.step == 10
    again = watch_of(curve=old, eval_every=10, patience=2)
    assert not step(again, 30, wer=0.2).should_training_stop


def test_the_best_model_is_kept_when_and_only_when_it_is_better() -> None:
    watch, kept = watch_of(eval_every=1), []
    watch.save_best = lambda: kept.append(watch.curve.points[-1].step)
    for number, wer in enumerate([0.5, 0.6, 0.5, 0.4], 1):
        step(watch, number, wer=wer)
    assert kept == [1, 4], "an equal one later does not count"


@pytest.mark.parametrize("bad", [{"loss": float("nan")}, {"loss": float("inf")}, {"norm": float("nan")}])
def test_what_is_no_number_ends_the_run_and_nothing_is_saved(bad: dict[str, float]) -> None:
    watch = watch_of(eval_every=1)
    orders = step(watch, 1, **bad)
    assert orders.should_training_stop and not orders.should_save and not orders.should_evaluate
    assert watch.ending == "diverged"


def test_an_overflow_of_scaled_gradients_is_part_of_float16() -> None:
    watch = watch_of(eval_every=1)
    watch.scaled = True
    assert not step(watch, 1, wer=0.5, norm=float("inf")).should_training_stop


def test_the_stop_button_may_be_an_object_or_a_callable() -> None:
    assert asked(lambda: True) and not asked(lambda: False) and not asked(None)
    assert asked(SimpleNamespace(requested=True)) and not asked(SimpleNamespace(requested=False))
    watch = watch_of(stop=SimpleNamespace(requested=True), eval_every=5)
    orders = step(watch, 1)
    assert orders.should_save and orders.should_log and orders.should_training_stop and not orders.should_evaluate
    assert watch.ending == "stopped"
