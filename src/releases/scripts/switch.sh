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
# Lists are numbers of parameters, put in at the end: a list of words is copied whole for each word that it gets.
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
        # Files have to get into it first.
        [ -w "./$name" ] || { printf "%s\0" "$item" >>"$room/modes" && chmod u+w -- "./$name"; }
    done
}
keep() {
    i=0 list=
    for item do
        i=$((i + 1))
        case $item in d*) continue ;; esac
        name=${item#?}
        if [ -e "./$name" ] || [ -L "./$name" ]; then
            [ -e "$room/old/$name" ] || [ -L "$room/old/$name" ] || list="$list \"./\${$i#?}\""
        else
            printf "%s\0" "$name" >&3
        fi
    done 3>>"$room/added-files"
    [ -n "$list" ] || return 0
    eval "cp -lP --parents -t \"\$room/old\" -- $list"
    # They have the modes of those in the project, and more has to get into them.
    last=
    for item do
        name=${item#?}
        in=${name%/*}
        [ "$in" != "$last" ] || continue
        last=$in
        [ ! -d "$room/old/$in" ] || [ -w "$room/old/$in" ] || chmod u+w -- "$room/old/$in"
    done
}
place() {
    i=0 list= directory=
    for item do
        i=$((i + 1))
        case $item in f*) name=${item#f} ;; *) continue ;; esac
        in=${name%/*}
        [ "$in" != "$name" ] || in=.
        if [ "$in" != "$directory" ]; then
            [ -z "$list" ] || eval "mv -f -t \"./\$directory\" -- $list"
            list=
            directory=$in
        fi
        list="$list \"\$room/new/\${$i#f}\""
    done
    [ -z "$list" ] || eval "mv -f -t \"./\$directory\" -- $list"
}
remove() {
    i=0 list=
    for item do
        i=$((i + 1))
        case $item in x*) list="$list \"./\${$i#x}\"" ;; esac
    done
    [ -z "$list" ] || eval "rm -f -- $list"
}
directories "$@"
keep "$@"
place "$@"
remove "$@"
'
# From an earlier try.
find "$room/old" -type d ! -perm -200 -exec chmod u+w {} +
xargs -0 -r -n 1000 sh -c "$act" act
if [ -e "$room/modes" ]; then
    # shellcheck disable=SC2016
    xargs -0 -r sh -c 'for item do chmod -- "${item%% *}" "./${item#* }" || exit 255; done' modes <"$room/modes"
    rm -f -- "$room/modes"
fi
rm -rf -- "$room/new"
