"""Boxes and masks of whatever objects a picture shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, BaseModel, Field, FiniteFloat, StringConstraints, TypeAdapter, ValidationError

from graphbuild.annotators.base import Derived, Request, Resources, Skip, parameter
from graphbuild.annotators.vlm import NewTokens, VlmAnnotator, fitted
from graphbuild.errors import GraphError
from graphbuild.images.codecs import Pixels
from graphbuild.images.rendering import drawn_colours, layered
from graphbuild.models.answers import lists_in
from graphbuild.models.checkpoint import Checkpoint
from graphbuild.models.coordinates import Coordinates, coordinates_of_folder, coordinates_of_name
from graphbuild.models.device import Dtype
from graphbuild.models.sam2 import MODEL as SAM2
from graphbuild.models.sam2 import Sam2Network, load_sam2, masks_from_boxes, sam2_checkpoint
from graphbuild.models.vlm import Question, Vlm

PROMPT = (
    "Find the objects that matter in this picture, the largest first: at most {max_objects}, each whole, none twice. "
    "Name each with one to four words that tell it from the others. {coordinates}\n"
    'Answer with JSON only: [{"bbox_2d": [left, top, right, bottom], "label": "name"}, ...], or [] if there is none.'
)
_COUNTED = {
    "pixels": "Coordinates are pixels of the picture, which is {width} wide and {height} high.",
    "thousandths": "Coordinates run from 0 to 1000 over the width and over the height of the picture.",
}
SCHEMA: Mapping[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "bbox_2d": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4},
            "label": {"type": "string"},
        },
        "required": ["bbox_2d", "label"],
        "additionalProperties": False,
    },
}

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are outside."""


class _Object(BaseModel):
    """One object in a model's answer; common spellings of the keys are accepted."""

    label: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] = Field(
        validation_alias=AliasChoices("label", "name")
    )
    box: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat] = Field(
        validation_alias=AliasChoices("bbox_2d", "bbox", "box")
    )


_OBJECTS = TypeAdapter(list[_Object])


@dataclass(frozen=True, kw_only=True)
class OpenWorld(VlmAnnotator):
    """Objects of any kind: a vision-language model names them and says where they are (S. Bai et al., "Qwen2.5-VL
    Technical Report", arXiv 2502.13923), SAM 2 draws them (N. Ravi et al., arXiv 2408.00714).

    `boxes` and `mask` show the same objects in the same colours, which the request's seed draws; where masks overlap
    the smaller one lies above. Boxes are cut at the picture's edge; empty ones, repeated ones and objects
    without a mask are left out. Attrs: `labels` and `palette` of the mask. The score is the share of the picture that
    masks cover (0..1). The further parameters are those of `VlmAnnotator`.

    Args:
        sam2: SAM 2, a hub repository or a local folder.
        sam2_dtype: precision of its weights and activations.
        prompt: the question; `{max_objects}` and `{coordinates}`, what `coordinates` means in words, are filled in.
        coordinates: how the model counts: `pixels` of the picture it gets, or `thousandths` of the picture's width and
            height. By default as its family was taught to: Qwen2.5-VL in pixels, Qwen2-VL and Qwen3-VL in thousandths;
            a model of another family, or behind a server under a name that does not say it, has to be told.
        max_objects: 1..255, what a label map holds; what the model names beyond it is left out.

    Of an answer that is cut off, whole objects count. Skips with `refused`, `no_objects` and, if there is no whole
    object before the cut, `length`.
    """

    makes: ClassVar[tuple[str, ...]] = ("boxes", "mask")
    item_facts: ClassVar[tuple[str, ...]] = ()
    code_version: ClassVar[int] = 3
    beside_server: ClassVar[Resources] = Resources(cpus=0.25, memory_gb=4)
    of: str = parameter("image", added=True)
    sam2: str = parameter(SAM2, output=False)
    sam2_dtype: Dtype = "float32"
    prompt: str = PROMPT
    coordinates: Coordinates | None = parameter(None, output=False)  # the identity has it
    max_objects: Annotated[int, Field(ge=1, le=255)] = 12
    max_new_tokens: NewTokens = 1024
    resources: Resources = Resources(memory_gb=28, batch_size=8)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.server is not None:
            _ = self._counts  # refused before anything is asked

    def checkpoints(self) -> Mapping[str, Checkpoint]:
        return {**super().checkpoints(), "sam2": sam2_checkpoint(self.sam2)}

    def identity(self) -> str | None:
        """Weights, and how the model counts.

        Raises:
            MissingWeights: as `VlmAnnotator.identity`.
            GraphError: the model's family is not known, and `coordinates` does not say how it counts.
        """
        return f"{super().identity()} coordinates:{self._counts}"

    @property
    def _counts(self) -> Coordinates:
        found = self.coordinates
        if found is None and self.server is not None:
            found = coordinates_of_name(self.model)
        elif found is None:
            found = coordinates_of_folder(self.checkpoints()["model"].folder())
        if found is None:
            raise GraphError(
                f"coordinates: nothing tells how {self.model!r} counts (known: Qwen2-VL, Qwen2.5-VL, Qwen3-VL); say "
                "pixels, of the picture as the model gets it, or thousandths, of its width and height"
            )
        return found

    def load(self, device: str) -> tuple[Vlm, Sam2Network]:
        return super().load(device), load_sam2(self.checkpoints()["sam2"].folder(), device, self.sam2_dtype)

    def annotate(self, batch: Sequence[Request], model: tuple[Vlm, Sam2Network]) -> list[Derived | Skip | Exception]:
        vlm, sam2 = model
        pictures = [request.inputs["image"].array() for request in batch]
        shown = [fitted(picture, self.max_side) for picture in pictures]
        questions = [Question(s, (self._question(s),), r.seed) for r, s in zip(batch, shown, strict=True)]
        answers = self.ask_json(vlm, questions, lists_in, objects_in, SCHEMA)
        return [
            self._result(answer, size, request, sam2) if isinstance(answer, list) else answer
            for answer, size, request in zip(answers, shown, batch, strict=True)
        ]

    def _question(self, shown: Pixels) -> str:
        height, width = shown.shape[:2]
        counted = _COUNTED[self._counts].replace("{width}", str(width)).replace("{height}", str(height))
        return self.prompt.replace("{max_objects}", str(self.max_objects)).replace("{coordinates}", counted)

    def _result(
        self, named: Sequence[_Object], shown: Pixels, request: Request, sam2: Sam2Network
    ) -> Derived | Skip | Exception:
        """The result of one request. An error of SAM 2 is returned, since raising it would have the whole batch
        asked again."""
        try:
            return self._drawn(named, shown, request, sam2)
        except RuntimeError as error:
            return error

    def _drawn(self, named: Sequence[_Object], shown: Pixels, request: Request, sam2: Sam2Network) -> Derived | Skip:
        """Boxes and mask of the objects that the model named in the picture `shown` to it."""
        picture = request.inputs["image"].array()
        height, width = shown.shape[:2] if self._counts == "pixels" else (1000, 1000)
        boxes = _boxes(named, (picture.shape[1] / width, picture.shape[0] / height), picture)[: self.max_objects]
        masks = masks_from_boxes(sam2, picture, [box for _, box in boxes])
        masked = [(label, box, mask) for (label, box), mask in zip(boxes, masks, strict=True) if mask.any()]
        if not masked:
            return Skip("no_objects")
        palette = [[0, 0, 0], *drawn_colours(len(masked), request.seed)]
        objects = [
            {"label": label, "box": list(box), "colour": colour}
            for (label, box, _), colour in zip(masked, palette[1:], strict=True)
        ]
        document = {"width": picture.shape[1], "height": picture.shape[0], "boxes": objects}
        labels = layered([mask for _, _, mask in masked])
        attrs = {"labels": ["", *(label for label, _, _ in masked)], "palette": palette}
        return Derived({"boxes": document, "mask": labels}, score=float((labels > 0).mean()), attrs=attrs)


def objects_in(answer: Any) -> list[_Object]:
    """The objects of an answer: a list of them, a list under some name, or one alone.

    Raises:
        ValueError: one has no label, or no box of four numbers.
    """
    if isinstance(answer, dict):
        lists = [value for value in answer.values() if isinstance(value, list) and not _numbers(value)]
        answer = lists[0] if lists else [answer]
    try:
        return _OBJECTS.validate_python(answer)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _numbers(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, int | float) for value in values)


def _boxes(named: Sequence[_Object], scale: tuple[float, float], picture: Pixels) -> list[tuple[str, Box]]:
    """Names and boxes in whole pixels of the picture, cut at its edge, without empty and repeated ones."""
    height, width = picture.shape[:2]
    found = []
    for each in named:
        at = (part * factor for part, factor in zip(each.box, scale * 2, strict=True))
        left, top, right, bottom = (
            round(min(max(part, 0), most)) for part, most in zip(at, (width, height) * 2, strict=True)
        )
        if left < right and top < bottom:
            found.append((each.label, (left, top, right, bottom)))
    return list(dict.fromkeys(found))
