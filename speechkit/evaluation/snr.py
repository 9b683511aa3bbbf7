"""One clip → its signal-to-noise ratio in dB, estimated from the clip alone. Samples in, a number out.

The quietest frames are taken for noise, as in minimum statistics (Martin 2001, "Noise power spectral density estimation
based on optimal smoothing and minimum statistics"): the level that one frame in ten stays below is the noise, the mean
level without it the speech. So a clip needs a tenth of its frames without speech, and steady noise: music and other
speakers count as speech. WADA-SNR (Kim & Stern 2008), which needs no pause, was tried beside it and spread at least
twice as far around noise added at 0 to 10 dB: on the embedded clips, on sentences and on single words of people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["HIGHEST_DB", "LOWEST_DB", "estimate"]

FRAME, HOP = 400, 160  # samples: 25 ms every 10 ms
FEWEST = 5  # frames: below, one of ten is none
LOWEST_DB, HIGHEST_DB = -10.0, 60.0  # beyond, the estimate says only "less" and "more"


def estimate(samples: NDArray[np.float32]) -> float | None:
    """(T,) at 16 kHz → SNR in dB within [-10, 60]; None for silence and for less than 65 ms.

    Of white noise added at 0 to 20 dB to sentences of people it is within 2 dB. Words cut without a pause are estimated
    too low, the more the cleaner they are: at 20 dB by 3 dB on average, with a standard deviation of up to 7 dB.
    """
    if len(samples) < FRAME + (FEWEST - 1) * HOP:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::HOP]
    power = np.sort(np.square(frames, dtype=np.float64).mean(axis=1))  # (F,)
    mean = float(power.mean())
    if not mean > 0:
        return None
    # the median of the quietest fifth, a tenth of the way up, holds still where a percentile between two frames jumps
    noise = float(np.median(power[: max(1, len(power) // 5)]))
    speech = max(mean - noise, 1e-12 * mean)
    return float(np.clip(10 * np.log10(speech / max(noise, 1e-12 * mean)), LOWEST_DB, HIGHEST_DB))
