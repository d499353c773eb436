"""A model is used where nothing but object storage is shared: model, pairs, input and outputs on an S3 server."""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import obstore
import pyarrow.parquet as pq
import pytest

from annotation_tables import annotation_row, annotations_table, manifest
from exported_models import export_small_model
from pairwright.config import ExpandConfig
from pairwright.data.pairs.build_pairs import expand_groups
from pairwright.data.table.table import Table, open_store
from pairwright.errors import StoreError
from pairwright.evaluation.load_exported import model_digest, open_exported
from pairwright.evaluation.score_files import read_scores_manifest

SCRIPT = """
import json, sys
from pairwright.cluster.models.evaluate_job import evaluate
from pairwright.cluster.models.score_job import score
from pairwright.cluster.session import ray_session
from pairwright.errors import StoreError
bucket = sys.argv[1]
options = {"num_workers": 2, "use_gpu": False, "micro_batch_tokens": 1024}
with ray_session():
    report = evaluate(
        f"{bucket}/run/model", f"{bucket}/pairs", version=None, split="validation", output=None, **options
    )
    score(f"{bucket}/run/model", f"{bucket}/in.jsonl", f"{bucket}/out", **options)
    try:
        score(f"{bucket}/run/model", f"{bucket}/in.jsonl", f"{bucket}/out", **options)
    except StoreError as error:
        refused = str(error)
print(json.dumps([report["overall"], refused]))
"""


def put_everything(bucket: str, directory: Path) -> None:
    model = export_small_model(directory, max_length=512)
    store = open_store(bucket)
    for path in model.rglob("*"):
        obstore.put(store, f"run/model/{path.relative_to(model).as_posix()}", path)
    rows = [annotation_row(str(i), [f"a {i}", "b", "c d"], [1, 2, 3], prompt=f"Why {i}?") for i in range(40)]
    pairs, totals = expand_groups(annotations_table(rows), ExpandConfig(validation_fraction=0.5))
    table = Table(f"{bucket}/pairs", "pairs")
    files = [table.write_data(pairs)]
    table.commit(lambda _: manifest(kind="pairs", files=files, totals=totals))
    lines = [json.dumps({"id": str(i), "prompt": "Why?", "completion": f"because {i}"}) for i in range(300)]
    obstore.put(store, "in.jsonl", "\n".join([*lines, "nonsense"]).encode())


def test_a_copy_of_a_model_is_used_as_long_as_it_is_what_was_downloaded(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = export_small_model(tmp_path / "exported")
    store = open_store(f"{s3_bucket}/copied")
    for path in model.rglob("*"):
        obstore.put(store, path.relative_to(model).as_posix(), path)
    opened = open_exported(f"{s3_bucket}/copied")
    assert opened.identity().digest == model_digest(model)
    weights = opened.directory / "model.safetensors"
    written = weights.stat().st_ino
    assert open_exported(f"{s3_bucket}/copied").directory == opened.directory
    assert weights.stat().st_ino == written
    for change in (flip_low_bits, Path.unlink, lambda path: (path.parent / "added.txt").write_text("")):
        time.sleep(0.02)  # file systems count time in steps of some milliseconds
        change(weights)
        with caplog.at_level(logging.WARNING):
            again = open_exported(f"{s3_bucket}/copied")
        assert again.identity().digest == model_digest(model)
        assert f"this copy of {s3_bucket}/copied is damaged; it is downloaded again" in caplog.text
        caplog.clear()
    assert len([path for path in opened.directory.parent.iterdir() if path.is_dir()]) == 1


def flip_low_bits(path: Path) -> None:
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))


def test_a_store_that_does_not_answer_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ALLOW_HTTP": "true"}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    with pytest.raises(StoreError, match=r"s3://bucket/model: .*; check the address"):
        open_exported("s3://bucket/model")


@pytest.mark.ray
@pytest.mark.slow
def test_evaluate_and_score_work_where_everything_is_remote(s3_bucket: str, tmp_path: Path) -> None:
    put_everything(s3_bucket, tmp_path / "exported")
    script = tmp_path / "use.py"
    script.write_text(SCRIPT)
    # A process of its own: the actors find the server through the environment that their Ray was started in.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, str(script), s3_bucket],
        env=environment | {"XDG_CACHE_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        check=True,
        timeout=400,
    )
    overall, refused = json.loads(done.stdout.splitlines()[-1])
    store = open_store(s3_bucket)
    assert json.loads(obstore.get(store, "run/report.json").bytes().to_bytes())["overall"] == overall
    assert overall["groups"] > 0
    assert "--overwrite" in refused
    scores = read_scores_manifest(f"{s3_bucket}/out")
    assert (scores.totals["completions"], scores.totals["records_refused"]) == (300, 1)
    (file,) = scores.files
    (tmp_path / "scores.parquet").write_bytes(obstore.get(store, f"out/{file.path}").bytes().to_bytes())
    assert pq.read_table(tmp_path / "scores.parquet").column("id").to_pylist() == [str(i) for i in range(300)]
    # One download, shared by the driver and both actors.
    models = [path for path in (tmp_path / "pairwright/models").iterdir() if path.is_dir()]
    assert len(models) == 1
