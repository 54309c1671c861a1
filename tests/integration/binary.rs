//! Which types may cross in binary, asked of a real catalogue.

use bullwork::replication::binary::base_and_portable;

use crate::support::postgres::Cluster;

const TYPES: &str = "
create schema x;
create type x.mood as enum ('good');
create type x.pair as (a int, b text);
create type x.span as range (subtype = int8);
create domain x.small as smallint;
create domain x.smaller as x.small;
create domain x.moods as x.mood[];
create domain x.numbers as int[];
create extension citext;
";

#[tokio::test]
async fn binary_is_refused_for_what_holds_object_numbers_or_differs_between_databases() {
    let cluster = Cluster::start();
    let client = cluster.create("production").await;
    client.batch_execute(TYPES).await.unwrap();
    let sql = format!(
        "select t, w.portable, w.base::regtype::text from unnest($1::text[]) t, lateral {} w(base, portable)",
        base_and_portable("t::regtype::oid")
    );
    let portable = "int8 text bytea jsonb numeric timestamptz uuid inet money int4range int4multirange text[] int4range[] \
                    x.mood x.small x.smaller x.numbers oid xid8 tsvector point int2vector";
    let refused = "regclass regtype regclass[] aclitem aclitem[] x.mood[] x.moods x.pair x.pair[] x.span x.span[] x.small[] \
                   citext citext[] pg_class pg_class[]";
    for (types, wanted) in [(portable, true), (refused, false)] {
        let types: Vec<&str> = types.split_whitespace().collect();
        let rows = client.query(&sql, &[&types]).await.unwrap();
        assert_eq!(rows.len(), types.len(), "one row for each type");
        for row in rows {
            let (name, found): (&str, bool) = (row.get(0), row.get(1));
            assert_eq!(found, wanted, "{name}");
            if name == "x.smaller" {
                assert_eq!(row.get::<_, &str>(2), "smallint", "domains end in their base type");
            }
        }
    }
}
