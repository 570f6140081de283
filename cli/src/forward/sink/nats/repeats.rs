//! A lane that delivers each item at least once, to any server with JetStream: messages are
//! published without waiting for each, and those without an acknowledgement again. Their ids let
//! the stream drop repeats within its de-duplication window. The client sends what it had queued
//! when a connection was lost on the next one, so that items may be out of order after a failure.

use super::exact::Stamp;
use super::link::{Link, Up};
use super::options::Settings;
use super::plan::{Message, Rules, groups};
use super::words::deepest;
use super::{
    Batch, Event, FIRST_PAUSE, LAST_PAUSE, Reporter, RingFacts, SinkError, TROUBLE, group_arrived,
    stop,
};
use async_nats::jetstream::message::PublishMessage;
use async_nats::{HeaderMap, Subject};
use std::time::Instant;
use tokio::sync::mpsc::UnboundedReceiver;

/// A lane's task.
pub struct Repeats<'a> {
    settings: &'a Settings,
    link: &'a Link,
    ring: &'a RingFacts,
    subject: Subject,
    events: &'a Reporter,
}

impl<'a> Repeats<'a> {
    pub fn new(
        settings: &'a Settings,
        link: &'a Link,
        ring: &'a RingFacts,
        subject: String,
        events: &'a Reporter,
    ) -> Self {
        Self { settings, link, ring, subject: Subject::from(subject), events }
    }

    /// Delivers batches until the lane is dropped.
    pub async fn run(self, mut batches: UnboundedReceiver<Batch>) -> Result<(), SinkError> {
        self.link.try_again();
        let up = self.link.up(self.events).await?;
        if let Some(words) =
            super::stream::refusal(&up.config, &self.subject, &self.settings.template)
        {
            return Err(stop(words));
        }
        // Messages may be missing before the subject's last one: only the ring knows.
        self.events.report(Event::Ready { arrived: None });
        while let Some(batch) = batches.recv().await {
            self.deliver(&batch).await?;
        }
        Ok(())
    }

    async fn deliver(&self, batch: &Batch) -> Result<(), SinkError> {
        let rules = Rules {
            ring: self.ring.uuid,
            max_message: self.link.up(self.events).await?.max_message(),
            on_too_large: self.settings.on_too_large,
        };
        let (groups, too_large) = groups(&rules, batch, None);
        for group in groups {
            let (mut missing, mut pause) = (&group.messages[..], FIRST_PAUSE);
            let begin = Instant::now();
            while !missing.is_empty() {
                let up = self.link.up(self.events).await?;
                let mut arrived = 0;
                let words = tokio::select! {
                    outcome = self.publish(&up, missing, &mut arrived) => match outcome {
                        Ok(()) => break,
                        Err(words) => words,
                    },
                    () = self.link.gone(up.epoch) => "connection lost".to_owned(),
                };
                missing = &missing[arrived..];
                log::debug!("{}: {words}", self.subject);
                if begin.elapsed() >= TROUBLE {
                    let subject = &self.subject;
                    let message = self.link.explained(subject, format!("{subject}: {words}"));
                    self.events.report(Event::Trouble { message, is_said: false });
                }
                tokio::time::sleep(pause).await;
                pause = LAST_PAUSE.min(pause * 2);
            }
            group_arrived(self.ring, &group, self.events);
        }
        too_large.map_or(Ok(()), |item| Err(stop(format!("{}: {item}", self.ring.name))))
    }

    /// Publishes messages and waits for their acknowledgements, which it counts up to the first one
    /// that is missing.
    async fn publish(
        &self,
        up: &Up,
        messages: &[Message],
        arrived: &mut usize,
    ) -> Result<(), String> {
        // Never closed.
        let _room =
            self.link.room(messages.iter().map(|message| message.payload.len()).sum()).await;
        let mut stamp = Stamp::default();
        let mut acknowledgements = Vec::with_capacity(messages.len());
        for message in messages {
            let mut headers = HeaderMap::new();
            message.record.write(stamp.text(message.time), &mut headers);
            let publication = PublishMessage::build()
                .headers(headers)
                .message_id(id(message))
                .payload(message.payload.clone());
            let sent = up.context.send_publish(self.subject.clone(), publication).await;
            acknowledgements.push(sent.map_err(|error| deepest(&error))?);
        }
        for acknowledgement in acknowledgements {
            // A duplicate is in the stream, too.
            acknowledgement.await.map_err(|error| deepest(&error))?;
            *arrived += 1;
        }
        Ok(())
    }
}

/// Returns the id of a message, which the same part of the same item always has.
fn id(message: &Message) -> String {
    let record = &message.record;
    let part = record.part.map(|part| format!("-{}", part.number)).unwrap_or_default();
    format!("{}-{}{part}", record.ring.simple(), record.position)
}
