//! Temporary tables that take the rows as they arrive; invisible to everybody else, gone with the
//! session.

use bytes::Bytes;
use futures_util::SinkExt;
use tokio::sync::mpsc;
use tokio_postgres::CopyInSink;

use super::ContentError;
use super::body::Piece;
use super::mapping::{Mapping, Table};
use crate::postgres::{Connection, Doing, explain, quote_qualified};
use crate::worker::Run;

/// Makes the temporary tables. They carry the names of the real ones, so that the server's error
/// messages do; every statement names its schema.
pub(super) async fn create(session: &Connection, mapping: &Mapping) -> Result<(), ContentError> {
    // The input functions must read values alike on every server.
    session
        .batch_execute("SET client_encoding = 'UTF8'; SET datestyle = 'ISO, YMD'; SET timezone = 'UTC'")
        .await
        .doing(|| "preparing the session".to_owned())?;
    for table in &mapping.tables {
        let sql = format!("CREATE TEMPORARY TABLE {} ({}, PRIMARY KEY (\"id\"))", staged(table), table.definition());
        session.batch_execute(&sql).await.doing(|| format!("creating the temporary table for `{}`", table.name))?;
    }
    Ok(())
}

/// The temporary table's quoted name.
pub(super) fn staged(table: &Table) -> String {
    quote_qualified("pg_temp", &table.name)
}

/// Writes all rows; true when the end of the body was seen.
pub(super) async fn fill(
    run: &Run,
    session: &Connection,
    mapping: &Mapping,
    mut pieces: mpsc::Receiver<Piece>,
) -> Result<bool, ContentError> {
    let mut copy: Option<Copy<'_>> = None;
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::Table(index) => {
                finish(run, copy.take()).await?;
                copy = Some(Copy::start(session, &mapping.tables[index]).await?);
            }
            Piece::Rows { text, ids } => {
                if let Some(copy) = &mut copy {
                    let rows = ids.len() as u64;
                    copy.write(text, ids).await?;
                    run.progress(|p| p.rows += rows);
                }
            }
            Piece::End => {
                finish(run, copy.take()).await?;
                return Ok(true);
            }
        }
    }
    // The parser ended before the body did: dropping the sink makes the server forget the rows.
    Ok(false)
}

async fn finish(run: &Run, copy: Option<Copy<'_>>) -> Result<(), ContentError> {
    if let Some(mut copy) = copy {
        copy.sink.close().await.map_err(|e| copy.refused(&e))?;
        run.progress(|p| p.done += 1);
    }
    Ok(())
}

/// A COPY into one temporary table.
struct Copy<'t> {
    table: &'t Table,
    ids: Vec<String>,
    sink: std::pin::Pin<Box<CopyInSink<Bytes>>>,
}

impl<'t> Copy<'t> {
    async fn start(session: &Connection, table: &'t Table) -> Result<Copy<'t>, ContentError> {
        let sql = format!("COPY {} ({}) FROM STDIN", staged(table), table.column_list());
        let sink = session.copy_in(&sql).await.doing(|| format!("loading `{}`", table.name))?;
        Ok(Copy { table, ids: Vec::new(), sink: Box::pin(sink) })
    }

    async fn write(&mut self, text: String, ids: Vec<String>) -> Result<(), ContentError> {
        self.ids.extend(ids);
        let Err(error) = self.sink.send(Bytes::from(text)).await else { return Ok(()) };
        // After a refusal the driver only says that the copy is over; its end has the reason.
        let reason = self.sink.close().await.err().filter(|e| e.as_db_error().is_some());
        Err(self.refused(reason.as_ref().unwrap_or(&error)))
    }

    /// The server names the line of the COPY; people need the item.
    fn refused(&self, error: &tokio_postgres::Error) -> ContentError {
        let item = error
            .as_db_error()
            .and_then(|db| db.where_())
            .and_then(|context| line_number(context, &self.table.name))
            .and_then(|line| self.ids.get(line.checked_sub(1)?));
        match item {
            Some(item) => ContentError::Refused { table: self.table.name.clone(), item: item.clone(), reason: explain(error) },
            None => ContentError::Postgres(crate::postgres::PostgresError::Statement {
                doing: format!("loading `{}`", self.table.name),
                reason: explain(error),
            }),
        }
    }
}

/// The line in `COPY <table>, line 3, column x: "…"`, whatever language the server says it in.
fn line_number(context: &str, table: &str) -> Option<usize> {
    let after = &context[context.find(table)? + table.len()..];
    let digits: String = after.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_found_in_any_language() {
        assert_eq!(line_number("COPY skills, line 12, column level: \"9x\"", "skills"), Some(12));
        assert_eq!(line_number("COPY t2, ligne 3, colonne level : « 9x »", "t2"), Some(3));
        assert_eq!(line_number("something else", "skills"), None);
    }
}
