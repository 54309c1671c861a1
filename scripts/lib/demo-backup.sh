# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # scripts/demo sets them, and reads them
# Archives: made when something changed, restored, proven, and opened without Bullwork. A story of scripts/demo.
#
# Two machines, as it should be: the server, which has the public key alone, and the keeper, which has the private one.

story_needs() {
    need_postgres
    need_redis
    by_hand=yes
    { has age || apt_install age; } && { has zstd || apt_install zstd; } || by_hand=no
}

# `bullwork` reads the settings of whoever calls it.
on_server() { local settings=("${both[@]}" "${server[@]}") && bullwork "$@"; }
on_keeper() { local settings=("${both[@]}" "${keeper[@]}") && bullwork "$@"; }

# said NAME TEXT: a text, or a list of texts as JSON, in what a verb printed.
said() { sed -n "s/.*\"$1\":\(\[[^]]*\]\|\"[^\"]*\"\).*/\1/p" <<<"$2" | tail -n 1 | sed 's/^"\(.*\)"$/\1/'; }
# The complete ones: those with a manifest.
archives() { find "$work/store" -name '*.manifest.json' | wc -l; }

story() {
    title "2. Servers"
    step=$(now_ms)
    start_redis_and_source
    start_postgres keeper
    keeper_port=$port
    good "a server with a database, loaded from data/, and a keeper with another PostgreSQL ($(since "$step"))"

    note "bullwork backup keygen: the private key stays with the keeper"
    public=$(bullwork backup keygen "$work/keeper.key" 2>/dev/null)
    good "the server gets the public key, $public"
    both=("REDIS_URL=redis://127.0.0.1:$redis_port" "BACKUP_STORE=file://$work/store" "PG_BIN=$PG_BIN" LOG_FORMAT=text LOG_LEVEL=warn)
    server=("BACKUP_DATABASE_URL=$(database_url "$source_port" production)" "BACKUP_AGE_RECIPIENTS=$public"
        'BACKUP_FIXTURES={"people":{"users":"auth.user"}}')
    keeper=("RESTORE_DATABASE_URL=$(database_url "$keeper_port" postgres)" "RESTORE_AGE_KEY_FILE=$work/keeper.key")
    settings=("${both[@]}" "${server[@]}")
    start_bullwork server worker backup
    settings=("${both[@]}" "${keeper[@]}")
    start_bullwork keeper-worker worker restore backup-drill
    good "a worker on each"

    title "3. Archives"
    for when in "for the first time" "though nothing changed since" "after one row changed"; do
        if [[ $when == *row* ]]; then
            fingerprints "$source_port" production "$work/first.rows"
            sql "$source_port" production -c "update users set \"lastName\" = 'Changed' where id = 7"
        fi
        note "bullwork backup now --queue --wait, $when"
        step=$(now_ms)
        output=$(on_server backup now --queue --wait) || die "no backup $when"
        case $when in
            *first*)
                expect "result, $(since "$step")" archived "$(said result "$output")"
                first=$(said archive "$output")
                expect "archives in the store" 1 "$(archives)"
                ;;
            *nothing*)
                expect "result, $(since "$step")" unchanged "$(said result "$output")"
                expect "archives in the store" 1 "$(archives)"
                ;;
            *)
                expect "result, $(since "$step")" archived "$(said result "$output")"
                second=$(said archive "$output")
                expect "what changed" '["users"]' "$(said changedTables "$output")"
                expect "archives in the store" 2 "$(archives)"
                ;;
        esac
    done

    title "4. Restore"
    note "bullwork backup restore $first --into first --queue --wait: the earlier archive, on the keeper"
    on_keeper backup restore "$first" --into first --queue --wait >/dev/null || die "the restore failed"
    fingerprints "$keeper_port" first "$work/restored.rows"
    compare "$work/first.rows" "$work/restored.rows" || wrong=$((wrong + 1))
    expect "the row that changed later" "before" \
        "$(sql "$keeper_port" first -A -t -c "select case \"lastName\" when 'Changed' then 'after' else 'before' end from users where id = 7")"

    title "5. Drill"
    note "bullwork backup drill --queue --wait: the newest archive into a scratch database, compared with its manifest"
    output=$(on_keeper backup drill --queue --wait) || die "the drill failed"
    expect "proven archive" "$second" "$(said archive "$output")"
    expect "databases on the keeper" "first postgres" \
        "$(sql "$keeper_port" postgres -A -t -c "select string_agg(datname, ' ' order by datname) from pg_database where not datistemplate")"
    on_server backup list | sed 's/^/  /' >&2
    expect "proven archives" 1 "$(find "$work/store" -name '*.verified.json' | wc -l)"

    # For --keep: both machines at once.
    settings=("${both[@]}" "${server[@]}" "${keeper[@]}")

    title "6. Without Bullwork"
    if [[ $by_hand == no ]]; then
        note "left out: age or zstd is not there"
        return
    fi
    note "age -d -i keeper.key $first | zstd -dc >archive.tar; tar -xOf archive.tar … | psql"
    age -d -i "$work/keeper.key" "$work/store/db/$first" | zstd -dc >"$work/archive.tar"
    sql "$keeper_port" postgres -c 'create database by_hand'
    for member in roles.sql database.sql; do
        tar -xOf "$work/archive.tar" --wildcards "$member.*" | sql "$keeper_port" by_hand -1 -o /dev/null
    done
    fingerprints "$keeper_port" by_hand "$work/restored.rows"
    expect "tables that differ from what was archived" "" "$(diff "$work/first.rows" "$work/restored.rows" | head -n 3)"
    expect "rows in the Django fixture" "$(sql "$source_port" production -A -t -c 'select count(*) from users')" \
        "$(tar -xOf "$work/archive.tar" --wildcards 'fixtures/people.json.*' | grep -o '"model"' | wc -l)"
}

story_kept() {
    say "    source $work/env                      # the settings of both machines, for the lines below
    $programs/bullwork backup list
    $programs/bullwork backup show
    PGPASSFILE=$work/pgpass $PG_BIN/psql -h 127.0.0.1 -p $source_port -U owner production   # change something, then
    $programs/bullwork backup now
    $programs/bullwork backup restore"
}
