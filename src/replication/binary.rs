//! Which columns may be copied in COPY's binary format, which costs both servers less than text.
//!
//! Text says the same in every database. Binary does not where it holds an object's number (oid),
//! which differs between databases, or where the reader may know the type otherwise:
//!
//! | type | binary | because |
//! |---|---|---|
//! | PostgreSQL's own, and arrays, ranges and multiranges of them | yes | numbers and formats are fixed for good |
//! | `regclass`, `regtype` and the other `reg…` | no | the number of an object of this database |
//! | one without binary form (`aclitem`), or an array of it | no | the server refuses |
//! | enum | yes | its label is sent |
//! | domain | as its base type | nothing of its own is sent |
//! | array of a user's type, composite | no | the numbers of the parts' types are sent |
//! | a user's range | no | its bounds may be any type of this table, and it is too rare to look into |
//! | base type of an extension | no | the two sides may have different versions of the extension |
//!
//! A table with one such column is copied in text, whole.

/// A subquery with one row for the type whose oid is `type_oid` (any SQL expression): the base type
/// that domains end in, and whether its binary form reads the same in any other database.
#[must_use]
pub fn base_and_portable(type_oid: &str) -> String {
    format!(
        "(with recursive steps(oid, typtype, typbasetype) as (
            select s.oid, s.typtype, s.typbasetype from pg_catalog.pg_type s where s.oid = {type_oid}
            union all
            select s.oid, s.typtype, s.typbasetype from steps d join pg_catalog.pg_type s on s.oid = d.typbasetype
            where d.typtype = 'd')
        select b.oid, case
            when b.typsend = 0 or b.typreceive = 0 then false
            when b.typtype = 'e' then true
            when b.typnamespace <> 'pg_catalog'::regnamespace then false
            when e.oid is not null then e.typnamespace = 'pg_catalog'::regnamespace
                and e.typsend <> 0 and e.typreceive <> 0
                and e.typtype in ('b', 'r', 'm') and e.typname !~ '^reg'
            else b.typtype in ('b', 'r', 'm') and b.typname !~ '^reg'
        end
        from steps join pg_catalog.pg_type b on b.oid = steps.oid
        left join pg_catalog.pg_type e on e.oid = b.typelem and b.typcategory = 'A'
        where steps.typtype <> 'd')"
    )
}
