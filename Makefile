# Installs everything on a machine that has git, make and Python 3.11 or later, and runs the pipeline or the tests.
# If uv is installed, `uv run dvc repro` and `uv run pytest` do the same.

UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)

.PHONY: repro plan sweep learning-curve test test-slow browser demo demo-files lint lock

repro: .venv/ready          ## run the pipeline
	$(UV) run --no-sync dvc repro

plan: .venv/ready           ## what `repro` would run, where, for how long and at what cost
	@$(UV) run --no-sync python -m vlm plan

# One worker, because DVC's queue is unreliable with several. One evaluation can run in parallel: see modal.containers.
MODELS := 450M,1.6B,3B
TASK := car_maker
sweep: .venv/ready          ## an experiment with each of MODELS on TASK, one after the other
	@echo "follow it from another terminal: dvc queue status; dvc queue logs NAME; dvc exp show --only-changed"
	$(UV) run --no-sync dvc exp run --queue -S model=$(MODELS) -S task=$(TASK)
	$(UV) run --no-sync dvc queue start --jobs 1
	$(UV) run --no-sync dvc queue status

# What is finished is kept in the user's cache directory: stop it when you like, and type the same to continue.
learning-curve: .venv/ready  ## what to do with N labelled pictures: the accuracy of six methods against N, and a chart
	$(UV) run --no-sync dvc repro prepare
	$(UV) run --no-sync python -m vlm learning-curve

test: .venv/ready           ## the tests, a few minutes, two files at a time
	$(UV) run --no-sync pytest

test-slow: .venv/ready      ## the tests that take minutes each
	$(UV) run --no-sync pytest -m slow

# Without it these tests of `make test-slow` fail; nothing else needs it.
browser:                    ## Chromium, which the tests of the report drive, from Debian's or Ubuntu's packages
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then :; \
	elif command -v apt-get > /dev/null; then \
	  as_root=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	  $$as_root apt-get update -qq && $$as_root apt-get install -qq --yes --no-install-recommends chromium; \
	else \
	  echo "install Chromium or Google Chrome so that it is on the PATH; on macOS: brew install --cask chromium" >&2; exit 1; \
	fi

# Both need Python's standard library only. PORT=8000 fixes the port.
demo: demo-files            ## the exported classifier in a browser, on this machine
	@python3 demo/serve.py $(if $(PORT),--port $(PORT))

# Without it the tests of the demo, in `make test-slow`, fail; nothing else needs it.
demo-files:                 ## wllama, which the demo runs on, fetched once from npm's registry
	@python3 demo/fetch.py

lint: .venv/ready
	$(UV) run --no-sync ruff check
	$(UV) run --no-sync ruff format --check

lock: $(UV)                 ## update uv.lock, and requirements.lock for pip and container images
	$(UV) lock
	$(UV) export --quiet --format requirements-txt --no-dev --no-emit-project --no-header --output-file requirements.lock

.venv/ready: pyproject.toml | $(UV)
	@echo "installing the packages into .venv (half a minute on a fast network)"
	$(UV) sync --quiet
	@touch $@

.uv/bin/uv:
	@echo "installing uv into .uv"
	python3 -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv
