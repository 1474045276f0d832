#!/usr/bin/env bash
# Builds the binary for every platform into dist/, with checksums.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p dist
for os in linux darwin windows; do
	for arch in amd64 arm64; do
		name=eventsource-$os-$arch
		[ "$os" = windows ] && name=$name.exe
		echo "$name"
		GOOS=$os GOARCH=$arch scripts/build.sh "dist/$name"
	done
done
(cd dist && sha256sum eventsource-* >SHA256SUMS)
