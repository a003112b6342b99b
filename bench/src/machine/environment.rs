//! The machine, kernel, CPUs, disk, versions and commit of a run, so that its figures can be judged later.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sysinfo::{CpuRefreshKind, Disks, MemoryRefreshKind, RefreshKind, System};

/// Above this load average per CPU, a run competes with other processes for the CPUs.
const BUSY_LOAD_PER_CPU: f64 = 1.0;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Environment {
    /// The CPU's name.
    pub machine: String,
    /// Number of CPUs of the machine.
    pub cpus: usize,
    pub memory_bytes: u64,
    /// Load average of the minute before the run.
    pub load_average: f64,
    pub kernel: String,
    /// The CPUs that this process may use, in the kernel's list format: 0-3,8.
    pub cpuset: String,
    /// Device, file system and size of the disk that holds `--disk-dir`.
    pub disk: String,
    /// Version of this harness.
    pub bench_version: String,
    /// The commit that the harness was built from. A + marks uncommitted changes.
    pub commit: String,
    pub librdkafka_version: Option<String>,
    /// The system under test, if the harness started it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker: Option<String>,
}

impl Environment {
    pub fn of_this_machine(disk_dir: &Path) -> Environment {
        let kinds = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        let system = System::new_with_specifics(kinds);
        Environment {
            machine: system.cpus().first().map_or_else(String::new, |cpu| cpu.brand().trim().to_owned()),
            cpus: system.cpus().len(),
            memory_bytes: system.total_memory(),
            load_average: System::load_average().one,
            kernel: System::kernel_version().unwrap_or_default(),
            cpuset: allowed_cpus(),
            disk: disk(disk_dir),
            bench_version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: env!("BENCH_COMMIT").to_owned(),
            librdkafka_version: librdkafka_version(),
            broker: None,
        }
    }

    pub fn print(&self) {
        eprintln!(
            "on {} ({} CPUs, {} allowed), Linux {}, {}; millrace-bench {} of {}",
            self.machine, self.cpus, self.cpuset, self.kernel, self.disk, self.bench_version, self.commit
        );
        if self.is_busy() {
            eprintln!("THE MACHINE IS BUSY with something else: load {:.1} on {} CPUs", self.load_average, self.cpus);
        }
    }
}

#[cfg(feature = "librdkafka")]
fn librdkafka_version() -> Option<String> {
    Some(rdkafka::util::get_rdkafka_version().1)
}

#[cfg(not(feature = "librdkafka"))]
fn librdkafka_version() -> Option<String> {
    None
}

pub fn memory_bytes() -> u64 {
    let ram = MemoryRefreshKind::nothing().with_ram();
    System::new_with_specifics(RefreshKind::nothing().with_memory(ram)).total_memory()
}

impl Environment {
    /// Whether other processes were so busy before the run that they may have influenced its figures.
    pub fn is_busy(&self) -> bool {
        self.load_average > self.cpus as f64 * BUSY_LOAD_PER_CPU
    }
}

/// The CPUs that this process may use, in the kernel's list format.
fn allowed_cpus() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.map_or_else(String::new, |list| list.trim().to_owned())
}

/// The numbers of the CPUs that this process may use.
pub fn allowed_cpu_numbers() -> Vec<usize> {
    numbers(&allowed_cpus())
}

/// Expands 0-2,8 into 0, 1, 2, 8.
fn numbers(list: &str) -> Vec<usize> {
    let ranges = list.split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.trim().parse::<usize>().ok()?..=last.trim().parse().ok()?)
    });
    ranges.flatten().collect()
}

fn disk(dir: &Path) -> String {
    let Ok(dir) = dir.canonicalize() else { return format!("{} (missing)", dir.display()) };
    let disks = Disks::new_with_refreshed_list();
    let holding = disks.list().iter().filter(|disk| dir.starts_with(disk.mount_point()));
    // The longest mount point that contains the directory is its file system.
    match holding.max_by_key(|disk| disk.mount_point().as_os_str().len()) {
        None => "an unknown disk".to_owned(),
        Some(disk) => {
            let (name, system) = (disk.name().to_string_lossy(), disk.file_system().to_string_lossy());
            format!("{name} ({system}, {} GB)", disk.total_space() / 1_000_000_000)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read_as_the_kernel_writes_them() {
        assert_eq!(numbers("0-2,8"), [0, 1, 2, 8]);
        assert_eq!(numbers("3"), [3]);
        assert_eq!(numbers(""), Vec::<usize>::new());
        assert!(!allowed_cpu_numbers().is_empty());
    }

    #[test]
    fn this_machine_is_named() {
        let environment = Environment::of_this_machine(Path::new("."));
        assert!(environment.cpus > 0 && environment.memory_bytes > 0, "{environment:?}");
        assert!(!environment.kernel.is_empty() && !environment.commit.is_empty(), "{environment:?}");
    }
}
