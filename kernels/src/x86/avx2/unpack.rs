//! Rows of blocks to groups of quants: into a panel, or straight into the products of a few tokens.
//!
//! Eight rows at a time: 16 bytes of each row are transposed while they are still packed (or come so, interleaved), so
//! that each vector holds 4 bytes of 8 rows; the bit operations that follow are the same for every byte.

use super::{bit, field, iq4_values, load_half, store, store_floats};
use crate::Dtype;
use crate::block::*;
use crate::panel::{FLOAT_COLS, FloatPanel, PANEL_COLS, PANEL_ROWS, Panel, Source};
use crate::scalar::unpack::offset;
use crate::x86::{Rows, touch};
use std::arch::x86_64::*;
use std::mem::offset_of;

pub fn unpack(dtype: Dtype, source: &Source<'_>, panel: &mut Panel) {
    let (weights, size) = dtype.block();
    assert!(source.row_bytes() / size * weights <= PANEL_COLS);
    // SAFETY: this function is in the table of processors with AVX2, FMA and F16C only.
    unsafe {
        match source {
            Source::Rows(rows) => groups(dtype, &Rows::apart(rows), panel),
            Source::Panel(bytes) => groups(dtype, &Rows::interleaved(bytes), panel),
        }
    }
}

pub fn unpack_float(dtype: Dtype, source: &Source<'_>, panel: &mut FloatPanel) {
    let n = source.row_bytes() / dtype.block().1;
    assert!(n <= FLOAT_COLS);
    // SAFETY: this function is in the table of processors with AVX2, FMA and F16C only.
    unsafe {
        match source {
            Source::Rows(rows) => columns(dtype, &Rows::apart(rows), 0, n, panel),
            Source::Panel(bytes) => columns(dtype, &Rows::interleaved(bytes), 0, n, panel),
        }
    }
}

pub fn prefetch(source: &Source<'_>) {
    let ahead = |bytes: &[u8]| (0..bytes.len()).step_by(64).for_each(|at| touch(bytes.as_ptr().wrapping_add(at)));
    match source {
        Source::Rows(rows) => rows.iter().for_each(|row| ahead(row)),
        Source::Panel(panel) => ahead(panel),
    }
}

/// The array of `$n` vectors `$q`. (The library's functions that make arrays are not inlined with functions of a target
/// feature, and the vectors would pass through memory.)
macro_rules! vectors {
    ($i:ident in $n:literal => $q:expr) => {{
        let mut vectors = [_mm256_setzero_si256(); $n];
        for $i in 0..$n {
            vectors[$i] = $q;
        }
        vectors
    }};
}

/// A loop whose index is a constant in each turn, so that shifts by it are, too.
macro_rules! unrolled {
    ($i:ident in [$($n:literal)*] $body:block) => {
        $({
            let $i: usize = $n;
            $body
        })*
    };
}

mod unpack_small;

/// Takes the groups of 16 rows of quantized weights, of one half of the rows and the other in turn.
pub(super) trait Groups {
    /// Whether the rows are read as fast as memory gives them, and ought to be asked for ahead.
    const STREAMS: bool;

    /// [`Groups::STREAMS`].
    fn streams(&self) -> bool {
        Self::STREAMS
    }

    /// The other half of the rows is next.
    fn turn(&mut self) {}

    /// Group `group` of the rows of half `half`: `STEPS` times 4 columns. `CHAIN` products of pairs of its quants fit an
    /// i16; 0 marks quants that are signed and have no min.
    ///
    /// # Safety
    /// The processor must have AVX2 and FMA.
    unsafe fn take<const STEPS: usize, const CHAIN: usize>(
        &mut self,
        half: usize,
        group: usize,
        q: [__m256i; STEPS],
        scale: __m256,
        min: __m256,
    );
}

/// Takes the columns of 16 rows of float weights.
pub(super) trait FloatColumns {
    /// As [`Groups::STREAMS`].
    const STREAMS: bool;

    /// Column `column` of the rows of half `half`.
    ///
    /// # Safety
    /// The processor must have AVX2 and FMA.
    unsafe fn take(&mut self, half: usize, column: usize, v: __m256);
}

impl Groups for Panel {
    const STREAMS: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn take<const STEPS: usize, const CHAIN: usize>(
        &mut self,
        half: usize,
        group: usize,
        q: [__m256i; STEPS],
        scale: __m256,
        min: __m256,
    ) {
        for (to, q) in self.q[STEPS * group..][..STEPS].iter_mut().zip(q) {
            store(&mut to.as_chunks_mut().0[half], q);
        }
        store_floats(&mut self.scale[group].as_chunks_mut().0[half], scale);
        if CHAIN > 0 {
            store_floats(&mut self.min[group].as_chunks_mut().0[half], min);
        }
    }
}

impl FloatColumns for FloatPanel {
    const STREAMS: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn take(&mut self, half: usize, column: usize, v: __m256) {
        store_floats(&mut self.0[column].as_chunks_mut().0[half], v);
    }
}

/// A block of 8 of the rows. Offsets are those within the block of one row.
#[derive(Clone, Copy)]
struct Block<'a, const INTERLEAVED: bool> {
    rows: &'a Rows<'a, INTERLEAVED>,
    /// Where the block begins in its row; `size` bytes from there on lie in the row.
    first: usize,
    size: usize,
    /// Where it begins in an interleaved panel: beside this, offsets within it are constants.
    panel: *const u8,
    /// Columns of the block.
    weights: usize,
    /// The first 8 rows or the last.
    half: usize,
}

impl<'a, const INTERLEAVED: bool> Block<'a, INTERLEAVED> {
    fn new(rows: &'a Rows<'a, INTERLEAVED>, first: usize, size: usize, weights: usize, half: usize) -> Self {
        assert!(first + size <= rows.len && half < 2);
        let panel = rows.start[0].wrapping_add(PANEL_ROWS * first);
        Block { rows, first, size, weights, half, panel }
    }

    /// [`Groups::take`] of unsigned quants.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn unsigned<const STEPS: usize, const CHAIN: usize>(
        &self,
        out: &mut impl Groups,
        group: usize,
        q: [__m256i; STEPS],
        scale: __m256,
        min: __m256,
    ) {
        self.ahead::<STEPS>(out, group);
        // SAFETY: this function runs on processors with AVX2 and FMA only.
        unsafe { out.take::<STEPS, CHAIN>(self.half, group, q, scale, min) }
    }

    /// [`Groups::take`] of signed quants.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn signed(&self, out: &mut impl Groups, group: usize, q: [__m256i; 8], scale: __m256) {
        self.ahead::<8>(out, group);
        // SAFETY: this function runs on processors with AVX2 and FMA only.
        unsafe { out.take::<8, 0>(self.half, group, q, scale, _mm256_setzero_ps()) }
    }

    /// Asks for the share of a group, of this half, in what will follow.
    #[inline]
    fn ahead<const STEPS: usize>(&self, out: &impl Groups, group: usize) {
        if out.streams() {
            let n_groups = self.weights / (4 * STEPS);
            self.rows.ahead(self.first, self.size, self.half * n_groups + group % n_groups, 2 * n_groups);
        }
    }

    /// The `N` bytes at `at` of row `r` of the eight.
    #[inline]
    fn bytes<const N: usize>(&self, r: usize, at: usize) -> &[u8; N] {
        assert!(!INTERLEAVED && at + N <= self.size && r < 8);
        // SAFETY: the block's bytes lie in the row, and these in the block.
        unsafe { &*self.rows.start[8 * self.half + r].add(self.first + at).cast() }
    }

    /// The units of `N / 8` bytes at `at` of the eight rows of a panel.
    #[inline]
    fn units<const N: usize>(&self, at: usize) -> &[u8; N] {
        assert!(INTERLEAVED && at + N / 8 <= self.size);
        // SAFETY: the block's bytes lie in the panel, 16 times as far from its beginning as in a row, and these in the block.
        unsafe { &*self.panel.add(PANEL_ROWS * at).add(N * self.half).cast() }
    }

    /// Vector `i` holds bytes `at + 4 i ..` of each row.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn transpose(&self, at: usize) -> [__m256i; 4] {
        if INTERLEAVED {
            return [self.words(at), self.words(at + 4), self.words(at + 8), self.words(at + 12)];
        }
        let both = |r: usize| _mm256_set_m128i(load_half(self.bytes(r + 4, at)), load_half(self.bytes(r, at)));
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

    /// The 32 bytes at `at` of each row, as by [`Block::transpose`].
    #[inline]
    #[target_feature(enable = "avx2")]
    fn transpose_32(&self, at: usize) -> [__m256i; 8] {
        let ([a, b, c, d], [e, f, g, h]) = (self.transpose(at), self.transpose(at + 16));
        [a, b, c, d, e, f, g, h]
    }

    /// The 4 bytes at `at` of each row.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn words(&self, at: usize) -> __m256i {
        if INTERLEAVED {
            return super::load(self.units(at));
        }
        let load = |r: usize| i32::from_le_bytes(*self.bytes(r, at));
        _mm256_setr_epi32(load(0), load(1), load(2), load(3), load(4), load(5), load(6), load(7))
    }

    /// The 2 bytes at `at` of each row.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn shorts(&self, at: usize) -> __m128i {
        if INTERLEAVED {
            return load_half(self.units(at));
        }
        let load = |r: usize| i16::from_le_bytes(*self.bytes(r, at));
        _mm_setr_epi16(load(0), load(1), load(2), load(3), load(4), load(5), load(6), load(7))
    }

    /// The byte at `at` of each row.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn singles(&self, at: usize) -> __m128i {
        let bytes = if INTERLEAVED { *self.units(at) } else { std::array::from_fn(|r| self.bytes::<1>(r, at)[0]) };
        _mm_cvtsi64_si128(i64::from_le_bytes(bytes))
    }

    /// The F16 at `at` of each row.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn floats(&self, at: usize) -> __m256 {
        _mm256_cvtph_ps(self.shorts(at))
    }

    /// The 32 nibbles of the 16 bytes at `at`.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn nibbles(&self, at: usize) -> [__m256i; 8] {
        let [a, b, c, d] = self.transpose(at);
        let (low, high) = (|v| field(v, 0, 15), |v| field(v, 4, 15));
        [low(a), low(b), low(c), low(d), high(a), high(b), high(c), high(d)]
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

/// The min that makes the quants of a symmetric type with scale `scale` unsigned.
#[inline]
#[target_feature(enable = "avx2")]
fn shifted(dtype: Dtype, scale: __m256) -> __m256 {
    _mm256_mul_ps(scale, _mm256_set1_ps(f32::from(offset(dtype))))
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

/// Hands the groups of all blocks of quantized rows to `out`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn groups<const P: bool, S: Groups>(dtype: Dtype, rows: &Rows<'_, P>, out: &mut S) {
    match dtype {
        Dtype::Q4_0 => blocks(Dtype::Q4_0, rows, out, |b, i, out| q4_0(b, i, out)),
        Dtype::Q4_1 => blocks(Dtype::Q4_1, rows, out, |b, i, out| q4_1(b, i, out)),
        Dtype::Q5_0 => blocks(Dtype::Q5_0, rows, out, |b, i, out| q5_0(b, i, out)),
        Dtype::Q5_1 => blocks(Dtype::Q5_1, rows, out, |b, i, out| q5_1(b, i, out)),
        Dtype::Q8_0 => blocks(Dtype::Q8_0, rows, out, |b, i, out| q8_0(b, i, out)),
        Dtype::IQ4_NL => blocks(Dtype::IQ4_NL, rows, out, |b, i, out| iq4_nl(b, i, out)),
        Dtype::Q2_K => blocks(Dtype::Q2_K, rows, out, |b, i, out| q2_k(b, i, out)),
        Dtype::Q3_K => blocks(Dtype::Q3_K, rows, out, |b, i, out| q3_k(b, i, out)),
        Dtype::Q4_K => blocks(Dtype::Q4_K, rows, out, |b, i, out| q4_k(b, i, out)),
        Dtype::Q5_K => blocks(Dtype::Q5_K, rows, out, |b, i, out| q5_k(b, i, out)),
        Dtype::Q6_K => blocks(Dtype::Q6_K, rows, out, |b, i, out| q6_k(b, i, out)),
        Dtype::IQ4_XS => blocks(Dtype::IQ4_XS, rows, out, |b, i, out| iq4_xs(b, i, out)),
        Dtype::IQ2_XXS => blocks(Dtype::IQ2_XXS, rows, out, |b, i, out| unpack_small::iq2_xxs(b, i, out)),
        Dtype::IQ2_XS => blocks(Dtype::IQ2_XS, rows, out, |b, i, out| unpack_small::iq2_xs(b, i, out)),
        Dtype::IQ2_S => blocks(Dtype::IQ2_S, rows, out, |b, i, out| unpack_small::iq2_s(b, i, out)),
        Dtype::IQ3_XXS => blocks(Dtype::IQ3_XXS, rows, out, |b, i, out| unpack_small::iq3_xxs(b, i, out)),
        Dtype::IQ3_S => blocks(Dtype::IQ3_S, rows, out, |b, i, out| unpack_small::iq3_s(b, i, out)),
        Dtype::IQ1_S => blocks(Dtype::IQ1_S, rows, out, |b, i, out| unpack_small::iq1_s(b, i, out)),
        Dtype::IQ1_M => blocks(Dtype::IQ1_M, rows, out, |b, i, out| unpack_small::iq1_m(b, i, out)),
        Dtype::TQ1_0 => blocks(Dtype::TQ1_0, rows, out, |b, i, out| unpack_small::tq1_0(b, i, out)),
        Dtype::TQ2_0 => blocks(Dtype::TQ2_0, rows, out, |b, i, out| unpack_small::tq2_0(b, i, out)),
        Dtype::Q1_0 => blocks(Dtype::Q1_0, rows, out, |b, i, out| unpack_small::q1_0(b, i, out)),
        Dtype::Q2_0 => blocks(Dtype::Q2_0, rows, out, |b, i, out| unpack_small::q2_0(b, i, out)),
        Dtype::MXFP4 => blocks(Dtype::MXFP4, rows, out, |b, i, out| unpack_small::mxfp4(b, i, out)),
        Dtype::NVFP4 => blocks(Dtype::NVFP4, rows, out, |b, i, out| unpack_small::nvfp4(b, i, out)),
        _ => unreachable!("{dtype} has no quants"),
    }
}

/// Runs `f(block, index, out)` on each block of each half of the rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn blocks<const P: bool, S: Groups>(
    dtype: Dtype,
    rows: &Rows<'_, P>,
    out: &mut S,
    f: impl Fn(Block<'_, P>, usize, &mut S),
) {
    let (weights, size) = dtype.block();
    for i in 0..rows.len / size {
        // One call for both halves: two would not be inlined, and the sums would live in memory.
        for half in 0..2 {
            f(Block::new(rows, i * size, size, weights, half), i, out);
            out.turn();
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4_0<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(Q4_0, d));
    b.unsigned::<8, 8>(out, i, b.nibbles(offset_of!(Q4_0, qs)), d, shifted(Dtype::Q4_0, d));
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4_1<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let [d, m] = halves(b.words(offset_of!(Q4_1, d)));
    b.unsigned::<8, 8>(out, i, b.nibbles(offset_of!(Q4_1, qs)), d, negate(m));
}

/// The quants of Q5_0 and Q5_1.
#[inline]
#[target_feature(enable = "avx2")]
fn five_bits<const P: bool>(b: Block<'_, P>, qh: usize, qs: usize) -> [__m256i; 8] {
    let qh = b.words(qh);
    let mut q = b.nibbles(qs);
    for (s, q) in q.iter_mut().enumerate() {
        *q = _mm256_or_si256(*q, fifth_bits(qh, s));
    }
    q
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q5_0<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(Q5_0, d));
    let q = five_bits(b, offset_of!(Q5_0, qh), offset_of!(Q5_0, qs));
    b.unsigned::<8, 4>(out, i, q, d, shifted(Dtype::Q5_0, d));
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q5_1<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let [d, m] = halves(b.words(offset_of!(Q5_1, d)));
    b.unsigned::<8, 4>(out, i, five_bits(b, offset_of!(Q5_1, qh), offset_of!(Q5_1, qs)), d, negate(m));
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q8_0<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    b.signed(out, i, b.transpose_32(offset_of!(Q8_0, qs)), b.floats(offset_of!(Q8_0, d)));
}

/// The values of the 32 codes at `at`.
#[inline]
#[target_feature(enable = "avx2")]
fn iq4<const P: bool>(b: Block<'_, P>, at: usize) -> [__m256i; 8] {
    let mut q = b.nibbles(at);
    for q in &mut q {
        *q = iq4_values(*q);
    }
    q
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn iq4_nl<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    b.signed(out, i, iq4(b, offset_of!(IQ4_NL, qs)), b.floats(offset_of!(IQ4_NL, d)));
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q2_k<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let [d, dmin] = halves(b.words(offset_of!(Q2_K, d)));
    for h in 0..2 {
        let q = b.transpose_32(offset_of!(Q2_K, qs) + 32 * h);
        unrolled!(j in [0 1 2 3] {
            // Four groups' scales and mins are in one word.
            let v = b.words(offset_of!(Q2_K, scales) + 8 * h + j / 2 * 4);
            let (scales, mins) = (field(v, 0, 15), field(v, 4, 15));
            for part in 0..2 {
                let scale = _mm256_mul_ps(d, byte(scales, 2 * (j % 2) + part));
                let min = _mm256_mul_ps(dmin, byte(mins, 2 * (j % 2) + part));
                let q = vectors!(s in 4 => field(q[4 * part + s], 2 * j, 3));
                b.unsigned::<4, 4>(out, 16 * i + 8 * h + 2 * j + part, q, scale, min);
            }
        });
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q3_k<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(Q3_K, d));
    let scales = offset_of!(Q3_K, scales);
    let (low_a, low_b, upper) = (b.words(scales), b.words(scales + 4), b.words(scales + 8));
    let high = b.transpose_32(offset_of!(Q3_K, hmask));
    unrolled!(h in [0 1] {
        let low = b.transpose_32(offset_of!(Q3_K, qs) + 32 * h);
        unrolled!(j in [0 1 2 3] {
            let word = 2 * h + j / 2;
            let four = field(if word.is_multiple_of(2) { low_a } else { low_b }, word / 2 * 4, 15);
            let two = _mm256_slli_epi16::<4>(field(upper, 2 * word, 3));
            let v = _mm256_sub_epi8(_mm256_or_si256(four, two), _mm256_set1_epi8(32));
            for part in 0..2 {
                let scale = _mm256_mul_ps(d, signed_byte(v, 2 * (j % 2) + part));
                let q = vectors!(s in 4 => {
                    _mm256_or_si256(field(low[4 * part + s], 2 * j, 3), bit(high[4 * part + s], 4 * h + j, 2))
                });
                let group = 16 * i + 8 * h + 2 * j + part;
                b.unsigned::<4, 4>(out, group, q, scale, shifted(Dtype::Q3_K, scale));
            }
        });
    });
}

/// The factors, and the scales and mins of groups by fours in bytes, of Q4_K and Q5_K: their blocks both begin with d,
/// dmin and the packed scales.
struct GroupsK4 {
    d: __m256,
    dmin: __m256,
    scales: [__m256i; 2],
    mins: [__m256i; 2],
}

impl GroupsK4 {
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn new<const P: bool>(b: Block<'_, P>) -> GroupsK4 {
        const { assert!(offset_of!(Q4_K, scales) == 4 && offset_of!(Q5_K, scales) == 4) };
        let [factors, s, m, rest] = b.transpose(0);
        let [d, dmin] = halves(factors);
        let upper = |v| _mm256_and_si256(_mm256_srli_epi16::<2>(v), _mm256_set1_epi8(0x30));
        GroupsK4 {
            d,
            dmin,
            scales: [field(s, 0, 63), _mm256_or_si256(field(rest, 0, 15), upper(s))],
            mins: [field(m, 0, 63), _mm256_or_si256(field(rest, 4, 15), upper(m))],
        }
    }

    /// Scale and min of group `g`.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn get(&self, g: usize) -> (__m256, __m256) {
        let (scale, min) = (byte(self.scales[g / 4], g % 4), byte(self.mins[g / 4], g % 4));
        (_mm256_mul_ps(self.d, scale), _mm256_mul_ps(self.dmin, min))
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4_k<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let k = GroupsK4::new(b);
    unrolled!(j in [0 1 2 3] {
        let v = b.transpose_32(offset_of!(Q4_K, qs) + 32 * j);
        unrolled!(n in [0 1] {
            let (scale, min) = k.get(2 * j + n);
            let q = vectors!(s in 8 => field(v[s], 4 * n, 15));
            b.unsigned::<8, 8>(out, 8 * i + 2 * j + n, q, scale, min);
        });
    });
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q5_k<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let k = GroupsK4::new(b);
    let high = b.transpose_32(offset_of!(Q5_K, qh));
    unrolled!(j in [0 1 2 3] {
        let low = b.transpose_32(offset_of!(Q5_K, qs) + 32 * j);
        unrolled!(n in [0 1] {
            let (scale, min) = k.get(2 * j + n);
            let q = vectors!(s in 8 => _mm256_or_si256(field(low[s], 4 * n, 15), bit(high[s], 2 * j + n, 4)));
            b.unsigned::<8, 4>(out, 8 * i + 2 * j + n, q, scale, min);
        });
    });
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q6_k<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(Q6_K, d));
    for h in 0..2 {
        let high = b.transpose_32(offset_of!(Q6_K, qh) + 32 * h);
        unrolled!(j in [0 1 2 3] {
            // Four groups' scales are in one word.
            let v = b.words(offset_of!(Q6_K, scales) + 8 * h + j / 2 * 4);
            let low = b.transpose_32(offset_of!(Q6_K, ql) + 64 * h + j % 2 * 32);
            for part in 0..2 {
                let scale = _mm256_mul_ps(d, signed_byte(v, 2 * (j % 2) + part));
                let q = vectors!(s in 4 => {
                    let upper = field(high[4 * part + s], 2 * j, 3);
                    _mm256_or_si256(field(low[4 * part + s], j / 2 * 4, 15), _mm256_slli_epi16::<4>(upper))
                });
                let group = 16 * i + 8 * h + 2 * j + part;
                b.unsigned::<4, 2>(out, group, q, scale, shifted(Dtype::Q6_K, scale));
            }
        });
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn iq4_xs<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    const { assert!(offset_of!(IQ4_XS, scales_h) == 2 && offset_of!(IQ4_XS, scales_l) == 4) };
    let first = b.words(0);
    let low = b.words(offset_of!(IQ4_XS, scales_l));
    let [d, _] = halves(first);
    unrolled!(g in [0 1 2 3 4 5 6 7] {
        let q = iq4(b, offset_of!(IQ4_XS, qs) + 16 * g);
        let shift = |v, n: usize| _mm256_srl_epi32(v, _mm_cvtsi32_si128(n as i32));
        let low = _mm256_and_si256(shift(low, 4 * g), _mm256_set1_epi32(15));
        let high = _mm256_and_si256(shift(first, 16 + 2 * g), _mm256_set1_epi32(3));
        let scale = _mm256_or_si256(low, _mm256_slli_epi32::<4>(high));
        let scale = _mm256_cvtepi32_ps(_mm256_sub_epi32(scale, _mm256_set1_epi32(32)));
        b.signed(out, 8 * i + g, q, _mm256_mul_ps(d, scale));
    });
}

/// Hands columns `first..first + n` of rows of floats to `out`, which counts them from 0.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn columns<const P: bool>(
    dtype: Dtype,
    rows: &Rows<'_, P>,
    first: usize,
    n: usize,
    out: &mut impl FloatColumns,
) {
    let upper = |v| _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(0xffff_0000_u32 as i32)));
    let lower = |v| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v));
    let bf16 = |v| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(v)));
    match dtype {
        Dtype::F32 => {
            let eight = |b: Block<'_, P>| {
                let [c0, c1, c2, c3, c4, c5, c6, c7] = b.transpose_32(0);
                let f = |v| _mm256_castsi256_ps(v);
                [f(c0), f(c1), f(c2), f(c3), f(c4), f(c5), f(c6), f(c7)]
            };
            eights(4, rows, first, n, out, eight, |b| _mm256_castsi256_ps(b.words(0)));
        }
        Dtype::F16 => {
            let eight = |b: Block<'_, P>| {
                if P {
                    let f = |c: usize| b.floats(2 * c);
                    return [f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)];
                }
                let [c0, c2, c4, c6] = b.transpose(0);
                let ([c0, c1], [c2, c3], [c4, c5], [c6, c7]) = (halves(c0), halves(c2), halves(c4), halves(c6));
                [c0, c1, c2, c3, c4, c5, c6, c7]
            };
            eights(2, rows, first, n, out, eight, |b| b.floats(0));
        }
        Dtype::BF16 => {
            let eight = |b: Block<'_, P>| {
                if P {
                    let f = |c: usize| bf16(b.shorts(2 * c));
                    return [f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)];
                }
                let [c0, c2, c4, c6] = b.transpose(0);
                [lower(c0), upper(c0), lower(c2), upper(c2), lower(c4), upper(c4), lower(c6), upper(c6)]
            };
            eights(2, rows, first, n, out, eight, |b| bf16(b.shorts(0)));
        }
        _ => unreachable!("{dtype} has quants"),
    }
}

/// Walks columns of `size` bytes by eights with `eight`, and what is left of them with `one`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn eights<'a, const P: bool, S: FloatColumns>(
    size: usize,
    rows: &'a Rows<'a, P>,
    first: usize,
    n: usize,
    out: &mut S,
    eight: impl Fn(Block<'a, P>) -> [__m256; 8],
    one: impl Fn(Block<'a, P>) -> __m256,
) {
    for c in (0..n / 8 * 8).step_by(8) {
        let at = (first + c) * size;
        if S::STREAMS {
            rows.ahead(at, 8 * size, 0, 1);
        }
        for half in 0..2 {
            for (i, v) in eight(Block::new(rows, at, 8 * size, 8, half)).into_iter().enumerate() {
                // SAFETY: this function runs on processors with AVX2 and FMA only.
                unsafe { out.take(half, c + i, v) };
            }
        }
    }
    for c in n / 8 * 8..n {
        for half in 0..2 {
            // SAFETY: as above.
            unsafe { out.take(half, c, one(Block::new(rows, (first + c) * size, size, 1, half))) };
        }
    }
}
