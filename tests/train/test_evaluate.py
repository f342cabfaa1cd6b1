"""`graphbuild-train evaluate`, from a graph to a table: stopped, shared, misled, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import graphbuild.cli
from graphbuild.store.graph import Graph
from graphbuild.tasks.sampler import PathSampler
from graphbuild.tasks.walk import Frozen
from graphbuild_train import cli_evaluate
from graphbuild_train.evaluation.figures import Figure, interval, interval_of_sets
from graphbuild_train.evaluation.judge import Judge
from graphbuild_train.evaluation.methods import BASELINES, MeanPicture, WrongRows, copied, methods
from graphbuild_train.evaluation.peers import sentence
from graphbuild_train.evaluation.run import Evaluation
from graphbuild_train.evaluation.tables import report
from graphbuild_train.evaluation.walks import Questions, questions, shortened
from graphbuild_train.metrics.control import Controls
from graphbuild_train.metrics.frechet import frechet
from graphbuild_train.sampling import LoraSampler
from tests.support.tiny_networks import save_omnigen, save_vgg
from tests.support.training import NEVER, Ground

HELD_OUT = [{"given": ["image"], "holes": ["canny"]}]


@pytest.fixture(scope="module")
def lora(ground: Ground) -> Path:
    sampler = {"split": "train", "validation": 0.5, "rows": [0.5, 0.5], "held_out": HELD_OUT}
    rate = {"learning_rate": 0.1}
    watch = {**NEVER, "sample_steps": 1}
    ground.trained("lora", steps=2, optimiser=rate, sampler=sampler, watch=watch).export()
    return ground.folder / "lora"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli_evaluate.app, ["evaluate", *map(str, arguments)])


def done(*arguments: object) -> Path:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return Path(result.stdout.strip()).parent


def figures(out: Path) -> dict[tuple[str, str, int, str], float]:
    found = json.loads((out / "report.json").read_text())["figures"]
    return {(line["task"], line["method"], line["context"], line["metric"]): line["value"] for line in found}


@pytest.fixture(scope="module")
def whole(ground: Ground, lora: Path) -> Path:
    """An evaluation in one go."""
    return done(lora, "--graph", ground.graph, "--count", 2, "--out", ground.folder / "whole")


def test_a_lora_is_judged_per_task_and_context_beside_its_baselines(ground: Ground, whole: Path) -> None:
    found = figures(whole)
    assert {task for task, *_ in found} == {"canny-to-image", "image-to-canny", "noise-to-image"}
    settings = {(method, context) for task, method, context, _ in found if task == "canny-to-image"}
    assert settings == {
        ("copy", 0), ("mean", 0), *((name, rows) for name in ("base", "lora") for rows in (0, 1, 2)),
        ("wrong_rows", 1), ("wrong_rows", 2),
    }  # fmt: skip
    metrics = {(task, metric) for task, _, _, metric in found}
    assert ("canny-to-image", "f1") in metrics and ("noise-to-image", "rmse") in metrics
    assert ("image-to-canny", "ssim") not in metrics  # edges are no picture
    changed = [rows for rows in (0, 1, 2) if found["canny-to-image", "lora", rows, "psnr"]
               != found["canny-to-image", "base", rows, "psnr"]]  # fmt: skip
    assert changed == [0, 1, 2]  # the base is one without the LoRA
    assert found["noise-to-image", "copy", 0, "psnr"] > found["noise-to-image", "mean", 0, "psnr"]
    text = (whole / "report.md").read_text()
    assert "| Condition | Method | Context | F1 ↑ | RMSE ↓ | SSIM ↑ | PSNR ↑ | Pictures |" in text
    assert "| image-to-canny (unseen) | LoRA | 2 |" in text and "| canny-to-image | mean picture |  |" in text
    for missing in ("MUSIQ", "MAN-IQA", "fid", "graphbuild models fetch openai/clip-vit-large-patch14"):
        assert missing in text, missing


def test_another_model_is_judged_beside_it(ground: Ground) -> None:
    """Guards against a peer that is not told what is wanted, or from which pictures; and against one that is loaded
    though nobody asked for it."""
    weights = save_omnigen(ground.folder / "omnigen")
    config = json.dumps({"split": "train", "validation": 0.5})
    settings = ["--count", 1, "--baseline", "omnigen", "--set", f"sampler={config}", "--set", "watch.sample_steps=1",
                "--set", "resolution=32", "--set", f"paths={ground.folder / 'tasks.yaml'}"]  # fmt: skip
    asked = ["--graph", ground.graph, *settings, "--out", ground.folder / "peer"]
    found = figures(done(*asked, "--weights", f"omnigen={weights}"))
    assert {(method, context) for _, method, context, _ in found} == {("omnigen", 0)}
    assert "| OmniGen |" in (ground.folder / "peer" / "report.md").read_text()
    refused = invoke(*asked[:-1], ground.folder / "none")
    assert refused.exit_code == 2 and "graphbuild models fetch Shitao/OmniGen-v1-diffusers" in refused.output

    sampler = PathSampler(Graph.open(ground.graph), ground.folder / "tasks.yaml")
    told = sentence(sampler.task(sampler.walk(0, path="canny-to-image"), 32))
    assert told.startswith("Make ") and told.count("<img><|image_1|></img>") == 1


def test_the_page_shows_every_picture_beside_the_truth(whole: Path) -> None:
    page = (whole / "report.html").read_text()
    shown = [part.partition('"')[0] for part in page.split('src="')[1:]]
    assert len(shown) == 3 * 2 * (2 + 10) and page.count('<figure class="truth">') == 6
    for file in shown:
        with Image.open(whole / file) as picture:
            assert picture.size == (32, 32)


def test_killed_in_the_middle_it_ends_with_the_same_figures(ground: Ground, lora: Path, whole: Path) -> None:
    out = ground.folder / "killed"
    arguments = ["evaluate", str(lora), "--graph", str(ground.graph), "--count", "2", "--out", str(out)]
    code = (
        "import os, signal, sys, torch; torch.set_num_threads(1)\n"
        "from graphbuild_train.evaluation import run\n"
        "save, made = run._save, []\n"
        "def dying(file, picture):\n"
        "    save(file, picture); made.append(file)\n"
        "    len(made) < 40 or os.kill(os.getpid(), signal.SIGKILL)\n"
        "run._save = dying\n"
        "from graphbuild_train.cli_evaluate import app\n"
        "app(sys.argv[1:])\n"
    )
    child = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=False, env=os.environ)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    before = {file: file.stat().st_mtime_ns for file in (out / "pictures").rglob("*.png")}
    assert len(before) == 40 and not (out / "report.json").exists()
    assert (done(*arguments[1:]) / "report.json").read_bytes() == (whole / "report.json").read_bytes()
    assert all(file.stat().st_mtime_ns == made for file, made in before.items())  # none was made twice
    assert not [*out.rglob(".*")]
    pictures = sorted(file.relative_to(out) for file in (out / "pictures").rglob("*.png"))
    assert all((out / name).read_bytes() == (whole / name).read_bytes() for name in pictures)


def test_figures_do_not_depend_on_processes_or_order(ground: Ground, lora: Path, whole: Path, asked: Questions) -> None:
    """Two processes share the walks; here the second comes first, and one of them has the walks in another order."""
    backwards = Questions(asked.sampler, [*asked.walks[::-1]], asked.config)
    for rank, order in ((1, asked), (0, asked), (0, backwards)):
        evaluation = Evaluation(
            ground.folder / "shared", order, methods(order, LoraSampler(lora), BASELINES, 0), judge=Judge(),
            controls=Controls(Graph.open(ground.graph)), contexts=(0, 1, 2), share=(rank, 2),
        )  # fmt: skip
        evaluation.run(lambda _: None)
    told = json.loads((whole / "report.json").read_text())["figures"]
    assert [asdict(figure) for figure in evaluation.figures()] == told


def test_walks_of_a_file_are_drawn_at_their_snapshot(ground: Ground, lora: Path, whole: Path) -> None:
    frozen = Frozen.read(whole / "walks.jsonl")
    fewer = frozen._replace(records=frozen.records[::-1][:3])
    fewer.write(ground.folder / "fewer.jsonl")
    options = ("--walks", ground.folder / "fewer.jsonl", "--context", "1", "--baseline", "none", "--metrics", "psnr")
    out = done(lora, "--graph", ground.graph, *options, "--out", ground.folder / "fewer")
    made = sorted(file.relative_to(out) for file in (out / "pictures/lora").rglob("*.png"))
    assert [file.name for file in made] == ["0000003-1.png", "0000004-1.png", "0000005-1.png"]
    assert all((out / file).read_bytes() == (whole / file).read_bytes() for file in made)
    assert {metric for *_, metric in figures(out)} == {"psnr"}


def test_baselines_need_no_lora_and_other_metrics_no_new_pictures(ground: Ground, tmp_path: Path) -> None:
    tasks = (
        "--set",
        f"paths={ground.folder / 'tasks.yaml'}",
        "--set",
        "resolution=32",
        "--set",
        "sampler.validation=0.5",
    )
    options = ("--graph", ground.graph, *tasks, "--baseline", "copy", "--count", 1, "--out", tmp_path / "out")
    out = done(*options, "--metrics", "ssim")
    pictures = {file: file.stat().st_mtime_ns for file in out.rglob("*.png")}
    assert {metric for *_, metric in figures(out)} == {"ssim"}
    done(*options, "--metrics", "lpips,psnr", "--weights", f"vgg={save_vgg(tmp_path / 'vgg')}")
    assert {metric for *_, metric in figures(out)} == {"lpips", "psnr"}
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.png")} == pictures
    refused = invoke(*options, "--seed", 5)
    assert refused.exit_code == 2 and "holds an evaluation of something else" in refused.output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--baseline", "best"], "baseline: 'best'; allowed: copy, mean, wrong_rows, base, omnigen, none"),
        (["--baseline", "base"], "baseline: 'base' needs a LoRA; allowed without one: copy, mean"),
        (["--baseline", "none"], "neither a LoRA nor a baseline"),
        (["--context", "-1"], "--context -1: allowed: numbers from 0"),
        (["--metrics", "f2"], "metrics: 'f2'; allowed: f1, rmse"),
        (["--weights", "clip"], "--weights clip: allowed: name=folder"),
        (["--weights", "clap=x"], "weights: 'clap'; allowed: clip"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    ground: Ground, tmp_path: Path, options: list[str], told: str
) -> None:
    result = invoke("--graph", ground.graph, *options, "--out", tmp_path / "out")
    assert result.exit_code == 2 and told in " ".join(result.output.split()), result.output
    assert not (tmp_path / "out").exists()


# ---- walks -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(ground: Ground, lora: Path, whole: Path) -> Questions:
    listed = PathSampler(Graph.open(ground.graph), str(ground.folder / "tasks.yaml"), on_missing="drop").listed
    config = ground.config(sampler={"split": "train", "validation": 0.5, "held_out": HELD_OUT})
    return questions(str(ground.graph), listed, config, whole / "walks.jsonl")


def test_walks_are_of_items_that_were_not_trained_on(asked: Questions) -> None:
    assert asked.trained is not None
    train = {row for walk in asked.trained.walks(0, 50) for row in walk.rows}
    assert asked.walks and not train & {row for walk in asked.walks for row in walk.rows}
    assert {walk.path.name: asked.unseen(walk) for walk in asked.walks} == {
        "canny-to-image": False, "image-to-canny": True, "noise-to-image": False,
    }  # fmt: skip


def test_fewer_rows_keep_the_query(asked: Questions) -> None:
    walk = asked.walks[0]
    shorter = shortened(walk, 1)
    assert shorter is not None and shorter.rows == walk.rows[-1:] and shortened(walk, 4) is None
    one, three = asked.task(walk, 0), asked.task(walk, 2)
    assert one is not None and three is not None and (len(one.rows), len(three.rows)) == (1, 3)
    assert np.array_equal(one.cell(-1, 0), three.cell(-1, 0))


def test_baselines_are_what_they_are_called(asked: Questions) -> None:
    walk = asked.walks[0]
    task = asked.task(walk, 2)
    assert task is not None
    (copy,) = copied(task, walk)
    assert np.array_equal(copy, task.cell(-1, 1 - task.holes[0]))
    (mean,) = MeanPicture(asked)(task, walk)
    assert isinstance(mean, np.ndarray) and mean.std() < task.cell(-1, task.holes[0]).std() and mean.any()
    misled: Any = WrongRows(asked, lambda task, walk: [task])  # type: ignore[arg-type]
    (other,) = misled(task, walk)
    assert [node.item_ix for node in other.rows[-1]] == [node.item_ix for node in task.rows[-1]]
    kinds = [[node.kind for node in row] for row in other.rows]
    assert kinds[-1] == [kind.name for kind in task.kinds] and kinds[0] == kinds[1] != kinds[-1]


def test_a_fixed_set_has_as_many_walks_of_every_path(ground: Ground, tmp_path: Path) -> None:
    file, paths = tmp_path / "fixed.jsonl", str(ground.folder / "tasks.yaml")
    (half := tmp_path / "half.yaml").write_text("{split: validation, validation: 0.5}")
    command = ["sample", str(ground.graph), "--paths", paths, "--sampler", str(half), "--frozen", str(file),
               "--count", "4", "--per-path"]  # fmt: skip
    result = CliRunner().invoke(graphbuild.cli.app, command)
    assert result.exit_code == 0 and result.stdout.strip() == str(file), result.output
    records = Frozen.read(file).records
    names = ("canny-to-image", "image-to-canny", "noise-to-image")
    assert [record["path"] for record in records] == [name for name in names for _ in range(4)]
    assert [record["index"] for record in records] == [*range(12)]
    assert Graph.open(ground.graph, snapshot=Frozen.read(file).header["snapshot"]).num_items == 18
    refused = CliRunner().invoke(graphbuild.cli.app, [*command[:-5], "--per-path"])
    assert refused.exit_code == 2 and "only with --frozen FILE" in refused.output


# ---- figures -----------------------------------------------------------------------------------------------------


def test_intervals_have_the_known_width() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    mean, low, high = interval([*values])
    assert mean == pytest.approx(values.mean()) and low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert interval([0.5] * 9) == (0.5, 0.5, 0.5) and interval([2.0]) == (2, 2, 2)


def test_an_interval_of_sets_holds_its_value() -> None:
    draws = np.random.default_rng(0)
    made, truth = draws.normal(0.5, 1, (60, 8)), draws.normal(0, 1, (60, 8))
    value, low, high = interval_of_sets(frechet, made, truth)
    assert low < value < high and value == frechet(made, truth)
    assert interval_of_sets(frechet, truth, truth)[:2] == pytest.approx((0, 0), abs=1e-9)


def test_tables_are_laid_out_as_the_paper_s() -> None:
    def figure(metric: str, table: str) -> Figure:
        return Figure(task="t", table=table, unseen=False, method="lora", context=1, metric=metric, value=35.036,
                      low=34.0, high=36.0, count=7)  # fmt: skip

    text = report([figure(name, table) for table, names in (
        ("subject", ("clip_t", "clip_i", "dino", "psnr")), ("style", ("style", "text")),
        ("generation", ("clip_score", "ssim", "fid", "rmse", "f1")),
    ) for name in names], {})  # fmt: skip
    heads = [line for line in text.splitlines() if line.startswith("| Condition")]
    assert heads == [
        "| Condition | Method | Context | F1 ↑ | RMSE ↓ | FID ↓ | SSIM ↑ | CLIP-Score ↑ | Pictures |",
        "| Condition | Method | Context | DINOv2 ↑ | CLIP-I ↑ | CLIP-T ↑ | PSNR ↑ | Pictures |",
        "| Condition | Method | Context | text ↑ | image ↑ | Pictures |",
    ]
    assert "| t | LoRA | 1 | 35.04 [34.00, 36.00] |" in text
