# Debian builds Boost.Python, which Caffe needs, for its own interpreter only: .venv is made with that one. For another
# one with a libboost_pythonXY, give PYTHON=/path/to/python3 with every make command.
PYTHON = /usr/bin/python3
RUNS ?= 1
MINUTES ?= 10
FUZZ_TIMES ?= 10
FUZZ_S ?= 120
SANITIZE_NETS ?= 10000
SANITIZE_S ?= 600
MUTANTS ?= 300
SEED ?= 0
# Half of the tests' time is waiting for processes and timeouts, so twice as many processes as cores keep the cores busy.
TEST_PROCESSES ?= 4
# Tests start many Pythons. Where the environment says not to write bytecode, as in many containers, each of them would
# compile ionn again.
PYTEST := env --unset PYTHONDONTWRITEBYTECODE .venv/bin/python -m pytest -n $(TEST_PROCESSES) --dist worksteal

SYSTEM_PACKAGES := ca-certificates cmake g++ libboost-filesystem-dev libboost-python-dev libboost-thread-dev \
  libgflags-dev libgoogle-glog-dev libhdf5-dev libopenblas-dev libprotobuf-dev libseccomp2 ninja-build protobuf-compiler \
  python3-dev python3-venv

# What `import ionn` offers comes first, then the modules of what it takes and returns.
REFERENCE := ionn.api ionn.errors ionn.records ionn.model.network ionn.model.slices ionn.planning.graph \
  ionn.planning.plan ionn.planning.planners ionn.costs.models ionn.costs.loading ionn.costs.features \
  ionn.testbed.trace ionn.testbed.settings ionn.testbed.arrivals ionn.testbed.bandwidth ionn.testbed.responses \
  ionn.testbed.sweep_table ionn.protocol.curve

# These make another Debian, which takes root's rights. In another user's checkout, root would leave files that this user
# cannot remove. ARCH, for `wheels`, counts only on make's command line: the environment's may be for other programs. No
# other text than the name of an architecture gets from it to a shell.
ASKED := $(if $(filter command,$(firstword $(origin ARCH))),$(value ARCH))
AS_ROOT := $(filter test-container test-service test-debian13 test-arm64 $(if $(ASKED),wheels),$(MAKECMDGOALS))
override ARCHITECTURE :=
ifneq ($(AS_ROOT),)
override ARCHITECTURE := $(if $(filter-out amd64 arm64,$(ASKED))$(word 2,$(ASKED)),\
  $(error ARCH is arm64, or on an arm64 machine amd64),$(ASKED))
ifeq ($(shell id -u),0)
ifneq ($(shell stat --format %u .),0)
$(error this checkout is not root's: clone it as root, and run 'make $(AS_ROOT)' in the clone)
endif
endif
endif

# .venv is complete when it has the stamp, a digest of what it is made from and of its place, as it has absolute paths.
RECIPE := $(addprefix caffe-build/,CMakeLists.txt build_wheel.py pyproject.toml sdist.txt)
STAMP := .venv/set-up-$(shell { pwd; echo '$(PYTHON)'; cat setup.py $(RECIPE) /etc/os-release; } | sha256sum | cut -c 1-16)

# A Caffe of the user's must not come before ours.
unexport PYTHONPATH PYTHONHOME

# Targets share .venv, dist/ and results/, and those that take long use several processors by themselves.
.NOTPARALLEL:
.PHONY: help setup system-packages models wheels test test-long test-container test-service test-debian13 test-arm64 \
  lint docs reproduce beyond figures bench soak fuzz sanitize mutants clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## install Debian packages, and make .venv with ionn and Caffe (compiled once per user): 2 to 4 minutes

# This runs every time: dpkg-query takes milliseconds, and apt-get is called only if packages are missing.
system-packages:
	@installed=$$(dpkg-query --show --showformat '$${db:Status-Status}:$${Package} ' $(SYSTEM_PACKAGES) 2>/dev/null); \
	missing=; \
	for package in $(SYSTEM_PACKAGES); do \
	  case " $$installed" in *" installed:$$package "*) ;; *) missing="$$missing $$package" ;; esac; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	install="apt-get update && apt-get install --yes --no-install-recommends$$missing"; \
	if [ "$$(id -u)" = 0 ]; then as_root=; \
	elif sudo -n true 2>/dev/null; then as_root='sudo -n'; \
	else printf 'Debian packages are missing. Run this line as root, then make again:\n%s\n' "$$install" >&2; exit 1; fi; \
	echo "Installing Debian packages:$$missing"; \
	$$as_root env DEBIAN_FRONTEND=noninteractive sh -c "$$install" </dev/null

$(STAMP): | system-packages
	@echo "Making .venv with $(PYTHON)"
	@$(PYTHON) -m venv --clear .venv
	@wheel=$$(.venv/bin/python caffe-build/build_wheel.py) && \
	  echo "Installing ionn and what it needs into .venv" && \
	  .venv/bin/python -m pip install --quiet --disable-pip-version-check "$$wheel" --editable '.[test]'
	@.venv/bin/python -c 'import caffe'
	@touch $@

models: setup ## build the weights in models/ (seeded, always the same), and code them: 25 s
	@.venv/bin/python models/build_models.py

wheels: setup ## build the wheels of ionn and Caffe into dist/, to install elsewhere; as root with ARCH=arm64, for arm64
	@wheel=$$($(if $(ARCHITECTURE),PYTHONPATH=. .venv/bin/python caffe-build/build_cross.py $(ARCHITECTURE),\
	  .venv/bin/python caffe-build/build_wheel.py)) && \
	  rm -rf build dist && \
	  .venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist . && \
	  cp "$$wheel" dist/
	@ls dist/*.whl

test: models ## run the tests: 12 minutes on two cores
	$(PYTEST)

test-long: models ## run the tests that take too long for that, and 1,000 generated nets: 6 minutes
	IONN_NETS=1000 $(PYTEST) -m 'long or nets' --timeout 1200

test-container: setup ## execute deploy/Dockerfile without a container engine, and run the image; as root: 10 minutes
	.venv/bin/python -m tests.systems container

test-service: wheels ## start deploy/ionn.service with systemd in a Debian of its own; as root: 3 minutes
	.venv/bin/python -m tests.systems service

test-debian13: setup ## run set-up, lint, tests and wheels in a Debian 13 of its own; as root: half an hour
	.venv/bin/python -m tests.systems debian trixie

test-arm64: models ## run ionn on arm64, in a Debian in qemu, and its client with a server here; as root
	@$(MAKE) --no-print-directory wheels ARCH=arm64
	.venv/bin/python -m tests.systems arm64

lint: setup ## check style and types with ruff and mypy
	.venv/bin/python -m ruff check
	.venv/bin/python -m ruff format --check
	.venv/bin/python -m mypy

docs: setup ## write the reference of the library into docs/reference/
	.venv/bin/python -m pdoc --no-show-source --output-directory docs/reference $(REFERENCE)

reproduce: models ## run the paper's experiment into results/: 7 minutes; RUNS=10 for as many runs as the paper
	.venv/bin/python bench/reproduce.py --runs $(RUNS)

beyond: models ## run what goes beyond the paper, into results/beyond/: 4 minutes
	.venv/bin/python bench/beyond.py

figures: setup ## draw the figures and write the report again, from the traces in results/
	.venv/bin/ionn figures

bench: models ## run the benchmarks of this project's own claims: 17 minutes
	.venv/bin/python bench/run_all.py

soak: models ## run clients at a server for MINUTES=10, while processes are killed and frozen at random
	.venv/bin/python bench/soak.py --minutes $(MINUTES)

fuzz: models ## run fuzz tests and properties with FUZZ_TIMES=10 times the cases, more nets, atheris FUZZ_S=120 s a decoder
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	FUZZ_TIMES=$(FUZZ_TIMES) .venv/bin/python -m pytest --timeout 0 tests/fuzz
	FUZZ_TIMES=$(FUZZ_TIMES) $(PYTEST) -m hypothesis --timeout 0 --ignore tests/fuzz
	IONN_NETS=$$(($(FUZZ_TIMES) * 1000)) $(PYTEST) -m nets --timeout 0
	@mkdir -p results/fuzz
	for target in message caffemodel prototxt coded sidecar; do \
	  .venv/bin/python -m tests.fuzz.decoders $$target -max_total_time=$(FUZZ_S) -artifact_prefix=results/fuzz/$$target- \
	    || exit 1; \
	done

sanitize: setup ## run a Caffe with AddressSanitizer and UBSan on SANITIZE_NETS=10000 nets, SANITIZE_S=600 s at most
	caffe=$$(.venv/bin/python caffe-build/build_sanitized.py) && .venv/bin/python -m tests.sanitize.run \
	  --caffe "$$caffe" --nets $(SANITIZE_NETS) --limit-s $(SANITIZE_S) --seed $(SEED)

mutants: models ## put MUTANTS=300 small faults into the code, one at a time, and count what tests notice: 20 minutes
	.venv/bin/python -m tests.mutants.mutate --mutants $(MUTANTS) --seed $(SEED)

clean: ## remove what make built here; results/ and the wheel in the user's cache stay
	rm -rf .venv *.egg-info build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis docs/reference
	for record in models/*.json; do rm -f "$${record%.json}.caffemodel" "$${record%.json}.coded" "$$record"; done
	find . -name __pycache__ -prune -exec rm -rf {} +
