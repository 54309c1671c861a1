//! What an archive holds and how it was made: a JSON object beside it, written last and never changed.
//! An archive without one is not complete, and no verb lists it.
//!
//! It holds enough to restore by hand and to prove a restored database equal, and no secret: recipients are
//! public keys. Members that a later version adds are ignored by this one; a format that this one does not
//! know is refused.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::name::{Compression, Name, Sealing};

/// The format that is written; every earlier one is read.
pub const FORMAT: u32 = 1;

/// The object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Version of this format.
    pub format: u32,
    /// Name of the archive.
    pub archive: Name,
    /// When the run began; the snapshot is hardly younger.
    pub started_at: DateTime<Utc>,
    /// When the last byte had been stored.
    pub finished_at: DateTime<Utc>,
    /// A person's words on why it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotation: Option<String>,
    /// Why there had to be an archive.
    pub reason: Reason,
    /// Business tables that differ from the archive before, as people write them; empty for the first archive.
    #[serde(default)]
    pub changed_tables: Vec<String>,
    /// Whether tables, functions or anything else is defined otherwise than at the archive before.
    #[serde(default)]
    pub definitions_changed: bool,
    /// Where it comes from.
    pub database: Origin,
    /// What made it.
    pub tools: Tools,
    /// How it is packed.
    pub packing: Packing,
    /// What is in the tar, in its order.
    pub members: Vec<Member>,
    /// Groups of tables without a fixture, because they had no rows.
    #[serde(default)]
    pub empty_groups: Vec<String>,
    /// All tables with rows of their own, by schema and name.
    pub tables: Vec<Table>,
    /// Large objects; absent in archives of versions that did not look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub large_objects: Option<LargeObjects>,
    /// SHA-256 of the definitions, in hex; a restored copy has the same.
    pub schema_sha256: String,
    /// Roles that own something or hold rights in the database. `roles.sql` in the archive makes those that are missing.
    #[serde(default)]
    pub roles: Vec<String>,
    /// What a restore needs besides; absent in archives of versions that did not look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demands: Option<Demands>,
    /// The tar before it was made smaller.
    pub plain: Content,
    /// The object in the store.
    pub stored: Content,
}

/// Why an archive was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// There was none to compare with.
    First,
    /// Something differs.
    Changed,
    /// A person asked for it.
    Forced,
}

/// The database at the moment of its snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// Its name.
    pub name: String,
    /// Its number in the server.
    pub oid: u32,
    /// The server's identifier; absent where asking is forbidden.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_identifier: Option<String>,
    /// `server_version`, such as `15.6 (Debian 15.6-0+deb12u1)`.
    pub server_version: String,
    /// Its character set.
    pub encoding: String,
    /// Whether the server was a standby.
    #[serde(default)]
    pub standby: bool,
    /// `pg_current_snapshot()`
    pub snapshot: String,
}

/// Programs and their versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tools {
    /// Ours.
    pub bullwork: String,
    /// `pg_dump`'s; `psql` of at least this major version reads what it wrote.
    pub pg_dump: String,
}

/// From the tar to the object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Packing {
    /// The program that undoes it has its name.
    pub compression: Compression,
    /// Its level.
    pub level: u32,
    /// Who closed it.
    pub sealing: Sealing,
    /// Public keys of those who can open it.
    #[serde(default)]
    pub recipients: Vec<String>,
    /// Most bytes of one part of a member.
    pub part_bytes: u64,
}

/// A file of the archive. In the tar it lies in parts, `NAME.000001`, `NAME.000002` …, which joined in this
/// order are the file: a tar tells each entry's size before its content, and nobody knows the size of a
/// dump before its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Without the number.
    pub name: String,
    /// What to do with it.
    pub kind: MemberKind,
    /// The group of tables of a fixture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The tables of a fixture that had rows, as people write them, each after those that it refers to;
    /// fixtures stand in such an order too, as far as tables do not refer to each other in a circle.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
    /// How many parts.
    pub parts: u32,
    /// Of all parts.
    #[serde(flatten)]
    pub content: Content,
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberKind {
    /// Words for a person who has only the archive.
    Readme,
    /// SQL that makes missing roles.
    Roles,
    /// SQL that makes the whole database, for `psql`.
    Sql,
    /// Rows as Django's `loaddata` reads them.
    Fixture,
}

/// Size and digest of some bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Content {
    /// How many.
    pub bytes: u64,
    /// In hex.
    pub sha256: String,
}

/// A table's rows at the snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    /// Schema.
    pub schema: String,
    /// Name inside the schema.
    pub name: String,
    /// How many rows, those of partitions with their table's.
    pub rows: u64,
    /// Of the rows' values, whatever their order; absent for tables outside the business set, which are
    /// only counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

/// Large objects at the snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LargeObjects {
    /// How many, those that hold nothing too.
    pub objects: u64,
    /// Of what they hold; absent where there are none, where only some tables are business (they are only counted
    /// then), and where the role may not read `pg_largeobject`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

/// What a restore asks of the server, and of a role that is no superuser.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Demands {
    /// Roles that own something, which the role has to be a member of.
    pub owners: Vec<Owner>,
    /// Extensions that have to be there, and trusted.
    pub extensions: Vec<String>,
    /// Some of what only a superuser makes, as people write it.
    pub superuser: Vec<String>,
}

/// A role that owns something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// Its name.
    pub role: String,
    /// Schemas of others that some of it is in, with their owners' names; an empty one means the owner of the database.
    #[serde(default)]
    pub guest_in: BTreeMap<String, String>,
}

/// The text is no manifest that this version can use.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not of this shape.
    #[error("the manifest cannot be read")]
    Shape(#[from] serde_json::Error),
    /// From a later version.
    #[error("the manifest has format {0}, and this version reads up to {FORMAT}; use a newer bullwork")]
    Newer(u32),
}

impl Origin {
    /// Whether `other` is a database of its own: restored, or on another server. There objects have other numbers.
    #[must_use]
    pub fn is_other_than(&self, other: &Origin) -> bool {
        let another_server =
            matches!((&self.system_identifier, &other.system_identifier), (Some(ours), Some(theirs)) if ours != theirs);
        self.oid != other.oid || another_server
    }
}

impl Manifest {
    /// Reads one.
    ///
    /// # Errors
    /// When it is none, or one of a later format.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        /// Known before the rest is, which may differ.
        #[derive(Deserialize)]
        struct Versioned {
            format: u32,
        }
        let Versioned { format } = serde_json::from_slice(bytes)?;
        if format > FORMAT {
            return Err(ManifestError::Newer(format));
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// As it is stored, for people too.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("texts and numbers are JSON");
        text.push(b'\n');
        text
    }

    /// The member of this kind.
    #[must_use]
    pub fn member(&self, kind: MemberKind) -> Option<&Member> {
        self.members.iter().find(|member| member.kind == kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(bytes: u64) -> Content {
        Content { bytes, sha256: "ab".repeat(32) }
    }

    fn example() -> Manifest {
        Manifest {
            format: FORMAT,
            archive: "2026-01-02T03:04:05.tar.zst.age".parse().unwrap(),
            started_at: "2026-01-02T03:04:05.5Z".parse().unwrap(),
            finished_at: "2026-01-02T03:04:09Z".parse().unwrap(),
            annotation: Some("before the move – done by « me »".to_owned()),
            reason: Reason::Changed,
            changed_tables: vec!["auth_user".to_owned()],
            definitions_changed: false,
            database: Origin {
                name: "shop".to_owned(),
                oid: 16384,
                system_identifier: None,
                server_version: "15.6".to_owned(),
                encoding: "UTF8".to_owned(),
                standby: false,
                snapshot: "100:100:".to_owned(),
            },
            tools: Tools { bullwork: "0.1.0".to_owned(), pg_dump: "15.6".to_owned() },
            packing: Packing {
                compression: Compression::Zstd,
                level: 3,
                sealing: Sealing::Age,
                recipients: vec!["age1x".to_owned()],
                part_bytes: 1 << 23,
            },
            members: vec![Member {
                name: "database.sql".to_owned(),
                kind: MemberKind::Sql,
                group: None,
                tables: vec![],
                parts: 2,
                content: content(9),
            }],
            empty_groups: vec![],
            tables: vec![Table { schema: "public".to_owned(), name: "auth_user".to_owned(), rows: 3, fingerprint: None }],
            large_objects: Some(LargeObjects { objects: 2, fingerprint: Some("text:1:2".to_owned()) }),
            schema_sha256: "cd".repeat(32),
            roles: vec!["app".to_owned()],
            demands: Some(Demands {
                owners: vec![Owner { role: "app".to_owned(), guest_in: BTreeMap::from([("public".to_owned(), String::new())]) }],
                extensions: vec!["citext".to_owned()],
                superuser: vec!["event trigger watch".to_owned()],
            }),
            plain: content(10),
            stored: content(11),
        }
    }

    #[test]
    fn a_manifest_reads_back() {
        let manifest = example();
        assert_eq!(Manifest::parse(&manifest.to_json()).unwrap(), manifest);
        let json: serde_json::Value = serde_json::from_slice(&manifest.to_json()).unwrap();
        assert_eq!(json["members"][0]["bytes"], 9, "{json}");
        assert_eq!(json["packing"]["compression"], "zstd", "{json}");
    }

    #[test]
    fn members_of_a_later_version_are_ignored_and_a_later_format_is_refused() {
        let mut json = serde_json::to_value(example()).unwrap();
        json["color"] = "blue".into();
        assert_eq!(Manifest::parse(json.to_string().as_bytes()).unwrap(), example());
        let error = Manifest::parse(br#"{"format": 2, "archive": {}}"#).unwrap_err();
        assert!(error.to_string().contains("newer bullwork"), "{error}");
        assert!(Manifest::parse(b"{}").is_err() && Manifest::parse(b"not json").is_err());
    }
}
