# shellcheck shell=bash
# Our queue against npm's Bull, on one Redis, in turn. Source after servers.sh; uses work, root, repeats, programs.
# shellcheck disable=SC2154 # scripts/bench sets them

# side SIDE MODE [NUMBER...]: one measurement of `bull` or `bullwork`; prints its JSON.
side() {
    local who=$1
    shift
    case $who in
        bull) NODE_PATH=$root/target/bull/node_modules node "$root/benches/bull.js" "redis://127.0.0.1:$redis_port" bench "$@" ;;
        bullwork) "$programs/examples/queue_bench" "redis://127.0.0.1:$redis_port" bench "$@" ;;
    esac
}

# member NAME: its number in the JSON on standard input.
member() { sed -n "s/.*\"$1\": \{0,1\}\([0-9.eE+-]*\).*/\1/p" | tail -n 1; }

ask() { redis-cli -p "$redis_port" "$@"; }

# Processor seconds of Redis so far.
redis_cpu() { ask info cpu | tr -d '\r' | awk -F : '/^used_cpu_(user|sys):/ { sum += $2 } END { print sum }'; }

# note_value SIDE MEASURE EXPRESSION: computed by awk and kept for the table.
note_value() { printf '%s\t%s\t%s\n' "$1" "$2" "$(awk "BEGIN { print $3 }")" >>"$work/results"; }

fill() {
    ask flushall >/dev/null
    "$programs/examples/queue_bench" "redis://127.0.0.1:$redis_port" bench bulk "$1" 1000 >/dev/null
}

measure_queue() {
    local who=$1 answer before count concurrency worker
    ask flushall >/dev/null
    side "$who" one_by_one 500 >/dev/null # what the first ones cost (scripts, compilers) is not the question
    answer=$(side "$who" one_by_one 5000)
    note_value "$who" 'add one by one, jobs/s' "5000 / $(member seconds <<<"$answer")"
    before=$(redis_cpu)
    answer=$(side "$who" pipelined 20000 100)
    note_value "$who" 'add, 100 in flight, jobs/s' "20000 / $(member seconds <<<"$answer")"
    note_value "$who" 'Redis CPU, add, µs/job' "($(redis_cpu) - $before) * 1e6 / 20000"
    answer=$(side "$who" bulk 50000 1000)
    note_value "$who" 'add in bulks of 1000, jobs/s' "50000 / $(member seconds <<<"$answer")"
    for concurrency in 1 10 50; do
        count=20000
        fill "$count"
        before=$(redis_cpu)
        answer=$(side "$who" process "$count" "$concurrency")
        note_value "$who" "process at $concurrency, jobs/s" "$count / $(member seconds <<<"$answer")"
        if ((concurrency == 50)); then
            note_value "$who" 'worker CPU at 50, µs/job' "$(member cpu <<<"$answer") * 1e6 / $count"
            note_value "$who" 'Redis CPU, process at 50, µs/job' "($(redis_cpu) - $before) * 1e6 / $count"
        fi
    done
    ask flushall >/dev/null
    side "$who" pickup 300 >"$work/pickup" &
    worker=$!
    wait_until 20 grep -q ready "$work/pickup" || die "$who: the worker did not start"
    side bullwork paced 300 >/dev/null
    wait "$worker"
    note_value "$who" 'pickup, median, ms' "$(member p50 <"$work/pickup")"
    note_value "$who" 'pickup, 99 of 100, ms' "$(member p99 <"$work/pickup")"
    ask flushall >/dev/null
    side "$who" idle 10 >"$work/idle" &
    worker=$!
    wait_until 20 grep -q ready "$work/idle" || die "$who: the worker did not start"
    ask config resetstat >/dev/null
    sleep 8
    # What clients sent; the commands that scripts call are counted beside them.
    note_value "$who" 'idle, commands/s' "$(ask info commandstats | tr -d '\r' | sed -n 's/^cmdstat_\(evalsha\|eval\|blmove\|brpoplpush\|ping\|client|[a-z]*\|exec\|multi\|info\):calls=\([0-9]*\).*/\2/p' | awk '{ sum += $1 } END { print sum + 0 }') / 8"
    wait "$worker"
    note_value "$who" 'idle, CPU %' "$(member cpu <"$work/idle") * 10"
    note_value "$who" 'idle, memory MB' "$(member megabytes <"$work/idle")"
}

# Medians of both sides, and how many times better ours is.
report_queue() {
    awk -F '\t' '
        function median(key,   i, j, t, count, list) {
            count = split(values[key], list, " ")
            for (i = 1; i <= count; i++) for (j = i + 1; j <= count; j++) if (list[j] + 0 < list[i] + 0) { t = list[i]; list[i] = list[j]; list[j] = t }
            return count % 2 ? list[(count + 1) / 2] + 0 : (list[count / 2] + list[count / 2 + 1]) / 2
        }
        function show(number) { return number >= 100 ? sprintf("%.0f", number) : sprintf("%.2f", number) }
        { if (!($2 in seen)) { seen[$2] = 1; order[++measures] = $2 } values[$1 SUBSEP $2] = values[$1 SUBSEP $2] " " $3 }
        END {
            print "| measure | Bull 4.16.5 | Bullwork | ours / Bull'"'"'s |"
            print "|---|---|---|---|"
            for (m = 1; m <= measures; m++) {
                name = order[m]; theirs = median("bull" SUBSEP name); ours = median("bullwork" SUBSEP name)
                has = ("bull" SUBSEP name) in values
                printf "| %s | %s | %s | %s |\n", name, (has ? show(theirs) : ""), show(ours), ((has && theirs > 0) ? sprintf("%.2f", ours / theirs) : "")
            }
        }' "$work/results"
}
