"""Standardising and numbering codes: what the training rows say, and nothing else."""

import numpy as np
import polars as pl
import pytest
from sklearn.preprocessing import StandardScaler

from ukbmm.core import DataError
from ukbmm.data.preprocessing import LIMIT, Levels, Standardiser


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


def test_single_precision_is_summed_in_double_and_half_is_rounded_once():
    values = (1e6 + np.random.default_rng(0).normal(size=(5000, 20))).astype(np.float32)
    wide, rows = values.astype(np.float64), np.arange(4000)
    fitted = Standardiser().fit(values, rows)
    np.testing.assert_allclose(fitted.mean, wide[rows].mean(0), rtol=1e-12)
    np.testing.assert_allclose(fitted.scale, wide[rows].std(0), rtol=1e-9)
    expected = StandardScaler().fit(wide[rows]).transform(wide)
    np.testing.assert_allclose(fitted(values), expected, rtol=1e-6, atol=1e-6)
    half = fitted(values, np.float16)
    assert half.dtype == np.float16 and np.array_equal(half, fitted(values).astype(np.float16))


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
    assert far[:, 0].tolist() == [LIMIT, -LIMIT] and np.isfinite(far.astype(np.float16)).all()


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


@pytest.mark.parametrize("thing", [Standardiser(), Levels()])
def test_learning_from_nobody_is_an_error(thing):
    values = np.zeros((3, 1)) if isinstance(thing, Standardiser) else [pl.Series("a", [1])]
    with pytest.raises(DataError, match="expected training rows, found none"):
        thing.fit(values, np.array([], dtype=int))
