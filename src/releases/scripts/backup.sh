# shellcheck shell=sh
# Archives a project directory.
#
# $1 project directory, $2 directory of the archive, $3 its name, $4 name of the link to the newest, $5 program that
# compresses, or nothing, $6 `project` or `paths`
# stdin: names, each ended by NUL, with `paths`
# stdout: a line `DIGEST SIZE CHANGED`, where CHANGED is 1 when something changed as it was read
set -eu
LC_ALL=C
export LC_ALL
cd -- "$2"
if [ -e "./$4" ] && [ ! -L "./$4" ]; then
    echo "$2/$4 is a file, where the link to the newest archive belongs: move it away" >&2
    exit 1
fi
part=.$3.part
trap 'rm -f -- "./$part"' EXIT
trap 'exit 1' HUP TERM INT
changed=0
pack() {
    if [ -n "$squeeze" ]; then tar -I "$squeeze" "$@"; else tar "$@"; fi
}
squeeze=$5
set +e
if [ "$6" = paths ]; then
    pack -C "$1" --null --no-recursion --files-from=- -cf "./$part"
else
    pack -C "$1" --anchored --exclude=./.bullwork-releases -cf "./$part" .
fi
code=$?
set -e
case $code in
0) ;;
1) changed=1 ;;
*) exit "$code" ;;
esac
sync "./$part"
if openssl dgst -sha256 -r </dev/null >/dev/null 2>&1; then sum=$(openssl dgst -sha256 -r "./$part"); else sum=$(sha256sum -b "./$part"); fi
size=$(stat -c %s "./$part")
# Fails where a file of that name is.
ln -- "./$part" "./$3"
rm -f -- "./$part"
ln -sfn -- "$3" "./.$4.new"
mv -fT -- "./.$4.new" "./$4"
sync .
printf '%s %s %s\n' "${sum%% *}" "$size" "$changed"
