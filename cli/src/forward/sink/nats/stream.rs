//! The stream as it must be: the settings that exactly-once delivery rests on.

use super::options::Settings;
use super::subject::{Template, matches};
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, PersistenceMode, RetentionPolicy, StorageType,
};

/// Oldest server with atomic batches.
pub const SERVER_WITH_BATCHES: (i64, i64, i64) = (2, 12, 0);

/// Returns the configuration of a stream for these settings, where the server has one for it.
pub fn suitable(settings: &Settings) -> Config {
    Config {
        name: settings.stream.clone(),
        subjects: vec![settings.template.filter()],
        storage: StorageType::File,
        retention: RetentionPolicy::Limits,
        // A full stream refuses items, which then stay in their rings.
        discard: DiscardPolicy::New,
        num_replicas: 1,
        allow_atomic_publish: !settings.at_least_once,
        ..Config::default()
    }
}

/// Returns the words for each setting of the stream that breaks exactly-once delivery, with its
/// remedy. None: the stream is as it must be.
pub fn faults(config: &Config, settings: &Settings) -> Vec<String> {
    let mut faults = Vec::new();
    let edit = format!("nats stream edit {}", config.name);
    let mut unless = |good: bool, fault: String| {
        if !good {
            faults.push(fault);
        }
    };
    let takes_items = config.mirror.is_none() && !config.sealed;
    unless(takes_items, "it is a mirror or sealed, and takes no items: name another stream".into());
    unless(!config.no_ack, "it acknowledges nothing (no_ack): set no_ack to false".into());
    if settings.at_least_once {
        return faults;
    }
    unless(
        config.allow_atomic_publish,
        format!("it takes no atomic batches: set allow_atomic (`{edit} --allow-batch`)"),
    );
    unless(
        config.retention == RetentionPolicy::Limits,
        "its retention removes what was read, and with it the record of what has arrived: make it \
         anew with retention 'limits'"
            .into(),
    );
    unless(
        !config.persist_mode.is_some_and(|mode| mode == PersistenceMode::Async),
        "it acknowledges before it writes (persist_mode async): make it anew with persist_mode \
         'default'"
            .into(),
    );
    unless(
        config.subject_transform.is_none(),
        "it renames subjects (subject_transform): remove the transform".into(),
    );
    unless(
        settings.accept_expiry || !loses_messages(config),
        format!(
            "its limits ({}) remove old messages, among them a ring's last one, which says what \
             has arrived: set discard to 'new' and max_age to 0 (`{edit} --discard new --max-age \
             0s`), or accept it with --accept-expiry",
            limits(config)
        ),
    );
    faults
}

/// Whether messages disappear that nobody deleted.
fn loses_messages(config: &Config) -> bool {
    !limits(config).is_empty()
}

/// Returns the limits that remove messages, by their names.
fn limits(config: &Config) -> String {
    let discards_old = config.discard == DiscardPolicy::Old;
    let limits = [
        ("max_age", !config.max_age.is_zero()),
        ("max_msgs with discard old", discards_old && config.max_messages > 0),
        ("max_bytes with discard old", discards_old && config.max_bytes > 0),
        (
            "max_msgs_per_subject",
            config.max_messages_per_subject > 0 && !config.discard_new_per_subject,
        ),
    ];
    let names: Vec<_> = limits.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect();
    names.join(", ")
}

/// Returns the words for a subject that the stream does not take; `None` if it takes it.
pub fn refusal(config: &Config, subject: &str, template: &Template) -> Option<String> {
    if config.subjects.iter().any(|filter| matches(filter, subject)) {
        return None;
    }
    let (stream, filter) = (&config.name, template.filter());
    let mut subjects = config.subjects.clone();
    subjects.push(filter);
    Some(format!(
        "the stream {stream} does not take the subject {subject}: add it (`nats stream edit \
         {stream} --subjects '{}'`), or change --subject",
        subjects.join(",")
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::options::NatsOptions;
    use super::*;
    use std::time::Duration;

    fn settings(change: impl FnOnce(&mut NatsOptions)) -> Settings {
        let mut options = NatsOptions {
            stream: Some("VMS".to_owned()),
            subject: Some("vm.{ring}.log".to_owned()),
            ..NatsOptions::default()
        };
        change(&mut options);
        options.settings("nats://localhost").unwrap()
    }

    #[test]
    fn stream_that_is_made_has_no_fault() {
        let settings = settings(|_| {});
        let stream = suitable(&settings);
        assert_eq!(faults(&stream, &settings), Vec::<String>::new());
        assert_eq!(refusal(&stream, "vm.a.log", &settings.template), None);
    }

    #[test]
    fn each_unsuitable_setting_is_named_with_its_remedy() {
        let settings = settings(|_| {});
        let change = |change: fn(&mut Config)| {
            let mut config = suitable(&settings);
            change(&mut config);
            faults(&config, &settings)
        };
        for (found, setting) in [
            (change(|config| config.sealed = true), "sealed"),
            (change(|config| config.no_ack = true), "no_ack"),
            (change(|config| config.allow_atomic_publish = false), "allow_atomic"),
            (change(|config| config.retention = RetentionPolicy::WorkQueue), "retention"),
            (change(|config| config.retention = RetentionPolicy::Interest), "retention"),
            (change(|config| config.persist_mode = Some(PersistenceMode::Async)), "persist_mode"),
            (change(|config| config.max_age = Duration::from_secs(60)), "max_age"),
            (
                change(|config| {
                    (config.max_bytes, config.discard) = (1 << 20, DiscardPolicy::Old);
                }),
                "max_bytes with discard old",
            ),
            (
                change(|config| {
                    (config.max_messages, config.discard) = (10, DiscardPolicy::Old);
                }),
                "max_msgs with discard old",
            ),
            (change(|config| config.max_messages_per_subject = 5), "max_msgs_per_subject"),
        ] {
            assert_eq!(found.len(), 1, "{setting}: {found:?}");
            assert!(found[0].contains(setting), "{setting}: {found:?}");
        }
        // A full stream that refuses keeps what it has.
        assert!(change(|config| config.max_bytes = 1 << 20).is_empty());
    }

    #[test]
    fn stream_that_forgets_is_taken_when_that_is_accepted() {
        let settings = settings(|options| options.accept_expiry = true);
        let config = Config { max_age: Duration::from_secs(60), ..suitable(&settings) };
        assert!(faults(&config, &settings).is_empty());
    }

    #[test]
    fn stream_for_repeats_needs_neither_batches_nor_memory() {
        let settings = settings(|options| options.at_least_once = true);
        let config = Config { max_age: Duration::from_secs(60), ..suitable(&settings) };
        assert!(!config.allow_atomic_publish);
        assert!(faults(&config, &settings).is_empty());
    }

    #[test]
    fn subject_outside_the_stream_is_refused_with_what_to_add() {
        let settings = settings(|_| {});
        let config = Config { subjects: vec!["logs.>".into()], ..suitable(&settings) };
        let words = refusal(&config, "vm.a.log", &settings.template).unwrap();
        assert!(words.contains("'logs.>,vm.*.log'"), "{words}");
    }
}
