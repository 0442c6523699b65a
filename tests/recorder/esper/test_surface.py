"""What `esper_recorder.esper` offers: each name once, sorted, and there."""

from __future__ import annotations

import esper_recorder.esper as surface


def test_each_public_name_exists_and_is_listed_once() -> None:
    assert surface.__all__ == sorted(set(surface.__all__))
    assert surface.__all__ == dir(surface)
    for name in surface.__all__:
        assert getattr(surface, name) is not None
    assert set(surface.__all__) <= set(dir(surface))
