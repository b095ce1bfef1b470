"""Commands as users call them: exit codes, what goes to which stream, and no traceback for what a user can mend."""

import json
import os
import platform
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import llava_ref
from llava_ref.cli import main, versions
from llava_ref.tools.parser import COMMAND_GROUPS, COMMANDS
from llava_ref.tools.terminal import draw

from ..support.tiny_pair import Tiny, write_text


@pytest.fixture
def ending(capsys):
    """Runs arguments at which the program ends by itself; gives the same three."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


TEXT = ["-m", "text.gguf", "--backend", "numpy"]
PAIR = [*TEXT, "--mmproj", "mmproj.gguf"]
ASK = [*PAIR, "--image", "picture.png", "-p", "what is in the picture?"]


def test_generate_prints_the_answer_alone(cli):
    status, out, err = cli("generate", *ASK, "-n", "6")
    model = llava_ref.load("text.gguf", "mmproj.gguf", backend="numpy")
    parts = [{"type": "image", "image": "picture.png"}, {"type": "text", "text": "what is in the picture?"}]
    reply = model.chat([{"role": "user", "content": parts}], max_tokens=6)
    assert (status, out.encode()[:4]) == (0, reply.text.encode()[:4]) and out.endswith("\n")
    assert "16 image positions" in err and "6 tokens, length" in err


def test_generate_json_has_what_the_contract_lists(cli):
    status, out, err = cli("generate", *ASK, "-n", "4", "--json", "--quirk", "gelu=tanh")
    got = json.loads(out)
    assert status == 0 and err == "" and out.count("\n") == 1
    assert set(got) >= {"text", "token_ids", "prompt", "chunks", "finish_reason", "usage", "timings"}
    assert [got[k] for k in ("profile", "precision", "backend", "device")] == ["llava", "exact", "numpy", "cpu"]
    assert got["quirks"]["gelu"] == "tanh" and got["quirks"]["square"] == "pad-resize"
    assert [chunk["type"] for chunk in got["chunks"]] == ["text", "image", "text"]
    assert got["chunks"][1] == {"type": "image", "n_tokens": 16, "width": 33, "height": 20}
    assert len(got["token_ids"]) == got["usage"]["completion_tokens"] == 4


def test_generate_options_reach_the_sampler(cli):
    warm = ["--temp", "1.2", "-n", "8", "--json"]
    first, again, other = (json.loads(cli("generate", *ASK, *warm, "--seed", s)[1])["token_ids"] for s in "778")
    assert first == again != other
    assert json.loads(cli("generate", *ASK, *warm, "--seed", "7", "--top-k", "1")[1])["token_ids"] != first
    bias = ["--logit-bias", "300=100", "--logit-bias", "301=-5"]
    assert json.loads(cli("generate", *ASK, "-n", "3", "--json", *bias)[1])["token_ids"] == [300] * 3
    free = cli("generate", *TEXT, "-p", "a", "-n", "3", "--json", "--logit-bias", "260=100", "--stop", "aa")[1]
    assert json.loads(free)["token_ids"] == [260, 260], "token 260 is the letter a"
    assert (json.loads(free)["text"], json.loads(free)["finish_reason"]) == ("", "stop")


def test_generate_says_when_the_context_ended_the_answer(cli):
    status, _, err = cli("generate", *TEXT, "-p", "a", "-c", "20", "--logit-bias", "2=-100")
    assert status == 0 and "the answer ended with the context of 20 positions" in err


def test_show_prompt(cli):
    status, out, err = cli("generate", *ASK, "-n", "1", "--show-prompt", "--system", "the one")
    assert status == 0
    assert "template: file (the file's own" in err and "USER: <image>" in err and "33 x 20 pixels" in err
    status, _, err = cli("generate", *TEXT, "--raw", "-p", "a\x1b[31m", "-n", "1", "--show-prompt")
    assert status == 0 and "none (--raw)" in err and "\x1b" not in err and "a\\x1b[31m" in err


def test_answers_never_send_control_characters_to_a_terminal(cli):
    escape = str(3 + 0x1B)  # the token of that byte
    _, out, _ = cli("generate", *TEXT, "-p", "a", "-n", "3", "--logit-bias", f"{escape}=100")
    assert out == "\\x1b" * 3 + "\n"


def test_template_by_name(cli):
    _, out, _ = cli("generate", *TEXT, "-p", "a", "-n", "1", "--json", "--template", "chatml")
    assert json.loads(out)["prompt"].startswith("<|im_start|>user")
    assert cli("generate", *TEXT, "-p", "a", "--template", "nothing")[0] == 2


def test_raw_prompts(cli):
    status, out, _ = cli(
        "generate", *PAIR, "--image", "picture.png", "--raw", "-p", "a <image> is</s>", "-n", "1", "--json"
    )
    chunks = json.loads(out)["chunks"]
    assert status == 0 and json.loads(out)["prompt"] == "a <image> is</s>"
    assert chunks[0]["token_ids"][0] == 1 and chunks[2]["token_ids"][-1] == 2, "control tokens are read"
    assert cli("generate", *TEXT, "--raw", "-p", "a", "--system", "b")[0] == 2


def test_tokenize(cli, folder):
    status, out, _ = cli("tokenize", "-m", "text.gguf", "the</s>")
    ids = json.loads(out)
    assert status == 0 and ids[0] == 1 and ids[-1] == 2
    assert json.loads(cli("tokenize", "-m", "text.gguf", "--no-bos", "the</s>")[1]) == ids[1:]
    assert 2 not in json.loads(cli("tokenize", "-m", "text.gguf", "--no-special", "the</s>")[1])
    (folder / "text.txt").write_bytes(b"the</s>")
    assert json.loads(cli("tokenize", "-m", "text.gguf", "--file", "text.txt")[1]) == ids
    assert json.loads(cli("tokenize", "-m", "text.gguf", stdin=b"the</s>")[1]) == ids
    assert json.loads(cli("tokenize", "-m", "text.gguf", stdin=b"a\r\n")[1])[-2:] == [3 + 13, 3 + 10]
    assert "standard input: byte 1: not UTF-8" in cli("tokenize", "-m", "text.gguf", stdin=b"a\xff")[2]
    assert cli("tokenize", "-m", "text.gguf", "--file", "text.txt", "text")[0] == 2


def read(path):
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def test_encode_writes_pixels_and_rows(cli, folder):
    out = ["-o", "e.safetensors", "--save-seen", "seen.png", "--backend", "numpy"]
    status, stdout, err = cli("encode", "--mmproj", "mmproj.gguf", "--image", "picture.png", *out)
    tensors, about = read(folder / "e.safetensors")
    assert (status, stdout) == (0, "") and "image_embeddings [16, 32]" in err
    assert tensors["pixels"].shape == (1, 3, 28, 28) and tensors["pixels"].dtype == np.float32
    model = llava_ref.load(None, "mmproj.gguf", backend="numpy")
    np.testing.assert_array_equal(tensors["image_embeddings"], model.encode_image("picture.png"))
    assert about["profile"] == "llava" and about["image"] == "picture.png"
    assert json.loads(about["source"]) == [33, 20] and json.loads(about["affine"])["scale_x"] == 33 / 28
    assert json.loads(about["quirks"])["square"] == "pad-resize"
    with Image.open(folder / "seen.png") as seen:
        assert seen.size == (28, 28)


def test_logits_are_those_of_the_library(cli, folder):
    raw = ["--raw", "-p", "a <image> is", "--image", "picture.png", "-o", "l.safetensors", "--json"]
    status, out, _ = cli("logits", *PAIR, *raw)
    tensors, about = read(folder / "l.safetensors")
    model = llava_ref.load("text.gguf", "mmproj.gguf", backend="numpy")
    np.testing.assert_array_equal(tensors["logits"], model.logits("a <image> is", images=["picture.png"]))
    assert status == 0 and json.loads(out)["tensors"]["logits"] == list(tensors["logits"].shape)
    assert len(tensors["token_ids"]) == len(tensors["logits"]) and (tensors["token_ids"] == -1).sum() == 16
    assert about["model"] == "text.gguf" and json.loads(about["images"]) == ["picture.png"]
    status, _, _ = cli("logits", *PAIR, "-p", "what?", "-o", "l.safetensors")
    assert status == 0 and len(read(folder / "l.safetensors")[0]["token_ids"]) > 5, "with the template"


def test_outputs_never_replace_inputs(cli, folder):
    before = (folder / "mmproj.gguf").read_bytes()
    (folder / "link.gguf").symlink_to("mmproj.gguf")
    for output in ("mmproj.gguf", "link.gguf", "picture.png"):
        status, _, err = cli("encode", "--mmproj", "mmproj.gguf", "--image", "picture.png", "-o", output)
        assert status == 2 and "is one of the input files" in err
    assert (folder / "mmproj.gguf").read_bytes() == before
    assert cli("logits", *TEXT, "-p", "a", "-o", "text.gguf")[0] == 2
    assert cli("encode", "--mmproj", "mmproj.gguf", "--image", "picture.png", "-o", "no/where.safetensors")[0] == 2
    assert cli("encode", "--mmproj", "mmproj.gguf", "--image", "picture.png", "-o", ".")[0] == 2


CHAT = ["chat", *PAIR, "-n", "3"]


def test_chat_from_a_pipe(cli):
    status, out, err = cli(
        *CHAT, "-v", stdin=b"/image picture.png\nwhat is this?\n\nand the one?\n/clear\nthe\n/exit\nnever\n"
    )
    assert (status, out.count("\n") >= 3) == (0, True)
    lines = [line for line in err.splitlines() if line.startswith("[")]
    positions = [tuple(int(word) for word in line.replace("[", "").split() if word.isdigit())[:2] for line in lines]
    assert [images for _, images in positions] == [16, 16, 0], "the picture stays in the conversation until /clear"
    assert positions[1][0] > positions[0][0] > positions[2][0], "earlier turns come before later ones"


def test_chat_goes_on_after_an_error(cli):
    status, out, err = cli(*CHAT, stdin=b"/image broken.png\n/draw\n" + b"a " * 200 + b"\nthe\n")
    assert status == 2 and out.count("\n") >= 1
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3 and "/draw: command: expected /image FILE" in errors[1] and "context" in errors[2]


def test_ctrl_c_ends_an_answer_only(cli, monkeypatch):
    from llava_ref.generation.session import Session

    advance, calls = Session.advance, []

    def interrupted(self):
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(Session, "advance", interrupted)
    status, out, err = cli(*CHAT, stdin=b"the\na\n")
    assert status == 0 and "(stopped)" in err and len(calls) > 2
    calls.clear()
    assert cli("generate", *ASK)[0] == 130


USER_ERRORS = {
    "unknown command": ["draw"],
    "no server": ["apicheck", "http://127.0.0.1:9/v1"],
    "no URL": ["apicheck", "127.0.0.1:9"],
    "no such demand": ["apicheck", "http://127.0.0.1:9/v1", "--only", "pictures.tiff"],
    "no device": ["generate", *TEXT, "-p", "x", "--device", "cuda"],
    "option before the command": ["--device", "cpu", "generate", "-p", "x"],
    "shortened option before it": ["--vers"],
    "bad number": ["generate", "--temp", "minus one", "-p", "x"],
    "unknown option": ["generate", "-p", "x", "--speed", "9"],
    "shortened option": ["generate", *TEXT, "-p", "x", "--max-tok", "9"],
    "control characters": ["generate", "--temp", "\x1b[31m\n", "-p", "x"],
    "no prompt": ["generate", *TEXT],
    "missing file": ["generate", "-m", "nowhere.gguf", "-p", "x"],
    "broken file": ["tokenize", "-m", "broken.gguf", "x"],
    "not a GGUF": ["generate", "-m", "picture.png", "-p", "x"],
    "a folder": ["generate", "-m", ".", "-p", "x"],
    "missing picture": ["generate", *PAIR, "--image", "nowhere.png", "-p", "x"],
    "broken picture": ["encode", "--mmproj", "mmproj.gguf", "--image", "broken.png", "-o", "x.safetensors"],
    "no picture": ["encode", "--mmproj", "mmproj.gguf", "-o", "x.safetensors"],
    "picture without eyes": ["generate", *TEXT, "--image", "picture.png", "-p", "x"],
    "eyes without text": ["generate", "--mmproj", "mmproj.gguf", "-p", "x"],
    "swapped": ["generate", "-m", "mmproj.gguf", "--mmproj", "text.gguf", "-p", "x"],
    "temperature": ["generate", *TEXT, "-p", "x", "--temp", "nan"],
    "max tokens": ["generate", *TEXT, "-p", "x", "-n", "0"],
    "quirk": ["generate", *TEXT, "-p", "x", "--quirk", "gelu"],
    "quirk value": ["generate", *TEXT, "-p", "x", "--quirk", "gelu=soft"],
    "bias": ["generate", *TEXT, "-p", "x", "--logit-bias", "3:4"],
    "precision": ["generate", *TEXT, "-p", "x", "--precision", "quick"],
    "precision without a card": ["generate", *TEXT, "-p", "x", "--precision", "fast"],
    "weight cache": ["generate", *TEXT, "-p", "x", "--weight-cache", "nan"],
    "threads": ["generate", *TEXT, "-p", "x", "-t", "-3"],
    "context": ["generate", *TEXT, "-p", "x", "-c", "100000"],
    "too long": ["generate", *TEXT, "-p", "x" * 500],
    "not UTF-8": ["generate", *TEXT, "-p", "x\udcff"],
    "text file missing": ["tokenize", "-m", "text.gguf", "--file", "nowhere.txt"],
    "eval": ["demo", "--eval", "0"],
}


@pytest.mark.parametrize("name", USER_ERRORS)
def test_what_a_user_can_mend_is_one_line(name, cli):
    status, out, err = cli(*USER_ERRORS[name])
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and len(err) < 1100
    assert err.count(": ") >= 2, "file or argument, and what is wrong"
    assert err[:-1].isprintable()


def test_nan_is_an_error_not_an_answer(cli, folder):
    write_text(folder / "nan.gguf", Tiny(poisoned="blk.0.ffn_up.weight"))
    status, out, err = cli(
        "generate", "-m", "nan.gguf", "--template", "vicuna", "-p", "x", "--json", "--backend", "numpy"
    )
    assert (status, out) == (2, "") and "NaN" in err and "blk.0." in err


def test_the_name_alone_prints_the_help(ending):
    status, out, err = ending()
    assert (status, err) == (0, "") and ending("-h") == ending("--help") == (status, out, err)
    assert max(map(len, out.splitlines())) <= 80, "what a narrow terminal shows"
    titles = [line for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["options:", *(f"{title}:" for title in COMMAND_GROUPS), "To begin:"]
    for title, commands in COMMAND_GROUPS.items():
        shown = out.partition(f"\n{title}:\n")[2].partition("\n\n")[0]
        assert [line.split(maxsplit=1) for line in shown.splitlines()] == [list(pair) for pair in commands.items()]


def test_version_names_what_a_report_needs():
    code = "import sys; from llava_ref.cli import main\ntry: main(['--version'])\n"
    code += "finally: print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = run_python("-c", code)
    *found, heavy = done.stdout.splitlines()
    lines = dict(line.split(" ", 1) for line in found)
    assert (done.returncode, heavy) == (0, "[]"), "nothing heavy is imported"
    assert list(lines) == ["llava-ref", "python", "torch", "numpy", "platform"]
    assert lines["python"] == platform.python_version() and lines["numpy"] == np.__version__
    assert lines["llava-ref"] == llava_ref.__version__ and lines["platform"] == platform.platform()


def test_a_full_device_is_one_line(monkeypatch, capsys):
    full = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.6 GiB of which ..."

    def load(*args, **options):
        raise torch.OutOfMemoryError(full)

    monkeypatch.setattr("llava_ref.tools.options.load", load)
    assert main(["generate", "-p", "x"]) == 2
    assert capsys.readouterr().err == "error: device: memory: CUDA out of memory. Tried to allocate 2.00 GiB\n"


def test_version_without_torch(monkeypatch):
    def version(name):
        if name == "torch":
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(metadata, "version", version)
    assert versions()["torch"] == "(not installed)"


def test_unknown_commands_and_precisions_are_refused(cli):
    assert cli("draw")[2] == f"error: 'draw': command: unknown, expected one of {', '.join(COMMANDS)}\n"
    assert "--precision: 'quick': unknown, expected one of exact, fast, ggml\n" in cli(*USER_ERRORS["precision"])[2]


@pytest.mark.parametrize(
    "line, says",
    [
        ("confrom", "batch; did you mean conform?"),
        ("generate --mmprj=x -p x", "unrecognized arguments: --mmprj=x; did you mean --mmproj?"),
        ("generate -p x y", "unrecognized arguments: y"),
        ("generate -p x --xyzzy", "unrecognized arguments: --xyzzy"),
        ("generate -p x --quirk galu=tanh", "flash_attention; did you mean gelu?"),
        ("generate -p x --template vicunna", "a file with a chat template; did you mean vicuna?"),
        ("trace -p x -o x.safetensors --names blk.0.Qcurr", "in all); did you mean blk.0.Qcur?"),
        (
            "generate -p x --backend nunpy",
            "--backend: 'nunpy': unknown, expected one of torch, numpy; did you mean numpy?",
        ),
        ("generate -p x --device cudda", "cpu, cuda; did you mean cuda?"),
        ("generate -p x --precision exakt", "exact, fast, ggml; did you mean exact?"),
        ("generate -p x --profile lama.cpp", "llava, hf, llama.cpp; did you mean llama.cpp?"),
        ("quality --rank tensor", "tensors, layers, none; did you mean tensors?"),
        ("completion fisch", "SHELL: 'fisch': unknown, expected one of bash, zsh, fish; did you mean fish?"),
        ("generate -m txt.gguf -p x", "txt.gguf: file: No such file or directory; did you mean text.gguf?"),
        ("generate -p x --image pictur.png", "did you mean picture.png?"),
        ("inspect nowhere/../mmprj.gguf", "No such file or directory"),
        ("tokenize --file brokn.png", "brokn.png: file: No such file or directory; did you mean broken.png?"),
        ("generate -p x --template text.ggu", "no known template, and no such file; did you mean text.gguf?"),
        ("conform -p x --against llama.ccp", "this:NAME=VALUE,...; did you mean llama.cpp?"),
        ("conform -p x --against pictur.png", "this:NAME=VALUE,...; did you mean picture.png?"),
        ("generate -p x --image nothing/like/it.png", "No such file or directory"),
    ],
)
def test_a_misspelt_name_gets_a_suggestion(cli, line, says):
    status, out, err = cli(*line.split())
    assert (status, out) == (2, "") and err.endswith(f"{says}\n") and err.startswith("error: ")


def test_help_for_every_command(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as caught:
            main([name, "--help"])
        text = COMMANDS[name]
        assert caught.value.code == 0
        assert f"{text[0].upper()}{text[1:]}." in " ".join(capsys.readouterr().out.split())


BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def run_python(*arguments, **options):
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_the_program_in_a_process_of_its_own(folder):
    done = run_python("-m", "llava_ref", "generate", *ASK, "-n", "2", "--json", cwd=folder)
    assert done.returncode == 0 and json.loads(done.stdout)["usage"]["completion_tokens"] == 2
    done = run_python("-m", "llava_ref", "generate", "-m", "nowhere.gguf", "-p", "x", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("error: nowhere.gguf: ")


def test_the_numpy_backend_needs_no_torch(folder):
    code = (
        "import sys; from llava_ref.cli import main; status = main(sys.argv[1:]);"
        "print([m for m in ('torch', 'triton', 'transformers', 'llvmlite') if m in sys.modules], status)"
    )
    done = run_python("-c", code, "generate", *ASK, "-n", "2", cwd=folder)
    assert done.stdout.endswith("[] 0\n"), done.stderr


def test_without_torch_the_torch_backend_is_one_line(folder):
    code = "import sys; sys.modules['torch'] = None; from llava_ref.cli import main; sys.exit(main(sys.argv[1:]))"
    done = run_python("-c", code, "generate", *ASK, "--backend", "torch", cwd=folder)
    assert done.returncode == 2 and done.stderr.startswith("error: backend: 'torch': ") and done.stderr.count("\n") == 1


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, llava_ref; print([m for m in ('numpy', 'torch', 'PIL', 'jinja2') if m in sys.modules])"
    assert run_python("-c", code).stdout == "[]\n"


def test_dir_shows_the_names_that_are_not_imported_yet():
    code = "import sys, llava_ref; print(*dir(llava_ref)); print([m for m in ('numpy', 'torch') if m in sys.modules])"
    names, heavy = run_python("-c", code).stdout.splitlines()
    assert {*llava_ref.__all__, "__version__"} <= set(names.split()) and heavy == "[]"
    assert not {"Any", "import_module"} & set(names.split())


def test_a_closed_pipe_is_no_error(folder):
    command = [sys.executable, "-m", "llava_ref", "tokenize", "-m", "text.gguf", "the"]
    pipe = subprocess.PIPE
    program = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=folder, env=BUFFERED)
    program.stdout.close()
    with program.stderr:
        assert (program.wait(60), program.stderr.read()) == (141, "")


def test_a_full_disk_is_one_line(folder):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "llava_ref", "tokenize", "-m", "text.gguf", "the"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=folder, env=BUFFERED)
    assert done.returncode == 2 and done.stderr == "error: output: file: No space left on device\n"


def test_pictures_in_a_terminal():
    picture = Image.new("RGB", (40, 20), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 10, 40, 20))
    lines = draw(picture, columns=4).split("\n")
    assert len(lines) == 1 and lines[0].count("▀") == 4
    assert lines[0].startswith("\x1b[38;2;255;0;0m\x1b[48;2;0;0;255m▀") and lines[0].endswith("\x1b[0m")
