//! The limits that the control groups of this process set: CPUs, CPU time, memory. Handles versions 1 and 2, also side
//! by side.
//! Lives on: the main thread, at start.
//!
//! A limit holds for all groups below the one that sets it, so the lowest limit of all ancestors counts. Inside a
//! container, the path in `/proc/self/cgroup` may lie outside the mounted part. Then the mount's root is the
//! container's own group.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use crate::config::cpu_list::CpuList;

/// CPU time per period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub us: u64,
    pub period_us: u64,
}

impl Quota {
    /// Rounded down: one core less is better than cores that the kernel pauses.
    pub fn whole_cpus(self) -> usize {
        usize::try_from(self.us / self.period_us).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CPUs", (self.us * 100 / self.period_us) as f64 / 100.0)
    }
}

/// The directories to read: first the process's own group, then its ancestors. Empty if the controller does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroups {
    v2: Vec<PathBuf>,
    v1_cpu: Vec<PathBuf>,
    v1_cpuset: Vec<PathBuf>,
    v1_memory: Vec<PathBuf>,
}

/// From about this value on, a memory limit of version 1 means 'none' (PAGE_COUNTER_MAX, which depends on the page
/// size).
const V1_MEMORY_NONE: u64 = i64::MAX as u64 & !0xf_ffff;

impl Cgroups {
    /// Finds the groups of this process. An unreadable file counts as no limit.
    pub fn discover() -> Cgroups {
        Cgroups::discover_under(Path::new("/"))
    }

    fn discover_under(root: &Path) -> Cgroups {
        let read = |path| fs::read_to_string(root.join(path)).unwrap_or_default();
        let memberships = read("proc/self/cgroup");
        let mounts = read("proc/self/mountinfo");
        let dirs = |controller: Option<&str>| {
            let (path, mount) = (membership(&memberships, controller)?, mount_of(&mounts, controller)?);
            Some(group_dirs(root, &mount, path))
        };
        Cgroups {
            v2: dirs(None).unwrap_or_default(),
            v1_cpu: dirs(Some("cpu")).unwrap_or_default(),
            v1_cpuset: dirs(Some("cpuset")).unwrap_or_default(),
            v1_memory: dirs(Some("memory")).unwrap_or_default(),
        }
    }

    /// The CPUs of the process's group. The kernel keeps a group's effective set within its parents' sets.
    pub fn cpuset(&self) -> Option<CpuList> {
        let v2 = first(&self.v2, "cpuset.cpus.effective");
        let v1 = || first(&self.v1_cpuset, "cpuset.effective_cpus").or_else(|| first(&self.v1_cpuset, "cpuset.cpus"));
        v2.or_else(v1)?.parse().ok()
    }

    pub fn cpu_quota(&self) -> Option<Quota> {
        let v2 = self.v2.iter().filter_map(|dir| parse_cpu_max(&read(dir, "cpu.max")?));
        let v1 = self
            .v1_cpu
            .iter()
            .filter_map(|dir| parse_cfs(&read(dir, "cpu.cfs_quota_us")?, &read(dir, "cpu.cfs_period_us")?));
        v2.chain(v1).min_by_key(|quota| quota.us * 1000 / quota.period_us)
    }

    /// The memory limit in bytes.
    pub fn memory_limit(&self) -> Option<u64> {
        let v2 = self.v2.iter().filter_map(|dir| read(dir, "memory.max")?.parse().ok());
        let v1 = self.v1_memory.iter().filter_map(|dir| read(dir, "memory.limit_in_bytes")?.parse().ok());
        v2.chain(v1.filter(|bytes| *bytes < V1_MEMORY_NONE)).min()
    }
}

fn read(dir: &Path, name: &str) -> Option<String> {
    fs::read_to_string(dir.join(name)).ok().map(|text| text.trim().to_owned())
}

fn first(dirs: &[PathBuf], name: &str) -> Option<String> {
    dirs.iter().find_map(|dir| read(dir, name)).filter(|text| !text.is_empty())
}

/// Parses `cpu.max`: quota and period, or `max` for no quota.
fn parse_cpu_max(text: &str) -> Option<Quota> {
    let (us, period_us) = text.split_once(' ')?;
    quota(us.parse().ok()?, period_us.parse().ok()?)
}

/// Parses the quota of version 1. -1 means no quota.
fn parse_cfs(us: &str, period_us: &str) -> Option<Quota> {
    quota(us.parse().ok()?, period_us.parse().ok()?)
}

fn quota(us: u64, period_us: u64) -> Option<Quota> {
    (us > 0 && period_us > 0).then_some(Quota { us, period_us })
}

/// This process's path in a hierarchy. `None` as the controller means version 2 (hierarchy 0).
fn membership<'a>(memberships: &'a str, controller: Option<&str>) -> Option<&'a str> {
    memberships.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let ours = match controller {
            None => id == "0" && controllers.is_empty(),
            Some(controller) => controllers.split(',').any(|name| name == controller),
        };
        ours.then_some(path)
    })
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// The mounted part of the hierarchy.
    root: String,
    point: String,
}

/// Finds where a hierarchy is mounted. A line: `36 35 98:0 ROOT POINT OPTIONS TAGS… - TYPE SOURCE SUPER_OPTIONS`
/// (proc(5)).
fn mount_of(mounts: &str, controller: Option<&str>) -> Option<Mount> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        let mut right = right.split(' ');
        let (kind, options) = (right.next()?, right.nth(1)?);
        let ours = match controller {
            None => kind == "cgroup2",
            Some(controller) => kind == "cgroup" && options.split(',').any(|option| option == controller),
        };
        ours.then(|| Mount { root: root.to_owned(), point: point.to_owned() })
    })
}

fn group_dirs(root: &Path, mount: &Mount, path: &str) -> Vec<PathBuf> {
    let point = root.join(mount.point.trim_start_matches('/'));
    let below = match mount.root.as_str() {
        "/" => Some(path),
        mounted => path.strip_prefix(mounted).filter(|rest| rest.is_empty() || rest.starts_with('/')),
    };
    let below = below.unwrap_or_default().trim_start_matches('/');
    // A path with '..' lies outside this namespace.
    let below = if below.split('/').any(|part| part == "..") { "" } else { below };
    let own = point.join(below);
    let own = if own.is_dir() { own } else { point.clone() };
    own.ancestors().take_while(|dir| dir.starts_with(&point)).map(Path::to_path_buf).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates the files of a system. A path that ends with '/' is a directory.
    fn system(files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroups) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let cgroups = Cgroups::discover_under(root.path());
        (root, cgroups)
    }

    const V2_MOUNT: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const GIB: u64 = 1 << 30;

    #[test]
    fn version_2_takes_the_least_of_all_ancestors() {
        let (_root, cgroups) = system(&[
            ("proc/self/cgroup", "0::/system.slice/millrace.service\n"),
            ("proc/self/mountinfo", V2_MOUNT),
            ("sys/fs/cgroup/cpuset.cpus.effective", "0-7\n"),
            ("sys/fs/cgroup/system.slice/cpu.max", "200000 100000\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "1073741824\n"),
            ("sys/fs/cgroup/system.slice/cpuset.cpus.effective", "0-3\n"),
            ("sys/fs/cgroup/system.slice/millrace.service/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/system.slice/millrace.service/memory.max", "max\n"),
        ]);
        assert_eq!(cgroups.cpu_quota(), Some(Quota { us: 200_000, period_us: 100_000 }));
        assert_eq!(cgroups.memory_limit(), Some(GIB));
        assert_eq!(cgroups.cpuset(), Some("0-3".parse().unwrap()));
    }

    #[test]
    fn version_1_has_a_hierarchy_per_controller() {
        let mounts = "31 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      32 25 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      33 25 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
                      34 25 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let (_root, cgroups) = system(&[
            ("proc/self/cgroup", "4:memory:/a\n3:cpuset:/\n2:cpu,cpuacct:/a/b\n0::/\n"),
            ("proc/self/mountinfo", mounts),
            ("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us", "150000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/cpuset/cpuset.cpus", "1,3\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "2147483648\n"),
        ]);
        assert_eq!(cgroups.cpu_quota(), Some(Quota { us: 150_000, period_us: 100_000 }));
        assert_eq!(cgroups.cpu_quota().unwrap().whole_cpus(), 1);
        assert_eq!(cgroups.memory_limit(), Some(2 * GIB));
        assert_eq!(cgroups.cpuset(), Some("1,3".parse().unwrap()));
    }

    #[test]
    fn no_limit_is_no_limit() {
        let (_root, cgroups) = system(&[
            ("proc/self/cgroup", "0::/\n"),
            ("proc/self/mountinfo", V2_MOUNT),
            ("sys/fs/cgroup/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/memory.max", "max\n"),
        ]);
        assert_eq!((cgroups.cpu_quota(), cgroups.memory_limit(), cgroups.cpuset()), (None, None, None));
        let (_root, nothing) = system(&[]);
        assert_eq!((nothing.cpu_quota(), nothing.memory_limit(), nothing.cpuset()), (None, None, None));
    }

    #[test]
    fn a_container_sees_its_own_group_at_the_mounts_root() {
        let files = |membership: &'static str, mounts: &'static str| {
            [
                ("proc/self/cgroup", membership),
                ("proc/self/mountinfo", mounts),
                ("sys/fs/cgroup/memory.max", "1073741824"),
                ("sys/fs/cgroup/inner/memory.max", "1000"),
            ]
        };
        let bound = "30 23 0:26 /docker/ab /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        for (membership, mounts, expected) in [
            ("0::/docker/ab\n", bound, GIB),
            ("0::/docker/ab/inner\n", bound, 1000),
            ("0::/docker/abc\n", bound, GIB),
            ("0::/../other\n", V2_MOUNT, GIB),
            ("0::/not/mounted\n", V2_MOUNT, GIB),
        ] {
            let (_root, cgroups) = system(&files(membership, mounts));
            assert_eq!(cgroups.memory_limit(), Some(expected), "{membership}");
        }
    }

    #[test]
    fn quotas_are_told_in_cpus() {
        assert_eq!(Quota { us: 250_000, period_us: 100_000 }.to_string(), "2.5 CPUs");
        assert_eq!(Quota { us: 1_000_000, period_us: 1_000_000 }.to_string(), "1 CPUs");
    }
}
