# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # scripts/demo sets them, and reads them
# One night: production is copied into a warehouse by jobs in Redis queues. A story of scripts/demo.

on_target() { sql "$target_port" warehouse -A -t "$@" 2>/dev/null || printf missing; }

story_needs() {
    need_postgres
    need_redis
    examples=(demo_services)
}

story() {
    title "2. Servers"
    step=$(now_ms)
    start_redis_and_source
    start_postgres target
    target_port=$port
    sql "$target_port" postgres -c 'create database warehouse'
    good "Redis on port $redis_port, source on $source_port, target on $target_port ($(since "$step"))"

    step=$(now_ms)
    sql "$target_port" warehouse -f "$root/data/target/day0.sql"
    good "loaded data/: production, and the warehouse as an older night left it ($(since "$step"))"

    start services "$programs/examples/demo_services" "$root/data/lcms/airtable.json" "$work/address" "$work/webhooks"
    wait_until 20 test -s "$work/address" || die "the demo's HTTP services did not start"
    services=http://$(<"$work/address")
    good "learning-content API and webhook receiver on $services"

    settings=(
        "SOURCE_DATABASE_URL=$(database_url "$source_port" production)"
        "TARGET_DATABASE_URL=$(database_url "$target_port" warehouse)"
        "REDIS_URL=redis://127.0.0.1:$redis_port"
        'BACKUP_MODE={"answers":"incremental","knowledge-elements":"incremental","AuditTrail":"none"}'
        "LCMS_API_URL=$services"
        "LCMS_API_KEY=demo-lcms-key"
        "NOTIFICATIONS=[{\"url\":\"$services/hook\",\"token\":\"demo-token\"},{\"url\":\"$services/flaky\"}]"
        "MAX_RETRY_COUNT=3"
        "EXPONENTIAL_RETRY_DELAY=500"
        "SCHEDULE=0 3 1 1 *"
        "LOG_FORMAT=text"
    )

    title "3. The night"
    note "bullwork background: the scheduler and one worker for each queue"
    start_bullwork background background
    background=$pid
    note "bullwork restart:full-replication --wait --chain: enqueue the first job, follow it and its successors"
    night=$(now_ms)
    bullwork restart:full-replication --wait --chain >&2 || die "the night failed"
    gone "$background" && die "bullwork background ended early"
    good "four jobs in $(since "$night")"

    title "4. What came of it"

    fingerprints "$source_port" production "$work/source.rows"
    fingerprints "$target_port" warehouse "$work/target.rows"
    compare "$work/source.rows" "$work/target.rows" AuditTrail || wrong=$((wrong + 1))

    say ''
    expect "rows of the kept table AuditTrail (mode none)" 3 "$(on_target -c 'select count(*) from "AuditTrail"')"
    expect "rows of the warehouse's own table" 2 "$(on_target -c 'select count(*) from "warehouse-notes"')"
    expect "its foreign key to a replaced table" 1 "$(on_target -c "select count(*) from pg_constraint where conname = 'warehouse_notes_user'")"
    expect "rows through the warehouse's own view" 300 "$(on_target -c 'select count(*) from analytics_users')"
    expect "rows through the compatibility view" 400 "$(on_target -c 'select count(*) from "schooling-registrations"')"
    expect "foreign keys as in the source" \
        "$(sql "$source_port" production -A -t -c "select count(*) from pg_constraint where contype = 'f' and conrelid not in ('\"knowledge-elements\"'::regclass)")" \
        "$(on_target -c "select count(*) from pg_constraint where contype = 'f' and connamespace <> 'bullwork'::regnamespace and conrelid not in ('\"knowledge-elements\"'::regclass, '\"warehouse-notes\"'::regclass)")"
    expect "enrichment indexes" "knowledge-element-snapshots_snappedAt_idx users_createdAt_idx" \
        "$(on_target -c "select string_agg(relname, ' ' order by relname collate \"C\") from pg_class where relname in ('users_createdAt_idx', 'knowledge-element-snapshots_snappedAt_idx')")"
    expect "position of a sequence" 100003 "$(on_target -c 'select last_value from ticket_number_seq')"
    for table in areas attachments competences tubes skills challenges courses tutorials; do
        wanted=$(on_target -v table="$table" -v body="$(<"$root/data/lcms/airtable.json")" <<<"select json_array_length(:'body'::json -> :'table')")
        expect "learning content, $table" "$wanted" "$(on_target -c "select count(*) from \"$table\"")"
    done

    say ''
    say "  webhooks received:"
    sed 's/^/    /' "$work/webhooks" >&2
    expect "calls answered with 200" 2 "$(grep -c '"answer":200' "$work/webhooks")"
    expect "calls with the token, verbatim" 1 "$(grep -c '"authorization":"demo-token"' "$work/webhooks")"

    say ''
    queues=("Replication queue" "Incremental replication queue" "Learning Content replication queue" "Notification queue")
    for queue in "${queues[@]}"; do
        say "  $queue"
        printf 'connect "%s"\nstats\n' "$queue" | bullwork repl 2>&1 | sed 's/^/    /' >&2
        expect "completed and failed jobs" "1 0" "$(redis-cli -p "$redis_port" zcard "bull:$queue:completed") $(redis-cli -p "$redis_port" zcard "bull:$queue:failed")"
    done

    note "the delayed job of the first queue is the next night, which the scheduler has put there"
}

story_kept() {
    say "    source $work/env                      # the settings, for the lines below
    $programs/bullwork repl                # then: connect \"Replication queue\", stats, completed, logs $(redis-cli -p "$redis_port" zrange "bull:Replication queue:completed" -1 -1)
    $programs/bullwork restart:incremental-replication --wait
    PGPASSFILE=$work/pgpass $PG_BIN/psql -h 127.0.0.1 -p $source_port -U owner production
    PGPASSFILE=$work/pgpass $PG_BIN/psql -h 127.0.0.1 -p $target_port -U owner warehouse
    tail -f $work/background.log
  A day later in production:
    PGPASSFILE=$work/pgpass $PG_BIN/psql -X -q -h 127.0.0.1 -p $source_port -U owner -f $root/data/source/grow.sql production"
}
