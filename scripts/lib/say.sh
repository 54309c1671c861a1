# shellcheck shell=bash
# What the scripts print and how they end. Progress and errors go to standard error, results to
# standard output.

if [[ -t 2 && -z ${NO_COLOR:-} ]]; then
    bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'
else
    bold='' dim='' red='' green='' plain=''
fi

say() { printf '%s\n' "$*" >&2; }
title() { printf '\n%s%s%s\n' "$bold" "$*" "$plain" >&2; }
note() { printf '%s  %s%s\n' "$dim" "$*" "$plain" >&2; }
good() { printf '%s  ok%s  %s\n' "$green" "$plain" "$*" >&2; }
bad() { printf '%s  no%s  %s\n' "$red" "$plain" "$*" >&2; }
die() {
    printf '%serror:%s %s\n' "$red" "$plain" "$*" >&2
    exit 1
}

# Milliseconds since the epoch.
now_ms() { date +%s%3N; }
# "1.2 s" since the time given.
since() {
    local ms=$(($(now_ms) - $1))
    printf '%d.%d s' $((ms / 1000)) $((ms % 1000 / 100))
}

# at_exit FUNCTION: calls it with the exit code, however the script ends short of SIGKILL. Nothing
# interrupts it then, not even a reader that went away (`scripts/demo | head`).
at_exit() {
    # shellcheck disable=SC2064 # the function is known now
    trap "ending $1" EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 141' PIPE
    trap 'exit 143' TERM
}
ending() {
    local code=$?
    trap - EXIT
    trap '' HUP INT PIPE TERM
    set +e
    "$1" "$code"
    exit "$code"
}
