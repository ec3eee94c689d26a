//! How much a vision encoder looks at each patch: the attention that it receives in one layer.

use super::select::dot;
use crate::ops::Cx;
use mmq_kernels::Attention;

/// The attention that each patch receives, averaged over heads: from the class token if there is one (`n_class` is 1 and it
/// comes first), otherwise from all patches. `q` and `k`: `[n_crops, n_class + n_patch, n_head, head_dim]`, with as many
/// heads in both; returns `[n_crops, n_patch]`, of which those of a crop sum to at most 1.
///
/// With a class token that is one row of scores a head, which costs nothing beside the layer; without, as much as the
/// layer's scores: 0.3 GMAC and 5 million exponentials for 576 patches of 16 heads of 64.
pub fn attention_received(
    cx: &Cx<'_>,
    shape: Attention,
    q: &[f32],
    k: &[f32],
    n_class: usize,
    n_pos: usize,
) -> Vec<f32> {
    let (n_head, head_dim, n_patch) = (shape.n_head, shape.head_dim, n_pos - n_class);
    let width = n_head * head_dim;
    assert_eq!((q.len(), q.len() % (n_pos * width), shape.n_head_kv), (k.len(), 0, n_head));
    let n_crops = q.len() / (n_pos * width);
    let n_query = if n_class > 0 { 1 } else { n_pos };

    let mut by_head = vec![0f32; n_crops * n_head * n_patch];
    cx.device.team.rows(&mut by_head, n_patch, &|i, received| {
        let (crop, head) = (i / n_head, i % n_head);
        let row = |pos: usize| (crop * n_pos + pos) * width + head * head_dim;
        let mut scores = vec![0f32; n_pos];
        for query in 0..n_query {
            let query = &q[row(query)..][..head_dim];
            for (pos, score) in scores.iter_mut().enumerate() {
                *score = dot(query, &k[row(pos)..][..head_dim]) * shape.scale;
            }
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            scores.iter_mut().for_each(|score| *score = (*score - max).exp());
            let share = 1.0 / (scores.iter().sum::<f32>() * (n_query * n_head) as f32);
            received.iter_mut().zip(&scores[n_class..]).for_each(|(sum, score)| *sum += score * share);
        }
    });
    let mut received = vec![0f32; n_crops * n_patch];
    for (sum, heads) in received.chunks_exact_mut(n_patch).zip(by_head.chunks_exact(n_head * n_patch)) {
        for head in heads.chunks_exact(n_patch) {
            sum.iter_mut().zip(head).for_each(|(sum, one)| *sum += one);
        }
    }
    received
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Cpu;
    use mmq_kernels::Activations;

    /// The textbook's softmax in double precision, then the mean over heads and queries.
    fn plain(q: &[f32], k: &[f32], s: Attention, n_class: usize, n_pos: usize) -> Vec<f64> {
        let width = s.n_head * s.head_dim;
        let n_query = if n_class > 0 { 1 } else { n_pos };
        let mut out = Vec::new();
        for crop in 0..q.len() / (n_pos * width) {
            let mut received = vec![0.0; n_pos];
            for (head, query) in (0..s.n_head).flat_map(|h| (0..n_query).map(move |q| (h, q))) {
                let at = |x: &[f32], pos: usize, i: usize| -> f64 {
                    x[(crop * n_pos + pos) * width + head * s.head_dim + i].into()
                };
                let score = |pos: usize| (0..s.head_dim).map(|i| at(q, query, i) * at(k, pos, i)).sum::<f64>();
                let e: Vec<f64> = (0..n_pos).map(|pos| (score(pos) * f64::from(s.scale)).exp()).collect();
                let sum: f64 = e.iter().sum();
                received.iter_mut().zip(e).for_each(|(r, e)| *r += e / sum / (s.n_head * n_query) as f64);
            }
            out.extend_from_slice(&received[n_class..]);
        }
        out
    }

    #[test]
    fn it_is_the_softmax_that_the_layer_computes() {
        let shape = Attention { n_head: 3, n_head_kv: 3, head_dim: 20, scale: 20f32.powf(-0.5), causal: None };
        for (n_class, n_patch) in [(1, 9), (0, 9), (1, 1), (0, 30)] {
            let n_pos = n_class + n_patch;
            let noise = |seed: u32| -> Vec<f32> {
                let value =
                    |i: u32| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / (1 << 22) as f32 - 2.0;
                (0..2 * n_pos as u32 * 60).map(value).collect()
            };
            let (q, k) = (noise(1), noise(77));
            let expected = plain(&q, &k, shape, n_class, n_pos);
            let mut before = None;
            for n_threads in [1, 2, 5] {
                let cpu = Cpu::new(Some(n_threads));
                let mut activations = Activations::default();
                let received = attention_received(&Cx::new(&cpu, &mut activations), shape, &q, &k, n_class, n_pos);
                assert_eq!(received.len(), expected.len());
                for (ours, theirs) in received.iter().zip(&expected) {
                    assert!((f64::from(*ours) - theirs).abs() < 1e-6, "{ours} {theirs}");
                }
                assert!(received.chunks(n_patch).all(|crop| crop.iter().sum::<f32>() <= 1.0 + 1e-5));
                assert_eq!(*before.get_or_insert(received.clone()), received, "{n_threads} threads");
            }
        }
    }
}
