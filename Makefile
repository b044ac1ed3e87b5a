# make demo, make example, make test: from a bare clone; each target names the programs that are missing

PYTHON = python3
VENV = .venv
# Dependency groups of pyproject.toml
GROUPS = test lint
ARGS =
# 1 installs Debian's packages that are missing
INSTALL ?=

# The programs that each target needs; .ci/prerequisites knows their packages
PROGRAMS_example = nginx redis-server openssl
PROGRAMS_test = nginx apache2 caddy haproxy redis-server rabbitmq-server epmd prometheus promtool chromium chromedriver curl git openssl htpasswd systemd-analyze systemd-socket-activate
PROGRAMS_test-system = debootstrap systemd-nspawn nsenter
PROGRAMS_bench = $(PROGRAMS_test)

PIP = $(VENV)/bin/python -m pip --quiet --disable-pip-version-check

.PHONY: help demo example test test-system root lint bench prerequisites clean

help:
	@echo 'make demo     Flower with a worker and a trickle of tasks; ARGS="--address 0.0.0.0 --broker redis://localhost:6379/0"'
	@echo 'make example  Django, its worker and Flower behind nginx with TLS; ARGS="--address 0.0.0.0 --port 8443"'
	@echo 'make test     lint and all tests; ARGS="-k name" for some of them'
	@echo 'make test-system  as root: boot a Debian and start every systemd unit there; MIRROR=URL'
	@echo 'make lint     ruff, mypy, codespell and the layers of imports'
	@echo 'make bench    what it costs, measured against stock Flower'
	@echo 'make clean    remove what these have made'
	@echo 'INSTALL=1     as root, first install the packages that are missing; their services are not started'
	@echo 'PYTHON=python3.13 VENV=.venv-3.13 use another Python and another folder'

demo: $(VENV)/.installed
	@$(VENV)/bin/flower-proxy demo $(ARGS)

example: $(VENV)/.installed-for-example
	@$(VENV)/bin/python examples/django/run.py $(ARGS)

test: lint
	$(VENV)/bin/python -m pytest $(ARGS)

# Not a part of test: only root can boot a machine
test-system: root $(VENV)/.installed-for-tests
	$(VENV)/bin/python -m pytest --verbose --tb=short tests/system/units.py $(ARGS)

root:
	@[ "$$(id -u)" -eq 0 ] || { echo 'make test-system: run it as root, which systemd-nspawn needs' >&2; exit 1; }

lint: $(VENV)/.installed-for-tests
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo --no-cache
	$(VENV)/bin/codespell

bench: $(VENV)/.installed-for-tests
	$(VENV)/bin/python -m tests.bench $(ARGS)

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
	rm -rf .venv .venv-* build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
