"A synthetic delivery is a function of its seed, whole, streamed, readable, and holds the truth that it states."

import csv
import functools
import gzip
import json
import re

import numpy as np
import pandas as pd
import polars as pl
import pytest
from memory import peak_mib
from sklearn.linear_model import LinearRegression

from ukbmm.biobank import synthetic
from ukbmm.biobank.derived import formula, input_columns
from ukbmm.biobank.description import ingest_report
from ukbmm.biobank.dictionary import Dictionary
from ukbmm.biobank.faults import FAULTS
from ukbmm.biobank.formats import FORMATS
from ukbmm.biobank.genotypes import open_bed, read_bed, unpack
from ukbmm.biobank.health import HAZARDS
from ukbmm.biobank.names import parse_name
from ukbmm.biobank.population import CHUNK, draw_genotypes, draw_panel, draw_pedigree, planted
from ukbmm.biobank.relatedness import degree_of
from ukbmm.biobank.store import ingest
from ukbmm.biobank.synthetic import EXAMPLE_COLUMNS, make_chunk, synthetic_biobank, write_extract
from ukbmm.core import TableError, UkbmmError

FEW = ("p31", "p21003_i0", "p30750_i0")


def content(folder):
    "Every file of a folder, by name."
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    "3,000 people at 400 variants."
    return synthetic_biobank(tmp_path_factory.mktemp("large") / "b", participants=3000, variants=400, seed=4)


@pytest.fixture(scope="module")
def two_chunks(tmp_path_factory):
    "5,000 people with all fields, written in two chunks."
    folder = tmp_path_factory.mktemp("two") / "delivery"
    write_extract(folder, participants=5000, variants=60, seed=4, columns=None)
    return folder


def copies_of(biobank, rows):
    "Copies of A1, NaN where missing."
    store = biobank.genotypes()
    copies = unpack(store.packed(rows), store.variants).astype(float)
    return np.where(copies < 0, np.nan, copies)


# ---- one seed, one delivery -------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_extract(tmp_path / name, participants=120, variants=60, seed=seed, columns=None)
    first, again, other = (content(tmp_path / name) for name in "abc")
    assert set(first) == set(again) == set(other) and len(first) == 18
    assert [name for name in first if first[name] != again[name]] == []
    assert [name for name in first if first[name] == other[name]] == ["truth/faults.json"]  # none in either


def test_a_biobank_is_the_beginning_of_every_larger_one(two_chunks, tmp_path):
    write_extract(tmp_path, participants=700, variants=60, seed=4, columns=None)
    lines = (tmp_path / "ukb40000.csv").read_text().splitlines()
    longer = (two_chunks / "ukb40000.csv").read_text().splitlines()
    assert len(lines) == 701 and lines == longer[:701] and len(longer) == 5001
    eids = set(pl.read_csv(tmp_path / "ukb40000.csv", columns=["eid"])["eid"])
    for name in ("hesin", "hesin_diag", "gp_scripts", "death"):
        few, many = (
            pl.read_csv(folder / f"{name}.txt", separator="\t", infer_schema=False)
            for folder in (tmp_path, two_chunks)
        )
        assert few.height > 0 and few.equals(many.filter(pl.col("eid").cast(pl.Int64).is_in(eids)))
    for name in ("people", "onsets"):
        few, many = (
            pl.read_parquet(folder / "truth" / f"{name}.parquet") for folder in (tmp_path, two_chunks)
        )
        assert few.equals(many[:700])


def test_chunks_do_not_depend_on_each_other(two_chunks):
    table = pl.read_csv(two_chunks / "ukb40000.csv", columns=["eid", "30750-0.0"])
    second = make_chunk(1, seed=4, variants=60)
    assert table["eid"][CHUNK:].equals(second.people["eid"][:1000])
    written = table["30750-0.0"][CHUNK:].cast(pl.String).replace("", None).cast(pl.Float64)
    assert written.equals(second.table["p30750_i0"][:1000])
    assert table["eid"].n_unique() == 5000 and not table["eid"].is_sorted()


@pytest.mark.parametrize("size", [(49, 10), (50, 9), (0, 0)])
def test_too_small_a_biobank_is_refused(tmp_path, size):
    with pytest.raises(UkbmmError, match="at least 50 participants and 10 variants"):
        write_extract(tmp_path / "x", *size)
    assert not (tmp_path / "x").exists()


def test_more_people_than_identifiers_and_an_unknown_form_are_refused(tmp_path):
    with pytest.raises(UkbmmError, match="at most 5 million participants"):
        write_extract(tmp_path / "x", participants=6_000_000)
    with pytest.raises(UkbmmError, match="Did you mean 'rap-raw'"):
        write_extract(tmp_path / "x", format="rap_raw")
    assert not (tmp_path / "x").exists()


def test_what_is_interrupted_leaves_no_file(tmp_path, monkeypatch):
    whole = synthetic.make_chunk

    def fails_at_the_second(chunk, *rest):
        if chunk:
            raise KeyboardInterrupt
        return whole(chunk, *rest)

    monkeypatch.setattr(synthetic, "make_chunk", fails_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        write_extract(tmp_path / "x", participants=CHUNK + 100, variants=20)
    assert [path for path in (tmp_path / "x").rglob("*") if path.is_file()] == []


# ---- memory -----------------------------------------------------------------------------------------------------

PEAK = """
import sys, tempfile
from ukbmm.biobank.synthetic import write_extract
with tempfile.TemporaryDirectory() as folder:
    write_extract(folder, participants=int(sys.argv[1]), variants=100, seed=1)
"""


def test_memory_does_not_grow_with_the_number_of_people():
    peaks = [peak_mib(PEAK, n) for n in (3 * CHUNK, 15 * CHUNK)]
    assert peaks[1] - peaks[0] < 40  # MiB, for 48,000 people more


# ---- files ------------------------------------------------------------------------------------------------------


def test_a_delivery_has_the_files_of_one(two_chunks):
    names = set(content(two_chunks))
    tables = {
        "hesin",
        "hesin_diag",
        "hesin_oper",
        "death",
        "death_cause",
        "gp_clinical",
        "gp_scripts",
        "gp_registrations",
    }
    assert names == {f"{table}.txt" for table in tables} | {
        "ukb40000.csv", "ukb_cal.bed", "ukb_cal.bim", "ukb_cal.fam", "ukb_rel_a40000_s5000.dat", "SYNTHETIC.txt",
        "truth/truth.json", "truth/faults.json", "truth/people.parquet", "truth/onsets.parquet",
    }  # fmt: skip
    assert "invented" in (two_chunks / "SYNTHETIC.txt").read_text()


def test_the_genotype_files_hold_the_genotypes_that_were_drawn(two_chunks):
    bed = open_bed(two_chunks / "ukb_cal")
    calls, eids = read_bed(bed), bed.samples["eid"].to_numpy()
    assert calls.shape == (bed.samples.height, 60) and sorted(eids[eids < 0]) == [-3, -2, -1]
    assert (calls[eids < 0] == -1).all() and not (eids[:-3] < 0).all()
    people = pl.read_parquet(two_chunks / "truth" / "people.parquet")
    assert (
        set(eids[eids > 0]) == set(people.filter("genotyped")["eid"])
        and len(eids) - 3 == people["genotyped"].sum()
    )
    panel, drawn = draw_panel(60, 4), []
    for chunk in (0, 1):
        parts = draw_genotypes(draw_pedigree(chunk, 4), panel, chunk, 4)
        drawn.append(np.concatenate([copies for _, copies in parts], axis=1))
    position = {eid: i for i, eid in enumerate(people["eid"])}
    rows = [position[eid] for eid in eids if eid > 0]
    found, expected = calls[eids > 0], np.concatenate(drawn)[rows]
    called = found >= 0
    assert (found[called] == expected[called]).all() and abs((~called).mean() - 0.005) < 0.001
    sexes = dict(people.select("eid", 2 - pl.col("sex").cast(pl.Int64)).rows())
    assert all(
        sexes[eid] == sex for eid, sex in bed.samples.filter(pl.col("eid") > 0).select("eid", "sex").rows()
    )
    assert eids[eids > 0].tolist() != [
        eid for eid in people["eid"] if eid in set(eids)
    ]  # another order than the table's


def test_relatives_are_listed_with_their_kinship(two_chunks):
    related = pl.read_csv(two_chunks / "ukb_rel_a40000_s5000.dat", separator=" ")
    assert related.columns == ["ID1", "ID2", "HetHet", "IBS0", "Kinship"] and related.height > 600
    people = pl.read_parquet(two_chunks / "truth" / "people.parquet")
    family = dict(people.select("eid", "family").rows())
    assert all(family[a] == family[b] for a, b in related.select("ID1", "ID2").rows())
    genotyped = set(people.filter("genotyped")["eid"])
    assert set(related["ID1"]) | set(related["ID2"]) <= genotyped
    degrees = related["Kinship"].map_elements(degree_of, return_dtype=pl.String).value_counts()
    assert set(degrees["Kinship"]) >= {"first degree", "second degree", "third degree"}
    share = people.filter("genotyped").select(
        pl.col("eid").is_in(related["ID1"].append(related["ID2"]).implode()).mean()
    )
    assert abs(share.item() - 0.285) < 0.02


def test_kinship_is_found_in_the_files_alone(large):
    rows = np.arange(3000)
    copies = copies_of(large, rows)
    z = np.nan_to_num((copies - np.nanmean(copies, 0)) / np.nanstd(copies, 0))
    known = large.genotypes().present(rows)
    pairs = large.relatives.filter(pl.col("kinship") > 0.2).select("row_a", "row_b").to_numpy()
    assert len(pairs) > 120 and known[pairs].all()
    shared = (z[pairs[:, 0]] * z[pairs[:, 1]]).mean(1)
    strangers = np.random.default_rng(0).permutation(np.flatnonzero(known))[:2000].reshape(2, -1)
    apart = (z[strangers[0]] * z[strangers[1]]).mean(1)
    assert abs(shared.mean() - 0.5) < 0.05 and abs(apart.mean()) < 0.03


# ---- all fields, all forms --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def all_fields(two_chunks, tmp_path_factory):
    return ingest(two_chunks / "ukb40000.csv", tmp_path_factory.mktemp("all") / "b")


def test_every_field_is_there_and_holds_something(all_fields):
    fields = {}
    for name in all_fields.columns:
        fields.setdefault(parse_name(name)[0].field_id, []).append(name)
    assert len(fields) >= 462
    present = {column.name: column.count() for column in all_fields.read(all_fields.columns)}
    counts = {number: sum(present[name] for name in names) for number, names in fields.items()}
    empty = {number for number, count in counts.items() if count == 0}
    assert empty <= {42034, 42035, 42036, 42037, 131486, 131487, 131300, 131301}, (
        empty
    )  # one person in a thousand or fewer


def test_what_is_ingested_is_what_was_made(all_fields):
    people = pl.concat(make_chunk(chunk, 4, 60, columns=None).people for chunk in (0, 1))[:5000]
    made = pl.concat(make_chunk(chunk, 4, 60, columns=None).table for chunk in (0, 1))[:5000]
    order = people["eid"].arg_sort()
    assert set(all_fields.columns) == set(made.columns)
    for start in range(0, made.width, 500):
        names = made.columns[start : start + 500]
        read, expected = all_fields.read(names), made.select(names)[order]
        differ = [name for name in names if not read[name].equals(expected[name].rename(name))]
        assert differ == []


def test_every_derived_field_can_be_computed(all_fields):
    for name in ("age", "bmi", "egfr", "pack_years"):
        assert set(input_columns(name, all_fields.columns, 0)) >= set(formula(name).fields) - set(
            formula(name).optional
        )


def test_a_clean_biobank_has_no_value_that_cannot_be(all_fields):
    report = ingest_report(all_fields)
    impossible = {
        row["column"]: row["out_of_range"] for row in report.values["columns"] if row["out_of_range"]
    }
    assert impossible == {} and len(report.values["columns"]) == len(all_fields.columns)


@pytest.mark.parametrize(
    "form", [name for name in FORMATS if name not in ("ukbconv-csv", "rap-labels", "rap-titles")]
)
def test_every_form_of_a_delivery_is_read_to_the_same_table(form, tmp_path):
    columns = [*EXAMPLE_COLUMNS, "p40000_i0", "p3166_i0_a0", "p22009_a1", "p30901_i0"]
    if form != "ukb-format":  # a list in one cell under a name of ukbconv: see test_formats
        columns += ["p20002_i0", "p6150_i0", "p41270"]
    tables = []
    for name in ("ukbconv-csv", form):
        write_extract(tmp_path / name, participants=80, variants=20, seed=2, format=name, columns=columns)
        main = [
            path
            for path in (tmp_path / name).iterdir()
            if path.name.startswith(("ukb40000.", "participant."))
        ]
        biobank = ingest(next(path for path in main if path.suffix != ".r"), tmp_path / f"{name}.biobank")
        tables.append(biobank.read(sorted(columns)))
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("form", ["rap-labels", "rap-titles"])
def test_labels_and_titles_are_read_back(form, tmp_path):
    columns = [*EXAMPLE_COLUMNS, "p189", "p20002_i0", "p6150_i0", "p1160_i0"]
    for name in ("ukbconv-csv", form):
        write_extract(tmp_path / name, participants=80, variants=20, seed=2, format=name, columns=columns)
    files = (tmp_path / "ukbconv-csv" / "ukb40000.csv", tmp_path / form / "participant.csv")
    raw, replaced = (ingest(path, tmp_path / f"{path.stem}.biobank").read(sorted(columns)) for path in files)
    assert raw.equals(replaced)
    assert "Prefer not to answer" in files[1].read_text() and (tmp_path / form / "ukb_cal.bed").is_file()


def test_titles_that_two_fields_share_stand_twice_and_a_list_of_field_names_says_which_is_which(deliver):
    titles, labels = (
        deliver(form, form, columns=[*SPOILT, "p189", "p22189"]) for form in ("rap-titles", "rap-labels")
    )
    (header, *rows), (names, *others) = (
        list(csv.reader((folder / "participant.csv").open())) for folder in (titles, labels)
    )
    assert rows == others and header.count("Townsend deprivation index at recruitment") == 2
    assert (titles / "participant.field_names.txt").read_text().split() == names
    assert "participant.field_names.txt says which field" in (titles / "SYNTHETIC.txt").read_text()
    assert (
        not list(labels.glob("*field_names*")) and "field_names" not in (labels / "SYNTHETIC.txt").read_text()
    )


def test_pieces_of_a_table_with_titles_have_a_list_of_field_names_each(deliver, tmp_path):
    columns, faults = [*SPOILT, "p189", "p22189"], ["split", "repeated-columns", "future-leak"]
    folder = deliver("titles", "rap-titles", faults, columns=columns)
    others = deliver("labels", "rap-labels", faults, columns=columns)
    tables = sorted(path.name for path in folder.glob("*.csv") if path.name.startswith("participant"))
    assert tables == ["participant_1.csv", "participant_2.csv", "participant_3.csv", "participant_newer1.csv"]
    lists = [name.replace(".csv", ".field_names.txt") for name in tables]
    assert sorted(path.name for path in folder.glob("*.field_names.txt")) == lists
    assert ", ".join(lists) in (folder / "SYNTHETIC.txt").read_text()
    for table, names in zip(tables, lists, strict=True):
        _, *rows = csv.reader((folder / table).open())
        header, *same = csv.reader((others / table).open())
        assert (folder / names).read_text().split() == header and rows == same


def test_a_spoilt_table_with_titles_that_two_fields_share_is_read(deliver, tmp_path):
    columns, faults = [*SPOILT, "p189", "p22189"], ["another-order", "day-first", "utf-16", "special-dates"]
    read = [
        ingest(deliver(form, form, faults, True, columns), tmp_path / f"{form}.biobank")
        for form in ("rap-raw", "rap-titles")
    ]
    assert read[0].columns == read[1].columns and {"p189", "p22189"} <= set(read[0].columns)
    assert read[0].read(read[0].columns).equals(read[1].read(read[0].columns))


def test_few_columns_are_the_same_as_among_all(two_chunks):
    few = make_chunk(0, 4, 60, columns=["p42000", "p30750_i0", "p40010_i0"])
    assert few.table.columns == ["p42000", "p30750_i0", "p40010_i0"] and set(few.records)
    names = {"p42000": "42000-0.0", "p30750_i0": "30750-0.0", "p40010_i0": "40010-0.0"}
    table = pl.read_csv(two_chunks / "ukb40000.csv", columns=list(names.values()), infer_schema=False)[:CHUNK]
    for name, header in names.items():
        written = few.table[name].cast(pl.String).str.strip_suffix(".0")
        assert written.equals(table[header].replace("", None))
    assert make_chunk(0, 4, 60).records == {}


# ---- faults -----------------------------------------------------------------------------------------------------

SPOILT = ["p31", "p50_i0", "p53_i0", "p53_i1", "p1160_i0", "p3166_i0_a0", "p6150_i0", "p20002_i0", "p21003_i0", "p30901_i0",
          "p40010_i0", "p41270", "p42000", "p130708", "p131286"]  # fmt: skip


@pytest.fixture
def deliver(tmp_path, monkeypatch, spoilt_chunk):
    "Write a delivery of 60 people with faults; the people are invented once, and the dictionary is read once."
    dictionary = Dictionary.builtin()
    monkeypatch.setattr(Dictionary, "builtin", lambda: dictionary)
    make = functools.cache(
        lambda columns: spoilt_chunk if columns == tuple(SPOILT) else make_chunk(0, 3, 12, columns)
    )
    monkeypatch.setattr(synthetic, "make_chunk", lambda *rest: make(tuple(rest[-1])))

    def write(name, form, faults=(), packed=False, columns=SPOILT):
        write_extract(tmp_path / name, 60, 12, 3, form, columns, faults, packed)
        return tmp_path / name

    return write


@pytest.fixture(scope="module")
def spoilt_chunk():
    return make_chunk(0, 3, 12, SPOILT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The same 60 people without a fault."
    folder = tmp_path_factory.mktemp("whole")
    write_extract(folder / "delivery", 60, 12, 3, columns=SPOILT)
    return ingest(synthetic.main_table(folder / "delivery"), folder / "biobank")


def tables_of(folder, packed=False):
    "The tables that the truth names."
    notes = json.loads((folder / "truth" / "faults.json").read_text())
    names = next((note["table"] for note in notes if "table" in note), None) or [
        synthetic.main_table(folder).name
    ]
    return [folder / (name + ".gz" if packed and not name.endswith(".gz") else name) for name in names]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_can_be_planted_in_every_form_compressed_or_not(deliver, whole, tmp_path, form, name):
    plain, packed = deliver("plain", form, [name]), deliver("packed", form, [name], packed=True)
    files, more = content(plain), content(packed)
    tables = {path.name for path in tables_of(plain)}
    assert set(more) == {f"{file}.gz" if file in tables else file for file in files}
    assert all(gzip.decompress(more[f"{file}.gz"]) == files[file] for file in tables)
    assert all(more[file] == files[file] for file in set(files) - tables)
    beside = {
        key: packed / value
        for key, value in json.loads(files["truth/faults.json"])[0].items()
        if key in ("fields", "withdrawals")
    }
    if FAULTS[name].outcome == "refused":
        with pytest.raises(TableError):
            ingest(tables_of(packed, True), tmp_path / "biobank", **beside)
    else:
        spoilt = ingest(tables_of(packed, True), tmp_path / "biobank", **beside)
        assert set(whole.columns) <= set(spoilt.columns) and len(spoilt.columns) - len(whole.columns) == (
            name == "future-leak"
        )
        same = spoilt.read(whole.columns).equals(whole.read(whole.columns))
        assert same == (FAULTS[name].outcome == "same" or name in ("future-leak", "negative-ids"))


def test_faults_that_exclude_each_other_are_refused_before_anything_is_written(tmp_path):
    for faults, message in ((["latin-1", "utf-16"], "a file has no more"), (["truncated", "repeated-name"], "stops at the first"),
                            (["mixed-dates", "day-first"], "turned round"), (["split", "no-such"], "no such fault")):  # fmt: skip
        with pytest.raises(UkbmmError, match=message):
            write_extract(tmp_path / "x", 60, 12, faults=faults)
        assert not (tmp_path / "x").exists()


def test_three_faults_at_once_in_labels_and_compressed(deliver, whole, tmp_path):
    packed = deliver("packed", "rap-labels", ["split", "day-first", "latin-1"], packed=True)
    tables = sorted(path.name for path in packed.iterdir() if path.name.startswith("participant"))
    assert tables == [f"participant_{i}.csv.gz" for i in (1, 2, 3)]
    text = [gzip.decompress((packed / name).read_bytes()) for name in tables]
    assert any(b"\xe9" in each and b"\xc3\xa9" not in each for each in text)
    assert not re.search(rb"\d{4}-\d\d-\d\d", b"".join(text))  # all dates are turned round
    biobank = ingest(packed, tmp_path / "biobank")
    changed = {"p30901_i0", "p40010_i0"}  # texts
    notes = json.loads((packed / "truth" / "faults.json").read_text())
    pieces = next(note for note in notes if note["fault"] == "split")["pieces"]
    names = [name for name in pieces[0]["columns"] if name not in changed]
    assert biobank.read(names).equals(whole.read(names)) and set(biobank.columns) == set(whole.columns)


# ---- what agrees between files ----------------------------------------------------------------------------------


def test_the_dead_do_not_come_and_the_lost_are_not_dead(two_chunks):
    people = pl.read_parquet(two_chunks / "truth" / "people.parquet")
    onsets = pl.read_parquet(two_chunks / "truth" / "onsets.parquet")
    assert people["eid"].equals(onsets["eid"]) and 0.08 < onsets["death"].count() / 5000 < 0.18
    for i in range(4):
        assert not (people[f"visit_{i}"] > onsets["death"]).any()
        assert people[f"visit_{i}"].is_null().equals(people[f"centre_{i}"].is_null().rename(f"visit_{i}"))
    assert (people["lost"].is_null() | onsets["death"].is_null() | (people["lost"] < onsets["death"])).all()
    assert people["visit_0"].null_count() == 0


def test_record_tables_are_of_the_people_of_the_main_table(two_chunks):
    eids = set(pl.read_csv(two_chunks / "ukb40000.csv", columns=["eid"])["eid"])
    for name in ("hesin", "hesin_diag", "death", "gp_clinical", "gp_registrations"):
        table = pl.read_csv(two_chunks / f"{name}.txt", separator="\t", infer_schema=False)
        assert set(table["eid"].cast(pl.Int64)) <= eids and table.height > 100
    dates = pl.read_csv(two_chunks / "death.txt", separator="\t", infer_schema=False)["date_of_death"]
    assert dates.str.contains(r"^\d\d/\d\d/\d{4}$").all()


LISTS = {  # field of codes: its dates, the table, the column, the levels
    41270: (41280, "hesin_diag", "diag_icd10", "123"),
    41271: (41281, "hesin_diag", "diag_icd9", "123"),
    41202: (41262, "hesin_diag", "diag_icd10", "1"),
    41203: (41263, "hesin_diag", "diag_icd9", "1"),
    41204: (None, "hesin_diag", "diag_icd10", "23"),
    41205: (None, "hesin_diag", "diag_icd9", "23"),
    41272: (41282, "hesin_oper", "oper4", "12"),
    41273: (41283, "hesin_oper", "oper3", "12"),
    41200: (41260, "hesin_oper", "oper4", "1"),
    41210: (None, "hesin_oper", "oper4", "2"),
}


@pytest.fixture(scope="module")
def files(two_chunks):
    "The header and the lines of the main table by identifier, and the hospital tables as data frames of text."
    with (two_chunks / "ukb40000.csv").open() as stream:
        header, *lines = csv.reader(stream)
    tables = {
        name: pd.read_csv(two_chunks / f"{name}.txt", sep="\t", dtype=str)
        for name in ("hesin", "hesin_diag", "hesin_oper")
    }
    days = ["epistart", "admidate", "epiend", "disdate"]
    for name in days:
        tables["hesin"][name] = pd.to_datetime(tables["hesin"][name], format="%d/%m/%Y")
    tables["hesin"]["date"] = tables["hesin"][days].bfill(axis=1).iloc[:, 0]
    for name in ("hesin_diag", "hesin_oper"):
        tables[name] = tables[name].merge(
            tables["hesin"][["eid", "ins_index", "date"]], on=["eid", "ins_index"]
        )
    operated = pd.to_datetime(tables["hesin_oper"]["opdate"], format="%d/%m/%Y")
    tables["hesin_oper"]["date"] = operated.fillna(tables["hesin_oper"]["date"])
    return header, {line[0]: line for line in lines}, tables


@pytest.mark.parametrize("field_id", LISTS)
def test_lists_of_the_main_table_are_all_that_is_in_the_record_files(files, field_id):
    header, lines, tables = files
    partner, table, column, levels = LISTS[field_id]
    rows = tables[table]
    rows = rows[rows["level"].isin(list(levels)) & rows[column].notna()]
    first = rows.groupby(["eid", column])["date"].min().reset_index().sort_values(["eid", "date", column])
    expected = {
        eid: (group[column].tolist(), group["date"].dt.strftime("%Y-%m-%d").tolist())
        for eid, group in first.groupby("eid")
    }
    for number, part in ((field_id, 0), (partner, 1)) if partner else ((field_id, 0),):
        places = [i for i, name in enumerate(header) if name.startswith(f"{number}-")]
        assert len(places) == Dictionary.builtin()[number].array_max + 1
        for eid, line in lines.items():
            found = [line[i] for i in places]
            wanted = expected.get(eid, ([], []))[part]
            assert found == wanted + [""] * (len(places) - len(wanted))
    assert len(expected) > 50


def test_counts_of_the_main_table_are_those_of_the_record_files(files):
    header, lines, tables = files
    for number, table in {41234: "hesin_diag", 41259: "hesin", 41149: "hesin_oper"}.items():
        place, counts = header.index(f"{number}-0.0"), tables[table]["eid"].value_counts()
        assert all(line[place] == (str(counts[eid]) if eid in counts else "") for eid, line in lines.items())


# ---- the truth --------------------------------------------------------------------------------------------------


def test_what_is_returned_is_what_is_written(tmp_path):
    truth = write_extract(tmp_path, participants=60, variants=50, seed=3)
    assert json.loads((tmp_path / "truth" / "truth.json").read_text()) == truth
    assert truth["coefficients"] == planted() and len(truth["causal_variants"]) == len(truth["effects"]) == 40
    assert set(truth["hazards"]) == set(HAZARDS) and truth["fields"]["30870"]["lipids"] == 0.72
    assert 0.82 < truth["r_perfect"] < 0.86 and 0.66 < truth["r_perfect_additive"] < 0.71


def test_a_regression_on_all_causes_finds_the_stated_coefficients():
    made = [make_chunk(chunk, seed=6, variants=300, columns=FEW) for chunk in range(3)]
    people, hba1c = pl.concat(m.people for m in made), pl.concat(m.table for m in made)["p30750_i0"]
    stated = {name: weight for name, weight in planted().items() if name != "noise"}
    table = people.with_columns(
        (pl.col("genetic") * pl.col("adiposity")).alias("genetic x adiposity"), y=(hba1c - 36.4932) / 5.75617
    )
    x, y = table.drop_nulls("y").select(list(stated)).to_numpy(), table["y"].drop_nulls().to_numpy()
    fit = LinearRegression().fit(x, y)
    np.testing.assert_allclose(fit.coef_, list(stated.values()), atol=0.03)  # five standard errors
    assert abs((y - fit.predict(x)).std() - planted()["noise"]) < 0.02
    additive = LinearRegression().fit(x[:, :-1], y).score(x[:, :-1], y) ** 0.5
    assert fit.score(x, y) ** 0.5 - additive > 0.1


def test_the_planted_effects_are_found_in_the_files_alone(large):
    truth = json.loads((large.path / "truth.json").read_text())
    rows = np.arange(3000)
    copies = copies_of(large, rows)[:, truth["causal_variants"]]
    genes = np.where(np.isnan(copies), np.nanmean(copies, 0), copies) @ truth["effects"]
    table = large.read(["p30750_i0", "p21003_i0", "p21001_i0"]).to_numpy().astype(float)
    use = ~np.isnan(table).any(1) & large.genotypes().present(rows)
    assert use.sum() > 2500
    y = (table[use, 0] - truth["outcome_mean"]) / truth["outcome_sd"]
    age, adiposity = (table[use, 1] - 56) / 8.1, (np.log(table[use, 2]) - np.log(25.86)) / 0.159
    genes = genes[use] - genes[use].mean()
    found = LinearRegression().fit(np.column_stack([age, adiposity, genes, genes * adiposity]), y).coef_
    stated = truth["coefficients"]
    seen = (
        0.79 / 0.816
    )  # correlation of body mass index with adiposity; lipids go with it and are not in this regression
    expected = [stated["age_z"], (stated["adiposity"] + 0.2 * stated["lipids"]) * seen, stated["genetic"],
                stated["genetic x adiposity"] * seen]  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=0.07)  # four standard errors


def test_diseases_follow_the_causes_that_their_hazards_name(two_chunks):
    people = pl.read_parquet(two_chunks / "truth" / "people.parquet")
    onsets = pl.read_parquet(two_chunks / "truth" / "onsets.parquet")
    for disease, cause in (
        ("type_2_diabetes", "glycaemia"),
        ("lung_disease", "smoking"),
        ("hypertension", "pressure"),
    ):
        ill = onsets[disease].is_not_null()
        assert people.filter(ill)[cause].mean() - people.filter(~ill)[cause].mean() > 0.3


def test_the_example_has_the_columns_of_the_demo(large):
    assert set(large.columns) == set(EXAMPLE_COLUMNS)
    assert len(large) == 3000 and large.genotypes().present(np.arange(3000)).mean() > 0.96
    assert large.relatives.height > 300 and large.verify() == []
