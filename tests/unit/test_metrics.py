"""Metrics and calibration against scikit-learn and scipy, degenerate cases included."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.stats
import sklearn.metrics as reference
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LinearRegression, LogisticRegression

from ukbmm.evaluation.calibration import calibration_groups, calibration_line, roc_points
from ukbmm.evaluation.metrics import METRICS, EvaluationError, check_predictions, metrics_for, of_outcome
from ukbmm.evaluation.survival import cumulative_incidence
from ukbmm.evaluation.uncertainty import evaluate

BINARY = {
    "auc": reference.roc_auc_score,
    "average_precision": reference.average_precision_score,
    "brier": reference.brier_score_loss,
    "log_loss": reference.log_loss,
}
NUMBERS = {
    "pearson_r": lambda y, p, sample_weight=None: (
        np.cov(y, p, aweights=sample_weight)[0, 1]
        / np.sqrt(np.cov(y, aweights=sample_weight) * np.cov(p, aweights=sample_weight))
    ),
    "r2": reference.r2_score,
    "mae": reference.mean_absolute_error,
    "rmse": reference.root_mean_squared_error,
}


def binary_case(seed: int):
    "A random case: rare or common, tied or not."
    rng = np.random.default_rng(seed)
    n = int(rng.integers(20, 400))
    case = (rng.random(n) < rng.choice([0.1, 0.5, 0.9])).astype(float)
    case[:2] = 0, 1
    chance = np.clip(0.3 * case + 0.7 * rng.random(n), 0, 1)
    return case, np.round(chance, int(rng.choice([1, 2, 9]))), rng.integers(0, 4, n).astype(float)


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("name", BINARY)
def test_a_binary_metric_equals_scikit_learns_with_ties_and_weights(name, seed):
    case, chance, weight = binary_case(seed)
    weight[:2] = 1
    assert METRICS[name](case, chance) == pytest.approx(BINARY[name](case, chance), rel=1e-9)
    weighted = METRICS[name](case, chance, np.stack([weight, np.ones_like(weight)]))
    expected = [BINARY[name](case, chance, sample_weight=w) for w in (weight, None)]
    assert weighted == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("level", [0.0, 1e6])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_metric_of_a_quantity_equals_scikit_learns_far_from_zero_too(name, level):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        y = level + rng.normal(size=80)
        p, weight = level + 0.5 * (y - level) + rng.normal(size=80), rng.integers(1, 4, 80).astype(float)
        assert METRICS[name](y, p) == pytest.approx(NUMBERS[name](y, p), rel=1e-6)
        expected = NUMBERS[name](y, p, sample_weight=weight)
        assert METRICS[name](y, p, weight[None])[0] == pytest.approx(expected, rel=1e-6)


def test_pearson_equals_scipys():
    rng = np.random.default_rng(0)
    y, p = rng.normal(size=50), rng.normal(size=50)
    assert METRICS["pearson_r"](y, p) == pytest.approx(scipy.stats.pearsonr(y, p).statistic)


def test_a_prediction_that_says_the_same_of_everybody():
    y, case, flat = np.arange(6.0), np.array([0.0, 0, 0, 1, 1, 1]), np.full(6, 0.3)
    assert METRICS["pearson_r"](y, flat) == 0.0
    assert METRICS["r2"](y, np.full(6, 2.5)) == pytest.approx(0)
    assert METRICS["auc"](case, flat) == 0.5
    assert METRICS["average_precision"](case, flat) == pytest.approx(0.5)  # the share of cases
    assert METRICS["brier"](case, flat) == pytest.approx(0.29)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_class_has_no_auc_and_no_warning(value, recwarn):
    case, chance = np.full(5, value), np.linspace(0.1, 0.9, 5)
    assert np.isnan(METRICS["auc"](case, chance))
    assert METRICS["average_precision"](case, chance) == pytest.approx(1.0) or value == 0
    assert np.isnan(METRICS["average_precision"](np.zeros(5), chance))
    assert METRICS["log_loss"](case, chance) == pytest.approx(reference.log_loss(case, chance, labels=[0, 1]))
    assert not recwarn.list


def test_a_draw_that_holds_one_class_only_is_nan_and_the_others_are_not():
    case, chance = np.array([1.0, 0, 1, 0]), np.array([0.9, 0.1, 0.4, 0.6])
    weights = np.array([[1.0, 0, 1, 0], [1, 1, 1, 1]])
    found = METRICS["auc"](case, chance, weights)
    assert np.isnan(found[0]) and found[1] == pytest.approx(reference.roc_auc_score(case, chance))


def test_a_sure_mistake_costs_what_scikit_learn_says_and_stays_finite():
    case, chance = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert METRICS["log_loss"](case, chance) == pytest.approx(-np.log(1e-15), rel=0.05)


def test_every_kind_is_compared_by_its_first_metric():
    assert [m.name for m in metrics_for("regression")] == ["pearson_r", "r2", "mae", "rmse"]
    assert [m.name for m in metrics_for("binary")] == ["auc", "average_precision", "brier", "log_loss"]
    assert [m.name for m in metrics_for("survival")] == [
        "concordance",
        "auc_horizon",
        "brier_horizon",
        "ipa_horizon",
    ]
    worse = {m.name for m in METRICS.entries.values() if not m.greater_is_better}
    assert worse == {"mae", "rmse"} | {
        name for name in METRICS.names() if "log_loss" in name or "brier" in name
    }


def table(**changes) -> pl.DataFrame:
    n = 60
    rng = np.random.default_rng(0)
    columns = {"row": np.arange(n), "family": np.arange(n) // 2, "fold": np.arange(n) % 3,
               "target": (rng.random(n) < 0.5).astype(float), "prediction_net": rng.random(n)}  # fmt: skip
    return pl.DataFrame({**columns, **changes})


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (table().drop("fold"), "no fold"),
        (table().drop("prediction_net"), "no prediction column"),
        (table(prediction_net=np.full(60, np.nan)), "prediction_net.*missing or infinite"),
        (table(target=pl.Series([None] + [1.0] * 59)), "target.*missing or infinite"),
        (table(target=np.arange(60.0)), "target: expected 0 and 1"),
        (table(prediction_net=np.linspace(-1, 2, 60)), "prediction_net: expected probabilities"),
    ],
)
def test_a_table_that_cannot_be_scored_is_refused(broken, message):
    with pytest.raises(EvaluationError, match=message):
        check_predictions(broken, "binary")


def test_a_pandas_table_is_scored_alike():
    frame = pd.DataFrame(table().to_dict(as_series=False))
    assert evaluate(frame, "binary", draws=100) == evaluate(table(), "binary", draws=100)


def test_a_fold_of_one_class_leaves_metrics_that_json_can_hold():
    found = evaluate(table(target=(np.arange(60) % 3 == 0).astype(float)), "binary", draws=100)
    json.loads(json.dumps(found), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_roc_points_equal_scikit_learns_curve():
    for seed in range(10):
        case, chance, _ = binary_case(seed)
        grid, sensitivity = roc_points(case, chance, points=51)
        alarms, hits, _ = reference.roc_curve(case, chance, drop_intermediate=False)
        inside = ~np.isin(grid, alarms)  # at a jump the curve has two values
        np.testing.assert_allclose(sensitivity[inside], np.interp(grid, alarms, hits)[inside], atol=1e-12)
        assert (sensitivity[0] >= 0) and sensitivity[-1] == 1
    with pytest.raises(EvaluationError, match="cases and controls"):
        roc_points(np.ones(4), np.arange(4.0))


def test_calibration_groups_equal_scikit_learns_curve():
    rng = np.random.default_rng(0)
    chance = rng.uniform(0.15, 0.85, 1000)  # no group with one to four cases or controls
    case = (rng.random(1000) < chance).astype(float)
    groups = calibration_groups(case, chance)
    observed, predicted = calibration_curve(case, chance, n_bins=10, strategy="quantile")
    assert groups["n"].to_list() == [100] * 10
    np.testing.assert_allclose(groups["observed"], observed, atol=0.02)  # a group's edge may differ by one
    np.testing.assert_allclose(groups["predicted"], predicted, atol=0.005)
    inside = (groups["low"] <= groups["predicted"]) & (groups["predicted"] <= groups["high"])
    assert inside.sum() >= 8


def test_no_calibration_group_is_smaller_than_may_be_shown():
    for n in (10, 11, 23, 49, 52):
        assert calibration_groups(np.arange(float(n)), np.arange(float(n)))["n"].min() >= 5
    with pytest.raises(EvaluationError, match="at least 10 people"):
        calibration_groups(np.arange(9.0), np.arange(9.0))


@pytest.mark.parametrize("share", [0.004, 0.02, 0.1, 0.5, 0.98])
def test_no_calibration_group_tells_of_one_to_four_cases_or_controls(share):
    rng = np.random.default_rng(0)
    for n in (20, 150, 600):
        case = (rng.random(n) < share).astype(float)
        groups = calibration_groups(case, rng.random(n))
        cases = (groups["observed"] * groups["n"]).round().to_numpy()
        for count in (cases, groups["n"].to_numpy() - cases):
            assert not ((count > 0) & (count < 5)).any()
        if 5 <= case.sum() <= n - 5:
            assert groups["n"].sum() == n  # nobody is left out


def test_the_calibration_line_equals_scikit_learns():
    rng = np.random.default_rng(0)
    p = rng.normal(10, 2, 300)
    y = 3 + 0.6 * p + rng.normal(size=300)
    line = LinearRegression().fit(p[:, None], y)
    assert calibration_line(y, p, "regression") == pytest.approx((line.coef_[0], line.intercept_))
    chance = rng.random(500).clip(0.01, 0.99)
    case = (rng.random(500) < chance**2).astype(float)
    odds = np.log(chance / (1 - chance))[:, None]
    logistic = LogisticRegression(C=1e10, tol=1e-10).fit(odds, case)
    expected = (logistic.coef_[0, 0], logistic.intercept_[0])
    assert calibration_line(case, chance, "binary") == pytest.approx(expected, abs=1e-4)
    assert calibration_line(y, np.full(300, 2.0), "regression") == pytest.approx((0, y.mean()))


def test_people_are_compared_within_folds_and_a_fold_s_level_does_not_count():
    rng = np.random.default_rng(3)
    fold, y, p = rng.integers(0, 4, 400), rng.normal(size=400), rng.normal(size=400)
    p += 0.4 * y
    case, chance = (y > 0.5).astype(float), 1 / (1 + np.exp(-p))
    r, auc = METRICS["pearson_r"], METRICS["auc"]
    means = [[values[fold == one].mean() for one in range(4)] for values in (y, p)]
    expected = np.corrcoef(y - np.take(means[0], fold), p - np.take(means[1], fold))[0, 1]
    assert r(y, p, fold=fold) == pytest.approx(expected)
    assert r(y, p + 9 * fold, fold=fold) == pytest.approx(expected) != r(y, p + 9 * fold)
    pairs = [(case[fold == one].sum() * (1 - case[fold == one]).sum()) for one in range(4)]
    areas = [reference.roc_auc_score(case[fold == one], chance[fold == one]) for one in range(4)]
    assert auc(case, chance, fold=fold) == pytest.approx(np.average(areas, weights=pairs))
    copies = rng.integers(0, 3, 400)
    again = np.repeat(np.arange(400), copies)  # a weight is a number of copies
    for metric, target, predicted in ((r, y, p), (auc, case, chance)):
        weighted = metric(target, predicted, copies[None], fold)[0]
        assert weighted == pytest.approx(metric(target[again], predicted[again], fold=fold[again]))


def test_a_model_that_knows_nothing_looks_worse_than_nothing_only_across_folds():
    rng = np.random.default_rng(1)
    y, fold = rng.normal(size=500), np.arange(500) % 10
    known = np.array([y[fold != one].mean() for one in range(10)])[
        fold
    ]  # the mean of the people it was fitted on
    guess = known + 1e-3 * rng.normal(size=500)
    assert METRICS["pearson_r"](y, guess) < -0.1
    assert abs(METRICS["pearson_r"](y, guess, fold=fold)) < 0.1


def survival_case(seed: int):
    "Times with many ties, events, risks with many ties."
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 90))
    target = np.stack(
        [rng.integers(1, int(rng.choice([4, 300])), n) / 2, rng.random(n) < rng.choice([0.2, 0.8])], axis=1
    )
    return target, np.round(rng.normal(size=n), int(rng.choice([0, 3]))), rng.integers(0, 3, n).astype(float)


def pair_by_pair(target, risk, weight, fold) -> float:
    "Harrell's concordance by its definition."
    won = pairs = 0.0
    for i, (time, event) in enumerate(target):
        for j, (other, event_too) in enumerate(target):
            first = event and (other > time or (other == time and not event_too))
            if i != j and first and fold[i] == fold[j]:
                pairs += weight[i] * weight[j]
                won += weight[i] * weight[j] * ((risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j]))
    return won / pairs if pairs else float("nan")


@pytest.mark.parametrize("seed", range(12))
def test_concordance_equals_its_definition_with_ties_weights_and_folds(seed):
    target, risk, weight = survival_case(seed)
    fold = np.random.default_rng(seed).integers(0, 2, len(risk))
    found = METRICS["concordance"](target, risk, np.stack([weight, np.ones_like(weight)]), fold)
    expected = [pair_by_pair(target, risk, w, fold) for w in (weight, np.ones_like(weight))]
    assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_concordance_equals_lifelines():
    reference_file = Path(__file__).parent / "survival_reference.json"
    for case in json.loads(reference_file.read_text())["cox"]:
        target = np.array([case["time"], case["event"]]).T
        assert METRICS["concordance"](target, np.round(case["risk"])) == pytest.approx(
            case["concordance"], abs=1e-9
        )


def test_concordance_of_many_people_equals_lifelines_where_it_is_installed():
    utils = pytest.importorskip(
        "lifelines.utils", reason="lifelines is not installed; its numbers are in survival_reference.json"
    )
    rng = np.random.default_rng(0)
    target = np.stack([rng.integers(1, 400, 4000), rng.random(4000) < 0.3], axis=1)
    risk = np.round(rng.normal(size=4000) - target[:, 0] / 200, 1)
    theirs = utils.concordance_index(target[:, 0], -risk, target[:, 1])
    assert METRICS["concordance"](target, risk) == pytest.approx(theirs, rel=1e-12)


def test_another_event_outlives_everybody_who_has_the_first():
    rng = np.random.default_rng(1)
    target = np.stack([rng.integers(1, 20, 60), rng.integers(0, 3, 60)], axis=1).astype(float)
    risk = np.round(rng.normal(size=60), 1)
    never = target.copy()
    never[target[:, 1] == 2] = [1e9, 0]
    expected = pair_by_pair(never, risk, np.ones(60), np.zeros(60))
    assert METRICS["concordance_first"](target, risk) == pytest.approx(expected)


def class_case(seed: int, classes: int = 4):
    rng = np.random.default_rng(seed)
    grade = rng.integers(0, classes, 300).astype(float)
    chance = rng.dirichlet(np.ones(classes), 300) + 0.4 * (grade[:, None] == np.arange(classes))
    return grade, chance / chance.sum(axis=1, keepdims=True), rng.integers(1, 4, 300).astype(float)


@pytest.mark.parametrize("seed", range(5))
def test_metrics_of_classes_equal_scikit_learns_weighted_too(seed):
    grade, chance, weight = class_case(seed)
    labels = chance.argmax(axis=1)
    balance = 1 / np.bincount(grade.astype(int))[grade.astype(int)]
    expected = {
        "auc_classes": lambda w: np.mean(
            [reference.roc_auc_score(grade == k, chance[:, k], sample_weight=w) for k in range(4)]
        ),
        "accuracy": lambda w: reference.accuracy_score(grade, labels, sample_weight=w),
        "quadratic_kappa": lambda w: reference.cohen_kappa_score(
            grade, labels, weights="quadratic", sample_weight=w
        ),
    }
    for name, theirs in expected.items():
        found = METRICS[name](grade, chance, np.stack([weight, np.ones(300)]))
        assert found == pytest.approx([theirs(weight), theirs(None)], rel=1e-9)
    assert METRICS["balanced_log_loss"](grade, chance) == pytest.approx(reference.log_loss(grade, chance, sample_weight=balance), rel=1e-6)  # fmt: skip


def test_a_class_or_a_label_that_nobody_has_is_left_out():
    grade, chance, _ = class_case(0)
    few = grade < 3
    auc = METRICS["auc_classes"](grade[few], chance[few])
    assert auc == pytest.approx(
        np.mean([reference.roc_auc_score(grade[few] == k, chance[few, k]) for k in range(3)])
    )
    target = np.stack([np.full(20, np.nan), np.arange(20) % 2], axis=1).astype(float)
    assert METRICS["auc_labels"](target, np.random.default_rng(0).random((20, 2))) == pytest.approx(
        reference.roc_auc_score(target[:, 1], np.random.default_rng(0).random((20, 2))[:, 1])
    )


def test_a_table_of_classes_or_times_is_scored_with_intervals_from_pandas_too():
    grade, chance, _ = class_case(3, 3)
    n = len(grade)
    base = {"row": np.arange(n), "family": np.arange(n) // 2, "fold": np.arange(n) % 3}
    classes = pl.DataFrame({**base, "target": grade, "prediction_net": chance})
    found = evaluate(classes, "multiclass", draws=100)["models"]["net"]
    assert found["accuracy"]["value"] == pytest.approx(METRICS["accuracy"](grade, chance))
    assert found["auc_classes"]["ci95"][0] < found["auc_classes"]["value"] < found["auc_classes"]["ci95"][1]
    assert evaluate(classes.to_pandas(), "multiclass", draws=100)["models"]["net"] == found
    rng = np.random.default_rng(0)
    times = np.stack([rng.integers(1, 50, n), rng.random(n) < 0.5], axis=1).astype(float)
    timed = pl.DataFrame({**base, "target": times, "prediction_net": rng.random((n, 2))})
    assert 0.4 < evaluate(timed, "survival", draws=100)["models"]["net"]["concordance"]["value"] < 0.6
    with pytest.raises(EvaluationError, match="target: expected a time and an event"):
        check_predictions(classes, "survival")
    with pytest.raises(EvaluationError, match="prediction_net: expected probabilities"):
        check_predictions(timed.with_columns(prediction_net=pl.lit(1.5)), "survival")


@pytest.mark.parametrize("name", ["auc", "concordance", "auc_horizon"])
def test_predictions_or_times_that_are_not_numbers_do_not_hang(name):
    target = (
        np.array([1.0, 0, 1, 0]) if name == "auc" else np.array([[np.nan, 1], [2, 0], [np.nan, 1], [4, 0.0]])
    )
    METRICS[name](target, np.array([np.nan, 0.1, np.nan, 0.4]), horizons=[3.0])


# scikit-survival 0.28: y = Surv.from_arrays(event, time); brier_score(y, y, 1 - risk, [3, 7])[1]; cumulative_dynamic_auc(y, y, risk[:, i], [horizon])[0]
SKSURV = [
    (0, [0.119915456868, 0.262854566564], [0.695532981165, 0.594733340009]),
    (1, [0.160321257802, 0.264882898242], [0.575550082009, 0.622918422615]),
    (2, [0.152546962384, 0.267761039203], [0.551307786233, 0.604049330793]),
]


@pytest.mark.parametrize(("seed", "briers", "areas"), SKSURV)
def test_risks_at_a_horizon_are_scored_as_scikit_survival_does(seed, briers, areas):
    rng, n = np.random.default_rng(seed), 300
    event = rng.random(n) < 0.5
    time = np.where(
        event, rng.integers(1, 40, n) / 4.0, rng.integers(1, 40, n) / 4.0 + 0.1
    )  # ties, but not of events with ends
    risk = np.round(np.clip(rng.random((n, 2)) * [0.5, 0.9] * np.where(event, 1.0, 0.7)[:, None], 0, 1), 2)
    target = np.stack([time, event], axis=1)
    for i, horizon in enumerate([3.0, 7.0]):
        assert METRICS["brier_horizon"](target, risk[:, i], horizons=[horizon]) == pytest.approx(
            briers[i], abs=1e-11
        )
        assert METRICS["auc_horizon"](target, risk[:, i], horizons=[horizon]) == pytest.approx(
            areas[i], abs=1e-11
        )
    assert METRICS["brier_horizon"](target, risk, horizons=[3.0, 7.0]) == pytest.approx(briers[1])


def by_definition(target, risk, horizon, copies):
    "Area, Brier score and index of prediction accuracy, person by person, of a sample in which people are copied."
    target, risk = np.repeat(target, copies, axis=0), np.repeat(risk, copies)
    time, event = target.T

    def followed(until: float, including: bool) -> float:
        chance = 1.0
        for when in sorted(set(time[event == 0])):
            if when < until or (including and when == until):
                still = (time > when).sum() + ((time == when) & (event == 0)).sum()  # events come first
                chance *= 1 - ((time == when) & (event == 0)).sum() / still
        return chance

    weight = np.zeros(len(time))
    for i in range(len(time)):
        if time[i] > horizon:
            weight[i] = 1 / followed(horizon, True)
        elif event[i] > 0:
            weight[i] = 1 / followed(time[i], False)
    case = (time <= horizon) & (event == 1)
    pairs = weight[case][:, None] * weight[~case][None]
    above = (risk[case][:, None] > risk[~case][None]) + 0.5 * (risk[case][:, None] == risk[~case][None])
    brier = (weight * (case - risk) ** 2).sum() / len(time)
    overall = (weight * case).sum() / weight.sum()
    null = (weight * (case - overall) ** 2).sum() / len(time)
    return (pairs * above).sum() / pairs.sum(), brier, 1 - brier / null


@pytest.mark.parametrize("kind", ["survival", "competing_risks"])
@pytest.mark.parametrize("seed", range(6))
def test_scores_at_a_horizon_equal_their_definition_with_ties_copies_and_other_events(kind, seed):
    rng, n = np.random.default_rng(seed), 70
    target = np.stack(
        [rng.integers(1, 13, n) / 1.0, rng.integers(0, 2 if kind == "survival" else 3, n)], axis=1
    )
    target[:3] = [20, 0]  # somebody is followed past every horizon, in each draw
    risks, copies = np.round(rng.random((n, 4)), 1), rng.integers(0, 3, (2, n))
    copies[:, :3] = 1
    end = "horizon" if kind == "survival" else "first"
    used = risks[:, :2] if kind == "survival" else risks
    expected = [by_definition(target, risks[:, 1], 8.0, copy) for copy in copies]
    for name, values in zip(("auc", "brier", "ipa"), zip(*expected, strict=True), strict=True):
        found = METRICS[f"{name}_{end}"](target, used, copies.astype(float), horizons=[4.0, 8.0])
        assert found == pytest.approx(values, rel=1e-9)


def test_the_weights_sum_to_everybody_and_the_overall_risk_is_aalen_and_johansens():
    rng = np.random.default_rng(0)
    target = np.stack([rng.integers(1, 60, 500) / 4, rng.integers(0, 3, 500)], axis=1)
    brier = METRICS["brier_first"](target, np.zeros(500), horizons=[9.0])  # predicts 0: the mean of the cases
    assert brier == pytest.approx(cumulative_incidence(target, [9.0])["risk"][0])
    everybody = METRICS["brier_first"](target, np.ones(500), horizons=[9.0]) + brier
    assert everybody == pytest.approx(1.0)


def test_predicting_the_overall_risk_has_no_index_and_the_truth_has_a_positive_one():
    rng = np.random.default_rng(2)
    hazard = rng.gamma(1, 0.1, 4000)
    ends, years = rng.uniform(3, 12, 4000), rng.exponential(1 / hazard)
    target, risk = np.stack([np.minimum(ends, years), years <= ends], axis=1), 1 - np.exp(-8 * hazard)
    overall = cumulative_incidence(target, [8.0])["risk"][0]
    assert METRICS["ipa_horizon"](target, np.full(4000, overall), horizons=[8.0]) == pytest.approx(
        0, abs=1e-9
    )
    attainable = risk.var() / (risk.mean() * (1 - risk.mean()))
    assert METRICS["ipa_horizon"](target, risk, horizons=[8.0]) == pytest.approx(attainable, abs=0.04)


def test_nobody_followed_to_the_horizon_has_no_score_and_no_warning(recwarn):
    target, risk = np.array([[1.0, 1], [2, 0], [3, 1], [4, 0]]), np.array([0.4, 0.3, 0.2, 0.1])
    for name in ("auc_horizon", "brier_horizon", "ipa_horizon"):
        assert np.isnan(METRICS[name](target, risk, horizons=[4.0]))
        assert np.isfinite(METRICS[name](target, risk, horizons=[3.5]))
    assert np.isnan(METRICS["ipa_horizon"](target, risk, horizons=[0.5]))  # no event yet
    assert not recwarn.list


def test_concordance_is_of_the_last_horizon_where_horizons_are_known():
    rng = np.random.default_rng(0)
    target = np.stack([rng.integers(1, 30, 80), rng.integers(0, 3, 80)], axis=1).astype(float)
    risks = rng.random((80, 4))
    for column, horizons in ((0, None), (1, [5.0, 10.0])):
        expected = METRICS["concordance_first"](target, risks[:, column])
        assert METRICS["concordance_first"](target, risks, horizons=horizons) == pytest.approx(expected)


def kinds_table(target, prediction) -> pl.DataFrame:
    n = len(target)
    return pl.DataFrame(
        {
            "row": np.arange(n),
            "family": np.arange(n),
            "fold": np.arange(n) % 2,
            "target": target,
            "prediction_net": prediction,
        }
    )


TIMES = np.array([[1.0, 1], [2, 0], [3, 2], [4, 0]])


@pytest.mark.parametrize(
    ("kind", "target", "prediction", "horizons", "message"),
    [
        (
            "multiclass",
            [0.0, 1, 2, 0.5],
            np.full((4, 3), 1 / 3),
            None,
            "target: expected numbers of classes or events, from 0",
        ),
        ("multiclass", [0.0, 1, 2, 3], np.full((4, 3), 1 / 3), None, "expected 4 classes or more, found 3"),
        ("ordinal", [0.0, 1, 2, 1], np.full((4, 3), 0.5), None, "which add up to 1"),
        ("ordinal", [0.0, 1, 0, 1], np.full(4, 0.5), None, "a probability for each class"),
        (
            "multiclass",
            np.zeros((4, 2)),
            np.full((4, 2), 0.5),
            None,
            "target: expected one number for everybody, found 2",
        ),
        (
            "binary",
            [0.0, 1, 0, 1],
            np.full((4, 2), 0.5),
            None,
            "prediction_net: expected one number for everybody, found 2",
        ),
        ("multilabel", np.array([[0, 2.0]] * 4), np.full((4, 2), 0.5), None, "target: expected 0 and 1"),
        (
            "multilabel",
            np.array([[0, np.nan]] * 4),
            np.full((4, 3), 0.5),
            None,
            "a probability for each label of the target, found 3",
        ),
        ("survival", TIMES, np.full((4, 2), 0.5), [5, 10], "target: expected numbers of classes or events"),
        ("survival", TIMES - [2, 0], np.full((4, 2), 0.5), [5, 10], "target"),
        ("competing_risks", TIMES - [2, 0], np.full((4, 4), 0.5), [5, 10], "times from 0, found negative"),
        (
            "competing_risks",
            TIMES,
            np.full((4, 3), 0.5),
            [5, 10],
            "the risk of each event at 2 horizons, found 3 numbers",
        ),
        ("competing_risks", TIMES, np.full((4, 2), 0.5), [5, 10], "the risk of each event at 2 horizons"),
        ("several", [1.0, 2, 3, 4], np.full(4, 0.5), None, "outcomes of kind 'several'"),
    ],
)
def test_a_table_that_is_not_of_its_kind_is_refused(kind, target, prediction, horizons, message):
    with pytest.raises(EvaluationError, match=message):
        evaluate(kinds_table(np.asarray(target, dtype=float), prediction), kind, draws=10, horizons=horizons)


def test_one_of_several_outcomes_is_its_own_columns_of_those_for_whom_it_is_known():
    table = pl.DataFrame({"row": [3, 5, 8], "family": [0, 0, 1], "fold": [0, 1, 1], "target_1": [1.0, None, 0.0],
                          "target_12": [[2.0, 1.0], [np.nan, np.nan], [np.nan, 1.0]],
                          "prediction_net_1": [0.6, 0.5, 0.4], "prediction_net_12": [0.1, 0.2, 0.3]},
                         schema_overrides={"target_12": pl.Array(pl.Float64, 2)})  # fmt: skip
    first, twelfth = of_outcome(table, 1), of_outcome(table, 12)
    assert first.columns == twelfth.columns == ["row", "family", "fold", "target", "prediction_net"]
    assert first["row"].to_list() == [3, 8] and first["prediction_net"].to_list() == [0.6, 0.4]
    assert twelfth["row"].to_list() == [3, 8] and twelfth["prediction_net"].to_list() == [0.1, 0.3]
    with pytest.raises(EvaluationError, match="expected a column target_2, found target_1, target_12"):
        of_outcome(table, 2)
