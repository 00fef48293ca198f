"""The pass and the merge on a local Ray cluster: the same bytes, also when a worker dies."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

import awd_core as awd
from awd_core.checkpoints.weights import SINGLE
from awd_core.cluster import ray_cluster
from awd_core.parallel import Engine
from awd_core.progress import Progress
from tests.helpers import family, tree

pytestmark = [
    pytest.mark.slow,
    # Ray closes its pipes when its processes are gone, not before.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster whose head does no work, with two workers of one processor each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def engine(nodes: Any) -> Iterator[Engine]:
    with ray_cluster(nodes.address) as engine:
        yield engine


def test_study_has_the_same_bytes(tmp_path: Path, engine: Engine) -> None:
    one = family(tmp_path, 3)
    here = one.study(out=tmp_path / "here", spectral=True)
    there = one.study(out=tmp_path / "there", spectral=True, engine=engine)
    assert there.digest == here.digest
    assert tree(tmp_path / "there") == tree(tmp_path / "here")


class Killer:
    """Kills one of the two workers in the middle, and puts another in its place."""

    AFTER = 2

    def __init__(self, nodes: Any) -> None:
        self.nodes, self.steps = nodes, 0

    def __call__(self, step: Progress) -> None:
        self.steps += 1
        if self.steps == self.AFTER:
            # Not the one through which this process, as a head would, talks to the cluster.
            own = ray.get_runtime_context().get_node_id()
            victim = next(node for node in self.nodes.worker_nodes if node.node_id != own)
            self.nodes.remove_node(victim, allow_graceful=False)
            assert not victim.any_processes_alive()
            self.nodes.add_node(num_cpus=1)


def test_study_has_the_same_bytes_when_a_worker_dies(tmp_path: Path, nodes: Any) -> None:
    one = family(tmp_path, 3)
    one.study(out=tmp_path / "here")
    with ray_cluster(nodes.address) as engine:
        killer = Killer(nodes)
        one.study(out=tmp_path / "there", engine=engine, progress=killer)
    assert killer.steps > Killer.AFTER
    assert tree(tmp_path / "there") == tree(tmp_path / "here")


def test_error_of_a_task_is_the_error_it_would_be_here(tmp_path: Path, engine: Engine) -> None:
    one = family(tmp_path, 2)
    experts = one.experts
    weights = experts[1].path / SINGLE
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(awd.AwdError, match="cannot be read to the end") as caught:
        awd.collect(one.base, experts, tmp_path / "study", engine=engine)
    assert caught.value.remedy
    assert not (tmp_path / "study").exists()


def test_missing_cluster_is_named() -> None:
    with pytest.raises(awd.AwdError, match=r"127\.0\.0\.1:1"), ray_cluster("127.0.0.1:1"):
        pass


MERGES: dict[str, dict[str, Any]] = {
    "one kernel": {"coefficient": 0.4},
    "AWD by rows": {"disentangle": {"granularity": "row", "alpha_relative": 0.1}},
    "a survey of the whole model": {"method": "ties"},
}


@pytest.mark.parametrize("fields", MERGES.values(), ids=MERGES)
def test_merge_has_the_same_bytes(tmp_path: Path, engine: Engine, fields: dict[str, Any]) -> None:
    one = family(tmp_path, 3)
    recipe = one.recipe(**fields)
    awd.merge(recipe, tmp_path / "here", device="cpu")
    awd.merge(recipe, tmp_path / "there", device="cpu", engine=engine)
    assert tree(tmp_path / "there") == tree(tmp_path / "here")


def test_merge_has_the_same_bytes_when_a_worker_dies(tmp_path: Path, nodes: Any) -> None:
    one = family(tmp_path, 3)
    recipe = one.recipe(method="ties")
    awd.merge(recipe, tmp_path / "here", device="cpu")
    with ray_cluster(nodes.address) as engine:
        killer = Killer(nodes)
        awd.merge(recipe, tmp_path / "there", device="cpu", engine=engine, progress=killer)
    assert killer.steps > Killer.AFTER
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
