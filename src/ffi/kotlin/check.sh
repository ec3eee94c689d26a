#!/usr/bin/env bash
# Compiles the Kotlin binding and runs Check.kt on it: src/ffi/kotlin/check.sh FOLDER, which holds libmmq.so. Needs Java 17, JNA
# (Debian's libjna-java, or JNA_JAR) and npm, which fetches the compiler.
set -euo pipefail
libraries=$(cd "${1:?the folder of libmmq}" && pwd)
cd "$(dirname "$0")"
work=${TMPDIR:-/tmp}/mmq-kotlin
mkdir -p "$work"
kotlin=$work/node_modules/kotlin-compiler
[ -d "$kotlin" ] || npm install --silent --ignore-scripts --no-save --prefix "$work" kotlin-compiler
jars=${JNA_JAR:-/usr/share/java/jna.jar}:$kotlin/lib/kotlinx-coroutines-core-jvm.jar
bash "$kotlin/bin/kotlinc" mmq/Mmq.kt Check.kt -cp "$jars" -d "$work/check.jar"
cd ../../..
java -Djna.library.path="$libraries" -Djna.boot.library.path=/usr/lib/x86_64-linux-gnu/jni -cp "$work/check.jar:$jars:$kotlin/lib/kotlin-stdlib.jar" CheckKt
