"""Several processes make the steps of one: the same samples, noise, gradients; and a run may change their number."""

from __future__ import annotations

from typing import Any

import pytest

from graphbuild.errors import GraphError
from tests.support.numerics import assert_close
from tests.support.training import (
    ROUNDINGS,
    Ground,
    assert_same_steps,
    log_samples,
    recorded,
    seen,
    uneven_passes,
)

TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
OPTIONS: dict[str, Any] = {
    "batch": 8,
    "micro_batch": 2,
    "optimiser": {"learning_rate": 1e-3, "ema": 0.9, "clip": 0.005},
}


@pytest.mark.numeric
def test_two_processes_equal_one_and_hand_over_to_it(ground: Ground) -> None:
    """Guards against the same noise on every process, a gradient that grows with their number, a norm or an average
    that each computes for itself, and a resume that skips or repeats samples when their number changes."""
    stop = log_samples(ground.folder / "one.log")
    one = ground.trained("one", **OPTIONS).out
    stop()
    done = ground.launch("two", *TWO, **OPTIONS)
    two = ground.folder / "two"
    assert done.returncode == 0, done.stderr
    assert (two / "pytorch_lora_weights.safetensors").exists()
    with uneven_passes():
        uneven = ground.trained("uneven", **OPTIONS).out
    assert_same_steps(two, one, uneven)
    for name in ("loss", "norm"):
        wrong = recorded(uneven, name)
        assert_close(recorded(two, name), recorded(one, name), terms=ROUNDINGS, mutant=wrong)
    assert min(recorded(one, "norm")) > 0.005  # else nothing was clipped
    order, shared = seen(ground.folder / "one.log"), seen(ground.folder / "two.log")
    assert sorted(shared) == order and len({index for _, index in order}) == 5 * 8

    longer = {**OPTIONS, "steps": 8}
    stop = log_samples(ground.folder / "two.log")
    assert ground.trained("two", **longer).restored is not None
    ground.trained("one", **longer)
    stop()
    assert [index for _, index in seen(ground.folder / "two.log")[40:]] == [*range(40, 64)] * 2
    assert_same_steps(two, one, uneven)


@pytest.mark.numeric
def test_pissa_in_two_processes_equals_one_and_is_resumed(ground: Ground) -> None:
    """Guards against processes that take other components out of their weights, at the start or when a run goes on:
    each would train another model, and average its gradients with the other's."""
    options = {**OPTIONS, "steps": 3, "lora": {"layers": "attn_ff", "rank": 4, "alpha": 6, "init": "pissa"}}
    one, two = ground.trained("pissa-one", **options).out, ground.folder / "pissa-two"
    with uneven_passes():
        uneven = ground.trained("pissa-uneven", **options).out
    for steps in (3, 6):
        done = ground.launch("pissa-two", *TWO, **{**options, "steps": steps})
        assert done.returncode == 0, done.stderr
        ground.trained("pissa-one", **{**options, "steps": steps})
        assert len(recorded(two, "loss")) == steps
        assert_same_steps(two, one, uneven)


def test_a_batch_that_cannot_be_shared_out_is_refused(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a batch that is silently smaller than what was asked for."""
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 3)
    with pytest.raises(GraphError, match="batch: 8; allowed for 3 processes with micro_batch 2: a multiple of 6"):
        ground.trainer("odd", **OPTIONS)


def test_one_process_speaks_and_writes(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against every step in the journal as often as there are processes."""
    monkeypatch.setattr("accelerate.Accelerator.is_main_process", False)
    trainer = ground.trained("second", steps=1)
    assert trainer.journal.console.quiet and not trainer.out.exists()
