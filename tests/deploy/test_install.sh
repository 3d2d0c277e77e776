#!/bin/sh
# cmake --install into an empty prefix: everything is there, the program runs from there, and another program can be built
# against the library through pkg-config alone. The container's image has the packages of every library the program names.
#   test_install.sh BUILD_DIR CONTAINERFILE
set -eu
build=$1 containerfile=$2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cmake --install "$build" --prefix "$dir/usr" >"$dir/log" || { cat "$dir/log"; exit 1; }
cd "$dir/usr"
lib=$(dirname "$(find . -name 'liballuvium.so.0')")
for file in bin/alluvium include/alluvium.h "$lib/liballuvium.so" "$lib/pkgconfig/alluvium.pc" share/man/man1/alluvium-push.1 \
    share/man/man5/alluvium.conf.5 share/bash-completion/completions/alluvium share/zsh/vendor-completions/_alluvium \
    share/fish/vendor_completions.d/alluvium.fish lib/systemd/system/alluvium-coordinator.service \
    lib/systemd/system/alluvium-worker@.service lib/systemd/system/alluvium-subscriber.service lib/sysusers.d/alluvium.conf share/doc/alluvium/examples/example.conf; do
    [ -e "$file" ] || { echo "FAILED: $file is not installed"; exit 1; }
done
bin/alluvium --version
libraries=$(objdump -p bin/alluvium | awk '$1 == "NEEDED" && $2 !~ /^(libc|libm|ld-linux.*)\.so/ { print $2 }')
[ -n "$libraries" ] || { echo "FAILED: no library found in the program"; exit 1; }
for library in $libraries; do
    package=$(dpkg -S "*/$library" | sed -n '1s/[:,].*//p')
    sed -n '/12-slim/,$p' "$containerfile" | grep -qwF -- "${package:-$library}" ||
        { echo "FAILED: $containerfile: $library is needed, and ${package:-its package} is not installed there"; exit 1; }
done
cat >"$dir/program.c" <<'C'
#include <alluvium.h>
#include <stdio.h>
int main(void)
{
    puts(alv_version());
    return 0;
}
C
export PKG_CONFIG_PATH="$dir/usr/$lib/pkgconfig"
# shellcheck disable=SC2046 # flags are words
cc "$dir/program.c" -o "$dir/program" $(pkg-config --define-variable=prefix="$dir/usr" --define-variable=libdir="$dir/usr/$lib" \
    --define-variable=includedir="$dir/usr/include" --cflags --libs alluvium)
LD_LIBRARY_PATH="$dir/usr/$lib" "$dir/program"
