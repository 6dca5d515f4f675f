"""The properties that Hypothesis checks: none fails because the machine is busy."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck


def test_no_property_has_to_be_fast(request: pytest.FixtureRequest) -> None:
    """What a test says of its settings is in the place of what the profile says."""
    for item in request.session.items:
        own = getattr(getattr(item, "obj", None), "_hypothesis_internal_use_settings", None)
        if own is not None:
            assert own.deadline is None, item.nodeid
            assert HealthCheck.too_slow in own.suppress_health_check, item.nodeid
