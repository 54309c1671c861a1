# shellcheck shell=sh
# Tells what a server lacks, a line for each.
#
# $1 project directory, $2 directory of archives, or nothing, $3 program that compresses them, or nothing, $4 `room` to compare
# the project's size with the room for its archive, $5 name of the link to the newest archive
set -eu
LC_ALL=C
export LC_ALL
for program in rsync find xargs sha256sum cp mv tar df stat; do
    command -v "$program" >/dev/null 2>&1 || printf '%s\n' "\`$program\` is not installed"
done
find /dev/null -maxdepth 0 -printf '' 2>/dev/null || printf '%s\n' "\`find\` is not GNU find"
cp --help 2>/dev/null | grep -q -e --parents || printf '%s\n' "\`cp\` is not GNU cp"
if [ ! -d "$1" ]; then
    printf '%s\n' "the project directory $1 does not exist"
elif [ ! -w "$1" ]; then
    printf '%s\n' "the project directory $1 may not be written to"
fi
[ -n "$2" ] || exit 0
if [ -n "$3" ]; then
    command -v "${3%% *}" >/dev/null 2>&1 || printf '%s\n' "\`${3%% *}\` is not installed"
fi
if [ ! -d "$2" ]; then
    printf '%s\n' "the directory of archives $2 does not exist"
elif [ ! -w "$2" ]; then
    printf '%s\n' "the directory of archives $2 may not be written to"
elif [ -e "$2/$5" ] && [ ! -L "$2/$5" ]; then
    printf '%s\n' "$2/$5 is a file, where the link to the newest archive belongs: move it away"
elif [ "$4" = room ] && [ -d "$1" ]; then
    used=$(du -sk --exclude=./.bullwork-releases -- "$1" | cut -f 1)
    free=$(df -Pk "$2" | {
        read -r _
        read -r _ _ _ free _
        printf '%s' "$free"
    })
    [ "$free" -gt "$used" ] || printf '%s\n' "the archive of $used KiB may not fit: $free KiB are free in $2"
fi
