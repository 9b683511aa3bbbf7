"""The two panels: a control changes the table, the table is what the pure functions say, twins are kept."""

import pytest
import torch
from speechkit_kernels.attention import Case, choose
from speechkit_kernels.fusing import fusing

from speechkit.widgets.kernel_panels import CARDS, DispatchPanel, FusingPanel, case_on, verdicts


def test_the_sliders_make_the_table_of_that_size() -> None:
    panel = FusingPanel()
    assert panel.table == fusing("rms_norm", 8192, 4096, torch.bfloat16).table
    before = panel.view.value
    for name, value in {"part": "swiglu", "rows": 512, "width": 2**14, "dtype": "float32"}.items():
        panel.controls[name].value = value
    assert panel.table == fusing("swiglu", 512, 2**14, torch.float32).table
    assert panel.view.value != before and "swiglu of (512, 16,384) float32" in panel.view.value


def test_a_size_that_is_no_power_of_two_can_be_wished_for() -> None:
    assert FusingPanel("cross_entropy", 1000, 128_256).value_of("width") == 128_256


@pytest.mark.parametrize("name", CARDS)
def test_the_card_decides_as_the_dispatcher_does(name: str) -> None:
    panel = DispatchPanel()
    panel.controls["card"].value = name
    panel.controls["dtype"].value = "float16"
    choice = choose(case_on(name, "float16"))
    assert panel.table == verdicts(choice)
    [row] = [row for row in panel.table.rows if row[1] == "chosen"]
    assert row == (choice.name, "chosen", choice.reason)
    assert len(panel.table.rows) == len(choice.verdicts)


def test_every_control_reaches_the_case() -> None:
    panel = DispatchPanel("A100")
    wished = {"head_dim": 64, "length": 512, "mask": "window", "training": True, "packed": True, "softcap": True}
    for name, value in wished.items():
        panel.controls[name].value = value
    assert panel.table == verdicts(choose(Case("cuda", (8, 0), torch.bfloat16, 64, 512, 512, mask="window",
                                               softcap=True, training=True, packed=True)))  # fmt: skip


def test_one_query_sees_many_keys() -> None:
    assert (case_on("H200", length=1).queries, case_on("H200", length=1).keys) == (1, 2048)


@pytest.mark.parametrize("panel", [FusingPanel, DispatchPanel])
def test_a_saved_notebook_keeps_the_table_as_html_and_as_text(panel: type[FusingPanel | DispatchPanel]) -> None:
    made = panel()
    data, _ = made._repr_mimebundle_()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == made.model_id
    assert data["text/plain"] == repr(made.table) and made.table._repr_html_() in data["text/html"]
    assert f'aria-label="{made.label}"' in data["text/html"]
