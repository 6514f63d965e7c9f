"""A study of each kind of outcome goes the whole way, from a spec to a report that names what it predicts."""

import html
import re

import numpy as np
import polars as pl
import pytest

from ukbmm.biobank.synthetic import EXAMPLE_COLUMNS, synthetic_biobank
from ukbmm.core import UkbmmError
from ukbmm.evaluation.metrics import metrics_for, numbers_of
from ukbmm.workflow.pipeline import TrainingPipeline
from ukbmm.workflow.spec import Spec

SPEC = """\
version: 1
name: kinds
modalities:
  lifestyle: {kind: phenotype, fields: [31, 21003, 21001]}
  blood: {kind: phenotype, fields: [30690, 30870]}
  snps: {kind: snps}
outcome: {OUTCOME}
validation: {kind: kfold, folds: 2, inner: 2}
train: {epochs: 2, networks: 1, batch_size: 64}
evaluation: {draws: 100}
"""
FOLLOWED = "end_of_follow_up: 2022-10-31, horizons: [5, 10]"
OUTCOMES = {
    "multiclass": "{kind: multiclass, field: 20116, instance: 0, classes: [0, 1, 2]}",
    "ordinal": "{kind: ordinal, field: 1558, instance: 0, ordered: [6, 5, 4, 3, 2, 1]}",
    "multilabel": "{kind: multilabel, labels: [{kind: binary, field: 30750, above: 36}, {kind: binary, field: 20116, cases: [2]}]}",
    "survival": f"{{kind: survival, field: 131286, {FOLLOWED}}}",
    "competing_risks": f"{{kind: competing_risks, field: 131286, competing: [40000], {FOLLOWED}}}",
}
WIDTHS = {"multiclass": 3, "ordinal": 6, "multilabel": 2, "survival": 2, "competing_risks": 4}
TREES = {"multiclass", "ordinal"}


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    "Synthetic people with dates of hypertension and of death."
    columns = [*EXAMPLE_COLUMNS, "p1558_i0", "p131286", "p40000_i0", "p191"]
    return synthetic_biobank(tmp_path_factory.mktemp("b") / "s.biobank", 1200, 40, seed=3, columns=columns)


def study(text: str, biobank, folder, *assignments: str) -> TrainingPipeline:
    return TrainingPipeline(Spec.parse(text, assignments), biobank, out=folder)


@pytest.mark.parametrize("kind", OUTCOMES)
def test_a_study_goes_the_whole_way(kind, followed, tmp_path):
    pipeline = study(SPEC.replace("{OUTCOME}", OUTCOMES[kind]), followed, tmp_path)
    run = pipeline.run()
    table, metrics = run.predictions(), run.metrics()
    models = {"fusion", "ridge", "covariates"} | ({"lightgbm"} if kind in TREES else set())
    assert set(metrics["models"]) == models and metrics["task"] == kind
    for name in models:
        prediction = numbers_of(table[f"prediction_{name}"])
        assert prediction.shape == (len(pipeline.cohort), WIDTHS[kind]) and np.isfinite(prediction).all()
        assert ((prediction >= 0) & (prediction <= 1)).all()
        if kind in TREES:
            np.testing.assert_allclose(prediction.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(numbers_of(table["target"]), pipeline.outcome.values[table["row"]])
    main = metrics_for(kind)[0]
    target, fusion = numbers_of(table["target"]), numbers_of(table["prediction_fusion"])
    by_hand = main(target, fusion, fold=table["fold"].to_numpy(), horizons=pipeline.outcome.horizons)
    assert metrics["models"]["fusion"][main.name]["value"] == pytest.approx(by_hand)
    text = html.unescape(re.sub(r"<[^>]+>", " ", (run.path / "report.html").read_text()))
    assert main.title.split(" of ")[0] in text and pipeline.outcome.title in text
    assert ("No boosted trees were fitted" in text) == (kind not in TREES)


def test_what_dates_say_before_the_visit_leaves_the_cohort_and_times_count_from_it(followed, tmp_path):
    pipeline = study(SPEC.replace("{OUTCOME}", OUTCOMES["survival"]), followed, tmp_path).prepare()
    columns = followed.read(["p53_i0", "p131286", "p40000_i0", "p191"]).to_dict(as_series=False)
    for row in pipeline.cohort.rows[:200]:
        visit, event, death, lost = (columns[name][row] for name in columns)
        last = min(
            [day for day in (event, death, lost) if day] + [pl.Series(["2022-10-31"]).str.to_date()[0]]
        )
        time, happened = pipeline.outcome.values[row]
        assert time == pytest.approx((last - visit).days / 365.25) and time > 0
        assert happened == (event is not None and event == last)


@pytest.mark.parametrize("loss", ["huber", "gaussian", "quantiles"])
def test_a_quantity_may_be_learned_with_another_loss(loss, followed, tmp_path):
    text = (
        SPEC.replace("{OUTCOME}", "{kind: regression, field: 30750}") + f"loss: {loss}\nbaselines: [ridge]\n"
    )
    table, _ = study(text, followed, tmp_path).prepare().fit_fold(0)
    r = np.corrcoef(table["prediction_fusion"], table["prediction_ridge"])[0, 1]
    assert table["prediction_fusion"].dtype == pl.Float64 and r > 0.9  # it starts at the ridge regression


@pytest.mark.parametrize("loss", ["hazard", "deephit"])
def test_times_may_be_learned_in_intervals(loss, followed, tmp_path):
    text = (
        SPEC.replace("{OUTCOME}", OUTCOMES["survival"])
        + f"loss: {{kind: {loss}, intervals: 5}}\nbaselines: [ridge]\n"
    )
    table, _ = study(text, followed, tmp_path).prepare().fit_fold(0)
    fusion, ridge = (numbers_of(table[f"prediction_{name}"]) for name in ("fusion", "ridge"))
    assert (fusion[:, 0] < fusion[:, 1]).all() and np.corrcoef(fusion[:, 1], ridge[:, 1])[0, 1] > 0.9
    assert fusion.mean() == pytest.approx(ridge.mean(), abs=0.05)


def test_a_horizon_beyond_follow_up_is_refused_before_anything_is_trained(followed, tmp_path):
    text = SPEC.replace("{OUTCOME}", OUTCOMES["survival"].replace("[5, 10]", "[5, 40]"))
    with pytest.raises(UkbmmError, match="at most .* years, the longest follow-up"):
        study(text, followed, tmp_path).run()
