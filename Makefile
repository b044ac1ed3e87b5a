# make demo, make example, make test: from a bare clone; each target names the programs that are missing

PYTHON = python3
VENV = .venv
# Dependency groups of pyproject.toml; without lint, make test runs the tests alone
GROUPS = test lint
ARGS =
# 1 installs Debian's packages that are missing
INSTALL ?=

# Container images set it, but then each of the many programs that tests start compiles its modules again
export PYTHONDONTWRITEBYTECODE =

# The programs that each target needs; .ci/prerequisites knows their packages
PROGRAMS_example = nginx redis-server openssl
PROGRAMS_test = nginx apache2 caddy haproxy redis-server rabbitmq-server epmd prometheus promtool chromium-headless-shell chromedriver curl git openssl htpasswd systemd-analyze systemd-socket-activate
PROGRAMS_test-system = debootstrap systemd-nspawn nsenter
PROGRAMS_fuzz = $(PROGRAMS_test)
PROGRAMS_coverage = $(PROGRAMS_test)
PROGRAMS_bench = $(PROGRAMS_test)

PIP = $(VENV)/bin/python -m pip --quiet --disable-pip-version-check
# Two processes for each core, since they often wait; one that starts a server keeps the tests that share it
PYTEST = $(VENV)/bin/python -m pytest --numprocesses auto --dist loadgroup --no-loadscope-reorder

.PHONY: help demo example format lint test test-unit test-system root fuzz coverage bench outdated prerequisites clean

help:
	@echo 'make demo     Flower with a worker and a trickle of tasks; ARGS="--address 0.0.0.0 --broker redis://localhost:6379/0"'
	@echo 'make example  Django, its worker and Flower behind nginx with TLS; ARGS="--address 0.0.0.0 --port 8443"'
	@echo 'make format   format the code and fix the imports'
	@echo 'make lint     ruff, mypy, import-linter and codespell'
	@echo 'make test     lint and all tests; ARGS="tests/http -k name" for some of them'
	@echo 'make test-unit    the tests that need nothing but Python'
	@echo 'make test-system  as root: boot Debian in a container and start every systemd unit; MIRROR=URL'
	@echo 'make fuzz     the property tests with 50 times the examples'
	@echo 'make coverage     branch coverage of the unit, HTTP and process tests'
	@echo 'make bench    one table of CPU, losses, latency and memory compared with stock Flower, in an hour; ARGS="bursts --scale 0.1"; fails where a bar is not met'
	@echo 'make outdated     newer releases of the dependencies'
	@echo 'make clean    remove the files that these targets have created'
	@echo 'INSTALL=1     as root, first install the missing Debian packages; their services are not started'
	@echo 'PYTHON=python3.13 VENV=.venv-3.13 use another Python and another folder'

demo: $(VENV)/.installed
	@$(VENV)/bin/flower-proxy demo $(ARGS)

example: $(VENV)/.installed-for-example
	@$(VENV)/bin/python examples/django/run.py $(ARGS)

format: $(VENV)/.installed-for-tests
	$(VENV)/bin/ruff check --fix-only
	$(VENV)/bin/ruff format

lint: $(VENV)/.installed-for-tests
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo --no-cache
	$(VENV)/bin/codespell

test: $(filter lint,$(GROUPS)) $(VENV)/.installed-for-tests
	$(PYTEST) $(ARGS)

test-unit: $(VENV)/.installed-for-tests
	$(PYTEST) tests/unit $(ARGS)

# Separate from test: only root can start a container
test-system: root $(VENV)/.installed-for-tests
	$(VENV)/bin/python -m pytest --verbose --tb=short tests/system/units.py $(ARGS)

root:
	@[ "$$(id -u)" -eq 0 ] || { echo 'make test-system: run it as root, which systemd-nspawn needs' >&2; exit 1; }

fuzz: $(VENV)/.installed-for-tests
	$(PYTEST) --hypothesis-profile fuzz -m hypothesis $(ARGS)

coverage: $(VENV)/.installed-for-tests
	$(PYTEST) --cov --cov-report term:skip-covered tests/unit tests/http tests/process $(ARGS)

bench: $(VENV)/.installed-for-tests
	$(VENV)/bin/python -m tests.bench $(ARGS)

outdated: $(VENV)/.installed-for-tests
	$(PIP) list --outdated

# For all goals at once; everything that is created depends on it
prerequisites:
	@INSTALL='$(INSTALL)' sh .ci/prerequisites '$(PYTHON)' '$(VENV)' $(sort $(foreach goal,$(MAKECMDGOALS),$(PROGRAMS_$(goal))))

# pip comes last when a virtual environment is made
$(VENV)/bin/pip: | prerequisites
	@echo 'Installing into $(VENV), once'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.installed-for-example: pyproject.toml examples/django/requirements.txt | $(VENV)/bin/pip
	@$(PIP) install --editable . --requirement examples/django/requirements.txt supervisor
	@touch $@ $(VENV)/.installed

# Dependency groups came with pip 25.1
$(VENV)/.installed-for-tests: pyproject.toml | $(VENV)/bin/pip
	@$(PIP) install --upgrade 'pip>=25.1'
	@$(PIP) install --editable . $(foreach group,$(GROUPS),--group $(group))
	@touch $@ $(VENV)/.installed

clean:
	rm -rf .venv .venv-* build dist .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
