"""The library's errors: one line, a code, and the same after a journey between processes."""

import copy
import pickle
from typing import get_args

import pytest

import llava_ref
from llava_ref.errors import Code, LlavaError, PromptError

CLASSES = [LlavaError, *LlavaError.__subclasses__()]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_is_one_line_with_a_code(kind):
    error = kind("a\nfile", "field", "problem")
    assert str(error) == "a\\nfile: field: problem" and error.code in get_args(Code)
    assert kind("a", "b", "c", code="image_too_large").code == "image_too_large"
    assert kind("a", "b", "c").code == kind.code, "one error's code is no other's"


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_survives_a_journey(kind, way):
    error = kind("w" * 400, "f", "p" * 600, code="context_length_exceeded")
    same = way(error)
    assert type(same) is kind and str(same) == str(error) and vars(same) == vars(error)


def test_the_code_is_a_keyword():
    with pytest.raises(TypeError):
        LlavaError("a", "b", "c", "invalid_value")  # type: ignore[misc]


def test_each_class_s_own_code():
    own = {kind.__name__: kind.code for kind in CLASSES if kind.code != "invalid_value"}
    assert own["ImageError"] == "invalid_image" and own["NumericsError"] == "model_error" and len(own) == 2


def test_a_prompt_over_the_context_has_its_code():
    text, _ = llava_ref.embedded()
    model = llava_ref.load(text, backend="numpy", n_context=8)
    for ask in (
        lambda: model.forward([[1] * 9]),
        lambda: model.chat([{"role": "user", "content": "a " * 9}], max_tokens=1),
    ):
        with pytest.raises(PromptError) as caught:
            ask()
        assert caught.value.code == "context_length_exceeded"
    with pytest.raises(PromptError) as caught:
        model.forward([[]])
    assert caught.value.code == "invalid_value"
