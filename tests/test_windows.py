"""What only POSIX has is never needed to import the library or to answer with a model."""

import subprocess
import sys

import pytest

TAKE_AWAY = """
import contextlib, sys, types
import torch, numpy, PIL.Image  # they decide by the platform's name what to ask for
with contextlib.suppress(ImportError):  # transformers brings it
    import regex
import mmap, os, select, signal, socket, time
for module, names in {
    os: "O_NONBLOCK O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NOCTTY sysconf sysconf_names fork forkpty getuid geteuid getgid "
        "getpgid setsid killpg uname sched_getaffinity sched_setaffinity getloadavg wait3 wait4 nice fchmod "
        "fchown chown mkfifo openpty posix_spawn posix_fadvise pread pwrite",
    mmap: " ".join(name for name in dir(mmap) if name.startswith(("MAP_", "PROT_", "MADV_"))),
    signal: "SIGALRM SIGHUP SIGUSR1 SIGUSR2 SIGPIPE SIGXCPU SIGCHLD SIGQUIT SIGTSTP alarm setitimer ITIMER_REAL "
            "pthread_sigmask SIG_BLOCK SIG_UNBLOCK SIG_SETMASK sigwait",
    select: "poll epoll devpoll kqueue EPOLLIN",
    socket: "AF_UNIX SO_REUSEPORT",
    time: "tzset clock_gettime CLOCK_MONOTONIC",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
import builtins
real_open = open
def no_proc(path, *more, **names):
    if str(path).startswith("/proc/") and "self" not in str(path):  # which libraries ask about themselves
        raise FileNotFoundError(path)
    return real_open(path, *more, **names)
builtins.open = no_proc
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ("resource", "fcntl", "termios", "tty", "pty", "pwd", "grp", "syslog", "readline"):
            raise ImportError(f"No module named {name!r}")
for name in ("resource", "fcntl", "termios", "tty", "pty", "pwd", "grp", "syslog", "readline"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Absent())
"""
ANSWER = """
import llava_ref
text, mmproj = llava_ref.embedded()
model = llava_ref.load(text, mmproj, backend={backend!r}, threads=1)
picture = min((text.parent / "pictures").glob("*.png"))
reply = model.chat([{{"role": "user", "content": [{{"type": "image", "image": picture}},
                                                 {{"type": "text", "text": "What color is it?"}}]}}], max_tokens=4)
print(reply.text)
"""
OWN_TEMPLATE = """
import llava_ref
try:
    own = "{{ messages[0].content }}"
    llava_ref.load(*llava_ref.embedded(), backend="numpy", template=own).chat([{"role": "user", "content": "Hello"}])
except llava_ref.LlavaError as error:
    print(error)
"""
IMPORTS = """
import importlib, pkgutil
import llava_ref
for module in pkgutil.walk_packages(llava_ref.__path__, "llava_ref."):
    if not module.name.endswith(("__main__", "sandbox_child")):
        importlib.import_module(module.name)
print("imported")
"""


def run(code: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", TAKE_AWAY + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_the_embedded_pair_answers(backend):
    code = ANSWER.format(backend=backend)
    usual = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert run(code) == usual.stdout != "\n"


def test_a_template_that_is_not_ours_is_refused_in_one_line():
    said = run(OWN_TEMPLATE)
    assert said.count("\n") == 1 and "template: templates of files run under limits" in said


def test_every_module_can_be_imported():
    assert run(IMPORTS) == "imported\n"
