//! Whether the system would give memory for a large batch: a process that takes more than it may is killed, and would be
//! again at each start.

use std::path::{Path, PathBuf};

use super::codecs::Memory;

/// Batches below are not asked for.
const LARGE: u64 = 8 * 1024 * 1024;
/// What the rest of the process needs while the batch is there.
const REST: u64 = 16 * 1024 * 1024;
const CGROUPS: &str = "/sys/fs/cgroup";

/// Asks the limit of the control group (version 2: systemd's `MemoryMax`, a container's limit), and the allocator, which
/// knows of `ulimit -v` and `-d`.
pub(crate) fn has_room(bytes: u64) -> bool {
    let wanted = bytes + REST;
    bytes < LARGE || (room_of_groups().is_none_or(|room| wanted <= room) && Memory::new(wanted).is_some())
}

/// What this process's control groups leave it; `None`: they do not limit it.
fn room_of_groups() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    room_below(Path::new(CGROUPS), own.lines().find_map(|line| line.strip_prefix("0::/"))?)
}

/// Of a group and those that it is in; the least counts.
fn room_below(root: &Path, group: &str) -> Option<u64> {
    let group = root.join(group);
    let groups = group.ancestors().take_while(|path| path.starts_with(root)).map(Path::to_path_buf);
    groups.filter_map(|path| room_of(&path)).min()
}

fn room_of(group: &Path) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(PathBuf::from(group).join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let limit = number("memory.max")?;
    // What files take of it is given back when it is needed.
    let stat = read("memory.stat")?;
    let files = stat.lines().filter_map(|line| line.split_once(' ')).filter(|(name, _)| name.ends_with("active_file"));
    let files: u64 = files.filter_map(|(_, bytes)| bytes.parse::<u64>().ok()).sum();
    Some(limit.saturating_sub(number("memory.current")?.saturating_sub(files)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_is_what_the_tightest_group_leaves_without_its_files() {
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
    fn a_small_batch_always_has_room_and_one_beyond_all_memory_has_none() {
        assert!(has_room(1024));
        assert!(!has_room(1 << 46));
    }
}
