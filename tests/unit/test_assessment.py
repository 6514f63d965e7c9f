"What is measured in invented people: spreads, gaps, correlations and rules are those of the plan, and agree with each other."

import datetime

import numpy as np
import polars as pl
import pytest
from shared_data import shared_data

from ukbmm.biobank import assessment
from ukbmm.biobank.assessment import (
    DRAWS,
    Measure,
    count_table,
    draw_assessment,
    in_order,
    lognormal_parameters,
    occasions,
    plan,
    score_weights,
    values_of,
)
from ukbmm.biobank.cleaning import clean_column
from ukbmm.biobank.derived import PACK_FIELDS, derive, formula
from ukbmm.biobank.dictionary import Dictionary, Field
from ukbmm.biobank.health import draw_onsets
from ukbmm.biobank.names import parse_name
from ukbmm.biobank.population import CHUNK, draw_people
from ukbmm.biobank.summaries import HEALTH_FIELDS
from ukbmm.core import DictionaryError, rng_for

SPECIAL = [-1, -2, -3, -7, -10]


@pytest.fixture(scope="module")
def chunks() -> list[tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]]:
    "People, onsets and all fields of three chunks."
    made = []
    for chunk in range(3):
        people = draw_people(chunk, seed=2, variants=200)
        onsets = draw_onsets(people, rng_for(2, "onsets", chunk))
        made.append((people, onsets, draw_assessment(people, onsets, chunk, seed=2)))
    return made


@pytest.fixture(scope="module")
def people(chunks) -> pl.DataFrame:
    return pl.concat(people for people, _, _ in chunks)


@pytest.fixture(scope="module")
def onsets(chunks) -> pl.DataFrame:
    return pl.concat(onsets for _, onsets, _ in chunks)


@pytest.fixture(scope="module")
def table(chunks) -> pl.DataFrame:
    return pl.concat(table for _, _, table in chunks)


def columns_of(table: pl.DataFrame, number: int, occasion: int | None = None) -> list[str]:
    "Columns of a field, at one occasion or at all."
    parsed = {name: parse_name(name)[0] for name in table.columns}
    return [
        name
        for name, c in parsed.items()
        if c.field_id == number and (occasion is None or (c.instance or 0) == occasion)
    ]


def first_values(table: pl.DataFrame, number: int) -> np.ndarray:
    "Every value of a number field at its first occasion, without special codes."
    names = columns_of(table, number, occasions(plan()[number])[0])
    values = np.concatenate([table[name].drop_nulls().cast(pl.Float64).to_numpy() for name in names])
    return values[~np.isin(values, SPECIAL)] if plan()[number].field.coding else values


# ---- against the showcase ---------------------------------------------------------------------------------------


BEYOND = {  # fields beyond the list, for pack-years: participants, published mean and standard deviation
    2867: (125_778, 17.0739, 2.87232),  # age started smoking, of former smokers
    2897: (125_778, 38.452, 11.9159),  # age stopped
    3436: (39_697, 19.0231, 7.39343),  # age started, of current smokers
}


@pytest.fixture(scope="module")
def listed() -> pl.DataFrame:
    "The real fields that a synthetic biobank shall have; two are listed twice."
    path = shared_data("ukb_metadata/synthetic_fields.tsv")
    return pl.read_csv(path, separator="\t", quote_char=None).unique("field_id", maintain_order=True)


@pytest.fixture(scope="module")
def facts(listed) -> pl.DataFrame:
    "The same, and the fields beyond the list."
    names = ["field_id", "n_participants", "showcase_mean", "showcase_sd"]
    more = pl.DataFrame([(number, *rest) for number, rest in BEYOND.items()], schema=names, orient="row")
    return pl.concat([listed.select(names), more], how="vertical_relaxed")


def test_every_field_of_the_list_is_planned_or_follows_from_records(listed):
    wanted = set(listed["field_id"])
    assert len(wanted) == 462 and wanted - set(plan()) - set(HEALTH_FIELDS) == {
        40010
    }  # which `synthetic` makes
    assert set(plan()) - wanted == set(BEYOND) and not set(plan()) & set(HEALTH_FIELDS)


def test_every_planned_field_has_its_columns(table):
    for number, measure in plan().items():
        field, found = measure.field, columns_of(table, number)
        arrays = field.array_max - measure.array_min + 1 if field.arrayed and measure.shape != "many" else 1
        assert len(found) == len(occasions(measure)) * arrays, field.title


SHARE_OTHERWISE = {
    100002,  # of five diets online; the showcase counts whoever filled in one of them
    20001, 20006, 20007,  # self-reported cancer at any of four visits
}  # fmt: skip


def test_as_many_people_have_each_field_as_in_the_showcase(table, facts):
    published = dict(facts.select("field_id", pl.col("n_participants") / 501_938).rows())
    for number in set(plan()) - SHARE_OTHERWISE:
        names = columns_of(table, number, occasions(plan()[number])[0])
        share = table.select(pl.any_horizontal(pl.col(names).is_not_null()).mean()).item()
        assert abs(share - published[number]) < 0.02 + 0.05 * published[number], plan()[number].field.title
    diets = columns_of(table, 100002)
    assert abs(table.select(pl.any_horizontal(pl.col(diets).is_not_null()).mean()).item() - 0.42) < 0.02


SPREAD_OTHERWISE = {
    21003,  # published over imaging visits
    2976,  # age at onset is that of `health`
    20006, 20007, 20008, 20009, 20010, 20011,  # published over all visits, twenty years of them
    398, 399,  # two rounds of known length here, three of a pilot study in the showcase
    135, 22421, 22422, 22424, 22425, 22040, 30120,  # published spread is of outliers
}  # fmt: skip


def test_means_and_spreads_are_those_of_the_showcase(table, facts):
    published = {
        row[0]: row[1:]
        for row in facts.select("field_id", "showcase_mean", "showcase_sd").drop_nulls().rows()
    }
    seen = 0
    for number in (set(plan()) & set(published)) - SPREAD_OTHERWISE:
        mean, sd = published[number]
        values = first_values(table, number)
        at_imaging = occasions(plan()[number])[0] >= 2  # people who come to be imaged are leaner
        title = plan()[number].field.title
        assert abs(values.mean() - mean) < (0.2 if at_imaging else 0.1) * sd + 4 * sd / np.sqrt(
            len(values)
        ), title
        assert 0.72 < values.std() / sd < 1.28, title
        seen += 1
    assert seen > 200


def test_what_is_planned_is_what_the_showcase_publishes(facts):
    for number, mean, sd in facts.select("field_id", "showcase_mean", "showcase_sd").drop_nulls().rows():
        if number in plan():
            assert plan()[number].mean == pytest.approx(mean, rel=1e-4) and plan()[
                number
            ].sd == pytest.approx(sd, rel=1e-4)


# ---- types and codes --------------------------------------------------------------------------------------------


def test_columns_have_the_types_of_their_fields(table):
    for name in table.columns:
        field = plan()[parse_name(name)[0].field_id].field
        dtype = pl.List(field.dtype) if field.value_type == "categorical_multiple" else field.dtype
        assert table.schema[name] == dtype, name
    order = [tuple(-1 if part is None else part for part in parse_name(name)[0]) for name in table.columns]
    assert order == sorted(order)


def test_every_code_belongs_to_its_coding_and_its_label_to_no_other_code(table):
    dictionary, seen = Dictionary.builtin(), 0
    for number, measure in plan().items():
        labels = dictionary.labels.get(measure.field.coding or -1)
        if not measure.field.is_category or not labels:
            continue
        repeated = (
            {code for code, label in labels.items() if list(labels.values()).count(label) > 1}
            if len(labels) < 1000
            else set()
        )
        repeated |= {"1195", "1140909726"}  # vitamin c product, of 6,745 medicines
        for name in columns_of(table, number):
            values = table[name].explode() if measure.shape == "many" else table[name]
            codes = set(values.drop_nulls().unique().cast(pl.String))
            assert codes <= set(labels) and not codes & repeated, (
                name,
                codes - set(labels),
                codes & repeated,
            )
            seen += len(codes)
    assert seen > 1500


def test_special_answers_are_given_and_only_where_the_coding_has_them(table):
    labels = Dictionary.builtin().labels
    for number, measure in plan().items():
        if measure.shape != "count" or measure.number("low", 0) < 0:
            continue
        values = set(
            np.concatenate([table[name].drop_nulls().unique() for name in columns_of(table, number)]).tolist()
        )
        negative = {int(value) for value in values if value < 0}
        assert negative <= {int(code) for code in labels.get(measure.field.coding or -1, {})}, (
            measure.field.title
        )
    television = table["p1070_i0"].drop_nulls()
    for code, share in {-10: 0.045, -1: 0.01, -3: 0.003}.items():
        assert abs((television == code).mean() - share) < 0.005
    hours = television.filter(television >= 0)
    assert hours.min() >= 0 and abs(hours.mean() - 2.864) < 0.1


# ---- correlations -----------------------------------------------------------------------------------------------


def test_correlations_of_fields_are_those_of_the_plan(table):
    "Scores of normal fields are their values: the correlation follows from the rows of weights."
    numbers = [number for number, m in plan().items() if m.shape == "normal" and occasions(m)[0] == 0 and not m.field.arrayed
               and not m.rule and m.share > 0.8]  # fmt: skip
    assert len(numbers) > 20
    values = table.select(columns_of(table, number, 0)[0] for number in numbers)
    for i, a in enumerate(numbers):
        for b in numbers[:i]:
            both = values.select(columns_of(table, a, 0) + columns_of(table, b, 0)).drop_nulls().to_numpy()
            found, expected = np.corrcoef(both.T)[0, 1], score_weights()[a] @ score_weights()[b]
            assert abs(found - expected) < 0.05, (a, b, found, expected)


def correlation(table: pl.DataFrame, a: str, b: str) -> float:
    both = table.select(a, b).drop_nulls().to_numpy().astype(float)
    return float(np.corrcoef(both.T)[0, 1])


def test_two_readings_two_sides_and_two_visits_resemble_each_other(table):
    assert abs(correlation(table, "p4080_i0_a0", "p4080_i0_a1") - 0.85) < 0.02
    for left, right in ((46, 47), (25011, 25012), (25019, 25020), (5084, 5085)):
        names = [columns_of(table, number, occasions(plan()[number])[0])[0] for number in (left, right)]
        assert 0.8 < correlation(table, *names) < 0.98
    assert correlation(table, "p50_i0", "p50_i2") > 0.97
    assert 0.6 < correlation(table, "p30750_i0", "p30750_i1") < 0.99
    assert 0.4 < correlation(table, "p30710_i0", "p30710_i1") < 0.95


def test_men_and_women_differ_where_they_do(table):
    men = table["p31"] == 1
    testosterone = [table.filter(who)["p30850_i0"].median() for who in (men, ~men)]
    assert testosterone[0] > 9 and testosterone[1] < 2.5
    for name, least in (("p50_i0", 11), ("p30880_i0", 60), ("p30700_i0", 15)):
        assert table.filter(men)[name].mean() - table.filter(~men)[name].mean() > least
    assert table.filter(men)["p23099_i0"].mean() < table.filter(~men)["p23099_i0"].mean() - 8


def test_hba1c_measures_glycaemia(table, people):
    both = people.select("glycaemia").with_columns(table["p30750_i0"]).drop_nulls().to_numpy()
    assert abs(np.corrcoef(both.T)[0, 1] - 0.97) < 0.005
    assert plan()[30750].loads == {"glycaemia": 0.97}


def test_images_know_what_the_imaging_cause_is(table, people):
    for name, sign in (("p25005_i2", -1), ("p25781_i2", 1), ("p25019_i2", -1)):
        both = people.select("imaging").with_columns(table[name]).drop_nulls().to_numpy()
        assert sign * np.corrcoef(both.T)[0, 1] > 0.3
    assert table["p25005_i2"].count() / table.height < 0.2 and "p25005_i0" not in table.columns


# ---- gaps -------------------------------------------------------------------------------------------------------


def test_a_lost_tube_takes_every_serum_value_with_it(table):
    serum = [
        columns_of(table, number, 0)[0]
        for number, m in plan().items()
        if m.options.get("draw") == "serum" and m.group == "Blood biochemistry"
    ]
    assert len(serum) > 25
    nothing = table.select(pl.all_horizontal(pl.col(serum).is_null())).to_series()
    assert abs(nothing.mean() - (1 - DRAWS["serum"])) < 0.01
    some = table.filter(~nothing)
    cholesterol, albumin = (some[name].is_null().mean() for name in ("p30690_i0", "p30600_i0"))
    assert cholesterol < 0.03 and abs(albumin - (1 - 0.86 / DRAWS["serum"])) < 0.015
    together = some.select((pl.col("p30690_i0").is_null() & pl.col("p30600_i0").is_null()).mean()).item()
    assert abs(together - cholesterol * albumin) < 0.005  # what is left is lost one by one


def test_what_cannot_be_detected_is_missing_not_at_random(table, people):
    has = {number: table[f"p{number}_i0"].is_not_null() for number in (30790, 30800, 30820, 30500)}
    for number, share in {30790: 0.752, 30800: 0.155, 30820: 0.084, 30500: 0.312}.items():
        assert abs(has[number].mean() - share) < 0.015
    inflamed = [people.filter(who)["inflammation"].mean() for who in (has[30820], ~has[30820])]
    assert inflamed[0] - inflamed[1] > 0.25
    kidneys = [people.filter(who)["kidney"].mean() for who in (has[30500], ~has[30500])]
    assert kidneys[0] - kidneys[1] > 0.4
    young_women = (people["sex"] == 0) & (people["age_z"] < -0.5)
    old_men = (people["sex"] == 1) & (people["age_z"] > 0.5)
    assert has[30800].filter(young_women).mean() > 0.35 and has[30800].filter(old_men).mean() < 0.05
    assert table["p30800_i0"].min() >= 175 and table["p30820_i0"].min() >= 10


def test_arrays_are_filled_from_left_to_right(table):
    for number in (3062, 5084, 4080, 5983, 3166):
        names = columns_of(table, number, 0)
        present = table.select(pl.col(names).is_not_null()).to_numpy()
        assert (
            not (present[:, 1:] & ~present[:, :-1]).any() and present[:, 0].mean() > present[:, 1].mean() > 0
        ), number


# ---- what must agree --------------------------------------------------------------------------------------------


def test_ages_and_dates_agree(table, people):
    assert table["p34"].equals(people["birth"].dt.year().cast(pl.Int64).alias("p34"))
    assert (table["p52"] == people["birth"].dt.month()).all()
    for i in range(4):
        visits, ages = table[f"p53_i{i}"], table[f"p21003_i{i}"]
        assert visits.equals(people[f"visit_{i}"].alias(f"p53_i{i}"))
        for birth, visit, age in list(zip(people["birth"], visits, ages, strict=True))[:1500]:
            if visit is None:
                assert age is None
            else:
                turned = datetime.date(visit.year, birth.month, min(birth.day, 28))
                assert abs((visit - turned).days) < 3 or age == visit.year - birth.year - (visit < turned)
    assert table["p21003_i0"].equals(table["p21022"].alias("p21003_i0"))
    assert table["p21022"].is_between(40, 69).all()
    assert (table["p53_i1"] > table["p53_i0"]).drop_nulls().all() and (
        table["p53_i3"] > table["p53_i2"]
    ).drop_nulls().all()
    assert (table["p3166_i0_a0"].cast(pl.Date) == table["p53_i0"]).drop_nulls().all()
    worn = table["p90011"] - table["p90010"]
    assert worn.drop_nulls().dt.total_hours().is_between(160, 170).all()


IDENTITIES = {
    "p21001_i0": "p21002_i0 * 10000 / (p50_i0 * p50_i0)",
    "p23101_i0": "p21002_i0 - p23100_i0",
    "p30120_i0": "p30000_i0 * p30180_i0 / 100",
    "p30040_i0": "p30030_i0 / p30010_i0 * 10",
    "p30250_i0": "p30010_i0 * p30240_i0 / 100",
    "p23400_i0": "p23401_i0 + p23406_i0",
    "p23401_i0": "p23402_i0 + p23405_i0",
    "p24102_i2": "p24100_i2 - p24101_i2",
    "p25009_i2": "p25005_i2 + p25007_i2",
    "p90052": "7 - p90051",
    "p189": "p22189",
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_what_follows_from_other_fields_does(table, name):
    expected = table.select(pl.sql_expr(IDENTITIES[name])).to_series()
    both = pl.DataFrame({"found": table[name], "expected": expected}).drop_nulls()
    assert both.height > 400
    np.testing.assert_allclose(both["found"], both["expected"], rtol=1e-3, atol=0.006)


def test_cholesterols_by_nmr_are_positive_and_go_with_those_of_the_laboratory(table):
    names = [f"p{number}_i0" for number in range(23400, 23409)]
    assert all(0 < low for low in table.select(names).min().row(0))
    total = table["p23400_i0"].drop_nulls()
    assert abs(total.mean() - 4.65) < 0.1 and abs(total.std() - 0.93) < 0.1
    for a, b in ((23400, 30690), (23405, 30780), (23406, 30760)):
        assert correlation(table, f"p{a}_i0", f"p{b}_i0") > 0.75


def test_percentages_of_white_cells_add_up(table):
    parts = table.select("p30180_i0", "p30190_i0", "p30200_i0", "p30210_i0", "p30220_i0").drop_nulls()
    np.testing.assert_allclose(parts.sum_horizontal(), 100, atol=0.03)
    assert parts.min_horizontal().min() >= 0


def test_smoking_is_one_story(table):
    status = table["p20116_i0"]
    assert (table.filter(status == 2)["p1239_i0"] > 0).all() and (
        table.filter(status == 0)["p1239_i0"] == 0
    ).all()
    assert table.filter(status == 0)["p2887_i0"].null_count() == (status == 0).sum()
    assert table.filter(table["p1239_i0"] == 1)["p3456_i0"].count() > 0.99 * (table["p1239_i0"] == 1).sum()
    assert table.filter(pl.col("p20161_i0").is_not_null())["p20116_i0"].min() >= 1


@pytest.mark.parametrize("visit", range(4))
def test_the_derived_pack_years_are_field_20161(table, visit):
    there = [number for number in PACK_FIELDS if f"p{number}_i{visit}" in table.columns]
    assert set(PACK_FIELDS) - set(there) == set(formula("pack_years").optional)  # all that must be there
    given = {number: clean_column(table[f"p{number}_i{visit}"], plan()[number].field) for number in there}
    values = {
        "stated": table[f"p20161_i{visit}"],
        "derived": derive("pack_years", given).values,
        "status": table[f"p20116_i{visit}"],
    }
    both = pl.DataFrame(values).drop_nulls(["stated", "derived"])
    assert both.height > (3000, 80, 400, 20)[visit] and set(both["status"]) == {1, 2}
    np.testing.assert_allclose(both["stated"], both["derived"], atol=0.0051)  # two digits
    never = pl.DataFrame(values).filter(pl.col("status") == 0)
    assert never["derived"].max() == 0 and never["stated"].null_count() == never.height


@pytest.mark.parametrize("visit", range(4))
def test_smokers_start_before_they_stop_and_stop_before_they_are_asked(table, visit):
    started, stopped, now = (pl.col(f"p{number}_i{visit}") for number in (2867, 2897, 3436))
    age = pl.col(f"p21003_i{visit}")
    for wrong in (stopped <= started, stopped > age, now > age, (started < 8) & (started > 0)):
        known = (started >= 0) | (now >= 0)
        assert table.filter(known & (stopped.is_null() | (stopped >= 0)) & wrong).is_empty()
    assert table.filter(
        started.is_not_null() & now.is_not_null()
    ).is_empty()  # former smokers or current ones
    assert table.filter(started.is_not_null()).select((pl.col(f"p1249_i{visit}") == 1).all()).item()
    assert table.filter(now.is_not_null()).select((pl.col(f"p1239_i{visit}") == 1).all()).item()
    specials = [table[f"p{number}_i0"].is_in([-1, -3]).sum() for number in (2867, 2897, 3436)]
    assert min(specials) > 0


def test_former_smokers_say_the_same_ages_at_each_visit(table):
    both = table.select("p2867_i0", "p2867_i2", "p2897_i0", "p2897_i2").drop_nulls()
    both = both.filter(pl.all_horizontal(pl.all() >= 0))
    assert both.height > 150
    for number in (2867, 2897):
        apart = (both[f"p{number}_i0"] - both[f"p{number}_i2"]).abs()
        assert apart.mean() < 1 and apart.max() <= 4


def test_genetic_sex_is_sex_but_for_a_few(table, people):
    both = table.select("p31", "p22001").drop_nulls()
    differ = (both["p31"] != both["p22001"]).mean()
    assert 0 < differ < 0.003 and table["p22001"].is_not_null().equals(people["genotyped"].alias("p22001"))
    kin = table["p22021"].drop_nulls()
    assert abs((kin == 1).mean() - 0.29) < 0.02 and set(kin) == {-1, 0, 1}
    used = people.filter(table["p22020"] == 1)
    assert (used["proband"] | (used["relatives"] == 0)).all()


def test_a_multiple_choice_holds_none_of_the_above_alone(table):
    for number, measure in plan().items():
        if measure.shape != "many":
            continue
        alone = {int(measure.options["none"])} if "none" in measure.options else set()
        alone |= set(measure.chances("special"))
        for name in columns_of(table, number):
            lists = table[name].drop_nulls()
            lengths = lists.list.len()
            assert (lengths >= 1).all() and lengths.max() <= measure.field.array_max + 1
            assert (lists.list.n_unique() == lengths).all()
            for code in alone:
                assert (lengths.filter(lists.list.contains(code)) == 1).all(), (name, code)
    assert table["p6150_i0"].list.contains(-7).mean() > 0.55 and "p6150_i3" not in table.columns


def test_people_report_the_diseases_they_have_and_no_others(table, people, onsets):
    has = (onsets["hypertension"] <= people["visit_0"]).fill_null(False)
    says = table["p20002_i0"].list.contains(1065).fill_null(False)
    assert not (says & ~has).any() and abs(says.sum() / has.sum() - 0.85) < 0.03
    diabetic = (
        (onsets["type_2_diabetes"] <= people["visit_0"]) | (onsets["type_1_diabetes"] <= people["visit_0"])
    ).fill_null(False)
    assert (table.filter(table["p2443_i0"] == 1).height <= diabetic.sum()) and not (
        (table["p2443_i0"] == 1) & ~diabetic
    ).any()
    assert table.filter(table["p2443_i0"] == 1)["p2976_i0"].null_count() == 0
    metformin = table["p20003_i0"].list.contains(1140884600).fill_null(False)
    assert metformin.any() and not (metformin & ~diabetic).any()
    assert not table.filter(table["p31"] == 0)["p20004_i0"].list.contains(1218).any()  # vasectomy
    assert (
        table.filter(table["p31"] == 1)["p6153_i0"].count()
        == table.filter(table["p31"] == 0)["p6177_i0"].count()
        == 0
    )


def test_a_time_stands_beside_each_thing_in_a_list(table):
    for number, times in {20002: (20008, 20009, 20013), 20004: (20010, 20011), 20001: (20006, 20007)}.items():
        lengths = table[f"p{number}_i0"].list.len().fill_null(0).to_numpy()
        for other in times:
            values = table.select(columns_of(table, other, 0))
            assert (
                values.select(pl.sum_horizontal(pl.all().is_not_null())).to_series().to_numpy() == lengths
            ).all()
            present = values.select(pl.all().is_not_null()).to_numpy()
            assert not (present[:, 1:] & ~present[:, :-1]).any()
    both = table.select("p20008_i0_a0", "p20009_i0_a0", "p34", "p21003_i0").filter(
        pl.col("p20009_i0_a0") >= 0
    )
    assert ((both["p20008_i0_a0"] - both["p20009_i0_a0"] - both["p34"]).is_between(-0.11, 1.11)).all()
    assert (both["p20009_i0_a0"] <= both["p21003_i0"] + 1).all()
    assert abs((table["p20009_i0_a0"].drop_nulls() == -1).mean() - 0.05) < 0.02


# ---- how it is made ---------------------------------------------------------------------------------------------


def test_a_field_is_the_same_whatever_else_is_made(chunks):
    people, onsets, table = chunks[1]
    for fields in ([30750], [20009, 31], [25010, 4079]):
        some = draw_assessment(people, onsets, 1, 2, fields)
        assert {parse_name(name)[0].field_id for name in some.columns} == set(fields)
        assert some.equals(table.select(some.columns))


def test_another_seed_and_another_chunk_give_other_values(chunks):
    people, onsets, table = chunks[0]
    for chunk, seed in ((1, 2), (0, 3)):
        assert not draw_assessment(people, onsets, chunk, seed, [30690])["p30690_i0"].equals(
            table["p30690_i0"]
        )


def test_the_order_of_filling_puts_what_is_needed_first():
    order = in_order()
    assert sorted(order) == sorted(plan())
    for number in order:
        needed = set(in_order([number])) - {number}
        assert all(order.index(other) < order.index(number) for other in needed)
    with pytest.raises(DictionaryError, match="a field that the synthetic biobank can fill"):
        in_order([31, 25])


def test_a_plan_that_explains_more_than_everything_is_refused(monkeypatch):
    field = Field(990001, "Example", "continuous")
    line = Measure(
        field, "Example", "normal", {"adiposity": 0.9, "lipids": 0.7}, {}, "", {}, 0, 0, 1.0, 0.0, 1.0
    )
    monkeypatch.setattr(assessment, "plan", lambda: {990001: line})
    with pytest.raises(DictionaryError, match="loads that explain less than everything"):
        score_weights.__wrapped__()


@pytest.mark.parametrize(
    ("mean", "sd", "sex_load"), [(2.33, 4.06, 0.0), (7.2, 6.19, 0.93), (84.6, 24.1, -0.3), (0.05, 0.002, 0.5)]
)
def test_lognormal_parameters_give_the_mean_and_spread_asked_for(mean, sd, sex_load):
    rng = np.random.default_rng(0)
    women = rng.random(2_000_000) < 0.544
    score = sex_load * np.where(women, *assessment.SEX_SCORES) + np.sqrt(1 - sex_load**2) * rng.normal(
        size=len(women)
    )
    start, rate = lognormal_parameters(mean, sd, sex_load)
    values = np.exp(start + rate * score)
    assert values.mean() == pytest.approx(mean, rel=0.01) and values.std() == pytest.approx(sd, rel=0.06)


@pytest.mark.parametrize(
    ("mean", "sd", "low", "high"),
    [(2.4, 1.5, 0, 15), (6.7, 2.0, 0, 13), (7.1, 1.04, 3, 12), (5.8, 1.7, 0, 7)],
)
def test_count_tables_have_the_mean_and_spread_asked_for(mean, sd, low, high):
    shares = np.diff(count_table(mean, sd, low, high), prepend=0)
    counts = np.arange(low, high + 1)
    assert shares.min() >= 0 and shares.sum() == pytest.approx(1)
    assert abs(shares @ counts - mean) < 0.15 and abs(np.sqrt(shares @ (counts - mean) ** 2) - sd) < 0.15


def test_detected_values_have_the_published_spread_whatever_share_is_detected():
    score = np.random.default_rng(0).normal(size=500_000)
    for share in (0.1, 0.5, 0.9):
        line = Measure(Field(990001, "Example", "continuous"), "", "lognormal", {}, {}, "", {"below": "yes", "draw": "serum"}, 0, 0,
                       share * DRAWS["serum"], 20.0, 8.0)  # fmt: skip
        values = values_of(line, score)
        seen = ~np.isnan(values)
        assert abs(seen.mean() - share) < 0.003 and score[seen].min() > score[~seen].max()
        assert abs(values[seen].mean() - 20) < 0.15 and abs(values[seen].std() - 8) < 0.2


def test_a_chunk_is_measured_whole():
    assert CHUNK == 4000 and draw_people(0, 1, 20).height == CHUNK
