"""Pixtral and Mistral Small 3.1 against transformers (profile hf) and llama.cpp (settings EXACT), stage by stage, on
random pairs."""

from typing import Any

import pytest

from llava_ref.conformance.compare.comparing import parts
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.reference import Case, Run
from llava_ref.model import Llava

from .family_stages import WholePictureStages, plain
from .pixtral_cases import FAMILY

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
__all__ = ["FAMILY"]  # the fixtures read it


class TestStages(WholePictureStages):
    def fed(self, case: Case, run: Run, model: Llava) -> list[Any]:
        """Return llama.cpp's prompt with the rows of its own tower, its breaks among them."""
        pictures = [array for name, array in run.stages.items() if plain(name) == "image.rgb"]
        rows = [image.rows for image in oracle.Oracle(case.text, case.mmproj).encode(pictures)] if pictures else []
        return list(parts(run.token_ids, rows))
