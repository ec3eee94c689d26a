//! Tables of learned positions for another number of patches than they were trained with.

/// Resizes a square table `[from · from, width]` to `[to · to, width]` as `torch.nn.functional.interpolate` does in mode
/// `bicubic` with `align_corners=False`: cubic convolution with a = -0.75, edges repeated, nothing smoothed.
pub(super) fn interpolate(table: &[f32], from: usize, to: usize, width: usize) -> Vec<f32> {
    assert_eq!(table.len(), from * from * width, "a table of {from} x {from} of {width}");
    let taps: Vec<[(usize, f64); 4]> = (0..to).map(|i| taps(i, from, to)).collect();
    let mut out = Vec::with_capacity(to * to * width);
    for (y, x) in (0..to * to).map(|i| (i / to, i % to)) {
        let mut sums = vec![0f64; width];
        for (row, wy) in taps[y] {
            for (col, wx) in taps[x] {
                let values = &table[(row * from + col) * width..][..width];
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += wy * wx * f64::from(*value));
            }
        }
        out.extend(sums.into_iter().map(|sum| sum as f32));
    }
    out
}

/// Where the value at `i` of `to` comes from, of `from`, and with which weights.
fn taps(i: usize, from: usize, to: usize) -> [(usize, f64); 4] {
    const A: f64 = -0.75;
    let at = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
    let t = at - at.floor();
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
    let place = |k: usize| (at.floor() as isize + k as isize - 1).clamp(0, from as isize - 1) as usize;
    std::array::from_fn(|k| (place(k), weights[k]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_torch_does() {
        // torch.nn.functional.interpolate(torch.arange(9.).square().reshape(1, 1, 3, 3), size=(5, 5), …), rows 0 and 3.
        let table: Vec<f32> = (0..9).map(|i| (i * i) as f32).collect();
        let out = interpolate(&table, 3, 5, 1);
        for (at, expected) in TORCH.iter().enumerate() {
            let ours = if at < 5 { out[at] } else { out[10 + at] };
            assert!((ours - expected).abs() < 1e-4, "{at}: {ours}, {expected}");
        }
        assert_eq!(interpolate(&table, 3, 3, 1), table);
    }

    const TORCH: [f32; 10] = [-0.9047, -0.874, -0.44, 1.074, 2.2167, 25.106, 29.5369, 37.276, 46.0951, 51.638];
}
