"""The whole network: the mask contract, the ridge start, 16 bits."""

import numpy as np
import pytest
import torch

from ukbmm.cohort.cohort import define_cohort
from ukbmm.cohort.outcomes import BinaryOutcome, RegressionOutcome, read_outcome
from ukbmm.cohort.splits import KFold, split_cohort
from ukbmm.core import ModelError
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock, SNPBlock
from ukbmm.data.loaders import fitted_loaders
from ukbmm.models.fusion import FusionSettings
from ukbmm.models.genotype import GenotypeSettings
from ukbmm.models.multimodal import ModelSettings, build_model
from ukbmm.models.ridge import cross_fit
from ukbmm.models.tabular import TabularSettings

KINDS = ["concat", "gated"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    "Small products are slower on many threads."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def prepare(biobank, definition):
    "Loaders of a fold, a ridge regression, and the rows to test on."
    outcome = read_outcome(biobank, definition)
    split = split_cohort(define_cohort(biobank, outcome), biobank, KFold(folds=4, inner=3), 0)
    rows = split.development(0)
    blocks = {"lifestyle": PhenotypeBlock([31, 21003, 20116]), "blood": PhenotypeBlock([30690, 30870]),
              "snps": SNPBlock()}  # fmt: skip
    blocks = {name: block.fit(biobank, rows) for name, block in blocks.items()}
    target = OutcomeBlock(outcome).fit(biobank, rows)
    dls = fitted_loaders(blocks, target, split.train(0, 0), split.valid(0, 0), bs=128, device="cpu")
    linear = cross_fit(blocks, target, rows, [split.valid(0, i) for i in range(3)], (3.0,))
    return dls, linear, split.test(0)


@pytest.fixture(scope="module")
def study(biobank):
    return prepare(biobank, RegressionOutcome(field=30750))


def network(dls, kind: str = "gated", **settings):
    "A network that has learned something: no part of it is zero."
    model = build_model(dls.blocks, ModelSettings(fusion=FusionSettings(kind=kind), **settings), seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def with_junk(x, junk: float, requires_grad: bool = False):
    "The same batch with junk in the slots of what is absent."
    dirty = dict(x)
    for i, name in enumerate(x.modalities):
        absent = ~x["present"][:, i, None]
        if isinstance(x[name], tuple):
            numbers, levels = x[name]
            dirty[name] = (torch.where(absent, junk, numbers), torch.where(absent, 1, levels))
        else:
            dirty[name] = torch.where(absent, junk, x[name])
            dirty[name].requires_grad_(requires_grad)
    return dirty


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e20])
@pytest.mark.parametrize("kind", KINDS)
def test_junk_in_absent_slots_changes_no_prediction_and_no_gradient(study, kind, junk):
    dls, model = study[0], network(study[0], kind)
    x, y = dls.train.one_batch()
    absent = ~x["present"]
    assert absent[:, 1].any() and absent[:, 2].any()
    gradients = []
    for batch in (x, with_junk(x, junk, requires_grad=True)):
        model.zero_grad()
        out = model(batch)
        ((out - y) ** 2).mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        if batch is x:
            clean = out
    assert torch.equal(out, clean) and out.isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    reached = batch["snps"].grad
    assert (reached[absent[:, 2]] == 0).all() and (reached[~absent[:, 2]] != 0).any()


def test_junk_in_absent_scores_of_a_linear_model_changes_nothing(study):
    dls, model = study[0], network(study[0])
    x, _ = dls.train.one_batch()
    scores = torch.randn(len(x["row"]), 3, 1, generator=torch.Generator().manual_seed(0))
    dirty = torch.where(x["present"].unsqueeze(-1), scores, torch.nan)
    assert torch.equal(model({**x, "additive": scores}), model({**x, "additive": dirty}))


def test_values_of_a_present_modality_do_change_the_prediction(study):
    dls, model = study[0], network(study[0])
    x, _ = dls.train.one_batch()
    changed = {**x, "snps": -x["snps"]}
    have = x["present"][:, 2]
    moved = (model(changed) != model(x))[:, 0]
    assert moved[have].all() and not moved[~have].any()


@pytest.mark.parametrize("kind", KINDS)
def test_people_are_predicted_one_by_one_whatever_their_order(study, kind):
    model = network(study[0], kind)
    x, _ = study[0].train.one_batch()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x["row"])))
    shuffled = {name: tuple(part[order] for part in value) if isinstance(value, tuple) else value[order]
                for name, value in x.items()}  # fmt: skip
    torch.testing.assert_close(model(shuffled), model(x)[order])


def test_before_training_the_network_predicts_what_the_ridge_regression_predicts(study):
    dls, linear, test = study
    model = build_model(dls.blocks, seed=3).start_from(linear).eval()
    outputs = torch.cat([model(x) for (x,) in dls.test_dl(test)])
    np.testing.assert_allclose(outputs.detach(), linear.predict(dls.blocks, test), atol=1e-4)
    assert linear.predict(dls.blocks, test).std() > 0.2


def test_before_training_a_binary_network_predicts_the_calibrated_log_odds(biobank):
    dls, linear, test = prepare(biobank, BinaryOutcome(field=30750, above=36))
    model = build_model(dls.blocks, seed=3).start_from(linear).eval()
    outputs = torch.cat([model(x) for (x,) in dls.test_dl(test)])
    np.testing.assert_allclose(outputs.sigmoid().detach(), linear.predict(dls.blocks, test), atol=1e-4)


def test_the_linear_part_rests_unless_it_is_told_to_learn(study):
    dls, linear, _ = study
    resting, learning = (build_model(dls.blocks).start_from(linear, learn) for learn in (False, True))
    assert not any(p.requires_grad for p in resting.additive_parameters())
    assert all(p.requires_grad for p in learning.additive_parameters())
    parts = {id(p) for p in resting.additive_parameters()}
    assert all(p.requires_grad for p in resting.parameters() if id(p) not in parts)


def test_the_seed_decides_the_weights(study):
    first, again, other = (build_model(study[0].blocks, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_16_bits_run_and_stay_close(study, kind):
    model = network(study[0], kind)
    x, y = study[0].train.one_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(with_junk(x, float("nan")))
    torch.testing.assert_close(out.float(), model(x), rtol=0.05, atol=0.1)
    ((out.float() - y) ** 2).mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_settings_reach_the_parts(study):
    settings = ModelSettings(fusion=FusionSettings(kind="concat", dim=7), hidden=5)
    encoders = {"snps": GenotypeSettings(block=10, channels=3), "blood": TabularSettings(layers=[9, 4])}
    model = build_model(study[0].blocks, settings, encoders)
    assert model.encoders["snps"].blocks.weight.shape == (20, 10, 3)
    assert [
        layer.out_features for layer in model.encoders["blood"].net if isinstance(layer, torch.nn.Linear)
    ] == [9, 4, 7]
    assert model.head.net[0].weight.shape == (5, 7)


def test_parts_that_do_not_fit_are_refused(study):
    dls, linear, _ = study
    x, _ = dls.train.one_batch()
    model = build_model(dls.blocks)
    with pytest.raises(ModelError, match="the modalities lifestyle, blood, snps"):
        model({"snps": x["snps"], "blood": x["blood"], "lifestyle": x["lifestyle"], "present": x["present"]})
    with pytest.raises(ModelError, match="one for this kind of data, found locally_connected"):
        build_model(dls.blocks, encoders={"blood": GenotypeSettings()})
    fewer = {name: dls.blocks[name] for name in ("blood", "snps")}
    with pytest.raises(ModelError, match="the linear model: expected the modalities blood, snps"):
        build_model(fewer).start_from(linear)
