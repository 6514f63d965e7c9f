"""Derived fields against published and hand-worked values."""

import datetime

import numpy as np
import polars as pl
import pytest

from ukbmm.biobank.cleaning import MISSING_KINDS, Cleaned, clean_column
from ukbmm.biobank.derived import (
    DERIVED,
    MICROMOLES,
    age_at,
    birth_date,
    derive,
    derived,
    derived_table,
    formula,
    glomerular_filtration,
    input_columns,
)
from ukbmm.biobank.dictionary import Dictionary
from ukbmm.core import DictionaryError, UkbmmError

D = Dictionary.builtin()


def inputs(**raw: list) -> dict:
    "Cleaned columns by field, from raw values by name."
    return {int(name[1:]): clean_column(pl.Series(name, values).cast(D[int(name[1:])].dtype), D[int(name[1:])])
            for name, values in raw.items()}  # fmt: skip


def kinds(cleaned) -> list[str]:
    return [MISSING_KINDS[kind] for kind in cleaned.kinds]


def laboratory_form(creatinine: float, female: bool, age: float) -> float:
    "The equation as laboratories are told to program it, in four cases (Miller et al. 2022, Clinical Chemistry 68:511)."
    if female:
        base, power = (144, -0.241) if creatinine <= 0.7 else (144, -1.200)
        return base * (creatinine / 0.7) ** power * 0.9938**age
    power = -0.302 if creatinine <= 0.9 else -1.200
    return 142 * (creatinine / 0.9) ** power * 0.9938**age


@pytest.mark.parametrize(("creatinine", "sex", "age", "published"), [(1.2, 1, 55, 71), (1.1, 1, 50, 82)])
def test_kidney_function_is_what_public_calculators_give(creatinine, sex, age, published):
    found = glomerular_filtration(
        np.array([creatinine * MICROMOLES]), np.array([float(sex)]), np.array([float(age)])
    )
    assert round(found[0]) == published


def test_kidney_function_equals_the_form_for_laboratories_over_the_whole_range():
    for female in (True, False):
        for age in (40, 55, 73):
            mg = np.linspace(0.3, 6, 60)
            found = glomerular_filtration(
                mg * MICROMOLES, np.full(60, 0.0 if female else 1.0), np.full(60, float(age))
            )
            expected = [laboratory_form(x, female, age) for x in mg]
            np.testing.assert_allclose(
                found, expected, rtol=3e-3 if female else 1e-12
            )  # 142 * 1.012 is 143.7


def test_kidney_function_from_cleaned_columns_says_why_it_is_missing():
    done = derive(
        "egfr", inputs(p30700=[88.4 * 1.2, None, 70.0, 0.0], p31=[1, 1, None, 0], p21003=[55, 60, 60, 60])
    )
    assert [None if value is None else round(value) for value in done.values] == [71, None, None, None]
    assert kinds(done) == ["present", "empty", "empty", "not_applicable"]
    assert done.values.name == "egfr" and done.values.dtype == pl.Float64 and done.kinds.dtype == pl.UInt8


@pytest.mark.parametrize(
    ("birth", "date"),
    [
        ((1950, 3), "2010-03-15"),
        ((1938, 12), "2006-11-01"),
        ((1970, 1), "2010-10-01"),
        ((1944, 2), "2008-02-29"),
    ],
)
def test_age_equals_the_days_between_two_dates(birth, date):
    expected = (datetime.date.fromisoformat(date) - datetime.date(*birth, 15)).days / 365.25
    found = age_at(*(np.array([float(part)]) for part in birth), np.array([date], dtype="datetime64[D]"))
    assert found[0] == pytest.approx(expected, abs=1e-12)


def test_without_a_month_somebody_is_born_in_the_middle_of_the_year_and_without_a_year_not_at_all():
    nan = np.nan
    assert birth_date(np.array([1950, 1950, nan]), np.array([nan, 12, 3])).astype(str).tolist() == [
        "1950-07-01",
        "1950-12-15",
        "NaT",
    ]
    done = derive("age", inputs(p34=[1950, None], p53=[datetime.date(2010, 7, 1)] * 2))
    assert done.values.to_list() == [60.0, None] and kinds(done) == ["present", "empty"]


def test_body_mass_index_by_hand():
    done = derive("bmi", inputs(p50=[180.0, 160.0, None], p21002=[81.0, None, 70.0]))
    assert done.values.to_list() == [pytest.approx(25.0), None, None]


SMOKERS = [  # what was answered, pack-years, kind
    ({"p20116": 0}, 0, "present"),
    ({"p20116": 1, "p2867": 20, "p2897": 40, "p2887": 20, "p2907": 0}, 20, "present"),
    ({"p20116": 1, "p2867": 20, "p2897": 40, "p2887": 20, "p2907": 1}, 19.5, "present"),
    ({"p20116": 1, "p2867": 20, "p2897": 40, "p2887": -10, "p2907": 0}, 0.5, "present"),  # half a cigarette
    ({"p20116": 2, "p3436": 18, "p3456": 15}, 31.5, "present"),  # 42 years until 60
    ({"p20116": 2, "p3436": 18, "p3456": 15, "p3486": 2}, 31.125, "present"),  # half a year less
    ({"p20116": 2, "p3436": 18, "p3456": 15, "p3486": 1}, 31.5, "present"),  # stopped for less than six months
    ({"p20116": 2, "p3436": 20, "p6183": 20, "p6194": 30}, 10, "present"),  # smokes a pipe now
    ({"p20116": 2, "p2867": 20, "p2897": 40, "p2887": 20, "p2907": 1}, 19.5, "present"),  # now and then, once on most days
    ({"p20116": 1, "p2867": 20, "p2897": 20, "p2887": 20, "p2907": 1}, 0, "present"),  # no year is less than none
    ({"p20116": -3}, None, "prefer_not_to_answer"),
    ({"p20116": None}, None, "empty"),
    ({"p20116": 1, "p2867": 20, "p2897": -1, "p2887": 20}, None, "do_not_know"),
    ({"p20116": 2, "p3436": 18, "p3456": -3}, None, "prefer_not_to_answer"),
    ({"p20116": 1, "p2867": 40, "p2897": 20, "p2887": 20}, None, "empty"),  # other questions are empty; no number anyhow
    ({"p20116": 1}, None, "empty"),  # an occasional smoker, who was not asked
]  # fmt: skip


def test_pack_years_by_hand():
    names = ["p20116", "p21003", *(f"p{number}" for number in formula("pack_years").fields[2:])]
    raw = {name: [60 if name == "p21003" else said.get(name) for said, _, _ in SMOKERS] for name in names}
    done = derive("pack_years", inputs(**raw))
    assert done.values.to_list() == [
        value if value is None else pytest.approx(value) for _, value, _ in SMOKERS
    ]
    assert kinds(done) == [kind for _, _, kind in SMOKERS]


def test_columns_are_those_of_the_visit_or_of_a_field_without_visits():
    there = ["p31", "p34", "p52", "p53_i0", "p53_i2", "p30700_i0", "p21003_i0", "p21003_i2"]
    assert input_columns("age", there, 2) == {34: "p34", 52: "p52", 53: "p53_i2"}
    assert input_columns("age", [name for name in there if name != "p52"], 0) == {34: "p34", 53: "p53_i0"}
    with pytest.raises(DictionaryError, match="'egfr' at visit 2: expected columns .*found none of 30700"):
        input_columns("egfr", there, 2)


def test_every_formula_says_what_it_is_and_reads_fields_of_the_dictionary():
    assert derived_table().height == len(DERIVED.names()) >= 4
    for one in map(formula, DERIVED.names()):
        assert one.title and one.units and one.source and set(one.optional) <= set(one.fields)
        assert all(field_id in D for field_id in one.fields)
    with pytest.raises(UkbmmError, match="derived field 'bmj': .*Did you mean 'bmi'"):
        formula("bmj")


def test_ones_own_formula_is_used_by_name_and_a_name_is_taken_once():
    try:

        @derived("test_ratio", "A ratio", "ratio", (48, 49), "none")
        def ratio(waist, hip):
            return waist / hip

        assert derive("test_ratio", inputs(p48=[90.0, 1.0], p49=[100.0, 0.0])).values.to_list() == [0.9, None]
        with pytest.raises(UkbmmError, match="expected a new name"):
            derived("test_ratio", "", "", (48,), "")(lambda waist: waist)
    finally:
        DERIVED.entries.pop("test_ratio", None)


def test_a_formula_without_its_fields_or_of_others_is_refused():
    height, weight = inputs(p50=[180.0, 160.0])[50], inputs(p21002=[81.0, 60.0])[21002]
    day = Cleaned(pl.Series("p53_i0", ["2008-05-01"] * 2).str.to_date(), height.kinds)
    text = Cleaned(pl.Series("p40001_i0", ["I10", "I21"]), height.kinds)
    for given, message in (
        ({}, "expected columns of the fields 21002, 50, found none of 21002, 50"),
        ({50: height}, "expected columns of the fields 21002, 50, found none of 21002"),
        ({50: height, 21002: text}, "column p40001_i0 of a formula: expected numbers or dates, found values of type String"),
        ({50: height, 21002: day}, "expected fields of the types that its formula takes, found 21002: dates, 50: numbers"),
        ({50: height, 21002: Cleaned(weight.values[:1], weight.kinds[:1])}, "expected columns of the same participants"),
    ):  # fmt: skip
        with pytest.raises(DictionaryError, match=message):
            derive("bmi", given)
