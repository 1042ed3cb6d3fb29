# Carme: build, test, testbed and demo. `make help` lists every target.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# The Slurm release under test: trixie (24.11), forky (26.05), bookworm (22.05).
SLURM_SUITE ?= trixie
# One row of docs/features.md, for example ONLY=J5; empty means all.
ONLY ?=

# Where Go's own instructions put it; Debian keeps administrators' commands in sbin.
export PATH := $(CURDIR)/.cache/bin:$(PATH):/usr/local/go/bin:/usr/sbin:/sbin
export SLURM_SUITE

include mk/assets.mk
include mk/build.mk
include mk/supply.mk
include mk/testbed.mk

DRIVER := build/carme-test
INTEGRATION = -suite '$(SLURM_SUITE)' $(if $(ONLY),-only '$(ONLY)') integration
SHELL_FILES = $(shell git ls-files --cached --others --exclude-standard | xargs -r grep -lIE '^\#!(/usr/bin/env (ba)?sh|/bin/(ba)?sh)')

##@ Tests

.PHONY: test
test: $(DRIVER) ## Everything: lint, unit, C, integration on both Slurm releases; ONLY=J5 for one row
	@$(DRIVER) $(if $(ONLY),$(INTEGRATION),all)

.PHONY: test-unit
test-unit: $(DRIVER) ## Go and C unit tests: no root, no Docker, under two minutes
	@$(DRIVER) unit

.PHONY: test-integration
test-integration: $(DRIVER) ## Integration tests on SLURM_SUITE; ONLY=J5 for one row
	@$(DRIVER) $(INTEGRATION)

.PHONY: lint
lint: ## All linters: Go, C, shell
	@tools/prepare lint
	golangci-lint run ./...
	golangci-lint fmt --diff
	shellcheck -x $(SHELL_FILES)
	@$(MAKE) --no-print-directory lint-c

.PHONY: fmt
fmt: ## Format Go and C sources
	@tools/prepare lint
	golangci-lint fmt
	git ls-files '*.c' '*.h' | xargs -r clang-format -i

.PHONY: bench
bench: bench-programs ## Benchmarks side by side, with a table of ratios at the end (root)
	@$(MAKE) --no-print-directory testbed
	@go run -buildvcs=false ./bench

.PHONY: bench-plugin
bench-plugin: testbed ## Of them, the plugin on the testbed; ONLY=P1,P4b for some rows, KILLS=1000 for all of P6's
	@go run -buildvcs=false ./bench plugin $(if $(ONLY),-only '$(ONLY)') $(if $(KILLS),-kills '$(KILLS)')

.PHONY: bench-web
bench-web: bench-programs ## Of them, the way from a browser to an app: needs no cluster; ONLY=R1,W1 for some rows
	@go run -buildvcs=false ./bench web $(if $(ONLY),-only '$(ONLY)')

.PHONY: bench-control
bench-control: testbed ## Of them, many viewers of many jobs, on the testbed
	@go run -buildvcs=false ./bench control

.PHONY: bench-programs
bench-programs:
	@tools/prepare bench
	@$(MAKE) --no-print-directory $(OUT)/carme-portal $(OUT)/carme-agent
	@npm install --prefix .cache/chp --ignore-scripts --no-audit --no-fund --loglevel=error configurable-http-proxy@5.3.0

# Installed programs have no profiler in them; these do.
.PHONY: pgo
pgo: $(WEB_DIST) ## Take the profiles anew that portal and agent are compiled by, under the load of bench-web (root)
	@tools/prepare bench
	@rm -rf build/profile && mkdir -p build/profile/taken
	CGO_ENABLED=0 go build -buildvcs=false -pgo=off -tags profile -o build/profile/ ./cmd/carme-portal
	CGO_ENABLED=1 go build -buildvcs=false -pgo=off -tags profile -o build/profile/ ./cmd/carme-agent
	CARME_PROFILE=$(CURDIR)/build/profile/taken go run -buildvcs=false ./bench web -alone -only R1,R3,W1 -rounds 1 -lasting 8s \
		-portal build/profile/carme-portal -agent build/profile/carme-agent
	for name in carme-portal carme-agent; do go tool pprof -proto build/profile/taken/$$name.* >cmd/$$name/cpu.pgo || exit 1; done

##@ Demo

.PHONY: demo
demo: ## From a bare Debian machine to a sealed job on the screen; FROM=3 resumes at step 3
	@mkdir -p build && go build -buildvcs=false -o build/carme-demo ./tools/carme-demo
	@build/carme-demo -from $(or $(FROM),1)

.PHONY: demo-down
demo-down: ## Take away all that the demo brought; PURGE=yes also the packages it installed
	@tools/demo-down

##@ Build, cluster and housekeeping

.PHONY: prepare
prepare: ## Install what this machine lacks for all of the above (root)
	@tools/prepare full

.PHONY: clean
clean: ## Remove what was built; tools in .cache stay
	rm -rf build test-output

.PHONY: help
help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-zA-Z0-9_-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: $(DRIVER)
$(DRIVER):
	@mkdir -p build && go build -buildvcs=false -o $@ ./tools/carme-test
