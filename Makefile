# Everything that needs Ceph runs inside the test bed's environment, so that no
# machine needs Ceph installed: see test/bed.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# A Go that was unpacked to the usual place need not be on PATH.
export PATH := $(PATH):/usr/local/go/bin

RELEASES ?= reef tentacle
# The release for what is run on one only: demo and benchmark.
RELEASE ?= tentacle
FUZZTIME ?= 10s
E2E_TIMEOUT ?= 35m
TESTFLAGS ?=
STATICCHECK_VERSION := v0.8.2

BED := bin/bed
STATICCHECK := bin/tools/staticcheck-$(STATICCHECK_VERSION)
PURE = $$(go run ./test/layers pure)
LINKED = $$(go run ./test/layers ceph)
# Packages that link Ceph and have ordinary tests.
UNITS = $$(go run ./test/layers ceph | grep -vE '/test/(e2e|bench|demo)$$' || true)
# Whether there is a package in a folder.
has = $$(ls $(1)/*.go >/dev/null 2>&1 && echo yes || true)

.PHONY: all setup build test test-unit test-ceph test-e2e test-long bench demo lint fuzz clean FORCE

all: build

# What a fresh machine lacks: tools, modules, and root file systems with Ceph.
setup:
	@missing=(); \
	command -v mmdebstrap >/dev/null || missing+=(mmdebstrap); \
	command -v gcc >/dev/null || missing+=(gcc libc6-dev); \
	[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring); \
	if [ $${#missing[@]} -gt 0 ]; then \
		sudo=; [ $$(id -u) = 0 ] || sudo=sudo; \
		$$sudo apt-get update -q; \
		$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$${missing[@]}"; \
	fi
	@go mod download
	@$(MAKE) $(BED)
	@for r in $(RELEASES); do $(BED) rootfs --release $$r; done

$(BED): FORCE
	@CGO_ENABLED=0 go build -o $@ ./test/bed/cmd/bed

build: $(BED)
	@for r in $(RELEASES); do $(BED) build --release $$r; done

test: setup lint test-unit test-ceph test-e2e

# Packages that link nothing of Ceph.
test-unit:
	@pkgs=$(PURE); go test -race $(TESTFLAGS) $$pkgs

# Packages that do, and the test bed itself. What passed is not run again.
test-ceph: $(BED)
	@pkgs=$(UNITS); \
	run() { $(BED) enter --release $$1 --fresh -- go test -race -p 1 -timeout 20m -tags $$1 $(TESTFLAGS) $$pkgs ./test/bed; }; \
	for r in $(RELEASES); do \
		echo "== $$r"; \
		run $$r || { echo "== $$r, what failed once more"; run $$r; }; \
	done

# What fails is run once more on fresh clusters, and only then counts: on a
# loaded machine a deadline can pass that a real fault would miss again.
test-e2e: build
	@[ -n "$(call has,test/e2e)" ] || exit 0; \
	e2e() { \
		local r=$$1; shift; \
		$(BED) enter --release $$r --fresh -- go test -tags $$r $(TESTFLAGS) ./test/e2e "$$@"; \
	}; \
	for r in $(RELEASES); do \
		echo "== $$r"; \
		log=bin/$$r/e2e.log; \
		if e2e $$r -timeout $(E2E_TIMEOUT) 2>&1 | tee $$log; then continue; fi; \
		failed=$$(sed -n 's/^--- FAIL: \([A-Za-z0-9_]*\).*/\1/p' $$log | sort -u | paste -sd '|' -); \
		echo "== $$r, once more: $${failed:-all}"; \
		e2e $$r -timeout 12m -run "^($${failed:-.*})\$$"; \
	done

# More of the same: more random operations, larger trees, the slow faults.
test-long: export CEPHMIRROR_TEST_LONG=1
test-long: E2E_TIMEOUT = 120m
test-long: setup lint test-unit test-ceph test-e2e fuzz

bench: setup build
	@[ -z "$(call has,test/bench)" ] || \
	$(BED) enter --release $(RELEASE) --fresh -- go run -tags $(RELEASE) ./test/bench $(BENCHFLAGS)

demo: setup build
	@[ -z "$(call has,test/demo)" ] || \
	$(BED) enter --release $(RELEASE) --fresh -- go run -tags $(RELEASE) ./test/demo $(DEMOFLAGS)

lint: $(BED) $(STATICCHECK)
	@bad=$$(gofmt -l .); if [ -n "$$bad" ]; then echo "not formatted: $$bad"; exit 1; fi
	go run ./test/layers check
	@echo "build without cgo, vet, staticcheck"; pkgs=$(PURE); \
	CGO_ENABLED=0 go build $$pkgs; go vet $$pkgs; CGO_ENABLED=0 $(STATICCHECK) $$pkgs
	@pkgs=$(LINKED); [ -n "$$pkgs" ] || exit 0; \
	for r in $(RELEASES); do \
		echo "vet, staticcheck on $$r"; \
		$(BED) enter --release $$r -- go vet -tags $$r $$pkgs; \
		$(BED) enter --release $$r -- $(STATICCHECK) -tags $$r $$pkgs; \
	done

$(STATICCHECK):
	@mkdir -p $(@D)/tmp
	@GOBIN=$(CURDIR)/$(@D)/tmp CGO_ENABLED=0 go install honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION)
	@mv $(@D)/tmp/staticcheck $@ && rmdir $(@D)/tmp

# Each fuzz target for FUZZTIME.
fuzz: $(BED)
	@fuzz() { \
		for p in "$$@"; do \
			for f in $$($${run:-} go test -tags $(RELEASE) -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
				echo "== $$p $$f"; \
				$${run:-} go test -tags $(RELEASE) -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$p; \
			done; \
		done; \
	}; \
	pkgs=$(PURE); fuzz $$pkgs; \
	pkgs=$(UNITS); run="$(BED) enter --release $(RELEASE) --"; fuzz $$pkgs

# Takes all clusters of this checkout down, too.
clean:
	@if [ -x $(BED) ]; then for r in $(RELEASES); do $(BED) down --release $$r; done; fi
	rm -rf bin
