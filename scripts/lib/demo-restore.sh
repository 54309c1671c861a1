# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # scripts/demo sets them, and reads them
# A cluster, restored on demand: a real pgBackRest, a real sshd, and a line of text over TCP. A story of scripts/demo.

story_needs() {
    need_postgres
    need_redis
    need_ssh
    need_pgbackrest
}

# What runs as the user that owns the clusters.
as_owner() { (cd / && launch INT postgres "$@"); }

# ask LINE: what `echo LINE | nc 127.0.0.1 $listen_port` prints.
ask() {
    exec 9<>"/dev/tcp/127.0.0.1/$listen_port"
    printf '%s\n' "$1" >&9
    cat <&9
    exec 9>&-
}

# member NAME JSON: a text of one task.
member() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" <<<"$2" | head -n 1; }

# The target's server is started over SSH: it has to be stopped with the others.
note_target() {
    local process
    process=$(head -n 1 "$work/target/data/postmaster.pid" 2>/dev/null) || return 0
    printf '%s INT target\n' "$process" >>"$work/pids"
}

ended() { [[ $(member status "$(ask "status, id=$1")") =~ ^(completed|error|canceled)$ ]]; }

# restored WHAT LINE: asks, waits for the end, and compares with the source as it was when it was backed up.
restored() {
    local answer id
    step=$(now_ms)
    note "echo \"$2\" | nc 127.0.0.1 $listen_port"
    answer=$(ask "$2")
    note "$answer"
    id=${answer#Task accepted with ID: }
    wait_until 120 ended "$id" || { note_target && die "task $id did not end"; }
    note_target
    answer=$(ask "status, id=$id")
    expect "$1, $(since "$step")" completed "$(member status "$answer")"
    [[ $(member status "$answer") == completed ]] || die "$(member error "$answer")"
    fingerprints "$target_port" production "$work/restored.rows"
    compare "$work/source.rows" "$work/restored.rows" || wrong=$((wrong + 1))
    expect "the table that was made on the target" "gone" \
        "$(sql "$target_port" postgres -A -t -c "select case when to_regclass('junk') is null then 'gone' else 'there' end")"
}

story() {
    title "2. Servers"
    step=$(now_ms)
    start_redis
    redis_port=$port
    mkdir "$work/backrest" "$work/backrest/"{repo,log,lock,spool} "$work/socket" "$work/ssh"
    own "$work/backrest/"* "$work/socket"
    start_postgres source archive_mode=on "unix_socket_directories=$work/socket" \
        "archive_command=pgbackrest --config=$work/backrest.conf --stanza=main1 archive-push %p"
    source_port=$port
    cat >"$work/backrest.conf" <<CONFIG
[global]
repo1-path=$work/backrest/repo
log-path=$work/backrest/log
lock-path=$work/backrest/lock
spool-path=$work/backrest/spool
repo1-retention-full=2
start-fast=y
[main1]
pg1-path=$work/source/data
pg1-port=$source_port
pg1-socket-path=$work/socket
pg1-user=owner
CONFIG
    sql "$source_port" postgres -c 'create database production'
    sql "$source_port" production -f "$root/data/source/schema.sql"
    sql "$source_port" production -f "$root/data/source/seed.sql"
    start_postgres target
    target_port=$port
    sql "$target_port" postgres -c 'create table junk as select generate_series(1, 10)'
    good "a server with a database, loaded from data/, and a target with another cluster ($(since "$step"))"
    start_sshd
    good "sshd on port $ssh_port, which lets in one key and nobody else"

    title "3. Backup"
    step=$(now_ms)
    fingerprints "$source_port" production "$work/source.rows"
    for words in stanza-create "--type=full backup"; do
        # shellcheck disable=SC2086 # words
        as_owner pgbackrest --config="$work/backrest.conf" --stanza=main1 $words >>"$work/backrest.log" 2>&1 || die "pgbackrest $words failed"
    done
    # What comes later is not in it.
    sql "$source_port" production -c "update users set \"lastName\" = 'Later'"
    good "pgbackrest made a full backup ($(since "$step"))"

    title "4. Restore"
    start_listener
    restored "full restore" "db_instance=main1, db_host=127.0.0.1"
    sql "$target_port" production -c "update answers set value = 'changed'"
    sql "$target_port" postgres -c 'create table junk as select generate_series(1, 10)'
    restored "delta restore" "db_instance=main1, incremental"

    title "5. What it does not do"
    expect "db_instance=main1; touch x" "Invalid data format" "$(ask 'db_instance=main1; touch x')"
    expect "db_instance=main1, db_host=elsewhere" "Error: db_host elsewhere is not an allowed target" "$(ask 'db_instance=main1, db_host=elsewhere')"
    expect "db_instance=main2" "Не найдено сопоставление db_host для db_instance: main2" "$(ask 'db_instance=main2')"
    answer=$(ask 'db_instance=main1, backup_id=NONE')
    wait_until 60 ended "${answer#Task accepted with ID: }" || die "the task did not end"
    answer=$(ask "status, id=${answer#Task accepted with ID: }")
    expect "a backup that is not there" "error, untouched" "$(member status "$answer"), $(member target "$answer")"
    note "$(member error "$answer")"
    fingerprints "$target_port" production "$work/restored.rows"
    expect "tables of the target that changed by it" "" "$(diff "$work/source.rows" "$work/restored.rows" | head -n 3)"
}

# Sets `ssh_port` and `ssh_user`.
start_sshd() {
    ssh_user=$(id -un)
    ((EUID == 0)) && ssh_user=postgres
    for key in host client; do ssh-keygen -q -t ed25519 -N '' -C '' -f "$work/ssh/$key"; done
    cp "$work/ssh/client.pub" "$work/ssh/authorized"
    own "$work/ssh/host" "$work/ssh/authorized"
    ssh_port=$(free_port)
    printf '[127.0.0.1]:%s %s\n' "$ssh_port" "$(cat "$work/ssh/host.pub")" >"$work/ssh/known_hosts"
    (cd / && launch TERM postgres /usr/sbin/sshd -D -e -f /dev/null -p "$ssh_port" -o ListenAddress=127.0.0.1 -h "$work/ssh/host" \
        -o "AuthorizedKeysFile=$work/ssh/authorized" -o PidFile=none -o UsePAM=no -o StrictModes=no -o PasswordAuthentication=no) \
        >"$work/sshd.log" 2>&1 </dev/null &
    printf '%s TERM sshd\n' "$!" >>"$work/pids"
    wait_until 20 port_answers "$ssh_port" || die "sshd did not start"
}

port_answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Sets `listen_port`.
start_listener() {
    listen_port=$(free_port)
    cat >"$work/config.json" <<CONFIG
{
    "host": "127.0.0.1", "port": $listen_port, "engine": "pgbackrest", "pgbackrest_config": "$work/backrest.conf",
    "pg_version": "$("$PG_BIN/postgres" --version | sed 's/.* \([0-9]*\)\..*/\1/')",
    "ssh_user": "$ssh_user", "ssh_port": $ssh_port, "ssh_key": "$work/ssh/client", "known_hosts": "$work/ssh/known_hosts",
    "roots": ["$work/target"], "log_dir": "Logs", "db_file": "tasks.db",
    "stop_command": "$PG_BIN/pg_ctl -D {pgdata} -m fast -w stop",
    "start_command": "$PG_BIN/pg_ctl -D {pgdata} -W -l $work/target/pg.log -o '-p $target_port -k \"\" -c listen_addresses=127.0.0.1 -c fsync=off' start",
    "db_host_mapping": {"main1": {"db_host": "127.0.0.1", "pg_ctl_instance": "main", "pgdata": "$work/target/data"}}
}
CONFIG
    settings=("REDIS_URL=redis://127.0.0.1:$redis_port" "PROBACKUP_CONFIG=$work/config.json" LOG_FORMAT=text)
    note "bullwork listen --worker"
    start_bullwork listener listen --worker
    wait_until 20 port_answers "$listen_port" || die "the listener does not listen"
    good "listening on port $listen_port"
}

story_kept() {
    say "    echo show | nc 127.0.0.1 $listen_port
    echo status | nc 127.0.0.1 $listen_port
    echo 'db_instance=main1, incremental' | nc 127.0.0.1 $listen_port
    PGPASSFILE=$work/pgpass $PG_BIN/psql -h 127.0.0.1 -p $target_port -U owner production"
}
