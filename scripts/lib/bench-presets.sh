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
    mkdir "$work/store"
    local machine
    for machine in maker cluster fast; do start_machine "$machine"; done
    maker=$(<"$work/maker/port")
    sql "$maker" postgres -c 'create database production'
    note "generating about ${size_mb:?} MB ..."
    sql "$maker" production -v scale="$(awk "BEGIN { print $size_mb / 1000 }")" -f "$root/scripts/lib/bench.sql"
    note "the cluster holds $(sql "$maker" production -A -t -c 'select pg_size_pretty(pg_database_size(current_database()))')"
    preset maker gen-key >/dev/null
    : >"$work/results"
    : >"$work/selects"
}

# marked NAME TEXT: a preset of the maker's cluster that can be told from others.
marked() {
    sql "$maker" production -c 'create table if not exists marked (text text)' -c "truncate marked" -c "insert into marked values ('$1')"
    preset maker push-new name="$1" desc=x
}
# switched MACHINE MARK COMMAND...: until the cluster answers with that mark; what the command does after that is waited for, and not counted.
switched() {
    local port mark=$2 begun wall ended code=0
    begun=$(now_ms)
    port=$(<"$work/$1/port")
    shift 2
    "$@" >"$work/select.log" 2>&1 &
    local command=$!
    until [[ $(sql "$port" production -A -t -c 'select text from marked' 2>/dev/null) == "$mark" ]]; do sleep 0.02; done
    wall=$(($(now_ms) - begun))
    wait "$command" || code=$?
    ((code == 0)) || die "the switch failed: $(tail -n 5 "$work/select.log")"
    ended=$(($(now_ms) - begun))
    printf '%s\t%s\t%s\n' "$way" "$(awk "BEGIN { print $wall / 1000 }")" "$(awk "BEGIN { print $ended / 1000 }")" >>"$work/selects"
    note "$way: answers after $wall ms, ends after $ended ms"
}
by_rsync() {
    sh -c "$(cluster_control cluster) -m fast stop"
    rsync -a --delete "$(find "$work/cluster/ready/bench/main" -maxdepth 1 -name "$1@*")/" "$work/cluster/data/"
    sh -c "$(cluster_start cluster)"
}

measure_presets() {
    local name
    sql "$maker" postgres -c checkpoint
    # shellcheck disable=SC2154 # scripts/bench sets it
    [[ $xz == no ]] || timed push_xz bash -o pipefail -c "'$PG_BIN/pg_dumpall' -p $maker -l postgres | xz -9 -T0 >'$work/dump.xz'"
    timed push marked "one$turn"
    sizes="xz -9 $(stat -c %s "$work/dump.xz" 2>/dev/null || true), db-p $(stat -c %s "$work"/store/bench/main/one"$turn"/rev-*)"
    marked "two$turn" >/dev/null 2>&1
    for name in cluster fast; do
        preset "$name" get include="one$turn,two$turn" >"$work/get.log" 2>&1 || die "the pull failed: $(tail -n 5 "$work/get.log")"
        preset "$name" select "one$turn" >/dev/null 2>&1 || die "the select failed"
    done
    way=select_rsync switched cluster "two$turn" by_rsync "two$turn"
    preset cluster select "one$turn" clean >/dev/null 2>&1
    # The spare directory is as after a day's work with another preset: nothing of it can be kept.
    rm -rf "$work/cluster/data.bullwork-spare"
    way=select_cluster switched cluster "two$turn" preset cluster select "two$turn"
    way=select_fast switched fast "two$turn" preset fast select "two$turn"
}

# medians FILE BASE HEAD: of both columns, and their ratios against BASE.
medians() {
    printf '%s\n|---|---|---|---|---|\n' "$3"
    awk -F '\t' -v base="$2" '
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
                printf "| %s | %.2f | %.2f | %.2f | %.2f |\n", key, median(key, 2), median(key, 3), median(key, 2) / median(base, 2), median(key, 3) / median(base, 3)
            }
        }' "$1"
}
report_presets() {
    medians "$work/results" "$([[ $xz == no ]] && printf push || printf push_xz)" '| what | wall s | CPU s | ratio of wall | ratio of CPU |'
    printf '\nBytes: %s\n\n' "$sizes"
    medians "$work/selects" select_rsync '| what | answers after s | ends after s | ratio | ratio |'
}
