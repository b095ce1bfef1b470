"""Find this project's stages in transformers' Idefics3.   N patches, n rows of a tile, Dv tower width."""

from collections.abc import Iterator

from .llava_stages import decoder
from .model import HfModel
from .points import Point, given, made, tower_block

__all__ = ["decoder", "tower"]


def tower(model: HfModel) -> Iterator[Point]:
    siglip, connector = model.module.model.vision_model, model.module.model.connector
    yield given("vision.pixels", siglip)
    yield made("vision.patch_embd", siglip.embeddings.patch_embedding, lambda x: x.flatten(1).T)  # (D, y, x) -> (N, D)
    yield made("vision.pos_embd", siglip.embeddings)
    for i, layer in enumerate(siglip.encoder.layers):
        yield from tower_block(f"vision.blk.{i}", layer)
    yield made("vision.post_ln", siglip.post_layernorm)
    yield given("projector.shuffle", connector.modality_projection)
    yield made("projector.out", connector)
