"""What the tasks on the embedded pictures need beyond their tables."""

from pathlib import Path

from PIL import Image

PICTURES = Path("llava_ref/assets/pictures")  # from the folder of the repository


def pictures(doc):
    return [Image.open(PICTURES / doc["picture"]).convert("RGB")]


def question(doc):
    return doc["question"]


def right_answer(doc):
    return doc["choices"][doc["answer"]]
