# `make help` lists the targets.
.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## Build the binary into dist/
	scripts/build.sh

run: ## Serve on localhost:8080
	go run ./cmd/eventsource

test: ## Run the tests
	go test ./...

check: ## Everything that CI checks
	scripts/check.sh

fmt: ## Format, and bring code up to the Go version's idioms
	gofmt -w . && go fix ./...

fuzz: ## Fuzz every target (FUZZTIME=10s each)
	scripts/fuzz.sh

bench: ## Measure every load against the floor: six minutes
	go run ./internal/bench

benchmarks: ## Run the benchmarks
	go test -run '^$$' -bench . -benchmem ./...

dist: ## Build for linux, darwin and windows, amd64 and arm64, into dist/
	scripts/dist.sh

cover: ## Show what the tests reach
	go test -coverprofile=coverage.out ./... && go tool cover -func=coverage.out | tail -1

clean: ## Remove what was built
	rm -rf dist coverage.out

.PHONY: help build run test check fmt fuzz bench benchmarks dist cover clean
