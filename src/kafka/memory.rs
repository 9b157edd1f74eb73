//! Checks whether the operating system has memory for a large batch: a process that exceeds its limit is killed, and
//! would be killed again after each restart.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::codecs::Memory;

/// Batches below this size are not checked.
const LARGE_ALLOCATION: u64 = 8 * 1024 * 1024;
/// Bytes that the rest of the process needs while the batch exists.
const RESERVED_BYTES: u64 = 16 * 1024 * 1024;
const CGROUPS: &str = "/sys/fs/cgroup";

/// Bytes that were granted and not written yet: the operating system counts memory only once it is written.
static GRANTED: Mutex<u64> = Mutex::new(0);

/// Memory that was granted for a batch. It is dropped once the batch is unpacked into the memory.
#[derive(Debug)]
pub(super) struct Granted(u64);

impl Drop for Granted {
    fn drop(&mut self) {
        *granted() -= self.0;
    }
}

fn granted() -> MutexGuard<'static, u64> {
    GRANTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Grants memory for a batch; `None` if the operating system has too little. For a large batch it checks the limit of
/// the control group (version 2: systemd's `MemoryMax`, a container's limit) and tries an allocation, which fails
/// beyond `ulimit -v` and `-d`.
pub(super) fn grant(bytes: u64) -> Option<Granted> {
    if bytes < LARGE_ALLOCATION {
        return Some(Granted(0));
    }
    // The lock is held during the check: two batches that are unpacked at the same time share the free memory.
    let mut granted = granted();
    let wanted = bytes + *granted + RESERVED_BYTES;
    if room_of_groups().is_some_and(|room| wanted > room) || Memory::new(wanted).is_none() {
        return None;
    }
    *granted += bytes;
    Some(Granted(bytes))
}

/// Bytes that this process's control groups leave free; `None` if they set no limit.
fn room_of_groups() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    room_below(Path::new(CGROUPS), own.lines().find_map(|line| line.strip_prefix("0::/"))?)
}

/// The least free memory of a group and its parent groups.
fn room_below(root: &Path, group: &str) -> Option<u64> {
    let group = root.join(group);
    let groups = group.ancestors().take_while(|path| path.starts_with(root)).map(Path::to_path_buf);
    groups.filter_map(|path| room_of(&path)).min()
}

fn room_of(group: &Path) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(PathBuf::from(group).join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let limit = number("memory.max")?;
    // The kernel frees the file cache when memory is needed.
    let stat = read("memory.stat")?;
    let files = stat.lines().filter_map(|line| line.split_once(' ')).filter(|(name, _)| name.ends_with("active_file"));
    let files: u64 = files.filter_map(|(_, bytes)| bytes.parse::<u64>().ok()).sum();
    Some(limit.saturating_sub(number("memory.current")?.saturating_sub(files)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_free_memory_is_that_of_the_tightest_group_without_its_file_cache() {
        let root = std::env::temp_dir().join(format!("gapless-cgroup-{}", std::process::id()));
        let inner = root.join("pod/container");
        std::fs::create_dir_all(&inner).expect("folders");
        let write = |path: &Path, limit: &str, used: u64| {
            std::fs::write(path.join("memory.max"), format!("{limit}\n")).expect("a file");
            std::fs::write(path.join("memory.current"), format!("{used}\n")).expect("a file");
            let stat = "anon 5\ninactive_anon 7\ninactive_file 20\nactive_file 30\n";
            std::fs::write(path.join("memory.stat"), stat).expect("a file");
        };
        write(&inner, "max", 100);
        assert_eq!(room_below(&root, "pod/container"), None);
        write(&root.join("pod"), "1000", 400);
        assert_eq!(room_below(&root, "pod/container"), Some(650));
        write(&inner, "300", 100);
        assert_eq!(room_below(&root, "pod/container"), Some(250));
        assert_eq!(room_below(&root, ""), None);
        std::fs::remove_dir_all(root).expect("removed");
    }

    #[test]
    fn a_small_batch_is_always_granted_and_one_beyond_all_memory_never() {
        assert!(grant(1024).is_some());
        assert!(grant(1 << 46).is_none());
    }
}
