"""Two panels about kernels: what fusing saves at any size, and which attention would run on which card.

Controls above, a table below; the table is a pure function of the controls (`speechkit_kernels.fusing`, `choose`), and
both panels are kept as plain tables by whoever saves the notebook. Nothing is computed on any card.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import ipywidgets

from speechkit.widgets.palette import card

if TYPE_CHECKING:
    from speechkit_kernels.attention import Case, Choice
    from speechkit_kernels.figures import Table

__all__ = ["CARDS", "DispatchPanel", "FusingPanel", "case_on", "verdicts"]

CARDS = {"T4": (7, 5), "L4": (8, 9), "A100": (8, 0), "H200": (9, 0), "CPU": None}
MASKS = ("full", "causal", "window", "given")
STATES = {True: "usable", False: "no"}


class _TablePanel(ipywidgets.VBox):  # type: ignore[misc]
    """Controls whose every change makes the table anew."""

    _ipython_display_ = None  # as in Player: ipywidgets 7 would hide the twins
    label = ""

    def __init__(self, controls: dict[str, Any]) -> None:
        self.controls, self.view = controls, ipywidgets.HTML()
        box = ipywidgets.Box(list(controls.values()), layout=ipywidgets.Layout(flex_flow="row wrap"))
        super().__init__([box, self.view])
        for control in controls.values():
            control.observe(self._changed, "value")
        self._changed()

    @property
    def table(self) -> Table:
        """Of the controls as they stand."""
        raise NotImplementedError

    def value_of(self, name: str) -> Any:
        return self.controls[name].value

    def _changed(self, _change: Any = None) -> None:
        self.view.value = self._section("line-height:1.5")  # in the notebook's own colours

    def _section(self, style: str) -> str:
        return f'<section aria-label="{self.label}" style="{style}">{self.table._repr_html_()}</section>'

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The live view, with both twins beside it for whoever opens the saved notebook."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        data = {
            "application/vnd.jupyter.widget-view+json": view,
            "text/html": self._section(card()),
            "text/plain": repr(self),
        }
        return data, {}

    def __repr__(self) -> str:
        return repr(self.table)


class FusingPanel(_TablePanel):
    """Part, rows, width and dtype → bytes operation by operation and fused, and the least time on each card."""

    label = "What fusing saves"

    def __init__(self, what: str = "rms_norm", rows: int = 8192, width: int = 4096) -> None:
        from speechkit_kernels.fusing import PARTS

        sizes = partial(ipywidgets.SelectionSlider, continuous_update=False)
        super().__init__(
            {
                "part": ipywidgets.Dropdown(options=list(PARTS), value=what, description="part"),
                "rows": sizes(options=_with(rows, 1, 15), value=rows, description="rows"),
                "width": sizes(options=_with(width, 8, 18), value=width, description="width"),
                "dtype": ipywidgets.Dropdown(options=["bfloat16", "float16", "float32"], description="dtype"),
            }
        )

    @property
    def table(self) -> Table:
        import torch
        from speechkit_kernels.fusing import fusing

        dtype = getattr(torch, self.value_of("dtype"))
        return fusing(self.value_of("part"), self.value_of("rows"), self.value_of("width"), dtype).table


class DispatchPanel(_TablePanel):
    """A card and a case → every attention there is: usable or why not, and which is chosen."""

    label = "Attention dispatch"

    def __init__(self, name: str = "H200") -> None:
        box = partial(ipywidgets.Checkbox, indent=False, layout=ipywidgets.Layout(width="auto", margin="0 16px"))
        self.dtypes = ["bfloat16", "float16", "float32"]
        super().__init__(
            {
                "card": ipywidgets.Dropdown(options=list(CARDS), value=name, description="card"),
                "dtype": ipywidgets.Dropdown(options=self.dtypes, description="dtype"),
                "head_dim": ipywidgets.Dropdown(options=[64, 80, 96, 128, 256], value=128, description="head dim"),
                "length": ipywidgets.Dropdown(options=[1, 128, 512, 2048, 8192], value=2048, description="queries"),
                "mask": ipywidgets.Dropdown(options=MASKS, value="causal", description="mask"),
                "training": box(description="training"),
                "packed": box(description="packed documents"),
                "softcap": box(description="soft cap"),
            }
        )

    @property
    def table(self) -> Table:
        from speechkit_kernels.attention import choose

        return verdicts(choose(case_on(**{name: control.value for name, control in self.controls.items()})))


def case_on(card: str, dtype: str = "bfloat16", head_dim: int = 128, length: int = 2048, **more: Any) -> Case:
    """The case of a card by its name; one query sees as many keys as `length` of others would: 2,048."""
    import torch
    from speechkit_kernels.attention import Case

    capability = CARDS[card]
    keys = length if length > 1 else 2048
    return Case(
        "cpu" if capability is None else "cuda", capability, getattr(torch, dtype), head_dim, length, keys, **more
    )


def verdicts(choice: Choice) -> Table:
    """Every candidate as a row: name, chosen or usable or not, why."""
    from speechkit_kernels.figures import Table

    rows = [
        (one.name, "chosen", choice.reason) if one.name == choice.name else (one.name, STATES[one.usable], one.reason)
        for one in choice.verdicts
    ]
    return Table(choice.explain().splitlines()[0], ("candidate", "", "why"), tuple(rows))


def _with(value: int, low: int, high: int) -> list[int]:
    """Powers of two, and the value that is wanted at first."""
    return sorted({value, *(2**power for power in range(low, high + 1))})
