"""Runs a harness as its command does (`only_included.py lm_eval --tasks ...`), without its own thousands of tasks: to
read their tables takes ten seconds."""

import importlib
import runpy
import sys
from functools import partialmethod

name = sys.argv[1]
manager = importlib.import_module(f"{name}.tasks").TaskManager
manager.__init__ = partialmethod(manager.__init__, include_defaults=False)
sys.argv = sys.argv[1:]
runpy.run_module(name, run_name="__main__", alter_sys=True)
