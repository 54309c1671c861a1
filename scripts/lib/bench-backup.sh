# shellcheck shell=bash
# One archive of one database, by pipes of the usual programs and by ours. Part of scripts/bench.

# backup_setup: keys for both kinds of encryption.
backup_setup() {
    has age || apt_install age || die "without age there is nothing to compare with"
    has gpg || apt_install gnupg || die "without gpg there is nothing to compare with"
    age-keygen -o "${work:?}/key" 2>/dev/null
    recipient=$(age-keygen -y "$work/key")
    mkdir -m 700 "$work/gnupg"
    gpg --homedir "$work/gnupg" --batch --quiet --passphrase '' --quick-generate-key bench@example.invalid default default never 2>/dev/null
    # shellcheck disable=SC2034 # scripts/bench gives them to the program
    extra=("BACKUP_DATABASE_URL=$(database_url "${source_port:?}" production)" "BACKUP_STORE=file://$work/tmp/store"
        "BACKUP_AGE_RECIPIENTS=$recipient" BACKUP_COMPRESSION_LEVEL=9 "PG_BIN=$PG_BIN")
}

backup_gzip_gpg() {
    "$PG_BIN/pg_dump" -p "$source_port" -d production | gzip -6 |
        gpg --homedir "$work/gnupg" --batch --quiet --trust-model always -r bench@example.invalid -z 0 -o "$work/tmp/archive.sql.gz.gpg" -e
}
backup_zstd_age() {
    "$PG_BIN/pg_dump" -p "$source_port" -d production | zstd -q -9 | age -r "$recipient" -o "$work/tmp/archive.sql.zst.age"
}
backup_bullwork() { bullwork backup now; }
backup_unchanged() { bullwork backup now; }

# backup_measured NAME: the temporary files are the archive, and go afterwards.
backup_measured() {
    measure "$1" "backup_$1" || die "$1 failed: $(tail -n 15 "$work/$1.log")"
    tail -n 1 "$work/results" | awk -F '\t' '{ printf "  wall %.1f s, CPU %.1f s client + %.1f s servers, %d MB memory, %d MB archive\n", $2, $3, $4, $5, $6 }' >&2
}

# backups: each way once; then what a run costs that finds nothing changed.
backups() {
    local method
    for method in gzip_gpg zstd_age bullwork; do
        sql "$source_port" postgres -c checkpoint
        backup_measured "$method"
        [[ $method == bullwork ]] || rm -rf "$work/tmp" && mkdir -p "$work/tmp"
    done
    grep -q '"result":"archived"' "$work/bullwork.log" || die "bullwork made no archive: $(tail -n 5 "$work/bullwork.log")"
    backup_measured unchanged
    grep -q '"result":"unchanged"' "$work/unchanged.log" || die "the second run found changes: $(tail -n 5 "$work/unchanged.log")"
    rm -rf "$work/tmp" && mkdir "$work/tmp"
}
