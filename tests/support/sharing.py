"""Operations whose sequences share steps, without a kernel: each sequence is run by itself, and who shared is noted."""

from unittest import mock

from llava_ref import load
from llava_ref.ops import step_cases
from llava_ref.ops.torch_ops import TorchOps


class SharingOps(TorchOps):
    """float32, `together` sequences a step; `shared` says how many each step had."""

    def __init__(self, together: int = 4) -> None:
        super().__init__("cpu", 1, 1 << 30)
        self.together, self.shared = together, []

    def stepper(self, plan, cache):
        return OperationStepper(plan, cache, self)

    def step_together(self, steppers, tokens):
        assert 1 <= len(steppers) == len(set(steppers)) <= self.together
        self.shared.append(len(steppers))
        return [stepper.step(token) for stepper, token in zip(steppers, tokens, strict=True)]


class OperationStepper:
    """Runs a token operation by operation."""

    def __init__(self, plan, cache, ops) -> None:
        self.plan, self.cache, self.ops = plan, cache, ops

    def step(self, token):
        with self.ops.running(1, 0):
            return step_cases.forward(self.plan, token, self.ops, self.cache).numpy()


def load_sharing(text, mmproj=None, together=4, **settings):
    """Load a model whose sequences share steps; `model.ops.shared` has the sizes of its steps."""
    ops = SharingOps(together)
    with mock.patch("llava_ref.loading.operations", lambda *_: ops):
        return load(text, mmproj, **settings)
