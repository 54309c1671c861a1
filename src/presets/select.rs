//! `select`: a preset that is ready here is put into the cluster.
//!
//! ```text
//! beside the running cluster   the preset is copied
//! application, PostgreSQL      are stopped                      (fast mode: the application only)
//! selected.json                says that something is unfinished
//! copy and cluster             change places, in one step
//! PostgreSQL, application      are started; selected.json says which preset it is
//! ```
//!
//! Killed anywhere, the cluster holds the old preset or the new one, whole, and `select` again does the rest.

use serde_json::json;

use super::cluster::Cluster;
use super::local::{Local, Selected};
use super::settings::Mode;
use super::{Done, PresetError, Presets, place};
use crate::worker::Run;

impl Presets {
    pub(super) async fn select(&self, run: &Run, name: &str, clean: bool) -> Result<Done, PresetError> {
        let local = Local::open(&self.settings)?;
        let _held = local.hold()?;
        let cluster = Cluster::new(&self.settings, run, &local);
        cluster.check_place().await?;
        let selected = local.selected()?;
        let note = local.note(name)?.filter(|note| note.ready > 0);
        let note = note.ok_or_else(|| {
            PresetError::Refused(format!(
                "`{name}` is not ready here; run pull-and-update-local (`db-p ls where=local` lists what is)"
            ))
        })?;
        let same = selected.of == local.of() && selected.name.as_deref() == Some(name) && !selected.clean && !selected.scratch;
        if same && !clean {
            cluster.start().await?;
            cluster.start_app().await?;
            if self.settings.mode == Mode::Fast {
                // Killed after the switch, one leaves what it switched out, and no next copy.
                cluster.drop_left().await?;
                cluster.copy_templates(&note).await?;
            }
            return Ok(Done::said(
                format!("`{name}` is selected already, and runs"),
                json!({"selected": name, "changed": false}),
            ));
        }
        let unfinished =
            Selected { of: local.of().to_owned(), name: Some(name.to_owned()), revision: note.ready, clean: true, scratch: true };
        match self.settings.mode {
            Mode::Cluster => {
                let kept = local.directory(&note).filter(|path| path.join("PG_VERSION").is_file());
                let kept = kept.ok_or_else(|| gone(name))?;
                let data = &self.settings.data_directory;
                let spare = place::spare(data)?;
                cluster.phase("copy");
                place::prepare(run, &local, &kept, &spare).await?;
                cluster.stop_app().await?;
                cluster.stop().await.map_err(|error| unchanged(&error))?;
                local.select(&unfinished)?;
                place::exchange(&spare, data)?;
                run.info(format!("`{name}` is in place"));
                cluster.start().await.map_err(|error| in_place(name, &error))?;
            }
            Mode::Fast => {
                if note.templates.is_empty() {
                    return Err(gone(name));
                }
                cluster.start().await?;
                // What a killed one switched out has the names that this one needs.
                cluster.drop_left().await?;
                cluster.copy_templates(&note).await?;
                cluster.stop_app().await?;
                local.select(&unfinished)?;
                cluster.switch_templates(&note).await?;
                run.info(format!("`{name}` is in place"));
            }
        }
        local.select(&Selected { clean: false, scratch: false, ..unfinished })?;
        cluster.start_app().await.map_err(|error| in_place(name, &error))?;
        if self.settings.mode == Mode::Fast {
            run.info(format!("`{name}` runs; the next copy is being made"));
            cluster.drop_left().await?;
            cluster.copy_templates(&note).await?;
        }
        Ok(Done::said(
            format!("`{name}` is selected (revision {}), and runs", note.ready),
            json!({"selected": name, "revision": note.ready, "changed": true}),
        ))
    }

    pub(super) async fn start_everything(&self, run: &Run) -> Result<Done, PresetError> {
        let local = Local::open(&self.settings)?;
        let cluster = Cluster::new(&self.settings, run, &local);
        cluster.start().await?;
        cluster.start_app().await?;
        Ok(Done::said("PostgreSQL and the application run", serde_json::Value::Null))
    }
}

fn gone(name: &str) -> PresetError {
    PresetError::Refused(format!(
        "what was ready of `{name}` is gone, or was kept in another DBP_MODE; run pull-and-update-local"
    ))
}

/// The switch is not done, though the application was told to stop.
fn unchanged(error: &PresetError) -> PresetError {
    match error {
        PresetError::Stopped(stopped) => (*stopped).into(),
        error => PresetError::Refused(format!(
            "{error}; nothing was changed in the cluster; mend that and select it again, or run start-app to go on as before"
        )),
    }
}

/// The switch is done; what came after it is not.
fn in_place(name: &str, error: &PresetError) -> PresetError {
    match error {
        PresetError::Stopped(stopped) => (*stopped).into(),
        error => PresetError::Refused(format!("`{name}` is in place, but {error}; mend that and select it again")),
    }
}
