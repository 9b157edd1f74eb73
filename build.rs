//! Links wrappers of gapless between librdkafka and the functions that unpack batches; see `src/kafka/unpacking.rs`.

/// Functions of librdkafka 2.12.1. `--wrap` works only for a function that is called from another object file than the
/// one that defines it, which is true for each of these. If a name no longer exists, its wrapper is never called;
/// `tests/integration/unpacked.rs` tests each of them.
const WRAPPED: [&str; 8] = [
    "rd_gz_decompress",
    "rd_kafka_buf_new_shadow",
    "rd_kafka_interceptors_on_thread_start",
    "rd_kafka_lz4_decompress",
    "rd_kafka_snappy_java_uncompress",
    "rd_kafka_snappy_uncompress",
    "rd_kafka_snappy_uncompressed_length",
    "rd_kafka_zstd_decompress",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // They are embedded; cargo does not see a new one by itself.
    println!("cargo::rerun-if-changed=migrations");
    let has_librdkafka = std::env::var_os("CARGO_FEATURE_DAEMON").is_some();
    if has_librdkafka && std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        for name in WRAPPED {
            println!("cargo::rustc-link-arg=-Wl,--wrap={name}");
        }
    }
}
