"""A training step of the whole multi-modal network: a bare PyTorch loop, a bare fastai Learner, ours, and Lightning.

The same network (phenotypes, imaging-like measures and genotypes; encoders, fusion, head), optimizer settings and
batches for all. A fit is one epoch and a short validation. "ours" does the same work as the others: it hides no modality
and does not validate the untrained network; its callbacks are counted, also what they do once per fit or per epoch:
seeding, the history file, the pooled metric, the stop at NaN. "watched" is as `fusion_learner` comes, with hidden
modalities, the validation before the first epoch and the best weights, and Speed and EMA besides; its epoch of 4,096 has
four batches only, beside which that validation weighs. Lightning is measured where it is installed.

Then data: the share of time that training waits for batches that two worker processes read.
"""

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import MemoryBiobank, arguments, print_table, print_versions, seconds, verdict
from fastai.learner import Learner
from genotypes import write_random_bed
from phenotype_batches import draw, memory_biobank
from torch import nn

from ukbmm.biobank.genotypes import GenotypeStore, build_genotypes
from ukbmm.cohort.outcomes import Outcome
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock, SNPBlock
from ukbmm.data.loaders import MultiModalDataBlock, MultiModalDataLoaders
from ukbmm.models.fusion import FusionSettings
from ukbmm.models.heads import loss_for
from ukbmm.models.multimodal import ModelSettings, build_model
from ukbmm.training.learner import fusion_learner
from ukbmm.training.techniques import EMA
from ukbmm.training.watching import Speed

TARGET_MS, TARGET_SHARE, TARGET_WAIT, LR = 0.3, 0.02, 0.05, 1e-3
NUMBERS, CODES, MEASURES = 40, 5, 200  # Columns of phenotypes, and of imaging-like measures


class WithGenotypes(MemoryBiobank):
    "Columns in memory, and genotypes on disk."

    def __init__(self, columns: MemoryBiobank, store: GenotypeStore):
        super().__init__(columns.series, columns.fields)
        self.store = store

    def genotypes(self, name: str = "array") -> GenotypeStore:
        return self.store


def make_biobank(folder: Path, participants: int, variants: int) -> tuple[MemoryBiobank, np.ndarray]:
    "Numbers, codes and genotypes that are drawn, and a target."
    numbers, codes = draw(participants, NUMBERS + MEASURES, CODES)
    write_random_bed(folder / "cohort", participants, variants)
    build_genotypes([str(folder / "cohort")], folder / "store", lambda eids: eids - 1)
    store = GenotypeStore(folder / "store")
    return WithGenotypes(memory_biobank(numbers, codes), store), numbers[:, 0].astype(np.float64)


def loaders(
    biobank: MemoryBiobank,
    target: np.ndarray,
    batches: int,
    bs: int,
    workers: int = 0,
    memory_gib: float = 4.0,
) -> MultiModalDataLoaders:
    "`batches` batches to train on and two to validate on, in three modalities."
    fields = np.arange(1, len(biobank.columns) + 1)
    measures = fields[NUMBERS : NUMBERS + MEASURES]
    blocks = (PhenotypeBlock(np.setdiff1d(fields, measures).tolist()), PhenotypeBlock(measures.tolist(), name="idps"),
              SNPBlock(memory_gib=memory_gib), OutcomeBlock(Outcome("regression", "y", "target", "", "y", target)))  # fmt: skip
    rows = np.arange(len(biobank))
    train, valid = rows[: batches * bs], rows[batches * bs : (batches + 2) * bs]
    return MultiModalDataBlock(blocks).dataloaders(
        biobank, train, valid, bs=bs, device="cpu", num_workers=workers
    )


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


def lightning_run(dls: MultiModalDataLoaders, model: nn.Module, loss: nn.Module) -> None:
    "One epoch as a Lightning tutorial writes it."
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, i):
            value = loss(self.model(batch[0]), batch[1])
            self.log("train_loss", value)
            return value

        def validation_step(self, batch, i):
            self.log("valid_loss", loss(self.model(batch[0]), batch[1]), batch_size=len(batch[1]))

        def configure_optimizers(self):
            return torch.optim.Adam(self.model.parameters(), lr=LR)

    quiet = dict(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, **quiet)
    trainer.fit(Module(), dls.train, dls.valid)


def lightning_there() -> bool:
    "Can Lightning be imported?"
    try:
        import lightning  # noqa: F401
    except (ImportError, RuntimeError):  # RuntimeError where torchvision does not fit torch
        return False
    import logging
    import warnings

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    return True


SAME_WORK = ModelSettings(fusion=FusionSettings(modality_dropout=0.0))


def measure(dls: MultiModalDataLoaders, repeats: int, clock: str) -> dict[str, list[float]]:
    "Seconds of a fit of one epoch in each way."
    model, loss = build_model(dls.blocks), loss_for("regression")
    with tempfile.TemporaryDirectory() as folder:
        ours = dict(model=model, lr=LR, wd=0.01, history=Path(folder) / "history.csv")
        watched = lambda: [Speed(), EMA()]  # noqa: E731
        calls = {
            "loop": lambda: bare_loop(dls, model, loss),
            "bare": lambda: run(Learner(dls, model, loss_func=loss, lr=LR, wd=0.01)),
            "ours": lambda: run(fusion_learner(dls, SAME_WORK, patience=None, **ours)),
            "watched": lambda: run(fusion_learner(dls, **ours, cbs=watched())),
        }
        if lightning_there():
            calls["lightning"] = lambda: lightning_run(dls, model, loss)
        return seconds(calls, repeats, clock)


NAMES = {
    "loop": "limit: a bare PyTorch loop",
    "lightning": "peer: Lightning",
    "bare": "peer: a bare fastai Learner",
    "ours": "ours: fusion_learner",
    "watched": "ours, watched and averaged",
}


def report(taken: dict[str, list[float]], batches: int, bs: int) -> None:
    "Print milliseconds per batch, what ours adds to the bare Learner, and whether the targets hold."
    each = {name: [1e3 * second / batches for second in values] for name, values in taken.items()}
    rows = []
    for name, title in NAMES.items():
        if name not in each:
            continue
        added = statistics.median(now - then for now, then in zip(each[name], each["bare"], strict=True))
        share = statistics.median(now / then for now, then in zip(each[name], each["bare"], strict=True)) - 1
        loop = statistics.median(now / then for now, then in zip(each[name], each["loop"], strict=True))
        target = ""
        if name == "ours":
            holds = added <= TARGET_MS if bs < 4096 else share <= TARGET_SHARE
            target = f"{verdict(holds)} (<= {f'{TARGET_MS} ms' if bs < 4096 else f'{TARGET_SHARE:.0%}'})"
        ms = f"{statistics.median(each[name]):.3f}"
        rows.append([title, ms, f"{added:+.3f}", f"{share:+.1%}", f"{loop:.2f}", target])
    print_table(["way", "ms/batch", "ms more than bare Learner", "share", "time / loop", "target"], rows)


def waiting(biobank: MemoryBiobank, target: np.ndarray, batches: int, bs: int) -> None:
    "Print the share of time that training waits for batches, without and with two workers."
    rows = []
    for workers in (0, 2):
        speed = Speed()
        dls = loaders(biobank, target, batches, bs, workers, memory_gib=0.0)
        learn = fusion_learner(dls, patience=None, cbs=speed)
        with learn.no_bar(), learn.no_logging():
            learn.fit(3)
        settled = speed.epochs[1:]  # in the first epoch workers start
        share = statistics.median(epoch["waiting"] for epoch in settled)
        pace = statistics.median(epoch["samples_per_s"] for epoch in settled)
        target_text = f"{verdict(share <= TARGET_WAIT)} (<= {TARGET_WAIT:.0%})" if workers else ""
        rows.append([f"{workers} workers", f"{pace:,.0f}", f"{share:.1%}", target_text])
    print_table(["genotypes on disk", "participants/s", "waiting for batches", "target"], rows)


def main() -> None:
    options = arguments(__doc__)
    sizes = {64: 8, 4096: 1} if options.quick else {64: 200, 4096: 4}
    repeats = options.repeats or (2 if options.quick else 9)
    participants, variants = (12_500, 200) if options.quick else (25_000, 2_000)
    torch.set_num_threads(options.threads or 1)  # such small steps gain nothing from more
    with tempfile.TemporaryDirectory() as folder:
        biobank, target = make_biobank(Path(folder), participants, variants)
        print_versions()
        for bs, batches in sizes.items():
            dls = loaders(biobank, target, batches, bs)
            weights = sum(parameter.numel() for parameter in build_model(dls.blocks).parameters())
            print(f"network of {weights:,} weights: {batches} batches of {bs:,}, 2 to validate on")
            report(measure(dls, repeats, options.clock), batches, bs)
        waiting(biobank, target, 8 if options.quick else 40, 256)


if __name__ == "__main__":
    main()
