"What an invented biobank shares with the real one: how many people have what, over three seeds, within what chance allows."

import numpy as np
import polars as pl
import pytest

from ukbmm.biobank.names import parse_name
from ukbmm.biobank.records import PRACTICE_RECORDS
from ukbmm.biobank.synthetic import make_chunk

SEEDS, CHUNKS = (0, 1, 2), 4
# Participants of a field in the showcase, of 501,938, and how far the share may be off beside chance, as a part of it
SHARES = {
    "p40000_i0": (56_961, 0.04),  # death
    "p42000": (31_196, 0.04),  # myocardial infarction
    "p42006": (21_047, 0.04),  # stroke
    "p42018": (11_616, 0.04),  # dementia
    "p131286": (209_310, 0.03),  # I10
    "p130708": (48_816, 0.03),  # E11
    "p131350": (45_166, 0.03),  # I48
    "p132032": (33_002, 0.03),  # N18
    "p40005_i0": (133_178, 0.03),  # a cancer
    "p41270": (448_651, 0.01),  # in hospital
    "p42008": (13_056, 0.1),
    "p42010": (2_955, 0.1),
    "p42012": (2_106, 0.1),
    "p42002": (8_272, 0.1),
    "p42004": (14_111, 0.1),
    "p42014": (73_786, 0.05),
    "p42016": (30_608, 0.05),
    "p42020": (5_209, 0.1),
    "p42022": (2_521, 0.1),
    "p42026": (1_898, 0.1),
    "p42028": (841, 0.1),
    "p42030": (5_231, 0.1),
    "p131298": (26_191, 0.1),
    "p131300": (974, 0.1),
    "p131306": (58_045, 0.05),
    "p131354": (23_243, 0.05),
    "p131366": (11_757, 0.1),
    "p131368": (10_958, 0.1),
    "p41203": (20_377, 0.1),
    "p41204": (403_291, 0.1),
    "p41205": (8_737, 0.1),
    "p41210": (419_763, 0.1),
    "p41272": (448_214, 0.01),
    "p41273": (10_692, 0.1),
    "p40006_i0": (128_903, 0.1),
    "p40002_i0_a0": (38_522, 0.1),
    "p190": (1_296, 0.1),
    "p42038": (228_691, 0.02),
    "p42039": (221_863, 0.05),
    "p42040": (229_839, 0.05),
}


@pytest.fixture(scope="module")
def tables() -> dict[int, pl.DataFrame]:
    "Some columns of 16,000 people by seed."
    columns = [*SHARES, "p41259", "p41234", "p41149", "p31", "p21022", "p20002_i0", "p135_i0", "p20003_i0", "p6150_i0",
               "p30690_i0", "p30760_i0", "p30740_i0", "p30790_i0", "p30800_i0", "p30820_i0", "p1070_i0", "p1160_i0", "p864_i0",
               *(f"p53_i{i}" for i in range(4)), *(f"p20001_i{i}" for i in range(4))]  # fmt: skip
    return {
        seed: pl.concat(make_chunk(chunk, seed, 200, columns).table for chunk in range(CHUNKS))
        for seed in SEEDS
    }


@pytest.fixture(scope="module")
def everybody(tables) -> pl.DataFrame:
    return pl.concat(tables.values())


def error_of(share: float, n: int) -> float:
    "The standard error of a share."
    return float(np.sqrt(share * (1 - share) / n))


@pytest.mark.parametrize("name", SHARES)
def test_as_many_have_a_record_as_in_the_showcase(everybody, tables, name):
    count, model = SHARES[name]
    share = count / 501_938
    found = everybody[name].count() / everybody.height
    assert abs(found - share) < model * share + 3 * error_of(share, everybody.height), (
        f"{found:.4f}, {share:.4f}"
    )
    for seed, table in tables.items():
        of_seed = table[name].count() / table.height
        assert abs(of_seed - found) < 4 * error_of(share, table.height), seed


def test_the_shares_are_those_of_the_shipped_schema(repository):
    "The counts above, from the list of fields."
    fields = pl.read_parquet(repository / "ukbmm" / "biobank" / "schema" / "fields.parquet")
    published = dict(fields.select("field_id", "num_participants").rows())
    differ = {name: published[parse_name(name)[0].field_id] for name, (count, _) in SHARES.items()
              if published[parse_name(name)[0].field_id] != count}  # fmt: skip
    assert differ == {}


def test_people_are_as_old_as_in_the_showcase(everybody, tables):
    for table in (everybody, *tables.values()):
        age = table["p21022"]
        assert abs(age.mean() - 56.53) < 0.02 + 3 * 8.095 / np.sqrt(table.height)
        assert abs(age.std() - 8.095) < 0.05 + 3 * 8.095 / np.sqrt(2 * table.height)


@pytest.mark.parametrize(("visit", "share"), [(0, 1.0), (1, 0.04), (2, 0.17), (3, 0.013)])
def test_as_many_come_to_each_visit(everybody, visit, share):
    found = everybody[f"p53_i{visit}"].count() / everybody.height
    assert abs(found - share) < 0.1 * share + 3 * error_of(share, everybody.height)


def test_people_report_as_many_illnesses_and_medicines(everybody, tables):
    for table in (everybody, *tables.values()):
        asked = table["p135_i0"].count()
        illnesses = table["p20002_i0"].list.len().fill_null(0)
        assert abs(illnesses.sum() / asked - 1.9) < 0.05 + 3 * illnesses.std() / np.sqrt(asked)
        medicines = table["p20003_i0"].list.len().drop_nulls()
        assert abs(medicines.mean() - 2.5) < 0.1 + 3 * medicines.std() / np.sqrt(len(medicines))
    assert abs(everybody["p20002_i0"].count() / everybody.height - 0.799) < 0.03
    assert (everybody["p135_i0"] == everybody["p20002_i0"].list.len().fill_null(0)).drop_nulls().mean() > 0.99
    cancers = everybody.select(
        pl.any_horizontal(pl.col(f"p20001_i{i}").is_not_null() for i in range(4)).mean()
    ).item()
    assert abs(cancers - 0.104) < 0.05 * 0.104 + 3 * error_of(0.104, everybody.height)
    nothing = everybody["p6150_i0"].list.contains(-7).mean()
    assert abs(nothing - 0.7) < 0.05 * 0.7


MISSING = {"p30760_i0": 0.14, "p30740_i0": 0.14, "p30790_i0": 0.25, "p30800_i0": 0.85, "p30820_i0": 0.92}


def test_values_are_missing_in_three_ways(everybody):
    "With the whole tube, by assay or below the limit of detection, and because people did not answer."
    tube = everybody.select(pl.all_horizontal(pl.col(*MISSING, "p30690_i0").is_null()).mean()).item()
    assert abs(tube - 0.05) < 0.1 * 0.05 + 3 * error_of(0.05, everybody.height)
    for name, share in MISSING.items():
        found = everybody[name].null_count() / everybody.height
        assert abs(found - share) < 0.02 * share + 3 * error_of(share, everybody.height), name
    for name in ("p1070_i0", "p1160_i0", "p864_i0"):
        assert 0.01 < everybody[name].is_in([-1, -3]).mean() < 0.03


MEANS = {"p41259": 6.788, "p41234": 20.94, "p41149": 13.44}


@pytest.mark.parametrize("name", MEANS)
def test_hospitals_write_as_many_records(everybody, name):
    numbers = everybody[name].drop_nulls()
    assert abs(numbers.mean() - MEANS[name]) < 0.08 * MEANS[name] + 3 * numbers.std() / np.sqrt(len(numbers))


@pytest.mark.parametrize(("name", "table"), [("p42040", "gp_clinical"), ("p42039", "gp_scripts")])
def test_practices_write_as_few_records_as_the_truth_says(everybody, name, table):
    numbers, stated = everybody[name].drop_nulls(), PRACTICE_RECORDS[table]["here"]
    assert abs(numbers.mean() - stated) < 0.01 * stated + 3 * numbers.std() / np.sqrt(len(numbers))
    assert PRACTICE_RECORDS[table]["showcase"] > 3 * stated
