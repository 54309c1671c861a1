//! Which key ranges of a table differ, by bisection.
//!
//! A range that differs is cut into up to 64 parts of equal size, by every nth key of the side that has more rows there. One query on
//! each side gives the checksums of all parts, and only parts that differ are cut further, down to some thousand rows. One row that
//! differs among a million costs two reads of the table and one of a sixtieth of it, and nothing travels but numbers.

use std::collections::HashMap;

use tokio_postgres::Client;

use super::keys::{Key, Range};
use super::sums::{Column, Form, Sums};
use crate::postgres::{Doing, PostgresError};

/// Parts that a range is cut into.
const PARTS: i64 = 64;
/// A range with fewer rows is brought over.
pub(super) const SMALL: i64 = 2000;
/// Each round divides by [`PARTS`]; beyond this many the key cannot be what it says it is.
const ROUNDS: usize = 12;

/// A table as both sides have it.
pub(super) struct Both<'a> {
    pub(super) form: Form,
    pub(super) columns: &'a [Column],
    pub(super) key: &'a Key,
    pub(super) source: (&'a Client, String),
    pub(super) target: (&'a Client, String),
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Differing {
    pub(super) ranges: Vec<Range>,
    /// Ranges whose checksums were compared.
    pub(super) compared: u64,
}

impl Both<'_> {
    /// The ranges that differ; `rows` is how many there are on each side.
    pub(super) async fn differing(&self, rows: (i64, i64)) -> Result<Differing, PostgresError> {
        let mut found = Differing::default();
        let mut waiting = vec![(Range::default(), rows, 0)];
        while let Some((range, rows, round)) = waiting.pop() {
            let larger = rows.0.max(rows.1);
            if larger <= SMALL || round >= ROUNDS {
                found.ranges.push(range);
                continue;
            }
            let bounds = self.bounds(&range, rows).await?;
            let (wanted, there) =
                tokio::try_join!(self.parts(&self.source, &range, &bounds), self.parts(&self.target, &range, &bounds))?;
            for (number, part) in range.parts(&bounds).into_iter().enumerate() {
                found.compared += 1;
                let of = |sums: &HashMap<usize, Sums>| sums.get(&number).cloned().unwrap_or_else(Sums::none);
                let (wanted, there) = (of(&wanted), of(&there));
                if wanted != there {
                    waiting.push((part, (wanted.rows, there.rows), round + 1));
                }
            }
        }
        Ok(found)
    }

    async fn bounds(&self, range: &Range, rows: (i64, i64)) -> Result<Vec<Vec<String>>, PostgresError> {
        let (side, rows) = if rows.0 >= rows.1 { (&self.source, rows.0) } else { (&self.target, rows.1) };
        let step = (rows / PARTS).max(1) + 1;
        let rows = side.0.query(&self.key.steps(&side.1, range, step), &[]).await;
        Ok(rows.doing(|| "cutting a table into ranges".to_owned())?.into_iter().map(|row| row.get(0)).collect())
    }

    async fn parts(
        &self,
        side: &(&Client, String),
        range: &Range,
        bounds: &[Vec<String>],
    ) -> Result<HashMap<usize, Sums>, PostgresError> {
        if bounds.is_empty() {
            return Ok(HashMap::from([(0, self.sums(side, range).await?)]));
        }
        let within = self.key.within(range, "t");
        let sql = self.form.sums_by(&self.key.part(bounds, "t"), &side.1, self.columns, within.as_deref());
        let rows = side.0.query(&sql, &[]).await.doing(|| "checksumming the ranges of a table".to_owned())?;
        let part = |row: &tokio_postgres::Row| usize::try_from(row.get::<_, i32>(0)).unwrap_or_default();
        Ok(rows.iter().map(|row| (part(row), Sums::of(row, 1))).collect())
    }

    async fn sums(&self, side: &(&Client, String), range: &Range) -> Result<Sums, PostgresError> {
        let sql = self.form.sums(&side.1, self.columns, self.key.within(range, "t").as_deref());
        Ok(Sums::of(&side.0.query_one(&sql, &[]).await.doing(|| "checksumming a range".to_owned())?, 0))
    }

    /// Whether both sides have the same rows in a range.
    pub(super) async fn equal(&self, range: &Range) -> Result<bool, PostgresError> {
        let (wanted, there) = tokio::try_join!(self.sums(&self.source, range), self.sums(&self.target, range))?;
        Ok(wanted == there)
    }
}
