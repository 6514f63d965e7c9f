"One invented cohort, delivered in every form with and without gzip, becomes the same Biobank, byte for byte."

import functools
import gzip
from pathlib import Path

import polars as pl
import pytest

from ukbmm.biobank import synthetic
from ukbmm.biobank.delivery import find_delivery
from ukbmm.biobank.formats import FORMATS
from ukbmm.biobank.store import Biobank, ingest

PARTICIPANTS, VARIANTS, SEED = 150, 20, 11


@pytest.fixture(scope="module")
def deliveries(tmp_path_factory) -> dict[str, Path]:
    "A folder by form, all of one cohort with every field."
    folder, make = tmp_path_factory.mktemp("deliveries"), synthetic.make_chunk
    synthetic.make_chunk = functools.cache(
        lambda chunk, seed, variants, columns: make(chunk, seed, variants, columns)
    )
    try:
        for form in FORMATS:
            synthetic.write_extract(folder / form, PARTICIPANTS, VARIANTS, SEED, form, None)
    finally:
        synthetic.make_chunk = make
    return {form: folder / form for form in FORMATS}


def hashes(biobank: Biobank) -> dict[str, str]:
    "What the tables, participants, relatives, genotypes and records of a Biobank hold, by file."
    parts = ("tables", "participants", "relatedness", "genotypes", "records")
    return {
        name: sha256
        for name, sha256 in biobank.manifest["files"].items()
        if name.startswith(parts) and "meta.json" not in name
    }


@pytest.fixture(scope="module")
def reference(deliveries, tmp_path_factory) -> Biobank:
    return ingest(deliveries["ukbconv-csv"], tmp_path_factory.mktemp("reference") / "biobank")


def packed(folder: Path, out: Path) -> Path:
    "The same delivery with its main table compressed."
    out.mkdir()
    table = synthetic.main_table(folder)
    for path in (path for path in folder.iterdir() if path.is_file()):
        if path == table:
            (out / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        else:
            (out / path.name).hardlink_to(path)
    return out


@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_delivery_in_any_form_becomes_the_same_biobank(deliveries, reference, tmp_path, form, gz):
    folder = packed(deliveries[form], tmp_path / "packed") if gz else deliveries[form]
    assert [path.name for path in find_delivery(folder).unknown] == ["SYNTHETIC.txt"]
    biobank = ingest(folder, tmp_path / "biobank")
    found, expected = hashes(biobank), hashes(reference)
    assert any(name.startswith("records") for name in expected) and len(reference.columns) > 3_000
    assert found == expected


def test_what_is_read_is_what_was_invented(deliveries, reference):
    made = synthetic.make_chunk(0, SEED, VARIANTS, None)
    order = made.people["eid"][:PARTICIPANTS].arg_sort()
    names = [name for name in made.table.columns if not made.table[name].dtype.is_nested()]
    assert reference.read(names).equals(made.table[:PARTICIPANTS].select(names)[order])
    eids = pl.read_parquet(reference.path / "participants.parquet")["eid"]
    assert eids.to_list() == sorted(made.people["eid"][:PARTICIPANTS])
