# shellcheck shell=bash
# Throw-away servers on free ports in a directory of their own. Source after say.sh and setup.sh.
#
# `work` is that directory; every process that is started here is noted in $work/pids, and stopped
# by its number. PostgreSQL refuses to run as root, so root runs it as the user `postgres`.

# One for the superuser `owner` of every cluster; in the environment, never in arguments.
PGPASSWORD=$(head -c 18 /dev/urandom | base64 | tr '+/' 'ab')
export PGPASSWORD PGUSER=owner PGHOST=127.0.0.1 PGCONNECT_TIMEOUT=10
unset PGPORT PGDATABASE PGSERVICE PGPASSFILE PGOPTIONS PGSSLMODE

# make_work NAME: makes $work, which other users may pass through but not list.
make_work() {
    work=$(mktemp -d "${TMPDIR:-/tmp}/bullwork-$1.XXXXXX")
    chmod 711 "$work"
    : >"$work/pids"
}

# launch SIGNAL USER COMMAND...: replaces the calling shell, so that its pid is the command's.
# The command has a session of its own (Ctrl-C is for the script, which then stops things in
# order) and, unless `keep` is set, gets SIGNAL when the script dies, even of SIGKILL.
launch() {
    local signal=$1 user=$2 with=()
    shift 2
    [[ ${keep:-no} == no ]] && with+=(--pdeathsig "$signal")
    [[ $user == postgres ]] && ((EUID == 0)) && with+=(--reuid postgres --regid postgres --clear-groups)
    if ((${#with[@]})) && has setpriv; then with=(setpriv "${with[@]}" --); else with=(); fi
    if has setsid; then with=(setsid "${with[@]}"); fi
    exec "${with[@]}" "$@"
}

# A port nobody listens on, below the range that outgoing connections use.
free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    printf '%s\n' "$port"
}

# wait_until SECONDS COMMAND...: polls until it succeeds.
wait_until() {
    local limit=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < limit)) || return 1
        sleep 0.1
    done
}

# own FILE...: gives it to the user that PostgreSQL runs as.
own() { if ((EUID == 0)); then chown postgres:postgres "$@"; fi; }

# start_postgres NAME [SETTING=VALUE...]: a fresh cluster; sets `port` and `pid`.
start_postgres() {
    local name=$1 home=$work/$1 settings=() setting
    shift
    for setting in fsync=off synchronous_commit=off full_page_writes=off max_connections=60 "$@"; do settings+=(-c "$setting"); done
    mkdir "$home"
    (umask 077 && printf '%s\n' "$PGPASSWORD" >"$home/password")
    own "$home" "$home/password"
    (cd / && launch INT postgres "$PG_BIN/initdb" -D "$home/data" -U owner -A scram-sha-256 --pwfile="$home/password" \
        --no-sync -E UTF8 --locale=C.UTF-8) >"$work/initdb.log" 2>&1 || die "initdb failed: $(tail -n 5 "$work/initdb.log")"
    rm -f "$home/password"
    for _ in 1 2 3 4 5; do
        port=$(free_port)
        (cd / && launch INT postgres "$PG_BIN/postgres" -D "$home/data" -p "$port" -k '' -c listen_addresses=127.0.0.1 "${settings[@]}") \
            >>"$work/$name.log" 2>&1 </dev/null &
        pid=$!
        printf '%s INT %s\n' "$pid" "$name" >>"$work/pids"
        if wait_until 30 postgres_answers "$port" "$pid" && kill -0 "$pid" 2>/dev/null; then return; fi
        kill "$pid" 2>/dev/null || true
        # Somebody else may have taken the port since we asked; anything else is final.
        grep -q 'Address already in use' "$work/$name.log" || break
    done
    die "PostgreSQL did not start: $(tail -n 5 "$work/$name.log")"
}

# start_machine NAME [SETTING=VALUE...]: a fresh cluster that stops and starts by the lines below; its port is in $work/NAME/port.
start_machine() {
    local name=$1 home=$work/$1 setting
    start_postgres "$@"
    printf '%s\n' "$port" >"$home/port"
    shift
    {
        printf "port = %s\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n" "$port"
        for setting in fsync=off synchronous_commit=off full_page_writes=off max_connections=60 "$@"; do printf '%s\n' "$setting"; done
    } >>"$home/data/postgresql.conf"
    # Under `pg_ctl` from the beginning, and not as a child of ours.
    if ! sh -c "$(cluster_control "$name") -m fast stop" || ! sh -c "$(cluster_start "$name")"; then
        die "PostgreSQL did not start: $(tail -n 5 "$work/$name.log")"
    fi
}

# cluster_control NAME: a shell line that `pg_ctl`'s verb is to follow; cluster_start NAME: a whole one. It notes the server for stop_all.
cluster_control() {
    local user=''
    ((EUID == 0)) && user='setpriv --reuid postgres --regid postgres --clear-groups -- '
    printf 'cd / && %s%s -s -w -D %s' "$user" "$PG_BIN/pg_ctl" "$work/$1/data"
}
cluster_start() {
    # shellcheck disable=SC2016 # it is for the shell that runs the line
    printf '%s -l %s start && echo "$(head -n 1 %s) INT %s" >>%s' "$(cluster_control "$1")" "$work/$1/log" "$work/$1/data/postmaster.pid" "$1" "$work/pids"
}

postgres_answers() { "$PG_BIN/pg_isready" -q -d postgres -p "$1" || ! kill -0 "$2" 2>/dev/null; }

# start_redis: sets `port` and `pid`.
start_redis() {
    mkdir "$work/redis"
    for _ in 1 2 3 4 5; do
        port=$(free_port)
        (launch TERM self redis-server --port "$port" --bind 127.0.0.1 --dir "$work/redis" --save '' --appendonly no --maxmemory-policy noeviction) \
            >>"$work/redis.log" 2>&1 </dev/null &
        pid=$!
        printf '%s TERM redis\n' "$pid" >>"$work/pids"
        if wait_until 20 redis_answers "$port" "$pid" && kill -0 "$pid" 2>/dev/null; then return; fi
    done
    die "Redis did not start: $(tail -n 5 "$work/redis.log")"
}

redis_answers() { redis-cli -p "$1" ping 2>/dev/null | grep -q PONG || ! kill -0 "$2" 2>/dev/null; }

# ssh_keys: in $work/ssh a host key for every server, a key that opens them, and known_hosts, empty as yet.
ssh_keys() {
    local name
    mkdir -m 700 "$work/ssh"
    for name in host client; do ssh-keygen -q -t ed25519 -N '' -C '' -f "$work/ssh/$name"; done
    cp "$work/ssh/client.pub" "$work/ssh/authorized"
    : >"$work/ssh/known_hosts"
}

# start_sshd NAME [PORT]: an SSH server as the present user, who alone gets in; sets `port` and `pid`.
start_sshd() {
    local name=$1 wanted=${2:-}
    # Where root's sshd locks its children up; its package's service makes it at each boot.
    ((EUID != 0)) || mkdir -p /run/sshd
    for _ in 1 2 3 4 5; do
        port=${wanted:-$(free_port)}
        (launch TERM self /usr/sbin/sshd -D -e -f /dev/null -o Port="$port" -o ListenAddress=127.0.0.1 -o HostKey="$work/ssh/host" \
            -o AuthorizedKeysFile="$work/ssh/authorized" -o PidFile=none -o UsePAM=no -o StrictModes=no -o PasswordAuthentication=no \
            -o KbdInteractiveAuthentication=no -o PermitRootLogin=prohibit-password -o MaxStartups=100 -o LogLevel=ERROR) \
            >>"$work/sshd-$name.log" 2>&1 </dev/null &
        pid=$!
        printf '%s TERM sshd-%s\n' "$pid" "$name" >>"$work/pids"
        if wait_until 20 sshd_answers "$port" "$pid" && kill -0 "$pid" 2>/dev/null; then
            [[ -n $wanted ]] || printf '[127.0.0.1]:%s %s\n' "$port" "$(cat "$work/ssh/host.pub")" >>"$work/ssh/known_hosts"
            return
        fi
    done
    die "sshd did not start: $(tail -n 5 "$work/sshd-$name.log")"
}

sshd_answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null || ! kill -0 "$2" 2>/dev/null; }

# start NAME COMMAND...: starts a program of ours with its output in $work/NAME.log; sets `pid`.
start() {
    local name=$1
    shift
    (cd "$work" && launch TERM self "$@") >"$work/$name.log" 2>&1 </dev/null &
    pid=$!
    printf '%s TERM %s\n' "$pid" "$name" >>"$work/pids"
}

# Stops everything in $work/pids, last started first, and waits for its end.
stop_all() {
    [[ -f ${work:-}/pids ]] || return 0
    local number signal name
    while read -r number signal name; do
        kill -0 "$number" 2>/dev/null || continue
        kill -s "$signal" "$number" 2>/dev/null || true
        if ! wait_until 30 gone "$number"; then
            say "$name did not end within 30 s: killing it"
            kill -s KILL "$number" 2>/dev/null || true
        fi
    done < <(tac "$work/pids")
    : >"$work/pids"
}

# A child that ended but was not waited for yet counts as gone.
gone() { ! kill -0 "$1" 2>/dev/null || [[ $(sed -n 's/^State:\t\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) == Z ]]; }

# sql PORT DATABASE [PSQL-ARGUMENT...]
sql() {
    local at=$1 database=$2
    shift 2
    "$PG_BIN/psql" -X -q -v ON_ERROR_STOP=1 -p "$at" -d "$database" "$@"
}

database_url() { printf 'postgres://owner:%s@127.0.0.1:%s/%s' "$PGPASSWORD" "$1" "$2"; }
