# shellcheck shell=sh
# Brings back what a release replaced.
#
# $1 project directory, $2 room of the release, $3 its owner, $4 `look` to tell only
# stdout: `-NAME` NUL for each file that goes, `~NAME` NUL for each that comes back
#
# May be run again after it was cut off: what is back is not in the room any more.
set -eu
LC_ALL=C room=$2 owner=$3
export LC_ALL room owner
cd -- "$1"
if [ ! -d "$room" ]; then
    echo "nothing is kept of this release in $1/$room" >&2
    exit 1
fi
# shellcheck disable=SC2016 # scripts
tell='for name do [ -e "$room/old/$name" ] || [ -L "$room/old/$name" ] || printf "%s\0" "-$name"; done'
added=$room/added-files
[ -e "$added" ] || added=/dev/null
xargs -0 -r -n 400 sh -c "$tell" tell <"$added"
(mkdir -p -- "$room/old" && cd -- "$room/old" && find . ! -type d -printf '~%P\0')
[ "${4:-}" != look ] || exit 0
mkdir -p -- "$room"
printf '%s\n' "$owner" >"$room/owner.new"
mv -f -- "$room/owner.new" "$room/owner"
# shellcheck disable=SC2016
remove='
set -eu
for name do
    shift
    [ -e "$room/old/$name" ] || [ -L "$room/old/$name" ] || set -- "$@" "./$name"
done
[ $# -eq 0 ] || rm -f -- "$@" || exit 255
'
xargs -0 -r -n 400 sh -c "$remove" remove <"$added"
# From here on nothing that comes back may be taken for something added.
[ "$added" = /dev/null ] || mv -f -- "$added" "$added.removed"
# shellcheck disable=SC2016
place='
set -eu
trap '\''code=$?; [ $code -eq 0 ] || exit 255'\'' EXIT
read -r now <"$room/owner"
[ "$now" = "$owner" ] || { echo "another worker has taken this server over" >&2; exit 1; }
first=yes directory=
for name do
    [ -z "$first" ] || set --
    first=
    in=${name%/*}
    [ "$in" != "$name" ] || in=.
    if [ "$in" != "$directory" ]; then
        [ $# -eq 0 ] || mv -f -t "./$directory" -- "$@"
        set --
        directory=$in
        mkdir -p -- "./$directory"
    fi
    set -- "$@" "$room/old/$name"
done
[ $# -eq 0 ] || mv -f -t "./$directory" -- "$@"
'
find "$room/old" ! -type d -printf '%P\0' | xargs -0 -r -n 400 sh -c "$place" place
if [ -e "$room/added-directories" ]; then
    # The inner ones sort behind those that hold them. One that others use meanwhile stays.
    sort -zru -- "$room/added-directories" | xargs -0 -r rmdir -- 2>/dev/null || :
fi
rm -rf -- "$room"
