"""Tiny networks of transformers with random weights, saved with their processors as ``save_pretrained`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

CLASSES = ("tabby, tabby cat", "dog", "cup")
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the film was good bad ##ly great very un ##kind not".split()  # noqa: SIM905


def labels(names: tuple[str, ...]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: k for k, name in enumerate(names)}}


def save_resnet(folder: Path, **settings: Any) -> Path:
    """A ResNet for 32 x 32: the short side to 36, the centre cut out."""
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **labels(CLASSES) | settings
    )
    transformers.ResNetForImageClassification(config).save_pretrained(folder)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875).save_pretrained(folder)
    return folder


def save_vit(folder: Path, height: int = 32, width: int = 48) -> Path:
    """A vision transformer for images stretched to a size that is not square."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=(height, width),
        patch_size=8,
        **labels(CLASSES),
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": height, "width": width}).save_pretrained(folder)
    return folder


def bert_config(**settings: Any) -> Any:
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    small |= {"vocab_size": len(WORDS), "max_position_embeddings": 32}
    return transformers.BertConfig(**small | labels(("negative", "positive")) | settings)


def save_bert(folder: Path) -> Path:
    """A classifier of texts with its tokenizer."""
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(bert_config()).save_pretrained(folder)
    transformers.BertTokenizer({word: k for k, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder
