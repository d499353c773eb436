"""Small work starts no Ray: the same tables, byte for byte, as on a cluster, in a process that never started one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pairwright.cluster.sized_executor import EXECUTOR
from pairwright.config import ExpandConfig, IngestConfig, TokensConfig
from pairwright.data.executor import LOCAL
from pairwright.data.ingest.ingest import ingest
from pairwright.data.pairs.expand import expand
from pairwright.data.synthetic import write_rankings
from pairwright.data.table.table import Table
from pairwright.data.tokens.tokenize import ensure_tokens
from pairwright.model.tiny_models import new_tiny_model

HERE = """
import sys
from pairwright.cluster.sized_executor import EXECUTOR
from pairwright.data.pairs.expand import expand
from pairwright.data.ingest.ingest import ingest
from pairwright.data.ingest.dry_run import validate
from pairwright.config import ExpandConfig, IngestConfig

sources, annotations, pairs = sys.argv[1:]
config = IngestConfig(split_bytes=65536)
findings = validate([sources], config, against=None, limit=10, scratch=None, executor=EXECUTOR)
summary = ingest([sources], annotations, config, executor=EXECUTOR)
assert findings.num_refused == sum(source.refused for source in summary.sources) == 3
assert ingest([sources], annotations, config, executor=EXECUTOR).manifest is None
expand(annotations, pairs, ExpandConfig(), version=None, executor=EXECUTOR)
assert "ray" not in sys.modules
"""


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_small_work_gives_the_same_tables_without_ray_as_on_it(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    write_rankings(sources / "a.jsonl", 200, seed=1)
    first = (sources / "a.jsonl").read_text().splitlines()[0]
    other = json.dumps(json.loads(first) | {"prompt": "another"})
    (sources / "b.jsonl").write_text(f"{first}\n{other}\n{{}}\n\n")
    here = [str(sources), str(tmp_path / "here" / "annotations"), str(tmp_path / "here" / "pairs")]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", HERE, *here], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    on_ray = [str(tmp_path / "ray" / "annotations"), str(tmp_path / "ray" / "pairs")]
    ingest([str(sources)], on_ray[0], IngestConfig(split_bytes=65536), executor=EXECUTOR)
    expand(on_ray[0], on_ray[1], ExpandConfig(), version=None, executor=EXECUTOR)
    totals = []
    for mine, theirs in zip(here[1:], on_ray, strict=True):
        found, expected = Table.open(mine).manifest(), Table.open(theirs).manifest()
        assert found.digest == expected.digest
        assert found.totals == pytest.approx(expected.totals)
        assert [file.sha256 for file in found.files] == [file.sha256 for file in expected.files]
        totals.append(found.totals)
    assert totals[1]["groups"] == 200


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_every_search_of_an_expansion_and_tokens_are_the_same_in_this_process_and_on_ray(tmp_path: Path) -> None:
    write_rankings(tmp_path / "a.jsonl", 300, seed=1)
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    asked = [record for record in records if isinstance(record["prompt"], str)]
    alike = [record | {"id": f"{record['id']} again", "prompt": f"{record['prompt']}!"} for record in asked[:60]]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(record) + "\n" for record in alike))
    evaluation = tmp_path / "evaluation.jsonl"
    evaluation.write_text("".join(json.dumps({"prompt": record["prompt"]}) + "\n" for record in asked[-9:]))
    annotations = str(tmp_path / "annotations")
    ingest([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")], annotations, IngestConfig(split_bytes=16384))
    config = ExpandConfig(
        near_duplicates="drop_train",
        decontaminate=[str(evaluation)],
        max_prompts_per_text=3,
        validation_fraction=0.3,
        partition_bytes=4096,
    )
    model = new_tiny_model(
        tmp_path / "model",
        architecture="llama",
        texts=[completion["text"] for record in records for completion in record["completions"]],
        vocab_size=300,
        hidden_size=8,
        num_layers=1,
        num_heads=1,
        max_positions=512,
        seed=0,
    )
    made = []
    for name, executor in (("here", LOCAL), ("ray", EXECUTOR)):
        pairs = expand(annotations, str(tmp_path / name), config, version=None, executor=executor)
        _, tokens = ensure_tokens(
            str(tmp_path / name),
            version=pairs.version,
            tokenizer_path=str(model),
            config=TokensConfig(max_length=512),
            into=str(tmp_path / f"{name}-tokens"),
            executor=executor,
        )
        made.append((pairs, tokens))
    for found, expected in zip(*made, strict=True):
        assert found.digest == expected.digest
        assert found.totals == pytest.approx(expected.totals)
    totals = made[0][0].totals
    assert min(totals["groups_near_duplicate"], totals["groups_contaminated"], totals["groups"]) > 0
