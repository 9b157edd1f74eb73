//! Replaces the functions by which librdkafka unpacks batches, so that unpacking takes bounded memory.
//!
//! librdkafka 2.12.1 unpacks gzip, lz4 and snappy without a limit of size, and all batches of a response at once. It
//! reports a failed `malloc` as a damaged batch. `build.rs` makes the linker call the functions `__wrap_NAME` of this
//! file instead of librdkafka's `NAME`; `__real_NAME` is librdkafka's function. They depend on these facts of its
//! source:
//! - `rdkafka_msgset_reader.c`, `rd_kafka_msgset_reader_decompress`: it calls one of the unpacking functions, and
//!   directly afterwards `rd_kafka_buf_new_shadow` with the returned memory. The `free_cb` of that buffer is called
//!   once, when the last message of the batch is freed. If an unpacking function fails, the partition gets an error
//!   (`BAD_COMPRESSION`, with the packed size in its text), messages of earlier batches are delivered, and the batch is
//!   fetched again after `fetch.error.backoff.ms`.
//! - `rdgz.c`, `rdkafka_lz4.c`, `rdkafka_zstd.c`, `snappy.c`: the signatures, and that results are freed by `free`.
//! - `rdkafka_broker.c`: a thread calls `rd_kafka_interceptors_on_thread_start` with its client before it unpacks.
//!
//! [`crate::kafka::codecs`] unpacks gzip, lz4 and zstd into memory of the size that the batch states. librdkafka itself
//! counts gzip's size in a separate run, and tries growing sizes for the others. snappy states its size, so librdkafka
//! unpacks it. For a client without [`bound`], all functions call librdkafka's.
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

/// The budgets of the clients, by librdkafka's handle. A daemon has four clients, so a list is enough.
static CLIENTS: Mutex<Vec<(usize, Weak<Budget>)>> = Mutex::new(Vec::new());
/// The unpacked batches that are not freed yet, by address.
static UNPACKED: Mutex<Option<HashMap<usize, Unpacked>>> = Mutex::new(None);

struct Unpacked {
    len: usize,
    free: Option<FreeCallback>,
    _reservation: Reservation,
}

/// Reserved bytes of a client's budget, and the process's memory that is granted until the batch is unpacked into it.
type Reserved = (Reservation, memory::Granted);

thread_local! {
    /// The handle of the client that owns this thread.
    static CLIENT: Cell<usize> = const { Cell::new(0) };
    /// The reservation of the batch that was just unpacked. If the batch is damaged, the next batch drops it.
    static RESERVED: RefCell<Option<Reserved>> = const { RefCell::new(None) };
    /// The address of the batch that this thread unpacked last. In old formats a packed batch may contain another one.
    static LAST: Cell<usize> = const { Cell::new(0) };
    /// True while librdkafka unpacks the chunks of snappy-java.
    static IS_CHUNKED: Cell<bool> = const { Cell::new(false) };
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes this client unpack within the budget of its context. Must be called before the client's first assignment.
pub(crate) fn bound(consumer: &BaseConsumer<Context>) {
    let mut clients = locked(&CLIENTS);
    let client = consumer.client().native_ptr() as usize;
    clients.retain(|(other, budget)| *other != client && budget.strong_count() > 0);
    clients.push((client, Arc::downgrade(&consumer.context().unpacked)));
}

/// The budget of the client that owns this thread.
fn budget() -> Option<Arc<Budget>> {
    let client = CLIENT.get();
    locked(&CLIENTS).iter().find(|(other, _)| *other == client).and_then(|(_, budget)| budget.upgrade())
}

/// # Safety
/// `packed` points to `len` bytes that do not change during the call.
unsafe fn slice<'a>(packed: *const c_void, len: usize) -> &'a [u8] {
    // SAFETY: the caller's promise.
    if packed.is_null() { &[] } else { unsafe { std::slice::from_raw_parts(packed.cast(), len) } }
}

/// The size of a batch. A batch of format 2 has a header with offset and number of messages just before its packed
/// data.
///
/// # Safety
/// `packed` is the data that librdkafka passes to an unpacking function. It lies in a response of Kafka, in the same
/// memory after the headers of response and batch. These take 86 bytes at least: from Kafka 3.7 on 60 for the response,
/// and 26 for a batch of the oldest format.
unsafe fn size(packed: &[u8], unpacked: u64) -> Size {
    const READ: usize = 61;
    let without_header = Size { offset: None, packed: packed.len() as u64, unpacked, messages: 0 };
    if packed.is_empty() || is_within_unpacked(packed.as_ptr() as usize) {
        return without_header;
    }
    // SAFETY: the caller's promise; the batch does not lie within another batch.
    let head = unsafe { std::slice::from_raw_parts(packed.as_ptr().sub(READ), READ) };
    match batch_head(head, packed.len()) {
        Some((offset, messages)) => Size { offset: Some(offset), messages, ..without_header },
        None => without_header,
    }
}

/// Returns true if the address lies in the batch that this thread unpacked last and that is not freed yet: once the
/// batch is freed, a response of Kafka may have the same address.
fn is_within_unpacked(address: usize) -> bool {
    let start = LAST.get();
    let all = locked(&UNPACKED);
    let last = all.as_ref().and_then(|all| all.get(&start));
    last.is_some_and(|unpacked| (start..start + unpacked.len).contains(&address))
}

/// Reserves memory for a batch. If there is too little, the budget records the reason.
fn reserve(budget: &Arc<Budget>, size: Size) -> Option<Reserved> {
    let reserved = budget.reserve(size).and_then(|reservation| {
        let granted = memory::grant(size.needed()).ok_or(Refusal::NoMemory)?;
        Ok((reservation, granted))
    });
    reserved.map_err(|why| budget.note(size, why)).ok()
}

/// Releases the reservation of a batch that librdkafka unpacks itself, because the batch is damaged. Removes its note.
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

/// Reserves memory for a batch that librdkafka unpacks itself. `rd_kafka_buf_new_shadow` takes the reservation. Returns
/// true if there is memory; without a budget always.
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

/// Unpacks within the budget. `rd_kafka_buf_new_shadow` takes the reservation.
///
/// # Safety
/// As for [`size`].
unsafe fn unpack(budget: &Arc<Budget>, codec: Codec, packed: &[u8]) -> Option<Memory> {
    RESERVED.take();
    // SAFETY: the caller's promise.
    let packed_size = unsafe { size(packed, 0) };
    match unpack_sized(budget, codec, packed, packed_size) {
        Ok((memory, reserved)) => {
            RESERVED.set(Some(reserved));
            Some(memory)
        }
        // The budget has recorded the reason.
        Err(Unfit::Refused) => None,
        Err(Unfit::Damaged) => {
            budget.forget(packed_size);
            None
        }
    }
}

/// Why there is no unpacked batch.
enum Unfit {
    Refused,
    Damaged,
}

fn unpack_sized(
    budget: &Arc<Budget>,
    codec: Codec,
    packed: &[u8],
    packed_size: Size,
) -> Result<(Memory, Reserved), Unfit> {
    let size = |unpacked| Size { unpacked, ..packed_size };
    let count = || codec.count(packed).ok_or(Unfit::Damaged);
    let mut unpacked = codec.bound(packed).ok_or(Unfit::Damaged)?;
    // The stated size or the upper bound may be larger than the real size. If it is not allowed, the bytes are counted,
    // which takes no memory.
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
            // The batch is larger than its stated size.
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

/// Passes memory to librdkafka, as its own functions with these parameters do.
///
/// # Safety
/// Both pointers are those of librdkafka's call, and valid.
unsafe fn give(memory: Option<Memory>, unpacked: *mut *mut c_void, unpacked_len: *mut usize) -> Code {
    let Some(memory) = memory else { return Code::RD_KAFKA_RESP_ERR__BAD_COMPRESSION };
    // SAFETY: the caller's promise.
    unsafe {
        *unpacked_len = memory.len();
        *unpacked = memory.into_raw();
    }
    Code::RD_KAFKA_RESP_ERR_NO_ERROR
}

// SAFETY (all functions below): only librdkafka calls them, with the valid pointers and lengths of its own functions.
// The `__real_…` functions get the same arguments. No other code uses these names.

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
        // Messages of the oldest format, which no supported broker sends.
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
    /// The bytes of the header before the first chunk, which librdkafka has skipped.
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
    // The batch is in its memory now, so the operating system counts it: the grant is dropped.
    let Some((reservation, _)) = RESERVED.take() else {
        return unsafe { __real_rd_kafka_buf_new_shadow(memory, len, free) };
    };
    LAST.set(memory as usize);
    let unpacked = Unpacked { len, free, _reservation: reservation };
    locked(&UNPACKED).get_or_insert_default().insert(memory as usize, unpacked);
    unsafe { __real_rd_kafka_buf_new_shadow(memory, len, Some(free_unpacked)) }
}

/// Called once for each batch, by the thread that frees its last message.
unsafe extern "C" fn free_unpacked(memory: *mut c_void) {
    // The entry is removed before the memory is freed: another batch may get the same address at once.
    let unpacked = locked(&UNPACKED).as_mut().and_then(|all| all.remove(&(memory as usize)));
    if let Some(Unpacked { free: Some(free), _reservation, .. }) = unpacked {
        unsafe { free(memory) };
    }
}
