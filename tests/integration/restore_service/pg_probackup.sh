#!/bin/bash
# Stands in for pg_probackup in tests: fails, prints and exits as the real one (2.5) is known to. Its catalogue is
# $B/catalogue.json, its one backup $B/data. Files in $B make it special: invalid-ID, slow-validate, slow, fail-restore.
verb=$1
B='' host='' port='' user='' pgdata='' waldir='' id='' incremental=no options=''
words=("$@")
for ((i = 0; i < ${#words[@]}; i++)); do
    case ${words[i]} in
        -B) B=${words[++i]} ;;
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
    show) cat "$B/catalogue.json" ;;
    validate)
        echo "INFO: Validating backup $id" >&2
        if [[ -e $B/slow-validate ]]; then
            touch "$B/validating"
            sleep 3600
        fi
        [[ -e $B/invalid-$id ]] && fail "Backup $id data files are corrupted"
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
