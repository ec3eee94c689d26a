//! Activations to 8 bits.

/// See [`crate::Kernels::quantize`].
pub fn quantize(x: &[f32], q: &mut [i8], scale: &mut [f32], sum16: &mut [f32], sum32: &mut [f32], total: &mut [i32]) {
    let n = x.len();
    assert!(n.is_multiple_of(32));
    assert_eq!((q.len(), scale.len(), sum16.len(), sum32.len(), total.len()), (n, n / 32, n / 16, n / 32, n / 16));
    for (i, (x, q)) in x.as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<32>().0).enumerate() {
        // As integers, the bits of |x| order like |x|, with the NaNs on top.
        let max = f32::from_bits(x.iter().map(|x| x.abs().to_bits()).fold(0, u32::max));
        let (d, factor) = steps(max);
        for (q, x) in q.iter_mut().zip(x) {
            *q = if factor == 0.0 { 0 } else { (x * factor).round_ties_even() as i8 };
        }
        let sum = |q: &[i8]| q.iter().map(|q| i32::from(*q)).sum::<i32>();
        scale[i] = d;
        let (low, high) = (sum(&q[..16]), sum(&q[16..]));
        total[2 * i] = low;
        total[2 * i + 1] = high;
        sum16[2 * i] = d * low as f32;
        sum16[2 * i + 1] = d * high as f32;
        sum32[i] = d * (low + high) as f32;
    }
}

/// The step for a block whose largest magnitude is `max`, and the factor from values to steps. A block with an infinity
/// or a NaN has the step NaN, one too small for a finite factor has the step 0; the factor is then 0.
pub(crate) fn steps(max: f32) -> (f32, f32) {
    let factor = 127.0 / max;
    match () {
        () if !max.is_finite() => (f32::NAN, 0.0),
        () if factor.is_infinite() => (0.0, 0.0),
        () => (max / 127.0, factor),
    }
}
