//! As much of HTTP/1.1 as a scrape needs: one GET after the other.

use crate::scrape::Format;

/// The most bytes of a request's head.
pub const MAX_HEAD: usize = 8 << 10;

/// The most headers of a request.
const MAX_HEADERS: usize = 64;

/// Subject of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The metrics, in this form.
    Metrics(Format),
    /// The program's health.
    Health,
}

/// A complete request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub asked: Asked,
    /// Whether the answer is to have no body (HEAD).
    pub head_only: bool,
    /// Whether the connection stays open for the next request (RFC 9112, 9.3).
    pub persistent: bool,
    /// Whether the answer is to be made for this request alone (RFC 9111, 5.2.1.4).
    pub fresh: bool,
}

/// Reason for an error: the status code with its phrase, and a line of text.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused(pub &'static str, pub &'static str);

/// Parses the head of a request; `None` if it is incomplete.
///
/// # Errors
/// The request is malformed, too long, or for something else.
pub fn parse(bytes: &[u8]) -> Result<Option<Request>, Refused> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let head = match request.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(_) if bytes.len() < MAX_HEAD => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => {
            return Err(Refused("431 Request Header Fields Too Large", "the request is too long"));
        }
        Err(_) => return Err(Refused("400 Bad Request", "this is no HTTP request")),
    };
    let head_only = match request.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Err(Refused("405 Method Not Allowed", "only GET and HEAD are answered")),
    };
    let path = path_of(request.path.unwrap_or(""));
    let asked = match path {
        "/metrics" => {
            let wants = |header: &httparse::Header<'_>| {
                header.name.eq_ignore_ascii_case("accept")
                    && String::from_utf8_lossy(header.value)
                        .contains("application/openmetrics-text")
            };
            let open = request.headers.iter().any(wants);
            Asked::Metrics(if open { Format::OpenMetrics } else { Format::Prometheus })
        }
        "/healthz" => Asked::Health,
        _ => return Err(Refused("404 Not Found", "there are /metrics and /healthz")),
    };
    // A client that has sent more sends it again on its next connection (RFC 9112, 9.3.2).
    let alone = head == bytes.len() && !request.headers.iter().any(announces_a_body);
    let asks = |name, option| has_option(request.headers, name, option);
    let persistent = alone && request.version == Some(1) && !asks("connection", "close");
    Ok(Some(Request { asked, head_only, persistent, fresh: asks("cache-control", "no-cache") }))
}

/// Whether bytes that belong to the request follow its head, as no GET needs them.
fn announces_a_body(header: &httparse::Header<'_>) -> bool {
    ["content-length", "transfer-encoding"]
        .iter()
        .any(|name| header.name.eq_ignore_ascii_case(name))
}

/// Whether one of the options in the headers of that name is this one.
fn has_option(headers: &[httparse::Header<'_>], name: &str, option: &str) -> bool {
    let named = headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
    named
        .flat_map(|header| header.value.split(|byte| *byte == b','))
        .any(|found| found.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
}

/// Returns the path of a request's target, which can be a whole address (RFC 9112, 3.2.2): a client
/// that takes this for a proxy sends that.
fn path_of(target: &str) -> &str {
    let behind = target.split_once("://").filter(|(scheme, _)| {
        scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")
    });
    let target = match behind {
        Some((_, rest)) => rest.find('/').map_or("/", |at| rest.get(at..).unwrap_or("/")),
        None => target,
    };
    target.split('?').next().unwrap_or("")
}

/// Returns the bytes of an answer. The connection is closed behind it unless it is `persistent`.
pub fn answer(
    status: &str,
    content_type: &str,
    body: &str,
    head_only: bool,
    persistent: bool,
) -> Vec<u8> {
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    let close = if persistent { "" } else { "Connection: close\r\n" };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{allow}{close}\r\n",
        body.len()
    );
    [head.as_bytes(), if head_only { b"" } else { body.as_bytes() }].concat()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn asked(text: &str) -> Result<Option<Request>, Refused> {
        parse(text.as_bytes())
    }

    #[test]
    fn request_asks_for_metrics_in_one_of_two_forms_or_for_health() {
        let request = |asked, head_only| {
            Ok(Some(Request { asked, head_only, persistent: true, fresh: false }))
        };
        assert_eq!(
            asked("GET /metrics HTTP/1.1\r\n\r\n"),
            request(Asked::Metrics(Format::Prometheus), false)
        );
        let accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
        assert_eq!(
            asked(&format!("GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\naccept: {accept}\r\n\r\n")),
            request(Asked::Metrics(Format::OpenMetrics), false)
        );
        assert_eq!(asked("HEAD /healthz HTTP/1.1\r\n\r\n"), request(Asked::Health, true));
        assert_eq!(
            asked("GET HTTP://localhost:9101/healthz?x=/ HTTP/1.1\r\n\r\n"),
            request(Asked::Health, false)
        );
    }

    #[test]
    fn connection_stays_open_where_the_request_allows_it_and_nothing_follows_it() {
        for (text, persistent) in [
            ("GET /metrics HTTP/1.1\r\nConnection: keep-alive\r\n\r\n", true),
            ("GET /metrics HTTP/1.0\r\n\r\n", false),
            ("GET /metrics HTTP/1.1\r\nconnection: x, Close\r\n\r\n", false),
            ("GET /metrics HTTP/1.1\r\n\r\nGET", false),
            ("GET /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\n", false),
            ("GET /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", false),
        ] {
            assert_eq!(asked(text).unwrap().unwrap().persistent, persistent, "{text}");
        }
    }

    #[test]
    fn fresh_answer_is_asked_for_as_in_http() {
        for (header, fresh) in [
            ("Cache-Control: max-age=0, no-cache", true),
            ("cache-control: No-Cache", true),
            ("Cache-Control: max-age=0", false),
            ("Accept: no-cache", false),
        ] {
            let text = format!("GET /metrics HTTP/1.1\r\n{header}\r\n\r\n");
            assert_eq!(asked(&text).unwrap().unwrap().fresh, fresh, "{header}");
        }
    }

    #[test]
    fn request_is_awaited_whole_and_refused_in_words() {
        assert_eq!(asked("GET /metrics HTTP/1.1\r\nHost: a\r\n"), Ok(None));
        for (text, status) in [
            ("hello\r\n\r\n", "400"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("GET http://metrics HTTP/1.1\r\n\r\n", "404"),
            ("GET ftp://localhost/metrics HTTP/1.1\r\n\r\n", "404"),
            (&format!("GET /metrics HTTP/1.1\r\nX: {}", "a".repeat(MAX_HEAD)), "431"),
            (&format!("GET /metrics HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(65)), "431"),
        ] {
            assert!(asked(text).unwrap_err().0.starts_with(status), "{text}");
        }
    }
}
