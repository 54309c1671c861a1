//! Foreign keys that the full copy could not validate, because an incremental table was still a day
//! behind when it made them: a replicated table may refer to rows that only this run brought.
//!
//! They were made NOT VALID, so new rows are checked already; here the old rows are checked too. A
//! key that still does not hold is told and stays as it is: it is never a reason to fail a run whose
//! rows are committed.

use crate::postgres::{Connection, Doing, PostgresError, explain, quote_identifier};
use crate::worker::Run;

/// Keys of, or to, the given tables that are not validated. Partitions have their parent's.
const NOT_VALID: &str = "select c.conrelid::regclass::text, c.conname::text from pg_constraint c
    where c.contype = 'f' and not c.convalidated and c.conparentid = 0 and (c.conrelid = any($1) or c.confrelid = any($1))
    order by 1, 2";

/// Validates what holds by now. `tables` are oids on the target.
pub(super) async fn validate(run: &Run, target: &Connection, tables: &[u32]) -> Result<(), PostgresError> {
    let keys = target.query(NOT_VALID, &[&tables]).await.doing(|| "looking for foreign keys to validate".to_owned())?;
    for row in keys {
        let (table, name): (String, String) = (row.get(0), row.get(1));
        // Takes SHARE UPDATE EXCLUSIVE on the table: readers and writers go on.
        let statement = format!("alter table {table} validate constraint {}", quote_identifier(&name));
        match target.batch_execute(&statement).await {
            Ok(()) => run.info(format!("validated foreign key {name} of {table}")),
            Err(error) => {
                run.warn(format!("foreign key {name} of {table} does not hold yet and stays not valid: {}", explain(&error)));
            }
        }
    }
    Ok(())
}
