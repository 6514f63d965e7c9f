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


def day(*date: int) -> int:
    return (datetime.date(*date) - datetime.date(1970, 1, 1)).days


@pytest.mark.parametrize(
    ("first", "n_days", "written"),
    [((2008, 5, 1), 1, {"01 May 2008"}), ((2008, 5, 1), 40, {"01 May 2008", "10 Jun 2008"}), ((2008, 2, 5), 200, {"Apr 2008", "Jul 2008"}),
     ((2006, 3, 1), 800, {"Jan 2007", "Jan 2008"}), ((2006, 3, 1), 1700, {"2006", "2008", "2010"}), ((1941, 1, 1), 12_000, {"1950", "1960", "1970"})],
)  # fmt: skip
def test_dates_are_written_as_dates_and_every_bin_holds_whole_days(first, n_days, written):
    from matplotlib.figure import Figure

    days = day(*first) + np.arange(n_days * 8) % n_days  # every day eight times
    values = pl.Series(days).cast(pl.Int32).cast(pl.Date)
    found = histogram(values, "date")
    lengths = np.diff(np.ceil(found.edges))
    inner = slice(1, -1)  # the tails are in the first and the last bin
    assert np.array_equal(np.array(found.counts)[inner], 8 * lengths[inner]) and sum(found.counts) == len(
        days
    )
    axis = Figure(figsize=(3, 2)).subplots()
    plot_distribution(axis, found, "x")
    axis.figure.canvas.draw()
    low, high = axis.get_xlim()
    shown = {label.get_text() for label in axis.get_xticklabels() if low <= label.get_position()[0] <= high}
    assert written <= shown and axis.xaxis.get_offset_text().get_text() == ""


def test_dates_are_drawn_by_year_and_text_is_not():
    days = pl.Series([datetime.date(2008, 1, 1)] * 6 + [datetime.date(2010, 7, 2)] * 7)
    found = distribution(days, Field(1, "x", "date"), {})
    assert (
        found.kind == "date"
        and sum(found.counts) == 13
        and day(2007, 12, 1) < found.edges[0] <= day(2008, 1, 1)
        and day(2010, 7, 2) < found.edges[-1] < day(2010, 9, 1)
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


@pytest.mark.parametrize("value", [7.5, -0.004, 1234.5, 3e7, 0.0])
def test_one_value_alone_has_a_bin_of_its_size_and_a_plain_axis(value):
    from matplotlib.figure import Figure

    found = histogram(pl.Series([value] * 9))
    (left, right), axis = found.edges, Figure(figsize=(3, 2)).subplots()
    assert found.counts == [9] and left <= value < right and right - left <= max(1, abs(value))
    assert right - left >= (1 if value == round(value) else abs(value) / 1000)
    plot_distribution(axis, found, "x")
    axis.figure.canvas.draw()
    assert "+" not in axis.xaxis.get_offset_text().get_text()


def test_values_that_are_nearly_all_the_same_are_drawn():
    found = histogram(pl.Series([0.0] * 2000 + [0.25] * 5))
    assert sum(found.counts) == 2005 and found.edges[0] <= 0 < found.edges[-1]
