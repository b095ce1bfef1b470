"""Define the network in torch: a CLIP-shaped tower, a two-layer projector and a llama-shaped decoder.

The arithmetic is that of the inference code, written a second time for training.

Letter key: B pictures, N patches, T = N + 1 tower positions, D width, H heads, dh head size, S tokens, A answer tokens.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import GRID, LABELS, MEAN, PATCH, STD
from .packing import OWN, SHARED


@dataclass(frozen=True, slots=True)
class ShapesConfig:
    """All widths and depths of the network."""

    v_width: int = 128
    v_mlp: int = 512
    v_heads: int = 4
    v_blocks: int = 5  # the last serves only the tasks of the class token and is not exported
    width: int = 192
    mlp: int = 512
    heads: int = 6
    kv_heads: int = 2
    blocks: int = 4
    vocabulary: int = 768
    context: int = 2048
    rope_base: float = 10000.0
    rms_eps: float = 1e-5
    ln_eps: float = 1e-5


def quick_gelu(x: Tensor) -> Tensor:
    """Approximate GELU as CLIP does."""
    return x * torch.sigmoid(1.702 * x)


class VisionBlock(nn.Module):
    """A pre-norm CLIP block."""

    def __init__(self, c: ShapesConfig) -> None:
        super().__init__()
        self.heads = c.v_heads
        self.ln1, self.ln2 = nn.LayerNorm(c.v_width, c.ln_eps), nn.LayerNorm(c.v_width, c.ln_eps)
        self.q, self.k, self.v, self.o = (nn.Linear(c.v_width, c.v_width) for _ in range(4))
        self.up, self.down = nn.Linear(c.v_width, c.v_mlp), nn.Linear(c.v_mlp, c.v_width)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """Run the block.  (B, T, D) -> (B, T, D), or only its first `queries` rows"""
        n = self.ln1(x)
        q_input = n[:, :queries]
        q, k, v = (
            f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f, y in ((self.q, q_input), (self.k, n), (self.v, n))
        )
        h = x[:, :queries] + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return h + self.down(quick_gelu(self.up(self.ln2(h))))


class ShapesTower(nn.Module):
    """Pixels to patch features, with heads that classify the thing on each patch."""

    def __init__(self, c: ShapesConfig) -> None:
        super().__init__()
        self.patch = nn.Linear(3 * PATCH * PATCH, c.v_width, bias=False)  # a convolution of stride PATCH
        self.cls = nn.Parameter(torch.randn(c.v_width) * 0.02)
        self.position = nn.Parameter(torch.randn(GRID * GRID + 1, c.v_width) * 0.02)
        self.pre_ln = nn.LayerNorm(c.v_width, c.ln_eps)
        self.blocks = nn.ModuleList(VisionBlock(c) for _ in range(c.v_blocks))
        self.head_ln, self.cls_ln = nn.LayerNorm(c.v_width), nn.LayerNorm(c.v_width)
        self.head = nn.Linear(c.v_width, sum(LABELS.values()) + len(LABELS))
        self.cls_head = nn.Linear(c.v_width, 5 + 11 + 13)
        self.register_buffer("mean", torch.tensor(MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(STD), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the hidden state before the last block.  (B, IMAGE, IMAGE, 3) uint8 -> (B, T, D)"""
        x = (pixels.float() / 255 - self.mean) / self.std
        x = x.unflatten(2, (GRID, PATCH)).unflatten(1, (GRID, PATCH))  # (B, gy, py, gx, px, 3)
        x = self.patch(x.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2))  # channel, then y, then x
        x = torch.cat([self.cls.expand(len(x), 1, -1), x], 1) + self.position
        x = self.pre_ln(x)
        for block in self.blocks[:-1]:
            x = block(x)
        return x

    def losses(self, hidden: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        """Return the cross-entropy of the patch labels and of the class token's three tasks."""
        logits = self.head(self.head_ln(hidden[:, 1:])).split([n + 1 for n in LABELS.values()], -1)
        patch = sum(F.cross_entropy(x.flatten(0, 1), labels[..., i].flatten()) for i, x in enumerate(logits))
        whole = self.cls_head(self.cls_ln(self.blocks[-1](hidden, 1)[:, 0])).split([5, 11, 13], -1)
        return patch + 0.2 * sum(F.cross_entropy(x, counts[:, i]) for i, x in enumerate(whole))

    def accuracies(self, hidden: Tensor, labels: Tensor) -> dict[str, float]:
        """Return the accuracy by label, over patches with a thing on them."""
        logits = self.head(self.head_ln(hidden[:, 1:])).split([n + 1 for n in LABELS.values()], -1)
        occupied = labels[..., 0] != LABELS["name"]
        hits = [(x.argmax(-1) == labels[..., i])[occupied].float().mean().item() for i, x in enumerate(logits)]
        return dict(zip(LABELS, hits, strict=True))


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (2i, 2i+1).  x (B, H, S, dh), cos and sin (B, 1, S, dh / 2)"""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


class DecoderBlock(nn.Module):
    """A block of RMSNorm, grouped-query attention and SwiGLU."""

    def __init__(self, c: ShapesConfig) -> None:
        super().__init__()
        self.c, self.dh = c, c.width // c.heads
        self.norm1, self.norm2 = nn.RMSNorm(c.width, c.rms_eps), nn.RMSNorm(c.width, c.rms_eps)
        self.q, self.o = (nn.Linear(c.width, c.width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(c.width, c.kv_heads * self.dh, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(c.width, c.mlp, bias=False) for _ in range(2))
        self.down = nn.Linear(c.mlp, c.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, rows: Tensor | None = None) -> Tensor:
        """Run the block.  (B, S, D) -> (B, S, D), or only `rows` (B, A); `mask` (B, 1, S, S) is added to scores"""
        n = self.norm1(x)
        q_input, q_cos, q_sin = n, cos, sin
        if rows is not None:
            x, q_input = _rows(x, rows), _rows(n, rows)
            q_cos, q_sin, mask = (_rows(t[:, 0], rows)[:, None] for t in (cos, sin, mask))
        q = rope(self.q(q_input).unflatten(-1, (self.c.heads, self.dh)).transpose(1, 2), q_cos, q_sin)
        k = rope(self.k(n).unflatten(-1, (self.c.kv_heads, self.dh)).transpose(1, 2), cos, sin)
        v = self.v(n).unflatten(-1, (self.c.kv_heads, self.dh)).transpose(1, 2)
        group = self.c.heads // self.c.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        y = F.scaled_dot_product_attention(q, k, v.to(q.dtype), mask.to(q.dtype))
        h = x + self.o(y.transpose(1, 2).flatten(2))
        n = self.norm2(h)
        return h + self.down(F.silu(self.gate(n)) * self.up(n))


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """Gather rows.  (B, S, D), (B, A) -> (B, A, D)"""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


class ShapesDecoder(nn.Module):
    """Embeddings to logits of chosen rows."""

    def __init__(self, c: ShapesConfig) -> None:
        super().__init__()
        self.c = c
        self.embed = nn.Embedding(c.vocabulary, c.width)
        self.blocks = nn.ModuleList(DecoderBlock(c) for _ in range(c.blocks))
        self.norm = nn.RMSNorm(c.width, c.rms_eps)
        self.output = nn.Linear(c.width, c.vocabulary, bias=False)
        nn.init.normal_(self.embed.weight, std=0.5)
        nn.init.zeros_(self.output.weight)
        for block in self.blocks:
            nn.init.zeros_(block.o.weight)
            nn.init.zeros_(block.down.weight)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        """Compute logits.  x (B, S, D), positions (B, S), mask (B, 1, S, S), rows (B, A) -> (B, A, vocabulary)"""
        dh = self.c.width // self.c.heads
        frequency = self.c.rope_base ** (-torch.arange(0, dh, 2) / dh)
        angle = positions[:, None, :, None] * frequency  # (B, 1, S, dh / 2)
        cos, sin = angle.cos(), angle.sin()
        for block in self.blocks[:-1]:
            x = block(x, cos, sin, mask)
        return self.output(self.norm(self.blocks[-1](x, cos, sin, mask, rows)))


class ShapesModel(nn.Module):
    """The whole network: tower, projector and decoder."""

    def __init__(self, c: ShapesConfig) -> None:
        super().__init__()
        self.c = c
        self.tower = ShapesTower(c)
        self.mm0, self.mm2 = nn.Linear(c.v_width, c.width), nn.Linear(c.width, c.width)
        self.decoder = ShapesDecoder(c)

    def project(self, hidden: Tensor) -> Tensor:
        """Project patch features into the decoder's width.  (B, T, v_width) -> (B, N, width)"""
        return self.mm2(F.gelu(self.mm0(hidden[:, 1:])))

    def answer_logits(
        self, hidden: Tensor, ids: Tensor, patches: Tensor, positions: Tensor, segments: Tensor, rows: Tensor
    ) -> Tensor:
        """Compute the logits (B, A, vocabulary) of answer tokens. `data.Batch` has the shapes of the arguments."""
        image = self.project(hidden).flatten(0, 1)  # (B N, width)
        x = torch.where((patches >= 0)[..., None], image[patches.clamp(0)], self.decoder.embed(ids))
        return self.decoder(x, positions, packed_mask(segments), rows)


def packed_mask(segments: Tensor) -> Tensor:
    """Make the mask of packed segments.  (B, S) -> (B, 1, S, S)

    It is causal. A segment sees itself, and the shared picture unless it has its own."""
    size = segments.shape[1]
    shared = (segments[:, None, :] == SHARED) & (segments[:, :, None] < OWN)
    visible = (segments[:, None, :] == segments[:, :, None]) | shared
    visible &= torch.ones(size, size, dtype=torch.bool).tril()
    return torch.zeros(visible.shape).masked_fill_(~visible, float("-inf"))[:, None]
