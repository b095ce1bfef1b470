"""Train the SentencePiece vocabulary: BPE with byte fallback, on the generator's sentences and a little English."""

import sys
from collections.abc import Iterator
from pathlib import Path

import gguf

from llava_ref.extras import missing
from llava_ref.scenes import COLOURS, SHAPES, WORDS, questions, sample_scene, training_rng
from llava_ref.scenes.scene import DIGITS

try:
    import sentencepiece as spm
except ModuleNotFoundError:
    raise SystemExit(f"error: training: {missing('training')}") from None

SIZE = 768
ENGLISH = """
the of and to a in that it is was for on with as at by be this have from or had not are but what all were when
we there can an your which their said if do will each about how up out them then she many some so these would other
into has more her two like him see time could no make than first been its who now people my made over did down only
way find use may water long little very after words called just where most know get through back much before go good
new write our used me man too any day same right look think also around another came come work three word must because
does part even place well such here take why things help put years different away again off went old number great tell
men say small every found still between name should home big give air line set own under read last never us left end
along while might next sound below saw something thought both few those always looked show large often together asked
house world going want school important until form food keep children feet land side without boy once animals life
enough took sometimes four head above kind began almost live page got earth need far hand high year mother light
country father let night picture being study second eye table window paper music book letter story answer question
hello please thank you yes nothing nobody anything everything I am a model that looks at pictures and answers questions
A picture is worth a thousand words. I cannot see that. Who are you? What can you do? Thank you very much!
brown white grey pink line dot ring arrow cube cone face tree bird fish car boat train ship moon sky sea hill road
A B C D E F G H I J K L M N O P Q R S T U V W X Y Z a b c d e f g h i j k l m n o p q r s t u v w x y z
( ) - ; ' ! / + = %
""".strip().splitlines()


def _lines(n_scenes: int) -> Iterator[str]:
    """Yield the training text. Questions also come in quotation marks, so that first words occur without a space."""
    for i in range(n_scenes):
        rng = training_rng(0, i)
        for q in questions(sample_scene(rng), rng, 4):
            yield f'"{q.text}" ASSISTANT: {q.answer}'
            yield f"USER: {q.text} ASSISTANT: {q.answer}"
    for words in (COLOURS, SHAPES, WORDS, DIGITS):
        for word in words:
            yield from [word] * 40
    for line in ENGLISH:
        yield from [line] * 30


def train(prefix: Path, n_scenes: int = 4000) -> None:
    """Write PREFIX.model and PREFIX.vocab, and PREFIX.gguf with nothing but the vocabulary."""
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(_lines(n_scenes)),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=SIZE,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=1,
    )
    write_gguf(spm.SentencePieceProcessor(model_file=f"{prefix}.model"), Path(f"{prefix}.gguf"))


def write_gguf(sp: spm.SentencePieceProcessor, path: Path) -> None:
    """Write a GGUF file with a vocabulary and nothing else."""
    w = gguf.GGUFWriter(path, "llama")
    w.add_vocab_size(SIZE)
    ids = range(sp.get_piece_size())
    kinds = gguf.TokenType
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list([sp.id_to_piece(i) for i in ids])
    w.add_token_scores([sp.get_score(i) for i in ids])
    w.add_token_types([
        kinds.UNKNOWN if sp.is_unknown(i) else kinds.CONTROL if sp.is_control(i) else kinds.BYTE if sp.is_byte(i)
        else kinds.NORMAL for i in ids
    ])  # fmt: skip
    w.add_unk_token_id(0)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(True)
    w.add_add_eos_token(False)
    w.add_add_space_prefix(True)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    train(Path(sys.argv[1]))
