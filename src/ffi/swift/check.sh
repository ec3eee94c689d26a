#!/usr/bin/env bash
# Compiles the Swift package and runs Check.swift on it: src/ffi/swift/check.sh FOLDER, which holds libmmq.so. Needs Swift 5.9.
set -euo pipefail
libraries=$(cd "${1:?the folder of libmmq}" && pwd)
cd "$(dirname "$0")"
work=${TMPDIR:-/tmp}/mmq-swift
mkdir -p "$work"
swiftc -swift-version 5 -parse-as-library -O -I Sources/CMmq -L "$libraries" -lmmq -Xlinker -rpath -Xlinker "$libraries" \
    Sources/Mmq/Mmq.swift Check.swift -o "$work/check"
cd ../../..
"$work/check"
