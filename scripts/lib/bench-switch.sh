# shellcheck shell=bash
# How long readers of the warehouse wait while copies are built and switched in. Part of scripts/bench.

# Copies that are switched in while readers look, after one that nobody watches.
switches=3
# Statements a second, from two sessions together.
reader_rate=400

# start_readers: every statement looks at one table, any of them. pgbench writes down when each ended and what it took.
start_readers() {
    local statement scripts=() number=0
    mkdir "${work:?}/readers"
    # A table without rows divides by zero, which ends the session, and the measurement.
    while read -r statement; do
        number=$((number + 1))
        printf '%s\n' "$statement" >"$work/readers/$number.sql"
        scripts+=(-f "$work/readers/$number.sql")
    done < <(sql "${target_port:?}" warehouse -A -t -c "select format('select 1 / count(*) from (select from %I limit 1) one;', relname)
        from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'")
    PGPORT=$target_port start readers "$PG_BIN/pgbench" -n -c 2 -j 1 -R "$reader_rate" -T 86400 -l --log-prefix="$work/readers/log" "${scripts[@]}" warehouse
    readers=${pid:?}
    wait_until 30 looked_since "$(now_ms)" || die "the readers do not read: $(tail -n 3 "$work/readers.log")"
}

# looked_since MS: whether a statement that ended later is in the readers' file, which they write in blocks.
looked_since() { awk -v since="$1" 'NF >= 7 { last = $5 * 1000 + $6 / 1000 } END { exit last <= since }' "$work/readers"/log.*; }

readers_live() { kill -0 "$readers" 2>/dev/null && ! grep -qE 'aborted|ERROR|FATAL' "$work/readers.log"; }

# moment FILE TEXT: milliseconds since the epoch of the log's line with that text.
moment() {
    local time
    time=$(sed -n "/$2/s/.*\"time\":\"\([^\"]*\)\".*/\1/p" "$1" | tail -n 1)
    [[ -n $time ]] || die "the log does not say \"$2\", which the switch is timed by: $(tail -n 2 "$1")"
    date -d "$time" +%s%3N
}

# The name, the milliseconds from which and to which it lasted, and what the switch took, a line each.
watch_switches() {
    local number log from to
    fresh_target ''
    note "yesterday's copy ..."
    full_bullwork_as_cpus >"$work/yesterday.log" 2>&1 || die "the first copy failed: $(tail -n 5 "$work/yesterday.log")"
    start_readers
    : >"$work/windows"
    for ((number = 1; number <= switches; number++)); do
        note "copy and switch $number of $switches, two sessions read ..."
        log=$work/switch$number.log
        sql "$target_port" postgres -c checkpoint
        printf 'copy %d\t%s' "$number" "$(now_ms)" >>"$work/windows"
        full_bullwork_as_cpus >"$log" 2>&1 || die "copy $number failed: $(tail -n 5 "$log")"
        printf '\t%s\t\n' "$(now_ms)" >>"$work/windows"
        # All attempts lie between these two lines.
        from=$(moment "$log" 'End restore Backup')
        to=$(moment "$log" 'serves; the switch took')
        printf 'switch %d\t%s\t%s\t%s\n' "$number" "$from" "$to" "$(sed -n 's/.*the switch took \([0-9]*\) ms.*/\1/p' "$log")" >>"$work/windows"
        readers_live || die "a reader failed: $(grep -E 'aborted|ERROR|FATAL' "$work/readers.log" | head -n 3)"
    done
    wait_until 30 looked_since "$(now_ms)" || die "the readers stopped"
    kill "$readers"
    wait_until 30 gone "$readers" || die "the readers do not end"
    equal "the last copy"
}

# report_switches: what statements waited that overlap each stretch of time, as a table in Markdown.
report_switches() {
    printf '| while | readers'"'"' statements | median ms | longest ms | the switch itself, ms |\n|---|---|---|---|---|\n'
    # A statement's time in the file begins when it was due; it was sent later by what the last column says.
    awk 'NF >= 7 && $3 ~ /^[0-9]+$/ { took = ($3 - $7) / 1000; end = $5 * 1000 + $6 / 1000; printf "%.3f %.3f %.3f\n", took, end - took, end }' "$work/readers"/log.* |
        sort -n >"$work/waits"
    local name from to took
    while IFS=$'\t' read -r name from to took; do
        awk -v name="$name" -v from="$from" -v to="$to" -v took="$took" '
            $2 <= to && $3 >= from { wait[++count] = $1 }
            END { middle = int((count + 1) / 2)
                  if (!count) exit 1
                  printf "| %s | %d | %.1f | %.1f | %s |\n", name, count, wait[middle], wait[count], took }' "$work/waits" ||
            die "no reader's statement fell into $name"
    done < <(sort -s -k 1,1 "$work/windows")
}
