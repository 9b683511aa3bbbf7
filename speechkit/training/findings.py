"""What a doctor says: findings, each with its number, cause and remedy. Plain text; knows neither torch nor curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Diagnosis", "Finding"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or may be."""

    name: str
    severity: Literal["stops", "costs", "watch"]  # nothing is learnt; less than could be; perhaps nothing
    symptom: str  # what was measured, with its number
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name} ({self.severity})\n  seen:  {self.symptom}\n  cause: {self.cause}\n  do:    {self.remedy}"


@dataclass(frozen=True)
class Diagnosis:
    """All findings, the gravest first, and what was looked at: what was not given could not be."""

    findings: tuple[Finding, ...]
    examined: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.findings

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(finding.name for finding in self.findings)

    def __str__(self) -> str:
        looked = f"examined: {', '.join(self.examined) or 'nothing'}"
        return "\n".join([*map(str, self.findings), looked] if self.findings else [f"nothing found; {looked}"])
