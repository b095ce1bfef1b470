"""Find this project's stages in transformers' InternVL.   T positions of the tower, D width."""

from collections.abc import Iterator

from . import llava_stages, qwen2vl_stages
from .model import HfModel
from .points import Point, block, given, made


def tower(model: HfModel) -> Iterator[Point]:
    vit, projector = model.module.model.vision_tower, model.module.model.multi_modal_projector
    yield given("vision.pixels", vit)
    yield made("vision.patch_embd", vit.embeddings.patch_embeddings)
    yield made("vision.pos_embd", vit.embeddings)
    for i, layer in enumerate(vit.encoder.layer):
        attention, norms = layer.attention, (layer.layernorm_before, layer.layernorm_after)
        qk = attention.q_norm, attention.k_norm  # which change something in InternViT-6B only
        yield from block(f"vision.blk.{i}", layer, attention, attention.projection_layer, norms, qk)
    yield Point("vision.features", vit, lambda inputs, output: output.last_hidden_state, lambda x: x[1:])
    yield given("projector.shuffle", projector)
    yield made("projector.mm_0", projector.layer_norm)
    yield made("projector.mm_1", projector.linear_1)
    yield given("projector.gelu", projector.linear_2)
    yield made("projector.out", projector)


def decoder(model: HfModel) -> Iterator[Point]:
    llama = model.text_file.string("general.architecture") == "llama"
    yield from (llava_stages if llama else qwen2vl_stages).decoder(model)
