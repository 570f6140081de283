//! The server and its stream, examined after each connection.

use super::options::Settings;
use super::stream::{SERVER_WITH_BATCHES, faults, suitable};
use super::words::{Trouble, deepest};
use async_nats::Client;
use async_nats::jetstream::context::{
    CreateStreamErrorKind, GetStreamErrorKind, RequestError, RequestErrorKind,
};
use async_nats::jetstream::stream::Config;
use async_nats::jetstream::{Context, ErrorCode};
use std::error::Error;

/// Verifies that the server and the stream are as they must be; makes the stream if the settings
/// say so. Returns its configuration.
pub async fn examine(
    client: &Client,
    context: &Context,
    settings: &Settings,
) -> Result<Config, Trouble> {
    let (major, minor, patch) = SERVER_WITH_BATCHES;
    if !settings.at_least_once && !client.is_server_compatible(major, minor, patch) {
        return Err(Trouble::Lasting(format!(
            "{} is nats-server {}, and atomic batches, which each item's arriving once rests on, \
             need {major}.{minor}: upgrade the server, or accept repeats after failures with \
             --at-least-once",
            settings.address,
            client.server_info().version
        )));
    }
    let config = find_or_make(context, settings).await?;
    let faults = faults(&config, settings);
    if faults.is_empty() {
        return Ok(config);
    }
    let ways = if settings.at_least_once {
        ""
    } else {
        "; --at-least-once takes any stream, and repeats items after failures"
    };
    let stream = &settings.stream;
    Err(Trouble::Lasting(format!("the stream {stream}: {}{ways}", faults.join("; "))))
}

async fn find_or_make(context: &Context, settings: &Settings) -> Result<Config, Trouble> {
    let error = match context.get_stream(&settings.stream).await {
        Ok(stream) => return Ok(stream.cached_info().config.clone()),
        Err(error) => error,
    };
    match error.kind() {
        GetStreamErrorKind::JetStream(answer)
            if answer.error_code() == ErrorCode::STREAM_NOT_FOUND =>
        {
            if settings.create_stream {
                make(context, settings).await
            } else {
                Err(missing(settings))
            }
        }
        GetStreamErrorKind::JetStream(answer) => {
            Err(refused(settings, answer.error_code(), &answer.to_string()))
        }
        GetStreamErrorKind::Request => Err(silent(settings, &error)),
        GetStreamErrorKind::EmptyName | GetStreamErrorKind::InvalidStreamName => {
            Err(Trouble::Lasting(format!("--stream '{}': {error}", settings.stream)))
        }
    }
}

async fn make(context: &Context, settings: &Settings) -> Result<Config, Trouble> {
    let stream = &settings.stream;
    match context.create_stream(suitable(settings)).await {
        Ok(made) => {
            let subjects = settings.template.filter();
            log::warn!("made the stream {stream} for the subjects {subjects}, without limits");
            Ok(made.cached_info().config.clone())
        }
        Err(error) => Err(match error.kind() {
            CreateStreamErrorKind::JetStream(answer)
                if answer.error_code() == ErrorCode::STREAM_SUBJECT_OVERLAP =>
            {
                Trouble::Lasting(format!(
                    "cannot make the stream {stream}: another stream takes {} already: name that \
                     one with --stream, or change --subject",
                    settings.template.filter()
                ))
            }
            CreateStreamErrorKind::JetStream(answer) => {
                refused(settings, answer.error_code(), &answer.to_string())
            }
            _ => silent(settings, &error),
        }),
    }
}

fn missing(settings: &Settings) -> Trouble {
    let (stream, filter) = (&settings.stream, settings.template.filter());
    Trouble::Lasting(format!(
        "{} has no stream {stream}: make it with --create-stream, or with `nats stream add {stream} \
         --subjects '{filter}' --allow-batch --discard new --defaults`",
        settings.address
    ))
}

/// Returns the words for an error that the server answers with.
fn refused(settings: &Settings, code: ErrorCode, answer: &str) -> Trouble {
    match code {
        ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
            Trouble::Lasting(no_jetstream(settings))
        }
        // A cluster without a leader, a stream that is offline.
        _ => Trouble::Passing(format!("the stream {}: {answer}", settings.stream)),
    }
}

/// Returns the words for a question without an answer.
fn silent(settings: &Settings, error: &(dyn Error + 'static)) -> Trouble {
    if nobody_answers(error) {
        return Trouble::Lasting(no_jetstream(settings));
    }
    let cause = deepest(error);
    Trouble::Passing(format!(
        "no answer about the stream {}: {cause} (may this user publish to $JS.API.STREAM.INFO.{} \
         and subscribe to _INBOX.>?)",
        settings.stream, settings.stream
    ))
}

/// Whether the server knows nobody who answers questions about streams.
fn nobody_answers(error: &(dyn Error + 'static)) -> bool {
    let is_so = error
        .downcast_ref::<RequestError>()
        .is_some_and(|error| error.kind() == RequestErrorKind::NoResponders);
    is_so || error.source().is_some_and(nobody_answers)
}

fn no_jetstream(settings: &Settings) -> String {
    format!(
        "{} has no JetStream: enable it for the server (`jetstream {{}}` in its configuration) and \
         for the account",
        settings.address
    )
}
