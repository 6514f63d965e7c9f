"Onsets follow the stated hazards, records follow the onsets, and every summary field follows from the records."

import datetime
import json
from collections import defaultdict
from functools import cache

import numpy as np
import polars as pl
import pytest
from scipy.stats import chi2

from tests.shared_data import shared_data
from ukbmm.biobank import records as tables
from ukbmm.biobank.dictionary import Dictionary
from ukbmm.biobank.health import (
    DISEASES,
    HAZARDS,
    HORIZON,
    Hazard,
    draw_onsets,
    health_truth,
    log_ratio,
    onset_age,
)
from ukbmm.biobank.names import canonical, parse_name
from ukbmm.biobank.population import draw_people
from ukbmm.biobank.records import (
    GP_ENDS,
    PROVIDERS,
    SPECIAL_DATES,
    TABLES,
    Volume,
    draw_records,
    lost_reason,
    record_files,
)
from ukbmm.biobank.summaries import (
    CODE_LISTS,
    COUNTS,
    HEALTH_FIELDS,
    OCCURRENCES,
    OUTCOMES,
    first_occurrences,
    outcomes,
    summarise,
)
from ukbmm.biobank.traces import NO_OPERATION, OTHER_CAUSES, TRACES
from ukbmm.core import TableError, UkbmmError, rng_for

DATES = {
    "hesin": ["epistart", "epiend", "admidate", "disdate"],
    "hesin_oper": ["opdate"],
    "death": ["date_of_death"],
    "cancer": ["date"],
    "gp_clinical": ["event_dt"],
    "gp_scripts": ["issue_date"],
    "gp_registrations": ["reg_date", "deduct_date"],
}


def day(text):
    return datetime.date.fromisoformat(text)


@pytest.fixture(scope="module")
def cohort():
    "20,000 people, their onsets, records and fields."
    people = pl.concat([draw_people(chunk, seed=3, variants=200) for chunk in range(5)])
    leave = pl.Series(rng_for(3, "leave").random(people.height) < 0.01)  # more are lost than in reality
    people = people.with_columns(lost=pl.when(leave).then(day("2013-06-30")).otherwise("lost"))
    onsets = draw_onsets(people, rng_for(3, "onsets"))
    records = draw_records(people, onsets, rng_for(3, "records"))
    return people, onsets, records, summarise(people, records)


# --- hazards


def cumulative(hazard, ratio, entry, changed, ages):
    "The cumulative hazard from entry by adding up thin slices."
    edges = np.linspace(entry, ages.max(), 200_001)
    middle, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    rate = hazard.shape / hazard.scale * (middle / hazard.scale) ** (hazard.shape - 1) * np.exp(ratio)
    rate = np.where(middle > changed, rate * np.exp(hazard.after_effect), rate)
    return np.interp(ages, edges[1:], np.cumsum(rate * width))


@pytest.mark.parametrize(("shape", "effect"), [(1.0, 0.7), (0.8, -1.0), (5.0, 2.0), (12.0, 0.0)])
@pytest.mark.parametrize(("entry", "changed"), [(0.0, np.inf), (0.0, 55.0), (50.0, 62.0), (50.0, 30.0)])
def test_an_onset_is_where_the_integral_of_the_hazard_reaches_the_drawn_number(shape, effect, entry, changed):
    hazard = Hazard(shape, 90.0, {}, after="other", after_effect=effect)
    ages = np.linspace(entry + 2, 95, 40)
    drawn = cumulative(hazard, 0.4, entry, changed, ages)
    n = len(ages)
    found = onset_age(hazard, np.full(n, 0.4), np.full(n, entry), np.full(n, changed), drawn)
    np.testing.assert_allclose(found, ages, rtol=1e-4, atol=1e-3)


def test_the_sum_over_causes_is_that_of_the_table():
    people = draw_people(0, seed=1, variants=50)
    hazard = HAZARDS["type_2_diabetes"]
    by_hand = sum(
        hazard.effects[name] * people[name].to_numpy()
        for name in ("sex", "adiposity", "glycaemia", "genetic")
    )
    by_hand = (
        by_hand
        + hazard.effects["genetic x adiposity"]
        * people["genetic"].to_numpy()
        * people["adiposity"].to_numpy()
    )
    np.testing.assert_allclose(log_ratio(hazard, people), by_hand, atol=1e-12)
    prostate = log_ratio(HAZARDS["prostate_cancer"], people)
    assert ((prostate == -np.inf) == (people["sex"] == 0).to_numpy()).all()


def test_a_cause_that_is_no_column_is_named():
    with pytest.raises(TableError, match="adiposity"):
        draw_onsets(draw_people(0, seed=1, variants=50).drop("adiposity"), rng_for(1, "x"))


def counting_process_cox(x, start, stop, event):
    "Log hazard ratios and their covariance, one event time after the other."
    beta = np.zeros(x.shape[1])
    order = np.argsort(-stop)
    x, start, stop, event = x[order], start[order], stop[order], event[order]
    by_start = np.argsort(-start)
    later = np.searchsorted(-stop, -stop[event], side="right")
    not_yet = np.searchsorted(-start[by_start], -stop[event], side="right")
    for _ in range(12):
        w = np.exp(x @ beta)
        outer = np.einsum("ni,nj->nij", x, x).reshape(len(x), -1)
        full = np.concatenate([np.ones((len(x), 1)), x, outer], axis=1) * w[:, None]
        zero = np.zeros((1, full.shape[1]))
        ended, begun = (np.concatenate([zero, np.cumsum(full[i], axis=0)]) for i in (slice(None), by_start))
        s = ended[later] - begun[not_yet]
        mean = s[:, 1 : 1 + x.shape[1]] / s[:, :1]
        square = (s[:, 1 + x.shape[1] :] / s[:, :1]).reshape(-1, x.shape[1], x.shape[1])
        information = (square - np.einsum("ni,nj->nij", mean, mean)).sum(0)
        step = np.linalg.solve(information, (x[event] - mean).sum(0))
        beta = beta + step.clip(-0.7, 0.7)
    assert np.abs(step).max() < 1e-6
    return beta, np.linalg.inv(information)


def rows_at_risk(people, onsets, name, more=()):
    "Covariates, age at start and stop, and event, from the first visit; two rows for whom another disease changes."
    hazard = HAZARDS[name]
    birth = people["birth"].to_physical().to_numpy().astype(float)
    age = {column: (people[column] if column in people.columns else onsets[column]).to_physical().cast(pl.Float64).fill_null(np.inf).to_numpy() - birth
           for column in ("visit_0", "death", *DISEASES)}  # fmt: skip
    last = np.minimum(age["death"], (HORIZON - day("1970-01-01")).days - birth)
    own = (
        np.where(onsets["cause"].eq_missing("other_death").to_numpy(), age["death"], np.inf)
        if name == "other_death"
        else age[name]
    )
    names = [cause for cause in (*hazard.effects, *more) if cause != "sex" or hazard.only is None]
    x = np.column_stack(
        [
            np.prod([people[part].to_numpy().astype(float) for part in cause.split(" x ")], axis=0)
            for cause in names
        ]
    )
    use = (own > age["visit_0"]) & (log_ratio(hazard, people) > -np.inf)
    start, stop, event = age["visit_0"][use], np.minimum(own, last)[use], (own <= last)[use]
    stop = stop + 0.5  # an event on the day of the visit is at risk
    changed = age[hazard.after][use] if hazard.after else np.full(use.sum(), np.inf)
    before = changed > start
    after = changed < stop
    pieces = [
        (before, start, np.minimum(stop, changed), event & ~after, 0.0),
        (after, np.maximum(start, changed), stop, event, 1.0),
    ]
    x = x[use]
    out = [np.concatenate([part]) for part in (
        np.concatenate([np.column_stack([x[keep], np.full(keep.sum(), flag)]) for keep, *_, flag in pieces]),
        *(np.concatenate([piece[i][piece[0]] for piece in pieces]) for i in (1, 2, 3)),
    )]  # fmt: skip
    if hazard.after is None:
        out[0] = out[0][:, :-1]
    planted = [hazard.effects.get(cause, 0.0) for cause in names] + (
        [hazard.after_effect] if hazard.after else []
    )
    keep = out[2] > out[1]
    return tuple(part[keep] for part in out), np.array(planted)


COMMON = [name for name in HAZARDS if name not in (
    "subarachnoid_haemorrhage", "frontotemporal_dementia", "supranuclear_palsy", "system_atrophy", "motor_neurone_disease",
    "kidney_failure", "type_1_diabetes", "cerebral_haemorrhage", "vascular_dementia", "cervical_neoplasia",
)]  # fmt: skip


@pytest.fixture(scope="module")
def fits(cohort):
    "What Cox regression finds of each common disease: number of events, planted and found coefficients, covariance."
    found = {}
    for name in COMMON:
        (x, start, stop, event), planted = rows_at_risk(*cohort[:2], name)
        found[name] = (event.sum(), planted, *counting_process_cox(x, start, stop, event))
    return found


@pytest.mark.parametrize("name", COMMON)
def test_cox_regression_finds_the_planted_coefficients(fits, name):
    events, planted, found, covariance = fits[name]
    assert events > 90
    error = found - planted
    assert (np.abs(error) < 4 * np.sqrt(np.diag(covariance))).all()
    together = error @ np.linalg.solve(covariance, error)
    assert together < chi2.isf(1e-5, len(planted))  # a chi-square with as many degrees of freedom


def test_the_planted_interaction_is_there_and_no_other(cohort):
    more = ("genetic x smoking", "cognition", "lipids x adiposity")
    (x, start, stop, event), planted = rows_at_risk(*cohort[:2], "type_2_diabetes", more)
    found, covariance = counting_process_cox(x, start, stop, event)
    z = found / np.sqrt(np.diag(covariance))
    assert z[4] > 5 and planted[4] == 0.25 and (np.abs(z[5:]) < 4).all()


def test_the_error_of_the_estimates_is_as_large_as_stated(fits):
    squares = [
        z
        for _, planted, found, covariance in fits.values()
        for z in (found - planted) ** 2 / np.diag(covariance)
    ]
    assert len(squares) > 60 and 0.6 < np.mean(squares) < 1.5


def test_death_ends_everything(cohort):
    people, onsets, _, _ = cohort
    assert (
        onsets.select(pl.any_horizontal(pl.col(name) > pl.col("death") for name in DISEASES).any()).item()
        is False
    )
    assert (onsets["death"].drop_nulls() <= HORIZON).all()
    assert (onsets["death"].is_null() == onsets["cause"].is_null()).all()
    alive = onsets["death"].is_null() | (onsets["death"] >= people["visit_0"])
    assert alive.all()
    ended = {name: onsets.filter(pl.col("cause") == name) for name in DISEASES}
    assert all(
        who[name].null_count() == 0 for name, who in ended.items()
    )  # nobody dies of what they do not have


def test_diseases_keep_to_their_sex_and_to_the_first_visit(cohort):
    people, onsets, _, _ = cohort
    for name in DISEASES:
        have = people.filter(onsets[name].is_not_null())
        if HAZARDS[name].only is not None:
            assert set(have["sex"]) == {HAZARDS[name].only}
        if HAZARDS[name].from_visit:
            assert (onsets[name].drop_nulls() >= have["visit_0"]).all()
    assert (onsets["asthma"] < people["visit_0"]).sum() > 1000


def test_the_truth_is_of_plain_types_and_whole():
    truth = json.loads(json.dumps(health_truth()))
    assert truth["hazards"]["infarction"]["effects"] == HAZARDS["infarction"].effects
    assert list(truth["hazards"]) == list(HAZARDS) and truth["horizon"]["date"] == HORIZON.isoformat()


# --- records


def test_the_same_seed_gives_the_same_lives_and_records_and_another_seed_others():
    people = draw_people(0, seed=5, variants=50)
    first, again, other = (draw_onsets(people, rng_for(seed, "o")) for seed in (1, 1, 2))
    assert first.equals(again) and not first.equals(other)
    a, b, c = (draw_records(people, first, rng_for(seed, "r")) for seed in (1, 1, 2))
    for name in TABLES:
        assert a[name].equals(b[name]) and not a[name].equals(c[name])


def test_more_prescriptions_change_nothing_else():
    people = draw_people(0, seed=5, variants=50)
    onsets = draw_onsets(people, rng_for(1, "o"))
    few, many = (draw_records(people, onsets, rng_for(1, "r"), Volume(gp_scripts=n)) for n in (0.5, 5.0))
    assert many["gp_scripts"].height > 1.5 * few["gp_scripts"].height
    assert all(few[name].equals(many[name]) for name in TABLES if name != "gp_scripts")


def test_nobody_has_a_record_after_death_or_after_being_lost(cohort):
    people, onsets, records, _ = cohort
    ends = people.select("eid", "lost").join(onsets.select("eid", "death"), on="eid")
    for name, columns in DATES.items():
        dated = records[name].join(ends, on="eid")
        if name == "gp_clinical":
            dated = dated.filter(~pl.col("event_dt").is_in(SPECIAL_DATES))
        for column in columns:
            for end in ("death", "lost"):
                assert dated.filter(pl.col(column) > pl.col(end)).is_empty(), (name, column, end)


def test_nobody_who_withdrew_from_linkage_has_records(cohort):
    people, _, records, _ = cohort
    gone = people.filter(lost_reason(people) == 5)["eid"]
    assert len(gone) > 10
    assert all(not table["eid"].is_in(gone.implode()).any() for table in records.values())
    assert set(lost_reason(people).drop_nulls()) == {2, 3, 4, 5}


@pytest.mark.parametrize("nation", ["England", "Scotland", "Wales"])
def test_each_nation_has_its_window_and_its_provider(cohort, nation):
    people, _, records, _ = cohort
    here = people.filter(pl.col("nation") == nation).select("eid")
    hesin, death, cancer = (records[name].join(here, on="eid") for name in ("hesin", "death", "cancer"))
    hospital = PROVIDERS["hospital"][nation]
    assert set(hesin["dsource"]) == {hospital.name}
    assert hesin["admidate"].min() >= hospital.start and hesin["disdate"].max() <= hospital.end
    assert (hospital.end - hesin["admidate"].max()).days < 60  # and it is used to its end
    assert set(death["dsource"]) == {PROVIDERS["death"][nation].name}
    assert death["date_of_death"].max() <= PROVIDERS["death"][nation].end
    assert (
        cancer["date"].min() >= PROVIDERS["cancer"][nation].start
        and cancer["date"].max() <= PROVIDERS["cancer"][nation].end
    )


def test_icd9_and_opcs3_are_scottish_and_old(cohort):
    people, _, records, _ = cohort
    dated = records["hesin"].join(people.select("eid", "nation"), on="eid")
    keys = ["eid", "ins_index"]
    for table, column, until in (
        ("hesin_diag", "diag_icd9", "1996-04-01"),
        ("hesin_oper", "oper3", "1989-04-01"),
    ):
        both = records[table].join(dated.select(*keys, "nation", "admidate"), on=keys)
        old = (pl.col("nation") == "Scotland") & (pl.col("admidate") < day(until))
        assert both.filter(old != pl.col(column).is_not_null()).is_empty()
        assert both.filter(old).height > 100


def test_practices_keep_to_their_windows(cohort):
    people, _, records, _ = cohort
    linked = people.filter(pl.col("gp_linked"))["eid"]
    registrations = records["gp_registrations"]
    assert (registrations["deduct_date"] < registrations["reg_date"]).sum() == 0
    ends = pl.DataFrame({"data_provider": list(GP_ENDS), "stop": list(GP_ENDS.values())})
    ends = ends.with_columns(pl.col("data_provider").cast(pl.Int64))
    covered = registrations.join(ends, on="data_provider").with_columns(
        stop=pl.min_horizontal("deduct_date", "stop")
    )
    covered = covered.group_by("eid").agg(
        pl.col("reg_date").min(), pl.col("stop").max(), pl.col("data_provider").n_unique()
    )
    assert covered["data_provider"].max() == 1
    for name, column in (("gp_clinical", "event_dt"), ("gp_scripts", "issue_date")):
        table = records[name].drop_nulls(column).filter(~pl.col(column).is_in(SPECIAL_DATES))
        assert table["eid"].is_in(linked.implode()).all()
        both = table.join(covered, on="eid", how="left")
        assert both.filter(
            (pl.col(column) < pl.col("reg_date")) | (pl.col(column) > pl.col("stop"))
        ).is_empty()
        assert both["reg_date"].null_count() == 0
    read = records["gp_clinical"]
    assert (read["read_3"].is_not_null() == (read["data_provider"] == 3)).all()
    special = read.filter(pl.col("event_dt").is_in(SPECIAL_DATES))["event_dt"].unique()
    assert set(special) == set(SPECIAL_DATES) and read["event_dt"].null_count() > 0


def test_keys_are_unique_and_every_line_has_its_parent(cohort):
    records = cohort[2]
    keys = {"hesin": ["eid", "ins_index"], "hesin_diag": ["eid", "ins_index", "arr_index"],
            "hesin_oper": ["eid", "ins_index", "arr_index"], "death": ["eid", "ins_index"],
            "death_cause": ["eid", "ins_index", "arr_index"], "cancer": ["eid", "ins_index"]}  # fmt: skip
    for name, columns in keys.items():
        assert not records[name].select(columns).is_duplicated().any(), name
    for child, parent in (("hesin_diag", "hesin"), ("hesin_oper", "hesin"), ("death_cause", "death")):
        assert records[child].join(records[parent], on=["eid", "ins_index"], how="anti").is_empty()
    main = records["hesin_diag"].filter(pl.col("level") == 1)
    assert main.height == records["hesin"].height and (main["arr_index"] == 0).all()
    assert (
        records["death"]["ins_index"].max() == 1
        and records["death"].filter(pl.col("ins_index") == 1).height < 25
    )
    assert 0.004 < records["hesin"]["epistart"].is_null().mean() < 0.01
    assert records["hesin"]["admidate"].null_count() == 0


def test_no_procedure_has_no_date_and_every_other_operation_lies_in_its_episode(cohort):
    records = cohort[2]
    both = records["hesin_oper"].join(records["hesin"], on=["eid", "ins_index"])
    nothing = pl.col("oper4").eq_missing(NO_OPERATION)
    assert both.filter(nothing != pl.col("opdate").is_null()).is_empty()
    assert both.filter(
        (pl.col("opdate") < pl.col("admidate")) | (pl.col("opdate") > pl.col("disdate"))
    ).is_empty()


def first_hospital_code(records, starts):
    dated = records["hesin_diag"].join(
        records["hesin"].select("eid", "ins_index", "admidate"), on=["eid", "ins_index"]
    )
    use = pl.any_horizontal(pl.col("diag_icd10").str.starts_with(code) for code in starts)
    return dated.filter(use).group_by("eid").agg(pl.col("admidate").min().alias("first"))


def test_hospitals_name_a_disease_after_its_onset_and_as_often_as_stated(cohort):
    people, onsets, records, _ = cohort
    english = people["nation"] == "England"
    for name in ("infarction", "atrial_fibrillation", "hypertension", "asthma"):
        trace = TRACES[name]
        first = first_hospital_code(records, tuple({*trace.icd10, trace.later} - {""}))
        both = onsets.select("eid", name).join(first, on="eid", how="left", maintain_order="left")
        named = both.filter(pl.col("first").is_not_null())
        assert (
            named["first"] >= named[name]
        ).all()  # no code of it in anybody who does not have it, or before
        assert named[name].null_count() == 0
    inside = (
        english
        & onsets["infarction"].is_between(day("1994-01-01"), day("2022-12-31"))
        & people["lost"].is_null()
    )
    inside &= onsets["death"].is_null() | (onsets["death"] > onsets["infarction"] + datetime.timedelta(14))
    soon = (
        onsets.select("eid", "infarction")
        .filter(inside)
        .join(first_hospital_code(records, tuple(TRACES["infarction"].icd10)), on="eid", how="left")
    )
    share = ((soon["first"] - soon["infarction"]).dt.total_days() <= 14).fill_null(False).mean()
    assert abs(share - TRACES["infarction"].admitted) < 4 * np.sqrt(0.85 * 0.15 / soon.height)


def test_a_practice_knows_a_disease_as_often_and_as_late_as_stated(cohort):
    people, onsets, records, _ = cohort
    codes = TRACES["type_2_diabetes"].read
    read = records["gp_clinical"].filter(pl.coalesce("read_2", "read_3").is_in(codes))
    assert read["eid"].is_in(onsets.filter(pl.col("type_2_diabetes").is_not_null())["eid"].implode()).all()
    stays = (
        records["gp_registrations"]
        .group_by("eid")
        .agg(pl.col("reg_date").min(), pl.col("deduct_date").is_null().any().alias("stays"))
    )
    long_ago = onsets.filter(pl.col("type_2_diabetes") < day("2005-01-01")).join(
        stays.filter("stays"), on="eid"
    )
    share = long_ago["eid"].is_in(read["eid"].implode()).mean()
    assert long_ago.height > 150 and abs(share - 0.95) < 0.06
    plain = read.drop_nulls("event_dt").filter(~pl.col("event_dt").is_in(SPECIAL_DATES))
    first = plain.group_by("eid").agg(pl.col("event_dt").min()).join(onsets, on="eid").join(stays, on="eid")
    first = first.filter(pl.col("reg_date") < pl.col("type_2_diabetes"))
    delay = (first["event_dt"] - first["type_2_diabetes"]).dt.total_days() / 365.25
    assert delay.min() >= 0 and abs(delay.median() - 0.5 * np.log(2)) < 0.15


def test_certificates_name_what_people_died_of(cohort):
    _, onsets, records, _ = cohort
    newest = records["death"].group_by("eid").agg(pl.col("ins_index").max())
    causes = records["death_cause"].join(newest, on=["eid", "ins_index"]).filter(pl.col("level") == 1)
    both = causes.join(onsets.select("eid", "cause"), on="eid")
    for name, trace in TRACES.items():
        assert set(both.filter(pl.col("cause") == name)["cause_icd10"]) <= set(trace.icd10)
    assert set(both.filter(pl.col("cause") == "other_death")["cause_icd10"]) <= set(OTHER_CAUSES)


def test_tables_of_other_people_and_unknown_nations_are_refused():
    people = draw_people(0, seed=5, variants=50)
    onsets = draw_onsets(people, rng_for(1, "o"))
    with pytest.raises(TableError, match="other people"):
        draw_records(people, onsets.reverse(), rng_for(1, "r"))
    with pytest.raises(TableError, match="England, Scotland, Wales"):
        draw_records(people.with_columns(nation=pl.lit("Mars")), onsets, rng_for(1, "r"))


def test_nobody_ill_and_nobody_at_all_are_no_special_case():
    people = draw_people(0, seed=5, variants=50)
    for n in (0, 1, 7):
        few = people.head(n)
        onsets = draw_onsets(few, rng_for(1, "o"))
        records = draw_records(few, onsets, rng_for(1, "r"))
        fields = summarise(few, records)
        assert fields.height == n and records["hesin"].columns == tables.HESIN
        assert (
            fields.schema
            == summarise(
                people, draw_records(people, draw_onsets(people, rng_for(1, "o")), rng_for(1, "r"))
            ).schema
        )


# --- codes


def codes_of(coding):
    table = pl.read_csv(shared_data("ukb_metadata/tofu_encodings.csv.gz"), infer_schema=False)
    meanings = table.filter(pl.col("encoding_id") == str(coding))["meaning"].drop_nulls()
    return {text.split(" ")[0].replace(".", "") for text in meanings}


@pytest.mark.parametrize(
    ("coding", "table", "column"),
    [(19, "hesin_diag", "diag_icd10"), (87, "hesin_diag", "diag_icd9"), (240, "hesin_oper", "oper4"), (259, "hesin_oper", "oper3"),
     (19, "death_cause", "cause_icd10"), (19, "cancer", "icd10"), (87, "cancer", "icd9")],
)  # fmt: skip
def test_codes_are_those_of_the_showcase(cohort, coding, table, column):
    used = set(cohort[2][table][column].drop_nulls())
    assert len(used) > 5 and used <= codes_of(coding)


def test_some_codes_have_three_and_some_five_characters(cohort):
    lengths = cohort[2]["hesin_diag"]["diag_icd10"].drop_nulls().str.len_chars().value_counts()
    assert set(lengths["diag_icd10"]) == {3, 4, 5}


def test_codes_with_labels_are_codes_of_their_coding(cohort):
    labels, records, fields = Dictionary.builtin().labels, cohort[2], cohort[3]
    for name, coding in (
        ("p40018_i0", 261),
        ("p40019_i0", 262),
        ("p40020_i0", 1970),
        ("p40021_i0", 1970),
        ("p190", 1965),
    ):
        assert {str(value) for value in fields[name].drop_nulls()} <= set(labels[coding])
    assert set(records["hesin"]["dsource"]) <= set(labels[1970])
    for field_id, block in OCCURRENCES.items():
        found = {str(value) for value in fields[f"p{field_id + 1}"].drop_nulls()}
        assert found <= set(labels[2171]), block
    assert {str(value) for value in fields["p42001"].drop_nulls()} == {"1", "2"}


# --- files


def test_chunks_written_one_after_the_other_are_one_table(tmp_path, cohort):
    _, _, records, _ = cohort
    cut = {name: table.head(2000) for name, table in records.items()}
    for form, ending, separator in (("portal", "txt", "\t"), ("rap", "csv", ",")):
        with record_files(tmp_path / form, form) as write:
            for start in (0, 1000):
                write({name: table.slice(start, 1000) for name, table in cut.items()})
        for name, table in cut.items():
            read = pl.read_csv(tmp_path / form / f"{name}.{ending}", separator=separator, infer_schema=False)
            assert read.columns == table.columns and read.height == table.height
            form_of_date = "%d/%m/%Y" if form == "portal" else "%Y-%m-%d"
            for column, kind in table.schema.items():
                text = read[column]
                back = text.str.to_date(form_of_date) if kind == pl.Date else text.cast(kind)
                assert back.equals(table[column], null_equal=True), (form, name, column)


def test_an_interrupted_writer_leaves_nothing_and_keeps_what_was_there(tmp_path, cohort):
    records = {"death": cohort[2]["death"].head(10)}
    with record_files(tmp_path, "rap") as write:
        write(records)
    before = (tmp_path / "death.csv").read_bytes()
    with pytest.raises(KeyboardInterrupt), record_files(tmp_path, "rap") as write:
        write({name: table.head(3) for name, table in records.items()})
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["death.csv"]
    assert (tmp_path / "death.csv").read_bytes() == before
    with pytest.raises(UkbmmError, match="portal or rap"), record_files(tmp_path, "sas"):
        pass


# --- summaries


def test_all_health_fields_of_the_plan_are_made_but_the_free_text(cohort):
    table = pl.read_csv(shared_data("ukb_metadata/synthetic_fields.tsv"), separator="\t", infer_schema=False)
    groups = pl.col("group").is_in(["Outcomes (ADO, FO)", "HES summary / registries"])
    wanted = set(table.filter(groups)["field_id"].cast(pl.Int64))
    assert wanted - set(HEALTH_FIELDS) == {40010}


def test_names_and_types_are_the_dictionarys(cohort):
    fields, dictionary = cohort[3], Dictionary.builtin()
    for name in fields.columns:
        column, _ = parse_name(name)
        field = dictionary[column.field_id]
        assert str(canonical(column, field)) == name
        multiple = field.value_type == "categorical_multiple"
        assert fields[name].dtype == (pl.List(field.dtype) if multiple else field.dtype), name
        assert (column.instance or 0) <= field.instance_max and (column.array or 0) <= field.array_max
    assert {parse_name(name)[0].field_id for name in fields.columns} == set(HEALTH_FIELDS)
    arrays = {number: dictionary[number] for number in HEALTH_FIELDS if dictionary[number].arrayed}
    for number, field in arrays.items():  # as many positions as the showcase has
        places = {
            parse_name(name)[0].array for name in fields.columns if parse_name(name)[0].field_id == number
        }
        listed = field.value_type == "categorical_multiple"
        assert places == ({None} if listed else set(range(field.array_max + 1))), field.title


@pytest.fixture(scope="module")
def plain(cohort):
    "The records of 1,500 people, the most ill among them, as Python rows by person, and their fields by person."
    people, _, records, _ = cohort
    lines = people.select("eid").join(
        records["hesin_diag"].group_by("eid").len(), on="eid", how="left", maintain_order="left"
    )
    most = (lines["len"].fill_null(0).rank("ordinal", descending=True) <= 250).alias("most")
    chosen = (pl.col("nation") == "Scotland") | (pl.int_range(pl.len()) % 25 == 0)
    some = pl.concat([people.filter(most), people.filter(~most).filter(chosen).head(1250)])
    keep = {name: table.join(some.select("eid"), on="eid", how="semi") for name, table in records.items()}
    rows = {name: defaultdict(list) for name in keep}
    for name, table in keep.items():
        for row in (
            table.to_pandas().astype(object).where(lambda frame: frame.notna(), None).to_dict("records")
        ):
            rows[name][row["eid"]].append(
                {key: value.date() if hasattr(value, "date") else value for key, value in row.items()}
            )
    fields = summarise(some, keep)
    by_person = dict(zip(some["eid"], fields.rows(named=True), strict=True))
    return some, rows, by_person, keep


def date_of_episode(rows, eid, ins_index):
    (row,) = [row for row in rows["hesin"][eid] if row["ins_index"] == ins_index]
    return next(row[name] for name in ("epistart", "admidate", "epiend", "disdate") if row[name] is not None)


@pytest.mark.parametrize("field_id", CODE_LISTS)
def test_lists_of_codes_and_their_dates_are_recomputed(plain, field_id):
    some, rows, by_person, _ = plain
    table, column, levels, partner = CODE_LISTS[field_id]
    size, seen = Dictionary.builtin()[field_id].array_max + 1, 0
    for eid in some["eid"]:
        first = {}
        for row in rows[table][eid]:
            if row[column] is not None and row["level"] in levels:
                when = row.get("opdate") or date_of_episode(rows, eid, row["ins_index"])
                first[row[column]] = min(when, first.get(row[column], when))
        order = sorted(first, key=lambda code: (first[code], code))
        assert by_person[eid][f"p{field_id}"] == (order or None)
        seen += len(order)
        if partner:
            found = [by_person[eid][f"p{partner}_a{i}"] for i in range(size)]
            assert found == [first[code] for code in order] + [None] * (size - len(order))
    assert seen > 30


@pytest.mark.parametrize("field_id", COUNTS)
def test_counts_are_recomputed(plain, field_id):
    some, rows, by_person, _ = plain
    for eid in some["eid"]:
        assert by_person[eid][f"p{field_id}"] == (len(rows[COUNTS[field_id]][eid]) or None)


def test_death_fields_are_recomputed(plain):
    some, rows, by_person, _ = plain
    births, dead = dict(zip(some["eid"], some["birth"], strict=True)), 0
    for eid in some["eid"]:
        person = by_person[eid]
        for instance in (0, 1):
            certificate = [row for row in rows["death"][eid] if row["ins_index"] == instance]
            causes = sorted(
                (r for r in rows["death_cause"][eid] if r["ins_index"] == instance),
                key=lambda r: r["arr_index"],
            )
            others = [row["cause_icd10"] for row in causes if row["level"] == 2]
            found = [person[f"p40002_i{instance}_a{i}"] for i in range(15)]
            assert found == others + [None] * (15 - len(others))
            names = ("p40000", "p40001", "p40007", "p40018", "p40020")
            values = tuple(person[f"{name}_i{instance}"] for name in names)
            if not certificate:
                assert values == (None,) * 5
                continue
            dead, row = dead + 1, certificate[0]
            underlying = [r["cause_icd10"] for r in causes if r["level"] == 1]
            age = (row["date_of_death"] - births[eid]).days / 365.25
            assert values[:2] == (row["date_of_death"], underlying[0]) and abs(values[2] - age) < 0.0501
            assert values[3:] == (row["source"], row["dsource"])
    assert dead > 100


def test_cancer_fields_are_recomputed(plain):
    some, rows, by_person, _ = plain
    columns = {"p40005": "date", "p40006": "icd10", "p40008": "age", "p40011": "histology", "p40012": "behaviour",
               "p40013": "icd9", "p40019": "format", "p40021": "origin"}  # fmt: skip
    for eid in some["eid"]:
        registered = sorted(rows["cancer"][eid], key=lambda row: (row["date"], row["ins_index"]))
        assert by_person[eid]["p40009_i0"] == (len(registered) or None)
        for name, column in columns.items():
            found = [by_person[eid].get(f"{name}_i{i}") for i in range(22)]
            assert found == [row[column] for row in registered] + [None] * (22 - len(registered))
    assert sum(len(rows["cancer"][eid]) for eid in some["eid"]) > 300


def test_origins_and_losses_are_recomputed(plain):
    some, rows, by_person, _ = plain
    reason = {0: 2, 1: 2, 2: 2, 3: 3, 4: 3, 5: 3, 6: 3, 7: 4, 8: 4, 9: 5}
    for eid, lost in some.select("eid", "lost").rows():
        assert by_person[eid]["p40022"] == (sorted({row["dsource"] for row in rows["hesin"][eid]}) or None)
        assert by_person[eid]["p191"] == lost
        assert by_person[eid]["p190"] == (None if lost is None else reason[eid % 10])


READ_BLOCKS = {"C10E.": "E10", "X40J4": "E10", "C10F.": "E11", "X40J5": "E11", "G20..": "I10", "XE0Ub": "I10", "G30..": "I21",
               "X200E": "I21", "G3...": "I25", "XE2uV": "I25", "G5730": "I48", "G58..": "I50", "G66..": "I64", "X00D1": "I64",
               "1Z12.": "N18", "XaLHI": "N18", "1Z14.": "N18", "XaLHK": "N18"}  # fmt: skip
ICD9_CODES = {"2501": "E109", "2500": "E119", "4019": "I10", "4109": "I214", "4149": "I251", "4273": "I489", "4280": "I500",
              "4349": "I639", "431": "I619", "430": "I609", "585": "N183", "496": "J449", "4939": "J459", "3310": "G309",
              "2904": "F019", "2900": "F03", "3311": "G310", "3320": "G20", "3352": "G122"}  # fmt: skip


def events_of(rows, eid):
    "Date, ICD-10 code or its first three characters, and source of every event of a person."
    dead = {row["ins_index"]: row["date_of_death"] for row in rows["death"][eid]}
    found = [(dead[row["ins_index"]], row["cause_icd10"], 20) for row in rows["death_cause"][eid]]
    for row in rows["gp_clinical"][eid]:
        block = READ_BLOCKS.get(row["read_2"] or row["read_3"])
        found += [(row["event_dt"] or day("1900-01-01"), block, 30)] if block else []
    for row in rows["hesin_diag"][eid]:
        code = row["diag_icd10"] or ICD9_CODES.get(row["diag_icd9"])
        found += [(date_of_episode(rows, eid, row["ins_index"]), code, 40)] if code else []
    return found


def test_first_occurrences_are_recomputed(plain):
    some, rows, by_person, _ = plain
    impossible, sources = {day("1900-01-01"), *SPECIAL_DATES}, set()
    for eid in some["eid"]:
        events = events_of(rows, eid)
        for field_id, block in OCCURRENCES.items():
            own = [(date in impossible, date, source) for date, code, source in events if code[:3] == block]
            found = by_person[eid][f"p{field_id}"], by_person[eid][f"p{field_id + 1}"]
            if not own:
                assert found == (None, None)
                continue
            _, date, source = min(own)
            assert found == (date, source + (len({event[2] for event in own}) > 1))
            sources.add(found[1])
    assert {20, 30, 31, 40, 41} <= sources


def test_outcomes_are_recomputed(plain):
    some, rows, by_person, _ = plain
    sources = set()
    for eid in some["eid"]:
        events = [event for event in events_of(rows, eid) if event[2] != 30]
        for field_id, codes in OUTCOMES.items():
            own = [(date, source) for date, code, source in events if code.startswith(codes)]
            found = by_person[eid][f"p{field_id}"], by_person[eid][f"p{field_id + 1}"]
            expected = (
                (min(own)[0], 1 if any(source == 40 for _, source in own) else 2) if own else (None, None)
            )
            assert found == expected, field_id
            sources.add(found[1])
    assert sources == {None, 1, 2}


def test_the_fields_have_room_for_whoever_is_in_hospital_all_the_time():
    people = draw_people(0, seed=3, variants=50)
    people = people.sort(pl.col("nation") != "Scotland", maintain_order=True).head(
        600
    )  # half of them Scots: ICD-9
    onsets = draw_onsets(people, rng_for(3, "o"))
    records = draw_records(people, onsets, rng_for(3, "r"), Volume(episodes=400, secondary=6, operations=6))
    fields, dictionary = summarise(people, records), Dictionary.builtin()
    for field_id, (table, column, levels, _) in CODE_LISTS.items():
        lines = records[table].filter(pl.col("level").is_in(levels)).drop_nulls(column)
        distinct = lines.group_by("eid").agg(pl.col(column).n_unique())[column]
        lengths = fields[f"p{field_id}"].list.len()
        assert lengths.sum() == distinct.sum() and lengths.max() <= dictionary[field_id].array_max + 1
    assert fields["p41202"].list.len().max() > 45 and fields["p41203"].list.len().max() >= 10


def test_more_than_a_field_has_room_for_is_refused_and_not_cut(tiny):
    people, records, _ = tiny
    lines = filled("hesin_diag", eid=[30] * 86, ins_index=[0] * 86, arr_index=list(range(86)), level=[1] * 86,
                   diag_icd10=[f"Z{i:03}" for i in range(86)])  # fmt: skip
    assert len(summarise(people, records | {"hesin_diag": lines[:85]})["p41202"][0]) == 85
    with pytest.raises(TableError, match="column p41202: expected at most 85 a participant"):
        summarise(people, records | {"hesin_diag": lines})
    causes = filled("death_cause", eid=[10] * 17, ins_index=[0] * 17, arr_index=list(range(17)),
                    level=[1] + [2] * 16, cause_icd10=[f"C{i:02}" for i in range(17)])  # fmt: skip
    with pytest.raises(TableError, match="column p40002_i0_a0: expected at most 15 a participant"):
        summarise(people, records | {"death_cause": causes})
    cancers = filled(
        "cancer", eid=[30] * 23, ins_index=list(range(23)), date=[day("1999-01-01")] * 23, icd10=["C509"] * 23
    )
    with pytest.raises(TableError, match="column p40005_i0: expected at most 22 a participant"):
        summarise(people, records | {"cancer": cancers})


def test_fields_of_chunks_are_the_fields_of_the_whole(cohort):
    people, _, records, fields = cohort
    for start in (0, 9000):
        part = people.slice(start, 1000)
        keep = {name: table.join(part.select("eid"), on="eid", how="semi") for name, table in records.items()}
        assert summarise(part, keep).equals(fields.slice(start, 1000))
    shuffled = people.sample(fraction=1.0, shuffle=True, seed=1)
    again = summarise(shuffled, records).with_columns(eid=shuffled["eid"]).sort("eid")
    assert again.drop("eid").equals(fields.with_columns(eid=people["eid"]).sort("eid").drop("eid"))


@cache
def empty_tables():
    "All record tables without a line, from a draw of nobody."
    nobody = draw_people(0, seed=1, variants=50).head(0)
    return draw_records(nobody, draw_onsets(nobody, rng_for(1, "o")), rng_for(1, "r"))


def filled(name, **columns):
    "A record table with some columns filled."
    empty = empty_tables()[name]
    size = len(next(iter(columns.values())))
    table = pl.DataFrame(columns, schema={column: empty.schema[column] for column in columns})
    rest = [
        pl.lit(None, dtype=kind).alias(column)
        for column, kind in empty.schema.items()
        if column not in columns
    ]
    assert table.height == size
    return table.with_columns(rest).select(empty.columns)


@pytest.fixture
def tiny():
    "Three people worked by hand: an old Scottish heart attack, a death with two certificates, and nobody's records."
    people = pl.DataFrame({"eid": [30, 10, 20], "birth": [day("1940-03-01")] * 3, "lost": [None, None, day("2011-05-05")]},
                          schema_overrides={"lost": pl.Date})  # fmt: skip
    records = empty_tables() | {
        "hesin": filled("hesin", eid=[30, 30, 30], ins_index=[0, 1, 2], dsource=["SMR"] * 3,
                        epistart=[day("1990-01-05"), None, None], admidate=[day("1990-01-04"), None, None],
                        epiend=[None, day("2001-02-03"), None], disdate=[None, day("2001-02-09"), day("2002-01-01")]),
        "hesin_diag": filled("hesin_diag", eid=[30] * 5, ins_index=[0, 0, 1, 2, 2], arr_index=[0, 1, 0, 0, 1], level=[1, 2, 1, 1, 3],
                             diag_icd9=["4109", "9999", None, None, None], diag_icd10=[None, None, "I252", "S525", "W190"]),
        "hesin_oper": filled("hesin_oper", eid=[30, 30, 30], ins_index=[0, 1, 2], arr_index=[0, 0, 0], level=[1, 1, 2],
                             opdate=[None, day("2001-02-03"), None], oper3=["048", None, None], oper4=[None, "K401", "Z942"]),
        "death": filled("death", eid=[10, 10], ins_index=[0, 1], dsource=["SCOT"] * 2, source=[55, 55], date_of_death=[day("2020-03-01")] * 2),
        "death_cause": filled("death_cause", eid=[10] * 3, ins_index=[0, 1, 1], arr_index=[0, 0, 1], level=[1, 1, 2],
                              cause_icd10=["J189", "G309", "I10"]),
        "gp_clinical": filled("gp_clinical", eid=[30, 30, 10], data_provider=[2, 2, 2], read_2=["G20..", "G20..", "C10F."],
                              event_dt=[None, day("1903-03-03"), day("2037-07-07")]),
        "cancer": filled("cancer", eid=[30, 30], ins_index=[0, 1], date=[day("1999-01-01"), day("1985-01-01")], icd10=["C509", None], icd9=[None, "1749"]),
    }  # fmt: skip
    return people, records, dict(zip(people["eid"], summarise(people, records).rows(named=True), strict=True))


def test_a_hand_worked_hospital_history(tiny):
    person = tiny[2][30]
    assert person["p41271"] == ["4109", "9999"] and person["p41281_a1"] == day("1990-01-05")
    assert person["p41203"] == ["4109"] and person["p41205"] == ["9999"]
    assert person["p41270"] == ["I252", "S525", "W190"]  # the end and the discharge date two of them
    assert [person[f"p41280_a{i}"] for i in range(4)] == [
        day("2001-02-03"),
        day("2002-01-01"),
        day("2002-01-01"),
        None,
    ]
    assert person["p41202"] == ["I252", "S525"] and person["p41204"] == ["W190"]
    assert person["p41273"] == ["048"] and person["p41283_a0"] == day("1990-01-05")
    assert (
        person["p41272"] == ["K401", "Z942"] and person["p41200"] == ["K401"] and person["p41210"] == ["Z942"]
    )
    assert person["p41282_a1"] == day("2002-01-01")
    assert (person["p41234"], person["p41259"], person["p41149"]) == (5, 3, 3)
    assert person["p40022"] == ["SMR"]


def test_a_hand_worked_heart_attack_in_icd9_counts_from_then(tiny):
    person = tiny[2][30]
    assert (person["p42000"], person["p42001"]) == (day("1990-01-05"), 1)
    assert (person["p131298"], person["p131299"]) == (day("1990-01-05"), 40)
    assert (person["p131306"], person["p131307"]) == (day("2001-02-03"), 40)  # I252 is coronary disease, too


def test_hand_worked_special_dates(tiny):
    _, records, by_person = tiny
    assert (by_person[30]["p131286"], by_person[30]["p131287"]) == (
        day("1900-01-01"),
        30,
    )  # no date, and 1903
    assert (by_person[10]["p130708"], by_person[10]["p130709"]) == (day("2037-07-07"), 30)
    assert (by_person[10]["p131286"], by_person[10]["p131287"]) == (
        day("2020-03-01"),
        20,
    )  # contributory cause
    told = pl.DataFrame(
        {"eid": [30, 20], "date": [day("1995-01-01"), day("2001-01-01")], "icd10": ["I10", "I21"]}
    )
    first = first_occurrences(records | {"self_report": told}).sort("eid")
    rows = {(eid, block): (date, source) for eid, block, date, source in first.rows()}
    assert rows[30, "I10"] == (day("1995-01-01"), 51) and rows[20, "I21"] == (day("2001-01-01"), 50)
    own = outcomes(records | {"self_report": told}).filter(eid=20, field_id=42000)
    assert own.select("date", "source").row(0) == (day("2001-01-01"), 0)


def test_hand_worked_certificates_and_cancers(tiny):
    people, _, by_person = tiny
    person = by_person[10]
    assert (person["p40001_i0"], person["p40001_i1"], person["p40002_i1_a0"]) == ("J189", "G309", "I10")
    assert person["p40007_i0"] == 80.0 and person["p40023"] == 2 and person["p40020_i1"] == "SCOT"
    assert (person["p42020"], person["p42021"]) == (day("2020-03-01"), 2)
    cancer = by_person[30]
    assert (cancer["p40005_i0"], cancer["p40013_i0"], cancer["p40006_i0"]) == (
        day("1985-01-01"),
        "1749",
        None,
    )
    assert (cancer["p40006_i1"], cancer["p40009_i0"]) == ("C509", 2)
    nobody = {name: value for name, value in by_person[20].items() if value is not None}
    assert nobody == {"p190": 2, "p191": day("2011-05-05")}
    assert people["eid"].to_list() == [30, 10, 20]


def test_a_missing_table_is_named(tiny):
    people, records, _ = tiny
    with pytest.raises(TableError, match="no death_cause"):
        summarise(people, {name: table for name, table in records.items() if name != "death_cause"})
