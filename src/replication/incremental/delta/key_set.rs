//! The whole numbers that a table has as keys, one bit each: what is gone is found without a key travelling.
//!
//! The scan that looks for changes also yields, for every 64 neighbouring numbers, which of them there are. So the whole
//! set of two million keys is 40,000 rows, exact, and the same on servers of any version: no hash, no collation.
//!
//! The set that a run leaves on the target is kept there, in `bullwork.delta_keys`, and stands for the target's own keys
//! as long as the table has as many rows as it was left with and none that somebody else wrote:
//!
//! ```text
//! table_schema, table_name   the table
//! source_snapshot            the run that left it: that of bullwork.delta_watermark, or the set is an older one
//! first_word, words          64 keys a word of 8 bytes, least significant first; word n is that of keys n * 64 and up
//! ```
//!
//! Keys that lie far apart, texts, uuids and keys of several columns have no such set; all of them travel ([`super::stage`]).

use futures_util::TryStreamExt;

use crate::postgres::{Connection, Doing, PostgresError, quote_identifier};
use crate::replication::settings::TableName;

/// Words of a set at most, 16 MB: keys within 134 million numbers.
const WIDEST: u64 = 1 << 21;
/// The source groups its rows by word; where a word had fewer keys than this, sending the keys would cost no more.
const FEWEST_A_WORD: u64 = 8;
/// A set of so many words is always worth it.
const SMALL: u64 = 1024;
/// Numbers in a statement at once.
const BATCH: usize = 100_000;

const EXISTS: &str = "select pg_catalog.to_regclass('bullwork.delta_keys') is not null";
const CREATE: &str = "create table if not exists bullwork.delta_keys (
    table_schema text not null,
    table_name text not null,
    source_snapshot text not null,
    first_word int8 not null,
    words bytea not null,
    primary key (table_schema, table_name))";

/// Which numbers there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeySet {
    /// The first word's number: a 64th of its lowest key.
    first: i64,
    words: Vec<u64>,
}

/// What the source has of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub all: KeySet,
    /// Those of rows that are not older than the last run.
    pub fresh: KeySet,
}

impl KeySet {
    /// An empty one with room for `lowest` to `highest`; none where about `rows` keys would lie too far apart.
    fn spanning(lowest: i64, highest: i64, rows: u64) -> Option<KeySet> {
        let (first, last) = (lowest >> 6, highest >> 6);
        let words = last.abs_diff(first) + 1;
        let fits = lowest <= highest && words <= WIDEST && words <= (rows / FEWEST_A_WORD).max(SMALL);
        fits.then(|| KeySet { first, words: vec![0; usize::try_from(words).unwrap_or_default()] })
    }

    fn word(&self, number: i64) -> u64 {
        let place = number.checked_sub(self.first).and_then(|place| usize::try_from(place).ok());
        place.and_then(|place| self.words.get(place)).copied().unwrap_or_default()
    }

    /// Adds keys; whether there was room.
    fn add(&mut self, number: i64, keys: i64) -> bool {
        let place = number.checked_sub(self.first).and_then(|place| usize::try_from(place).ok());
        match place.and_then(|place| self.words.get_mut(place)) {
            Some(word) => {
                *word |= keys.cast_unsigned();
                true
            }
            None => false,
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The keys that `other` has not, in their order.
    pub(super) fn without<'a>(&'a self, other: &'a KeySet) -> impl Iterator<Item = i64> + 'a {
        (self.first..).zip(&self.words).flat_map(|(number, word)| {
            let left = word & !other.word(number);
            (0..64).filter(move |bit| left >> bit & 1 == 1).map(move |bit| number * 64 + bit)
        })
    }

    /// All of them, in their order.
    pub(super) fn keys(&self) -> impl Iterator<Item = i64> + '_ {
        const NONE: &KeySet = &KeySet { first: 0, words: Vec::new() };
        self.without(NONE)
    }

    fn to_bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn from_bytes(first: i64, bytes: &[u8]) -> KeySet {
        KeySet { first, words: bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect() }
    }

    /// Reads the keys of `from` and, of rows that meet `fresh`, apart from the others; one scan. `fresh` is a condition
    /// on `xmin`. `rows` is about how many there are. None when they have no set.
    pub(super) async fn read(
        side: &Connection,
        table: &TableName,
        (from, column): (&str, &str),
        fresh: &str,
        rows: u64,
    ) -> Result<Option<Found>, PostgresError> {
        let doing = || format!("reading the keys of table `{table}`");
        let column = quote_identifier(column);
        let ends = side.query_one(&format!("select min({column})::int8, max({column})::int8 from {from}"), &[]).await;
        let ends = ends.doing(doing)?;
        let (Some(lowest), Some(highest)) = (ends.get::<_, Option<i64>>(0), ends.get::<_, Option<i64>>(1)) else {
            let none = KeySet { first: 0, words: Vec::new() };
            return Ok(Some(Found { all: none.clone(), fresh: none }));
        };
        let Some(mut all) = KeySet::spanning(lowest, highest, rows) else { return Ok(None) };
        let mut new = all.clone();
        // Behind `offset 0` the planner knows nothing of the words: it would expect as many as there are rows, and sort those.
        let sql = format!(
            "select word::int8, bit_or(keys), bit_or(keys) filter (where {fresh}) from (
                select {column} >> 6 as word, 1::int8 << ({column} & 63)::int4 as keys, xmin from {from} offset 0) t(word, keys, xmin)
             group by word"
        );
        let words = side.query_raw(sql.as_str(), Vec::<i64>::new()).await.doing(doing)?;
        let mut words = std::pin::pin!(words);
        while let Some(row) = words.try_next().await.doing(doing)? {
            let (number, keys) = (row.get(0), row.get(1));
            if !all.add(number, keys) || !new.add(number, row.get::<_, Option<i64>>(2).unwrap_or_default()) {
                return Ok(None);
            }
        }
        Ok(Some(Found { all, fresh: new }))
    }

    /// Writes `keys` to `table` of the target, which has one column.
    pub(super) async fn write(
        target: &Connection,
        table: &str,
        keys: impl Iterator<Item = i64>,
    ) -> Result<u64, tokio_postgres::Error> {
        let sql = format!("insert into {table} select pg_catalog.unnest($1::int8[])");
        let mut keys = keys.peekable();
        let mut written = 0;
        while keys.peek().is_some() {
            let some: Vec<i64> = keys.by_ref().take(BATCH).collect();
            written += target.execute(&sql, &[&some]).await?;
        }
        Ok(written)
    }
}

/// Makes the table of key sets when it is absent; schema `bullwork` is there.
pub(super) async fn prepare(target: &Connection) -> Result<(), PostgresError> {
    let doing = || "making the table `bullwork.delta_keys` on the target".to_owned();
    let exists: bool = target.query_one(EXISTS, &[]).await.doing(doing)?.get(0);
    if exists { Ok(()) } else { target.batch_execute(CREATE).await.doing(doing) }
}

/// The keys that the run with that snapshot left.
pub(super) async fn load(target: &Connection, table: &TableName, snapshot: &str) -> Result<Option<KeySet>, PostgresError> {
    let sql = "select first_word, words from bullwork.delta_keys
        where table_schema = $1 and table_name = $2 and source_snapshot = $3";
    let row = target
        .query_opt(sql, &[&table.schema, &table.name, &snapshot])
        .await
        .doing(|| format!("reading which keys the last run left of table `{table}`"))?;
    Ok(row.map(|row| KeySet::from_bytes(row.get(0), row.get(1))))
}

/// Keeps the keys that this run leaves, or that they are not known.
pub(super) async fn store(
    target: &Connection,
    table: &TableName,
    snapshot: &str,
    keys: Option<&KeySet>,
) -> Result<(), PostgresError> {
    let doing = || format!("storing which keys this run left of table `{table}`");
    let Some(keys) = keys else {
        let sql = "delete from bullwork.delta_keys where table_schema = $1 and table_name = $2";
        return target.execute(sql, &[&table.schema, &table.name]).await.doing(doing).map(drop);
    };
    let sql = "insert into bullwork.delta_keys (table_schema, table_name, source_snapshot, first_word, words)
        values ($1, $2, $3, $4, $5)
        on conflict (table_schema, table_name) do update set source_snapshot = excluded.source_snapshot,
            first_word = excluded.first_word, words = excluded.words";
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
        [&table.schema, &table.name, &snapshot, &keys.first, &keys.to_bytes()];
    target.execute(sql, &values).await.doing(doing).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(keys: &[i64]) -> KeySet {
        let (lowest, highest) = (keys.iter().min().unwrap(), keys.iter().max().unwrap());
        let mut set = KeySet::spanning(*lowest, *highest, 1_000_000).unwrap();
        // As the servers say it: an arithmetic shift, and the lowest six bits.
        assert!(keys.iter().all(|key| set.add(key >> 6, 1 << (key & 63))));
        set
    }

    #[test]
    fn sets_hold_what_was_put_in_at_the_borders_of_words_and_below_zero() {
        let keys = [-129, -128, -65, -64, -63, -1, 0, 1, 63, 64, 127, 128];
        let all = set(&keys);
        assert_eq!((all.keys().collect::<Vec<_>>().as_slice(), all.count()), (keys.as_slice(), 12));
        assert_eq!(KeySet::from_bytes(all.first, &all.to_bytes()), all);
        let ends = [i64::MAX - 64, i64::MAX - 63, i64::MAX];
        assert_eq!(set(&ends).keys().collect::<Vec<_>>(), ends);
        assert_eq!(set(&[i64::MIN, i64::MIN + 64]).keys().collect::<Vec<_>>(), [i64::MIN, i64::MIN + 64]);
    }

    #[test]
    fn one_set_without_another_is_exact_wherever_the_two_begin_and_end() {
        let (a, b) = (set(&[-70, 5, 6, 63, 64, 500]), set(&[5, 64, 65, 10_000]));
        assert_eq!(a.without(&b).collect::<Vec<_>>(), [-70, 6, 63, 500]);
        assert_eq!(b.without(&a).collect::<Vec<_>>(), [65, 10_000]);
        assert_eq!(a.without(&a).count(), 0);
        let none = KeySet { first: 0, words: vec![] };
        assert_eq!((none.without(&a).count(), a.without(&none).count()), (0, 6));
    }

    #[test]
    fn keys_that_lie_far_apart_have_no_set() {
        assert!(KeySet::spanning(1, 64 * 1024 - 1, 0).is_some(), "a small one costs nothing");
        assert!(KeySet::spanning(1, 64 * 2000, 8 * 1999).is_none());
        assert!(KeySet::spanning(1, 64 * 2000, 8 * 2001).is_some());
        assert!(KeySet::spanning(i64::MIN, i64::MAX, u64::MAX).is_none());
        assert!(KeySet::spanning(2, 1, 10).is_none());
    }
}
