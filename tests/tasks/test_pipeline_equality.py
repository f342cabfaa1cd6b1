"""Cells, masks and words are those that the installed diffusers makes of a task, and its pipeline runs on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphbuild.store.graph import Graph
from graphbuild.tasks import visualcloze
from graphbuild.tasks.cells import capped_part, fit_size
from graphbuild.tasks.config import CellConfig
from graphbuild.tasks.grid import GridTask
from graphbuild.tasks.paths import Content, PathSet, TaskPath
from graphbuild.tasks.sampler import PathSampler
from graphbuild.tasks.visualcloze import generate, is_broken
from tests.support.annotators import Halves, build, complete
from tests.tasks.test_layouts import picture, task_of

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")


@st.composite
def tasks(draw: st.DrawFn, row_sizes: str = "shared", holes: int | None = 1, fit: str | None = None) -> GridTask:
    """Any L, C and shapes; degraded pictures are smaller than others, so every picture has a size of its own."""
    num_rows, num_columns = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    side = st.one_of(st.integers(1, 24), st.integers(25, 200))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shapes = [[(draw(side), draw(side)) for _ in range(num_columns)] for _ in range(num_rows)]
    if draw(st.booleans()):  # as usual: one shape a row
        shapes = [[row[0]] * num_columns for row in shapes]
    rows = [[picture(rng, *shape) for shape in row] for row in shapes]
    most = 1 if num_columns == 1 else num_columns - 1
    count = holes or draw(st.integers(1, most))
    hidden = draw(st.permutations(range(num_columns)))[: min(count, most)]
    cell_fit = fit or draw(st.sampled_from(["crop_square", "stretch_square", "aspect"]))
    squares = cell_fit != "aspect" or len(hidden) > 1 or num_columns == 1
    resolution = 16 * draw(st.integers(1, 5)) if squares else draw(st.integers(16, 80))
    content_of = draw(st.sampled_from([None, num_columns - 1]))
    options = {"cell_fit": cell_fit, "row_sizes": row_sizes, "content_of": content_of}
    return task_of(rows, tuple(sorted(hidden)), resolution, **options)


def processed(task: GridTask) -> dict[str, Any]:
    """What diffusers makes of a task's arguments."""
    from diffusers.pipelines.visualcloze.visualcloze_utils import VisualClozeProcessor

    processor = VisualClozeProcessor(resolution=task.resolution, vae_scale_factor=16)
    arguments = task.pipeline_kwargs()
    return dict(
        processor.preprocess(
            arguments["task_prompt"], arguments["content_prompt"], arguments["image"], vae_scale_factor=8
        )
    )


def spoken(made: Mapping[str, Any]) -> str:
    """The prompt that diffusers' pipeline encodes, its layout mended."""
    from diffusers import VisualClozeGenerationPipeline

    heard: list[str] = []
    embeddings = torch.zeros(1, 1, 1)
    stand_in = SimpleNamespace(
        _execution_device="cpu",
        text_encoder=None,
        text_encoder_2=None,
        transformer=SimpleNamespace(dtype=torch.float32),
        _get_clip_prompt_embeds=lambda prompt, **_: heard.extend(prompt) or embeddings,
        _get_t5_prompt_embeds=lambda prompt, **_: embeddings,
    )
    layout = ["".join(sentence) for sentence in made["layout_prompt"]]
    VisualClozeGenerationPipeline.encode_prompt(stand_in, layout, made["task_prompt"], made["content_prompt"])
    return heard[0]


def check(task: GridTask) -> None:
    made, cells = processed(task), task.cells()
    assert len(made["init_image"][0]) == len(cells)
    for row, found, masks, hidden in zip(cells, made["init_image"][0], made["mask"][0], task.hole_mask, strict=True):
        for cell, pixels, mask, hole in zip(row, found, masks, hidden, strict=True):
            assert cell.dtype == np.uint8 and cell.flags.writeable
            expected = 2.0 * torch.from_numpy(cell.astype(np.float32) / 255.0).permute(2, 0, 1)[None] - 1.0
            assert torch.equal(pixels, expected), (pixels.shape, cell.shape)
            assert torch.equal(mask, torch.full((1, 1, *cell.shape[:2]), int(hole)))
    assert made["target_position"][0] == [int(hole) for hole in task.hole_mask[-1]]
    assert "".join(made["layout_prompt"][0]) == task.evaluation.layout
    assert spoken(made) == task.evaluation.text


@settings(max_examples=150, deadline=None)
@given(tasks())
def test_cells_masks_and_words_are_diffusers_own(task: GridTask) -> None:
    """One hole, any shape: what is trained on is what is sampled from, in every bit."""
    check(task)


@pytest.fixture(scope="module")
def graph(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Photographs of many shapes, half of them with a caption."""
    folder = Path(shutil.copytree(photos, tmp_path_factory.mktemp("equal") / "photos"))
    for file in sorted(folder.iterdir())[::2]:
        file.with_suffix(".txt").write_text(f"This is {file.stem}.")
    complete(build(folder, folder.parent / "g", ["canny", Halves(), "source_caption"]))
    return Graph.open(folder.parent / "g")


@pytest.mark.parametrize("fit", ["crop_square", "stretch_square", "aspect"])
def test_tasks_of_a_graph(graph: Graph, fit: Any) -> None:
    """What a sampler draws, degraded and turned cells included: every L, C and mask."""
    cells = ("canny", "rotate_90", "gaussian_noise", "foreground", "image")
    caption = Content(source="caption", of="image")
    some = [cells[-length:] for length in (2, 3, 4)]
    paths = [TaskPath(name=f"l{len(c)}", cells=c, targets=(len(c) - 1,), content=caption) for c in some]
    paths += [TaskPath(name="joint", cells=cells[-4:], targets=(2, 3), content=caption)]
    paths += [TaskPath(name="edges", cells=("image", "canny"), targets=(1,), content=caption)]
    sampler = PathSampler(graph, PathSet(name="equal", paths=tuple(paths)))
    seen = set()
    for index in range(60):
        task = sampler.task(sampler.walk(index), 64, cells=CellConfig(cell_fit=fit))
        check(task)
        seen.add((len(task.walk.rows), len(task.walk.kinds)))
    assert seen == {(rows, columns) for rows in (1, 2, 3) for columns in (2, 3, 4)}


@settings(max_examples=60, deadline=None)
@given(tasks(row_sizes="own", fit="aspect"))
def test_rows_of_their_own_sizes(task: GridTask) -> None:
    """Under `own`, each row is sized by its first given picture, as in the pipeline."""
    check(task)
    for nodes, mask, cells in zip(task.rows, task.hole_mask, task.cells(), strict=True):
        shapes = [node.array().shape[1::-1] for node, hole in zip(nodes, mask, strict=True) if not hole]
        sizes = [fit_size(capped_part(shape), task.resolution) for shape in shapes]
        assert {cell.shape[1::-1] for cell in cells} == {(sizes or [fit_size((1, 1), task.resolution)])[0]}


@settings(max_examples=60, deadline=None)
@given(tasks(holes=None))
def test_several_holes(task: GridTask) -> None:
    """Several holes are squares under every switch: elsewhere the pipeline swaps width and height."""
    check(task)
    if len(task.holes) > 1:
        assert {cell.shape for row in task.cells() for cell in row} == {(task.resolution, task.resolution, 3)}


@settings(max_examples=80, deadline=None)
@given(tasks(fit="aspect"))
def test_shared_rows_have_the_size_of_the_query(task: GridTask) -> None:
    """One size a grid, or one canvas and one batch cannot hold it; its sides fit latents, its area the budget."""
    (shape,) = {cell.shape for row in task.cells() for cell in row}
    assert shape[0] % 16 == 0 == shape[1] % 16
    given_pictures = [node.array() for node, hole in zip(task.rows[-1], task.hole_mask[-1], strict=True) if not hole]
    if given_pictures:
        height, width = given_pictures[0].shape[:2]
        assert shape[1::-1] == fit_size(capped_part((width, height)), task.resolution)


def test_context_rows_show_their_middle() -> None:
    """Under `shared`, a context row of another shape is cut around its middle, all its pictures alike."""
    tall = np.zeros((160, 40, 3), np.uint8)
    tall[60:100] = 200
    wide = np.full((60, 80, 3), 7, np.uint8)
    task = task_of([[tall, tall[::2, ::2]], [wide, wide]], (1,), 64, cell_fit="aspect")
    check(task)
    assert all((cell[cell.shape[0] // 2 - 8 : cell.shape[0] // 2 + 8] > 190).all() for cell in task.cells()[0])
    one, other = (cell.astype(int) for cell in task.cells()[0])
    assert np.abs(one - other).mean() < 8


def test_content_of_another_column_is_not_said_of_the_last() -> None:
    """The pipeline's own sentence would lie about it: ours goes in with the task, and the prompt stays the same."""
    rng = np.random.default_rng(0)
    rows = [[picture(rng, 40, 40) for _ in range(3)]]
    task = task_of(rows, (1, 2), 32, targets=(1, 2), content_of=1)
    check(task)
    assert task.pipeline_kwargs()["content_prompt"] is None
    assert "[IMAGE2] of the last row shows: A corgi" in task.evaluation.text


@pytest.mark.parametrize(
    ("holes", "resolution", "options", "message"),
    [
        ((1,), 40, {}, "resolution: 40; allowed for the pipeline: multiples of 16"),
        ((0, 1), 40, {"cell_fit": "aspect"}, "resolution: 40"),
        ((0, 1), 32, {}, "every picture of the query row is a hole"),
        ((1,), 32, {"decode": "fast"}, "decode: 'fast'; allowed for the pipeline: exact"),
    ],
)
def test_what_the_pipeline_cannot_make_is_refused(
    holes: tuple[int, ...], resolution: int, options: dict[str, str], message: str
) -> None:
    """Silently other cells at inference would be worse than an error."""
    rng = np.random.default_rng(0)
    task = task_of([[picture(rng, 50, 40)] * 2], holes, resolution, targets=(0, 1), **options)
    with pytest.raises(ValueError, match=message):
        task.pipeline_kwargs()
    assert len(task.cells()[0]) == 2


# ---- the pipeline itself -----------------------------------------------------------------------------------------


def tokenizer(length: int) -> Any:
    """One token a character, so that different words are different tokens; needs no files."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = [chr(code) for code in range(32, 127)]
    vocabulary = {token: at for at, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *characters])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=length,
    )  # fmt: skip


def components() -> dict[str, Any]:
    """Random weights, the geometry of FLUX.1-Fill: latents of 1/8, 2 x 2 of them a token, 8 x 8 mask channels."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    torch.manual_seed(0)
    torch.set_num_threads(1)
    clip = CLIPTextConfig(
        hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, vocab_size=1000,
        projection_dim=32, bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    t5 = T5Config(d_model=32, d_ff=37, d_kv=8, num_heads=4, num_layers=2, vocab_size=1000)
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": AutoencoderKL(
            sample_size=32, block_out_channels=(4,) * 4, layers_per_block=1, latent_channels=1, norm_num_groups=1,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5035,
        ),
        "text_encoder": CLIPTextModel(clip).eval(),
        "tokenizer": tokenizer(77),
        "text_encoder_2": T5EncoderModel(t5).eval(),
        "tokenizer_2": tokenizer(512),
        "transformer": FluxTransformer2DModel(
            patch_size=1, in_channels=4 + 4 + 256, out_channels=4, num_layers=1, num_single_layers=1,
            attention_head_dim=6, num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
            axes_dims_rope=(2, 2, 2),
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def pipeline() -> Callable[[int], Any]:
    """resolution -> a tiny pipeline."""
    from diffusers import VisualClozePipeline

    made = components()

    def at(resolution: int) -> Any:
        pipe = VisualClozePipeline(**made, resolution=resolution)
        for stage in (pipe, pipe.generation_pipe, pipe.upsampling_pipe):
            stage.set_progress_bar_config(disable=True)
        return pipe

    return at


FEW = {"num_inference_steps": 2, "guidance_scale": 5.0, "max_sequence_length": 512}


@pytest.mark.parametrize("holes", [(1,), (0,), (1, 2)])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_the_pipeline_runs_on_a_task(pipeline: Callable[[int], Any], holes: tuple[int, ...], num_rows: int) -> None:
    """End to end, with the words that the trainer sees and pictures of the cells' sizes."""
    rng = np.random.default_rng(0)
    rows = [[picture(rng, 60, 40 + 9 * row) for _ in range(max(holes) + 1)] for row in range(num_rows)]
    task = task_of(rows, holes, 48, cell_fit="aspect", content_of=max(holes), targets=holes)
    pipe, heard = pipeline(48), []
    encode = pipe.generation_pipe._get_t5_prompt_embeds
    pipe.generation_pipe._get_t5_prompt_embeds = lambda prompt, **options: (
        heard.append(prompt) or encode(prompt, **options)
    )
    arguments, options = task.pipeline_kwargs(), {"upsampling_strength": 0, **FEW}
    made = [generate(pipe, arguments, generator=torch.Generator().manual_seed(seed), **options) for seed in (0, 0, 1)]
    sizes = [task.cell(-1, hole).shape[1::-1] for hole in holes]
    assert [image.size for image in made[0]] == sizes
    assert made[0] == made[1] and made[0] != made[2]
    assert heard == [[task.evaluation.text]] * 3


def test_the_pipeline_enlarges(pipeline: Callable[[int], Any]) -> None:
    rng = np.random.default_rng(0)
    task = task_of([[picture(rng, 50, 50) for _ in range(2)]], (1,), 32)
    options = {"upsampling_width": 64, "upsampling_height": 64, **FEW}
    (image,) = generate(pipeline(32), task.pipeline_kwargs(), generator=torch.Generator().manual_seed(0), **options)
    assert image.size == (64, 64)


# ---- its bugs: each test says whether the installed diffusers still has one ---------------------------------------


def test_bug_layout_prompt_is_a_tuple(pipeline: Callable[[int], Any]) -> None:
    pipe = pipeline(32)
    processor = pipe.generation_pipe.image_processor
    assert isinstance(processor.get_layout_prompt((2, 3)), tuple) == is_broken()
    for _ in range(2):
        visualcloze.mend(pipe)
        assert processor.get_layout_prompt((2, 3)).startswith("A grid layout with 2 rows and 3 columns")
    assert visualcloze.mend(pipe.generation_pipe) is pipe.generation_pipe


def test_bug_no_generator(pipeline: Callable[[int], Any]) -> None:
    rng = np.random.default_rng(0)
    arguments = task_of([[picture(rng, 50, 50) for _ in range(2)]], (1,), 32).pipeline_kwargs()
    assert is_broken(), "see whether it is fixed, then raise LAST_BROKEN or let `generate` do without a generator"
    with pytest.raises(TypeError, match="not subscriptable"):
        pipeline(32)(**arguments, **FEW)
    with pytest.raises(ValueError, match=r"generator: None; allowed: a torch.Generator"):
        generate(pipeline(32), arguments, generator=None)


def test_bug_several_holes_swap_width_and_height() -> None:
    from diffusers.pipelines.visualcloze.visualcloze_utils import VisualClozeProcessor
    from PIL import Image

    processor = VisualClozeProcessor(resolution=64, vae_scale_factor=16)
    row = [Image.new("RGB", (96, 48)), None, None]
    sizes = processor.preprocess("t", "c", [row], vae_scale_factor=8)["image_size"][0][0]
    width, height = fit_size((96, 48), 64)
    assert (sizes[0] != [height, width]) == is_broken()


def test_bug_output_in_an_output(pipeline: Callable[[int], Any]) -> None:
    rng = np.random.default_rng(0)
    arguments = task_of([[picture(rng, 50, 50) for _ in range(2)]], (1,), 32).pipeline_kwargs()
    options = {"generator": torch.Generator().manual_seed(0), "upsampling_strength": 0, **FEW}
    (images,) = pipeline(32)(**arguments, return_dict=False, **options)
    assert hasattr(images, "images") == is_broken()


def test_the_gate_is_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, broken in {"0.35.0": True, "0.42.1": True, "0.42.2": False, "0.43.0.dev0": False, "1.0": False}.items():
        monkeypatch.setattr(visualcloze, "version", lambda package, name=name: name)
        assert is_broken() == broken, name
