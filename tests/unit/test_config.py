"Settings: every mistake at once, each with its file, line and column."

import json
from typing import Annotated, Literal

import pydantic
import pytest

from ukbmm.config import (
    ConfigError,
    Document,
    Problem,
    Settings,
    keys_at,
    load_settings,
    locate,
    override,
    problem_at,
    to_yaml,
    validate,
    write_schema,
)


class Phenotypes(Settings):
    kind: Literal["phenotypes"]
    fields: list[int] = []


class Variants(Settings):
    kind: Literal["variants"]
    maf: float = pydantic.Field(0.01, ge=0, le=0.5)


class Training(Settings):
    epochs: int = 10
    rate: float = 0.001
    names: dict[str, str] = {}


class Study(Settings):
    seed: int
    title: str | None = None
    fusion: Literal["gated", "concat"] = "gated"
    training: Training = Training()
    inputs: list[Annotated[Phenotypes | Variants, pydantic.Field(discriminator="kind")]] = []


def read(text, *assignments):
    return validate(Study, override(Document(text, "s.yaml"), assignments))


def problems(text, *assignments):
    with pytest.raises(ConfigError) as caught:
        read(text, *assignments)
    return [str(problem) for problem in caught.value.problems]


def test_a_good_document_becomes_typed_settings():
    text = "seed: 3\ninputs:\n- kind: variants\n  maf: 0.05\n- {kind: phenotypes, fields: [31, 50]}\n"
    study = read(text)
    assert study.inputs[0] == Variants(kind="variants", maf=0.05)
    assert study.inputs[1].fields == [31, 50]
    assert study.training.epochs == 10


def test_settings_can_not_be_changed():
    with pytest.raises(pydantic.ValidationError):
        read("seed: 3").seed = 4


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file():
    text = """\
sede: 3
seed: many
fusion: gatde
training:
  epochs: [1]
  rates: 3
  names:
    a: [x]
inputs:
  - kind: variants
    maf: 0.9
  - kind: variant
  - kind: phenotypes
    fields: [31, tall]
"""
    found = problems(text)
    assert [line.split(": ")[0] for line in found] == [
        "s.yaml:1:1", "s.yaml:2:1", "s.yaml:3:1", "s.yaml:5:3", "s.yaml:6:3", "s.yaml:8:5", "s.yaml:11:5",
        "s.yaml:12:5", "s.yaml:14:18",
    ]  # fmt: skip
    assert "error sede: unknown key. Did you mean 'seed'?" in found[0]
    assert "error seed: " in found[1] and "valid integer" in found[1]
    assert "error fusion: expected one of gated, concat, found 'gatde'. Did you mean 'gated'?" in found[2]
    assert "error training.epochs: " in found[3]
    assert "error training.rates: unknown key. Did you mean 'rate'?" in found[4]
    assert "less than or equal to 0.5, found 0.9" in found[6]
    assert "expected one of phenotypes, variants, found 'variant'. Did you mean 'variants'?" in found[7]
    assert "error inputs.2.fields.1: " in found[8] and "'tall'" in found[8]


def test_the_message_of_the_error_lists_every_problem_on_its_own_line():
    with pytest.raises(ConfigError) as caught:
        read("sed: 1\ntitel: x")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and all(line.startswith("s.yaml:") for line in lines)


def test_a_missing_key_points_at_the_group_that_lacks_it():
    assert problems("title: x") == ["s.yaml:1:1: error seed: this key is required and is missing"]
    assert problems("seed: 1\ninputs:\n  - maf: 0.1\n")[0].startswith("s.yaml:3:5: error inputs.0")


def test_an_unknown_key_with_no_neighbour_lists_what_there_is():
    assert problems("seed: 1\ntraining:\n  zzzz: 1\n") == [
        "s.yaml:3:3: error training.zzzz: unknown key. Known: epochs, names, rate."
    ]


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("seed: 1\nseed: 2\n", "s.yaml:2:1", 'duplicate key "seed"'),
        ("seed: 1\ntraining:\n  rate: 1\n  rate: 2\n", "s.yaml:4:3", 'duplicate key "rate"'),
        ("seed: [1\n", "s.yaml:2:1", "expected ',' or ']'"),
        ("seed: 1\n\tfusion: x\n", "s.yaml:2:1", "cannot start any token"),
        ("seed: 'x\n", "s.yaml:2:1", "unexpected end of stream"),
        ("seed: *nowhere\n", "s.yaml:1:7", "undefined alias"),
        ("", "s.yaml:1:1", "expected a mapping"),
        ("# only a comment\n", "s.yaml:1:1", "expected a mapping"),
        ("- 1\n- 2\n", "s.yaml:1:1", "expected a mapping"),
        ("just words\n", "s.yaml:1:1", "expected a mapping"),
    ],
)
def test_text_that_is_no_mapping_is_refused_with_its_place(text, place, what):
    found = problems(text)
    assert len(found) == 1
    assert found[0].startswith(f"{place}: ") and what in found[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", "1.5"), ("seed", "x"), ("seed", "[1]"), ("seed", "{a: 1}"), ("seed", ""), ("title", "[a]"),
     ("title", "3"), ("training", "3"), ("training", ""), ("inputs", "{}"), ("inputs", "x")],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_named_with_line_and_column(key, value):
    text = ("" if key == "seed" else "seed: 1\n") + f"{key}: {value}\n"
    line = 1 if key == "seed" else 2
    found = problems(text)
    assert len(found) == 1 and found[0].startswith(f"s.yaml:{line}:1: error {key}: ")


def test_overrides_replace_add_and_clear_values():
    text = "seed: 1\ntitle: x\ninputs:\n- kind: variants\n"
    study = read(text, "seed=5", "training.rate=0.1", "title=", "inputs.0.maf=0.2", "training.names.a=b")
    assert (study.seed, study.training.rate, study.title) == (5, 0.1, None)
    assert study.inputs[0].maf == 0.2
    assert study.training.names == {"a": "b"}


def test_an_override_may_hold_any_yaml_and_the_last_one_wins():
    study = read("seed: 1", "inputs=[{kind: phenotypes, fields: [1, 2]}]", "seed=2", "seed=3")
    assert study.inputs[0].fields == [1, 2] and study.seed == 3
    assert read("seed: 1", "title=a=b").title == "a=b"
    assert read("seed: 1", " title = spaced ").title == "spaced"


def test_a_mistake_in_an_override_names_the_override_and_not_a_line():
    assert problems("seed: 1", "seed=x")[0].startswith("--set seed=x: error seed: ")
    found = problems("seed: 1\ntraining:\n  epochs: 3", "training.epoch=4", "training.rate=fast")
    assert any(line.startswith("--set training.rate=fast: error training.rate: ") for line in found)
    assert any(
        line.startswith("--set training.epoch=4: error training.epoch: unknown key.") for line in found
    )


@pytest.mark.parametrize("assignment", ["seed", "=3", "", "  =3", "seed=[1"])
def test_an_override_that_can_not_be_read_is_refused(assignment):
    found = problems("seed: 1", assignment)
    assert len(found) == 1 and found[0].startswith(f"--set {assignment}:")


@pytest.mark.parametrize(
    "assignment",
    [
        "inputs.5.kind=variants",
        "inputs.5=1",
        "inputs.first=1",
        "seed.x=1",
        "seed.x.y=1",
    ],
)
def test_an_override_of_a_place_that_can_not_be_is_refused(assignment):
    found = problems("seed: 1\ninputs:\n- kind: variants\n", assignment)
    assert found[0].startswith(f"--set {assignment}:")


def test_a_file_is_named_by_its_last_part_only(tmp_path):
    (tmp_path / "study.yaml").write_text("seed: x\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(Study, tmp_path / "study.yaml")
    assert str(caught.value).startswith("study.yaml:1:1: ")
    assert str(tmp_path) not in str(caught.value)
    assert load_settings(Study, tmp_path / "study.yaml", ["seed=4"]).seed == 4


def test_a_missing_file_and_one_that_is_not_utf8_are_config_errors(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.yaml: error: no such file"):
        load_settings(Study, tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes("title: é".encode("latin-1"))
    with pytest.raises(ConfigError, match="latin.yaml"):
        load_settings(Study, tmp_path / "latin.yaml")


def test_positions_are_found_as_far_as_a_path_leads():
    document = Document("a:\n  b:\n    - c: 1\n    - d: 2\n")
    assert locate(document, ("a", "b", 1, "d")) == (("a", "b", 1, "d"), (4, 7))
    assert locate(document, ("a", "z")) == (("a",), (1, 1))
    assert locate(document, ()) == ((), (1, 1))
    problem = problem_at(document, "a.b.0.c", "is odd", "warning")
    assert str(problem) == "settings:3:7: warning a.b.0.c: is odd"


def test_keys_at_follows_lists_and_tags():
    assert keys_at(Study, ()) == ["fusion", "inputs", "seed", "title", "training"]
    assert keys_at(Study, ("training",)) == ["epochs", "names", "rate"]
    assert keys_at(Study, ("inputs", 0, "variants")) == ["kind", "maf"]
    assert keys_at(Study, ("nothing",)) == []


def test_settings_written_as_yaml_read_back_the_same_with_every_default():
    study = read("seed: 3\ntitle: 'yes: no'\ninputs: [{kind: variants}]\ntraining: {rate: 1e-05}")
    text = to_yaml(study)
    assert read(text) == study
    assert "maf: 0.01" in text and "epochs: 10" in text
    assert text.index("seed") < text.index("training")  # in the order of the class


def test_the_schema_for_editors_refuses_unknown_keys(tmp_path):
    write_schema(Study, tmp_path / "s.json")
    schema = json.loads((tmp_path / "s.json").read_text())
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["seed"]
    assert schema["properties"]["fusion"]["enum"] == ["gated", "concat"]


def test_a_problem_without_a_line_stands_first():
    found = ConfigError([Problem("a", "x", 3, 1), Problem("b", "y")]).problems
    assert [problem.path for problem in found] == ["b", "a"]
