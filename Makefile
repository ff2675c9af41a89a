# `make demo` sets everything up and runs the main job; `make test` runs the tests. Both work on a bare machine with
# Python 3.10 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUNTIME := $(VENV)/.runtime

# All tests and every example of the laws with ALL=1, as in CI; else without the tests that take seconds each (marked
# slow), and with fewer examples. ARGS goes to pytest.
ALL ?= $(filter true,$(CI))

# One call beside AMCT's functions, for the report at the end of the demo.
DEMO := model/resnet-101.onnx --data data/images --preset torch --save_path outputs/quantize/resnet-101

# How many networks `make laws` tries.
N ?= 1000

.PHONY: demo test test-all lint docs conformance laws bench bench-flow digests effort accuracy hard agreement auto mixed batch large adaround rounding transformers dynamic qat patterns scale kill engines encoder prices draws placement beside-float without-vnni streaming clean

$(STAMP): pyproject.toml setup.py $(wildcard src/amct_onnx/*/*.[ch] src/amct_onnx/*/*/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	$(BIN)/python -m compileall -q src  # an editable installation is not compiled otherwise where Python may not write
	touch $@

# What only tests need is not installed for it, unless that is there already.
$(RUNTIME): pyproject.toml setup.py $(wildcard src/amct_onnx/*/*.[ch] src/amct_onnx/*/*/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	$(BIN)/python -m compileall -q src
	touch $@

demo: $(if $(wildcard $(STAMP)),$(STAMP),$(RUNTIME))
	cd samples/resnet-101 && ../../$(BIN)/python ./src/resnet-101_calibration.py
	cd samples/resnet-101 && ../../$(BIN)/amct_onnx quantize $(DEMO)
	cd samples/resnet-101 && ../../$(BIN)/amct_onnx report outputs/quantize/resnet-101

test: $(STAMP)
	$(if $(ALL),HYPOTHESIS_PROFILE=thorough) $(BIN)/python -m pytest -n auto --dist worksteal $(if $(ALL),,-m "not slow") $(ARGS)

test-all:
	$(MAKE) test ALL=1

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP)
	$(BIN)/python -m mkdocs build --strict

conformance: $(STAMP)
	$(BIN)/python benchmarks/conformance.py $(ARGS)

laws: $(STAMP)
	$(BIN)/python tests/laws/many_networks.py $(N) $(ARGS)

bench: $(STAMP)
	$(BIN)/python benchmarks/beside_peers.py $(ARGS)

bench-flow: $(STAMP)
	$(BIN)/python benchmarks/speed.py

digests: $(STAMP)
	$(BIN)/python benchmarks/digests.py $(ARGS)

effort: $(STAMP)
	$(BIN)/python benchmarks/effort.py $(ARGS)

accuracy: $(STAMP)
	$(BIN)/python benchmarks/accuracy.py $(ARGS)

hard: $(STAMP)
	$(BIN)/python benchmarks/hard.py $(ARGS)

agreement: $(STAMP)
	$(BIN)/python benchmarks/agreement.py

auto: $(STAMP)
	$(BIN)/python benchmarks/auto_calibration.py

draws: $(STAMP)
	$(BIN)/python benchmarks/draws.py $(ARGS)

mixed: $(STAMP)
	$(BIN)/python benchmarks/mixed.py $(ARGS)

batch: $(STAMP)
	$(BIN)/python benchmarks/batch.py $(ARGS)

large: $(STAMP)
	$(BIN)/python benchmarks/large.py

adaround: $(STAMP)
	$(BIN)/python benchmarks/adaround.py

transformers: $(STAMP)
	$(BIN)/python benchmarks/transformer_models.py $(ARGS)

dynamic: $(STAMP)
	$(BIN)/python benchmarks/dynamic.py $(ARGS)

rounding: $(STAMP)
	$(BIN)/python benchmarks/rounding.py $(ARGS)

prices: $(STAMP)
	$(BIN)/python benchmarks/prices.py $(ARGS)

qat: $(STAMP)
	$(BIN)/python benchmarks/qat.py

encoder: $(STAMP)
	$(BIN)/python benchmarks/encoder.py $(ARGS)

placement: $(STAMP)
	$(BIN)/python benchmarks/placement.py $(ARGS)

patterns: $(STAMP)
	$(BIN)/python benchmarks/patterns.py $(ARGS)

without-vnni: $(STAMP)
	$(BIN)/python benchmarks/without_vnni.py $(ARGS)

beside-float: $(STAMP)
	$(BIN)/python benchmarks/beside_float.py $(ARGS)

streaming: $(STAMP)
	$(BIN)/python benchmarks/streaming.py $(ARGS)

scale: $(STAMP)
	$(BIN)/python benchmarks/scale.py $(ARGS)

kill: $(STAMP)
	$(BIN)/python benchmarks/kill.py $(ARGS)

engines: $(STAMP)
	$(BIN)/python benchmarks/engines.py $(ARGS)

clean:
	rm -rf $(VENV) build dist
