"""Standardising and numbering codes: what the training rows say, and nothing else."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy.stats.mstats import mquantiles
from sklearn.preprocessing import StandardScaler

from ukbmm.core import DataError
from ukbmm.data.preprocessing import LIMIT, ColumnFilter, Levels, Standardiser, missing_shares


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    values = rng.normal([0, 50, -3], [1, 10, 0.01], (300, 3))
    values[rng.random(values.shape) < 0.1] = np.nan
    return values, rng.permutation(300)[:200]


def test_standardising_equals_scikit_learn_on_the_training_rows(table):
    values, rows = table
    reference = StandardScaler().fit(values[rows])  # leaves missing values out, too
    fitted = Standardiser().fit(values, rows)
    np.testing.assert_allclose(fitted.mean, reference.mean_)
    np.testing.assert_allclose(fitted.scale, reference.scale_)
    np.testing.assert_allclose(fitted(values), reference.transform(values))


def test_single_precision_costs_a_ten_millionth_and_half_is_rounded_once():
    values = (1e6 + np.random.default_rng(0).normal(size=(5000, 20))).astype(np.float32)
    wide, rows = values.astype(np.float64), np.arange(4000)
    fitted = Standardiser().fit(values, rows)
    np.testing.assert_allclose(fitted.mean, wide[rows].mean(0), rtol=0, atol=1e-7)  # of deviations of 1
    np.testing.assert_allclose(fitted.scale, wide[rows].std(0), rtol=1e-7)
    expected = StandardScaler().fit(wide[rows]).transform(wide)
    np.testing.assert_allclose(fitted(values), expected, rtol=1e-6, atol=1e-6)
    half = fitted(values, np.float16)
    assert half.dtype == np.float16 and np.array_equal(half, fitted(values, np.float32).astype(np.float16))


def test_other_rows_change_nothing_that_was_learned(table):
    values, rows = table
    changed = values.copy()
    others = np.setdiff1d(np.arange(300), rows)
    changed[others] = np.random.default_rng(1).choice([np.nan, 1e9, -7], (100, 3))
    before, after = Standardiser().fit(values, rows), Standardiser().fit(changed, rows)
    assert np.array_equal(before.mean, after.mean) and np.array_equal(before.scale, after.scale)
    assert np.array_equal(after.rows, rows)


def test_a_column_that_does_not_vary_becomes_zero_and_comes_back():
    values = np.column_stack([np.full(10, 1e6 + 0.1), np.arange(10.0), np.full(10, np.nan)])
    fitted = Standardiser().fit(values, np.arange(10))
    assert fitted(values)[:, 0].tolist() == [0] * 10
    np.testing.assert_allclose(fitted.undo(fitted(values))[:, :2], values[:, :2])
    assert np.isnan(fitted(values)[:, 2]).all()


def test_the_wildest_value_is_limited_and_stays_finite_in_half_precision():
    fitted = Standardiser().fit(np.arange(10.0)[:, None], np.arange(10))
    far = fitted(np.array([[1e12], [-1e12]]))
    assert (
        far[:, 0].tolist() == pytest.approx([LIMIT, -LIMIT], rel=1e-12)
        and np.isfinite(far.astype(np.float16)).all()
    )


def test_undo_is_the_inverse(table):
    values, rows = table
    fitted = Standardiser().fit(values, rows)
    np.testing.assert_allclose(fitted.undo(fitted(values)), values)


def test_levels_by_hand():
    codes = pl.Series("a", [3, 3, 1, 1, 7, None, 9, 3])
    fitted = Levels(min_count=2).fit([codes], np.arange(6))  # 3 and 1 twice, 7 once; 9 is not in these rows
    assert fitted.codes == [[1, 3]] and fitted.sizes == [3]
    assert fitted([codes])[:, 0].tolist() == [2, 2, 1, 1, 0, 0, 0, 2]


def test_codes_of_other_rows_change_nothing_that_was_learned():
    rng = np.random.default_rng(0)
    codes, rows = rng.integers(0, 6, 200), np.arange(120)
    changed = codes.copy()
    changed[120:] = 99
    first, second = (Levels(3).fit([pl.Series("a", c)], rows) for c in (codes, changed))
    assert first.codes == second.codes and 99 not in second.codes[0]


@pytest.mark.parametrize("codes", [[1, 2, None, 3], ["C50", "I21", None, "E11"]])
def test_a_column_of_rare_codes_only_is_unknown_for_all(codes):
    fitted = Levels(min_count=2).fit([pl.Series("a", codes)], np.arange(4))
    assert fitted.sizes == [1] and fitted([pl.Series("a", codes)])[:, 0].tolist() == [0, 0, 0, 0]


def test_codes_of_text_are_levels_too():
    fitted = Levels(min_count=1).fit([pl.Series("a", ["x", "b", "x"])], np.arange(3))
    assert fitted([pl.Series("a", ["x", "b", "new", None])])[:, 0].tolist() == [2, 1, 0, 0]


@pytest.mark.parametrize("share", [0.01, 0.05, 0.25])
def test_winsorising_moves_to_the_quantiles_of_scipy_and_then_standardises_as_scikit_learn(table, share):
    values, rows = table
    values = np.where(np.isnan(values), values, np.exp(values / [1, 50, 3]))  # a tail
    limits = np.array(
        [mquantiles(part[~np.isnan(part)], [share, 1 - share], alphap=1, betap=1) for part in values[rows].T]
    )
    clipped = np.clip(values, *limits.T)
    reference = StandardScaler().fit(clipped[rows])
    fitted = Standardiser(winsorise=share).fit(values, rows)
    np.testing.assert_allclose(np.stack([fitted.low, fitted.high], 1), limits, rtol=1e-12)
    np.testing.assert_allclose(fitted(values), reference.transform(clipped), atol=1e-9)
    assert (clipped != values)[~np.isnan(values)].any()


def test_limits_and_dropped_columns_are_those_of_the_training_rows(table):
    values, rows = table
    changed, others = values.copy(), np.setdiff1d(np.arange(300), rows)
    changed[others] = np.random.default_rng(1).choice([np.nan, 1e9, -7], (100, 3))
    first, second = (Standardiser(0.05).fit(x, rows) for x in (values, changed))
    assert np.array_equal(first.low, second.low) and np.array_equal(first.high, second.high)
    first, second = (ColumnFilter(0.2, 0.5).fit(x, rows) for x in (values, changed))
    assert first.reasons == second.reasons and np.array_equal(second.rows, rows)


def test_a_column_without_a_training_value_has_no_limits():
    values = np.array([[np.nan, 1.0], [np.nan, 2.0], [5.0, 3.0]])
    fitted = Standardiser(0.1).fit(values, np.arange(2))
    assert np.isinf(fitted.low[0]) and np.isinf(fitted.high[0]) and fitted(values)[2, 0] == 0


def test_a_missing_value_may_become_the_mean(table):
    values, rows = table
    fitted = Standardiser().fit(values, rows)
    for dtype in (np.float64, np.float32, np.float16):
        filled = fitted(values, dtype, fill=0.0)
        assert (filled[np.isnan(values)] == 0).all() and filled.dtype == dtype and not np.isnan(filled).any()


@pytest.mark.parametrize(
    ("max_missing", "limit"), [(None, 0.9), (0.3, None), (0.3, 0.9), (0.4, 0.5), (None, None)]
)
def test_columns_that_are_left_out_are_those_of_a_loop_over_pandas_correlations(max_missing, limit):
    rng = np.random.default_rng(3)
    base = rng.normal(size=(600, 40))
    values = base @ (np.eye(40) + 0.4 * (rng.random((40, 40)) < 0.1)) * rng.uniform(
        0.1, 1e4, 40
    ) + rng.normal(0, 1e3, 40)
    values[:, 20:] = values[:, :20] * -3 + rng.normal(0, np.abs(values[:, :20]).std(0) * 0.3, (600, 20))
    values[rng.random(values.shape) < rng.random(40) * 0.5] = np.nan
    rows = np.sort(rng.permutation(600)[:450])
    frame = pd.DataFrame(values[rows])
    strength = frame.corr(min_periods=20).abs().to_numpy()
    expected = []
    for i in range(40):
        sparse = max_missing is not None and frame[i].isna().mean() > max_missing
        if not sparse and not (limit is not None and any(strength[i, j] > limit for j in expected)):
            expected.append(i)
    found = ColumnFilter(max_missing, limit).fit(values, rows)
    assert found.keep.tolist() == expected
    assert [not reason for reason in found.reasons] == [i in expected for i in range(40)]
    if max_missing or limit:
        assert 5 < len(expected) < 40
    np.testing.assert_allclose(missing_shares(values, rows), frame.isna().mean(), atol=1e-12)


def test_a_column_follows_the_first_that_stays_and_not_one_that_was_left_out():
    rng = np.random.default_rng(0)
    a = rng.normal(size=5000)
    b, c = (
        a + 0.3 * rng.normal(size=5000),
        a + 0.6 * rng.normal(size=5000),
    )  # c is near b and a little farther from a
    values = np.column_stack([a, b, c, np.full(5000, 2.0), np.full(5000, 2.0)])
    found = ColumnFilter(max_correlation=0.9).fit(values, np.arange(5000))
    assert found.reasons == ["", "follows column 0", "", "", ""]  # columns that do not vary follow nothing


def test_correlations_are_taken_from_a_part_of_many_rows(monkeypatch):
    from ukbmm.data import preprocessing

    monkeypatch.setattr(preprocessing, "CORRELATION_ROWS", 100)
    one = np.random.default_rng(0).normal(size=(1000, 1))
    values = np.hstack(
        [one, one, np.random.default_rng(1).normal(size=(1000, 300)), -one]
    )  # over more than one piece
    assert ColumnFilter(max_correlation=0.99).fit(values, np.arange(1000)).keep.tolist() == [
        0,
        *range(2, 302),
    ]


@pytest.mark.parametrize("thing", [Standardiser(), Levels(), ColumnFilter(0.5, 0.9)])
def test_learning_from_nobody_is_an_error(thing):
    values = [pl.Series("a", [1])] if isinstance(thing, Levels) else np.zeros((3, 1))
    with pytest.raises(DataError, match="expected training rows, found none"):
        thing.fit(values, np.array([], dtype=int))
