# shellcheck shell=bash
# Compares two databases table by table. Source after servers.sh.

# fingerprints PORT DATABASE FILE: one line for each ordinary table: name, rows, and a hash of all
# rows that does not depend on their order.
fingerprints() {
    sql "$1" "$2" -A -t -F $'\t' <<'SQL' | sort >"$3"
set time zone 'UTC';
select format(
    'select %L, count(*), coalesce(md5(string_agg(h, '''' order by h)), ''-'') from (select md5(t::text) as h from only %I.%I t) rows',
    case when n.nspname = 'public' then c.relname else n.nspname || '.' || c.relname end, n.nspname, c.relname)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and c.relpersistence <> 't' and n.nspname !~ '^(pg_|information_schema$|bullwork$)'
\gexec
SQL
}

# compare SOURCE TARGET [KEPT...]: prints the table of tables; fails when a table of SOURCE that is
# not among KEPT differs in TARGET. Both are files made by fingerprints.
compare() {
    local source=$1 target=$2
    shift 2
    awk -F '\t' -v kept="$(printf '%s\n' "$@")" '
        BEGIN { count = split(kept, names, "\n"); for (i = 1; i <= count; i++) if (names[i] != "") ours[names[i]] = 1
                printf "  %-34s %10s %10s\n", "table", "source", "target" }
        FNR == NR { rows[$1] = $2; hash[$1] = $3; next }
        { there[$1] = 1; other_rows[$1] = $2; other_hash[$1] = $3 }
        END {
            for (table in rows) {
                if (table in ours) verdict = "kept as it was"
                else if (!(table in there)) { verdict = "MISSING"; wrong++ }
                else if (rows[table] != other_rows[table]) { verdict = "ROWS DIFFER"; wrong++ }
                else if (hash[table] != other_hash[table]) { verdict = "CONTENT DIFFERS"; wrong++ }
                else { verdict = "equal"; equal++ }
                printf "  %-34s %10s %10s  %s\n", table, rows[table], (table in there) ? other_rows[table] : "-", verdict | "sort"
            }
            close("sort")
            printf "  %d equal, %d different\n", equal, wrong
            exit wrong > 0
        }' "$source" "$target"
}
