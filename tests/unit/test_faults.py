"Each planted fault has the outcome that it says: the same tables, known other ones, or a refusal that leaves nothing."

import datetime
import gzip
import re
import shutil

import numpy as np
import polars as pl
import pytest

from ukbmm.biobank import faults as faults_module
from ukbmm.biobank.dictionary import Dictionary
from ukbmm.biobank.faults import EVERY, FAULTS, OUTCOMES, SPECIAL_DATES, plant, plant_all
from ukbmm.biobank.formats import FORMATS, TableWriter
from ukbmm.biobank.genotypes import unpack, write_bed
from ukbmm.biobank.names import parse_name
from ukbmm.biobank.store import ingest
from ukbmm.biobank.table import read_table
from ukbmm.core import TableError, UkbmmError

D = Dictionary.builtin()
N = 240
NAMES = ["p31", "p53_i0", "p53_i1", "p50_i0", "p1160_i0", "p21003_i0", "p130000", "p130002", "p42000", "p3166_i0_a0",
         "p20002_i0", "p41270", "p4136_i0"]  # fmt: skip
JOINED = (
    "p20002_i0",
    "p41270",
)  # UKB-FORMAT's joined answers are not read yet; tests/unit/test_formats.py says so
UNLIKE = ["ukbconv-csv", "ukbconv-txt", "rap-prefixed", "rap-titles"]  # forms that have least in common
EIDS = np.random.default_rng(5).permutation(np.arange(1_000_000, 1_000_000 + 11 * N, 11))
ORDER = np.argsort(EIDS)
PLACE = np.argsort(ORDER)  # of each row of the file among participants in order


def days(rng, share: float) -> list:
    start = datetime.date(2006, 5, 1)
    drawn = [start + datetime.timedelta(days=int(day)) for day in rng.integers(0, 5000, N)]
    return [day if here else None for here, day in zip(rng.random(N) < share, drawn, strict=True)]


def people() -> pl.DataFrame:
    "Typed columns of everybody, in the order of the file."
    rng = np.random.default_rng(6)
    noon = datetime.time(12, 0, 30)
    visits = days(rng, 1.0)
    values = {
        "p31": rng.integers(0, 2, N).tolist(),
        "p53_i0": visits,
        "p53_i1": days(rng, 0.2),
        "p50_i0": rng.normal(170, 9, N).round(1).tolist(),
        "p1160_i0": np.where(rng.random(N) < 0.1, -3, rng.integers(5, 10, N)).tolist(),
        "p21003_i0": rng.integers(40, 70, N).tolist(),
        "p130000": days(rng, 0.3),
        "p130002": days(rng, 0.3),
        "p42000": days(rng, 0.1),
        "p3166_i0_a0": [datetime.datetime.combine(day, noon) for day in visits],
        "p20002_i0": [[1065, 1473, 1111][: i % 4] or None for i in range(N)],
        "p41270": [["I10", "E119"][: i % 3] or None for i in range(N)],
        "p4136_i0": [f"unit {i % 7}, left" if i % 5 else None for i in range(N)],
    }
    fields = fields_of(NAMES)
    types = {
        n: pl.List(f.dtype) if f.value_type == "categorical_multiple" else f.dtype for n, f in fields.items()
    }
    return pl.DataFrame(values, schema=types)


def fields_of(names):
    return {name: D[parse_name(name)[0].field_id] for name in names}


PEOPLE = people()
WHOLE = PEOPLE[ORDER]


def names_of(format: str) -> list[str]:
    return [name for name in NAMES if format != "ukb-format" or name not in JOINED]


def write(folder, format="ukbconv-csv", frame=PEOPLE, names=None, **options):
    "Write the table; returns its file."
    names = names or names_of(format)
    sizes = {"p20002_i0": 3, "p41270": 2}
    with TableWriter(folder, format, fields_of(names), D, sizes, **options) as writer:
        writer.write(EIDS, frame.select(names))
    return writer.path


def parts(path, out) -> dict[str, bytes]:
    "What a table becomes: its files."
    summary, eids = read_table(path, D, out / "table")
    assert eids.tolist() == EIDS[ORDER].tolist()
    return {part: (out / part).read_bytes() for part in summary.parts}


def ingested(path, done, out):
    "The Biobank of an extract with a fault, from the files that the fault names."
    files = {key: path.with_name(done[key]) for key in ("fields", "withdrawals") if key in done}
    return ingest([path.with_name(name) for name in done["table"]], out, **files)


def touched(done) -> np.ndarray:
    "Which participants, in order of the identifiers, a fault touches; by its own words."
    return (np.arange(N) % done["every"] == done["first"] % done["every"])[ORDER]


def of(outcome: str) -> list[str]:
    return [name for name, fault in FAULTS.items() if fault.outcome == outcome and fault.acts_on == "table"]


def test_every_fault_has_an_outcome_and_a_sentence():
    assert len(FAULTS) >= 18
    for name, fault in FAULTS.items():
        assert (
            fault.outcome in OUTCOMES
            and fault.acts_on in ("table", "fam")
            and re.fullmatch(r"[a-z0-9-]+", name)
        )
        assert re.fullmatch(r"[A-Z].*\.", fault.sentence) and "\n" not in fault.sentence


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", [name for name in of("same") if name != "repeated-columns"])
def test_what_a_reader_sees_through_gives_the_same_bytes(tmp_path, name, format):
    path = write(tmp_path, format)
    before, data = parts(path, tmp_path / "before"), path.read_bytes()
    done = plant(name, path, D, seed=1)
    assert done["table"] == [path.name] and path.read_bytes() != data
    assert parts(path, tmp_path / "after") == before


@pytest.mark.parametrize("format", FORMATS)
def test_columns_that_stand_in_two_baskets_are_the_same(tmp_path, format):
    path = write(tmp_path, format)
    done = plant("repeated-columns", path, D, seed=1)
    biobank = ingested(path, done, tmp_path / "biobank")
    assert len(done["table"]) == 2 and biobank.manifest["table"]["repeated"] == dict.fromkeys(
        done["columns"], 0
    )
    found = biobank.read(names_of(format))
    assert found.schema == WHOLE.select(names_of(format)).schema and found.equals(
        WHOLE.select(names_of(format))
    )


# what changes in a known way


def special_dates(frame, done) -> pl.DataFrame:
    assert done["columns"] == ["p130000", "p130002"] and done["dates"] == list(SPECIAL_DATES[819])
    values = frame.to_dict(as_series=False)
    for number, row in enumerate(range(done["first"], N, EVERY)):
        for name in done["columns"]:
            values[name][PLACE[row]] = datetime.date.fromisoformat(SPECIAL_DATES[819][number % 6])
    return pl.DataFrame(values, schema=frame.schema)


def changed_columns(frame, done) -> pl.DataFrame:
    assert set(done["columns"]) - {"p990999"} == {"p1160_i0", "p21003_i0"}
    here, numbers = pl.Series(touched(done)), pl.col(done["columns"])
    return frame.with_columns(pl.when(here & (numbers >= 0)).then(numbers + 1).otherwise(numbers))


def latin_1(frame, done) -> pl.DataFrame:
    words = pl.col("p4136_i0").fill_null("") + "é"
    return frame.with_columns(p4136_i0=pl.when(pl.Series(touched(done))).then(words).otherwise("p4136_i0"))


def split(frame, done, elsewhere=()) -> pl.DataFrame:
    "People are missing from the second and the third file, but from no column that stands elsewhere, too."
    assert done["pieces"][0]["first"] is None and len(done["pieces"]) == 3
    for piece in done["pieces"][1:]:
        gone = pl.Series(touched(done | {"first": piece["first"]}))
        names = [name for name in piece["columns"] if name not in elsewhere]
        frame = frame.with_columns(pl.when(~gone).then(pl.col(name)).alias(name) for name in names)
    return frame


def withdrawn(frame, done) -> pl.DataFrame:
    gone = np.isin(np.arange(N), done["rows"])[ORDER]
    return frame.with_columns(pl.when(pl.Series(~gone)).then(pl.all()))


def future_leak(frame, done) -> pl.DataFrame:
    count = [sum(day is not None and visit < day < datetime.date(2037, 1, 1) for day in dates) for visit, *dates in
             frame.select("p53_i0", "p130000", "p130002", "p42000").iter_rows()]  # fmt: skip
    return frame.with_columns(pl.Series(done["column"], count, dtype=pl.Int64))


KNOWN = {
    "special-dates": special_dates,
    "changed-columns": changed_columns,
    "latin-1": latin_1,
    "split": split,
    "withdrawn": withdrawn,
    "future-leak": future_leak,
}


def test_each_known_outcome_is_worked_out_here():
    assert set(KNOWN) == set(of("known"))


@pytest.mark.parametrize("format", UNLIKE)
@pytest.mark.parametrize("name", KNOWN)
def test_what_changes_changes_as_the_truth_says_and_nothing_else(tmp_path, name, format):
    path = write(tmp_path, format)
    done = plant(name, path, D, seed=2)
    biobank = ingested(path, done, tmp_path / "biobank")
    expected = KNOWN[name](WHOLE, done)
    expected = expected.select(
        column for column in expected.columns if column not in JOINED or format != "ukb-format"
    )
    found = biobank.read(expected.columns)
    assert sorted(biobank.columns) == sorted(expected.columns) and found.schema == expected.schema
    assert found.equals(expected) and not found.equals(WHOLE.select(names_of(format)))


def test_the_newest_basket_holds_in_whatever_order_the_files_are_given(tmp_path):
    path = write(tmp_path)
    done = plant("changed-columns", path, D, seed=2)
    assert done["table"] == ["ukb40000.csv", "ukb40001.csv"]
    turned = done | {"table": done["table"][::-1]}
    biobank = ingested(path, turned, tmp_path / "biobank")
    assert biobank.read(NAMES).equals(changed_columns(WHOLE, done))
    differ = {name: int((WHOLE[name] != biobank.read([name])[name]).sum()) for name in done["columns"]}
    assert biobank.manifest["table"]["repeated"] == differ and differ["p21003_i0"] == touched(done).sum()


def test_pieces_in_other_orders_are_put_together(tmp_path):
    path = write(tmp_path, "rap-raw")
    done = plant("split", path, D, seed=3)
    for number, name in enumerate(done["table"]):
        plant("another-order", path.with_name(name), D, seed=number)
    assert not path.exists()
    assert ingested(path, done, tmp_path / "biobank").read(NAMES).equals(split(WHOLE, done))


def test_faults_can_be_planted_one_after_the_other(tmp_path):
    path = write(tmp_path)
    special = plant("special-dates", path, D, seed=4)
    for name in ("another-order", "day-first", "utf-16"):
        plant(name, path, D, seed=4)
    biobank = ingested(path, {"table": [path.name]}, tmp_path / "biobank")
    assert biobank.read(NAMES).equals(special_dates(WHOLE, special))


# several at once


def exclude(a: str, b: str) -> bool:
    "Two faults that a file can't have both."
    of_one = [{"latin-1", "utf-16", "byte-order-mark"}, set(of("refused")), {"day-first", "mixed-dates"}]
    return any({a, b} <= kind for kind in of_one)


def outcome_of(notes) -> pl.DataFrame:
    "What the table becomes, of the notes of all faults: each does its own, in the order in which they were planted."
    frame, elsewhere = WHOLE, []
    once = {note["fault"]: note for note in notes}.values()
    for note in sorted(
        once, key=lambda note: note["fault"] == "withdrawn"
    ):  # whoever withdrew has nothing at all
        if note["fault"] in ("repeated-columns", "changed-columns"):
            elsewhere += note["columns"]
        if note["fault"] in KNOWN:
            frame = KNOWN[note["fault"]](
                frame, note, **({"elsewhere": elsewhere} if note["fault"] == "split" else {})
            )
    return frame


@pytest.fixture
def one_dictionary(monkeypatch):
    "The dictionary that ships is read once."
    monkeypatch.setattr(Dictionary, "builtin", lambda: D)


@pytest.mark.parametrize("format", ["ukbconv-csv", "rap-labels"])
@pytest.mark.parametrize("name", FAULTS)
def test_every_two_faults_go_together_or_are_refused_before_anything_is_changed(
    tmp_path, name, format, one_dictionary
):
    for other in list(FAULTS)[: list(FAULTS).index(name)]:
        folder = tmp_path / other
        path, fam = write(folder, format), folder / "g.fam"
        fam.write_text("".join(f"{eid} {eid} 0 0 1 -9\n" for eid in EIDS))
        before = path.read_bytes()
        if exclude(name, other):
            with pytest.raises(UkbmmError, match=f"{name}|{other}"):
                plant_all([name, other], path, fam, D, seed=9)
            assert path.read_bytes() == before and len(list(folder.iterdir())) == 2
            continue
        tables, notes = plant_all([name, other], path, fam, D, seed=9)
        assert {note["fault"] for note in notes} == {name, other}
        assert all(note["table"] == [table.name for table in tables] for note in notes if "table" in note)
        assert sorted(table.name for table in tables) == [
            table.name for table in tables
        ]  # as ingesting a folder takes them
        done = {key: value for note in notes for key, value in note.items()} | {
            "table": [table.name for table in tables]
        }
        if "refused" in {FAULTS[name].outcome, FAULTS[other].outcome}:
            with pytest.raises(TableError):
                ingested(path, done, folder / "biobank")
        else:
            expected = outcome_of(notes)
            biobank = ingested(path, done, folder / "biobank")
            assert biobank.read(expected.columns).equals(expected), other


def test_a_fault_of_every_stage_at_once(tmp_path):
    path = write(tmp_path, "rap-raw")
    names = ["utf-16", "another-order", "day-first", "split", "changed-columns", "withdrawn", "special-dates"]
    tables, notes = plant_all(names, path, "none.fam", D, seed=10)
    assert [table.name for table in tables] == [f"participant_{i}.csv" for i in (1, 2, 3)] + [
        "participant_newer1.csv"
    ]
    assert {note["file"] for note in notes if note["fault"] == "another-order"} == {
        table.name for table in tables
    }
    done = {key: value for note in notes for key, value in note.items()}
    biobank = ingested(path, done, tmp_path / "biobank")
    assert biobank.read(NAMES).equals(outcome_of(notes))


def test_a_place_is_in_the_first_file_that_has_it(tmp_path):
    path = write(tmp_path)
    tables, notes = plant_all(["letter-in-numbers", "split"], path, "none.fam", D, seed=11)
    assert tables[0].name == notes[-1]["file"] == "ukb40000_1.csv"
    with pytest.raises(TableError, match="letter|expected whole numbers|expected numbers"):
        ingest(tables, tmp_path / "biobank")


def test_own_fields_that_are_there_already_are_kept(tmp_path):
    path = write(tmp_path, "rap-raw")
    (tmp_path / "fields.tsv").write_text("FieldID\tField\tValueType\tUnits\n990001\tShoe size\tInteger\tcm\n")
    done = plant("future-leak", path, D, seed=5)
    dictionary = D.overlay(tmp_path / "fields.tsv")
    assert dictionary[990001].units == "cm" and dictionary[990999].value_type == "integer"
    assert ingested(path, done, tmp_path / "biobank").read(["p990999"])["p990999"].max() > 0


def test_people_of_a_fam_who_withdrew_keep_their_place(tmp_path):
    path = write(tmp_path, "rap-raw")
    copies = np.random.default_rng(0).choice(np.array([0, 1, 2], np.int8), (N, 6))
    six = {
        "chromosome": ["1"] * 6,
        "id": list("abcdef"),
        "position": range(6),
        "a1": ["A"] * 6,
        "a2": ["G"] * 6,
    }
    write_bed(
        tmp_path / "g",
        copies,
        pl.DataFrame({"eid": EIDS, "sex": 2 - PEOPLE["p31"].to_numpy()}),
        pl.DataFrame(six),
    )
    done = plant("negative-ids", tmp_path / "g.fam", D, seed=6)
    assert "table" not in done and len(done["rows"]) == N // 100
    lines = (tmp_path / "g.fam").read_text().splitlines()
    assert [i for i, line in enumerate(lines) if line.startswith("-")] == done["rows"] and len(lines) == N
    biobank = ingest(path, tmp_path / "biobank", genotypes=tmp_path / "g")
    store = biobank.genotypes()
    found = unpack(store.packed(np.arange(N)), store.variants)
    expected = copies.copy()
    expected[done["rows"]] = -1
    assert np.array_equal(found, expected[ORDER])
    assert biobank.manifest["genotypes"]["array"]["n_sex_differs"] == 0


# what must be refused

MESSAGES = {
    "letter-in-numbers": "<5 values, first at line 122, expected (whole )?numbers",
    "scientific-eid": r"eid|Participant ID",
    "mixed-dates": "expected dates written yyyy-mm-dd, or all of the file's dd/mm/yyyy",
    "truncated": "a closing quote, found the end of the file|line 122: expected .* fields, as in the header, found 1",
    "other-number-of-cells": "line 122: expected .* fields, as in the header, found",
    "repeated-name": "expected one column of this field, occasion and position, found 2",
}


@pytest.mark.parametrize("format", UNLIKE)
@pytest.mark.parametrize("name", of("refused"))
def test_what_can_not_be_read_is_refused_with_its_place_and_leaves_nothing(tmp_path, name, format):
    path = write(tmp_path, format)
    parts(path, tmp_path / "before")  # it was readable
    plant(name, path, D, seed=7)
    with pytest.raises(TableError, match=MESSAGES[name]) as refused:
        ingest(path, tmp_path / "biobank")
    assert [left.name for left in tmp_path.iterdir() if left.name.startswith("biobank")] == []
    assert not set(re.findall(r"\d{7}", str(refused.value))) & set(map(str, EIDS))


def test_a_compressed_file_that_is_cut_off_is_refused(tmp_path):
    path = write(tmp_path, packed=True)
    plant("truncated", path, D, seed=0)
    with pytest.raises(TableError, match="a whole gzip file, found one that is cut off or damaged"):
        ingest(path, tmp_path / "biobank")


# planting


@pytest.mark.parametrize("name", [name for name in FAULTS if FAULTS[name].acts_on == "table"])
def test_a_fault_is_a_function_of_its_seed_and_not_of_the_size_of_slices(tmp_path, name, monkeypatch):
    found = []
    for run in ("one", "two"):
        path = write(tmp_path / run)
        done = plant(name, path, D, seed=8)
        files = {left.name: left.read_bytes() for left in sorted((tmp_path / run).iterdir())}
        found.append((done, files))
        monkeypatch.setattr(faults_module, "CELLS", 1_000)  # some fifty rows at a time
    assert found[0] == found[1]
    assert not [name for name in found[0][1] if name.startswith(".")]  # no temporary file is left


def test_another_seed_touches_other_rows(tmp_path):
    path = write(tmp_path)
    shutil.copy(path, tmp_path / "ukb1.csv")
    first = [
        plant("special-dates", tmp_path / name, D, seed)["first"]
        for seed, name in ((0, path.name), (1, "ukb1.csv"))
    ]
    assert first[0] != first[1]


@pytest.mark.parametrize("name", [name for name in FAULTS if name not in ("truncated", "negative-ids")])
def test_a_compressed_file_is_left_alone(tmp_path, name):
    path = write(tmp_path, packed=True)
    data = path.read_bytes()
    with pytest.raises(UkbmmError, match="plain UTF-8 text to plant a fault in, found a compressed file"):
        plant(name, path, D, seed=0)
    assert path.read_bytes() == data and gzip.decompress(data)


NOTHING = {
    "day-first": "a column of dates",
    "mixed-dates": "a column of dates",
    "special-dates": "a column of dates with coding 819",
    "latin-1": "a column of text",
    "letter-in-numbers": "a column of numbers",
    "changed-columns": "a column of whole numbers",
    "split": "at least 3 columns",
    "repeated-name": "two columns of one value each",
    "future-leak": "a date of disease and that of the baseline visit",
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_table_that_a_fault_can_not_spoil_is_left_alone(tmp_path, name):
    path = write(tmp_path, names=["p31", "p20002_i0"])
    data = path.read_bytes()
    with pytest.raises(UkbmmError, match=NOTHING[name]):
        plant(name, path, D, seed=0)
    assert path.read_bytes() == data and [left.name for left in tmp_path.iterdir()] == [path.name]


def test_text_beyond_latin_1_and_short_tables_are_left_alone(tmp_path):
    path = write(tmp_path, frame=PEOPLE.with_columns(p4136_i0=pl.lit("漢")))
    data = path.read_bytes()
    with pytest.raises(UkbmmError, match="expected letters that latin-1 has, found others"):
        plant("latin-1", path, D, seed=0)
    assert path.read_bytes() == data
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:EVERY]))  # one row too few
    with pytest.raises(UkbmmError, match=f"at least {EVERY} rows"):
        plant("special-dates", path, D, seed=0)


def test_line_breaks_in_texts_do_not_mislead_a_fault(tmp_path):
    "A text holds a line that starts as that of the participant in the middle does not."
    frame = PEOPLE.with_columns(p4136_i0=pl.lit('first\n"7", and\nlast'))
    for name in ("truncated", "other-number-of-cells", "letter-in-numbers"):
        path = write(tmp_path / name, frame=frame)
        assert plant(name, path, D, seed=0)["row"] == N // 2
        with pytest.raises(TableError, match="closing quote|fields, as in the header|first at line 362"):
            ingest(path, tmp_path / name / "biobank")


def test_an_unknown_fault_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(UkbmmError, match="Did you mean 'truncated'"):
        plant("truncate", tmp_path / "a.csv", D, seed=0)
