"""Real survival data: free light chains and death of 7,874 people, our learner against Cox regression on the same splits.

The data come with scikit-survival (GPL), which is for this test alone. Cox regression gets the same columns, with the median where
a value is missing and an indicator of it.
"""

import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest

from ukbmm.biobank.dictionary import Field
from ukbmm.cohort.outcomes import Outcome
from ukbmm.core import rng_for
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock
from ukbmm.data.loaders import MultiModalDataBlock
from ukbmm.evaluation.metrics import METRICS
from ukbmm.models.heads import LossSettings
from ukbmm.models.multimodal import ModelSettings
from ukbmm.training.learner import fusion_learner, predict_rows

NUMBERS, FOLDS = ["age", "creatinine", "kappa", "lambda", "flc.grp"], 5
concordance = METRICS["concordance"]


@pytest.fixture(scope="module")
def flchain() -> tuple[pd.DataFrame, np.ndarray]:
    datasets = pytest.importorskip(
        "sksurv.datasets", reason="scikit-survival, which has the data, is not installed"
    )
    table, died = datasets.load_flchain()
    table = table.assign(
        sex=(table["sex"] == "F") * 1, mgus=(table["mgus"] == "yes") * 1
    )  # not `chapter`, the cause of death
    days = np.maximum(died["futime"], 0.5)  # who died on the first day
    return table[[*NUMBERS, "sex", "mgus"]].astype(float), np.stack([days / 365.25, died["death"]], axis=1)


def cox_regression(
    table: pd.DataFrame, target: np.ndarray, train: np.ndarray, test: np.ndarray
) -> np.ndarray:
    "The risk of scikit-survival's Cox regression."
    from sksurv.linear_model import CoxPHSurvivalAnalysis

    x = table.fillna(table.iloc[train].median()).assign(missing=table["creatinine"].isna() * 1.0)
    x = (x - x.iloc[train].mean()) / x.iloc[train].std()
    y = np.array([(event > 0, time) for time, event in target], dtype=[("event", bool), ("time", float)])
    return CoxPHSurvivalAnalysis(ties="efron").fit(x.iloc[train], y[train]).predict(x.iloc[test])


def network(
    biobank, target: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int, loss: str
) -> np.ndarray:
    "The network's risk at 5 and 10 years, trained on four fifths of the training rows and stopped on the rest."
    never = np.full(len(target), np.datetime64("NaT"))
    outcome = Outcome(
        "survival", "death", "death", "years", "p1", target, never, horizons=(5.0, 10.0), ends=never
    )
    order = rng_for(seed, "inner").permutation(train)
    valid, fit = np.split(order, [len(order) // 5])
    blocks = (PhenotypeBlock(list(range(1, 8))), OutcomeBlock(outcome))
    dls = MultiModalDataBlock(blocks).dataloaders(biobank, fit, valid, bs=512, seed=seed, device="cpu")
    settings = ModelSettings(loss=LossSettings(kind=loss))
    learn = fusion_learner(dls, settings, lr=5e-3, patience=15, seed=seed)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(20)
    return predict_rows(learn, test)


@pytest.fixture(scope="module")
def compared(flchain, repository) -> pd.DataFrame:
    "Concordance of each model in each fold, and the network's calibration at ten years."
    sys.path.insert(0, str(repository / "benchmarks"))
    from common import MemoryBiobank

    table, target = flchain
    kinds = ["continuous"] * len(NUMBERS) + ["integer", "integer"]
    fields = {
        f"p{i}": Field(i, name, kind) for i, (name, kind) in enumerate(zip(table, kinds, strict=True), 1)
    }
    biobank = MemoryBiobank(
        {f"p{i}": pl.Series(table[name].to_numpy(), nan_to_null=True) for i, name in enumerate(table, 1)},
        fields,
    )
    fold, rows = rng_for(0, "flchain").permutation(len(target)) % FOLDS, np.arange(len(target))
    found = []
    for k in range(FOLDS):
        train, test = rows[fold != k], rows[fold == k]
        scores = {"cox": concordance(target[test], cox_regression(table, target, train, test))}
        for name, loss in (("network", "survival"), ("hazard", "hazard")):
            risk = network(biobank, target, train, test, k, loss)
            scores |= {name: concordance(target[test], risk), f"{name} risk": risk[:, 1].mean()}
        found.append(scores)
    return pd.DataFrame(found)


def test_the_network_is_no_worse_than_cox_regression(compared):
    print(compared.round(4).to_string(), compared.mean().round(4).to_dict())
    assert compared["network"].mean() >= compared["cox"].mean() - 0.001
    assert compared["hazard"].mean() >= compared["cox"].mean() - 0.003


def test_risks_at_ten_years_are_those_of_kaplan_and_meier(compared, flchain):
    _, target = flchain
    alive = 1.0
    for time in np.unique(target[(target[:, 1] > 0) & (target[:, 0] <= 10), 0]):
        alive *= 1 - ((target[:, 0] == time) & (target[:, 1] > 0)).sum() / (target[:, 0] >= time).sum()
    for name in ("network risk", "hazard risk"):
        assert compared[name].mean() == pytest.approx(1 - alive, abs=0.02)
