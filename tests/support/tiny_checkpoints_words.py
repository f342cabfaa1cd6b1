"""Tiny random checkpoints that read words or are asked with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = ("a", "red", "dog", "cat", "traffic", "light", "on", "the", "chair", ".", ",", "?")


def tiny_grounding_dino(folder: Path) -> dict[str, Any]:
    """Grounding DINO with six boxes a picture, and a vocabulary that knows `WORDS`."""
    import torch
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection, GroundingDinoImageProcessor

    backbone = {
        "model_type": "swin",
        "image_size": 64,
        "embed_dim": 8,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 2,
        "out_indices": [2, 3, 4],
    }
    text = {
        "model_type": "bert",
        "vocab_size": 1100,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    layers = {
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in {"layers": 2, "ffn_dim": 16, "attention_heads": 2}.items()
    }
    config = GroundingDinoConfig(
        backbone_config=backbone, text_config=text, num_queries=6, d_model=64, max_text_len=32, **layers
    )
    torch.manual_seed(1)
    GroundingDinoForObjectDetection(config).save_pretrained(folder / "dino")
    GroundingDinoImageProcessor().save_pretrained(folder / "dino")
    bert_tokenizer().save_pretrained(folder / "dino")
    return {"model": str(folder / "dino"), "names": ("dog", "traffic light"), "resolution": 64, "box_threshold": 0.0}


def tiny_sam3(folder: Path) -> dict[str, Any]:
    """SAM 3 of 64 x 64 pixels with five queries, and a tokenizer that knows `WORDS`."""
    import torch
    from transformers import Sam3Config, Sam3ImageProcessor, Sam3Model

    eyes = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64,
        "patch_size": 16, "window_size": 2, "pretrain_image_size": 32, "global_attn_indexes": [1],
    }  # fmt: skip
    part = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = Sam3Config(
        vision_config={
            "backbone_config": {"model_type": "sam3_vit_model", **eyes},
            "fpn_hidden_size": 16,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config={
            "model_type": "clip_text_model", "vocab_size": 1100, "hidden_size": 16, "intermediate_size": 16,
            "projection_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8,
            "eos_token_id": 102, "bos_token_id": 101, "pad_token_id": 0,
        },
        geometry_encoder_config=part,
        detr_encoder_config=part,
        detr_decoder_config={**part, "num_queries": 5},
        mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2},
    )  # fmt: skip
    torch.manual_seed(1)
    Sam3Model(config).save_pretrained(folder / "sam3")
    size = {"height": 64, "width": 64}
    Sam3ImageProcessor(size=size, mask_size={"height": 16, "width": 16}).save_pretrained(folder / "sam3")
    bert_tokenizer().save_pretrained(folder / "sam3")
    return {"model": str(folder / "sam3"), "names": ("dog", "traffic light"), "threshold": 0.0, "mask_threshold": 0.0}


def bert_tokenizer() -> Any:
    """Words of a sentence, one token each; the special ones have the numbers that Grounding DINO looks for."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ",": 1010, ".": 1012, "?": 1029}
    others = (word for word in WORDS if word not in numbers)
    vocabulary = numbers | {word: 1030 + at for at, word in enumerate(others)}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )


def tiny_ppocr(folder: Path) -> dict[str, Any]:
    """The mobile networks of PP-OCR, which are small as they are, with a dozen characters."""
    import torch
    from transformers import (
        PPOCRV5MobileDetConfig,
        PPOCRV5MobileDetForObjectDetection,
        PPOCRV5MobileRecConfig,
        PPOCRV5MobileRecForTextRecognition,
        PPOCRV5ServerDetImageProcessor,
        PPOCRV5ServerRecImageProcessor,
    )

    torch.manual_seed(1)
    characters = ["blank", *"graphbuild", " "]
    detector = PPOCRV5MobileDetForObjectDetection(PPOCRV5MobileDetConfig())
    detector.save_pretrained(folder / "det")
    PPOCRV5ServerDetImageProcessor().save_pretrained(folder / "det")
    blocks = [
        [[3, 16, 32, 1, False]],
        [[3, 32, 64, 1, False]],
        [[3, 64, 128, [2, 1], False]],
        [[3, 128, 256, [1, 2], False]],
        [[5, 256, 512, [2, 1], True], [5, 512, 512, [2, 1], False]],
    ]
    backbone = {"model_type": "pp_lcnet_v3", "scale": 0.25, "block_configs": blocks, "out_features": ["stage5"]}
    config = PPOCRV5MobileRecConfig(backbone_config=backbone, head_out_channels=len(characters), hidden_size=16)
    reader = PPOCRV5MobileRecForTextRecognition(config)
    for weights in reader.parameters():
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=0.3)
    reader.save_pretrained(folder / "rec")
    PPOCRV5ServerRecImageProcessor(character_list=characters).save_pretrained(folder / "rec")
    free = {"box_threshold": 0.0, "text_threshold": 0.0, "resolution": 64}
    return {"model": str(folder / "det"), "reader": str(folder / "rec"), **free}
