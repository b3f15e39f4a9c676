# Everything a newcomer or a CI machine needs: Python >= 3.10 and make. `make help` lists the targets.
# On Linux, pip takes torch with CUDA (gigabytes). For the CPU build: export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin

# One torch thread a process: the workers share the cores.
export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-all mutants faults lint types wheel-check docs notebooks clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

demo: $(VENV)/.installed ## distil a teacher on a 2-D toy and write the report to runs/demo
	$(BIN)/dagdiff bench toy2d --quick --workers $(WORKERS) --out runs/demo
	@echo "Open runs/demo/report.html. For further commands, first run:"
	@echo "source $(BIN)/activate"

test: $(VENV)/.installed-dev ## the fast tests
	$(BIN)/python -m pytest -n $(WORKERS)

test-compatible: export MKL_CBWR := COMPATIBLE
test-compatible: test ## the fast tests on the arithmetic that all x86-64 processors share

test-all: $(VENV)/.installed-dev ## all tests, the slow ones too
	$(BIN)/python -m pytest -n $(WORKERS) -m "slow or not slow"

mutants: $(VENV)/.installed-dev ## put small faults into a copy of the tree and see that the tests notice each
	$(BIN)/python tests/mutants.py --workers $(WORKERS)

faults: $(VENV)/.installed-dev ## kill, starve and damage every command, and see that nothing is lost
	$(BIN)/python tests/faults.py

lint: $(VENV)/.installed-dev ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev ## mypy, strict
	$(BIN)/mypy

wheel-check: $(VENV)/.installed-dev ## build the wheel, install it elsewhere, import every module of it
	@BIN="$(BIN)" bash -euc "$$WHEEL_CHECK_SH"

# Material for MkDocs announces its end of life (May 2027) at every build; that is no fault of the pages.
docs: $(VENV)/.installed-docs ## build the documentation, strictly, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

notebooks: $(VENV)/.installed-dev ## execute the lessons and save their outputs
	$(BIN)/python notebooks/execute.py

clean: ## remove the environment, builds and caches (runs/ stays)
	rm -rf $(VENV) build dist site *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache .coverage htmlcov
	find dagdiff envs policies benchmarks tests notebooks -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. A stamp is older than pyproject.toml or constraints.txt only if these changed: then pip runs again.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo 'dagdiff needs Python >= 3.10. Name one: make PYTHON=python3.11 ...' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo 'No venv could be made. On Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e . -c constraints.txt
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $(VENV)/.installed $@

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]' -c constraints.txt
	@touch $(VENV)/.installed $@

# The wheel goes by way of the sdist, so nothing stale in build/ can enter it. Its environment is fresh and holds the wheel
# alone; a .pth lends it the dependencies of $(VENV) (the .pth files there are not read, so the checkout stays out of sight).
define WHEEL_CHECK_SH
checkout="$$PWD"
site="$$("$$BIN/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), sep="\n")' | sort -u)"
tmp="$$(mktemp -d)"
trap 'rm -rf "$$tmp"' EXIT
"$$BIN/python" -m build --no-isolation --outdir "$$tmp/dist" . >"$$tmp/log" 2>&1 || { cat "$$tmp/log"; exit 1; }
"$$BIN/python" -m venv "$$tmp/venv"
"$$tmp/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps "$$tmp"/dist/*.whl
echo "$$site" >"$$("$$tmp/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/lent.pth"
cd "$$tmp"
"$$tmp/venv/bin/python" -I -c "$$WHEEL_CHECK_PY" "$$checkout"
endef
export WHEEL_CHECK_SH

define WHEEL_CHECK_PY
import importlib, sys
from collections import Counter
from importlib.metadata import files
from pathlib import Path

checkout = Path(sys.argv[1]).resolve()
folders = {"dagdiff": "dagdiff", "envs": "dagdiff/envs", "policies": "dagdiff/policies", "benchmarks": "dagdiff/benchmarks"}
links = set(folders) - {"dagdiff"}  # the symlinks in dagdiff/, which rglob follows on no Python we serve
wanted = {
    f"{package}/{path.relative_to(checkout / folder).as_posix()}"
    for folder, package in folders.items()
    for path in (checkout / folder).rglob("*.py")
    if folder != "dagdiff" or path.relative_to(checkout / folder).parts[0] not in links
}
held = Counter(str(file) for file in files("dagdiff") if str(file).endswith(".py"))
if set(held) != wanted or max(held.values()) > 1:
    sys.exit(f"missing from the wheel: {sorted(wanted - set(held))}; only in it: {sorted(set(held) - wanted)}; held twice: "
             f"{[file for file, times in held.items() if times > 1]}. Is every package named in pyproject.toml?")
home = Path(sys.prefix).resolve()
for file in sorted(wanted):
    name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    origin = Path(importlib.import_module(name).__file__ or "")
    if home not in origin.resolve().parents:
        sys.exit(f"{name} came from {origin}, not from the wheel")
data = {path.relative_to(checkout).as_posix() for glob in ("py.typed", "report/templates/*.html.j2")
        for path in (checkout / "dagdiff").glob(glob)}
if data - {str(file) for file in files("dagdiff")}:
    sys.exit(f"data missing from the wheel: {sorted(data - {str(file) for file in files('dagdiff')})}")
print(f"{len(wanted)} modules imported from the wheel")
endef
export WHEEL_CHECK_PY
