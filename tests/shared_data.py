"""The one place where tests find the real test data.

Set UKBMM_SHARED_DATA to the folder that holds `hs_mice`, `genetics` and `ukb_metadata`; without it the
folder `../shared/data` beside the checkout is tried. A test that needs data which is not there is skipped,
and the reason names the variable.
"""

import os
from pathlib import Path

import pytest

VARIABLE = "UKBMM_SHARED_DATA"
DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared_data(relative: str) -> Path:
    "The path of `relative` in the shared test data; skips the test where it is absent."
    found = Path(os.environ.get(VARIABLE, DEFAULT)) / relative
    if not found.exists():
        pytest.skip(f"the shared test data has no {relative}; set {VARIABLE} to the folder that holds it")
    return found
