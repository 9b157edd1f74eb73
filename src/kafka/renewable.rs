//! A consumer with its queue. It is created again when Kafka refuses its secrets and their files have changed since.

use std::sync::Arc;

use rdkafka::consumer::BaseConsumer;

use super::SourceError;
use super::client::Context;
use super::ffi::ConsumerQueue;

type Make = Box<dyn Fn() -> Result<BaseConsumer<Context>, SourceError> + Send>;

/// A consumer that only one thread owns and polls.
pub(crate) struct RenewableConsumer {
    pub(crate) queue: ConsumerQueue,
    pub(crate) consumer: Arc<BaseConsumer<Context>>,
    make: Make,
}

impl RenewableConsumer {
    pub(crate) fn new(
        make: impl Fn() -> Result<BaseConsumer<Context>, SourceError> + Send + 'static,
    ) -> Result<Self, SourceError> {
        let consumer = Arc::new(make()?);
        Ok(Self { queue: ConsumerQueue::new(&consumer), consumer, make: Box::new(make) })
    }

    pub(crate) fn is_outdated(&self) -> bool {
        use rdkafka::consumer::Consumer;
        self.consumer.context().is_outdated()
    }

    /// Replaces the client if it is outdated. Returns true if the client was replaced; the new one has no assignment.
    pub(crate) fn renew_if_outdated(&mut self) -> bool {
        if !self.is_outdated() {
            return false;
        }
        match (self.make)() {
            Ok(consumer) => {
                let consumer = Arc::new(consumer);
                let queue = std::mem::replace(&mut self.queue, ConsumerQueue::new(&consumer));
                let outdated = std::mem::replace(&mut self.consumer, consumer);
                // Closing a client that the brokers refuse may take long. If no thread can be started, it is closed
                // here.
                let _ = std::thread::Builder::new().spawn(move || drop((queue, outdated)));
                true
            }
            Err(error) => {
                tracing::debug!(error = %error, "cannot create a client with the present secrets");
                false
            }
        }
    }
}
