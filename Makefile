# Everything is run from here; `make` alone says what there is.

GO      ?= go
NAMES    = nft-hook reader-hook clearance-hub clearance-verdict terok-shield terok-clearance-notify

export CGO_ENABLED = 0

.PHONY: help build man completions packages build/demo build/orchestrator demo test unit e2e lint bench fuzz ci clean

help: ## this text
	@sed -n 's/^\([a-z0-9]*\):.*## /  make \1\t/p' Makefile | expand -t 20

build: ## build/terok-box, static and stripped, with its symlinks
	$(GO) build -trimpath -ldflags '-s -w' -o build/terok-box .
	@./build/terok-box --install build

build/demo: build
	$(GO) build -trimpath -ldflags '-s -w' -o $@ ./scripts/demo

build/orchestrator: build
	$(GO) build -trimpath -ldflags '-s -w' -o $@ ./scripts/e2e.d/orchestrator

man: ## man pages in build/man, for make packages
	@mkdir -p build/man
	for f in resources/man/*.scd; do \
	  SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-0} scdoc <$$f >build/man/$$(basename $$f .scd) || exit 1; \
	done

completions: build ## of all programs for bash, zsh and fish in build/completions
	@mkdir -p build/completions/bash build/completions/zsh build/completions/fish
	for name in $(NAMES); do \
	  build/terok-box --completion bash $$name >build/completions/bash/$$name && \
	  build/terok-box --completion zsh $$name >build/completions/zsh/_$$name && \
	  build/terok-box --completion fish $$name >build/completions/fish/$$name.fish || exit 1; \
	done

packages: ## deb, rpm, apk, tarball, SBOM and checksums for amd64 and arm64 in build/packages
	scripts/packages

demo: build/demo ## the main job in under a minute
	build/demo

test: ## everything: unit, kernel, end to end; installs what it needs first
	scripts/deps --desktop
	$(MAKE) unit e2e

unit: build
	$(GO) vet ./...
	$(GO) test ./...

e2e: build build/demo build/orchestrator
	scripts/packages $(shell $(GO) env GOARCH)
	scripts/e2e
	scripts/e2e --d13

lint: ## golangci-lint, actionlint, deadcode, govulncheck
	scripts/lint

bench: build ## every benchmark, as ratios
	scripts/bench all

fuzz: ## every fuzzer, FUZZTIME each (default 5m)
	scripts/fuzz

ci: test ## what .ci/run calls

clean: ## remove what was built
	rm -rf build
