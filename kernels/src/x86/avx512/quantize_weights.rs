//! Floats to blocks: sixteen blocks in the lanes of a vector.

use crate::quantize::lanes::{Lanes, MAX_LANES, Task};
use crate::quantize::quantize_on;
use crate::x86::avx2::quantize_weights as avx2;
use crate::{Dtype, Search};
use std::arch::x86_64::*;

pub fn quantize_weights(
    dtype: Dtype,
    search: Search,
    x: &[f32],
    n_cols: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    match dtype {
        dtype if dtype.is_float() => avx2::quantize_weights(dtype, search, x, n_cols, importance, out),
        _ => quantize_on::<Sixteen, avx2::Eight>(dtype, search, x, n_cols, importance, out),
    }
}

/// Sixteen floats. Reaches code through the table of processors with AVX-512 only: the `unsafe` of each method rests on that.
#[derive(Clone, Copy)]
struct Sixteen(__m512);

/// A function compiled for AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline(never)]
fn call<T: Task>(task: T) -> T::Output {
    task.run::<Sixteen>()
}

lane_operators! { Sixteen: Add add _mm512_add_ps Sub sub _mm512_sub_ps Mul mul _mm512_mul_ps Div div _mm512_div_ps }

impl Lanes for Sixteen {
    const N: usize = 16;
    type Mask = __mmask16;

    lane_methods! {
        fn splat(x: f32) -> Sixteen = Sixteen(_mm512_set1_ps(x));
        fn load(from: &[f32; MAX_LANES]) -> Sixteen = Sixteen(_mm512_loadu_ps(from.as_ptr()));
        fn select(mask: __mmask16, yes: Sixteen, no: Sixteen) -> Sixteen = Sixteen(_mm512_mask_blend_ps(mask, no.0, yes.0));
        fn from_f16(bits: &[u16; MAX_LANES]) -> Sixteen = Sixteen(_mm512_cvtph_ps(_mm256_loadu_si256(bits.as_ptr().cast())));
    }
    lane_methods! { self:
        sqrt() -> Sixteen = |x| Sixteen(_mm512_sqrt_ps(x));
        abs() -> Sixteen = |x| Sixteen(_mm512_abs_ps(x));
        round() -> Sixteen = |x| Sixteen(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x));
        trunc() -> Sixteen = |x| Sixteen(_mm512_roundscale_ps::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(x));
        min(y) -> Sixteen = |x| Sixteen(_mm512_min_ps(x, y));
        max(y) -> Sixteen = |x| Sixteen(_mm512_max_ps(x, y));
        lt(y) -> __mmask16 = |x| _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, y);
        ge(y) -> __mmask16 = |x| _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, y);
        ne(y) -> __mmask16 = |x| _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(x, y);
        low_bits() -> Sixteen = |x| {
            let bits = _mm512_castps_si512(_mm512_add_ps(x, _mm512_set1_ps(12_582_912.0)));
            let bits = _mm512_and_si512(bits, _mm512_set1_epi32(0x7f_ffff));
            let number = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(x, x);
            Sixteen(_mm512_maskz_cvtepi32_ps(number, _mm512_sub_epi32(bits, _mm512_set1_epi32(0x40_0000))))
        };
    }

    #[inline(always)]
    fn and(a: __mmask16, b: __mmask16) -> __mmask16 {
        a & b
    }
    #[inline(always)]
    fn any(mask: __mmask16) -> bool {
        mask != 0
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; MAX_LANES]) {
        // SAFETY: 16 floats are writable, and the store needs no alignment.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn to_bytes(self) -> [u8; MAX_LANES] {
        let mut bytes = [0; MAX_LANES];
        // SAFETY: the processor has AVX-512, and 16 bytes are writable without alignment.
        unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(self.0))) }
        bytes
    }
    #[inline(always)]
    fn to_f16(self) -> [u16; MAX_LANES] {
        let mut bits = [0; MAX_LANES];
        // SAFETY: the processor has AVX-512, and 32 bytes are writable without alignment.
        unsafe {
            let number = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(self.0, self.0);
            let x = _mm512_mask_blend_ps(number, _mm512_set1_ps(f32::NAN), self.0);
            _mm256_storeu_si256(bits.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
        }
        bits
    }
    #[inline(always)]
    fn call<T: Task>(task: T) -> T::Output {
        // SAFETY: the processor has AVX-512 F, BW, DQ and VL.
        unsafe { call(task) }
    }
}
