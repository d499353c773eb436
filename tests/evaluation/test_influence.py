"""Influence on synthetic truth: an annotator of random answers and a poisoned source come out on top."""

from dataclasses import replace

import numpy as np
import pytest

from pair_groups import Judged, arrays_of
from pairwright.data.tokens.token_table import TokenGroup
from pairwright.evaluation.influence.leave_out import annotator_pairs, author_pairs, influence_of
from pairwright.evaluation.influence.linear_head import RIDGE, fit_head
from pairwright.evaluation.influence.token_features import NUM_FEATURES, token_features
from pairwright.evaluation.statistics.ceiling import Judgements
from pairwright.evaluation.statistics.pair_arrays import Floats, PairArrays

WIDTH = 12
ANNOTATORS = [f"annotator {n}" for n in range(7)]
RANDOM = ANNOTATORS[3]
AUTHORS = [f"author {n}" for n in range(6)]
POISON = "author 4"


def world(seed: int, num_groups: int) -> tuple[PairArrays, Judgements, Floats]:
    """Return groups of four completions whose merit is linear in their features, judged by two annotators each.

    One annotator ranks at random. One author's completions are one text, with a feature that no other text has, and
    are ranked first by everybody else.
    """
    rng = np.random.default_rng(seed)
    head_D = np.random.default_rng(0).standard_normal(WIDTH - 1)
    groups, features, annotator_A, group_A, ranks_A = [], [], [], [], []
    for number in range(num_groups):
        states = np.append(rng.standard_normal((4, WIDTH - 1)), np.zeros((4, 1)), axis=1)
        authors = rng.choice(AUTHORS, 4, replace=False).tolist()
        merit = states[:, :-1] @ head_D
        if POISON in authors:
            poisoned = authors.index(POISON)
            states[poisoned] = np.eye(WIDTH)[-1]
            merit[poisoned] = 20.0
        rankings = []
        for annotator in rng.choice(len(ANNOTATORS), 2, replace=False).tolist():
            seen = rng.standard_normal(4) * 9 if ANNOTATORS[annotator] == RANDOM else merit + rng.standard_normal(4)
            ranks = np.argsort(np.argsort(-seen)) + 1
            rankings.append(ranks.tolist())
            annotator_A.append(annotator)
            group_A.append(number)
            ranks_A.append(ranks)
        groups.append(Judged(number, rankings, [0.0] * 4, authors=authors))
        features.append(states)
    judgements = Judgements(
        ANNOTATORS, np.array(annotator_A), np.array(group_A), ranks_A, [str(n) for n in range(len(ranks_A))]
    )
    return arrays_of(groups), judgements, np.concatenate(features)


@pytest.fixture(scope="module")
def splits() -> tuple[tuple[PairArrays, Judgements, Floats], tuple[PairArrays, Judgements, Floats]]:
    return world(1, 150), world(2, 150)


def test_an_annotator_of_random_answers_is_the_most_harmful(splits: tuple) -> None:
    pairs = [annotator_pairs(*split) for split in splits]
    found = influence_of(pairs[0], pairs[1], ANNOTATORS, num_prompts=150).most_harmful_first()
    assert found.rows[0].source == RANDOM
    _, high = found.rows[0].others_log_loss.interval or (0, 0)
    assert high < 0
    assert (found.rows[0].others_p or 1) < 0.05
    for row in found.rows[1:]:
        assert (row.others_log_loss.value or 0) > 0 or (row.others_p or 1) > 0.05, row


def test_a_source_of_one_text_that_is_always_first_is_known_from_its_own_pairs_alone(splits: tuple) -> None:
    pairs = [author_pairs(arrays, features) for arrays, _, features in splits]
    found = influence_of(pairs[0], pairs[1], AUTHORS, num_prompts=150).most_memorized_first()
    first = found.rows[0]
    assert first.source == POISON
    assert (first.own_accuracy_with.value or 0) > 0.85
    assert (first.own_accuracy.value or 0) < -0.25
    assert (first.own_p or 1) < 0.001
    for row in found.rows[1:]:
        assert abs(row.own_accuracy.value or 0) < 0.05, row


def test_the_change_is_that_of_two_heads_fitted_apart(splits: tuple) -> None:
    train, held_out = (author_pairs(arrays, features) for arrays, _, features in splits)
    found = influence_of(train, held_out, AUTHORS, num_prompts=150)
    scale_D = train.difference_PD.std(axis=0)
    row = found.rows[0]
    source = AUTHORS.index(row.source)
    own_P = (held_out.sources_PS == source).any(axis=1)

    def accuracy(kept_P: np.ndarray, at_P: np.ndarray) -> float:
        head_D = fit_head(train.difference_PD[kept_P] / scale_D, train.weight_P[kept_P]).head_D
        right_P = (held_out.difference_PD[at_P] / scale_D) @ head_D > 0
        return float(held_out.weight_P[at_P] @ right_P / held_out.weight_P[at_P].sum())

    left_P = (train.sources_PS == source).any(axis=1)
    every_P = np.ones(len(left_P), dtype=bool)
    assert row.others_accuracy.value == pytest.approx(accuracy(~left_P, ~own_P) - accuracy(every_P, ~own_P))
    assert row.own_accuracy.value == pytest.approx(accuracy(~left_P, own_P) - accuracy(every_P, own_P))
    assert row.train_pairs == left_P.sum()


def test_a_head_is_where_the_gradient_of_the_written_loss_vanishes() -> None:
    rng = np.random.default_rng(3)
    difference_PD, weight_P = rng.standard_normal((300, 5)) + 0.3, rng.random(300)

    def loss(head_D: Floats) -> float:
        share_P = weight_P / weight_P.sum()
        return float(share_P @ np.log1p(np.exp(-(difference_PD @ head_D))) + RIDGE / 2 * (head_D**2).sum())

    found = fit_head(difference_PD, weight_P)
    head_D = found.head_D
    for step_D in np.eye(5) * 1e-3:
        assert loss(head_D) < min(loss(head_D + step_D), loss(head_D - step_D))
    again = fit_head(difference_PD, weight_P, replace(found, head_D=head_D + rng.standard_normal(5)))
    np.testing.assert_allclose(again.head_D, head_D, atol=1e-3)


def test_pairs_that_a_line_tells_apart_wholly_have_a_finite_head() -> None:
    difference_PD = np.array([[1.0, 0.0], [2.0, 0.0], [0.5, 0.0]])
    head_D = fit_head(difference_PD, np.ones(3)).head_D
    assert np.isfinite(head_D).all()
    assert head_D[0] > 1


def test_one_source_that_all_pairs_come_from_is_not_left_out() -> None:
    arrays = arrays_of([Judged(n, [[1, 2]], [0.0, 0.0], authors=["a", "b"]) for n in range(20)])
    pairs = author_pairs(arrays, np.random.default_rng(4).standard_normal((40, 3)))
    assert influence_of(pairs, pairs, ["a", "b"], num_prompts=20).rows == []


def test_token_features_tell_texts_apart_whatever_the_order_of_tokens() -> None:
    def group(*rows: list[int]) -> TokenGroup:
        none, size = np.zeros(0, np.int64), len(rows)
        return TokenGroup(
            group_id="g",
            subset=None,
            prompt_ids=np.array([1], np.int32),
            completion_ids=[np.array(row, np.int32) for row in rows],
            num_characters=np.zeros(size, np.int32),
            completion_index=np.arange(size, dtype=np.int16),
            chosen_P=none,
            rejected_P=none,
            weight_P=np.zeros(0, np.float32),
            margin_P=np.zeros(0, np.float32),
        )

    found = token_features([group([5, 6, 7], [7, 6, 5]), group([5, 5, 5, 5], [9])])
    assert found.shape == (4, NUM_FEATURES)
    np.testing.assert_array_equal(found[0], found[1])
    assert found[2].max() == pytest.approx(np.log(5))
    assert np.abs(found[0] - found[3]).max() > 0.5
