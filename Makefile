# banger: build, install, test. `make demo` is the place to start on a fresh machine.
PREFIX  ?= /usr/local
DESTDIR ?=
GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COUNT   ?= 1000
SEED    ?= 1
LDFLAGS := -s -w -X git.thaloco.com/thaloco/banger/internal/buildinfo.Version=$(VERSION)
GOBUILD := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)'
# Built as the programs are, so that the packages are compiled once.
GOTEST  := CGO_ENABLED=0 $(GO) test -trimpath
GOLANGCI := $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.PHONY: demo build install uninstall test test-unit test-e2e test-firecracker test-long lint bench clean

## demo: install missing host packages, build, and build and test a real C project in a sandbox
demo:
	./scripts/demo

## build: bin/banger, bin/bangerd, bin/banger-vsock-agent
build:
	$(GOBUILD) -o bin/ ./cmd/banger ./cmd/bangerd ./cmd/banger-vsock-agent

## install: into $(DESTDIR)$(PREFIX)
install: build
	install -D -m 0755 bin/banger $(DESTDIR)$(PREFIX)/bin/banger
	install -D -m 0755 bin/bangerd $(DESTDIR)$(PREFIX)/bin/bangerd
	install -D -m 0755 bin/banger-vsock-agent $(DESTDIR)$(PREFIX)/lib/banger/banger-vsock-agent

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/banger $(DESTDIR)$(PREFIX)/bin/bangerd $(DESTDIR)$(PREFIX)/lib/banger/banger-vsock-agent

## test: everything, real VMs included
test: test-unit test-e2e

## test-unit: all that needs no VM, with the race detector, which keeps each process for a second at its end unless it is told not to
test-unit:
	./scripts/host-packages test
	$(GO) vet -race ./...
	GORACE=atexit_sleep_ms=0 BANGER_TEST_MIRROR= $(GO) test -race -timeout 10m ./...

## test-e2e: the real command line on real VMs; downloads a kernel and builds an image once
test-e2e:
	./scripts/host-packages test
	BANGER_TEST_MIRROR=1 $(GOTEST) -count=1 -timeout 10m -run Mirror ./internal/kernel
	$(GOTEST) -tags e2e -count=1 -timeout 50m ./e2e/...

## test-firecracker: what needs the real Firecracker, which is fetched, and KVM; says why where it skips, and where the logs are
test-firecracker:
	./scripts/host-packages test
	$(GOTEST) -tags e2e -count=1 -timeout 30m -v -run '^TestFirecracker$$' ./e2e/...

## test-long: large counts of the randomised tests, COUNT=… SEED=…
test-long:
	COUNT=$(COUNT) SEED=$(SEED) $(GO) test -count=1 -timeout 6h ./internal/workspace/... ./internal/quarantine/... ./internal/guest/...
	COUNT=$(COUNT) SEED=$(SEED) $(GO) test -tags 'e2e long' -count=1 -timeout 6h -run Long ./e2e/...

lint:
	$(GOLANGCI) run

## bench: the figures of docs/BENCHMARKS.md, as ratios in one run
bench:
	./scripts/host-packages bench
	$(GO) test -run '^$$' -bench . -benchtime 3s ./internal/network/user ./internal/network/tap ./internal/forward ./internal/preview
	$(GO) test -run '^$$' -bench DNS -benchtime 3s ./internal/daemon
	$(GO) test -tags 'e2e bench' -count=1 -timeout 60m -run '^$$' -bench . -benchtime 1x ./e2e/...

clean:
	rm -rf bin .cache
