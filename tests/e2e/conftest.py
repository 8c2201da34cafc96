"""Fixtures: a cluster of real daemons (docs/examples/demo.py knows how to start them) and ranks."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(ROOT / "client" / "python"))

from rank import Rank  # noqa: E402

_spec = importlib.util.spec_from_file_location("demo", ROOT / "docs" / "examples" / "demo.py")
demo = importlib.util.module_from_spec(_spec)
sys.modules["demo"] = demo
_spec.loader.exec_module(demo)


@pytest.fixture
def cluster(tmp_path):
    cluster = demo.Cluster(tmp_path)
    cluster.ranks = []
    yield cluster
    for rank in cluster.ranks:
        rank.kill()
    cluster.close()
    shutil.rmtree(tmp_path / "store", ignore_errors=True)


@pytest.fixture(params=["uring", "threads"])
def engine(request, monkeypatch):
    """Runs the test once on each I/O engine."""
    monkeypatch.setenv("REPRISE_IO", request.param)
    return request.param


@pytest.fixture
def start_ranks(cluster, tmp_path):
    """start_ranks(nodes, ranks_per_node, uri): ranks spread over node daemons."""

    def start(nodes, per_node=1, uri="reprise://test/job", **options):
        world = len(nodes) * per_node
        ranks = []
        for number in range(world):
            node = nodes[number // per_node]
            ranks.append(Rank(uri, number, world, socket=node.ready["socket"],
                              log=tmp_path / f"rank{number}.log", **options))
            cluster.ranks.append(ranks[-1])
        return ranks

    return start


@pytest.fixture
def cli(cluster):
    """cli("ls", "test/job") -> CompletedProcess of `reprise --store ... ls test/job`."""

    def run(*arguments):
        store = cluster.store.ready["control"]
        return subprocess.run([str(demo.BIN / "reprise"), "--store", store, *map(str, arguments)],
                              capture_output=True, text=True, timeout=120, check=False,
                              env={**os.environ, "NO_COLOR": "1"})

    return run
