"""Intervals drawn by family: as wide as the families demand, paired where models are compared."""

import numpy as np
import polars as pl
import pytest
from scipy.stats import norm

from ukbmm.evaluation.metrics import METRICS
from ukbmm.evaluation.uncertainty import bootstrap, evaluate, family_draws, interval


def test_a_draw_takes_whole_families_and_as_many_as_there_are():
    family = np.array([7, 7, 3, 3, 3, 9])
    draws = np.concatenate(list(family_draws(family, 300, seed=0)))
    assert draws.shape == (300, 6)
    first = np.array([0, 2, 5])  # a member of each family
    assert np.array_equal(draws, draws[:, first][:, [0, 0, 1, 1, 1, 2]])
    assert (draws[:, first].sum(axis=1) == 3).all()
    assert draws[:, first].mean(axis=0) == pytest.approx([1, 1, 1], abs=0.2)


def test_draws_do_not_depend_on_how_many_fit_into_memory_and_the_seed_decides():
    family = np.arange(20) // 2
    whole, parts, other = (np.concatenate(list(family_draws(family, 30, *settings)))
                           for settings in ((1, None), (1, 7), (2, None)))  # fmt: skip
    assert np.array_equal(whole, parts) and not np.array_equal(whole, other)


def test_the_interval_is_the_middle_of_the_draws():
    low, high = interval(np.append(np.arange(1001.0), [np.nan] * 5))
    assert (low, high) == pytest.approx((25, 975))


def test_the_bootstrap_spread_of_a_mean_is_its_standard_error():
    rng = np.random.default_rng(0)
    error = rng.exponential(size=400)
    drawn = bootstrap(METRICS["mae"], error, {"zero": np.zeros(400)}, np.arange(400), 2000, 0)["zero"]
    assert drawn.std() == pytest.approx(error.std() / 20, rel=0.06)
    width = np.diff(interval(drawn))[0]
    assert width == pytest.approx(2 * norm.ppf(0.975) * error.std() / 20, rel=0.08)


@pytest.mark.parametrize("size", [4, 9])
def test_families_of_one_mind_widen_the_interval_by_the_root_of_their_size(size):
    rng = np.random.default_rng(1)
    y, p = (np.repeat(rng.normal(size=200), size) for _ in range(2))
    p = p + y
    family = np.repeat(np.arange(200), size)
    for metric in ("pearson_r", "mae"):
        widths = [
            np.diff(interval(bootstrap(METRICS[metric], y, {"m": p}, f, 1000, 0)["m"]))[0]
            for f in (family, np.arange(len(y)))
        ]
        assert widths[0] / widths[1] == pytest.approx(np.sqrt(size), rel=0.15)


def test_the_interval_by_family_covers_the_truth_and_the_naive_one_does_not():
    truth, covered = np.sqrt(2 / np.pi), {"family": 0, "naive": 0}  # the mean size of a standard normal value
    for seed in range(150):
        y = np.repeat(np.random.default_rng(seed).normal(size=60), 4)
        for name, family in (("family", np.repeat(np.arange(60), 4)), ("naive", np.arange(240))):
            drawn = bootstrap(METRICS["mae"], y, {"zero": np.zeros(240)}, family, 300, seed)["zero"]
            low, high = interval(drawn)
            covered[name] += low <= truth <= high
    assert covered["family"] / 150 > 0.88 and covered["naive"] / 150 < 0.8


def predictions(n: int = 300, kind: str = "regression") -> pl.DataFrame:
    "Two models that share most of their error, one a little better."
    rng = np.random.default_rng(0)
    y, shared = rng.normal(size=n), rng.normal(size=n)
    good, poor = y + shared, y + shared + 0.9 * rng.normal(size=n)
    if kind == "binary":
        y, good, poor = (y > 0).astype(float), 1 / (1 + np.exp(-good)), 1 / (1 + np.exp(-poor))
    return pl.DataFrame({"row": np.arange(n), "family": np.arange(n) // 2, "fold": np.arange(n) % 5,
                         "target": y, "prediction_good": good, "prediction_poor": poor})  # fmt: skip


@pytest.mark.parametrize("kind", ["regression", "binary"])
def test_a_difference_is_paired_and_positive_where_the_first_model_is_better(kind):
    found = evaluate(predictions(kind=kind), kind, reference="good", draws=500)
    for entry in found["comparisons"]:
        values = [found["models"][name][entry["metric"]] for name in ("good", "poor")]
        sign = 1 if METRICS[entry["metric"]].greater_is_better else -1
        assert entry["difference"] == pytest.approx(sign * (values[0]["value"] - values[1]["value"]))
        low, high = entry["ci95"]
        assert low < entry["difference"] < high
        unpaired = np.hypot(*(np.diff(value["ci95"])[0] for value in values))
        assert high - low < 0.85 * unpaired  # the shared error cancels
    assert [entry["metric"] for entry in found["comparisons"]] == [
        m.name for m in METRICS.entries.values() if m.kind == kind
    ]
    assert found["comparisons"][0]["ci95"][0] > 0


def test_a_model_compared_with_its_double_differs_by_exactly_nothing():
    double = predictions().with_columns(prediction_poor=pl.col("prediction_good"))
    for entry in evaluate(double, "regression", reference="good", draws=200)["comparisons"]:
        assert entry["difference"] == 0 and entry["ci95"] == [0, 0]


def test_counts_and_values_of_folds_are_those_of_the_table():
    table = predictions(kind="binary")
    found = evaluate(table, "binary", draws=100)
    assert found["n"] == {
        "participants": 300,
        "families": 150,
        "folds": 5,
        "cases": int(table["target"].sum()),
    }
    parts = [table.filter(pl.col("fold") == fold) for fold in range(5)]
    expected = [METRICS["brier"](part["target"], part["prediction_good"]) for part in parts]
    assert found["models"]["good"]["brier"]["per_fold"] == pytest.approx(expected)
    assert found["comparisons"] == []


def test_the_order_of_rows_does_not_matter_and_the_seed_does():
    table = predictions()
    shuffled = table.sample(fraction=1, shuffle=True, seed=3)
    one, same, other = (
        evaluate(t, "regression", draws=100, seed=s) for t, s in ((table, 0), (shuffled, 0), (table, 1))
    )
    assert one == same and one != other


def followed(n: int = 240) -> pl.DataFrame:
    "Two competing events with risks at two horizons, and somebody who was followed long."
    rng = np.random.default_rng(4)
    target = np.stack([rng.integers(1, 60, n) / 4, rng.integers(0, 3, n)], axis=1)
    target[:6] = [20, 0]
    base = {"row": np.arange(n), "family": np.arange(n) // 2, "fold": np.arange(n) % 3, "target": target}
    return pl.DataFrame(
        {**base, "prediction_fusion": rng.random((n, 4)), "prediction_ridge": rng.random((n, 4))}
    )


def test_parts_are_each_event_at_each_horizon_scored_like_a_table_of_its_own():
    table = followed()
    found = evaluate(table, "competing_risks", "fusion", 60, 3, horizons=[5, 10])
    assert [(part["part"], part["horizon"]) for part in found["parts"]] == [(0, 5), (0, 10), (1, 5), (1, 10)]
    target = table["target"].to_numpy()
    for number, part in enumerate(found["parts"]):
        turned = np.where(target[:, 1] == part["part"] + 1, 1, np.where(target[:, 1] > 0, 2, 0))
        own = table.with_columns(target=np.stack([target[:, 0], turned], axis=1),
                                 **{f"prediction_{name}": table[f"prediction_{name}"].to_numpy()[:, [number, number]] for name in ("fusion", "ridge")})  # fmt: skip
        alone = evaluate(own, "competing_risks", "fusion", 60, 3, horizons=[part["horizon"]])["models"][
            "ridge"
        ]
        for name in ("auc", "brier", "ipa"):
            same = {key: alone[f"{name}_first"][key] for key in ("value", "ci95")}
            assert part["models"]["ridge"][f"{name}_horizon"] == same
        seen = ((turned == 1) & (target[:, 0] <= part["horizon"])).sum()
        assert (part["cases"], part["others"]) == (seen, 240 - seen)
    assert found["n"]["events"] == [(target[:, 1] == cause).sum() for cause in (1, 2)]
    assert {entry["metric"] for entry in found["comparisons"]} == {
        "concordance_first",
        "auc_first",
        "brier_first",
        "ipa_first",
    }


def test_values_of_folds_know_the_horizons_and_the_pooled_value_knows_no_fold():
    table = followed()
    found = evaluate(table, "competing_risks", draws=20, horizons=[5, 10])["models"]["fusion"]
    target, risk, fold = (table[name].to_numpy() for name in ("target", "prediction_fusion", "fold"))
    for name in ("brier_first", "auc_first"):
        each = [METRICS[name](target[fold == i], risk[fold == i], horizons=[5, 10]) for i in range(3)]
        assert found[name]["per_fold"] == pytest.approx(each)
    assert found["auc_first"]["pooled"] == pytest.approx(METRICS["auc_first"](target, risk, horizons=[5, 10]))
    assert found["auc_first"]["value"] == pytest.approx(
        METRICS["auc_first"](target, risk, None, fold, [5, 10])
    )
    assert (
        found["auc_first"]["pooled"] != found["auc_first"]["value"] and "pooled" not in found["brier_first"]
    )


def test_without_horizons_what_needs_them_is_left_out():
    found = evaluate(followed(), "competing_risks", draws=20)
    assert list(found["models"]["fusion"]) == ["concordance_first"] and "parts" not in found


def test_labels_that_are_not_known_are_left_out_of_draws_too_and_counted():
    rng = np.random.default_rng(0)
    target = (rng.random((200, 2)) < 0.4) * 1.0
    target[:80, 1] = np.nan
    base = {"row": np.arange(200), "family": np.arange(200) // 2, "fold": np.arange(200) % 2}
    chance = rng.random((200, 2))
    table = pl.DataFrame({**base, "target": target, "prediction_net": chance})
    found = evaluate(table, "multilabel", draws=40)
    assert found["n"]["known"] == [200, 120] and found["n"]["cases"] == np.nansum(target, axis=0).tolist()
    whole = table.sort("fold", "row")["family"].to_numpy()
    kept = table.sort("fold", "row").with_columns(
        target=pl.col("target").arr.get(1), prediction_net=pl.col("prediction_net").arr.get(1)
    )
    known = kept["target"].is_not_nan().to_numpy()
    weights = np.concatenate(list(family_draws(whole, 40, 0)))[:, known]
    kept = kept.filter(pl.Series(known))
    drawn = METRICS["auc"](
        kept["target"].to_numpy(), kept["prediction_net"].to_numpy(), weights, kept["fold"].to_numpy()
    )
    assert found["parts"][1]["models"]["net"]["auc"]["ci95"] == pytest.approx(interval(drawn))


def test_classes_are_counted_and_scored_against_the_rest():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, 150).astype(float)
    chance = rng.dirichlet(np.ones(4), 150)
    base = {"row": np.arange(150), "family": np.arange(150), "fold": np.zeros(150)}
    found = evaluate(pl.DataFrame({**base, "target": target, "prediction_net": chance}), "ordinal", draws=30)
    assert found["n"]["classes"] == [*np.bincount(target.astype(int)), 0]  # nobody is of the last
    values = [part["models"]["net"]["auc"]["value"] for part in found["parts"]]
    assert values[3] is None and found["parts"][3]["models"]["net"]["auc"]["ci95"] == [None, None]
    assert np.mean(values[:3]) == pytest.approx(found["models"]["net"]["auc_grades"]["value"])
    assert values[0] == pytest.approx(METRICS["auc"](target == 0, chance[:, 0]))
