//! Reads the unpacked size of packed (compressed) batches, and unpacks them into memory of that size.
//!
//! It uses the libraries that librdkafka is linked with: zlib, zstd, and librdkafka's own copy of lz4.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_uint, c_ulonglong, c_void};
use std::mem::MaybeUninit;

/// Counting ends at this number of bytes: no setting allows more.
const COUNTED_AT_MOST: u64 = 4 << 30;
/// The bytes that one step of counting unpacks.
const SCRATCH: usize = 64 * 1024;

/// The compression of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Codec {
    Gzip,
    Lz4,
    Zstd,
}

/// Why a batch was not unpacked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The batch is larger than the memory.
    Full,
    /// The library could not allocate its own memory.
    NoMemory,
    Damaged,
}

impl Codec {
    /// The unpacked size in bytes, or an upper bound; a batch may state a wrong size. `None`: the batch is damaged.
    pub(crate) fn bound(self, packed: &[u8]) -> Option<u64> {
        match self {
            Self::Gzip => gzip_size(packed).or_else(|| self.count(packed)),
            Self::Lz4 => lz4_bound(packed),
            Self::Zstd => zstd_bound(packed),
        }
    }

    /// Counts the unpacked bytes without keeping them. `None`: the batch is damaged.
    pub(crate) fn count(self, packed: &[u8]) -> Option<u64> {
        let counted = match self {
            Self::Gzip => Inflate::new(packed).and_then(|stream| count(stream, packed)),
            Self::Lz4 => Lz4::new().and_then(|stream| count(stream, packed)),
            // Some batches need a larger window than counting allows.
            Self::Zstd => {
                return Zstd::new().and_then(|stream| count(stream, packed)).ok().or_else(|| zstd_bound(packed));
            }
        };
        counted.ok()
    }

    pub(crate) fn unpack(self, packed: &[u8], memory: &mut Memory) -> Result<(), Failure> {
        match self {
            // Data after the end of the gzip stream is an error here; librdkafka ignores it silently.
            Self::Gzip if fill(Inflate::new(packed)?, packed, memory)? < packed.len() => Err(Failure::Damaged),
            Self::Gzip => Ok(()),
            Self::Lz4 if fill(Lz4::new()?, packed, memory)? < packed.len() => Err(Failure::Damaged),
            Self::Lz4 => Ok(()),
            Self::Zstd => unpack_zstd(packed, memory),
        }
    }
}

/// Memory of C's `malloc`, which librdkafka frees.
pub(crate) struct Memory {
    start: *mut u8,
    size: usize,
    /// The number of bytes written so far.
    len: usize,
}

unsafe extern "C" {
    fn malloc(size: usize) -> *mut c_void;
    fn realloc(memory: *mut c_void, size: usize) -> *mut c_void;
    fn free(memory: *mut c_void);
}

impl Memory {
    /// Allocates `size` bytes. `None`: the allocation failed.
    pub(crate) fn new(size: u64) -> Option<Self> {
        let size = usize::try_from(size).ok()?;
        // SAFETY: no preconditions. At least one byte, because librdkafka does not accept NULL for an empty batch.
        let start = unsafe { malloc(size.max(1)) }.cast::<u8>();
        (!start.is_null()).then_some(Self { start, size, len: 0 })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Releases the bytes that were not written.
    pub(crate) fn shrink(&mut self) {
        if self.size - self.len > SCRATCH {
            // SAFETY: allocated by `malloc`; the new size holds all written bytes.
            let start = unsafe { realloc(self.start.cast(), self.len.max(1)) }.cast::<u8>();
            if !start.is_null() {
                (self.start, self.size) = (start, self.len);
            }
        }
    }

    /// The pointer, which the caller frees by C's `free`.
    pub(crate) fn into_raw(self) -> *mut c_void {
        let start = self.start;
        std::mem::forget(self);
        start.cast()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated by `malloc`, freed once.
        unsafe { free(self.start.cast()) }
    }
}

/// The bytes that one step of a stream read and wrote.
struct Step {
    read: usize,
    written: usize,
    is_end: bool,
}

/// The decompression of a library, step by step.
trait Stream {
    /// # Safety
    /// `out` points to `room` bytes that may be written.
    unsafe fn step(&mut self, packed: &[u8], out: *mut u8, room: usize) -> Result<Step, Failure>;
}

fn count(mut stream: impl Stream, packed: &[u8]) -> Result<u64, Failure> {
    let mut scratch = [MaybeUninit::<u8>::uninit(); SCRATCH];
    let (mut read, mut written) = (0, 0);
    while written < COUNTED_AT_MOST {
        // SAFETY: the scratch has this size.
        let step = unsafe { stream.step(&packed[read..], scratch.as_mut_ptr().cast(), SCRATCH) }?;
        read += step.read;
        written += step.written as u64;
        if step.is_end {
            break;
        }
        if step.read == 0 && step.written == 0 {
            return Err(Failure::Damaged);
        }
    }
    Ok(written)
}

/// Unpacks into the memory. Returns the number of packed bytes that were read.
fn fill(mut stream: impl Stream, packed: &[u8], memory: &mut Memory) -> Result<usize, Failure> {
    let mut read = 0;
    loop {
        let mut beyond = 0_u8;
        let room = memory.size - memory.len;
        // When the memory is full, the stream must still reach its end.
        // SAFETY: the rest of the memory, or one byte.
        let step = unsafe {
            match room {
                0 => stream.step(&packed[read..], &raw mut beyond, 1),
                _ => stream.step(&packed[read..], memory.start.add(memory.len), room),
            }
        }?;
        read += step.read;
        if room == 0 && step.written > 0 {
            return Err(Failure::Full);
        }
        memory.len += step.written;
        if step.is_end {
            return Ok(read);
        }
        if step.read == 0 && step.written == 0 {
            return Err(Failure::Damaged);
        }
    }
}

/// The size modulo 2^32, which gzip has at its end. `None` for zlib's format, which has no size.
fn gzip_size(packed: &[u8]) -> Option<u64> {
    let is_gzip = packed.starts_with(&[0x1f, 0x8b]);
    packed.last_chunk::<4>().filter(|_| is_gzip).map(|size| u64::from(u32::from_le_bytes(*size)))
}

struct Inflate(Box<libz_sys::z_stream>);

impl Inflate {
    fn new(packed: &[u8]) -> Result<Self, Failure> {
        /// gzip or zlib, detected by the header, with the largest window, as in librdkafka.
        const WINDOW: c_int = 15 + 32;
        c_uint::try_from(packed.len()).map_err(|_| Failure::Damaged)?;
        unsafe extern "C" fn allocate(_: *mut c_void, items: c_uint, size: c_uint) -> *mut c_void {
            // SAFETY: no preconditions.
            unsafe { malloc(items as usize * size as usize) }
        }
        unsafe extern "C" fn release(_: *mut c_void, memory: *mut c_void) {
            // SAFETY: allocated by `allocate`, freed once by zlib.
            unsafe { free(memory) }
        }
        // In a box, because zlib refuses a stream that was moved.
        let mut stream = Box::new(libz_sys::z_stream {
            next_in: std::ptr::null_mut(),
            avail_in: 0,
            total_in: 0,
            next_out: std::ptr::null_mut(),
            avail_out: 0,
            total_out: 0,
            msg: std::ptr::null_mut(),
            state: std::ptr::null_mut(),
            zalloc: allocate,
            zfree: release,
            opaque: std::ptr::null_mut(),
            data_type: 0,
            adler: 0,
            reserved: 0,
        });
        let size = size_of::<libz_sys::z_stream>() as c_int;
        // SAFETY: a stream as zlib requires it, which `Drop` ends.
        match unsafe { libz_sys::inflateInit2_(&mut *stream, WINDOW, libz_sys::zlibVersion(), size) } {
            libz_sys::Z_OK => Ok(Self(stream)),
            libz_sys::Z_MEM_ERROR => Err(Failure::NoMemory),
            _ => Err(Failure::Damaged),
        }
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: `new` began the stream; it is ended once.
        unsafe { libz_sys::inflateEnd(&mut *self.0) };
    }
}

impl Stream for Inflate {
    unsafe fn step(&mut self, packed: &[u8], out: *mut u8, room: usize) -> Result<Step, Failure> {
        let room = room.min(c_uint::MAX as usize);
        self.0.next_in = packed.as_ptr().cast_mut();
        self.0.avail_in = packed.len() as c_uint;
        self.0.next_out = out;
        self.0.avail_out = room as c_uint;
        // SAFETY: both ranges are valid; zlib does not write to its input.
        let result = unsafe { libz_sys::inflate(&mut *self.0, libz_sys::Z_NO_FLUSH) };
        let step = Step {
            read: packed.len() - self.0.avail_in as usize,
            written: room - self.0.avail_out as usize,
            is_end: result == libz_sys::Z_STREAM_END,
        };
        match result {
            libz_sys::Z_OK | libz_sys::Z_STREAM_END | libz_sys::Z_BUF_ERROR => Ok(step),
            libz_sys::Z_MEM_ERROR => Err(Failure::NoMemory),
            _ => Err(Failure::Damaged),
        }
    }
}

// The functions of librdkafka's own lz4 (lz4frame.h). Every crate that declares them links another copy of lz4.
unsafe extern "C" {
    fn LZ4F_createDecompressionContext(context: *mut *mut c_void, version: c_uint) -> usize;
    fn LZ4F_freeDecompressionContext(context: *mut c_void) -> usize;
    fn LZ4F_isError(code: usize) -> c_uint;
    fn LZ4F_decompress(
        context: *mut c_void,
        out: *mut c_void,
        out_len: *mut usize,
        packed: *const c_void,
        packed_len: *mut usize,
        options: *const c_void,
    ) -> usize;
}

/// An upper bound from the blocks of a frame: producers fill every block but the last one. The frame's own size field
/// is optional and rarely present.
fn lz4_bound(packed: &[u8]) -> Option<u64> {
    const IS_PLAIN: u32 = 1 << 31;
    let (head, rest) = packed.strip_prefix(&[0x04, 0x22, 0x4d, 0x18])?.split_first_chunk::<2>()?;
    let has = |bit: u8| usize::from(head[0] >> bit & 1);
    let block_max = 1_u64 << (8 + 2 * (head[1] >> 4 & 7));
    // Skips the size of the contents, the dictionary's id and the header's checksum.
    let mut rest = rest.get(8 * has(3) + 4 * has(0) + 1..)?;
    let mut bound = 0;
    loop {
        let (size, blocks) = rest.split_first_chunk::<4>()?;
        let size = u32::from_le_bytes(*size);
        if size == 0 {
            return Some(bound);
        }
        let len = (size & !IS_PLAIN) as usize;
        // A packed byte becomes 255 bytes at most.
        let unpacked = if size & IS_PLAIN == 0 { 255 * len as u64 } else { len as u64 };
        bound += unpacked.min(block_max);
        rest = blocks.get(len + 4 * has(4)..)?;
    }
}

struct Lz4(*mut c_void);

impl Lz4 {
    fn new() -> Result<Self, Failure> {
        /// `LZ4F_VERSION`.
        const VERSION: c_uint = 100;
        let mut context = std::ptr::null_mut();
        // SAFETY: a valid out pointer; `Drop` frees it.
        let is_error = unsafe { LZ4F_isError(LZ4F_createDecompressionContext(&mut context, VERSION)) };
        // It fails only if there is no memory.
        if is_error != 0 { Err(Failure::NoMemory) } else { Ok(Self(context)) }
    }
}

impl Drop for Lz4 {
    fn drop(&mut self) {
        // SAFETY: created in `new`, freed once.
        unsafe { LZ4F_freeDecompressionContext(self.0) };
    }
}

impl Stream for Lz4 {
    unsafe fn step(&mut self, packed: &[u8], out: *mut u8, room: usize) -> Result<Step, Failure> {
        /// The error code `LZ4F_ERROR_allocation_failed`.
        const NO_MEMORY: usize = 9_usize.wrapping_neg();
        let (mut read, mut written) = (packed.len(), room);
        // SAFETY: both ranges are valid.
        let left = unsafe {
            LZ4F_decompress(self.0, out.cast(), &mut written, packed.as_ptr().cast(), &mut read, std::ptr::null())
        };
        // SAFETY: no preconditions.
        match unsafe { LZ4F_isError(left) } {
            0 => Ok(Step { read, written, is_end: left == 0 }),
            _ if left == NO_MEMORY => Err(Failure::NoMemory),
            _ => Err(Failure::Damaged),
        }
    }
}

unsafe extern "C" {
    // zstd_sys declares this function only with a feature that builds zstd again.
    fn ZSTD_decompressBound(packed: *const c_void, len: usize) -> c_ulonglong;
}

/// The exact size if the frames contain it, else an upper bound from the number of blocks.
fn zstd_bound(packed: &[u8]) -> Option<u64> {
    /// `ZSTD_CONTENTSIZE_ERROR`.
    const DAMAGED: u64 = u64::MAX - 1;
    // zstd accepts empty input as zero frames. A batch without a frame is damaged.
    if packed.is_empty() {
        return None;
    }
    // SAFETY: a valid range.
    let bound = unsafe { ZSTD_decompressBound(packed.as_ptr().cast(), packed.len()) };
    (bound < DAMAGED).then_some(bound)
}

fn unpack_zstd(packed: &[u8], memory: &mut Memory) -> Result<(), Failure> {
    use zstd_sys::ZSTD_ErrorCode as Code;
    // SAFETY: both ranges are valid.
    let written =
        unsafe { zstd_sys::ZSTD_decompress(memory.start.cast(), memory.size, packed.as_ptr().cast(), packed.len()) };
    // SAFETY: no preconditions.
    match unsafe { zstd_sys::ZSTD_getErrorCode(written) } {
        Code::ZSTD_error_no_error => {
            memory.len = written;
            Ok(())
        }
        Code::ZSTD_error_dstSize_tooSmall => Err(Failure::Full),
        Code::ZSTD_error_memory_allocation => Err(Failure::NoMemory),
        _ => Err(Failure::Damaged),
    }
}

struct Zstd(*mut zstd_sys::ZSTD_DStream);

impl Zstd {
    fn new() -> Result<Self, Failure> {
        /// 16 MiB: the most unpacked data that the stream may keep to refer back to.
        const WINDOW_LOG: c_int = 24;
        // SAFETY: no preconditions; `Drop` frees it.
        let stream = unsafe { zstd_sys::ZSTD_createDStream() };
        if stream.is_null() {
            return Err(Failure::NoMemory);
        }
        // SAFETY: a valid stream.
        unsafe { zstd_sys::ZSTD_DCtx_setParameter(stream, zstd_sys::ZSTD_dParameter::ZSTD_d_windowLogMax, WINDOW_LOG) };
        Ok(Self(stream))
    }
}

impl Drop for Zstd {
    fn drop(&mut self) {
        // SAFETY: created in `new`, freed once.
        unsafe { zstd_sys::ZSTD_freeDStream(self.0) };
    }
}

impl Stream for Zstd {
    unsafe fn step(&mut self, packed: &[u8], out: *mut u8, room: usize) -> Result<Step, Failure> {
        let mut from = zstd_sys::ZSTD_inBuffer { src: packed.as_ptr().cast(), size: packed.len(), pos: 0 };
        let mut to = zstd_sys::ZSTD_outBuffer { dst: out.cast(), size: room, pos: 0 };
        // SAFETY: both ranges are valid.
        let result = unsafe { zstd_sys::ZSTD_decompressStream(self.0, &mut to, &mut from) };
        // SAFETY: no preconditions.
        match unsafe { zstd_sys::ZSTD_isError(result) } {
            // Another frame may follow.
            0 => Ok(Step { read: from.pos, written: to.pos, is_end: result == 0 && from.pos == from.size }),
            _ => Err(Failure::Damaged),
        }
    }
}

/// The sum of the sizes in snappy-java's chunks. `None`: the batch is damaged.
pub(crate) fn snappy_java_size(mut chunks: &[u8]) -> Option<u64> {
    let mut size = 0;
    while let Some((len, rest)) = chunks.split_first_chunk::<4>() {
        let (chunk, next) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        size += snappy_size(chunk)?;
        chunks = next;
    }
    chunks.is_empty().then_some(size)
}

/// The size at the beginning of snappy's data: 7 bits in each byte, the lowest bits first.
fn snappy_size(chunk: &[u8]) -> Option<u64> {
    let last = chunk.iter().take(5).position(|byte| byte & 0x80 == 0)?;
    Some(chunk[..=last].iter().rev().fold(0, |size, byte| size << 7 | u64::from(byte & 0x7f)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One block that is stored without compression.
    fn gzip(content: &[u8]) -> Vec<u8> {
        let len = u16::try_from(content.len()).expect("short");
        // SAFETY: a valid range.
        let crc = unsafe { libz_sys::crc32(0, content.as_ptr(), c_uint::from(len)) };
        let head: &[u8] = &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, 1];
        let sizes = [len.to_le_bytes(), (!len).to_le_bytes()].concat();
        let tail = [(crc as u32).to_le_bytes(), u32::from(len).to_le_bytes()].concat();
        [head, &sizes, content, &tail].concat()
    }

    fn lz4(content: &[u8]) -> Vec<u8> {
        let size = (content.len() as u32 | 1 << 31).to_le_bytes();
        [&[0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82], &size[..], content, &[0; 4]].concat()
    }

    fn zstd(content: &[u8]) -> Vec<u8> {
        let block = ((content.len() as u32) << 3 | 1).to_le_bytes();
        [&[0x28, 0xb5, 0x2f, 0xfd, 0, 0x38], &block[..3], content].concat()
    }

    fn unpack(codec: Codec, packed: &[u8], size: u64) -> Result<usize, Failure> {
        let mut memory = Memory::new(size).expect("memory");
        codec.unpack(packed, &mut memory).map(|()| memory.len())
    }

    #[test]
    fn a_batch_is_unpacked_into_memory_of_its_size_and_into_no_less() {
        let content = [7; 3000];
        let packed = [(Codec::Gzip, gzip(&content)), (Codec::Lz4, lz4(&content)), (Codec::Zstd, zstd(&content))];
        for (codec, packed) in packed {
            let bound = codec.bound(&packed).expect("sound");
            assert!((3000..=128 * 1024).contains(&bound), "{codec:?}: {bound}");
            assert_eq!(codec.count(&packed), Some(3000), "{codec:?}");
            assert_eq!(unpack(codec, &packed, bound), Ok(3000), "{codec:?}");
            assert_eq!(unpack(codec, &packed, 3000), Ok(3000), "{codec:?}");
            assert_eq!(unpack(codec, &packed, 2999), Err(Failure::Full), "{codec:?}");
            assert_eq!(unpack(codec, &packed[..packed.len() - 9], bound), Err(Failure::Damaged), "{codec:?}");
        }
        assert_eq!(unpack(Codec::Lz4, &[lz4(&content), vec![1]].concat(), 3000), Err(Failure::Damaged));
    }

    #[test]
    fn a_batch_that_is_larger_than_its_stated_size_is_counted() {
        let packed = [gzip(&[7; 3000]), gzip(&[7; 3])].concat();
        assert_eq!(Codec::Gzip.bound(&packed), Some(3));
        assert_eq!(unpack(Codec::Gzip, &packed, 3), Err(Failure::Full));
        assert_eq!(Codec::Gzip.count(&packed), Some(3000));
    }

    #[test]
    fn the_size_of_snappy_is_read_with_and_without_chunks() {
        let chunk = [0xac, 0x02, 9, 9];
        assert_eq!(snappy_size(&chunk), Some(300));
        let chunks = [&[0, 0, 0, 4], &chunk[..], &[0, 0, 0, 1, 5]].concat();
        assert_eq!(snappy_java_size(&chunks), Some(305));
        assert_eq!(snappy_java_size(&chunks[..7]), None);
    }
}
