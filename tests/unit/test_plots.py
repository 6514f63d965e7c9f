"""Plots of classes, labels and times: what they draw is what was computed, and nothing that tells of one to four people."""

import numpy as np
import polars as pl
import pytest
import sklearn.metrics as reference
from matplotlib.figure import Figure

from ukbmm.evaluation.calibration import horizon_groups
from ukbmm.evaluation.plots import (
    confusion,
    plot_class_calibration,
    plot_confusion,
    plot_horizon_calibration,
    plot_incidence,
    plot_parts,
)
from ukbmm.evaluation.survival import _shown, cumulative_incidence, incidence_by_risk
from ukbmm.evaluation.uncertainty import evaluate


def axis():
    return Figure().subplots()


def classes_of(seed: int, n: int, k: int):
    rng = np.random.default_rng(seed)
    target = rng.choice(k, n, p=rng.dirichlet(np.full(k, 0.5))).astype(float)
    chance = rng.dirichlet(np.ones(k), n) + 0.5 * (target[:, None] == np.arange(k))
    return target, chance / chance.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(20))
def test_the_confusion_matrix_is_scikit_learns_and_no_small_cell_can_be_computed(seed):
    n, k = [(40, 3), (300, 4), (3000, 5)][seed % 3]
    target, chance = classes_of(seed, n, k)
    counts = reference.confusion_matrix(target, chance.argmax(axis=1), labels=range(k))
    percent, people = confusion(target, chance), counts.sum(axis=1)
    shown = np.isfinite(percent)
    assert not (shown & (counts > 0) & (counts < 5)).any()
    expected = 100 * counts / np.maximum(people[:, None], 1)
    np.testing.assert_allclose(percent[shown], expected[shown])
    for row in range(k):
        rest = counts[row][~shown[row]]
        if len(rest) and people[row] >= 5 and shown[row].any():
            assert len(rest) > 1  # one blank alone is 100 less the others
            assert rest.sum() >= 5


def test_every_cell_with_a_number_is_drawn_and_blanks_are_not():
    target, chance = classes_of(1, 300, 4)
    drawn = plot_confusion(
        axis(), target, chance, ["a", "b", "c", "a class with a name that is far too long to fit"]
    )
    percent = confusion(target, chance)
    assert sorted(t.get_text() for t in drawn.texts) == sorted(
        f"{v:.0f}" for v in percent[np.isfinite(percent)]
    )
    assert max(len(label.get_text()) for label in drawn.get_yticklabels()) <= 24


def test_the_six_most_frequent_classes_are_calibrated_and_small_ones_are_not_shown():
    rng = np.random.default_rng(0)
    share = np.array([0.25, 0.2, 0.15, 0.12, 0.1, 0.08, 0.06, 0.04])
    target = rng.choice(8, 4000, p=share).astype(float)
    chance = rng.dirichlet(share * 30, 4000)
    names = [f"class {i}" for i in range(8)]
    drawn = plot_class_calibration(axis(), target, chance, names)
    assert [text.get_text() for text in drawn.get_legend().get_texts()] == names[:6]
    few = plot_class_calibration(axis(), np.r_[np.zeros(46), np.ones(4)], np.full((50, 2), 0.5), ["a", "b"])
    assert few.get_legend() is None and "too few" in few.get_title()


def test_dots_of_labels_are_their_areas_and_few_cases_have_none():
    rng = np.random.default_rng(0)
    target = (rng.random((400, 3)) < [0.4, 0.3, 0]) * 1.0
    target[:3, 2] = 1
    table = pl.DataFrame({"row": np.arange(400), "family": np.arange(400), "fold": np.zeros(400), "target": target,
                          "prediction_fusion": rng.random((400, 3)), "prediction_ridge": rng.random((400, 3))})  # fmt: skip
    metrics = evaluate(table, "multilabel", draws=50)
    drawn = plot_parts(axis(), metrics, ["a", "b", "c"])
    dots = [line.get_xdata()[0] for line in drawn.lines if len(line.get_xdata()) == 1]
    areas = [
        reference.roc_auc_score(target[:, i], table[f"prediction_{name}"].to_numpy()[:, i])
        for name in ("fusion", "ridge")
        for i in (0, 1)
    ]
    assert dots == pytest.approx(areas)


def events(seed: int, n: int, rate: float = 0.05):
    rng = np.random.default_rng(seed)
    risk = rng.uniform(0.2, 2, n)
    times = np.stack(
        [rng.uniform(6, 14, n), rng.exponential(1 / (rate * risk)), rng.exponential(30, n)], axis=1
    )
    return np.stack([times.min(axis=1), times.argmin(axis=1)], axis=1), 1 - np.exp(-10 * rate * risk)


# scikit-survival 0.28: rng = np.random.default_rng(0); t = rng.integers(1, 40, 200) / 4; e = rng.integers(0, 3, 200)
# x, risk, ends = cumulative_incidence_competing_risks(e, t, conf_type="log-log", var_type="Dinse_Approx"), at 2, 5 and 9 years
THEIRS = {1: [[0.072708115101, 0.17052123836, 0.376677566346], [0.041676206545, 0.119789027413, 0.298573994334], [0.115066882276, 0.228885828305, 0.454450682177]],
          2: [[0.05661730579, 0.171072224295, 0.391858250259], [0.029979284888, 0.120174828009, 0.310818610876], [0.095283906405, 0.229606528968, 0.47184611975]]}  # fmt: skip


@pytest.mark.parametrize("cause", [1, 2])
def test_estimates_and_intervals_of_two_events_are_scikit_survivals(cause):
    rng = np.random.default_rng(0)
    target = np.stack([rng.integers(1, 40, 200) / 4.0, rng.integers(0, 3, 200)], axis=1)
    found = cumulative_incidence(target, [2.0, 5.0, 9.0], cause)
    risk, low, high = THEIRS[cause]
    assert found["risk"].to_list() == pytest.approx(risk, abs=1e-11)
    assert found["low"].to_list() == pytest.approx(low, abs=2e-5)  # theirs has 1.95996 for 1.96
    assert found["high"].to_list() == pytest.approx(high, abs=2e-5)


@pytest.mark.parametrize("seed", range(5))
def test_without_another_event_it_is_one_less_kaplan_and_meiers_curve(seed):
    target, _ = events(seed, 150)
    target[:, 1] = target[:, 1] > 0
    target[:, 0] = np.ceil(target[:, 0])  # ties
    alive = 1.0
    for year in range(1, 12):
        left = (target[:, 0] >= year).sum()
        alive *= 1 - ((target[:, 0] == year) & (target[:, 1] == 1)).sum() / left
        assert cumulative_incidence(target, [year])["risk"][0] == pytest.approx(1 - alive)


def test_numbers_that_grow_are_shown_without_a_step_of_one_to_four():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        counts = np.cumsum(np.r_[0, rng.integers(0, 4, 39)])
        counts[-1] = max(counts[-1], 5)
        steps = np.diff(counts[_shown(counts)])
        assert not ((steps > 0) & (steps < 5)).any() and steps.sum() == counts[-1]


@pytest.mark.parametrize("rate", [0.001, 0.005, 0.05])
def test_curves_end_in_the_estimate_of_their_fifth_and_have_no_small_step(rate):
    target, risk = events(3, 1500, rate)
    curves = incidence_by_risk(target, risk, 10.0)
    fifths = np.array_split(np.argsort(risk, kind="stable"), 5)
    for (group,), curve in curves.group_by("group"):
        some = target[fifths[group]]
        assert curve.height <= 40 and curve["time"][-1] == 10.0
        assert curve["risk"][-1] == pytest.approx(cumulative_incidence(some, [10.0])["risk"][0])
        steps = [
            ((some[:, 1] == 1) & (some[:, 0] > low) & (some[:, 0] <= high)).sum()
            for low, high in zip(curve["time"], curve["time"][1:], strict=False)
        ]
        assert not any(0 < step < 5 for step in steps)
    had = [((target[part, 1] == 1) & (target[part, 0] <= 10)).sum() for part in fifths]
    assert sorted(curves["group"].unique()) == [i for i, count in enumerate(had) if not 0 < count < 5]
    assert len(plot_incidence(axis(), target, risk, 10.0).lines) == curves["group"].n_unique()


def test_groups_at_a_horizon_are_estimates_and_never_of_one_to_four():
    for rate in (0.002, 0.05):
        target, risk = events(1, 1000, rate)
        groups = horizon_groups(target, risk, 8.0)
        assert groups["n"].sum() == 1000
        order, start = np.argsort(risk, kind="stable"), 0
        for row in groups.iter_rows(named=True):
            part = order[start : start + row["n"]]
            had = ((target[part, 1] == 1) & (target[part, 0] <= 8)).sum()
            assert not 0 < had < 5 and not 0 < len(part) - had < 5
            assert row["observed"] == pytest.approx(cumulative_incidence(target[part], [8.0])["risk"][0])
            assert row["low"] <= row["observed"] <= row["high"]
            start += row["n"]


def test_observed_over_expected_is_said_for_each_event():
    target, risk = events(2, 3000)
    rivals = np.stack([risk / 2, risk, np.full(3000, 0.1), np.full(3000, 0.2)], axis=1)
    drawn = plot_horizon_calibration(axis(), target, rivals, [5.0, 10.0], ["diabetes", "death"])
    said = [text.get_text() for text in drawn.get_legend().get_texts()]
    for number, column in ((1, 1), (2, 3)):
        ratio = cumulative_incidence(target, [10.0], number)["risk"][0] / rivals[:, column].mean()
        assert f"{['diabetes', 'death'][number - 1]}: {ratio:.2f}" in said
    nobody = plot_horizon_calibration(axis(), target, rivals[:, :2], [5.0, 30.0])
    assert "too few" in nobody.get_title()
