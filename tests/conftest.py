"""Fixtures that several tests share: a small synthetic biobank with a known truth."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from ukbmm.biobank.store import Biobank
from ukbmm.biobank.synthetic import synthetic_biobank

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    "The root of the checkout."
    return REPOSITORY


@pytest.fixture(scope="session")
def biobank(tmp_path_factory: pytest.TempPathFactory) -> Biobank:
    "400 invented people in families, with phenotypes and 200 variants; do not write into it."
    return synthetic_biobank(
        tmp_path_factory.mktemp("shared") / "small.biobank", participants=400, variants=200, seed=1
    )


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    "Compute on one thread: small products are slower on many, and a forked process can use one only."
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
