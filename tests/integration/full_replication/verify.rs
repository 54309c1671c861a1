//! The copy is compared with the source before it serves.

use bullwork::replication::full::{Resume, Swap};
use bullwork::replication::verify::{self, Depth, Verdict};
use bullwork::worker::Run;

use super::World;
use super::copies::AWKWARD;

pub(super) fn comparison(world: &World) -> verify::Config {
    verify::Config {
        source: world.config.source.clone(),
        target: world.config.target.clone(),
        modes: world.config.modes.clone(),
        jobs: 3,
        rules: world.config.rules.clone(),
        tables: Vec::new(),
        repair: false,
    }
}

#[tokio::test]
async fn everything_awkward_is_equal_by_checksum_beside_and_in_place() {
    let mut world = World::new().await;
    world.config.verify = Depth::Checksum;
    world.on_source(AWKWARD).await;
    for place in ["in place", "beside"] {
        let (_, lines) = world.run().await;
        assert!(lines.has("CHECKSUM users: equal") && lines.has("CHECKSUM Other-Schema.notes: equal"), "{:?}", lines.all());
        assert!(lines.has("tables are equal on both sides"), "{:?}", lines.all());
        assert_eq!(lines.has("serves; the switch took"), place == "beside");
        let report = verify::verify(&Run::detached(), &comparison(&world)).await.unwrap();
        assert!(report.is_good() && report.tables.len() > 15 && report.remarks.is_empty(), "{report:#?}");
        // A column that names objects is why it is done in place.
        world.on_source("alter table \"text-only\" drop column if exists c").await;
    }
    world.on_target("update \"UpperCase\" set x = 'b' where id = 1").await;
    world.on_source("delete from \"organization-learners\" where id = 1; update folded set c = 'new' where id = 'b'").await;
    let report = verify::verify(&Run::detached(), &comparison(&world)).await.unwrap();
    let note = |table: &str| {
        let found = report.tables.iter().find(|t| t.table.to_string() == table).unwrap();
        assert_eq!(found.verdict, Verdict::Differs, "{table}");
        found.note.as_str()
    };
    assert_eq!(note("folded"), "1 rows of the source are newer than the copy");
    assert_eq!(note("UpperCase"), "no row of the source is newer than the copy");
    assert_eq!(note("organization-learners"), "no row of the source is newer than the copy");
    assert!(
        report.remarks[0].contains("the source was read as it is now") && report.remarks[0].contains("begun at 20"),
        "{report:?}"
    );
}

/// Puts a trigger on every new table `t` that changes one row of it.
const TAMPER: &str = "
create function tamper() returns trigger language plpgsql as $$ begin if new.id = 42 then new.x := new.x || '!'; end if; return new; end $$;
create function put() returns event_trigger language plpgsql as $$ declare r record; begin
  for r in select * from pg_event_trigger_ddl_commands() where object_type = 'table' and object_identity like '%.t' loop
    execute format('create trigger tamper before insert on %s for each row execute function public.tamper()', r.object_identity);
  end loop; end $$;
create event trigger put on ddl_command_end when tag in ('CREATE TABLE') execute function put();";

#[tokio::test]
async fn a_tampered_row_fails_the_run_before_the_switch_and_yesterdays_copy_serves() {
    let mut world = World::new().await;
    world.config.verify = Depth::Checksum;
    world.config.swap = Some(Swap { patience: std::time::Duration::from_secs(30), generations: 1, resume: Resume::Consistent });
    world.on_source("create table t (id int primary key, x text); insert into t select g, 'day one' from generate_series(1, 100) g; create table u (id int); insert into u values (1)").await;
    world.run().await;
    world.on_source("update t set x = 'day two'").await;
    world.on_target(TAMPER).await;
    let error = world.fail().await;
    assert!(error.contains("by checksum: table `t` (100 rows, some of other content)"), "{error}");
    assert!(error.contains("target untouched: generation"), "{error}");
    assert_eq!(world.text("select string_agg(distinct x, ',') from t").await, "day one");
    // Counting alone cannot see it.
    world.config.verify = Depth::Counts;
    world.run().await;
    assert_eq!(world.text("select string_agg(distinct x, ',' order by x) from t").await, "day two,day two!");
    // In place the target is marked as incomplete.
    world.config.verify = Depth::Checksum;
    world.in_place();
    let error = world.fail().await;
    assert!(error.contains("table `t`") && error.contains("target incomplete"), "{error}");
    world.on_target("drop event trigger put").await;
    let (_, lines) = world.run().await;
    assert!(lines.has("checksums of 2 tables are equal on both sides"), "{:?}", lines.all());
}
