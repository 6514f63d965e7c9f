"""A network of times to an event: its risks come true, and its losses are those that fastai shows."""

import numpy as np
import pytest
import torch

from ukbmm.cohort.cohort import define_cohort
from ukbmm.cohort.outcomes import Outcome, RegressionOutcome, read_outcome
from ukbmm.cohort.splits import KFold, split_cohort
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock
from ukbmm.data.loaders import fitted_loaders
from ukbmm.models.heads import LossSettings
from ukbmm.models.multimodal import ModelSettings
from ukbmm.models.ridge import cross_fit
from ukbmm.training.callbacks import FinishLoss
from ukbmm.training.learner import fusion_learner, predict_rows

HORIZONS = (3.0, 9.0)


class Study:
    "Times drawn by hand from body mass index, which is among the inputs."

    def __init__(self, biobank):
        measured = read_outcome(biobank, RegressionOutcome(field=21001))
        split = split_cohort(define_cohort(biobank, measured), biobank, KFold(folds=4, inner=3), 0)
        z = (measured.values - np.nanmean(measured.values)) / np.nanstd(measured.values)
        self.time = np.random.default_rng(5).exponential(8 / np.exp(1.2 * z))
        values = np.stack([np.minimum(self.time, 12), np.where(np.isnan(z), np.nan, self.time <= 12)], axis=1)
        outcome = Outcome("survival", "t", "an event", "years", "p21001_i0", values, horizons=HORIZONS)
        rows = split.development(0)
        self.target = OutcomeBlock(outcome).fit(biobank, rows)
        self.blocks = {"body": PhenotypeBlock([21001, 31]).fit(biobank, rows),
                       "blood": PhenotypeBlock([30690], name="blood").fit(biobank, rows)}  # fmt: skip
        self.rows, self.test = rows, split.test(0)
        self.inner = [split.valid(0, i) for i in range(3)]
        self.train, self.valid = split.train(0, 0), split.valid(0, 0)

    def learner(self, loss: LossSettings | None = None, additive=None, **options):
        dls = fitted_loaders(self.blocks, self.target, self.train, self.valid, 64, additive=additive)
        return fusion_learner(dls, ModelSettings(loss=loss), seed=2, **options)

    def wrong(self, risk: np.ndarray) -> float:
        "By how much the mean risk differs from what came true, at the worst horizon."
        came = (self.time[self.test][:, None] <= np.array(HORIZONS)).mean(0)
        return float(np.abs(risk.mean(0) - came).max())


@pytest.fixture(scope="module")
def study(biobank):
    return Study(biobank)


def trained(learn, epochs: int = 12):
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, 1e-2)
    return learn


def test_risks_of_a_trained_network_come_true(study):
    learn = trained(study.learner())
    risk = predict_rows(learn, study.test)
    assert learn.best_weights.best_epoch > 0 and risk.shape == (len(study.test), 2)
    assert (risk[:, 0] < risk[:, 1]).all() and np.corrcoef(risk[:, 1], study.time[study.test] <= 9)[
        0, 1
    ] > 0.4
    assert study.wrong(risk) < 0.08
    without = study.learner()
    without.remove_cb(FinishLoss)  # the hazard that everybody shares stays that of the start
    assert study.wrong(predict_rows(trained(without), study.test)) > study.wrong(risk) + 0.01


def test_what_the_best_epoch_is_chosen_by_is_what_fastai_shows(study):
    learn = trained(study.learner(), 4)
    shown = [row[1] for row in learn.recorder.values]
    assert learn.best_weights.losses[1:] == pytest.approx(shown, rel=1e-6)
    assert learn.best_weights.losses[0] == pytest.approx(
        learn.recorder.values[0][0], rel=0.2
    )  # both per event


@pytest.mark.parametrize("kind", ["survival", "hazard", "deephit"])
def test_a_network_of_any_loss_starts_at_the_ridge_regression(study, kind, biobank):
    linear = cross_fit(study.blocks, study.target, study.rows, study.inner)
    loss = LossSettings(kind=kind)
    made = ModelSettings(loss=loss).loss_for(study.target)
    learn = study.learner(loss, linear.shown(len(biobank), made), linear=linear, lr=0.0)
    start = predict_rows(learn, study.test)
    ridge = linear.predict(study.blocks, study.test)
    assert start.shape == ridge.shape
    if kind == "survival":
        np.testing.assert_allclose(start[:, 1].argsort()[:20], ridge[:, 1].argsort()[:20])
    assert np.corrcoef(start[:, 1], ridge[:, 1])[0, 1] > 0.98 and study.wrong(ridge) < 0.08
    additive = learn.model.additive(learn.dls.one_batch()[0])
    assert torch.isfinite(additive).all() and additive.shape[-1] == made.n_outputs
