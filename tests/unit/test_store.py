"A Biobank folder is whole or absent, is checked, and holds what the files held."

import json
import os
import shutil

import numpy as np
import pandas as pd
import polars as pl
import pytest
from shared_data import shared_data

from ukbmm.biobank import store as module
from ukbmm.biobank.description import describe
from ukbmm.biobank.genotypes import unpack, write_bed
from ukbmm.biobank.store import Biobank, ingest
from ukbmm.core import EID_PATTERN, GenotypeError, StoreError, TableError, UkbmmError
from ukbmm.disclosure import show_count, show_share

PEOPLE = np.array([1_000_003, 1_000_005, 1_000_008, 1_000_009, 1_000_011, 1_000_020, 1_000_021, 1_000_030])


def write_inputs(folder, in_fam=PEOPLE, people=PEOPLE, sexes=None):
    "A table, a relatedness file and PLINK files of a few people; the genotypes in order of `in_fam`."
    folder.mkdir(exist_ok=True)
    sexes = np.arange(len(people)) % 2 if sexes is None else sexes
    rows = [
        f"{eid},{sex},{20 + i / 2},-1.5\n" for i, (eid, sex) in enumerate(zip(people, sexes, strict=True))
    ]
    (folder / "t.csv").write_text("eid,31-0.0,21001-0.0,22189-0.0\n" + "".join(rows[::-1]))
    (folder / "rel.dat").write_text(
        f"ID1 ID2 HetHet IBS0 Kinship\n{people[3]} {people[1]} 0 0 0.25\n{people[-2]} {people[-1]} 0 0 0.1\n9999999 {people[0]} 0 0 0.1\n"
    )
    copies = np.random.default_rng(0).choice(np.array([0, 1, 2, -1], np.int8), (len(in_fam), 6))
    fam = pl.DataFrame({"eid": in_fam, "sex": np.zeros(len(in_fam), int)})
    variants = pl.DataFrame(
        {
            "chromosome": ["1"] * 6,
            "id": list("abcdef"),
            "position": range(6),
            "a1": ["A"] * 6,
            "a2": ["G"] * 6,
        }
    )
    write_bed(folder / "g", copies, fam, variants)
    return copies


def ingest_all(folder, out, **options):
    return ingest(folder / "t.csv", out, relatedness=folder / "rel.dat", genotypes=folder / "g", **options)


@pytest.fixture
def small(tmp_path):
    "A Biobank of eight people, and their genotypes in order of the participants."
    copies = write_inputs(tmp_path / "in")
    return ingest_all(tmp_path / "in", tmp_path / "b"), copies


def test_a_biobank_holds_what_the_files_held(small):
    biobank, copies = small
    assert len(biobank) == 8 and biobank.columns == ["p31", "p21001_i0", "p22189"]
    assert biobank.read(["p21001_i0", "p31"]).rows() == [(20 + i / 2, i % 2) for i in range(8)]
    assert biobank.read(["p31"], np.array([3, 0, 3])).rows() == [(1,), (0,), (1,)]
    assert biobank.relatives.rows() == [(1, 3, 0.25), (6, 7, 0.1)]
    store = biobank.genotypes()
    assert np.array_equal(unpack(store.packed(np.arange(8)), store.variants), copies)
    assert biobank.field("p22189").units is None and biobank.field("p21001_i0").units == "Kg/m2"
    assert biobank.verify() == []
    assert repr(biobank) == "Biobank b: 8 participants, 3 columns, genotypes at 6 variants"


def test_a_folder_opened_again_is_the_same(small):
    biobank, _ = small
    again = Biobank.open(biobank.path)
    assert again.manifest == biobank.manifest and again.read(again.columns).equals(
        biobank.read(biobank.columns)
    )
    assert again.dictionary.fields == biobank.dictionary.fields


def test_the_manifest_names_every_source_with_its_checksum(small, tmp_path):
    import hashlib

    sources = small[0].manifest["sources"]
    assert {source["file"] for source in sources} == {"t.csv", "rel.dat", "g.bed", "g.bim", "g.fam"}
    for source in sources:
        data = (tmp_path / "in" / source["file"]).read_bytes()
        assert (source["sha256"], source["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
    assert str(tmp_path) not in json.dumps(small[0].manifest)


def files_of(biobank):
    return [
        path for path in sorted(biobank.path.rglob("*")) if path.is_file() and path.name != "manifest.json"
    ]


def test_verify_finds_a_flipped_byte_in_every_file(small):
    biobank, _ = small
    names = {path.name for path in files_of(biobank)}
    assert {"participants.parquet", "dictionary.parquet", "relatedness.parquet", "geno.u8"} <= names
    for path in files_of(biobank):
        data = path.read_bytes()
        if path.name == "meta.json" or path.parent.name == "array" and path.name != "geno.u8":
            continue  # tried below
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
        found = Biobank(biobank.path).verify()
        assert len(found) == 1 and path.name in found[0], path.name
        path.write_bytes(data)
    assert biobank.verify() == []


@pytest.mark.parametrize("name", ["variants.parquet", "samples.parquet", "meta.json"])
def test_verify_finds_a_change_beside_the_genotypes(small, name):
    path = small[0].path / "genotypes" / "array" / name
    path.write_bytes(
        path.read_bytes().replace(b"unknown", b"GRCh37_") if name == "meta.json" else path.read_bytes()[:-1]
    )
    assert any(name in line for line in small[0].verify())


@pytest.mark.parametrize(
    "name",
    ["participants.parquet", "tables/phenotypes-0.parquet", "relatedness.parquet",
     "genotypes/array/geno.u8", "genotypes/array/samples.parquet", "genotypes/array/meta.json"],
)  # fmt: skip
def test_verify_finds_a_missing_file(small, name):
    (small[0].path / name).unlink()
    found = small[0].verify()
    assert len(found) == 1 and name in found[0] and "missing" in found[0]


@pytest.mark.parametrize("name", ["tables/more.parquet", "notes.txt", "genotypes/array/old.u8"])
def test_verify_finds_an_extra_file(small, name):
    (small[0].path / name).write_text("x")
    assert any(name in line for line in small[0].verify())


def test_a_synthetic_biobank_verifies(biobank):
    assert biobank.verify() == []


@pytest.mark.parametrize("kind", ["folder", "file", "biobank"])
def test_an_output_that_exists_is_refused_untouched(tmp_path, kind):
    write_inputs(tmp_path / "in")
    out = tmp_path / "b"
    if kind == "file":
        out.write_text("mine")
    elif kind == "folder":
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    else:
        ingest(tmp_path / "in" / "t.csv", out)
    before = {path: path.read_bytes() for path in [out, *out.rglob("*")] if path.is_file()}
    with pytest.raises(StoreError, match="the folder b: expected a new folder.*--out"):
        ingest_all(tmp_path / "in", out)
    assert {path: path.read_bytes() for path in [out, *out.rglob("*")] if path.is_file()} == before
    assert sorted(os.listdir(tmp_path)) == ["b", "in"]


@pytest.mark.parametrize("place", ["read_extract", "read_withdrawals", "save_dictionary"])
def test_an_error_in_the_table_leaves_nothing(tmp_path, monkeypatch, place):
    write_inputs(tmp_path / "in")

    def fail(*given, **named):
        raise OSError("no space left")

    monkeypatch.setattr(module, place, fail)
    with pytest.raises(OSError, match="no space"):
        ingest_all(tmp_path / "in", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    if place != "save_dictionary":
        assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize("place", ["read_relatedness", "build_genotypes", "_finish"])
def test_a_killed_ingest_is_no_biobank_and_the_next_one_finishes_it(tmp_path, place):
    write_inputs(tmp_path / "in")
    with pytest.MonkeyPatch.context() as patch:

        def die(*given, **named):
            raise KeyboardInterrupt

        patch.setattr(module, place, die)
        with pytest.raises(KeyboardInterrupt):
            ingest_all(tmp_path / "in", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    with pytest.raises(StoreError, match="found an unfinished one. Run the same `ukbmm ingest` again"):
        Biobank(tmp_path / "b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "read_extract", None)  # the table is not read a second time
        again = ingest_all(tmp_path / "in", tmp_path / "b")
    whole = ingest_all(tmp_path / "in", tmp_path / "whole")
    assert again.manifest == whole.manifest and again.verify() == []
    assert sorted(os.listdir(tmp_path)) == ["b", "in", "whole"]


def test_a_killed_ingest_forgets_what_was_made_from_a_table_that_changed(tmp_path):
    write_inputs(tmp_path / "in")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_finish", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ingest_all(tmp_path / "in", tmp_path / "b")
    lines = (tmp_path / "in" / "t.csv").read_text().splitlines(keepends=True)
    (tmp_path / "in" / "t.csv").write_text("".join(lines[:-1]))  # without the first participant
    again = ingest_all(tmp_path / "in", tmp_path / "b")
    assert len(again) == 7
    assert again.relatives.rows() == [(0, 2, 0.25), (5, 6, 0.1)]
    assert again.genotypes().samples(np.arange(7)).tolist() == [1, 2, 3, 4, 5, 6, 7]


def repeat_a_person(folder):
    lines = (folder / "g.fam").read_text().splitlines(keepends=True)
    (folder / "g.fam").write_text("".join([*lines[:7], lines[2]]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "g.bed").write_bytes((f / "g.bed").read_bytes()[:-1]), "g.bed: .*cut off"),
        (lambda f: (f / "g.bed").write_bytes(b"PK\x03" + (f / "g.bed").read_bytes()[3:]), "g.bed: .*PLINK"),
        (
            lambda f: (f / "g.bed").write_bytes(b"\x6c\x1b\x00" + (f / "g.bed").read_bytes()[3:]),
            "sample-major",
        ),
        (repeat_a_person, "g.fam: .*1 repeated, first at line 8"),
        (lambda f: (f / "rel.dat").write_text("a b\n1 2\n"), "rel.dat: expected a header"),
    ],
    ids=["cut off", "wrong magic", "sample-major", "a person twice", "relatedness"],
)
def test_bad_input_leaves_nothing_half_written(tmp_path, damage, message):
    write_inputs(tmp_path / "in")
    damage(tmp_path / "in")
    with pytest.raises(UkbmmError, match=message):
        ingest_all(tmp_path / "in", tmp_path / "b")
    assert os.listdir(tmp_path) == ["in"]


def test_bad_input_of_a_later_attempt_keeps_what_an_earlier_one_has_finished(tmp_path):
    write_inputs(tmp_path / "in")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "build_genotypes", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ingest_all(tmp_path / "in", tmp_path / "b")
    with pytest.raises(GenotypeError, match="nowhere.fam"):
        ingest(tmp_path / "in" / "t.csv", tmp_path / "b", genotypes=tmp_path / "nowhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "read_extract", None)  # the table is not read a second time
        assert ingest_all(tmp_path / "in", tmp_path / "b").verify() == []


def test_nothing_of_a_killed_attempt_stays_in_the_folder(tmp_path, monkeypatch):
    write_inputs(tmp_path / "in")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_finish", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ingest_all(tmp_path / "in", tmp_path / "b")
    folder = tmp_path / "b.partial"
    for name in (
        ".participants.parquet.77.partial",
        "tables/.phenotypes-raw.parquet",
        "tables/phenotypes-7.parquet",
    ):
        (folder / name).write_text("x")
    (folder / ".abc.partial").mkdir()  # of records, say
    for name in ("0", ".death.txt.plain"):
        (folder / ".abc.partial" / name).write_text("x")
    (tmp_path / "in" / "t.csv").touch()  # the table is read again
    biobank = ingest(tmp_path / "in" / "t.csv", tmp_path / "b")  # and genotypes are no longer wanted
    assert sorted(path.relative_to(biobank.path).as_posix() for path in biobank.path.rglob("*")) == [
        "dictionary.parquet", "manifest.json", "participants.parquet", "relatedness.parquet",
        "tables", "tables/phenotypes-0.parquet",
    ]  # fmt: skip
    assert biobank.verify() == []


def test_people_of_the_fam_who_are_not_participants_are_reported_and_the_rest_kept(tmp_path):
    strangers = np.array([5_000_001 + i for i in range(7)])
    in_fam = np.concatenate([strangers, PEOPLE[:6], [-1]])
    copies = write_inputs(tmp_path / "in", in_fam=in_fam)
    biobank = ingest_all(tmp_path / "in", tmp_path / "b")
    found = biobank.manifest["genotypes"]["array"]
    assert (found["n_people"], found["n_shared"], found["n_without"]) == (14, 6, 2)
    store = biobank.genotypes()
    assert store.present(np.arange(8)).tolist() == [True] * 6 + [False] * 2
    assert np.array_equal(unpack(store.packed(np.arange(6)), store.variants), copies[7:13])
    report = "\n".join(biobank.report())
    assert "people in the .fam who are not in the table: 8" in report
    assert f"of {show_share(6, 8)} of the participants" in report and show_share(6, 8) != "75%"


def test_a_fam_of_strangers_only_is_an_error(tmp_path):
    write_inputs(tmp_path / "in", in_fam=PEOPLE + 4_000_000)
    with pytest.raises(GenotypeError, match="g.fam: expected participants of the table.*same one"):
        ingest_all(tmp_path / "in", tmp_path / "b")
    assert os.listdir(tmp_path) == ["in"]


def test_files_of_another_application_that_fit_by_chance_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    own, other = (np.sort(rng.choice(np.arange(1_000_000, 6_100_000), 6000, replace=False)) for _ in range(2))
    both = len(np.intersect1d(own, other))
    assert both > 2  # seven are expected
    write_inputs(tmp_path / "own", own, own)
    write_inputs(tmp_path / "other", other, other)
    lines = "".join(f"{a} {b} 0 0 0.25\n" for a, b in other.reshape(-1, 2))
    (tmp_path / "other" / "rel.dat").write_text("ID1 ID2 HetHet IBS0 Kinship\n" + lines)
    (tmp_path / "other" / "death.csv").write_text(
        "eid,ins_index,date_of_death\n" + "".join(f"{eid},0,2012-05-01\n" for eid in other)
    )
    table, theirs = tmp_path / "own" / "t.csv", tmp_path / "other"
    for given in (
        {"genotypes": theirs / "g"},
        {"relatedness": theirs / "rel.dat"},
        {"records": theirs / "death.csv"},
    ):
        with pytest.raises(UkbmmError, match="Identifiers differ between applications") as caught:
            ingest(table, tmp_path / "b", **given)
        assert not EID_PATTERN.search(str(caught.value))
    assert sorted(os.listdir(tmp_path)) == ["other", "own"]
    part = "".join(
        table.read_text().splitlines(keepends=True)[:61]
    )  # a hundredth of the people: all else is of everybody
    (tmp_path / "part.csv").write_text(part)
    biobank = ingest(tmp_path / "part.csv", tmp_path / "b", genotypes=tmp_path / "own" / "g")
    assert biobank.manifest["genotypes"]["array"]["n_shared"] == 60


def test_people_whose_sex_differs_are_counted(tmp_path):
    write_inputs(tmp_path / "in")
    fam = [f"{eid} {eid} 0 0 {sex} -9\n" for eid, sex in zip(PEOPLE, [2, 1, 1, 2, 1, 2, 0, 0], strict=True)]
    (tmp_path / "in" / "g.fam").write_text("".join(fam))
    biobank = ingest_all(tmp_path / "in", tmp_path / "b")
    # field 31 is 0, 1, 0, 1, ...; 0 female is 2 in a .fam; the last two are unknown there
    assert biobank.manifest["genotypes"]["array"]["n_sex_differs"] == 4
    assert "people whose sex differs between .fam and field 31: <5" in biobank.report()


def test_withdrawn_people_are_absent_from_every_reading(tmp_path):
    write_inputs(tmp_path / "in")
    (tmp_path / "w1.csv").write_text(f"{PEOPLE[2]}\n{PEOPLE[5]}\n7777777\n")
    biobank = ingest_all(tmp_path / "in", tmp_path / "b", withdrawals=[tmp_path / "w1.csv"])
    gone = [False, False, True, False, False, True, False, False]
    assert biobank.withdrawn.tolist() == gone and biobank.manifest["table"]["n_withdrawn"] == 2
    table = biobank.read(biobank.columns)
    assert table["p21001_i0"].is_null().to_list() == gone and table["p31"].is_null().to_list() == gone
    assert biobank.read(["p31"], np.array([5, 0])).rows() == [(None,), (0,)]
    assert biobank.clean(["p31"])["p31"].kinds.to_list() == [int(is_gone) for is_gone in gone]
    store = biobank.genotypes()
    assert (~store.present(np.arange(8))).tolist() == gone
    assert (unpack(store.packed(np.array([2])), store.variants) == -1).all()
    assert biobank.verify() == []


def test_a_later_list_is_added_to_the_earlier_ones(small, tmp_path):
    biobank, _ = small
    (tmp_path / "w1.csv").write_text(f"{PEOPLE[1]}\n")
    (tmp_path / "w2.csv").write_text(f"{PEOPLE[4]}\n{PEOPLE[7]}\n")
    assert biobank.withdraw(tmp_path / "w1.csv") == 1
    assert biobank.withdraw([tmp_path / "w2.csv"]) == 3
    again = Biobank(biobank.path)
    assert np.flatnonzero(again.withdrawn).tolist() == [1, 4, 7]
    assert again.read(["p31"])["p31"].null_count() == 3 and again.verify() == []
    assert again.genotypes().present(np.arange(8)).sum() == 5
    assert "withdrawn, their values are left out: <5" in again.report()
    with pytest.raises(TableError):
        biobank.withdraw(tmp_path / "nowhere.csv")
    assert Biobank(biobank.path).verify() == []


def test_columns_are_found_by_field_instance_and_array(biobank):
    assert biobank.column(21001) == "p21001_i0" and biobank.column(31) == "p31"
    assert biobank.column(4080, array=1) == "p4080_i0_a1" and biobank.column(4080, 0, 0) == "p4080_i0_a0"
    with pytest.raises(StoreError, match=r"field 4080 \(Systolic.*found 2 columns that fit.*which array"):
        biobank.column(4080)
    with pytest.raises(StoreError, match=r"field 50 \(Standing height\).*no column of this field.*extract"):
        biobank.column(50)
    with pytest.raises(StoreError, match="field 2101: .*Similar numbers: 2100"):
        biobank.column(2101)
    with pytest.raises(StoreError, match="21001.*0 columns that fit"):
        biobank.column(21001, instance=2)


def test_unknown_columns_stores_and_folders_are_refused(biobank, tmp_path):
    with pytest.raises(StoreError, match="column p99: .*no such column"):
        biobank.read(["p31", "p99"])
    with pytest.raises(StoreError, match="genotypes 'imputed'.*only array.*--genotypes"):
        biobank.genotypes("imputed")
    with pytest.raises(StoreError, match="the Biobank nothing: .*no manifest.json there"):
        Biobank(tmp_path / "nothing")


def test_a_biobank_without_genotypes_and_relatives_says_so(tmp_path):
    write_inputs(tmp_path / "in")
    biobank = ingest(tmp_path / "in" / "t.csv", tmp_path / "b")
    assert biobank.relatives.height == 0 and biobank.manifest["genotypes"] == {}
    assert "no relatedness file: everybody counts as unrelated" in biobank.report()
    with pytest.raises(StoreError, match="found none"):
        biobank.genotypes()


def test_a_biobank_can_be_moved(small, tmp_path):
    biobank, _ = small
    shutil.move(biobank.path, tmp_path / "elsewhere")
    moved = Biobank(tmp_path / "elsewhere")
    assert moved.verify() == [] and moved.read(["p31"]).height == 8 and len(moved.genotypes().bytes) == 8


def test_describe_counts_as_pandas_does(biobank):
    table = describe(biobank, ["p20116_i0", "p30690_i0", "p31"])
    assert table["title"].to_list() == ["Smoking status", "Cholesterol", "Sex"]
    raw = pd.DataFrame(biobank.read(["p30690_i0", "p20116_i0"]).to_dict(as_series=False))
    empty = raw["p30690_i0"].isna().sum()
    assert empty > 20
    row = table.row(1, named=True)
    assert row["empty"] == str(empty) and row["present"] == f"{round(100 * (400 - empty) / 400)}%"
    refused = (raw["p20116_i0"] == -3).sum()
    assert table.row(0, named=True).get("prefer_not_to_answer", "0") == show_count(int(refused))
    assert table.row(2, named=True)["present"] == "100%"


@pytest.fixture(scope="module")
def mice(tmp_path_factory):
    folder = shared_data("hs_mice")
    return ingest(
        folder / "phenotypes.csv", tmp_path_factory.mktemp("mice") / "hs_mice.biobank", folder / "extra_fields.tsv",
        folder / "extra_codings.tsv", folder / "relatedness.dat", folder / "genotypes",
    )  # fmt: skip


def test_the_mice_are_ingested_whole(mice):
    assert (len(mice), len(mice.columns)) == (1814, 25)
    found = mice.manifest["genotypes"]["array"]
    assert (found["n_variants"], found["n_people"], found["n_shared"], found["n_sex_differs"]) == (
        10_346,
        1814,
        1814,
        0,
    )
    assert mice.manifest["own_fields"] == [90100, 90101, 90102, 90103, 90104, 90105]
    assert mice.manifest["table"]["tables"][0]["unknown"] == ["90530-0.0", "90520-0.0", "90510-0.0"]
    assert mice.verify() == []


def test_the_mice_have_the_measurements_of_their_reference(mice):
    counts = {mice.column(field): n for field, n in {50: 1814, 21001: 1814, 30610: 1691, 30760: 1594}.items()}
    table = mice.read(counts)
    assert {name: table.height - table[name].null_count() for name in counts} == counts  # REFERENCE.md


def test_the_mice_have_the_genotypes_of_an_independent_reading(mice):
    folder, store = shared_data("hs_mice"), mice.genotypes()
    bits = np.unpackbits(np.fromfile(folder / "genotypes.bed", np.uint8)[3:], bitorder="little").reshape(
        10_346, -1, 2
    )
    low, high = bits[:, :1814, 0].T, bits[:, :1814, 1].T
    copies = np.where(low & ~high & 1, -1, 2 - low.astype(np.int8) - high)
    eids = np.loadtxt(folder / "genotypes.fam", usecols=1, dtype=np.int64)
    rows = np.random.default_rng(0).choice(1814, 300, replace=False)
    assert np.array_equal(unpack(store.packed(rows), store.variants), copies[np.argsort(eids)][rows])


def test_rows_that_are_none_are_refused_since_minus_one_is_nobody(small):
    biobank, _ = small
    for rows in ([10**9], [-1], [8], [0.5], [True] + [False] * 7, [[0, 1]], slice(0, 3)):
        for read in (biobank.read, biobank.clean):
            with pytest.raises(
                StoreError, match="rows of the Biobank b: expected numbers from 0 to 7, found others"
            ):
                read(["p31"], rows)
    assert biobank.read(["p31"], []).height == 0 and biobank.read([], [1]).shape == (0, 0)
    assert biobank.read(["p31"], np.array([7, 0, 7], dtype=np.int32))["p31"].to_list() == [1, 0, 1]


def test_names_that_are_none_are_refused(small):
    biobank, _ = small
    for name, message in (("p999_i0", "field 999: expected a field of the data dictionary"), ("height", "column height: expected a canonical name"),
                          (50, "column 50: expected a canonical name")):  # fmt: skip
        with pytest.raises(UkbmmError, match=message):
            biobank.field(name)
    assert (
        biobank.field("p1070_i0").title == "Time spent watching television (TV)"
    )  # a field without a column
    with pytest.raises(StoreError, match="field p21001: expected the number of a field"):
        biobank.column("p21001")
    assert biobank.column(np.int64(21001)) == "p21001_i0"
    with pytest.raises(
        StoreError, match="column p31: expected a column of the Biobank, once, found the same a second time"
    ):
        biobank.read(["p31", "p21001_i0", "p31"])
    with pytest.raises(StoreError, match="nothing.txt of the Biobank b: expected a file in its folder"):
        biobank.record("nothing.txt")


def test_a_damaged_or_missing_file_is_named_without_its_path(small):
    biobank, _ = small
    (part,) = (biobank.path / "tables").iterdir()
    part.write_bytes(part.read_bytes()[:-9])
    (biobank.path / "relatedness.parquet").unlink()
    for act, name in ((lambda: biobank.read(["p31"]), f"tables/{part.name}"), (lambda: describe(biobank), f"tables/{part.name}"),
                      (lambda: biobank.relatives, "relatedness.parquet")):  # fmt: skip
        with pytest.raises(
            StoreError, match=f"{name} of the Biobank b: expected the file.*ukbmm verify"
        ) as caught:
            act()
        assert str(biobank.path) not in str(caught.value)
    (biobank.path / "participants.parquet").unlink()
    with pytest.raises(StoreError, match="participants.parquet of the Biobank b"):
        biobank.withdrawn
    (biobank.path / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="manifest.json of the Biobank b"):
        Biobank.open(biobank.path)


def test_an_extract_of_nothing_is_refused(tmp_path):
    with pytest.raises(TableError, match="the extract: expected at least one table, found none"):
        ingest([], tmp_path / "b")
    assert os.listdir(tmp_path) == []
