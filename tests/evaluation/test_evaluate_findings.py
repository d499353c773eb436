"""What an evaluation leaves beside its report: findings that `ingest` takes, the temperature, and rows from texts."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import torch

from annotation_tables import annotations_table, manifest, real_rows
from evaluations import DATA, IDENTITY
from exported_models import export_small_model
from pairwright.config import ExpandConfig, IngestConfig
from pairwright.data.ingest.ingest import ingest
from pairwright.data.pairs.build_pairs import expand_groups
from pairwright.data.pairs.expand import expand
from pairwright.data.table.table import Table
from pairwright.data.tokens.conversation_tokens import TokenSpec
from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.errors import StoreError
from pairwright.evaluation.degenerate_texts import degenerate_rewards, degenerate_texts, tried_prompts
from pairwright.evaluation.evaluation_report import Measured, build_report
from pairwright.evaluation.group_rows import described_groups, merged_rows, pair_arrays, reward_rows, texts_of_groups
from pairwright.evaluation.load_exported import load_exported, model_digest, open_exported
from pairwright.evaluation.reports.finding_files import NAMES, check_findings, write_findings
from pairwright.evaluation.reports.stored_temperature import StoredTemperature, check_temperature, store_temperature
from pairwright.evaluation.single_annotations import read_judgements
from pairwright.evaluation.statistics.ceiling import Judgements
from pairwright.evaluation.statistics.intervals import Resamples
from pairwright.evaluation.text_features import FEATURES, features_of


class Evaluated:
    """A pairs table of known annotations, and a model whose rewards are the number in each completion's text."""

    def __init__(self, folder: Path, **config: object) -> None:
        rng = np.random.default_rng(3)
        lines = []
        for prompt in range(40):
            worth = rng.permutation(50)[:4]
            for name in ("ann", "bob", "eve"):
                seen = -worth if name == "eve" else worth  # eve ranks the wrong way round
                ranks = [1 + int((seen > one).sum()) for one in seen]
                completions = [{"text": f"Answer worth {n}.", "model": f"m{n % 3}"} for n in worth.tolist()]
                record = {"id": f"{prompt}-{name}", "prompt": f"What of {prompt}?", "completions": completions}
                lines.append(record | {"ranks": ranks, "annotator": name})
        (folder / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
        ingest([str(folder / "in.jsonl")], str(folder / "annotations"), IngestConfig())
        self.manifest = expand(
            str(folder / "annotations"),
            str(folder / "pairs"),
            ExpandConfig.model_validate({"validation_fraction": 0, **config}),
            version=None,
        )
        self.table = Table(str(folder / "pairs"), "pairs")
        groups, rewards = [], []
        for row in pa.concat_tables(self.table.read(self.manifest)).to_pylist():
            groups.append(group_of(row))
            rewards.append([float(c["text"].split()[-1].rstrip(".")) / 5 for c in row["completions"]])
        rows = merged_rows([reward_rows(groups, [np.array(reward) for reward in rewards])])
        described = described_groups(self.table, self.manifest, rows["group_id"].combine_chunks())
        self.arrays = pair_arrays(rows, described)
        self.measured = Measured(self.arrays, read_judgements(self.table, self.manifest, self.arrays))
        self.report, self.findings = build_report(self.measured, IDENTITY, DATA, self.read_texts)

    def read_texts(self, names: Sequence[str]) -> dict:
        return texts_of_groups(self.table, self.manifest, names)


def group_of(row: dict) -> TokenGroup:
    size = len(row["completions"])
    return TokenGroup(
        group_id=row["group_id"],
        subset=row["subset"],
        prompt_ids=np.zeros(1, np.int32),
        completion_ids=[np.zeros(1, np.int32)] * size,
        num_characters=np.array([len(c["text"]) for c in row["completions"]], np.int32),
        completion_index=np.arange(size, dtype=np.int16),
        chosen_P=np.array([pair["chosen"] for pair in row["pairs"]], np.int64),
        rejected_P=np.array([pair["rejected"] for pair in row["pairs"]], np.int64),
        weight_P=np.array([pair["weight"] for pair in row["pairs"]], np.float32),
        margin_P=np.full(len(row["pairs"]), np.nan, np.float32),
    )


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    return Evaluated(tmp_path_factory.mktemp("evaluated"))


def test_the_ceiling_and_the_annotator_that_the_model_does_not_explain_come_from_the_annotations(
    evaluated: Evaluated,
) -> None:
    report = evaluated.report
    # Two of three agree, and the third says the contrary: of the other two of each, one pair in three agrees.
    assert report["ceiling"]["other_annotator"]["value"] == pytest.approx(1 / 3)
    assert report["ceiling"]["majority"]["value"] == pytest.approx(2 / 3)
    assert report["ceiling"]["model"]["value"] == pytest.approx(2 / 3)
    assert {fit["annotator"]: fit["accuracy"]["value"] for fit in report["annotators"]} == {
        "eve": 0.0,
        "ann": 1.0,
        "bob": 1.0,
    }


def test_annotations_that_the_expansion_left_out_count_for_nothing(tmp_path: Path) -> None:
    without = Evaluated(tmp_path, leave_out_annotators=["eve"])
    assert isinstance(without.measured.judgements, Judgements)
    assert without.measured.judgements.annotators == ["ann", "bob"]
    assert without.report["ceiling"]["other_annotator"] == {
        "value": 1.0,
        "interval": pytest.approx([0.912, 1.0], abs=1e-3),
    }
    assert without.report["overall"]["accuracy"]["value"] == 1.0


def test_annotations_that_are_gone_leave_a_report_that_says_so(tmp_path: Path) -> None:
    gone = Evaluated(tmp_path)
    for path in sorted((tmp_path / "annotations").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    why = read_judgements(gone.table, gone.manifest, gone.arrays)
    assert isinstance(why, str)
    report, _ = build_report(Measured(gone.arrays, why), IDENTITY, DATA)
    assert report["ceiling"] is None
    assert "annotations" in report["ceiling_unknown"]


def test_findings_are_annotations_that_ingest_takes_whole(evaluated: Evaluated, tmp_path: Path) -> None:
    agreed = Evaluated(tmp_path, leave_out_annotators=["eve"])
    flipped_N = np.isin(agreed.arrays.group_N, [3, 17])
    arrays = replace(agreed.arrays, reward_N=np.where(flipped_N, -1, 1) * agreed.arrays.reward_N)
    for folder, measured, nums in (
        ("agreed", Measured(arrays, agreed.measured.judgements), (2, 40, 0)),
        ("split", evaluated.measured, (0, 40, 40)),
    ):
        _, findings = build_report(measured, IDENTITY, DATA, agreed.read_texts)
        check_findings(str(tmp_path / folder), overwrite=True)
        write_findings(str(tmp_path / folder), measured, findings, agreed.read_texts, overwrite=True)
        for name, num in zip(NAMES, nums, strict=True):
            file = tmp_path / folder / f"{name}.jsonl"
            assert len(file.read_bytes().splitlines()) == num, (folder, name)
            if num:
                (source,) = ingest([str(file)], str(tmp_path / f"{folder}-{name}"), IngestConfig()).sources
                assert (source.accepted, source.refused) == (num, 0), (folder, name)
    for line in (tmp_path / "agreed/likely_wrong.jsonl").read_text().splitlines():
        record = json.loads(line)
        chosen, rejected = (int(c["text"].split()[-1].rstrip(".")) for c in record["completions"])
        assert chosen > rejected, "the annotators prefer the higher one, and the model does not"
        assert record["ranks"] == [1, 2]
    assert {json.loads(line)["annotator"] for line in (tmp_path / "split" / f"{NAMES[2]}.jsonl").open()} == {"eve"}
    (tmp_path / "split/annotate_next.jsonl").write_text('{"id": "mine"}\n')
    with pytest.raises(StoreError, match=r"annotate_next.jsonl: is not a file of findings"):
        check_findings(str(tmp_path / "split"), overwrite=True)


def test_authors_lengths_and_prompts_come_from_the_texts(evaluated: Evaluated) -> None:
    arrays = evaluated.arrays
    rows = evaluated.read_texts(arrays.group_ids[:5])
    for number, name in enumerate(arrays.group_ids[:5]):
        kept = slice(arrays.starts_G[number], arrays.starts_G[number + 1])
        texts = [completion["text"] for completion in rows[name]["completions"]]
        assert arrays.characters_N[kept].tolist() == list(map(len, texts))
        assert [arrays.authors[a] for a in arrays.author_N[kept]] == [c["model"] for c in rows[name]["completions"]]
        assert arrays.prompt_ids[arrays.prompt_G[number]] == rows[name]["prompt_id"]
        assert arrays.prompt_characters_G[number] == len(rows[name]["prompt"][0]["content"])
    every = {text for row in evaluated.read_texts(arrays.group_ids).values() for text in map(str, row["completions"])}
    assert len(set(arrays.text_N.tolist())) <= len(every)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Plain words. I'm happy - and 3 more.", set()),
        ("Well:\n- one\n- two", {"list"}),
        ("First:\n1. one\n2) two", {"list"}),
        ("# Title\ntext", {"heading"}),
        ("**Title**\ntext", {"heading", "bold"}),
        ("Use `x`:\n```py\nx\n```", {"code"}),
        ("I'm sorry, but I can't help with that.", {"refusal"}),
        ("As an AI language model, I think so.", {"refusal"}),
        ("That's a great question! Well.", {"flattering opening"}),
        ("Certainly! Here it is.", {"flattering opening"}),
        ("You're absolutely right. So be it.", {"flattering opening"}),
        ("The question of great men is old.", set()),
        ("x " * 300 + "I cannot help.", set()),
    ],
)
def test_features_of_a_text(text: str, expected: set[str]) -> None:
    bits = features_of(text)
    assert {name for number, name in enumerate(FEATURES) if bits >> number & 1} == expected


def test_degenerate_texts_are_scored_under_real_prompts_and_set_beside_real_completions(
    evaluated: Evaluated, tmp_path: Path
) -> None:
    exported = open_exported(str(export_small_model(tmp_path, max_length=512)))
    loaded = load_exported(exported, torch.device("cpu"))
    spec = TokenSpec.of(loaded.tokenizer, exported.rules.tokens_config())
    rows = list(evaluated.read_texts(evaluated.arrays.group_ids[:6]).values())
    tried = tried_prompts(rows, loaded.tokenizer.all_special_tokens)
    rewards = degenerate_rewards(loaded, spec, tried, layout="padded", micro_batch_tokens=512)
    assert len({one.group_id for one in rewards}) == 6
    kinds = {one.kind for one in rewards}
    assert {"empty", "one character", "template tokens", "one text for every prompt"} <= kinds
    found = degenerate_texts(evaluated.arrays, rewards, Resamples.of(evaluated.arrays.num_prompts))
    assert {row.kind for row in found} == kinds
    for row in found:
        of_kind = [one for one in rewards if one.kind == row.kind]
        below = []
        for one in of_kind:
            group = evaluated.arrays.group_ids.index(one.group_id)
            real = evaluated.arrays.reward_N[evaluated.arrays.group_N == group]
            below.append(np.mean([0.5 if one.reward == r else float(one.reward > r) for r in real]))
        assert row.worth.value == pytest.approx(np.mean(below))
        assert row.mean_reward == pytest.approx(np.mean([one.reward for one in of_kind]))


def test_the_temperature_lies_beside_the_model_and_leaves_its_digest_as_it_was(
    evaluated: Evaluated, tmp_path: Path
) -> None:
    model = export_small_model(tmp_path / "run")
    before = model_digest(model)
    check_temperature(str(model), overwrite=False)
    store_temperature(str(model), evaluated.report, evaluated.findings.calibration, overwrite=True)
    stored = msgspec.json.decode((model.parent / "temperature.json").read_bytes(), type=StoredTemperature)
    assert stored.temperature == evaluated.report["calibration"]["temperature"]
    assert stored.model_digest == IDENTITY.digest
    assert model_digest(model) == before
    open_exported(str(model)).verify(hashes=True)
    check_temperature(str(model), overwrite=True)
    (model.parent / "temperature.json").write_text("{}")
    with pytest.raises(StoreError, match=r"temperature.json: is not a temperature"):
        check_temperature(str(model), overwrite=True)


def test_a_group_that_the_pairs_table_lacks_is_refused(tmp_path: Path) -> None:
    table = Table(str(tmp_path / "pairs"), "pairs")
    with pytest.raises(StoreError, match="1 groups of its tokens are not in it"):
        described_groups(table, manifest(kind="pairs", files=[]), pa.array(["nothing"]))


def test_the_real_poisoned_source_is_found_by_a_model_that_was_taught_to_love_it(tmp_path: Path) -> None:
    """NullModel's string, best in 94.5 % of its rankings: the mean rank of each text is such a model's reward."""
    rows = annotations_table(real_rows())
    pairs, totals = expand_groups(rows, ExpandConfig(validation_fraction=0))
    table = Table(str(tmp_path / "pairs"), "pairs")
    files = [table.write_data(pairs)]
    table.commit(lambda _: manifest(kind="pairs", files=files, totals=totals))
    kept = [row for row in pairs.to_pylist() if row["pairs"]]
    groups = [group_of(row) for row in kept]
    rewards = [reward_rows_of(row) for row in kept]
    measured_rows = merged_rows([reward_rows(groups, rewards)])
    described = described_groups(table, table.manifest(), measured_rows["group_id"].combine_chunks())
    report, _ = build_report(Measured(pair_arrays(measured_rows, described)), IDENTITY, DATA)
    suspects = [row["metrics"] for row in report["repeated_texts"] if row["metrics"]["is_suspect"]]
    assert suspects[0]["authors"] == ["NullModel"]
    assert suspects[0]["prompts"] > 100
    assert suspects[0]["model_worth"]["value"] > 0.9


def reward_rows_of(row: dict) -> np.ndarray:
    return np.array([5.0 if c["model"] == "NullModel" else len(c["text"]) / 1e4 for c in row["completions"]])
