//! A batch that unpacks to more than is allowed, as librdkafka tells it.
//!
//! It reports one like a damaged batch ("bad compression"). Only its debug log says that the batch is sound and too large.
//! Of what packs the batches only zstd is bounded so: gzip, snappy and lz4 are unpacked whatever comes of it.

/// How large a batch is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge {
    pub packed: u64,
    /// What librdkafka would have tried next. Where the packed batch does not say how large it is, that grows threefold
    /// from try to try.
    pub needed: u64,
}

impl TooLarge {
    /// `None` for other lines of the log.
    pub(super) fn read(text: &str) -> Option<Self> {
        let (_, sizes) = text.split_once("Unable to decompress ZSTD (input buffer ")?;
        let (packed, rest) = sizes.split_once(", output buffer ")?;
        let (needed, rest) = rest.split_once(')')?;
        let too_large = Self { packed: packed.trim().parse().ok()?, needed: needed.trim().parse().ok()? };
        rest.contains("would exceed").then_some(too_large)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sound_batch_that_is_too_large_is_told_from_a_damaged_one() {
        let line = "[thrd:127.0.0.1:9092/1]: 127.0.0.1:9092/1: Unable to decompress ZSTD (input buffer 270123, output buffer 393839334): output would exceed message.max.bytes (1000000)";
        assert_eq!(TooLarge::read(line), Some(TooLarge { packed: 270_123, needed: 393_839_334 }));
        let damaged = "127.0.0.1:9092/1: Unable to begin ZSTD decompression (out buffer is 540246 bytes): Data corruption detected";
        assert_eq!(TooLarge::read(damaged), None);
    }
}
