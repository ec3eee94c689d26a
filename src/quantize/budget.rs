//! Which type each tensor shall have, so that the sum of losses is least and the sum of sizes within a budget.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// One way to store a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate<T> {
    /// What it is.
    pub what: T,
    /// Its size in bytes.
    pub bytes: u64,
    /// How much it harms; not negative.
    pub loss: f64,
}

/// A step from one candidate of a tensor to a larger one.
struct Step {
    /// Loss that a byte saves.
    gain: f64,
    tensor: usize,
    to: usize,
}

impl Ord for Step {
    fn cmp(&self, other: &Step) -> Ordering {
        // Ties go to the tensor that comes first.
        self.gain.total_cmp(&other.gain).then(other.tensor.cmp(&self.tensor)).then(other.to.cmp(&self.to))
    }
}

impl PartialOrd for Step {
    fn partial_cmp(&self, other: &Step) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Step {
    fn eq(&self, other: &Step) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Step {}

/// The place of the chosen candidate of each tensor, or `None` if even the smallest are too large together.
///
/// The best steps per byte are taken first, along each tensor's lower convex hull of loss over size: what minimises
/// `loss + λ · bytes` for a λ that falls until the budget is used (Shoham and Gersho 1988). What is left is spent on the
/// best single steps that still fit.
pub fn choose<T>(tensors: &[Vec<Candidate<T>>], budget: u64) -> Option<Vec<usize>> {
    let hulls: Vec<Vec<usize>> = tensors.iter().map(|candidates| hull(candidates)).collect();
    let mut at = vec![0; tensors.len()];
    let bytes = |tensor: usize, candidate: usize| tensors[tensor][candidate].bytes;
    let smallest: u64 = hulls.iter().enumerate().map(|(i, hull)| bytes(i, hull[0])).sum();
    let mut left = budget.checked_sub(smallest)?;
    let step = |tensor: usize, at: usize| {
        let to = at + 1;
        let (a, b) = (&tensors[tensor][hulls[tensor][at]], &tensors[tensor][*hulls[tensor].get(to)?]);
        Some(Step { gain: (a.loss - b.loss) / (b.bytes - a.bytes) as f64, tensor, to })
    };
    let mut steps: BinaryHeap<Step> = (0..tensors.len()).filter_map(|tensor| step(tensor, 0)).collect();
    while let Some(Step { tensor, to, .. }) = steps.pop() {
        let more = bytes(tensor, hulls[tensor][to]) - bytes(tensor, hulls[tensor][to - 1]);
        if more <= left {
            left -= more;
            at[tensor] = to;
            steps.extend(step(tensor, to));
        }
    }
    let mut chosen: Vec<usize> = at.iter().zip(&hulls).map(|(at, hull)| hull[*at]).collect();
    loop {
        let mut best: Option<Step> = None;
        for (tensor, candidates) in tensors.iter().enumerate() {
            let now = &candidates[chosen[tensor]];
            for (to, next) in candidates.iter().enumerate() {
                if next.bytes > now.bytes && next.bytes - now.bytes <= left && next.loss < now.loss {
                    let gain = (now.loss - next.loss) / (next.bytes - now.bytes) as f64;
                    let step = Step { gain, tensor, to };
                    if best.as_ref().is_none_or(|best| step > *best) {
                        best = Some(step);
                    }
                }
            }
        }
        let Some(Step { tensor, to, .. }) = best else { return Some(chosen) };
        left -= bytes(tensor, to) - bytes(tensor, chosen[tensor]);
        chosen[tensor] = to;
    }
}

/// The places of the candidates on the lower convex hull of loss over size, from the smallest on; at least one.
fn hull<T>(candidates: &[Candidate<T>]) -> Vec<usize> {
    assert!(!candidates.is_empty());
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (&candidates[a], &candidates[b]);
        a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss))
    });
    let mut hull: Vec<usize> = Vec::new();
    for i in order {
        let c = &candidates[i];
        if hull.last().is_some_and(|&last| candidates[last].loss <= c.loss) {
            continue;
        }
        let slope = |a: &Candidate<T>, b: &Candidate<T>| (a.loss - b.loss) / (b.bytes as f64 - a.bytes as f64);
        while let [.., a, b] = hull[..] {
            if slope(&candidates[a], &candidates[b]) > slope(&candidates[b], c) {
                break;
            }
            hull.pop();
        }
        hull.push(i);
    }
    hull
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(of: &[(u64, f64)]) -> Vec<Candidate<()>> {
        of.iter().map(|&(bytes, loss)| Candidate { what: (), bytes, loss }).collect()
    }

    #[test]
    fn hulls_leave_out_what_is_never_best() {
        let all = candidates(&[(5, 1.0), (1, 10.0), (2, 9.5), (3, 4.0), (4, 4.0), (1, 11.0), (6, 0.9)]);
        assert_eq!(hull(&all), [1, 3, 0, 6]);
        assert_eq!(hull(&candidates(&[(3, 1.0)])), [0]);
    }

    #[test]
    fn budgets_are_kept_and_used() {
        // Against all combinations: never above the budget, and close to the best of them.
        let mut state = 1u64;
        let mut random = |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        for _ in 0..200 {
            let tensors: Vec<_> = (0..4)
                .map(|_| {
                    let (n, weight) = (10 + random(90), 1 + random(50));
                    candidates(&[2, 3, 4, 6, 8].map(|bits| (n * bits, weight as f64 * 0.25f64.powi(bits as i32))))
                })
                .collect();
            let size = |chosen: &[usize]| chosen.iter().zip(&tensors).map(|(c, t)| t[*c].bytes).sum::<u64>();
            let loss = |chosen: &[usize]| chosen.iter().zip(&tensors).map(|(c, t)| t[*c].loss).sum::<f64>();
            let (least, most) = (size(&[0; 4]), size(&[4; 4]));
            let budget = least + random(most - least + 1);
            let chosen = choose(&tensors, budget).unwrap();
            assert!(size(&chosen) <= budget);
            let combinations = (0..625).map(|i| [i % 5, i / 5 % 5, i / 25 % 5, i / 125]);
            let best = combinations.filter(|c| size(c) <= budget).map(|c| loss(&c)).fold(f64::MAX, f64::min);
            assert!(loss(&chosen) <= 3.0 * best, "{} {best}", loss(&chosen));
            assert_eq!(choose(&tensors, least - 1), None);
            assert_eq!(choose(&tensors, most), Some(vec![4; 4]));
        }
    }
}
