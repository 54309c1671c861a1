# shellcheck shell=bash
# Three nights of one warehouse: all of it, what a day changed, nothing. Part of scripts/bench.

# delta_setup: keeps the source as it is before the first night, for every turn the same.
delta_setup() {
    sql "${source_port:?}" production -v part=leaving -f "${root:?}/scripts/lib/bench-change.sql" -o /dev/null
    sql "$source_port" production -c 'vacuum analyze'
    modes=$(sql "$source_port" production -A -t -c "select json_object_agg(relname, 'delta') from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'")
    tables=$(sql "$source_port" production -A -t -c "select count(*) from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'")
    sql "$source_port" postgres -c 'alter database production rename to pristine'
}

# field NAME FILE: a number in the last line of a run that has it.
field() { sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p" "$2" | tail -n 1; }

# three_nights: the three nights, each measured.
three_nights() {
    local inserted updated deleted unchanged
    sql "$source_port" postgres -c 'drop database if exists production' -c 'create database production template pristine' 2>/dev/null
    fresh_target ''
    run_measured first_night full_bullwork_as_cpus

    # Tables that are there without a stored state are compared row by row, once; that is nobody's usual night.
    note "making the state that later nights start from (not measured)"
    extra+=("BACKUP_MODE=$modes")
    incremental_bullwork >"${work:?}/state.log" 2>&1 || die "the first delta run failed: $(tail -n 5 "$work/state.log")"
    sql "$source_port" production -A -t -v part="${day:?}" -f "$root/scripts/lib/bench-change.sql" >"$work/day.log"
    read -r inserted updated deleted < <(awk '{ done[$1] += $NF } END { print done["INSERT"] + 0, done["UPDATE"] + 0, done["DELETE"] + 0 }' "$work/day.log")
    ((updated)) || die "the day changed nothing"
    [[ $day == updates ]] || ((inserted && deleted)) || die "the day neither added nor deleted anything"
    note "a day: $updated rows changed, $deleted deleted, $inserted added"
    # As autovacuum, which is off, would do in the course of the day.
    sql "$source_port" production -c 'vacuum analyze' -c checkpoint
    sql "${target_port:?}" warehouse -c 'vacuum analyze' -c checkpoint

    run_measured second_night incremental_bullwork
    [[ "$(field rows "$work/second_night.log") $(field rows_updated "$work/second_night.log") $(field rows_deleted "$work/second_night.log")" == "$inserted $updated $deleted" ]] ||
        die "the second night did something else than the day: $(tail -n 3 "$work/second_night.log")"
    ! grep -q 'full comparison' "$work/second_night.log" || die "the second night compared whole tables: $(grep -m 1 'full comparison' "$work/second_night.log")"
    verify

    run_measured third_night incremental_bullwork
    unchanged=$(grep -c 'is unchanged: ' "$work/third_night.log" || true)
    ((unchanged == tables)) || die "the third night found only $unchanged of $tables tables unchanged"
    unset 'extra[-1]'
}

verify() {
    bullwork replication verify >"$work/verify.log" 2>&1 || die "bullwork replication verify found differences: $(tail -n 5 "$work/verify.log")"
    note "bullwork replication verify: all tables equal"
}
