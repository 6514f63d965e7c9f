"""Everything that `train:` of a spec names, at once: killed and taken up, in two processes, and in a whole run."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from processes import in_a_process, together
from torch import nn

from ukbmm.cohort.outcomes import RegressionOutcome, read_outcome
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock, SNPBlock
from ukbmm.data.loaders import MultiModalDataBlock
from ukbmm.models.fusion import FusionSettings
from ukbmm.models.multimodal import ModelSettings
from ukbmm.training.checkpoint import Checkpoint
from ukbmm.training.distributed import Distributed
from ukbmm.training.learner import predict_rows
from ukbmm.training.settings import TrainSettings, learner_for

pytestmark = pytest.mark.usefixtures("one_thread")

EVERYTHING = {"epochs": 4, "lr": 8e-3, "average": "ema", "ema_decay": 0.9, "freeze": {"blood": 2}, "lrs": {"snps": 2e-3},
              "modulation": 0.4, "recompute": ["snps"], "accumulate": 2, "clip": 1.0}  # fmt: skip


@pytest.fixture(scope="module")
def loaders(biobank):
    "Three modalities; what reads with polars is done before any fork."
    outcome = read_outcome(biobank, RegressionOutcome(field=30750))
    rows = np.random.default_rng(0).permutation(np.flatnonzero(outcome.known))
    recipe = MultiModalDataBlock((PhenotypeBlock([31, 21003, 21001]), PhenotypeBlock([30690, 30760], name="blood"),
                                  SNPBlock(every=2), OutcomeBlock(outcome)))  # fmt: skip
    dls = recipe.dataloaders(biobank, rows[:225], rows[225:300], bs=32, seed=3, device="cpu")
    dls.one_batch(), dls.valid.one_batch()
    return dls


def small(dropout: float) -> ModelSettings:
    return ModelSettings(
        fusion=FusionSettings(kind="gated", dim=8, dropout=dropout), hidden=8, dropout=dropout
    )


def train(dls, folder: Path, processes=None, cbs=(), dropout=0.3, **settings):
    "Train with settings, alone or with others; returns the learner."
    settings = TrainSettings(**settings)
    cbs = [
        *cbs,
        *([Distributed(processes)] if processes else []),
        Checkpoint(folder / "checkpoints", every=3),
    ]
    dls = type(dls)(dls.train.new(), dls.valid.new(), device="cpu")
    learn = learner_for(settings, dls, small(dropout), seed=5, folder=folder, cbs=cbs)
    for module in learn.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(settings.epochs)
    return learn


def outcome_of(learn) -> dict:
    "What a training ends with."
    return {
        "weights": learn.model.state_dict(),
        "predicted": torch.from_numpy(predict_rows(learn, learn.dls.valid.rows)),
        "losses": torch.tensor(learn.best_weights.losses, dtype=torch.float64),
        "smooth": torch.stack(learn.recorder.losses),
    }


def same(one: dict, other: dict) -> bool:
    weights = [torch.equal(value, other["weights"][name]) for name, value in one["weights"].items()]
    return all(weights) and all(
        torch.equal(one[name], other[name]) for name in ("predicted", "losses", "smooth")
    )


class Die(Callback):
    "End this process by SIGKILL after some batches of training."

    order = 200

    def __init__(self, at: int):
        self.at = at

    def after_batch(self):
        if self.learn.training and self.learn.train_iter == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "more", [{}, {"average": "swa", "swa_start": 0.25, "amp": "bf16"}], ids=["ema", "swa-bf16"]
)
def test_a_training_with_everything_on_is_killed_and_ends_with_the_same_bits(loaders, tmp_path, more):
    def work(folder, *cbs):
        learn = train(loaders, folder, cbs=cbs, **{**EVERYTHING, **more})
        shown = {"coefficients": [list(epoch.values()) for epoch in learn.gradient_modulation.epochs]}
        torch.save({**outcome_of(learn), **shown}, folder / "outcome.pt")

    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    assert in_a_process(lambda: work(tmp_path / "whole")) == 0
    for at in (5, 16, 24, 31):  # frozen, averaging, thawed, in the last epoch; 8 batches an epoch
        assert in_a_process(lambda at=at: work(tmp_path / "killed", Die(at))) == -signal.SIGKILL
    assert in_a_process(lambda: work(tmp_path / "killed")) == 0
    whole, killed = (torch.load(tmp_path / name / "outcome.pt") for name in ("whole", "killed"))
    assert same(whole, killed) and whole["coefficients"] == killed["coefficients"]
    assert len(whole["coefficients"]) == 4 and whole["losses"][-1] != whole["losses"][0]


def both(work, folder: Path, sharded=False) -> list[dict]:
    "Train in two processes; returns what each ended with."

    def one(processes):
        torch.save(work(processes), folder / f"{processes.rank}.pt")

    folder.mkdir(exist_ok=True)
    assert together(one, sharded=sharded) == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("sharded", [False, True], ids=["copies", "shared"])
def test_two_processes_with_everything_on_come_to_what_one_comes_to(loaders, tmp_path, sharded):
    how = {
        name: value
        for name, value in EVERYTHING.items()
        if not sharded or name not in ("average", "modulation")
    }
    alone = outcome_of(train(loaders, tmp_path / "alone", dropout=0.0, **how))
    first, second = both(
        lambda processes: outcome_of(train(loaders, tmp_path / "two", processes, dropout=0.0, **how)),
        tmp_path / "two",
        sharded,
    )
    for name in ("predicted", "losses", "smooth"):
        assert torch.equal(first[name], second[name])
        np.testing.assert_allclose(first[name], alone[name], rtol=2e-3, atol=2e-3, err_msg=name)


@pytest.mark.parametrize("sharded", [False, True], ids=["copies", "shared"])
def test_watching_changes_nothing_in_two_processes_and_a_nan_ends_both(loaders, tmp_path, sharded, capfd):
    alone = outcome_of(train(loaders, tmp_path / "alone", dropout=0.0, epochs=2))
    first, _ = both(
        lambda processes: outcome_of(train(loaders, tmp_path / "two", processes, dropout=0.0, epochs=2)),
        tmp_path / "two",
        sharded,
    )
    np.testing.assert_allclose(first["predicted"], alone["predicted"], rtol=2e-4, atol=2e-4)

    class Spoil(Callback):
        order = 7

        def before_step(self):  # in one process alone, and of a part that it holds
            gradients = [w.grad for w in self.learn.model.encoders["snps"].parameters() if w.grad is not None]
            own = [g.to_local() if hasattr(g, "to_local") else g for g in gradients]
            if self.learn.train_iter == 9:
                next(g for g in own if g.numel()).fill_(torch.nan)

    assert together(
        lambda processes: train(loaders, tmp_path / "nan", processes, cbs=[Spoil()], epochs=2),
        sharded=sharded,
    ) == [2, 2]
    assert "a gradient is not finite" in capfd.readouterr().err
    kept = json.loads((tmp_path / "nan" / "stopped_batch.json").read_text())
    assert (kept["epoch"], kept["batch"]) == (2, 2) and set(kept["rows"]) < set(loaders.train.rows.tolist())


@pytest.mark.parametrize("how", [{"average": "swa"}, {"modulation": 0.1}, {"batch_size": "auto"}])
def test_what_a_shared_network_cannot_do_is_refused(loaders, tmp_path, how, capfd):
    first, second = together(lambda processes: train(loaders, tmp_path, processes, **how), sharded=True)
    assert first == 2 and second != 0  # the second may lose the first, which has left with its error
    assert f"train.{next(iter(how))}" in capfd.readouterr().err


def test_two_processes_find_one_batch_size(loaders, tmp_path):
    def work(processes):
        forward = nn.Linear.forward

        def short(self, x):
            if len(x) > (50 if processes.rank else 30):  # participants of its own half of a batch
                raise torch.OutOfMemoryError("out of memory")
            return forward(self, x)

        nn.Linear.forward = short
        learn = train(loaders, tmp_path, processes, epochs=1, batch_size="auto")
        torch.save(learn.dls.train.bs, tmp_path / f"{processes.rank}.pt")

    assert together(work) == [0, 0]
    sizes = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert sizes[0] == sizes[1] and 45 <= sizes[0] <= 60
