//! Options of the sink, as the command line and the configuration file give them, and what they
//! mean together.

use super::subject::{SubjectError, Template};
use crate::oversize::OnTooLarge;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Options of `nats://` and `tls://`.
#[derive(Debug, Default, Clone, PartialEq, Eq, clap::Args, serde::Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct NatsOptions {
    /// Name of the stream
    #[arg(long, value_name = "NAME", help_heading = HEADING)]
    pub stream: Option<String>,

    /// Subject of a ring's items, with {ring} for its name, such as 'vm.{ring}.log'
    #[arg(long, value_name = "SUBJECT", help_heading = HEADING)]
    pub subject: Option<String>,

    /// Make the stream, as exactly-once delivery needs it, if there is none of that name
    #[arg(long, help_heading = HEADING)]
    pub create_stream: bool,

    /// After a failure, repeat items and change their order: for a server older than 2.12 or a
    /// stream without atomic batches
    #[arg(long, help_heading = HEADING)]
    pub at_least_once: bool,

    /// Accept a stream whose limits remove messages; exactly-once delivery then holds only while
    /// the last message of each ring is still there
    #[arg(long, help_heading = HEADING)]
    pub accept_expiry: bool,

    /// What to do with an item that is too large for a message of the server [default: fail]
    #[arg(long, value_enum, value_name = "ACTION", help_heading = HEADING)]
    pub on_too_large: Option<OnTooLarge>,

    /// File with a user's credentials (JWT and seed), as `nsc` writes it
    #[arg(long, value_name = "FILE", help_heading = HEADING)]
    pub credentials: Option<PathBuf>,

    /// File with the seed of an nkey
    #[arg(long, value_name = "FILE", help_heading = HEADING)]
    pub nkey: Option<PathBuf>,

    /// Name of the user, whose password is in --password-file
    #[arg(long, value_name = "NAME", help_heading = HEADING)]
    pub user: Option<String>,

    /// File with the password of --user
    #[arg(long, value_name = "FILE", help_heading = HEADING)]
    pub password_file: Option<PathBuf>,

    /// File with the certificates (PEM) that the server's must be signed by, instead of the
    /// system's
    #[arg(long, value_name = "FILE", help_heading = HEADING)]
    pub tls_ca: Option<PathBuf>,

    /// File with this client's certificate (PEM)
    #[arg(long, value_name = "FILE", help_heading = HEADING)]
    pub tls_cert: Option<PathBuf>,

    /// File with the key of --tls-cert (PEM)
    #[arg(long, value_name = "FILE", help_heading = HEADING)]
    pub tls_key: Option<PathBuf>,
}

const HEADING: &str = "Options of nats:// and tls://";

/// Options that are complete and fit together.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address of the server, as the user wrote it.
    pub address: String,
    pub require_tls: bool,
    pub stream: String,
    pub template: Template,
    pub create_stream: bool,
    pub at_least_once: bool,
    pub accept_expiry: bool,
    pub on_too_large: OnTooLarge,
    pub login: Login,
    pub tls_ca: Option<PathBuf>,
    /// Certificate and key.
    pub tls_identity: Option<(PathBuf, PathBuf)>,
}

/// How the client says who it is. Files are read when it connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    Anonymous,
    Credentials(PathBuf),
    Nkey(PathBuf),
    Password { user: String, file: PathBuf },
}

/// Why options cannot be used. The words name the option to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    #[error("'{0}' is no address of a NATS server: write nats://HOST[:PORT] or tls://HOST[:PORT]")]
    Address(String),
    #[error(
        "'{0}' has something behind the host, which a server's address has not: write \
         nats://HOST[:PORT], and give the stream by --stream and the subject by --subject"
    )]
    Path(String),
    #[error(
        "the address holds a user or a password, which other users of this machine could read: \
         give --user and --password-file, --credentials or --nkey"
    )]
    Login,
    #[error("--stream is missing: name the stream that takes the items")]
    NoStream,
    #[error("'{0}' cannot be the name of a stream: it has no spaces, dots, '*', '>', '/' and '\\'")]
    StreamName(String),
    #[error("--subject is missing: give each ring a subject, such as --subject 'vm.{{ring}}.log'")]
    NoSubject,
    #[error(transparent)]
    Subject(#[from] SubjectError),
    #[error("--user and --password-file must be given together")]
    HalfPassword,
    #[error("give one of --credentials, --nkey and --user: they are ways to say the same thing")]
    ManyLogins,
    #[error("--tls-cert and --tls-key must be given together")]
    HalfIdentity,
    #[error("cannot read {path}, the file of {option}: {error}")]
    Unreadable { option: &'static str, path: String, error: String },
}

impl NatsOptions {
    /// Returns the options, and whether each was given.
    pub fn given(&self) -> [(&'static str, bool); 13] {
        let Self { stream, subject, create_stream, at_least_once, accept_expiry, .. } = self;
        let Self { on_too_large, credentials, nkey, user, password_file, .. } = self;
        let Self { tls_ca, tls_cert, tls_key, .. } = self;
        [
            ("stream", stream.is_some()),
            ("subject", subject.is_some()),
            ("create-stream", *create_stream),
            ("at-least-once", *at_least_once),
            ("accept-expiry", *accept_expiry),
            ("on-too-large", on_too_large.is_some()),
            ("credentials", credentials.is_some()),
            ("nkey", nkey.is_some()),
            ("user", user.is_some()),
            ("password-file", password_file.is_some()),
            ("tls-ca", tls_ca.is_some()),
            ("tls-cert", tls_cert.is_some()),
            ("tls-key", tls_key.is_some()),
        ]
    }

    /// Returns which of these names of rings cannot be a part of a subject.
    pub fn faults(&self, rings: &BTreeSet<&str>) -> Vec<String> {
        let template = self.subject.as_deref().and_then(|text| Template::new(text).ok());
        let fault = |ring: &&str| Some(template.as_ref()?.subject(ring).err()?.to_string());
        rings.iter().filter_map(fault).collect()
    }

    /// Verifies that the options are complete, fit together, and name files that can be read.
    pub fn settings(self, address: &str) -> Result<Settings, OptionsError> {
        let require_tls = scheme(address)?;
        let stream = self.stream.ok_or(OptionsError::NoStream)?;
        let is_odd =
            |char: char| char.is_whitespace() || char.is_control() || ".*>/\\".contains(char);
        if stream.is_empty() || stream.contains(is_odd) {
            return Err(OptionsError::StreamName(stream));
        }
        let template = Template::new(&self.subject.ok_or(OptionsError::NoSubject)?)?;
        for (option, file) in [
            ("--credentials", &self.credentials),
            ("--nkey", &self.nkey),
            ("--password-file", &self.password_file),
            ("--tls-ca", &self.tls_ca),
            ("--tls-cert", &self.tls_cert),
            ("--tls-key", &self.tls_key),
        ] {
            file.as_deref().map_or(Ok(()), |file| require_readable(option, file))?;
        }
        let password = match (self.user, self.password_file) {
            (Some(user), Some(file)) => Some(Login::Password { user, file }),
            (None, None) => None,
            _ => return Err(OptionsError::HalfPassword),
        };
        let logins =
            [password, self.credentials.map(Login::Credentials), self.nkey.map(Login::Nkey)];
        let mut logins = logins.into_iter().flatten();
        let login = logins.next().unwrap_or(Login::Anonymous);
        if logins.next().is_some() {
            return Err(OptionsError::ManyLogins);
        }
        let tls_identity = match (self.tls_cert, self.tls_key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(OptionsError::HalfIdentity),
        };
        Ok(Settings {
            address: address.to_owned(),
            require_tls: require_tls || self.tls_ca.is_some() || tls_identity.is_some(),
            stream,
            template,
            create_stream: self.create_stream,
            at_least_once: self.at_least_once,
            accept_expiry: self.accept_expiry,
            on_too_large: self.on_too_large.unwrap_or(OnTooLarge::Fail),
            login,
            tls_ca: self.tls_ca,
            tls_identity,
        })
    }
}

/// Returns whether the address asks for TLS.
fn scheme(address: &str) -> Result<bool, OptionsError> {
    let wrong = || OptionsError::Address(address.to_owned());
    let (scheme, _) = address.split_once("://").ok_or_else(wrong)?;
    let parsed: async_nats::ServerAddr = address.parse().map_err(|_| wrong())?;
    if parsed.username().is_some() || parsed.password().is_some() {
        return Err(OptionsError::Login);
    }
    let url = parsed.clone().into_inner();
    let has_more = !matches!(url.path(), "" | "/") || url.query().or(url.fragment()).is_some();
    match scheme {
        _ if parsed.host().is_empty() => Err(wrong()),
        // The stream is no part of the address, and what stands there would have no effect.
        _ if has_more => Err(OptionsError::Path(address.to_owned())),
        "nats" => Ok(false),
        "tls" => Ok(true),
        _ => Err(wrong()),
    }
}

fn require_readable(option: &'static str, path: &Path) -> Result<(), OptionsError> {
    std::fs::read(path).map(drop).map_err(|error| OptionsError::Unreadable {
        option,
        path: path.display().to_string(),
        error: error.to_string(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn complete() -> NatsOptions {
        NatsOptions {
            stream: Some("VMS".to_owned()),
            subject: Some("vm.{ring}".to_owned()),
            ..NatsOptions::default()
        }
    }

    /// Returns the words of the refusal of what `change` makes of good options.
    fn refusal(address: &str, change: impl FnOnce(&mut NatsOptions)) -> String {
        let mut options = complete();
        change(&mut options);
        options.settings(address).unwrap_err().to_string()
    }

    #[test]
    fn options_of_tls_ask_for_it() {
        let require_tls =
            |address: &str| complete().settings(address).map(|settings| settings.require_tls);
        assert_eq!(require_tls("nats://localhost"), Ok(false));
        assert_eq!(require_tls("tls://localhost:4333"), Ok(true));
        assert_eq!(require_tls("nats://[::1]:4222"), Ok(false));
    }

    #[test]
    fn options_without_a_server_are_refused() {
        for address in
            ["nats://", "localhost:4222", "http://localhost", "nats://host:port", "ws://a"]
        {
            let words = refusal(address, |_| {});
            assert!(words.contains("nats://HOST[:PORT]"), "{address}: {words}");
        }
    }

    #[test]
    fn address_with_a_path_is_refused_with_the_option_for_it() {
        for address in ["nats://host/VMS", "tls://host:4222/a/b", "nats://host?s=VMS", "nats://h#x"]
        {
            let words = refusal(address, |_| {});
            assert!(words.contains("--stream") && words.contains(address), "{words}");
        }
        assert!(complete().settings("nats://host/").is_ok());
    }

    #[test]
    fn options_that_are_incomplete_or_contradict_are_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = || Some(file.path().to_owned());
        let address = "nats://localhost";
        let words = refusal("nats://me:secret@localhost", |_| {});
        assert!(words.contains("--password-file") && !words.contains("secret"), "{words}");
        for (words, option) in [
            (refusal(address, |options| options.stream = None), "--stream"),
            (refusal(address, |options| options.stream = Some("a.b".into())), "'a.b'"),
            (refusal(address, |options| options.subject = None), "--subject"),
            (refusal(address, |options| options.subject = Some("vm".into())), "{ring}"),
            (refusal(address, |options| options.user = Some("me".into())), "--password-file"),
            (refusal(address, |options| options.tls_key = path()), "--tls-cert"),
            (
                refusal(address, |options| {
                    (options.nkey, options.credentials) = (path(), path());
                }),
                "--nkey",
            ),
            (refusal(address, |options| options.nkey = Some("/none".into())), "/none"),
        ] {
            assert!(words.contains(option), "{words:?} lacks {option:?}");
        }
    }
}
