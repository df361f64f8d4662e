# Everything runs from here: `make pretrain` and `make test` need python3, pip and make, and fetch the rest themselves.
# Arguments for the command underneath go through ARGS, as in `make pretrain ARGS='--trainer.max_epochs 1'`.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: help setup reference pretrain test test-alone lint format types docs bench wheel clean distclean

PY := .venv/bin/python
WORKERS ?= 2
ARGS ?=
CONFIG ?= configs/clay_pretrain.yaml
REFERENCE := .cache/reference/src/model.py

# A uv that really works: a shim of a version manager may be on the path and fail.
UV = $$(for uv in uv .uv/bin/uv; do if $$uv --version >/dev/null 2>&1; then echo $$uv; break; fi; done)

# Install into .venv. Where uv can't (its index is configured for pip alone), pip can.
install = echo "==> installing $(1) into .venv"; \
	$(UV) pip install --quiet --python $(PY) -e '$(1)' || { \
	echo '==> uv could not; trying pip'; \
	$(PY) -m ensurepip >/dev/null && $(PY) -m pip install --quiet -e '$(1)'; }

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

# A stamp, as make would take the age of the interpreter that .venv/bin/python links to.
.venv/.created: .python-version
	@if [ -z "$(UV)" ]; then \
		echo '==> no working uv: fetching one into .uv with pip'; \
		python3 -m pip install --quiet --target .uv uv || { \
		root=$$PWD; cd / && python3 -m pip install --quiet --target "$$root/.uv" uv; }; \
	fi
	@if $(PY) -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then \
		echo '==> keeping .venv'; \
	else \
		echo "==> creating .venv with $$($(UV) --version), Python $$(cat .python-version)"; \
		$(UV) venv --quiet --clear .venv || { \
		echo '==> no such Python; taking any from 3.12 on'; $(UV) venv --quiet --clear --python '>=3.12' .venv; }; \
	fi
	@touch $@

# One stamp per extra, inside .venv so that it goes with it; made again when pyproject.toml changes.
.venv/.installed-%: pyproject.toml | .venv/.created
	@$(call install,.[$*])
	@touch $@

setup: .venv/.installed-tests ## create .venv and install the package with what its tests need

# The released model's own code, the oracle of tests/parity. Its wheel is importable only from a folder named src.
$(REFERENCE): | .venv/.created
	@echo '==> fetching the reference model (claymodel 1.5.0) into .cache/reference'
	@$(UV) pip install --quiet --python $(PY) --no-deps --target .cache/reference/src claymodel==1.5.0 \
		|| echo '==> could not fetch it: the tests that compare with it will be skipped, and say so'

reference: $(REFERENCE) ## fetch the released model's code, which tests compare with

pretrain: .venv/.installed-tests ## pretrain Clay on CONFIG (default: a tiny model on synthetic scenes, on the CPU)
	@echo '==> torchgeo fit --config $(CONFIG) $(ARGS)'
	@.venv/bin/torchgeo fit --config $(CONFIG) $(ARGS)

test: .venv/.installed-tests $(REFERENCE) ## run every test in random order; tests this machine cannot run are skipped with a reason
	@echo '==> pytest, $(WORKERS) workers of one thread'
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

test-alone: .venv/.installed-tests $(REFERENCE) ## run each test in a forked process of its own, to find tests that need others
	@echo '==> pytest --alone, $(WORKERS) workers of one thread'
	@OMP_NUM_THREADS=1 $(PY) -m pytest --alone -n $(WORKERS) $(ARGS)

bench: .venv/.installed-tests $(REFERENCE) ## measure speed and memory beside the reference (needs 6 GB in the temporary folder)
	@echo '==> tests/benchmarks/bench.py $(ARGS)'
	@$(PY) tests/benchmarks/bench.py $(ARGS)

lint: .venv/.installed-lint ## check style
	@echo '==> ruff'
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

format: .venv/.installed-lint ## put style right
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

types: .venv/.installed-lint ## check types
	@echo '==> mypy'
	@.venv/bin/mypy

docs: .venv/.installed-docs ## build the documentation into docs/_build/html, warnings being errors
	@echo '==> sphinx'
	@rm -rf docs/generated docs/tutorials/data docs/tutorials/output
	@$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html $(ARGS)
	@echo '==> see docs/_build/html/index.html'

# Run from a folder of its own, so that nothing of the checkout can be imported by accident.
wheel: | .venv/.created ## build the wheel, install it into an environment of its own and train from there
	@echo '==> building the wheel into build/dist'
	@rm -rf build/dist build/wheel-run
	@$(UV) build --quiet --wheel --python $(PY) --out-dir build/dist
	@echo '==> installing it into build/wheel-env'
	@$(UV) venv --quiet --clear --python $(PY) build/wheel-env
	@$(UV) pip install --quiet --python build/wheel-env/bin/python build/dist/*.whl
	@mkdir -p build/wheel-run
	@echo '==> torchgeo fit from the installed configs, a few steps'
	@cd build/wheel-run && env=../wheel-env/bin && $$env/python -m torchgeo_clay configs \
		&& $$env/torchgeo fit --config "$$($$env/python -m torchgeo_clay configs clay_pretrain.yaml)" \
		--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_val_batches 2 $(ARGS)

clean: ## remove what was built and cached, but not .venv
	rm -rf build dist docs/_build docs/generated docs/tutorials/data docs/tutorials/output .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks

distclean: clean ## also remove .venv, .uv and .cache
	rm -rf .venv .uv .cache
