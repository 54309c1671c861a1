# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # scripts/demo sets them, and reads them
# Files from the developers' server to beta and from there to two business servers, one of which is down for a while; then back. A story of
# scripts/demo.
#
# The four servers are an sshd each, on ports of 127.0.0.1, that let in a key made for the demo and nobody else.

story_needs() {
    need_redis
    need_ssh
    need_rsync
}

# content SERVER FILE
content() { cat "$work/$1/site/$2" 2>/dev/null || printf 'nothing'; }
state_of() { bullwork release status "$1" --json | sed -n 's/^  "state": "\(.*\)",$/\1/p'; }

story() {
    title "2. Servers"
    step=$(now_ms)
    start_redis
    redis_port=$port
    ssh_keys
    declare -gA ssh_ports=() ssh_pids=()
    settings=("REDIS_URL=redis://127.0.0.1:$redis_port" "RELEASE_SSH_KEY=$work/ssh/client" "RELEASE_KNOWN_HOSTS=$work/ssh/known_hosts"
        "RELEASE_STATE_FILE=$work/releases.db" "RELEASE_SPOOL=$work/spool" LOG_FORMAT=text LOG_LEVEL=warn)
    for name in dev beta web1 web2; do
        mkdir -p "$work/$name/site" "$work/$name/backups"
        start_sshd "$name"
        ssh_ports[$name]=$port
        ssh_pids[$name]=$pid
        role=business
        [[ $name == dev ]] && role=developers
        [[ $name == beta ]] && role=beta
        archive=()
        [[ $role == business ]] && archive=(--backup "$work/$name/backups/site.tar.gz")
        bullwork release servers add "$name" --role "$role" --host 127.0.0.1 --user "$(id -un)" --port "$port" \
            --project "$work/$name/site" "${archive[@]}" 2>/dev/null || die "server $name was not added"
    done
    for name in web1 web2; do
        printf 'version 1' >"$work/$name/site/index.html"
        printf 'only here' >"$work/$name/site/local.conf"
    done
    start_bullwork workers worker release release-copy
    expect "servers that are ready, $(since "$step")" 4 "$(bullwork release servers check | grep -c ': ready$')"

    title "3. To beta"
    mkdir "$work/dev/site/pages"
    printf 'version 2' >"$work/dev/site/index.html"
    printf 'news' >"$work/dev/site/pages/новости и «кавычки».html"
    ln -s ../index.html "$work/dev/site/pages/home.html"
    note "bullwork release beta index.html pages missing.html: a name that is not there"
    bullwork release beta index.html pages missing.html --wait >/dev/null 2>&1 && bad "it should have failed" && wrong=$((wrong + 1))
    expect "state" beta_error "$(state_of 1)"
    expect "files on beta" 0 "$(find "$work/beta/site" -type f | wc -l)"
    bullwork release abandon 1 2>/dev/null
    note "bullwork release beta index.html pages"
    step=$(now_ms)
    bullwork release beta index.html pages --wait >/dev/null 2>&1 || die "beta does not have it"
    expect "state, $(since "$step")" beta_done "$(state_of 2)"
    expect "beta differs from the developers' server in" "" "$(diff -r -x .bullwork-releases "$work/dev/site" "$work/beta/site" 2>&1)"

    title "4. To production"
    bullwork release production 2 --dry-run 2>/dev/null | sed 's/^/  /' >&2
    note "bullwork release production 2 --backup-of web1"
    step=$(now_ms)
    bullwork release production 2 --backup-of web1 --wait 2>/dev/null || die "production failed"
    expect "state, $(since "$step")" completed "$(state_of 2)"
    expect "web1 and web2" "version 2, version 2" "$(content web1 index.html), $(content web2 index.html)"
    expect "what is there besides" "only here" "$(content web2 local.conf)"
    expect "in the archive" "version 1" "$(tar -xOf "$work/web1/backups/site.tar.gz" ./index.html)"

    title "5. A server is down"
    printf 'version 3' >"$work/dev/site/index.html"
    bullwork release beta index.html --wait >/dev/null 2>&1 || die "beta does not have it"
    kill "${ssh_pids[web2]}"
    wait_until 10 gone "${ssh_pids[web2]}" || die "the sshd of web2 did not end"
    note "bullwork release production 3, while web2 is down"
    bullwork release production 3 --wait 2>/dev/null && bad "it should have failed" && wrong=$((wrong + 1))
    expect "state" production_error "$(state_of 3)"
    expect "web1 and web2" "version 3, version 2" "$(content web1 index.html), $(content web2 index.html)"
    start_sshd web2 "${ssh_ports[web2]}"
    note "web2 is back: bullwork release retry 3"
    bullwork release retry 3 --wait 2>/dev/null || die "the retry failed"
    expect "state" completed "$(state_of 3)"
    expect "web1 and web2" "version 3, version 3" "$(content web1 index.html), $(content web2 index.html)"

    title "6. Back"
    note "bullwork release rollback 3"
    bullwork release rollback 3 --wait 2>/dev/null || die "the rollback failed"
    expect "web1 and web2" "version 2, version 2" "$(content web1 index.html), $(content web2 index.html)"

    title "7. What is known of it"
    {
        bullwork release servers list
        bullwork release status 3
        bullwork release log 3
    } | sed 's/^/  /' >&2
}

story_kept() {
    say "    source $work/env
    $programs/bullwork release servers list
    echo version 4 >$work/dev/site/index.html
    $programs/bullwork release beta index.html --wait
    $programs/bullwork release production 4 --wait
    $programs/bullwork release log 4"
}
