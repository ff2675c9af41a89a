"""How many examples a law is tried on: fewer in the quick profile of hypothesis, which developers have."""

from __future__ import annotations

from hypothesis import settings

_THOROUGH = 100


def examples(count: int) -> int:
    """`count` in the thorough profile, and its share in any other."""
    return max(1, count * settings.default.max_examples // _THOROUGH)
