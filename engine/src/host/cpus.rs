//! Chooses the CPUs that the broker runs on, one core each, and says why.
//! Lives on: the main thread, before any core starts. [`crate::host::cgroup`] reads the limits.
//!
//! Cores = (affinity mask ∩ cgroup cpuset), at most ⌊cgroup CPU quota⌋ of them and at least one. The setting `cores`
//! replaces this choice. All CPUs that it names must be in that set.

use std::{fmt::Write as _, io};

use crate::{
    config::cpu_list::CpuList,
    host::cgroup::{Cgroups, Quota},
};

/// The CPUs that the broker runs on: core n is pinned to `cpus[n]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorePlan {
    pub cpus: Vec<usize>,
    /// For the banner: the reasons for this number of cores.
    pub why: String,
}

#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    #[error("cannot read the CPUs that this process may use: {0}")]
    Affinity(io::Error),
    #[error(
        "cores = {wanted}: this process may not use CPU {refused}, only {allowed} ({why}); name some of these, or none"
    )]
    NotAllowed { wanted: CpuList, refused: CpuList, allowed: CpuList, why: String },
    #[error(
        "no CPU is both in the affinity mask ({affinity}) and in the cgroup's cpuset ({cpuset}); change one of them"
    )]
    NoneLeft { affinity: CpuList, cpuset: CpuList },
}

/// The CPUs and the CPU time that the system allows.
#[derive(Clone, Debug, Default)]
struct Allowed {
    affinity: CpuList,
    cpuset: Option<CpuList>,
    quota: Option<Quota>,
}

/// Plans the cores by the system's present limits. `wanted`: the setting `cores`.
pub fn plan(wanted: Option<&CpuList>, cgroups: &Cgroups) -> Result<CorePlan, CpuError> {
    let affinity = affinity().map_err(CpuError::Affinity)?;
    decide(&Allowed { affinity, cpuset: cgroups.cpuset(), quota: cgroups.cpu_quota() }, wanted)
}

fn decide(allowed: &Allowed, wanted: Option<&CpuList>) -> Result<CorePlan, CpuError> {
    let Allowed { affinity, cpuset, quota } = allowed;
    let mut usable = affinity.clone();
    let mut why = format!("affinity {affinity}");
    if let Some(cpuset) = cpuset {
        usable.0.retain(|cpu| cpuset.0.contains(cpu));
        // Writing to a string does not fail.
        let _ = write!(why, ", cgroup cpuset {cpuset}");
        if usable.0.is_empty() {
            return Err(CpuError::NoneLeft { affinity: affinity.clone(), cpuset: cpuset.clone() });
        }
    }
    if let Some(wanted) = wanted {
        let refused: CpuList = wanted.0.difference(&usable.0).copied().collect();
        if !refused.0.is_empty() {
            return Err(CpuError::NotAllowed { wanted: wanted.clone(), refused, allowed: usable, why });
        }
        return Ok(CorePlan { cpus: wanted.0.iter().copied().collect(), why: format!("cores = {wanted}") });
    }
    let mut cpus: Vec<usize> = usable.0.into_iter().collect();
    if let Some(quota) = quota {
        let most = quota.whole_cpus().max(1);
        let _ = write!(why, ", cgroup quota {quota}");
        cpus.truncate(most);
    }
    Ok(CorePlan { cpus, why })
}

/// This process's affinity mask.
fn affinity() -> io::Result<CpuList> {
    // The kernel rejects a mask that is shorter than its own. The usual 1024 bits are too few on some machines.
    for words in [16, 64, 256, 1024] {
        let mut mask = vec![0u64; words];
        // SAFETY: the buffer has the given length and is aligned for the type, and a CPU set is plain bits.
        let status = unsafe { libc::sched_getaffinity(0, words * 8, mask.as_mut_ptr().cast()) };
        if status == 0 {
            return Ok((0..words * 64).filter(|cpu| mask[cpu / 64] >> (cpu % 64) & 1 == 1).collect());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
    }
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> CpuList {
        text.parse().unwrap()
    }

    #[test]
    fn cores_follow_affinity_cpuset_quota_and_setting() {
        let quota = |us| Some(Quota { us, period_us: 100_000 });
        type Row<'a> = (&'a str, Option<&'a str>, Option<Quota>, Option<&'a str>, Result<&'a [usize], &'a str>);
        let rows: &[Row<'_>] = &[
            ("0-3", None, None, None, Ok(&[0, 1, 2, 3])),
            ("0-3", Some("2-7"), None, None, Ok(&[2, 3])),
            ("0-3", Some("2-7"), quota(100_000), None, Ok(&[2])),
            ("0-3", None, quota(250_000), None, Ok(&[0, 1])),
            ("0-3", None, quota(50_000), None, Ok(&[0])),
            ("0-3", None, quota(6_400_000), None, Ok(&[0, 1, 2, 3])),
            ("5,9", None, None, None, Ok(&[5, 9])),
            ("0-3", None, None, Some("1,3"), Ok(&[1, 3])),
            // If the operator names cores, the quota does not count.
            ("0-3", None, quota(100_000), Some("0-2"), Ok(&[0, 1, 2])),
            (
                "0-3",
                Some("0-1"),
                None,
                Some("1-2"),
                Err("this process may not use CPU 2, only 0-1 (affinity 0-3, cgroup cpuset 0-1)"),
            ),
            ("0-1", Some("2-3"), None, None, Err("affinity mask (0-1)")),
        ];
        for (affinity, cpuset, quota, wanted, expected) in rows {
            let allowed = Allowed { affinity: list(affinity), cpuset: cpuset.map(list), quota: *quota };
            match (decide(&allowed, wanted.map(list).as_ref()), expected) {
                (Ok(plan), Ok(cpus)) => assert_eq!(plan.cpus, *cpus),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (got, _) => panic!("{affinity} {cpuset:?} {wanted:?}: {got:?}"),
            }
        }
    }

    #[test]
    fn the_plan_says_why() {
        let allowed = Allowed {
            affinity: list("0-7"),
            cpuset: Some(list("0-3")),
            quota: Some(Quota { us: 250_000, period_us: 100_000 }),
        };
        assert_eq!(decide(&allowed, None).unwrap().why, "affinity 0-7, cgroup cpuset 0-3, cgroup quota 2.5 CPUs");
        assert_eq!(decide(&allowed, Some(&list("2"))).unwrap().why, "cores = 2");
    }

    #[test]
    fn this_process_may_run_somewhere() {
        let affinity = affinity().unwrap();
        assert!(!affinity.0.is_empty());
        let plan = plan(None, &Cgroups::discover()).unwrap();
        assert!(plan.cpus.iter().all(|cpu| affinity.0.contains(cpu)));
    }
}
