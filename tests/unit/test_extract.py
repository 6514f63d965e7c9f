"Several files become one extract: the same people in the same rows, each column once, as pandas would join them."

import json

import numpy as np
import pandas as pd
import polars as pl
import pytest

from ukbmm.biobank import table
from ukbmm.biobank.description import ingest_report
from ukbmm.biobank.dictionary import Dictionary
from ukbmm.biobank.extract import basket_of, from_old_to_new, read_bridge, read_extract
from ukbmm.biobank.store import ingest
from ukbmm.core import TableError

D = Dictionary.builtin()
FIELDS = ["21001-0.0", "50-0.0", "21003-0.0", "31-0.0", "30690-0.0", "30760-0.0"]


def basket(rng: np.random.Generator, eids: np.ndarray, fields: list[str]) -> pd.DataFrame:
    "A file of some participants, out of order, with gaps."
    frame = pd.DataFrame({"eid": rng.permutation(eids)})
    for name in fields:
        values = (
            rng.normal(50, 9, len(eids)).round(1)
            if name not in ("21003-0.0", "31-0.0")
            else rng.integers(0, 2, len(eids))
        )
        frame[name] = pd.array(values).astype("Float64" if values.dtype == float else "Int64")
        frame.loc[rng.random(len(eids)) < 0.2, name] = pd.NA
    return frame


@pytest.fixture
def baskets(tmp_path):
    "Three files; the second has two columns of the first, and differs in some of their values."
    rng = np.random.default_rng(0)
    everybody = rng.choice(np.arange(3_000_000, 4_000_000), 200, replace=False)
    first = basket(rng, everybody[:180], FIELDS[:4])
    second = basket(rng, everybody[20:], [FIELDS[4]])
    again = first.set_index("eid")[FIELDS[:2]].reindex(second["eid"]).reset_index()
    again.loc[:9, FIELDS[1]] = 1.5
    second = second.merge(again, on="eid")
    third = basket(rng, everybody[10:190], [FIELDS[5]])
    names = ["ukb1001.csv", "ukb2002.csv", "ukb1500.csv"]
    for name, frame in zip(names, (first, second, third), strict=True):
        frame.to_csv(tmp_path / name, index=False)
    return [tmp_path / name for name in names], (first, second, third)


def joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    "The frames, old to new, joined by pandas; a participant's row in a newer file takes the place of an older one's."
    everybody = sorted(set().union(*(frame["eid"] for frame in frames)))
    out = pd.DataFrame(index=pd.Index(everybody, name="eid"))
    for frame in frames:
        frame = frame.set_index("eid")
        for name in frame:
            column = frame[name].reindex(everybody)
            out[name] = column.where(out.index.isin(frame.index), out[name]) if name in out else column
    return out


def check(extract, folder, expected: pd.DataFrame) -> None:
    assert extract.eids.tolist() == expected.index.tolist()
    assert len(extract.columns) == expected.shape[1]
    for name in expected:
        column = f"p{name.split('-')[0]}" + ("" if name.startswith("31-") else "_i0")
        found = pl.read_parquet(folder / extract.columns[column], columns=[column])[column].cast(pl.Float64)
        np.testing.assert_array_equal(found.to_numpy(), expected[name].to_numpy(dtype=float, na_value=np.nan))


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
@pytest.mark.parametrize("cells", [300, 40_000_000])
def test_files_are_joined_as_pandas_joins_them(tmp_path, baskets, monkeypatch, order, cells):
    monkeypatch.setattr(table, "GROUP_CELLS", cells)  # a column at a time, or all of them
    paths, (first, second, third) = baskets
    extract = read_extract([paths[i] for i in order], D, tmp_path / "out")
    check(extract, tmp_path / "out", joined([first, third, second]))  # the baskets' numbers decide
    assert [extract.absent[order.index(i)] for i in range(3)] == [20, 20, 20]
    old, new = first.set_index("eid"), second.set_index("eid")
    both = old.index.intersection(new.index)
    differ = {}
    for name in FIELDS[:2]:
        a, b = old.loc[both, name], new.loc[both, name]
        differ[f"p{name.split('-')[0]}_i0"] = int(((a.isna() != b.isna()) | (a != b).fillna(False)).sum())
    assert extract.repeated == differ and differ["p21001_i0"] == 0 < differ["p50_i0"]
    used = set(extract.columns.values())
    assert {path.name for path in (tmp_path / "out").iterdir()} == used  # no part that nothing is read from


def test_a_part_whose_columns_are_all_newer_elsewhere_is_removed(tmp_path):
    (tmp_path / "ukb1001.csv").write_text("eid,50-0.0\n3000001,160\n3000002,170\n")
    (tmp_path / "ukb1002.csv").write_text("eid,50-0.0,31-0.0\n3000002,171,1\n3000001,160,0\n")
    extract = read_extract([tmp_path / "ukb1001.csv", tmp_path / "ukb1002.csv"], D, tmp_path / "out")
    assert pl.read_parquet(tmp_path / "out" / "shared-0.parquet")["p50_i0"].to_list() == [160, 171]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "phenotypes2-0.parquet",
        "shared-0.parquet",
    ]
    assert extract.repeated == {"p50_i0": 1}


def test_a_value_that_the_newer_basket_took_back_is_gone(tmp_path):
    (tmp_path / "ukb1001.csv").write_text("eid,50-0.0,p20002_i0\n3000001,160,1065|1473\n3000002,170,1065\n")
    (tmp_path / "ukb1002.csv").write_text("eid,50-0.0,p20002_i0\n3000001,,1065|1473\n3000002,170,\n")
    extract = read_extract([tmp_path / "ukb1001.csv", tmp_path / "ukb1002.csv"], D, tmp_path / "out")
    found = pl.read_parquet(tmp_path / "out" / "shared-0.parquet")
    assert found["p50_i0"].to_list() == [None, 170] and found["p20002_i0"].to_list() == [[1065, 1473], None]
    assert extract.repeated == {"p50_i0": 1, "p20002_i0": 1}


def test_the_basket_decides_and_else_the_order():
    assert basket_of("ukb41268_refresh.tab.gz") == 41268 and basket_of("UKB672.csv") == 672
    assert basket_of("phenotypes.csv") == basket_of("ukb.csv") == -1
    assert from_old_to_new(["ukb30.csv", "ukb200.csv", "ukb1000.csv"]) == [0, 1, 2]
    assert from_old_to_new(["ukb900.csv", "ukb200.csv"]) == [1, 0]
    assert from_old_to_new(["b.csv", "a.csv"]) == [0, 1]


def test_a_file_of_another_application_is_refused_without_an_identifier(tmp_path):
    (tmp_path / "a.csv").write_text("eid,31-0.0\n" + "".join(f"{3000000 + i},1\n" for i in range(40)))
    (tmp_path / "b.csv").write_text("eid,50-0.0\n" + "".join(f"{3000039 + i},170\n" for i in range(40)))
    with pytest.raises(
        TableError, match=r"b.csv: expected the participants of the other files, found <11% .*--bridge"
    ) as caught:
        read_extract([tmp_path / "a.csv", tmp_path / "b.csv"], D, tmp_path / "out")
    assert "30000" not in str(caught.value)
    with pytest.raises(TableError, match="b.csv"):
        ingest([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "refused.biobank")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "b.csv", "out"]


def test_parts_of_one_application_that_share_a_quarter_are_joined(tmp_path):
    (tmp_path / "a.csv").write_text("eid,31-0.0\n" + "".join(f"{3000000 + i},1\n" for i in range(40)))
    (tmp_path / "b.csv").write_text("eid,50-0.0\n" + "".join(f"{3000030 + i},170\n" for i in range(40)))
    extract = read_extract([tmp_path / "a.csv", tmp_path / "b.csv"], D, tmp_path / "out")
    assert len(extract.eids) == 70 and extract.absent == [30, 30]


@pytest.mark.parametrize("turned", [False, True])
def test_a_bridge_puts_each_value_with_its_participant(tmp_path, turned):
    rng = np.random.default_rng(1)
    here = rng.choice(np.arange(3_000_000, 3_100_000), 60, replace=False)
    there = rng.choice(np.arange(5_000_000, 5_100_000), 60, replace=False)
    pairs = np.stack([there, here] if turned else [here, there], axis=1)
    np.savetxt(
        tmp_path / "bridge.csv",
        pairs[rng.permutation(55)],
        fmt="%d",
        delimiter=",",
        header="eidA,eidB",
        comments="",
    )
    pd.DataFrame({"eid": here, "50-0.0": here % 1000}).to_csv(tmp_path / "a.csv", index=False)
    shuffled = rng.permutation(60)
    pd.DataFrame({"eid": there[shuffled], "21001-0.0": here[shuffled] % 1000}).to_csv(
        tmp_path / "b.csv", index=False
    )
    extract = read_extract(
        [tmp_path / "a.csv", tmp_path / "b.csv"], D, tmp_path / "out", bridge=tmp_path / "bridge.csv"
    )
    assert extract.eids.tolist() == sorted(here.tolist()) and extract.bridged == {
        "b.csv": 5
    }  # of 5 rows the bridge says nothing
    height, bmi = (pl.read_parquet(tmp_path / "out" / extract.columns[c])[c] for c in ("p50_i0", "p21001_i0"))
    known = bmi.is_not_null()
    assert known.sum() == 55 and extract.absent == [0, 5]
    assert height.filter(known).to_list() == bmi.filter(known).to_list()


@pytest.mark.parametrize(
    "text, message",
    [("3000001 x\n", "line 1: expected two identifiers"), ("3000001 4000001\n3000002\n", "line 2: expected two"),
     ("3000001 4000001\n3000002 4000001\n", "expected each participant once")],
)  # fmt: skip
def test_a_bad_bridge_is_refused(tmp_path, text, message):
    (tmp_path / "bridge.txt").write_text(text)
    with pytest.raises(TableError, match=message):
        read_bridge(tmp_path / "bridge.txt")
    with pytest.raises(TableError, match="nothing at that place"):
        read_bridge(tmp_path / "none.txt")


def test_a_biobank_of_several_files_says_what_became_of_each(tmp_path, baskets):
    paths, _ = baskets
    biobank = ingest(paths, tmp_path / "joined.biobank")
    assert len(biobank) == 200 and len(biobank.columns) == 6 and biobank.verify() == []
    text = "\n".join(biobank.report())
    for line in ("200 participants, 6 columns", "ukb1001.csv: 20 participants are not in it",
                 "columns in several files: 2, 1 of them the same",
                 "where they differ the values of the newest basket hold: p50_i0 of ukb2002.csv in"):  # fmt: skip
        assert line in text
    assert [source["file"] for source in biobank.manifest["sources"]] == [path.name for path in paths]


def test_of_files_without_baskets_the_report_says_whose_values_hold_and_why(tmp_path):
    "Three files; a column is in two of them each, and the last that has it is not always the last of all."
    eids = 3_000_000 + np.arange(60)
    frames = {
        "b.csv": {"31-0.0": 0, "50-0.0": 160, "21001-0.0": 25},
        "c.csv": {"31-0.0": 0, "50-0.0": 161},
        "a.csv": {"31-0.0": 0, "21001-0.0": 26},
    }
    for name, columns in frames.items():
        pd.DataFrame({"eid": eids} | columns).to_csv(tmp_path / name, index=False)
    biobank = ingest([tmp_path / name for name in frames], tmp_path / "joined.biobank")
    assert set(biobank.read(["p50_i0"])["p50_i0"]) == {161}
    assert set(biobank.read(["p21001_i0"])["p21001_i0"]) == {26}
    (line,) = [line for line in biobank.report() if "where they differ" in line]
    assert line == (
        "where they differ the values of the last file, since not all names have a basket's number, hold: "
        "p50_i0 of c.csv in 60 participants, p21001_i0 of a.csv in 60 participants"
    )
    joined = json.loads(ingest_report(biobank).to_json())["joined"]
    assert joined["values_that_hold"] == {
        "of": "the last file, since not all names have a basket's number,",
        "files": {"p50_i0": "c.csv", "p21001_i0": "a.csv"},
    }
    assert "p21001_i0 of a.csv in about 60 participants" in ingest_report(biobank).to_html()
