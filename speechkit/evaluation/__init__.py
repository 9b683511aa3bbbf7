"""How right a transcript is, in which words and languages, how true its confidences are, what the layers of a model know.

Imports no torch.
"""
