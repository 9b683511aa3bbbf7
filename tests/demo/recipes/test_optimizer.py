"""Muon beside AdamW: each does what torch's own does on its share, and a checkpoint brings both back."""

import copy

import torch
from torch import nn

from speechkit.demo.recipes.optimizer import MuonWithAdamW, split


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.lm_head = nn.Linear(12, 16), nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.norm(self.first(x)))


def trained(model: Small, optimizers: list[torch.optim.Optimizer], steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        model(torch.randn(8, 12, generator=generator)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return [weight.detach().clone() for weight in model.parameters()]


def test_only_hidden_matrices_go_to_muon() -> None:
    model = Small()
    matrices, rest = split(model)
    assert [id(weight) for weight in matrices] == [id(model.first.weight)]
    assert len(rest) == 5


def test_it_steps_like_torchs_two_optimizers() -> None:
    torch.manual_seed(0)
    ours = Small()
    theirs = copy.deepcopy(ours)
    matrices, rest = split(theirs)
    muon = torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=1e-2, weight_decay=0.01, betas=(0.9, 0.98))
    for mine, want in zip(
        trained(ours, [MuonWithAdamW(ours, 1e-2)], 5), trained(theirs, [muon, adamw], 5), strict=True
    ):
        torch.testing.assert_close(mine, want)


def test_a_schedule_reaches_both_parts() -> None:
    optimizer = MuonWithAdamW(Small(), 1e-2)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert [group["lr"] for group in (*optimizer.muon.param_groups, *optimizer.adamw.param_groups)] == [5e-3, 5e-3]


def test_a_saved_state_continues_as_if_never_stopped() -> None:
    torch.manual_seed(0)
    whole = Small()
    part = copy.deepcopy(whole)
    expected = trained(whole, [MuonWithAdamW(whole, 1e-2)], 3)
    first = MuonWithAdamW(part, 1e-2)
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(8, 12, generator=generator) for _ in range(3)]
    for number, x in enumerate(inputs):
        if number == 2:
            state = copy.deepcopy(first.state_dict())
            first = MuonWithAdamW(part, 1e-2)
            first.load_state_dict(state)
        part(x).square().mean().backward()
        first.step()
        first.zero_grad()
    for mine, want in zip(part.parameters(), expected, strict=True):
        torch.testing.assert_close(mine.detach(), want)
