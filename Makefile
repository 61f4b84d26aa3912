# Everything here needs Go and nothing else by hand: tools are pinned in go.mod and tools/go.mod.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

BUF  := go tool -modfile=tools/go.mod buf
LINT := go tool -modfile=tools/go.mod golangci-lint

# The commit that `make breaking` compares with: the main before this one, or what is given, as in BASE=v0.1.0.
BASE ?= $(shell .ci/base)

GENERATED := gen proto service/openapi.json

.DEFAULT_GOAL := help
.PHONY: help run test postgres generate generated lint breaking modules check tools

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z_]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Start the server with a simulated Jelou in one process
	go run ./cmd/jelou-facade serve --sandbox

test: postgres ## Run all tests with the race detector, on SQLite and on PostgreSQL
	go test -race -timeout 15m ./...

generate: third_party/proto ## Format the protos and generate gen/ and service/openapi.json from them
	$(BUF) format -w proto
	$(BUF) generate
	go run ./internal/openapi gen/openapi/api.swagger.json examples service/openapi.json

generated: ## Check that what is generated is what the protos say
	@before=$$(mktemp -d); trap 'rm -rf "$$before"' EXIT; \
	tar -c $(GENERATED) | tar -x -C "$$before"; \
	$(MAKE) --no-print-directory generate; \
	same=yes; for path in $(GENERATED); do diff -r "$$before/$$path" "$$path" || same=no; done; \
	[ $$same = yes ] || { echo "it was not up to date: it is now, commit it" >&2; exit 1; }

lint: third_party/proto ## Lint the protos and the Go code
	$(BUF) lint
	$(BUF) format -d --exit-code proto
	go vet ./...
	$(LINT) run

# The imports of the protos are not in git, so the old side borrows today's. Until 1.0.0 a break is let through when
# the changelog has a new line that begins with "- Breaking:".
breaking: third_party/proto ## Compare the protos with BASE: no caller may break
	@if [ -z "$(BASE)" ] || ! git cat-file -e "$(BASE):proto" 2>/dev/null; then \
		echo "breaking: no earlier main with protos in this clone, nothing to compare with"; exit 0; fi; \
	old=$$(mktemp -d); trap 'rm -rf "$$old"' EXIT; \
	git archive $(BASE) buf.yaml proto | tar -x -C "$$old"; \
	mkdir "$$old/third_party"; ln -s "$(CURDIR)/third_party/proto" "$$old/third_party/proto"; \
	echo "$(BUF) breaking --against $(BASE)"; \
	$(BUF) breaking --against "$$old" || { \
		git diff $(BASE) -- CHANGELOG.md | grep '^+- Breaking:' || \
		{ echo "breaking: callers of $(BASE) break; before 1.0.0 say so in CHANGELOG.md (- Breaking: …)" >&2; exit 1; }; }

modules: ## Check go.mod and go.sum
	go mod verify
	go mod tidy -diff
	cd tools && go mod tidy -diff

check: generated lint breaking modules test ## Run everything that CI runs

tools: third_party/proto # Compile the tools, for .ci/run
	$(BUF) --version
	$(LINT) version

# Tests start PostgreSQL themselves: here it is only made available.
postgres:
	@if [ -n "$${JELOU_TEST_POSTGRES_URL:-}" ] || command -v initdb >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then \
		exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing PostgreSQL for the tests"; \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends postgresql; \
	else \
		echo "the tests need PostgreSQL: install its server (Debian: postgresql) so that initdb is in PATH or in" >&2; \
		echo "/usr/lib/postgresql/*/bin, or set JELOU_TEST_POSTGRES_URL to a database that they may fill" >&2; \
		exit 1; \
	fi

# The protos' imports, printed from the Go modules that go.mod pins.
third_party/proto: go.mod go.sum internal/protodeps/main.go
	go run ./internal/protodeps $@
	@touch $@
