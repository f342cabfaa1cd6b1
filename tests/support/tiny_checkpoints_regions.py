"""Checkpoints of a few hundred kilobytes with random weights, shaped like the published ones, for `vitpose`, `sam2`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def tiny_sam2(folder: Path) -> dict[str, Any]:
    """SAM 2 at 64 x 64 pixels, saved like the published ones: as the video model, with the files of its processor."""
    import torch
    from transformers import Sam2ImageProcessor, Sam2VideoConfig, Sam2VideoModel

    width, side = 16, 64
    stages = {"embed_dim_per_stage": [8, 16, 24, 32], "num_attention_heads_per_stage": [1, 1, 2, 2]}
    backbone = {
        **stages,
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [side, side],
        "blocks_per_stage": [1, 1, 2, 1],
        "global_attention_blocks": [3],
        "window_size_per_stage": [4, 4, 4, 2],
        "window_positional_embedding_background_size": [4, 4],
    }
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": backbone,
        "backbone_channel_list": [32, 24, 16, 8],
        "backbone_feature_sizes": [[side // 4, side // 4], [side // 8, side // 8], [side // 16, side // 16]],
        "fpn_hidden_size": width,
    }
    prompts = {"hidden_size": width, "image_size": side, "patch_size": 16}
    decoder = {"hidden_size": width, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    config = Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config=prompts,
        mask_decoder_config=decoder,
        image_size=side,
        memory_attention_hidden_size=width,
        memory_attention_feed_forward_hidden_size=16,
        memory_attention_num_layers=1,
        memory_encoder_hidden_size=width,
        memory_encoder_output_channels=8,
        memory_fuser_embed_dim=width,
        memory_fuser_intermediate_dim=16,
        memory_fuser_num_layers=1,
        mask_downsampler_embed_dim=width,
    )
    torch.manual_seed(1)
    network = Sam2VideoModel(config)
    for weight in network.parameters():
        weight.data.normal_(0, 0.3)
    network.save_pretrained(folder / "sam2")
    square = {"height": side, "width": side}
    Sam2ImageProcessor(size=square, mask_size={"height": side // 4, "width": side // 4}).save_pretrained(
        folder / "sam2"
    )
    free: dict[str, Any] = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "points_per_side": 4}
    return {"model": str(folder / "sam2"), **free}


def tiny_vitpose(folder: Path) -> dict[str, Any]:
    """ViTPose at 64 x 48 pixels, and RT-DETR at 64 x 64, whose every query is a person with some score."""
    import torch
    from transformers import VitPoseConfig, VitPoseForPoseEstimation, VitPoseImageProcessor

    width = 16
    backbone = {
        "model_type": "vitpose_backbone",
        "image_size": [64, 48],
        "hidden_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "out_indices": [1],
    }
    torch.manual_seed(1)
    pose = VitPoseConfig(backbone_config=backbone, num_labels=17, initializer_range=0.5)
    VitPoseForPoseEstimation(pose).save_pretrained(folder / "vitpose")
    VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder / "vitpose")
    models = {"model": str(folder / "vitpose"), "detector": tiny_people(folder / "rtdetr")}
    return {**models, "person_threshold": 0.1, "keypoint_threshold": 0.0}


def tiny_people(folder: Path) -> str:
    """RT-DETR at 64 x 64 pixels, whose every query is a person with some score."""
    import torch
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor

    width = 16
    torch.manual_seed(1)
    resnet = {
        "model_type": "rt_detr_resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 8, 8, 8],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage2", "stage3", "stage4"],
    }
    detector = RTDetrConfig(
        backbone_config=resnet,
        id2label={0: "person", 1: "dog"},
        label2id={"person": 0, "dog": 1},
        encoder_hidden_dim=width,
        encoder_in_channels=[8, 8, 8],
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=width,
        decoder_in_channels=[width, width, width],
        decoder_ffn_dim=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        num_queries=4,
        num_denoising=0,
    )
    network = RTDetrForObjectDetection(detector)
    for head in (network.model.enc_score_head, *network.model.decoder.class_embed):
        torch.nn.init.normal_(head.weight, 0, 0.5)
        head.bias.data = torch.tensor([3.0, -3.0])
    network.save_pretrained(folder)
    RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return str(folder)


def tiny_dwpose(folder: Path) -> dict[str, Any]:
    """The form of DWPose without weights: all keypoints are where a column and a row of the picture are brightest."""
    import warnings
    from unittest import mock

    import torch

    class Brightest(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            light = torch.sigmoid(pixels.mean(1, keepdim=True))
            across, down = light.amax(2), light.amax(3)
            halves = (each.unsqueeze(3).repeat(1, 133, 1, 2).flatten(2) for each in (across, down))
            return tuple(halves)  # type: ignore[return-value]

    file = folder / "dwpose" / "dw-ll_ucoco_384.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    # The exporter only looks there for functions of ours, and would need a package for that.
    unneeded = "torch.onnx._internal.torchscript_exporter.onnx_proto_utils._add_onnxscript_fn"
    with warnings.catch_warnings(), mock.patch(unneeded, lambda proto, opsets: proto):
        warnings.simplefilter("ignore")
        names = {"input_names": ["input"], "output_names": ["simcc_x", "simcc_y"]}
        torch.onnx.export(Brightest().eval(), (torch.zeros(1, 3, 384, 288),), str(file), dynamo=False, **names)
    models = {"model": str(file.parent), "detector": tiny_people(folder / "rtdetr")}
    return {**models, "person_threshold": 0.1, "keypoint_threshold": 0.0}
