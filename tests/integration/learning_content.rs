//! The learning-content step against a real server and real HTTP.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bullwork::config::{Environment, Reader};
use bullwork::jobs::learning_content_replication::{LearningContentReplication, Payload};
use bullwork::worker::{JobContext, JobKind, Outcome};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use wiremock::matchers::{header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::eventually;
use crate::support::lines::Lines;
use crate::support::postgres::Cluster;

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/lcms").join(name);
    std::fs::read_to_string(path).expect("the fixture is there")
}

fn content() -> Value {
    serde_json::from_str(&fixture("airtable.json")).expect("the fixture is JSON")
}

struct Setup {
    cluster: Cluster,
    db: Client,
    api: MockServer,
}

impl Setup {
    async fn new() -> Setup {
        let cluster = Cluster::start();
        let db = cluster.create("target").await;
        Setup { cluster, db, api: MockServer::start().await }
    }

    async fn answers(&self, template: ResponseTemplate) {
        self.api.reset().await;
        Mock::given(method("GET"))
            .and(path("/api/databases/airtable"))
            .and(header("authorization", "Bearer the-api-key"))
            .and(header("client", "my-replication"))
            .respond_with(template)
            .mount(&self.api)
            .await;
    }

    async fn answers_with(&self, body: &Value) {
        self.answers(ResponseTemplate::new(200).set_body_json(body)).await;
    }

    async fn run_with(&self, more: &[(&str, &str)], stop: CancellationToken) -> (Result<Outcome, String>, Arc<Lines>) {
        let mut pairs: Vec<(String, String)> = vec![
            ("LCMS_API_URL".into(), format!("{}/api/", self.api.uri())),
            ("LCMS_API_KEY".into(), "the-api-key".into()),
            ("APP".into(), "my-replication".into()),
            ("TARGET_DATABASE_URL".into(), self.cluster.url("target")),
        ];
        pairs.extend(more.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())));
        let environment = Environment::of(pairs);
        let reader = Reader::new(&environment);
        let kind = LearningContentReplication::from_settings(&reader);
        reader.finish().expect("the configuration is right");
        let (run, lines) = Lines::of_run(stop);
        let context = JobContext { payload: Payload::default(), attempt: 1, attempts: 1, run, memory: None };
        let result = kind.run(&context).await.map_err(|e| format!("{e:#}"));
        (result, lines)
    }

    async fn run(&self) -> (Result<Outcome, String>, Arc<Lines>) {
        self.run_with(&[], CancellationToken::new()).await
    }

    async fn loads(&self) -> Value {
        match self.run().await.0.expect("the load succeeds") {
            Outcome::Done(value) => value,
            other => panic!("{other:?}"),
        }
    }

    async fn load_fixture(&self) {
        self.answers_with(&content()).await;
        self.loads().await;
    }

    async fn one<T: for<'a> tokio_postgres::types::FromSql<'a>>(&self, sql: &str) -> T {
        self.db.query_one(sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
    }

    /// Everything in the tables, in one text.
    async fn everything(&self) -> String {
        self.one(
            "select string_agg(t, E'\\n' order by t) from (
            select 'areas'||a::text from areas a union all select 'attachments'||a::text from attachments a
            union all select 'competences'||a::text from competences a union all select 'tubes'||a::text from tubes a
            union all select 'skills'||a::text from skills a union all select 'challenges'||a::text from challenges a
            union all select 'courses'||a::text from courses a union all select 'tutorials'||a::text from tutorials a) as x(t)",
        )
        .await
    }
}

const TABLES: [(&str, i64); 8] = [
    ("areas", 2),
    ("attachments", 2),
    ("competences", 6),
    ("tubes", 4),
    ("skills", 6),
    ("challenges", 7),
    ("courses", 2),
    ("tutorials", 3),
];

#[tokio::test]
async fn the_whole_content_lands_in_8_tables_of_84_columns_with_their_indexes() {
    let setup = Setup::new().await;
    setup.answers_with(&content()).await;
    let (result, lines) = setup.run().await;
    assert_eq!(result.unwrap(), Outcome::Done(json!({"rows": 32, "inserted": 32, "updated": 0, "deleted": 0})));
    let messages = lines.messages();
    assert_eq!(messages.first().unwrap(), "learningContent.run - Started");
    assert_eq!(messages.last().unwrap(), "learningContent.run - Ended");
    for (table, rows) in TABLES {
        assert_eq!(setup.one::<i64>(&format!("select count(*) from {table}")).await, rows, "{table}");
        let key: String = setup
            .one(&format!(
                "select pg_get_constraintdef(oid) from pg_constraint where conrelid = '{table}'::regclass and contype = 'p'"
            ))
            .await;
        assert_eq!(key, "PRIMARY KEY (id)");
    }
    let columns: i64 = setup.one("select count(*) from information_schema.columns where table_schema = 'public'").await;
    assert_eq!(columns, 84);
    let indexes: Vec<String> = setup
        .one("select array_agg(indexname::text order by indexname) from pg_indexes where schemaname = 'public' and indexname like '%\\_idx'")
        .await;
    assert_eq!(
        indexes,
        [
            "challenges_firstSkillId_idx",
            "competences_areaId_idx",
            "skills_tubeId_idx",
            "tubes_competenceId_idx",
            "tutorials_title_idx"
        ]
    );
}

#[tokio::test]
async fn extractors_follow_the_mapping() {
    let setup = Setup::new().await;
    setup.load_fixture().await;
    let row =
        setup.db.query_one("select name, code, title, \"areaId\" from competences where id = 'competence1'", &[]).await.unwrap();
    let texts: Vec<&str> = (0..4).map(|i| row.get(i)).collect();
    assert_eq!(texts, ["Mener une recherche", "1.1", "Mener une recherche", "area1"]);
    let challenge = |id: &str| {
        format!(
            "select jsonb_build_array(\"skillIds\", \"skillCount\", \"firstSkillId\", \"secondSkillId\", languages, \"hasEmbedUrl\", \"hasAlternativeInstruction\", focus, shuffled, delta)::text from challenges where id = '{id}'"
        )
    };
    let one: String = setup.one(&challenge("challenge1")).await;
    assert_eq!(one, r#"[["skill1"], 1, "skill1", null, ["fr", "fr-fr"], true, false, false, true, 0.1]"#);
    let two: String = setup.one(&challenge("challenge2")).await;
    assert_eq!(two, r#"[["skill2"], 1, "skill2", null, ["fr", "fr-fr"], false, true, true, true, null]"#);
    let seven: String = setup.one(&challenge("challenge7")).await;
    assert!(seven.starts_with(r#"[[], 1, null, null"#), "an absent skillId is an empty array: {seven}");
    let text: String = setup.one("select \"practicalDescription\" from tubes where id = 'tube3'").await;
    assert_eq!(text, "\\N", "text that looks like COPY's null");
    assert!(setup.one::<bool>("select \"archivedAt\" = '2024-06-01 10:00:00+00' from challenges where id = 'challenge5'").await);
}

#[tokio::test]
async fn array_elements_survive_comma_quote_brace_backslash_empty_text_and_null() {
    let setup = Setup::new().await;
    let wanted = ["a,b", "q\"q", "{c}", "back\\slash", "", "NULL", "tab\tnew\nline", "é\u{1F600}", " "];
    let mut content = content();
    let mut elements: Vec<Value> = wanted.iter().map(|t| json!(t)).collect();
    elements.push(Value::Null);
    content["challenges"][0]["urlsToConsult"] = json!(elements);
    setup.answers_with(&content).await;
    setup.loads().await;
    let got: Vec<Option<String>> = setup.one("select \"urlsToConsult\" from challenges where id = 'challenge1'").await;
    let mut expected: Vec<Option<String>> = wanted.iter().map(|t| Some((*t).to_owned())).collect();
    expected.push(None);
    assert_eq!(got, expected);
}

#[tokio::test]
async fn a_scalar_in_an_array_field_is_a_one_element_array() {
    let setup = Setup::new().await;
    setup.load_fixture().await;
    assert_eq!(setup.one::<Vec<String>>("select languages from challenges where id = 'challenge4'").await, ["nl"]);
}

#[tokio::test]
async fn absent_booleans_are_false() {
    let setup = Setup::new().await;
    setup.load_fixture().await;
    let none: bool = setup
        .one("select not (\"requireGafamWebsiteAccess\" or \"isIncompatibleIpadCertif\" or \"toRephrase\" or \"isAwarenessChallenge\" or \"autoReply\") from challenges where id = 'challenge6'")
        .await;
    assert!(none);
}

#[tokio::test]
async fn an_extractor_that_walks_into_an_absent_object_gives_null() {
    let setup = Setup::new().await;
    setup.load_fixture().await;
    assert_eq!(setup.one::<Option<String>>("select hint from skills where id = 'skill6'").await, None);
}

#[tokio::test]
async fn the_second_day_touches_only_rows_that_changed() {
    let setup = Setup::new().await;
    setup.load_fixture().await;
    let before: String = setup.one("select xmin::text from areas where id = 'area1'").await;
    let mut content = content();
    content["areas"][1]["name"] = json!("Communication et collaboration");
    content["courses"].as_array_mut().unwrap().remove(0);
    content["tutorials"].as_array_mut().unwrap().push(json!({"id": "tutorial4", "title": "Neuf"}));
    setup.answers_with(&content).await;
    assert_eq!(setup.loads().await, json!({"rows": 32, "inserted": 1, "updated": 1, "deleted": 1}));
    assert_eq!(setup.one::<String>("select name from areas where id = 'area2'").await, "Communication et collaboration");
    assert_eq!(setup.one::<String>("select xmin::text from areas where id = 'area1'").await, before);
}

/// Every way to fail leaves yesterday's content as it was.
#[tokio::test]
async fn whatever_fails_leaves_yesterdays_content() {
    let setup = Setup::new().await;
    setup.load_fixture().await;
    let yesterday = setup.everything().await;
    let with = |change: fn(&mut Value)| {
        let mut content = content();
        content["areas"][0]["name"] = json!("today");
        change(&mut content);
        ResponseTemplate::new(200).set_body_json(content)
    };
    let text = |text: &str| ResponseTemplate::new(200).set_body_raw(text.to_owned(), "application/json");
    let cases: Vec<(&str, ResponseTemplate, &str)> = vec![
        ("500", ResponseTemplate::new(500).set_body_string("oops"), "the server answered 500"),
        ("401", ResponseTemplate::new(401), "check the token or key"),
        ("404", ResponseTemplate::new(404), "check the path of the URL"),
        ("not JSON", text("<html>busy</html>"), "the answer cannot be read: expected value at line 1 column 1"),
        ("a list", text("[1]"), "an object with one array for each table"),
        ("cut JSON", text(&content().to_string()[..3000]), "EOF"),
        ("rest", text(&format!("{} x", content())), "trailing characters"),
        (
            "no tables",
            text(&fixture("empty.json")),
            "no array for: areas, attachments, competences, tubes, skills, challenges, courses, tutorials",
        ),
        ("two missing", text(&fixture("missing-array.json")), "no array for: tubes, courses; nothing was changed"),
        ("no id", text(&fixture("no-id.json")), "At least one item to insert in table skills has no property at all"),
        (
            "null id",
            with(|c| c["courses"][1]["id"] = Value::Null),
            "At least one item to insert in table courses has no property at all",
        ),
        (
            "text in smallint",
            with(|c| c["skills"][2]["level"] = json!("high")),
            "table `skills`, item `skill3`: invalid input syntax for type smallint: \"high\"",
        ),
        ("that field", with(|c| c["skills"][2]["level"] = json!("high")), "column level"),
        ("too large", with(|c| c["skills"][5]["pixValue"] = json!(12)), "table `skills`, item `skill6`: numeric field overflow"),
        (
            "no time",
            with(|c| c["challenges"][4]["createdAt"] = json!("soon")),
            "table `challenges`, item `challenge5`: invalid input syntax for type timestamp",
        ),
        ("zero byte", with(|c| c["areas"][1]["name"] = json!("a\0b")), "table `areas`, item `area2`"),
        ("same id", with(|c| c["tubes"][3]["id"] = json!("tube1")), "table `tubes`, item `tube1`: duplicate key value"),
    ];
    for (case, template, wanted) in cases {
        setup.answers(template).await;
        let (result, lines) = setup.run().await;
        let error = result.expect_err(case);
        assert!(error.contains(wanted), "{case}: {error}");
        assert!(!error.contains("the-api-key") && !lines.holds("the-api-key"), "{case}");
        assert_eq!(setup.everything().await, yesterday, "{case}");
        let line = format!("Error on GET request to {}/api/databases/airtable", setup.api.uri());
        assert_eq!(lines.messages().contains(&line), error.contains("GET "), "{case}: {:?}", lines.messages());
    }
}

#[tokio::test]
async fn an_answer_beyond_the_limit_is_refused_whether_or_not_it_tells_its_length() {
    let setup = Setup::new().await;
    setup.load_fixture().await;
    let yesterday = setup.everything().await;
    let mut content = content();
    content["areas"][0]["name"] = json!("today");
    setup.answers_with(&content).await;
    let (result, lines) = setup.run_with(&[("LCMS_MAX_BYTES", "4000")], CancellationToken::new()).await;
    let error = result.unwrap_err();
    assert!(error.contains("longer than 4000 bytes; raise LCMS_MAX_BYTES"), "{error}");
    assert!(lines.holds("Error on GET request to"));

    let endless = raw_server(Behaviour::Endless).await;
    let (result, _) =
        setup.run_with(&[("LCMS_MAX_BYTES", "3000000"), ("LCMS_API_URL", &endless)], CancellationToken::new()).await;
    let error = result.unwrap_err();
    assert!(error.contains("longer than 3000000 bytes"), "{error}");
    assert_eq!(setup.everything().await, yesterday);
}

#[tokio::test]
async fn a_slow_answer_ends_at_the_time_limit() {
    let setup = Setup::new().await;
    setup.load_fixture().await;
    let yesterday = setup.everything().await;
    let before_headers = raw_server(Behaviour::Silent).await;
    let within_body = raw_server(Behaviour::Stall).await;
    for url in [before_headers, within_body] {
        let (result, lines) = setup.run_with(&[("LCMS_TIMEOUT", "1"), ("LCMS_API_URL", &url)], CancellationToken::new()).await;
        let error = result.unwrap_err();
        assert!(error.contains("no complete answer within 1 s"), "{error}");
        assert!(lines.holds("Error on GET request to"));
    }
    assert_eq!(setup.everything().await, yesterday);
}

#[tokio::test]
async fn a_connection_cut_in_mid_body_leaves_yesterdays_content() {
    let setup = Setup::new().await;
    setup.load_fixture().await;
    let yesterday = setup.everything().await;
    let url = raw_server(Behaviour::Cut).await;
    let (result, lines) = setup.run_with(&[("LCMS_API_URL", &url)], CancellationToken::new()).await;
    assert!(result.unwrap_err().contains("GET http"), "the network's error is told, not the parser's");
    assert!(lines.holds("Error on GET request to"));
    assert_eq!(setup.everything().await, yesterday);
}

#[tokio::test]
async fn an_unreachable_api_fails_with_its_address() {
    let setup = Setup::new().await;
    let url = format!("http://127.0.0.1:{}", crate::support::free_port());
    let (result, lines) = setup.run_with(&[("LCMS_API_URL", &url)], CancellationToken::new()).await;
    let error = result.unwrap_err();
    assert!(error.contains(&url) && error.contains("refused"), "{error}");
    assert!(lines.holds(&format!("Error on GET request to {url}/databases/airtable")));
}

#[tokio::test]
async fn an_empty_or_false_body_succeeds_and_changes_nothing() {
    let setup = Setup::new().await;
    setup.load_fixture().await;
    let yesterday = setup.everything().await;
    for body in ["", "false", "null"] {
        setup.answers(ResponseTemplate::new(200).set_body_string(body)).await;
        let (result, lines) = setup.run().await;
        let Outcome::Done(value) = result.unwrap() else { panic!("{body:?}") };
        assert_eq!(value["emptyAnswer"], true, "an empty answer is told apart from no change");
        let warned =
            lines.records().into_iter().any(|r| r.level == tracing::Level::WARN && r.message.contains("answered with nothing"));
        assert!(warned, "{body:?}: {:?}", lines.messages());
        assert_eq!(lines.messages().last().unwrap(), "learningContent.run - Ended");
        assert_eq!(setup.everything().await, yesterday);
    }
}

/// Regression: only the copies compared their databases; this step filled the source's own tables.
#[tokio::test]
async fn production_is_never_written_under_whatever_url_it_is_the_target() {
    let setup = Setup::new().await;
    setup.load_fixture().await;
    let before = setup.everything().await;
    setup.answers_with(&content()).await;
    setup.db.batch_execute("delete from tutorials where id = (select min(id) from tutorials)").await.unwrap();
    let changed = setup.everything().await;
    assert_ne!(before, changed);
    for source in [setup.cluster.url("target"), setup.cluster.url("target").replace("127.0.0.1", "localhost")] {
        let (result, _) = setup.run_with(&[("SOURCE_DATABASE_URL", &source)], CancellationToken::new()).await;
        let Outcome::Refuse(reason) = result.unwrap() else { panic!("trying again would not help") };
        assert!(reason.contains("TARGET_DATABASE_URL and SOURCE_DATABASE_URL are one database"), "{reason}");
        assert_eq!(setup.everything().await, changed);
    }
    // What cannot be compared is not written either; another source does no harm.
    let nowhere = ("SOURCE_DATABASE_URL", "postgres://u@127.0.0.1:1/d");
    let (result, _) = setup.run_with(&[nowhere], CancellationToken::new()).await;
    assert!(result.unwrap_err().contains("making sure that this does not write to SOURCE_DATABASE_URL"));
    setup.cluster.create("production").await;
    let (result, _) =
        setup.run_with(&[("SOURCE_DATABASE_URL", &setup.cluster.url("production"))], CancellationToken::new()).await;
    assert!(matches!(result.unwrap(), Outcome::Done(_)));
    assert_eq!(setup.everything().await, before);
}

#[tokio::test]
async fn without_an_api_address_the_step_is_skipped_so_that_the_chain_goes_on() {
    let environment = Environment::of([("APP", "x")]);
    let reader = Reader::new(&environment);
    let kind = LearningContentReplication::from_settings(&reader);
    reader.finish().expect("nothing else is needed");
    assert!(kind.writes_to().is_none());
    let (run, lines) = Lines::of_run(CancellationToken::new());
    let context = JobContext { payload: Payload::default(), attempt: 1, attempts: 1, run, memory: None };
    assert!(matches!(kind.run(&context).await.unwrap(), Outcome::Done(_)));
    assert_eq!(lines.messages(), ["LCMS_API_URL is not set: learning content is skipped"]);
}

#[tokio::test]
async fn views_grants_and_foreign_keys_on_the_tables_outlive_the_load() {
    let setup = Setup::new().await;
    setup.load_fixture().await;
    setup
        .db
        .batch_execute(
            "create role reader; create view mine as select id, name from areas; grant select on mine, areas to reader;
             create table notes (area text references areas); insert into notes values ('area1')",
        )
        .await
        .unwrap();
    let mut content = content();
    content["areas"][0]["name"] = json!("today");
    setup.answers_with(&content).await;
    setup.loads().await;
    assert_eq!(setup.one::<String>("select name from mine where id = 'area1'").await, "today");
    assert!(
        setup
            .one::<bool>(
                "select has_table_privilege('reader', 'areas', 'select') and has_table_privilege('reader', 'mine', 'select')"
            )
            .await
    );
    assert_eq!(setup.one::<i64>("select count(*) from notes join areas on areas.id = area").await, 1);
}

/// A reader in a loop, and one whose snapshot is from before the load.
#[tokio::test]
async fn readers_never_see_an_empty_or_mixed_table() {
    let setup = Setup::new().await;
    setup.load_fixture().await;
    let reader = setup.cluster.client("target").await;
    let old = setup.cluster.client("target").await;
    old.batch_execute("begin isolation level repeatable read; select count(*) from courses").await.unwrap();
    let stop = CancellationToken::new();
    let watching = tokio::spawn({
        let stop = stop.clone();
        async move {
            let mut seen = Vec::new();
            while !stop.is_cancelled() {
                let row =
                    reader.query_one("select (select count(*) from areas), (select count(*) from tutorials)", &[]).await.unwrap();
                seen.push((row.get::<_, i64>(0), row.get::<_, i64>(1)));
            }
            seen
        }
    });
    for extra in 1..=5 {
        let mut content = content();
        for table in ["areas", "tutorials"] {
            for number in 0..extra {
                content[table].as_array_mut().unwrap().push(json!({"id": format!("new{number}")}));
            }
        }
        setup.answers_with(&content).await;
        setup.loads().await;
    }
    stop.cancel();
    let seen = watching.await.unwrap();
    assert!(!seen.is_empty() && seen.iter().all(|(areas, tutorials)| *areas >= 2 && areas + 1 == *tutorials), "{seen:?}");
    let before: i64 = old.query_one("select count(*) from areas", &[]).await.unwrap().get(0);
    assert_eq!(before, 2, "an older snapshot still sees its content");
}

#[tokio::test]
async fn a_table_with_other_columns_is_made_again_with_what_hung_on_it() {
    let setup = Setup::new().await;
    setup.load_fixture().await;
    setup
        .db
        .batch_execute(
            "create role reader;
             alter table skills add column old text;
             create index extra on skills (name);
             create view fits as select id, level from skills;
             create view \"On Top\" as select count(*) as n from fits;
             create materialized view kept as select id from skills; create unique index on kept (id);
             create view lost as select old from skills;
             create table notes (skill text references skills);
             comment on table skills is 'it''s ours'; comment on view fits is 'mine';
             grant select on skills, fits to reader",
        )
        .await
        .unwrap();
    let (result, lines) = {
        setup.answers_with(&content()).await;
        setup.run().await
    };
    result.unwrap();
    assert!(lines.holds("the columns of `skills` are not those of the mapping"));
    assert_eq!(setup.one::<i64>("select n from \"On Top\"").await, 6);
    assert_eq!(setup.one::<i64>("select count(*) from kept").await, 6);
    assert_eq!(
        setup.one::<String>("select obj_description('skills'::regclass) || obj_description('fits'::regclass)").await,
        "it's oursmine"
    );
    assert!(
        setup
            .one::<bool>(
                "select has_table_privilege('reader', 'skills', 'select') and has_table_privilege('reader', 'fits', 'select')"
            )
            .await
    );
    assert!(setup.one::<bool>("select to_regclass('extra') is not null and to_regclass('kept_id_idx') is not null").await);
    assert!(setup.one::<bool>("select exists (select from pg_constraint where confrelid = 'skills'::regclass)").await);
    assert!(setup.one::<bool>("select to_regclass('lost') is null").await);
    let told: Vec<String> = lines.messages().into_iter().filter(|m| m.contains("no longer fits")).collect();
    assert!(told.len() == 1 && told[0].contains("VIEW public.lost") && told[0].contains("skills.old"), "{told:?}");
}

#[tokio::test]
async fn a_name_taken_by_a_view_is_refused_before_anything_changes() {
    let setup = Setup::new().await;
    setup.db.batch_execute("create view tutorials as select 1 as x").await.unwrap();
    setup.answers_with(&content()).await;
    let error = setup.run().await.0.unwrap_err();
    assert!(error.contains("`public.tutorials` exists and is no plain table"), "{error}");
    assert!(setup.one::<bool>("select to_regclass('areas') is null").await);
}

#[tokio::test]
async fn another_mapping_can_be_given_as_a_file() {
    let setup = Setup::new().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        "[[table]]\nname = \"thematics\"\ncolumns = [{ name = \"label\", type = \"text\", path = \"name\" }]\n",
    )
    .unwrap();
    setup.answers_with(&content()).await;
    let mapping = file.path().display().to_string();
    setup.run_with(&[("LEARNING_CONTENT_MAPPING", &mapping)], CancellationToken::new()).await.0.unwrap();
    assert_eq!(setup.one::<String>("select label from thematics").await, "ignored");
    assert!(setup.one::<bool>("select to_regclass('areas') is null").await);
}

#[tokio::test]
async fn a_stopped_run_leaves_no_session_behind() {
    let setup = Setup::new().await;
    setup.load_fixture().await;
    let yesterday = setup.everything().await;
    let url = raw_server(Behaviour::Stall).await;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    let sessions = "select count(*) from pg_stat_activity where application_name = 'bullwork: learning content'";
    let watcher = async {
        eventually("the load copies", Duration::from_secs(20), || async { setup.one::<i64>(sessions).await == 1 }).await;
        stopping.cancel();
    };
    let more = [("LCMS_API_URL", url.as_str())];
    let (outcome, ()) = tokio::join!(setup.run_with(&more, stop), watcher);
    assert!(outcome.0.unwrap_err().contains("told to stop"));
    eventually("the session ends", Duration::from_secs(20), || async { setup.one::<i64>(sessions).await == 0 }).await;
    assert_eq!(setup.everything().await, yesterday);
}

#[tokio::test]
async fn a_server_that_dies_in_mid_load_is_noticed_at_once_and_keeps_yesterdays_content() {
    let mut setup = Setup::new().await;
    setup.load_fixture().await;
    let yesterday = setup.everything().await;
    let url = raw_server(Behaviour::Stall).await;
    let sessions = "select count(*) from pg_stat_activity where application_name = 'bullwork: learning content'";
    let killer = async {
        eventually("the load copies", Duration::from_secs(20), || async { setup.one::<i64>(sessions).await == 1 }).await;
        setup.cluster.server().signal(nix::sys::signal::Signal::SIGQUIT);
    };
    let more = [("LCMS_API_URL", url.as_str())];
    let loading = tokio::time::timeout(Duration::from_secs(20), setup.run_with(&more, CancellationToken::new()));
    let (outcome, ()) = tokio::join!(loading, killer);
    let (result, _) = outcome.expect("it does not wait for the slow answer");
    assert!(result.is_err());
    setup.cluster.restart();
    setup.db = setup.cluster.client("target").await;
    assert_eq!(setup.everything().await, yesterday);
}

/// 60 MB of content through a process whose memory is measured.
#[tokio::test]
async fn memory_does_not_grow_with_the_answer() {
    let setup = Setup::new().await;
    let url = raw_server(Behaviour::Large).await;
    let peak_before = peak_memory();
    let (result, _) = setup.run_with(&[("LCMS_API_URL", &url)], CancellationToken::new()).await;
    let Outcome::Done(value) = result.unwrap() else { panic!() };
    assert_eq!(value["inserted"], json!(60_000));
    let grown = peak_memory() - peak_before;
    assert!(grown < 40_000, "the peak grew by {grown} kB");
}

/// `VmHWM` in kB.
fn peak_memory() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells it");
    let line = status.lines().find(|l| l.starts_with("VmHWM")).expect("Linux tells it");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).expect("a number of kB")
}

#[derive(Clone, Copy)]
enum Behaviour {
    /// Accepts and says nothing.
    Silent,
    /// Half a body, then nothing.
    Stall,
    /// Half a body, then the end of the connection.
    Cut,
    /// A body without end and without length.
    Endless,
    /// 60 000 areas of 1 kB.
    Large,
}

/// A server for what wiremock does not do; returns its address.
async fn raw_server(behaviour: Behaviour) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it listens"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let body = content().to_string();
                match behaviour {
                    Behaviour::Silent => std::future::pending().await,
                    Behaviour::Stall | Behaviour::Cut => {
                        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                        let _ = stream.write_all(format!("{head}{}", &body[..2000]).as_bytes()).await;
                        if matches!(behaviour, Behaviour::Stall) {
                            std::future::pending::<()>().await;
                        }
                    }
                    Behaviour::Endless => {
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"other\":[0").await;
                        while stream.write_all(&b",0".repeat(10_000)).await.is_ok() {}
                    }
                    Behaviour::Large => {
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"areas\":[").await;
                        let name = "x".repeat(1000);
                        for id in 0..60_000 {
                            let comma = if id == 0 { "" } else { "," };
                            if stream
                                .write_all(format!("{comma}{{\"id\":\"{id}\",\"name\":\"{name}\"}}").as_bytes())
                                .await
                                .is_err()
                            {
                                return;
                            }
                        }
                        let rest: String = TABLES[1..].iter().map(|(table, _)| format!(",\"{table}\":[]")).collect();
                        let _ = stream.write_all(format!("]{rest}}}").as_bytes()).await;
                    }
                }
            });
        }
    });
    url
}
