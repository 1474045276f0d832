#!/usr/bin/env bash
# Everything that CI checks. Prints what each step took.
set -euo pipefail
cd "$(dirname "$0")/.."

step() {
	local name=$1 began=$SECONDS
	shift
	echo "== $name"
	"$@" || { echo "== $name failed" >&2; exit 1; }
	echo "== $name: $((SECONDS - began)) s"
}

# silent fails when the command says anything.
silent() {
	local out
	out=$("$@" 2>&1) || { echo "$out"; return 1; }
	[ -z "$out" ] || { echo "$out"; return 1; }
}

# verbose shows what is worth reading of a "go test -v" and fails as it does. In
# CI a skipped test fails too. (What step calls has no errexit.)
verbose() {
	local log status=0
	log=$(mktemp)
	"$@" 2>&1 | tee "$log" | grep -Ev '^ *(=== |--- PASS)|^PASS$' || status=1
	if [ "${CI:-}" = true ] && grep -E '^ *--- SKIP: (Test|Example|Benchmark)' "$log"; then
		echo "a skipped test is a failure here" >&2
		status=1
	fi
	rm -f "$log"
	return "$status"
}

root_elsewhere() {
	for os in linux darwin windows; do
		for arch in amd64 arm64; do
			GOOS=$os GOARCH=$arch go build . || return 1
		done
	done
	GOOS=darwin go vet . && GOOS=windows go vet .
}

step gofmt silent gofmt -l .
step 'go mod tidy' go mod tidy -diff
step 'go vet' go vet ./...
step 'go fix' silent go fix -diff ./...
step staticcheck go tool -modfile=tools.mod staticcheck ./...
step build scripts/build.sh
step 'root package elsewhere' root_elsewhere
step 'make test' make test
step 'race detector' verbose go test -race -short -v ./... # here nothing may be skipped in CI; -short leaves out what the run before has had
step fuzz env FUZZTIME="${FUZZTIME:-2s}" scripts/fuzz.sh
step 'benchmarks once' go test -short -run '^$' -bench . -benchtime 1x ./...
echo "== all: $SECONDS s"
