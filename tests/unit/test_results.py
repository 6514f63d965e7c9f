"""What `show_results` draws is what each participant had and what was predicted, each kind of outcome on its own axis."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from ukbmm.cohort.outcomes import Outcome
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock
from ukbmm.data.loaders import fitted_loaders
from ukbmm.models.heads import LossSettings
from ukbmm.models.multimodal import ModelSettings
from ukbmm.training.learner import fusion_learner, predict_rows

pytestmark = pytest.mark.usefixtures("one_thread")

N, SHOWN = 300, 5


def made(kind: str, biobank) -> Outcome:
    "An outcome of a kind, drawn by hand for everybody."
    random, n = np.random.default_rng(1), len(biobank)
    if kind == "regression":
        return Outcome(kind, "q", "a quantity", "mmol/L", "p30690_i0", random.normal(50, 9, n))
    if kind == "binary":
        return Outcome(kind, "b", "a yes or no", "", "p30690_i0", (random.random(n) < 0.4).astype(float))
    if kind in ("multiclass", "ordinal"):
        return Outcome(kind, "c", "a class", "", "p30690_i0", random.integers(0, 3, n).astype(float), classes=("none", "some", "much"))  # fmt: skip
    if kind == "multilabel":
        values = (random.random((n, 2)) < 0.4).astype(float)
        values[random.random((n, 2)) < 0.2] = np.nan
        return Outcome(kind, "l", "labels", "", "p30690_i0", values, classes=("this", "that"))
    events = 2 if kind == "competing_risks" else 1
    values = np.stack([random.uniform(0.1, 12, n), random.integers(0, events + 1, n).astype(float)], axis=1)
    return Outcome(kind, "t", "an event", "years", "p30690_i0", values, horizons=(3.0, 9.0), classes=("illness", "death")[: events if events > 1 else 0])  # fmt: skip


def learner(outcome: Outcome, biobank, loss: LossSettings | None = None):
    "A learner that has not learned anything, but says something else of each participant."
    rows = np.arange(N)
    blocks = {"body": PhenotypeBlock([21001, 21003, 30690]).fit(biobank, rows)}
    target = OutcomeBlock(outcome).fit(biobank, rows)
    learn = fusion_learner(fitted_loaders(blocks, target, rows[:200], rows[200:], 32, device="cpu"), ModelSettings(loss=loss))  # fmt: skip
    for weight in learn.model.head.parameters():
        weight.data += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return learn


def axes_of(learn) -> list:
    "What is drawn of the first validation rows."
    plt.close("all")
    with learn.no_bar(), learn.no_logging():
        learn.show_results(max_n=SHOWN, shuffle=False)
    plt.gcf().draw_without_rendering()
    return plt.gcf().axes


def marks(axis, label: str) -> list[float]:
    return [x for line in axis.lines if line.get_label() == label for x in line.get_xdata()]


ROWS = np.arange(200, 200 + SHOWN)


@pytest.mark.parametrize("loss", [None, LossSettings(kind="gaussian"), LossSettings(kind="quantiles")])
def test_a_quantity_is_drawn_in_its_own_units_with_its_range(loss, biobank):
    outcome = made("regression", biobank)
    learn = learner(outcome, biobank, loss)
    (axis,) = axes_of(learn)
    read = predict_rows(learn, ROWS)
    point = read[:, 1] if loss and loss.kind == "quantiles" else read[:, 0]
    assert marks(axis, "measured") == pytest.approx(outcome.values[ROWS].tolist(), rel=1e-4)
    assert marks(axis, "predicted") == pytest.approx(point.tolist(), rel=1e-4)
    assert axis.get_xlabel() == "mmol/L" and axis.get_title() == "a quantity"
    ends = [segment[:, 0].tolist() for lines in axis.collections for segment in lines.get_segments()]
    expected = [] if loss is None else np.stack([read.min(1), read.max(1)], 1).tolist()
    np.testing.assert_allclose(np.array(ends), np.array(expected), rtol=1e-4)


def test_a_yes_or_no_is_a_probability_and_a_mark(biobank):
    outcome = made("binary", biobank)
    learn = learner(outcome, biobank)
    (axis,) = axes_of(learn)
    assert [bar.get_width() for bar in axis.patches] == pytest.approx((100 * predict_rows(learn, ROWS)[:, 0]).tolist(), rel=1e-4)  # fmt: skip
    cases = int(outcome.values[ROWS].sum())
    assert (marks(axis, "yes"), marks(axis, "no")) == ([100.0] * cases, [0.0] * (SHOWN - cases))


@pytest.mark.parametrize("kind", ["multiclass", "ordinal", "multilabel"])
def test_classes_and_labels_are_a_grid_of_probabilities_with_frames_around_what_is_true(kind, biobank):
    outcome = made(kind, biobank)
    learn = learner(outcome, biobank)
    (axis,) = axes_of(learn)
    read, truth = predict_rows(learn, ROWS), outcome.values[ROWS]
    assert [text.get_text() for text in axis.texts] == [f"{100 * value:.0f}" for value in read.flat]
    single = truth[:, None] == np.arange(3) if kind != "multilabel" else truth
    framed = [(round(p.get_y() + 0.43), round(p.get_x() + 0.45), p.get_linestyle()) for p in axis.patches]
    kinds = [(*place, "-" if single[place] == 1 else ":") for place in zip(*np.nonzero(single != 0), strict=True)]  # fmt: skip
    assert framed == kinds
    assert [label.get_text() for label in axis.get_xticklabels()] == list(outcome.classes)


@pytest.mark.parametrize("kind", ["survival", "competing_risks"])
def test_a_time_is_years_of_follow_up_beside_the_risk_at_each_horizon(kind, biobank):
    outcome = made(kind, biobank)
    learn = learner(outcome, biobank)
    axes, read, (years, what) = axes_of(learn), predict_rows(learn, ROWS), outcome.values[ROWS].T
    assert [axis.get_title() for axis in axes] == list(outcome.classes or ["an event"])
    for event, axis in enumerate(axes, 1):
        risk = read[:, 2 * (event - 1) : 2 * event]
        assert [text.get_text() for text in axis.texts] == [f"{100 * value:.0f}%" for value in risk.T.flat]
        assert {text.get_position()[0] for text in axis.texts} == set(outcome.horizons)
        assert marks(axis, "event") == pytest.approx(years[what == event].tolist(), rel=1e-5)
        assert marks(axis, "no event yet") == pytest.approx(years[what == 0].tolist(), rel=1e-5)
        followed = [segment[1, 0] for segment in axis.collections[0].get_segments()]
        assert followed == pytest.approx(years.tolist(), rel=1e-5)


def test_each_of_several_outcomes_has_an_axis_and_its_own_scale(biobank):
    parts = tuple(made(kind, biobank) for kind in ("binary", "regression", "competing_risks"))
    values = np.concatenate([part.matrix for part in parts], axis=1)
    learn = learner(Outcome("several", "s", "all", "", "p30690_i0", values, parts=parts), biobank)
    answer, quantity, illness, death = axes_of(learn)
    read = predict_rows(learn, ROWS)
    assert (0 < read[:, 0]).all() and (read[:, 0] < 1).all() and abs(read[:, 1].mean() - 50) < 20
    assert [bar.get_width() for bar in answer.patches] == pytest.approx((100 * read[:, 0]).tolist(), rel=1e-4)
    assert marks(quantity, "measured") == pytest.approx(parts[1].values[ROWS].tolist(), rel=1e-4)
    assert marks(quantity, "predicted") == pytest.approx(read[:, 1].tolist(), rel=1e-4)
    assert [text.get_text() for text in death.texts] == [
        f"{100 * value:.0f}%" for value in read[:, 4:].T.flat
    ]
    assert (illness.get_title(), death.get_title()) == ("illness", "death")


def test_nothing_that_is_written_is_cut_off(biobank):
    outcome = made("regression", biobank)
    long = Outcome("regression", "q", "a quantity of a very long name, " * 4, "mmol/L", "p30690_i0", outcome.values)  # fmt: skip
    (axis,) = axes_of(learner(long, biobank))
    figure = axis.get_figure()
    box = axis.get_tightbbox(figure.canvas.get_renderer())
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1


def test_who_has_no_known_outcome_is_drawn_without_one(biobank):
    random, n = np.random.default_rng(0), len(biobank)
    values = np.stack([random.uniform(1, 12, n), (random.random(n) < 0.5).astype(float)], axis=1)
    values[ROWS[0]] = np.nan
    outcome = Outcome("survival", "t", "an event", "years", "p30690_i0", values, horizons=(3.0,))
    (axis,) = axes_of(learner(outcome, biobank))
    assert len(axis.texts) == SHOWN and len(marks(axis, "event") + marks(axis, "no event yet")) == SHOWN - 1
