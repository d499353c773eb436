"""Bias, slices, ceiling, repeats and suspects, on data with a known defect: it is found, and nothing else is."""

from dataclasses import replace

import numpy as np
import pytest

from pair_groups import Judged, arrays_of, drawn_groups
from pairwright.evaluation.statistics.bias import author_ratings, feature_preferences, length_bias
from pairwright.evaluation.statistics.ceiling import Judgements, ceiling
from pairwright.evaluation.statistics.pair_arrays import PairArrays
from pairwright.evaluation.statistics.pair_metrics import PairTerms
from pairwright.evaluation.statistics.slices import slices_of, worst_slices
from pairwright.evaluation.statistics.suspects import least_sure, likely_wrong, unexplained
from pairwright.evaluation.statistics.text_repeats import repeated_texts


def judgements_of(groups: list[Judged]) -> Judgements:
    names = sorted({name for group in groups for name in group.annotators})
    rows = [
        (names.index(group.annotators[k]), number, np.array(ranks, np.int64), f"{number}-{k}")
        for number, group in enumerate(groups)
        for k, ranks in enumerate(group.rankings)
    ]
    annotator, group, ranks, ids = zip(*rows, strict=True)
    return Judgements(names, np.array(annotator), np.array(group), list(ranks), list(ids))


# --------------------------------------------------------------------------------------------- length


def length_groups(rng: np.random.Generator, weight: float) -> list[Judged]:
    """Annotators rank by utility, which goes with length a little; the model adds ``weight`` times the length."""
    found = []
    for prompt in range(300):
        log_length = rng.normal(5, 0.5, 6)
        utility = rng.normal(size=6) + 0.5 * (log_length - 5)
        ranks = [1 + int((utility > one).sum()) for one in utility]
        rewards = utility + rng.normal(size=6) * 0.3 + weight * (log_length - 5)
        found.append(Judged(prompt, [ranks], rewards.tolist(), lengths=np.exp(log_length).astype(int).tolist()))
    return found


def partial_by_regression(arrays: PairArrays) -> float:
    """The partial correlation as the correlation of two residuals."""

    def centered(values: np.ndarray) -> np.ndarray:
        mean = np.array([values[arrays.group_N == g].mean() for g in range(arrays.num_groups)])
        return values - mean[arrays.group_N]

    reward, length, worth = map(centered, (arrays.reward_N, np.log1p(arrays.characters_N), arrays.worth_N))
    left = [values - worth * (values @ worth) / (worth @ worth) for values in (reward, length)]
    return float(np.corrcoef(left[0], left[1])[0, 1])


def test_the_partial_correlation_is_that_of_the_residuals_and_finds_a_bias_for_length() -> None:
    for weight in (0.0, 1.5):
        arrays = arrays_of(length_groups(np.random.default_rng(1), weight))
        found = length_bias(arrays, PairTerms.of(arrays).resamples)
        assert found.partial.value == pytest.approx(partial_by_regression(arrays), abs=1e-9)
        low, high = found.partial.interval or (0, 0)
        assert low <= (found.partial.value or 0) <= high
        assert (low > 0.5) if weight else (high < 0.25)


def test_a_model_that_measures_length_is_all_right_where_the_longer_is_chosen_and_all_wrong_elsewhere() -> None:
    arrays = arrays_of(drawn_groups(np.random.default_rng(2), 100))
    terms = PairTerms.of(replace(arrays, reward_N=arrays.characters_N.astype(np.float64)))
    assert terms.metrics(terms.arrays.longer_by_P > 0).accuracy.value == 1.0
    assert terms.metrics(terms.arrays.longer_by_P < 0).accuracy.value == 0.0
    whole = terms.metrics()
    assert whole.accuracy == whole.longer_wins


# ------------------------------------------------------------------------------------ features, authors


def test_a_feature_and_an_author_that_the_model_likes_more_than_annotators_do_have_an_excess() -> None:
    rng = np.random.default_rng(3)
    groups = []
    for prompt in range(200):
        size, utility = 5, rng.normal(size=5)
        has = rng.random(size) < 0.4
        authors = [["flatterer", "plain", "other"][k] for k in rng.integers(0, 3, size)]
        loved = np.array([author == "flatterer" for author in authors])
        ranks = [1 + int((utility > one).sum()) for one in utility]
        features = [("list",) if one else () for one in has]
        rewards = (utility + 1.5 * has + 1.0 * loved).tolist()
        groups.append(Judged(prompt, [ranks], rewards, features=features, authors=authors))
    terms = PairTerms.of(arrays_of(groups))
    (row,) = feature_preferences(terms)
    assert row.feature == "list"
    assert row.annotators_prefer.value == pytest.approx(0.5, abs=0.06)
    assert (row.excess.interval or (0, 0))[0] > 0.15
    difference = (row.model_prefers.value or 0) - (row.annotators_prefer.value or 0)
    assert row.excess.value == pytest.approx(difference)
    ratings = author_ratings(terms)
    assert ratings[0].author == "flatterer"
    assert (ratings[0].excess.interval or (0, 0))[0] > 0
    assert sum((row.excess.value or 0) > 0 for row in ratings) == 1


# --------------------------------------------------------------------------------------------- slices


def test_a_slice_where_the_model_guesses_is_found_and_equal_ones_are_not() -> None:
    rng = np.random.default_rng(4)
    groups = drawn_groups(rng, 400, skill=3.0)
    for group in groups:
        group.subsets = [f"subset-{rng.integers(0, 12)}"]
        if group.subsets == ["subset-7"]:
            group.rewards = rng.normal(size=len(group.rewards)).tolist()
    terms = PairTerms.of(arrays_of(groups))
    by_subset = [(one, terms.metrics(one.is_in_P)) for one in slices_of(terms.arrays) if one.kind == "subset"]
    worst, num_tested = worst_slices(terms, by_subset)
    assert [row.name for row in worst] == ["subset-7"]
    assert num_tested == 12
    assert worst[0].p_value < 1e-3
    kept = np.array([terms.arrays.subsets_G[g] == ("subset-7",) for g in terms.arrays.group_P])
    rest = terms.metrics(~kept).accuracy.value
    assert worst[0].accuracy_of_rest == pytest.approx(rest)
    assert worst[0].accuracy == terms.metrics(kept).accuracy.value


def test_of_many_slices_of_one_model_none_is_named_in_most_draws() -> None:
    named = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        groups = drawn_groups(rng, 200)
        for group in groups:
            group.subsets = [f"subset-{rng.integers(0, 6)}"]
        terms = PairTerms.of(arrays_of(groups))
        slices = [(one, terms.metrics(one.is_in_P)) for one in slices_of(terms.arrays) if one.kind == "subset"]
        named += bool(worst_slices(terms, slices)[0])
    assert named <= 3, "5 % of 20 draws are 1"


def test_every_kind_of_slice_holds_a_pair_at_most_once_and_all_where_it_is_whole() -> None:
    arrays = arrays_of(drawn_groups(np.random.default_rng(6), 120))
    counted: dict[str, np.ndarray] = {}
    for one in slices_of(arrays):
        counted[one.kind] = counted.get(one.kind, np.zeros(len(arrays.group_P), int)) + one.is_in_P
    for kind in ("num_completions", "rank_gap", "length_difference", "prompt_length"):
        assert (counted[kind] == 1).all(), kind
    several = np.array([len(names) > 1 for names in arrays.annotators_G])[arrays.group_P]
    assert (counted["agreement"] == several).all()


# -------------------------------------------------------------------------------------------- ceiling


def test_the_ceiling_is_the_mean_agreement_of_every_two_annotators_by_loops() -> None:
    groups = drawn_groups(np.random.default_rng(7), 90)
    terms = PairTerms.of(arrays_of(groups))
    found, _ = ceiling(terms, judgements_of(groups))
    agreed = model = total = 0.0
    for group in groups:
        if len(group.rankings) < 2:
            continue
        for k, ranks in enumerate(group.rankings):
            pairs = [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]
            for i, j in pairs:
                others = [other for at, other in enumerate(group.rankings) if at != k]
                agreed += np.mean([0.5 if o[i] == o[j] else float(o[i] < o[j]) for o in others]) / len(pairs)
                difference = group.rewards[i] - group.rewards[j]
                model += (0.5 if difference == 0 else float(difference > 0)) / len(pairs)
            total += 1
    assert found.other_annotator.value == pytest.approx(agreed / total)
    assert found.model.value == pytest.approx(model / total)
    assert (found.majority.value or 0) >= (found.other_annotator.value or 1)


def test_an_annotator_who_ranks_the_wrong_way_round_is_unexplained_and_nobody_else_is() -> None:
    rng = np.random.default_rng(8)
    groups = []
    for prompt in range(150):
        utility = rng.normal(size=5)
        names = [f"annotator-{k}" for k in rng.permutation(6)[:2]]
        rankings = []
        for name in names:
            seen = (-utility if name == "annotator-3" else utility) + rng.normal(size=5) * 0.3
            rankings.append([1 + int((seen > one).sum()) for one in seen])
        groups.append(Judged(prompt, rankings, utility.tolist(), annotators=names))
    terms = PairTerms.of(arrays_of(groups))
    _, fits = ceiling(terms, judgements_of(groups))
    assert [fit.annotator for fit in unexplained(fits, terms.metrics().accuracy.value)] == ["annotator-3"]
    assert fits[0].annotator == "annotator-3"
    assert (fits[0].accuracy.value or 1) < 0.2


# -------------------------------------------------------------------------------------- texts, suspects


def test_one_text_under_many_prompts_that_the_model_likes_is_suspect_and_one_that_it_dislikes_is_not() -> None:
    rng = np.random.default_rng(9)
    groups = []
    for prompt in range(30):
        rewards = rng.normal(size=5)
        texts = list(range(1000 + 5 * prompt, 1005 + 5 * prompt))
        texts[0], rewards[0] = 1, 9.0  # the adversarial string
        if prompt < 12:
            texts[1], rewards[1] = 2, -9.0  # a refusal
        ranks = [3, 2, 1, 1, 4]
        authors = ["NullModel", "polite", "a", "b", "c"]
        groups.append(Judged(prompt, [ranks], rewards.tolist(), texts=texts, authors=authors))
    terms = PairTerms.of(arrays_of(groups))
    rows = repeated_texts(terms)
    without = [
        1 not in terms.arrays.text_N[[c, r]]
        for c, r in zip(terms.arrays.chosen_P, terms.arrays.rejected_P, strict=True)
    ]
    assert rows[0].accuracy_without == terms.metrics(np.array(without)).accuracy
    assert [(row.prompts, row.is_suspect, row.authors) for row in rows] == [
        (30, True, ["NullModel"]),
        (12, False, ["polite"]),
    ]
    assert (rows[0].model_worth.value, rows[0].model_best.value) == (1.0, 1.0)
    assert (rows[1].model_worth.value, rows[1].model_best.value) == (0.0, 0.0)
    assert rows[0].annotated_worth.value == pytest.approx(1 / 4)


def test_a_flipped_pair_is_likely_wrong_and_equal_rewards_are_least_sure() -> None:
    groups = [Judged(prompt, [[1, 2, 3]], [6.0, 3.0, 0.0]) for prompt in range(20)]
    groups[4].rewards = [0.0, 3.0, 6.0]
    groups[9].rewards = [1.0, 1.1, 1.0]
    arrays = arrays_of(groups)
    (wrong,) = likely_wrong(arrays, 1.0)
    assert (wrong.group_id, wrong.chosen, wrong.rejected) == (arrays.group_ids[4], 0, 2)
    assert wrong.confidence == pytest.approx(1 / (1 + np.exp(-6)))
    unsure = least_sure(arrays, 1.0)
    assert unsure[0].group_id == arrays.group_ids[9]
    assert 0.5 <= unsure[0].confidence < 0.53
    assert len(unsure) == 20
