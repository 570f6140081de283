//! The answers to requests.

use crate::http::{self, Asked, Request};
use crate::scrape::{Format, Scrape};
use crate::server::Source;
use std::time::{Duration, Instant};

/// How long the text of a scrape is given to further clients. Unless they ask for a new one they
/// cause twenty scrapes a second at most in each form: a busy ring has to do without what a scrape
/// takes of its processor.
const FRESH: Duration = Duration::from_millis(50);

/// The type of a line of text.
pub const TEXT: &str = "text/plain; charset=utf-8";

/// Answers from a source, and from what it has answered last.
pub struct Answers {
    source: Box<dyn Source>,
    /// The last text in each form, and when it was asked for.
    texts: Vec<(Format, Instant, String)>,
}

impl Answers {
    pub fn new(source: Box<dyn Source>) -> Self {
        Self { source, texts: Vec::new() }
    }

    /// Returns the bytes of the answer to `request`, which has come `now`.
    pub fn answer(&mut self, request: Request, now: Instant) -> Vec<u8> {
        let Request { asked, head_only, persistent, fresh } = request;
        let reply = |status: &str, content_type: &str, body: &str| {
            http::answer(status, content_type, body, head_only, persistent)
        };
        match asked {
            Asked::Metrics(format) => match self.text(format, now, fresh) {
                Ok(text) => reply("200 OK", format.content_type(), text),
                Err(e) => {
                    log::error!("cannot encode the metrics: {e}");
                    reply("500 Internal Server Error", TEXT, "a defect\n")
                }
            },
            Asked::Health => {
                let (status, words) = match self.source.health() {
                    Ok(words) => ("200 OK", words),
                    Err(words) => ("503 Service Unavailable", words),
                };
                reply(status, TEXT, &format!("{words}\n"))
            }
        }
    }

    /// Returns the text of a scrape: of the last one, if that is recent enough and no `fresh` one
    /// is asked for.
    fn text(&mut self, format: Format, now: Instant, fresh: bool) -> Result<&str, std::fmt::Error> {
        let is_new = |at: Instant| !fresh && now.saturating_duration_since(at) < FRESH;
        self.texts.retain(|(known, at, _)| *known != format || is_new(*at));
        if let Some(index) = self.texts.iter().position(|(known, ..)| *known == format) {
            return Ok(&self.texts[index].2);
        }
        let mut scrape = Scrape::default();
        self.source.scrape(&mut scrape);
        self.texts.push((format, now, scrape.encode(format)?));
        Ok(self.texts.last().map_or("", |(.., text)| text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::RING_UP;

    /// Counts its scrapes.
    struct Counting(u64);

    impl Source for Counting {
        fn scrape(&mut self, scrape: &mut Scrape) {
            self.0 += 1;
            scrape.whole(&RING_UP, &["ring"], self.0);
        }

        fn health(&mut self) -> Result<String, String> {
            self.0 += 1;
            Ok(self.0.to_string())
        }
    }

    #[test]
    fn text_is_given_again_for_a_moment_unless_a_fresh_one_is_asked_for() {
        let mut answers = Answers::new(Box::new(Counting(0)));
        let start = Instant::now();
        let mut number = |asked, after, fresh| {
            let request = Request { asked, head_only: false, persistent: true, fresh };
            let bytes = answers.answer(request, start + Duration::from_millis(after));
            let text = String::from_utf8(bytes).expect("text");
            let line = text.lines().rfind(|line| !line.starts_with('#')).expect("a line");
            line.rsplit(' ').next().expect("a number").to_owned()
        };
        let metrics = Asked::Metrics(Format::Prometheus);
        assert_eq!(number(metrics, 0, false), "1");
        assert_eq!(number(metrics, 49, false), "1");
        assert_eq!(number(Asked::Metrics(Format::OpenMetrics), 49, false), "2");
        assert_eq!(number(Asked::Health, 49, false), "3", "health is never an old one");
        assert_eq!(number(metrics, 49, true), "4");
        assert_eq!(number(metrics, 98, false), "4");
        assert_eq!(number(metrics, 99, false), "5");
    }
}
