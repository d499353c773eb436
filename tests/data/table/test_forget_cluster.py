"""Forget on a cluster: the cache of every node that is up is emptied, and one that cannot be is named."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from annotation_tables import annotation_row, annotations_table, commit_annotations

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCRIPT = """
import sys
from pairwright.cli.main import main
sys.argv = ["pairwright", "forget", sys.argv[1], "--annotator", "ann", "--json"]
main()
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Start a head and two more nodes, each with a cache of its own that holds one copy of tokens."""
    cluster = Cluster()
    for name in ("head", "one", "other"):
        tokens = tmp_path / name / "pairwright" / "tokens"
        tokens.mkdir(parents=True)
        (tokens / "ab.arrow").write_text("1234")
        cluster.add_node(num_cpus=1, env_vars={"XDG_CACHE_HOME": str(tmp_path / name)})
    yield cluster
    cluster.shutdown()


def test_the_cache_of_every_node_is_emptied_and_one_that_cannot_be_is_named(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "other" / "pairwright" / "models").write_text("a file where the cache has a folder")
    commit_annotations(
        str(tmp_path / "t"), [annotations_table([annotation_row("r", ["a", "b"], [1, 2], annotator="ann")])]
    )
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "t")],
        env=os.environ | {"RAY_ADDRESS": str(cluster.address)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert sorted((Path(each["folder"]).parent.name, each["num_files"]) for each in summary["caches"]) == [
        ("head", 1),
        ("one", 1),
    ]
    (reason,) = summary["caches_not_cleared"]
    assert "other/pairwright/models: this folder of the cache cannot be made" in reason
    assert not [*tmp_path.glob("head/**/*.arrow"), *tmp_path.glob("one/**/*.arrow")]
