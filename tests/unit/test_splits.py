"""Splits: families stay whole, everybody is tested once, sizes and outcomes are balanced."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from ukbmm.cohort.cohort import Cohort, define_cohort
from ukbmm.cohort.outcomes import BinaryOutcome, Outcome, RegressionOutcome, read_outcome
from ukbmm.cohort.splits import HoldOut, KFold, deal, find_families, load_split, save_split, split_cohort
from ukbmm.core import SplitError


class Relations:
    "As much of a Biobank as a split needs."

    def __init__(self, pairs: pl.DataFrame):
        self.relatives = pairs


def random_pairs(rng: np.random.Generator, n: int, share: float) -> pl.DataFrame:
    "Random pairs of relatives and of people too distant to count."
    ends = rng.integers(0, n, (max(1, int(share * n)), 2))
    ends = ends[ends[:, 0] != ends[:, 1]]
    kinship = rng.choice([0.01, 0.03, 0.06, 0.12, 0.25, 0.5], len(ends))
    return pl.DataFrame({"row_a": ends[:, 0], "row_b": ends[:, 1], "kinship": kinship})


def union_find(n: int, pairs: pl.DataFrame, kinship: float) -> list[int]:
    "Families by the plainest means."
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for a, b, k in pairs.iter_rows():
        if k >= kinship:
            parent[root(a)] = root(b)
    return [root(i) for i in range(n)]


def cohort_of(values: np.ndarray, rows: np.ndarray, kind: str = "regression") -> Cohort:
    outcome = Outcome(kind, "y", "y", "", "p30750_i0", values)
    return Cohort(rows, outcome, None, 0, len(values), ())


def random_study(seed: int, kind: str = "regression", n: int | None = None, share: float = 0.5):
    "A random cohort of part of the people, with random relations."
    rng = np.random.default_rng(seed)
    n = n or int(rng.integers(60, 400))
    pairs = random_pairs(rng, n, share)
    values = rng.normal(size=n) if kind == "regression" else (rng.random(n) < 0.3).astype(float)
    rows = np.flatnonzero(rng.random(n) < 0.8)
    return cohort_of(values, rows, kind), Relations(pairs)


@pytest.mark.parametrize("seed", range(10))
def test_families_are_the_connected_components(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 200))
    pairs = random_pairs(rng, n, 0.6)
    for kinship in (0.0442, 0.1, 0.4):
        found, expected = find_families(n, pairs, kinship), union_find(n, pairs, kinship)
        assert len(set(zip(found.tolist(), expected, strict=True))) == len(set(expected)) == len(set(found))


@pytest.mark.parametrize("seed", range(12))
def test_no_family_is_cut_and_everybody_is_tested_once(seed):
    cohort, relations = random_study(seed)
    folds, inner = 2 + seed % 4, 2 + seed % 3
    split = split_cohort(cohort, relations, KFold(folds=folds, inner=inner), seed)
    family = np.array(union_find(cohort.n_start, relations.relatives, KFold().kinship))
    tested = np.concatenate([split.test(fold) for fold in split.folds])
    assert sorted(tested) == cohort.rows.tolist() and split.folds == list(range(folds))
    for fold in split.folds:
        test, development = split.test(fold), split.development(fold)
        assert not set(family[test]) & set(family[development])
        assert sorted([*test, *development]) == cohort.rows.tolist()
        valid = [split.valid(fold, i) for i in range(inner)]
        assert sorted(np.concatenate(valid)) == sorted(development)
        for i in range(inner):
            assert not set(family[valid[i]]) & set(family[split.train(fold, i)])
            assert sorted([*valid[i], *split.train(fold, i)]) == sorted(development)


@pytest.mark.parametrize("seed", range(12))
def test_folds_differ_by_no_more_than_the_largest_family(seed):
    rng = np.random.default_rng(seed)
    size = rng.choice([1, 1, 1, 2, 3, 9], int(rng.integers(20, 300)))
    families = rng.permutation(np.repeat(np.arange(len(size)), size))
    for folds in (2, 5, 7):
        counts = np.bincount(deal(families, folds, rng, rng.normal(size=len(families))), minlength=folds)
        assert np.ptp(counts) <= size.max()


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_cases_among_unrelated_people_are_spread_within_two_of_each_other(share):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        n, folds = int(rng.integers(200, 900)), int(rng.integers(2, 11))
        case = (rng.random(n) < share).astype(float)
        fold = deal(np.arange(n), folds, rng, case)
        assert np.ptp(np.bincount(fold, case, folds)) <= 2  # the best possible is 0 or 1
        assert np.ptp(np.bincount(fold, minlength=folds)) <= 1


@pytest.mark.parametrize(("sizes", "share"), [([1], 0.35), ([1, 2, 3], 0.7)])
def test_means_of_a_quantity_are_closer_than_by_chance(sizes, share):
    spread = {True: [], False: []}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        families = np.repeat(np.arange(300), rng.choice(sizes, 300))
        values = rng.normal(size=len(families))
        for stratified in (True, False):
            fold = deal(families, 5, np.random.default_rng(seed), values if stratified else None)
            spread[stratified].append(np.std(np.bincount(fold, values) / np.bincount(fold)))
    assert np.mean(spread[True]) < share * np.mean(spread[False])


@pytest.mark.parametrize("test", [0.1, 0.2, 0.35, 0.8])
@pytest.mark.parametrize(("n", "mean_size"), [(2000, 1), (400, 2), (120, 2), (60, 1)])
def test_a_hold_out_has_the_share_that_was_asked_for(n, mean_size, test):
    rng = np.random.default_rng(n)
    values, pairs = rng.normal(size=n), pl.DataFrame(schema={"row_a": int, "row_b": int, "kinship": float})
    if mean_size == 2:
        first = np.arange(0, n, 4)
        pairs = pl.DataFrame({"row_a": first, "row_b": first + 1, "kinship": np.full(len(first), 0.25)})
    split = split_cohort(cohort_of(values, np.arange(n)), Relations(pairs), HoldOut(test=test, inner=2), 0)
    assert abs(len(split.test(0)) / n - test) <= 0.02 + 2 * mean_size / n
    assert split.folds == [0] and sorted([*split.test(0), *split.development(0)]) == list(range(n))


@pytest.mark.parametrize("settings", [KFold(folds=5), HoldOut(test=0.2), HoldOut(test=0.5)])
def test_no_two_seeds_split_a_quantity_without_ties_alike(settings):
    none = Relations(pl.DataFrame(schema={"row_a": int, "row_b": int, "kinship": float}))
    cohort = cohort_of(np.random.default_rng(0).normal(size=300), np.arange(300))
    folds = {tuple(split_cohort(cohort, none, settings, seed).table["fold"]) for seed in range(30)}
    assert len(folds) == 30


def test_what_is_held_out_has_the_mean_of_the_whole():
    none = Relations(pl.DataFrame(schema={"row_a": int, "row_b": int, "kinship": float}))
    for seed in range(20):
        values = np.random.default_rng(seed).normal(size=500)
        split = split_cohort(cohort_of(values, np.arange(500)), none, HoldOut(test=0.2), seed)
        assert abs(values[split.test(0)].mean() - values.mean()) < 0.03  # by chance 0.04 in the mean


def test_a_relative_outside_the_cohort_still_connects():
    pairs = pl.DataFrame({"row_a": [0, 1], "row_b": [1, 2], "kinship": [0.25, 0.25]})
    rows = np.array([0, 2, *range(3, 40)])  # 1 is not studied
    split = split_cohort(
        cohort_of(np.arange(40.0), rows), Relations(pairs), KFold(folds=3, inner=2, stratify=False), 0
    )
    fold = dict(split.table.select("row", "fold").iter_rows())
    assert fold[0] == fold[2]


@pytest.mark.parametrize("stratify", [False, True])
def test_a_split_is_a_function_of_cohort_settings_and_seed(stratify):
    cohort, relations = random_study(3)
    settings = KFold(folds=4, inner=3, stratify=stratify)
    first, again, other = (split_cohort(cohort, relations, settings, seed).table for seed in (5, 5, 6))
    assert first.equals(again)
    assert not first.equals(other)


def test_the_test_rows_outcomes_do_not_change_the_split_when_it_is_not_stratified():
    cohort, relations = random_study(3)
    changed = replace(cohort, outcome=replace(cohort.outcome, values=-(cohort.outcome.values**3)))
    settings = KFold(folds=4, inner=3, stratify=False)
    assert split_cohort(cohort, relations, settings, 1).table.equals(
        split_cohort(changed, relations, settings, 1).table
    )


def test_a_fold_without_both_classes_is_an_error_that_says_what_to_do():
    values = np.zeros(100)
    values[:3] = 1
    unrelated = Relations(pl.DataFrame(schema={"row_a": int, "row_b": int, "kinship": float}))
    with pytest.raises(SplitError, match="fold .*expected cases and controls.*Use fewer folds"):
        split_cohort(cohort_of(values, np.arange(100), "binary"), unrelated, KFold(folds=5), 0)


@pytest.mark.parametrize(
    ("kind", "answers", "message"),
    [("binary", [1.0] * 12 + [np.nan] * 27 + [0.0], "test of smoker: expected cases and controls, found one"),
     ("regression", [5.0] + [np.nan] * 39, "of smoker: expected participants, found nobody")],
)  # fmt: skip
def test_a_fold_in_which_one_of_several_outcomes_cannot_be_scored_is_refused(kind, answers, message):
    quantity = Outcome("regression", "q", "weight", "", "p", np.arange(40.0))
    other = Outcome(kind, "o", "smoker", "", "p", np.array(answers))
    whole = np.column_stack([quantity.values, other.values])
    both = Outcome("several", "s", "both", "", "p", whole, parts=(quantity, other))
    cohort = replace(cohort_of(quantity.values, np.arange(40)), outcome=both)
    none = Relations(pl.DataFrame(schema={"row_a": pl.Int64, "row_b": pl.Int64, "kinship": pl.Float64}))
    with pytest.raises(SplitError, match=message):
        split_cohort(cohort, none, KFold(folds=5, inner=2))


def test_too_few_families_for_the_folds_is_an_error_that_says_what_to_do():
    first = np.arange(19)
    chain = Relations(pl.DataFrame({"row_a": first, "row_b": first + 1, "kinship": np.full(19, 0.25)}))
    with pytest.raises(SplitError, match="1 families, too few. Use fewer folds"):
        split_cohort(cohort_of(np.arange(20.0), np.arange(20)), chain, KFold(folds=2), 0)


def test_a_saved_split_comes_back_whole(tmp_path):
    for settings in (KFold(folds=3, inner=4, kinship=0.1), HoldOut(test=0.3, inner=2)):
        split = split_cohort(*random_study(1), settings, 0)
        save_split(split, tmp_path / "split.parquet")
        again = load_split(tmp_path / "split.parquet")
        assert again.table.equals(split.table) and again.inner == split.inner == settings.inner
        assert again.kinship == split.kinship == settings.kinship


def test_a_saved_split_of_another_cohort_is_refused(tmp_path):
    cohort, relations = random_study(1)
    save_split(split_cohort(cohort, relations, KFold(folds=3, inner=2), 0), tmp_path / "split.parquet")
    load_split(tmp_path / "split.parquet", cohort)
    with pytest.raises(SplitError, match="cohort"):
        load_split(tmp_path / "split.parquet", replace(cohort, rows=cohort.rows[1:]))


def test_a_file_that_is_no_split_is_refused(tmp_path):
    pl.DataFrame({"row": [1], "fold": [0]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(SplitError, match="other.parquet.*none of family, kinship, inner_0"):
        load_split(tmp_path / "other.parquet")
    (tmp_path / "split.csv").write_text("row,fold")
    with pytest.raises(SplitError, match="split.csv.*another kind of file"):
        load_split(tmp_path / "split.csv")


def test_the_synthetic_families_are_kept_and_people_of_unknown_outcome_left_out(biobank):
    outcome = read_outcome(biobank, RegressionOutcome(field=30750))
    split = split_cohort(define_cohort(biobank, outcome), biobank, KFold(folds=5, inner=3), 0)
    fold = dict(split.table.select("row", "fold").iter_rows())
    assert set(fold) == set(np.flatnonzero(outcome.known))
    pairs = [(a, b) for a, b, _ in biobank.relatives.iter_rows() if a in fold and b in fold]
    assert len(pairs) > 40 and all(fold[a] == fold[b] for a, b in pairs)


def test_a_binary_cohort_has_both_classes_everywhere(biobank):
    outcome = read_outcome(biobank, BinaryOutcome(field=20116, cases=[1, 2]))
    split = split_cohort(define_cohort(biobank, outcome), biobank, KFold(folds=4, inner=3), 0)
    shares = [outcome.values[split.test(fold)].mean() for fold in split.folds]
    assert np.ptp(shares) < 0.08 and 0.3 < np.mean(shares) < 0.6


def test_a_split_prints_counts_only():
    text = repr(split_cohort(*random_study(2, n=200), KFold(folds=3, inner=2), 0))
    assert text.startswith("Split of") and "3 folds" in text and "[" not in text
