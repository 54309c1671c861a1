# shellcheck shell=sh
# Brings back what a release replaced.
#
# $1 project directory, $2 room of the release, $3 its owner, $4 `look` to tell only, $5 which release it is
# stdout: `-NAME` NUL for each file that goes, `~NAME` NUL for each that comes back
#
# May be run again after it was cut off: what is back is not in the room any more, and when all is back, a mark stands in its place.
set -eu
LC_ALL=C room=$2 owner=$3
export LC_ALL room owner
cd -- "$1"
other() {
    echo "$1/$room is of another release with this number: the list of releases is not the one that it was (RELEASE_STATE_FILE, STATE_DATABASE_URL)" >&2
    exit 1
}
if [ -e "$room.back" ]; then
    [ "$(cat -- "$room.back")" = "$5" ] || other "$1"
    [ "$4" = look ] || rm -rf -- "$room"
    exit 0
fi
if [ ! -d "$room" ]; then
    echo "nothing is kept of this release in $1/$room" >&2
    exit 1
fi
[ "$(cat -- "$room/of" 2>/dev/null)" = "$5" ] || other "$1"
# shellcheck disable=SC2016 # scripts
tell='for name do [ -e "$room/old/$name" ] || [ -L "$room/old/$name" ] || printf "%s\0" "-$name"; done'
added=$room/added-files
[ -e "$added" ] || added=/dev/null
xargs -0 -r -n 400 sh -c "$tell" tell <"$added"
(mkdir -p -- "$room/old" && cd -- "$room/old" && find . ! -type d -printf '~%P\0')
# shellcheck disable=SC2016
turned='for name do [ ! -d "./$name" ] || [ -L "./$name" ] || { echo "$name is a directory now: move it away" >&2; exit 255; }; done'
xargs -0 -r -n 400 sh -c "$turned" turned <"$added"
[ "$4" != look ] || exit 0
mkdir -p -- "$room"
printf '%s\n' "$owner" >"$room/owner.new"
mv -f -- "$room/owner.new" "$room/owner"
# shellcheck disable=SC2016
remove='
set -eu
i=0 list=
for name do
    i=$((i + 1))
    [ -e "$room/old/$name" ] || [ -L "$room/old/$name" ] || list="$list \"./\${$i}\""
done
[ -z "$list" ] || eval "rm -f -- $list" || exit 255
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
i=0 list= directory=
for name do
    i=$((i + 1))
    in=${name%/*}
    [ "$in" != "$name" ] || in=.
    if [ "$in" != "$directory" ]; then
        [ -z "$list" ] || eval "mv -f -t \"./\$directory\" -- $list"
        list=
        directory=$in
        mkdir -p -- "./$directory"
    fi
    list="$list \"\$room/old/\${$i}\""
done
[ -z "$list" ] || eval "mv -f -t \"./\$directory\" -- $list"
'
find "$room/old" ! -type d -printf '%P\0' | xargs -0 -r -n 400 sh -c "$place" place
if [ -e "$room/added-directories" ]; then
    # The inner ones sort behind those that hold them. One that others use meanwhile stays.
    sort -zru -- "$room/added-directories" | xargs -0 -r rmdir -- 2>/dev/null || :
fi
cp -- "$room/of" "$room.back.new"
mv -f -- "$room.back.new" "$room.back"
# What could not be written to, neither could its copy.
find "$room" -type d ! -perm -200 -exec chmod u+w {} +
rm -rf -- "$room"
