"""What only a card can show: recorded graphs, dependent launches, float32 on a device."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from llava_ref import embedded, load
from llava_ref.conformance.pairs.pairs import Pair
from llava_ref.ops.cuda.ops import CudaOps

from ..support.cuda_models import fast
from ..support.helpers import close, rand

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
PAIR = Pair(*embedded())
PICTURE = (rand(100, 130, 3) * 60 + 120).clip(0, 255).astype(np.uint8)


def steps(count: int, dependent_launch: bool) -> np.ndarray:
    """Return the logits of `count` greedy steps, each token the likeliest of the one before."""
    model = fast(PAIR, dependent_launch=dependent_launch)
    session, token, rows = model.session(), 5, []
    for _ in range(count):
        logits = np.asarray(session.next([[token]]))
        token = int(logits.argmax())
        rows.append(logits)
    return np.stack(rows)


def test_dependent_launches_change_no_bit_in_200_steps():
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs compute capability 9.0")
    np.testing.assert_array_equal(steps(200, True), steps(200, False))


def test_a_recorded_tower_gives_the_bits_of_its_operations():
    model = fast(PAIR)
    pixels = model.preprocess(model.decode_image(PICTURE)).pixels
    assert isinstance(model.ops, CudaOps)
    plain = model.tower.encode(model.ops.array(pixels)).cpu().numpy()
    for _ in range(3):
        np.testing.assert_array_equal(model.encode(pixels), plain)


def test_exact_on_a_device_is_exact():
    on_card, on_host = load(*embedded(), device="cuda"), load(*embedded())
    prompt = "USER: <image>\nCount the stars. ASSISTANT:"
    close(on_card.logits(prompt, [PICTURE]), on_host.logits(prompt, [PICTURE]), 2e-5)
    assert on_card.ops.joined_rows == 0


def test_answers_of_fast_and_exact_agree():
    picture = embedded()[0].parent / "pictures" / "count.png"
    ask = [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Count the stars."}]}
    ]
    quick, exact = load(*embedded(), device="cuda", precision="fast"), load(*embedded())
    assert quick.chat(ask, max_tokens=16).text == exact.chat(ask, max_tokens=16).text
