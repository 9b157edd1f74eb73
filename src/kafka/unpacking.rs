//! Stands between librdkafka and the functions that unpack its batches, so that they take bounded memory.
//!
//! librdkafka 2.12.1 unpacks gzip, lz4 and snappy whatever their size, all batches of an answer at once, and takes a failed
//! `malloc` for a damaged batch. `build.rs` makes the linker call the functions `__wrap_NAME` here instead of librdkafka's
//! `NAME`; `__real_NAME` is librdkafka's own. They rest on:
//! - `rdkafka_msgset_reader.c`, `rd_kafka_msgset_reader_decompress`: calls one of the unpacking functions, and at once
//!   `rd_kafka_buf_new_shadow` with the memory it got, whose `free_cb` is called once when the last message of the batch
//!   is gone. Where a function fails, the partition gets an error (`BAD_COMPRESSION`, with the packed size in its text),
//!   messages of batches before it are delivered, and the batch is fetched again after `fetch.error.backoff.ms`.
//! - `rdgz.c`, `rdkafka_lz4.c`, `rdkafka_zstd.c`, `snappy.c`: signatures, and that results are freed by `free`.
//! - `rdkafka_broker.c`: the thread that unpacks says first, by `rd_kafka_interceptors_on_thread_start`, whose it is.
//!
//! gzip, lz4 and zstd are unpacked by [`crate::kafka::codecs`] into memory of the size that the batch says (librdkafka counts
//! gzip's in a pass of its own, and tries growing sizes for the others); snappy says its size, and stays librdkafka's.
//! A client that is not [`bound`] is served as if this file were not there.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka_sys::rd_kafka_resp_err_t as Code;

use super::client::Context;
use super::codecs::{self, Codec, Failure, Memory};
use super::memory;
use super::unpacked::{Budget, Refusal, Reservation, Size, batch_head};

type FreeCallback = unsafe extern "C" fn(*mut c_void);

unsafe extern "C" {
    fn __real_rd_gz_decompress(packed: *const c_void, packed_len: c_int, unpacked_len: *mut u64) -> *mut c_void;
    fn __real_rd_kafka_lz4_decompress(
        broker: *mut c_void,
        has_proper_checksum: c_int,
        offset: i64,
        packed: *mut c_char,
        packed_len: usize,
        unpacked: *mut *mut c_void,
        unpacked_len: *mut usize,
    ) -> Code;
    fn __real_rd_kafka_zstd_decompress(
        broker: *mut c_void,
        packed: *mut c_char,
        packed_len: usize,
        unpacked: *mut *mut c_void,
        unpacked_len: *mut usize,
    ) -> Code;
    fn __real_rd_kafka_snappy_java_uncompress(
        packed: *const c_char,
        packed_len: usize,
        unpacked_len: *mut usize,
        error: *mut c_char,
        error_len: usize,
    ) -> *mut c_char;
    fn __real_rd_kafka_snappy_uncompressed_length(packed: *const c_char, packed_len: usize, len: *mut usize) -> bool;
    fn __real_rd_kafka_snappy_uncompress(packed: *const c_char, packed_len: usize, unpacked: *mut c_char) -> c_int;
    fn __real_rd_kafka_buf_new_shadow(memory: *const c_void, len: usize, free: Option<FreeCallback>) -> *mut c_void;
    fn __real_rd_kafka_interceptors_on_thread_start(client: *mut c_void, kind: c_int);
}

/// By librdkafka's handle. Few: a daemon has four.
static CLIENTS: Mutex<Vec<(usize, Weak<Budget>)>> = Mutex::new(Vec::new());
/// Batches that are unpacked, by where they lie.
static UNPACKED: Mutex<Option<HashMap<usize, Unpacked>>> = Mutex::new(None);

struct Unpacked {
    len: usize,
    free: Option<FreeCallback>,
    _reservation: Reservation,
}

/// Room of a client's budget, and of the process's memory until the batch lies in it.
type Reserved = (Reservation, memory::Granted);

thread_local! {
    /// Whose thread this is.
    static CLIENT: Cell<usize> = const { Cell::new(0) };
    /// Of the batch that was just unpacked. One that turned out damaged leaves it to the next one to drop.
    static RESERVED: RefCell<Option<Reserved>> = const { RefCell::new(None) };
    /// Where the batch lies that this thread unpacked last. (Old formats may hold a packed batch in a packed batch.)
    static LAST: Cell<usize> = const { Cell::new(0) };
    /// While librdkafka unpacks the chunks of snappy-java.
    static IS_CHUNKED: Cell<bool> = const { Cell::new(false) };
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on this client unpacks within the budget of its context. To be called before anything is assigned to it.
pub(crate) fn bound(consumer: &BaseConsumer<Context>) {
    let mut clients = locked(&CLIENTS);
    let client = consumer.client().native_ptr() as usize;
    clients.retain(|(other, budget)| *other != client && budget.strong_count() > 0);
    clients.push((client, Arc::downgrade(&consumer.context().unpacked)));
}

/// Of the client whose thread this is.
fn budget() -> Option<Arc<Budget>> {
    let client = CLIENT.get();
    locked(&CLIENTS).iter().find(|(other, _)| *other == client).and_then(|(_, budget)| budget.upgrade())
}

/// # Safety
/// `packed` points to `len` bytes that stay as they are during the call.
unsafe fn slice<'a>(packed: *const c_void, len: usize) -> &'a [u8] {
    // SAFETY: the caller's promise.
    if packed.is_null() { &[] } else { unsafe { std::slice::from_raw_parts(packed.cast(), len) } }
}

/// The size of a batch, by its head if it is of format 2: that lies just before what is packed.
///
/// # Safety
/// `packed` is what librdkafka hands over to be unpacked: it lies in an answer of Kafka, whose head and that of the batch
/// (26 bytes at least in the oldest format, behind 60 at least of the answer's own, from Kafka 3.7 on) come before it in the
/// same memory.
unsafe fn size(packed: &[u8], unpacked: u64) -> Size {
    const READ: usize = 61;
    let unsaid = Size { offset: None, packed: packed.len() as u64, unpacked, messages: 0 };
    if packed.is_empty() || is_within_unpacked(packed.as_ptr() as usize) {
        return unsaid;
    }
    // SAFETY: the caller's promise; a batch within a batch was ruled out.
    let head = unsafe { std::slice::from_raw_parts(packed.as_ptr().sub(READ), READ) };
    match batch_head(head, packed.len()) {
        Some((offset, messages)) => Size { offset: Some(offset), messages, ..unsaid },
        None => unsaid,
    }
}

/// Whether that place is in the batch that this thread unpacked last, while it is there: once it is freed, an answer of
/// Kafka may lie in its place.
fn is_within_unpacked(place: usize) -> bool {
    let start = LAST.get();
    let all = locked(&UNPACKED);
    let last = all.as_ref().and_then(|all| all.get(&start));
    last.is_some_and(|unpacked| (start..start + unpacked.len).contains(&place))
}

/// Room for a batch; if there is none, that is noted.
fn reserve(budget: &Arc<Budget>, size: Size) -> Option<Reserved> {
    let reserved = budget.reserve(size).and_then(|reservation| {
        let granted = memory::grant(size.needed()).ok_or(Refusal::NoMemory)?;
        Ok((reservation, granted))
    });
    reserved.map_err(|why| budget.note(size, why)).ok()
}

/// A batch that librdkafka was to unpack itself turned out damaged: its room is given back, and it is no sound one.
///
/// # Safety
/// As for [`size`].
unsafe fn give_up(packed: &[u8]) {
    RESERVED.take();
    if let Some(budget) = budget() {
        // SAFETY: the caller's promise.
        budget.forget(unsafe { size(packed, 0) });
    }
}

/// Room for a batch that librdkafka unpacks itself, left for `rd_kafka_buf_new_shadow` to take. Without a budget there
/// always is.
///
/// # Safety
/// As for [`size`].
unsafe fn reserve_for_snappy(packed: &[u8], unpacked: u64) -> bool {
    RESERVED.take();
    let Some(budget) = budget() else { return true };
    // SAFETY: the caller's promise.
    let size = unsafe { size(packed, unpacked) };
    let reserved = reserve(&budget, size);
    let has_room = reserved.is_some();
    RESERVED.set(reserved);
    has_room
}

/// Unpacks within the budget. The reservation is left for `rd_kafka_buf_new_shadow` to take.
///
/// # Safety
/// As for [`size`].
unsafe fn unpack(budget: &Arc<Budget>, codec: Codec, packed: &[u8]) -> Option<Memory> {
    RESERVED.take();
    // SAFETY: the caller's promise.
    let said = unsafe { size(packed, 0) };
    match unpack_sized(budget, codec, packed, said) {
        Ok((memory, reserved)) => {
            RESERVED.set(Some(reserved));
            Some(memory)
        }
        // Noted, as a sound batch.
        Err(Unfit::Refused) => None,
        Err(Unfit::Damaged) => {
            budget.forget(said);
            None
        }
    }
}

/// Why there is no unpacked batch.
enum Unfit {
    Refused,
    Damaged,
}

fn unpack_sized(budget: &Arc<Budget>, codec: Codec, packed: &[u8], said: Size) -> Result<(Memory, Reserved), Unfit> {
    let size = |unpacked| Size { unpacked, ..said };
    let count = || codec.count(packed).ok_or(Unfit::Damaged);
    let mut unpacked = codec.bound(packed).ok_or(Unfit::Damaged)?;
    // What a batch says, or allows, may be more than it is: then it is counted, which costs no memory.
    let mut is_counted = !budget.allows(size(unpacked));
    if is_counted {
        unpacked = count()?;
    }
    loop {
        let (mut reservation, granted) = reserve(budget, size(unpacked)).ok_or(Unfit::Refused)?;
        let memory = Memory::new(unpacked).ok_or(Failure::NoMemory);
        match memory.and_then(|mut memory| codec.unpack(packed, &mut memory).map(|()| memory)) {
            Ok(mut memory) => {
                memory.shrink();
                reservation.shrink(size(memory.len() as u64));
                return Ok((memory, (reservation, granted)));
            }
            // It is more than it says.
            Err(Failure::Full) if !is_counted => is_counted = true,
            Err(Failure::NoMemory) => {
                budget.note(size(unpacked), Refusal::NoMemory);
                return Err(Unfit::Refused);
            }
            Err(Failure::Full | Failure::Damaged) => return Err(Unfit::Damaged),
        }
        unpacked = count()?;
    }
}

/// Hands memory over to librdkafka, as its own functions of this shape do.
///
/// # Safety
/// Of librdkafka's call: valid pointers.
unsafe fn give(memory: Option<Memory>, unpacked: *mut *mut c_void, unpacked_len: *mut usize) -> Code {
    let Some(memory) = memory else { return Code::RD_KAFKA_RESP_ERR__BAD_COMPRESSION };
    // SAFETY: the caller's promise.
    unsafe {
        *unpacked_len = memory.len();
        *unpacked = memory.into_raw();
    }
    Code::RD_KAFKA_RESP_ERR_NO_ERROR
}

// SAFETY (all functions below): called by librdkafka alone, as it calls its own, with valid pointers and lengths; what is
// handed on to `__real_…` is what came. The names are nobody else's.

#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_kafka_interceptors_on_thread_start(client: *mut c_void, kind: c_int) {
    CLIENT.set(client as usize);
    unsafe { __real_rd_kafka_interceptors_on_thread_start(client, kind) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_gz_decompress(packed: *const c_void, len: c_int, unpacked_len: *mut u64) -> *mut c_void {
    let (Some(budget), Ok(length)) = (budget(), usize::try_from(len)) else {
        return unsafe { __real_rd_gz_decompress(packed, len, unpacked_len) };
    };
    let memory = unsafe { unpack(&budget, Codec::Gzip, slice(packed, length)) };
    memory.map_or(std::ptr::null_mut(), |memory| {
        unsafe { *unpacked_len = memory.len() as u64 };
        memory.into_raw()
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_kafka_lz4_decompress(
    broker: *mut c_void,
    has_proper_checksum: c_int,
    offset: i64,
    packed: *mut c_char,
    len: usize,
    unpacked: *mut *mut c_void,
    unpacked_len: *mut usize,
) -> Code {
    match budget().filter(|_| has_proper_checksum != 0) {
        Some(budget) => unsafe { give(unpack(&budget, Codec::Lz4, slice(packed.cast(), len)), unpacked, unpacked_len) },
        // Messages of the oldest format, which no broker of today sends.
        None => unsafe {
            __real_rd_kafka_lz4_decompress(broker, has_proper_checksum, offset, packed, len, unpacked, unpacked_len)
        },
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_kafka_zstd_decompress(
    broker: *mut c_void,
    packed: *mut c_char,
    len: usize,
    unpacked: *mut *mut c_void,
    unpacked_len: *mut usize,
) -> Code {
    match budget() {
        Some(budget) => unsafe {
            give(unpack(&budget, Codec::Zstd, slice(packed.cast(), len)), unpacked, unpacked_len)
        },
        None => unsafe { __real_rd_kafka_zstd_decompress(broker, packed, len, unpacked, unpacked_len) },
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_kafka_snappy_java_uncompress(
    packed: *const c_char,
    len: usize,
    unpacked_len: *mut usize,
    error: *mut c_char,
    error_len: usize,
) -> *mut c_char {
    /// What comes before the first chunk, and was passed already.
    const HEAD: usize = 16;
    let (chunks, whole) =
        unsafe { (slice(packed.cast(), len), slice(packed.cast::<c_void>().byte_sub(HEAD), len + HEAD)) };
    let has_room = codecs::snappy_java_size(chunks).is_none_or(|size| unsafe { reserve_for_snappy(whole, size) });
    if !has_room {
        if error_len > 0 {
            // An empty text.
            unsafe { *error = 0 };
        }
        return std::ptr::null_mut();
    }
    IS_CHUNKED.set(true);
    let unpacked = unsafe { __real_rd_kafka_snappy_java_uncompress(packed, len, unpacked_len, error, error_len) };
    IS_CHUNKED.set(false);
    if unpacked.is_null() {
        unsafe { give_up(whole) };
    }
    unpacked
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_kafka_snappy_uncompressed_length(
    packed: *const c_char,
    len: usize,
    unpacked_len: *mut usize,
) -> bool {
    if !unsafe { __real_rd_kafka_snappy_uncompressed_length(packed, len, unpacked_len) } {
        return false;
    }
    IS_CHUNKED.get() || unsafe { reserve_for_snappy(slice(packed.cast(), len), *unpacked_len as u64) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_kafka_snappy_uncompress(
    packed: *const c_char,
    len: usize,
    unpacked: *mut c_char,
) -> c_int {
    let failed = unsafe { __real_rd_kafka_snappy_uncompress(packed, len, unpacked) };
    if failed != 0 {
        unsafe { give_up(slice(packed.cast(), len)) };
    }
    failed
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_kafka_buf_new_shadow(
    memory: *const c_void,
    len: usize,
    free: Option<FreeCallback>,
) -> *mut c_void {
    // From here on the memory counts as taken.
    let Some((reservation, _)) = RESERVED.take() else {
        return unsafe { __real_rd_kafka_buf_new_shadow(memory, len, free) };
    };
    LAST.set(memory as usize);
    let unpacked = Unpacked { len, free, _reservation: reservation };
    locked(&UNPACKED).get_or_insert_default().insert(memory as usize, unpacked);
    unsafe { __real_rd_kafka_buf_new_shadow(memory, len, Some(free_unpacked)) }
}

/// Called once for each batch, by whichever thread drops its last message.
unsafe extern "C" fn free_unpacked(memory: *mut c_void) {
    // Taken before the memory is free: its place may be another batch's at once.
    let unpacked = locked(&UNPACKED).as_mut().and_then(|all| all.remove(&(memory as usize)));
    if let Some(Unpacked { free: Some(free), _reservation, .. }) = unpacked {
        unsafe { free(memory) };
    }
}
