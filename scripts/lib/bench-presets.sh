# shellcheck shell=bash
# shellcheck disable=SC2154 # scripts/bench sets them
# What it costs to make a preset and to put one in place. Part of scripts/bench.

# preset MACHINE WORD...: db-p as it is set up there.
preset() {
    local machine=$1 home=${work:?}/$1
    shift
    (cd "$home" && env -i PATH="$PATH" HOME="$home" LANG=C.UTF-8 DBP_S3_BACKET="file://$work/store" DBP_REPO=bench DBP_BRANCH=main DBP_PG_USER=owner \
        DBP_PG_DATA_DIR="$home/data" DBP_PG_START_CMD="$(cluster_start "$machine")" DBP_PG_STOP_CMD="$(cluster_control "$machine") -m fast stop" \
        DBP_PG_PASSWORD="$PGPASSWORD" DBP_PG_PORT="$(<"$home/port")" DBP_KEY_PATH="$work/key" PG_BIN="$PG_BIN" \
        DBP_MODE="$([[ $machine == fast ]] && printf fast || printf cluster)" \
        DBP_PRESETS_DIR="$home/presets" DBP_PRESETS_DATA_DIR="$home/ready" "${programs:?}/db-p" "$@")
}

# timed NAME COMMAND...: appends name, wall s and CPU s of the command and its children to $work/results.
timed() {
    local name=$1 real user system
    shift
    TIMEFORMAT='%3R %3U %3S'
    { time "$@" >"$work/$name.log" 2>&1; } 2>"$work/$name.time" || die "$name failed: $(tail -n 5 "$work/$name.log")"
    read -r real user system < <(tail -n 1 "$work/$name.time")
    awk -v name="$name" -v real="$real" -v user="$user" -v sys="$system" 'BEGIN { printf "%s\t%s\t%.2f\n", name, real, user + sys }' >>"$work/results"
    note "$name: $real s, CPU $user + $system s"
}

presets_setup() {
    title "Setting up"
    need_cargo
    need_postgres
    need_rsync
    has xz || apt_install xz-utils || die "without xz there is nothing to compare with"
    note "building (release) ..."
    (cd "${root:?}" && "${cargo:?}" build --quiet --release --bin db-p >&2) || die "the build failed"
    programs=${CARGO_TARGET_DIR:-$root/target}/release
    [[ $programs == /* ]] || programs=$root/$programs
    make_work bench
    local machine
    for machine in maker cluster fast; do start_machine "$machine"; done
    maker=$(<"$work/maker/port")
    sql "$maker" postgres -c 'create database production'
    note "generating about ${size_mb:?} MB ..."
    sql "$maker" production -v scale="$(awk "BEGIN { print $size_mb / 1000 }")" -f "$root/scripts/lib/bench.sql"
    note "the cluster holds $(sql "$maker" production -A -t -c 'select pg_size_pretty(pg_database_size(current_database()))')"
    preset maker gen-key >/dev/null
    : >"$work/results"
}

# Every time another preset than the one that is in place.
switched() {
    local way=$1 port
    shift
    "$@"
    port=$(<"$work/${way%% *}/port")
    sql "$port" production -o /dev/null -c 'select count(*) from answers'
}
by_rsync() {
    sh -c "$(cluster_control cluster) -m fast stop"
    rsync -a --delete "$(find "$work/cluster/ready/bench/main" -maxdepth 1 -name "$1@*")/" "$work/cluster/data/"
    sh -c "$(cluster_start cluster)"
}

measure_presets() {
    local name
    sql "$maker" postgres -c checkpoint
    timed push_xz sh -c "'$PG_BIN/pg_dumpall' -p $maker -d postgres | xz -9 -T0 >'$work/dump.xz'"
    timed push preset maker push-new name="one$turn" desc=x
    sizes="xz -9 $(stat -c %s "$work/dump.xz"), db-p $(stat -c %s "$work"/store/bench/main/one"$turn"/rev-*)"
    preset maker push-new name="two$turn" desc=x >/dev/null 2>&1
    for name in cluster fast; do
        preset "$name" get include="one$turn,two$turn" >"$work/get.log" 2>&1 || die "the pull failed: $(tail -n 5 "$work/get.log")"
        preset "$name" select "one$turn" >/dev/null 2>&1 || die "the select failed"
    done
    timed select_rsync switched cluster by_rsync "two$turn"
    preset cluster select "one$turn" clean >/dev/null 2>&1
    timed select_cluster switched cluster preset cluster select "two$turn"
    timed select_fast switched fast preset fast select "two$turn"
}

report_presets() {
    printf '| what | wall s | CPU s | ratio of wall | ratio of CPU |\n|---|---|---|---|---|\n'
    awk -F '\t' '
        function median(key, column,   i, j, t, count, list) {
            count = split(values[key, column], list, " ")
            for (i = 1; i <= count; i++) for (j = i + 1; j <= count; j++) if (list[j] + 0 < list[i] + 0) { t = list[i]; list[i] = list[j]; list[j] = t }
            return list[int((count + 1) / 2)] + 0
        }
        { if (!($1 in seen)) { seen[$1] = 1; order[++methods] = $1 }
          for (i = 2; i <= NF; i++) values[$1, i] = values[$1, i] " " $i }
        END {
            for (m = 1; m <= methods; m++) {
                key = order[m]
                base = key ~ /^push/ ? "push_xz" : "select_rsync"
                printf "| %s | %.2f | %.2f | %.2f | %.2f |\n", key, median(key, 2), median(key, 3), median(key, 2) / median(base, 2), median(key, 3) / median(base, 3)
            }
        }' "$work/results"
    printf '\nBytes: %s\n' "$sizes"
}
