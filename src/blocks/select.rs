//! Fewer rows of features: some chosen by saliency and coverage and the others merged into their nearest, or a grid of
//! rows averaged to a coarser one. It knows rows of any encoder and how salient they are, and no more.
//!
//! The choice is SCOPE's (arXiv 2510.24214): greedily the row with the largest product of its saliency and the coverage
//! that it adds, where a set of rows covers each row by its largest cosine to it. For a crop of CLIP ViT-L/14-336, 576 rows of
//! 1024, that is a product of 0.34 GMAC for the cosines and a few hundred thousand additions for the choice.

use crate::ops::{self, Cx};
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Most rows that [`select`] takes: their cosines fill 64 MiB.
pub const MAX_ROWS: usize = 4096;

/// Which rows are kept, and where each row goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// The rows that are kept, in ascending order.
    pub kept: Vec<usize>,
    /// For each row an index of `kept` and its weight there: 1 for the kept row itself, the cosine to it for others.
    pub goes_to: Vec<(usize, f32)>,
}

impl Selection {
    /// The kept rows, each averaged by weight with those that go to it: `x: [n, width]` to `[kept.len(), width]`. A row that
    /// nothing goes to is as it was.
    pub fn merge(&self, x: &[f32], width: usize) -> Vec<f32> {
        assert_eq!(x.len(), self.goes_to.len() * width);
        let mut out = vec![0f32; self.kept.len() * width];
        let mut weights = vec![0f32; self.kept.len()];
        for (row, (to, weight)) in x.chunks_exact(width).zip(&self.goes_to) {
            if *weight > 0.0 {
                weights[*to] += weight;
                out[to * width..][..width].iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x);
            }
        }
        for (row, weight) in out.chunks_exact_mut(width).zip(weights) {
            row.iter_mut().for_each(|sum| *sum /= weight);
        }
        out
    }
}

/// Chooses `n` rows of `x: [n_rows, width]` by their `saliency: [n_rows]`, none below 0, and the coverage that they add; of
/// equals the first.
///
/// # Panics
/// If there are more than [`MAX_ROWS`] rows, or `n` is 0 or more than they are.
pub fn select(cx: &mut Cx<'_>, x: &[f32], width: usize, saliency: &[f32], n: usize) -> Selection {
    let n_rows = saliency.len();
    assert_eq!(x.len(), n_rows * width);
    assert!(n_rows <= MAX_ROWS && (1..=n_rows).contains(&n), "{n} of {n_rows} rows");
    let cosine = cosines(cx, x, width);
    let cosine = |row: usize| &cosine[row * n_rows..][..n_rows];

    // What a row adds can only become less as others are chosen, in floating point too, so that a row which comes out on
    // top with a score that is up to date is the best of all: few have to be computed again at each step.
    let mut covered = vec![0f32; n_rows];
    let score = |row: usize, covered: &[f32]| saliency[row] * added(cosine(row), covered);
    let candidates = (0..n_rows).map(|row| Candidate { score: score(row, &covered), row, n_chosen: 0 });
    let mut candidates: BinaryHeap<Candidate> = candidates.collect();
    let mut kept = Vec::with_capacity(n);
    while kept.len() < n {
        let best = candidates.pop().expect("fewer are chosen than there are");
        if best.n_chosen < kept.len() {
            candidates.push(Candidate { score: score(best.row, &covered), row: best.row, n_chosen: kept.len() });
            continue;
        }
        kept.push(best.row);
        covered.iter_mut().zip(cosine(best.row)).for_each(|(covered, cosine)| *covered = covered.max(*cosine));
    }
    kept.sort_unstable();

    let goes_to = (0..n_rows).map(|row| match kept.binary_search(&row) {
        Ok(itself) => (itself, 1.0),
        Err(_) => {
            let cosine = cosine(row);
            let near = kept.iter().map(|to| cosine[*to]).enumerate();
            near.fold((0, 0.0), |nearest, (to, cosine)| if cosine > nearest.1 { (to, cosine) } else { nearest })
        }
    });
    Selection { goes_to: goes_to.collect(), kept }
}

/// A row that may be chosen next; larger is better.
struct Candidate {
    score: f32,
    row: usize,
    /// How many were chosen when the score was computed.
    n_chosen: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.row.cmp(&self.row))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate {}

/// Cosines of all rows of `x: [n, width]` to each other: `[n, n]`. Rows that have no length are like none.
fn cosines(cx: &mut Cx<'_>, x: &[f32], width: usize) -> Vec<f32> {
    let mut unit = x.to_vec();
    for row in unit.chunks_exact_mut(width) {
        let length = dot(row, row).sqrt();
        let scale = if length.is_normal() { 1.0 / length } else { 0.0 };
        row.iter_mut().for_each(|x| *x *= scale);
    }
    let mut cosines = Vec::new();
    ops::gram(cx, &unit, width, &mut cosines);
    cosines
}

/// Sums are kept in this many parts, so that vector instructions can make them: the order is fixed all the same.
const LANES: usize = 16;

/// `Σ max(0, cosine - covered)`.
fn added(cosine: &[f32], covered: &[f32]) -> f32 {
    sum(cosine, covered, |cosine, covered| (cosine - covered).max(0.0))
}

/// `Σ a · b`.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum(a, b, |a, b| a * b)
}

fn sum(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += f(*a, *b);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| f(*a, *b)).sum();
    sums.iter().sum::<f32>() + rest
}

/// Shares `n` out in proportion to `sizes`, the largest remainders being rounded up, of equals the first. No share is larger
/// than its size.
///
/// # Panics
/// If `n` is more than the sum of the sizes.
pub fn shares(n: usize, sizes: &[usize]) -> Vec<usize> {
    let total: usize = sizes.iter().sum();
    assert!(n <= total, "{n} of {total}");
    // In 64 bits there is room for the product wherever the rows themselves fit into memory.
    let (n, total) = (n as u64, total.max(1) as u64);
    let mut shares: Vec<usize> = sizes.iter().map(|size| (n * *size as u64 / total) as usize).collect();
    let mut by_remainder: Vec<usize> = (0..sizes.len()).collect();
    by_remainder.sort_by_key(|i| Reverse(n * sizes[*i] as u64 % total));
    let left = n as usize - shares.iter().sum::<usize>();
    by_remainder.iter().take(left).for_each(|i| shares[*i] += 1);
    shares
}

/// The largest grid, (rows, columns), of nearly the proportions of `rows` and `cols` that takes at most `n` positions, of
/// which newlines take `n_newline` for every `rows` rows or fewer. `None` if not one place fits.
pub fn coarser(n: usize, rows: usize, cols: usize, n_newline: usize) -> Option<(usize, usize)> {
    let fits = (1..=rows).filter_map(|r| {
        // At most one row or column off the true proportions.
        let most = (r * cols + rows.max(cols)) / rows;
        let c = (n.checked_sub((r * n_newline).div_ceil(rows))? / r).min(cols).min(most);
        let off = (c * rows).abs_diff(r * cols);
        (c > 0 && off <= rows.max(cols)).then_some((r, c, off))
    });
    let best = fits.max_by_key(|(r, c, off)| (r * c, Reverse(*off)));
    best.map(|(r, c, _)| (r, c))
}

/// Averages the areas of a grid `x: [rows, cols, width]` that the places of a coarser one, (rows, columns), cover.
pub fn pool(x: &[f32], (rows, cols): (usize, usize), width: usize, to: (usize, usize)) -> Vec<f32> {
    assert_eq!(x.len(), rows * cols * width);
    assert!((1..=rows).contains(&to.0) && (1..=cols).contains(&to.1), "{rows}x{cols} to {to:?}");
    let (down, across) = (parts(rows, to.0), parts(cols, to.1));
    let mut out = vec![0f32; to.0 * to.1 * width];
    let places = down.iter().flat_map(|down| across.iter().map(move |across| (down, across)));
    for (out, (down, across)) in out.chunks_exact_mut(width).zip(places) {
        for ((row, a), (col, b)) in down.iter().flat_map(|row| across.iter().map(move |col| (row, col))) {
            let (x, weight) = (&x[(row * cols + col) * width..][..width], a * b);
            out.iter_mut().zip(x).for_each(|(sum, x)| *sum += weight * x);
        }
    }
    out
}

/// For each of `to` equal parts of a line of `from` places: the places that it covers, with the share of the part that
/// each makes up.
fn parts(from: usize, to: usize) -> Vec<Vec<(usize, f32)>> {
    // In units of 1/to of a place, of which a part covers `from`.
    let part = |i: usize| {
        let (start, end) = (i * from, (i + 1) * from);
        let share = |place: usize| (end.min((place + 1) * to) - start.max(place * to)) as f32 / from as f32;
        (start / to..end.div_ceil(to)).map(|place| (place, share(place))).collect()
    };
    (0..to).map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Cpu;
    use mmq_kernels::Activations;

    fn noise(n: usize, mut seed: u64) -> Vec<f32> {
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 40) as f32 / (1 << 24) as f32
        };
        (0..n).map(|_| next()).collect()
    }

    /// Rows around a few centres, so that there is something to stand for.
    fn clusters(n_rows: usize, width: usize, seed: u64) -> Vec<f32> {
        let (centres, off) = (noise(5 * width, seed), noise(n_rows * width, seed + 1));
        let centre = |i: usize| centres[i / width * 7 % 5 * width + i % width];
        off.iter().enumerate().map(|(i, off)| 2.0 * centre(i) - 1.0 + 0.6 * off).collect()
    }

    fn choose(x: &[f32], width: usize, saliency: &[f32], n: usize, n_threads: usize) -> Selection {
        let cpu = Cpu::new(Some(n_threads));
        select(&mut Cx::new(&cpu, &mut Activations::default()), x, width, saliency, n)
    }

    fn plain_cosine(x: &[f32], width: usize, a: usize, b: usize) -> f64 {
        let row = |i: usize| x[i * width..][..width].iter().map(|x| f64::from(*x));
        let dot = |a: usize, b: usize| row(a).zip(row(b)).map(|(a, b)| a * b).sum::<f64>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    }

    /// Every step looks at every row, in double precision.
    fn plain(x: &[f32], width: usize, saliency: &[f32], n: usize) -> Vec<usize> {
        let n_rows = saliency.len();
        let cosine = |a, b| plain_cosine(x, width, a, b);
        let mut kept: Vec<usize> = Vec::new();
        while kept.len() < n {
            let covered = |row: usize, kept: &[usize]| kept.iter().map(|k| cosine(*k, row)).fold(0.0, f64::max);
            let score = |row: usize| {
                let added = |other: usize| (cosine(row, other) - covered(other, &kept)).max(0.0);
                f64::from(saliency[row]) * (0..n_rows).map(added).sum::<f64>()
            };
            let left = (0..n_rows).filter(|row| !kept.contains(row));
            kept.push(left.max_by(|a, b| score(*a).total_cmp(&score(*b))).unwrap());
        }
        kept.sort_unstable();
        kept
    }

    #[test]
    fn it_chooses_what_the_plain_greedy_does() {
        for (n_rows, width, seed) in [(1, 3, 1), (20, 7, 2), (36, 48, 3), (40, 64, 4)] {
            let (x, saliency) = (clusters(n_rows, width, seed), noise(n_rows, seed + 9));
            for n in [1, 2, n_rows / 4, n_rows / 2, n_rows - 1].into_iter().filter(|n| (1..=n_rows).contains(n)) {
                let chosen = choose(&x, width, &saliency, n, 2);
                assert_eq!(chosen.kept, plain(&x, width, &saliency, n), "{n} of {n_rows}");
            }
        }
    }

    #[test]
    fn the_others_go_to_their_nearest_and_weights_make_a_mean() {
        let (n_rows, width, n) = (40, 24, 9);
        let (x, saliency) = (clusters(n_rows, width, 5), noise(n_rows, 6));
        let chosen = choose(&x, width, &saliency, n, 2);
        let merged = chosen.merge(&x, width);
        let mut sums = vec![0f64; n * width];
        let mut weights = vec![0f64; n];
        for row in 0..n_rows {
            let cosine = |to: &usize| plain_cosine(&x, width, *to, row);
            let nearest = chosen.kept.iter().max_by(|a, b| cosine(a).total_cmp(&cosine(b))).unwrap();
            let to = chosen.kept.binary_search(nearest).unwrap();
            let weight = cosine(nearest).max(0.0);
            assert_eq!(chosen.goes_to[row].0, to);
            assert!((f64::from(chosen.goes_to[row].1) - weight).abs() < 1e-5);
            weights[to] += weight;
            for i in 0..width {
                sums[to * width + i] += weight * f64::from(x[row * width + i]);
            }
        }
        for (i, merged) in merged.iter().enumerate() {
            assert!((f64::from(*merged) - sums[i] / weights[i / width]).abs() < 1e-5);
        }
        // A column that is the same everywhere stays so.
        let ones: Vec<f32> = chosen.merge(&vec![1.0; n_rows], 1);
        assert!(ones.iter().all(|one| (one - 1.0).abs() < 1e-6), "{ones:?}");
    }

    #[test]
    fn all_rows_are_themselves() {
        let x = clusters(30, 16, 8);
        let chosen = choose(&x, 16, &noise(30, 1), 30, 1);
        assert_eq!(chosen.kept, (0..30).collect::<Vec<_>>());
        assert_eq!(chosen.merge(&x, 16), x);
    }

    #[test]
    fn threads_change_nothing() {
        let (x, saliency) = (clusters(200, 96, 11), noise(200, 12));
        let one = choose(&x, 96, &saliency, 50, 1);
        for n_threads in [2, 3, 7] {
            assert_eq!(choose(&x, 96, &saliency, 50, n_threads), one, "{n_threads} threads");
        }
    }

    #[test]
    fn rows_that_are_zero_or_no_numbers_do_no_harm() {
        let mut x = clusters(20, 8, 3);
        x[..16].fill(0.0);
        let chosen = choose(&x, 8, &noise(20, 4), 20, 2);
        assert_eq!(chosen.kept.len(), 20);
        for bad in [f32::NAN, f32::INFINITY, f32::MAX] {
            x[40] = bad;
            for saliency in [vec![bad; 20], vec![0.0; 20], noise(20, 4)] {
                let chosen = choose(&x, 8, &saliency, 5, 2);
                assert!(chosen.kept.is_sorted_by(|a, b| a < b) && chosen.kept.len() == 5, "{:?}", chosen.kept);
                assert_eq!(chosen.merge(&x, 8).len(), 40);
            }
        }
    }

    #[test]
    fn shares_are_in_proportion() {
        assert_eq!(shares(10, &[100, 100]), [5, 5]);
        assert_eq!(shares(3, &[576, 576, 288, 288]), [1, 1, 1, 0]);
        assert_eq!(shares(1, &[5, 9, 9]), [0, 1, 0]);
        assert_eq!(shares(0, &[0, 4]), [0, 0]);
        for n in 0..=47 {
            let sizes = [24, 0, 17, 6];
            let shares = shares(n, &sizes);
            assert_eq!(shares.iter().sum::<usize>(), n);
            for (share, size) in shares.iter().zip(sizes) {
                assert!(*share <= size && (*share as f64 - (n * size) as f64 / 47.0).abs() < 1.0, "{n}: {shares:?}");
            }
        }
    }

    #[test]
    fn coarser_grids_fit_and_keep_their_proportions() {
        assert_eq!(coarser(128, 24, 24, 0), Some((11, 11)));
        assert_eq!(coarser(64, 24, 24, 0), Some((8, 8)));
        assert_eq!(coarser(18, 6, 6, 0), Some((4, 4)));
        assert_eq!(coarser(577, 24, 24, 1), Some((24, 24)));
        assert_eq!(coarser(1, 48, 30, 48), None);
        assert_eq!(coarser(2, 48, 30, 48), Some((1, 1)));
        assert_eq!(coarser(9, 5, 0, 5), None);
        for (rows, cols, n_newline) in [(24, 24, 0), (24, 24, 1), (48, 29, 48), (7, 72, 7), (72, 1, 72)] {
            let mut before = 0;
            for n in 2..=rows * cols + n_newline {
                let (r, c) = coarser(n, rows, cols, n_newline).unwrap_or_else(|| panic!("{n} in {rows}x{cols}"));
                assert!(r <= rows && c <= cols && r * c + (r * n_newline).div_ceil(rows) <= n, "{n}: {r}x{c}");
                assert!(r * c >= before, "{n}: {r}x{c}");
                before = r * c;
            }
            assert_eq!(before, rows * cols);
        }
    }

    #[test]
    fn pooling_is_the_mean_of_areas() {
        let x = noise(6 * 6 * 4, 7);
        assert_eq!(pool(&x, (6, 6), 4, (6, 6)), x);
        // A line of three to a line of two: each takes one and a half.
        let pooled = pool(&[3.0, 6.0, 12.0], (1, 3), 1, (1, 2));
        assert!((pooled[0] - 4.0).abs() < 1e-6 && (pooled[1] - 10.0).abs() < 1e-6, "{pooled:?}");
        let pooled = pool(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], (4, 2), 1, (2, 1));
        assert_eq!(pooled, [2.5, 6.5]);
        for to in [(1, 1), (2, 5), (5, 3), (4, 4)] {
            let pooled = pool(&x, (6, 6), 4, to);
            let mean = |x: &[f32]| x.iter().sum::<f32>() / x.len() as f32;
            assert!((mean(&pooled) - mean(&x)).abs() < 1e-5);
        }
    }
}
