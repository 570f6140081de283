//! A lane that delivers each item once: batches one after the other, each behind the fence of the
//! one before. The next fence is known only from the acknowledgement, so that a lane has one batch
//! on its way; the batches of different lanes overlap.

use super::link::{Link, Up};
use super::options::Settings;
use super::plan::{Group, Message, Rules, groups};
use super::record::{Last, Part, Record};
use super::words::deepest;
use super::{
    Arrived, Batch, Event, FIRST_PAUSE, LAST_PAUSE, Reporter, RingFacts, SinkError, TROUBLE,
    checksum, group_arrived, retry, stop,
};
use async_nats::header::{
    NATS_BATCH_COMMIT, NATS_BATCH_ID, NATS_BATCH_SEQUENCE, NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
};
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use async_nats::{HeaderMap, Request, Subject};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc::UnboundedReceiver;

/// Bound on an acknowledgement: a server that flushes every batch on a busy disk takes its time.
const ACKNOWLEDGEMENT: Duration = Duration::from_secs(10);

/// A lane's task.
pub struct Exact<'a> {
    settings: &'a Settings,
    link: &'a Link,
    ring: &'a RingFacts,
    subject: Subject,
    events: &'a Reporter,
    /// Sequence of the subject's last message as this lane knows it; 0: there is none.
    fence: u64,
    /// Parts of the next item that are in the stream already.
    present: Option<Part>,
}

/// Why a batch was not acknowledged.
#[derive(Debug)]
enum Refusal {
    /// The subject's last message is another one.
    Fence,
    /// It may have arrived, or not.
    Unknown(String),
}

impl<'a> Exact<'a> {
    pub fn new(
        settings: &'a Settings,
        link: &'a Link,
        ring: &'a RingFacts,
        subject: String,
        events: &'a Reporter,
    ) -> Self {
        let subject = Subject::from(subject);
        Self { settings, link, ring, subject, events, fence: 0, present: None }
    }

    /// Delivers batches until the lane is dropped.
    pub async fn run(mut self, mut batches: UnboundedReceiver<Batch>) -> Result<(), SinkError> {
        self.link.try_again();
        let last = self.last().await?;
        self.start(last)?;
        while let Some(batch) = batches.recv().await {
            self.deliver(&batch).await?;
        }
        Ok(())
    }

    /// Takes the subject's last message as the record of what has arrived.
    fn start(&mut self, last: Option<Last>) -> Result<(), SinkError> {
        let (subject, ring) = (&self.subject, self.ring);
        self.fence = last.as_ref().map_or(0, |last| last.sequence);
        let payload = last.as_ref().map(|last| last.checksum);
        let arrived = match last.map(|last| last.record) {
            None => None,
            Some(None) => {
                return Err(retry(format!(
                    "the last message of {subject} (sequence {}) is not a forwarder's: remove it \
                     (`nats stream rmm {} {}`), and let nobody else publish to that subject",
                    self.fence, self.settings.stream, self.fence
                )));
            }
            Some(Some(record)) if record.ring != ring.uuid => {
                log::warn!(
                    "{subject} has items of another ring so far ({}): {} starts anew behind them",
                    record.ring,
                    ring.name
                );
                None
            }
            Some(Some(record)) => {
                self.present = record.part.filter(|_| record.is_unfinished());
                // A part is not the item.
                let checksum = payload.filter(|_| record.part.is_none());
                Some(Arrived { position: record.arrived(), checksum })
            }
        };
        let is_before = |arrived: &Arrived| arrived.position < ring.position;
        if let Some(Arrived { position, .. }) = arrived.filter(is_before) {
            log::error!(
                "{subject} ends at position {position}, but items of {} up to {} were acknowledged: \
                 the server has lost them (was it restored, or is sync_interval not 'always'?)",
                ring.name,
                ring.position
            );
            self.present = None;
        }
        self.events.report(Event::Ready { arrived });
        Ok(())
    }

    async fn deliver(&mut self, batch: &Batch) -> Result<(), SinkError> {
        let rules = Rules {
            ring: self.ring.uuid,
            max_message: self.link.up(self.events).await?.max_message(),
            on_too_large: self.settings.on_too_large,
        };
        let (groups, too_large) = groups(&rules, batch, self.present.take());
        for group in groups {
            if !group.messages.is_empty() {
                self.deliver_group(&group).await?;
            }
            group_arrived(self.ring, &group, self.events);
        }
        too_large.map_or(Ok(()), |item| Err(stop(format!("{}: {item}", self.ring.name))))
    }

    /// Publishes until the stream has the group.
    async fn deliver_group(&mut self, group: &Group) -> Result<(), SinkError> {
        let (begin, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            let up = self.link.up(self.events).await?;
            let refusal = tokio::select! {
                outcome = self.publish(&up, group) => match outcome {
                    Ok(sequence) => {
                        self.fence = sequence;
                        return Ok(());
                    }
                    Err(refusal) => refusal,
                },
                () = self.link.gone(up.epoch) => Refusal::Unknown("connection lost".to_owned()),
            };
            if let Refusal::Unknown(words) = &refusal {
                log::debug!("{}: {words}", self.subject);
                if begin.elapsed() >= TROUBLE {
                    let subject = &self.subject;
                    let message = self.link.explained(subject, format!("{subject}: {words}"));
                    self.events.report(Event::Trouble { message, is_said: false });
                }
                tokio::time::sleep(pause).await;
                pause = LAST_PAUSE.min(pause * 2);
            }
            // A batch that is still on its way is no danger: the server takes it or the next one,
            // and refuses the other, whose fence is gone.
            if let Some(sequence) = self.settle(self.last().await?, group)? {
                self.fence = sequence;
                return Ok(());
            }
        }
    }

    /// Returns the new fence if the group has arrived, and none if nothing of it has.
    fn settle(&self, last: Option<Last>, group: &Group) -> Result<Option<u64>, SinkError> {
        let (subject, name) = (&self.subject, &self.ring.name);
        let sequence = last.as_ref().map_or(0, |last| last.sequence);
        if sequence == self.fence {
            return Ok(None);
        }
        let Some(record) = last.and_then(|last| last.record) else {
            return Err(retry(format!(
                "the last message of {subject} is gone or not a forwarder's: let nobody purge the \
                 stream {} or publish to that subject while {name} is forwarded",
                self.settings.stream
            )));
        };
        if record.ring != self.ring.uuid {
            return Err(stop(format!(
                "another ring ({}) is forwarded to {subject}, too: give {name} another name, or \
                 its forwarder another --subject",
                record.ring
            )));
        }
        let is_end = group.messages.last().is_some_and(|message| message.record == record);
        if is_end {
            return Ok(Some(sequence));
        }
        Err(retry(format!(
            "another forwarder publishes to {subject}: it has brought {name} to position {}, and \
             this one was at {}: stop one of the two",
            record.arrived(),
            group.messages.first().map_or(group.next, |message| message.record.position)
        )))
    }

    /// Reads the subject's last message, in several attempts. Returns none if there is no message.
    async fn last(&self) -> Result<Option<Last>, SinkError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let up = self.link.up(self.events).await?;
            if let Some(words) =
                super::stream::refusal(&up.config, &self.subject, &self.settings.template)
            {
                return Err(stop(words));
            }
            let stream = up.context.get_stream_no_info(&self.settings.stream);
            let answer = async {
                let stream = stream.await.map_err(|error| (deepest(&error), false))?;
                match stream.get_last_raw_message_by_subject(&self.subject).await {
                    Ok(message) => Ok(Some(Last {
                        sequence: message.sequence,
                        record: Record::read(&message.headers),
                        checksum: checksum(&message.payload),
                    })),
                    Err(error) => match error.kind() {
                        LastRawMessageErrorKind::NoMessageFound => Ok(None),
                        kind => Err((deepest(&error), is_stream_missing(&kind))),
                    },
                }
            };
            let (words, is_missing) = tokio::select! {
                answer = answer => match answer {
                    Ok(last) => return Ok(last),
                    Err(failure) => failure,
                },
                () = self.link.gone(up.epoch) => continue,
            };
            if pause >= LAST_PAUSE {
                let (subject, stream) = (&self.subject, &self.settings.stream);
                let hint = if is_missing {
                    format!("was {stream} deleted? it is made by --create-stream")
                } else {
                    format!("may this user publish to $JS.API.STREAM.MSG.GET.{stream}?")
                };
                let text =
                    format!("the last message of {subject} cannot be read: {words} ({hint})");
                return Err(retry(self.link.explained(subject, text)));
            }
            tokio::time::sleep(pause).await;
            pause = LAST_PAUSE.min(pause * 2);
        }
    }

    /// Publishes a group behind the fence, and waits for its acknowledgement. Returns the sequence
    /// of its last message.
    async fn publish(&self, up: &Up, group: &Group) -> Result<u64, Refusal> {
        // Neither is ever closed.
        let _turn = self.link.batches.acquire().await;
        let _room = self.link.room(group.bytes).await;
        let batch = (group.messages.len() > 1).then(|| up.client.new_inbox());
        let mut stamp = Stamp::default();
        let Some((last, before)) = group.messages.split_last() else { return Ok(self.fence) };
        let unknown = |error: &(dyn std::error::Error + 'static)| Refusal::Unknown(deepest(error));
        for (index, message) in before.iter().enumerate() {
            let headers = self.headers(message, index, batch.as_deref(), &mut stamp);
            let (subject, payload) = (self.subject.clone(), message.payload.clone());
            up.client
                .publish_with_headers(subject, headers, payload)
                .await
                .map_err(|error| unknown(&error))?;
        }
        let mut headers = self.headers(last, before.len(), batch.as_deref(), &mut stamp);
        if batch.is_some() {
            headers.insert(NATS_BATCH_COMMIT, "1");
        }
        let request = Request::new()
            .headers(headers)
            .payload(last.payload.clone())
            .timeout(Some(ACKNOWLEDGEMENT));
        let answer = up.client.send_request(self.subject.clone(), request).await;
        let answer = answer.map_err(|error| unknown(&error))?;
        match serde_json::from_slice::<Response<PublishAck>>(&answer.payload) {
            Ok(Response::Ok(acknowledgement)) => Ok(acknowledgement.sequence),
            Ok(Response::Err { error }) => Err(match error.error_code() {
                ErrorCode::STREAM_WRONG_LAST_SEQUENCE
                | ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => Refusal::Fence,
                _ => Refusal::Unknown(error.to_string()),
            }),
            Err(error) => Err(unknown(&error)),
        }
    }

    fn headers(
        &self,
        message: &Message,
        index: usize,
        batch: Option<&str>,
        stamp: &mut Stamp,
    ) -> HeaderMap {
        let mut headers = HeaderMap::new();
        message.record.write(stamp.text(message.time), &mut headers);
        if index == 0 {
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, self.fence.to_string());
        }
        if let Some(batch) = batch {
            headers.insert(NATS_BATCH_ID, batch);
            headers.insert(NATS_BATCH_SEQUENCE, (index + 1).to_string());
        }
        headers
    }
}

fn is_stream_missing(kind: &LastRawMessageErrorKind) -> bool {
    let LastRawMessageErrorKind::JetStream(error) = kind else { return false };
    error.error_code() == ErrorCode::STREAM_NOT_FOUND
}

/// Text of a time: many items have the same.
#[derive(Debug, Default)]
pub struct Stamp {
    time: Option<SystemTime>,
    text: String,
}

impl Stamp {
    pub fn text(&mut self, time: Option<SystemTime>) -> Option<&str> {
        let time = time?;
        if self.time != Some(time) {
            self.time = Some(time);
            self.text = humantime::format_rfc3339_nanos(time).to_string();
        }
        Some(&self.text)
    }
}
