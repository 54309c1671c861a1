# shellcheck shell=bash
# One archive of one database, and the way back, by pipes of the usual programs and by ours. Part of scripts/bench.

# backup_setup: keys for both kinds of encryption.
backup_setup() {
    has age || apt_install age || die "without age there is nothing to compare with"
    has gpg || apt_install gnupg || die "without gpg there is nothing to compare with"
    has zstd || apt_install zstd || die "without zstd there is nothing to compare with"
    age-keygen -o "${work:?}/key" 2>/dev/null
    recipient=$(age-keygen -y "$work/key")
    mkdir -m 700 "$work/gnupg"
    gpg --homedir "$work/gnupg" --batch --quiet --passphrase '' --quick-generate-key bench@example.invalid default default never 2>/dev/null
    # shellcheck disable=SC2034 # scripts/bench gives them to the program
    extra=("BACKUP_DATABASE_URL=$(database_url "${source_port:?}" production)" "BACKUP_STORE=file://$work/tmp/store"
        "BACKUP_AGE_RECIPIENTS=$recipient" "PG_BIN=$PG_BIN"
        "RESTORE_DATABASE_URL=$(database_url "${target_port:?}" postgres)" "RESTORE_AGE_KEY_FILE=$work/key")
    counts "$source_port" production >"$work/source.counts"
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
backup_bullwork_9() {
    local extra=("${extra[@]}" "BACKUP_STORE=file://$work/tmp/other" BACKUP_COMPRESSION_LEVEL=9)
    bullwork backup now
}

# Both in one transaction; ours reads the archive whole before it begins.
restore_zstd_age() {
    age -d -i "$work/key" "$work/tmp/archive.sql.zst.age" | zstd -q -dc | sql "$target_port" copy -1 -o /dev/null
}
restore_bullwork() { bullwork backup restore --into copy; }

# archive_measured FUNCTION: measured under the name that follows `backup_`, or the whole one.
archive_measured() {
    sql "$source_port" postgres -c checkpoint
    sql "$target_port" postgres -c checkpoint
    measure "${1#backup_}" "$1" || die "$1 failed: $(tail -n 15 "$work/${1#backup_}.log")"
    tail -n 1 "$work/results" | awk -F '\t' '{ printf "  wall %.3f s, CPU %.1f s client + %.1f s servers, %d MB memory, %d MB disk\n", $2, $3, $4, $5, $6 }' >&2
}

# expected RESULT LOG: what a run of ours says that it came to.
expected() { grep -q "\"result\":\"$1\"" "$work/$2.log" || die "bullwork did not say $1: $(tail -n 5 "$work/$2.log")"; }

# restored NAME: into an empty database, which must hold the source's rows afterwards.
restored() {
    sql "$target_port" postgres -c 'drop database if exists copy' -c 'create database copy' 2>/dev/null
    archive_measured "restore_$1"
    counts "$target_port" copy >"$work/target.counts"
    diff "$work/source.counts" "$work/target.counts" >"$work/different" || die "$1 restored other row counts: $(head -n 3 "$work/different")"
    sql "$target_port" postgres -c 'drop database copy'
}

# archives: each way once, there and back; then what a run costs that finds nothing changed.
archives() {
    archive_measured backup_gzip_gpg
    rm "$work/tmp/archive.sql.gz.gpg"
    archive_measured backup_zstd_age
    restored zstd_age
    rm "$work/tmp/archive.sql.zst.age"
    archive_measured backup_bullwork_9
    expected archived bullwork_9
    rm -rf "$work/tmp/other"
    archive_measured backup_bullwork
    expected archived bullwork
    archive_measured backup_unchanged
    expected unchanged unchanged
    restored bullwork
    rm -rf "$work/tmp" && mkdir "$work/tmp"
}

# report_archives: the ways there, then the ways back, each against the pipe of zstd and age.
report_archives() {
    mv "$work/results" "$work/both"
    grep -v '^restore_' "$work/both" >"$work/results"
    report zstd_age
    printf '\n'
    grep '^restore_' "$work/both" >"$work/results"
    report restore_zstd_age
    printf '\nA run that finds nothing changed: %s ms\n' "$(awk -F '\t' '$1 == "unchanged" { print $2 * 1000 }' "$work/both" | sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }')"
}
