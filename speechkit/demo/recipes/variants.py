"""Made-up speakers: random espeak-ng variant files. In: a number. Out: the text of a variant file, always the same one.

espeak-ng has about ninety variants of its own, many close to each other; a voice unlike all of them (breathy and very
high, say) is then heard for the first time in the test. The keys are described in espeak-ng's docs/voices.md.
"""

from __future__ import annotations

import random

__all__ = ["drawn_variant"]


def drawn_variant(number: int) -> str:
    """Speaker `number`: pitch, vocal tract, voice quality and delivery, drawn from a little more than people cover."""
    rng = random.Random(f"variant {number}")

    def around(middle: float, spread: float) -> int:
        return round(middle * rng.uniform(1 - spread, 1 + spread))

    low = round(70 * 3 ** rng.random())  # Hz, 70 to 210
    lines = ["language variant", f"name drawn{number}", f"pitch {low} {round(low * rng.uniform(1.2, 1.8))}"]
    tract = rng.uniform(85, 138)  # percent of a man's resonances: small women and children are above 120
    # how far each resonance strays from it, in place and in strength and width: some of espeak-ng's own go far
    warp, spread = rng.choice([(0.06, 0.35), (0.06, 0.35), (0.1, 0.35), (0.14, 0.4), (0.2, 0.5)])
    lines.append(f"formant 0 100 {around(105, 0.2)} {around(115, 0.2)}")
    for formant in range(1, 6):
        lines.append(f"formant {formant} {around(tract, warp)} {around(105, spread)} {around(110, spread)}")
    for formant in range(6, 9):
        lines.append(f"formant {formant} {around(tract, 0.08)} {round(rng.uniform(20, 120))} {around(110, 0.3)}")
    lines += [f"voicing {round(rng.uniform(25, 150))}", f"consonants {around(95, 0.5)} {around(80, 0.7)}"]
    lines += [f"flutter {round(rng.uniform(0, 10))}", f"roughness {rng.choice([0, 0, 1, 2, 4])}"]
    if rng.random() < 0.4:
        lines.append("breath " + " ".join(str(round(rng.uniform(0, 25 if at < 4 else 10))) for at in range(8)))
        lines.append("breathw 150 150 200 200 400 400 600 600")
    if rng.random() < 0.25:
        lines.append(f"klatt {rng.randint(1, 5)}")
    if rng.random() < 0.35:
        lines.append(f"echo {round(rng.uniform(15, 60))} {round(rng.uniform(10, 50))}")
    if rng.random() < 0.3:
        lines.append(f"intonation {rng.randint(1, 4)}")
    if rng.random() < 0.3:
        lines.append("tone 100 255 600 70 1200 22 2000 66 3000 12")
    if rng.random() < 0.5:
        lines.append("stressAdd " + " ".join(str(round(rng.uniform(-20, 60))) for _ in range(8)))
        lines.append("stressAmp " + " ".join(str(round(rng.uniform(12, 26))) for _ in range(8)))
    return "\n".join(lines) + "\n"
