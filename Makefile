# make demo, make example, make test: from a bare clone, with nothing prepared but Python and Debian's programs

PYTHON = python3
VENV = .venv
# Dependency groups of pyproject.toml
GROUPS = test lint
ARGS =

# The programs that the tests need, and Debian's packages that have them; `example` needs a few of them only
PROGRAMS = nginx apache2 caddy haproxy redis-server rabbitmq-server prometheus promtool chromium chromedriver curl git openssl htpasswd systemd-analyze systemd-socket-activate
PACKAGES = nginx apache2-bin caddy haproxy redis-server rabbitmq-server prometheus chromium chromium-driver curl git openssl apache2-utils systemd

PIP = $(VENV)/bin/python -m pip --quiet --disable-pip-version-check

.PHONY: help demo example test lint bench programs clean

help:
	@echo 'make demo     Flower with a worker and a trickle of tasks; ARGS="--port 8000 --broker redis://localhost:6379/0"'
	@echo 'make example  Django, its worker and Flower behind nginx with TLS; ARGS="--port 8443"'
	@echo 'make test     lint and all tests; ARGS="-k name" for some of them'
	@echo 'make lint     ruff, mypy and the layers of imports'
	@echo 'make bench    what it costs, measured against stock Flower'
	@echo 'make clean    remove what these have made'
	@echo 'PYTHON=python3.13 VENV=.venv-3.13 use another Python and another folder'

demo: $(VENV)/.installed
	@$(VENV)/bin/flower-proxy demo $(ARGS)

example: PROGRAMS = nginx redis-server openssl
example: PACKAGES = nginx redis-server openssl
example: programs $(VENV)/.installed-for-example
	@$(VENV)/bin/python examples/django/run.py $(ARGS)

test: programs lint
	$(VENV)/bin/python -m pytest $(ARGS)

lint: $(VENV)/.installed-for-tests
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo --no-cache

bench: programs $(VENV)/.installed-for-tests
	$(VENV)/bin/python -m tests.bench $(ARGS)

# What comes last when a virtual environment is made
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed, and $(PYTHON) is older: make PYTHON=python3.13")'
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

# Debian keeps nginx and its like where only root's PATH looks
programs:
	@export PATH="$$PATH:/usr/sbin:/sbin"; \
	for program in $(PROGRAMS); do \
	    command -v $$program > /dev/null || missing="$$missing $$program"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" -ne 0 ] || ! command -v apt-get > /dev/null; then \
	    echo "Missing:$$missing; sudo apt-get install $(PACKAGES)" >&2; exit 1; \
	fi; \
	apt-get update --quiet && DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends $(PACKAGES)

clean:
	rm -rf .venv .venv-* build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
