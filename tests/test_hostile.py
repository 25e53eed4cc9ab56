"""A short count of what ``faults.py`` counts in full."""

import faults
import pytest


@pytest.mark.slow
def test_no_fault_is_handled_badly():
    assert faults.main(["--damaged", "90"]) == 0
