# shellcheck shell=bash
# A release to one server and to three at once, against plain rsync over the same ssh. Part of scripts/bench.
#
# All servers are an sshd each on this machine, so what a network would share is CPU here: three at once cost three times the CPU of
# one, and the table says what one would cost with a CPU for each.

# release_setup FILES MEGABYTES: developers, beta and three business servers; a release that beta has.
release_setup() {
    local name role archive
    ssh_keys
    declare -gA ssh_ports=() ssh_pids=()
    mkdir -p "${work:?}/tmp"
    # shellcheck disable=SC2034 # scripts/bench gives them to the program
    extra=("REDIS_URL=redis://127.0.0.1:${redis_port:?}" "RELEASE_SSH_KEY=$work/ssh/client" "RELEASE_KNOWN_HOSTS=$work/ssh/known_hosts"
        "RELEASE_STATE_FILE=$work/releases.db" "RELEASE_SPOOL=$work/spool" RELEASE_BACKUP=paths LOG_LEVEL=warn)
    for name in dev beta web1 web2 web3; do
        mkdir -p "$work/$name/site" "$work/$name/backups"
        start_sshd "$name"
        ssh_ports[$name]=${port:?}
        ssh_pids[$name]=${pid:?}
        role=business archive=(--backup "$work/$name/backups/site.tar")
        [[ $name == dev ]] && role=developers archive=()
        [[ $name == beta ]] && role=beta archive=()
        released servers add "$name" --role "$role" --host 127.0.0.1 --user "$(id -un)" --port "$port" --project "$work/$name/site" "${archive[@]}" 2>/dev/null
    done
    note "generating $1 files of 4 kB and one of $2 MB ..."
    mkdir "$work/dev/site/app"
    (cd "$work/dev/site/app" && head -c "$(($1 * 4096))" /dev/urandom | split -b 4096 -a 4 - small. &&
        find . -type f | awk -v each=100 '{ print > ("../list." int(NR / each)) }' &&
        for list in ../list.*; do mkdir "${list#../list.}" && xargs mv -t "${list#../list.}" <"$list" && rm "$list"; done)
    head -c "$(($2 * 1000000))" /dev/urandom >"$work/dev/site/app/large"
}

released() { env -i PATH="$PATH" HOME="$work" LANG=C.UTF-8 "${extra[@]}" "${programs:?}/bullwork" release "$@"; }
ran() { env -i PATH="$PATH" HOME="$work" LANG=C.UTF-8 "${extra[@]}" "$programs/bullwork" run "$@"; }

# sshd_ticks: CPU of all sshd with what they started.
sshd_ticks() {
    local name process total=0
    for name in beta web1 web2 web3; do
        for process in $(family "${ssh_pids[$name]}"); do total=$((total + $(ticks "$process" || true) + 0)); done
    done
    printf '%s\n' "$total"
}

# release_measured NAME COMMAND...: appends name, wall s, CPU s of the client, CPU s of the servers.
release_measured() {
    local name=$1 before real user system
    shift
    sync
    before=$(sshd_ticks)
    (
        set -euo pipefail
        TIMEFORMAT='%3R %3U %3S'
        { time "$@" >"$work/$name.log" 2>&1; } 2>"$work/$name.time"
    ) || die "$name failed: $(tail -n 5 "$work/$name.log")"
    sleep 0.3
    read -r real user system <"$work/$name.time"
    awk -v name="$name" -v real="$real" -v cpu="$(awk "BEGIN { print $user + $system }")" -v ticks=$(($(sshd_ticks) - before)) -v hz="${ticks_per_second:?}" \
        'BEGIN { printf "%s\t%s\t%.2f\t%.2f\n", name, real, cpu, ticks / hz }' >>"$work/results"
    tail -n 1 "$work/results" | awk -F '\t' '{ printf "  wall %.1f s, CPU %.1f s client + %.1f s servers\n", $2, $3, $4 }' >&2
}

plain() {
    rsync -a -e "ssh -F /dev/null -T -i $work/ssh/client -o BatchMode=yes -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes -o UserKnownHostsFile=$work/ssh/known_hosts -p ${ssh_ports[$1]}" \
        "$work/plain/" "$(id -un)@127.0.0.1:$work/$1/site/"
}
at_once() {
    local name children=() child
    for name in web1 web2 web3; do
        "$@" "$name" &
        children+=($!)
    done
    for child in "${children[@]}"; do wait "$child"; done
}
copied() { ran release-copy --data "{\"server\":\"$1\"}"; }

emptied() {
    local name
    for name in web1 web2 web3; do rm -rf "$work/$name/site" && mkdir "$work/$name/site"; done
}
# equal SERVER...: each holds what beta holds.
equal_to_beta() {
    local name
    for name; do diff -rq -x .bullwork-releases "$work/beta/site" "$work/$name/site" >"$work/different" || die "$name differs: $(head -n 3 "$work/different")"; done
}
# on_its_way NUMBER ARGUMENT...: beta gets it, and worker 1 does what comes before the copying.
on_its_way() {
    local number=$1
    shift
    released beta app >/dev/null 2>&1
    ran release >"$work/beta.log" 2>&1 || die "beta: $(tail -n 3 "$work/beta.log")"
    released production "$number" "$@" 2>/dev/null
    ran release >"$work/production.log" 2>&1 || die "production: $(tail -n 3 "$work/production.log")"
}

# releases_measured: what worker 2 does from the claim to the last rename, with all digests, beside an rsync that does nothing but copy.
# Beta lacks it all, as it lacks a new release; worker 1 has fetched it from there while it made the archive.
releases_measured() {
    rm -rf "$work/plain" && cp -a "$work/dev/site" "$work/plain"
    emptied
    release_measured rsync_one plain web1
    equal_to_beta_or_dev web1
    emptied
    release_measured rsync_three at_once plain
    emptied && rm -rf "$work/beta/site/app"
    number=$((number + 1))
    on_its_way "$number" --only web1
    release_measured bullwork_one copied web1
    equal_to_beta web1
    emptied && rm -rf "$work/beta/site/app"
    number=$((number + 1))
    on_its_way "$number"
    release_measured bullwork_three at_once copied
    equal_to_beta web1 web2 web3
    emptied
}
equal_to_beta_or_dev() { diff -rq "$work/dev/site" "$work/$1/site" >"$work/different" || die "$1 differs: $(head -n 3 "$work/different")"; }

report_releases() {
    printf '| method | wall s | CPU s (client + servers) | ratio of wall | ratio of CPU |\n|---|---|---|---|---|\n'
    awk -F '\t' '
        function median(key, column,   i, j, t, count, list) {
            count = split(values[key, column], list, " ")
            for (i = 1; i <= count; i++) for (j = i + 1; j <= count; j++) if (list[j] + 0 < list[i] + 0) { t = list[i]; list[i] = list[j]; list[j] = t }
            return count % 2 ? list[(count + 1) / 2] + 0 : (list[count / 2] + list[count / 2 + 1]) / 2
        }
        { if (!($1 in seen)) { seen[$1] = 1; order[++methods] = $1 }
          for (i = 2; i <= 4; i++) values[$1, i] = values[$1, i] " " $i
          values[$1, 5] = values[$1, 5] " " ($3 + $4) }
        END {
            for (m = 1; m <= methods; m++) {
                key = order[m]
                printf "| %s | %.1f | %.1f (%.1f + %.1f) | %.2f | %.2f |\n", key, median(key, 2), median(key, 5), median(key, 3), median(key, 4),
                    median(key, 2) / median("rsync_one", 2), median(key, 5) / median("rsync_one", 5)
            }
        }' "$work/results"
}
