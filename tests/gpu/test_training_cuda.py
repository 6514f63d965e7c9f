"""What only CUDA devices can show of training: exact resume with the scale of fp16, and several GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from torch import nn

from ukbmm.cohort.outcomes import RegressionOutcome, read_outcome
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock, SNPBlock
from ukbmm.data.loaders import MultiModalDataBlock
from ukbmm.training.checkpoint import Checkpoint
from ukbmm.training.learner import fusion_learner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")


class GiveUp(Callback):
    def after_pred(self):
        if self.learn.training and self.learn.train_iter == 9:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def recipe(biobank):
    outcome = read_outcome(biobank, RegressionOutcome(field=30750))
    rows = np.flatnonzero(outcome.known)
    blocks = MultiModalDataBlock((PhenotypeBlock([31, 21003, 21001]), SNPBlock(), OutcomeBlock(outcome)))
    return lambda device: blocks.dataloaders(biobank, rows[:225], rows[225:300], bs=32, seed=3, device=device)


def train(dls, cbs, dropout=0.2, **settings):
    learn = fusion_learner(dls, seed=1, patience=3, cbs=cbs, **settings)
    for module in learn.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(3, 5e-3)
    return learn


@pytest.mark.parametrize("amp", ["no", "bf16", "fp16"])
def test_an_interrupted_training_ends_with_the_same_bits(recipe, tmp_path, amp):
    settings = {"amp": amp, "strict": True}
    whole = train(recipe("cuda"), [], **settings)
    with pytest.raises(KeyboardInterrupt):
        train(recipe("cuda"), [Checkpoint(tmp_path, every=2), GiveUp()], **settings)
    torch.rand(3, device="cuda")
    again = train(recipe("cuda"), [Checkpoint(tmp_path, every=2)], **settings)
    assert again.best_weights.losses == whole.best_weights.losses
    for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)
    if amp == "fp16":
        assert again.mixed_precision.scaler.state_dict() == whole.mixed_precision.scaler.state_dict()


def test_a_compiled_training_comes_to_the_same(recipe):
    compiled, plain = (train(recipe("cuda"), [], dropout=0.0, compile=compile) for compile in (True, False))
    np.testing.assert_allclose(compiled.best_weights.losses, plain.best_weights.losses, rtol=1e-3)


@several
@pytest.mark.parametrize("sharded", [False, True], ids=["copies", "shared"])
def test_two_gpus_come_to_what_one_comes_to(biobank, tmp_path, sharded):
    losses = []
    for gpus in (1, 2):
        (tmp_path / str(gpus)).mkdir()
        program = [Path(__file__).with_name("two_gpus.py"), biobank.path, tmp_path / str(gpus)]
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", gpus, *program]
        variables = {**os.environ, "ACCELERATE_USE_FSDP": str(sharded).lower()}
        subprocess.run(list(map(str, command)), env=variables, check=True, timeout=300)
        found = [torch.load(tmp_path / str(gpus) / f"{rank}.pt") for rank in range(gpus)]
        assert all(one == found[0] for one in found) and found[0][0] == gpus
        losses.append(found[0][1])
    np.testing.assert_allclose(*losses, rtol=1e-3)
