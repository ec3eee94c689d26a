//! How much of the processor is used: how many threads, on which cores, and how they behave beside other programs.

use mmq_kernels::Manners;
use mmq_kernels::cores::Core;
use std::time::Duration;

/// What matters more, speed or battery and company.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Power {
    /// Half as many threads, at most two, on the weaker of the strong cores; they park at once and give way to other
    /// programs.
    Low,
    /// The strong cores; threads give way to other programs.
    Balanced,
    /// The strong cores, whoever else wants them.
    #[default]
    Fast,
}

impl Power {
    /// Every choice with the name that flags take.
    pub const NAMES: [(&str, Power); 3] = [("low", Power::Low), ("balanced", Power::Balanced), ("fast", Power::Fast)];

    /// How many threads, and how they behave, on a system of these cores, of which `n_physical` can work at the same time.
    /// Cores with less than half the capacity of the strongest (the little ones of big.LITTLE) are left alone: work that is
    /// shared with them waits for them.
    pub fn threads(self, cores: &[Core], n_physical: usize) -> (usize, Manners) {
        let strongest = cores.iter().map(|core| core.capacity).max().unwrap_or(0);
        let mut strong: Vec<Core> = cores.iter().copied().filter(|core| 2 * core.capacity >= strongest).collect();
        // Cores that are nearly equal are the system's to choose from.
        let are_unequal = cores.iter().any(|core| 4 * core.capacity < 3 * strongest);
        strong.sort_by_key(|core| core.capacity);
        let all = if are_unequal { strong.len().min(n_physical) } else { n_physical };
        let n = if self == Power::Low { all.div_ceil(2).min(2) } else { all };
        let on = if self == Power::Low { n } else { strong.len() };
        let manners = Manners {
            cores: if are_unequal { strong.iter().take(on).map(|core| core.id).collect() } else { Vec::new() },
            gives_way: self != Power::Fast,
            spin: if self == Power::Low { Duration::ZERO } else { Manners::default().spin },
        };
        (n, manners)
    }
}

impl std::str::FromStr for Power {
    type Err = String;

    fn from_str(name: &str) -> Result<Power, String> {
        let power = Power::NAMES.into_iter().find_map(|(n, power)| (n == name).then_some(power));
        power.ok_or_else(|| format!("{name:?} is none of {}", Power::NAMES.map(|(name, _)| name).join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores(capacities: &[u64]) -> Vec<Core> {
        capacities.iter().enumerate().map(|(id, capacity)| Core { id, capacity: *capacity }).collect()
    }

    #[test]
    fn little_cores_are_left_alone() {
        // Three little, four middle, one big.
        let phone = cores(&[325, 325, 325, 828, 828, 828, 828, 1024]);
        for power in [Power::Fast, Power::Balanced] {
            let (n, manners) = power.threads(&phone, 8);
            assert_eq!((n, manners.cores), (5, vec![3, 4, 5, 6, 7]));
            assert_eq!(manners.gives_way, power == Power::Balanced);
        }
        let (n, manners) = Power::Low.threads(&phone, 8);
        assert_eq!((n, manners.cores, manners.spin), (2, vec![3, 4], Duration::ZERO));
        assert!(manners.gives_way);
        // Two little, two big, of which the process may use one.
        let (n, manners) = Power::Low.threads(&cores(&[400, 400, 1024]), 3);
        assert_eq!((n, manners.cores), (1, vec![2]));
    }

    #[test]
    fn equal_cores_are_the_systems_to_choose() {
        for known in [cores(&[1024; 8]), cores(&[3_600_000, 3_600_000, 3_400_000]), Vec::new()] {
            let counts = [Power::Fast, Power::Balanced, Power::Low].map(|power| {
                let (n, manners) = power.threads(&known, 4);
                assert!(manners.cores.is_empty());
                n
            });
            assert_eq!(counts, [4, 4, 2]);
        }
        assert_eq!(Power::Low.threads(&[], 1).0, 1);
    }
}
