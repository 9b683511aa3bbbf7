"""A tokenizer that has no token for padding, nor one in reserve. Imported by the tests beside it."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["without_pads"]


def without_pads(tokens: Any) -> Any:
    """The same tokenizer without a token that padding could take."""
    from tokenizers import Tokenizer

    words = json.loads(tokens.backend_tokenizer.to_str().replace("<|pad|>", "<|begin_more|>"))
    tokens.__dict__["_tokenizer"] = Tokenizer.from_str(json.dumps(words))
    return tokens
