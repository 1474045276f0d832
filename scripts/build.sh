#!/usr/bin/env bash
# Builds the static binary for this machine, or for GOOS and GOARCH, into dist/
# or the file that is named.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-dist/eventsource}
CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$out" ./cmd/eventsource
