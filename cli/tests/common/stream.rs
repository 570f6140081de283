//! Streams of a NATS server, as their readers find them.

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{AckPolicy, pull::Config};
use bytes::Bytes;
use futures_util::StreamExt;

/// A message of a stream.
pub struct Message {
    pub subject: String,
    pub payload: Bytes,
}

/// Runs a conversation with a server.
pub fn talk<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Returns the context of a connection.
pub async fn context(address: &str) -> Context {
    async_nats::jetstream::new(async_nats::connect(address).await.unwrap())
}

/// Reads all messages of a stream, in its order.
pub fn read(address: &str, stream: &str, mut each: impl FnMut(Message)) {
    talk(async {
        let stream = context(address).await.get_stream(stream).await.unwrap();
        let count = stream.cached_info().state.messages;
        let config = Config { ack_policy: AckPolicy::None, ..Config::default() };
        let consumer = stream.create_consumer(config).await.unwrap();
        let mut found = 0;
        while found < count {
            let mut some = consumer.fetch().max_messages(500).messages().await.unwrap();
            while let Some(message) = some.next().await {
                let message = message.unwrap();
                each(Message {
                    subject: message.subject.to_string(),
                    payload: message.payload.clone(),
                });
                found += 1;
            }
        }
    });
}
