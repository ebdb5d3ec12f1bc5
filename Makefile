SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH)
LABD := target/release/labd
# As many simulated histories as fit in that time.
SIMULATED = LABD_SIM_HISTORIES=10000 LABD_SIM_JOB_HISTORIES=10000 LABD_SIM_SECONDS=$(or $(SIM_SECONDS),120)

.PHONY: help up down test check fmt sim advisories chaos bench build dist

# Of each target, what stands behind its `##`.
help: ## this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

up: ## everything on a bare Debian, as root, no GPU: engine, build, lab, a job that outlives its worker
	@scripts/engine.sh start
	@$(MAKE) --no-print-directory build
	@scripts/demo.sh

down: ## leaves nothing running; volumes and images are kept
	@if [[ -x $(LABD) ]]; then $(LABD) --config .lab/labd.toml down; fi
	@scripts/engine.sh stop

build: ## target/release/labd, without GPU probes
	@scripts/tools.sh build
	cargo build --release --quiet

dist: ## dist/labd: one static file, the GPU probes inside, for any distribution since 2018
	@scripts/dist.sh

check: ## what needs no engine: format, linters, unit tests, simulated histories (SIM_SECONDS=120), scripts
	@scripts/tools.sh test
	cargo fmt --all --check
	scripts/lint.sh
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --workspace --no-deps --document-private-items --quiet
	$(SIMULATED) cargo test --workspace --quiet
	python3 -m pytest tests/unit_scripts

fmt: ## formats Rust, and sorts Python's imports
	cargo fmt --all
	@scripts/tools.sh test
	scripts/lint.sh imports

sim: ## simulated histories alone (SIM_SECONDS=120); N=10000: that many, optimised; SEED=7: one seed's, and what happened
	@scripts/tools.sh build
	$(if $(SEED),LABD_SIM_SEED=$(SEED),$(if $(N),LABD_SIM_HISTORIES=$(N) LABD_SIM_JOB_HISTORIES=$(N),$(SIMULATED))) \
	    cargo test --quiet --lib $(if $(N),--profile sim) -- --nocapture --test-threads=1 sim::whatever_happens sim::jobs::whatever_happens

advisories: ## known weaknesses of the crates that labd is made of; needs GitHub
	@scripts/tools.sh test
	scripts/lint.sh advisories

test: ## make check, then all that is promised, on real containers (PYTEST_ADDOPTS="-m 'not slow'": less)
	@scripts/tools.sh test
	@scripts/tools.sh dist
	@scripts/engine.sh start
# Side by side: labd's file is optimised as a whole, by one core, for minutes.
	@$(MAKE) --no-print-directory --jobs=2 check dist
	LABD=$(CURDIR)/dist/labd python3 -m pytest tests/shared_lab tests/own_lab tests/host

chaos: ## random faults over a training job: N=50, SEED=; ENGINE=1: the engine is restarted, too
	@scripts/engine.sh start
	@scripts/tools.sh build
	cargo build --release --quiet --features test-clock
	LABD=$(CURDIR)/$(LABD) tests/harness/chaos.py --clock -n $(or $(N),50) $(if $(SEED),--seed $(SEED)) $(if $(ENGINE),--engine-restart)

bench: ## recovery and bring-up, as ratios against what a user would run instead
	@scripts/engine.sh start
	@$(MAKE) --no-print-directory build
	LABD=$(CURDIR)/$(LABD) bench/recovery.py
	LABD=$(CURDIR)/$(LABD) bench/course.py
	LABD=$(CURDIR)/$(LABD) bench/bringup.py
	bench/import.py
	@$(MAKE) --no-print-directory dist
	LABD=$(CURDIR)/dist/labd bench/footprint.py
