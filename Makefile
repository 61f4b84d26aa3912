# Everything here needs Go and nothing else by hand: tools are pinned in go.mod and tools/go.mod.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

TOOL := go tool -modfile=tools/go.mod
BUF  := $(TOOL) buf
LINT := $(TOOL) golangci-lint

# A release: VERSION is the tag that stands on the commit, if one does. The same lines build the image.
VERSION ?= $(shell git describe --tags --exact-match 2>/dev/null)
COMMIT  ?= $(shell git describe --always --abbrev=40 --match=nothing --dirty=+changes 2>/dev/null)
OUT     ?= bin
PICTURES ?= $(OUT)/pictures
STAMP   := github.com/jelou-facade/jelou-facade/service/version

# The commit that `make breaking` compares with: the main before this one, or what is given, as in BASE=v0.1.0.
BASE ?= $(shell .ci/base)

GENERATED := gen proto service/openapi.json

comma := ,

.DEFAULT_GOAL := help
.PHONY: alerts clients client_tools openapi-check python help run build reproducible sbom licences vulnerabilities test postgres generate generated docs session lint breaking modules check tools prometheus systemd deploy-check pgbouncer dashboard docs-page browser

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Start the server with a simulated Jelou in one process
	go run ./cmd/jelou-facade serve --sandbox

build: ## Build the programs as they are released, into OUT
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X $(STAMP).number=$(VERSION) -X $(STAMP).commit=$(COMMIT)" -o $(OUT)/ ./cmd/...

test: postgres pgbouncer prometheus ## Run all tests with the race detector, on SQLite and on PostgreSQL
	go test -race -timeout 15m ./...

clients: third_party/proto client_tools ## Play clients/scenarios.json with the client of every language
	go run ./clients/run

openapi-check: python ## Hold service/openapi.json to Swagger 2.0, and the running server to it with Schemathesis
	go build -o bin/ ./cmd/jelou-facade ./cmd/jelousim
	cd internal/openapi/check && python3 -m venv .venv && .venv/bin/pip install --quiet --require-hashes -r requirements.txt
	internal/openapi/check/.venv/bin/python internal/openapi/check/check.py bin

deploy-check: systemd ## Hold deploy/ to what Helm, Kubernetes, Compose, BuildKit and systemd say about it
	cd deploy/check && go vet . && go test -count=1 .

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

docs: ## Write docs/errors.md, docs/jelouctl.md and docs/man from the code
	go test ./service -run TestErrorDocs -update
	go test ./cmd/jelouctl -run TestDocs -update

session: ## Record docs/jelouctl-session.md from a real run
	go test ./cmd/jelouctl -run TestCampaign -count 1 -record

lint: third_party/proto ## Lint the protos and the Go code
	$(BUF) lint
	$(BUF) format -d --exit-code proto
	go vet ./...
	$(LINT) run
	cd deploy/check && go tool -modfile=../../tools/go.mod golangci-lint run

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
	cd tools && go mod verify && go mod tidy -diff
	cd deploy/check && go mod verify && go mod tidy -diff

# The second build has a folder and a cache of its own, so that nothing of the first one is in it.
reproducible: ## Build a second time elsewhere: the programs must be the same, byte for byte
	@work=$$(mktemp -d); trap 'chmod -R u+w "$$work"; rm -rf "$$work"' EXIT; mkdir "$$work/tree"; \
	git ls-files -z --cached --others --exclude-standard | tar --null -T - -c | tar -x -C "$$work/tree"; \
	$(MAKE) --no-print-directory build OUT="$$work/one" VERSION="$(VERSION)" COMMIT="$(COMMIT)"; \
	GOCACHE="$$work/cache" $(MAKE) --no-print-directory -C "$$work/tree" build OUT="$$work/two" VERSION="$(VERSION)" COMMIT="$(COMMIT)"; \
	cd "$$work/one" && sha256sum * | tee ../sums && cd ../two && sha256sum --check ../sums

# The tool warns of this module and of Go's library, which no proxy has; internal/sbom fails where another module has no licence.
sbom: build ## Write OUT/NAME.cdx.json, what is in each program of OUT (CycloneDX), and check that it is whole
	@for name in $(notdir $(wildcard cmd/*)); do \
		$(TOOL) cyclonedx-gomod bin -json -std -licenses -version "$(or $(VERSION),v0.0.0)" -output "$(OUT)/$$name.cdx.json" "$(OUT)/$$name"; \
		go run ./internal/sbom "$(OUT)/$$name" "$(OUT)/$$name.cdx.json"; \
	done

licences: ## Check that everything that is linked in has a licence that asks for no more than its text
	$(TOOL) go-licenses check ./cmd/... --allowed_licenses=Apache-2.0,BSD-2-Clause,BSD-3-Clause,ISC,MIT 2>/dev/null || \
		{ $(TOOL) go-licenses report ./cmd/... 2>/dev/null; echo "licences: one of these is not in the list above" >&2; exit 1; }

vulnerabilities: ## Look for known vulnerabilities in what is called; needs vuln.go.dev, so it is no part of check
	$(TOOL) govulncheck ./...

check: test generated lint clients openapi-check breaking modules licences sbom reproducible deploy-check ## Run everything that CI runs

tools: third_party/proto # Compile the tools, for .ci/run
	$(BUF) --version
	$(LINT) version
	$(TOOL) go-licenses --help >/dev/null
	$(TOOL) -n cyclonedx-gomod >/dev/null
	cd deploy/check && go test -c -o /dev/null .

# Tests start what they need besides Go themselves: here it is only made available.
# $(call available,command that shows that it is there,Debian package,what to do elsewhere)
define available
	@if $(1); then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing $(2) for the tests"; \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(2); \
	else \
		echo "the tests need $(3)" >&2; \
		exit 1; \
	fi
endef

postgres:
	$(call available,[ -n "$${JELOU_TEST_POSTGRES_URL:-}" ] || command -v initdb >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null,postgresql,PostgreSQL: install its server (Debian: postgresql) so that initdb is in PATH or in /usr/lib/postgresql/*/bin$(comma) or set JELOU_TEST_POSTGRES_URL to a database that they may fill)

pgbouncer:
	$(call available,command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ],pgbouncer,PgBouncer: install it (Debian: pgbouncer) so that it is in PATH or in /usr/sbin)

alerts: prometheus postgres ## Hold the alert rules and the dashboard to promtool, the runbook and the running server; play every alert
	go test -count=1 -run 'TestRules|TestRunbook|TestMetricsOfRules' ./service
	go test -count=1 -run TestAlerts ./deploy

dashboard: postgres prometheus browser ## Draw docs/dashboard.png, the dashboard after ten minutes of a real run
	cd deploy/grafana/preview && npm ci --ignore-scripts && npm run build
	go test -count=1 -v -timeout 20m -run TestDashboard ./deploy -picture ../docs/dashboard.png

docs-page: browser ## Use /docs in a browser; draw it and the live view of jelouctl into PICTURES, which is docs for the committed ones
	@work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; go build -o "$$work/" ./cmd/jelou-facade ./cmd/jelouctl; \
	mkdir -p "$(PICTURES)"; pictures=$$(realpath "$(PICTURES)"); cd docs/browser; npm ci --ignore-scripts --no-audit --no-fund; \
	node docs-page.mjs "$$(command -v chromium)" "$$work" "$$pictures/docs-page.png"; \
	node terminal.mjs "$$(command -v chromium)" "$$work" "$$pictures/jelouctl-capacity.png"

browser:
	$(call available,command -v chromium >/dev/null,chromium,Chromium: install it (Debian: chromium) so that chromium is in PATH)
	$(call available,command -v npm >/dev/null,nodejs npm,Node 20 with npm in PATH)

prometheus:
	$(call available,command -v prometheus >/dev/null && command -v promtool >/dev/null,prometheus,Prometheus: install it (Debian: prometheus) so that prometheus and promtool are in PATH)

systemd:
	$(call available,command -v systemd-analyze >/dev/null && command -v systemd-sysusers >/dev/null,systemd,systemd's programs: run them on Linux with systemd installed (Debian: systemd))

python:
	$(call available,python3 -c 'import ensurepip' 2>/dev/null,python3-venv,Python 3.10 with venv)

# The clients install their libraries themselves: here it is only checked that their languages are there.
client_tools:
	@missing=; for tool in python3 node npm cargo mvn javac unzip; do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	python3 -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ "$$missing" = "$${missing/cargo/}" ]; then \
		echo "installing what the clients need:$$missing"; \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends python3-venv nodejs npm maven default-jdk-headless unzip; \
	else \
		echo "the clients need$$missing: Python 3.10 with venv, Node 20 with npm, a JDK 17 with Maven, unzip, Rust 1.85 by rustup;" >&2; \
		echo "or run some of them only: go run ./clients/run -only go,rest" >&2; exit 1; \
	fi

# The protos' imports, printed from the Go modules that go.mod pins.
third_party/proto: go.mod go.sum internal/protodeps/main.go
	go run ./internal/protodeps $@
	@touch $@
