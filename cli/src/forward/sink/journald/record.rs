//! The journal's record of an item, and which fields of the guest's it keeps.
//!
//! A guest may write any entry into its ring. So that no guest can speak for another one or for the
//! host, the fields that say where a record comes from are the sink's alone; a guest's field of
//! such a name is renamed and keeps its value.

use super::super::{Item, RingFacts};
use super::export::{Field, LONGEST_NAME, parse, put};
use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, Write};
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// The field with the name of the ring.
const RING: &str = "BLOCKRING_RING";
/// The field with the ring's UUID, as 32 hexadecimal digits.
pub const UUID: &str = "BLOCKRING_UUID";
/// The field with the position of the item.
const POSITION: &str = "BLOCKRING_POSITION";
/// The field with the position behind the item.
pub const NEXT: &str = "BLOCKRING_NEXT";
/// The field with the producer's time, in microseconds since 1970.
const TIME: &str = "BLOCKRING_TIME";
/// The field with the boot of the host in which the record was written.
pub const HOST_BOOT: &str = "BLOCKRING_HOST_BOOT";

/// Begins the names of fields that are the sink's alone.
const OURS: &str = "BLOCKRING_";

/// Replaces what a guest may not claim at the front of a name.
const GUEST: &str = "GUEST_";

/// Times in microseconds from which on the journal takes none, and the same for its uptimes.
const END_OF_TIME: u64 = 1 << 55;

/// Where a record goes to.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// The ring's own journal file, written in this boot of the host.
    File(&'a str),
    /// The journal of this host, among the records of its own programs.
    Local,
}

/// Writes the record of an item: its fields, without an empty line behind them.
pub fn write(
    out: &mut impl Write,
    ring: &RingFacts,
    item: &Item,
    payload: &[u8],
    place: Place<'_>,
) -> io::Result<()> {
    let name = ring.name.as_bytes();
    let entry = parse(payload).and_then(Entry::new);
    let time = item.time.and_then(microseconds);
    match place {
        Place::File(host_boot) => {
            let own = entry.as_ref().and_then(|entry| entry.time);
            let now = || microseconds(SystemTime::now());
            put_number(out, "__REALTIME_TIMESTAMP", own.or(time).or_else(now).unwrap_or(1))?;
            let (boot, uptime) = match entry.as_ref().and_then(|entry| entry.boot) {
                Some(boot) => boot,
                // Journals sort the records of one boot by uptime: by this a ring's records keep
                // the ring's order whatever its producer's clock does.
                None => (ring.uuid, item.position.get().min(END_OF_TIME - 1)),
            };
            put_number(out, "__MONOTONIC_TIMESTAMP", uptime)?;
            put(out, "_BOOT_ID", boot.simple().to_string().as_bytes())?;
            put(out, "_HOSTNAME", name)?;
            put(out, HOST_BOOT, host_boot.as_bytes())?;
            // Without a time of the entry's own, the record's is the producer's.
            if let Some(time) = time.filter(|_| own.is_some()) {
                put_number(out, TIME, time)?;
            }
            if !entry.as_ref().is_some_and(|entry| entry.has("SYSLOG_IDENTIFIER")) {
                put(out, "SYSLOG_IDENTIFIER", name)?;
            }
        }
        Place::Local => {
            put(out, "SYSLOG_IDENTIFIER", name)?;
            if let Some(time) = time {
                put_number(out, TIME, time)?;
            }
        }
    }
    put(out, RING, name)?;
    put(out, UUID, ring.uuid.simple().to_string().as_bytes())?;
    put_number(out, POSITION, item.position)?;
    put_number(out, NEXT, item.next)?;
    let Some(entry) = entry else { return put(out, "MESSAGE", payload) };
    entry.fields.iter().try_for_each(|field| put_guest(out, field, &entry, place))
}

fn put_number(out: &mut impl Write, name: &str, number: impl Display) -> io::Result<()> {
    writeln!(out, "{name}={number}")
}

/// Returns the microseconds since 1970, where the journal takes them.
fn microseconds(time: SystemTime) -> Option<u64> {
    let passed = time.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(passed.as_micros()).ok().filter(|time| (1..END_OF_TIME).contains(time))
}

/// An item that is an entry of a journal.
struct Entry<'a> {
    fields: Vec<Field<'a>>,
    /// Its time in microseconds since 1970, if it has a sound one.
    time: Option<u64>,
    /// Its boot, and the microseconds since that, if it has both.
    boot: Option<(Uuid, u64)>,
}

impl<'a> Entry<'a> {
    /// Takes fields for an entry if they have a message, or a time as journals write it; else they
    /// are a text that only looks so.
    fn new(fields: Vec<Field<'a>>) -> Option<Self> {
        let mut entry = Self { fields, time: None, boot: None };
        if !entry.has("MESSAGE") && !entry.has("__REALTIME_TIMESTAMP") {
            return None;
        }
        entry.time = entry.number("__REALTIME_TIMESTAMP").filter(|time| *time > 0);
        let uptime = entry.number("__MONOTONIC_TIMESTAMP");
        entry.boot = entry.one::<Uuid>("_BOOT_ID").zip(uptime);
        Some(entry)
    }

    fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|field| field.name == name)
    }

    /// Returns the first value of that name, if it is sound.
    fn one<T: FromStr>(&self, name: &str) -> Option<T> {
        let field = self.fields.iter().find(|field| field.name == name)?;
        std::str::from_utf8(field.value).ok()?.parse().ok()
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.one(name).filter(|number| *number < END_OF_TIME)
    }
}

/// Writes a guest's field under the name that it may have there.
fn put_guest(
    out: &mut impl Write,
    field: &Field<'_>,
    entry: &Entry<'_>,
    place: Place<'_>,
) -> io::Result<()> {
    let is_used = matches!(place, Place::File(_))
        && match field.name {
            "__REALTIME_TIMESTAMP" => entry.time.is_some(),
            "_BOOT_ID" | "__MONOTONIC_TIMESTAMP" => entry.boot.is_some(),
            _ => false,
        };
    if is_used {
        return Ok(());
    }
    if matches!(place, Place::Local) && (field.name, field.value) == ("PRIORITY", b"0") {
        // The journal shows an emergency to all users of the host.
        put(out, "PRIORITY", b"1")?;
        return put(out, &guest_name(field.name), field.value);
    }
    let name = match place {
        _ if field.name.starts_with(OURS) => guest_name(field.name),
        Place::File(_) if is_files_own(field.name) => guest_name(field.name),
        Place::Local if is_hosts_own(field.name) => guest_name(field.name),
        _ => field.name.into(),
    };
    put(out, &name, field.value)
}

/// Returns whether the name has a meaning of its own to what writes journal files.
fn is_files_own(name: &str) -> bool {
    name.starts_with("__") || matches!(name, "_HOSTNAME" | "_BOOT_ID")
}

/// Returns whether the host's journal believes a field of that name to be of the host: those that
/// begin with an underscore it adds itself, the others say of which of the host's units, processes
/// or crashes a record tells.
fn is_hosts_own(name: &str) -> bool {
    ["_", "OBJECT_", "COREDUMP_"].iter().any(|front| name.starts_with(front))
        || matches!(name, "SYSLOG_IDENTIFIER" | "UNIT" | "USER_UNIT")
}

fn guest_name(name: &str) -> Cow<'static, str> {
    let mut renamed = format!("{GUEST}{}", name.trim_start_matches('_'));
    renamed.truncate(LONGEST_NAME);
    renamed.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use shared_block_ring::Position;
    use std::time::Duration;

    const BOOT: &str = "0123456789abcdef0123456789abcdef";
    const GUEST_BOOT: &str = "00112233445566778899aabbccddeeff";

    fn record(payload: &[u8], place: Place<'_>) -> Vec<u8> {
        let position = Position::new(40).unwrap();
        let ring = RingFacts { name: "vm1".to_owned(), uuid: Uuid::from_u128(7), position };
        let item = Item {
            range: 0..payload.len(),
            position,
            next: Position::new(64).unwrap(),
            time: Some(UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_001)),
        };
        let mut bytes = Vec::new();
        write(&mut bytes, &ring, &item, payload, place).unwrap();
        bytes
    }

    /// Returns the values of the fields of that name.
    fn values<'a>(record: &'a [u8], name: &str) -> Vec<&'a [u8]> {
        let fields = parse(record).unwrap();
        fields.iter().filter(|field| field.name == name).map(|field| field.value).collect()
    }

    fn assert_values(record: &[u8], expected: &[(&str, &[&str])]) {
        for (name, texts) in expected {
            let texts: Vec<_> = texts.iter().map(|text| text.as_bytes()).collect();
            assert_eq!(values(record, name), texts, "{name} in {}", record.escape_ascii());
        }
    }

    #[test]
    fn plain_item_is_the_message_of_its_ring() {
        let file = record(b"two\nlines\0\xff", Place::File(BOOT));
        assert_eq!(values(&file, "MESSAGE"), [b"two\nlines\0\xff"]);
        let common: &[(&str, &[&str])] = &[
            (RING, &["vm1"]),
            (UUID, &["00000000000000000000000000000007"]),
            (POSITION, &["40"]),
            (NEXT, &["64"]),
            ("SYSLOG_IDENTIFIER", &["vm1"]),
        ];
        assert_values(&file, common);
        assert_values(
            &file,
            &[
                ("_HOSTNAME", &["vm1"]),
                ("__REALTIME_TIMESTAMP", &["1700000000000001"]),
                ("__MONOTONIC_TIMESTAMP", &["40"]),
                ("_BOOT_ID", &["00000000000000000000000000000007"]),
                (HOST_BOOT, &[BOOT]),
                (TIME, &[]),
            ],
        );
        let local = record(b"text", Place::Local);
        assert_values(&local, common);
        assert_values(&local, &[("MESSAGE", &["text"]), (TIME, &["1700000000000001"])]);
        assert!(parse(&local).unwrap().iter().all(|field| !field.name.starts_with('_')));
    }

    #[test]
    fn entry_keeps_its_fields_time_and_boot() {
        let entry = format!(
            "__CURSOR=c\n__REALTIME_TIMESTAMP=5\n__MONOTONIC_TIMESTAMP=6\n_BOOT_ID={GUEST_BOOT}\n\
             _HOSTNAME=other\n_PID=1\nSYSLOG_IDENTIFIER=sshd\nPRIORITY=0\nMESSAGE=hi\nX=1\nX=2\n\n"
        );
        let file = record(entry.as_bytes(), Place::File(BOOT));
        assert_values(
            &file,
            &[
                ("MESSAGE", &["hi"]),
                ("X", &["1", "2"]),
                ("PRIORITY", &["0"]),
                ("SYSLOG_IDENTIFIER", &["sshd"]),
                ("_PID", &["1"]),
                ("_HOSTNAME", &["vm1"]),
                ("GUEST_HOSTNAME", &["other"]),
                ("GUEST_CURSOR", &["c"]),
                ("__REALTIME_TIMESTAMP", &["5"]),
                ("__MONOTONIC_TIMESTAMP", &["6"]),
                ("_BOOT_ID", &[GUEST_BOOT]),
                (TIME, &["1700000000000001"]),
            ],
        );
        let local = record(entry.as_bytes(), Place::Local);
        assert_values(
            &local,
            &[
                ("MESSAGE", &["hi"]),
                ("X", &["1", "2"]),
                ("PRIORITY", &["1"]),
                ("GUEST_PRIORITY", &["0"]),
                ("SYSLOG_IDENTIFIER", &["vm1"]),
                ("GUEST_SYSLOG_IDENTIFIER", &["sshd"]),
                ("GUEST_PID", &["1"]),
                ("GUEST_BOOT_ID", &[GUEST_BOOT]),
                ("GUEST_REALTIME_TIMESTAMP", &["5"]),
            ],
        );
    }

    #[test]
    fn unsound_time_and_boot_are_kept_under_other_names() {
        let entry = b"__REALTIME_TIMESTAMP=0\n__MONOTONIC_TIMESTAMP=99999999999999999999\n_BOOT_ID=x\nMESSAGE=hi\n";
        assert_values(
            &record(entry, Place::File(BOOT)),
            &[
                ("GUEST_REALTIME_TIMESTAMP", &["0"]),
                ("GUEST_MONOTONIC_TIMESTAMP", &["99999999999999999999"]),
                ("GUEST_BOOT_ID", &["x"]),
                ("__REALTIME_TIMESTAMP", &["1700000000000001"]),
                ("__MONOTONIC_TIMESTAMP", &["40"]),
                ("_BOOT_ID", &["00000000000000000000000000000007"]),
            ],
        );
    }

    #[test]
    fn text_that_looks_like_an_entry_stays_a_message() {
        for text in ["HOME=/root\n", "MESSAGE=a\n\nMESSAGE=b\n\n", "MESSAGE=a"] {
            for place in [Place::File(BOOT), Place::Local] {
                assert_values(&record(text.as_bytes(), place), &[("MESSAGE", &[text])]);
            }
        }
    }

    proptest! {
        #[test]
        fn guest_forges_no_field_of_the_host(
            fields in vec(("(__?)?(BLOCKRING_(RING|UUID|NEXT|HOST_BOOT)|HOSTNAME|BOOT_ID|REALTIME_TIMESTAMP|OBJECT_PID|COREDUMP_UNIT|MESSAGE|X)", "[a-z0-9\n]{0,8}"), 1..9)
        ) {
            let mut entry = b"MESSAGE=hi\n".to_vec();
            for (name, value) in &fields {
                put(&mut entry, name, value.as_bytes()).unwrap();
            }
            let count = parse(&entry).unwrap().len();
            for (place, once) in [
                (Place::File(BOOT), &[RING, UUID, POSITION, NEXT, HOST_BOOT, "_HOSTNAME", "_BOOT_ID", "__REALTIME_TIMESTAMP", "__MONOTONIC_TIMESTAMP"][..]),
                (Place::Local, &[RING, UUID, POSITION, NEXT, TIME, "SYSLOG_IDENTIFIER"]),
            ] {
                let record = record(&entry, place);
                for name in once {
                    prop_assert_eq!(values(&record, name).len(), 1);
                }
                prop_assert_eq!(values(&record, RING), [b"vm1"]);
                let all = parse(&record).unwrap();
                prop_assert!(all.len() > count);
                if let Place::Local = place {
                    prop_assert!(!all.iter().any(|field| is_hosts_own(field.name) && field.name != "SYSLOG_IDENTIFIER"));
                }
            }
        }
    }
}
