# SPDX-License-Identifier: GPL-3.0-or-later
# Two commands: `make demo` runs the main job on this machine, `make test` runs every check. Both start from a bare machine.

SHELL := /bin/bash
EXP ?= dkg
activate := . .venv/bin/activate
# The tests of a file share what they have made.
apart := --numprocesses auto --dist loadfile

.PHONY: help demo test soak setup setup-dev lint unit molecule e2e artifact schema down clean

help:  ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: setup  ## Run the DKG experiment on this machine, from nothing to the report
	@$(activate) && ansible-playbook site.yml -e exp=$(EXP)

test: setup-dev lint unit artifact molecule e2e  ## Every check, from a bare machine

setup:  ## Install what a run needs (system packages, .venv, host image)
	@./setup.sh

setup-dev:
	@./setup.sh --dev

lint:  ## Style, types, documentation
	$(activate) && ruff check . && ruff format --check .
	$(activate) && mypy
	$(activate) && vermin --quiet --no-tips --eval-annotations -t=3.7- plugins/module_utils
	$(activate) && yamllint --strict .
	$(activate) && ansible-lint
	shellcheck setup.sh .ci/run tests/artifact.sh

unit:  ## Unit tests
	$(activate) && pytest -rs $(apart)

artifact:  ## The built collection: Galaxy's importer, ansible-test sanity, the installed mode
	$(activate) && tests/artifact.sh

molecule:  ## A scenario per role, on hosts of the local cloud
	$(activate) && molecule test --all

e2e:  ## The journey, its faults, the local cloud, the report in a browser
	$(activate) && pytest -rs $(apart) tests/e2e

soak: setup-dev  ## The long tests: many members, for long
	$(activate) && pytest -s tests/soak

schema:  ## Write experiments/schema.json anew from the models
	$(activate) && PYTHONPATH=collections python -m ansible_collections.startline.lab.plugins.plugin_utils._experiment > experiments/schema.json

down:  ## Stop the local cloud and remove everything of it
	@$(activate) && python -m localcloud down

clean: down  ## And the environment, results and caches
	rm -rf .venv .startline results .ansible .mypy_cache .ruff_cache .pytest_cache
