# shellcheck shell=sh
# Puts staged files in their places, and keeps what they replace.
#
# $1 project directory, $2 room of the release, $3 its owner
# stdin: items, each ended by NUL, directories first: `dMODE NAME` a directory to be there, `fNAME` a staged file or link to
# be put in place, `xNAME` a file or link to be taken away
#
# Each file is replaced by one rename, so nobody finds it missing or half written. Kept files are second names of the old ones,
# made before. Whoever runs this again goes on where it stopped: what was kept first stays, what is in place is not named again.
set -eu
LC_ALL=C room=$2 owner=$3
export LC_ALL room owner
cd -- "$1"
# shellcheck disable=SC2016 # it is a script
act='
set -eu
trap '\''code=$?; [ $code -eq 0 ] || exit 255'\'' EXIT
read -r now <"$room/owner"
if [ "$now" != "$owner" ]; then
    echo "another worker has taken this server over" >&2
    exit 1
fi
directories() {
    for item do
        case $item in d*) ;; *) continue ;; esac
        item=${item#d}
        mode=${item%% *} name=${item#* }
        [ -d "./$name" ] && continue
        printf "%s\0" "$name" >>"$room/added-directories"
        mkdir -m "$mode" -- "./$name"
    done
}
keep() {
    for item do
        shift
        case $item in d*) continue ;; esac
        name=${item#?}
        if [ -e "./$name" ] || [ -L "./$name" ]; then
            [ -e "$room/old/$name" ] || [ -L "$room/old/$name" ] || set -- "$@" "./$name"
        else
            printf "%s\0" "$name" >&3
        fi
    done 3>>"$room/added-files"
    [ $# -eq 0 ] || cp -lP --parents -t "$room/old" -- "$@"
}
place() {
    first=yes directory=
    for item do
        [ -z "$first" ] || set --
        first=
        case $item in f*) name=${item#f} ;; *) continue ;; esac
        in=${name%/*}
        [ "$in" != "$name" ] || in=.
        if [ "$in" != "$directory" ]; then
            [ $# -eq 0 ] || mv -f -t "./$directory" -- "$@"
            set --
            directory=$in
        fi
        set -- "$@" "$room/new/$name"
    done
    [ $# -eq 0 ] || mv -f -t "./$directory" -- "$@"
}
remove() {
    for item do
        shift
        case $item in x*) set -- "$@" "./${item#x}" ;; esac
    done
    [ $# -eq 0 ] || rm -f -- "$@"
}
directories "$@"
keep "$@"
place "$@"
remove "$@"
'
xargs -0 -r -n 400 sh -c "$act" act
rm -rf -- "$room/new"
