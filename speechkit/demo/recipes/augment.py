"""The augmentation of the recipes: that of `speechkit.training`, whose defaults were found on these models."""

from __future__ import annotations

from speechkit.training.augment import Augmentation, augment
from speechkit.training.effects import band_limit_hz, change_speed, colored_noise, room, shift_formants

__all__ = ["Augmentation", "augment", "band_limit_hz", "change_speed", "colored_noise", "room", "shift_formants"]
