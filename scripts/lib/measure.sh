# shellcheck shell=bash
# Wall time, CPU of the client and of both servers, memory of the client, temporary disk.
# Source after servers.sh; uses source_pid, target_pid, work, and $work/tmp for temporary files.

ticks_per_second=$(getconf CLK_TCK)

# ticks PID: clock ticks that the process used, with those of its children that ended.
ticks() { sed 's/^.*) //' "/proc/$1/stat" 2>/dev/null | awk '{ print $12 + $13 + $14 + $15 }'; }

# Not every kernel lists them in one place.
if [[ -r /proc/$$/task/$$/children ]]; then
    children() { cat /proc/"$1"/task/*/children 2>/dev/null || true; }
else
    children() { awk -v parent="$1" '{ sub(/^.*\) /, ""); if ($2 == parent) { split(FILENAME, part, "/"); print part[3] } }' /proc/[0-9]*/stat 2>/dev/null || true; }
fi

# server_ticks: all ticks of both clusters: ended backends are in the postmaster's sum, living
# processes are asked themselves.
server_ticks() {
    local total=0 postmaster process
    for postmaster in "${source_pid:?}" "${target_pid:?}"; do
        for process in "$postmaster" $(children "$postmaster"); do
            total=$((total + $(ticks "$process" || true) + 0))
        done
    done
    printf '%s\n' "$total"
}

# no_backends: whether all sessions have ended; a session's ticks are only complete when it has ended.
no_backends() {
    local postmaster process
    for postmaster in "$source_pid" "$target_pid"; do
        for process in $(children "$postmaster"); do
            if tr '\0' ' ' <"/proc/$process/cmdline" 2>/dev/null | grep -q '^postgres: owner '; then return 1; fi
        done
    done
}

# family PID: the process and all below it.
family() {
    local child
    printf '%s\n' "$1"
    for child in $(children "$1"); do family "$child"; done
}

# sample PID FILE: until it ends, keeps the largest sum of memory of the process and all below
# it (kB), and of $work/tmp (kB), in FILE. Five looks a second.
sample() {
    local memory=0 disk=0 sum size process
    while kill -0 "$1" 2>/dev/null; do
        sum=0
        for process in $(family "$1"); do
            # Pss shares out what several processes have in common; the fallback counts it for each.
            size=$(sed -n 's/^Pss:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$process/smaps_rollup" 2>/dev/null || true)
            [[ -n $size ]] || size=$(sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$process/status" 2>/dev/null || true)
            # The shells between us and the programs are ours.
            [[ $(cat "/proc/$process/comm" 2>/dev/null) == bash ]] || sum=$((sum + ${size:-0}))
        done
        size=$(du -sk "${work:?}/tmp" 2>/dev/null | cut -f 1)
        ((sum > memory)) && memory=$sum
        ((${size:-0} > disk)) && disk=$size
        printf '%s %s\n' "$memory" "$disk" >"$2.part" && mv "$2.part" "$2"
        sleep 0.2
    done
}

# measure NAME FUNCTION: runs it with its output in $work/NAME.log and appends a line of tabs to
# $work/results: name, wall s, client CPU s, servers' CPU s, memory MB, disk MB.
measure() {
    local name=$1 function=$2 before after client real user system sampler code memory disk
    wait_until 30 no_backends || say "somebody else has sessions on the servers"
    before=$(server_ticks)
    # The subshell waits for everything that it starts, so `time` sees the CPU of all of it.
    (
        set -euo pipefail
        cd "$work/tmp"
        TIMEFORMAT='%3R %3U %3S'
        { time "$function" >"$work/$name.log" 2>&1; } 2>"$work/$name.time"
    ) &
    client=$!
    sample "$client" "$work/$name.peak" &
    sampler=$!
    code=0
    wait "$client" || code=$?
    wait "$sampler" || true
    ((code == 0)) || return "$code"
    wait_until 30 no_backends || say "sessions were left open"
    after=$(server_ticks)
    read -r real user system <"$work/$name.time"
    read -r memory disk <"$work/$name.peak"
    awk -v name="$name" -v real="$real" -v user="$user" -v sys="$system" -v ticks=$((after - before)) -v hz="$ticks_per_second" -v memory="$memory" -v disk="$disk" \
        'BEGIN { printf "%s\t%s\t%.2f\t%.2f\t%.0f\t%.0f\n", name, real, user + sys, ticks / hz, memory / 1024, disk / 1024 }' >>"$work/results"
}

# counts PORT DATABASE: rows of every table that serves; an earlier copy is not looked at, an unfinished one is.
counts() {
    sql "$1" "$2" -A -t <<'SQL' | sort
select format('select %L, count(*) from %I.%I', relname, nspname, relname)
from pg_class c join pg_namespace n on n.oid = relnamespace
where relkind = 'r' and relpersistence <> 't' and nspname !~ '^(pg_|information_schema$|bullwork($|_old[0-9]))'
\gexec
SQL
}

# report BASE: the medians as a table in Markdown; ratios against the method BASE.
report() {
    printf '| method | wall s | CPU s (client + servers) | ratio of wall | ratio of CPU | client memory MB | temp disk MB |\n|---|---|---|---|---|---|---|\n'
    awk -F '\t' -v base="$1" '
        function median(key, column,   i, j, t, count, list) {
            count = split(values[key, column], list, " ")
            for (i = 1; i <= count; i++) for (j = i + 1; j <= count; j++) if (list[j] + 0 < list[i] + 0) { t = list[i]; list[i] = list[j]; list[j] = t }
            return count % 2 ? list[(count + 1) / 2] + 0 : (list[count / 2] + list[count / 2 + 1]) / 2
        }
        { if (!($1 in seen)) { seen[$1] = 1; order[++methods] = $1 }
          for (i = 2; i <= NF; i++) values[$1, i] = values[$1, i] " " $i
          values[$1, 7] = values[$1, 7] " " ($3 + $4) }
        END {
            for (m = 1; m <= methods; m++) {
                key = order[m]
                printf "| %s | %.1f | %.1f (%.1f + %.1f) | %.2f | %.2f | %.0f | %.0f |\n", key, median(key, 2), median(key, 7), median(key, 3), median(key, 4),
                    median(key, 2) / median(base, 2), median(key, 7) / median(base, 7), median(key, 5), median(key, 6)
            }
        }' "$work/results"
}
