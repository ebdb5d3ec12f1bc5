# make up      everything on a bare Debian machine, as root, no GPU: engine, build, a lab with two simulated GPUs, a training
#              job that survives the death of its worker
# make down    leaves nothing running; volumes and images are kept
# make test    everything that is promised, on real containers; PYTEST_ADDOPTS="-m 'not slow'": without the tests that take a
#              minute or more
# make check   what needs no engine: format, linters, unit and property tests, the scripts inside the containers; SIM_SECONDS=N: for how
#              long histories are simulated (120)
# make advisories    known weaknesses of the crates that labd is made of; needs GitHub
# make dist    dist/labd: one static file, the GPU probes inside, for any distribution since 2018
# make chaos   N random faults over a running training job (N=50, SEED=...), its clock set among them; ENGINE=1: also the engine
#              is restarted
# make bench   recovery and bring-up, as ratios against what a user would run instead
SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH)
LABD := target/release/labd

.PHONY: up down test check advisories chaos bench build dist

build:
	@scripts/tools.sh build
	cargo build --release --quiet

dist:
	@scripts/dist.sh

up:
	@scripts/engine.sh start
	@$(MAKE) --no-print-directory build
	@scripts/demo.sh

down:
	@if [[ -x $(LABD) ]]; then $(LABD) --config .lab/labd.toml down; fi
	@scripts/engine.sh stop

check:
	@scripts/tools.sh test
	cargo fmt --all --check
	scripts/lint.sh
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --quiet
	LABD_SIM_HISTORIES=10000 LABD_SIM_SECONDS=$(or $(SIM_SECONDS),120) cargo test --workspace --quiet
	python3 -m pytest tests/unit_scripts

advisories:
	@scripts/tools.sh test
	scripts/lint.sh advisories

test: check
	@scripts/engine.sh start
	@$(MAKE) --no-print-directory dist
	LABD=$(CURDIR)/dist/labd python3 -m pytest tests/shared_lab tests/own_lab tests/host

chaos:
	@scripts/engine.sh start
	@scripts/tools.sh build
	cargo build --release --quiet --features test-clock
	LABD=$(CURDIR)/$(LABD) tests/harness/chaos.py --clock -n $(or $(N),50) $(if $(SEED),--seed $(SEED)) $(if $(ENGINE),--engine-restart)

bench:
	@scripts/engine.sh start
	@$(MAKE) --no-print-directory build
	LABD=$(CURDIR)/$(LABD) bench/recovery.py
	LABD=$(CURDIR)/$(LABD) bench/course.py
	LABD=$(CURDIR)/$(LABD) bench/bringup.py
	bench/import.py
	@$(MAKE) --no-print-directory dist
	LABD=$(CURDIR)/dist/labd bench/footprint.py
