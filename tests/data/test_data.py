"""The loader: the same samples for any number of workers and ranks, after any resume."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from torch.utils.data import DataLoader

from graphbuild.data import GridTaskList, collate, position
from graphbuild.tasks.sampler import PathSampler
from tests.support.loading import BATCH, PATHS, facts, loader, tasks

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 7 worker")  # more than there are cores


@pytest.mark.parametrize("workers", [0, 1, 2, 7])
def test_workers_do_not_change_what_is_drawn(workers: int, sampler: PathSampler, straight: list[Any]) -> None:
    """Guards against batches that come twice, not at all or in another order with more workers."""
    assert [facts(batch) for batch in loader(tasks(sampler), workers)] == straight


def test_spawned_workers_draw_the_same(sampler: PathSampler, straight: list[Any]) -> None:
    """Guards against state that only a forked worker has."""
    spawned = loader(tasks(sampler), 1, multiprocessing_context="spawn")
    assert [facts(batch) for batch in spawned] == straight


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_out_the_same_global_batches(world: int, sampler: PathSampler, straight: list[Any]) -> None:
    """Guards against training on other data when the number of GPUs changes."""
    share = BATCH // world
    ranks = [list(tasks(sampler, rank=rank, world=world, batch=share)) for rank in range(world)]
    indices = [sample.index for step in range(10) for rank in ranks for sample in rank[step * share :][:share]]
    keys = {sample.index: sample.key for rank in ranks for sample in rank}
    assert indices == list(range(40))
    assert [keys[index] for index in indices] == [key for batch in straight for key in batch[4]]


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2), (2, 0), (2, 7)])
def test_resume_of_a_plain_loader(before: int, after: int, sampler: PathSampler, straight: list[Any]) -> None:
    """Guards against a resume that depends on how many workers there were: the position is one integer."""
    batches = iter(loader(tasks(sampler), before))
    done = [next(batches) for _ in range(3)]
    resumed = tasks(sampler)
    resumed.load_state_dict({"next": done[-1].next})
    assert [facts(batch) for batch in loader(resumed, after)] == straight[3:]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("taken", [0, 1, 5])
def test_resume_of_a_stateful_loader(workers: int, taken: int, sampler: PathSampler, straight: list[Any]) -> None:
    """Guards against torchdata resuming elsewhere than it stopped, with the same or another number of workers."""
    first = loader(tasks(sampler), workers, stateful=True)
    batches = iter(first)
    assert [facts(next(batches)) for _ in range(taken)] == straight[:taken]
    state = pickle.loads(pickle.dumps(first.state_dict()))
    second = loader(tasks(sampler), workers, stateful=True)
    second.load_state_dict(state)
    assert [facts(batch) for batch in second] == straight[taken:]
    assert position(state) == taken * BATCH
    other = tasks(sampler)
    other.load_state_dict({"next": position(state)})
    assert [facts(batch) for batch in loader(other, 1 if workers != 1 else 0)] == straight[taken:]


def test_a_position_inside_a_batch(sampler: PathSampler) -> None:
    """Guards against samples lost or repeated where samples are taken one by one."""
    first = tasks(sampler)
    drawn = iter(first)
    indices = [next(drawn).index for _ in range(6)]
    assert first.state_dict() == {"next": 6}
    second = tasks(sampler)
    second.load_state_dict(first.state_dict())
    assert indices + [sample.index for sample in second] == list(range(40))


def test_a_second_iteration_begins_at_start(sampler: PathSampler) -> None:
    """Guards against an evaluation that is empty, or shorter, the second time."""
    dataset = tasks(sampler, start=8)
    dataset.load_state_dict({"next": 20})
    assert [sample.index for sample in dataset] == list(range(20, 40))
    assert [sample.index for sample in dataset] == list(range(8, 40))


def test_the_list_holds_the_same(sampler: PathSampler, straight: list[Any]) -> None:
    """Guards against a map-style form that draws other tasks, and walks out of its range."""
    dataset = GridTaskList(sampler, 40, resolution=16)
    assert len(dataset) == 40 and [dataset[at].index for at in (0, 39, -1)] == [0, 39, 39]
    for workers in (0, 2):
        drawn = [facts(batch) for batch in loader(dataset, workers)]
        assert [batch[9:] for batch in drawn] == [batch[9:] for batch in straight]
    with pytest.raises(IndexError):
        dataset[40]


def test_what_cannot_be_shared_out_is_refused(sampler: PathSampler) -> None:
    """Guards against ranks that wait for each other for ever, and batches of mixed geometry."""
    for wrong in ({"batch": 0}, {"rank": 1}, {"threads": 0}, {"batch": 3}, {"start": 2}, {"prefetch": -1}):
        with pytest.raises(ValueError, match="allowed"):
            tasks(sampler, **wrong)
    with pytest.raises(ValueError, match="multiple of 4"):
        tasks(sampler, world=2, batch=2, stop=38)
    with pytest.raises(ValueError, match="batch_size"):
        next(iter(DataLoader(tasks(sampler), batch_size=2, collate_fn=collate)))
    single = PathSampler(sampler.graph, PATHS, seed=3)
    with pytest.raises(ValueError, match="path_repeat"):
        list(loader(tasks(single)))


def test_rank_and_world_of_a_launcher(sampler: PathSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against every process of torchrun drawing the same."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    dataset = tasks(sampler, rank=None, world=None, batch=2)
    assert [sample.index for sample in dataset][:4] == [2, 3, 6, 7]
