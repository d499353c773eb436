"""The Grafana dashboard asks for nothing that a real run does not serve."""

import json
import re
import time
import urllib.request
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from pairwright.cluster.sized_executor import SizedExecutor
from pairwright.cluster.train.driver import train
from pairwright.config import ExpandConfig, IngestConfig
from pairwright.data.ingest.ingest import ingest
from pairwright.data.pairs.expand import expand
from pairwright.data.synthetic import write_rankings
from training_runs import make_model, run_config

DASHBOARD = json.loads((Path(__file__).parents[2] / "deploy/grafana/pairwright.json").read_text())
GRAPHS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in GRAPHS for target in panel["targets"]]
QUERIES = [one["definition"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
NAME = re.compile(r"\bray_\w+")
ON_GPUS = {"ray_node_gpus_utilization"}
"""Served only where there are GPUs; Ray's own dashboard has it too."""


def asked_for() -> set[str]:
    return {name for text in [*EXPRESSIONS, *QUERIES] for name in NAME.findall(text)}


def test_panels_do_not_overlap_and_say_what_they_show() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert all(panel["description"] and panel["targets"] for panel in GRAPHS)


def test_what_only_gpus_serve_is_what_rays_own_dashboard_asks_for() -> None:
    panels = (files("ray") / "dashboard/modules/metrics/dashboards/default_dashboard_panels.py").read_text()
    assert all(name in panels for name in ON_GPUS)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_real_run_serves_every_metric_and_label_of_the_dashboard(tmp_path: Path) -> None:
    import ray

    write_rankings(tmp_path / "rankings.jsonl", 60, seed=0)
    on_ray = SizedExecutor(small_bytes=0)
    ingest([str(tmp_path / "rankings.jsonl")], str(tmp_path / "annotations"), IngestConfig(), executor=on_ray)
    expand(str(tmp_path / "annotations"), str(tmp_path / "pairs"), ExpandConfig(), version=None, executor=on_ray)
    make_model(tmp_path / "model")
    training = {"max_steps": 8, "checkpoint_every_steps": 4}
    train(run_config(tmp_path, "run", training=training, workers={"num_workers": 1}), log=StringIO())
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + 90
    missing = wanted = asked_for() - ON_GPUS
    text = ""
    while missing and time.monotonic() < deadline:
        time.sleep(2)
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        missing = wanted - set(re.findall(r"^(\w+)\{", text, flags=re.MULTILINE))
    assert not missing, sorted(set(re.findall(r"^(ray_data_\w+|ray_node_\w+)\{", text, flags=re.MULTILINE)))
    for label in set(re.findall(r"by \((\w+)\)|, (\w+)\)|(\w+)=~", " ".join([*EXPRESSIONS, *QUERIES]))):
        name = next(filter(None, label))
        assert f'{name}="' in text, name
