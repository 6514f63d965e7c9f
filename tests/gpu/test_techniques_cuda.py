"""What only a CUDA device can show of watching and techniques: memory that really runs out, scaled gradients, peak memory."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from ukbmm.cohort.outcomes import RegressionOutcome, read_outcome
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock, SNPBlock
from ukbmm.data.loaders import MultiModalDataBlock
from ukbmm.training.divergence import DivergenceError, StopOnNaN
from ukbmm.training.learner import fusion_learner
from ukbmm.training.techniques import (
    EMA,
    SWA,
    BatchMemoryError,
    ExplainMemory,
    Freeze,
    GradientModulation,
    Recompute,
    find_batch_size,
    memory_by_part,
)
from ukbmm.training.watching import Speed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


class Wide(nn.Module):
    "An encoder that keeps `mib` MiB a participant for the backward pass."

    def __init__(self, inner: nn.Module, mib: float):
        super().__init__()
        self.inner, self.width = inner, int(mib * 2**18)
        self.scale = nn.Parameter(torch.zeros(1))

    def additive(self, value):
        return self.inner.additive(value)

    def forward(self, value, additive):
        z = self.inner(value, additive)
        wide = z[:, :1].expand(-1, self.width) * self.scale
        return z + wide.exp().mean(dim=1, keepdim=True) - 1


@pytest.fixture
def make(biobank, tmp_path):
    "Function from callbacks to a learner on the device; `mib` makes the encoder of genotypes a large one."

    def learner(*cbs, mib=None, amp="no"):
        outcome = read_outcome(biobank, RegressionOutcome(field=30750))
        rows = np.flatnonzero(outcome.known)
        blocks = (PhenotypeBlock([31, 21003, 21001]), SNPBlock(every=2), OutcomeBlock(outcome))
        dls = MultiModalDataBlock(blocks).dataloaders(
            biobank, rows[:200], rows[200:280], bs=40, device="cuda"
        )
        learn = fusion_learner(dls, patience=None, cbs=list(cbs), path=tmp_path, seed=2, amp=amp)
        if mib is not None:
            learn.model.encoders["snps"] = Wide(learn.model.encoders["snps"], mib).cuda()
        learn.remove_cb(learn.progress)
        return learn

    return learner


def fit(learn, epochs=2):
    with learn.no_logging():
        learn.fit(epochs, 3e-3)
    return learn


def total_mib() -> float:
    return torch.cuda.get_device_properties(0).total_memory / 2**20


@pytest.mark.parametrize("amp", ["no", "bf16", "fp16"])
def test_every_technique_trains_in_every_precision(make, amp, tmp_path):
    callbacks = [
        EMA(0.9),
        GradientModulation(0.3),
        Recompute(["snps"]),
        Speed(),
        StopOnNaN(tmp_path),
        ExplainMemory(),
    ]
    learn = fit(make(*callbacks, amp=amp))
    assert all(weight.isfinite().all() for weight in learn.model.parameters())
    assert learn.speed.epochs[0]["peak_gib"] > 0
    fit(make(SWA(0.5), Freeze({"snps": 1}), amp=amp))


def test_a_batch_size_that_really_fits_is_found_and_a_larger_one_does_not_fit(make):
    learn = make(mib=total_mib() / 200)  # some 60 participants or fewer: three tensors of this size are kept
    before = copy.deepcopy(learn.model.state_dict())
    found = find_batch_size(learn, headroom=0.0)
    assert 4 <= found < 200
    assert all(torch.equal(value, before[name]) for name, value in learn.model.state_dict().items())
    learn.dls.train.bs = found
    fit(learn, 1)
    larger = make(ExplainMemory(), mib=total_mib() / 200)
    larger.dls.train.bs = min(200, 2 * found)
    with pytest.raises(BatchMemoryError, match="encoder 'snps'"):
        fit(larger, 1)


def test_recomputing_lowers_the_peak(make):
    peaks = []
    for callbacks in ([], [Recompute(["snps"])]):
        learn = make(Speed(), *callbacks, mib=4)
        fit(learn, 1)
        peaks.append(learn.speed.epochs[0]["peak_gib"])
    assert peaks[1] <= peaks[0]
    assert memory_by_part(make(mib=4))["encoder 'snps'"] > 4 * 2**20


def test_a_nan_stops_fp16_instead_of_skipping_steps_for_ever(make, tmp_path):
    learn = make(StopOnNaN(tmp_path), amp="fp16")
    learn.model.encoders["snps"].register_forward_hook(lambda module, inputs, out: out * torch.nan)
    with pytest.raises(DivergenceError, match="encoder 'snps'"):
        fit(learn)


def test_recomputed_gradients_are_the_same_on_the_device(make):
    plain, saved = fit(make(), 1), fit(make(Recompute()), 1)
    for a, b in zip(plain.model.parameters(), saved.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
