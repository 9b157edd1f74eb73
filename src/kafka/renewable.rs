//! A consumer with its queue that is made anew when Kafka refuses what it had read from files that have changed since.

use std::sync::Arc;

use rdkafka::consumer::BaseConsumer;

use super::SourceError;
use super::client::Context;
use super::ffi::ConsumerQueue;

type Make = Box<dyn Fn() -> Result<BaseConsumer<Context>, SourceError> + Send>;

/// Owned by the one thread that polls it.
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

    /// Returns true if it is another client now, to which nothing is assigned.
    pub(crate) fn renew_if_outdated(&mut self) -> bool {
        if !self.is_outdated() {
            return false;
        }
        match (self.make)() {
            Ok(consumer) => {
                let consumer = Arc::new(consumer);
                let queue = std::mem::replace(&mut self.queue, ConsumerQueue::new(&consumer));
                let before = std::mem::replace(&mut self.consumer, consumer);
                // Closing a client whose brokers refuse it may take its time. Without a thread it is closed here.
                let _ = std::thread::Builder::new().spawn(move || drop((queue, before)));
                true
            }
            Err(error) => {
                tracing::debug!(error = %error, "cannot make a client with the secrets as they are now");
                false
            }
        }
    }
}
