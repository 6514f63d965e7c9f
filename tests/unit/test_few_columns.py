"""Genotypes of a linear model and of trees are unpacked a few columns at a time, and the results are those of all at once."""

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from ukbmm.biobank.genotypes import unpack
from ukbmm.cohort.outcomes import RegressionOutcome, read_outcome
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock, SNPBlock
from ukbmm.models import ridge
from ukbmm.models.ridge import Columns, DualKernel, cross_fit
from ukbmm.workflow import baselines

CHUNK_ROWS, CHUNK_COLUMNS = 8, 8


class Held(TorchDispatchMode):
    "Counts the bytes of new tensors that are alive at a time, and remembers the most."

    def __init__(self):
        super().__init__()
        self.alive, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(part, torch.Tensor):
                storage = part.untyped_storage()
                if storage.data_ptr() not in given:  # not a view
                    self.alive[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {place: held for place, held in self.alive.items() if not held[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return result


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    "Several chunks of rows and of columns."
    monkeypatch.setattr(ridge, "CHUNK_ROWS", CHUNK_ROWS)
    monkeypatch.setattr(ridge, "CHUNK_COLUMNS", CHUNK_COLUMNS)
    monkeypatch.setattr(baselines, "CHUNK_ROWS", CHUNK_ROWS)


@pytest.fixture(scope="module")
def rows(biobank):
    return np.sort(np.random.default_rng(0).permutation(len(biobank))[:150])


@pytest.fixture(scope="module", params=["in memory", "on disk", "common variants"])
def block(biobank, rows, request):
    settings = {"in memory": {}, "on disk": {"memory_gib": 0.0}, "common variants": {"maf_min": 0.05}}
    return SNPBlock(**settings[request.param]).fit(biobank, rows)


@pytest.fixture(scope="module")
def dense(biobank, block, rows):
    "Standardised copies of A1 of everybody [participant, variant], NaN for people without genotypes."
    store = biobank.genotypes()
    found = unpack(store.packed(np.arange(len(biobank))), store.variants).astype(float)
    frequency = np.nanmean(np.where(found < 0, np.nan, found)[rows], axis=0) / 2
    chosen = np.minimum(frequency, 1 - frequency) >= block.settings.maf_min
    found, frequency = found[:, chosen], frequency[chosen]
    spread = np.sqrt(2 * frequency * (1 - frequency))
    x = np.divide(found - 2 * frequency, spread, out=np.zeros_like(found), where=spread > 0)
    x[found < 0] = 0
    x[~block.present(torch.arange(len(biobank))).numpy()] = np.nan
    return x


def unpacked(people, variants):
    "Bytes of so many genotypes as float32."
    return 4 * people * variants


def few(block, variants):
    "Bytes of a chunk of rows, packed (the next is read while the last is there) and with a few variants unpacked."
    size = 2 * block.batch(torch.arange(CHUNK_ROWS)).nbytes + 5 * unpacked(CHUNK_ROWS, variants)
    assert size < 0.6 * unpacked(CHUNK_ROWS, block.n_variants)
    return size


def test_a_kernel_is_that_of_all_columns_and_unpacks_a_few(block, dense, rows, monkeypatch):
    rows = rows[:24]  # three chunks, and a kernel smaller than the columns
    columns = Columns(block, rows)
    x = np.nan_to_num(dense[rows] - np.nanmean(dense[rows], axis=0))
    batches, batch = [], block.batch
    monkeypatch.setattr(block, "batch", lambda index: batches.append(index) or batch(index), raising=False)
    with Held() as held:
        kernel = DualKernel({"snps": columns}, rows)
    expected = x @ x.T
    assert kernel.size["snps"] == pytest.approx(np.diagonal(expected).mean(), rel=1e-5)
    np.testing.assert_allclose(kernel.kernels["snps"] * kernel.size["snps"], expected, rtol=0, atol=1e-3)
    itself = 8 * len(rows) ** 2
    enough = batch(torch.from_numpy(rows)).nbytes + 5 * unpacked(len(rows), CHUNK_COLUMNS)
    assert held.most < 2 * itself + enough < unpacked(len(rows), columns.width)
    assert len(batches) == 1  # packed rows are read once


def test_products_are_those_of_all_columns(block, dense, rows):
    columns = Columns(block, rows)
    x = np.nan_to_num(dense[rows] - np.nanmean(dense[rows], axis=0))
    people, weights = torch.randn(len(rows), 2), torch.randn(columns.width, 2)
    found = ridge.to_columns(columns, rows, people)
    np.testing.assert_allclose(found, x.T @ people.double().numpy(), rtol=0, atol=1e-3)
    found = ridge.to_people(columns, rows, weights)
    np.testing.assert_allclose(found, x @ weights.double().numpy(), rtol=0, atol=1e-3)


def test_scores_are_those_of_all_columns_and_unpack_a_few(biobank, block, dense, rows):
    target = OutcomeBlock(read_outcome(biobank, RegressionOutcome(field=30750))).fit(biobank, rows)
    rows = rows[target.present(torch.from_numpy(rows)).numpy()]
    blocks = {"snps": block, "table": PhenotypeBlock([31, 21003, 20116]).fit(biobank, rows)}
    model = cross_fit(blocks, target, rows, np.array_split(rows, 3), (10.0,))
    everybody = np.arange(len(biobank))
    with Held() as held:
        scores = model.scores(blocks, everybody)
    expected = dense @ model.weights["snps"].double().numpy() + model.offsets["snps"].item()
    assert np.abs(expected[np.isfinite(expected)]).max() > 0.1
    np.testing.assert_allclose(scores[:, 0], np.nan_to_num(expected), rtol=0, atol=1e-5)
    assert held.most < scores.nbytes + few(block, CHUNK_COLUMNS)


def test_trees_get_the_chosen_variants_and_no_other_is_unpacked(block, dense, rows):
    chosen = np.array([0, 3, 4, 17, 60, block.n_variants - 1])
    with Held() as held:
        found, categories = baselines.tree_inputs({"snps": block}, rows, {"snps": chosen})
    np.testing.assert_allclose(found, dense[rows][:, chosen], rtol=0, atol=1e-5)
    assert categories == [] and np.isnan(found).any() and len(rows) > CHUNK_ROWS
    assert held.most < few(block, len(chosen))
