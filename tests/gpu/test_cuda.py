"""What only a CUDA device can show: batches are unpacked there, and every precision trains to the same place."""

import numpy as np
import pytest
import torch

from ukbmm.cohort.cohort import define_cohort
from ukbmm.cohort.outcomes import RegressionOutcome, read_outcome
from ukbmm.cohort.splits import KFold, split_cohort
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock, SNPBlock
from ukbmm.data.loaders import MultiModalDataBlock
from ukbmm.training.learner import fusion_learner, predict_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.fixture(scope="module")
def parts(biobank):
    outcome = read_outcome(biobank, RegressionOutcome(field=30750))
    split = split_cohort(define_cohort(biobank, outcome), biobank, KFold(folds=3), seed=1)
    blocks = (PhenotypeBlock([31, 21003, 21001]), SNPBlock(), OutcomeBlock(outcome))
    return biobank, split, MultiModalDataBlock(blocks=blocks)


def loaders(parts, device: str):
    biobank, split, recipe = parts
    return recipe.dataloaders(biobank, train=split.train(0, 0), valid=split.valid(0, 0), bs=32, device=device)


def test_a_batch_on_the_device_equals_one_on_the_cpu(parts):
    there, here = loaders(parts, "cuda"), loaders(parts, "cpu")
    for (x, y), (x_cpu, y_cpu) in zip(there.valid, here.valid, strict=True):
        assert y.device.type == "cuda"
        torch.testing.assert_close(y.cpu(), y_cpu)
        torch.testing.assert_close(x["snps"].cpu(), x_cpu["snps"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("amp", ["no", "bf16", "fp16"])
def test_every_precision_trains_and_predicts_alike(parts, amp):
    _, split, _ = parts
    learn = fusion_learner(loaders(parts, "cuda"), seed=1, amp=amp)
    with learn.no_bar(), learn.no_logging():
        before = float(learn.validate()[0])
        learn.fit_one_cycle(4, 5e-3)
    assert float(learn.validate()[0]) < before
    predicted = predict_rows(learn, split.test(0))
    assert np.isfinite(predicted).all()
