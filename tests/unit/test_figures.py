"What may be drawn: counts of nobody or at least five, from which no smaller one follows."

import datetime

import numpy as np
import polars as pl
import pytest

from ukbmm.biobank.dictionary import Field
from ukbmm.biobank.figures import (
    Distribution,
    categories,
    distribution,
    histogram,
    patterns_of,
    plot_distribution,
    shorten,
)


def test_patterns_of_few_people_are_put_together():
    who = np.arange(60)
    table, rest = patterns_of(
        {"Diet": who < 40, "Brain imaging": (who < 20) | (who == 50), "Genotypes: array": who < 38}
    )
    assert table.columns == ["participants", "Diet", "Brain imaging", "Genotypes: array"]
    # 20 with all; 18 with diet and genotypes; 2 with diet; 1 with a brain; 19 with nothing
    assert table["participants"].to_list() == [20, 19] and rest == 21


def test_bins_hold_nobody_or_five_and_everybody_is_in_one():
    rng = np.random.default_rng(0)
    for size in (5, 9, 40, 1000):
        for values in (
            rng.normal(size=size),
            rng.lognormal(3, 1, size),
            rng.integers(0, 4, size),
            rng.integers(0, 90, size),
        ):
            found = histogram(pl.Series(values))
            assert sum(found.counts) == size and all(count == 0 or count >= 5 for count in found.counts)
            assert len(found.edges) == len(found.counts) + 1 and (np.diff(found.edges) > 0).all()
            assert all(float(f"{edge:.2g}") == pytest.approx(edge, abs=1e-9) or float(f"{2 * edge:.3g}") == pytest.approx(2 * edge, abs=1e-9)
                       for edge in found.edges)  # fmt: skip
    assert histogram(pl.Series([1.0, 2.0, 3.0, 4.0])) is None


def test_categories_of_few_people_are_put_together():
    values = pl.Series([1] * 30 + [2] * 10 + [3] * 4 + [4] * 3 + [None] * 5)
    found = categories(values, {"1": "one", "2": "two", "3": "three"})
    assert found == Distribution("category", ["one", "two"], [30, 10], 7)
    assert categories(values.head(4), {}) is None
    lists = pl.Series([[1, 2], [1, 1], [2], None, [1], [1], [1], [2], [2], [2]])
    assert categories(lists, {}).counts == [5, 5]  # somebody who says the same twice counts once


def test_dates_are_drawn_by_year_and_text_is_not():
    days = pl.Series([datetime.date(2008, 1, 1)] * 6 + [datetime.date(2010, 7, 2)] * 7)
    found = distribution(days, Field(1, "x", "date"), {})
    assert (
        found.kind == "date"
        and sum(found.counts) == 13
        and 2007.5 < found.edges[0] <= 2008
        and 2010.5 <= found.edges[-1] < 2011.5
    )
    assert distribution(pl.Series(["a"] * 9), Field(1, "x", "text"), {}) is None


def test_figures_show_no_more_than_the_counts_they_are_drawn_from():
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    rng = np.random.default_rng(0)
    found = histogram(pl.Series(rng.normal(size=200)))
    plot_distribution(axis, found, "x")
    values, edges, _ = axis.patches[0].get_data()
    counts = np.round(values * np.diff(edges)).astype(int)
    assert counts.tolist() == found.counts and not ((counts > 0) & (counts < 5)).any()


def test_people_of_every_pattern_and_category_are_counted_once():
    rng = np.random.default_rng(1)
    for _ in range(30):
        has = {group: rng.random(200) < share for group, share in zip("ABCDEF", rng.random(6), strict=True)}
        table, rest = patterns_of(has)
        assert table["participants"].sum() + rest == 200 and (rest == 0 or rest >= 5)
        for count, *pattern in table.iter_rows():
            exactly = np.all(
                [has[group] == one for group, one in zip("ABCDEF", pattern, strict=True)], axis=0
            )
            assert count >= exactly.sum() == count >= 5
        codes = rng.choice(40, 200, p=rng.dirichlet(np.full(40, 0.3)))
        found = categories(pl.Series(codes), {})
        assert sum(found.counts) + found.rest == 200 and min([*found.counts, found.rest or 5]) >= 5


@pytest.mark.parametrize(("text", "shown"), [("short", "short"), ("exactly ten", "exactly..."), ("", "")])
def test_long_titles_are_cut(text, shown):
    assert shorten(text, 10) == shown


def test_a_histogram_passes_over_what_is_no_number():
    values = pl.Series([1.0, 2.0, 3.0, 4.0, 5.0, float("nan"), float("inf")])
    assert sum(histogram(values).counts) == 5
    assert histogram(pl.Series(["a"] * 9)) is None and histogram(pl.Series([float("nan")] * 9)) is None
