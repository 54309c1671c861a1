#!/bin/bash
# Stands in for pg_probackup in tests: fails, prints and exits as the real one (2.5) is known to. Its catalogue is
# $B/catalogue.json, its one backup $B/data, made by a test or by `backup`. Files in $B make it special: invalid-ID,
# slow-validate, slow, fail-restore.
verb=$1
B='' source='' instance='' server=() host='' port='' user='' pgdata='' waldir='' id='' incremental=no options=''
words=("$@")
for ((i = 0; i < ${#words[@]}; i++)); do
    case ${words[i]} in
        -B) B=${words[++i]} ;;
        -D) source=${words[++i]} ;;
        -h | -p | -U) server+=("${words[i]}" "${words[++i]}") ;;
        --instance=*) instance=${words[i]#*=} ;;
        -I) incremental=${words[++i]} ;;
        --remote-host=*) host=${words[i]#*=} ;;
        --remote-port=*) port=${words[i]#*=} ;;
        --remote-user=*) user=${words[i]#*=} ;;
        --pgdata=*) pgdata=${words[i]#*=} ;;
        --waldir=*) waldir=${words[i]#*=} ;;
        --backup-id=*) id=${words[i]#*=} ;;
        --ssh-options=*) options=${words[i]#*=} ;;
    esac
done
{ printf '%s\n' "${words[@]}" && echo; } >>"$B/calls"

there() {
    # The real one cuts the options at blanks, too.
    # shellcheck disable=SC2086
    ssh $options -p "$port" "$user@$host" "$@"
}
fail() {
    echo "ERROR: $*" >&2
    exit 1
}

case $verb in
    init)
        [[ -n $(ls -A "$B") && $(ls -A "$B") != calls ]] && fail "backup catalog already exist and it's not empty"
        mkdir "$B/backups" "$B/wal"
        echo "INFO: Backup catalog '$B' successfully initialized" >&2
        ;;
    add-instance)
        [[ -e $source/PG_VERSION ]] || fail "could not open file \"$source/global/pg_control\" for reading"
        mkdir "$B/backups/$instance" "$B/wal/$instance" || fail "Instance '$instance' backup directory already exists"
        echo "INFO: Instance '$instance' successfully initialized" >&2
        ;;
    backup)
        [[ -d $B/backups/$instance ]] || fail "Instance '$instance' does not exist in this backup catalog"
        id=$(printf '%X' "$(date +%s)")
        echo "INFO: Backup start, pg_probackup version: 2.5.16, instance: $instance, backup ID: $id, backup mode: FULL" >&2
        mkdir "$B/backups/$instance/$id"
        pg_basebackup "${server[@]}" -c fast -X fetch --no-sync -D "$B/backups/$instance/$id/database" || fail "Data files transferring failed"
        (cd "$B/backups/$instance/$id/database" && find . -type f -exec sha256sum {} + >../checksums)
        ln -sfn "backups/$instance/$id/database" "$B/data"
        printf '[{"instance": "%s", "backups": [{"id": "%s", "backup-mode": "FULL", "wal": "STREAM", "status": "OK",
            "recovery-time": "%s", "data-bytes": 1000}]}]' "$instance" "$id" "$(date '+%F %T%:::z')" >"$B/catalogue.json"
        echo "INFO: Backup $id completed" >&2
        ;;
    show) cat "$B/catalogue.json" ;;
    validate)
        echo "INFO: Validating backup $id" >&2
        if [[ -e $B/slow-validate ]]; then
            touch "$B/validating"
            sleep 3600
        fi
        [[ -e $B/invalid-$id ]] && fail "Backup $id data files are corrupted"
        backup=$B/backups/$instance/$id
        if [[ -e $backup/checksums ]] && ! (cd "$backup/database" && sha256sum --quiet --check ../checksums >&2); then
            fail "Backup $id data files are corrupted"
        fi
        echo "INFO: Backup $id data files are valid" >&2
        ;;
    restore)
        trap 'echo "ERROR: interrupted during restore" >&2; exit 1' TERM INT
        there "test -e '$pgdata/postmaster.pid'" && fail "Postmaster with pid file in \"$pgdata\" is running"
        if [[ $incremental == no ]] && [[ -n $(there "ls -A '$pgdata'") ]]; then
            fail "Restore destination is not empty: \"$pgdata\""
        fi
        if [[ -n $waldir ]] && [[ -n $(there "ls -A '$waldir' 2>/dev/null") ]]; then
            fail "WAL directory location is not empty: \"$waldir\""
        fi
        echo "WARNING: Backup $id is used without validation." >&2
        [[ -e $B/fail-restore ]] && fail "cannot read file \"base/1\": Input/output error"
        if [[ -e $B/slow ]]; then
            # Half of the files, then a long pause, with an agent on the other side.
            there "mkdir -p '$pgdata/base' && echo half >'$pgdata/base/half'"
            touch "$B/copying"
            # Like the real agent, it ends with its input.
            there "exec sh -c 'read -r line' agent-3600 '$pgdata'" < <(exec sleep 3600) &
            for ((n = 1; n < 600; n++)); do
                echo "INFO: Progress: ($n/600). Restore file \"base/$n\"" >&2
                sleep 0.2
            done
        fi
        for n in 1 2 3; do echo "INFO: Progress: ($n/3). Restore file \"base/$n\"" >&2; done
        tar -C "$B/data" -cf - . | there "cd '$pgdata' && find . -mindepth 1 -delete && tar -xf - && chmod 700 ." || fail "copying"
        if [[ -n $waldir ]]; then
            there "mv '$pgdata'/pg_wal/* '$waldir'/ && rm -rf '$pgdata/pg_wal' && ln -s '$waldir' '$pgdata/pg_wal'" || fail "moving WAL"
        fi
        echo "INFO: Restore of backup $id completed." >&2
        ;;
    *) fail "unknown command $verb" ;;
esac
