"""One of several processes, each with a GPU, that train a network: torchrun two_gpus.py BIOBANK OUT."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ukbmm.biobank.store import Biobank
from ukbmm.cohort.outcomes import RegressionOutcome, read_outcome
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock, SNPBlock
from ukbmm.data.loaders import MultiModalDataBlock
from ukbmm.training.checkpoint import Checkpoint
from ukbmm.training.distributed import Distributed, join
from ukbmm.training.learner import fusion_learner


def train(biobank: Biobank, out: Path) -> None:
    "Train without dropout, and write what came out."
    processes, outcome = join(), read_outcome(biobank, RegressionOutcome(field=30750))
    rows = np.flatnonzero(outcome.known)
    recipe = MultiModalDataBlock((PhenotypeBlock([31, 21003, 21001]), SNPBlock(), OutcomeBlock(outcome)))
    dls = recipe.dataloaders(
        biobank, rows[:225], rows[225:300], bs=32, seed=3, device=processes.device or "cuda"
    )
    cbs = [Checkpoint(out / "checkpoints"), *([Distributed(processes)] if processes.world > 1 else [])]
    learn = fusion_learner(dls, seed=1, patience=3, cbs=cbs)
    for module in learn.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(3, 5e-3)
    torch.save([processes.world, learn.best_weights.losses], out / f"{processes.rank}.pt")


if __name__ == "__main__":
    train(Biobank.open(sys.argv[1]), Path(sys.argv[2]))
