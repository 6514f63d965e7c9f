"""The command line as a user meets it: an exit code, a message, and nothing half-written."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ukbmm.biobank.synthetic import write_extract

RELATED = "ukb_rel_a40000_s120.dat"
from ukbmm.cli import main

STUDY = """\
version: 1
name: study
modalities:
  lifestyle: {kind: phenotype, fields: [31, 21003, 21001]}
  snps: {kind: snps}
outcome: {kind: regression, field: 30750}
validation: {kind: kfold, folds: 2, inner: 2}
train: {epochs: 2, networks: 1, batch_size: 64}
baselines: [ridge]
evaluation: {draws: 100}
"""


def process(*words) -> subprocess.CompletedProcess:
    "Run the command line in a process of its own."
    command = [sys.executable, "-m", "ukbmm", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def ukbmm(*words) -> subprocess.CompletedProcess:
    "Run the command line's own function in this process, which is faster: torch is imported once."
    shown, messages = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(messages):
        code = main([str(word) for word in words])
    return subprocess.CompletedProcess(words, code, shown.getvalue(), messages.getvalue())


def refused(done: subprocess.CompletedProcess, *words: str) -> str:
    "Check that a command was refused as bad input should be; returns the message."
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert not re.search(r"\b[1-6]\d{6}\b", done.stderr + done.stdout)  # no identifier
    return done.stderr


@pytest.fixture(scope="module")
def extract(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("extract")
    write_extract(folder, participants=120, variants=40, seed=1)
    return folder


@pytest.fixture(scope="module")
def ingested(extract, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("biobanks") / "small.biobank"
    done = process("ingest", extract / "ukb40000.csv", "--relatedness", extract / RELATED,
                   "--genotypes", extract / "ukb_cal", "--out", out)  # fmt: skip
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == str(out), done.stderr
    return out


@pytest.fixture
def copy(extract, tmp_path) -> Path:
    "A copy of the extract that a test may damage."
    return Path(shutil.copytree(extract, tmp_path / "extract"))


def ingest_of(folder: Path, *more) -> tuple[subprocess.CompletedProcess, Path]:
    out = folder.parent / "out.biobank"
    return ukbmm("ingest", folder / "ukb40000.csv", "--relatedness", folder / RELATED,
                 "--genotypes", folder / "ukb_cal", "--out", out, *more), out  # fmt: skip


def lines_of(folder: Path) -> list[str]:
    return (folder / "ukb40000.csv").read_text().splitlines()


def write_lines(folder: Path, lines: list[str]) -> None:
    (folder / "ukb40000.csv").write_text("\n".join(lines) + "\n")


def test_ingest_prints_the_folder_last_and_describe_and_verify_read_it(ingested):
    shown = ukbmm("describe", ingested)
    assert shown.returncode == 0 and "120 participants" in shown.stdout
    assert json.loads(ukbmm("describe", ingested, "--json").stdout)["participants"] == 120
    assert ukbmm("verify", ingested).returncode == 0


def test_help_names_every_verb_and_comes_without_torch():
    shown = process("--help")
    for verb in ("ingest", "describe", "check", "run", "report", "demo"):
        assert verb in shown.stdout
    code = "import sys, ukbmm.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- bad extracts -----------------------------------------------------------------------------------------------


def duplicate(lines):
    return [*lines, lines[1]]


def ragged(lines):
    return [*lines[:5], lines[5].rsplit(",", 1)[0], *lines[6:]]


def text_in_a_number(lines):
    place = lines[0].split(",").index('"21001-0.0"') if '"21001-0.0"' in lines[0] else None
    names = [name.strip('"') for name in lines[0].split(",")]
    place = next(
        i for i, name in enumerate(names) if re.fullmatch(r"(p21001_i0|21001-0\.0|f\.21001\.0\.0)", name)
    )
    cells = lines[7].split(",")
    cells[place] = "heavy"
    return [*lines[:7], ",".join(cells), *lines[8:]]


def negative(lines):
    cells = lines[3].split(",", 1)
    return [*lines[:3], "-1," + cells[1], *lines[4:]]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (duplicate, ["ukb40000.csv", "<5 repeated", "line 122"]),
        (ragged, ["ukb40000.csv, line 6"]),
        (text_in_a_number, ["ukb40000.csv", "line 8", "21001"]),
        (negative, ["ukb40000.csv", "--drop-negative-eids"]),
    ],
)
def test_a_damaged_extract_is_refused_and_leaves_nothing(copy, damage, words):
    write_lines(copy, damage(lines_of(copy)))
    done, out = ingest_of(copy)
    message = refused(done, *words)
    assert "heavy" not in message  # what a participant's cell holds is not shown
    assert sorted(path.name for path in copy.parent.iterdir()) == ["extract"]


def test_negative_identifiers_are_dropped_where_asked(copy):
    write_lines(copy, negative(lines_of(copy)))
    done, out = ingest_of(copy, "--drop-negative-eids")
    assert done.returncode == 0 and "119 participants" in done.stdout


@pytest.mark.parametrize(
    ("first_bytes", "cut", "words"),
    [
        (b"\x6c\x1b\x01", 7, ["ukb_cal.bed"]),
        (b"BGEN", 0, ["ukb_cal.bed"]),
        (b"\x6c\x1b\x00", 0, ["ukb_cal.bed", "sample"]),
    ],
    ids=["truncated", "wrong magic", "sample-major"],
)
def test_a_damaged_bed_is_refused_and_leaves_nothing(copy, first_bytes, cut, words):
    path = copy / "ukb_cal.bed"
    data = path.read_bytes()
    path.write_bytes(first_bytes + data[len(first_bytes) : len(data) - cut])
    done, _ = ingest_of(copy)
    refused(done, *words)
    assert sorted(path.name for path in copy.parent.iterdir()) == ["extract"]


def rename_people(folder: Path, keep: int) -> None:
    "Give all but the first `keep` people of the .fam other identifiers."
    lines = [line.split() for line in (folder / "ukb_cal.fam").read_text().splitlines()]
    for i, cells in enumerate(lines):
        if i >= keep:
            cells[0] = cells[1] = str(6_900_000 + i)
    (folder / "ukb_cal.fam").write_text("\n".join(" ".join(cells) for cells in lines) + "\n")


def test_a_fam_of_other_people_is_refused_and_one_of_some_is_reported(copy):
    rename_people(copy, keep=50)
    done, out = ingest_of(copy)
    assert done.returncode == 0 and "of 41% of the participants" in done.stdout, done.stdout
    shutil.rmtree(out)
    rename_people(copy, keep=0)
    done, _ = ingest_of(copy)
    refused(done, "ukb_cal.fam")
    assert sorted(path.name for path in copy.parent.iterdir()) == ["extract"]


def test_an_output_folder_that_exists_is_left_alone(copy):
    out = copy.parent / "out.biobank"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    done, _ = ingest_of(copy)
    refused(done, "out.biobank")
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


# ---- bad specs --------------------------------------------------------------------------------------------------


def run(tmp_path, ingested, text, *more):
    (tmp_path / "study.yaml").write_text(text)
    return ukbmm("run", tmp_path / "study.yaml", "--biobank", ingested, "--out", tmp_path / "runs", *more)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("train: {epochs", "train: {epoch", ["study.yaml:8:", "epoch", "epochs"]),
        ("21001]", "21001, 99999]", ["study.yaml:4:", "99999"]),
        ("21001]", "21001, 50]", ["study.yaml:4:", "50"]),
        ("21001]", "21001, 30750]", ["study.yaml:4:", "outcome"]),
        ("kind: snps", "kind: volumes", ["study.yaml:5:", "volumes"]),
        ("snps: {", "keys: {", ["study.yaml:5:", "this name is taken"]),
        ("snps: {", "array.snps: {", ["study.yaml:5:"]),
        (
            "outcome:",
            "cohort: {include: [{field: 53, instance: 0, min: 5}]}\noutcome:",
            ["study.yaml:6:", "a quantity"],
        ),
    ],
    ids=[
        "unknown key",
        "no such field",
        "not in the Biobank",
        "outcome among inputs",
        "not built yet",
        "a name that torch has",
        "a name with a dot",
        "a condition on a date",
    ],
)
def test_a_wrong_spec_is_refused_with_its_place_and_writes_nothing(tmp_path, ingested, old, new, words):
    refused(run(tmp_path, ingested, STUDY.replace(old, new)), *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.yaml"]


def test_a_study_of_several_outcomes_prints_a_table_of_each(tmp_path, ingested):
    several = STUDY.replace(
        "{kind: regression, field: 30750}",
        "{kind: several, outcomes: [{kind: regression, field: 30750, name: HbA1c}, {kind: binary, field: 30750, above: 36, name: high}]}",
    )
    done = run(tmp_path, ingested, several)
    assert done.returncode == 0, done.stderr
    one, two = done.stdout.index("HbA1c"), done.stdout.index("high")
    assert one < done.stdout.index("Pearson r") < two < done.stdout.index("Brier score")
    assert done.stdout.count("Pearson r") == done.stdout.count("Brier score") == 1


def test_a_process_ends_with_the_exit_code(tmp_path, ingested):
    (tmp_path / "study.yaml").write_text(STUDY.replace("epochs", "epoch"))
    refused(
        process("run", tmp_path / "study.yaml", "--biobank", ingested, "--out", tmp_path / "runs"),
        "study.yaml:8:",
    )
    assert process("check", tmp_path / "study.yaml").returncode == 2
    assert process("fly").returncode == 2


def test_every_mistake_is_listed_at_once(tmp_path, ingested):
    text = STUDY.replace("epochs", "epoch").replace("networks: 1", "networks: none").replace("ridge", "rigde")
    message = refused(run(tmp_path, ingested, text))
    assert len(re.findall(r"study\.yaml:\d+:\d+: error", message)) == 3


def test_nobody_left_is_refused(tmp_path, ingested):
    done = run(tmp_path, ingested, STUDY + "cohort: {include: [{field: 21003, min: 200}]}\n")
    refused(done, "cohort")
    assert not (tmp_path / "runs").exists()


def test_a_fold_without_both_classes_is_refused(tmp_path, ingested):
    text = STUDY.replace("kind: regression, field: 30750", "kind: binary, field: 30750, above: 75")
    done = run(tmp_path, ingested, text, "--set", "validation.folds=10")
    refused(done, "fold")
    assert not (tmp_path / "runs").exists()


def test_check_finds_what_only_the_data_can_show_and_writes_nothing(tmp_path, ingested):
    (tmp_path / "study.yaml").write_text(STUDY + "cohort: {include: [{field: 21003, min: 200}]}\n")
    assert ukbmm("check", tmp_path / "study.yaml").returncode == 0  # the spec alone is well formed
    done = ukbmm("check", tmp_path / "study.yaml", "--biobank", ingested)
    assert done.returncode == 2 and "cohort" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


def test_another_outcome_is_not_called_by_the_old_one_s_name(tmp_path, ingested):
    text = STUDY.replace("field: 30750}", "field: 30750, name: sugar}\nquestion: How much sugar is there?")
    done = run(tmp_path, ingested, text, "--set", "outcome.field=30870")
    assert done.returncode == 0, done.stderr
    report = (Path(done.stdout.splitlines()[-1]) / "report.html").read_text()
    assert "sugar" not in report and "Triglycerides (field 30870)" in report


def test_set_overrides_a_value_and_a_wrong_one_names_itself(tmp_path, ingested):
    refused(run(tmp_path, ingested, STUDY, "--set", "outcome.field=99999"), "--set outcome.field=99999")
    done = run(tmp_path, ingested, STUDY, "--set", "outcome.field=30870")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.splitlines()[-1])
    assert path == tmp_path / "runs" / "study-001"  # the last line is the run directory
    assert "field: 30870" in (path / "plan.yaml").read_text()


def test_a_folder_that_is_no_biobank_and_a_run_that_is_none_are_refused(tmp_path):
    refused(ukbmm("describe", tmp_path), "manifest")
    refused(ukbmm("report", tmp_path), "run directory")
    refused(ukbmm("run", tmp_path / "nothing.yaml", "--biobank", tmp_path), "nothing.yaml")


def test_fields_are_looked_up(tmp_path):
    shown = ukbmm("dictionary", "show", "20116")
    assert shown.returncode == 0 and "Smoking status" in shown.stdout
    assert "0 Never; 1 Previous; 2 Current" in shown.stdout and "visits 0 to 3" in shown.stdout
    found = ukbmm("dictionary", "search", "pressure", "systolic", "automated")
    assert "4080" in found.stdout and found.stdout.splitlines()[-1] == "1 field"
    assert ukbmm("dictionary", "search", "nothing like this").stdout.splitlines()[-1] == "0 fields"
    refused(ukbmm("dictionary", "show", "3069"), "field 3069", "Similar numbers")
    assert ukbmm("dictionary", "show", "20116-0.0").stdout == shown.stdout
    refused(ukbmm("dictionary", "show", "smoking"), "field smoking", "dictionary search smoking")


def test_a_field_of_a_tree_shows_the_top_of_it_and_says_how_to_get_its_titles(tmp_path):
    shown = ukbmm("dictionary", "show", 41270).stdout
    assert "titles of ICD-10 belong to others and do not ship; read the showcase's file of coding 19" in shown
    assert "\nChapter IX I00-I99 (10 below)\n" in shown and len(shown.splitlines()) == 8 + 22
    (tmp_path / "coding19.tsv").write_text(
        "coding\tmeaning\tnode_id\tparent_id\tselectable\nChapter IX\tChapter IX Diseases of the circulatory system\t1\t0\tN\n"
        "Block I20-I25\tI20-I25 Ischaemic heart diseases\t2\t1\tN\nI21\tI21 Acute myocardial infarction\t3\t2\tY\n"
    )
    assert (
        ukbmm("dictionary", "update", tmp_path / "coding19.tsv", "--out", tmp_path / "d.parquet").returncode
        == 0
    )
    shown = ukbmm("dictionary", "show", 41270, "--dictionary", tmp_path / "d.parquet").stdout
    assert (
        "I21 Acute myocardial infarction" in shown
        and shown.splitlines()[-1] == "Chapter IX Diseases of the circulatory system (2 below)"
    )


def test_two_files_in_another_encoding_are_one_biobank(tmp_path):
    people = [f"{3_000_001 + i},{i % 2}" for i in range(30)]
    (tmp_path / "ukb1.csv").write_bytes(
        "\n".join(["eid,31-0.0,Café", *[f"{line},é" for line in people]]).encode("latin-1")
    )
    (tmp_path / "ukb2.csv").write_text(
        "\n".join(["eid,50-0.0", *[f"{3_000_001 + i},{150 + i}" for i in range(5, 30)]])
    )
    done = ukbmm("ingest", tmp_path / "ukb1.csv", tmp_path / "ukb2.csv", "--out", tmp_path / "b.biobank")
    assert done.returncode == 0, done.stderr
    assert "30 participants, 2 columns" in done.stdout and "ukb1.csv: read as cp1252" in done.stdout
    assert "ukb2.csv: 5 participants are not in it" in done.stdout
    refused(
        ukbmm("ingest", tmp_path / "ukb1.csv", "--encoding", "utf-16", "--out", tmp_path / "c"),
        "ukb1.csv",
        "utf-16",
    )
    assert not (tmp_path / "c").exists()


def visible(page: str) -> str:
    "What a reader of a page sees, without checksums and numbers of bytes."
    text = re.sub(r"<(style|script).*?</\1>|<[^>]*>|\b[0-9a-f]{64}\b", " ", page, flags=re.S)
    return re.sub(r"[0-9.]+ [kMG]?B\b", " ", text)


def test_no_number_on_the_console_or_a_page_tells_how_many_of_one_to_four_withdrew_or_are_absent(tmp_path):
    people = [3_000_000 + 7 * i for i in range(83)]
    head, rest = people[:83], people[:79]  # four people are not in the second file
    (tmp_path / "a.csv").write_text("eid,31-0.0\n" + "".join(f"{eid},{eid % 2}\n" for eid in head))
    ragged = "".join(f"{eid}\t170\t\t\n" for eid in rest)
    (tmp_path / "b.txt").write_text("eid\t50-0.0\n" + ragged)
    (tmp_path / "w.csv").write_text(
        "".join(f"{eid}\n" for eid in people[10:13])
    )  # three withdraw, 80 are left
    rows = [f"{eid},0,2012-05-01\n" for eid in people[:31]] + [f"{eid},1,2013-05-01\n" for eid in people[:2]]
    (tmp_path / "death.csv").write_text("eid,ins_index,date_of_death\n" + "".join(rows))
    done = process("ingest", tmp_path / "a.csv", tmp_path / "b.txt", "--withdrawals", tmp_path / "w.csv", "--records", tmp_path / "death.csv",
                   "--out", tmp_path / "b")  # fmt: skip
    assert done.returncode == 0, done.stderr
    described = [process("describe", tmp_path / "b", *more) for more in ((), ("--columns",), ("--json",))]
    assert process("describe", tmp_path / "b", "--html", tmp_path / "d.html").returncode == 0
    pages = [visible((tmp_path / name).read_text()) for name in ("b/ingest.html", "d.html")]
    report = json.loads((tmp_path / "b" / "ingest.json").read_text()) | {"sources": None, "keys": None}
    shown = [
        done.stdout,
        done.stderr,
        *(one.stdout + one.stderr for one in described),
        *pages,
        json.dumps(report),
    ]
    for text in shown:
        assert not re.search(r"(?<![\w-])(83|79|33|31)(?![\w-])", text), (
            text
        )  # all people, a file's rows, and rows of the dead
    assert "80 participants" in done.stdout and "<5 participants are not in it" in done.stdout
    assert (
        "withdrawn, their values are left out: <5" in done.stdout
        and "some lines were shorter or longer" in done.stdout
    )
    assert json.loads(described[2].stdout)["participants"] == 80
    assert "about 30 rows of 37% of the participants" in done.stdout


def test_a_spoilt_delivery_is_written_and_read_or_refused_before_anything_is_written(tmp_path):
    small = ("--participants", 50, "--variants", 12)
    out = tmp_path / "split"
    done = ukbmm("synth", out, *small, "--gz", "--fault", "split")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.glob("ukb*.csv*")) == [f"ukb40000_{i}.csv.gz" for i in (1, 2, 3)]
    read = ukbmm("ingest", out, "--out", tmp_path / "split.biobank")
    assert read.returncode == 0 and "50 participants" in read.stdout, read.stderr
    both = ukbmm("synth", tmp_path / "both", *small, "--fault", "latin-1", "--fault", "utf-16")
    refused(both, "latin-1 and utf-16 together", "one encoding, since a file has no more")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("both")] == []
