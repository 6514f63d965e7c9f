"""A study of each kind of outcome goes the whole way, from a spec to a report that names what it predicts."""

import html
import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from ukbmm.biobank.synthetic import EXAMPLE_COLUMNS, synthetic_biobank
from ukbmm.core import UkbmmError
from ukbmm.data.blocks import OutcomeBlock
from ukbmm.evaluation.metrics import metrics_for, numbers_of
from ukbmm.models.ridge import cross_fit
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


SEVERAL = f"""{{kind: several, outcomes: [
  {{kind: regression, field: 30750, name: HbA1c}},
  {{kind: binary, field: 20116, instance: 0, cases: [2], name: current smoking}},
  {OUTCOMES["survival"].replace("field: 131286", "field: 131286, name: hypertension")}]}}"""


@pytest.fixture(scope="module")
def together(followed, tmp_path_factory):
    "A pipeline of several outcomes and its run."
    pipeline = study(SPEC.replace("{OUTCOME}", SEVERAL), followed, tmp_path_factory.mktemp("several"))
    return pipeline, pipeline.run()


def test_several_outcomes_go_the_whole_way_in_one_study(together):
    pipeline, run = together
    table, metrics = run.predictions(), run.metrics()
    assert table.height == len(pipeline.cohort) == metrics["n"]["participants"]
    kinds = ("regression", "binary", "survival")
    assert metrics["task"] == "several" and tuple(one["task"] for one in metrics["outcomes"]) == kinds
    for number, (found, outcome) in enumerate(
        zip(metrics["outcomes"], pipeline.outcome.parts, strict=True), 1
    ):
        target, main = numbers_of(table[f"target_{number}"]), metrics_for(outcome.kind)[0]
        np.testing.assert_array_equal(target, outcome.values[table["row"]])
        known = ~np.isnan(target.reshape(len(target), -1)[:, 0])
        assert 5 <= (~known).sum() and found["n"]["participants"] == known.sum()
        trees = {"lightgbm"} if outcome.kind != "survival" else set()
        assert set(found["models"]) == {"fusion", "ridge", "covariates"} | trees
        for name in found["models"]:
            prediction = numbers_of(table[f"prediction_{name}_{number}"])
            assert np.isfinite(prediction).all()  # of everybody, whether the outcome is known or not
            fold = table["fold"].to_numpy()[known]
            by_hand = main(target[known], prediction[known], fold=fold, horizons=outcome.horizons)
            assert found["models"][name][main.name]["value"] == pytest.approx(by_hand)
    assert metrics["outcomes"][0]["models"]["fusion"]["pearson_r"]["value"] > 0.5
    assert table["prediction_fusion_1"].mean() == pytest.approx(
        table["target_1"].fill_nan(None).mean(), rel=0.02
    )
    rate = table["target_2"].fill_nan(None).mean()
    assert table["prediction_fusion_2"].mean() == pytest.approx(rate, rel=0.25)


def test_a_report_of_several_outcomes_says_each_by_itself(together):
    pipeline, run = together
    page = html.unescape((run.path / "report.html").read_text())
    text = re.sub(r"<[^>]+>", " ", page)
    for part, main in zip(
        pipeline.outcome.parts, ("Pearson r", "area under the ROC curve", "concordance"), strict=True
    ):
        assert page.count(f"<h2>{part.title}</h2>") == 1 and main in text
        known = int(part.known[pipeline.cohort.rows].sum())
        assert f"{known:,} participants for whom it is known" in text
    assert "No boosted trees were fitted to some of the outcomes" in text
    assert "One network learns 3 outcomes" in text and "nan" not in text.lower().split("training")[0]


@pytest.mark.parametrize("unknown", [0, 3, 5])
def test_how_many_lack_one_of_several_outcomes_is_not_said_where_they_are_few(unknown, together):
    pipeline = together[0]
    values = np.ones(len(pipeline.biobank))
    values[pipeline.cohort.rows[:unknown]] = np.nan
    said = pipeline._tested(replace(pipeline.outcome.parts[0], values=values))
    known = f"{len(pipeline.cohort) - unknown:,} participants for whom it is known"
    assert said == (known if unknown == 5 else "everybody but a few at most")


def test_baselines_of_several_outcomes_are_fitted_to_each_alone(together):
    pipeline, run = together
    fold = 0
    rows, test = pipeline.split.development(fold), pipeline.split.test(fold)
    table = run.predictions().filter(pl.col("fold") == fold).sort("row")
    blocks = {name: block.copy().fit(pipeline.biobank, rows) for name, block in pipeline.blocks.items()}
    for number, outcome in enumerate(pipeline.outcome.parts, 1):
        known = rows[outcome.known[rows]]
        inner = [np.intersect1d(pipeline.split.valid(fold, i), known) for i in range(2)]
        target = OutcomeBlock(outcome).fit(pipeline.biobank, known)
        own = target.decode(cross_fit(blocks, target, known, inner).predict(blocks, np.sort(test)))
        ridge = numbers_of(table[f"prediction_ridge_{number}"])
        np.testing.assert_allclose(ridge, own if ridge.ndim == 2 else own[:, 0], rtol=1e-5)


def test_several_outcomes_of_one_participant_are_dealt_together_where_a_control_shuffles_them(
    followed, tmp_path
):
    text = SPEC.replace("{OUTCOME}", SEVERAL)
    plain, shuffled = (
        study(text, followed, tmp_path, *more).prepare() for more in ((), ("control=permuted_labels",))
    )
    rows = plain.cohort.rows
    both = [
        {tuple(line) for line in np.nan_to_num(one.outcome.values[rows], nan=-9)} for one in (plain, shuffled)
    ]
    assert both[0] == both[1] and not np.array_equal(
        plain.outcome.values, shuffled.outcome.values, equal_nan=True
    )
    side_by_side = np.concatenate([part.matrix for part in shuffled.outcome.parts], axis=1)
    np.testing.assert_array_equal(side_by_side[rows], shuffled.outcome.values[rows])


def test_a_horizon_beyond_follow_up_is_refused_before_anything_is_trained(followed, tmp_path):
    text = SPEC.replace("{OUTCOME}", OUTCOMES["survival"].replace("[5, 10]", "[5, 40]"))
    with pytest.raises(UkbmmError, match="at most .* years, the longest follow-up"):
        study(text, followed, tmp_path).run()
