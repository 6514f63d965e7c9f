"""Ridge regression against scikit-learn, and the honesty of cross-fitted scores."""

from functools import cached_property

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from ukbmm.cohort.cohort import define_cohort
from ukbmm.cohort.outcomes import (
    BinaryOutcome,
    MulticlassOutcome,
    Outcome,
    RegressionOutcome,
    SeveralOutcome,
    read_outcome,
)
from ukbmm.cohort.splits import KFold, split_cohort
from ukbmm.core import DataError, ModelError
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock, SNPBlock
from ukbmm.models.losses import BinaryLoss, GaussianLoss, MulticlassLoss, MultilabelLoss, OrdinalLoss
from ukbmm.models.ridge import calibrate, cross_fit, residuals, shifted_cg, side_by_side
from ukbmm.models.survival import CoxLoss, HazardLoss

pytestmark = pytest.mark.usefixtures("one_thread")

PENALTIES = (0.3, 3.0, 30.0)


class Study:
    "Fitted blocks, the rows to learn from, their inner folds, and the rows to test on."

    def __init__(self, biobank, definition):
        outcome = read_outcome(biobank, definition)
        split = split_cohort(define_cohort(biobank, outcome), biobank, KFold(folds=4, inner=3), 0)
        self.rows, self.test = split.development(0), split.test(0)
        self.inner = [split.valid(0, i) for i in range(3)]
        blocks = {"lifestyle": PhenotypeBlock([31, 21003, 21001, 20116]), "blood": PhenotypeBlock([30690, 30870]),
                  "snps": SNPBlock()}  # fmt: skip
        self.blocks = {name: block.fit(biobank, self.rows) for name, block in blocks.items()}
        self.target = OutcomeBlock(outcome).fit(biobank, self.rows)
        self.y = self.target.batch(torch.from_numpy(self.rows))[:, 0].double().numpy()

    @cached_property
    def matrix(self) -> tuple[np.ndarray, np.ndarray]:
        "Standardised columns of training and tested rows; each modality divided by its mean row length."
        parts = []
        for block in self.blocks.values():
            both = []
            for rows in (self.rows, self.test):
                index = torch.from_numpy(rows)
                x = block.transform(block.batch(index))
                if isinstance(x, tuple):
                    numbers, levels = (part.numpy() for part in x)
                    hot = [levels[:, [i]] == np.arange(n) for i, n in enumerate(block.levels.sizes)]
                    x = np.concatenate([np.nan_to_num(numbers), np.isnan(numbers), *hot], axis=1)
                there = block.present(index).numpy()[:, None]
                both.append((np.asarray(x, dtype=np.float64), there))
            (train, have), (test, have_test) = both
            mean, spread = train[have[:, 0]].mean(0), train[have[:, 0]].std(0)
            scale = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 1e-6)
            scale = np.ones_like(spread) if isinstance(block, SNPBlock) else scale
            train, test = (train - mean) * scale * have, (test - mean) * scale * have_test
            size = np.sqrt((train**2).sum(1).mean())
            parts.append((train / size, test / size))
        return np.concatenate([a for a, _ in parts], 1), np.concatenate([b for _, b in parts], 1)


@pytest.fixture(scope="module")
def study(biobank):
    return Study(biobank, RegressionOutcome(field=30750))


@pytest.fixture(scope="module")
def binary(biobank):
    return Study(biobank, BinaryOutcome(field=30750, above=36))


@pytest.mark.parametrize(("method", "penalty"), [("dual", 0.3), ("dual", 30.0), ("cg", 30.0)])
def test_predictions_equal_scikit_learns_ridge(study, method, penalty):
    train, test = study.matrix
    reference = Ridge(alpha=penalty).fit(train, study.y)
    model = cross_fit(study.blocks, study.target, study.rows, study.inner, (penalty,), method)
    for rows, x in ((study.rows, train), (study.test, test)):
        np.testing.assert_allclose(
            model.predict(study.blocks, rows)[:, 0], reference.predict(x), rtol=0, atol=3e-3
        )


def test_the_penalty_is_that_of_the_smallest_error_over_the_inner_folds(study):
    train, _ = study.matrix
    place = {row: i for i, row in enumerate(study.rows.tolist())}
    errors = []
    for penalty in PENALTIES:
        scores = np.empty(len(study.rows))
        for fold in study.inner:
            out = np.array([place[row] for row in fold.tolist()])
            inside = np.setdiff1d(np.arange(len(study.rows)), out)
            scores[out] = Ridge(alpha=penalty).fit(train[inside], study.y[inside]).predict(train[out])
        errors.append(np.mean((scores - study.y) ** 2))
    model = cross_fit(study.blocks, study.target, study.rows, study.inner, PENALTIES)
    assert model.penalties == (PENALTIES[int(np.argmin(errors))],)
    np.testing.assert_allclose(
        model.errors[0], errors, rtol=0.01
    )  # fold means of the outcome are taken apart


def test_streaming_gives_the_same_model(study):
    one, other = (
        cross_fit(study.blocks, study.target, study.rows, study.inner, (10.0, 100.0), method)
        for method in ("dual", "cg")
    )
    assert one.penalties == other.penalties
    torch.testing.assert_close(one.cross_fitted, other.cross_fitted, rtol=0, atol=3e-3)
    for name in study.blocks:
        torch.testing.assert_close(one.weights[name], other.weights[name], rtol=0, atol=1e-3)


def test_a_cross_fitted_score_does_not_depend_on_ones_own_outcome(study):
    before = cross_fit(study.blocks, study.target, study.rows, study.inner, (3.0,))
    changed = study.target.copy()
    changed._values = study.target._values.clone()
    someone, place = int(study.inner[1][3]), study.rows.tolist().index(int(study.inner[1][3]))
    changed._values[someone] += 40
    after = cross_fit(study.blocks, changed, study.rows, study.inner, (3.0,))
    torch.testing.assert_close(after.cross_fitted[place], before.cross_fitted[place], rtol=0, atol=1e-5)
    moved = (after.cross_fitted - before.cross_fitted).abs().sum((1, 2))
    fold = np.isin(study.rows, study.inner[1])
    assert (moved[fold] < 1e-4).all() and (moved[~fold] > 1e-3).float().mean() > 0.9


def test_somebody_without_a_modality_gets_no_score_from_it(study):
    model = cross_fit(study.blocks, study.target, study.rows, study.inner, (3.0,))
    absent = ~study.blocks["snps"].present(torch.from_numpy(study.rows))
    assert absent.any() and (model.scores(study.blocks, study.rows)[absent, 2] == 0).all()
    assert (model.cross_fitted[absent, 2].abs() < 0.2).all()


def test_scores_add_up_to_the_prediction(study):
    model = cross_fit(study.blocks, study.target, study.rows, study.inner, (3.0,))
    total = model.scores(study.blocks, study.test).sum(1).numpy() + model.intercept.numpy()
    np.testing.assert_allclose(model.predict(study.blocks, study.test), total, rtol=1e-5, atol=1e-6)
    assert model.intercept.item() == pytest.approx(study.y.mean())


def test_conjugate_gradients_solve_every_shift():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(40, 25))
    kernel, y = root @ root.T, rng.normal(size=40)
    shifts = np.array([0.5, 2.0, 50.0, 1e4])
    exact = np.stack([np.linalg.solve(kernel + s * np.eye(40), y) for s in shifts], axis=1)
    k = torch.from_numpy(kernel)
    found = shifted_cg(lambda v: k @ v, torch.from_numpy(y), torch.from_numpy(shifts), tolerance=1e-10)
    np.testing.assert_allclose(found, exact, atol=1e-7)
    nothing = shifted_cg(
        lambda v: k @ v, torch.zeros(40, dtype=torch.float64), torch.from_numpy(shifts), tolerance=1e-10
    )
    assert nothing.abs().max() == 0


def test_a_yes_or_no_is_calibrated_as_a_logistic_regression_would(binary):
    model = cross_fit(binary.blocks, binary.target, binary.rows, binary.inner, (3.0,))
    raw = model.cross_fitted.sum(1).numpy()
    reference = LogisticRegression(C=1e8, tol=1e-10).fit(raw, binary.y)
    assert reference.coef_[0, 0] == pytest.approx(1, abs=0.02)  # the slope is in the score already
    assert reference.intercept_[0] == pytest.approx(model.intercept.item(), abs=0.02)
    chance = model.predict(binary.blocks, binary.test)
    assert ((chance > 0) & (chance < 1)).all()


def calibrated(score, case) -> tuple[float, float]:
    "Constant and slope of a yes or no."
    found = calibrate(BinaryLoss(), torch.from_numpy(score)[:, None], torch.from_numpy(case)[:, None])
    return tuple(x.item() for x in found)


def test_calibration_equals_scikit_learn_and_survives_separation():
    rng = np.random.default_rng(1)
    score = rng.normal(5, 0.1, 400)
    case = (rng.random(400) < 1 / (1 + np.exp(-10 * (score - 5)))).astype(float)
    reference = LogisticRegression(C=1e10, tol=1e-12, max_iter=5000).fit((score[:, None] - 5) * 10, case)
    intercept, slope = calibrated(score, case)
    assert slope == pytest.approx(reference.coef_[0, 0] * 10, rel=1e-2)
    assert intercept + 5 * slope == pytest.approx(reference.intercept_[0], abs=1e-2)
    apart = calibrated(np.array([0.0, 0, 1, 1]), np.array([0.0, 0, 1, 1]))
    assert np.isfinite(apart).all() and apart[1] > 5
    flat = calibrated(np.full(10, 3.0), np.array([1.0] * 4 + [0] * 6))
    assert flat[0] + 3 * flat[1] == pytest.approx(np.log(0.4 / 0.6), abs=0.01)


# ----------------------------------------------------------------------------------------- outcomes of other kinds


def martingale(time, event) -> np.ndarray:
    "Events less Nelson-Aalen's cumulative hazard, by a loop over times."
    hazard = np.zeros(len(time))
    for when in np.unique(time[event > 0]):
        hazard[time >= when] += event[time == when].sum() / (time >= when).sum()
    return event - hazard


def test_residuals_of_times_are_martingale_residuals():
    rng = np.random.default_rng(2)
    time, event = rng.integers(1, 15, 80).astype(float), (rng.random(80) < 0.4).astype(float)
    target = torch.from_numpy(np.stack([time, event], axis=1))
    found = residuals(CoxLoss(ties="breslow"), target)[:, 0]
    np.testing.assert_allclose(found, martingale(time, event), atol=1e-12)


def test_residuals_of_classes_are_what_is_left_of_their_shares():
    target = torch.tensor([[0.0], [0], [1], [2], [float("nan")]], dtype=torch.float64)
    shares = (np.array([2.0, 1, 1]) + 0.5) / 5.5
    expected = np.concatenate([np.eye(3)[[0, 0, 1, 2]] - shares, np.zeros((1, 3))])
    np.testing.assert_allclose(residuals(MulticlassLoss(3), target), expected, atol=1e-7)
    labels = torch.tensor([[1.0, 0], [0, float("nan")], [0, 1]], dtype=torch.float64)
    shares = np.array([(1 + 0.5) / 4, (1 + 0.5) / 3])
    expected = np.array([[1, 0], [0, shares[1]], [0, 1]]) - shares
    np.testing.assert_allclose(residuals(MultilabelLoss(2), labels), expected, atol=1e-7)


def test_a_grade_s_residual_is_the_chance_to_lie_below_less_that_to_lie_above():
    "The score of cumulative logits at the constant is the chance to lie below less the chance to lie above."
    target = torch.tensor([[0.0]] * 5 + [[1.0]] * 3 + [[2.0]] * 2, dtype=torch.float64)
    shares = (np.array([5.0, 3, 2]) + 0.5) / 11.5
    below, above = np.cumsum(shares) - shares, 1 - np.cumsum(shares)
    np.testing.assert_allclose(
        residuals(OrdinalLoss(3), target)[:, 0], (below - above)[target[:, 0].long()], atol=1e-6
    )


def test_each_class_gets_the_ridge_regression_of_its_residuals(biobank):
    study = Study(biobank, MulticlassOutcome(field=20116, instance=0, classes=[0, 1, 2]))
    train, test = study.matrix
    model = cross_fit(study.blocks, study.target, study.rows, study.inner, (30.0,))
    answers = study.target.batch(torch.from_numpy(study.rows)).double()
    left = residuals(MulticlassLoss(3), answers).numpy()
    reference = Ridge(alpha=30.0).fit(train, left).predict(test)
    own = model.scores(study.blocks, study.test).sum(1).numpy()
    for i in range(3):
        assert np.corrcoef(own[:, i], reference[:, i])[0, 1] > 0.9999
    chances = model.predict(study.blocks, study.test)
    np.testing.assert_allclose(chances.sum(1), 1, atol=1e-6)
    one = cross_fit(study.blocks, study.target, study.rows, study.inner, (10.0, 100.0), "dual")
    other = cross_fit(study.blocks, study.target, study.rows, study.inner, (10.0, 100.0), "cg")
    assert one.penalties == other.penalties and len(one.penalties) == 3
    torch.testing.assert_close(one.cross_fitted, other.cross_fitted, rtol=0, atol=3e-3)


def test_a_planted_hazard_is_found_and_its_risks_are_calibrated(biobank):
    "Times are drawn from body mass index by hand; the model's risks at a horizon are the shares of those it came true for."
    study = Study(biobank, RegressionOutcome(field=21001))
    rng, x = np.random.default_rng(3), study.target.outcome.values
    z = np.nan_to_num((x - np.nanmean(x)) / np.nanstd(x))
    time = rng.exponential(10 / np.exp(0.8 * z))
    values = np.where(np.isnan(x)[:, None], np.nan, np.stack([np.minimum(time, 12), time <= 12], axis=1))
    outcome = Outcome("survival", "t", "an event", "years", "p21001_i0", values, horizons=(5.0, 10.0))
    target = OutcomeBlock(outcome).fit(biobank, study.rows)
    model = cross_fit(study.blocks, target, study.rows, study.inner)  # body mass index is among its inputs
    risk = model.predict(study.blocks, study.test)
    assert risk.shape == (len(study.test), 2) and (risk[:, 0] < risk[:, 1]).all()
    assert np.corrcoef(risk[:, 1], z[study.test])[0, 1] > 0.8
    there = ~np.isnan(values[study.test, 0])
    for i, horizon in enumerate(outcome.horizons):
        assert risk[there, i].mean() == pytest.approx((time[study.test][there] <= horizon).mean(), abs=0.08)


def test_causes_that_compete_have_a_score_each_which_moves_all_intervals():
    loss = HazardLoss([0.0, 1, 2, 5], (2.0,), causes=2)
    shifts = loss.shifts
    assert shifts.tolist() == [[1.0] * 3 + [0.0] * 3, [0.0] * 3 + [1.0] * 3]
    assert GaussianLoss().shifts.tolist() == [[1.0, 0.0]] and OrdinalLoss(4).shifts.tolist() == [[1.0, 0, 0]]


def test_several_outcomes_at_once_have_no_linear_model_of_their_own(study, biobank):
    parts = SeveralOutcome(outcomes=[RegressionOutcome(field=30750), BinaryOutcome(field=30750, above=36)])
    target = OutcomeBlock(read_outcome(biobank, parts)).fit(biobank, study.rows)
    with pytest.raises(ModelError, match="a linear model: expected one outcome"):
        cross_fit(study.blocks, target, study.rows, study.inner)


def test_models_side_by_side_show_nobody_a_score_of_a_model_that_saw_them(study):
    known = np.sort(np.random.default_rng(2).choice(study.rows, len(study.rows) // 2, replace=False))
    halves = [np.intersect1d(part, known) for part in study.inner]
    first = cross_fit(study.blocks, study.target, study.rows, study.inner, (3.0,))
    second = cross_fit(study.blocks, study.target, known, halves, (3.0,))
    rows = np.random.default_rng(3).permutation(study.rows)
    both = side_by_side([first, second], study.blocks, rows)
    place = {row: i for i, row in enumerate(known.tolist())}
    unseen = second.scores(study.blocks, rows)
    for i, row in enumerate(rows.tolist()):
        own = second.cross_fitted[place[row]] if row in place else unseen[i]
        torch.testing.assert_close(both.cross_fitted[i, :, 1:], own, rtol=0, atol=0)
    torch.testing.assert_close(both.cross_fitted[:, :, :1], first.cross_fitted[np.argsort(np.argsort(rows))])
    alone = [model.predict(study.blocks, study.test) for model in (first, second)]
    np.testing.assert_allclose(both.predict(study.blocks, study.test), np.hstack(alone), atol=1e-5)


@pytest.mark.parametrize("folds", ["missing", "twice", "foreign", "another twice"])
def test_inner_folds_that_do_not_fit_are_refused(study, folds):
    inner = {
        "missing": study.inner[:2],
        "twice": [*study.inner, study.inner[0]],
        "foreign": [*study.inner[:2], study.test],
        "another twice": [*study.inner[:2], np.append(study.inner[2][1:], study.inner[0][0])],
    }[folds]
    with pytest.raises(DataError, match="each row of the training rows in one of them"):
        cross_fit(study.blocks, study.target, study.rows, inner, (1.0,))


class Whole(np.ndarray):
    "Rows that nobody may walk through one by one."

    def tolist(self):
        raise AssertionError("a list of participants")

    def __iter__(self):
        raise AssertionError("a loop over participants")


def test_rows_and_folds_in_any_order_give_the_same_model_without_a_loop_over_people(study):
    one = cross_fit(study.blocks, study.target, study.rows, study.inner, (3.0,))
    rng = np.random.default_rng(0)
    order = rng.permutation(len(study.rows))
    inner = [rng.permutation(fold).view(Whole) for fold in study.inner]
    other = cross_fit(study.blocks, study.target, study.rows[order].view(Whole), inner, (3.0,))
    torch.testing.assert_close(other.cross_fitted, one.cross_fitted[order], rtol=0, atol=1e-4)
    np.testing.assert_allclose(other.errors, one.errors, rtol=1e-5)
