"""The Grafana dashboard asks for nothing that a real run does not serve."""

import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    with scraping() as text:
        write_rankings(tmp_path / "rankings.jsonl", 60, seed=0)
        on_ray = SizedExecutor(small_bytes=0)
        ingest([str(tmp_path / "rankings.jsonl")], str(tmp_path / "annotations"), IngestConfig(), executor=on_ray)
        expand(str(tmp_path / "annotations"), str(tmp_path / "pairs"), ExpandConfig(), version=None, executor=on_ray)
        make_model(tmp_path / "model")
        training = {"max_steps": 8, "checkpoint_every_steps": 4}
        train(run_config(tmp_path, "run", training=training, workers={"num_workers": 1}), log=StringIO())
        deadline = time.monotonic() + 90
        while (missing := asked_for() - ON_GPUS - served(text)) and time.monotonic() < deadline:
            time.sleep(1)
    assert not missing, f"{sorted(missing)}; served: {sorted(served(text))}"
    for label in set(re.findall(r"by \((\w+)\)|, (\w+)\)|(\w+)=~", " ".join([*EXPRESSIONS, *QUERIES]))):
        name = next(filter(None, label))
        assert f'{name}="' in "".join(text), name


@contextmanager
def scraping() -> Iterator[list[str]]:
    """Yield what the node serves, scrape after scrape: a gauge that nobody sets any more goes soon."""
    import ray

    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text: list[str] = []
    stop = threading.Event()

    def scrape() -> None:
        while not stop.wait(5):
            with suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
                text.append(answer.read().decode())

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield text
    finally:
        stop.set()
        thread.join()


def served(text: list[str]) -> set[str]:
    return {name for scrape in text for name in re.findall(r"^(ray_\w+)\{", scrape, flags=re.MULTILINE)}
