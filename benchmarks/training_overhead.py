"""What training costs beside the model: a bare PyTorch loop, a bare fastai Learner, and our callbacks on top.

The same small network, optimizer settings and batches for all three. A fit is one epoch of many small batches and a
short validation. All that our callbacks do is counted, also what they do once per fit or per epoch: seeding, the
validation of the untrained state, keeping the best weights, the history file and the pooled metric.
"""

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import MemoryBiobank, arguments, print_table, print_versions, seconds, verdict
from fastai.learner import Learner
from phenotype_batches import draw, memory_biobank
from torch import nn

from ukbmm.cohort.outcomes import Outcome
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock
from ukbmm.data.loaders import MultiModalDataBlock, MultiModalDataLoaders
from ukbmm.models.heads import loss_for
from ukbmm.models.multimodal import build_model
from ukbmm.training.learner import fusion_learner

BATCH, TARGET_MS, LR = 64, 0.3, 1e-3


def loaders(biobank: MemoryBiobank, target: np.ndarray, batches: int) -> MultiModalDataLoaders:
    "`batches` batches to train on and a twentieth of that to validate on."
    rows = np.arange(len(biobank))
    blocks = (PhenotypeBlock(list(range(1, len(biobank.columns) + 1))),
              OutcomeBlock(Outcome("regression", "y", "target", "", "y", target)))  # fmt: skip
    train, valid = np.split(rows, [batches * BATCH])
    return MultiModalDataBlock(blocks).dataloaders(biobank, train, valid, bs=BATCH, device="cpu")


def bare_loop(dls: MultiModalDataLoaders, model: nn.Module, loss: nn.Module) -> None:
    "One epoch as a PyTorch tutorial writes it."
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    model.train()
    for x, y in dls.train:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        total = torch.stack([loss(model(x), y) for x, y in dls.valid])
    total.mean().item()


def run(learn: Learner) -> None:
    "One epoch of a Learner, without what it prints."
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)


class NearlyEmpty(nn.Module):
    "One linear layer, so that what surrounds the model is most of the time."

    def __init__(self, width: int):
        super().__init__()
        self.layer = nn.Linear(width, 1)

    def forward(self, x: dict) -> torch.Tensor:  # [batch, 1]
        numbers, _ = x["phenotype"]
        return self.layer(numbers)


def measure(dls: MultiModalDataLoaders, model: nn.Module, repeats: int, clock: str) -> dict[str, list[float]]:
    "Seconds of a fit of one epoch in each way."
    loss = loss_for("regression")
    with tempfile.TemporaryDirectory() as folder:
        history = Path(folder) / "history.csv"
        calls = {
            "loop": lambda: bare_loop(dls, model, loss),
            "bare": lambda: run(Learner(dls, model, loss_func=loss, lr=LR, wd=0.01)),
            "ours": lambda: run(fusion_learner(dls, model=model, lr=LR, wd=0.01, history=history)),
        }
        return seconds(calls, repeats, clock)


def main() -> None:
    options = arguments(__doc__)
    batches, repeats = (20, 2) if options.quick else (1000, options.repeats or 9)
    torch.set_num_threads(options.threads or 1)  # such small steps gain nothing from more
    numbers, codes = draw(int(batches * BATCH * 1.05), 20, 5)
    dls = loaders(memory_biobank(numbers, codes), numbers[:, 0].astype(np.float64), batches)
    print_versions()
    for title, model in (("nearly empty", NearlyEmpty(20)), ("fusion", build_model(dls.blocks))):
        weights = sum(parameter.numel() for parameter in model.parameters())
        print(
            f"{title} network of {weights:,} weights: {batches} batches of {BATCH}, {len(dls.valid)} to validate on"
        )
        report(measure(dls, model, repeats, options.clock), batches)


def report(taken: dict[str, list[float]], batches: int) -> None:
    "Print milliseconds per batch, what each way adds to the one above it, and whether the target holds."
    names = {
        "loop": "limit: a bare PyTorch loop",
        "bare": "peer: a bare fastai Learner",
        "ours": "ours: fusion_learner",
    }
    before, rows = None, []
    for name, title in names.items():
        each = [1e3 * second / batches for second in taken[name]]
        added = [now - then for now, then in zip(each, before or each, strict=True)]
        extra = statistics.median(added)
        target = f"{verdict(extra <= TARGET_MS)} (<= {TARGET_MS} ms added)" if name == "ours" else ""
        times = statistics.median(each) / (1e3 * statistics.median(taken["loop"]) / batches)
        rows.append(
            [
                title,
                f"{statistics.median(each):.3f}",
                f"{extra:+.3f}" if before else "",
                f"{times:.2f}",
                target,
            ]
        )
        before = each
    print_table(["way", "ms/batch", "added, ms", "time / loop", "target"], rows)


if __name__ == "__main__":
    main()
