"""The networks: a 1-D and a 3-D ResNet and a transformer, small enough to be trained in minutes on one core."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.planted.data import PAD, TOKENS, VOCABULARY

_CONV = {1: nn.Conv1d, 3: nn.Conv3d}
_NORM = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}
_POOL = {1: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool3d}


class Residual(nn.Module):
    """Two convolutions and a skip, which is a convolution where the width or the resolution changes."""

    def __init__(self, dims: int, before: int, after: int, kernel: int, stride: int) -> None:
        super().__init__()
        conv, norm = _CONV[dims], _NORM[dims]
        self.conv1 = conv(before, after, kernel, stride, kernel // 2, bias=False)
        self.norm1 = norm(after)
        self.conv2 = conv(after, after, kernel, 1, kernel // 2, bias=False)
        self.norm2 = norm(after)
        self.skip: nn.Module = nn.Identity()
        if before != after or stride != 1:
            self.skip = nn.Sequential(conv(before, after, 1, stride, bias=False), norm(after))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        main = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.relu(main + self.skip(x))


class ResNet(nn.Sequential):
    """A residual network on signals or volumes: a stem, one block for each width, the mean over places, classes.

    Args:
        dims: of an input's places: 1 or 3.
        channels: of the input.
        classes: how many there are.
        widths: of the stem and of each block; each block halves the resolution.
        kernel: side of the convolutions.
    """

    def __init__(self, dims: int, channels: int, classes: int, widths: Sequence[int], kernel: int) -> None:
        stem = _CONV[dims](channels, widths[0], kernel, 1, kernel // 2, bias=False)
        blocks = [Residual(dims, before, after, kernel, stride=2) for before, after in pairwise(widths)]
        pooled = (_POOL[dims](1), nn.Flatten(), nn.Linear(widths[-1], classes))
        super().__init__(stem, _NORM[dims](widths[0]), nn.ReLU(), *blocks, *pooled)


class Attention(nn.Module):
    """Multi-head self-attention; padding is not attended to."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, h: Float[Tensor, "n l d"], attention_mask: Int[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        q, k, v = (
            layer(h).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        return self.out(self.attend(q, k, v, attention_mask).transpose(1, 2).flatten(2))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor) -> Tensor:
        """The values' weighted means, ``(N, heads, L, D)``."""
        return scaled_dot_product_attention(query, key, value, attention_mask[:, None, None].bool())


class Layer(nn.Module):
    """Attention and a two-layer perceptron, each after a LayerNorm and beside a skip."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, h: Tensor, attention_mask: Tensor) -> Tensor:
        h = h + self.attention(self.norm1(h), attention_mask)
        return h + self.mlp(self.norm2(h))


class Transformer(nn.Module):
    """An encoder of token ids with learned positions; the classes are read from [CLS], the first token.

    The embedding of [PAD] is zero.
    """

    def __init__(self, classes: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width, padding_idx=PAD)
        self.positions = nn.Parameter(0.02 * torch.randn(TOKENS, width))
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, input_ids: Int[Tensor, "n l"], attention_mask: Int[Tensor, "n l"]) -> Float[Tensor, "n k"]:
        return self.from_embeddings(self.embed(input_ids), attention_mask)

    def embed(self, input_ids: Int[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        """Token and position embeddings added: where gradient methods begin."""
        return self.tokens(input_ids) + self.positions

    def from_embeddings(self, h: Float[Tensor, "n l d"], attention_mask: Int[Tensor, "n l"]) -> Float[Tensor, "n k"]:
        """Logits from what :meth:`embed` returns."""
        for layer in self.layers:
            h = layer(h, attention_mask)
        return self.classifier(self.norm(h)[:, 0])
