#!/bin/sh
# build.sh VENV: compile libfakecuda.so for the torch installed in VENV, where it is missing or out of date
set -e
here=$(cd "$(dirname "$0")" && pwd)
py=$1/bin/python
b=${FAKECUDA_BUILD:-$1/fakegpu/build}
new=$(find "$here/fakecuda.c" "$here/gen_stubs.py" "$here/build.sh" "$1"/lib/python3*/site-packages/torchvision -maxdepth 0 -newer "$b/lib" 2>/dev/null || true)
[ -e "$b/lib" ] && [ -z "$new" ] && exit 0
site=$("$py" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
inc=$site/nvidia/cu13/include
to=$b; b=$b.new.$$; rm -rf "$b"; mkdir -p "$b"
gcc -O2 -g -fPIC -Wall -Wno-unused-function -I"$inc" -c "$here/fakecuda.c" -o "$b/fakecuda.o"
"$py" "$here/gen_stubs.py" "$site" "$b/fakecuda.o" "$b/stubs.S"
gcc -c "$b/stubs.S" -o "$b/stubs.o"
gcc -shared -o "$b/libfakecuda.so" "$b/fakecuda.o" "$b/stubs.o" -Wl,-soname,libfakecuda.so -lpthread -ldl
mkdir -p "$b/lib"
while read -r n; do ln -s ../libfakecuda.so "$b/lib/$n"; done < "$b/sonames.txt"
rm -rf "$to"; mv "$b" "$to"
