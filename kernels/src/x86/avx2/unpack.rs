//! Rows of blocks to panels.
//!
//! Eight rows at a time: 16 bytes of each row are transposed while they are still packed, so that each vector holds
//! 4 bytes of 8 rows; the bit operations that follow are the same for every byte.

use super::{bit, field, iq4_values, load, load_half, store, store_floats};
use crate::Dtype;
use crate::block::*;
use crate::panel::{FLOAT_COLS, FloatPanel, PANEL_COLS, PANEL_ROWS, Panel, Source};
use crate::scalar::unpack::offset;
use std::arch::x86_64::*;
use std::mem::offset_of;

pub fn unpack(dtype: Dtype, source: &Source<'_>, panel: &mut Panel) {
    let (weights, size) = dtype.block();
    let n_blocks = source.row_bytes() / size;
    assert!(n_blocks * weights <= PANEL_COLS);
    for half in 0..2 {
        let out = &mut Half8 { panel, half };
        // SAFETY: this function is in the table of processors with AVX2 and F16C only.
        unsafe {
            match source {
                Source::Rows(rows) => quants(dtype, &Rows::apart(rows, half), n_blocks, out),
                Source::Panel(panel) => quants(dtype, &Rows::interleaved(panel, half), n_blocks, out),
            }
        }
    }
}

#[target_feature(enable = "avx2,f16c")]
fn quants<const P: bool>(dtype: Dtype, rows: &Rows<'_, P>, n_blocks: usize, out: &mut Half8<'_>) {
    match dtype {
        Dtype::Q4_0 => q4_0(rows, n_blocks, out),
        Dtype::Q4_1 => q4_1(rows, n_blocks, out),
        Dtype::Q5_0 => q5_0(rows, n_blocks, out),
        Dtype::Q5_1 => q5_1(rows, n_blocks, out),
        Dtype::Q8_0 => q8_0(rows, n_blocks, out),
        Dtype::IQ4_NL => iq4_nl(rows, n_blocks, out),
        Dtype::Q2_K => q2_k(rows, n_blocks, out),
        Dtype::Q3_K => q3_k(rows, n_blocks, out),
        Dtype::Q4_K => q4_k(rows, n_blocks, out),
        Dtype::Q5_K => q5_k(rows, n_blocks, out),
        Dtype::Q6_K => q6_k(rows, n_blocks, out),
        Dtype::IQ4_XS => iq4_xs(rows, n_blocks, out),
        _ => unreachable!("{dtype} has no quants"),
    }
}

pub fn prefetch(source: &Source<'_>) {
    let ahead = |bytes: &[u8]| {
        for at in (0..bytes.len()).step_by(64) {
            // SAFETY: a prefetch touches no memory and may name any address.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(bytes.as_ptr().wrapping_add(at).cast()) };
        }
    };
    match source {
        Source::Rows(rows) => rows.iter().for_each(|row| ahead(row)),
        Source::Panel(panel) => ahead(panel),
    }
}

/// Eight rows of the same length: apart, or (`INTERLEAVED`) half of a panel. Offsets are those within a row.
struct Rows<'a, const INTERLEAVED: bool> {
    /// Each row, or the panel in place of the first.
    bytes: [&'a [u8]; 8],
    half: usize,
}

impl<'a> Rows<'a, false> {
    fn apart(rows: &[&'a [u8]; PANEL_ROWS], half: usize) -> Self {
        let bytes = std::array::from_fn(|r| rows[8 * half + r]);
        assert!(bytes.iter().all(|row| row.len() == bytes[0].len()));
        Rows { bytes, half }
    }
}

impl<'a> Rows<'a, true> {
    fn interleaved(panel: &'a [u8], half: usize) -> Self {
        Rows { bytes: [panel; 8], half }
    }
}

impl<const INTERLEAVED: bool> Rows<'_, INTERLEAVED> {
    /// The units of `N / 8` bytes at `at` of the eight rows of a panel.
    #[inline(always)]
    fn unit<const N: usize>(&self, at: usize) -> &[u8; N] {
        self.bytes[0][PANEL_ROWS * at + N * self.half..].first_chunk().expect("whole blocks")
    }

    /// Vector `i` holds bytes `at + 4 i ..` of each row.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn transpose(&self, at: usize) -> [__m256i; 4] {
        if INTERLEAVED {
            return std::array::from_fn(|i| at + 4 * i).map(|at| self.words(at));
        }
        assert!(at + 16 <= self.bytes[0].len());
        // SAFETY: the rows are as long as the first, which has 16 bytes at `at`.
        let load = |r: usize| unsafe { _mm_loadu_si128(self.bytes[r].as_ptr().add(at).cast()) };
        let both = |r: usize| _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load(r)), load(r + 4));
        let (a, b, c, d) = (both(0), both(1), both(2), both(3));
        let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
        [
            _mm256_unpacklo_epi64(ab_low, cd_low),
            _mm256_unpackhi_epi64(ab_low, cd_low),
            _mm256_unpacklo_epi64(ab_high, cd_high),
            _mm256_unpackhi_epi64(ab_high, cd_high),
        ]
    }

    /// The 4 bytes at `at` of each row.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn words(&self, at: usize) -> __m256i {
        if INTERLEAVED {
            return load(self.unit(at));
        }
        assert!(at + 4 <= self.bytes[0].len());
        // SAFETY: the rows are as long as the first, which has 4 bytes at `at`.
        let load = |r: usize| unsafe { self.bytes[r].as_ptr().add(at).cast::<i32>().read_unaligned() };
        _mm256_setr_epi32(load(0), load(1), load(2), load(3), load(4), load(5), load(6), load(7))
    }

    /// The 2 bytes at `at` of each row.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn shorts(&self, at: usize) -> __m128i {
        if INTERLEAVED {
            return load_half(self.unit(at));
        }
        assert!(at + 2 <= self.bytes[0].len());
        // SAFETY: the rows are as long as the first, which has 2 bytes at `at`.
        let load = |r: usize| unsafe { self.bytes[r].as_ptr().add(at).cast::<i16>().read_unaligned() };
        _mm_setr_epi16(load(0), load(1), load(2), load(3), load(4), load(5), load(6), load(7))
    }

    /// The F16 at `at` of each row.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn floats(&self, at: usize) -> __m256 {
        _mm256_cvtph_ps(self.shorts(at))
    }
}

/// The half of a panel that eight rows fill.
struct Half8<'a> {
    panel: &'a mut Panel,
    half: usize,
}

impl Half8<'_> {
    /// Quants of four columns from `4 · step` on.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn quants(&mut self, step: usize, q: __m256i) {
        store(&mut self.panel.q[step].as_chunks_mut().0[self.half], q);
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn scale(&mut self, group: usize, scale: __m256) {
        store_floats(&mut self.panel.scale[group].as_chunks_mut().0[self.half], scale);
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn min(&mut self, group: usize, min: __m256) {
        store_floats(&mut self.panel.min[group].as_chunks_mut().0[self.half], min);
    }

    /// The scale of a symmetric type, and the min that makes its quants unsigned.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn symmetric(&mut self, dtype: Dtype, group: usize, scale: __m256) {
        self.scale(group, scale);
        self.min(group, _mm256_mul_ps(scale, _mm256_set1_ps(f32::from(offset(dtype)))));
    }
}

/// The two F16 of each 32-bit lane: the low ones and the high ones.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn halves(v: __m256i) -> [__m256; 2] {
    let packed = _mm256_packus_epi32(_mm256_and_si256(v, _mm256_set1_epi32(0xffff)), _mm256_srli_epi32::<16>(v));
    let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
    [_mm256_cvtph_ps(_mm256_castsi256_si128(ordered)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(ordered))]
}

/// Byte `i` of each 32-bit lane as a float.
#[inline]
#[target_feature(enable = "avx2")]
fn byte(v: __m256i, i: usize) -> __m256 {
    let v = _mm256_srl_epi32(v, _mm_cvtsi32_si128(8 * i as i32));
    _mm256_cvtepi32_ps(_mm256_and_si256(v, _mm256_set1_epi32(255)))
}

/// Signed byte `i` of each 32-bit lane as a float.
#[inline]
#[target_feature(enable = "avx2")]
fn signed_byte(v: __m256i, i: usize) -> __m256 {
    let v = _mm256_sll_epi32(v, _mm_cvtsi32_si128(24 - 8 * i as i32));
    _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(v))
}

#[inline]
#[target_feature(enable = "avx2")]
fn negate(v: __m256) -> __m256 {
    _mm256_xor_ps(v, _mm256_set1_ps(-0.0))
}

/// The 32 nibbles of 16 bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles<const P: bool>(rows: &Rows<'_, P>, at: usize) -> [__m256i; 8] {
    let [a, b, c, d] = rows.transpose(at);
    [
        field(a, 0, 15),
        field(b, 0, 15),
        field(c, 0, 15),
        field(d, 0, 15),
        field(a, 4, 15),
        field(b, 4, 15),
        field(c, 4, 15),
        field(d, 4, 15),
    ]
}

/// The fifth bits of Q5_0 and Q5_1 for step `s`, from the words `qh`.
#[inline]
#[target_feature(enable = "avx2")]
fn fifth_bits(qh: __m256i, s: usize) -> __m256i {
    let from = _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404, 0x08080808, 0x0c0c0c0c);
    let spread = _mm256_shuffle_epi8(qh, _mm256_add_epi8(from, _mm256_set1_epi8(s as i8 / 2)));
    let mask = _mm256_set1_epi32(if s.is_multiple_of(2) { 0x08040201 } else { 0x80402010_u32 as i32 });
    let set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, mask), mask);
    _mm256_and_si256(set, _mm256_set1_epi8(16))
}

#[target_feature(enable = "avx2,f16c")]
fn q4_0<const P: bool>(rows: &Rows<'_, P>, n_blocks: usize, out: &mut Half8<'_>) {
    for i in 0..n_blocks {
        let at = i * size_of::<Q4_0>();
        let q = nibbles(rows, at + offset_of!(Q4_0, qs));
        for (s, q) in q.into_iter().enumerate() {
            out.quants(8 * i + s, q);
        }
        out.symmetric(Dtype::Q4_0, i, rows.floats(at));
    }
}

#[target_feature(enable = "avx2,f16c")]
fn q4_1<const P: bool>(rows: &Rows<'_, P>, n_blocks: usize, out: &mut Half8<'_>) {
    for i in 0..n_blocks {
        let at = i * size_of::<Q4_1>();
        let q = nibbles(rows, at + offset_of!(Q4_1, qs));
        for (s, q) in q.into_iter().enumerate() {
            out.quants(8 * i + s, q);
        }
        let [d, m] = halves(rows.words(at));
        out.scale(i, d);
        out.min(i, negate(m));
    }
}

#[target_feature(enable = "avx2,f16c")]
fn q5_0<const P: bool>(rows: &Rows<'_, P>, n_blocks: usize, out: &mut Half8<'_>) {
    for i in 0..n_blocks {
        let at = i * size_of::<Q5_0>();
        let q = nibbles(rows, at + offset_of!(Q5_0, qs));
        let qh = rows.words(at + offset_of!(Q5_0, qh));
        for (s, q) in q.into_iter().enumerate() {
            out.quants(8 * i + s, _mm256_or_si256(q, fifth_bits(qh, s)));
        }
        out.symmetric(Dtype::Q5_0, i, rows.floats(at));
    }
}

#[target_feature(enable = "avx2,f16c")]
fn q5_1<const P: bool>(rows: &Rows<'_, P>, n_blocks: usize, out: &mut Half8<'_>) {
    for i in 0..n_blocks {
        let at = i * size_of::<Q5_1>();
        let q = nibbles(rows, at + offset_of!(Q5_1, qs));
        let qh = rows.words(at + offset_of!(Q5_1, qh));
        for (s, q) in q.into_iter().enumerate() {
            out.quants(8 * i + s, _mm256_or_si256(q, fifth_bits(qh, s)));
        }
        let [d, m] = halves(rows.words(at));
        out.scale(i, d);
        out.min(i, negate(m));
    }
}

#[target_feature(enable = "avx2,f16c")]
fn q8_0<const P: bool>(rows: &Rows<'_, P>, n_blocks: usize, out: &mut Half8<'_>) {
    for i in 0..n_blocks {
        let at = i * size_of::<Q8_0>();
        for part in 0..2 {
            let q = rows.transpose(at + offset_of!(Q8_0, qs) + 16 * part);
            for (s, q) in q.into_iter().enumerate() {
                out.quants(8 * i + 4 * part + s, q);
            }
        }
        out.scale(i, rows.floats(at));
    }
}

#[target_feature(enable = "avx2,f16c")]
fn iq4_nl<const P: bool>(rows: &Rows<'_, P>, n_blocks: usize, out: &mut Half8<'_>) {
    for i in 0..n_blocks {
        let at = i * size_of::<IQ4_NL>();
        let q = nibbles(rows, at + offset_of!(IQ4_NL, qs));
        for (s, q) in q.into_iter().enumerate() {
            out.quants(8 * i + s, iq4_values(q));
        }
        out.scale(i, rows.floats(at));
    }
}

#[target_feature(enable = "avx2,f16c")]
fn q2_k<const P: bool>(rows: &Rows<'_, P>, n_blocks: usize, out: &mut Half8<'_>) {
    for i in 0..n_blocks {
        let at = i * size_of::<Q2_K>();
        for h in 0..2 {
            for part in 0..2 {
                let q = rows.transpose(at + offset_of!(Q2_K, qs) + 32 * h + 16 * part);
                for j in 0..4 {
                    for (s, q) in q.into_iter().enumerate() {
                        out.quants(64 * i + 32 * h + 8 * j + 4 * part + s, field(q, 2 * j, 3));
                    }
                }
            }
        }
        let [d, dmin] = halves(rows.words(at + offset_of!(Q2_K, d)));
        let scales = rows.transpose(at + offset_of!(Q2_K, scales));
        for (g, v) in scales.into_iter().enumerate() {
            for b in 0..4 {
                out.scale(16 * i + 4 * g + b, _mm256_mul_ps(d, byte(field(v, 0, 15), b)));
                out.min(16 * i + 4 * g + b, _mm256_mul_ps(dmin, byte(field(v, 4, 15), b)));
            }
        }
    }
}

#[target_feature(enable = "avx2,f16c")]
fn q3_k<const P: bool>(rows: &Rows<'_, P>, n_blocks: usize, out: &mut Half8<'_>) {
    for i in 0..n_blocks {
        let at = i * size_of::<Q3_K>();
        for part in 0..2 {
            let high = rows.transpose(at + offset_of!(Q3_K, hmask) + 16 * part);
            for h in 0..2 {
                let low = rows.transpose(at + offset_of!(Q3_K, qs) + 32 * h + 16 * part);
                for j in 0..4 {
                    for s in 0..4 {
                        let q = _mm256_or_si256(field(low[s], 2 * j, 3), bit(high[s], 4 * h + j, 2));
                        out.quants(64 * i + 32 * h + 8 * j + 4 * part + s, q);
                    }
                }
            }
        }
        let d = rows.floats(at + offset_of!(Q3_K, d));
        let scales = at + offset_of!(Q3_K, scales);
        let (a, b, c) = (rows.words(scales), rows.words(scales + 4), rows.words(scales + 8));
        for g in 0..4 {
            let low = field(if g % 2 == 0 { a } else { b }, g / 2 * 4, 15);
            let high = _mm256_slli_epi16::<4>(field(c, 2 * g, 3));
            let v = _mm256_sub_epi8(_mm256_or_si256(low, high), _mm256_set1_epi8(32));
            for b in 0..4 {
                out.symmetric(Dtype::Q3_K, 16 * i + 4 * g + b, _mm256_mul_ps(d, signed_byte(v, b)));
            }
        }
    }
}

/// The scales and mins of Q4_K and Q5_K, whose blocks both begin with d, dmin and the packed scales.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn groups_k4<const P: bool>(rows: &Rows<'_, P>, at: usize, i: usize, out: &mut Half8<'_>) {
    const { assert!(offset_of!(Q4_K, scales) == 4 && offset_of!(Q5_K, scales) == 4) };
    let [factors, a, b, c] = rows.transpose(at);
    let [d, dmin] = halves(factors);
    let upper = |v| _mm256_and_si256(_mm256_srli_epi16::<2>(v), _mm256_set1_epi8(0x30));
    let scales = [field(a, 0, 63), _mm256_or_si256(field(c, 0, 15), upper(a))];
    let mins = [field(b, 0, 63), _mm256_or_si256(field(c, 4, 15), upper(b))];
    for g in 0..8 {
        out.scale(8 * i + g, _mm256_mul_ps(d, byte(scales[g / 4], g % 4)));
        out.min(8 * i + g, _mm256_mul_ps(dmin, byte(mins[g / 4], g % 4)));
    }
}

#[target_feature(enable = "avx2,f16c")]
fn q4_k<const P: bool>(rows: &Rows<'_, P>, n_blocks: usize, out: &mut Half8<'_>) {
    for i in 0..n_blocks {
        let at = i * size_of::<Q4_K>();
        for j in 0..4 {
            for part in 0..2 {
                let q = rows.transpose(at + offset_of!(Q4_K, qs) + 32 * j + 16 * part);
                for (s, q) in q.into_iter().enumerate() {
                    let step = 64 * i + 16 * j + 4 * part + s;
                    out.quants(step, field(q, 0, 15));
                    out.quants(step + 8, field(q, 4, 15));
                }
            }
        }
        groups_k4(rows, at, i, out);
    }
}

#[target_feature(enable = "avx2,f16c")]
fn q5_k<const P: bool>(rows: &Rows<'_, P>, n_blocks: usize, out: &mut Half8<'_>) {
    for i in 0..n_blocks {
        let at = i * size_of::<Q5_K>();
        for part in 0..2 {
            let high = rows.transpose(at + offset_of!(Q5_K, qh) + 16 * part);
            for j in 0..4 {
                let low = rows.transpose(at + offset_of!(Q5_K, qs) + 32 * j + 16 * part);
                for s in 0..4 {
                    let step = 64 * i + 16 * j + 4 * part + s;
                    out.quants(step, _mm256_or_si256(field(low[s], 0, 15), bit(high[s], 2 * j, 4)));
                    out.quants(step + 8, _mm256_or_si256(field(low[s], 4, 15), bit(high[s], 2 * j + 1, 4)));
                }
            }
        }
        groups_k4(rows, at, i, out);
    }
}

#[target_feature(enable = "avx2,f16c")]
fn q6_k<const P: bool>(rows: &Rows<'_, P>, n_blocks: usize, out: &mut Half8<'_>) {
    for i in 0..n_blocks {
        let at = i * size_of::<Q6_K>();
        for h in 0..2 {
            for part in 0..2 {
                let high = rows.transpose(at + offset_of!(Q6_K, qh) + 32 * h + 16 * part);
                for low_half in 0..2 {
                    let low = rows.transpose(at + offset_of!(Q6_K, ql) + 64 * h + 32 * low_half + 16 * part);
                    for s in 0..4 {
                        let step = 64 * i + 32 * h + 8 * low_half + 4 * part + s;
                        let upper = |j: usize| _mm256_slli_epi16::<4>(field(high[s], 2 * j, 3));
                        out.quants(step, _mm256_or_si256(field(low[s], 0, 15), upper(low_half)));
                        out.quants(step + 16, _mm256_or_si256(field(low[s], 4, 15), upper(low_half + 2)));
                    }
                }
            }
        }
        let d = rows.floats(at + offset_of!(Q6_K, d));
        let scales = rows.transpose(at + offset_of!(Q6_K, scales));
        for (g, v) in scales.into_iter().enumerate() {
            for b in 0..4 {
                out.symmetric(Dtype::Q6_K, 16 * i + 4 * g + b, _mm256_mul_ps(d, signed_byte(v, b)));
            }
        }
    }
}

#[target_feature(enable = "avx2,f16c")]
fn iq4_xs<const P: bool>(rows: &Rows<'_, P>, n_blocks: usize, out: &mut Half8<'_>) {
    const { assert!(offset_of!(IQ4_XS, scales_h) == 2 && offset_of!(IQ4_XS, scales_l) == 4) };
    for i in 0..n_blocks {
        let at = i * size_of::<IQ4_XS>();
        let first = rows.words(at);
        let low = rows.words(at + offset_of!(IQ4_XS, scales_l));
        let [d, _] = halves(first);
        for g in 0..8 {
            let q = nibbles(rows, at + offset_of!(IQ4_XS, qs) + 16 * g);
            for (s, q) in q.into_iter().enumerate() {
                out.quants(64 * i + 8 * g + s, iq4_values(q));
            }
            let shift = |v, n: usize| _mm256_srl_epi32(v, _mm_cvtsi32_si128(n as i32));
            let low = _mm256_and_si256(shift(low, 4 * g), _mm256_set1_epi32(15));
            let high = _mm256_and_si256(shift(first, 16 + 2 * g), _mm256_set1_epi32(3));
            let scale = _mm256_or_si256(low, _mm256_slli_epi32::<4>(high));
            let scale = _mm256_cvtepi32_ps(_mm256_sub_epi32(scale, _mm256_set1_epi32(32)));
            out.scale(8 * i + g, _mm256_mul_ps(d, scale));
        }
    }
}

pub fn unpack_float(dtype: Dtype, source: &Source<'_>, panel: &mut FloatPanel) {
    let n = source.row_bytes() / dtype.block().1;
    assert!(n <= FLOAT_COLS);
    for half in 0..2 {
        // SAFETY: this function is in the table of processors with AVX2 and F16C only.
        unsafe {
            match source {
                Source::Rows(rows) => floats(dtype, &Rows::apart(rows, half), n, panel),
                Source::Panel(bytes) => floats(dtype, &Rows::interleaved(bytes, half), n, panel),
            }
        }
    }
}

#[target_feature(enable = "avx2,f16c")]
fn floats<const P: bool>(dtype: Dtype, rows: &Rows<'_, P>, n: usize, panel: &mut FloatPanel) {
    match dtype {
        Dtype::F32 => wide_rows(rows, n, panel),
        Dtype::F16 => narrow_rows::<false, P>(rows, n, panel),
        Dtype::BF16 => narrow_rows::<true, P>(rows, n, panel),
        _ => unreachable!("{dtype} has quants"),
    }
}

#[target_feature(enable = "avx2")]
fn wide_rows<const P: bool>(rows: &Rows<'_, P>, n: usize, panel: &mut FloatPanel) {
    let (fours, rest) = panel.0[..n].as_chunks_mut::<4>();
    for (i, to) in fours.iter_mut().enumerate() {
        for (to, v) in to.iter_mut().zip(rows.transpose(16 * i)) {
            store_floats(&mut to.as_chunks_mut().0[rows.half], _mm256_castsi256_ps(v));
        }
    }
    for (i, to) in rest.iter_mut().enumerate() {
        let v = rows.words(16 * fours.len() + 4 * i);
        store_floats(&mut to.as_chunks_mut().0[rows.half], _mm256_castsi256_ps(v));
    }
}

#[target_feature(enable = "avx2,f16c")]
fn narrow_rows<const BF16: bool, const P: bool>(rows: &Rows<'_, P>, n: usize, panel: &mut FloatPanel) {
    let upper = |v| _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(0xffff_0000_u32 as i32)));
    let lower = |v| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v));
    let one = |v| match BF16 {
        true => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(v))),
        false => _mm256_cvtph_ps(v),
    };
    // Rows that lie apart are transposed eight columns at a time.
    let (eights, rest) = panel.0[..n].as_chunks_mut::<8>();
    for (i, to) in eights.iter_mut().enumerate() {
        if P {
            for (j, to) in to.iter_mut().enumerate() {
                store_floats(&mut to.as_chunks_mut().0[rows.half], one(rows.shorts(16 * i + 2 * j)));
            }
            continue;
        }
        for (to, v) in to.as_chunks_mut::<2>().0.iter_mut().zip(rows.transpose(16 * i)) {
            let pair = if BF16 { [lower(v), upper(v)] } else { halves(v) };
            store_floats(&mut to[0].as_chunks_mut().0[rows.half], pair[0]);
            store_floats(&mut to[1].as_chunks_mut().0[rows.half], pair[1]);
        }
    }
    for (i, to) in rest.iter_mut().enumerate() {
        let v = rows.shorts(16 * eights.len() + 2 * i);
        store_floats(&mut to.as_chunks_mut().0[rows.half], one(v));
    }
}
