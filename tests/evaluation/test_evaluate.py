"""Evaluation: exact figures, the length baseline, and nothing that depends on how the work was split."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from annotation_tables import annotations_table, real_rows
from evaluations import arrays_of_tokens, report_of
from exported_models import export_small_model
from pairwright.config import ExpandConfig, IngestConfig
from pairwright.data.ingest.ingest import ingest
from pairwright.data.pairs.build_pairs import expand_groups
from pairwright.data.pairs.expand import expand
from pairwright.data.table.table import Table
from pairwright.data.tokens.tokenize_groups import (
    TokenGroup,
    TokenSpec,
    TokenTable,
    groups_to_table,
    load_tokenizer,
    tokenize_groups,
)
from pairwright.errors import ConfigError, ModelError
from pairwright.evaluation.evaluate import EvaluatedPart, EvaluationPlan, evaluate_groups, merged
from pairwright.evaluation.group_rows import reward_rows
from pairwright.evaluation.load_exported import LoadedModel, load_exported, open_exported
from pairwright.evaluation.reports.report_schema import DataIdentity
from pairwright.evaluation.reports.report_text import format_report
from pairwright.evaluation.rewards import plan_by_length, rewards_in_layout, rewards_of_groups
from pairwright.evaluation.statistics.pair_metrics import PairTerms, PartMetrics
from pairwright.model.collate import Layout
from pairwright.model.layout_check import choose_layout

Draw = Callable[..., TokenGroup]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = export_small_model(tmp_path_factory.mktemp("exported"))
    return load_exported(open_exported(str(path)), torch.device("cpu"))


@pytest.fixture(scope="module")
def groups(random_group: Draw) -> list[TokenGroup]:
    rng = np.random.default_rng(5)
    return [
        random_group(rng, num_completions=2 + i % 8, num_annotators=1 + i % 3, subset=["facts", None, "style"][i % 3])
        for i in range(60)
    ]


def write_tokens(path: Path, groups: list[TokenGroup], split_of: Callable[[int], str]) -> TokenTable:
    table = groups_to_table(groups, [split_of(i) for i in range(len(groups))])
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=16)
    return TokenTable([path])


def evaluate_alike(loaded: LoadedModel, groups: list[TokenGroup], micro_batch_tokens: int) -> EvaluatedPart:
    return evaluate_groups(
        loaded.model,
        groups,
        layout="padded",
        pad_token_id=loaded.pad_token_id,
        micro_batch_tokens=micro_batch_tokens,
        device=loaded.device,
    )


# ------------------------------------------------------------------------------------------- subsets

TWO_SUBSETS = [
    ("a", "easy", "Name a lake.", "Lake Como.", "A puddle."),
    ("b", "hard", "Name a lake.", "Lake Como.", "A puddle."),
    ("c", "hard", "Name a sea.", "The Aral Sea.", "The Rhine."),
    ("d", "easy", "Name a tree.", "Oak.", "Moss."),
    ("e", "hard", "Name a tree.", "Oak.", "Moss."),
    ("f", "hard", "Name a herb.", "Thyme.", "Rock."),
]


def test_a_pair_of_two_subsets_counts_in_both_and_is_one_group_for_training(tmp_path: Path) -> None:
    fields = ("id", "subset", "prompt", "chosen", "rejected")
    lines = [json.dumps(dict(zip(fields, record, strict=True))) for record in TWO_SUBSETS]
    (tmp_path / "dups.jsonl").write_text("\n".join(lines))
    ingest([str(tmp_path / "dups.jsonl")], str(tmp_path / "annotations"), IngestConfig())
    config = ExpandConfig(validation_fraction=0)
    manifest = expand(str(tmp_path / "annotations"), str(tmp_path / "pairs"), config, version=None)
    assert [manifest.totals[name] for name in ("groups", "pairs", "weight", "groups_more_subsets")] == [
        4,
        4,
        4,
        2,
    ]

    exported = open_exported(str(export_small_model(tmp_path)))
    tokenizer = load_tokenizer(str(exported.directory))
    spec = TokenSpec.of(tokenizer, exported.rules.tokens_config())
    (file,) = manifest.files
    pairs = Table(str(tmp_path / "pairs"), "pairs").read_file(file)
    tokens, totals = tokenize_groups(pairs, tokenizer, spec)
    written = Table(str(tmp_path / "tokens"), "tokens").write_data(tokens, compress=False)
    table, prompts = TokenTable([tmp_path / "tokens" / written.path]), pairs["prompt"].to_pylist()
    groups, every_reward = [], []
    for row, prompt in enumerate(prompts):
        group = table.group(row)
        right = prompt[0]["content"] == "Name a lake."
        rewards = np.zeros(2)
        rewards[group.chosen_P[0]] = 1 if right else -1
        groups.append(group)
        every_reward.append(rewards)
    identity = DataIdentity(url="pairs", version=1, digest="", split="train", pairs=4, tokens={**totals})
    report = report_of(groups, every_reward, model=exported.identity(), pairs=identity)
    found = {name: (part["pairs"], part["accuracy"]["value"]) for name, part in report["by_subset"].items()}
    assert found == {"easy": (2, 1 / 2), "hard": (4, 1 / 4)}
    assert (report["overall"]["pairs"], report["overall"]["accuracy"]["value"]) == (6, pytest.approx(1 / 3))
    assert report["pairs_again"] == 2
    shown = format_report(report)
    assert (
        "split train: 4 of 4 pairs, 4 prompts\n       2 of them count again, for a further subset of their group: 6"
        in shown
    )


# ------------------------------------------------------------------------------- figures, by plain loops


def pairs_of(groups: list[TokenGroup], rewards: list[np.ndarray]) -> Iterator[tuple[TokenGroup, float, float, int]]:
    for group, reward_K in zip(groups, rewards, strict=True):
        for chosen, rejected, weight in zip(
            group.chosen_P.tolist(), group.rejected_P.tolist(), group.weight_P.tolist(), strict=True
        ):
            longer_by = int(group.num_characters[chosen]) - int(group.num_characters[rejected])
            yield group, weight, float(reward_K[chosen]) - float(reward_K[rejected]), longer_by


def reference(cases: list[tuple[float, float]]) -> dict[str, float]:
    """Return the figures of (weight, difference) pairs, added one after another."""
    weight = math.fsum(w for w, _ in cases)
    right = math.fsum(w * (0.5 if d == 0 else float(d > 0)) for w, d in cases)
    log_loss = math.fsum(w * (math.log1p(math.exp(-abs(d))) + max(-d, 0.0)) for w, d in cases)
    margin = math.fsum(w * d for w, d in cases)
    return {
        "pairs": len(cases),
        "weight": weight,
        "accuracy": right / weight,
        "log_loss": log_loss / weight,
        "reward_margin": margin / weight,
    }


def assert_equals(metrics: PartMetrics, cases: list[tuple[float, float]]) -> None:
    for name, value in reference(cases).items():
        found = getattr(metrics, name)
        assert getattr(found, "value", found) == pytest.approx(value, abs=1e-12), name


def test_figures_equal_a_loop_over_pairs_overall_by_subset_by_k_and_by_length(groups: list[TokenGroup]) -> None:
    rng = np.random.default_rng(6)
    # Few distinct values: many pairs have equal rewards, which count half.
    rewards = [rng.integers(0, 4, len(group.completion_ids)).astype(np.float32) * 30 for group in groups]
    arrays = arrays_of_tokens(groups, rewards)
    terms = PairTerms.of(arrays)
    parts: dict[object, list[tuple[float, float]]] = defaultdict(list)
    for group, weight, difference, longer_by in pairs_of(groups, rewards):
        for part in (
            "overall",
            ("subset", group.subset),
            ("k", len(group.completion_ids)),
            ("sign", np.sign(longer_by)),
        ):
            parts[part].append((weight, difference))
        parts["longer"].append((weight, float(np.sign(longer_by))))
    assert_equals(terms.metrics(), parts["overall"])
    names = [arrays.subsets_G[group][0] for group in arrays.group_P]
    for subset in set(names):
        assert_equals(terms.metrics(np.array(names) == subset), parts["subset", None if subset == "(none)" else subset])
    sizes = arrays.num_completions_G[arrays.group_P]
    for size in set(sizes.tolist()):
        assert_equals(terms.metrics(sizes == size), parts["k", size])
    for sign in (1, -1, 0):
        assert_equals(terms.metrics(np.sign(arrays.longer_by_P) == sign), parts["sign", sign])
    longer_wins = terms.metrics().longer_wins.value
    assert longer_wins == pytest.approx(reference(parts["longer"])["accuracy"], abs=1e-12)


def test_the_three_length_classes_hold_every_pair_once(loaded: LoadedModel, groups: list[TokenGroup]) -> None:
    rewards = [rewards_under(loaded, [group], 10_000) for group in groups]
    report = report_of(groups, rewards)
    classes = report["by_length"].values()
    assert sum(part["pairs"] for part in classes) == report["overall"]["pairs"]
    assert sum(part["weight"] for part in classes) == pytest.approx(report["overall"]["weight"], rel=1e-12)


def test_a_reward_that_is_not_finite_names_its_group(groups: list[TokenGroup]) -> None:
    reward_K = np.zeros(len(groups[0].completion_ids))
    reward_K[0] = np.nan
    with pytest.raises(ModelError, match=groups[0].group_id):
        reward_rows(groups[:1], [reward_K])


# ------------------------------------------------------------------------------------- how it was split


def test_one_two_and_three_workers_count_the_same_to_the_last_bit(
    loaded: LoadedModel, groups: list[TokenGroup], tmp_path: Path
) -> None:
    tokens = write_tokens(tmp_path / "tokens.arrow", groups, lambda i: "validation" if i % 5 else "train")
    plan = EvaluationPlan.of(tokens, "validation", micro_batch_tokens=200)
    assert len(plan.parts) > 6
    found = []
    for num_workers in (1, 2, 3):
        workers: list[list[EvaluatedPart]] = [[] for _ in range(num_workers)]
        for part, micro_batches in reversed(list(enumerate(plan.parts))):
            for rows in micro_batches:
                workers[part % num_workers].append(evaluate_alike(loaded, [tokens.group(i) for i in rows], 200))
        found.append(merged([merged(parts) for parts in workers]).rows)
    written = []
    for rows in found:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(rows)
        written.append(sink.getvalue().to_pybytes())
    assert written[0] == written[1] == written[2]
    assert found[0].num_rows == sum(1 for i in range(len(groups)) if i % 5)


def test_every_group_of_the_split_and_no_other_is_evaluated_once(groups: list[TokenGroup], tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens.arrow", groups, lambda i: "validation" if i % 4 == 0 else "train")
    plan = EvaluationPlan.of(tokens, "validation", micro_batch_tokens=150)
    rows = [row for part in plan.parts for micro_batch in part for row in micro_batch]
    assert sorted(rows) == list(range(0, len(groups), 4))


def test_a_split_without_groups_gives_an_empty_plan(groups: list[TokenGroup], tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens.arrow", groups, lambda _: "train")
    assert EvaluationPlan.of(tokens, "validation", micro_batch_tokens=150).parts == []


@given(
    shapes=st.lists(st.tuples(st.integers(2, 9), st.integers(1, 50)), min_size=1, max_size=40),
    micro_batch_tokens=st.integers(50, 400),
)
def test_a_plan_has_each_group_once_and_keeps_the_budget(
    shapes: list[tuple[int, int]], micro_batch_tokens: int
) -> None:
    num_completions, num_tokens = zip(*shapes, strict=True)
    plan = plan_by_length(num_completions, num_tokens, micro_batch_tokens=micro_batch_tokens)
    assert sorted(position for positions in plan for position in positions) == list(range(len(shapes)))
    for positions in plan:
        cost = sum(num_completions[p] for p in positions) * max(num_tokens[p] for p in positions)
        assert cost <= micro_batch_tokens or len(positions) == 1


# ---------------------------------------------------------------------------------------------- rewards


def rewards_under(loaded: LoadedModel, groups: list[TokenGroup], micro_batch_tokens: int) -> np.ndarray:
    rewards = rewards_of_groups(
        loaded.model,
        groups,
        pad_token_id=loaded.pad_token_id,
        micro_batch_tokens=micro_batch_tokens,
        device=loaded.device,
    )
    return np.concatenate(rewards)


def test_a_group_over_the_budget_gets_the_rewards_it_gets_in_one_forward(
    loaded: LoadedModel, groups: list[TokenGroup]
) -> None:
    group = max(groups, key=lambda group: len(group.completion_ids))
    longest = group.prompt_ids.size + max(ids.size for ids in group.completion_ids)
    whole, cut = rewards_under(loaded, [group], 10_000), rewards_under(loaded, [group], 2 * longest)
    np.testing.assert_allclose(cut, whole, atol=1e-5)


@pytest.mark.parametrize("layout", ["shared", "packed"])
def test_a_layout_without_padding_gives_the_rewards_of_padded_rows_whatever_the_budget(
    layout: Layout, loaded: LoadedModel, groups: list[TokenGroup]
) -> None:
    def rewards(layout: Layout, budget: int) -> np.ndarray:
        found = rewards_in_layout(
            loaded.model,
            groups,
            layout=layout,
            pad_token_id=loaded.pad_token_id,
            micro_batch_tokens=budget,
            device="cpu",
        )
        assert [len(reward_K) for reward_K in found] == [len(group.completion_ids) for group in groups]
        return np.concatenate(found)

    padded = rewards("padded", 10_000)
    longest = max(group.prompt_ids.size + ids.size for group in groups for ids in group.completion_ids)
    try:
        chosen = choose_layout(
            loaded.model, layout, pad_token_id=loaded.pad_token_id, max_length=128, device="cpu"
        ).layout
        for budget in (10_000, 300, longest):  # whole groups together, groups alone, groups in parts
            np.testing.assert_allclose(rewards(chosen, budget), padded, atol=2e-5 * padded.std())
        with pytest.raises(ConfigError, match=rf"{longest} tokens.*micro_batch_tokens"):
            rewards(chosen, longest - 1)
    finally:
        loaded.model.accept_packed_sequences(enabled=False)


def test_figures_under_any_budget_agree_to_a_millionth(loaded: LoadedModel, groups: list[TokenGroup]) -> None:
    found = []
    for budget in (10_000, 64):
        rows = merged([evaluate_alike(loaded, groups, budget)]).rows
        order = sorted(groups, key=lambda group: group.group_id)
        metrics = PairTerms.of(arrays_of_tokens(order, rows["reward"].to_pylist())).metrics()
        found.append([metrics.accuracy.value, metrics.log_loss.value, metrics.reward_margin.value])
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_a_completion_over_the_budget_is_refused_by_name(loaded: LoadedModel, groups: list[TokenGroup]) -> None:
    longest = groups[7].prompt_ids.size + max(ids.size for ids in groups[7].completion_ids)
    with pytest.raises(ConfigError, match=rf"(?s){groups[7].group_id}.*{longest} tokens.*micro_batch_tokens"):
        rewards_under(loaded, [groups[7]], longest - 1)


def test_rewards_of_a_bfloat16_model_are_not_rounded_to_bfloat16(tmp_path: Path, groups: list[TokenGroup]) -> None:
    # Rounded, rewards near 10 that differ by 0.02 would tie and count half (pitfall 3).
    exported = open_exported(str(export_small_model(tmp_path, dtype=torch.bfloat16)))
    assert exported.dtype == "bfloat16"
    loaded = load_exported(exported, torch.device("cpu"))
    reward_N = rewards_under(loaded, groups[:20], 10_000)
    assert reward_N.dtype == np.float32
    assert not np.array_equal(torch.from_numpy(reward_N).bfloat16().float().numpy(), reward_N)


# ------------------------------------------------------------------------------------ what is no export


def test_a_path_without_a_model_says_where_to_point(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model directory"):
        open_exported(str(tmp_path / "nothing"))


def test_a_model_without_a_reward_head_is_refused(tmp_path: Path) -> None:
    export_small_model(tmp_path)
    with pytest.raises(ModelError, match=r"no reward head \(architectures: LlamaForCausalLM"):
        open_exported(str(tmp_path / "base"))


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [(None, "no such file"), ("{", "malformed|truncated"), ('{"max_length": 4}', "max_length|missing")],
)
def test_a_model_that_does_not_say_how_its_input_is_cut_is_refused(
    tmp_path: Path, rules: str | None, complaint: str
) -> None:
    path = export_small_model(tmp_path)
    (path / "pairwright.json").unlink()
    if rules is not None:
        (path / "pairwright.json").write_text(rules)
    with pytest.raises(ModelError, match=rf"(?s)pairwright.json.*({complaint}).*overlong"):
        open_exported(str(path))


def test_a_models_digest_changes_with_any_byte_of_any_file(tmp_path: Path) -> None:
    path = export_small_model(tmp_path)
    before = open_exported(str(path)).identity().digest
    assert open_exported(str(path)).identity().digest == before
    (path / "README.md").write_text("mine")
    assert open_exported(str(path)).identity().digest != before


def test_a_model_that_is_not_what_was_exported_is_refused_before_it_is_used(tmp_path: Path) -> None:
    path = export_small_model(tmp_path)
    weights = path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    model = open_exported(str(path))
    with pytest.raises(ModelError, match=r"damaged: model.safetensors is not what was exported \(SHA-256\); copy the"):
        model.verify(hashes=True)
    weights.write_bytes(content[:-1])
    with pytest.raises(ModelError, match=r"damaged: model.safetensors has [\d,]+ bytes, expected"):
        open_exported(str(path))


def test_longer_wins_on_the_real_rankings_is_what_their_readme_says() -> None:
    # shared/data/README.md, from the file's author: right on 76.5 % of the 18,099 decisive pairs.
    pairs, _ = expand_groups(annotations_table(real_rows()), ExpandConfig(pair_weight="uniform"))
    groups = []
    for row in pairs.select(["group_id", "completions", "pairs"]).to_pylist():
        lengths = [len(completion["text"]) for completion in row["completions"]]
        groups.append(
            TokenGroup(
                group_id=row["group_id"],
                subset=None,
                prompt_ids=np.zeros(1, np.int32),
                completion_ids=[np.zeros(1, np.int32) for _ in lengths],
                num_characters=np.array(lengths, np.int32),
                completion_index=np.arange(len(lengths), dtype=np.int16),
                chosen_P=np.array([pair["chosen"] for pair in row["pairs"]], np.int64),
                rejected_P=np.array([pair["rejected"] for pair in row["pairs"]], np.int64),
                weight_P=np.array([pair["weight"] for pair in row["pairs"]], np.float32),
                margin_P=np.full(len(row["pairs"]), np.nan, np.float32),
            )
        )
    rewards = [np.zeros(len(group.completion_ids)) for group in groups]
    metrics = PairTerms.of(arrays_of_tokens(groups, rewards)).metrics()
    assert metrics.weight == pytest.approx(18_099, abs=30)
    assert metrics.longer_wins.value == pytest.approx(0.765, abs=0.001)
