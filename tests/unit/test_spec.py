"""The spec: everything that is wrong at once, each with its place; what is planned is refused by name."""

import json
import re

import jsonschema
import pytest

from ukbmm.biobank.genotypes import GenotypeStore
from ukbmm.config import ConfigError, Document, to_yaml
from ukbmm.core import UkbmmError
from ukbmm.models.layers import FUSIONS
from ukbmm.workflow.pipeline import check_study
from ukbmm.workflow.spec import BUILT, PLANNED, Spec, check_spec, demo_spec, write_spec_schema

MINIMAL = """version: 1
name: study
modalities:
  life:
    kind: phenotype
    fields: [31, {field: 21003, instance: 0}]
  genes:
    kind: snps
outcome: {kind: regression, field: 30750}
"""

AGE = """version: 1
name: bioage_pheno_brain
purpose: {question: "Estimate brain/biological age and its gap", use: research, claims: association}
cohort:
  baseline: {visit: 2}
  include: ["has(modality: brain)"]
  training_only_exclude: true
modalities:
  pheno:
    kind: phenotype
    fields:
      - {field: 31,    name: sex, instance: 0}
      - {field: 4080,  name: sbp, instance: 2, arrays: mean}
    missing: {indicator: true, impute: median, fit_on: train}
    encoder: {kind: tabular_mlp, layers: [256, 128]}
  brain:
    kind: image_features
    fields: [{field: 25010, instance: 2}, {field: 25781, instance: 2, transform: log1p}]
    encoder: {kind: tabular_mlp, layers: [128]}
fusion: {kind: gated, on_missing_modality: drop_token, modality_dropout: 0.1}
outcome: {kind: regression, field: 21003, instance: 2, name: age}
loss: {kind: huber, delta: 5}
validation: {kind: holdout, test: 0.2, val: 0.1, group_by: kinship, stratify: [sex, age_band]}
train: {epochs: 30, batch_size: 512, lr: auto, seeds: [0,1,2,3,4], amp: bf16, deterministic: warn}
"""

ALZHEIMER = """version: 1
name: ad_snps_mri
cohort: {baseline: {visit: 2}, ancestry: {rule: all_with_pcs, pcs: 10}}
modalities:
  snps:
    kind: snps
    source: {path: $UKB_GENO, format: pgen, build: GRCh37, imputed: true, dosage: true}
    maf_min: 0.001
    encoder: {kind: locally_connected, kernel: 16, channels: 8}
  brain: {kind: image_features, fields: [{field: 25019, instance: 2}]}
  covariates: {kind: phenotype, fields: [{field: 21003, instance: 2}, {field: 22009, arrays: "1-10"}]}
outcome:
  kind: survival
  event: {field: 42020, special_dates: {"1900-01-01": exclude}, source_min: any}
  prevalent: exclude
  horizon_years: [5]
loss: {kind: deephit, intervals: 20}
validation: {kind: nested_cv, outer: 5, inner: 3, group_by: kinship, stratify: event}
baselines: [cox_age_sex, cox_age_sex_apoe, standard_prs_26206]
"""

HEART = """version: 1
name: cvd_multimodal_longitudinal
cohort: {baseline: {visit: 2}, history_visits: [0, 1]}
modalities:
  pheno:
    kind: longitudinal
    visits: [0, 1, 2]
    fields: [{field: 4080, arrays: mean, fallback: 93}, {field: 21001}]
    encoder: {kind: gru_d, hidden: 64}
  prs: {kind: prs, fields: [26223], trained_without_ukb: assert}
  cardiac: {kind: image_features, fields: [{field: 24100, instance: 2}]}
fusion: {kind: cross_attention, on_missing_modality: mask, modality_dropout: 0.2}
outcome:
  kind: survival
  event: {any_of: [42000, 42006, {death_icd10: [I20-I25, I60-I64]}]}
validation: {kind: temporal_and_centre, test: {centres: hold_out_1}, group_by: kinship}
"""


def problems(text: str, *assignments: str) -> dict[str, str]:
    "What is wrong with a spec, by path."
    with pytest.raises(ConfigError) as error:
        Spec.parse(text, assignments, "study.yaml")
    return {problem.path: str(problem) for problem in error.value.problems}


def place(text: str, needle: str, after: str = "") -> str:
    "file:line:column of the first `needle` after `after`."
    at = text.index(needle, text.index(after))
    line = text.count("\n", 0, at) + 1
    return f"study.yaml:{line}:{at - (text.rfind(chr(10), 0, at) + 1) + 1}"


def test_the_smallest_spec_has_every_default():
    spec = Spec.parse(MINIMAL)
    assert (spec.validation.kind, spec.validation.folds, spec.fusion.kind, spec.seed) == (
        "kfold",
        5,
        "transformer",
        0,
    )
    assert spec.baselines == ["covariates", "ridge", "lightgbm"] and spec.control == "none"
    assert [choice.field for choice in spec.modalities["life"].fields] == [31, 21003]


@pytest.mark.parametrize(
    ("text", "needle", "after", "path", "word"),
    [
        (AGE, "kind: image_features", "", "modalities.brain.kind", "'image_features' is not built yet"),
        (ALZHEIMER, "kind: image_features", "", "modalities.brain.kind", "'image_features' is not built yet"),
        (ALZHEIMER, "event:", "", "outcome.event", "unknown key"),
        (ALZHEIMER, "kind: nested_cv", "", "validation.kind", "'nested_cv' is not built yet"),
        (HEART, "kind: longitudinal", "", "modalities.pheno.kind", "'longitudinal' is not built yet"),
        (HEART, "kind: prs", "", "modalities.prs.kind", "'prs' is not built yet"),
        (HEART, "kind: image_features", "", "modalities.cardiac.kind", "'image_features' is not built yet"),
        (HEART, "on_missing_modality:", "", "fusion.on_missing_modality", "unknown key"),
        (HEART, "event:", "", "outcome.event", "unknown key"),
        (HEART, "kind: temporal", "", "validation.kind", "'temporal_and_centre' is not built yet"),
        (AGE, "purpose:", "", "purpose", "unknown key"),
        (AGE, "val:", "", "validation.val", "unknown key"),
        (AGE, "arrays:", "", "modalities.pheno.fields.1.arrays", "unknown key. Did you mean 'array'?"),
        (AGE, "missing:", "", "modalities.pheno.missing", "unknown key"),
        (AGE, "lr:", "", "train.lr", "valid number"),
        (ALZHEIMER, "kernel:", "", "modalities.snps.encoder.kernel", "unknown key"),
        (ALZHEIMER, "cox_age_sex,", "", "baselines.0", "expected one of covariates, ridge, lightgbm"),
    ],
)
def test_the_examples_of_what_is_to_come_are_refused_by_name_and_place(text, needle, after, path, word):
    found = problems(text)
    assert path in found, sorted(found)
    assert found[path].startswith(place(text, needle, after) + ": error ") and word in found[path]


def test_a_planned_kind_hides_its_own_settings_and_nothing_else():
    found = problems(HEART)
    assert "cohort.history_visits" in found
    assert not [path for path in found if path.startswith("validation.") and path != "validation.kind"]


def test_what_is_built_is_registered_and_what_is_planned_is_not():
    assert {"concat", "transformer", "cross_attention", "late"} <= set(FUSIONS.names())
    for pattern, kinds in PLANNED.items():
        assert not set(kinds) & set(BUILT[pattern].split(", "))


@pytest.mark.parametrize(
    ("line", "path", "word"),
    [
        ("fussion: gated", "fussion", "Did you mean 'fusion'?"),
        ("validation: {kind: kfold, fold: 4}", "validation.fold", "Did you mean 'folds'?"),
        ("validation: {kind: kfolds}", "validation.kind", "Did you mean 'kfold'?"),
        ("validation: {kind: holdout, test: 1.5}", "validation.test", "less than 1"),
        ("train: {epochs: 0}", "train.epochs", "greater than or equal to 1"),
        ("train: {networks: 9}", "train.networks", "at most 4, the inner folds, found 9"),
        ("loss: hubr", "loss", "Did you mean 'huber'?"),
        ("loss: {kind: huber, sigma: 1}", "loss", "the loss 'huber' has no option 'sigma'"),
        ("loss: deephit", "loss", "is for survival and competing_risks, not for regression"),
        ("fusion: {kind: gatd}", "fusion.kind", "Did you mean 'gated'?"),
        ("cohort: {include: [{field: 31, value: [1]}]}", "cohort.include.0.value", "Did you mean 'values'?"),
        ("baselines: [ridge, lasso]", "baselines.1", "expected one of covariates, ridge, lightgbm"),
        ("seed: -1", "seed", "greater than or equal to 0"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_the_nearest_right_word(line, path, word):
    found = problems(MINIMAL + line + "\n")
    assert set(found) == {path} and word in found[path]
    assert re.match(rf"study\.yaml:{MINIMAL.count(chr(10)) + 1}:\d+: error ", found[path])


def test_everything_that_is_wrong_is_said_at_once_in_the_order_of_the_file():
    with pytest.raises(ConfigError) as error:
        Spec.parse(MINIMAL.replace("name: study", "name: My Study") + "seeds: 1\ntrain: {lr: fast}\n")
    lines = [problem.line for problem in error.value.problems]
    assert len(lines) == 3 and lines == sorted(lines)


def test_a_missing_key_is_named_where_it_should_stand():
    found = problems(MINIMAL.replace("version: 1\n", "").replace(", field: 30750", ""))
    assert set(found) == {"version", "outcome.field"} or set(found) == {"version", "outcome.regression.field"}
    assert all("required" in text for text in found.values())


def test_the_outcome_among_the_inputs_is_refused_at_the_input():
    text = MINIMAL.replace("field: 30750", "field: 31")
    found = problems(text)
    assert "field 31 is both an input and the outcome" in found["modalities.life.fields.0"]
    assert found["modalities.life.fields.0"].startswith(place(text, "31"))


SEVERAL = MINIMAL.replace(
    "outcome: {kind: regression, field: 30750}\n",
    """outcome:
  kind: several
  outcomes:
    - {kind: regression, field: 30750, name: HbA1c}
    - {kind: binary, field: 20116, cases: [2], name: smoker}
    - kind: multilabel
      labels: [{field: 30690, above: 6, name: very high}, {field: 30690, above: 5, name: high}]
""",
)


def test_several_outcomes_are_read_and_have_the_usual_losses(schema):
    spec = Spec.parse(SEVERAL)
    assert [part.kind for part in spec.outcome.parts] == ["regression", "binary", "multilabel"]
    assert spec.outcome.field_ids == [30750, 20116, 30690, 30690] and spec.loss is None
    assert Spec.parse(to_yaml(spec)) == spec
    text = SEVERAL.replace("[31, ", "[")
    assert [error.message for error in schema.iter_errors(Document(text).plain())] == []


@pytest.mark.parametrize(
    ("old", "new", "path", "word"),
    [
        ("kind: regression", "kind: several, outcomes: []", "outcome.outcomes.0.kind", "expected one of"),
        ("kind: binary", "kind: binry", "outcome.outcomes.1.kind", "Did you mean 'binary'?"),
        ("cases: [2]", "case: [2]", "outcome.outcomes.1.case", "Did you mean 'cases'?"),
        ("cases: [2], ", "", "outcome.outcomes.1", "expected either `cases`"),
        ("[31, ", "[20116, ", "modalities.life.fields.0", "field 20116 is both an input and the outcome"),
        ("outcome:", "loss: huber\noutcome:", "loss", "is for regression, not for several"),
        ("outcome:", "loss: {kind: several, delta: 1}\noutcome:", "loss", "has no option 'delta'"),
    ],
)
def test_a_mistake_in_one_of_several_outcomes_is_named_with_its_place(old, new, path, word):
    found = problems(SEVERAL.replace(old, new, 1))
    assert set(found) == {path} and word in found[path]


def test_several_outcomes_are_at_least_two():
    one = MINIMAL.replace(
        "{kind: regression, field: 30750}", "{kind: several, outcomes: [{kind: regression, field: 30750}]}"
    )
    assert "at least 2" in problems(one)["outcome.outcomes"]


@pytest.mark.parametrize("name", ["present", "row", "additive"])
def test_names_that_a_batch_needs_are_refused(name):
    assert "this name is taken" in problems(MINIMAL.replace("life:", f"{name}:"))[f"modalities.{name}"]


def test_an_override_replaces_a_value_and_is_named_in_errors():
    spec = Spec.parse(MINIMAL, ["outcome.field=50", "train.epochs=3", "fusion=concat"])
    assert (spec.outcome.field, spec.train.epochs, spec.fusion.kind) == (50, 3, "concat")
    found = problems(MINIMAL, "train.epoch=3")
    assert (
        found["train.epoch"].startswith("--set train.epoch=3: error") and "'epochs'" in found["train.epoch"]
    )


def test_a_resolved_spec_reads_back_as_itself():
    for text in (MINIMAL, demo_spec()):
        spec = Spec.parse(text)
        assert Spec.parse(to_yaml(spec)) == spec


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    path = tmp_path_factory.mktemp("schema") / "spec.schema.json"
    write_spec_schema(path)
    schema = json.loads(path.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_schema_and_the_parser_accept_every_shipped_spec(schema, repository):
    paths = sorted((repository / "configs").rglob("*.yaml"))
    paths = [path for path in paths if path.parent.name != "accelerate"]  # those are for `accelerate launch`
    assert len(paths) >= 6
    for path in paths:
        assert isinstance(Spec.load(path), Spec)
        assert [error.message for error in schema.iter_errors(Document.read(path).plain())] == []


@pytest.mark.parametrize(
    "changed", ["fussion: gated", "train: {epochs: 0}", "validation: {kind: nested}", "seed: low"]
)
def test_the_schema_refuses_what_the_parser_refuses(schema, changed):
    assert list(schema.iter_errors(Document(MINIMAL.replace("[31, ", "[") + changed + "\n").plain()))
    problems(MINIMAL + changed + "\n")


@pytest.mark.parametrize("short", ["fields: [31]", "chromosomes: [1, 2]", "fusion: concat", "control: none"])
def test_the_schema_accepts_the_short_forms_that_the_parser_accepts(schema, short):
    text = MINIMAL.replace("[31, ", "[")
    if short.startswith("fields"):
        text = MINIMAL
    elif short.startswith("chromosomes"):
        text = text.replace("kind: snps", f"kind: snps\n    {short}")
    else:
        text += short + "\n"
    Spec.parse(text)

    assert [error.message for error in schema.iter_errors(Document(text).plain())] == []


def test_every_setting_of_the_schema_says_what_it_is(schema):
    silent = [
        f"{name}.{key}"
        for name, part in {**schema.schema["$defs"], "Spec": schema.schema}.items()
        for key, value in part.get("properties", {}).items()
        if "description" not in value and key != "kind"
    ]
    assert silent == []


def checked(text: str, biobank) -> dict[str, str]:
    return {p.path: str(p) for p in check_spec(Document(text, "study.yaml"), biobank)}


def test_a_spec_that_fits_the_biobank_has_no_problem(biobank):
    assert checked(MINIMAL, biobank) == {}
    assert checked(demo_spec(), biobank) == {}


@pytest.mark.parametrize(
    ("old", "new", "path", "word"),
    [
        ("[31, ", "[30, ", "modalities.life.fields.0", "no column of this field"),
        ("[31, ", "[4080, ", "modalities.life.fields.0", "2 columns that fit"),
        ("[31, ", "[53, ", "modalities.life.fields.0", "found a date field"),
        ("field: 30750", "field: 50", "outcome.field", "no column of this field"),
        ("kind: snps", "kind: snps\n    store: imputed", "modalities.genes", "only array"),
        ("outcome:", "cohort: {include: [{field: 50}]}\noutcome:", "cohort.include.0", "no column"),
        ("outcome:", "validation: {kind: kfold, group_by: none}\noutcome:", "validation.group_by", "relatives on both sides"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_biobank_is_found_before_anything_runs(biobank, old, new, path, word):
    found = checked(MINIMAL.replace(old, new), biobank)
    assert set(found) == {path} and word in found[path] and found[path].startswith("study.yaml:")


def test_checking_a_study_reads_no_genotypes(biobank, monkeypatch):
    def forbidden(self):
        raise AssertionError("genotypes were read")

    monkeypatch.setattr(GenotypeStore, "bytes", property(forbidden))
    assert check_study(Document(demo_spec(), "study.yaml"), biobank) == []


@pytest.mark.parametrize(
    ("old", "new", "path", "word"),
    [
        ("field: 30750", "field: 50", "outcome.outcomes.0.field", "no column of this field"),
        ("field: 20116, cases: [2]", "field: 53, cases: [2]", "outcome.outcomes.1.field", "codes or numbers"),
        ("field: 30690, above: 5", "field: 2443, above: 5", "outcome.outcomes.2.labels.1.field", "no column"),
        ("name: smoker", "name: HbA1c", "outcome", "two called 'HbA1c'"),
    ],
)
def test_which_of_several_outcomes_does_not_fit_the_biobank_is_said(biobank, old, new, path, word):
    assert checked(SEVERAL, biobank) == {}
    found = checked(SEVERAL.replace(old, new, 1), biobank)
    assert set(found) == {path} and word in found[path] and found[path].startswith("study.yaml:")


def test_an_outcome_that_cannot_be_one_is_found_before_anything_runs(biobank):
    found = checked(MINIMAL.replace("field: 30750", "field: 53"), biobank)
    assert "a quantity" in found.get("outcome.field", "")


def test_variants_that_are_not_there_are_found_before_anything_runs(biobank):
    found = checked(MINIMAL.replace("kind: snps", "kind: snps\n    variants: [rs1]"), biobank)
    assert "rs1" in found.get("modalities.genes", "")


def test_a_file_that_is_no_mapping_or_no_yaml_is_refused_with_its_line(tmp_path):
    with pytest.raises(ConfigError, match="study:1:1: error: expected a mapping"):
        Spec.parse("- a\n- b\n", name="study")
    with pytest.raises(ConfigError, match=r"study:[23]:\d+: error: not valid YAML"):
        Spec.parse("version: 1\nname: [a\n", name="study")
    with pytest.raises(UkbmmError, match="no such file"):
        Spec.load(tmp_path / "nothing.yaml")


RICH = MINIMAL.replace(
    "[31, {field: 21003, instance: 0}]",
    "[31, {derived: age}, {field: 4080, instance: last, until: 0, array: mean}, {field: 20116, ordered: false}]\n"
    "    winsorise: 0.01\n    drop_sparse: 0.9\n    drop_redundant: 0.98\n    fill: true",
)


def test_everything_that_inputs_can_be_made_of_is_in_the_schema_reads_back_and_reaches_the_block(
    schema, biobank
):
    spec = Spec.parse(RICH)
    assert [error.message for error in schema.iter_errors(Document(RICH).plain())] == []
    assert Spec.parse(to_yaml(spec)) == spec
    modality = spec.modalities["life"]
    assert [choice.name for choice in modality.fields] == [None, "Age at the visit", None, None]
    block = modality.block("life")
    assert (block.settings.winsorise, block.settings.drop_sparse, block.settings.drop_redundant) == (
        0.01,
        0.9,
        0.98,
    )
    assert block.settings.fill and block.settings.fields == modality.fields


@pytest.mark.parametrize(
    ("old", "new", "path", "word"),
    [
        ("derived: age", "derived: aeg", "modalities.life.fields.1", "Did you mean 'age'?"),
        ("derived: age", "derived: age, array: mean", "modalities.life.fields.1", "`derived` goes with"),
        ("derived: age", "name: nothing", "modalities.life.fields.1", "either `field` or `derived`"),
        ("array: mean", "array: median", "modalities.life.fields.2.array", "expected one of mean, first, last"),
        ("instance: last, ", "", "modalities.life.fields.2", "`until` goes with"),
        ("winsorise: 0.01", "winsorise: 0.5", "modalities.life.winsorise", "less than 0.5"),
        ("drop_sparse: 0.9", "drop_sparse: 90", "modalities.life.drop_sparse", "less than 1"),
        ("drop_redundant", "drop_redundent", "modalities.life.drop_redundent", "Did you mean 'drop_redundant'?"),
        ("field: 30750", "field: 34", "modalities.life.fields.1", "field 34 is both an input and the outcome"),
    ],
)  # fmt: skip
def test_a_mistake_in_how_inputs_are_made_is_named_with_its_place(old, new, path, word):
    found = problems(RICH.replace(old, new))
    assert set(found) == {path} and word in found[path] and found[path].startswith("study.yaml:")


def test_what_inputs_are_made_of_is_checked_against_the_biobank(biobank):
    for wrong, path, word in (
        ("{derived: egfr}", "modalities.life.fields.1", "found none of 30700"),
        ("{field: 21001, array: any}", "modalities.life.fields.1", "array: any"),
        ("{field: 54, instance: 0, ordered: true}", "modalities.life.fields.1", ""),
    ):
        found = checked(MINIMAL.replace("{field: 21003, instance: 0}", wrong), biobank)
        assert set(found) == {path} and word in found[path]


def test_an_event_is_an_outcome_of_a_spec():
    spec = Spec.parse(
        MINIMAL.replace("{kind: regression, field: 30750}", "{kind: binary, field: 131298, incident: true}")
    )
    assert spec.outcome.incident and spec.outcome.cases is None
    found = problems(MINIMAL.replace("{kind: regression, field: 30750}", "{kind: binary, field: 131298}"))
    assert any("incident" in text for text in found.values())
