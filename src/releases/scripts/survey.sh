# shellcheck shell=sh
# Tells what is in a project directory.
#
# $1 project directory, $2 `tree` (with all that is below) or `entries` (each by itself), $3 `digests` or `names`,
# $4 room to make for a release, or nothing, $5 who owns it then, $6 which release it is: numbers begin anew with a new list
# stdin: names, each ended by NUL: `+NAME` to look at, `=NAME` only to tell what it is
# stdout: `free KIB` NUL, then for each entry `TYPE MODE SIZE` NUL `./NAME` NUL `LINK` NUL, where TYPE is find's or `-` for
# what is missing, and for each file a line `DIGEST *./NAME`
set -eu
LC_ALL=C
export LC_ALL
cd -- "$1"
depth='' digest=''
[ "$2" = tree ] || depth='-maxdepth 0'
if [ "$3" = digests ]; then
    # Several times as fast where the processor has instructions for it.
    if openssl dgst -sha256 -r </dev/null >/dev/null 2>&1; then digest='openssl dgst -sha256 -r'; else digest='sha256sum -b'; fi
fi
if [ -n "$4" ]; then
    command -v rsync >/dev/null 2>&1 || {
        echo "rsync is not installed" >&2
        exit 1
    }
    of=$6
    if [ -e "$4.back" ]; then
        of=$(cat -- "$4.back")
    elif [ -e "$4/of" ]; then
        of=$(cat -- "$4/of")
    elif [ -e "$4/old" ]; then
        of=
    fi
    if [ "$of" != "$6" ]; then
        echo "$1/$4 is of another release with this number: the list of releases is not the one that it was (RELEASE_STATE_FILE, STATE_DATABASE_URL);" \
            "go back to that one, or move $1/${4%%/*} away, which keeps what earlier releases replaced" >&2
        exit 1
    fi
    mkdir -p -- "$4"
    printf '%s\n' "$6" >"$4/of.new"
    mv -f -- "$4/of.new" "$4/of"
    rm -f -- "$4.back"
    mkdir -p -- "$4/new" "$4/old"
    # Others have no business with what releases keep.
    chmod 700 -- "${4%%/*}"
    printf '%s\n' "$5" >"$4/owner.new"
    mv -f -- "$4/owner.new" "$4/owner"
fi
df -Pk . | {
    read -r _
    read -r _ _ _ free _
    printf 'free %s\0' "$free"
}
export depth digest
# Lists are numbers of parameters, put in at the end: a list of words is copied whole for each word that it gets.
# shellcheck disable=SC2016 # it is a script
look='
set -eu
trap '\''code=$?; [ $code -eq 0 ] || exit 255'\'' EXIT
i=0 list= missing=
for name do
    i=$((i + 1))
    case $name in
    =*)
        name=${name#=}
        if [ -L "./$name" ]; then kind=l
        elif [ -d "./$name" ]; then kind=d
        elif [ -e "./$name" ]; then kind=f
        else kind=-
        fi
        printf "%s 0 0\0./%s\0\0" "=$kind" "$name"
        ;;
    *)
        name=${name#+}
        if [ -e "./$name" ] || [ -L "./$name" ]; then list="$list \"./\${$i#+}\""
        else missing="$missing \"\${$i#+}\""
        fi
        ;;
    esac
done
# One printf, because each is sent by itself.
[ -z "$missing" ] || eval "printf -- \"- 0 0\\0./%s\\0\\0\" $missing"
[ -n "$list" ] || exit 0
eval "set -- $list"
find "$@" $depth -printf "%y %m %s\0%p\0%l\0"
[ -n "$digest" ] || exit 0
find "$@" $depth -type f -print0 | xargs -0 -r -n 1000 $digest
'
xargs -0 -r -n 1000 sh -c "$look" look
