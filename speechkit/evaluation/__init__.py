"""How right a transcript is and where, how true its confidences are, what the layers of a model know.

Imports no torch.
"""
