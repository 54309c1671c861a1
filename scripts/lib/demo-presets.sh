# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # scripts/demo sets them, and reads them
# Presets: whole clusters shared by two developers, locked, pushed, and put in place in seconds. A story of scripts/demo.

story_needs() {
    need_postgres
    need_redis
    need_rsync
}

# as MACHINE WORD...: db-p as it is set up there.
as() {
    local machine=$1 home=$work/$1
    shift
    (cd "$home" && env -i PATH="$PATH" HOME="$home" LANG=C.UTF-8 TERM="${TERM:-dumb}" "${shared[@]}" "${machine_settings[@]}" \
        DBP_PG_DATA_DIR="$home/data" DBP_PG_START_CMD="$(cluster_start "$machine")" DBP_PG_STOP_CMD="$(cluster_control "$machine") -m fast stop" \
        DBP_PG_PASSWORD="$PGPASSWORD" DBP_PG_PORT="$(<"$home/port")" DBP_KEY_PATH="$home/key" DBP_LOGFILE="$home/db-p.log" \
        DBP_APP_START="touch $home/app" DBP_APP_STOP="rm -f $home/app" \
        DBP_PRESETS_DIR="$home/presets" DBP_PRESETS_DATA_DIR="$home/ready" "$programs/db-p" "$@")
}
# refused WHAT MACHINE WORD...: it must be, and the reason is shown.
refused() {
    local what=$1 code=0 reason
    shift
    reason=$(as "$@" 2>&1 >/dev/null) || code=$?
    expect "$what" "refused" "$( ((code == 1)) && printf refused || printf 'exit code %s' "$code")"
    note "${reason##*$'\n'}"
}
users() { sql "$(<"$work/$1/port")" production -A -t -c "select count(*) || ' ' || count(*) filter (where \"lastName\" = 'Changed') from users"; }

story() {
    machine_settings=("DBP_MIGR_CMD=psql -X -q -d production -c 'alter table users add column if not exists migrated boolean default true'")
    shared=(DBP_S3_BACKET="file://$work/store" DBP_REPO=shop DBP_BRANCH=main DBP_PG_USER=owner PG_BIN="$PG_BIN")
    mkdir "$work/store"
    title "2. Two machines"
    step=$(now_ms)
    for machine in anna boris; do start_machine "$machine"; done
    sql "$(<"$work/anna/port")" postgres -c 'create database production'
    sql "$(<"$work/anna/port")" production -f "$root/data/source/schema.sql"
    sql "$(<"$work/anna/port")" production -f "$root/data/source/seed.sql"
    before=$(users anna)
    good "a cluster for Anna, loaded from data/, and one for Boris ($(since "$step"))"
    note "db-p gen-key: one key for the branch, the same file on both machines"
    as anna gen-key >/dev/null
    cp "$work/anna/key" "$work/boris/key"

    title "3. Pushed and pulled"
    note "db-p push-new name=base desc=…"
    expect "Anna" "stored revision 1 of \`base\`" "$(as anna push-new name=base desc='Первая версия' who=Анна 2>/dev/null)"
    sql "$(<"$work/anna/port")" production -c "update users set \"lastName\" = 'Changed' where id = 7"
    expect "Anna" "stored revision 1 of \`changed\`" "$(as anna push-new name=changed desc='one row changed' who=Анна 2>/dev/null)"
    refused "a second push-new of base" anna push-new name=base desc=again
    note "db-p pull-and-update-local, on Boris's machine"
    step=$(now_ms)
    as boris pull-and-update-local >/dev/null 2>&1 || die "the pull failed: $(tail -n 3 "$work/boris/db-p.log")"
    good "fetched, applied, migrated and kept ($(since "$step"))"
    expect "presets on Boris's machine" "base changed" "$(as boris ls where=local short | xargs)"

    title "4. Selected"
    for name in base changed; do
        step=$(now_ms)
        as boris select "$name" >/dev/null 2>&1 || die "select failed"
        expect "db-p select $name, $(since "$step")" "$([[ $name == base ]] && printf '%s' "$before" || printf '%s 1' "${before% *}")" "$(users boris)"
    done
    expect "the migration's column" "1" "$(sql "$(<"$work/boris/port")" production -A -t -c "select count(*) from information_schema.columns where table_name = 'users' and column_name = 'migrated'")"
    expect "the application" "started" "$([[ -e $work/boris/app ]] && printf started)"

    title "5. Locked, and pushed over"
    key=$(as anna set-lock name=base who=Анна desc='new columns' 2>/dev/null)
    note "$(as boris get-lock name=base || true)"
    as boris select base >/dev/null 2>&1
    refused "Boris's push of what Anna locked" boris push-ex name=base desc=mine
    refused "Anna's push of what she made \`changed\`" anna push-ex name=base desc=x key="$key"
    expect "Anna, with the lock's key and base=any" "stored revision 2 of \`base\`" \
        "$(as anna push-ex name=base desc='вторая версия' who=Анна key="$key" base=any 2>/dev/null)"
    refused "Boris's push of what he made from revision 1" boris push-ex name=base desc=mine
    expect "the log, newest on top" "вторая версия" "$(sed -n '1s/.*Анна: //p' "$work/store/shop/main/base/log.txt")"

    title "6. Nobody else's key, no altered byte"
    mv "$work/boris/key" "$work/boris/key.branch"
    as boris gen-key >/dev/null
    refused "a pull with another key" boris get
    mv "$work/boris/key.branch" "$work/boris/key"
    object=$(find "$work/store/shop/main/base" -name 'rev-2-*')
    cp "$object" "$work/object"
    printf 'x' | dd of="$object" bs=1 seek=5000 conv=notrunc status=none
    refused "a pull of an altered object" boris get include=base
    cp "$work/object" "$object"

    title "7. Fast mode"
    machine_settings+=(DBP_MODE=fast)
    as boris get >/dev/null 2>&1 || die "the pull failed: $(tail -n 3 "$work/boris/db-p.log")"
    as boris start-app >/dev/null 2>&1
    for name in base changed base; do
        step=$(now_ms)
        as boris select "$name" >/dev/null 2>&1 || die "select failed: $(tail -n 3 "$work/boris/db-p.log")"
        good "db-p select $name, by renaming template databases ($(since "$step"))"
    done
    expect "users, and those whose name changed" "${before% *} 1" "$(users boris)"
    as boris ls where=s3 | sed 's/^/  /' >&2
}

story_kept() {
    say "    tail $work/boris/db-p.log $work/store/shop/main/base/log.txt
    find $work/store -type f"
}
