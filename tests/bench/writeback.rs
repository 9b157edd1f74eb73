//! How the kernel writes files back while latency is measured.
//!
//! By its defaults Linux lets written pages lie for 30 s and then writes them all at once, and whoever waits for the disk
//! meanwhile, as each commit does, waits for all of them. On a host that is made for a database it writes back soon, in
//! small pieces: <https://docs.kernel.org/admin-guide/sysctl/vm.html>.

use anyhow::Context;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Writeback {
    AsItIs,
    /// In small pieces, for as long as latency is measured. Needs root.
    Small,
}

/// Hundredths of a second after which writing back begins, and between two looks. (A bound on the bytes that may lie makes
/// it go on all the time: two megabytes of it took a quarter of a core, and p50 with it from 1.44 to 1.67 ms.)
const SMALL: [(&str, u64); 2] = [("dirty_expire_centisecs", 100), ("dirty_writeback_centisecs", 20)];

/// The kernel's settings as they were, put back when it is dropped.
pub(crate) struct SmallWriteback {
    before: Vec<(&'static str, String)>,
}

impl SmallWriteback {
    pub(crate) fn begin() -> anyhow::Result<Self> {
        let before = SMALL.iter().map(|(name, _)| Ok((*name, read(name)?))).collect::<anyhow::Result<Vec<_>>>()?;
        let this = Self { before };
        for (name, value) in SMALL {
            write(name, &value.to_string())
                .with_context(|| format!("vm.{name} cannot be set; as root, or with --writeback as-it-is"))?;
        }
        Ok(this)
    }
}

impl Drop for SmallWriteback {
    fn drop(&mut self) {
        for (name, value) in &self.before {
            if let Err(error) = write(name, value) {
                eprintln!("put back by hand: sysctl vm.{name}={value} ({error})");
            }
        }
    }
}

fn path(name: &str) -> String {
    format!("/proc/sys/vm/{name}")
}

fn read(name: &str) -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(path(name)).with_context(|| path(name))?.trim().to_owned())
}

fn write(name: &str, value: &str) -> std::io::Result<()> {
    std::fs::write(path(name), value)
}

/// What is in force, in words.
pub(crate) fn in_words() -> String {
    let value = |name: &str| read(name).ok().and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
    let from = match value("dirty_background_bytes") {
        0.0 => format!("{} % of the memory", value("dirty_background_ratio")),
        bytes => format!("{} MB", bytes / f64::from(1 << 20)),
    };
    let (age, pause) = (value("dirty_expire_centisecs") / 100.0, value("dirty_writeback_centisecs") / 100.0);
    format!("the kernel wrote back what was {age} s old, looking every {pause} s, and all from {from} on")
}
