# Everything that needs Ceph runs inside the test bed's environment, so that no
# machine needs Ceph installed: see test/bed.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# A Go that was unpacked to the usual place need not be on PATH.
export PATH := $(PATH):/usr/local/go/bin

RELEASES ?= reef tentacle
# The release for what is run on one only: demo and benchmark, the linter, the
# race detector.
RELEASE ?= tentacle
FUZZTIME ?= 10s
E2E_TIMEOUT ?= 50m
# How many runs with clusters go on at the same time. Each keeps up to eight
# small clusters, for which it takes about 4 GiB of memory.
JOBS ?= 2
TESTFLAGS ?=
STATICCHECK_VERSION := v0.8.2

BED := bin/bed
STATICCHECK := bin/tools/staticcheck-$(STATICCHECK_VERSION)
PURE = $$(go run ./test/layers pure)
LINKED = $$(go run ./test/layers ceph)
# Packages that link Ceph and have ordinary tests.
UNITS = $$(go run ./test/layers ceph | grep -vE '/test/(e2e|bench|demo)$$' || true)
# Tells lines of runs side by side apart.
AS = sed -u 's/^/$@: /'
# End-to-end tests that deal with images.
RBDTESTS = ^Test(RBD|Workers|Schedule)
# Whether there is a package in a folder.
has = $$(ls $(1)/*.go >/dev/null 2>&1 && echo yes || true)

.PHONY: all setup build test test-unit test-ceph test-e2e clusters test-long bench demo lint fuzz clean FORCE

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

$(BED): $(if $(READY),,FORCE)
	@CGO_ENABLED=0 go build -o $@ ./test/bed/cmd/bed

build: $(BED)
	@for r in $(RELEASES); do $(BED) build --release $$r; done

test: setup lint test-unit build
	@$(MAKE) clusters READY=1

# Packages that link nothing of Ceph.
test-unit:
	@pkgs=$(PURE); go test -race $(TESTFLAGS) $$pkgs

# Packages that do, and the test bed itself.
test-ceph: $(BED) $(addprefix ceph-,$(RELEASES))

# From end to end, with the daemons as they are installed.
test-e2e: build $(foreach r,$(RELEASES),fs-$(r) rbd-$(r))

# Both, on all releases. Tests with clusters wait more than they work: some run
# side by side, each with clusters of its own, the longest first.
clusters:
	@$(MAKE) -j$(JOBS) $(foreach r,$(RELEASE) $(filter-out $(RELEASE),$(RELEASES)),fs-$(r) rbd-$(r) ceph-$(r))

# What passed is not run again. Data races are the same on all releases.
ceph-%: $(BED)
	@pkgs=$(UNITS); \
	race=-race; [ -n "$(CEPHMIRROR_TEST_LONG)" ] || [ $* = $(RELEASE) ] || race=; \
	run() { \
		$(BED) enter --release $* --fresh=ceph -- go test $$race -p 1 -timeout 20m -tags $* $(TESTFLAGS) $$pkgs ./test/bed 2>&1 | $(AS); \
	}; \
	run || { echo "what failed once more" | $(AS); run; } || { echo "and again" | $(AS); run; }

# File systems, then images. What fails is run again on fresh clusters, and only
# then counts.
fs-%: $(BED)
	@$(call e2e,fs,-skip '$(RBDTESTS)')

rbd-%: $(BED)
	@$(call e2e,rbd,,-run '$(RBDTESTS)')

# e2e is `go test` of the end-to-end tests: the name of the bed and the log, a
# flag for test/repeat, one for the tests.
e2e = [ -n "$(call has,test/e2e)" ] || exit 0; \
	go run ./test/repeat -log bin/$*/e2e-$(1).log $(2) -- \
	$(BED) enter --release $* --fresh=$(1) -- \
	go test -tags $* $(TESTFLAGS) -timeout $(E2E_TIMEOUT) $(3) ./test/e2e 2>&1 | $(AS)

# More of the same: more random operations, larger trees, the slow faults.
test-long: export CEPHMIRROR_TEST_LONG=1
test-long: export E2E_TIMEOUT = 120m
test-long: setup lint test-unit build
	@$(MAKE) clusters READY=1
	@$(MAKE) fuzz

bench: setup build
	@[ -z "$(call has,test/bench)" ] || \
	$(BED) enter --release $(RELEASE) --fresh -- go run -tags $(RELEASE) ./test/bench $(BENCHFLAGS)

demo: setup build
	@[ -z "$(call has,test/demo)" ] || \
	$(BED) enter --release $(RELEASE) --fresh -- go run -tags $(RELEASE) ./test/demo $(DEMOFLAGS)

lint: $(BED) $(STATICCHECK)
	@bad=$$(gofmt -l .); if [ -n "$$bad" ]; then echo "not formatted: $$bad"; exit 1; fi
	go run ./test/layers check
	@echo "build without cgo, vet"; pkgs=$(PURE); \
	CGO_ENABLED=0 go build $$pkgs; go vet $$pkgs
	@pkgs=$(LINKED); \
	for r in $(RELEASES); do \
		echo "vet on $$r"; \
		$(BED) enter --release $$r -- go vet -tags $$r $$pkgs; \
	done
	@echo "staticcheck"; pkgs="$(PURE) $(LINKED)"; \
	$(BED) enter --release $(RELEASE) -- $(STATICCHECK) -tags $(RELEASE) $$pkgs

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
