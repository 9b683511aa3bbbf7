"""Every kernel that is launched, through ptxas for the cards it is for, with the constants that its launcher picks.

What the interpreter cannot show: that a kernel compiles at all, that its tiles fit the shared memory of the card, that
its numbers fit the registers, and that products run on tensor cores. That it runs there, and how fast, is not shown.
For every width of head on every card: SPEECHKIT_COMPILE=all. As a table: `python tests/kernels/compiling.py`.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from compiling import ALL, CARDS, Compiled, compiled, named

pytest.importorskip("triton.backends.nvidia")
pytestmark = pytest.mark.slow

PACKAGE = Path(__file__).resolve().parents[2] / "kernels/speechkit_kernels"
KIB = 1024
SHARED = {"sm_75": 64 * KIB, "sm_80": 163 * KIB, "sm_89": 99 * KIB, "sm_90": 227 * KIB}  # CUDA's guide, a block
# Triton uses no tensor cores below sm_80: launchers take these nowhere else
FROM_AMPERE = ("flash_attention", "nf4_linear._forward", "nf4_linear._backward", "row_linear")
# Bytes a thread. Backward holds two sums beside two tables of scores, in float32 all of it twice as wide. Narrower
# tiles would spill nothing and read more: which is faster, a card must tell.
SPILLED = {
    "flash_attention_backward._backward_keys": 480, "flash_attention_backward._backward_queries": 240,
}  # fmt: skip
ELSEWHERE = 96


def jit_functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    return {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and any(ast.unparse(mark) == "triton.jit" for mark in node.decorator_list)
    }


def launched() -> set[str]:
    """Of the package's source: each function under `triton.jit` that no other one uses, "module._name"."""
    trees = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.glob("*.py")}
    functions = {module: jit_functions(tree) for module, tree in trees.items()}
    used = set()
    for module, tree in trees.items():
        home = dict.fromkeys(functions[module], module)
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("speechkit_kernels."):
                home |= {alias.name: str(node.module).rpartition(".")[2] for alias in node.names}
        for function in functions[module].values():
            names = {node.id for part in function.body for node in ast.walk(part) if isinstance(node, ast.Name)}
            used |= {f"{home[name]}.{name}" for name in names if name in home}
    return {f"{module}.{name}" for module, found in functions.items() for name in found} - used


@pytest.fixture(scope="module")
def found() -> list[Compiled]:
    return compiled(ALL, CARDS)


def test_every_kernel_compiles(found: list[Compiled]) -> None:
    assert not [str(one) for one in found if one.error]


def test_each_is_there_for_every_card_that_it_is_for(found: list[Compiled]) -> None:
    """A new kernel that no function of launches.py starts fails here."""
    cards: dict[str, set[str]] = {kernel: set() for kernel in launched()}
    for one in found:
        cards[one.kernel].add(one.card)
    newer = {"sm_80", "sm_89", "sm_90"}
    assert cards == {kernel: newer if kernel.startswith(FROM_AMPERE) else newer | {"sm_75"} for kernel in cards}


def test_no_card_is_given_what_it_does_not_have(found: list[Compiled]) -> None:
    assert not [str(one) for one in found if one.card == "sm_75" and "bf16" in one.types]
    assert {one.card for one in found if "fp8" in one.types} == {"sm_89", "sm_90"}


def test_registers_are_enough(found: list[Compiled]) -> None:
    assert not [str(one) for one in found if one.spilled > SPILLED.get(one.kernel, ELSEWHERE)]


def test_shared_memory_fits_the_card(found: list[Compiled]) -> None:
    assert not [str(one) for one in found if one.shared > SHARED[one.card]]


def test_products_run_on_tensor_cores_and_hoppers_in_warp_groups(found: list[Compiled]) -> None:
    multiplying = [one for one in found if one.kernel.startswith(FROM_AMPERE) and not one.kernel.endswith("_delta")]
    products = [one for one in multiplying if one.launch != "attentions_in_float32"]  # multiplied one by one
    assert products and not [str(one) for one in products if not one.product]
    tiles = [one for one in products if one.card == "sm_90" and one.kernel.startswith("flash")]
    assert tiles and not [str(one) for one in tiles if one.product != "wgmma"]


def test_the_tiles_of_attention_take_no_more_than_they_were_chosen_for(found: list[Compiled]) -> None:
    """`shared_bytes` is an upper bound; if it were not, a tile that it lets through could fail to launch."""
    from speechkit_kernels.attention_tiles import Tile, shared_bytes

    seen = 0
    for one in found:
        module, _, name = one.kernel.partition("._")
        if module.startswith("flash_attention") and "BLOCK_N" in one.constants:
            queries, keys, head = (int(one.constants[size]) for size in ("BLOCK_M", "BLOCK_N", "D"))
            size = 4 if one.launch == "attentions_in_float32" else 2
            assert one.shared <= shared_bytes(Tile(queries, keys, one.warps, one.stages), name, head, size), str(one)
            seen += 1
    assert seen >= 12


def test_what_does_not_compile_and_what_does_not_fit_is_seen() -> None:
    wrong, much = compiled([("wrong_kernels", "two_types"), ("wrong_kernels", "too_much")], [(8, 0)])
    assert wrong.kernel == "wrong_kernels._two_types" and "found" in wrong.error
    assert much.spilled > ELSEWHERE and much.shared > 0 and much.product, str(much)


def test_every_card_has_its_limit() -> None:
    assert [named(card) for card in CARDS] == list(SHARED)
