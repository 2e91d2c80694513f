# The first target that needs it builds .venv; after that `make` only looks whether the requirements have changed.
# CPU-only torch on Linux (smaller): make setup TORCH_BACKEND=cpu
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN = .venv/bin
INSTALLED = .venv/installed
unexport PYTHONDONTWRITEBYTECODE  # every kernel would have to compile what it imports
IPYWIDGETS7 = ipywidgets==7.7.1 ipython_genutils==0.2.0  # what Colab has; the panels' tests run with it, too

.PHONY: setup lab voila test test-all test-slow test-browser test-colab loopback notebooks exercises course site results checkpoints litert litert-files triton constraints clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "kd_lab needs Python 3.11 or newer; none was found. Set PYTHON=/path/to/python3."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --python $(BIN)/python $(if $(TORCH_BACKEND),--torch-backend=$(TORCH_BACKEND)) \
		--constraint constraints.txt --editable '.[lab,test]'
	$(BIN)/uv pip install --python $(BIN)/python --target .venv/ipywidgets7 --no-deps $(IPYWIDGETS7)
	$(BIN)/jupyter labextension disable --level=sys_prefix @jupyterlab/apputils-extension:announcements
	touch $@

lab: setup loopback  # in copies of the lessons without their outputs; root, as in a container, is refused by Jupyter unless it is told
	$(BIN)/python notebooks/lab.py
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.default_url=/lab/tree/notebooks/mine/00_start_here.ipynb

LESSON ?= 00_start_here

voila: setup loopback  # a lesson as a page without its code; notebooks/voila.json keeps it from asking other machines
	cd notebooks && ../$(BIN)/voila $(LESSON).ipynb

# A file's tests stay together; two processes with a thread each don't wait for each other's cores.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: setup loopback  # every lesson, every quick test; with AGAIN=--again each lesson once more, and from its end
	$(PYTEST) $(AGAIN)

test-slow: setup triton loopback  # what takes long, exercises and solutions
	$(PYTEST) --run slow

test-browser: setup loopback  # needs Chromium
	$(PYTEST) -m browser tests/browser

test-all: test test-slow test-browser  # everything but the next

test-colab: setup loopback .colab/installed  # every lesson and panel in Colab's environment; needs Chromium
	$(PYTEST) --dist loadgroup tests/colab

PYTHON313 ?= $(shell for python in python3.13 "$$(pyenv prefix 3.13 2>/dev/null)/bin/python"; do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))' 2>/dev/null && echo $$python && break; done)

.colab/installed: tests/colab/versions.txt | $(INSTALLED)  # 6 GB, beside .venv
	@test -n "$(PYTHON313)" || { echo "Colab has Python 3.13; none was found. Set PYTHON313=/path/to/python3.13."; exit 1; }
	$(BIN)/uv venv --quiet --clear --python $(PYTHON313) .colab
	sed '/^# Added/q' $< | $(BIN)/uv pip install --quiet --python .colab/bin/python --requirement -
	touch $@

loopback:  # notebooks talk to their kernels over it; in a network namespace of its own (unshare -n) it is down at first
	@ip link set lo up 2>/dev/null || true

notebooks: setup  # runs lessons and solutions and saves them
	$(BIN)/python -m notebooks.build
	$(BIN)/python -m notebooks.exercises

exercises: setup  # from the solutions
	$(BIN)/python -m notebooks.exercises

course: setup loopback  # every lesson in order, from nothing, with its minutes
	$(BIN)/python -m notebooks.course

site: setup  # static pages of the lessons as they were saved, in site/_build/html; panels are recorded first
	$(BIN)/python -m notebooks.site

results: setup  # tables of results/README.md, lists of modules in README.md and CONTRIBUTING.md
	$(BIN)/python -m benchmarks._tables

checkpoints: setup
	$(BIN)/python -m kd_lab.checkpoints

CONVERTER = .litert/installed

litert: $(CONVERTER)  # 6 GB, beside .venv: what writes LiteRT files needs an older torch

$(CONVERTER): litert-constraints.txt | setup
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .litert
	$(BIN)/uv pip install --python .litert/bin/python --requirement litert-constraints.txt
	touch $@

litert-files: litert  # the LiteRT files that ship
	$(BIN)/python -m benchmarks._litert

triton: .triton/installed  # other clients of the servers, and the oldest protobuf, for the slow tests

.triton/installed: tests/deployment/triton.txt | $(INSTALLED)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .triton
	$(BIN)/uv pip install --quiet --python .triton/bin/python --requirement tests/deployment/triton.txt
	$(BIN)/uv pip install --quiet --python .triton/bin/python --target .triton/protobuf5 --no-deps protobuf==5.29.5
	touch $@

COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --no-header --no-annotate

constraints: setup  # takes the newest releases that fit pyproject.toml, and those of the other environments
	{ sed 1q constraints.txt; echo uv | $(COMPILE) --extra lab --extra test pyproject.toml -; } > constraints.new
	mv constraints.new constraints.txt
	{ sed 1q litert-constraints.txt; echo litert-torch | $(COMPILE) -; } > constraints.new
	mv constraints.new litert-constraints.txt
	{ sed 1q tests/deployment/triton.txt; printf 'schemathesis\ntritonclient[grpc,http]\n' | $(COMPILE) -; } > constraints.new
	mv constraints.new tests/deployment/triton.txt

clean:
	rm -rf .venv .litert .triton .colab site/_build data/MNIST/raw/*-ubyte
