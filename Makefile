# Two commands for a fresh machine: `make demo` and `make test`. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin
EXTRAS ?= test

.PHONY: demo test install lint benchmark reproduce clean

demo: install  ## the main job on the embedded suite; resumes where it stopped
	$(RUN)/python scripts/demo.py --out runs/demo

test: install  ## every test; no GPU, no network, no display needed
	$(RUN)/python -m pytest tests --numprocesses 2 --dist loadfile --max-worker-restart 0

lint: install
	$(RUN)/ruff check . && $(RUN)/ruff format --check . && $(RUN)/lint-imports

benchmark: install  ## simulator, statistics, loader, model and RL against peers, whose environments it makes; the server
	$(RUN)/python benchmarks/envs.py --json results/benchmarks/envs.json
	$(RUN)/python benchmarks/data_statistics.py --json results/benchmarks/data_statistics.json
	$(RUN)/python benchmarks/loader.py --json results/benchmarks/loader.json
	$(RUN)/python benchmarks/model.py --json results/benchmarks/model.json
	$(RUN)/python benchmarks/rl.py --json results/benchmarks/rl.json
	$(RUN)/python benchmarks/serving.py --json results/benchmarks/serving.json

reproduce: install  ## hours: every number in results/ that is not a benchmark's; NAME=pa_rl (or pa-rl) one table's
	scripts/reproduce.sh $(subst -,_,$(NAME))

install: $(VENV)/.installed

# The constraints file of the interpreter's own line: 3.11 has the last JAX that supports it, 3.12 and later the newest.
$(VENV)/.installed: pyproject.toml $(wildcard constraints/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vla_jax needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Set PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints/$$($(RUN)/python -c 'import sys; print("py311" if sys.version_info < (3, 12) else "py312")').txt \
	  --editable '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf $(VENV) runs/demo
