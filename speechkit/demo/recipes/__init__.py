"""How the embedded assets are made: grammar → espeak-ng → augmentation → CTC training.

Needs the extras `synth` and `train`.
"""
