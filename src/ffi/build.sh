#!/usr/bin/env bash
# Builds the C library, static and shared, and installs it: src/ffi/build.sh PREFIX [CARGO ARGUMENTS]
#   MMQ_FEATURES=ffi,nano,tiff  puts the built-in model into it, and pictures in TIFF
#   MMQ_TARGET=TRIPLE      builds for another system; cargo's usual variables name its linker
set -euo pipefail
(($#)) || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
mkdir -p "$1" && prefix=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/../.."

abi=$(sed -n 's/^#define MMQ_ABI_VERSION //p' src/ffi/mmq.h)
version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml)
target=${MMQ_TARGET:-$(rustc -vV | sed -n 's/^host: //p')}
shared=libmmq.so
link=(-C "link-arg=-Wl,-soname,libmmq.so.$abi")
named=libmmq.so.$abi
case $target in
    *-apple-*)
        shared=libmmq.dylib
        named=libmmq.$abi.dylib
        link=(-C "link-arg=-Wl,-install_name,@rpath/$named")
        ;;
    # A package for Android holds libraries by their plain names.
    *-android*) named=libmmq.so link=(-C "link-arg=-Wl,-soname,libmmq.so") ;;
esac
# Where the linker is LLVM's: functions of the same code become one.
case $target in x86_64-unknown-linux-gnu | *-android*) link+=(-C "link-arg=-Wl,--icf=all") ;; esac
# Android's own linker reads packed relocations, from API 23 on.
case $target in *-android*) link+=(-C "link-arg=-Wl,--pack-dyn-relocs=android") ;; esac

cargo rustc --lib --crate-type staticlib,cdylib --profile library --target "$target" \
    --no-default-features --features "${MMQ_FEATURES:-ffi}" "$@" -- "${link[@]}"
built=${CARGO_TARGET_DIR:-target}/$target/library

mkdir -p "$prefix"/{include,lib/pkgconfig}
cp src/ffi/mmq.h "$prefix/include/"
cp "$built/$shared" "$prefix/lib/$named"
[ "$named" = "$shared" ] || ln -sf "$named" "$prefix/lib/$shared"
sed -e "s|@PREFIX@|$prefix|" -e "s|@VERSION@|$version|" src/ffi/mmq.pc.in >"$prefix/lib/pkgconfig/mmq.pc"
if [ "$target" = "$(rustc -vV | sed -n 's/^host: //p')" ] && command -v objcopy >/dev/null && [[ $target == *-linux-* ]]; then
    # One object that shows the interface alone: the standard library inside meets no other one in a program.
    ld -r --whole-archive "$built/libmmq.a" -o "$prefix/lib/mmq.o"
    # Compilers' intermediate code, which the standard library brings along, stops tools that do not know its version.
    objcopy --wildcard --keep-global-symbol='mmq_*' --strip-debug --remove-section='.llvmbc' --remove-section='.llvmcmd' \
        "$prefix/lib/mmq.o"
    rm -f "$prefix/lib/libmmq.a"
    ar rcs "$prefix/lib/libmmq.a" "$prefix/lib/mmq.o"
    rm "$prefix/lib/mmq.o"
else
    cp "$built/libmmq.a" "$prefix/lib/"
fi
ls -l "$prefix/lib"/libmmq.*
