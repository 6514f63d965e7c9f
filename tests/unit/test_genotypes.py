"PLINK files are read exactly, and the sample-major store holds the same genotypes."

import gzip
import pickle
import shutil

import numpy as np
import polars as pl
import pytest
from shared_data import shared_data

from ukbmm.biobank import genotypes as module
from ukbmm.biobank.genotypes import (
    GenotypeStore,
    a1_frequency,
    build_genotypes,
    lay_out,
    open_bed,
    read_bed,
    read_bim,
    read_fam,
    slab_samples,
    unpack,
    write_bed,
)
from ukbmm.core import GenotypeError

GOLDEN = ["small", "some_missing", "plink_sim_10s_100v_10pmiss"]


def decode(path, n_people):
    "An independent reading of a .bed by its bits: copies of A1, -1 where missing, one row a person."
    bits = np.unpackbits(np.frombuffer(path.read_bytes()[3:], np.uint8), bitorder="little")
    pairs = bits.reshape(-1, -(-n_people // 4) * 4, 2)[:, :n_people]
    meaning = {(0, 0): 2, (1, 0): -1, (0, 1): 1, (1, 1): 0}  # (first bit, second bit)
    return np.array([[meaning[tuple(pair)] for pair in record] for record in pairs.tolist()], np.int8).T


def numbered(folder, prefix):
    "A copy of PLINK files whose people have numbers for identifiers; the path of the copy and the number of people."
    for suffix in (".bed", ".bim"):
        shutil.copyfile(f"{prefix}{suffix}", folder / f"copy{suffix}")
    n = len(open(f"{prefix}.fam").read().splitlines())
    (folder / "copy.fam").write_text("".join(f"{i} {i} 0 0 0 -9\n" for i in range(1, n + 1)))
    return folder / "copy", n


def random_set(n, m, seed=0, chromosomes=3):
    "Genotypes [person, variant] with people and variants to write."
    rng = np.random.default_rng((seed, n, m))
    copies = rng.choice(np.array([0, 1, 2, -1], np.int8), (n, m), p=[0.4, 0.3, 0.2, 0.1])
    people = pl.DataFrame({"eid": rng.permutation(n) * 3 + 10, "sex": rng.integers(0, 3, n)})
    names = np.sort(rng.integers(1, chromosomes + 1, m)).astype(str)
    variants = pl.DataFrame(
        {
            "chromosome": names,
            "id": [f"rs{i}" for i in range(m)],
            "position": np.arange(m) * 10,
            "a1": ["A"] * m,
            "a2": ["G"] * m,
        }
    )
    return copies, people, variants


def in_order(eids):
    "A Biobank whose participants are these people, sorted."
    everybody = np.sort(eids)
    return lambda asked: np.where(np.isin(asked, everybody), np.searchsorted(everybody, asked), -1)


def expected_bytes(copies, chromosomes, row_bytes):
    "The bytes of a store, made one genotype at a time."
    rows = np.zeros((len(copies), row_bytes), np.uint8)
    byte, shift = -1, 6
    for j, chromosome in enumerate(chromosomes):
        new = j == 0 or chromosome != chromosomes[j - 1]
        byte, shift = (byte + 1, 0) if new or shift == 6 else (byte, shift + 2)
        rows[:, byte] |= ((copies[:, j] % 4) << shift).astype(np.uint8)  # -1 is 3
    return rows


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files_are_decoded_bit_by_bit(tmp_path, name):
    prefix, n = numbered(tmp_path, shared_data(f"genetics/bed_reader/{name}.bed").with_suffix(""))
    found = read_bed(open_bed(prefix))
    assert found.dtype == np.int8 and len(found) == n
    assert np.array_equal(found, decode(prefix.with_suffix(".bed"), n))


def test_the_golden_array_of_bed_reader_is_reached(tmp_path):
    prefix, n = numbered(tmp_path, shared_data("genetics/bed_reader/some_missing.bed").with_suffix(""))
    golden = np.load(shared_data("genetics/bed_reader/some_missing.val.npy"))
    found = read_bed(open_bed(prefix))
    assert golden.shape == found.shape == (100, 100)
    assert np.array_equal(np.where(found < 0, np.nan, found), golden, equal_nan=True)
    assert (found < 0).sum() == np.isnan(golden).sum() > 0


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files_pass_through_the_store_unchanged(tmp_path, name):
    prefix, n = numbered(tmp_path, shared_data(f"genetics/bed_reader/{name}.bed").with_suffix(""))
    store = build_genotypes([prefix], tmp_path / "store", lambda eids: eids - 1)
    assert np.array_equal(
        unpack(store.packed(np.arange(n)), store.variants), decode(prefix.with_suffix(".bed"), n)
    )


@pytest.mark.parametrize(
    "name",
    ["genetics/bed_reader/small", "genetics/bed_reader/some_missing", "genetics/pgs/cineca_synthetic_subset"],
)
def test_people_who_have_no_number_are_refused(name):
    with pytest.raises(GenotypeError, match=r"\.fam, line 1: expected a numeric identifier"):
        open_bed(shared_data(f"{name}.bed"))


def test_a_bed_holds_the_genotypes_of_its_vcf(tmp_path):
    prefix, n = numbered(tmp_path, shared_data("genetics/pgs/cineca_synthetic_subset.bed").with_suffix(""))
    bed = open_bed(prefix)
    found = read_bed(bed)
    assert found.shape == (2504, 829)
    place = {
        row[:2]: (j, *row[2:])
        for j, row in enumerate(bed.variants.select("position", "id", "a1", "a2").iter_rows())
    }
    alternatives = {
        "0|0": 0,
        "0|1": 1,
        "1|0": 1,
        "1|1": 2,
        "0/0": 0,
        "0/1": 1,
        "1/1": 2,
        "./.": None,
        ".|.": None,
    }
    compared = 0
    with gzip.open(shared_data("genetics/pgs/cineca_synthetic_subset.vcf.gz"), "rt") as stream:
        for line in stream:
            if line.startswith("#"):
                continue
            cells = line.rstrip("\n").split("\t")
            column, a1, a2 = place[int(cells[1]), cells[2]]
            counts = [alternatives[cell.split(":")[0]] for cell in cells[9:]]
            assert {a1, a2} == {cells[3], cells[4]}
            of_a1 = [-1 if c is None else c if a1 == cells[4] else 2 - c for c in counts]
            assert found[:, column].tolist() == of_a1
            compared += 1
    assert compared == 829


SHAPES = [(1, 1), (2, 3), (3, 4), (4, 4), (5, 5), (7, 9), (8, 16), (13, 1), (61, 103), (257, 33)]


@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_written_genotypes_are_read_back(tmp_path, n, m):
    copies, people, variants = random_set(n, m)
    write_bed(tmp_path / "a", copies, people, variants)
    assert (tmp_path / "a.bed").stat().st_size == 3 + m * ((n + 3) // 4)
    bed = open_bed(tmp_path / "a")
    assert np.array_equal(read_bed(bed), copies)
    assert np.array_equal(decode(tmp_path / "a.bed", n), copies)
    assert bed.samples["eid"].to_list() == people["eid"].to_list() and bed.variants.equals(variants)
    assert np.array_equal(read_bed(bed, np.array([m - 1, 0])), copies[:, [m - 1, 0]])


@pytest.mark.parametrize(("n", "m"), SHAPES)
@pytest.mark.parametrize("budget", ["tiny", "large"])
def test_the_store_holds_the_genotypes_byte_for_byte_whatever_its_memory(tmp_path, monkeypatch, n, m, budget):
    copies, people, variants = random_set(n, m, seed=1)
    write_bed(tmp_path / "a", copies, people, variants)
    if budget == "tiny":
        monkeypatch.setattr(module, "CHUNK_BYTES", 3)  # a few variants at a time
    memory = 0 if budget == "tiny" else 1.0
    store = build_genotypes([tmp_path / "a"], tmp_path / "store", in_order(people["eid"]), memory_gib=memory)
    assert len(store.meta["slabs"]) == (-(-n // 4) if budget == "tiny" else 1)
    chromosomes = variants["chromosome"].to_list()
    assert np.array_equal(store.bytes, expected_bytes(copies, chromosomes, store.bytes.shape[1]))
    order = np.argsort(people["eid"].to_numpy())
    assert np.array_equal(unpack(store.packed(np.arange(n)), store.variants), copies[order])
    assert store.verify() == []


def test_files_of_several_chromosomes_become_one_store(tmp_path):
    parts = [random_set(30, m, seed=2, chromosomes=1) for m in (5, 11, 2)]
    people = parts[0][1]
    for number, (copies, _, variants) in enumerate(parts, 1):
        write_bed(
            tmp_path / f"c{number}", copies, people, variants.with_columns(chromosome=pl.lit(str(number)))
        )
    store = build_genotypes(
        [tmp_path / f"c{i}" for i in (1, 2, 3)], tmp_path / "store", in_order(people["eid"]), memory_gib=0
    )
    whole = np.concatenate([copies for copies, _, _ in parts], axis=1)[np.argsort(people["eid"].to_numpy())]
    assert np.array_equal(unpack(store.packed(np.arange(30)), store.variants), whole)
    assert store.variants["chromosome"].to_list() == ["1"] * 5 + ["2"] * 11 + ["3"] * 2
    assert store.variants["byte"].to_list() == [0, 0, 0, 0, 1, *[2 + i // 4 for i in range(11)], 5, 5]
    second = store.variants.filter(pl.col("chromosome") == "2")
    assert np.array_equal(unpack(store.packed(np.arange(30)), second), whole[:, 5:16])


def test_files_of_other_people_or_another_order_are_refused(tmp_path):
    copies, people, variants = random_set(9, 4)
    write_bed(tmp_path / "a", copies, people, variants)
    write_bed(tmp_path / "b", copies[::-1], people.reverse(), variants)
    with pytest.raises(GenotypeError, match="b.fam: expected the people of a.fam, in that order"):
        build_genotypes([tmp_path / "a", tmp_path / "b"], tmp_path / "store", in_order(people["eid"]))


@pytest.mark.parametrize("row_bytes", [64, 4096, 200_704])
def test_a_slab_fits_its_memory_and_holds_whole_bytes_of_people(row_bytes):
    for n in (1, 3, 4, 1001, 488_377):
        for memory in (0, 1e-6, 0.5, 2.0):
            size = slab_samples(row_bytes, n, memory)
            assert size % 4 == 0 and 4 <= size <= max(4, n + 3)
            assert size == 4 or size * row_bytes <= memory * 2**30


def test_rows_are_padded_to_cache_lines_and_long_ones_to_pages():
    assert [lay_out(pl.DataFrame({"chromosome": ["1"] * m}))[1] for m in (1, 256, 257, 65_536, 65_537, 800_000)] == [
        64, 64, 128, 16_384, 20_480, 200_704,
    ]  # fmt: skip


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\0")


def start_with(magic):
    return lambda path: path.write_bytes(magic + path.read_bytes()[3:])


DAMAGE = {
    "cut off": (".bed", cut, r"a.bed: expected 15 bytes for 9 people and 4 variants, found 14, fewer: it is cut off"),
    "too long": (".bed", lengthen, r"a.bed: expected 15 bytes.*found 16, more"),
    "wrong magic": (".bed", start_with(b"PK\x03"), "a.bed: expected a PLINK .bed, which starts with 6c 1b 01"),
    "sample-major": (".bed", start_with(b"\x6c\x1b\x00"), "a.bed: expected a variant-major .bed.*plink2 .*--make-bed"),
    "empty bed": (".bed", lambda p: p.write_bytes(b""), "a.bed: expected a PLINK .bed"),
    "no bed": (".bed", lambda p: p.unlink(), "a.bed: .*nothing at that place"),
    "no bim": (".bim", lambda p: p.unlink(), "a.bim: .*nothing at that place"),
    "no fam": (".fam", lambda p: p.unlink(), "a.fam: .*nothing at that place"),
    "short bim line": (".bim", lambda p: p.write_text("1 rs1 0 5 A G\n1 rs2 0 A G\n"), "a.bim, line 2: expected six columns"),
    "long fam line": (".fam", lambda p: p.write_text("1 1 0 0 1 -9 7\n"), "a.fam, line 1: expected six columns"),
    "text position": (".bim", lambda p: p.write_text("1 rs1 0 here A G\n"), "a.bim, line 1: expected a base-pair position"),
    "blank line": (".fam", lambda p: p.write_text("1 1 0 0 1 -9\n\n2 2 0 0 1 -9\n"), "a.fam, line 2"),
    "empty fam": (".fam", lambda p: p.write_text(""), "a.fam: .*an empty file"),
    "fam of bytes": (".fam", lambda p: p.write_bytes(b"1 1 0 0 1 \xff\n"), "a.fam: expected UTF-8 text"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_files_are_refused_and_nothing_is_made(tmp_path, what):
    suffix, damage, message = DAMAGE[what]
    copies, people, variants = random_set(9, 4)
    write_bed(tmp_path / "a", copies, people, variants)
    damage(tmp_path / f"a{suffix}")
    with pytest.raises(GenotypeError, match=message):
        build_genotypes([tmp_path / "a"], tmp_path / "store", in_order(people["eid"]))
    assert not (tmp_path / "store").exists()


def test_a_prefix_may_hold_dots_and_end_in_bed(tmp_path):
    copies, people, variants = random_set(5, 3)
    write_bed(tmp_path / "ukb.c1.v2", copies, people, variants)
    for prefix in (tmp_path / "ukb.c1.v2", str(tmp_path / "ukb.c1.v2.bed")):
        assert np.array_equal(read_bed(open_bed(prefix)), copies)


def test_chromosomes_are_written_one_way(tmp_path):
    names = [
        "1",
        "01",
        "chr1",
        "Chr22",
        "X",
        "23",
        "chrX",
        "y",
        "24",
        "XY",
        "25",
        "PAR1",
        "MT",
        "M",
        "26",
        "chrM",
    ]
    (tmp_path / "a.bim").write_text("".join(f"{name}\trs 0 1 A G\n" for name in names))
    expected = ["1", "1", "1", "22", "X", "X", "X", "Y", "Y", "XY", "XY", "XY", "MT", "MT", "MT", "MT"]
    assert read_bim(tmp_path / "a.bim")["chromosome"].to_list() == expected


def test_people_are_read_with_batches_as_text_and_withdrawn_ones_in_place(tmp_path):
    (tmp_path / "a.fam").write_text("5 5 0 0 1 Batch_b001\n-1 -1 0 0 2 redacted\n 7\t7 0 0 NA -9\n")
    assert read_fam(tmp_path / "a.fam").rows() == [(5, 1), (-1, 2), (7, 0)]


def test_a_repeated_person_is_refused_by_line_and_withdrawn_ones_may_share_a_number(tmp_path):
    people = [5000008, -1, -1, 5000008, 5000009, 5000008]
    (tmp_path / "a.fam").write_text("".join(f"{eid} {eid} 0 0 1 -9\n" for eid in people))
    with pytest.raises(GenotypeError, match=r"a.fam: .*2 repeated, first at line 4\. Keep") as caught:
        read_fam(tmp_path / "a.fam")
    assert "5000008" not in str(caught.value)
    (tmp_path / "a.fam").write_text("".join(f"{eid} {eid} 0 0 1 -9\n" for eid in people[:3]))
    assert read_fam(tmp_path / "a.fam")["eid"].to_list() == people[:3]


def test_withdrawn_people_and_strangers_keep_their_place_and_have_no_row(tmp_path):
    copies, people, variants = random_set(6, 5)
    people = people.with_columns(eid=pl.Series([30, -1, 10, 99, 20, -2]))
    write_bed(tmp_path / "a", copies, people, variants)
    participants = np.array([-2, 10, 15, 20, 30])  # even a negative participant is not taken
    store = build_genotypes([tmp_path / "a"], tmp_path / "s", in_order(participants))
    assert store.samples(np.arange(-1, 7)).tolist() == [-1, -1, 2, -1, 4, 0, -1, -1]
    assert store.present(np.array([0, 1, 4])).tolist() == [False, True, True]
    found = unpack(store.packed(np.array([4, 2, 1])), store.variants)
    assert np.array_equal(found, np.stack([copies[0], np.full(5, -1), copies[2]]))


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("counted")
    copies, people, variants = random_set(700, 90, seed=3)
    copies[:, 7] = -1  # a variant that nobody has
    write_bed(folder / "a", copies, people, variants)
    store = build_genotypes([folder / "a"], folder / "s", in_order(people["eid"]))
    return store, copies[np.argsort(people["eid"].to_numpy())]


@pytest.mark.parametrize("chunk", [1, 100, 255, 256, 5000])
def test_genotypes_are_counted_as_numpy_counts_them(counted, chunk):
    store, copies = counted
    for n in (0, 1, 254, 255, 256, 511, 700):
        rows = np.random.default_rng(n).permutation(700)[:n]
        counts = store.code_counts(rows, chunk=chunk)
        expected = np.stack([(copies[rows] == code).sum(0) for code in (0, 1, 2, -1)], axis=1)
        assert np.array_equal(counts, expected)


def test_frequencies_are_those_of_a1_among_the_genotyped(counted):
    store, copies = counted
    rows = np.append(np.arange(0, 700, 3), [5000, -1])  # two who have no genotype
    found = a1_frequency(store.code_counts(rows))
    known = np.ma.masked_less(copies[::3], 0)
    assert np.isnan(found[7]) and np.isnan(found).sum() == 1
    np.testing.assert_allclose(
        np.delete(found, 7), np.delete(known.mean(0).filled(np.nan) / 2, 7), rtol=1e-12
    )


def test_a_store_survives_pickling_without_its_open_file(counted):
    store, copies = counted
    store.packed(np.arange(3))
    again = pickle.loads(pickle.dumps(store))
    assert again._bytes is None and len(pickle.dumps(store)) < 100_000
    assert np.array_equal(unpack(again.packed(np.arange(700)), again.variants), copies)
    assert repr(again) == "GenotypeStore of 700 people at 90 variants"


class Killed(BaseException):
    "What ends a build from outside."


def killed_build(tmp_path, limit):
    "A build of 50 people in slabs of four that ends before slab number `limit`; the genotypes and where rows are."
    copies, people, variants = random_set(50, 20)
    write_bed(tmp_path / "a", copies, people, variants)
    fill, calls = module._fill_slab, []

    def filled(beds, placed, start, stop, out):
        calls.append(start)
        if len(calls) > limit:
            raise Killed
        fill(beds, placed, start, stop, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_fill_slab", filled)
        with pytest.raises(Killed):
            build_genotypes([tmp_path / "a"], tmp_path / "s", in_order(people["eid"]), memory_gib=0)
    return copies[np.argsort(people["eid"].to_numpy())], in_order(people["eid"])


def test_an_interrupted_build_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    copies, rows = killed_build(tmp_path, 5)
    with pytest.raises(GenotypeError, match="no meta.json"):
        GenotypeStore(tmp_path / "s")
    starts, fill = [], module._fill_slab
    monkeypatch.setattr(module, "_fill_slab", lambda *given: (starts.append(given[2]), fill(*given)))
    again = build_genotypes([tmp_path / "a"], tmp_path / "s", rows, memory_gib=0)
    assert starts == list(range(20, 50, 4))  # five slabs of four people were done
    whole = build_genotypes([tmp_path / "a"], tmp_path / "whole", rows, memory_gib=0)
    assert np.array_equal(again.bytes, whole.bytes) and again.meta == whole.meta and again.verify() == []
    assert np.array_equal(unpack(again.packed(np.arange(50)), again.variants), copies)
    assert not (tmp_path / "s" / "slabs.json").exists()


def test_an_interrupted_build_with_another_memory_gives_the_same_genotypes(tmp_path):
    copies, rows = killed_build(tmp_path, 2)
    store = build_genotypes([tmp_path / "a"], tmp_path / "s", rows, memory_gib=64 * 12 / 2**30)
    assert np.array_equal(unpack(store.packed(np.arange(50)), store.variants), copies)
    assert store.verify() == []


def test_an_interrupted_build_of_other_files_starts_again(tmp_path):
    copies, rows = killed_build(tmp_path, 5)
    other, people, variants = random_set(50, 20)
    write_bed(tmp_path / "a", np.where(other == 0, 2, 0).astype(np.int8), people, variants)
    store = build_genotypes([tmp_path / "a"], tmp_path / "s", rows, memory_gib=0)
    assert np.array_equal(unpack(store.packed(np.arange(50)), store.variants), np.where(copies == 0, 2, 0))


def test_every_flipped_byte_and_changed_table_is_found(tmp_path):
    copies, people, variants = random_set(20, 10)
    write_bed(tmp_path / "a", copies, people, variants)
    store = build_genotypes([tmp_path / "a"], tmp_path / "s", in_order(people["eid"]), memory_gib=0)
    path = tmp_path / "s" / "geno.u8"
    data = path.read_bytes()
    for place in range(0, len(data), 97):
        path.write_bytes(data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :])
        assert store.verify() == [f"genotypes/s/geno.u8: slab {place // (4 * 64)} was changed"]
    path.write_bytes(data[:-1])
    assert store.verify() == ["genotypes/s/geno.u8: expected 1,280 bytes, found another number"]
    path.write_bytes(data)
    table = tmp_path / "s" / "samples.parquet"
    table.write_bytes(table.read_bytes() + b"\0")
    assert store.verify() == ["genotypes/s/samples.parquet was changed"]
